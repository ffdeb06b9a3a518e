package runner

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
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

// What others may do to a job while an attempt is at work on it, and what the attempt may do then.
func TestFence(t *testing.T) {
	ctx := context.Background()
	do := func(commands ...recovery.Command) func(*recovery.Engine) error {
		return func(e *recovery.Engine) error {
			_, err := e.Do(ctx, commands...)
			return err
		}
	}
	for name, c := range map[string]struct {
		meanwhile func(*recovery.Engine) error
		steps     string // why there are none; "": there are
		ends      bool
	}{
		"nothing":         {func(*recovery.Engine) error { return nil }, "", true},
		"progress":        {do(recovery.SetProgress("job", 1)), "", true},
		"held":            {do(recovery.Hold("job", "who knows")), "held: who knows", true},
		"released":        {do(recovery.Hold("job", "who knows"), recovery.Release("job", "I do")), "", true},
		"another attempt": {do(recovery.Resume("job")), "attempt 2 has begun, this is attempt 1", false},
		"failed":          {do(recovery.Fail("job", errors.New("no"))), "failed by now", false},
		"completed":       {do(recovery.Complete("job", 1)), "completed by now", false},
		"rolled back":     {do(recovery.Fail("job", errors.New("no")), recovery.RollBack("job", "")), "rolled_back by now", false},
	} {
		t.Run(name, func(t *testing.T) {
			for _, inside := range []bool{false, true} {
				e := engineOn(t, crashfs.New())
				a, work := started(t, e, "job", attemptSettings{})
				ran := false
				if !inside {
					require.NoError(t, c.meanwhile(e))
				}
				_, err := Step(work, "a", func(context.Context) (int, error) {
					ran = true
					if inside {
						return 1, c.meanwhile(e)
					}
					return 1, nil
				})
				progress := Progress(work, 1)
				if c.steps == "" {
					require.NoError(t, err)
					require.NoError(t, progress)
				} else {
					require.Equal(t, inside, ran, "what is known to be fenced is not begun")
					for _, err := range []error{err, progress} {
						require.ErrorIs(t, err, ErrFenced)
						require.ErrorContains(t, err, c.steps)
					}
					require.Empty(t, recordedNames(t, e, "job"))
				}
				before, _ := e.Job("job")
				job, err := a.complete(ctx, "done")
				if c.ends {
					require.NoError(t, err)
					require.Equal(t, statemachine.Completed, job.State)
					continue
				}
				require.ErrorIs(t, err, ErrFenced)
				_, err = a.end(ctx, recovery.Fail("job", errors.New("late")))
				require.ErrorIs(t, err, ErrFenced)
				after, _ := e.Job("job")
				require.Equal(t, before, after)
			}
		})
	}
}

// After its end an attempt writes nothing, and whoever was in the middle of a step learns it.
func TestFence_after_the_end(t *testing.T) {
	for name, end := range map[string]func(*attempt) error{
		"completed": func(a *attempt) error { _, err := a.complete(context.Background(), nil); return err },
		"failed": func(a *attempt) error {
			_, err := a.end(context.Background(), recovery.Fail("job", errors.New("no")))
			return err
		},
		"resumed": func(a *attempt) error { _, err := a.end(context.Background(), recovery.Resume("job")); return err },
		"left":    func(a *attempt) error { a.close(); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			e := engineOn(t, crashfs.New())
			a, ctx := started(t, e, "job", attemptSettings{progress: time.Hour})
			require.NoError(t, Progress(ctx, 1))
			require.NoError(t, Progress(ctx, 2), "it is held back, and lost with the attempt")
			require.NoError(t, end(a))
			_, err := Step(ctx, "a", never(t))
			require.ErrorIs(t, err, ErrFenced)
			require.ErrorIs(t, Progress(ctx, 3), ErrFenced)
			before, _ := e.Job("job")
			a.close()
			_, err = a.end(ctx, recovery.Fail("job", errors.New("late")))
			require.ErrorIs(t, err, ErrFenced)
			_, err = a.complete(ctx, nil)
			require.ErrorIs(t, err, ErrFenced)
			after, _ := e.Job("job")
			require.Equal(t, before, after)
		})
	}
}

// While branches record steps the attempt ends: each step is in the log, before the end, or its branch is told that it is not.
func TestFence_ends_amid_branches(t *testing.T) {
	e := engineOn(t, crashfs.New())
	for n := range 20 {
		id := fmt.Sprint("job-", n)
		a, ctx := started(t, e, id, attemptSettings{})
		var counts [8]int
		var all sync.WaitGroup
		for i := range counts {
			all.Go(func() {
				for {
					if _, err := Step(Branch(ctx, fmt.Sprint(i)), "a", is(i)); err != nil {
						require.ErrorIs(t, err, ErrFenced)
						return
					}
					counts[i]++
				}
			})
		}
		for job, _ := e.Job(id); job.Steps < n; job, _ = e.Job(id) {
			runtime.Gosched()
		}
		job, err := a.end(ctx, recovery.Fail(id, errors.New("enough")))
		require.NoError(t, err)
		all.Wait()
		total := 0
		for _, n := range counts {
			total += n
		}
		require.Equal(t, total, job.Steps)
		require.Len(t, a.steps(), total)
		require.Len(t, recordedNames(t, e, id), total)
	}
}

// On a log that several engines share, another that writes to the job takes it over: before a step is recorded, while it is, or
// right behind it, before it has returned.
func TestFence_another_opening(t *testing.T) {
	for _, when := range []string{"before", "while", "behind"} {
		t.Run(when, func(t *testing.T) {
			var shared crashtest.MemLog
			end, err := shared.Open(context.Background())
			require.NoError(t, err)
			log := &hookedLog{Log: end}
			ours, err := recovery.OpenLog(context.Background(), log, recovery.Options{})
			require.NoError(t, err)
			defer ours.Close()
			theirs := engineOnMem(t, &shared, nil)
			defer theirs.Close()
			a, ctx := started(t, ours, "job", attemptSettings{})
			takeOver := func() error {
				if _, err := theirs.Submit(ctx, recovery.Submission{}); err != nil { // so it knows all that is before
					return err
				}
				_, err := theirs.SetProgress(ctx, "job", "mine")
				return err
			}
			applied := func() {
				want, _ := theirs.Job("job")
				for job, _ := ours.Job("job"); job.Seq != want.Seq; job, _ = ours.Job("job") {
					runtime.Gosched()
				}
			}
			switch when {
			case "while":
				log.before = takeOver
			case "behind":
				log.after = func() error { err := takeOver(); applied(); return err }
			}
			_, err = Step(ctx, "a", func(context.Context) (int, error) {
				if when == "before" {
					require.NoError(t, takeOver())
					applied()
				}
				return 1, nil
			})
			log.before, log.after = nil, nil
			if when == "behind" {
				require.NoError(t, err)
			} else {
				require.ErrorIs(t, err, ErrFenced)
			}
			require.ErrorIs(t, Progress(ctx, 1), ErrFenced)
			_, err = a.complete(ctx, nil)
			require.ErrorIs(t, err, ErrFenced)
			_, err = a.end(ctx, recovery.Fail("job", errors.New("late")))
			require.ErrorIs(t, err, ErrFenced)
			job, _ := theirs.Job("job")
			require.Equal(t, statemachine.Started, job.State)
		})
	}
}

// A failed log, and one that is closed, end the attempt and leave the job as it is.
func TestFence_the_log_is_gone(t *testing.T) {
	for name, c := range map[string]struct {
		gone func(*recovery.Engine, *crashfs.Faulty)
		is   error
	}{
		"failed": {func(_ *recovery.Engine, f *crashfs.Faulty) { f.CrashAfter(0) }, wal.ErrFailed},
		"closed": {func(e *recovery.Engine, _ *crashfs.Faulty) { _ = e.Close() }, wal.ErrClosed},
	} {
		t.Run(name, func(t *testing.T) {
			faulty := crashfs.Inject(crashfs.New(), nil)
			e := engineOn(t, faulty)
			a, ctx := started(t, e, "job", attemptSettings{})
			c.gone(e, faulty)
			for range 2 {
				_, err := Step(ctx, "a", is(1))
				require.ErrorIs(t, err, c.is)
			}
			_, err := a.complete(ctx, 1)
			require.ErrorIs(t, err, c.is)
			job, _ := e.Job("job")
			require.Equal(t, statemachine.Started, job.State)
		})
	}
}

// hookedLog does something before an append, and after it, which may come to its caller as an error.
type hookedLog struct {
	recovery.Log
	before, after func() error
}

func (l *hookedLog) Append(ctx context.Context, events ...wal.Event) (uint64, error) {
	if l.before != nil {
		if err := l.before(); err != nil {
			return 0, err
		}
	}
	first, err := l.Log.Append(ctx, events...)
	if err == nil && l.after != nil {
		err = l.after()
	}
	return first, err
}

// A step whose outcome nobody knows may be there: nothing is written behind it, even by a log that would go on.
func TestFence_outcome_unknown(t *testing.T) {
	end, err := (&crashtest.MemLog{}).Open(context.Background())
	require.NoError(t, err)
	log := &hookedLog{Log: end}
	e, err := recovery.OpenLog(context.Background(), log, recovery.Options{})
	require.NoError(t, err)
	defer e.Close()
	a, ctx := started(t, e, "job", attemptSettings{})
	log.after = func() error { return wal.ErrOutcomeUnknown }
	_, err = Step(ctx, "a", is(1))
	require.ErrorIs(t, err, wal.ErrOutcomeUnknown)
	log.after = nil
	for range 2 {
		_, err = Step(ctx, "a", is(1))
		require.ErrorIs(t, err, wal.ErrOutcomeUnknown)
	}
	_, err = a.complete(ctx, 1)
	require.ErrorIs(t, err, wal.ErrOutcomeUnknown)
	_, err = e.Submit(ctx, recovery.Submission{}) // behind which it is applied, if it is there
	require.NoError(t, err)
	require.Equal(t, []string{"a"}, recordedNames(t, e, "job"))
}

// slowLog takes a second for each append, and counts them.
type slowLog struct {
	recovery.Log
	mu    sync.Mutex // guards the field below
	sizes []int
}

func (l *slowLog) Append(ctx context.Context, events ...wal.Event) (uint64, error) {
	time.Sleep(time.Second)
	l.mu.Lock()
	l.sizes = append(l.sizes, len(events))
	l.mu.Unlock()
	return l.Log.Append(ctx, events...)
}

func engineOnMem(t require.TestingT, log *crashtest.MemLog, slow *slowLog) *recovery.Engine {
	end, err := log.Open(context.Background())
	require.NoError(t, err)
	if slow != nil {
		slow.Log = end
		end = slow
	}
	e, err := recovery.OpenLog(context.Background(), end, recovery.Options{})
	require.NoError(t, err)
	return e
}

// Branches that finish while one of them writes share the next append, and one whose output is refused harms no other.
func TestBranches_share_appends(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		slow := &slowLog{}
		e := engineOnMem(t, &crashtest.MemLog{WAL: wal.Options{MaxEventBytes: 2000}}, slow)
		defer e.Close()
		a, ctx := started(t, e, "job", attemptSettings{})
		slow.sizes = nil
		for _, round := range []struct {
			output string
			sizes  []int
		}{
			{"fits", []int{1, 9}},
			{strings.Repeat("x", 3000), []int{1, 9, 1, 1, 1, 1, 1, 1, 1, 1, 1}}, // all nine are refused, and then one
		} {
			var all sync.WaitGroup
			for i := range 10 {
				all.Go(func() {
					time.Sleep(time.Duration(i) * time.Millisecond)
					output := "fits"
					if i == 5 {
						output = round.output
					}
					_, err := Step(Branch(ctx, fmt.Sprint(i)), "a", is(output))
					if output == "fits" {
						require.NoError(t, err)
					} else {
						require.ErrorIs(t, err, wal.ErrTooLarge)
					}
				})
			}
			all.Wait()
			require.Equal(t, round.sizes, slow.sizes)
			slow.sizes = nil
		}
		inLog, err := e.Steps(ctx, "job")
		require.NoError(t, err)
		require.Len(t, inLog, 19)
		for i, r := range a.steps() {
			inLog[i].Time = time.Time{}
			require.Equal(t, inLog[i], r)
		}
		_, err = a.complete(ctx, nil)
		require.NoError(t, err)
	})
}
