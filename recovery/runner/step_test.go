package runner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// engineOn is an engine on a disk in memory.
func engineOn(t testing.TB, disk wal.FS) *recovery.Engine {
	e, err := recovery.Open(context.Background(), "jobs", recovery.Options{WAL: wal.Options{FS: disk}})
	require.NoError(t, err)
	t.Cleanup(func() { _ = e.Close() })
	return e
}

// started starts a new job.
func started(t require.TestingT, e *recovery.Engine, id string, s attemptSettings) (*attempt, context.Context) {
	jobs, err := e.Do(context.Background(), recovery.Submit(recovery.Submission{JobID: id, Capability: "test"}),
		recovery.Validate(id), recovery.Start(id))
	require.NoError(t, err)
	return under(e, jobs[2], nil, s)
}

// resumed begins another attempt, as after a crash: of the one before nothing is known but what the log says.
func resumed(t require.TestingT, e *recovery.Engine, id string) (*attempt, context.Context) {
	job, err := e.Resume(context.Background(), id)
	require.NoError(t, err)
	done, err := e.Steps(context.Background(), id)
	require.NoError(t, err)
	return under(e, job, done, attemptSettings{})
}

func under(e *recovery.Engine, job statemachine.Job, done []recovery.StepRecord, s attemptSettings) (*attempt, context.Context) {
	a := newAttempt(e, job, done, s)
	ctx, _ := a.context(context.Background())
	return a, ctx
}

// is is a step that returns v.
func is[T any](v T) func(context.Context) (T, error) {
	return func(context.Context) (T, error) { return v, nil }
}

// never is a step that must not be run.
func never(t testing.TB) func(context.Context) (int, error) {
	return func(context.Context) (int, error) {
		t.Error("it was run")
		return 0, errors.New("it was run")
	}
}

func recordedNames(t require.TestingT, e *recovery.Engine, id string) (names []string) {
	done, err := e.Steps(context.Background(), id)
	require.NoError(t, err)
	for _, r := range done {
		names = append(names, r.Name)
	}
	return names
}

func TestSteps_are_recorded_once_and_returned_ever_after(t *testing.T) {
	e := engineOn(t, crashfs.New())
	a, ctx := started(t, e, "job", attemptSettings{})
	for i := range 3 {
		got, err := Step(ctx, "fetch", is(i*10))
		require.NoError(t, err)
		require.Equal(t, i*10, got)
	}
	_, err := Step(Branch(Branch(ctx, "größe"), "b"), "fetch", is("deep"))
	require.NoError(t, err)
	names := []string{"fetch", "fetch#2", "fetch#3", "größe/b/fetch"}
	require.Equal(t, names, recordedNames(t, e, "job"))
	inLog, err := e.Steps(ctx, "job")
	require.NoError(t, err)
	for i, r := range a.steps() {
		inLog[i].Time = time.Time{}
		require.Equal(t, inLog[i], r)
	}
	a.close()

	a, ctx = resumed(t, e, "job")
	deep, err := Step(Branch(Branch(ctx, "größe"), "b"), "fetch", func(context.Context) (string, error) { return "", errors.New("it was run") })
	require.NoError(t, err)
	require.Equal(t, "deep", deep)
	for i := range 3 {
		got, err := Step(ctx, "fetch", never(t))
		require.NoError(t, err)
		require.Equal(t, i*10, got)
	}
	got, err := Step(ctx, "fetch", is(7))
	require.NoError(t, err)
	require.Equal(t, 7, got)
	job, err := a.complete(ctx, "all")
	require.NoError(t, err)
	require.Equal(t, statemachine.Completed, job.State)
	require.Equal(t, append(names, "fetch#4"), recordedNames(t, e, "job"))
}

// What Step returns the first time is what it returns when the work begins again: what JSON loses is lost at once.
func TestSteps_return_at_once_what_is_recorded(t *testing.T) {
	e := engineOn(t, crashfs.New())
	type output struct {
		Any    any
		Markup string
		At     time.Time
		lost   int
	}
	_, ctx := started(t, e, "job", attemptSettings{})
	first, err := Step(ctx, "x", is(output{Any: 3, Markup: "<a&b>", At: time.Now(), lost: 4}))
	require.NoError(t, err)
	require.Equal(t, output{Any: 3.0, Markup: "<a&b>", At: first.At}, first)
	null, err := Step(ctx, "null", is[any](nil))
	require.NoError(t, err)
	require.Nil(t, null)

	_, ctx = resumed(t, e, "job")
	again, err := Step(ctx, "x", is(output{}))
	require.NoError(t, err)
	require.Equal(t, first, again)
	null, err = Step(ctx, "null", is[any](1))
	require.NoError(t, err)
	require.Nil(t, null)
}

// An error is returned as it is, nothing is recorded, and the step that is called again is the same step.
func TestSteps_that_fail_are_not_recorded(t *testing.T) {
	e := engineOn(t, crashfs.New())
	_, ctx := started(t, e, "job", attemptSettings{})
	no := errors.New("no")
	failing := func(context.Context) (int, error) { return 3, no }
	for range 2 {
		got, err := Step(ctx, "a", failing)
		require.Same(t, no, err)
		require.Zero(t, got)
	}
	require.PanicsWithValue(t, "oh", func() { _, _ = Step(ctx, "a", func(context.Context) (int, error) { panic("oh") }) })
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		_, _ = Step(ctx, "a", func(context.Context) (int, error) { runtime.Goexit(); return 0, nil })
	}()
	<-gone
	_, err := Step(ctx, "a", is(1))
	require.NoError(t, err)
	require.Equal(t, []string{"a"}, recordedNames(t, e, "job"))
}

func TestSteps_output_that_cannot_be_recorded(t *testing.T) {
	e, err := recovery.Open(context.Background(), "jobs", recovery.Options{WAL: wal.Options{FS: crashfs.New(), MaxEventBytes: 4096}})
	require.NoError(t, err)
	defer e.Close()
	_, ctx := started(t, e, "job", attemptSettings{})
	_, nan := Step(ctx, "x", is(math.NaN()))
	_, noWayBack := Step(ctx, "x", is(fmt.Stringer(time.Second)))
	_, twice := Step(ctx, "x", is(json.RawMessage(`{"a":1,"a":2}`)))
	_, large := Step(ctx, "x", is(strings.Repeat("x", 5000)))
	for i, err := range []error{nan, noWayBack, twice, large} {
		var refused *StepError
		require.ErrorAs(t, err, &refused, "%d", i)
		require.Equal(t, "x", refused.Step)
		require.Equal(t, "job", refused.JobID)
		require.Error(t, refused.Err)
	}
	require.ErrorIs(t, twice, wal.ErrInvalid)
	require.ErrorIs(t, large, wal.ErrTooLarge)
	require.Empty(t, recordedNames(t, e, "job"))
	_, err = Step(ctx, "x", is(1)) // nothing of it stays behind
	require.NoError(t, err)

	_, ctx = resumed(t, e, "job")
	_, err = Step(ctx, "x", func(context.Context) (string, error) { t.Error("it was run"); return "", nil })
	var refused *StepError
	require.ErrorAs(t, err, &refused)
	require.Contains(t, err.Error(), "does not fit any more")
}

func TestSteps_names(t *testing.T) {
	e := engineOn(t, crashfs.New())
	a, ctx := started(t, e, "job", attemptSettings{})
	for _, name := range []string{"", "a/b", "a#2", "a\x00", "\xff", strings.Repeat("x", 257)} {
		for _, ctx := range []context.Context{ctx, Branch(ctx, "b")} {
			_, err := Step(ctx, name, never(t))
			var refused *StepError
			require.ErrorAs(t, err, &refused, "%q", name)
		}
		_, err := Step(Branch(Branch(ctx, name), "c"), "step", never(t))
		var refused *StepError
		require.ErrorAs(t, err, &refused, "%q", name)
	}
	_, err := Step(Branch(ctx, strings.Repeat("x", 200)), strings.Repeat("y", 56), never(t))
	require.Error(t, err, "257 bytes in all")
	long := strings.Repeat("y", 55)
	_, err = Step(Branch(ctx, strings.Repeat("x", 200)), long, is(1))
	require.NoError(t, err)
	_, err = Step(Branch(ctx, strings.Repeat("x", 200)), long, never(t))
	require.Error(t, err, "256 bytes, and #2")
	require.NoError(t, a.broken(), "a name that is refused is no disorder")
	_, err = Step(context.Background(), "x", never(t))
	require.ErrorIs(t, err, ErrNoJob)
	_, err = Step(Branch(context.Background(), "b"), "x", never(t))
	require.ErrorIs(t, err, ErrNoJob)
	_, found := JobOf(context.Background())
	require.False(t, found)
	job, found := JobOf(Branch(ctx, "b"))
	require.True(t, found)
	require.Equal(t, 1, job.Attempts)
}

// Another order is named, the function is not run, nothing more is done, and the job can't complete.
func TestSteps_in_another_order_are_named(t *testing.T) {
	for name, c := range map[string]struct {
		work func(ctx context.Context)
		want OrderError
	}{
		"another": {func(ctx context.Context) {
			_, _ = Step(ctx, "a", never(t))
			_, _ = Step(ctx, "new", never(t))
		}, OrderError{JobID: "job", Position: 2, Recorded: "b", Called: "new"}},
		"once more": {func(ctx context.Context) {
			_, _ = Step(ctx, "a", never(t))
			_, _ = Step(ctx, "a", never(t))
			_, _ = Step(ctx, "b", never(t))
		}, OrderError{JobID: "job", Position: 2, Recorded: "b", Called: "a#2"}},
		"one less": {func(ctx context.Context) {
			_, _ = Step(ctx, "a", never(t))
			_, _ = Step(ctx, "b", never(t))
		}, OrderError{JobID: "job", Position: 3, Recorded: "b#2"}},
		"none": {func(context.Context) {}, OrderError{JobID: "job", Position: 1, Recorded: "a"}},
		"another branch": {func(ctx context.Context) {
			_, _ = Step(ctx, "a", never(t))
			_, _ = Step(ctx, "b", never(t))
			_, _ = Step(ctx, "b", never(t))
			_, _ = Step(Branch(ctx, "other"), "c", is(0))
		}, OrderError{JobID: "job", Scope: "br", Position: 1, Recorded: "c"}},
		"in the branch": {func(ctx context.Context) {
			_, _ = Step(Branch(ctx, "br"), "d", never(t))
			_, _ = Step(Branch(ctx, "br"), "c", never(t))
		}, OrderError{JobID: "job", Scope: "br", Position: 1, Recorded: "c", Called: "d"}},
	} {
		t.Run(name, func(t *testing.T) {
			e := engineOn(t, crashfs.New())
			_, ctx := started(t, e, "job", attemptSettings{})
			for _, name := range []string{"a", "b", "b"} {
				_, err := Step(ctx, name, is(1))
				require.NoError(t, err)
			}
			_, err := Step(Branch(ctx, "br"), "c", is(1))
			require.NoError(t, err)
			a, ctx := resumed(t, e, "job")
			c.work(ctx)
			if c.want.Called != "" {
				require.Equal(t, &c.want, a.broken())
			}
			_, err = a.complete(ctx, "done")
			require.Equal(t, &c.want, err)
			require.ErrorIs(t, err, ErrStepOrder)
			require.Contains(t, err.Error(), c.want.Recorded)
			job, err := a.end(ctx, recovery.Fail("job", err))
			require.NoError(t, err)
			require.Equal(t, statemachine.Failed, job.State)
		})
	}
}

func TestSteps_in_parallel_and_in_each_other_are_refused(t *testing.T) {
	e := engineOn(t, crashfs.New())
	a, ctx := started(t, e, "job", attemptSettings{})
	_, err := Step(ctx, "outer", func(inside context.Context) (int, error) {
		for _, ctx := range []context.Context{inside, Branch(inside, "b")} {
			_, err := Step(ctx, "inner", never(t))
			var refused *StepError
			require.ErrorAs(t, err, &refused)
			require.Contains(t, err.Error(), `inside step "outer"`)
		}
		require.NoError(t, Progress(inside, "half"))
		return 1, nil
	})
	require.NoError(t, err)
	require.NoError(t, a.broken())

	_, err = Step(ctx, "one", func(context.Context) (int, error) {
		_, err := Step(ctx, "two", never(t))
		var refused *StepError
		require.ErrorAs(t, err, &refused)
		require.Contains(t, err.Error(), `in parallel with "one": give each its Branch`)
		return 1, nil
	})
	require.NoError(t, err, "it was done")
	_, err = a.complete(ctx, nil)
	require.Equal(t, a.broken(), err)
	require.Error(t, err)
}

func TestSteps_still_running_when_the_work_returns(t *testing.T) {
	e := engineOn(t, crashfs.New())
	a, ctx := started(t, e, "job", attemptSettings{})
	_, err := Step(ctx, "slow", func(context.Context) (int, error) {
		_, err := a.complete(ctx, nil)
		var refused *StepError
		require.ErrorAs(t, err, &refused)
		require.Equal(t, "slow", refused.Step)
		return 1, nil
	})
	require.ErrorIs(t, err, ErrFenced, "it is not recorded any more")
	require.Empty(t, recordedNames(t, e, "job"))
}

// Once fn has succeeded its output is recorded, whatever became of the context; and none is begun under one that has ended.
func TestSteps_and_the_end_of_the_context(t *testing.T) {
	e := engineOn(t, crashfs.New())
	a, _ := started(t, e, "job", attemptSettings{})
	ctx, cancel := a.context(context.Background())
	why := errors.New("why")
	_, err := Step(ctx, "a", func(context.Context) (int, error) { cancel(why); return 1, nil })
	require.NoError(t, err)
	require.Equal(t, []string{"a"}, recordedNames(t, e, "job"))
	_, err = Step(ctx, "b", never(t))
	require.Same(t, why, err)
	require.Same(t, why, Progress(ctx, 1))
}

// Nothing but an attempt that meets 1,000 recorded steps: to read them is for package recovery to measure.
func BenchmarkStep(b *testing.B) {
	const recorded = 1000
	e := engineOn(b, crashfs.New())
	_, ctx := started(b, e, "job", attemptSettings{})
	output := map[string]string{"answer": strings.Repeat("x", 100)}
	for range recorded {
		_, err := Step(ctx, "ask", is(output))
		require.NoError(b, err)
	}
	job, err := e.Resume(ctx, "job")
	require.NoError(b, err)
	done, err := e.Steps(ctx, "job")
	require.NoError(b, err)
	b.Run(fmt.Sprintf("replayed=%d", recorded), func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			a, ctx := under(e, job, done, attemptSettings{})
			for range recorded {
				if _, err := Step(ctx, "ask", is(output)); err != nil {
					b.Fatal(err)
				}
			}
			a.close()
		}
	})
}

// Nor after work that has ended its goroutine.
func TestStep_that_still_runs_when_its_work_is_gone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l ledger
		p := newPool(t, does(script{execute: func(ctx context.Context, n int) (int, error) {
			go Step(Branch(ctx, "card"), "charge", func(context.Context) (int, error) {
				l.note("charged")
				time.Sleep(time.Hour)
				return 1, nil
			})
			time.Sleep(time.Second)
			runtime.Goexit()
			return n, nil
		}}, Settings{Effect: recovery.Idempotent, Retry: Backoff{}}), Options{})
		require.Equal(t, statemachine.Failed, p.run("do", "a", 1).State)
		time.Sleep(2 * time.Hour)
		require.Equal(t, []string{"charged"}, l.all())
	})
}

// A step that still runs when the work returns is not done again beside itself, whatever the work says. (After an error it was: the
// job was tried again, and an irreversible step happened twice.)
func TestStep_that_still_runs_is_not_begun_again(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l ledger
		p := newPool(t, does(script{execute: func(ctx context.Context, n int) (int, error) {
			go Step(Branch(ctx, "card"), "charge", func(context.Context) (int, error) {
				l.note("charged")
				time.Sleep(time.Hour)
				return 1, nil
			})
			time.Sleep(time.Second)
			return 0, Transient(errBroken)
		}}, Settings{Effect: recovery.Irreversible}), Options{})
		job := p.run("do", "a", 1)
		require.Equal(t, statemachine.Failed, job.State)
		require.Contains(t, job.Error, "still running")
		time.Sleep(2 * time.Hour)
		require.Equal(t, []string{"charged"}, l.all())
	})
}
