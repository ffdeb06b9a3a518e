package wal

import (
	"encoding/json"
	"time"
	"unicode"
	"unicode/utf8"
)

// A door checks events on their way in. It is reused for those of one append; not for concurrent use.
type door struct {
	json *jsonScanner
	slab slab
}

func newDoor() *door { return &door{json: new(jsonScanner)} }

// check refuses what must not stand in the log, and returns e as it will stand there: payloads compact and of its own,
// time set.
func (d *door) check(e Event, now func() time.Time) (Event, error) {
	if err := checkNames(&e); err != nil {
		return e, err
	}
	if e.Time.IsZero() {
		e.Time = now()
		if e.Time.Unix() < 0 {
			e.Time = time.Unix(0, 0) // a clock that was never set is not the caller's fault
		}
	}
	if sec := e.Time.Unix(); sec < 0 || sec > maxUnix {
		return e, invalid("Time", "%s: years 1970 to 9999 can be stored", e.Time)
	}
	e.Time = e.Time.UTC().Round(0)
	var err error
	if e.Args, err = d.payload("Args", e.Args); err != nil {
		return e, err
	}
	e.Output, err = d.payload("Output", e.Output)
	return e, err
}

func checkNames(e *Event) error {
	switch {
	case e.Type == "":
		return invalid("Type", "empty")
	case e.Type == EventLost:
		return invalid("Type", "%s is Salvage's alone", EventLost)
	case e.JobID != "" && e.Type == JobsForgotten:
		return invalid("JobID", "%q; %s is about the log", e.JobID, e.Type)
	case e.JobID == "" && isJobEvent(e.Type):
		return invalid("JobID", "empty; %s is about a job", e.Type)
	case e.JobID == "" && e.Prev != 0:
		return invalid("Prev", "%d on an event without a job", e.Prev)
	case e.Problem != "":
		return invalid("Problem", "set; the event could not be read in full and must not be written again")
	}
	if err := checkName("Type", string(e.Type)); err != nil {
		return err
	}
	if err := checkName("JobID", e.JobID); err != nil {
		return err
	}
	if err := checkName("Capability", e.Capability); err != nil {
		return err
	}
	if !utf8.ValidString(e.Error) {
		return invalid("Error", "not valid UTF-8")
	}
	return nil
}

func isJobEvent(t EventType) bool {
	switch t {
	case JobSubmitted, JobValidated, JobStarted, JobCompleted, JobFailed, JobRolledBack,
		JobResumed, JobStep, JobProgress, JobStepUndone, JobHeld, JobReleased:
		return true
	}
	return false
}

// maxName is the most bytes of a job id, a capability or a type.
const maxName = 256

func checkName(field, s string) error {
	switch {
	case len(s) > maxName:
		return invalid(field, "%d bytes, the most is %d", len(s), maxName)
	case isPrintable(s):
		return nil
	case !utf8.ValidString(s):
		return invalid(field, "not valid UTF-8: %q", s)
	}
	for _, r := range s {
		if unicode.IsControl(r) {
			return invalid(field, "control character %U", r)
		}
	}
	return nil
}

// isPrintable tells whether s is ASCII without control characters, as nearly every name is.
func isPrintable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

func (d *door) payload(field string, raw json.RawMessage) (json.RawMessage, error) {
	if len(raw) == 0 {
		return nil, nil
	}
	compact, err := d.json.check(raw)
	if err != nil {
		return nil, &InvalidError{Field: field, Reason: err.Error()}
	}
	if compact {
		return d.slab.clone(raw), nil
	}
	return appendCompact(make(json.RawMessage, 0, len(raw)-d.json.spaces), raw), nil
}
