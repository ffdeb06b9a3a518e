package crashtest

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jobwal/jobwal/wal"
)

// A Reference is what a log adds up to, by the most naive means there are: it shares no code with package statemachine,
// so that the two can be held against each other. The zero value is that of an empty log. It is not safe for concurrent
// use.
type Reference struct {
	events []wal.Event
	heads  map[string]int // a job's newest event, as an index of events
	states map[string]string
	order  []string // jobs, in order of submission

	last    uint64         // seq of the newest event
	begins  map[string]int // of ids that jobs had which are forgotten: where a later one's events begin
	refused refusals
	reuse   bool              // ids of forgotten jobs may be used again at once
	floor   uint64            // below it, events of forgotten jobs may be missing
	strays  map[string]uint64 // jobs whose beginning is, by their newest event
}

// after is the lifecycle, written a second time and in another way: what each event needs, and what it makes of the job.
func after(state string, on wal.EventType) (next string, legal bool) {
	if in := unheld(state); in != state {
		switch on {
		case "job_released":
			return in, true
		case "job_failed", "job_completed":
			return after(in, on)
		}
		return "", false
	}
	switch on {
	case "job_submitted":
		return "submitted", state == ""
	case "job_validated":
		return "validated", state == "submitted"
	case "job_started":
		return "started", state == "validated"
	case "job_completed":
		return "completed", state == "started"
	case "job_failed":
		return "failed", state == "submitted" || state == "validated" || state == "started"
	case "job_rolled_back":
		return "rolled_back", state == "completed" || state == "failed"
	case "job_resumed", "job_step", "job_progress":
		return state, state == "started"
	case "job_step_undone":
		return state, state == "completed" || state == "failed"
	case "job_held":
		return state + held, state == "submitted" || state == "validated" || state == "started"
	}
	return "", false
}

// held is the end of the name that the state of a held job has here: "started, held".
const held = ", held"

// unheld is the state that a job is in, held or not.
func unheld(state string) string { return strings.TrimSuffix(state, held) }

// Legal tells whether the steps may be taken, in this order, by the jobs as they stand. The ids of forgotten jobs may not
// be used again as long as they are refused.
func (r *Reference) Legal(steps ...Step) bool {
	ahead := make(map[string]string)
	for _, s := range steps {
		state, moved := ahead[s.JobID]
		if !moved {
			state = r.states[s.JobID]
		}
		next, legal := after(state, s.Type)
		if !legal || state == "" && !r.reuse && r.Refuses(s.JobID) {
			return false
		}
		ahead[s.JobID] = next
	}
	return true
}

// Append takes the steps as one group under an epoch, all or none, and tells whether they were legal.
func (r *Reference) Append(epoch uint64, steps ...Step) bool {
	if !r.Legal(steps...) {
		return false
	}
	for _, s := range steps {
		e := s.Event()
		e.Seq, e.Epoch = r.last+1, epoch
		if i, known := r.heads[s.JobID]; known {
			e.Prev, e.Capability = r.events[i].Seq, r.events[i].Capability
		}
		r.push(e)
	}
	return true
}

// Take takes an event as it stands in a log. An error says why no correct log has it here: a gap, a Prev that is not the
// job's newest event, a step that the lifecycle does not have, an epoch that goes back, or a jobs_forgotten event of a job
// that has not ended.
func (r *Reference) Take(e wal.Event) error {
	if want := r.last + 1; e.Seq < want || e.Seq > want && e.Seq > r.floor {
		return fmt.Errorf("seq %d where %d was expected", e.Seq, want)
	}
	if n := len(r.events); n > 0 && e.Epoch < r.events[n-1].Epoch {
		return fmt.Errorf("seq %d: epoch %d after %d", e.Seq, e.Epoch, r.events[n-1].Epoch)
	}
	if forgets(e) {
		return r.forget(e)
	}
	if r.isStray(e) {
		if r.strays == nil {
			r.strays = make(map[string]uint64)
		}
		r.strays[e.JobID], r.last = e.Seq, e.Seq
		return nil
	}
	var prev uint64
	if i, known := r.heads[e.JobID]; known {
		prev = r.events[i].Seq
	}
	if e.Prev != prev {
		return fmt.Errorf("seq %d: prev %d, but the newest event of job %q is %d", e.Seq, e.Prev, e.JobID, prev)
	}
	if _, legal := after(r.states[e.JobID], e.Type); !legal {
		return fmt.Errorf("seq %d: %s of job %q, which is %s", e.Seq, e.Type, e.JobID, or(r.states[e.JobID], "unknown"))
	}
	r.push(e)
	return nil
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func (r *Reference) push(e wal.Event) {
	if r.heads == nil {
		r.heads, r.states = make(map[string]int), make(map[string]string)
	}
	if _, known := r.heads[e.JobID]; !known {
		r.order = append(r.order, e.JobID)
	}
	r.heads[e.JobID] = len(r.events)
	r.states[e.JobID], _ = after(r.states[e.JobID], e.Type)
	r.events, r.last = append(r.events, e), e.Seq
}

// isStray: what is left of a job that is forgotten further on.
func (r *Reference) isStray(e wal.Event) bool {
	_, known := r.heads[e.JobID]
	return !known && e.Prev != 0 && (e.Prev < r.floor || e.Prev == r.strays[e.JobID])
}

func (r *Reference) forget(e wal.Event) error {
	f, err := readForgetting(e)
	if err != nil {
		return err
	}
	for _, id := range f.Jobs {
		switch _, known := r.heads[id]; {
		case !known && r.floor > 1:
			delete(r.strays, id)
			continue
		case !ended(r.states[id]):
			return fmt.Errorf("seq %d forgets job %q, which is %s", e.Seq, id, or(r.states[id], "unknown"))
		}
		if r.begins == nil {
			r.begins = make(map[string]int)
		}
		r.begins[id] = len(r.events)
		delete(r.heads, id)
		delete(r.states, id)
		r.order = slices.DeleteFunc(r.order, func(other string) bool { return other == id })
	}
	r.refused = r.refused.after(e, f)
	r.events, r.last = append(r.events, e), e.Seq
	return nil
}

// Refuses tells whether the id is that of a forgotten job and not to be used again, as far as the log says.
func (r *Reference) Refuses(id string) bool { return r.refused.has(id) }

// Last is the seq of the newest event, 0 when there is none.
func (r *Reference) Last() uint64 { return r.last }

// Events returns the events in order, those of forgotten jobs, too; Time is zero in those that came by Append.
func (r *Reference) Events() []wal.Event { return slices.Clone(r.events) }

// State returns a job's state, "" for one that is unknown or forgotten.
func (r *Reference) State(id string) string { return unheld(r.states[id]) }

// Held tells whether a job waits for somebody's decision.
func (r *Reference) Held(id string) bool { return unheld(r.states[id]) != r.states[id] }

// Jobs returns the ids of all jobs that are not forgotten, in order of submission.
func (r *Reference) Jobs() []string { return slices.Clone(r.order) }

// History returns a job's events, oldest first.
func (r *Reference) History(id string) (events []wal.Event) {
	for _, e := range r.events[r.begins[id]:] {
		if e.JobID == id {
			events = append(events, e)
		}
	}
	return events
}

// Interrupted returns the jobs that are unfinished, are not held, and were last touched under another epoch than the one that lives, in
// order of submission.
func (r *Reference) Interrupted(living uint64) (ids []string) {
	for _, id := range r.order {
		switch r.states[id] {
		case "submitted", "validated", "started":
			if r.events[r.heads[id]].Epoch != living {
				ids = append(ids, id)
			}
		}
	}
	return ids
}

// Clone returns a copy that shares nothing that either changes.
func (r *Reference) Clone() *Reference {
	c := *r
	c.events, c.heads, c.states = slices.Clone(r.events), maps.Clone(r.heads), maps.Clone(r.states)
	c.order, c.begins, c.strays = slices.Clone(r.order), maps.Clone(r.begins), maps.Clone(r.strays)
	return &c
}
