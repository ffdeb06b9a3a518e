package main

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/jobwal/jobwal/recovery"
)

// A plan is what the agent is to do, step by step.
type plan struct {
	Steps []step `json:"steps"`
}

// A step becomes a job of the same id, so that an agent that starts again knows what is done.
type step struct {
	ID         string          `json:"id"`
	Capability string          `json:"capability"`
	Args       json.RawMessage `json:"args"`
	RollBack   bool            `json:"roll_back"` // undo it, also when it ends well
}

//go:embed plan.json
var builtIn []byte

func loadPlan(path string) (plan, error) {
	data, name := builtIn, "the built-in plan"
	if path != "" {
		var err error
		if data, err = os.ReadFile(path); err != nil {
			return plan{}, err
		}
		name = path
	}
	p, err := parsePlan(data)
	if err != nil {
		return plan{}, fmt.Errorf("%s: %w", name, err)
	}
	return p, nil
}

func parsePlan(data []byte) (plan, error) {
	var p plan
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&p); err != nil {
		return p, at(data, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return p, fmt.Errorf("something follows the plan")
	}
	return p, p.check()
}

// at adds the line to an error of encoding/json that knows its offset.
func at(data []byte, err error) error {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	offset := int64(len(data))
	switch {
	case errors.As(err, &syntax):
		offset = syntax.Offset
	case errors.As(err, &kind):
		offset = kind.Offset
	case !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF):
		return err
	}
	return fmt.Errorf("line %d: %w", 1+bytes.Count(data[:min(offset, int64(len(data)))], []byte("\n")), err)
}

// Ids name backups, too.
var validID = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,63}$`)

func (p *plan) check() error {
	known := slices.Sorted(maps.Keys(capabilities(workshop{}).Effects()))
	if len(p.Steps) == 0 {
		return fmt.Errorf("no steps")
	}
	seen := make(map[string]bool)
	for i, s := range p.Steps {
		switch {
		case !validID.MatchString(s.ID):
			return fmt.Errorf("step %d: id %q: 1 to 64 of a-z, 0-9 and -, please", i+1, s.ID)
		case seen[s.ID]:
			return fmt.Errorf("step %d: id %q is taken", i+1, s.ID)
		case !slices.Contains(known, s.Capability):
			return fmt.Errorf("step %d (%s): no capability %q; there are %s", i+1, s.ID, s.Capability, strings.Join(known, ", "))
		case s.RollBack && !undoable(s.Capability):
			return fmt.Errorf("step %d (%s): a %s can't be undone", i+1, s.ID, s.Capability)
		}
		seen[s.ID] = true
	}
	return nil
}

// policy is what the plan says of jobs that an earlier agent has left. About most it has no opinion: the runner's own policy
// then goes by what their capabilities do.
func (p *plan) policy() recovery.Policy {
	return recovery.PolicyFunc(func(ev recovery.Evidence) (recovery.Action, string, bool) {
		known := slices.ContainsFunc(p.Steps, func(s step) bool { return s.ID == ev.JobID })
		return recovery.ActionFail, "the plan has no such step any more", !known
	})
}
