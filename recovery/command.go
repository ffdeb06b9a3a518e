package recovery

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"strings"

	"github.com/jobwal/jobwal/wal"
)

// A Submission describes a new job.
type Submission struct {
	// JobID: 1 to 256 bytes of valid UTF-8 without control characters, never used before. Empty: 32 random hex digits.
	JobID string
	// Capability names what is to be done, by the caller's own words. Rules as for JobID; may be empty.
	Capability string
	// Args is marshalled with encoding/json (without its rewriting of <, > and &); a json.RawMessage is taken as it is,
	// but for white space. It has to be strict JSON, as [wal.Log.Append] says. nil: none.
	Args any
}

// A Command asks for one step of one job. Make them with Submit, Validate and so on, and give them to [Engine.Do].
type Command struct {
	event wal.EventType
	id    string
	// What goes into the event.
	capability string
	payload    any
	text       string
	field      string // of the payload, for errors
	step       string // its name
	bad        error

	ifSeq uint64 // see IfSeq
}

// Submit makes a new job.
func Submit(s Submission) Command {
	if s.JobID == "" {
		s.JobID = newID()
	}
	return Command{event: wal.JobSubmitted, id: s.JobID, capability: s.Capability, payload: s.Args, field: "Args"}
}

// Validate says that a submitted job may be started.
func Validate(id string) Command { return Command{event: wal.JobValidated, id: id} }

// Start says that a validated job's work begins.
func Start(id string) Command { return Command{event: wal.JobStarted, id: id} }

// Complete ends a started job well. The output is taken as [Submission].Args is.
func Complete(id string, output any) Command {
	return Command{event: wal.JobCompleted, id: id, payload: output, field: "Output"}
}

// Fail ends a submitted, validated or started job badly. cause must not be nil; of its text, what is not valid UTF-8
// is replaced by U+FFFD.
func Fail(id string, cause error) Command {
	c := Command{event: wal.JobFailed, id: id}
	if cause == nil {
		c.bad = &wal.InvalidError{Field: "cause", Reason: "nil"}
		return c
	}
	c.text = strings.ToValidUTF8(cause.Error(), "\uFFFD")
	return c
}

// RollBack says that the effects of a completed or failed job were undone. The reason is treated as Fail's cause.
func RollBack(id string, reason string) Command {
	return Command{event: wal.JobRolledBack, id: id, text: strings.ToValidUTF8(reason, "\uFFFD")}
}

func newID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails, by its contract
	return hex.EncodeToString(b[:])
}

// encode makes the event, as far as it does not depend on the job.
func (c *Command) encode() (wal.Event, error) {
	e := wal.Event{Type: c.event, JobID: c.id, Capability: c.capability, Error: c.text}
	switch {
	case c.bad != nil:
		return e, c.bad
	case c.event == "":
		return e, &wal.InvalidError{Field: "command", Reason: "the zero Command; make it with Submit, Validate and so on"}
	case c.id == "":
		return e, &wal.InvalidError{Field: "JobID", Reason: "empty"}
	}
	raw, err := marshal(c.payload)
	if err != nil {
		return e, &wal.InvalidError{Field: c.field, Reason: err.Error()}
	}
	if c.event == wal.JobSubmitted {
		e.Args = raw
	} else {
		e.Output = raw
	}
	if c.step != "" {
		e.Args, err = marshal(stepArgs{c.step})
	}
	return e, err
}

// marshal is json.Marshal without its rewriting of <, > and &, which reaches even into a json.RawMessage.
func marshal(v any) (json.RawMessage, error) {
	switch v := v.(type) {
	case nil:
		return nil, nil
	case json.RawMessage:
		return v, nil
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil // free of white space, the log takes it as it is
}
