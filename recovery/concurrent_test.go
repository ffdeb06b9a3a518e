package recovery

import (
	"context"
	"errors"
	"fmt"
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
