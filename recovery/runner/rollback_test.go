package runner

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// trip books a flight and a room, each a step, and fails then if n is 0. What is undone stands in the ledger.
func trip(l *ledger) script {
	return script{
		execute: func(ctx context.Context, n int) (int, error) {
			for _, name := range []string{"flight", "room"} {
				if _, err := Step(ctx, name, func(context.Context) (string, error) { l.note("%s", name); return name + " 7", nil }); err != nil {
					return 0, err
				}
			}
			if n == 0 {
				return 0, errBroken
			}
			return n, nil
		},
		undo: func(_ context.Context, _ int, done Done) error {
			if done.Step == "" {
				l.note("undo the rest, but %s", strings.Join(done.Undone, ", "))
				return nil
			}
			var out string
			err := done.Decode(&out)
			l.note("undo %s: %s", done.Step, out)
			return err
		},
	}
}

var undone = []string{"undo room: room 7", "undo flight: flight 7", "undo the rest, but flight, room"}

// A failed job is undone in reverse order of its steps, each of which is durable before the next.
func TestRollback_of_a_failed_job(t *testing.T) {
	var l ledger
	p := newPool(t, does(trip(&l), Settings{}), Options{})
	job := p.run("do", "a", 0)
	require.Equal(t, []any{statemachine.RolledBack, "broken"}, []any{job.State, job.Error})
	require.Equal(t, append([]string{"flight", "room"}, undone...), l.all())
	require.Equal(t, []string{"submitted", "validated", "started", "step flight", "step room", "failed: broken",
		"step_undone #rollback", "step_undone room", "step_undone flight", "rolled_back: undone after its failure"}, p.story("a"))
	require.Equal(t, statemachine.Completed, p.run("do", "b", 1).State)
}

// What was done before is undone, not only what this attempt did.
func TestRollback_of_steps_of_earlier_attempts(t *testing.T) {
	var l ledger
	x := trip(&l)
	book := x.execute
	x.execute = func(ctx context.Context, n int) (int, error) {
		if job, _ := JobOf(ctx); job.Attempts == 1 {
			_, err := Step(ctx, "flight", func(context.Context) (string, error) { return "flight 7", nil })
			return 0, errors.Join(err, Transient(errBroken))
		}
		return book(ctx, n)
	}
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, does(x, Settings{}), Options{})
		require.Equal(t, statemachine.RolledBack, p.run("do", "a", 0).State)
		require.Equal(t, append([]string{"room"}, undone...), l.all())
	})
}

// All that a capability is called for knows which job it is for; only its work has steps.
func TestJobOf_in_all_that_a_capability_does(t *testing.T) {
	var l ledger
	note := func(ctx context.Context, what string) {
		job, ok := JobOf(ctx)
		_, err := Step(ctx, "step", func(context.Context) (int, error) { return 0, nil })
		l.note("%s: %t %s %s %v", what, ok, job.ID, job.State, err)
	}
	x := script{
		validate: func(ctx context.Context, _ int) error { note(ctx, "validate"); return nil },
		execute:  func(ctx context.Context, _ int) (int, error) { note(ctx, "execute"); return 0, errBroken },
		undo:     func(ctx context.Context, _ int, done Done) error { note(ctx, "undo "+done.Step); return nil },
	}
	p := newPool(t, does(x, Settings{}), Options{})
	p.run("do", "a", 1)
	require.Equal(t, []string{"validate: true a submitted " + ErrNoJob.Error(), "execute: true a started <nil>",
		"undo step: true a failed " + ErrNoJob.Error(), "undo : true a failed " + ErrNoJob.Error()}, l.all())
	_, ok := JobOf(context.Background())
	require.False(t, ok)
}

// What is to be kept is kept, by this process and by the next, until somebody says otherwise.
func TestRollback_only_of_what_is_not_kept(t *testing.T) {
	var l ledger
	reg := does(trip(&l), Settings{KeepFailed: true})
	p := newPool(t, reg, Options{})
	require.Equal(t, statemachine.Failed, p.run("do", "a", 0).State)
	p = p.after(does(trip(&l), Settings{}), Options{})
	applied, err := p.Recover(t.Context())
	require.NoError(t, err)
	require.Empty(t, applied.Outcomes, "it was kept, even if a job that fails now would not be")
	job, err := p.RollBack(t.Context(), "a", "no longer wanted")
	require.NoError(t, err)
	require.Equal(t, []any{statemachine.RolledBack, "no longer wanted"}, []any{job.State, job.RollbackReason})
	require.Equal(t, append([]string{"flight", "room"}, undone...), l.all())

	_, err = p.RollBack(t.Context(), "a", "again")
	require.ErrorIs(t, err, statemachine.ErrTransition)
	require.Equal(t, statemachine.Completed, p.run("do", "well", 1).State)
	job, err = p.RollBack(t.Context(), "well", "no longer wanted")
	require.NoError(t, err)
	require.Equal(t, []any{statemachine.RolledBack, statemachine.Completed}, []any{job.State, job.Before})
}

func TestRollBack_refuses(t *testing.T) {
	reg := does(script{execute: until}, Settings{})
	Add(reg, "plain", Func[int, int](func(_ context.Context, n int) (int, error) { return n, nil }), Settings{})
	p := newPool(t, reg, Options{})
	_, err := p.RollBack(t.Context(), "nobody", "why")
	require.ErrorIs(t, err, statemachine.ErrUnknownJob)
	p.submit("do", "busy", 1)
	_, err = p.RollBack(t.Context(), "busy", "why")
	require.ErrorIs(t, err, ErrBusy)
	_, err = p.Cancel(t.Context(), "busy", "why")
	require.NoError(t, err)
	p.run("plain", "plain", 1)
	_, err = p.RollBack(t.Context(), "plain", "why")
	require.ErrorIs(t, err, ErrNoUndo)
	_, err = p.engine.Do(t.Context(), recovery.Submit(recovery.Submission{JobID: "gone", Capability: "gone"}), recovery.Fail("gone", errBroken))
	require.NoError(t, err)
	_, err = p.RollBack(t.Context(), "gone", "why")
	require.ErrorIs(t, err, ErrUnknownCapability)
	p.run("do", "unfit", "seven")
	job, err := p.RollBack(t.Context(), "unfit", "why")
	require.NoError(t, err, "it has done nothing")
	require.Equal(t, statemachine.RolledBack, job.State)
	require.Empty(t, p.tasks)
}

// An undo that fails leaves the job failed, and what was undone is not undone again: not by a second call, and not by the plan of
// the next opening, which goes on.
func TestRollback_goes_on_after_an_error(t *testing.T) {
	for _, next := range []string{"again", "opening"} {
		var l ledger
		x := trip(&l)
		undo, broken := x.undo, true
		x.undo = func(ctx context.Context, n int, done Done) error {
			if done.Step == "flight" && broken {
				return errBroken
			}
			return undo(ctx, n, done)
		}
		p := newPool(t, does(x, Settings{}), Options{})
		require.Equal(t, statemachine.Failed, p.run("do", "a", 0).State)
		require.Contains(t, p.log.String(), "rollback failed")
		plan, err := p.Plan(t.Context())
		require.NoError(t, err)
		require.Empty(t, plan.Decisions, "nothing was interrupted")
		broken = false
		if next == "again" {
			_, err := p.RollBack(t.Context(), "a", "again")
			require.NoError(t, err)
		} else {
			p = p.after(does(x, Settings{}), Options{})
			plan, err := p.Plan(t.Context())
			require.NoError(t, err)
			require.Len(t, plan.Decisions, 1)
			ev := plan.Decisions[0].Evidence
			require.Equal(t, []any{recovery.ActionRollBack, statemachine.Failed, "flight", wal.JobStepUndone},
				[]any{plan.Decisions[0].Action, ev.State, ev.LastStep, ev.LastEvent})
			applied, err := p.Apply(t.Context(), plan)
			require.NoError(t, errors.Join(err, applied.Err()))
			require.Equal(t, recovery.RolledBack, applied.Outcomes[0].Result)
		}
		job, _ := p.engine.Job("a")
		require.Equal(t, statemachine.RolledBack, job.State)
		require.Equal(t, append([]string{"flight", "room"}, undone...), l.all())
	}
}

// An undo has its own time, and is not ended by what ended the work.
func TestRollback_has_its_own_time(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		undos := 0
		reg := does(script{execute: until, undo: func(ctx context.Context, n int, _ Done) error {
			if ctx.Err() != nil {
				return errors.New("it had no time")
			}
			if undos++; undos == 1 {
				_, err := until(ctx, n)
				return err
			}
			return nil
		}}, Settings{Timeout: time.Second})
		p := newPool(t, reg, Options{})
		require.Equal(t, "timed out after 1s", p.run("do", "a", 1).Error)
		require.Contains(t, p.log.String(), `error="timed out after 1s"`)
		job, err := p.RollBack(t.Context(), "a", "again")
		require.NoError(t, err)
		require.Equal(t, statemachine.RolledBack, job.State)
	})
}

// A decision to roll back that a crash cuts short goes on, by the same plan and by the next one, wherever it was cut.
func TestRollback_by_a_plan_goes_on_after_a_crash(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		steps, again := rapid.IntRange(0, 4).Draw(rt, "steps"), rapid.Bool().Draw(rt, "same plan")
		cut := rapid.IntRange(0, steps+1).Draw(rt, "undos before the crash")
		disk := crashfs.New()
		e, err := recovery.Open(context.Background(), "jobs", recovery.Options{WAL: wal.Options{FS: disk}})
		require.NoError(rt, err)
		defer func() { e.Close() }()
		commands := []recovery.Command{recovery.Submit(recovery.Submission{JobID: "a", Capability: "do", Args: 1}), recovery.Validate("a"), recovery.Start("a")}
		for i := range steps {
			commands = append(commands, recovery.Step("a", fmt.Sprint("s", i), i))
		}
		_, err = e.Do(context.Background(), commands...)
		require.NoError(rt, err)
		require.NoError(rt, e.Close())

		var done []string
		var image *crashfs.FS
		var before []string
		reg := does(script{undo: func(_ context.Context, _ int, d Done) error {
			if len(done) == cut {
				image, before = disk.Crash(crashfs.SyncedOnly), slices.Clone(done)
			}
			done = append(done, d.Step)
			return nil
		}}, Settings{})
		open := func() (*recovery.Engine, *Runner) {
			e, err := recovery.Open(context.Background(), "jobs", recovery.Options{WAL: wal.Options{FS: disk}})
			require.NoError(rt, err)
			r, err := New(e, reg, Options{Workers: 1})
			require.NoError(rt, err)
			return e, r
		}
		e, r := open()
		plan, err := r.Plan(context.Background())
		require.NoError(rt, err)
		plan.Decisions[0].Action = recovery.ActionRollBack
		_, err = r.Apply(context.Background(), plan)
		require.NoError(rt, err)
		require.NoError(rt, r.Drain(context.Background()))
		require.NoError(rt, e.Close())

		whole := len(done)
		require.Equal(rt, steps+1, whole)
		if cut < whole { // else it was not cut
			disk, done, cut = image, before, -1
		}
		e, r = open()
		if !again {
			plan, err = r.Plan(context.Background())
			require.NoError(rt, err)
		}
		applied, err := r.Apply(context.Background(), plan)
		require.NoError(rt, errors.Join(err, applied.Err()))
		job, _ := e.Job("a")
		require.Equal(rt, statemachine.RolledBack, job.State)
		require.Len(rt, done, whole, "nothing was undone twice, nothing was left out")
		require.NoError(rt, r.Drain(context.Background()))
	})
}

// A step that was recorded by other means than Step is undone like the others.
func TestRollback_of_what_the_runner_did_not_record(t *testing.T) {
	var l ledger
	var p *pool
	p = newPool(t, does(script{
		execute: func(ctx context.Context, n int) (int, error) {
			if _, err := Step(ctx, "one", is(1)); err != nil {
				return 0, err
			}
			if _, err := p.engine.Step(ctx, "a", "by hand", 2); err != nil {
				return 0, err
			}
			return 0, errBroken
		},
		undo: func(_ context.Context, _ int, done Done) error { l.note("%s", done.Step); return nil },
	}, Settings{}), Options{})
	require.Equal(t, statemachine.RolledBack, p.run("do", "a", 1).State)
	require.Equal(t, []string{"by hand", "one", ""}, l.all())
}

// What was rolled back is not undone once more by who looked at the job before. (Its steps were passed over, and the rest was
// undone again, behind job_rolled_back.)
func TestRollback_by_who_comes_late(t *testing.T) {
	var l ledger
	p := newPool(t, does(script{undo: func(_ context.Context, _ int, done Done) error { l.note("undone"); return nil }}, Settings{}), Options{})
	p.run("do", "a", 1)
	before, does, err := p.known("a")
	require.NoError(t, err)
	_, err = p.RollBack(t.Context(), "a", "why")
	require.NoError(t, err)
	require.ErrorIs(t, p.rollBackByPlan(t.Context(), before, "why"), statemachine.ErrTransition)
	late, err := p.claimed(before, does)
	require.NoError(t, err)
	require.ErrorIs(t, p.rollBack(t.Context(), late, "why"), statemachine.ErrTransition)
	p.leave(late, nil)
	p.hands.Done()
	require.Equal(t, []string{"undone"}, l.all())
}

// Which steps there were is told at the end, though all were undone by a process that died right before it.
func TestRollback_tells_of_steps_that_were_undone_before(t *testing.T) {
	var l ledger
	p := newPool(t, does(script{
		execute: func(ctx context.Context, n int) (int, error) { return Step(ctx, "one", is(n)) },
		undo:    func(_ context.Context, _ int, done Done) error { l.note("%q %q", done.Step, done.Undone); return nil },
	}, Settings{}), Options{})
	p.run("do", "a", 1)
	_, err := p.engine.UndoStep(t.Context(), "a", "one")
	require.NoError(t, err)
	_, err = p.RollBack(t.Context(), "a", "why")
	require.NoError(t, err)
	require.Equal(t, []string{`"" ["one"]`}, l.all())
}

// That what has ended is to be undone is in the log before anything is undone, and once. An error leaves it so, in this process
// and for the next one's plan. (A job that had completed was in no plan.)
func TestRollBack_says_so_first(t *testing.T) {
	var l ledger
	x := trip(&l)
	var p *pool
	undo, broken := x.undo, true
	x.undo = func(ctx context.Context, n int, done Done) error {
		job, _ := p.engine.Job("a")
		require.True(t, job.RollingBack)
		if done.Step == "flight" && broken {
			return errBroken
		}
		return undo(ctx, n, done)
	}
	reg := does(x, Settings{KeepFailed: true})
	p = newPool(t, reg, Options{})
	require.Equal(t, statemachine.Completed, p.run("do", "a", 1).State)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := p.RollBack(ended, "a", "why")
	require.ErrorIs(t, err, context.Canceled)
	require.Len(t, p.story("a"), 6, "nothing was done, and nothing is going to be")
	for range 2 {
		_, err := p.RollBack(t.Context(), "a", "why")
		require.ErrorIs(t, err, errBroken)
	}
	require.Equal(t, []string{"step_undone #rollback", "step_undone room"}, p.story("a")[6:])
	wanted := func() {
		t.Helper()
		work := Capability[int, int]{reg.find("do")}
		_, err := work.Result(t.Context(), p.Runner, "a")
		require.ErrorIs(t, err, ErrNotCompleted, "it is half undone")
		_, err = work.Do(t.Context(), p.Runner, 1, Once("a"))
		require.ErrorIs(t, err, ErrNotCompleted)
	}
	wanted()
	p = p.after(reg, Options{})
	wanted()
	broken = false
	plan, err := p.Plan(t.Context())
	require.NoError(t, err)
	require.Len(t, plan.Decisions, 1)
	d := plan.Decisions[0]
	require.Equal(t, []any{recovery.ActionRollBack, "its rollback was cut short", statemachine.Completed, "flight", 1},
		[]any{d.Action, d.Reason, d.Evidence.State, d.Evidence.LastStep, d.Evidence.Steps})
	for _, want := range []recovery.Result{recovery.RolledBack, recovery.Skipped} {
		applied, err := p.Apply(t.Context(), plan)
		require.NoError(t, errors.Join(err, applied.Err()))
		require.Equal(t, want, applied.Outcomes[0].Result)
	}
	require.Equal(t, []string{"step_undone flight", "rolled_back: its rollback was cut short"}, p.story("a")[8:])
	require.Equal(t, append([]string{"flight", "room"}, undone...), l.all())
}

// A mark that somebody else has left among a job's steps is none: the work need not meet it again, and it is not undone.
func TestMarks_are_no_steps(t *testing.T) {
	var l ledger
	var p *pool
	x := trip(&l)
	book := x.execute
	x.execute = func(ctx context.Context, n int) (int, error) {
		out, err := book(ctx, n)
		if job, _ := JobOf(ctx); job.Attempts == 1 {
			_, bad := p.engine.Step(ctx, "a", "#seen by Ada", nil)
			return 0, errors.Join(err, bad, Transient(errBroken))
		}
		return out, err
	}
	synctest.Test(t, func(t *testing.T) {
		p = newPool(t, does(x, Settings{Effect: recovery.Pure}), Options{})
		job := p.run("do", "a", 1)
		require.Equal(t, []any{statemachine.Completed, 2}, []any{job.State, job.Steps}, "%s", job)
		_, err := p.RollBack(t.Context(), "a", "why")
		require.NoError(t, err)
		require.Equal(t, append([]string{"flight", "room"}, undone...), l.all())
	})
}
