package crashtest_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/recovery/crashtest"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// The engine runs on a log that is not package wal's, as it does on that one.
func ExampleOpenSimple() {
	ctx, disk := context.Background(), crashfs.New()
	open := func(disk wal.FS) *recovery.Engine {
		log, err := crashtest.OpenSimple(disk, "jobs")
		if err != nil {
			panic(err)
		}
		engine, err := recovery.OpenLog(ctx, log, recovery.Options{})
		if err != nil {
			panic(err)
		}
		return engine
	}
	_, err := open(disk).Do(ctx, recovery.Submit(recovery.Submission{JobID: "job-1"}), recovery.Validate("job-1"),
		recovery.Start("job-1"))
	fmt.Println(err)
	engine := open(disk.Crash(crashfs.SyncedOnly))
	for _, job := range engine.Interrupted() {
		fmt.Println(job.ID, "was", job.State)
	}
	fmt.Println(engine.Close())
	// Output:
	// <nil>
	// job-1 was started
	// <nil>
}

// The same commands make the same jobs on both logs, live and folded again, and what is refused is refused by both.
func TestSimpleLog_engine(t *testing.T) {
	ctx, disks := context.Background(), map[string]wal.FS{"wal": crashfs.New(), "simple": crashfs.New()}
	odd := json.RawMessage(` {"n": 12345678901234567890123, "s":"\u2028<é>"}`)
	null := recovery.Submission{JobID: "b", Args: json.RawMessage("null")}
	commands := [][]recovery.Command{
		{recovery.Submit(recovery.Submission{JobID: "a", Capability: "<&>", Args: odd})},
		{recovery.Validate("a"), recovery.Start("a"), recovery.Submit(null)},
		{recovery.Complete("a", json.RawMessage(`[1.50, null]`))},
		{recovery.Start("b")}, // not yet
		{recovery.Fail("b", errors.New("bad \x00 luck\n")), recovery.RollBack("a", "")},
	}
	jobs := make(map[string][]statemachine.Job)
	for name, disk := range disks {
		for range 2 {
			log, err := healthy[name](disk)
			require.NoError(t, err)
			engine, err := recovery.OpenLog(ctx, log, recovery.Options{})
			require.NoError(t, err)
			for i, c := range commands {
				_, err := engine.Do(ctx, c...)
				require.Equal(t, len(jobs[name]) > 0 || i == 3, err != nil, "%s %d: %v", name, i, err)
			}
			all := slices.Collect(engine.Jobs(projection.Query{}))
			for _, job := range all {
				jobs[name] = append(jobs[name], timeless(job))
			}
			require.NoError(t, engine.Close())
		}
		require.Len(t, jobs[name], 4)
		require.Equal(t, jobs[name][:2], jobs[name][2:], "the second opening is as the first")
	}
	require.Equal(t, jobs["wal"], jobs["simple"])
}

func timeless(job statemachine.Job) statemachine.Job {
	job.SubmittedAt, job.ValidatedAt, job.StartedAt = time.Time{}, time.Time{}, time.Time{}
	job.FinishedAt, job.RolledBackAt = time.Time{}, time.Time{}
	return job
}

// What the log refuses, it refuses before it writes a byte.
func TestSimpleLog_refuses(t *testing.T) {
	disk := crashfs.New()
	l, err := crashtest.OpenSimple(disk, "log")
	require.NoError(t, err)
	good := wal.Event{Type: wal.JobSubmitted, JobID: "a"}
	_, err = l.Append(t.Context(), good)
	require.NoError(t, err)
	before, badText := disk.Count(), json.RawMessage("\"\xff\"")
	for name, c := range map[string]struct {
		event wal.Event
		want  error
	}{
		"no type":          {wal.Event{JobID: "b"}, wal.ErrInvalid},
		"no job":           {wal.Event{Type: wal.JobSubmitted}, wal.ErrInvalid},
		"problem":          {wal.Event{Type: wal.JobSubmitted, JobID: "b", Problem: "x"}, wal.ErrInvalid},
		"bad text":         {wal.Event{Type: wal.JobSubmitted, JobID: "b\xff"}, wal.ErrInvalid},
		"bad args":         {wal.Event{Type: wal.JobSubmitted, JobID: "b", Args: json.RawMessage("{")}, wal.ErrInvalid},
		"bad text in args": {wal.Event{Type: wal.JobSubmitted, JobID: "b", Args: badText}, wal.ErrInvalid},
		"stale":            {wal.Event{Type: wal.JobValidated, JobID: "a"}, recovery.ErrConflict},
		"ahead":            {wal.Event{Type: wal.JobValidated, JobID: "a", Prev: 2}, recovery.ErrConflict},
	} {
		_, err := l.Append(t.Context(), c.event)
		require.ErrorIs(t, err, c.want, name)
		_, err = l.Append(t.Context(), wal.Event{Type: wal.JobSubmitted, JobID: "ok"}, c.event)
		require.ErrorIs(t, err, c.want, name)
	}
	_, err = l.Append(t.Context())
	require.ErrorIs(t, err, wal.ErrInvalid)
	done, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = l.Append(done, wal.Event{Type: wal.JobSubmitted, JobID: "c"})
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, before, disk.Count())
	require.EqualValues(t, 1, l.LastSeq())
	require.NoError(t, l.Close())
	require.NoError(t, l.Close())
	_, err = l.Append(t.Context(), wal.Event{Type: wal.JobSubmitted, JobID: "c"})
	require.ErrorIs(t, err, wal.ErrClosed)
}

// After one failed sync the log takes no more, and its events can still be read.
func TestSimpleLog_failsForGood(t *testing.T) {
	disk := crashfs.Inject(crashfs.New(), crashfs.MustSchedule("sync log.jsonl #2 error EIO"))
	l, err := crashtest.OpenSimple(disk, "log")
	require.NoError(t, err)
	_, err = l.Append(t.Context(), wal.Event{Type: wal.JobSubmitted, JobID: "a"})
	require.NoError(t, err)
	_, err = l.Append(t.Context(), wal.Event{Type: wal.JobSubmitted, JobID: "b"})
	require.ErrorIs(t, err, wal.ErrOutcomeUnknown)
	require.ErrorIs(t, err, wal.ErrFailed)
	require.ErrorIs(t, err, syscall.EIO)
	_, err = l.Append(t.Context(), wal.Event{Type: wal.JobSubmitted, JobID: "c"})
	require.ErrorIs(t, err, wal.ErrFailed)
	require.NotErrorIs(t, err, wal.ErrOutcomeUnknown)
	e, err := l.At(t.Context(), 1)
	require.NoError(t, err)
	require.Equal(t, "a", e.JobID)
	require.ErrorIs(t, l.Close(), wal.ErrFailed)
}
