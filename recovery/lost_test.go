package recovery

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
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

// below opens the log beneath an engine, for what no engine does.
func below(t require.TestingT, disk wal.FS, do func(log *wal.Log)) {
	log, err := wal.Open("jobs", wal.Options{FS: disk, SegmentBytes: 1 << 10})
	require.NoError(t, err)
	do(log)
	require.NoError(t, log.Close())
}

// bulky is a job's first event, of which three fill a segment.
func bulky(id string) wal.Event {
	return wal.Event{Type: wal.JobSubmitted, JobID: id, Args: []byte(`"` + strings.Repeat("x", 300) + `"`)}
}

// add appends events one by one.
func add(t require.TestingT, log *wal.Log, events ...wal.Event) {
	for _, e := range events {
		_, err := log.Append(context.Background(), e)
		require.NoError(t, err)
	}
}

// cut removes by hand what can be removed.
func cut(t require.TestingT, log *wal.Log) {
	first := log.FirstSeq()
	require.NoError(t, log.DropBefore(log.LastSeq()+1))
	require.Greater(t, log.FirstSeq(), first)
}

// cutTwice is a log that lost the beginning of job "lost", and later, when a checkpoint had them, that of jobs a, b and c.
// Then events of "b" and of "lost" came.
func cutTwice(t testing.TB) *crashfs.FS {
	disk := crashfs.New()
	below(t, disk, func(log *wal.Log) { add(t, log, bulky("lost"), bulky("gone")); cut(t, log) })
	below(t, disk, func(log *wal.Log) { add(t, log, bulky("a"), bulky("b"), bulky("c")) })
	e := inMemory(t, disk, smallSegments(disk))
	require.NoError(t, e.Checkpoint(t.Context()))
	require.NoError(t, e.Close())
	below(t, disk, func(log *wal.Log) {
		cut(t, log)
		add(t, log, wal.Event{Type: wal.JobValidated, JobID: "b", Prev: 4}, wal.Event{Type: wal.JobValidated, JobID: "lost", Prev: 1})
	})
	return disk
}

func checkCutTwice(t testing.TB, e *Engine) {
	require.Equal(t, []string{"lost"}, inOrder(e.Report().Parked))
	require.Equal(t, []string{"a", "b", "c", "lost"}, inOrder(slices.Collect(e.Jobs(projection.Query{}))))
	job, _ := e.Job("b")
	require.Equal(t, statemachine.Validated, job.State)
}

// R4: when an event of "lost" turned up, Open folded the jobs anew, from the log alone, and those that only the checkpoint
// knew were gone, their ids free for others; of those of which there was a later event, that was left, and they were parked.
func TestR4_a_lost_job_takes_none_with_it_that_only_the_checkpoint_knows(t *testing.T) {
	disk := cutTwice(t)
	for _, readOnly := range []bool{true, false} {
		t.Run(fmt.Sprint("readonly=", readOnly), func(t *testing.T) {
			opts := smallSegments(disk)
			opts.WAL.ReadOnly = readOnly
			e := inMemory(t, disk, opts)
			require.EqualValues(t, 5, e.Report().Checkpoint)
			checkCutTwice(t, e)
		})
	}
}

// newerSaved is a log on disk beside which newer checkpoints are made before a checkpoint is loaded for the second time.
type newerSaved struct {
	diskLog
	loads int
	save  func()
}

func (l *newerSaved) LoadCheckpoint(ctx context.Context, c wal.Checkpoint, load func(wal.Section, io.Reader) error) error {
	if l.loads++; l.loads == 2 {
		l.save()
	}
	return l.diskLog.LoadCheckpoint(ctx, c, load)
}

// R4: so it is beside a writer by whom the checkpoint is gone when the jobs are to be folded once more. With projections that
// have seen what can't be taken back, Open says so.
func TestR4_the_checkpoint_goes_before_lost_jobs_are_folded(t *testing.T) {
	for _, with := range [][]projection.Projection{nil, {&recorder{}}} {
		t.Run(fmt.Sprint("projections=", len(with)), func(t *testing.T) {
			disk := cutTwice(t)
			w := inMemory(t, disk, smallSegments(disk))
			reading, err := wal.Open("jobs", wal.Options{FS: disk, ReadOnly: true})
			require.NoError(t, err)
			log := &newerSaved{diskLog: diskLog{reading}, save: func() {
				for range 2 {
					submitSome(t, w, 1)
					require.NoError(t, w.Checkpoint(t.Context()))
				}
			}}
			opts := smallSegments(disk)
			opts.WAL.ReadOnly, opts.Projections, opts.AllowIncomplete = true, with, []string{"recorder"}
			r, err := OpenLog(t.Context(), log, opts)
			if with != nil {
				require.ErrorIs(t, err, wal.ErrDropped)
				return
			}
			require.NoError(t, err)
			require.Equal(t, 3, log.loads)
			require.Equal(t, states(w), states(r))
			require.NoError(t, r.Close())
		})
	}
}

// R2, R4: an event of a job whose beginning is lost was passed over by an engine that was at work, and parked the job at the
// next Open; what the engine had let others do with the id was parked with it. It parks the job at once.
func TestR2_R4_an_event_of_a_lost_job_beneath_a_live_engine(t *testing.T) {
	disk := crashfs.New()
	below(t, disk, func(log *wal.Log) { add(t, log, bulky("lost"), bulky("gone")); cut(t, log) })
	log, err := wal.Open("jobs", wal.Options{FS: disk})
	require.NoError(t, err)
	e, err := OpenLog(t.Context(), OnDisk(log), smallSegments(disk))
	require.NoError(t, err)
	add(t, log, wal.Event{Type: wal.JobValidated, JobID: "lost", Prev: 1})
	require.NoError(t, e.applier.wait(log.LastSeq()))
	_, err = e.Submit(t.Context(), Submission{JobID: "lost"})
	require.ErrorIs(t, err, statemachine.ErrParked)
	require.NoError(t, e.Checkpoint(t.Context()))
	require.NoError(t, e.Close())
	again := inMemory(t, disk, smallSegments(disk))
	require.Equal(t, states(e), states(again))
	require.NoError(t, again.Close())
}

// R2, R4: what is left of a job that was forgotten is passed over; when an event behind that says that there was another job
// with its id, whose beginning is lost, what was left of the first was taken for that one's.
func TestR2_R4_an_id_is_lost_that_was_forgotten_before(t *testing.T) {
	disk := crashfs.New()
	below(t, disk, func(log *wal.Log) {
		add(t, log, bulky("a"), bulky("b"), bulky("c"))
		cut(t, log)
		add(t, log, wal.Event{Type: wal.JobFailed, JobID: "a", Prev: 1}, projection.Forgotten{Jobs: []string{"a"}}.Event(),
			wal.Event{Type: wal.JobFailed, JobID: "a", Prev: 2})
	})
	e := inMemory(t, disk, smallSegments(disk))
	job, _ := e.Job("a")
	require.Equal(t, []uint64{6, 6, 6}, []uint64{job.FirstSeq, job.Seq, job.ParkedSeq})
}

// ledger is a log with all that ever was in it, under engines that make checkpoints and compact, and beneath which others
// append what they like. What the jobs must be is what a fold of all of it says, which lacks nothing.
type ledger struct {
	t     *rapid.T
	disk  *crashfs.FS
	opts  Options
	log   *wal.Log
	e     *Engine
	all   []wal.Event
	newer map[string]uint64 // each job's newest event
	cut   bool              // by hand: from now on only checkpoints have all jobs
}

func newLedger(t *rapid.T) *ledger {
	l := &ledger{t: t, disk: crashfs.New(), newer: make(map[string]uint64)}
	l.opts = smallSegments(l.disk)
	l.opts.WAL.Now = func() time.Time { return time.Unix(1_700_000_000+int64(len(l.all)), 0) }
	l.opts.RefuseIDs = rapid.SampledFrom([]time.Duration{-1, 20 * time.Second, time.Hour}).Draw(t, "refuse ids")
	l.opts.Archive = func(context.Context, wal.Sealed) error { l.note(); return nil } // what forgets may go at once
	l.open()
	return l
}

// open opens an engine on the log, sometimes with a projection that no checkpoint has, by either way in.
func (l *ledger) open() {
	opts := l.opts
	opts.WAL.FS, opts.Projections, opts.AllowIncomplete = l.disk, nil, nil
	if rapid.IntRange(0, 3).Draw(l.t, "a new projection") == 0 {
		opts.Projections, opts.AllowIncomplete = []projection.Projection{newCounter()}, []string{"counter"}
	}
	var err error
	if rapid.Bool().Draw(l.t, "OpenLog") {
		l.log, err = wal.Open("jobs", opts.WAL)
		require.NoError(l.t, err)
		l.e, err = OpenLog(context.Background(), OnDisk(l.log), opts)
		require.NoError(l.t, err)
	} else {
		l.e, err = Open(context.Background(), "jobs", opts)
		require.NoError(l.t, err)
		l.log = l.e.log.(diskLog).Log
	}
	l.note()
}

// note takes what is new into the ledger.
func (l *ledger) note() {
	for e, err := range l.log.Events(uint64(len(l.all)) + 1) {
		require.NoError(l.t, err)
		l.all = append(l.all, e)
		if e.JobID != "" {
			l.newer[e.JobID] = e.Seq
		}
	}
	require.NoError(l.t, l.e.applier.wait(uint64(len(l.all))))
}

var ledgerIDs = []string{"a", "b", "c", "d", "e"}

// command is what an engine does.
func (l *ledger) command() {
	for range 4 {
		id := rapid.SampledFrom(ledgerIDs).Draw(l.t, "id")
		on := wal.JobSubmitted
		if job, known := l.e.Job(id); known {
			allowed := job.Allowed()
			if len(allowed) == 0 || job.Parked != "" {
				continue
			}
			on = rapid.SampledFrom(allowed).Draw(l.t, "on")
		}
		if _, err := l.e.Do(l.t.Context(), commandOf(on, id)); err != nil {
			require.ErrorIs(l.t, err, ErrForgotten)
		}
	}
}

// beneath is what others do: events that nobody checked, of any job, with any prev, or which forget anybody; or, as
// Salvage does, something else in the place of a job's event.
func (l *ledger) beneath() {
	id := rapid.SampledFrom(append(slices.Clone(ledgerIDs), "x", "y")).Draw(l.t, "id")
	e := wal.Event{Type: rapid.SampledFrom(kinds).Draw(l.t, "type"), JobID: id, Prev: l.newer[id]}
	switch rapid.IntRange(0, 9).Draw(l.t, "what") {
	case 0, 1, 2:
	case 3, 4, 5, 6:
		e.Prev = rapid.Uint64Range(0, uint64(len(l.all))).Draw(l.t, "prev")
	case 7:
		if job, _ := l.e.Job(id); job.Parked != "" {
			return // of the rest of a job, who says that it is forgotten is believed
		}
		e = projection.Forgotten{IDsBefore: l.opts.WAL.Now().Add(-10 * time.Second), Jobs: []string{id}}.Event()
	case 8:
		e = wal.Event{Type: wal.JobsForgotten, Args: []byte(`{"jobs":7}`)}
	case 9:
		e = wal.Event{Type: "event_gone"}
		l.newer[id] = uint64(len(l.all)) + 1 // as if it had been of this job
	}
	_, err := l.log.Append(l.t.Context(), e)
	require.NoError(l.t, err)
}

func (l *ledger) checkpoint() { require.NoError(l.t, l.e.Checkpoint(l.t.Context())) }

func (l *ledger) compact() {
	olderThan := time.Duration(rapid.IntRange(0, 30).Draw(l.t, "older than")) * time.Second
	_, err := l.e.Compact(l.t.Context(), olderThan)
	require.NoError(l.t, err)
}

// drop cuts the log by hand, up to where the newest checkpoint begins.
func (l *ledger) drop() {
	l.checkpoint()
	first := l.log.FirstSeq()
	require.NoError(l.t, l.log.DropBefore(uint64(len(l.all))+1))
	l.cut = l.cut || l.log.FirstSeq() > first
}

func (l *ledger) reopen() {
	require.NoError(l.t, l.e.Close())
	l.open()
}

func (l *ledger) crash() {
	image := l.disk.Crash(crashfs.Seed(rapid.Uint64().Draw(l.t, "crash")))
	require.NoError(l.t, l.e.Close())
	l.disk = image
	l.open()
}

// lose removes all checkpoints, and opens again.
func (l *ledger) lose() {
	if !l.cut {
		require.NoError(l.t, l.e.Close())
		forgetCheckpoints(l.t, l.disk)
		l.open()
	}
}

// check: the engine that is open has the jobs that it must have; and so have those that open the log as it is now, as a
// reader does and as after a crash, with the checkpoints, and without them.
func (l *ledger) check() {
	l.note()
	want := &Engine{jobs: projection.NewJobsWith(projection.JobsOptions{HoldBytes: DefaultHoldBytes})}
	for _, e := range l.all {
		_, err := want.jobs.Fold(e)
		require.NotErrorIs(l.t, err, statemachine.ErrMisdirected)
	}
	l.same(want, l.e, "live")
	for _, without := range []bool{false, true} {
		if without && l.cut {
			continue
		}
		for _, readOnly := range []bool{true, false} {
			disk := l.disk.Crash(crashfs.Everything)
			if without {
				forgetCheckpoints(l.t, disk)
			}
			opts := l.opts
			opts.WAL.FS, opts.WAL.ReadOnly = disk, readOnly
			e, err := Open(l.t.Context(), "jobs", opts)
			require.NoError(l.t, err)
			if e.applier.applied.Load() >= uint64(len(l.all)) { // a reader may not believe the last ones yet
				l.same(want, e, fmt.Sprintf("without checkpoints %v, readonly %v", without, readOnly))
				if l.log.FirstSeq() == 1 {
					require.Equal(l.t, l.e.Stats().Tally, e.Stats().Tally)
				}
			}
			require.NoError(l.t, e.Close())
		}
	}
}

func (l *ledger) same(want, e *Engine, how string) {
	require.Equal(l.t, states(want), states(e), how)
	require.Equal(l.t, inOrder(slices.Collect(want.Jobs(projection.Query{}))), inOrder(slices.Collect(e.Jobs(projection.Query{}))), how)
	for _, id := range ledgerIDs {
		require.Equal(l.t, want.jobs.Refuses(id), e.jobs.Refuses(id), "%s: id %s", how, id)
	}
}

// R2, R4: whatever was appended beneath engines, forgotten, compacted, carried, lost or cut off, the jobs with a checkpoint are
// those without it, as long as there is a log without it; and they are the same, whatever was cut off below a checkpoint.
func TestR2_R4_a_checkpoint_changes_no_jobs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := newLedger(t)
		defer func() { _ = l.e.Close() }()
		actions := map[string]func(*rapid.T){"": func(t *rapid.T) { l.t = t; l.check() }}
		for name, action := range map[string]func(){
			"command": l.command, "command again": l.command, "beneath": l.beneath, "beneath again": l.beneath, "checkpoint": l.checkpoint,
			"compact": l.compact, "drop": l.drop, "reopen": l.reopen, "crash": l.crash, "lose": l.lose,
		} {
			actions[name] = func(t *rapid.T) { l.t = t; action() }
		}
		t.Repeat(actions)
	})
}

// damaged is a log without its checkpoints, with some bytes of some files changed, as Salvage saves it.
func damaged(t *rapid.T, disk wal.FS) *crashfs.FS {
	dir, err := os.MkdirTemp("", "salvage")
	require.NoError(t, err)
	defer os.RemoveAll(dir)
	files := read(t, disk, "jobs")
	maps.DeleteFunc(files, func(name string, _ []byte) bool { return strings.HasPrefix(name, "checkpoint-") })
	names := slices.Sorted(maps.Keys(files))
	for range rapid.IntRange(1, 4).Draw(t, "damages") {
		name := rapid.SampledFrom(names).Draw(t, "file")
		if at := rapid.IntRange(0, len(files[name])-1).Draw(t, "at"); files[name][at] != '\n' {
			files[name][at] ^= 1
		}
	}
	from, into := filepath.Join(dir, "damaged"), filepath.Join(dir, "saved")
	require.NoError(t, os.Mkdir(from, 0o755))
	for name, content := range files {
		require.NoError(t, os.WriteFile(filepath.Join(from, name), content, 0o644))
	}
	if _, err = wal.Salvage(from, into); err != nil {
		t.Skip(err)
	}
	saved := make(map[string][]byte)
	entries, err := os.ReadDir(into)
	require.NoError(t, err)
	for _, entry := range entries {
		if strings.HasSuffix(entry.Name(), ".jsonl") {
			saved[entry.Name()], err = os.ReadFile(filepath.Join(into, entry.Name()))
			require.NoError(t, err)
		}
	}
	return put(t, "jobs", saved)
}

// R2, R4: so it is of a log that was saved, whatever of it was lost, from the first checkpoint on.
func TestR2_R4_a_checkpoint_changes_no_jobs_of_a_salvaged_log(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := newLedger(t)
		defer func() { _ = l.e.Close() }()
		some := func(actions ...func()) {
			for range rapid.IntRange(1, 8).Draw(t, "actions") {
				actions[rapid.IntRange(0, len(actions)-1).Draw(t, "action")]()
				l.note()
			}
		}
		some(l.command, l.command, l.command, l.beneath, l.compact)
		require.NoError(t, l.e.Close())
		l.disk = damaged(t, l.disk)
		l.opts.Archive = nil
		for range 3 {
			e := inRapid(l, l.disk)
			l.e, l.log = e, e.log.(diskLog).Log
			for range rapid.IntRange(0, 3).Draw(t, "more") {
				[]func(){l.command, l.compact}[rapid.IntRange(0, 1).Draw(t, "action")]()
			}
			require.NoError(t, e.Checkpoint(t.Context()))
			require.NoError(t, e.Close())
			without := l.disk.Crash(crashfs.Everything)
			forgetCheckpoints(t, without)
			for how, disk := range map[string]*crashfs.FS{"with": l.disk.Crash(crashfs.Everything), "without": without} {
				again := inRapid(l, disk)
				require.Equal(t, how == "with" && again.log.LastSeq() > 0, again.Report().Checkpoint > 0)
				l.same(e, again, how)
				require.NoError(t, again.Close())
			}
		}
	})
}

// inRapid opens an engine on a disk, as the ledger would.
func inRapid(l *ledger, disk wal.FS) *Engine {
	opts := l.opts
	opts.WAL.FS = disk
	e, err := Open(l.t.Context(), "jobs", opts)
	require.NoError(l.t, err)
	return e
}

// R2, R5: a reader that opens while the writer does whatever it likes has the writer's jobs: no rest of a job that is forgotten
// is left to be parked when the floor has ended.
func TestR2_R5_a_reader_opens_beside_a_writer_that_compacts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := newLedger(t)
		defer func() { _ = l.e.Close() }()
		act := func() {
			for range rapid.IntRange(0, 4).Draw(t, "actions") {
				[]func(){l.command, l.command, l.compact, l.checkpoint}[rapid.IntRange(0, 3).Draw(t, "action")]()
			}
		}
		act()
		act()
		reading, err := wal.Open("jobs", wal.Options{FS: l.disk, ReadOnly: true})
		require.NoError(t, err)
		opts := l.opts
		opts.WAL.FS, opts.WAL.ReadOnly = l.disk, true
		r, err := OpenLog(t.Context(), &hooked{diskLog{reading}, act, act}, opts)
		if errors.Is(err, wal.ErrDropped) {
			return // too often
		}
		require.NoError(t, err)
		if err := r.applier.wait(l.log.LastSeq()); err != nil {
			require.ErrorIs(t, err, wal.ErrDropped)
		} else {
			l.same(l.e, r, "reader")
		}
		require.NoError(t, r.Close())
	})
}
