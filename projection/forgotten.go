package projection

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jobwal/jobwal/wal"
)

// Forgotten is what a jobs_forgotten event says. It has no job of its own; its Args are
//
//	{"before":"2026-03-01T00:00:00Z","ids_before":"2026-02-01T00:00:00Z","jobs":["id1","id2"]}
//
// Each job that it names is forgotten if it is there, has finished and is not parked; others are left alone.
type Forgotten struct {
	// Before is the cut-off that was asked for, for people: jobs that ended earlier. Folding makes no use of it.
	Before time.Time
	// IDsBefore: ids that events before this time have named are refused no longer. Zero: all stay refused.
	IDsBefore time.Time
	Jobs      []string
}

// Event returns the event that says f, to be appended. Times are written in UTC, to the nanosecond.
func (f Forgotten) Event() wal.Event {
	args := struct {
		Before    string   `json:"before"`
		IDsBefore string   `json:"ids_before,omitempty"`
		Jobs      []string `json:"jobs"`
	}{Before: timeText(f.Before), Jobs: f.Jobs}
	if !f.IDsBefore.IsZero() {
		args.IDsBefore = timeText(f.IDsBefore)
	}
	if args.Jobs == nil {
		args.Jobs = []string{}
	}
	raw, _ := json.Marshal(args) // strings can't fail
	return wal.Event{Type: wal.JobsForgotten, Args: raw}
}

func timeText(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// ParseForgotten reads a jobs_forgotten event. Names count as they are spelled, and those that it does not know it
// passes over; "ids_before" may be missing.
func ParseForgotten(e wal.Event) (Forgotten, error) {
	f, err := parseForgotten(&e)
	if err != nil {
		return Forgotten{}, fmt.Errorf("projection: seq %d (%.64s): %w", e.Seq, e.Type, err)
	}
	return f, nil
}

func parseForgotten(e *wal.Event) (Forgotten, error) {
	switch {
	case e.Type != wal.JobsForgotten:
		return Forgotten{}, errors.New("not a " + string(wal.JobsForgotten) + " event")
	case e.Problem != "":
		return Forgotten{}, errors.New("not readable: " + e.Problem)
	case e.JobID != "":
		return Forgotten{}, errors.New("an event of a job")
	}
	// A struct would take "Jobs" for "jobs", and the last of both.
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(e.Args, &fields); err != nil {
		return Forgotten{}, fmt.Errorf("args: %w", err)
	}
	var f Forgotten
	if err := parseTime(fields, "before", &f.Before); err != nil {
		return Forgotten{}, err
	}
	if fields["ids_before"] != nil {
		if err := parseTime(fields, "ids_before", &f.IDsBefore); err != nil {
			return Forgotten{}, err
		}
	}
	return f, parseIDs(fields["jobs"], &f.Jobs)
}

func parseTime(fields map[string]json.RawMessage, name string, into *time.Time) error {
	var text string
	if err := json.Unmarshal(fields[name], &text); err != nil {
		return fmt.Errorf("args: %s: %w", name, err)
	}
	at, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return fmt.Errorf("args: %s: %w", name, err)
	}
	*into = at.UTC()
	return nil
}

func parseIDs(raw json.RawMessage, into *[]string) error {
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("args: jobs: %w", err)
	}
	if *into == nil {
		return errors.New("args: jobs: null")
	}
	for i, id := range *into {
		if id == "" {
			return fmt.Errorf("args: jobs: the id at %d is empty", i)
		}
	}
	return nil
}
