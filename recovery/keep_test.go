package recovery

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// counter counts events by type, in a projection that can be saved.
type counter struct {
	name    string
	version int
	counts  map[wal.EventType]int
	saveErr error
	loadErr error
}

func newCounter() *counter {
	return &counter{name: "counter", version: 1, counts: map[wal.EventType]int{}}
}

func (c *counter) Name() string { return c.name }
func (c *counter) Version() int { return c.version }
func (c *counter) Apply(e wal.Event, _ statemachine.Job) error {
	c.counts[e.Type]++
	return nil
}

func (c *counter) Snapshot() (func(io.Writer) error, error) {
	raw, err := json.Marshal(c.counts)
	return func(w io.Writer) error {
		if c.saveErr != nil {
			return c.saveErr
		}
		_, err := w.Write(raw)
		return err
	}, err
}

func (c *counter) Load(r io.Reader) error {
	if c.loadErr != nil {
		return c.loadErr
	}
	return json.NewDecoder(r).Decode(&c.counts)
}

// finishOne takes a job to its end.
func finishOne(t testing.TB, e *Engine, id string) {
	_, err := e.Do(t.Context(), Submit(Submission{JobID: id, Capability: "c"}), Validate(id), Start(id), Complete(id, "done"))
	require.NoError(t, err)
}

func checkpoints(t testing.TB, e *Engine) (seqs []uint64) {
	found, err := e.log.(Files).Checkpoints()
	require.NoError(t, err)
	for _, c := range found {
		seqs = append(seqs, c.Seq)
	}
	return seqs
}

// By itself: a checkpoint every so many events, two of which are kept; with Retain, what ended long ago is forgotten.
func TestR5_checkpoints_and_retention_by_themselves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := crashfs.New()
		opts := Options{WAL: wal.Options{FS: disk, SegmentBytes: 2 << 10}, CheckpointEvery: 40, Retain: time.Hour}
		e, err := Open(t.Context(), "jobs", opts)
		require.NoError(t, err)
		_, err = e.Submit(t.Context(), Submission{JobID: "stays open"})
		require.NoError(t, err)
		for i := range 100 {
			finishOne(t, e, fmt.Sprint(i))
			time.Sleep(2 * time.Minute) // of the bubble's clock: whatever is due is done by then
		}
		require.NoError(t, e.Report().Keeping)
		require.Len(t, checkpoints(t, e), 2)
		require.InDelta(t, 30, e.jobs.Len(), 12, "an hour's jobs, and those since the last checkpoint")
		require.Greater(t, e.log.FirstSeq(), uint64(200))
		var history []wal.Event
		for event, err := range e.History(t.Context(), "stays open") {
			require.NoError(t, err)
			history = append(history, event)
		}
		require.Len(t, history, 1)
		require.Equal(t, uint64(1), history[0].Seq)
		require.NoError(t, e.Close())

		e, err = Open(t.Context(), "jobs", opts)
		require.NoError(t, err)
		require.Positive(t, e.Report().Checkpoint)
		require.LessOrEqual(t, e.Report().Replayed, uint64(60))
		require.Equal(t, []string{"stays open"}, inOrder(e.Interrupted()))
		require.NoError(t, e.Close())
	})
}

// What checkpoints cost an event does not grow with the jobs: of many jobs, they lie further apart. What is said is kept to.
func TestR5_checkpoints_of_many_jobs_are_rarer(t *testing.T) {
	const jobs = DefaultCheckpointEvery + 1000
	e, err := Open(t.Context(), "jobs", Options{WAL: wal.Options{FS: crashfs.New(), Sync: wal.SyncNever}})
	require.NoError(t, err)
	require.EqualValues(t, DefaultCheckpointEvery, e.interval())
	for range jobs / 1000 {
		some := make([]Command, 1000)
		for i := range some {
			some[i] = Submit(Submission{})
		}
		_, err := e.Do(t.Context(), some...)
		require.NoError(t, err)
	}
	require.EqualValues(t, jobs, e.interval())
	require.NoError(t, e.Close())

	e, err = Open(t.Context(), "jobs", Options{WAL: wal.Options{FS: crashfs.New()}, CheckpointEvery: 7})
	require.NoError(t, err)
	require.EqualValues(t, 7, e.interval())
	require.NoError(t, e.Close())
}

// A projection that can't be saved keeps the log from being compacted, and is reported; checkpoints go on, each when it
// is due and no sooner.
func TestR5_retention_without_a_snapshot_still_checkpoints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		opts := Options{WAL: wal.Options{FS: crashfs.New()}, CheckpointEvery: 40, Retain: time.Second,
			Projections: []projection.Projection{&recorder{}}}
		e, err := Open(t.Context(), "jobs", opts)
		require.NoError(t, err)
		for i := range 25 {
			finishOne(t, e, fmt.Sprint(i))
			time.Sleep(time.Minute)
		}
		require.Equal(t, []uint64{80, 40}, checkpoints(t, e))
		require.Equal(t, 25, e.jobs.Len())
		var incomplete *IncompleteError
		require.ErrorAs(t, e.Report().Keeping, &incomplete)
		require.NoError(t, e.Close())
	})
}

// A projection that is new, has another version, or can't be loaded is built from the log; the others are loaded.
func TestR2_a_projection_that_no_checkpoint_has_is_built_from_the_log(t *testing.T) {
	for name, change := range map[string]func(*counter){
		"new":     func(c *counter) { c.name = "another" },
		"version": func(c *counter) { c.version++ },
		"broken":  func(c *counter) { c.loadErr = errBroken },
		"panics":  func(c *counter) { c.counts = nil; c.loadErr = nil },
	} {
		t.Run(name, func(t *testing.T) {
			disk := crashfs.New()
			first, loaded := newCounter(), newCounter()
			loaded.name = "loaded"
			opts := Options{Projections: []projection.Projection{first, loaded}}
			e := inMemory(t, disk, opts)
			finishOne(t, e, "a")
			require.NoError(t, e.Checkpoint(t.Context()))
			finishOne(t, e, "b")
			require.NoError(t, e.Close())

			again, kept := newCounter(), newCounter()
			kept.name = "loaded"
			change(again)
			if name == "panics" {
				e = inMemory(t, disk, Options{Projections: []projection.Projection{panicking{again}, kept}})
				require.Len(t, e.Report().PassedOver, 1)
				require.ErrorContains(t, e.Report().PassedOver[0], "panic: no")
			} else {
				e = inMemory(t, disk, Options{Projections: []projection.Projection{again, kept}})
			}
			require.Equal(t, first.counts, kept.counts, "what was loaded takes only what is new")
			require.Equal(t, first.counts, again.counts)
			require.Empty(t, e.Report().Incomplete)
			require.Equal(t, uint64(8+4), e.Report().Replayed, "all for the one, and for the others what lies behind the checkpoint")
			require.Equal(t, 2, e.jobs.Len())
		})
	}
}

// panicking panics when it is loaded.
type panicking struct{ *counter }

func (p panicking) Load(io.Reader) error {
	p.counts = map[wal.EventType]int{}
	panic("no")
}

func (p panicking) Apply(e wal.Event, job statemachine.Job) error {
	if p.counter.counts == nil {
		p.counter.counts = map[wal.EventType]int{}
	}
	return p.counter.Apply(e, job)
}

// What can't be saved makes Compact refuse before it has changed anything, unless that is allowed.
func TestR5_what_cannot_be_saved_is_not_compacted_away(t *testing.T) {
	ctx := t.Context()
	disk := crashfs.New()
	e := inMemory(t, disk, Options{WAL: wal.Options{SegmentBytes: 1 << 10}, Projections: []projection.Projection{&recorder{}}})
	for i := range 10 {
		finishOne(t, e, fmt.Sprint(i))
	}
	last := e.log.LastSeq()
	_, err := e.Compact(ctx, 0)
	var incomplete *IncompleteError
	require.ErrorAs(t, err, &incomplete)
	require.Equal(t, []string{"recorder"}, incomplete.Names)
	require.Equal(t, last, e.log.LastSeq())
	require.NoError(t, e.Checkpoint(ctx), "of all else")
	require.NoError(t, e.Close())

	bad := newCounter()
	bad.saveErr = errBroken
	e = inMemory(t, disk, Options{WAL: wal.Options{SegmentBytes: 1 << 10}, Projections: []projection.Projection{bad}})
	_, err = e.Submit(ctx, Submission{})
	require.NoError(t, err)
	for range 2 {
		err = e.Checkpoint(ctx)
		require.ErrorIs(t, err, errBroken)
		require.ErrorContains(t, err, `checkpoint without projection "counter"`)
		require.Equal(t, []uint64{last + 1, last}, checkpoints(t, e), "of all else")
	}
	bad.saveErr = nil
	require.NoError(t, e.Checkpoint(ctx), "once more, though no event has come")
	require.NoError(t, e.Close())
	again := newCounter()
	e = inMemory(t, disk, Options{WAL: wal.Options{SegmentBytes: 1 << 10}, Projections: []projection.Projection{again}})
	require.Zero(t, e.Report().Replayed)
	require.Equal(t, bad.counts, again.counts)
	require.NoError(t, e.Close())

	e = inMemory(t, disk, Options{WAL: wal.Options{SegmentBytes: 1 << 10}, Projections: []projection.Projection{&recorder{}},
		AllowIncomplete: []string{"recorder"}})
	c, err := e.Compact(ctx, 0)
	require.NoError(t, err)
	require.Equal(t, 10, c.Forgotten)
	require.Positive(t, c.Segments)
}

// An error of Archive keeps the segment; what was archived is what went, byte for byte.
func TestR5_archive_gets_each_segment_before_it_goes(t *testing.T) {
	var archived []string
	var refuse error
	opts := Options{WAL: wal.Options{SegmentBytes: 1 << 10}, Archive: func(_ context.Context, s wal.Sealed) error {
		if refuse != nil && len(archived) == 2 {
			return refuse
		}
		f, err := s.Open()
		require.NoError(t, err)
		raw, err := io.ReadAll(f)
		require.NoError(t, errors.Join(err, f.Close()))
		archived = append(archived, string(raw))
		return nil
	}}
	e := inMemory(t, crashfs.New(), opts)
	for i := range 20 {
		finishOne(t, e, fmt.Sprint(i))
	}
	refuse = errBroken
	c, err := e.Compact(t.Context(), 0)
	require.ErrorIs(t, err, errBroken)
	require.Equal(t, 2, c.Segments)
	refuse = nil
	c, err = e.Compact(t.Context(), 0)
	require.NoError(t, err)
	require.Len(t, archived, 2+c.Segments)
	for i := range 20 {
		require.Contains(t, strings.Join(archived, ""), fmt.Sprintf(`"job_id":"%d"`, i))
	}
}

// W5, R5: an engine that only reads stands beside one that compacts: it forgets the same jobs, by the same events, and if
// it falls behind it says so.
func TestR5_a_reader_beside_a_compacting_writer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, disk := t.Context(), crashfs.New()
		opts := Options{WAL: wal.Options{FS: disk, SegmentBytes: 1 << 10}}
		e, err := Open(ctx, "jobs", opts)
		require.NoError(t, err)
		finishOne(t, e, "before")
		require.NoError(t, e.Checkpoint(ctx))
		reading := opts
		reading.WAL.ReadOnly = true
		r, err := Open(ctx, "jobs", reading)
		require.NoError(t, err)
		require.Equal(t, uint64(4), r.Report().Checkpoint)
		require.ErrorIs(t, r.Checkpoint(ctx), wal.ErrReadOnly)
		_, err = r.Compact(ctx, 0)
		require.ErrorIs(t, err, wal.ErrReadOnly)
		for i := range 30 {
			finishOne(t, e, fmt.Sprint(i))
			if i%10 == 9 {
				_, err := e.Compact(ctx, 0)
				require.NoError(t, err)
			}
			time.Sleep(time.Second) // of the bubble's clock: the reader looks every few milliseconds
		}
		require.NoError(t, r.Report().Stopped)
		require.Equal(t, states(e), states(r))
		require.Equal(t, 1, r.jobs.Len(), "the last one ended in the very instant of the compaction")

		for _, err := range r.Follow(ctx, 1) {
			require.ErrorIs(t, err, wal.ErrDropped)
			var dropped *wal.DroppedError
			require.ErrorAs(t, err, &dropped)
			require.Equal(t, e.log.FirstSeq(), dropped.First)
			break
		}
		require.NoError(t, r.Close())
		require.NoError(t, e.Close())
	})
}

// F26: Close breaks off a checkpoint, and waits for it; nothing is left half done.
func TestF26_close_breaks_off_a_checkpoint(t *testing.T) {
	disk := crashfs.New()
	slow := &gate{counter: newCounter(), reached: make(chan struct{}), open: make(chan struct{})}
	e := inMemory(t, disk, Options{Projections: []projection.Projection{slow}})
	finishOne(t, e, "a")
	var all sync.WaitGroup
	all.Go(func() { require.ErrorIs(t, e.Checkpoint(context.Background()), wal.ErrClosed) })
	<-slow.reached
	all.Go(func() { require.NoError(t, e.Close()) })
	<-e.life.Done()
	close(slow.open)
	all.Wait()
	require.ErrorIs(t, e.Checkpoint(t.Context()), wal.ErrClosed)
	_, err := e.Compact(t.Context(), 0)
	require.ErrorIs(t, err, wal.ErrClosed)

	e = inMemory(t, disk, Options{Projections: []projection.Projection{newCounter()}})
	require.Zero(t, e.Report().Checkpoint)
	require.Equal(t, 1, e.jobs.Len())
}

// gate is a projection whose save waits.
type gate struct {
	*counter
	reached, open chan struct{}
}

func (g *gate) Snapshot() (func(io.Writer) error, error) {
	return func(w io.Writer) error {
		close(g.reached)
		<-g.open
		for range 100 {
			if _, err := w.Write(make([]byte, 1<<20)); err != nil {
				return err
			}
		}
		return nil
	}, nil
}

// A forgotten job is none that never was: commands and History say so, and its id stays refused for as long as was
// promised.
func TestR5_forgotten_jobs_and_their_ids(t *testing.T) {
	ctx, disk, now := t.Context(), crashfs.New(), time.Unix(1_700_000_000, 0)
	opts := Options{WAL: wal.Options{Now: func() time.Time { return now }}, RefuseIDs: time.Hour}
	e := inMemory(t, disk, opts)
	finishOne(t, e, "a")
	_, err := e.Submit(ctx, Submission{JobID: "open"})
	require.NoError(t, err)
	now = now.Add(time.Minute)
	c, err := e.Compact(ctx, time.Minute)
	require.NoError(t, err)
	require.Zero(t, c.Forgotten, "it ended a minute ago, not longer")
	c, err = e.Compact(ctx, time.Second)
	require.NoError(t, err)
	require.Equal(t, []int{1, 1}, []int{c.Forgotten, c.Remembered})

	_, known := e.Job("a")
	require.False(t, known)
	_, err = e.Submit(ctx, Submission{JobID: "a"})
	require.ErrorIs(t, err, statemachine.ErrDuplicateJob)
	require.ErrorIs(t, err, ErrForgotten)
	_, err = e.RollBack(ctx, "a", "late")
	require.ErrorIs(t, err, statemachine.ErrUnknownJob)
	require.ErrorIs(t, err, ErrForgotten)
	for _, err := range e.History(ctx, "a") {
		require.ErrorIs(t, err, wal.ErrDropped)
	}
	for _, err := range e.History(ctx, "never") {
		require.ErrorIs(t, err, statemachine.ErrUnknownJob)
		require.NotErrorIs(t, err, wal.ErrDropped)
	}
	require.NoError(t, e.Close())

	e = inMemory(t, disk, opts)
	_, err = e.Submit(ctx, Submission{JobID: "a"})
	require.ErrorIs(t, err, ErrForgotten, "after a restart, too")
	now = now.Add(2 * time.Hour)
	finishOne(t, e, "b")
	now = now.Add(time.Second)
	_, err = e.Compact(ctx, 0)
	require.NoError(t, err)
	finishOne(t, e, "a")
	job, _ := e.Job("a")
	require.Equal(t, statemachine.Completed, job.State)
	_, err = e.Compact(ctx, -1)
	require.ErrorIs(t, err, wal.ErrInvalid)
}

// R5: what is half undone is not forgotten, however long ago the job ended: somebody has to go on with it. (It was, in the midst of
// its rollback.)
func TestR5_what_is_being_rolled_back_is_not_forgotten(t *testing.T) {
	ctx := t.Context()
	e := inMemory(t, crashfs.New(), Options{WAL: wal.Options{SegmentBytes: 1 << 10}})
	finishOne(t, e, "done")
	finishOne(t, e, "half")
	_, err := e.UndoStep(ctx, "half", "one")
	require.NoError(t, err)
	for i, want := range []int{1, 0, 1} {
		for _, opts := range [][]CompactOption{{DryRun}, nil} {
			c, err := e.Compact(ctx, 0, opts...)
			require.NoError(t, err)
			require.Equal(t, want, c.Forgotten, "%d, %v", i, opts)
		}
		if i == 1 {
			_, err := e.RollBack(ctx, "half", "why")
			require.NoError(t, err)
		}
	}
}

// olderJobs is a log on disk whose checkpoints were written when jobs were of the version before.
type olderJobs struct{ diskLog }

func (l olderJobs) LoadCheckpoint(ctx context.Context, c wal.Checkpoint, load func(wal.Section, io.Reader) error) error {
	return l.diskLog.LoadCheckpoint(ctx, c, func(s wal.Section, r io.Reader) error {
		if s.Name == "jobs" {
			s.Version--
		}
		return load(s, r)
	})
}

// R5, F16: checkpoints by a program whose jobs were of another version are passed over, which is reported: the jobs come whole
// from what was carried and the log. What only they had of projections is not to be had, and the caller has to say that he knows.
func TestR5_F16_checkpoints_with_jobs_of_another_version(t *testing.T) {
	ctx, disk := t.Context(), crashfs.New()
	opts := smallSegments(disk)
	opts.Projections = []projection.Projection{newCounter()}
	e := inMemory(t, disk, opts)
	finishOne(t, e, "half")
	_, err := e.UndoStep(ctx, "half", "#rollback")
	require.NoError(t, err)
	submitSome(t, e, 2)
	for i := range 20 {
		finishOne(t, e, fmt.Sprint("done ", i))
	}
	c, err := e.Compact(ctx, 0)
	require.NoError(t, err)
	require.Equal(t, []int{20, 3}, []int{c.Forgotten, c.Remembered})
	require.Greater(t, e.log.FirstSeq(), uint64(11), "the log has no longer what the half undone job did")
	require.NoError(t, e.Close())

	reopen := func(allowed ...string) (*Engine, error) {
		log, err := wal.Open("jobs", opts.WAL)
		require.NoError(t, err)
		opts.Projections, opts.AllowIncomplete = []projection.Projection{newCounter()}, allowed
		return OpenLog(ctx, olderJobs{diskLog{log}}, opts)
	}
	_, err = reopen()
	require.ErrorAs(t, err, new(*IncompleteError))
	again, err := reopen("counter")
	require.NoError(t, err)
	require.Equal(t, states(e), states(again))
	job, _ := again.Job("half")
	require.True(t, job.RollingBack)
	require.ErrorContains(t, errors.Join(again.Report().PassedOver...), "jobs of version")
	require.Subset(t, again.Report().Incomplete, []string{"counter"})
	require.NoError(t, again.Close())
}
