package recovery

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
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

// What a reader of the code found, each as it was met: projections that no checkpoint has, readers beside a writer that
// compacts, logs that lost their beginning.

func smallSegments(disk wal.FS) Options {
	return Options{WAL: wal.Options{FS: disk, SegmentBytes: 1 << 10}, CheckpointEvery: -1}
}

func submitSome(t testing.TB, e *Engine, n int) {
	for range n {
		_, err := e.Submit(t.Context(), Submission{Args: strings.Repeat("x", 60)})
		require.NoError(t, err)
	}
}

// A projection was built from the log, the newest checkpoint was as new as the log, and lacked it: nothing was saved, and the
// log that it had been built from was compacted away.
func TestR5_what_was_built_from_the_log_is_saved_before_that_goes(t *testing.T) {
	disk := crashfs.New()
	e := inMemory(t, disk, smallSegments(disk))
	submitSome(t, e, 50)
	require.NoError(t, e.Checkpoint(t.Context()))
	require.NoError(t, e.Close())
	opts := smallSegments(disk)
	opts.Projections = []projection.Projection{newCounter()}
	e = inMemory(t, disk, opts)
	c, err := e.Compact(t.Context(), time.Hour)
	require.NoError(t, err)
	require.Positive(t, c.Segments)
	require.NoError(t, e.Close())
	again := newCounter()
	opts.Projections = []projection.Projection{again}
	e = inMemory(t, disk, opts)
	require.Equal(t, 50, again.counts[wal.JobSubmitted])
	require.Empty(t, e.Report().Incomplete)
}

// When an older checkpoint is loaded, and the log is read whole for another projection's sake, a job that was forgotten since
// is passed over there. Those that were loaded have seen it, and see the rest of it, too.
func TestR2_what_was_loaded_goes_on_beside_what_is_built_anew(t *testing.T) {
	disk, now := crashfs.New(), time.Unix(1_700_000_000, 0)
	opts := smallSegments(disk)
	opts.WAL.Now = func() time.Time { return now }
	live := &tracker{make(map[string]string)}
	opts.Projections = []projection.Projection{live}
	e := inMemory(t, disk, opts)
	_, err := e.Submit(t.Context(), Submission{JobID: "forgotten"})
	require.NoError(t, err)
	submitSome(t, e, 30)
	now = now.Add(time.Hour)
	finishOne(t, e, "remembered")
	now = now.Add(-time.Hour)
	submitSome(t, e, 10)
	require.NoError(t, e.Checkpoint(t.Context()))
	_, err = e.Do(t.Context(), Validate("forgotten"), Start("forgotten"), Complete("forgotten", 1))
	require.NoError(t, err)
	submitSome(t, e, 5)
	now = now.Add(31 * time.Minute)
	c, err := e.Compact(t.Context(), 30*time.Minute)
	require.NoError(t, err)
	require.Equal(t, 1, c.Forgotten)
	require.Positive(t, c.Segments)
	found, err := e.log.(Files).Checkpoints()
	require.NoError(t, err)
	stats, jobs := e.Stats(), states(e)
	require.NoError(t, e.Close())
	require.NoError(t, disk.Remove(found[0].Path))

	again := &tracker{make(map[string]string)}
	another := newCounter()
	opts.Projections, opts.AllowIncomplete = []projection.Projection{again, another}, []string{"counter"}
	e = inMemory(t, disk, opts)
	require.Equal(t, found[1].Seq, e.Report().Checkpoint)
	require.Equal(t, live.M, again.M)
	require.Equal(t, jobs, states(e))
	require.Equal(t, stats, e.Stats())
	require.Equal(t, []string{"counter"}, e.Report().Incomplete)
}

// tracker knows each job's state.
type tracker struct{ M map[string]string }

func (w *tracker) Name() string { return "tracker" }
func (w *tracker) Version() int { return 1 }
func (w *tracker) Apply(_ wal.Event, job statemachine.Job) error {
	if job.ID != "" {
		w.M[job.ID] = string(job.State)
	}
	return nil
}

func (w *tracker) Forget(_ wal.Event, jobs []statemachine.Job) error {
	for _, job := range jobs {
		delete(w.M, job.ID)
	}
	return nil
}

func (w *tracker) Snapshot() (func(io.Writer) error, error) {
	raw, err := json.Marshal(w.M)
	return func(out io.Writer) error { _, err := out.Write(raw); return err }, err
}

func (w *tracker) Load(r io.Reader) error { return json.NewDecoder(r).Decode(&w.M) }

// hooked is a log on disk in whose reading something else comes between.
type hooked struct {
	diskLog
	listed func() // after Checkpoints
	read   func() // before Events
}

func (l *hooked) Checkpoints() ([]wal.Checkpoint, error) {
	defer l.listed()
	return l.diskLog.Checkpoints()
}

func (l *hooked) Events(ctx context.Context, from uint64) iter.Seq2[wal.Event, error] {
	l.read()
	return l.diskLog.Events(ctx, from)
}

// A reader took the floor before, and the log's beginning after, the writer beside it compacted: it opened without the jobs
// that were carried, and said nothing.
func TestR5_a_reader_that_opens_while_the_writer_compacts(t *testing.T) {
	for _, early := range []bool{true, false} {
		t.Run(fmt.Sprint("early=", early), func(t *testing.T) {
			disk := crashfs.New()
			w := inMemory(t, disk, smallSegments(disk))
			for i := range 5 {
				_, err := w.Submit(t.Context(), Submission{JobID: fmt.Sprint("open", i)})
				require.NoError(t, err)
			}
			require.NoError(t, w.Checkpoint(t.Context()))
			for i := range 30 {
				finishOne(t, w, fmt.Sprint(i))
			}
			reading, err := wal.Open("jobs", wal.Options{FS: disk, ReadOnly: true})
			require.NoError(t, err)
			compact := sync.OnceFunc(func() {
				for i := range 5 {
					_, err := w.Validate(t.Context(), fmt.Sprint("open", i))
					require.NoError(t, err)
				}
				c, err := w.Compact(t.Context(), 0)
				require.NoError(t, err)
				require.Greater(t, c.FirstSeq, uint64(20))
			})
			opts := smallSegments(disk)
			opts.WAL.ReadOnly = true
			if early {
				compact()
				opts.Projections, opts.AllowIncomplete = []projection.Projection{newCounter()}, []string{"counter"}
			}
			r, err := OpenLog(t.Context(), &hooked{diskLog{reading}, compact, func() {}}, opts)
			require.NoError(t, err)
			require.Equal(t, states(w), states(r))
			require.NoError(t, r.Close())
		})
	}
}

// The writer compacted while a reader, who had all that he was after, had read on, as readAhead does: the reader went on behind
// what was gone, and knew neither the jobs of which it told nor that others were forgotten. He begins anew.
func TestR5_a_reader_behind_whom_the_writer_compacts(t *testing.T) {
	disk := crashfs.New()
	w := inMemory(t, disk, smallSegments(disk))
	for i := range 5 {
		finishOne(t, w, fmt.Sprint(i))
	}
	_, err := w.Submit(t.Context(), Submission{JobID: "open"})
	require.NoError(t, err)
	require.NoError(t, w.Close())
	w = inMemory(t, disk, smallSegments(disk)) // so that a witness covers it all
	reading, err := wal.Open("jobs", wal.Options{FS: disk, ReadOnly: true})
	require.NoError(t, err)
	goal := reading.LastSeq()
	reads := 0
	grow := func() {
		if reads++; reads == 2 { // the first only looks
			_, err := w.Validate(t.Context(), "open")
			require.NoError(t, err)
			for i := range 30 {
				finishOne(t, w, fmt.Sprint("more", i))
			}
		}
	}
	compact := sync.OnceFunc(func() {
		c, err := w.Compact(t.Context(), 0)
		require.NoError(t, err)
		require.Greater(t, c.FirstSeq, goal+100)
	})
	opts := smallSegments(disk)
	opts.WAL.ReadOnly = true
	beyond := &followed{hooked{diskLog{reading}, func() {}, grow}, goal + 1, compact}
	r, err := OpenLog(t.Context(), beyond, opts)
	require.NoError(t, err)
	require.NoError(t, r.applier.wait(w.log.LastSeq()))
	require.Equal(t, states(w), states(r))
	require.NoError(t, r.Close())
}

// followed is a log on disk in which something happens behind the one who has read an event, before he reads the next.
type followed struct {
	hooked
	seq  uint64
	then func()
}

func (l *followed) Events(ctx context.Context, from uint64) iter.Seq2[wal.Event, error] {
	events := l.hooked.Events(ctx, from)
	return func(yield func(wal.Event, error) bool) {
		for e, err := range events {
			if !yield(e, err) {
				return
			}
			if e.Seq == l.seq {
				l.then()
			}
		}
	}
}

// A log was cut by hand, and grew while a reader folded it a second time: the reader then met events that it had applied.
func TestR4_a_log_that_lost_its_beginning_grows_while_it_is_read(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := crashfs.New()
		w := inMemory(t, disk, smallSegments(disk))
		_, err := w.Submit(t.Context(), Submission{JobID: "cut"})
		require.NoError(t, err)
		for i := range 30 {
			finishOne(t, w, fmt.Sprint(i))
		}
		_, err = w.Validate(t.Context(), "cut")
		require.NoError(t, err)
		require.NoError(t, w.log.(diskLog).DropBefore(50))
		reading, err := wal.Open("jobs", wal.Options{FS: disk, ReadOnly: true})
		require.NoError(t, err)
		reads := 0
		grow := func() {
			// The first only looks, the second is the replay, the third folds what was lost, the fourth what came meanwhile.
			if reads++; reads == 3 {
				finishOne(t, w, "late")
				time.Sleep(time.Second) // of the bubble's clock
			}
		}
		opts := smallSegments(disk)
		opts.WAL.ReadOnly = true
		r, err := OpenLog(t.Context(), &hooked{diskLog{reading}, func() {}, grow}, opts)
		require.NoError(t, err)
		require.Equal(t, 4, reads)
		finishOne(t, w, "later")
		time.Sleep(time.Second)
		require.NoError(t, r.Report().Stopped)
		for _, id := range []string{"late", "later"} {
			job, _ := r.Job(id)
			require.Equal(t, statemachine.Completed, job.State)
		}
		job, _ := r.Job("cut")
		require.NotEmpty(t, job.Parked)
		require.NoError(t, r.Close())
		require.NoError(t, w.Close())
	})
}

// Events that forget jobs are as small as they have to be.
func TestR5_forgetting_keeps_to_MaxEventBytes(t *testing.T) {
	disk := crashfs.New()
	opts := smallSegments(disk)
	opts.WAL.MaxEventBytes = 700
	e := inMemory(t, disk, opts)
	for i := range 100 {
		finishOne(t, e, fmt.Sprintf("%064d", i))
	}
	c, err := e.Compact(t.Context(), 0)
	require.NoError(t, err)
	require.Equal(t, 100, c.Forgotten+c.Remembered)
	require.Greater(t, c.Forgotten, 90)
}

// Once the log was compacted, no checkpoint is written that lacks what may not be lacking: it would push out the last one
// that has it.
func TestR5_a_projection_that_stops_does_not_push_its_last_snapshot_out(t *testing.T) {
	disk := crashfs.New()
	opts := smallSegments(disk)
	good := newCounter()
	opts.Projections = []projection.Projection{good}
	e := inMemory(t, disk, opts)
	for i := range 20 {
		finishOne(t, e, fmt.Sprint(i))
	}
	_, err := e.Compact(t.Context(), 0)
	require.NoError(t, err)
	kept := checkpoints(t, e)
	good.counts = nil // its next Apply panics
	for range 3 {
		submitSome(t, e, 1)
		var incomplete *IncompleteError
		require.ErrorAs(t, e.Checkpoint(t.Context()), &incomplete)
	}
	require.Equal(t, kept, checkpoints(t, e))
	require.NoError(t, e.Close())
	again := newCounter()
	opts.Projections = []projection.Projection{again}
	inMemory(t, disk, opts)
	require.Equal(t, 23, again.counts[wal.JobSubmitted])
}
