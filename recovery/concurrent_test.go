package recovery

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// attempt is a group that was tried, and how it ended.
type attempt struct {
	facts   []fact
	last    uint64 // of the job of the last command, when it succeeded
	err     error
	unknown bool
}

// crowd drives an engine from many goroutines, with random groups over few jobs, until it is refused for good.
func crowd(e *Engine, goroutines int, seed uint64, acks *atomic.Int64) []attempt {
	var all sync.WaitGroup
	tried := make([][]attempt, goroutines)
	for g := range goroutines {
		all.Go(func() {
			r := rand.New(rand.NewPCG(seed, uint64(g)))
			for n := 0; ; n++ {
				a := attempt{facts: make([]fact, 1+r.IntN(3))}
				commands := make([]Command, len(a.facts))
				for i := range a.facts {
					// The text tells which attempt an event is of.
					mark := fmt.Sprintf("%d-%d-%d", g, n, i)
					f := fact{id: fmt.Sprint("job-", r.IntN(25)), kind: kinds[r.IntN(len(kinds))], capacity: mark, text: mark}
					if r.IntN(2) == 0 {
						f.kind, f.id = wal.JobSubmitted, "of-"+mark
					}
					a.facts[i], commands[i] = f, f.command()
				}
				jobs, err := e.Do(context.Background(), commands...)
				a.err, a.unknown = err, errors.Is(err, wal.ErrOutcomeUnknown)
				if err == nil {
					a.last = jobs[len(jobs)-1].Seq
					acks.Add(1)
				}
				tried[g] = append(tried[g], a)
				if errors.Is(err, wal.ErrClosed) || errors.Is(err, wal.ErrFailed) {
					return
				}
			}
		})
	}
	all.Wait()
	return slices.Concat(tried...)
}

// checkHistory: the log is its own witness. Every group that was acknowledged is in it, whole and at its seq; every
// event maps to one group that succeeded, or whose outcome is unknown; the reference machine takes every step.
func checkHistory(t require.TestingT, e *Engine, tried []attempt) (groups int) {
	byLast := make(map[uint64]attempt)
	var unknown []attempt
	for _, a := range tried {
		switch {
		case a.err == nil:
			require.NotContains(t, byLast, a.last, "two groups at one place")
			byLast[a.last] = a
		case a.unknown:
			unknown = append(unknown, a)
		}
	}
	states := make(map[string]statemachine.State)
	var pending []wal.Event
	for event, err := range e.log.Events(context.Background(), 1) {
		require.NoError(t, err)
		to := step(states[event.JobID], event.Type)
		require.NotEmpty(t, to, "seq %d", event.Seq)
		states[event.JobID] = to
		pending = append(pending, event)
		if a, ok := byLast[event.Seq]; ok {
			require.True(t, matches(a, pending), "the group that ends at seq %d is not what was acknowledged", event.Seq)
			delete(byLast, event.Seq)
			pending, groups = nil, groups+1
			continue
		}
		if i := slices.IndexFunc(unknown, func(a attempt) bool { return matches(a, pending) }); i >= 0 {
			unknown = slices.Delete(unknown, i, i+1)
			pending = nil
		}
	}
	require.Empty(t, pending, "events that nobody submitted, or half a group")
	require.Empty(t, byLast, "acknowledged, and not there")
	for id, state := range states {
		job, _ := e.Job(id)
		require.Equal(t, state, job.State)
	}
	require.Len(t, slices.Collect(e.Jobs(projection.Query{})), len(states))
	return groups
}

func matches(a attempt, events []wal.Event) bool {
	if len(a.facts) != len(events) {
		return false
	}
	for i, f := range a.facts {
		e := events[i]
		if f.kind != e.Type || f.id != e.JobID || f.kind == wal.JobSubmitted && e.Capability != f.capacity ||
			(f.kind == wal.JobFailed || f.kind == wal.JobRolledBack) && e.Error != f.text {
			return false
		}
	}
	return true
}

// F26, R1, S1: Close in the middle of a crowd.
func TestF26_R1_S1_random_commands_and_close_in_the_middle(t *testing.T) {
	for round := range 5 {
		disk := crashfs.New()
		e, err := Open(context.Background(), "jobs", Options{WAL: wal.Options{FS: disk, SegmentBytes: 16 << 10}})
		require.NoError(t, err)
		var acks atomic.Int64
		done := make(chan error)
		go func() {
			for acks.Load() < int64(100*(round+1)) {
				runtime.Gosched()
			}
			done <- e.Close()
		}()
		tried := crowd(e, 16, uint64(round), &acks)
		require.NoError(t, <-done)
		for _, a := range tried {
			require.False(t, a.unknown, "Close leaves no doubt")
		}
		require.Zero(t, e.locks.inUse())
		e, err = Open(context.Background(), "jobs", Options{WAL: wal.Options{FS: disk.Crash(crashfs.SyncedOnly)}})
		require.NoError(t, err)
		require.EqualValues(t, acks.Load(), checkHistory(t, e, tried))
		require.NoError(t, e.Close())
	}
}

// F14, R3: the power goes in the middle of a crowd.
func TestF14_R3_random_commands_and_power_goes(t *testing.T) {
	for round := range 12 {
		base := crashfs.New()
		disk := crashfs.Inject(base, crashfs.MustSchedule(fmt.Sprint("crash ", 10+25*round)))
		e, err := Open(context.Background(), "jobs", Options{WAL: wal.Options{FS: disk, SegmentBytes: 16 << 10}})
		require.NoError(t, err)
		var acks atomic.Int64
		tried := crowd(e, 16, uint64(round), &acks)
		_ = e.Close() // the power is gone
		require.Zero(t, e.locks.inUse())
		for seed := range uint64(4) {
			e, err = Open(context.Background(), "jobs", Options{WAL: wal.Options{FS: base.CrashSeed(seed)}})
			require.NoError(t, err)
			require.EqualValues(t, acks.Load(), checkHistory(t, e, tried))
			require.NoError(t, e.Close())
		}
	}
}

// W4, F8: a sync fails. What was in flight is unknown, whatever comes later is refused and was not written, reads go on;
// after a reopen the engine is the fold of what is there.
func TestF8_W4_a_failed_sync_is_final(t *testing.T) {
	ctx, base := context.Background(), crashfs.New()
	disk := crashfs.Inject(base, crashfs.MustSchedule("sync *.jsonl #2 error EIO lie"))
	e, err := Open(ctx, "jobs", Options{WAL: wal.Options{FS: disk}})
	require.NoError(t, err)
	_, err = e.Submit(ctx, Submission{JobID: "a"})
	require.NoError(t, err)
	_, err = e.Validate(ctx, "a")
	require.ErrorIs(t, err, wal.ErrFailed)
	require.ErrorIs(t, err, wal.ErrOutcomeUnknown)
	require.ErrorIs(t, err, syscall.EIO)
	for range 2 {
		_, err = e.Submit(ctx, Submission{JobID: "b"})
		require.ErrorIs(t, err, wal.ErrFailed)
		require.NotErrorIs(t, err, wal.ErrOutcomeUnknown)
		require.ErrorIs(t, err, syscall.EIO, "the first cause")
	}
	job, _ := e.Job("a")
	require.Equal(t, statemachine.Submitted, job.State, "what may not be there is not shown")
	seqs, errs := walked(e, "a")
	require.Empty(t, errs)
	require.Equal(t, []uint64{1}, seqs)
	require.ErrorIs(t, e.Close(), wal.ErrFailed)
	require.ErrorIs(t, e.Close(), wal.ErrFailed, "the same again")

	e = inMemory(t, base.Crash(crashfs.SyncedOnly), Options{})
	job, _ = e.Job("a")
	require.Equal(t, statemachine.Submitted, job.State)
	_, err = e.Validate(ctx, "a")
	require.NoError(t, err)
}

// F10: a full disk is a no, and nothing more: the same command succeeds once there is room.
func TestF10_a_full_disk_is_a_definite_no(t *testing.T) {
	ctx, base := context.Background(), crashfs.New()
	disk := crashfs.Inject(base, nil)
	e, err := Open(ctx, "jobs", Options{WAL: wal.Options{FS: disk}})
	require.NoError(t, err)
	_, err = e.Submit(ctx, Submission{JobID: "a"})
	require.NoError(t, err)
	disk.SetDisk(10)
	_, err = e.Do(ctx, Validate("a"), Submit(Submission{JobID: "b"}))
	require.ErrorIs(t, err, wal.ErrNoSpace)
	require.NotErrorIs(t, err, wal.ErrFailed)
	job, _ := e.Job("a")
	require.Equal(t, statemachine.Submitted, job.State)
	require.Zero(t, e.locks.inUse())
	disk.SetDisk(-1)
	_, err = e.Do(ctx, Validate("a"), Submit(Submission{JobID: "b"}))
	require.NoError(t, err)
	require.NoError(t, e.Close())
	e = inMemory(t, base.Crash(crashfs.SyncedOnly), Options{})
	require.EqualValues(t, 3, e.Report().Replayed)
}

// While a sync hangs: whoever waits for the same job can give up, and nothing of it is written; the queue behind it goes
// on when the disk does; other jobs are read, listed and counted as if nothing were.
func TestF26_giving_up_while_waiting_writes_nothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, disk := context.Background(), crashfs.Inject(crashfs.New(), crashfs.MustSchedule("sync *.jsonl #2 freeze"))
		e, err := Open(ctx, "jobs", Options{WAL: wal.Options{FS: disk}})
		require.NoError(t, err)
		_, err = e.Do(ctx, Submit(Submission{JobID: "a"}), Submit(Submission{JobID: "b"}))
		require.NoError(t, err)
		results := make(map[string]chan error)
		run := func(name string, ctx context.Context, commands ...Command) {
			results[name] = make(chan error, 1)
			go func() { _, err := e.Do(ctx, commands...); results[name] <- err }()
			synctest.Wait()
		}
		impatient, cancel := context.WithCancel(ctx)
		run("holds a", ctx, Validate("a"))
		run("gives up on a", impatient, Fail("a", errBroken))
		run("gives up on b and a", impatient, Fail("b", errBroken), Fail("a", errBroken))
		run("gives up in the middle", impatient, Submit(Submission{JobID: "0"}), Submit(Submission{JobID: "a"}), Submit(Submission{JobID: "z"}))
		run("waits for a", ctx, Start("a"))
		run("waits for the log", ctx, Submit(Submission{JobID: "other"}))
		cancel()
		for _, name := range []string{"gives up on a", "gives up on b and a", "gives up in the middle"} {
			require.ErrorIs(t, <-results[name], context.Canceled, name)
		}
		job, _ := e.Job("a")
		require.Equal(t, statemachine.Submitted, job.State)
		require.Len(t, slices.Collect(e.Jobs(projection.Query{})), 2)
		require.Equal(t, 2, e.Report().Jobs[statemachine.Submitted])
		require.EqualValues(t, 2, e.Stats().Events)
		seqs, errs := walked(e, "a")
		require.Empty(t, errs)
		require.Equal(t, []uint64{1}, seqs)

		disk.Release()
		for _, name := range []string{"holds a", "waits for a", "waits for the log"} {
			require.NoError(t, <-results[name], name)
		}
		require.Zero(t, e.locks.inUse())
		job, _ = e.Job("a")
		require.Equal(t, statemachine.Started, job.State)
		job, _ = e.Job("b")
		require.Equal(t, statemachine.Submitted, job.State)
		require.EqualValues(t, 5, e.log.LastSeq())
		require.NoError(t, e.Close())
	})
}

// Groups that name the same jobs in opposite orders don't wait for each other for ever.
func TestGroupsInOppositeOrdersDoNotDeadlock(t *testing.T) {
	ctx, e := context.Background(), inMemory(t, crashfs.New(), Options{})
	const n = 10
	var all sync.WaitGroup
	var won atomic.Int64
	for g := range 16 {
		all.Go(func() {
			for i := range 30 {
				var group []Command
				for k := range n {
					if g%2 == 0 {
						k = n - 1 - k
					}
					group = append(group, Submit(Submission{JobID: fmt.Sprint(i, "-", k)}))
				}
				if _, err := e.Do(ctx, group...); err == nil {
					won.Add(1)
				} else if !errors.Is(err, statemachine.ErrDuplicateJob) {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	require.EqualValues(t, 30, won.Load(), "of each sixteen one")
	require.EqualValues(t, 30*n, e.log.LastSeq())
	require.Zero(t, e.locks.inUse())
}
