package runner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/statemachine"
)

func (r *Runner) worker() {
	for t := r.next(); t != nil; t = r.next() {
		r.attend(t)
	}
}

// attend works on a task until it has ended, or waits again. A function of a capability that ends its goroutine takes this one
// with it: another takes its place.
func (r *Runner) attend(t *task) {
	alive := false
	defer func() {
		if !alive {
			r.hands.Go(func() {
				r.failed(t, errGone)
				r.worker()
			})
		}
	}()
	if r.begin(t) {
		out, err := r.execute(t)
		r.ended(t, out, err)
	}
	alive = true
}

// begin makes an attempt durable, right before its work. False: there is none, and the task is dealt with.
func (r *Runner) begin(t *task) bool {
	if t.second && r.overtaken(t) {
		r.leave(t, nil)
		return false
	}
	for {
		if !r.prepared(t) {
			return false
		}
		if t.ask {
			if !r.asked(t) {
				return false
			}
			continue // with the args as they were
		}
		if cause := r.cause(t); cause != nil {
			r.failed(t, cause)
			return false
		}
		jobs, err := r.do(beginning(t.job)...)
		if err == nil {
			t.job = jobs[0]
			return r.steady(t)
		}
		if !r.movedOn(t, err) {
			return false
		}
	}
}

// beginning is what makes the attempt of a job as it stands durable.
func beginning(job statemachine.Job) []recovery.Command {
	switch job.State {
	case statemachine.Submitted:
		return []recovery.Command{recovery.Validate(job.ID).IfSeq(job.Seq), recovery.Start(job.ID)}
	case statemachine.Validated:
		return []recovery.Command{recovery.Start(job.ID).IfSeq(job.Seq)}
	}
	return []recovery.Command{recovery.Resume(job.ID).IfSeq(job.Seq)}
}

// movedOn looks at a job again on which a command was refused. True: it is still to be begun, as it is now. Otherwise it is left.
func (r *Runner) movedOn(t *task, err error) bool {
	before := t.job
	seq := before.Seq
	if refusalOf(err) != moved {
		r.left(t, err)
		return false
	}
	if job, known := r.engine.Job(t.id); known {
		t.job = job
	}
	if t.job.Seq != seq && t.job.Held == "" && toBegin(before, t.job) {
		return true
	}
	r.left(t, err)
	return false
}

// toBegin tells whether a job that has changed is still to be begun by who has it: its work was not begun by others, or, if it
// waits for another attempt, nothing else was done about it than to hold and release it, in this opening.
func toBegin(before, now statemachine.Job) bool {
	switch now.State {
	case statemachine.Submitted, statemachine.Validated:
		return true
	}
	return now.Epoch == before.Epoch && stands(before, now)
}

// stands tells whether a job that has changed is where it was: nothing was begun, done or ended.
func stands(before, now statemachine.Job) bool {
	return now.State == before.State && now.Attempts == before.Attempts && now.Steps == before.Steps && now.Parked == ""
}

// prepared decodes the args, for this attempt, and has them validated if that was not done. False: the task is dealt with.
func (r *Runner) prepared(t *task) bool {
	raw, done, err := r.args(r.life, t)
	if err != nil {
		r.unreadable(t, err)
		return false
	}
	err = r.bind(t, raw)
	if err == nil && t.does.validates && t.job.State == statemachine.Submitted {
		if err = r.call(r.life, t, t.work.validate); err == nil {
			err = r.bind(t, raw) // crash: what it has made of them is not in the log, and Execute is never to see it
		}
	}
	done()
	if err != nil {
		r.failed(t, err)
	}
	return err == nil
}

// call calls a function of a capability that is not its work: with a context that ends when its time is over, or the runner's, or
// when the job is cancelled.
func (r *Runner) call(ctx context.Context, t *task, do func(context.Context) error) error {
	ctx, end := context.WithCancelCause(about(ctx, t.job))
	defer end(nil)
	if !t.undoing {
		r.endBy(t, end)
	}
	defer context.AfterFunc(r.life, func() { end(context.Cause(r.life)) })()
	ctx, cancel := t.does.limit(ctx)
	defer cancel()
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	err := because(guard(func() error { return do(ctx) }), ctx)
	r.logPanic(t, err)
	return err
}

// args reads a job's args. They are good until done is called.
func (r *Runner) args(ctx context.Context, t *task) (raw json.RawMessage, done func(), err error) {
	if !t.job.Args.Held() {
		raw, err = r.engine.Read(ctx, t.job.Args)
		return raw, func() {}, err
	}
	buf := buffers.Get().(*[]byte)
	raw, _ = t.job.Args.AppendJSON((*buf)[:0])
	return raw, func() { *buf = raw; buffers.Put(buf) }, nil
}

var buffers = sync.Pool{New: func() any { return new([]byte) }}

// bind decodes the args.
func (r *Runner) bind(t *task, raw json.RawMessage) error {
	return guard(func() (err error) { t.work, err = t.does.bind(raw); return err })
}

// steady reads the steps of earlier attempts, where there are some that this runner does not know.
func (r *Runner) steady(t *task) bool {
	if t.job.Steps == 0 {
		return true
	}
	if err := r.recall(t); err != nil {
		r.unreadable(t, err)
		return false
	}
	return true
}

// unreadable: what the log says of a job can't be read, now or ever: somebody has to look at it.
func (r *Runner) unreadable(t *task, err error) {
	if cause := r.cause(t); cause != nil {
		r.failed(t, cause)
		return
	}
	jobs, bad := r.do(recovery.Hold(t.id, shortened("its events can't be read: "+err.Error())).IfSeq(t.job.Seq))
	if bad != nil {
		r.left(t, fmt.Errorf("%w; %w", err, bad))
		return
	}
	t.job = jobs[0]
	r.opts.Logger.Warn("runner: job is held", "job", t.id, "capability", t.does.name, "error", err)
	r.leave(t, nil)
}

// recall reads a job's steps; marks of others are none.
func (r *Runner) recall(t *task) (err error) {
	if t.known {
		return nil
	}
	t.steps, err = r.engine.Steps(r.life, t.id)
	t.steps = slices.DeleteFunc(t.steps, func(s recovery.StepRecord) bool { return isMark(s.Name) })
	t.known = err == nil
	return err
}

// limit is ctx for as long as the capability's functions may take.
func (c *capability) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	if c.Timeout <= 0 {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, c.Timeout, &TimeoutError{c.Timeout})
}

func (r *Runner) execute(t *task) (out json.RawMessage, err error) {
	t.attempt = newAttempt(&r.commits, t.job, t.steps, attemptSettings{r.opts.Progress, t.does.Heartbeat, r.opts.Logger, r.rest})
	limited, cancel := t.does.limit(r.life)
	defer cancel()
	ctx, end := t.attempt.context(limited)
	defer end(nil)
	r.endBy(t, end)
	if t.does.Timeout > 0 || t.does.Heartbeat > 0 {
		defer context.AfterFunc(ctx, func() {
			cause := context.Cause(ctx)
			time.AfterFunc(patience, func() { r.late(t, cause) })
		})()
	}
	defer func() {
		if v := recover(); v != nil {
			err = &PanicError{v, debug.Stack()}
		}
		err = because(err, ctx)
	}()
	return t.work.execute(ctx)
}

// because is what a function failed of: what ended its context, if that did.
func because(err error, ctx context.Context) error {
	cause := context.Cause(ctx)
	switch {
	case err == nil || cause == nil || errors.Is(err, cause):
		return err
	case errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		return cause
	}
	return fmt.Errorf("%w: %w", cause, err)
}

// guard makes a panic an error.
func guard(do func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = &PanicError{v, debug.Stack()}
		}
	}()
	return do()
}

// ended decides what becomes of a job whose attempt has returned.
func (r *Runner) ended(t *task, out json.RawMessage, err error) {
	t.attempt.stop()
	if err == nil {
		if err = r.complete(t, out); err == nil {
			return
		}
	}
	if bad := t.attempt.broken(); bad != nil && !errors.Is(err, bad) { // whatever it made of it
		err = fmt.Errorf("%w; and then: %w", bad, err)
	}
	r.failed(t, err)
}

// complete returns why the job is to fail all the same; nil: it is dealt with.
func (r *Runner) complete(t *task, out json.RawMessage) error {
	job, err := t.attempt.complete(context.Background(), out)
	for n := 0; refusalOf(err) == full && r.rest(n, err); n++ {
		job, err = t.attempt.complete(context.Background(), out)
	}
	switch {
	case err == nil:
		t.job = job
		r.leave(t, nil)
		return nil
	case errors.As(err, new(*OrderError)) || errors.As(err, new(*StepError)):
		return Permanent(err)
	case refusalOf(err) == unfit:
		return Permanent(fmt.Errorf("its output: %w", err))
	}
	t.attempt.close()
	r.left(t, err)
	return nil
}

// failed: an attempt, or what comes before it, has failed. It is made again, or the job fails, unless the runner had to stop:
// then the job is as it is for the next opening.
func (r *Runner) failed(t *task, err error) {
	r.logPanic(t, err)
	switch {
	case t.undoing: // only when its goroutine is gone
		r.left(t, err)
	case r.drains(t, err):
		t.close()
		r.left(t, ErrDraining)
	case t.fenced(err) && !errors.Is(err, ErrCancelled): // somebody else has it, or holds it: it did not fail
		t.close()
		r.left(t, err)
	case r.retried(t, err):
	default:
		r.fail(t, err)
	}
}

// drains tells whether a task is to be left to the next opening: its time is over, or it was told that the runner takes no more,
// as Submit tells it, and came back with that.
func (r *Runner) drains(t *task, err error) bool {
	if errors.Is(r.cause(t), ErrDraining) {
		return true
	}
	select {
	case <-r.stop:
		return errors.Is(err, ErrDraining)
	default:
		return false
	}
}

// fenced tells whether err is that the attempt may not write any more: its own fence's, and not that of some other job.
func (t *task) fenced(err error) bool {
	var f *FencedError
	return t.attempt != nil && errors.As(err, &f) && f.of == t.attempt.fence
}

// close ends the attempt, if there is one, and leaves the job as it is.
func (t *task) close() {
	if t.attempt != nil {
		t.attempt.close()
	}
}

// retried: crash: while the job waits it is started in the log, and nobody works on it: interrupted, and the plan decides.
func (r *Runner) retried(t *task, err error) bool {
	if t.attempt == nil || errors.Is(err, ErrCancelled) || !mayRetry(err, t.does.twice()) {
		return false
	}
	if t.attempt.stop(); t.attempt.broken() != nil {
		return false
	}
	var wait time.Duration
	again := false
	if bad := guard(func() error { wait, again = t.does.Retry.Retry(err, t.job.Attempts); return nil }); bad != nil {
		r.logPanic(t, bad)
	}
	if !again {
		return false
	}
	t.attempt.close()
	now, known := r.engine.Job(t.id)
	if !known || now.State != statemachine.Started || now.Held != "" || now.Attempts != t.job.Attempts {
		return false
	}
	t.steps = t.attempt.steps()
	t.known = now.Steps == len(t.steps) // else others have recorded some
	t.ask = t.does.Effect == recovery.Reconcilable && !errors.Is(err, ErrTransient)
	t.job, t.attempt, t.work = now, nil, nil
	r.opts.Logger.Info("runner: attempt failed, another follows", "job", t.id, "capability", t.does.name,
		"attempt", t.job.Attempts, "in", wait, "error", err)
	if cause := r.later(t, max(0, wait)); cause != nil {
		r.fail(t, cause)
	}
	return true
}

// left: the runner leaves a job as it is, and says so if that is not because it drains. One that somebody has ended, or holds,
// while it was worked on, is where whoever waits for it wants it.
func (r *Runner) left(t *task, err error) {
	if job, known := r.engine.Job(t.id); known && atRest(job) && errors.Is(err, ErrFenced) {
		r.opts.Logger.Info("runner: job was ended or held by others", "job", t.id, "capability", t.does.name, "error", err)
		r.leave(t, nil)
		return
	}
	if !errors.Is(err, ErrDraining) {
		r.opts.Logger.Warn("runner: job is left as it is", "job", t.id, "capability", t.does.name, "error", err)
	}
	r.leave(t, err)
}

func (r *Runner) logPanic(t *task, err error) {
	var p *PanicError
	if errors.As(err, &p) {
		r.opts.Logger.Error("runner: panic", "job", t.id, "capability", t.does.name, "panic", p.Value, "stack", string(p.Stack))
	}
}

// do carries out commands, and waits while there is no room on the disk.
func (r *Runner) do(commands ...recovery.Command) ([]statemachine.Job, error) {
	jobs, err := r.commits.Do(context.Background(), commands...)
	for n := 0; err != nil && refusalOf(err) == full && r.rest(n, err); n++ {
		jobs, err = r.commits.Do(context.Background(), commands...)
	}
	return jobs, err
}

// rest waits before the n-th time that something is written again for which there was no room. False: the runner has to stop.
func (r *Runner) rest(n int, err error) bool {
	wait := min(100*time.Millisecond<<min(n, 10), 5*time.Second)
	r.opts.Logger.Warn("runner: waiting for room on the disk", "error", err, "for", wait)
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-r.life.Done():
		return false
	}
}
