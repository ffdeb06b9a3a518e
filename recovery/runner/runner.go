package runner

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// Options are the settings of a [Runner]. The zero value has the defaults.
type Options struct {
	// Workers: so many jobs are worked on at once. Default 8.
	Workers int
	// Queue: so many jobs may wait, for a worker or for another attempt. While it is full, Submit, Release and Recover wait,
	// before they write anything, and whoever came first goes on first; but not those that a capability's function calls with its
	// own ctx, nor jobs whose attempt has failed: they go over it, since all workers might wait for each other. Default 1,024.
	Queue int
	// MaxAttempts: a job that was interrupted and whose work has begun so often is held, rather than resumed: it may be what
	// kills the process. Every beginning counts, those by a [RetryPolicy] too. Default 8, which are the five of the default
	// [Backoff], and three more; negative: no limit.
	MaxAttempts int
	// Progress is the least time between two events of a job's progress. Default 10 s.
	Progress time.Duration
	// Grace is how long Drain waits for jobs to come back whose contexts it has ended. Default 1 s.
	Grace time.Duration
	// Logger gets what nobody waits to be told: panics with their stacks, retries, rollbacks that failed, jobs that were left
	// as they are. Default: none.
	Logger *slog.Logger
}

func (o Options) withDefaults() (Options, error) {
	for field, n := range map[string]int64{"Workers": int64(o.Workers), "Queue": int64(o.Queue), "Progress": int64(o.Progress), "Grace": int64(o.Grace)} {
		if n < 0 {
			return o, &wal.InvalidError{Field: "Options." + field, Reason: "negative"}
		}
	}
	o.Workers, o.Queue = cmp.Or(o.Workers, 8), cmp.Or(o.Queue, 1024)
	o.MaxAttempts = cmp.Or(o.MaxAttempts, 8)
	o.Progress, o.Grace = cmp.Or(o.Progress, 10*time.Second), cmp.Or(o.Grace, time.Second)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o, nil
}

// A Runner takes jobs through their lives: see the package documentation. Its methods may be called from any number of
// goroutines.
type Runner struct {
	engine  *recovery.Engine
	commits commits
	turns   turns
	reg     *Registry
	opts    Options

	life  context.Context // ends when the time of Drain is over; every context of a capability is made of it
	end   context.CancelCauseFunc
	stop  chan struct{}  // closed when Drain begins
	hands sync.WaitGroup // whoever works on jobs: workers, and callers that do it themselves

	mu       sync.Mutex // guards the fields below, and those of tasks that say so
	work     sync.Cond  // something is in ready, or draining
	ready    fifo
	waiting  int // tasks that wait for a worker or a retry, and submissions under way
	room     []chan struct{}
	tasks    map[string]*task // all that this runner has, by job
	draining bool
}

// New returns a runner that works on the engine's jobs, and starts its workers. It looks at no job that is there: call
// [Runner.Recover] for those that were left behind. The engine stays the caller's: end the runner with [Runner.Drain], and close
// the engine then. wal.ErrInvalid: a nil engine or registry, or a negative option.
func New(e *recovery.Engine, reg *Registry, opts Options) (*Runner, error) {
	switch {
	case e == nil:
		return nil, &wal.InvalidError{Field: "engine", Reason: "nil"}
	case reg == nil:
		return nil, &wal.InvalidError{Field: "registry", Reason: "nil"}
	}
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	r := &Runner{engine: e, commits: commits{engine: e}, reg: reg, opts: opts, stop: make(chan struct{}), tasks: make(map[string]*task)}
	r.work.L = &r.mu
	r.life, r.end = context.WithCancelCause(context.Background())
	for range opts.Workers {
		r.hands.Go(r.worker)
	}
	return r, nil
}

// Submit makes a new job and returns when that is durable; the job waits for a worker then. While the queue is full it waits,
// until ctx ends, before anything is written; with the ctx that a capability's function was given it does not wait.
// [ErrUnknownCapability], [ErrDraining]: nothing was written. Otherwise the errors are those of [recovery.Engine.Submit]. A job that
// is submitted while Drain begins may be left to the next opening. Where the caller may die, or get an error that leaves the outcome
// open, and will submit again: [Once].
func (r *Runner) Submit(ctx context.Context, capability string, args any, opts ...SubmitOption) (statemachine.Job, error) {
	_, job, err := r.submit(ctx, capability, args, opts)
	return job, err
}

// submit returns no task for a job that was there, and is not in this runner.
func (r *Runner) submit(ctx context.Context, capability string, args any, opts []SubmitOption) (*task, statemachine.Job, error) {
	does := r.reg.find(capability)
	if does == nil {
		return nil, statemachine.Job{}, fmt.Errorf("%w: %.64q", ErrUnknownCapability, capability)
	}
	s, once, err := submission(capability, args, opts)
	if err != nil {
		return nil, statemachine.Job{}, err
	}
	if once { // who only asks for one that is there needs no place
		if t, job, ok, err := r.made(ctx, s); ok {
			return t, job, err
		}
	}
	if err := r.place(ctx); err != nil {
		return nil, statemachine.Job{}, err
	}
	return r.newJob(ctx, does, s, once)
}

// newJob makes one; it has a place. Who waits for a place has no turn: a worker may wait for that.
func (r *Runner) newJob(ctx context.Context, does *capability, s recovery.Submission, once bool) (*task, statemachine.Job, error) {
	if s.JobID != "" {
		if err := r.turns.take(ctx, s.JobID); err != nil {
			r.giveBack()
			return nil, statemachine.Job{}, err
		}
		defer r.turns.give(s.JobID)
	}
	if once {
		if job, ok, err := r.there(ctx, s); ok {
			r.giveBack()
			return r.task(job.ID), job, err
		}
	}
	job, err := r.engine.Submit(ctx, s)
	if err != nil {
		r.giveBack()
		return nil, job, err
	}
	t := &task{id: job.ID, job: job, does: does}
	r.enqueue(t, true) // somebody may have come to it since it is in the log
	return t, job, nil
}

// Wait returns the job when it has ended, its rollback included if there is one that is under way, or when it is held or parked:
// no error, then, whatever became of it. One whose rollback was cut short is RollingBack. For a job that has ended already it
// returns at once; for one that is held while it is worked on, when its work has come back. [ErrNotRunning]: this runner does not
// have it; [ErrDraining]: it was left to the next opening; statemachine.ErrUnknownJob; ctx's error, and the job goes on; or why
// the runner had to leave the job as it was, when the log has failed.
func (r *Runner) Wait(ctx context.Context, id string) (statemachine.Job, error) {
	return r.await(ctx, r.task(id), statemachine.Job{ID: id})
}

// task is nil where this runner does not have the job.
func (r *Runner) task(id string) *task {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.tasks[id]
}

// settled is how a job stands that this runner does not have.
func (r *Runner) settled(id string) (statemachine.Job, error) {
	job, known := r.engine.Job(id)
	switch {
	case !known:
		return job, fmt.Errorf("runner: job %q: %w", id, statemachine.ErrUnknownJob)
	case atRest(job):
		return job, nil
	}
	return job, fmt.Errorf("%w: %s", ErrNotRunning, job)
}

// atRest tells whether nothing is going to happen to a job by itself.
func atRest(job statemachine.Job) bool { return job.Finished() || job.Held != "" || job.Parked != "" }

// await waits until the runner has done with a task, if there is one. job is what is returned when ctx ends first.
func (r *Runner) await(ctx context.Context, t *task, job statemachine.Job) (statemachine.Job, error) {
	if t == nil {
		return r.settled(job.ID)
	}
	select {
	case <-r.over(t):
	case <-ctx.Done():
		if now, known := r.engine.Job(job.ID); known {
			job = now
		}
		return job, ctx.Err()
	}
	switch {
	case t.err != nil && refusalOf(t.err) != moved:
		return t.job, t.err
	case t.err == nil && atRest(t.job):
		return t.job, nil
	}
	return r.settled(t.id)
}

// Cancel ends a job, and returns when it has ended, as [Runner.Wait] does. One that waits fails at once. Of one that is worked on
// the context ends, with a *[CancelledError] as its cause, and what its work returns then decides: it fails as cancelled, unless
// the work was done all the same and it completes. One that is held, or that no process works on, fails too. Then it is rolled
// back where a failure is. ctx ends the wait, not the cancellation. A job that has ended: statemachine.ErrTransition.
func (r *Runner) Cancel(ctx context.Context, id, reason string) (statemachine.Job, error) {
	cause := &CancelledError{cmp.Or(reason, "no reason was given")}
	for {
		t, mine, err := r.seize(id, cause)
		if err != nil {
			return statemachine.Job{}, err
		}
		if mine {
			go r.cancel(t, cause)
		}
		job, err := r.await(ctx, t, statemachine.Job{ID: id})
		switch {
		case mine && ctx.Err() == nil:
			return t.job, t.err
		case mine || err != nil && !errors.Is(err, ErrNotRunning) || job.Finished() || job.Parked != "":
			return job, err
		} // else who had it has let go of it before it had ended
	}
}

// cancel fails a job that nobody works on.
func (r *Runner) cancel(t *task, cause error) {
	defer r.hands.Done()
	defer r.leave(t, errGone) // it is left by now, unless Undo has ended this goroutine
	if job, known := r.engine.Job(t.id); known {
		t.job = job
	}
	r.fail(t, cause)
}

// Release lets a held job go on: see [recovery.Engine.Release]. The decision is durable when it returns; the job waits for a
// worker then. While the queue is full it waits before. [ErrBusy]: the runner has the job: it was held while it was worked on or
// waited, and still is.
func (r *Runner) Release(ctx context.Context, id, decision string) (statemachine.Job, error) {
	job, does, err := r.known(id)
	if err != nil {
		return job, err
	}
	if err := r.idle(id); err != nil { // before it waits
		return job, err
	}
	if err := r.place(ctx); err != nil {
		return job, err
	}
	t, err := r.claimed(job, does)
	if err != nil {
		r.giveBack()
		return job, err
	}
	defer r.hands.Done()
	job, err = r.engine.Release(ctx, id, decision)
	if err != nil {
		r.giveBack()
		r.leave(t, nil)
		return job, err
	}
	t.job = job
	if cause := r.handOver(t); cause != nil {
		defer r.leave(t, errGone)
		r.fail(t, cause)
	}
	return job, nil
}

// RollBack undoes what a job did that has completed or failed, whether it was to be kept or not, and returns when it is rolled
// back, durably. That it is to be is durable before the first Undo is called, and the job is [statemachine.Job].RollingBack then.
// Where a crash, an error of [Undoer], or the end of ctx or of the time of [Runner.Drain] cuts it short, the next opening's
// [Runner.Plan] has it, and goes on behind the last undo that is durable; so does a second call in this one. ctx is that of Undo.
// The reason is written at the end; the plan's rollback has one of its own. [ErrNoUndo], [ErrUnknownCapability], [ErrBusy]: nothing was
// done. statemachine.ErrTransition: the job has not ended, or it was rolled back before, which its State tells.
func (r *Runner) RollBack(ctx context.Context, id, reason string) (statemachine.Job, error) {
	t, err := r.claim(id)
	if err != nil {
		return statemachine.Job{}, err
	}
	err = r.takeBack(ctx, t, reason)
	return t.job, err
}
