package recovery

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// A Refused is a command that was not carried out, as this engine remembers it: in memory, and only the newest ones. Of a group
// that was refused because of one of its jobs, those on that job.
type Refused struct {
	At    time.Time
	JobID string
	Event wal.EventType // that it asked for
	// Err is what its caller was told. It matches wal.ErrOutcomeUnknown where the event may be in the log all the same.
	Err error
}

// maxRefused is how many an engine remembers, of all jobs together.
const maxRefused = 256

// refusedCommands is a ring.
type refusedCommands struct {
	mu   sync.Mutex // guards the fields below
	ring []Refused
	next int
}

func (r *refusedCommands) note(commands []Command, at time.Time, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	guilty := "" // the job because of which all were refused; "": it was none of them
	var one *oneOfError
	if errors.As(err, &one) && one.n == len(commands) {
		guilty = commands[one.i].id
	}
	for _, c := range commands[:min(len(commands), maxRefused)] {
		if guilty != "" && c.id != guilty {
			continue
		}
		n := Refused{At: at, JobID: c.id, Event: c.event, Err: err}
		if len(r.ring) < maxRefused {
			r.ring = append(r.ring, n)
			continue
		}
		r.ring[r.next] = n
		r.next = (r.next + 1) % maxRefused
	}
}

// of returns those of a job, oldest first.
func (r *refusedCommands) of(id string) (all []Refused) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.ring {
		if n := r.ring[(r.next+i)%len(r.ring)]; n.JobID == id {
			all = append(all, n)
		}
	}
	return all
}

// An Explanation is one job's story.
type Explanation struct {
	Job statemachine.Job
	// Events are what happened to it, oldest first. Problem is why some are missing; "" when none are.
	Events  []wal.Event
	Problem string
	// Steps are those that were recorded and not undone, in their order, without marks: see [Step].
	Steps []string
	// Waits is what the job waits for, and Interrupted whether whoever was at work on it is gone.
	Waits       string
	Interrupted bool
	// Decision is what a plan says of the job; of an unfinished one that is not interrupted, what it would say if this
	// process died now. nil for one that is finished, parked or held.
	Decision *Decision
	// Refused are commands that were not carried out: those that this engine still remembers.
	Refused []Refused
}

// Explain tells the story of one job: what happened, what it waits for, what a recovery would do with it by the policy (at
// most one; none: DefaultPolicy(nil)), and which commands it refused of late. It reads the job's events as [Engine.History]
// does. statemachine.ErrUnknownJob: there is no such job; a [ForgottenError]: there was one; or ctx's error.
func (e *Engine) Explain(ctx context.Context, id string, policy ...Policy) (Explanation, error) {
	if ctx == nil {
		return Explanation{}, &wal.InvalidError{Field: "context", Reason: "nil"}
	}
	job, known := e.jobs.Get(id)
	if !known {
		return Explanation{}, e.unknown(id)
	}
	x := Explanation{Job: job, Refused: e.no.of(id)}
	for event, err := range e.History(ctx, id) {
		if err != nil {
			x.Problem = err.Error()
		} else if event.Seq <= job.Seq { // another may have come meanwhile
			x.Events = append(x.Events, event)
		}
	}
	x.Steps = stepsOf(x.Events)
	unfinished := !job.Finished() && job.Parked == ""
	x.Interrupted = unfinished && job.Held == "" && !e.log.Live(job.Epoch)
	x.Waits = waitsFor(job, x.Interrupted)
	if unfinished && job.Held == "" {
		d, err := e.decide(ctx, job, slices.Concat(policy, []Policy{nil})[0])
		if err != nil {
			return Explanation{}, err
		}
		x.Decision = &d
	}
	return x, ctx.Err()
}

// stepsOf returns the names of the steps that are done.
func stepsOf(events []wal.Event) (done []string) {
	var all []StepRecord
	for _, event := range events {
		all = recordStep(all, event)
	}
	for _, step := range all {
		if !step.Undone && !isMark(step.Name) {
			done = append(done, step.Name)
		}
	}
	return done
}

func waitsFor(job statemachine.Job, interrupted bool) string {
	switch {
	case job.Parked != "":
		return "nothing: it is parked, and takes no commands any more"
	case job.Held != "":
		return "somebody's decision: " + job.Held
	case job.RollingBack:
		return "the rest of its rollback, which was begun and is not finished"
	case job.Finished():
		return "nothing: it is over"
	case interrupted:
		return "a recovery: whoever was at work on it is gone"
	case job.State == statemachine.Submitted:
		return "its validation"
	case job.State == statemachine.Validated:
		return "its start"
	}
	return "its end: it is being worked on"
}

// String is the story as text, for people.
func (x Explanation) String() string {
	var s strings.Builder
	fmt.Fprintf(&s, "%s\n", x.Job)
	for _, event := range x.Events {
		fmt.Fprintf(&s, "  %s  epoch %d  seq %d  %s\n", event.Time.UTC().Format(time.RFC3339Nano), event.Epoch, event.Seq, told(event))
	}
	if x.Problem != "" {
		fmt.Fprintf(&s, "some events are missing: %s\n", x.Problem)
	}
	fmt.Fprintf(&s, "attempts: %d; steps done: %d%s\n", x.Job.Attempts, len(x.Steps), listed(x.Steps))
	fmt.Fprintf(&s, "waits for: %s\n", x.Waits)
	switch d := x.Decision; {
	case d != nil && x.Interrupted:
		fmt.Fprintf(&s, "a recovery would %s it: %s\n", strings.ReplaceAll(string(d.Action), "_", " "), d.Reason)
	case d != nil:
		fmt.Fprintf(&s, "a recovery, if the process died now, would %s it: %s\n", strings.ReplaceAll(string(d.Action), "_", " "), d.Reason)
	}
	for _, n := range x.Refused {
		fmt.Fprintf(&s, "refused: %s  %s: %v\n", n.At.UTC().Format(time.RFC3339Nano), n.Event, n.Err)
	}
	return s.String()
}

// told is an event without what stands elsewhere.
func told(event wal.Event) string {
	text := string(event.Type)
	if name := StepName(event); name != "" {
		text += " " + cell(name)
	} else if len(event.Args) > 0 {
		text += " args " + cell(string(event.Args))
	}
	if len(event.Output) > 0 {
		text += " output " + cell(string(event.Output))
	}
	if event.Error != "" {
		text += ": " + cell(event.Error)
	}
	if event.Problem != "" {
		text += ", not readable: " + cell(event.Problem)
	}
	return text
}

func listed(names []string) string {
	const most = 20
	switch {
	case len(names) == 0:
		return ""
	case len(names) > most:
		return fmt.Sprintf(" (the last %d: %s)", most, strings.Join(names[len(names)-most:], ", "))
	}
	return " (" + strings.Join(names, ", ") + ")"
}
