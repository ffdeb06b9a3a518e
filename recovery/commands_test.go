package recovery

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// Bad input is refused at the door, with the field named, and nothing of it is written.
func TestBadInputWritesNothing(t *testing.T) {
	ctx, disk := context.Background(), crashfs.New()
	e, err := Open(ctx, "jobs", Options{WAL: wal.Options{FS: disk, MaxEventBytes: 1 << 16}})
	require.NoError(t, err)
	_, err = e.Submit(ctx, Submission{JobID: "taken", Args: 1})
	require.NoError(t, err)
	synced := disk.Count("sync")
	done, cancel := context.WithCancel(ctx)
	cancel()
	var none context.Context

	for name, c := range map[string]struct {
		ctx     context.Context
		command []Command
		is      error
		says    string
	}{
		"nil context":           {none, []Command{Start("taken")}, wal.ErrInvalid, "context"},
		"cancelled context":     {done, []Command{Validate("taken")}, context.Canceled, ""},
		"no commands":           {ctx, nil, wal.ErrInvalid, "commands"},
		"zero command":          {ctx, []Command{{}}, wal.ErrInvalid, "command"},
		"empty id":              {ctx, []Command{Start("")}, wal.ErrInvalid, "JobID"},
		"id too long":           {ctx, []Command{Submit(Submission{JobID: strings.Repeat("x", 257)})}, wal.ErrInvalid, "JobID"},
		"id of invalid UTF-8":   {ctx, []Command{Submit(Submission{JobID: "\xff"})}, wal.ErrInvalid, "JobID"},
		"id with control":       {ctx, []Command{Submit(Submission{JobID: "a\nb"})}, wal.ErrInvalid, "JobID"},
		"capability":            {ctx, []Command{Submit(Submission{Capability: "a\x00"})}, wal.ErrInvalid, "Capability"},
		"args: duplicate names": {ctx, []Command{Submit(Submission{Args: json.RawMessage(`{"a":1,"a":2}`)})}, wal.ErrInvalid, "Args"},
		"args: lone surrogate":  {ctx, []Command{Submit(Submission{Args: json.RawMessage(`"\ud800"`)})}, wal.ErrInvalid, "Args"},
		"args: NaN":             {ctx, []Command{Submit(Submission{Args: math.NaN()})}, wal.ErrInvalid, "Args"},
		"args: a channel":       {ctx, []Command{Submit(Submission{Args: make(chan int)})}, wal.ErrInvalid, "Args"},
		"args: too large":       {ctx, []Command{Submit(Submission{Args: strings.Repeat("x", 1<<16)})}, wal.ErrTooLarge, ""},
		"nil cause":             {ctx, []Command{Fail("taken", nil)}, wal.ErrInvalid, "cause"},
		"step without a name":   {ctx, []Command{Step("taken", "", 1)}, wal.ErrInvalid, "step: empty"},
		"step of bad UTF-8":     {ctx, []Command{UndoStep("taken", "\xff")}, wal.ErrInvalid, "step: not valid UTF-8"},
		"step too long":         {ctx, []Command{Step("taken", strings.Repeat("x", 257), 1)}, wal.ErrInvalid, "step: 257 bytes"},
		"step with control":     {ctx, []Command{Step("taken", "a\nb", 1)}, wal.ErrInvalid, "step: control"},
		"progress: NaN":         {ctx, []Command{SetProgress("taken", math.NaN())}, wal.ErrInvalid, "Progress"},
		"hold without a reason": {ctx, []Command{Hold("taken", "")}, wal.ErrInvalid, "reason"},
		"release, undecided":    {ctx, []Command{Release("taken", "")}, wal.ErrInvalid, "decision"},
		"release, not held":     {ctx, []Command{Release("taken", "go")}, statemachine.ErrNotHeld, "not held"},
		"changed since":         {ctx, []Command{Validate("taken").IfSeq(7)}, ErrChanged, "seq 7 was its newest event, now it is seq 1"},
		"unknown job":           {ctx, []Command{Start("nobody")}, statemachine.ErrUnknownJob, "nobody"},
		"duplicate job":         {ctx, []Command{Submit(Submission{JobID: "taken"})}, statemachine.ErrDuplicateJob, "taken"},
		"wrong step":            {ctx, []Command{Complete("taken", 1)}, statemachine.ErrTransition, "allowed: job_validated, job_failed, job_held"},
		"second of a group":     {ctx, []Command{Validate("taken"), Validate("taken")}, statemachine.ErrTransition, "command 2 of 2"},
	} {
		_, err := e.Do(c.ctx, c.command...)
		require.ErrorIs(t, err, c.is, name)
		require.ErrorContains(t, err, c.says, name)
	}
	require.Equal(t, synced, disk.Count("sync"), "something was written")
	job, _ := e.Job("taken")
	require.Equal(t, statemachine.Submitted, job.State)
	require.NoError(t, e.Close())
	_, err = e.Validate(ctx, "taken")
	require.ErrorIs(t, err, wal.ErrClosed)
	require.NoError(t, e.Close())
}

func TestOpenRefuses(t *testing.T) {
	var none context.Context
	_, err := Open(none, t.TempDir(), Options{})
	require.ErrorIs(t, err, wal.ErrInvalid)
	file := t.TempDir() + "/file"
	require.NoError(t, os.WriteFile(file, nil, 0o644))
	_, err = Open(context.Background(), file, Options{})
	require.ErrorContains(t, err, "file")
	_, err = Open(context.Background(), t.TempDir()+"/none", Options{WAL: wal.Options{ReadOnly: true}})
	require.ErrorIs(t, err, fs.ErrNotExist)
	dir := t.TempDir()
	e := opened(t, dir)
	_, err = Open(context.Background(), dir, Options{})
	require.ErrorIs(t, err, wal.ErrLocked)
	require.NotNil(t, e)
}

// JSON comes back as it went in, but for white space.
func TestPayloadsAreKeptAsGiven(t *testing.T) {
	ctx := context.Background()
	e := opened(t, t.TempDir())
	type nested struct{ Raw json.RawMessage }
	for in, want := range map[any]string{
		"<&>": `"<&>"`, 7: "7",
	} {
		job, err := e.Submit(ctx, Submission{Args: in})
		require.NoError(t, err)
		got, err := e.Read(ctx, job.Args)
		require.NoError(t, err)
		require.Equal(t, want, string(got))
	}
	for _, in := range []any{
		json.RawMessage(` { "n" : 1234567890123456789012345 , "s":"<\u0041>" } `),
		nested{json.RawMessage(`{"n":1234567890123456789012345,"s":"<\u0041>"}`)},
	} {
		job, err := e.Submit(ctx, Submission{Args: in})
		require.NoError(t, err)
		got, _ := job.Args.JSON()
		require.Contains(t, string(got), `{"n":1234567890123456789012345,"s":"<\u0041>"}`)
	}
}

// Two commands race for one job: one wins, the other is told why not.
func TestS1_two_commands_race_for_one_job(t *testing.T) {
	ctx := context.Background()
	e, err := Open(ctx, "jobs", Options{WAL: wal.Options{FS: crashfs.New()}})
	require.NoError(t, err)
	for i := range 200 {
		id := fmt.Sprint(i)
		_, err := e.Do(ctx, Submit(Submission{JobID: id}), Validate(id), Start(id))
		require.NoError(t, err)
		errs := make([]error, 2)
		var both sync.WaitGroup
		both.Go(func() { _, errs[0] = e.Complete(ctx, id, nil) })
		both.Go(func() { _, errs[1] = e.Fail(ctx, id, errors.New("x")) })
		both.Wait()
		var refused *statemachine.TransitionError
		require.ErrorAs(t, errors.Join(errs...), &refused)
		require.True(t, (errs[0] == nil) != (errs[1] == nil))
		require.Equal(t, []wal.EventType{wal.JobRolledBack, wal.JobStepUndone}, refused.Allowed)
	}
	require.NoError(t, e.Close())
}

// Ten thousand goroutines on ten thousand jobs share syncs.
func TestTenThousandJobsShareSyncs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		base := crashfs.New()
		disk := crashfs.Inject(base, crashfs.MustSchedule("sync *.jsonl #2 freeze"))
		ctx, opts := context.Background(), Options{WAL: wal.Options{FS: disk}}
		e, err := Open(ctx, "jobs", opts)
		require.NoError(t, err)
		const jobs = 10_000
		before := base.Count("sync")
		var all sync.WaitGroup
		for i := range jobs {
			all.Go(func() {
				if _, err := e.Submit(ctx, Submission{JobID: fmt.Sprint(i)}); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait() // one waits for the disk, and all others for it
		disk.Release()
		all.Wait()
		require.Less(t, base.Count("sync")-before, jobs/100)
		require.NoError(t, e.Close())
		opts.WAL.FS = base.Crash(crashfs.SyncedOnly)
		e, err = Open(ctx, "jobs", opts)
		require.NoError(t, err)
		require.Equal(t, jobs, e.Report().Jobs[statemachine.Submitted])
		require.NoError(t, e.Close())
	})
}

// While a sync hangs, reads do not wait, a second command on the job can be given up, and the rest ends well.
func TestReadsNeverWaitForASync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, disk := context.Background(), crashfs.Inject(crashfs.New(), crashfs.MustSchedule("sync *.jsonl #2 freeze"))
		e, err := Open(ctx, "jobs", Options{WAL: wal.Options{FS: disk}})
		require.NoError(t, err)
		_, err = e.Submit(ctx, Submission{JobID: "a"})
		require.NoError(t, err)

		first := make(chan error, 1)
		go func() { _, err := e.Validate(ctx, "a"); first <- err }()
		synctest.Wait()
		job, _ := e.Job("a")
		require.Equal(t, statemachine.Submitted, job.State, "not durable, so not shown")
		require.Len(t, e.Report().Jobs, 1)

		impatient, cancel := context.WithCancel(ctx)
		second := make(chan error, 1)
		go func() { _, err := e.Fail(impatient, "a", errors.New("x")); second <- err }()
		synctest.Wait()
		cancel()
		require.ErrorIs(t, <-second, context.Canceled)

		disk.Release()
		require.NoError(t, <-first)
		require.NoError(t, e.Close())
	})
}

// F26: Close in the middle of everything: each command is durable or was never written, and no goroutine is left.
func TestF26_close_during_commands(t *testing.T) {
	before := runtime.NumGoroutine()
	ctx, disk := context.Background(), crashfs.New()
	e, err := Open(ctx, "jobs", Options{WAL: wal.Options{FS: disk}})
	require.NoError(t, err)
	var acked sync.Map
	var n atomic.Int64
	var all sync.WaitGroup
	for i := range 32 {
		all.Go(func() {
			for k := 0; ; k++ {
				job, err := e.Submit(ctx, Submission{JobID: fmt.Sprint(i, "-", k)})
				if err != nil {
					if !errors.Is(err, wal.ErrClosed) {
						t.Error(err)
					}
					return
				}
				acked.Store(job.ID, job.Seq)
				n.Add(1)
			}
		})
	}
	for n.Load() < 500 {
		runtime.Gosched()
	}
	require.NoError(t, e.Close())
	all.Wait()
	require.Zero(t, e.locks.inUse(), "no job stays locked")
	e, err = Open(ctx, "jobs", Options{WAL: wal.Options{FS: disk}})
	require.NoError(t, err)
	count := 0
	acked.Range(func(id, seq any) bool {
		job, known := e.Job(id.(string))
		require.True(t, known)
		require.Equal(t, seq, job.Seq)
		count++
		return true
	})
	require.EqualValues(t, count, e.Report().Replayed, "an event that nobody was told of")
	require.NoError(t, e.Close())
	for runtime.NumGoroutine() > before {
		runtime.Gosched() // the timers' goroutines end by themselves; the test's own timeout ends this
	}
}

// A reader in another process, or here, follows beside the writer.
func TestReadOnlyEngineFollowsTheWriter(t *testing.T) {
	ctx, dir := context.Background(), t.TempDir()
	writer := opened(t, dir)
	_, err := writer.Submit(ctx, Submission{JobID: "a"})
	require.NoError(t, err)
	reader, err := Open(ctx, dir, Options{WAL: wal.Options{ReadOnly: true}})
	require.NoError(t, err)
	_, err = writer.Validate(ctx, "a")
	require.NoError(t, err)
	for job := (statemachine.Job{}); job.State != statemachine.Validated; {
		job, _ = reader.Job("a")
		runtime.Gosched()
	}
	_, err = reader.Start(ctx, "a")
	require.ErrorIs(t, err, wal.ErrReadOnly)
	require.NoError(t, reader.Close())
}

func TestHistoryOfNobody(t *testing.T) {
	e := opened(t, t.TempDir())
	for _, err := range e.History(context.Background(), "nobody") {
		require.ErrorIs(t, err, statemachine.ErrUnknownJob)
	}
	require.Panics(t, func() { e.Jobs(projection.Query{Limit: -1}) })
}

// Open replays in the open: progress to the end, and a context that ends it.
func TestOpenReportsProgressAndCanBeCancelled(t *testing.T) {
	dir := written(t, wal.Event{Type: wal.JobSubmitted, JobID: "a"}, wal.Event{Type: wal.JobValidated, JobID: "a", Prev: 1})
	var got []Progress
	e, err := Open(context.Background(), dir, Options{OnProgress: func(p Progress) { got = append(got, p) }})
	require.NoError(t, err)
	require.NoError(t, e.Close())
	require.Len(t, got, 1)
	require.EqualValues(t, 2, got[0].Applied)
	require.EqualValues(t, 2, got[0].Last)

	ctx, cancel := context.WithCancel(context.Background())
	hanging := projectionFunc(func() { cancel(); <-ctx.Done() })
	_, err = Open(ctx, dir, Options{Projections: []projection.Projection{hanging}})
	require.ErrorIs(t, err, context.Canceled)
	opened(t, dir) // the lock is free again
}

type projectionFunc func()

func (projectionFunc) Name() string { return "func" }
func (f projectionFunc) Apply(wal.Event, statemachine.Job) error {
	f()
	return nil
}
