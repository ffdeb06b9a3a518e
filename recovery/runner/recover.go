package runner

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// Policy is what the runner does with interrupted jobs where nothing else is said: what is safe by the effects of its
// capabilities, as [recovery.DefaultPolicy] has it, but with Options.MaxAttempts. A job of a capability that is not registered is
// held. It has an opinion about every job.
func (r *Runner) Policy() recovery.Policy {
	effects := r.reg.Effects()
	return policy{r.reg, effects, recovery.DefaultPolicy(effects), r.opts.MaxAttempts}
}

type policy struct {
	reg     *Registry
	effects recovery.Effects
	safe    recovery.Policy
	most    int
}

func (p policy) EffectOf(capability string) recovery.Effect { return p.effects[capability] }

func (p policy) Decide(ev recovery.Evidence) (recovery.Action, string, bool) {
	if p.reg.find(ev.Capability) == nil {
		return recovery.ActionHold, "no capability of that name is registered", true
	}
	if p.most > 0 {
		if action, reason, over := recovery.MaxAttempts(p.most, recovery.ActionHold).Decide(ev); over {
			return action, reason, true
		}
	}
	again := ev.Effect == recovery.Pure || ev.Effect == recovery.Idempotent
	if again && ev.State == statemachine.Started && !ev.Released {
		return recovery.ActionResume, fmt.Sprintf("%s: it may be done again; attempts so far: %d", ev.Effect, ev.Attempts), true
	}
	return p.safe.Decide(ev)
}

// Plan is [recovery.Engine.Plan] by the first of the policies that has an opinion, and the runner's own Policy behind them. At
// its end it has, besides, the jobs whose rollback was cut short in an earlier opening: they failed and were to be undone, or somebody
// wanted back what they did. No policy is asked about these, and they can't be held. Nothing has been done yet.
func (r *Runner) Plan(ctx context.Context, policies ...recovery.Policy) (recovery.Plan, error) {
	p, err := r.engine.Plan(ctx, recovery.First(append(slices.Clone(policies), r.Policy())...))
	if err != nil {
		return p, err
	}
	for job := range r.engine.Jobs(projection.Query{RollingBack: new(true), Parked: new(false)}) {
		does := r.reg.find(job.Capability)
		if job.Seq > p.Seq || r.engine.Live(job.Epoch) || does == nil || !does.undoes {
			continue
		}
		d := r.cutShort(ctx, job, does.Effect)
		if err := ctx.Err(); err != nil {
			return p, err
		}
		p.Decisions = append(p.Decisions, d)
	}
	return p, nil
}

// cutShort decides about a job whose rollback was. Of one whose events can't be read, the Evidence says so: its rollback says it
// again.
func (r *Runner) cutShort(ctx context.Context, job statemachine.Job, effect recovery.Effect) recovery.Decision {
	ev := recovery.Evidence{JobID: job.ID, Capability: job.Capability, Effect: effect, State: job.State, Epoch: job.Epoch,
		Attempts: job.Attempts, Steps: job.Steps, LastSeq: job.Seq}
	r.lookBack(ctx, &ev)
	return recovery.Decision{JobID: job.ID, Seq: job.Seq, Action: recovery.ActionRollBack, Reason: "its rollback was cut short", Evidence: ev}
}

// lookBack reads of a job no more than its newest event, and what lies between that and the last step that is not undone.
func (r *Runner) lookBack(ctx context.Context, ev *recovery.Evidence) {
	const most = 1000 // events are read for the last step's name
	undone, n := 0, 0
	for event, err := range r.engine.Backward(ctx, ev.JobID) {
		name := recovery.StepName(event)
		switch {
		case err != nil:
			ev.Problem = err.Error()
			return
		case isMark(name):
		case event.Type == wal.JobStepUndone:
			undone++
		case event.Type == wal.JobStep && undone > 0: // the newest are undone first
			undone--
		default:
			ev.LastStep = name
		}
		if event.Seq == ev.LastSeq {
			ev.LastEvent, ev.LastTime = event.Type, event.Time
		}
		if n++; ev.Steps == 0 || ev.LastStep != "" || n == most {
			return
		}
	}
}

// Apply is [recovery.Plan.Apply] by the runner's capabilities. Jobs that are resumed wait for a worker: Resumed means that they do,
// and the attempt is durable when it begins. While the queue is full Apply waits. What is to be reconciled or rolled back is done
// when it returns. What went wrong with single jobs is in [recovery.Applied.Err] alone. It may be called again, with the same plan or
// another: no job is taken twice. wal.ErrInvalid, before anything is done: also for a plan that rolls back what can't be undone.
func (r *Runner) Apply(ctx context.Context, p recovery.Plan) (recovery.Applied, error) {
	if err := r.canUndo(p); err != nil {
		return recovery.Applied{}, err
	}
	return p.Apply(ctx, r.engine, recovery.ApplyOptions{
		Concurrency: r.opts.Workers, MaxAttempts: r.opts.MaxAttempts, ResumeLater: true, FailWith: r.failWith,
		Resume: r.resume, Reconcile: r.reconcile, RollBack: r.rollBacks(p),
	})
}

// canUndo refuses a plan that would fail jobs to undo them, and then can't.
func (r *Runner) canUndo(p recovery.Plan) error {
	for i, d := range p.Decisions {
		if d.Action != recovery.ActionRollBack {
			continue
		}
		job, does, err := r.known(d.JobID)
		if err == nil && !does.undoes && !job.StartedAt.IsZero() {
			err = ErrNoUndo
		}
		if errors.Is(err, ErrNoUndo) || errors.Is(err, ErrUnknownCapability) {
			return &wal.InvalidError{Field: fmt.Sprintf("Plan.Decisions[%d]", i), Reason: fmt.Sprintf("%s job %.64q: %v", d.Action, d.JobID, err)}
		}
	}
	return nil
}

// Recover makes a plan and applies it: call it once, when the runner is made, for what the last process has left. The policies
// are as for [Runner.Plan], the errors those of [recovery.Engine.Plan] and [recovery.Plan.Apply]; what became of each job is in
// [recovery.Applied].
func (r *Runner) Recover(ctx context.Context, policies ...recovery.Policy) (recovery.Applied, error) {
	p, err := r.Plan(ctx, policies...)
	if err != nil {
		return recovery.Applied{}, err
	}
	return r.Apply(ctx, p)
}

// failWith says with the failure that the job is to be rolled back.
func (r *Runner) failWith(job statemachine.Job) []recovery.Command {
	return []recovery.Command{recovery.UndoStep(job.ID, toUndo)}
}

// resume puts a job into the queue, unless it is there.
func (r *Runner) resume(ctx context.Context, job statemachine.Job) error {
	does := r.reg.find(job.Capability)
	if does == nil {
		return fmt.Errorf("%w: %.64q", ErrUnknownCapability, job.Capability)
	}
	if err := r.place(ctx); err != nil {
		return err
	}
	if !r.enqueue(&task{id: job.ID, job: job, does: does}, false) {
		return ErrDraining
	}
	return nil
}

func (r *Runner) reconcile(ctx context.Context, job statemachine.Job) (recovery.Reconciled, error) {
	does := r.reg.find(job.Capability)
	if does == nil {
		return recovery.Reconciled{}, fmt.Errorf("%w: %.64q", ErrUnknownCapability, job.Capability)
	}
	t, err := r.claimed(job, does)
	if err != nil {
		return recovery.Reconciled{}, err
	}
	defer r.hands.Done()
	defer r.leave(t, nil)
	if t.job.Seq != job.Seq { // by now: what is found out would not count
		return recovery.Reconciled{}, &recovery.ChangedError{JobID: t.id, Seq: job.Seq, Newest: t.job.Seq}
	}
	raw, done, err := r.args(ctx, t)
	if err != nil {
		return recovery.Reconciled{}, err
	}
	err = r.bind(t, raw)
	if done(); err != nil {
		return recovery.CannotTell(shortened(err.Error())), nil
	}
	found, err := r.question(ctx, t)
	switch {
	case err != nil:
		return recovery.Reconciled{}, err
	case found.found == foundDone:
		return recovery.Happened(found.out), nil
	case found.found == foundNotDone:
		return recovery.DidNotHappen(), nil
	}
	return recovery.CannotTell(shortened(found.why)), nil
}

// question asks the capability whether a job's work has happened.
func (r *Runner) question(ctx context.Context, t *task) (found Found[json.RawMessage], err error) {
	err = r.call(ctx, t, func(ctx context.Context) (err error) { found, err = t.work.reconcile(ctx); return err })
	return found, err
}

// asked is for another attempt of a job whose last one left it open whether its work has happened. True: it is to be tried.
func (r *Runner) asked(t *task) bool {
	found, err := r.question(r.life, t)
	if cause := r.cause(t); cause != nil {
		r.failed(t, cause)
		return false
	}
	command := recovery.Hold(t.id, "asked, and it can't be told whether it happened: "+cmp.Or(shortened(found.why), "no reason was given"))
	switch {
	case err != nil:
		command = recovery.Hold(t.id, shortened("whether it happened could not be asked: "+err.Error()))
	case found.found == foundNotDone:
		t.ask = false
		return true
	case found.found == foundDone:
		command = recovery.Complete(t.id, found.out)
	}
	jobs, err := r.do(command.IfSeq(t.job.Seq))
	if refusalOf(err) == unfit && found.found == foundDone {
		text := shortened("asked: it happened, and what came of it can't be recorded: " + err.Error())
		jobs, err = r.do(recovery.Hold(t.id, text).IfSeq(t.job.Seq))
	}
	if err != nil {
		r.left(t, err)
		return false
	}
	t.job = jobs[0]
	r.leave(t, nil)
	return false
}

// rollBacks rolls jobs back for the reasons of the plan's decisions.
func (r *Runner) rollBacks(p recovery.Plan) func(context.Context, statemachine.Job) error {
	reasons := make(map[string]string)
	for _, d := range p.Decisions {
		if d.Action == recovery.ActionRollBack {
			reasons[d.JobID] = cmp.Or(d.Reason, "by a plan that gives no reason")
		}
	}
	return func(ctx context.Context, job statemachine.Job) error {
		return r.rollBackByPlan(ctx, job, reasons[job.ID])
	}
}

// rollBackByPlan undoes, and says so before anybody else has the job: he would undo it once more.
func (r *Runner) rollBackByPlan(ctx context.Context, job statemachine.Job, reason string) error {
	does := r.reg.find(job.Capability)
	if does == nil {
		return fmt.Errorf("%w: %.64q", ErrUnknownCapability, job.Capability)
	}
	t, err := r.claimed(job, does)
	if err != nil {
		return err
	}
	return r.takeBack(ctx, t, reason)
}
