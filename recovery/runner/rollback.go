package runner

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// toUndo is the mark, see [recovery.Step], by whose undo a job says that it is to be rolled back, before anything is undone: with
// its failure, in the same append, or once somebody wants back what had ended. crash: from then on to the end of the rollback it
// is RollingBack, by which the next opening's plan tells it apart from a job that is to stay as it ended.
const toUndo = "#rollback"

// failing is what fails a job as it stands: one that has started, and is to be undone, says so.
func failing(job statemachine.Job, does *capability, err error) []recovery.Command {
	commands := []recovery.Command{recovery.Fail(job.ID, errors.New(shortened(err.Error())))}
	if job.State == statemachine.Started && does.rollsBack() {
		commands = append(commands, recovery.UndoStep(job.ID, toUndo))
	}
	return commands
}

// shortened is an error's text as it fits into an event of any log.
func shortened(text string) string {
	const most = 32 << 10
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "…"
}

// fail ends a job badly, and rolls it back where that is to be.
func (r *Runner) fail(t *task, err error) {
	job, bad := r.failDurably(t, err)
	if bad != nil {
		t.close()
		r.left(t, bad)
		return
	}
	t.job = job
	if job.RollingBack {
		t.known = t.known && job.Steps == len(t.steps) // else others have recorded some
		bad = r.rollBack(r.life, t, "undone after its failure")
	}
	if errors.Is(bad, ErrDraining) {
		r.leave(t, bad)
		return
	}
	if bad != nil {
		r.opts.Logger.Error("runner: rollback failed, and is still to be done", "job", t.id, "capability", t.does.name, "error", bad)
	}
	r.leave(t, nil)
}

// failDurably: under the attempt, where there is one.
func (r *Runner) failDurably(t *task, err error) (statemachine.Job, error) {
	if t.attempt == nil {
		return r.failIdle(t, err)
	}
	commands := failing(t.job, t.does, err)
	job, bad := t.attempt.end(context.Background(), commands...)
	for n := 0; refusalOf(bad) == full && r.rest(n, bad); n++ {
		job, bad = t.attempt.end(context.Background(), commands...)
	}
	t.steps, t.known = t.attempt.steps(), true
	return job, bad
}

// failIdle fails a job that nobody works on, though it be held or released at this moment.
func (r *Runner) failIdle(t *task, cause error) (statemachine.Job, error) {
	for {
		commands := failing(t.job, t.does, cause)
		commands[0] = commands[0].IfSeq(t.job.Seq)
		jobs, err := r.do(commands...)
		if err == nil {
			return jobs[0], nil
		}
		now, _ := r.engine.Job(t.id)
		if !errors.Is(err, recovery.ErrChanged) || !stands(t.job, now) {
			return t.job, err
		}
		t.job = now
	}
}

// isMark: see [recovery.Step].
func isMark(step string) bool { return strings.HasPrefix(step, "#") }

// takeBack is rollBack for a caller that has claimed the job, and has done with it then. Of one for which there was no more time,
// whoever waits for it is told, and Drain.
func (r *Runner) takeBack(ctx context.Context, t *task, reason string) error {
	defer r.hands.Done()
	defer r.leave(t, nil) // unless it is left by now
	err := r.rollBack(ctx, t, reason)
	if errors.Is(err, ErrDraining) {
		r.leave(t, err)
	}
	return err
}

// rollBack undoes what a completed or failed job did, and says so.
func (r *Runner) rollBack(ctx context.Context, t *task, reason string) error {
	if err := r.undo(ctx, t); err != nil {
		return err
	}
	jobs, err := r.do(recovery.RollBack(t.id, shortened(reason)).IfSeq(t.job.Seq))
	if err == nil {
		t.job = jobs[0]
	}
	return err
}

// undo undoes what a completed or failed job did: each recorded step, newest first, and the rest.
func (r *Runner) undo(ctx context.Context, t *task) error {
	switch _, err := statemachine.Next(t.job.State, wal.JobRolledBack); {
	case t.job.Parked != "":
		return &statemachine.ParkedError{JobID: t.id, Reason: t.job.Parked}
	case err != nil:
		return err
	case t.job.StartedAt.IsZero(): // it has done nothing
		return nil
	case !t.does.undoes:
		return ErrNoUndo
	}
	t.undoing = true
	if err := errors.Join(r.recall(t), r.rebind(ctx, t)); err != nil {
		return because(err, r.life)
	}
	if err := r.intend(ctx, t); err != nil {
		return err
	}
	for _, s := range slices.Backward(t.steps) {
		if s.Undone {
			continue
		}
		if err := r.undoStep(ctx, t, Done{Step: s.Name, Output: s.Output}); err != nil {
			return err
		}
	}
	return r.callUndo(ctx, t, Done{Undone: names(t.steps)})
}

// names are those of the steps that the work recorded.
func names(steps []recovery.StepRecord) (all []string) {
	for _, s := range steps {
		all = append(all, s.Name)
	}
	return all
}

// intend: crash: before the first undo, the log says that it is to be: else nobody would know of a job that is half undone.
func (r *Runner) intend(ctx context.Context, t *task) error {
	if t.job.RollingBack {
		return nil
	}
	if ctx.Err() != nil { // nothing is going to be undone
		return context.Cause(ctx)
	}
	return r.noteUndone(t, toUndo)
}

// undoStep: crash: after the undo and before it is durable, it is done once more.
func (r *Runner) undoStep(ctx context.Context, t *task, done Done) error {
	if err := r.callUndo(ctx, t, done); err != nil {
		return err
	}
	return r.noteUndone(t, done.Step)
}

func (r *Runner) noteUndone(t *task, step string) error {
	jobs, err := r.do(recovery.UndoStep(t.id, step).IfSeq(t.job.Seq))
	if err == nil {
		t.job = jobs[0]
	}
	return err
}

func (r *Runner) callUndo(ctx context.Context, t *task, done Done) error {
	return r.call(ctx, t, func(ctx context.Context) error { return t.work.undo(ctx, done) })
}

// rebind decodes the args, again if need be: Execute may have changed what it was given.
func (r *Runner) rebind(ctx context.Context, t *task) error {
	raw, done, err := r.args(ctx, t)
	if err != nil {
		return err
	}
	defer done()
	return r.bind(t, raw)
}
