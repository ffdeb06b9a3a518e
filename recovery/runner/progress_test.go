package runner

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/recovery/crashtest"
	"github.com/jobwal/jobwal/wal"
)

// progressOf is what the log says of a job's progress: when, since from, and what.
func progressOf(t require.TestingT, e *recovery.Engine, id string, from time.Time) (all []string) {
	for event, err := range e.History(context.Background(), id) {
		require.NoError(t, err)
		if event.Type == wal.JobProgress {
			all = append(all, fmt.Sprintf("%v %s", event.Time.Sub(from), event.Output))
		}
	}
	return all
}

// bubble runs a test with an engine in memory, in time that is not real.
func bubble(t *testing.T, do func(t *testing.T, e *recovery.Engine)) {
	synctest.Test(t, func(t *testing.T) {
		e := engineOnMem(t, &crashtest.MemLog{}, nil)
		defer e.Close()
		do(t, e)
	})
}

func TestProgress_is_throttled(t *testing.T) {
	bubble(t, func(t *testing.T, e *recovery.Engine) {
		a, ctx := started(t, e, "job", attemptSettings{progress: 10 * time.Second})
		from := time.Now()
		require.NoError(t, Progress(ctx, 0))
		time.Sleep(1500 * time.Millisecond) // so that no call comes when one that is held back is due
		for i := 1; i < 23; i++ {
			require.NoError(t, Progress(ctx, i))
			time.Sleep(time.Second)
		}
		time.Sleep(100 * time.Second)
		require.NoError(t, Progress(ctx, "at once"))
		require.NoError(t, Progress(ctx, "held back"))
		require.NoError(t, Progress(ctx, nil), "which does not take the place of what was held back")
		time.Sleep(11 * time.Second)
		require.NoError(t, Progress(ctx, "never written"))
		a.close()
		time.Sleep(time.Hour)
		require.Equal(t, []string{"0s 0", "10s 9", "20s 19", "30s 22", `2m3.5s "at once"`, `2m13.5s "held back"`},
			progressOf(t, e, "job", from))
	})
}

// However it is called, events of progress are never closer to each other than they may be, and what the last of them says
// was the newest when it was due.
func TestProgress_never_floods_the_log(t *testing.T) {
	synctestRapid(t, func(t *rapid.T) {
		e := engineOnMem(t, &crashtest.MemLog{}, nil)
		defer e.Close()
		const every = 10 * time.Second
		a, ctx := started(t, e, "job", attemptSettings{progress: every})
		from, newest := time.Now(), -1
		for i, wait := range rapid.SliceOfN(rapid.IntRange(0, 25), 1, 30).Draw(t, "waits") {
			if rapid.IntRange(0, 3).Draw(t, "heartbeat") > 0 {
				newest = i
				require.NoError(t, Progress(ctx, i))
			} else {
				require.NoError(t, Progress(ctx, nil))
			}
			time.Sleep(time.Duration(wait)*time.Second + time.Millisecond)
		}
		time.Sleep(every)
		synctest.Wait()
		var last time.Time
		for event, err := range e.History(ctx, "job") {
			require.NoError(t, err)
			if event.Type == wal.JobProgress {
				require.True(t, last.IsZero() || event.Time.Sub(last) >= every, "%v", progressOf(t, e, "job", from))
				last = event.Time
			}
		}
		job, _ := e.Job("job")
		if said, ok := job.Progress.JSON(); newest >= 0 {
			require.True(t, ok)
			require.Equal(t, fmt.Sprint(newest), string(said))
		}
		a.close()
	})
}

// synctestRapid is rapid.Check, each case in a bubble of its own.
func synctestRapid(t *testing.T, prop func(*rapid.T)) {
	rapid.Check(t, func(r *rapid.T) {
		var failed any
		synctest.Test(t, func(*testing.T) {
			defer func() { failed = recover() }()
			prop(r)
		})
		if failed != nil {
			panic(failed)
		}
	})
}

func TestProgress_that_can_not_be_marshalled(t *testing.T) {
	bubble(t, func(t *testing.T, e *recovery.Engine) {
		_, ctx := started(t, e, "job", attemptSettings{})
		require.ErrorIs(t, Progress(ctx, make(chan int)), wal.ErrInvalid)
		require.ErrorIs(t, Progress(context.Background(), 1), ErrNoJob)
		for range 3 { // nothing is throttled
			require.NoError(t, Progress(ctx, 1))
		}
		require.Len(t, progressOf(t, e, "job", time.Now()), 3)
	})
}

func TestProgress_heartbeat(t *testing.T) {
	bubble(t, func(t *testing.T, e *recovery.Engine) {
		a, ctx := started(t, e, "job", attemptSettings{progress: time.Hour, heartbeat: 5 * time.Second})
		for range 3 {
			time.Sleep(4 * time.Second)
			require.NoError(t, Progress(ctx, nil))
		}
		time.Sleep(4 * time.Second)
		_, err := Step(ctx, "a", func(context.Context) (int, error) { time.Sleep(4 * time.Second); return 1, nil })
		require.NoError(t, err)
		time.Sleep(4 * time.Second)
		require.NoError(t, ctx.Err())
		time.Sleep(time.Second)
		synctest.Wait()
		require.ErrorIs(t, context.Cause(ctx), ErrNoHeartbeat)
		require.ErrorIs(t, Progress(ctx, nil), ErrNoHeartbeat)
		_, err = a.end(context.Background(), recovery.Fail("job", context.Cause(ctx)))
		require.NoError(t, err)
		job, _ := e.Job("job")
		require.Equal(t, "runner: no heartbeat for 5s", job.Error)
	})
}

// Once the attempt is over, nobody waits for a sign of life.
func TestProgress_heartbeat_ends_with_the_attempt(t *testing.T) {
	bubble(t, func(t *testing.T, e *recovery.Engine) {
		a, ctx := started(t, e, "job", attemptSettings{heartbeat: time.Second})
		a.close()
		require.ErrorIs(t, Progress(ctx, nil), ErrFenced)
		time.Sleep(time.Hour)
		require.NoError(t, ctx.Err())
	})
}

// A job that somebody takes over loses what was held back, and not more.
func TestProgress_held_back_is_fenced(t *testing.T) {
	bubble(t, func(t *testing.T, e *recovery.Engine) {
		_, ctx := started(t, e, "job", attemptSettings{progress: time.Second})
		require.NoError(t, Progress(ctx, 1))
		require.NoError(t, Progress(ctx, 2))
		_, err := e.Fail(ctx, "job", errors.New("no"))
		require.NoError(t, err)
		time.Sleep(time.Minute)
		job, _ := e.Job("job")
		said, _ := job.Progress.JSON()
		require.Equal(t, "1", string(said))
	})
}
