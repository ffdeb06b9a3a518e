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

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/recovery/crashtest"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// left is a disk on which a process that died has left a started job of each effect, and one that has not begun.
func left(t *testing.T, more ...recovery.Command) *crashfs.FS {
	disk := crashfs.New()
	e := engineOn(t, disk)
	do := func(commands ...recovery.Command) {
		_, err := e.Do(context.Background(), commands...)
		require.NoError(t, err)
	}
	for _, id := range []string{"pure", "reconcilable", "irreversible", "gone"} {
		do(recovery.Submit(recovery.Submission{JobID: id, Capability: id, Args: 7}), recovery.Validate(id), recovery.Start(id))
	}
	do(recovery.Submit(recovery.Submission{JobID: "submitted", Capability: "irreversible", Args: 7}))
	if len(more) > 0 {
		do(more...)
	}
	return disk.Crash(crashfs.SyncedOnly)
}

// all is a registry with a capability of each effect, of the same name.
func all(x script) *Registry {
	reg := NewRegistry()
	Add(reg, "pure", x, Settings{Effect: recovery.Pure, KeepFailed: true})
	Add(reg, "reconcilable", x, Settings{Effect: recovery.Reconcilable, KeepFailed: true})
	Add(reg, "irreversible", x, Settings{Effect: recovery.Irreversible, KeepFailed: true})
	return reg
}

func TestRecover_does_what_is_safe(t *testing.T) {
	for found, want := range map[string]statemachine.State{"happened": statemachine.Completed, "did not": statemachine.Completed, "can't tell": statemachine.Started} {
		var l ledger
		p := poolOn(t, left(t), all(script{
			execute: func(ctx context.Context, n int) (int, error) {
				job, _ := JobOf(ctx)
				l.note("%s", job.ID)
				return n, nil
			},
			reconcile: func(context.Context, int) (Found[int], error) {
				return map[string]Found[int]{"happened": Happened(8), "did not": DidNotHappen[int]()}[found], nil
			},
		}), Options{Workers: 1})
		applied, err := p.Recover(t.Context())
		require.NoError(t, errors.Join(err, applied.Err()))
		require.Len(t, applied.Outcomes, 5)
		for _, id := range []string{"pure", "submitted"} {
			require.Equal(t, statemachine.Completed, p.wait(id).State)
		}
		require.Equal(t, want, p.wait("reconcilable").State)
		require.Equal(t, []string{"submitted", "validated", "started", "resumed", "completed"}, p.story("pure"))
		require.Contains(t, p.wait("irreversible").Held, "whether it happened is unknown")
		require.Equal(t, "no capability of that name is registered", p.wait("gone").Held)
		require.Equal(t, found == "did not", slices.Contains(l.all(), "reconcilable"))
		require.False(t, slices.Contains(l.all(), "irreversible"))

		_, err = p.Release(t.Context(), "irreversible", "Ada: it did not happen")
		require.NoError(t, err)
		require.Equal(t, statemachine.Completed, p.wait("irreversible").State)
		require.Equal(t, []string{"resumed", "completed"}, p.story("irreversible")[5:])
		_, err = p.Release(t.Context(), "gone", "Ada: go on")
		require.ErrorIs(t, err, ErrUnknownCapability)
		plan, err := p.Plan(t.Context())
		require.NoError(t, err)
		require.Empty(t, plan.Decisions)
	}
}

// A policy of the caller's comes first, and what it has no opinion about is done as always.
func TestRecover_by_a_policy(t *testing.T) {
	p := poolOn(t, left(t), all(script{}), Options{})
	_, err := p.Recover(t.Context(), recovery.ByCapability(map[string]recovery.Policy{
		"gone": recovery.PolicyFunc(func(recovery.Evidence) (recovery.Action, string, bool) {
			return recovery.ActionFail, "no longer sold", true
		}),
	}))
	require.NoError(t, err)
	require.Equal(t, "no longer sold", p.wait("gone").Error)
	require.Equal(t, statemachine.Completed, p.wait("pure").State)
}

// Jobs that only wait when the process dies have had no attempt: a job that kills the process does not get its neighbours held.
func TestRecover_counts_no_attempt_of_what_waits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := crashfs.New()
		e := engineOn(t, disk)
		for i := range 5 {
			id := fmt.Sprint("job-", i)
			_, err := e.Do(t.Context(), recovery.Submit(recovery.Submission{JobID: id, Capability: "do", Args: i}), recovery.Validate(id), recovery.Start(id))
			require.NoError(t, err)
		}
		disk = disk.Crash(crashfs.SyncedOnly)
		for range 20 {
			p := poolOn(t, disk, does(script{execute: until}, Settings{Effect: recovery.Pure}), Options{Workers: 1, Queue: 3, MaxAttempts: 4})
			go p.Recover(t.Context())
			synctest.Wait()
			disk = p.disk.Crash(crashfs.SyncedOnly)
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			_ = p.Drain(ctx)
		}
		p := poolOn(t, disk, does(script{}, Settings{Effect: recovery.Pure}), Options{MaxAttempts: 4})
		held := 0
		for i := range 5 {
			job, _ := p.engine.Job(fmt.Sprint("job-", i))
			require.LessOrEqual(t, job.Attempts, 4)
			if job.Held != "" {
				held++
				require.Equal(t, 4, job.Attempts, "each one held has had its attempts")
			}
		}
		require.Equal(t, 5, held, "one after the other")
	})
}

func TestPolicy_limits_attempts(t *testing.T) {
	for _, most := range []int{1, 2, 5, 12, -1} {
		p := newPool(t, all(script{}), Options{MaxAttempts: most})
		for attempts := range 20 {
			ev := recovery.Evidence{JobID: "a", Capability: "pure", Effect: recovery.Pure, State: statemachine.Started, Attempts: attempts}
			action, reason, ok := p.Policy().Decide(ev)
			require.True(t, ok)
			require.NotEmpty(t, reason)
			require.Equal(t, most > 0 && attempts >= most, action == recovery.ActionHold, "%d of %d", attempts, most)
		}
	}
}

// A plan may be applied again, by the same runner or by two at once: no job has two attempts of it.
func TestApply_takes_no_job_twice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		goOn := make(chan struct{})
		p := poolOn(t, left(t), all(script{execute: func(_ context.Context, n int) (int, error) { <-goOn; return n, nil }}), Options{Workers: 1})
		plan, err := p.Plan(t.Context())
		require.NoError(t, err)
		for range 3 {
			applied, err := p.Apply(t.Context(), plan)
			require.NoError(t, errors.Join(err, applied.Err()))
			synctest.Wait()
		}
		close(goOn)
		synctest.Wait()
		for _, id := range []string{"pure", "submitted"} {
			require.Equal(t, statemachine.Completed, p.wait(id).State)
		}
		require.Equal(t, []string{"submitted", "validated", "started", "resumed", "completed"}, p.story("pure"))
		require.Zero(t, p.waiting)
	})
}

// Whoever drains while a plan is applied is not waited for: what had no place is left as it was.
func TestApply_and_Drain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := poolOn(t, left(t), all(script{execute: until}), Options{Workers: 1, Queue: 1})
		done := make(chan recovery.Applied)
		p.submit("pure", "at work", 1)
		synctest.Wait()
		p.submit("pure", "queued", 1)
		go func() {
			applied, err := p.Recover(context.Background())
			if err != nil {
				t.Error(err)
			}
			done <- applied
		}()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.Error(t, p.Drain(ctx))
		require.ErrorIs(t, (<-done).Err(), ErrDraining)
		require.Equal(t, []string{"submitted", "validated", "started"}, p.story("pure"))
	})
}

// The process dies before its first undo, with a job that says that it is to be undone; one that does not say so is kept.
func TestPlan_has_rollbacks_that_were_cut_short(t *testing.T) {
	job := func(id string, commands ...recovery.Command) []recovery.Command {
		return append([]recovery.Command{recovery.Submit(recovery.Submission{JobID: id, Capability: "do", Args: 1}), recovery.Validate(id), recovery.Start(id)}, commands...)
	}
	commands := append(job("cut short", recovery.Step("cut short", "one", 1), recovery.Fail("cut short", errBroken), recovery.UndoStep("cut short", toUndo)),
		job("kept", recovery.Step("kept", "one", 1), recovery.Fail("kept", errBroken))...)
	disk := left(t, commands...)
	image := disk.Crash(crashfs.SyncedOnly)
	p := poolOn(t, disk, does(script{undo: func(context.Context, int, Done) error { return nil }}, Settings{}), Options{})
	plan, err := p.Plan(t.Context())
	require.NoError(t, err)
	require.Len(t, plan.Decisions, 6)
	d := plan.Decisions[5]
	require.Equal(t, []any{"cut short", recovery.ActionRollBack, "its rollback was cut short", "one"},
		[]any{d.JobID, d.Action, d.Reason, d.Evidence.LastStep})
	applied, err := p.Recover(t.Context())
	require.NoError(t, errors.Join(err, applied.Err()))
	require.Equal(t, []statemachine.State{statemachine.RolledBack, statemachine.Failed}, states(p.engine, "cut short", "kept"))

	for undoes, reg := range map[bool]*Registry{
		true:  does(script{undo: func(context.Context, int, Done) error { return nil }}, Settings{KeepFailed: true}),
		false: NewRegistry(),
	} {
		p = poolOn(t, image.Crash(crashfs.SyncedOnly), reg, Options{})
		plan, err = p.Plan(t.Context())
		require.NoError(t, err)
		require.Equal(t, undoes, plan.Decision("cut short") != nil, "what the log says was decided then")
	}
}

// A plan that would fail a job to undo it, and can't, is refused before it does anything.
func TestApply_refuses_to_roll_back_what_cannot_be_undone(t *testing.T) {
	reg := all(script{})
	Add(reg, "gone", Func[int, int](func(_ context.Context, n int) (int, error) { return n, nil }), Settings{})
	p := poolOn(t, left(t), reg, Options{})
	plan, err := p.Plan(t.Context())
	require.NoError(t, err)
	plan.Decision("gone").Action = recovery.ActionRollBack
	_, err = p.Apply(t.Context(), plan)
	require.ErrorIs(t, err, wal.ErrInvalid)
	require.ErrorContains(t, err, "no Undo")
	require.Equal(t, []string{"submitted", "validated", "started"}, p.story("pure"))
	p = poolOn(t, left(t), all(script{}), Options{})
	plan, err = p.Plan(t.Context())
	require.NoError(t, err)
	plan.Decision("gone").Action = recovery.ActionRollBack
	_, err = p.Apply(t.Context(), plan)
	require.ErrorIs(t, err, wal.ErrInvalid)
}

// Args that do not fit any more are nothing that could be asked with; what can't be read is no answer.
func TestRecover_holds_what_cannot_be_asked(t *testing.T) {
	reg := NewRegistry()
	Add(reg, "reconcilable", reconcilesText{}, Settings{Effect: recovery.Reconcilable})
	p := poolOn(t, left(t), reg, Options{})
	_, err := p.Recover(t.Context())
	require.NoError(t, err)
	require.Contains(t, p.wait("reconcilable").Held, "args do not fit")
}

type reconcilesText struct{}

func (reconcilesText) Execute(context.Context, string) (int, error) { return 0, nil }
func (reconcilesText) Reconcile(context.Context, string) (Found[int], error) {
	return DidNotHappen[int](), nil
}

// Whatever a Reconcile says, the job does not stay between all chairs: what does not fit into the log is said in other words.
func TestReconcile_says_more_than_fits(t *testing.T) {
	long := strings.Repeat("x", wal.DefaultMaxEventBytes)
	for name, c := range map[string]struct {
		found Found[string]
		held  string
	}{
		"can't tell": {CantTell[string](long), "can't be told"},
		"happened":   {Happened(long), "it happened, and what came of it can't be recorded"},
	} {
		t.Run(name, func(t *testing.T) {
			reg := NewRegistry()
			Add(reg, "do", told{c.found}, Settings{Effect: recovery.Reconcilable, Retry: Backoff{First: 1}})
			p := newPool(t, reg, Options{})
			require.Contains(t, p.run("do", "a", 1).Held, c.held)

			disk := crashfs.New()
			_, err := engineOn(t, disk).Do(t.Context(), recovery.Submit(recovery.Submission{JobID: "a", Capability: "do", Args: 1}), recovery.Validate("a"), recovery.Start("a"))
			require.NoError(t, err)
			p = poolOn(t, disk.Crash(crashfs.SyncedOnly), reg, Options{})
			applied, err := p.Recover(t.Context())
			require.NoError(t, errors.Join(err, applied.Err()))
			require.Contains(t, p.wait("a").Held, c.held)
		})
	}
}

type told struct{ found Found[string] }

func (told) Execute(context.Context, int) (string, error)            { return "", errBroken }
func (x told) Reconcile(context.Context, int) (Found[string], error) { return x.found, nil }

// blindLog can't read what lies before a place.
type blindLog struct {
	recovery.Log
	below uint64
}

func (l *blindLog) At(ctx context.Context, seq uint64) (wal.Event, error) {
	if seq < l.below {
		return wal.Event{}, &wal.CorruptError{Reason: "the sun was too strong"}
	}
	return l.Log.At(ctx, seq)
}

// A job whose args or steps can't be read is held, for somebody to see. (It was let go of, at each opening anew.)
func TestJob_that_cannot_be_read(t *testing.T) {
	for _, step := range []bool{false, true} {
		end, err := (&crashtest.MemLog{}).Open(t.Context())
		require.NoError(t, err)
		log := &blindLog{Log: end}
		e, err := recovery.OpenLog(t.Context(), log, recovery.Options{})
		require.NoError(t, err)
		t.Cleanup(func() { _ = e.Close() })
		s := recovery.Submission{JobID: "a", Capability: "do"}
		commands := []recovery.Command{recovery.Validate("a"), recovery.Start("a"), recovery.Step("a", "one", 1), recovery.Hold("a", "why")}
		if !step {
			commands, s.Args = []recovery.Command{recovery.Hold("a", "why")}, strings.Repeat("x", 2000)
		}
		_, err = e.Do(t.Context(), append([]recovery.Command{recovery.Submit(s)}, commands...)...)
		require.NoError(t, err)
		log.below = 100
		var l ledger
		p := poolOf(t, e, does(script{execute: func(context.Context, int) (int, error) { l.note("done"); return 0, nil }}, Settings{Effect: recovery.Pure}), Options{})
		_, err = p.Release(t.Context(), "a", "so")
		require.NoError(t, err)
		require.Contains(t, p.wait("a").Held, "the sun was too strong")
		require.Empty(t, l.all())
	}
}

// What a plan says of a rollback that was cut short, wherever it was, costs no more than the end of the job's story.
func TestPlan_reads_no_more_of_an_ended_job_than_its_end(t *testing.T) {
	end, err := (&crashtest.MemLog{}).Open(t.Context())
	require.NoError(t, err)
	log := &blindLog{Log: end}
	e, err := recovery.OpenLog(t.Context(), log, recovery.Options{})
	require.NoError(t, err)
	begin := []recovery.Command{recovery.Submit(recovery.Submission{JobID: "a", Capability: "do", Args: 1}), recovery.Validate("a"), recovery.Start("a"),
		recovery.Step("a", "one", 1), recovery.Step("a", "two", 2)}
	_, err = e.Do(t.Context(), begin...)
	require.NoError(t, err)
	t.Cleanup(func() { _ = e.Close() })
	log.below = 4
	p := poolOf(t, e, does(script{undo: func(context.Context, int, Done) error { return nil }}, Settings{}), Options{})
	for _, c := range []struct {
		commands []recovery.Command
		want     string
	}{
		{[]recovery.Command{recovery.Complete("a", 7), recovery.UndoStep("a", toUndo)}, "job_step_undone 2 two"},
		{[]recovery.Command{recovery.UndoStep("a", "two")}, "job_step_undone 1 one"},
		{[]recovery.Command{recovery.UndoStep("a", "one")}, "job_step_undone 0 "},
	} {
		_, err := e.Do(t.Context(), c.commands...)
		require.NoError(t, err)
		job, _ := e.Job("a")
		ev := p.cutShort(t.Context(), job, recovery.Pure).Evidence
		require.Equal(t, c.want, fmt.Sprint(ev.LastEvent, " ", ev.Steps, " ", ev.LastStep))
		require.Empty(t, ev.Problem)
	}
}
