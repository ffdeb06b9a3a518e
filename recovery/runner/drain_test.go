package runner

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/statemachine"
)

// What is at work comes to its end, its rollback included; what waits stays in the log for the next opening, which takes it up.
func TestDrain_lets_what_is_at_work_end(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := script{
			execute: func(ctx context.Context, n int) (int, error) {
				time.Sleep(time.Minute)
				if job, _ := JobOf(ctx); n == 0 && job.Attempts == 1 {
					return 0, errBroken
				}
				return n, ctx.Err()
			},
			undo: func(context.Context, int, Done) error { time.Sleep(time.Minute); return nil },
		}
		p := newPool(t, does(x, Settings{}), Options{Workers: 2})
		for n, id := range []string{"fails", "ends", "waits"} {
			p.submit("do", id, n)
		}
		synctest.Wait()
		waited := make(chan error)
		go func() { _, err := p.Wait(context.Background(), "waits"); waited <- err }()
		synctest.Wait()
		began := time.Now()
		require.NoError(t, p.Drain(t.Context()))
		require.Equal(t, 2*time.Minute, time.Since(began))
		require.ErrorIs(t, <-waited, ErrDraining)
		require.Equal(t, []statemachine.State{statemachine.RolledBack, statemachine.Completed, statemachine.Submitted}, states(p.engine, "fails", "ends", "waits"))
		_, err := p.Submit(t.Context(), "do", 1)
		require.ErrorIs(t, err, ErrDraining)
		_, err = p.RollBack(t.Context(), "ends", "why")
		require.ErrorIs(t, err, ErrDraining)
		_, err = p.Cancel(t.Context(), "waits", "why")
		require.ErrorIs(t, err, ErrDraining)
		require.NoError(t, p.Drain(t.Context()), "again")

		p = p.after(does(x, Settings{}), Options{})
		_, err = p.Recover(t.Context())
		require.NoError(t, err)
		require.Equal(t, statemachine.Completed, p.wait("waits").State)
	})
}

// When there is no more time the work is told, and none of it fails. What did not come back is listed.
func TestDrain_when_time_is_over(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := does(script{
			execute: func(ctx context.Context, n int) (int, error) {
				_, err := until(ctx, n)
				if !errors.Is(context.Cause(ctx), ErrDraining) {
					return 0, errors.New("its cause is not to be seen")
				}
				switch n {
				case 1:
					return 0, err
				case 2:
					return 0, errBroken
				case 3:
					return n, nil
				}
				time.Sleep(time.Hour)
				return n, nil
			},
			undo: func(context.Context, int, Done) error { return nil },
		}, Settings{Effect: recovery.Pure, Retry: Backoff{}})
		p := newPool(t, reg, Options{Workers: 5, Grace: time.Minute})
		ids := []string{"stops", "breaks", "ends", "goes on"}
		for n, id := range ids {
			p.submit("do", id, n+1)
		}
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		err := p.Drain(ctx)
		require.Equal(t, time.Second+time.Minute, time.Since(began))
		var drained *DrainError
		require.ErrorAs(t, err, &drained)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, []string{"breaks", "stops"}, drained.Interrupted)
		require.Equal(t, []string{"goes on"}, drained.Running)
		require.EqualError(t, err, "runner: drained in part: context deadline exceeded; interrupted: breaks stops; still running: goes on")
		require.Equal(t, []statemachine.State{statemachine.Started, statemachine.Started, statemachine.Completed, statemachine.Started}, states(p.engine, ids...))

		next := p.after(does(script{}, Settings{Effect: recovery.Pure}), Options{})
		applied, err := next.Recover(t.Context())
		require.NoError(t, err)
		require.Len(t, applied.Outcomes, 3)
		for _, id := range ids {
			require.Equal(t, statemachine.Completed, next.wait(id).State)
		}
		require.NoError(t, p.Drain(t.Context()), "the last one has come back")
		require.Equal(t, statemachine.Completed, states(p.engine, "goes on")[0])
	})
}

// A job that waits for its next attempt is started in the log, and stays so.
func TestDrain_leaves_what_waits_for_a_retry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := does(script{execute: func(context.Context, int) (int, error) { return 0, Transient(errBroken) }}, Settings{Retry: OnIs(ErrTransient, RetryFunc(
			func(error, int) (time.Duration, bool) { return time.Hour, true }))})
		p := newPool(t, reg, Options{})
		p.submit("do", "a", 1)
		synctest.Wait()
		began := time.Now()
		require.NoError(t, p.Drain(t.Context()))
		require.Zero(t, time.Since(began))
		require.Equal(t, []string{"submitted", "validated", "started"}, p.story("a"))
		_, err := p.Wait(t.Context(), "a")
		require.ErrorIs(t, err, ErrNotRunning)
		require.Empty(t, p.tasks)
	})
}

// A rollback that there is no time for is still to be done, and the next opening's plan has it.
func TestDrain_cuts_a_rollback_short(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		undo := func(ctx context.Context, n int, _ Done) error { _, err := until(ctx, n); return err }
		fails := func(context.Context, int) (int, error) { return 0, errBroken }
		p := newPool(t, does(script{execute: fails, undo: undo}, Settings{}), Options{})
		p.submit("do", "a", 1)
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var drained *DrainError
		require.ErrorAs(t, p.Drain(ctx), &drained)
		require.Equal(t, []string{"a"}, drained.Interrupted)
		require.Equal(t, []string{"submitted", "validated", "started", "failed: broken", "step_undone #rollback"}, p.story("a"))
		next := p.after(does(script{undo: func(context.Context, int, Done) error { return nil }}, Settings{}), Options{})
		applied, err := next.Recover(t.Context())
		require.NoError(t, errors.Join(err, applied.Err()))
		require.Equal(t, statemachine.RolledBack, states(next.engine, "a")[0])
	})
}

// Work that fails because the runner takes no more has not failed: its process ends. (It failed, and was undone.)
func TestDrain_fails_no_work_that_submits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p *pool
		x := script{
			execute: func(ctx context.Context, n int) (int, error) {
				time.Sleep(time.Minute)
				if n == 0 {
					return n, nil
				}
				_, err := p.Submit(ctx, "do", 0)
				return n, err
			},
			undo: func(context.Context, int, Done) error { return nil },
		}
		p = newPool(t, does(x, Settings{Effect: recovery.Pure}), Options{})
		p.submit("do", "a", 1)
		synctest.Wait()
		var drained *DrainError
		require.ErrorAs(t, p.Drain(t.Context()), &drained)
		require.Equal(t, []string{"a"}, drained.Interrupted)
		require.Equal(t, []statemachine.State{statemachine.Started}, states(p.engine, "a"))
		p = p.after(does(x, Settings{Effect: recovery.Pure}), Options{})
		_, err := p.Recover(t.Context())
		require.NoError(t, err)
		require.Equal(t, statemachine.Completed, p.wait("a").State)
	})
}

// So is one that somebody, or a plan, wanted of a job that had ended: Drain lists it. (It returned nil.)
func TestDrain_lists_a_rollback_that_was_wanted(t *testing.T) {
	for _, byPlan := range []bool{false, true} {
		t.Run(fmt.Sprint("by a plan=", byPlan), func(t *testing.T) {
			begun := make(chan struct{})
			reg := does(script{
				execute: func(_ context.Context, n int) (int, error) { return n, nil },
				undo:    func(ctx context.Context, n int, _ Done) error { close(begun); _, err := until(ctx, n); return err },
			}, Settings{KeepFailed: true})
			p := newPool(t, reg, Options{})
			require.Equal(t, statemachine.Completed, p.run("do", "a", 1).State)
			undo := func() error { _, err := p.RollBack(context.Background(), "a", "why"); return err }
			if byPlan {
				_, err := p.engine.UndoStep(t.Context(), "a", toUndo)
				require.NoError(t, err)
				p = p.after(reg, Options{})
				undo = func() error {
					applied, err := p.Recover(context.Background())
					return errors.Join(err, applied.Err())
				}
			}
			cut := make(chan error)
			go func() { cut <- undo() }()
			<-begun
			over, cancel := context.WithCancel(t.Context())
			cancel()
			var left *DrainError
			require.ErrorAs(t, p.Drain(over), &left)
			require.Equal(t, []string{"a"}, left.Interrupted)
			require.ErrorIs(t, <-cut, ErrDraining)
		})
	}
}

// When the time is over before the steps are read, that is why they could not be, and nothing says that they are to be undone.
func TestDrain_before_a_rollback_knows_the_steps(t *testing.T) {
	p := newPool(t, does(trip(new(ledger)), Settings{KeepFailed: true}), Options{})
	require.Equal(t, statemachine.Completed, p.run("do", "a", 1).State)
	claimed, err := p.claim("a")
	require.NoError(t, err)
	p.Runner.end(ErrDraining)
	require.ErrorIs(t, p.takeBack(t.Context(), claimed, "why"), ErrDraining)
	require.ErrorIs(t, claimed.err, ErrDraining)
	job, _ := p.engine.Job("a")
	require.False(t, job.RollingBack)
}
