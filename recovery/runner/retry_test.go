package runner

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/statemachine"
)

// A wait is never longer than it may be, nor negative, whatever the fields are; and there are never more attempts.
func TestBackoff_stays_within_its_bounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := Backoff{
			First:    time.Duration(rapid.Int64Range(0, math.MaxInt64).Draw(t, "first")),
			Most:     time.Duration(rapid.Int64Range(0, math.MaxInt64).Draw(t, "most")),
			Factor:   rapid.Float64Range(0, 1e300).Draw(t, "factor"),
			Attempts: rapid.IntRange(-1, 50).Draw(t, "attempts"),
		}
		attempt := rapid.IntRange(1, 10_000).Draw(t, "attempt")
		wait, again := b.Retry(errBroken, attempt)
		most := b.Attempts
		if most == 0 {
			most = 5
		}
		require.Equal(t, most < 0 || attempt < most, again)
		require.GreaterOrEqual(t, wait, time.Duration(0))
		longest := b.longest(attempt)
		require.LessOrEqual(t, wait, longest)
		if b.Most > 0 {
			require.LessOrEqual(t, longest, b.Most)
		}
		require.GreaterOrEqual(t, b.longest(attempt+1), longest, "waits do not get shorter")
	})
}

func TestBackoff_by_default(t *testing.T) {
	var longest []time.Duration
	for attempt := 1; ; attempt++ {
		if _, again := (Backoff{}).Retry(errBroken, attempt); !again {
			break
		}
		longest = append(longest, Backoff{}.longest(attempt))
	}
	const ms = time.Millisecond
	require.Equal(t, []time.Duration{100 * ms, 200 * ms, 400 * ms, 800 * ms}, longest)
	require.Equal(t, 30*time.Second, Backoff{}.longest(20))
	spread := map[bool]int{}
	for range 1000 {
		wait, _ := Backoff{}.Retry(errBroken, 1)
		spread[wait < 50*ms]++
	}
	require.Greater(t, min(spread[true], spread[false]), 300, "over all of the time")
}

func TestRetryPolicies_compose(t *testing.T) {
	after := func(d time.Duration) RetryPolicy {
		return RetryFunc(func(error, int) (time.Duration, bool) { return d, true })
	}
	p := FirstRetry(OnIs(errBroken, after(1)), OnError[*fs.PathError](after(2)), OnIs(ErrTransient, after(3)), NoRetry)
	for _, c := range []struct {
		err  error
		wait time.Duration
	}{
		{fmt.Errorf("more: %w", errBroken), 1}, {fmt.Errorf("more: %w", &fs.PathError{}), 2}, {Transient(errors.New("x")), 3},
		{Transient(errBroken), 1}, {errors.New("x"), 0}, {Permanent(errors.New("x")), 0},
	} {
		wait, again := p.Retry(c.err, 1)
		require.Equal(t, c.wait, wait, "%v", c.err)
		require.Equal(t, c.wait > 0, again)
	}
	require.NoError(t, Transient(nil))
	require.NoError(t, Permanent(nil))
	err := Permanent(Transient(errBroken))
	require.EqualError(t, err, "broken")
	require.ErrorIs(t, err, errBroken)
	require.ErrorIs(t, err, ErrTransient)
	require.ErrorIs(t, err, ErrPermanent)
	require.False(t, mayRetry(err, true))
}

// Which errors are followed by another attempt, by what doing the work twice means.
func TestRetry_depends_on_the_effect(t *testing.T) {
	always := Backoff{First: 1, Attempts: 3}
	for _, c := range []struct {
		effect   recovery.Effect
		policy   RetryPolicy
		err      error
		attempts int
	}{
		{recovery.Pure, nil, errBroken, 1}, {recovery.Pure, nil, Transient(errBroken), 5},
		{recovery.Pure, always, errBroken, 3}, {recovery.Idempotent, always, errBroken, 3},
		{recovery.Reconcilable, always, Transient(errBroken), 3},
		{recovery.Irreversible, always, errBroken, 1}, {recovery.Irreversible, always, Transient(errBroken), 3},
		{recovery.Unknown, always, errBroken, 1}, {recovery.Unknown, always, Transient(errBroken), 3},
		{recovery.Pure, always, Permanent(errBroken), 1}, {recovery.Irreversible, always, Permanent(Transient(errBroken)), 1},
	} {
		synctest.Test(t, func(t *testing.T) {
			p := newPool(t, does(script{execute: func(context.Context, int) (int, error) { return 0, c.err }}, Settings{Effect: c.effect, Retry: c.policy}), Options{})
			job := p.run("do", "a", 1)
			require.Equal(t, []any{statemachine.Failed, "broken", c.attempts}, []any{job.State, job.Error, job.Attempts}, "%v", c)
		})
	}
}

// Each attempt is in the log before its work begins, the policy is told its number, and the steps that were done are not done
// again. While a job waits, its worker does other things.
func TestRetry_is_durable_before_the_work_and_holds_no_worker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l ledger
		reg := does(script{execute: func(ctx context.Context, n int) (int, error) {
			job, _ := JobOf(ctx)
			l.note("%s attempt %d", job.ID, job.Attempts)
			if n == 0 {
				return 0, nil
			}
			out, err := Step(ctx, "fetch", func(context.Context) (int, error) { l.note("fetch"); return n + 1, nil })
			if err != nil || job.Attempts < 3 {
				return 0, errors.Join(err, errBroken)
			}
			return out, nil
		}}, Settings{Effect: recovery.Pure, Retry: RetryFunc(func(err error, attempt int) (time.Duration, bool) {
			l.note("asked about attempt %d: %v", attempt, err)
			return time.Duration(attempt) * time.Hour, true
		})})
		p := newPool(t, reg, Options{Workers: 1})
		began := time.Now()
		p.submit("do", "a", 1)
		p.submit("do", "b", 0)
		require.Equal(t, statemachine.Completed, p.wait("b").State)
		require.Zero(t, time.Since(began), "it did not have to wait")
		job := p.wait("a")
		raw, _ := job.Output.JSON()
		require.Equal(t, "2", string(raw))
		require.Equal(t, 3*time.Hour, time.Since(began))
		require.Equal(t, []string{"a attempt 1", "fetch", "asked about attempt 1: broken", "b attempt 1", "a attempt 2",
			"asked about attempt 2: broken", "a attempt 3"}, l.all())
		require.Equal(t, []string{"submitted", "validated", "started", "step fetch", "resumed", "resumed", "completed"}, p.story("a"))
	})
}

// A reconcilable capability whose attempt failed so that it may have happened is asked before it is tried again.
func TestRetry_asks_where_it_may_have_happened(t *testing.T) {
	for name, c := range map[string]struct {
		found Found[int]
		err   error
		story []string
	}{
		"happened":      {Happened(7), nil, []string{"completed"}},
		"did not":       {DidNotHappen[int](), nil, []string{"resumed", "completed"}},
		"can't tell":    {CantTell[int]("no receipt"), nil, []string{"held: asked, and it can't be told whether it happened: no receipt"}},
		"can't be told": {Found[int]{}, errBroken, []string{"held: whether it happened could not be asked: broken"}},
	} {
		synctest.Test(t, func(t *testing.T) {
			reg := does(script{
				execute: func(ctx context.Context, n int) (int, error) {
					if job, _ := JobOf(ctx); job.Attempts > 1 {
						return n, nil
					}
					return until(ctx, n)
				},
				reconcile: func(_ context.Context, n int) (Found[int], error) { return c.found, c.err },
			}, Settings{Effect: recovery.Reconcilable, Timeout: time.Second, Retry: Backoff{}})
			p := newPool(t, reg, Options{})
			p.run("do", "a", 1)
			require.Equal(t, append([]string{"submitted", "validated", "started"}, c.story...), p.story("a"), name)
		})
	}
}

// The time of an attempt is its own, its end is told apart, and a policy may see it.
func TestTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var seen []error
		reg := does(script{execute: func(ctx context.Context, n int) (int, error) {
			deadline, ok := ctx.Deadline()
			if !ok || time.Until(deadline) != 5*time.Second {
				return 0, errors.New("its deadline is not to be seen")
			}
			_, err := until(ctx, n)
			if n == 2 {
				err = errBroken
			}
			if !errors.Is(context.Cause(ctx), ErrTimeout) {
				err = errors.New("its cause is not to be seen")
			}
			return 0, err
		}}, Settings{Effect: recovery.Pure, Timeout: 5 * time.Second, Retry: RetryFunc(func(err error, attempt int) (time.Duration, bool) {
			seen = append(seen, err)
			return time.Minute, attempt < 2 && errors.Is(err, ErrTimeout)
		})})
		p := newPool(t, reg, Options{})
		began := time.Now()
		require.Equal(t, "timed out after 5s", p.run("do", "a", 1).Error)
		require.Equal(t, 5*time.Second+time.Minute+5*time.Second, time.Since(began))
		require.Equal(t, "timed out after 5s: broken", p.run("do", "b", 2).Error)
		require.Len(t, seen, 4)
		require.ErrorIs(t, seen[2], errBroken)
		require.ErrorIs(t, seen[2], ErrTimeout)
	})
}

// Work that does not look at its context keeps its worker, which is logged, once; what comes of it late still counts.
func TestTimeout_of_work_that_does_not_return(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, does(script{execute: func(context.Context, int) (int, error) { time.Sleep(time.Hour); return 3, nil }}, Settings{Timeout: time.Second}), Options{})
		began := time.Now()
		require.Equal(t, statemachine.Completed, p.run("do", "a", 1).State)
		require.Equal(t, time.Hour, time.Since(began))
		require.Regexp(t, `^\S+ level=WARN msg="runner: work does not return.* job=a capability=do cause="timed out after 1s"\n$`, p.log.String())
	})
}

func TestHeartbeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reg := does(script{execute: func(ctx context.Context, n int) (int, error) {
			for range n {
				select {
				case <-time.After(2 * time.Second):
				case <-ctx.Done():
					return 0, ctx.Err()
				}
				if err := Progress(ctx, nil); err != nil {
					return 0, err
				}
			}
			return until(ctx, n)
		}}, Settings{Effect: recovery.Pure, Heartbeat: 3 * time.Second})
		p := newPool(t, reg, Options{})
		began := time.Now()
		job := p.run("do", "a", 5)
		require.Contains(t, job.Error, "no heartbeat")
		require.Equal(t, 5*2*time.Second+3*time.Second, time.Since(began))
	})
}

// A policy's own panic is no attempt more.
func TestRetry_policy_that_panics(t *testing.T) {
	reg := does(script{execute: func(context.Context, int) (int, error) { return 0, errBroken }}, Settings{Effect: recovery.Pure,
		Retry: RetryFunc(func(error, int) (time.Duration, bool) { panic("no") })})
	p := newPool(t, reg, Options{})
	require.Equal(t, "broken", p.run("do", "a", 1).Error)
	require.Contains(t, p.log.String(), "level=ERROR msg=\"runner: panic\"")
}

// A job that somebody held and released while it waited for its next attempt goes on. (It was let go of, started and by nobody.)
func TestRetry_of_a_job_that_was_released(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, does(script{execute: func(ctx context.Context, n int) (int, error) {
			if job, _ := JobOf(ctx); job.Attempts == 1 {
				return 0, Transient(errBroken)
			}
			return n, nil
		}}, Settings{}), Options{})
		p.submit("do", "a", 1)
		synctest.Wait()
		_, err := p.engine.Do(t.Context(), recovery.Hold("a", "why"), recovery.Release("a", "so"))
		require.NoError(t, err)
		require.Equal(t, statemachine.Completed, p.wait("a").State)
	})
}
