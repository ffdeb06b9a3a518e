package runner

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/recovery"
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
		require.Equal(t, []string{"submitted", "validated", "started", "step #rollback", "failed: cancelled: enough",
			"rolled_back: undone after its failure"}, p.story("at work"))
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
		require.Equal(t, []string{"submitted", "validated", "started", "step #rollback", "failed: cancelled: no reason was given",
			"rolled_back: undone after its failure"}, p.story("a"))
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
		require.Equal(t, []string{"submitted", "validated", "started", "held: why", "released: broken", "step #rollback",
			"failed: broken", "rolled_back: undone after its failure"}, p.story("ill"))
	})
}
