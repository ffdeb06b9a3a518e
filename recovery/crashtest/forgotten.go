package crashtest

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/jobwal/jobwal/wal"
)

// What a jobs_forgotten event says, and what [Check] and [Reference] make of it. Like the lifecycle it is written here a
// second time: package projection has no part in it.

// forgetting is the event's Args.
type forgetting struct {
	Before    time.Time `json:"before"`
	IDsBefore time.Time `json:"ids_before"`
	Jobs      []string  `json:"jobs"`
}

func forgets(e wal.Event) bool { return e.Type == wal.JobsForgotten && e.JobID == "" }

func readForgetting(e wal.Event) (f forgetting, err error) {
	if e.Problem != "" {
		return f, fmt.Errorf("seq %d is not readable: %s", e.Seq, e.Problem)
	}
	if err := json.Unmarshal(e.Args, &f); err != nil {
		return f, fmt.Errorf("seq %d: %w", e.Seq, err)
	}
	if len(f.Jobs) == 0 && f.IDsBefore.IsZero() {
		return f, fmt.Errorf("seq %d names no job, and releases no id", e.Seq)
	}
	return f, nil
}

// ended tells whether the work of a job in this state is over.
func ended(state string) bool {
	return state == "completed" || state == "failed" || state == "rolled_back"
}

// refusals are the ids of forgotten jobs, by the events that named them.
type refusals []refusal

type refusal struct {
	at  time.Time
	ids []string
}

// after is what is refused behind one more event.
func (r refusals) after(e wal.Event, f forgetting) refusals {
	kept := slices.DeleteFunc(slices.Clone(r), func(old refusal) bool { return old.at.Before(f.IDsBefore) })
	return append(kept, refusal{e.Time, f.Jobs})
}

func (r refusals) has(id string) bool {
	return slices.ContainsFunc(r, func(old refusal) bool { return slices.Contains(old.ids, id) })
}

// forget holds a jobs_forgotten event to name only jobs that have ended, before its cut-off, and lets go of them.
func (c *checker) forget(e wal.Event) *Violation {
	if !c.compacts {
		return violated(RuleAsked, nil, e, "nobody asked for jobs to be forgotten")
	}
	f, err := readForgetting(e)
	if err != nil {
		return violated(RuleForgotten, nil, e, "%v", err)
	}
	for _, id := range f.Jobs {
		job := c.jobs[id]
		switch {
		case job == nil && c.first > 1:
			continue // all of it lies below what is left
		case job == nil:
			return violated(RuleForgotten, nil, e, "it names job %q, which is not there", id)
		case !ended(job.state):
			return violated(RuleForgotten, nil, e, "it names job %q, which is %s", id, job.state)
		case !job.touched.Before(f.Before):
			return violated(RuleForgotten, nil, e, "it names job %q, which ended at %v", id, job.touched)
		}
		delete(c.jobs, id)
	}
	return nil
}

// carry takes what is left of the log below its floor, from where on it is whole. Events may be missing there, but only
// of jobs that are forgotten, and of them all may: what there is of any other job is whole.
func (c *checker) carry(events []wal.Event, floor uint64) *Violation {
	c.first = floor
	there := make(map[uint64]bool)
	for _, e := range events {
		if e.Seq <= c.last {
			return violated(RuleOrder, c.owner(e), e, "seq %d behind seq %d", e.Seq, c.last)
		}
		c.last = e.Seq
		there[e.Seq] = true
		if v := c.carriedBy(e); v != nil {
			return v
		}
		if v := c.legal(e); v != nil {
			return v
		}
		for len(c.saw) > 0 && c.saw[0].seq < e.Seq {
			c.saw = c.saw[1:]
		}
		if v := c.unchanged(e); v != nil {
			return v
		}
	}
	c.last = floor - 1
	c.miss(there, floor)
	return nil
}

// carriedBy looks for who asked for an event below the floor.
func (c *checker) carriedBy(e wal.Event) *Violation {
	for _, a := range c.placed {
		if a.First > e.Seq || a.last() < e.Seq {
			continue
		}
		if step := a.Steps[e.Seq-a.First]; !c.asks(a, step, e) {
			return violated(RuleAcknowledged, a, e, "its event at seq %d, %v, is not there as it was acknowledged", e.Seq, step)
		}
		return nil
	}
	switch a, rule := c.cover.blame(e); {
	case a == nil:
		return violated(RuleAsked, nil, e, "nobody asked for it")
	case rule != "" && rule != RuleWhole:
		return violated(rule, a, e, "below the log's first event")
	}
	return nil
}

// miss notes the jobs of which something that was acknowledged is not there any more.
func (c *checker) miss(there map[uint64]bool, floor uint64) {
	c.missed = make(map[string]missing)
	left := c.placed[:0:0]
	for _, a := range c.placed {
		for i, s := range a.Steps {
			if seq := a.First + uint64(i); seq < floor && !there[seq] {
				c.missed[s.JobID] = missing{seq, a}
			}
		}
		switch {
		case a.First >= floor:
			left = append(left, a)
		case a.last() >= floor:
			c.acked, c.at = a, int(floor-a.First)
		default:
			a.used = true
		}
	}
	c.placed = left
	c.saw = slices.DeleteFunc(c.saw, func(s sighting) bool { return s.seq < floor })
}

// missing is an event that was acknowledged and is gone.
type missing struct {
	seq uint64
	by  *Attempt
}

// endCarried: what is gone is of jobs that were forgotten, and forgotten jobs had ended.
func (c *checker) endCarried() *Violation {
	for id, job := range c.jobs {
		if job.stray {
			return missed(RuleForgotten, nil, "job %q is remembered, and its events before seq %d are gone", id, job.first)
		}
	}
	for id, gone := range c.missed {
		switch job := c.jobs[id]; {
		case job != nil && job.first <= gone.seq:
			return missed(RuleForgotten, gone.by, "job %q is remembered, and its event at seq %d is gone", id, gone.seq)
		case !c.mayHaveEnded(id):
			return missed(RuleForgotten, gone.by, "its event at seq %d is gone, and job %q never ended", gone.seq, id)
		}
	}
	return nil
}

func (c *checker) mayHaveEnded(id string) bool {
	return slices.ContainsFunc([]wal.EventType{wal.JobCompleted, wal.JobFailed, wal.JobRolledBack}, func(on wal.EventType) bool {
		return slices.ContainsFunc(c.cover.byStep[stepKey{on, id}], func(a *Attempt) bool { return a.judged() != OutcomeFailed })
	})
}

// floorOf finds where a log is whole from: behind the last gap.
func floorOf(events []wal.Event) uint64 {
	for i := len(events) - 1; i > 0; i-- {
		if events[i-1].Seq+1 < events[i].Seq {
			return events[i].Seq
		}
	}
	if len(events) == 0 {
		return 1
	}
	return events[0].Seq
}
