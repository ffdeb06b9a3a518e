package recovery

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// named is a projection made of a function.
type named struct {
	name  string
	apply func(wal.Event, statemachine.Job) error
}

func (n named) Name() string                                  { return n.name }
func (n named) Apply(e wal.Event, job statemachine.Job) error { return n.apply(e, job) }

// A projection's Apply ended the applier's goroutine by runtime.Goexit, as t.FailNow does, and every command waited for
// ever. It is stopped as one that panics is.
func TestF25_a_projection_that_ends_its_goroutine_leaves_nobody_waiting(t *testing.T) {
	ctx, disk := context.Background(), crashfs.New()
	exits := named{"exits", func(e wal.Event, _ statemachine.Job) error {
		if e.Seq == 2 {
			runtime.Goexit()
		}
		return nil
	}}
	opts := Options{WAL: wal.Options{FS: disk}, Projections: []projection.Projection{exits}}
	e, err := Open(ctx, "jobs", opts)
	require.NoError(t, err)
	_, err = e.Submit(ctx, Submission{JobID: "a"})
	require.NoError(t, err)
	_, err = e.Validate(ctx, "a")
	require.ErrorContains(t, err, "durable", "whoever waits for the applier is told")
	_, err = e.Start(ctx, "a")
	require.ErrorContains(t, err, "stopped behind seq 1")
	require.NoError(t, e.Close())

	ended := make(chan struct{})
	go func() { // what Open replays is applied in its caller's goroutine: that is the one that ends
		defer close(ended)
		_, _ = Open(ctx, "jobs", opts)
		t.Error("Open returned")
	}()
	<-ended
	opts.Projections = nil // and nothing stays locked
	e, err = Open(ctx, "jobs", opts)
	require.NoError(t, err)
	job, _ := e.Job("a")
	require.Equal(t, statemachine.Validated, job.State)
	require.NoError(t, e.Close())
}

// R3, F25: whatever ends Open, among the events that the log shows at once or among the last ones, which it shows when it has
// written them anew, the log is closed: OpenLog left it open and locked. And what is not ended has shown each event once.
func TestR3_F25_an_open_that_ends_early_leaves_nothing_open(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		disk := crashfs.New()
		e, err := Open(t.Context(), "jobs", Options{WAL: wal.Options{FS: disk}})
		require.NoError(t, err)
		for i := range rapid.IntRange(1, 3).Draw(t, "groups") {
			id := fmt.Sprint(i)
			_, err := e.Do(t.Context(), Submit(Submission{JobID: id}), Validate(id), Start(id))
			require.NoError(t, err)
		}
		last := e.log.LastSeq()
		image := disk.Crash(crashfs.Everything)
		require.NoError(t, e.Close())

		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		at := rapid.Uint64Range(1, last).Draw(t, "at")
		ways := map[string]func(){"cancel": cancel, "panic": func() { panic(errBroken) }, "Goexit": runtime.Goexit}
		way := ways[rapid.SampledFrom([]string{"cancel", "panic", "Goexit"}).Draw(t, "way")]
		seen, progress := &recorder{}, []uint64{}
		opts := Options{WAL: wal.Options{FS: image}, Projections: []projection.Projection{seen}}
		inProgress := rapid.Bool().Draw(t, "in OnProgress")
		opts.OnProgress = func(p Progress) {
			if progress = append(progress, p.Applied); inProgress && p.Applied >= at {
				way()
			}
		}
		if !inProgress {
			opts.Projections = append(opts.Projections, named{"ends", func(e wal.Event, _ statemachine.Job) error {
				if e.Seq == at {
					way()
				}
				return nil
			}})
		}
		open := func() (*Engine, error) { return Open(ctx, "jobs", opts) }
		if rapid.Bool().Draw(t, "OpenLog") {
			log, err := wal.Open("jobs", opts.WAL)
			require.NoError(t, err)
			open = func() (*Engine, error) { return OpenLog(ctx, OnDisk(log), opts) }
		}
		var opened sync.WaitGroup
		opened.Add(1)
		go func() {
			defer opened.Done()
			defer func() { _ = recover() }()
			if e, err := open(); err == nil {
				if len(e.Report().Failed) == 0 {
					t.Errorf("opened")
				}
				if err := e.Close(); err != nil {
					t.Errorf("%v", err)
				}
			}
		}()
		opened.Wait()

		seen.seqs, progress = nil, nil
		opts.OnProgress = func(p Progress) { progress = append(progress, p.Applied) }
		opts.Projections = opts.Projections[:1]
		e, err = Open(t.Context(), "jobs", opts)
		require.NoError(t, err, "it is closed")
		require.NoError(t, e.Close())
		require.Len(t, seen.seqs, int(last))
		require.Equal(t, last, e.Report().Replayed)
		require.True(t, slices.IsSorted(progress) && progress[len(progress)-1] == last, "%v", progress)
	})
}

// F25, R1: projections that fail at random events, by an error or a panic, now or while Open replays: each is reported
// with its event, the others see every event once, in order, and the command is acknowledged.
func TestF25_R1_projections_fail_at_random_and_harm_nobody(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ctx, disk := context.Background(), crashfs.New()
		jobs := rapid.IntRange(1, 6).Draw(t, "jobs")
		for range 2 { // the second time, the events of the first come by replay
			fails := rapid.SliceOfN(rapid.Uint64Range(1, 30), 0, 4).Draw(t, "fail at")
			shadow, seen := &recorder{}, make([]uint64, len(fails))
			projections := []projection.Projection{shadow}
			for i, at := range fails {
				projections = append(projections, named{fmt.Sprint("fails-", i), func(e wal.Event, _ statemachine.Job) error {
					seen[i]++
					switch {
					case e.Seq != at:
						return nil
					case i%2 == 0:
						return errBroken
					}
					panic(errBroken)
				}})
			}
			e, err := Open(ctx, "jobs", Options{WAL: wal.Options{FS: disk}, Projections: projections})
			require.NoError(t, err)
			base := e.log.LastSeq()
			for i := range jobs {
				id := fmt.Sprint(base, "-", i)
				for _, c := range []Command{Submit(Submission{JobID: id}), Validate(id)} {
					_, err := e.Do(ctx, c)
					require.NoError(t, err)
				}
			}
			last := e.log.LastSeq()
			require.Len(t, shadow.seqs, int(last))
			byName := make(map[string]*ProjectionError)
			for _, f := range e.Report().Failed {
				byName[f.Name] = f
			}
			for i, at := range fails {
				f := byName[fmt.Sprint("fails-", i)]
				require.Equal(t, at <= last, f != nil)
				require.Equal(t, min(at, last), seen[i], "nothing after the event that it could not take")
				if f != nil {
					event, err := e.log.At(ctx, at)
					require.NoError(t, err)
					require.Equal(t, []any{at, event.JobID}, []any{f.Seq, f.JobID})
					require.ErrorIs(t, f, errBroken, "what it returned, or what it panicked with")
				}
			}
			require.NoError(t, e.Close())
		}
	})
}

var errBroken = errors.New("broken on purpose")

func TestProjectionsThatOpenRefuses(t *testing.T) {
	ok := func(wal.Event, statemachine.Job) error { return nil }
	for name, projections := range map[string][]projection.Projection{
		"nil":    {nil},
		"empty":  {named{"", ok}},
		"jobs":   {named{"jobs", ok}},
		"stats":  {named{"stats", ok}},
		"double": {named{"x", ok}, named{"y", ok}, named{"x", ok}},
	} {
		disk := crashfs.New()
		_, err := Open(context.Background(), "jobs", Options{WAL: wal.Options{FS: disk}, Projections: projections})
		var invalid *wal.InvalidError
		require.ErrorAs(t, err, &invalid, name)
		require.Equal(t, "Options.Projections", invalid.Field, name)
		require.Empty(t, disk.Ops(), "the directory is not touched")
	}
}

// R1: a projection is handed every event once and in order, those before Open and those that come meanwhile, each with
// the job as it stands after it.
func TestR1_a_projection_sees_every_event_once_in_order(t *testing.T) {
	ctx, disk := context.Background(), crashfs.New()
	for range 3 {
		at := make(map[string]uint64)
		next := uint64(1)
		whole := named{"whole", func(e wal.Event, job statemachine.Job) error {
			if e.Seq != next || e.JobID != job.ID || job.Seq != e.Seq || at[e.JobID] != e.Prev {
				return fmt.Errorf("seq %d instead of %d; prev %d instead of %d", e.Seq, next, e.Prev, at[e.JobID])
			}
			next++
			at[e.JobID] = e.Seq
			return nil
		}}
		e, err := Open(ctx, "jobs", Options{WAL: wal.Options{FS: disk}, Projections: []projection.Projection{whole}})
		require.NoError(t, err)
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				for range 20 {
					job, err := e.Submit(ctx, Submission{})
					if err == nil {
						_, err = e.Do(ctx, Validate(job.ID), Start(job.ID))
					}
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
		all.Wait()
		require.Empty(t, e.Report().Failed)
		last := e.log.LastSeq()
		require.NoError(t, e.Close())
		require.Equal(t, last+1, next)
	}
}
