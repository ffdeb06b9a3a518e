package recovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"text/tabwriter"

	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// ApplyOptions are those of [Plan.Apply]. A function is called by several goroutines at once, with the job as the log has
// it by then. An error or a panic of it is that job's, and stops no other.
type ApplyOptions struct {
	// Concurrency: so many jobs at once. Default 8.
	Concurrency int
	// MaxAttempts: a job that was reconciled and did not happen is held, rather than resumed, when its work has begun so
	// often. Default [DefaultMaxAttempts]; negative: no limit.
	MaxAttempts int
	// Resume does the job's work, or hands it to whoever does. Of a started job, the attempt is durable by then. Needed
	// when a decision is ActionResume or ActionReconcile.
	Resume func(context.Context, statemachine.Job) error
	// ResumeLater: Resume hands the job to whoever does its work when its turn has come, and that one makes a started job's
	// attempt durable, by a [Resume] with [Command.IfSeq] of the job's Seq, just before the work begins. So a job that only
	// waits when the process dies has had no attempt. Default: the attempt is durable before Resume is called.
	ResumeLater bool
	// FailWith returns what goes into the log behind the failure of a started job by ActionRollBack, in the same append: an
	// [UndoStep] of a mark, say, by which the job is known as one whose rollback is still to come, however early the process
	// dies ([statemachine.Job].RollingBack). Default: nothing.
	FailWith func(statemachine.Job) []Command
	// Reconcile finds out whether a started job's work happened; it must not do it. Needed for ActionReconcile.
	Reconcile func(context.Context, statemachine.Job) (Reconciled, error)
	// RollBack undoes what a job did that had started, all of it or what there is. By then that it has failed is durable, unless
	// it had completed. After a crash it may be called again. That the job is rolled back is recorded when it returns nil, unless
	// it has done that itself, as who keeps others from the job meanwhile has to. Needed for ActionRollBack.
	RollBack func(context.Context, statemachine.Job) error
}

// Reconciled is what was found out about a job: [Happened], [DidNotHappen] or [CannotTell]. The zero value is the last.
type Reconciled struct {
	found  found
	output any
	why    string
}

type found uint8

const (
	foundNothing found = iota
	foundDone
	foundNotDone
)

// Happened: the work was done, and this came of it. The output is taken as [Submission].Args is.
func Happened(output any) Reconciled { return Reconciled{found: foundDone, output: output} }

// DidNotHappen: nothing was done, and nothing is under way that still might do it.
func DidNotHappen() Reconciled { return Reconciled{found: foundNotDone} }

// CannotTell: and why, for the person who is to decide.
func CannotTell(why string) Reconciled { return Reconciled{why: why} }

// A Result is what became of a job.
type Result string

const (
	// NotApplied, the zero Result: nothing, or no more than a part of a completed job's rollback. The Outcome's Err says why.
	NotApplied Result = ""
	// Skipped: the job is not as it was when the plan was made; the Outcome's Reason says what has changed.
	Skipped Result = "skipped"
	// Resumed, and the rest: as the decision has it, or, for ActionReconcile, as it was found out.
	Resumed    Result = "resumed"
	Completed  Result = "completed"
	Failed     Result = "failed"
	RolledBack Result = "rolled_back"
	Held       Result = "held"
)

// An Outcome is what became of one decision.
type Outcome struct {
	JobID  string
	Action Action
	Result Result
	Reason string
	// Err is what went wrong: of a command, or of a function of ApplyOptions. What Result says has happened all the same:
	// a job that was Resumed, and whose Resume returned an error, has had its attempt, unless by ResumeLater.
	Err error
}

// Applied is what became of a plan, in its order.
type Applied struct {
	Outcomes []Outcome
}

// Err joins the errors of all outcomes; nil if there is none.
func (a Applied) Err() error {
	var all []error
	for _, o := range a.Outcomes {
		if o.Err != nil {
			all = append(all, fmt.Errorf("recovery: %s job %q: %w", o.Action, o.JobID, o.Err))
		}
	}
	return errors.Join(all...)
}

// String is a table, for people.
func (a Applied) String() string {
	var s strings.Builder
	w := tabwriter.NewWriter(&s, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "JOB\tACTION\tRESULT\tREASON\tERROR")
	for _, o := range a.Outcomes {
		problem := ""
		if o.Err != nil {
			problem = o.Err.Error()
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", cell(o.JobID), o.Action, cell(string(o.Result)), cell(o.Reason), cell(problem))
	}
	w.Flush() // into memory
	return s.String()
}

// Apply carries the plan out, several jobs at a time, each by itself. It returns when all are done with.
//
// A decision is applied only if its job's newest event is still the one that was looked at; otherwise it is skipped. What
// is decided is durable before a function of opts acts on it. So a plan may be applied again after a crash, or beside
// itself: no attempt, no failure, no hold is there twice. A rollback that a crash cut short goes on, also of a job that had
// ended when it was looked at. A resumed job that was cut short has had its attempt: it is skipped, and stands in the next
// plan. (One that has not started has none: for as long as it is as it was, each Apply calls Resume for it.)
//
// The error is ctx's, which leaves the jobs alone that were not begun; or wal.ErrInvalid, before anything was done, for a
// plan of another log, with an unknown action, with a job that is there twice, or that needs a function that is nil.
// Everything else is in [Applied].
func (p Plan) Apply(ctx context.Context, e *Engine, opts ApplyOptions) (Applied, error) {
	if ctx == nil {
		return Applied{}, &wal.InvalidError{Field: "context", Reason: "nil"}
	}
	opts.Concurrency = max(1, cmp.Or(opts.Concurrency, 8))
	opts.MaxAttempts = cmp.Or(opts.MaxAttempts, DefaultMaxAttempts)
	if err := p.check(e.log.ID(), opts); err != nil {
		return Applied{}, err
	}
	a := application{engine: e, opts: opts}
	applied := Applied{Outcomes: make([]Outcome, len(p.Decisions))}
	places, all := make(chan struct{}, opts.Concurrency), sync.WaitGroup{}
	for i, d := range p.Decisions {
		applied.Outcomes[i] = Outcome{JobID: d.JobID, Action: d.Action, Err: errGone}
		places <- struct{}{}
		all.Go(func() {
			defer func() { <-places }()
			applied.Outcomes[i] = a.apply(ctx, d)
		})
	}
	all.Wait()
	return applied, ctx.Err()
}

// errGone is the outcome of a job whose function never returned.
var errGone = errors.New("a function of ApplyOptions ended its goroutine")

// application is a plan under way.
type application struct {
	engine *Engine
	opts   ApplyOptions
}

func (a application) apply(ctx context.Context, d Decision) Outcome {
	o := Outcome{JobID: d.JobID, Action: d.Action, Reason: d.Reason}
	job, err := a.asLookedAt(ctx, d)
	if err != nil {
		return o.ended(NotApplied, err)
	}
	return a.act(ctx, d, job, o)
}

func (a application) act(ctx context.Context, d Decision, job statemachine.Job, o Outcome) Outcome {
	switch d.Action {
	case ActionResume:
		return a.resume(ctx, d, job, o)
	case ActionReconcile:
		return a.reconcile(ctx, d, job, o)
	case ActionRollBack:
		return a.rollBack(ctx, d, job, o)
	case ActionFail:
		_, err := a.do(ctx, d, Fail(d.JobID, errors.New(d.why())))
		return o.ended(Failed, err)
	}
	return a.hold(ctx, d, d.why(), o)
}

// ended is the outcome after a command. What was refused because the job has changed is skipped.
func (o Outcome) ended(r Result, err error) Outcome {
	switch {
	case err == nil:
		o.Result = r
	case errors.Is(err, ErrChanged) || errors.Is(err, ErrConflict) || errors.Is(err, statemachine.ErrUnknownJob):
		o.Result, o.Reason = Skipped, err.Error()
	default:
		o.Err = err
	}
	return o
}

// why is what goes into the log.
func (d Decision) why() string {
	return cmp.Or(strings.ToValidUTF8(d.Reason, "\uFFFD"), "by a plan that gives no reason")
}

// asLookedAt returns the job if it is still as the decision's maker saw it, or on its way through a rollback.
func (a application) asLookedAt(ctx context.Context, d Decision) (statemachine.Job, error) {
	if err := ctx.Err(); err != nil {
		return statemachine.Job{}, err
	}
	job, known := a.engine.Job(d.JobID)
	if !known {
		return job, a.engine.unknown(d.JobID)
	}
	if job.Seq == d.Seq {
		return job, nil
	}
	newest, only := a.onlyUndone(ctx, d, job)
	if only && d.Action == ActionRollBack && job.Parked == "" {
		return job, nil
	}
	return job, &ChangedError{JobID: d.JobID, Seq: d.Seq, Newest: job.Seq, NewestType: newest}
}

// onlyUndone tells whether nothing has happened to the job since it was looked at but that it has failed by this very decision,
// if it had not ended by then, and that steps were undone: crash: between the failure and its rollback, or in a rollback. newest is
// its newest event's type; "" if that can't be read.
func (a application) onlyUndone(ctx context.Context, d Decision, job statemachine.Job) (newest wal.EventType, only bool) {
	for event, err := range a.engine.past(ctx, job.ID, job.Seq) {
		if err != nil {
			break
		}
		newest = cmp.Or(newest, event.Type)
		switch {
		case event.Seq == d.Seq:
			return newest, true
		case event.Type != wal.JobStepUndone:
			return newest, event.Type == wal.JobFailed && event.Error == d.why() && event.Prev == d.Seq
		}
	}
	return newest, false
}

// do carries out commands on the job as it was looked at.
func (a application) do(ctx context.Context, d Decision, commands ...Command) (statemachine.Job, error) {
	commands[0] = commands[0].IfSeq(d.Seq)
	jobs, err := a.engine.Do(ctx, commands...)
	if err != nil {
		return statemachine.Job{}, err
	}
	return jobs[0], nil
}

// resume: crash: the attempt is durable, and nothing was done: it counts all the same, since nobody can tell.
func (a application) resume(ctx context.Context, d Decision, job statemachine.Job, o Outcome) Outcome {
	if job.Finished() || job.State == statemachine.Started && !a.opts.ResumeLater { // what has ended refuses it
		var err error
		if job, err = a.do(ctx, d, Resume(d.JobID)); err != nil {
			return o.ended(Resumed, err)
		}
	}
	o.Result = Resumed
	o.Err = guarded(func() error { return a.opts.Resume(ctx, job) })
	return o
}

func (a application) hold(ctx context.Context, d Decision, reason string, o Outcome) Outcome {
	o.Reason = reason
	_, err := a.do(ctx, d, Hold(d.JobID, reason))
	return o.ended(Held, err)
}

// reconcile asks. A job that has not started has done nothing that could be asked about.
func (a application) reconcile(ctx context.Context, d Decision, job statemachine.Job, o Outcome) Outcome {
	if job.State != statemachine.Started {
		return a.resume(ctx, d, job, o)
	}
	var r Reconciled
	err := guarded(func() (err error) { r, err = a.opts.Reconcile(ctx, job); return err })
	switch {
	case err != nil:
		return o.ended(NotApplied, err)
	case r.found == foundDone:
		o.Reason = "asked: it happened"
		_, err := a.do(ctx, d, Complete(d.JobID, r.output))
		if errors.Is(err, wal.ErrInvalid) || errors.Is(err, wal.ErrTooLarge) {
			return a.hold(ctx, d, "asked: it happened, and what came of it can't be recorded: "+err.Error(), o)
		}
		return o.ended(Completed, err)
	case r.found == foundNotDone && (a.opts.MaxAttempts < 0 || job.Attempts < a.opts.MaxAttempts):
		o.Reason = "asked: it did not happen"
		return a.resume(ctx, d, job, o)
	case r.found == foundNotDone:
		return a.hold(ctx, d, fmt.Sprintf("asked: it did not happen, and it was tried %s", times(job.Attempts)), o)
	}
	return a.hold(ctx, d, "asked, and it can't be told whether it happened: "+cmp.Or(r.why, "no reason was given"), o)
}

// rollBack: crash: between the failure and the rollback, the decision is applied again and goes on here.
func (a application) rollBack(ctx context.Context, d Decision, job statemachine.Job, o Outcome) Outcome {
	fail, undone := Fail(d.JobID, errors.New(d.why())), RollBack(d.JobID, d.why())
	if job.State == statemachine.Submitted || job.State == statemachine.Validated { // there is nothing to undo
		_, err := a.do(ctx, d, fail, undone)
		return o.ended(RolledBack, err)
	}
	if job.State == statemachine.Started {
		commands := []Command{fail}
		if a.opts.FailWith != nil {
			commands = append(commands, a.opts.FailWith(job)...)
		}
		var err error
		if job, err = a.do(ctx, d, commands...); err != nil {
			return o.ended(Failed, err)
		}
	}
	if job.State == statemachine.Failed {
		o.Result = Failed
	}
	o.Err = guarded(func() error { return a.opts.RollBack(ctx, job) })
	if now, _ := a.engine.Job(d.JobID); now.State == statemachine.RolledBack {
		o.Result = RolledBack
		return o
	}
	if o.Err != nil {
		return o
	}
	if _, o.Err = a.engine.Do(ctx, undone); o.Err == nil {
		o.Result = RolledBack
	}
	return o
}
