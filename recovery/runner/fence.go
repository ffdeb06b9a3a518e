package runner

import (
	"context"
	"errors"
	"fmt"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// ErrFenced: the attempt is not the job's present one any more, and may write nothing. See [FencedError].
var ErrFenced = errors.New("runner: fenced")

// A FencedError says why work that was begun may not write to its job. Nothing was written. It matches ErrFenced.
type FencedError struct {
	JobID  string
	Reason string
	of     *fence // nil: of none that is known
}

func (e *FencedError) Error() string {
	return fmt.Sprintf("runner: job %q: fenced: %s", e.JobID, e.Reason)
}

// Is makes errors.Is(err, ErrFenced) true.
func (e *FencedError) Is(target error) bool { return target == ErrFenced }

// engine is what a fence needs of one.
type engine interface {
	Do(ctx context.Context, commands ...recovery.Command) ([]statemachine.Job, error)
	Job(id string) (statemachine.Job, bool)
}

// A fence lets one attempt write to its job, and only for as long as the job is under way by this attempt, in this opening
// of the log. Each command carries the seq of the job's newest event as the attempt knows it; what was written by others is
// looked at before it is stepped over.
type fence struct {
	engine   engine
	id       string
	epoch    uint64
	attempts int

	turn chan struct{} // holds a value while somebody writes; it guards the fields below
	seq  uint64        // of the job's newest event
	lost error         // why nothing more is written, for good
}

func newFence(e engine, job statemachine.Job) *fence {
	return &fence{engine: e, id: job.ID, epoch: job.Epoch, attempts: job.Attempts, turn: make(chan struct{}, 1), seq: job.Seq}
}

func (f *fence) lock()   { f.turn <- struct{}{} }
func (f *fence) unlock() { <-f.turn }

// stands tells whether the job, as it is now, is still under way by this attempt: nil, or a *FencedError. One that is held
// may still end.
func (f *fence) stands(job statemachine.Job, known, ending bool) error {
	reason := ""
	switch {
	case !known:
		reason = "the job is forgotten"
	case job.Parked != "":
		reason = "the job is parked: " + job.Parked
	case job.State != statemachine.Started:
		reason = fmt.Sprintf("the job is %s by now", job.State)
	case job.Epoch != f.epoch:
		reason = fmt.Sprintf("begun under epoch %d, and the job has been written to under epoch %d since", f.epoch, job.Epoch)
	case job.Attempts != f.attempts:
		reason = fmt.Sprintf("attempt %d has begun, this is attempt %d", job.Attempts, f.attempts)
	case job.Held != "" && !ending:
		reason = "the job is held: " + job.Held
	default:
		return nil
	}
	return f.error(reason)
}

func (f *fence) error(reason string) error {
	return &FencedError{JobID: f.id, Reason: reason, of: f}
}

// look asks for the job as it is now.
func (f *fence) look(ending bool) (statemachine.Job, error) {
	job, known := f.engine.Job(f.id)
	return job, f.stands(job, known, ending)
}

// doLocked carries out commands on the job, in one append, and returns the job as it is then. ending: they are what the
// attempt ends with.
func (f *fence) doLocked(ctx context.Context, ending bool, commands ...recovery.Command) (statemachine.Job, error) {
	for f.lost == nil {
		commands[0] = commands[0].IfSeq(f.seq)
		jobs, err := f.engine.Do(ctx, commands...)
		if err == nil {
			f.seq = jobs[0].Seq
			if jobs[0].Epoch != f.epoch { // on a shared log somebody was at it right behind us
				_, f.lost = f.look(true)
			}
			return jobs[0], nil
		}
		if !errors.Is(err, recovery.ErrChanged) {
			f.lost = f.final(err)
			if f.lost != nil {
				err = f.lost
			}
			return statemachine.Job{}, err
		}
		job, err := f.look(ending)
		if err != nil {
			return statemachine.Job{}, err
		}
		f.seq = job.Seq
	}
	return statemachine.Job{}, f.lost
}

// final is what an error of the engine means for all that might be written afterwards; nil: nothing.
func (f *fence) final(err error) error {
	switch {
	// crash: whether it is there, only the next opening can tell: it goes on from there, where this attempt might write the same
	// step again.
	case errors.Is(err, wal.ErrOutcomeUnknown):
		return err
	case errors.Is(err, recovery.ErrConflict): // commands of one engine wait for each other, so it was another's
		return f.error("another engine has written to the job: " + err.Error())
	}
	return nil
}

// An entry is a command that waits to be written with those of other branches. The fence's turn guards it.
type entry struct {
	command recovery.Command
	step    *recovery.StepRecord // nil: not a step's
	written bool                 // or refused
	err     error
}

// write makes e, which is in waiting, durable. Whoever gets the turn writes for all that wait: commands on one job would wait
// for each other. No end of ctx stops it: what is to be written has happened.
func (a *attempt) write(ctx context.Context, e *entry) error {
	ctx = context.WithoutCancel(ctx)
	a.fence.lock()
	defer a.fence.unlock()
	if !e.written {
		a.writeAllLocked(ctx)
	}
	return e.err
}

// writeAllLocked: the fence's turn is held.
func (a *attempt) writeAllLocked(ctx context.Context) {
	a.mu.Lock()
	all, over := a.waiting, a.over
	a.waiting = nil
	a.mu.Unlock()
	if over != nil {
		settle(all, over)
		return
	}
	err := a.writeGroupLocked(ctx, all)
	if err == nil || len(all) == 1 {
		return
	}
	for i := range all { // one of them can't be written, and that is no fault of the others
		a.writeGroupLocked(ctx, all[i:i+1])
	}
}

func settle(all []*entry, err error) {
	for _, e := range all {
		e.written, e.err = true, err
	}
}

func (a *attempt) writeGroupLocked(ctx context.Context, all []*entry) error {
	commands := make([]recovery.Command, len(all))
	for i, e := range all {
		commands[i] = e.command
	}
	job, err := a.fence.doLocked(ctx, false, commands...)
	settle(all, err)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for i, e := range all {
		if e.step != nil {
			e.step.Seq = job.Seq - uint64(len(all)-1-i) // a group's seqs are contiguous
			a.done = append(a.done, *e.step)
		}
	}
	return nil
}
