package recovery

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// A log that was closed beneath the engine, while a command was in its last sync: the command's error was wal.ErrClosed,
// which means that nothing was written, and it was all there at the next Open.
func TestADurableCommandIsNotToldThatNothingWasWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, base := context.Background(), crashfs.New()
		disk := crashfs.Inject(base, crashfs.MustSchedule("sync *.jsonl #2 freeze"))
		log, err := wal.Open("jobs", wal.Options{FS: disk})
		require.NoError(t, err)
		e, err := OpenLog(ctx, OnDisk(log), Options{})
		require.NoError(t, err)
		_, err = e.Submit(ctx, Submission{JobID: "a"})
		require.NoError(t, err)
		done := make(chan error)
		go func() { _, err := e.Validate(ctx, "a"); done <- err }()
		synctest.Wait()
		go log.Close()
		synctest.Wait()
		disk.Release()
		err = <-done
		require.ErrorContains(t, err, "the command itself is durable")
		require.ErrorIs(t, err, wal.ErrClosed, "the cause is said")
		require.ErrorIs(t, err, wal.ErrOutcomeUnknown)
		require.NoError(t, e.Close())
		_, err = e.Start(ctx, "a")
		require.NotErrorIs(t, err, wal.ErrOutcomeUnknown, "nothing was written of this one")

		e = inMemory(t, base.Crash(crashfs.SyncedOnly), Options{})
		job, _ := e.Job("a")
		require.EqualValues(t, "validated", job.State)
	})
}
