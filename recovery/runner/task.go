package runner

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/statemachine"
)

// A task is a job that the runner has. What no comment says of its fields: they belong to whoever works on it, and when over is
// closed to everybody.
type task struct {
	id      string           // the job's; never changes
	job     statemachine.Job // as this runner knows it
	does    *capability
	work    work // nil until its args are decoded, for each attempt anew
	attempt *attempt
	steps   []recovery.StepRecord // of earlier attempts; see known
	known   bool                  // steps are all there are
	ask     bool                  // whether its work has happened, before it is tried again
	undoing bool
	err     error // why the runner has left it before its end

	// Guarded by Runner.mu:
	phase phase
	end   context.CancelCauseFunc // of what its capability does now; nil: nothing
	cause error                   // why it was cancelled, while somebody had it
	timer *time.Timer             // brings it back for another attempt
	over  chan struct{}           // closed when the runner has done with it; nil while nobody waits for that
	gone  bool                    // it has

	behind *task // of the same job, for the workers when this one is gone; nil: none
	second bool  // it was behind another: the job may have moved on
}

type phase uint8

const (
	queued  phase = iota // in ready
	retries              // its timer runs
	seized               // someone who calls works on it
	atWork               // a worker does
)

// fifo is a queue of tasks.
type fifo struct {
	tasks []*task
	head  int
}

func (q *fifo) push(t *task) { q.tasks = append(q.tasks, t) }

// pop returns nil when there is none.
func (q *fifo) pop() *task {
	if q.head == len(q.tasks) {
		return nil
	}
	t := q.tasks[q.head]
	q.tasks[q.head] = nil
	q.head++
	if q.head*2 >= len(q.tasks) {
		n := copy(q.tasks, q.tasks[q.head:])
		clear(q.tasks[n:])
		q.tasks, q.head = q.tasks[:n], 0
	}
	return t
}

// remove takes out a task that need not be there.
func (q *fifo) remove(t *task) {
	if i := slices.Index(q.tasks, t); i >= 0 {
		q.tasks = slices.Delete(q.tasks, i, i+1)
	}
}

// place takes a place in the queue, and waits for one: whoever came first has the next one that is free. A capability's function
// does not wait, though there may be none: all workers could.
func (r *Runner) place(ctx context.Context) error {
	_, working := JobOf(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.draining:
		return ErrDraining
	case working || r.waiting < r.opts.Queue:
		r.waiting++
		return nil
	}
	free := make(chan struct{})
	r.room = append(r.room, free)
	r.mu.Unlock()
	var err error
	select {
	case <-free:
	case <-r.stop:
	case <-ctx.Done():
		err = ctx.Err()
	}
	r.mu.Lock()
	if r.draining {
		err = ErrDraining
	}
	if err != nil {
		r.goLocked(free)
	}
	return err
}

// goLocked: one that waited for a place has gone, or has got one meanwhile and does not want it any more.
func (r *Runner) goLocked(free chan struct{}) {
	if i := slices.Index(r.room, free); i >= 0 {
		r.room = slices.Delete(r.room, i, i+1)
		return
	}
	r.giveBackLocked()
}

// giveBackLocked hands a place on, to whoever waits longest.
func (r *Runner) giveBackLocked() {
	r.waiting--
	for len(r.room) > 0 && r.waiting < r.opts.Queue {
		r.waiting++
		close(r.room[0])
		r.room = slices.Delete(r.room, 0, 1)
	}
}

// giveBack is for a place of which nothing came.
func (r *Runner) giveBack() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.giveBackLocked()
}

// enqueue hands a task to the workers; it has a place. False: the runner drains, and the job is left in the log. Of a job that the
// runner has already, what is awaited comes behind that, and so does what a caller may yet leave as it is; else one is enough.
func (r *Runner) enqueue(t *task, awaited bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch other := r.tasks[t.id]; {
	case r.draining || other == nil:
		r.followLocked(t)
	case awaited || other.phase == seized:
		for other.behind != nil {
			other = other.behind
		}
		other.behind, t.second = t, true
	default:
		r.giveBackLocked()
	}
	return !r.draining
}

// followLocked: t is its job's task now.
func (r *Runner) followLocked(t *task) {
	if r.draining {
		r.giveBackLocked()
		t.err = ErrDraining
		r.goneLocked(t)
		return
	}
	r.tasks[t.id] = t
	r.readyLocked(t)
}

// overtaken tells whether whoever had the job before has brought it to where a task that was behind has nothing to do.
func (r *Runner) overtaken(t *task) bool {
	job, _ := r.engine.Job(t.id)
	moved := job.Seq != t.job.Seq
	t.job = job
	return atRest(job) || moved && job.State != statemachine.Submitted && job.State != statemachine.Validated
}

// handOver leaves a task that the caller has to the workers; it has a place. The error is why it is not to go there: it was
// cancelled meanwhile, and the caller still has it.
func (r *Runner) handOver(t *task) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case t.cause != nil:
		r.giveBackLocked()
		return t.cause
	case r.draining:
		r.giveBackLocked()
		t.err = ErrDraining
		r.goneLocked(t)
	default:
		r.readyLocked(t)
	}
	return nil
}

func (r *Runner) readyLocked(t *task) {
	t.phase, t.timer = queued, nil
	r.ready.push(t)
	r.work.Signal()
}

// next waits for a task, and returns it with its context; nil when the runner drains.
func (r *Runner) next() *task {
	r.mu.Lock()
	defer r.mu.Unlock()
	for !r.draining {
		if t := r.ready.pop(); t != nil {
			r.giveBackLocked()
			t.phase = atWork
			return t
		}
		r.work.Wait()
	}
	return nil
}

// later brings a task back after a while; it takes a place, though there may be none: nobody is to wait who works.
// The error is why it is not to come back: it was cancelled meanwhile.
func (r *Runner) later(t *task, wait time.Duration) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if t.cause != nil {
		return t.cause
	}
	if r.draining {
		t.err = ErrDraining
		r.goneLocked(t)
		return nil
	}
	t.phase, t.end = retries, nil
	r.waiting++
	t.timer = time.AfterFunc(wait, func() { r.again(t) })
	return nil
}

func (r *Runner) again(t *task) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.draining || t.phase != retries {
		return
	}
	r.readyLocked(t)
}

// leave: the runner has done with a task.
func (r *Runner) leave(t *task, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !t.gone {
		t.err = err
		r.goneLocked(t)
	}
}

func (r *Runner) goneLocked(t *task) {
	if t.gone {
		return
	}
	t.gone = true
	if r.tasks[t.id] == t {
		delete(r.tasks, t.id)
	}
	if t.over != nil {
		close(t.over)
	}
	if next := t.behind; next != nil {
		t.behind = nil
		r.followLocked(next)
	}
}

// over is closed when the runner has done with t.
func (r *Runner) over(t *task) <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if t.over == nil {
		t.over = make(chan struct{})
		if t.gone {
			close(t.over)
		}
	}
	return t.over
}

// enterLocked: the caller works on a job, and says hands.Done when it has done with it.
func (r *Runner) enterLocked() error {
	if r.draining {
		return ErrDraining
	}
	r.hands.Add(1)
	return nil
}

// known returns a job and its capability.
func (r *Runner) known(id string) (statemachine.Job, *capability, error) {
	job, known := r.engine.Job(id)
	if !known {
		return job, nil, fmt.Errorf("runner: job %q: %w", id, statemachine.ErrUnknownJob)
	}
	does := r.reg.find(job.Capability)
	if does == nil {
		return job, nil, fmt.Errorf("%w: %.64q", ErrUnknownCapability, job.Capability)
	}
	return job, does, nil
}

// idle tells whether nobody works on a job here.
func (r *Runner) idle(id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tasks[id] != nil {
		return fmt.Errorf("%w: %q", ErrBusy, id)
	}
	return nil
}

// claim makes a task of a job that this runner does not have, for a caller that works on it, and enters it.
func (r *Runner) claim(id string) (*task, error) {
	job, does, err := r.known(id)
	if err != nil {
		return nil, err
	}
	return r.claimed(job, does)
}

// claimed looks at the job again: whoever had it until now may have ended it since, or undone what it did.
func (r *Runner) claimed(job statemachine.Job, does *capability) (*task, error) {
	t := &task{id: job.ID, job: job, does: does, phase: seized}
	if err := r.claimTask(t); err != nil {
		return nil, err
	}
	if now, known := r.engine.Job(t.id); known {
		t.job = now
	}
	return t, nil
}

func (r *Runner) claimTask(t *task) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tasks[t.id] != nil {
		return fmt.Errorf("%w: %q", ErrBusy, t.id)
	}
	if err := r.enterLocked(); err != nil {
		return err
	}
	r.tasks[t.id] = t
	return nil
}

// seize is for the cancellation of a job. Not mine: somebody works on it, or is about to let it go on, and was told the cause.
// Mine: nobody does, the caller has it and is entered.
func (r *Runner) seize(id string, cause error) (t *task, mine bool, err error) {
	r.mu.Lock()
	t = r.tasks[id]
	if t == nil {
		r.mu.Unlock()
		job, does, err := r.known(id)
		if errors.Is(err, ErrUnknownCapability) {
			does, err = &capability{name: job.Capability}, nil // it can be failed all the same
		}
		if err == nil {
			t, err = r.claimed(job, does)
		}
		if errors.Is(err, ErrBusy) { // by now
			return r.seize(id, cause)
		}
		return t, true, err
	}
	defer r.mu.Unlock()
	if t.phase == atWork || t.phase == seized {
		r.stopLocked(t, cause)
		return t, false, nil
	}
	if err := r.enterLocked(); err != nil {
		return nil, false, err
	}
	if t.timer != nil {
		t.timer.Stop()
	}
	r.ready.remove(t)
	r.giveBackLocked()
	t.phase = seized
	return t, true, nil
}

// stopLocked ends the context of a task, but never that of its rollback.
func (r *Runner) stopLocked(t *task, cause error) {
	t.cause = cmp.Or(t.cause, cause)
	if t.end != nil {
		t.end(cause)
	}
	time.AfterFunc(patience, func() { r.late(t, cause) })
}

// endBy says how the context of what a task's capability does now is ended; if it has to end, it does.
func (r *Runner) endBy(t *task, end context.CancelCauseFunc) {
	r.mu.Lock()
	defer r.mu.Unlock()
	t.end = end
	if t.cause != nil {
		end(t.cause)
	}
}

// cause is why a task is not to go on: [ErrDraining], a *[CancelledError], or nil.
func (r *Runner) cause(t *task) error {
	if cause := context.Cause(r.life); cause != nil {
		return cause
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return t.cause
}

// patience is after how long a context's end an Execute that has not returned is logged.
const patience = 10 * time.Second

func (r *Runner) late(t *task, cause error) {
	r.mu.Lock()
	gone := t.gone || t.phase != atWork
	r.mu.Unlock()
	if !gone {
		r.opts.Logger.Warn("runner: work does not return, though its context has ended; it keeps its worker",
			"job", t.id, "capability", t.does.name, "cause", cause)
	}
}
