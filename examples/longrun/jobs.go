package main

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/jobwal/jobwal/recovery"
)

// kind is how a job goes.
type kind int

const (
	ordinary kind = iota
	refused       // fails before it was started
	broken        // fails at work
	undone        // completed, then rolled back
	slow          // unfinished for long
	endless       // never finished
)

func (k kind) capability() string {
	return [...]string{"think", "think", "shell", "file_write", "wait", "watch"}[k]
}

// forever is the one job that is never finished.
const forever = "forever"

// kindOf makes one job in twenty fail on either side of its start, one in fifty be undone, and one in five hundred slow.
func kindOf(n int64) kind {
	switch {
	case n%500 == 1:
		return slow
	case n%20 == 3:
		return refused
	case n%20 == 9:
		return broken
	case n%50 == 7:
		return undone
	}
	return ordinary
}

// submission makes a job whose args can be told from its id.
func submission(id string, k kind) recovery.Submission {
	return recovery.Submission{JobID: id, Capability: k.capability(), Args: argsOf(id)}
}

// argsOf returns some 200 bytes; for the job that stays for ever, more than is held in memory.
func argsOf(id string) json.RawMessage {
	size := 160
	if id == forever {
		size = 8 << 10
	}
	return fmt.Appendf(nil, `{"job":%q,"prompt":"%s"}`, id, strings.Repeat("p", size))
}

// outputs are of mixed sizes; the largest are not held in memory.
var outputs = func() (all [16]json.RawMessage) {
	for i := range all {
		size := 40
		switch {
		case i == 0:
			size = 8 << 10
		case i < 4:
			size = 512
		}
		all[i] = fmt.Appendf(nil, `{"answer":"%s"}`, strings.Repeat("a", size))
	}
	return all
}()

func outputOf(n int64) json.RawMessage { return outputs[n%int64(len(outputs))] }
