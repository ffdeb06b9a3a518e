package recovery

import (
	"bytes"
	"context"
	"log/slog"
	"runtime"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/statemachine"
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

// S1, F25: the applier ended while one command's event waited to be applied, and another waited for the same job. That one
// went on with the job as it was before the event, and the log got the same step twice, by which the next Open parks the
// job. Found by a soak of random faults.
func TestF25_S1_a_command_behind_one_that_was_not_applied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, disk, proceed := context.Background(), crashfs.New(), make(chan struct{})
		exits := named{"exits", func(wal.Event, statemachine.Job) error {
			<-proceed
			runtime.Goexit()
			return nil
		}}
		e, err := Open(ctx, "jobs", Options{WAL: wal.Options{FS: disk}, Projections: []projection.Projection{exits}})
		require.NoError(t, err)
		var errs [3]error
		for i, id := range []string{"first", "a", "a"} {
			go func() { _, errs[i] = e.Submit(ctx, Submission{JobID: id}) }()
			synctest.Wait()
		}
		close(proceed)
		synctest.Wait()
		require.ErrorIs(t, errs[1], wal.ErrOutcomeUnknown)
		require.ErrorContains(t, errs[2], "stopped behind seq 0")
		require.NotErrorIs(t, errs[2], wal.ErrOutcomeUnknown, "nothing was written")
		require.NoError(t, e.Close())
		job, _ := inMemory(t, disk, Options{}).Job("a")
		require.Empty(t, job.Parked)
	})
}

// An engine on a read-only log that one read error had ended looked just as before: the same jobs, an empty Report,
// nothing in the Logger, and only a command, which such an engine is never given, would have said so.
func TestAnEngineThatCannotFollowItsLogSaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		base := crashfs.New()
		writer := inMemory(t, base, Options{})
		disk, logged := crashfs.Inject(base, nil), new(bytes.Buffer)
		reader, err := Open(context.Background(), "jobs", Options{
			WAL: wal.Options{FS: disk, ReadOnly: true}, Logger: slog.New(slog.NewTextHandler(logged, nil))})
		require.NoError(t, err)
		require.NoError(t, reader.Report().Stopped)
		disk.Stop()
		<-reader.done
		require.ErrorIs(t, reader.Report().Stopped, crashfs.ErrCrashed)
		require.Contains(t, logged.String(), "stopped behind seq 0")
		require.NoError(t, reader.Close())
		require.ErrorIs(t, reader.Report().Stopped, crashfs.ErrCrashed)
		require.NoError(t, writer.Close())
		require.NoError(t, writer.Report().Stopped, "that was Close")
	})
}
