package runner

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/statemachine"
)

// ErrNoJob: the context is not one that Execute was given, nor derived from it.
var ErrNoJob = errors.New("runner: the context is not that of a job's work")

// ErrNoHeartbeat is the cause with which a context ends whose work gave no sign of life for as long as its capability's
// Settings.Heartbeat allows.
var ErrNoHeartbeat = errors.New("runner: no heartbeat")

type attemptSettings struct {
	progress  time.Duration // the least time between two events of progress; not positive: none
	heartbeat time.Duration // not positive: no sign of life is waited for
	logger    *slog.Logger  // nil: nothing is said
	// rest waits before the n-th time that a step is written again for which there was no room; false: it is not. nil: it is not.
	rest func(n int, err error) bool
}

// An attempt is a job's work between its start, or a resume, and its end: what it may write, which steps were recorded
// before it, and which of them it has met. It is safe for concurrent use. The order of its locks: the fence's turn, then mu.
type attempt struct {
	job      statemachine.Job // as it was when the attempt began
	settings attemptSettings
	fence    *fence

	mu      sync.Mutex // guards the fields below, and the scopes
	scopes  scopes
	done    []recovery.StepRecord // recorded, by this attempt or before, in order of their seqs
	waiting []*entry              // to be written
	bad     error                 // why the job can't complete
	over    error                 // why no step and no progress is taken any more
	pulse   *time.Timer           // ends the context when there is no heartbeat; nil: none
	said    said
}

// newAttempt is for a job that was started, or resumed, just now: job is as it came back from that command. done are the
// steps that were recorded before, oldest first.
func newAttempt(e engine, job statemachine.Job, done []recovery.StepRecord, s attemptSettings) *attempt {
	if s.logger == nil {
		s.logger = slog.New(slog.DiscardHandler)
	}
	return &attempt{job: job, settings: s, fence: newFence(e, job), scopes: recordedScopes(done), done: slices.Clone(done)}
}

// A place is where in an attempt's work a context is.
type place struct {
	attempt *attempt
	scope   string
	inside  string // the step whose function was given the context; "": none
	bad     error  // of a Branch that has no name
}

type placeKey struct{}

func placeOf(ctx context.Context) (place, bool) {
	if ctx == nil {
		return place{}, false
	}
	p, ok := ctx.Value(placeKey{}).(place)
	return p, ok
}

// context returns the context for the work. It is to be called once.
func (a *attempt) context(parent context.Context) (context.Context, context.CancelCauseFunc) {
	ctx, cancel := context.WithCancelCause(context.WithValue(parent, placeKey{}, place{attempt: a}))
	if d := a.settings.heartbeat; d > 0 {
		a.mu.Lock()
		a.pulse = time.AfterFunc(d, func() { cancel(fmt.Errorf("%w for %v", ErrNoHeartbeat, d)) })
		a.mu.Unlock()
	}
	return ctx, cancel
}

// alive is a sign of life.
func (a *attempt) alive() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.pulse != nil && a.over == nil {
		a.pulse.Reset(a.settings.heartbeat)
	}
}

// JobOf returns the job whose work is done with ctx, as it was when this attempt began: its Attempts tell how often it was
// tried, this time included. In Validate, Undo and Reconcile it is the job as it stood at the call. Its ID is the same in all of
// them, and in all lives of the job: a key by which the other side can tell a second try from a second wish. False: ctx is not
// one that a capability was given, nor derived from it.
func JobOf(ctx context.Context) (job statemachine.Job, ok bool) {
	if ctx == nil {
		return job, false
	}
	switch p := ctx.Value(placeKey{}).(type) {
	case place:
		return p.attempt.job, true
	case statemachine.Job:
		return p, true
	}
	return job, false
}

// about is the context for what is done about a job, and is not its work: it has no place for steps, not even for those of another
// job whose work asked for it.
func about(ctx context.Context, job statemachine.Job) context.Context {
	return context.WithValue(ctx, placeKey{}, job)
}

// stop ends steps and progress: none begins from now on. What is being written when it is called is done with when end or
// close returns. A step that still runs is why the job can't complete, nor be tried again, which would do it beside itself.
func (a *attempt) stop() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.over == nil {
		a.over = a.fence.error("the attempt is over")
		a.bad = cmp.Or(a.bad, a.scopes.underWay())
	}
	if a.pulse != nil {
		a.pulse.Stop()
	}
	a.said.stop()
}

// complete stops the attempt, and completes the job. Where its steps forbid that (see broken), it writes nothing; the job
// can then be failed by end.
func (a *attempt) complete(ctx context.Context, output any) (statemachine.Job, error) {
	a.stop()
	if err := a.broken(); err != nil {
		return statemachine.Job{}, err
	}
	if err := a.unmet(); err != nil {
		return statemachine.Job{}, err
	}
	return a.end(ctx, recovery.Complete(a.job.ID, output))
}

// end stops the attempt, and carries out commands on its job, in one append: Fail, Hold, or Resume, for the next attempt in
// this process. Where it is refused it may be called again.
func (a *attempt) end(ctx context.Context, commands ...recovery.Command) (statemachine.Job, error) {
	a.stop()
	a.fence.lock()
	defer a.fence.unlock()
	return a.fence.doLocked(ctx, true, commands...)
}

// close stops the attempt and leaves the job as it is: nothing can be written through it any more.
func (a *attempt) close() {
	a.stop()
	a.fence.lock()
	defer a.fence.unlock()
	if a.fence.lost == nil {
		a.fence.lost = a.fence.error("the attempt is over")
	}
}

// steps returns what was recorded so far, by this attempt and before it, oldest first; after end or close, all of it. Of what
// this one recorded, Time is not known.
func (a *attempt) steps() []recovery.StepRecord {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.done)
}

// broken is why the job can't complete, whatever its work returns, and why trying again is of no use: an *OrderError, or a
// *StepError for steps beside each other in one scope, or for one that was still running at the attempt's end. nil: so far
// nothing.
func (a *attempt) broken() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.bad
}
