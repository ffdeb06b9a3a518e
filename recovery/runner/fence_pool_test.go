package runner

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// A job that somebody holds while it runs begins no further step, and does not fail for that: it waits for the decision, and
// then goes on behind the steps that it has done. One that needs no further step completes all the same.
func TestFence_held_while_it_runs(t *testing.T) {
	ctx := context.Background()
	e := engineOn(t, crashfs.New())
	reg := NewRegistry()
	ran := map[string]int{}
	steps := Add(reg, "steps", Func[int, int](func(ctx context.Context, n int) (int, error) {
		for _, name := range []string{"a", "b", "c"}[:n] {
			_, err := Step(ctx, name, func(context.Context) (int, error) { ran[name]++; return 1, nil })
			if err != nil {
				return 0, err
			}
			if job, _ := JobOf(ctx); name == "a" && job.Attempts == 1 {
				_, err := e.Hold(ctx, job.ID, "let me look")
				require.NoError(t, err)
			}
		}
		return n, nil
	}), Settings{})
	r, err := New(e, reg, Options{})
	require.NoError(t, err)
	defer func() { require.NoError(t, r.Drain(ctx)) }()

	job, err := steps.Submit(ctx, r, 3)
	require.NoError(t, err)
	job, err = r.Wait(ctx, job.ID)
	require.NoError(t, err)
	require.Equal(t, statemachine.Started, job.State)
	require.Equal(t, "let me look", job.Held)
	require.Equal(t, map[string]int{"a": 1}, ran)
	_, err = r.Release(ctx, job.ID, "go on")
	require.NoError(t, err)
	job, err = r.Wait(ctx, job.ID)
	require.NoError(t, err)
	require.Equal(t, statemachine.Completed, job.State)
	require.Equal(t, map[string]int{"a": 1, "b": 1, "c": 1}, ran)
	require.Equal(t, 2, job.Attempts)

	job, err = steps.Submit(ctx, r, 1)
	require.NoError(t, err)
	job, err = r.Wait(ctx, job.ID)
	require.NoError(t, err)
	require.Equal(t, statemachine.Completed, job.State)
}

// A job that somebody else ends while it runs stays as it is, whatever its work returns.
func TestFence_ended_by_others_while_it_runs(t *testing.T) {
	ctx := context.Background()
	e := engineOn(t, crashfs.New())
	reg := NewRegistry()
	for name, returns := range map[string]error{"done": nil, "failed": errors.New("no")} {
		work := Add(reg, name, Func[int, int](func(ctx context.Context, n int) (int, error) {
			job, _ := JobOf(ctx)
			_, err := e.Fail(ctx, job.ID, errors.New("enough"))
			require.NoError(t, err)
			return n, returns
		}), Settings{})
		r, err := New(e, reg, Options{})
		require.NoError(t, err)
		job, err := work.Submit(ctx, r, 1)
		require.NoError(t, err)
		job, err = r.Wait(ctx, job.ID)
		require.NoError(t, err)
		require.Equal(t, statemachine.Failed, job.State)
		require.Equal(t, "enough", job.Error)
		require.NoError(t, r.Drain(ctx))
	}
}

// What a job is told about another one's fence is no reason to let go of it. (It was taken for its own, and the job stayed started:
// not ended, not held, and nobody had it.)
func TestFence_of_another_job(t *testing.T) {
	var other context.Context
	p := newPool(t, does(script{execute: func(ctx context.Context, n int) (int, error) {
		if n == 1 {
			other = context.WithoutCancel(ctx)
			return n, nil
		}
		return n, Progress(other, 1)
	}}, Settings{}), Options{})
	p.run("do", "one", 1)
	job := p.run("do", "two", 2)
	require.Equal(t, statemachine.Failed, job.State)
	require.Contains(t, job.Error, `job "one": fenced`)
}
