package recovery

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// witness is a projection that remembers every event it ever saw, over all openings, and holds Open to hand it each
// once. Its snapshot is how far it came.
type witness struct {
	events []wal.Event // of all openings
	last   uint64      // of this opening
	broken error
}

func (w *witness) Name() string { return "witness" }

func (w *witness) Apply(e wal.Event, _ statemachine.Job) error {
	if e.Seq <= w.last {
		w.broken = fmt.Errorf("seq %d after %d", e.Seq, w.last)
	}
	if last := w.newest(); e.Seq > last {
		w.events = append(w.events, e)
	}
	w.last = e.Seq
	return w.broken
}

func (w *witness) Forget(e wal.Event, jobs []statemachine.Job) error {
	for _, job := range jobs {
		if !job.Finished() || job.Parked != "" {
			w.broken = fmt.Errorf("seq %d forgets %s", e.Seq, job)
		}
	}
	return w.Apply(e, statemachine.Job{})
}

func (w *witness) newest() uint64 {
	if len(w.events) == 0 {
		return 0
	}
	return w.events[len(w.events)-1].Seq
}

func (w *witness) Version() int { return 1 }

func (w *witness) Snapshot() (func(io.Writer) error, error) {
	last := w.last
	return func(out io.Writer) error { return binary.Write(out, binary.BigEndian, last) }, nil
}

func (w *witness) Load(in io.Reader) error { return binary.Read(in, binary.BigEndian, &w.last) }

// soak drives an engine with checkpoints and compactions on a disk in memory, under a clock that jumps.
type soak struct {
	t       *rapid.T
	disk    *crashfs.FS
	now     time.Time
	opts    Options
	seen    *witness
	e       *Engine
	payload map[string]string // of jobs that are there, their args
}

func newSoak(t *rapid.T) *soak {
	s := &soak{t: t, disk: crashfs.New(), now: time.Unix(1_700_000_000, 0), seen: &witness{}, payload: map[string]string{}}
	s.opts = Options{
		WAL:             wal.Options{SegmentBytes: 1 << 10, Now: func() time.Time { return s.now }},
		Projections:     []projection.Projection{s.seen},
		AllowIncomplete: []string{"witness"},
		CheckpointEvery: -1,
		HoldBytes:       32,
		RefuseIDs:       rapid.SampledFrom([]time.Duration{-1, time.Minute, 0}).Draw(t, "refuse ids"),
	}
	s.open()
	return s
}

func (s *soak) open() {
	s.seen.last = 0
	s.opts.WAL.FS = s.disk
	e, err := Open(context.Background(), "jobs", s.opts)
	require.NoError(s.t, err)
	s.e = e
}

func (s *soak) command() {
	id := rapid.SampledFrom([]string{"a", "b", "c", "d", "e", "f", "g"}).Draw(s.t, "id")
	job, known := s.e.Job(id)
	on := wal.JobSubmitted
	if known {
		allowed := job.Allowed()
		if len(allowed) == 0 {
			return
		}
		on = rapid.SampledFrom(allowed).Draw(s.t, "on")
	}
	c := commandOf(on, id)
	text := strings.Repeat("x", rapid.IntRange(0, 60).Draw(s.t, "size"))
	switch on {
	case wal.JobSubmitted:
		c = Submit(Submission{JobID: id, Capability: "cap", Args: text})
	case wal.JobCompleted:
		c = Complete(id, text)
	}
	_, err := s.e.Do(s.t.Context(), c)
	switch {
	case errors.Is(err, ErrForgotten):
		require.NotEqual(s.t, time.Duration(-1), s.opts.RefuseIDs, "an id is refused, and was to be free at once")
		require.ErrorIs(s.t, err, statemachine.ErrDuplicateJob)
	default:
		require.NoError(s.t, err)
		if on == wal.JobSubmitted {
			s.payload[id] = text
		}
	}
}

func (s *soak) checkpoint() { require.NoError(s.t, s.e.Checkpoint(s.t.Context())) }

func (s *soak) compact() {
	olderThan := time.Duration(rapid.IntRange(0, 100).Draw(s.t, "older than")) * time.Second
	would, err := s.e.Compact(s.t.Context(), olderThan, DryRun)
	require.NoError(s.t, err)
	did, err := s.e.Compact(s.t.Context(), olderThan)
	require.NoError(s.t, err)
	require.Equal(s.t, []int{would.Forgotten, would.Remembered}, []int{did.Forgotten, did.Remembered})
	require.LessOrEqual(s.t, would.FirstSeq, did.FirstSeq, "a dry run counts without the events that forget")
	for job := range s.e.Jobs(projection.Query{Parked: new(false), RollingBack: new(false), States: finished}) {
		require.False(s.t, ended(job).Before(did.Before), "%v was to be forgotten", job)
	}
}

func (s *soak) wait() {
	s.now = s.now.Add(time.Duration(rapid.IntRange(-20, 60).Draw(s.t, "wait")) * time.Second)
}

func (s *soak) reopen() {
	require.NoError(s.t, s.e.Close())
	s.open()
}

func (s *soak) crash() {
	image := s.disk.Crash(crashfs.Seed(rapid.Uint64().Draw(s.t, "crash")))
	require.NoError(s.t, s.e.Close())
	s.disk = image
	s.open()
}

// lose removes the checkpoints, and opens again: all comes from what was carried and from the segments.
func (s *soak) lose() {
	require.NoError(s.t, s.e.Close())
	forgetCheckpoints(s.t, s.disk)
	s.open()
}

func forgetCheckpoints(t require.TestingT, disk wal.FS) {
	entries, err := disk.ReadDir("jobs")
	require.NoError(t, err)
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), "checkpoint-") {
			require.NoError(t, disk.Remove("jobs/"+entry.Name()))
		}
	}
	require.NoError(t, disk.SyncDir("jobs"))
}

// check is R1, R2 and R5: what the engine says is what a fold of all events that ever were says.
func (s *soak) check() {
	require.NoError(s.t, s.seen.broken)
	all := &Engine{jobs: projection.NewJobsWith(projection.JobsOptions{HoldBytes: s.opts.HoldBytes})}
	stats := projection.NewStats()
	for i, e := range s.seen.events {
		require.Equal(s.t, uint64(i+1), e.Seq, "an event was passed over")
		if e.Type == wal.JobsForgotten {
			gone, err := all.jobs.Forget(e)
			require.NoError(s.t, err)
			require.NoError(s.t, stats.Forget(e, gone))
			continue
		}
		job, err := all.jobs.Fold(e)
		require.NoError(s.t, err)
		require.NoError(s.t, stats.Apply(e, job))
	}
	require.Equal(s.t, states(all), states(s.e))
	if len(s.e.Report().Incomplete) == 0 {
		require.Equal(s.t, stats.Read(), s.e.Stats())
	}
	for id, job := range states(s.e) {
		s.checkJob(id, job)
		require.Equal(s.t, all.jobs.Refuses(id), s.e.jobs.Refuses(id))
	}
}

func (s *soak) checkJob(id string, job statemachine.Job) {
	var folded statemachine.Job
	n := 0
	for e, err := range s.e.History(s.t.Context(), id) {
		require.NoError(s.t, err, "the history of a job that is remembered is whole")
		folded, err = folded.Apply(e)
		require.NoError(s.t, err)
		n++
	}
	require.Equal(s.t, job.Seq, folded.Seq)
	require.Equal(s.t, job.State, folded.State)
	raw, err := s.e.Read(s.t.Context(), job.Args)
	require.NoError(s.t, err)
	want, _ := json.Marshal(s.payload[id])
	require.Equal(s.t, string(want), string(raw))
	_, held := job.Args.JSON()
	require.Equal(s.t, len(want) <= s.opts.HoldBytes, held)
}

func propCheckpoints(t *rapid.T) {
	s := newSoak(t)
	defer func() { _ = s.e.Close() }()
	actions := map[string]func(*rapid.T){
		"": func(t *rapid.T) { s.t = t; s.check() },
	}
	for name, action := range map[string]func(){
		"checkpoint": s.checkpoint, "compact": s.compact, "wait": s.wait, "reopen": s.reopen, "crash": s.crash, "lose": s.lose,
		"command": func() {
			for range 5 {
				s.command()
			}
		},
	} {
		actions[name] = func(t *rapid.T) { s.t = t; action() }
	}
	actions["command again"] = actions["command"]
	t.Repeat(actions)
}

// R2, R5: whatever is saved, forgotten, carried, crashed and opened again, the state is that of a fold of all events, and
// remembered jobs have their whole history and their payloads.
func TestR2_R5_checkpoints_and_compaction_lose_nothing(t *testing.T) { rapid.Check(t, propCheckpoints) }

func FuzzR2_R5_checkpoints(f *testing.F) { f.Fuzz(rapid.MakeFuzz(propCheckpoints)) }

// R4: so it is when what tells of the job is the last that was written before a crash, which Open can't believe, nor show
// to who inspects the log, before it has written it anew.
func TestR4_a_job_whose_beginning_was_dropped_is_parked_by_the_last_event(t *testing.T) {
	ctx, disk := t.Context(), crashfs.New()
	opts := Options{WAL: wal.Options{FS: disk, SegmentBytes: 1 << 10}}
	l, err := wal.Open("jobs", opts.WAL)
	require.NoError(t, err)
	for i := range 10 {
		_, err := l.Append(ctx, wal.Event{Type: wal.JobSubmitted, JobID: fmt.Sprint(i), Args: []byte(`"` + strings.Repeat("x", 300) + `"`)})
		require.NoError(t, err)
	}
	require.NoError(t, l.DropBefore(6))
	_, err = l.Append(ctx, wal.Event{Type: wal.JobValidated, JobID: "0", Prev: 1})
	require.NoError(t, err)

	e := inMemory(t, disk.Crash(crashfs.Everything), opts)
	job, known := e.Job("0")
	require.True(t, known)
	require.Contains(t, job.Parked, "its prev is 1")
	require.Equal(t, e.Report().WAL.LastSeq, job.Seq)
	_, err = e.Submit(ctx, Submission{JobID: "0"})
	require.Error(t, err, "its id is taken")
}

// R4: so are they when one is told of by what the log shows at once, and another by that last event. Looking for the second,
// Open forgot of the first that it was lost, and folded past it.
func TestR4_of_two_jobs_whose_beginning_was_dropped_both_are_parked(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ctx, disk := t.Context(), crashfs.New()
		opts := Options{WAL: wal.Options{FS: disk, SegmentBytes: 1 << 10}, CheckpointEvery: -1}
		log, err := wal.Open("jobs", opts.WAL)
		require.NoError(t, err)
		prev := make(map[string]uint64)
		tell := func(on wal.EventType, id string) {
			e := wal.Event{Type: on, JobID: id, Prev: prev[id]}
			if on == wal.JobSubmitted {
				e.Args = []byte(`"` + strings.Repeat("x", 300) + `"`)
			}
			prev[id], err = log.Append(ctx, e)
			require.NoError(t, err)
		}
		for i := range 10 {
			tell(wal.JobSubmitted, fmt.Sprint(i))
		}
		require.NoError(t, log.DropBefore(6))
		lost := rapid.Permutation([]string{"0", "1", "2"}).Draw(t, "lost")
		for _, id := range lost {
			tell(wal.JobValidated, id)
			if rapid.Bool().Draw(t, "opened between") {
				require.NoError(t, log.Close())
				e, err := Open(ctx, "jobs", opts)
				require.NoError(t, err)
				if rapid.Bool().Draw(t, "checkpoint") {
					require.NoError(t, e.Checkpoint(ctx))
				}
				require.NoError(t, e.Close())
				log, err = wal.Open("jobs", opts.WAL)
				require.NoError(t, err)
			}
		}
		opts.WAL.FS = disk.Crash(crashfs.Everything)
		e, err := Open(ctx, "jobs", opts)
		require.NoError(t, err)
		for _, id := range lost {
			job, _ := e.Job(id)
			require.Contains(t, job.Parked, "its prev is", "job %s", id)
		}
		require.Len(t, e.Report().Parked, len(lost))
		require.NoError(t, e.Close())
		require.NoError(t, log.Close())
	})
}

// R4: a log that was cut by hand, below an engine: the job that lost its beginning is parked, and what no event has kept is
// not made up.
func TestR4_a_job_whose_beginning_was_dropped_is_parked(t *testing.T) {
	ctx, disk := t.Context(), crashfs.New()
	opts := Options{WAL: wal.Options{FS: disk, SegmentBytes: 1 << 10}}
	e, err := Open(ctx, "jobs", opts)
	require.NoError(t, err)
	for i := range 10 {
		_, err := e.Submit(ctx, Submission{JobID: fmt.Sprint(i), Args: strings.Repeat("x", 300)})
		require.NoError(t, err)
	}
	_, err = e.Validate(ctx, "0")
	require.NoError(t, err)
	require.NoError(t, e.Close())
	l, err := wal.Open("jobs", opts.WAL)
	require.NoError(t, err)
	require.NoError(t, l.DropBefore(6))
	first := l.FirstSeq()
	require.Greater(t, first, uint64(1))
	require.NoError(t, l.Close())

	e = inMemory(t, disk, opts)
	job, known := e.Job("0")
	require.True(t, known)
	require.Contains(t, job.Parked, "its prev is 1")
	_, known = e.Job(fmt.Sprint(first - 2))
	require.False(t, known, "it was dropped")
	job, _ = e.Job("9")
	require.Empty(t, job.Parked)
	require.Equal(t, []string{"stats"}, e.Report().Incomplete)

	opts.Projections = []projection.Projection{&recorder{}}
	opts.WAL.ReadOnly, opts.WAL.FS = true, disk
	_, err = Open(ctx, "jobs", opts)
	var incomplete *IncompleteError
	require.ErrorAs(t, err, &incomplete)
	require.Equal(t, []string{"recorder"}, incomplete.Names)
}
