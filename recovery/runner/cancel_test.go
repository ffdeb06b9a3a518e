package runner

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/recovery/crashtest"
	"github.com/jobwal/jobwal/statemachine"
)

// A cancelled job ends as failed with its reason, wherever it was, unless its work was done all the same. What it did is undone.
func TestCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := does(script{
			execute: func(ctx context.Context, n int) (int, error) {
				_, err := until(ctx, n)
				switch {
				case !errors.Is(context.Cause(ctx), ErrCancelled):
					return 0, errors.New("its cause is not to be seen")
				case n == 2:
					return n, nil
				case n == 3:
					return 0, errBroken
				}
				return 0, err
			},
			undo: func(context.Context, int, Done) error { return nil },
		}, Settings{Effect: recovery.Pure, Retry: Backoff{First: time.Hour}})
		p := newPool(t, reg, Options{Workers: 3})
		cancel := func(id string) statemachine.Job {
			job, err := p.Cancel(t.Context(), id, "enough")
			require.NoError(t, err)
			require.Equal(t, job, p.wait(id))
			return job
		}
		for n, id := range []string{"", "at work", "done", "angry"} {
			if n > 0 {
				p.submit("do", id, n)
			}
		}
		synctest.Wait()
		p.submit("do", "queued", 1)
		p.submit("do", "held", 1)
		require.Equal(t, statemachine.Failed, cancel("queued").State)
		require.Equal(t, []string{"submitted", "failed: cancelled: enough"}, p.story("queued"))
		_, err := p.engine.Hold(t.Context(), "held", "why")
		require.NoError(t, err)
		require.Equal(t, statemachine.Failed, cancel("held").State)

		require.Equal(t, statemachine.RolledBack, cancel("at work").State)
		require.Equal(t, []string{"submitted", "validated", "started", "failed: cancelled: enough",
			"step_undone #rollback", "rolled_back: undone after its failure"}, p.story("at work"))
		require.Equal(t, statemachine.Completed, cancel("done").State)
		require.Equal(t, "cancelled: enough: broken", cancel("angry").Error)

		_, err = p.Cancel(t.Context(), "done", "enough")
		require.ErrorIs(t, err, statemachine.ErrTransition)
		_, err = p.Cancel(t.Context(), "nobody", "enough")
		require.ErrorIs(t, err, statemachine.ErrUnknownJob)
		require.Zero(t, p.waiting)
		require.Empty(t, p.tasks)
	})
}

// One that waits for its next attempt has begun: it fails, is undone, and does not come back.
func TestCancel_of_a_job_that_waits_for_a_retry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := does(script{
			execute: func(context.Context, int) (int, error) { return 0, errBroken },
			undo:    func(context.Context, int, Done) error { return nil },
		}, Settings{Effect: recovery.Pure, Retry: RetryFunc(func(error, int) (time.Duration, bool) { return time.Hour, true })})
		p := newPool(t, reg, Options{})
		p.submit("do", "a", 1)
		synctest.Wait()
		require.Equal(t, 1, p.waiting)
		job, err := p.Cancel(t.Context(), "a", "")
		require.NoError(t, err)
		require.Equal(t, statemachine.RolledBack, job.State)
		require.Equal(t, "cancelled: no reason was given", job.Error)
		time.Sleep(2 * time.Hour)
		require.Equal(t, []string{"submitted", "validated", "started", "failed: cancelled: no reason was given",
			"step_undone #rollback", "rolled_back: undone after its failure"}, p.story("a"))
		require.Zero(t, p.waiting)
	})
}

// The wait of who cancels may end before the work does; the cancellation stands.
func TestCancel_outlives_its_context(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, does(script{execute: func(ctx context.Context, n int) (int, error) {
			time.Sleep(time.Minute)
			return 0, ctx.Err()
		}}, Settings{}), Options{})
		p.submit("do", "a", 1)
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := p.Cancel(ctx, "a", "enough")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, "cancelled: enough", p.wait("a").Error)
		require.Contains(t, p.log.String(), "work does not return")
	})
}

// Jobs that were left behind, or whose capability is gone, can be cancelled too.
func TestCancel_of_what_the_runner_does_not_have(t *testing.T) {
	p := newPool(t, NewRegistry(), Options{})
	_, err := p.engine.Do(t.Context(), recovery.Submit(recovery.Submission{JobID: "a", Capability: "gone"}), recovery.Validate("a"), recovery.Start("a"), recovery.Hold("a", "why"))
	require.NoError(t, err)
	job, err := p.Cancel(t.Context(), "a", "enough")
	require.NoError(t, err)
	require.Equal(t, []any{statemachine.Failed, "cancelled: enough"}, []any{job.State, job.Error})
}

// A job that somebody holds while it is at work may still end; if it is to be undone, it is.
func TestHeld_while_at_work(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		goOn := make(chan struct{})
		reg := does(script{
			execute: func(_ context.Context, n int) (int, error) {
				<-goOn
				if n == 0 {
					return 0, errBroken
				}
				return n, nil
			},
			undo: func(context.Context, int, Done) error { return nil },
		}, Settings{})
		p := newPool(t, reg, Options{})
		p.submit("do", "well", 1)
		p.submit("do", "ill", 0)
		synctest.Wait()
		for _, id := range []string{"well", "ill"} {
			_, err := p.engine.Hold(t.Context(), id, "why")
			require.NoError(t, err)
			_, err = p.Release(t.Context(), id, "go on")
			require.ErrorIs(t, err, ErrBusy)
		}
		close(goOn)
		require.Equal(t, statemachine.Completed, p.wait("well").State)
		require.Equal(t, statemachine.RolledBack, p.wait("ill").State)
		require.Equal(t, []string{"submitted", "validated", "started", "held: why", "failed: broken",
			"step_undone #rollback", "rolled_back: undone after its failure"}, p.story("ill"))
	})
}

// Jobs that were cancelled before a worker came are not kept for it.
func TestCancel_of_many_that_wait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, does(script{execute: until}, Settings{Timeout: time.Second}), Options{Workers: 1, Queue: 3})
		p.submit("do", "at work", 1)
		synctest.Wait()
		for range 100 {
			job, err := p.Submit(t.Context(), "do", 1)
			require.NoError(t, err)
			_, err = p.Cancel(t.Context(), job.ID, "")
			require.NoError(t, err)
		}
		require.LessOrEqual(t, len(p.ready.tasks), 3)
		require.Zero(t, p.waiting)
	})
}

// A cancellation is not lost while a plan asks whether the work has happened, nor when the answer has no end.
func TestCancel_while_it_is_asked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := poolOn(t, left(t), all(script{reconcile: func(ctx context.Context, _ int) (Found[int], error) {
			<-ctx.Done()
			return Found[int]{}, context.Cause(ctx)
		}}), Options{})
		applied := make(chan recovery.Applied)
		go func() { a, _ := p.Recover(t.Context()); applied <- a }()
		synctest.Wait()
		job, err := p.Cancel(t.Context(), "reconcilable", "enough")
		require.NoError(t, err)
		require.Equal(t, "cancelled: enough", job.Error)
		require.Error(t, (<-applied).Err())
	})
}

// ctx ends the wait for the end of a job that nobody works on, too.
func TestCancel_waits_no_longer_than_it_is_to(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, does(script{
			execute: func(context.Context, int) (int, error) { return 0, errBroken },
			undo:    func(context.Context, int, Done) error { time.Sleep(time.Hour); return nil },
		}, Settings{Effect: recovery.Pure, Retry: RetryFunc(func(error, int) (time.Duration, bool) { return time.Hour, true })}), Options{})
		p.submit("do", "a", 1)
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		job, err := p.Cancel(ctx, "a", "enough")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.Equal(t, statemachine.Failed, job.State)
		require.Equal(t, statemachine.RolledBack, p.wait("a").State)
	})
}

// Of a job that is released and cancelled at the same time both come true: it was released, and it fails. (The cancellation came
// too late, and the release found it at work: the job was nobody's.)
func TestCancel_beside_Release(t *testing.T) {
	for _, after := range []time.Duration{0, time.Millisecond, 500 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			e := engineOnMem(t, &crashtest.MemLog{}, &slowLog{})
			defer e.Close()
			_, err := e.Do(t.Context(), recovery.Submit(recovery.Submission{JobID: "a", Capability: "do", Args: 1}), recovery.Hold("a", "why"))
			require.NoError(t, err)
			p := poolOf(t, e, does(script{execute: until}, Settings{}), Options{})
			released := make(chan error)
			go func() { _, err := p.Release(context.Background(), "a", "so"); released <- err }()
			time.Sleep(after)
			job, err := p.Cancel(t.Context(), "a", "enough")
			require.NoError(t, err)
			require.Equal(t, "cancelled: enough", job.Error)
			if after > 0 {
				require.NoError(t, <-released)
			} else {
				<-released
			}
			require.Equal(t, statemachine.Failed, p.wait("a").State)
			require.NoError(t, p.Drain(t.Context()))
		})
	}
}

// A held job that somebody has for a moment, and lets go of as it was, is cancelled all the same.
func TestCancel_of_a_held_job_that_somebody_has(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, does(script{}, Settings{}), Options{})
		held, err := p.engine.Do(t.Context(), recovery.Submit(recovery.Submission{JobID: "a", Capability: "do", Args: 1}), recovery.Hold("a", "why"))
		require.NoError(t, err)
		other, err := p.claimed(held[1], p.reg.find("do"))
		require.NoError(t, err)
		cancelled := make(chan statemachine.Job)
		go func() { job, _ := p.Cancel(context.Background(), "a", "enough"); cancelled <- job }()
		synctest.Wait()
		p.leave(other, nil)
		p.hands.Done()
		require.Equal(t, "cancelled: enough", (<-cancelled).Error)
	})
}
