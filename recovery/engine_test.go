package recovery

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// inMemory opens an engine on a disk in memory.
func inMemory(t testing.TB, disk wal.FS, opts Options) *Engine {
	opts.WAL.FS = disk
	e, err := Open(context.Background(), "jobs", opts)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, e.Close()) })
	return e
}

// ways leads a job to each state, by commands that are all legal.
var ways = map[statemachine.State][]wal.EventType{
	"":            {},
	"submitted":   {wal.JobSubmitted},
	"validated":   {wal.JobSubmitted, wal.JobValidated},
	"started":     {wal.JobSubmitted, wal.JobValidated, wal.JobStarted},
	"completed":   {wal.JobSubmitted, wal.JobValidated, wal.JobStarted, wal.JobCompleted},
	"failed":      {wal.JobSubmitted, wal.JobFailed},
	"rolled_back": {wal.JobSubmitted, wal.JobFailed, wal.JobRolledBack},
}

// S1: every command in every state does what the reference machine says. A refusal says from where, what, and what would
// have been allowed, and writes nothing.
func TestS1_every_command_in_every_state(t *testing.T) {
	ctx, e := context.Background(), inMemory(t, crashfs.New(), Options{})
	call := map[wal.EventType]func(id string) (statemachine.Job, error){
		wal.JobSubmitted:  func(id string) (statemachine.Job, error) { return e.Submit(ctx, Submission{JobID: id}) },
		wal.JobValidated:  func(id string) (statemachine.Job, error) { return e.Validate(ctx, id) },
		wal.JobStarted:    func(id string) (statemachine.Job, error) { return e.Start(ctx, id) },
		wal.JobCompleted:  func(id string) (statemachine.Job, error) { return e.Complete(ctx, id, nil) },
		wal.JobFailed:     func(id string) (statemachine.Job, error) { return e.Fail(ctx, id, errBroken) },
		wal.JobRolledBack: func(id string) (statemachine.Job, error) { return e.RollBack(ctx, id, "") },
		wal.JobResumed:    func(id string) (statemachine.Job, error) { return e.Resume(ctx, id) },
		wal.JobStep:       func(id string) (statemachine.Job, error) { return e.Step(ctx, id, "one", 1) },
		wal.JobProgress:   func(id string) (statemachine.Job, error) { return e.SetProgress(ctx, id, nil) },
		wal.JobStepUndone: func(id string) (statemachine.Job, error) { return e.UndoStep(ctx, id, "one") },
		wal.JobHeld:       func(id string) (statemachine.Job, error) { return e.Hold(ctx, id, "why") },
		wal.JobReleased:   func(id string) (statemachine.Job, error) { return e.Release(ctx, id, "go on") },
	}
	for from, way := range ways {
		for _, kind := range kinds {
			id := fmt.Sprintf("%s-%s", from, kind)
			for _, k := range way {
				_, err := call[k](id)
				require.NoError(t, err)
			}
			last := e.log.LastSeq()
			job, err := call[kind](id)
			if kind == wal.JobReleased && step(from, kind) != "" {
				require.Equal(t, &statemachine.HeldError{JobID: id, Event: kind}, err, "it is not held")
				require.Equal(t, last, e.log.LastSeq())
				_, err = e.Hold(ctx, id, "why")
				require.NoError(t, err)
				last++
				job, err = call[kind](id)
			}
			if to := step(from, kind); to != "" {
				require.NoError(t, err)
				require.Equal(t, []any{id, to, last + 1}, []any{job.ID, job.State, job.Seq})
				again, _ := e.Job(id)
				require.Equal(t, job, again, "a caller reads its own writes")
				continue
			}
			var refused *statemachine.TransitionError
			require.ErrorAs(t, err, &refused, id)
			require.ErrorIs(t, err, statemachine.ErrTransition)
			require.Zero(t, job)
			legal := slices.DeleteFunc(slices.Clone(kinds), func(k wal.EventType) bool {
				return step(from, k) == "" || k == wal.JobReleased // no job here is held
			})
			require.Equal(t, &statemachine.TransitionError{JobID: id, From: from, Event: kind, Allowed: slices.Clip(refused.Allowed)}, refused)
			require.Equal(t, append([]wal.EventType{}, legal...), append([]wal.EventType{}, refused.Allowed...))
			require.Equal(t, from == "", errors.Is(err, statemachine.ErrUnknownJob), id)
			require.Equal(t, from != "" && kind == wal.JobSubmitted, errors.Is(err, statemachine.ErrDuplicateJob), id)
			require.Equal(t, last, e.log.LastSeq(), "refused, and written")
		}
	}
}

// Do is all or none, in order: a group sees what it does itself.
func TestDo_all_or_none(t *testing.T) {
	ctx, e := context.Background(), inMemory(t, crashfs.New(), Options{})
	submit := func(id string) Command { return Submit(Submission{JobID: id, Capability: "shell"}) }
	jobs, err := e.Do(ctx, submit("a"), submit("b"), Validate("a"), Start("a"), Complete("a", 7), Fail("b", errBroken))
	require.NoError(t, err)
	var got []string
	for _, job := range jobs {
		got = append(got, fmt.Sprint(job.ID, " ", job.State, " ", job.Seq))
	}
	require.Equal(t, []string{"a completed 5", "b failed 6", "a completed 5", "a completed 5", "a completed 5", "b failed 6"}, got,
		"each as it stands after all of them")
	for name, c := range map[string]struct {
		commands []Command
		is       error
		says     string
	}{
		"the last":            {[]Command{submit("x"), Validate("x"), Complete("x", 1)}, statemachine.ErrTransition, "command 3 of 3"},
		"the first":           {[]Command{Start("x"), submit("x")}, statemachine.ErrUnknownJob, "command 1 of 2"},
		"twice the same":      {[]Command{submit("x"), submit("x")}, statemachine.ErrDuplicateJob, "command 2 of 2"},
		"one is there":        {[]Command{submit("x"), submit("a"), submit("y")}, statemachine.ErrDuplicateJob, "command 2 of 3"},
		"bad JSON":            {[]Command{submit("x"), Submit(Submission{Args: json.RawMessage("{")})}, wal.ErrInvalid, "Args"},
		"does not marshal":    {[]Command{submit("x"), Submit(Submission{Args: func() {}})}, wal.ErrInvalid, "command 2 of 2"},
		"a zero Command":      {[]Command{submit("x"), {}}, wal.ErrInvalid, "command 2 of 2"},
		"nil cause":           {[]Command{submit("x"), Fail("x", nil)}, wal.ErrInvalid, "command 2 of 2"},
		"after what is final": {[]Command{RollBack("a", ""), RollBack("a", "")}, statemachine.ErrTransition, "command 2 of 2"},
	} {
		jobs, err := e.Do(ctx, c.commands...)
		require.ErrorIs(t, err, c.is, name)
		require.ErrorContains(t, err, c.says, name)
		require.Nil(t, jobs, name)
		require.EqualValues(t, 6, e.log.LastSeq(), name)
		_, known := e.Job("x")
		require.False(t, known, name)
	}
	var many []Command
	for i := range 500 {
		many = append(many, submit(fmt.Sprint("many-", i)), Validate(fmt.Sprint("many-", i)))
	}
	jobs, err = e.Do(ctx, many...)
	require.NoError(t, err)
	require.Len(t, jobs, 1000)
	require.Equal(t, 500, e.Report().Jobs[statemachine.Validated])
}

// Every event carries its job's capability, also within a group: whoever reads the log alone sees it.
func TestEventsCarryTheCapability(t *testing.T) {
	ctx, e := context.Background(), inMemory(t, crashfs.New(), Options{})
	_, err := e.Do(ctx, Submit(Submission{JobID: "a", Capability: "shell"}), Submit(Submission{JobID: "b"}), Validate("a"), Validate("b"))
	require.NoError(t, err)
	_, err = e.Start(ctx, "a")
	require.NoError(t, err)
	for event, err := range e.log.Events(ctx, 1) {
		require.NoError(t, err)
		require.Equal(t, map[string]string{"a": "shell", "b": ""}[event.JobID], event.Capability)
	}
}

func TestSubmitNamesTheJob(t *testing.T) {
	ctx, e := context.Background(), inMemory(t, crashfs.New(), Options{})
	seen := make(map[string]bool)
	for range 50 {
		job, err := e.Submit(ctx, Submission{})
		require.NoError(t, err)
		require.Regexp(t, "^[0-9a-f]{32}$", job.ID)
		require.False(t, seen[job.ID])
		seen[job.ID] = true
	}
	_, err := e.Do(ctx, Submit(Submission{}), Submit(Submission{}))
	require.NoError(t, err)
}

// What the caller holds and what the engine holds are apart: before, after, and in between.
func TestNothingIsSharedWithTheCaller(t *testing.T) {
	ctx, disk := context.Background(), crashfs.New()
	e := inMemory(t, disk, Options{})
	given := json.RawMessage(`{"a":1}`)
	job, err := e.Submit(ctx, Submission{JobID: "a", Args: given})
	require.NoError(t, err)
	spoil(given)
	mine, _ := job.Args.JSON()
	spoil(mine)
	read, err := e.Read(ctx, job.Args)
	require.NoError(t, err)
	spoil(read)
	for event, err := range e.History(ctx, "a") {
		require.NoError(t, err)
		spoil(event.Args)
	}
	for event, err := range e.Follow(ctx, 1) {
		require.NoError(t, err)
		spoil(event.Args)
		break
	}
	job, _ = e.Job("a")
	got, held := job.Args.JSON()
	require.True(t, held)
	require.Equal(t, `{"a":1}`, string(got))
	for event, err := range e.History(ctx, "a") {
		require.NoError(t, err)
		require.Equal(t, `{"a":1}`, string(event.Args))
	}
}

func spoil(b []byte) {
	for i := range b {
		b[i] = 'x'
	}
}

// After Close, what was known is known; what needs the log says that it is closed.
func TestReadsAfterClose(t *testing.T) {
	ctx, disk := context.Background(), crashfs.New()
	e, err := Open(ctx, "jobs", Options{WAL: wal.Options{FS: disk}})
	require.NoError(t, err)
	job, err := e.Submit(ctx, Submission{JobID: "a", Args: 1})
	require.NoError(t, err)
	require.NoError(t, e.Close())
	again, known := e.Job("a")
	require.True(t, known)
	require.Equal(t, job, again)
	require.Len(t, slices.Collect(e.Jobs(projection.Query{})), 1)
	page, _, err := e.Page(projection.Query{})
	require.NoError(t, err)
	require.Len(t, page, 1)
	require.Empty(t, e.Interrupted())
	require.Equal(t, 1, e.Report().Jobs[statemachine.Submitted])
	require.EqualValues(t, 1, e.Stats().Events)
	args, err := e.Read(ctx, again.Args)
	require.NoError(t, err)
	require.Equal(t, "1", string(args))
	_, errs := walked(e, "a")
	require.Len(t, errs, 1)
	require.ErrorIs(t, errs[0], wal.ErrClosed)
	for _, err := range e.Follow(ctx, 1) {
		require.ErrorIs(t, err, wal.ErrClosed)
	}
}

// F19: a clock that jumps back changes no order, and makes no duration negative.
func TestF19_a_clock_that_goes_backwards(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	back := func() time.Time { now = now.Add(-time.Hour); return now }
	ctx, e := context.Background(), inMemory(t, crashfs.New(), Options{WAL: wal.Options{Now: back}})
	for _, c := range []Command{Submit(Submission{JobID: "a"}), Validate("a"), Start("a"), Complete("a", nil)} {
		_, err := e.Do(ctx, c)
		require.NoError(t, err)
	}
	job, _ := e.Job("a")
	require.True(t, job.FinishedAt.Before(job.StartedAt) && job.StartedAt.Before(job.SubmittedAt))
	require.Zero(t, job.Took())
	require.Zero(t, job.Queued())
	require.Zero(t, e.Stats().Running.Max)
	seqs, errs := walked(e, "a")
	require.Empty(t, errs)
	require.Equal(t, []uint64{1, 2, 3, 4}, seqs)
}

// A sighting is a projection that tells when a job has come.
type sighting struct {
	job  string
	seen chan struct{}
}

func (s *sighting) Name() string { return "sighting" }

func (s *sighting) Apply(e wal.Event, _ statemachine.Job) error {
	if e.JobID == s.job {
		close(s.seen)
	}
	return nil
}

// Whoever looks on, read-only, learns that the writer died when the next one has begun.
func TestInterruptedOfAReaderFollowsTheWritersEpoch(t *testing.T) {
	ctx, dir := context.Background(), t.TempDir()
	writer, err := Open(ctx, dir, Options{})
	require.NoError(t, err)
	_, err = writer.Submit(ctx, Submission{JobID: "a"})
	require.NoError(t, err)
	b := &sighting{job: "b", seen: make(chan struct{})}
	reader, err := Open(ctx, dir, Options{WAL: wal.Options{ReadOnly: true}, Projections: []projection.Projection{b}})
	require.NoError(t, err)
	require.Empty(t, reader.Interrupted(), "it may be at work")
	require.NoError(t, writer.Close())
	writer = opened(t, dir)
	_, err = writer.Submit(ctx, Submission{JobID: "b"})
	require.NoError(t, err)
	<-b.seen
	require.Equal(t, []string{"a"}, inOrder(reader.Interrupted()))
	require.Equal(t, []string{"a"}, inOrder(writer.Interrupted()))
	require.NoError(t, reader.Close())
}

// R2, progress: it is told now and then, in order, and at the end.
func TestProgressIsToldOnTheWay(t *testing.T) {
	disk := crashfs.New()
	l, err := wal.Open("jobs", wal.Options{FS: disk})
	require.NoError(t, err)
	const events = 2*progressEvery + 5
	group := make([]wal.Event, events)
	for i := range group {
		group[i] = wal.Event{Type: wal.JobSubmitted, JobID: fmt.Sprint(i)}
	}
	_, err = l.Append(context.Background(), group...)
	require.NoError(t, err)
	require.NoError(t, l.Close())
	var told []uint64
	e := inMemory(t, disk, Options{OnProgress: func(p Progress) {
		require.EqualValues(t, events, p.Last)
		told = append(told, p.Applied)
	}})
	require.Equal(t, []uint64{progressEvery, 2 * progressEvery, events}, told)
	_, err = e.Submit(context.Background(), Submission{})
	require.NoError(t, err)
	require.Len(t, told, 3, "not after Open")
	require.EqualValues(t, events, e.Report().Replayed)
}

// R2, progress: it is told of each time that the log is read, from the first on for a projection that no checkpoint has.
func TestProgressBeginsAgainForAProjectionThatNoCheckpointHas(t *testing.T) {
	disk := crashfs.New()
	e := inMemory(t, disk, Options{})
	submitSome(t, e, 1)
	require.NoError(t, e.Checkpoint(t.Context()))
	const events = progressEvery + 5
	rest := make([]Command, events-1)
	for i := range rest {
		rest[i] = Submit(Submission{})
	}
	_, err := e.Do(t.Context(), rest...)
	require.NoError(t, err)
	require.NoError(t, e.Close())
	var told []uint64
	opts := Options{OnProgress: func(p Progress) { told = append(told, p.Applied) }}
	require.NoError(t, inMemory(t, disk, opts).Close())
	require.Equal(t, []uint64{progressEvery, events}, told)
	told, opts.Projections = nil, []projection.Projection{newCounter()}
	require.NoError(t, inMemory(t, disk, opts).Close())
	require.Equal(t, []uint64{progressEvery, events, progressEvery, events}, told)
}
