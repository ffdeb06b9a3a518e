package projection

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// A between is written to by a saver, and lets something happen whenever it is.
type between struct {
	bytes.Buffer
	happens func()
}

func (b *between) Write(p []byte) (int, error) {
	b.happens()
	return b.Buffer.Write(p)
}

// propSnapshotIsTheModel freezes a random history, applies more of it before and while it is saved, loads what was
// saved, and has both go on.
func propSnapshotIsTheModel(t *rapid.T) {
	jobs, m := NewJobs(), newModel()
	jobs.limits = drawLimits(t)
	var tail []wal.Event
	apply := func(events ...wal.Event) {
		for _, e := range events {
			_, want := m.apply(e)
			_, err := jobs.Fold(e)
			require.Equal(t, want, err)
			tail = append(tail, e)
		}
	}
	some := func() {
		for range rapid.IntRange(0, 30).Draw(t, "some") {
			apply(drawAny(t, m))
		}
		if rapid.Bool().Draw(t, "also many") {
			apply(drawMany(t, m)...)
			apply(drawLarge(t, m)...)
		}
	}
	some()
	some()
	older := rapid.IntRange(0, 3).Draw(t, "older")
	for i := range older {
		frozen := m.clone()
		save, err := jobs.Snapshot()
		require.NoError(t, err)
		some()
		defer func() {
			var saved bytes.Buffer
			if err := save(&saved); i < older-1 || jobs.limits.slots == 100 && err != nil {
				require.ErrorIs(t, err, errThawed)
				return
			}
			loaded := NewJobs()
			require.NoError(t, loaded.Load(&saved))
			requireModel(t, loaded, frozen)
			require.Empty(t, jobs.frozen)
		}()
	}
	frozen := m.clone()
	save, err := jobs.Snapshot()
	require.NoError(t, err)
	tail = nil
	some()
	var saved between
	saved.happens = some
	err = save(&saved)
	if jobs.limits.slots == 100 && errors.Is(err, errThawed) {
		return // numbers ran out
	}
	require.NoError(t, err)
	require.LessOrEqual(t, len(jobs.frozen), 1)
	requireSound(t, jobs)
	requireModel(t, jobs, m)

	loaded := NewJobs()
	require.NoError(t, loaded.Load(&saved.Buffer))
	requireSound(t, loaded)
	requireModel(t, loaded, frozen)
	for _, e := range tail {
		_, _ = loaded.Fold(e)
	}
	requireSound(t, loaded)
	requireModel(t, loaded, m)
	askEverything(t, loaded, m, drawQuery(t))
}

// drawLarge draws a job whose args are more than a saver writes at once.
func drawLarge(t *rapid.T, m *model) []wal.Event {
	var events []wal.Event
	for i := range rapid.IntRange(0, 3).Draw(t, "large") {
		e := wal.Event{Seq: m.last + 1 + uint64(i), Type: wal.JobSubmitted, Time: noon}
		e.JobID = fmt.Sprint("large ", e.Seq)
		e.Args = largeArgs[:rapid.SampledFrom([]int{shortLen, shortLen + 1, len(largeArgs)}).Draw(t, "length")]
		events = append(events, e)
	}
	return events
}

var largeArgs = json.RawMessage(`"` + strings.Repeat("large", 14_000) + `"`)

// requireModel holds all that can be asked to the model.
func requireModel(t *rapid.T, jobs *Jobs, m *model) {
	require.Equal(t, len(m.jobs), jobs.Len())
	require.Equal(t, m.last, jobs.last)
	for id := range m.ids {
		want, ok := m.jobs[id]
		job, there := jobs.Get(id)
		require.Equal(t, ok, there)
		require.Equal(t, want, job)
		require.Equal(t, m.refuses(id), jobs.Refuses(id))
	}
	require.Equal(t, m.list(Query{Order: ByUpdate}), slices.Collect(jobs.List(Query{Order: ByUpdate})))
	require.Equal(t, m.list(Query{}), slices.Collect(jobs.List(Query{})))
	for _, state := range statemachine.States() {
		for _, q := range []Query{
			{States: []statemachine.State{state}}, {States: []statemachine.State{state}, Parked: new(true)},
			{States: []statemachine.State{state}, Capabilities: []string{"shell", ""}},
		} {
			count, err := jobs.Count(q)
			require.NoError(t, err)
			require.Equal(t, len(m.list(q)), count)
		}
	}
}

func TestR2_SnapshotIsTheModel(t *testing.T) { rapid.Check(t, propSnapshotIsTheModel) }

// save returns the snapshot of a projection as it stands.
func save(t require.TestingT, s Snapshotter) []byte {
	var b bytes.Buffer
	save, err := s.Snapshot()
	require.NoError(t, err)
	require.NoError(t, save(&b))
	return b.Bytes()
}

// Of what was loaded, a snapshot is the same again: the slots that jobs have had before leave no trace.
func TestR2_LoadedSnapshotIsTheSame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		jobs, stats, m := NewJobs(), NewStats(), newModel()
		for range rapid.IntRange(0, 60).Draw(t, "events") {
			e := drawAny(t, m)
			m.apply(e)
			if e.Type == wal.JobsForgotten {
				gone, err := jobs.Forget(e)
				require.NoError(t, err)
				require.NoError(t, stats.Forget(e, gone))
				continue
			}
			job, _ := jobs.Fold(e)
			require.NoError(t, stats.Apply(e, job))
		}
		requireStates(t, m, stats.Read())
		statsAgain := NewStats()
		require.NoError(t, statsAgain.Load(bytes.NewReader(save(t, stats))))
		require.Equal(t, stats.Read(), statsAgain.Read())
		require.Equal(t, save(t, stats), save(t, statsAgain))
		once, twice := NewJobs(), NewJobs()
		require.NoError(t, once.Load(bytes.NewReader(save(t, jobs)))) // without the capabilities that no job has
		require.NoError(t, twice.Load(bytes.NewReader(save(t, once))))
		require.Equal(t, save(t, once), save(t, twice))
	})
}

// requireStates holds what Stats says of the jobs that are there to the model.
func requireStates(t *rapid.T, m *model, v StatsView) {
	for _, state := range statemachine.States() {
		q := Query{States: []statemachine.State{state}}
		require.Equal(t, len(m.list(q)), v.States[state], "%q", state)
		for name, tally := range v.Capabilities {
			q.Capabilities = []string{name}
			require.Equal(t, len(m.list(q)), tally.States[state], "%q %q", name, state)
		}
	}
	require.Equal(t, len(m.list(Query{Parked: new(true)})), v.Parked)
	require.Equal(t, m.last, v.LastSeq)
}

// Snapshots, one after the other, beside an applier that changes and forgets, and beside readers.
func TestSnapshotWhileApplying(t *testing.T) {
	jobs := NewJobs()
	events := history(3000)
	half := len(events) / 2
	for _, e := range events[:half] {
		_, err := jobs.Fold(e)
		require.NoError(t, err)
	}
	var wg sync.WaitGroup
	saved := make(chan []byte, 1)
	snapshot := func() {
		save, err := jobs.Snapshot()
		require.NoError(t, err)
		wg.Go(func() {
			var b bytes.Buffer
			if err := save(&b); err != nil {
				t.Error(err)
			}
			saved <- b.Bytes()
		})
	}
	snapshot()
	seq := events[half-1].Seq
	for i, e := range events[half:] {
		e.Seq, e.Prev = e.Seq+seq-events[half-1].Seq, 0
		if job, ok := jobs.Get(e.JobID); ok {
			e.Prev = job.Seq
		}
		_, err := jobs.Fold(e)
		require.NoError(t, err)
		if i%50 == 0 {
			seq++
			f := Forgotten{Jobs: jobs.Forgettable(noon.Add(time.Hour), 40)}.Event()
			f.Seq = e.Seq + 1
			_, err := jobs.Fold(f)
			require.NoError(t, err)
		}
		select {
		case b := <-saved:
			loaded := NewJobs()
			require.NoError(t, loaded.Load(bytes.NewReader(b)))
			requireSound(t, loaded)
			snapshot()
		default:
		}
	}
	b := <-saved
	wg.Wait()
	require.NoError(t, NewJobs().Load(bytes.NewReader(b)))
	requireSound(t, jobs)
	require.Empty(t, jobs.frozen)
}

func TestSaveIsCalledOnce(t *testing.T) {
	jobs := full(200)
	save, err := jobs.Snapshot()
	require.NoError(t, err)
	broken := errors.New("no room")
	r, w := io.Pipe()
	require.NoError(t, r.CloseWithError(broken))
	require.ErrorIs(t, save(w), broken)
	require.Empty(t, jobs.frozen, "the freeze ends with an error too")
	require.EqualError(t, save(io.Discard), "projection: jobs: snapshot at seq 800: saved before")

	require.Error(t, jobs.Load(strings.NewReader("")), "not a new one")
	require.Equal(t, 200, jobs.Len())
}

// What a saver has passed is not put aside, nor what came after the freeze, nor anything twice.
func TestSnapshotPutsAsideWhatItMust(t *testing.T) {
	jobs := full(1000)
	roll := func(i int) {
		job, _ := jobs.Get(jobID(i))
		_, err := jobs.Fold(wal.Event{Seq: jobs.last + 1, Prev: job.Seq, JobID: job.ID, Type: wal.JobRolledBack, Time: noon})
		require.NoError(t, err)
	}
	roll(0)
	require.Empty(t, jobs.frozen, "no snapshot, no cost")
	_, err := jobs.Snapshot()
	require.NoError(t, err)
	roll(1)
	roll(999)
	require.Equal(t, 2, jobs.frozen[0].records)
	var records [slabLen]record
	_, err = jobs.collect(jobs.frozen[0], &records)
	require.NoError(t, err)
	require.Equal(t, 1, jobs.frozen[0].records)
	roll(2)
	e := Forgotten{Jobs: []string{jobID(999), jobID(998)}}.Event()
	e.Seq = jobs.last + 1
	_, err = jobs.Forget(e)
	require.NoError(t, err)
	_, err = jobs.Fold(wal.Event{Seq: jobs.last + 1, JobID: "new", Type: wal.JobSubmitted})
	require.NoError(t, err)
	require.Equal(t, 2, jobs.frozen[0].records)
}

func TestLoadHoldsWhatItMay(t *testing.T) {
	const short, long = `"0123456789"`, `"` + "0123456789"
	large := json.RawMessage(long + strings.Repeat("x", 2000) + `"`)
	events := []wal.Event{
		{Seq: 1, JobID: "a", Type: wal.JobSubmitted, Args: json.RawMessage(short)},
		{Seq: 2, JobID: "b", Type: wal.JobSubmitted, Args: large},
		{Seq: 3, JobID: "c", Type: wal.JobSubmitted},
	}
	for _, writer := range []int{0, -1, 12, 11, 2000} {
		for _, reader := range []int{0, -1, 12, 11, 2000} {
			jobs := NewJobsWith(JobsOptions{HoldBytes: writer})
			for _, e := range events {
				job, err := jobs.Fold(e)
				require.NoError(t, err)
				got, _ := jobs.Get(job.ID)
				require.Equal(t, job, got)
			}
			loaded := NewJobsWith(JobsOptions{HoldBytes: reader})
			require.NoError(t, loaded.Load(bytes.NewReader(save(t, jobs))))
			for i, e := range events {
				job, _ := loaded.Get(e.JobID)
				require.Equal(t, len(e.Args), job.Args.Size())
				holds := func(limit int) bool { return limit == 0 || len(e.Args) <= limit }
				raw, held := job.Args.JSON()
				require.Equal(t, holds(writer) && holds(reader) && i < 2, held)
				if held {
					require.Equal(t, string(e.Args), string(raw))
				}
				if i < 2 {
					require.Equal(t, e.Seq, job.Args.Seq())
				}
			}
		}
	}
}

// snapshots are good ones, of every kind of content.
func snapshots(t require.TestingT) [][]byte {
	jobs := NewJobsWith(JobsOptions{HoldBytes: 1000, Floor: 100})
	fold := func(e wal.Event) {
		e.Seq, e.Time, e.Epoch = jobs.last+1, noon.Add(time.Duration(jobs.last)), 1
		_, _ = jobs.Fold(e)
	}
	all := [][]byte{save(t, jobs)}
	fold(wal.Event{JobID: "a", Type: wal.JobSubmitted, Args: json.RawMessage(`[1]`), Capability: "shell"})
	fold(wal.Event{JobID: "a", Type: wal.JobFailed, Prev: 1, Error: "no"})
	fold(wal.Event{JobID: "b", Type: "job_paused"})
	fold(wal.Event{JobID: "c", Type: wal.JobSubmitted, Args: largeArgs[:600]})
	fold(wal.Event{JobID: "d", Type: wal.JobSubmitted, Args: largeArgs[:1600]})
	fold(wal.Event{JobID: "d", Type: wal.JobHeld, Prev: 5, Error: "why"})
	fold(wal.Event{JobID: "e", Type: wal.JobSubmitted})
	fold(wal.Event{JobID: "e", Type: wal.JobValidated, Prev: 7})
	fold(wal.Event{JobID: "e", Type: wal.JobStarted, Prev: 8})
	fold(wal.Event{JobID: "e", Type: wal.JobProgress, Prev: 9, Output: json.RawMessage(`"half"`)})
	fold(wal.Event{JobID: "stray", Type: wal.JobFailed, Prev: 2})
	all = append(all, save(t, jobs))
	fold(Forgotten{Jobs: []string{"a", "z"}}.Event())
	_, _ = jobs.Fold(wal.Event{Seq: jobs.last + 1, JobID: "far", Type: wal.JobSubmitted, Time: time.Unix(1e11, 5).UTC()})
	return append(all, save(t, jobs))
}

// checkLoad loads anything: it is refused and leaves nothing, or makes a Jobs that can be asked and saved.
func checkLoad(t require.TestingT, raw []byte) error {
	jobs := NewJobs()
	if err := jobs.Load(bytes.NewReader(raw)); err != nil {
		require.Zero(t, jobs.Len())
		require.Zero(t, jobs.last)
		_, foldErr := jobs.Fold(wal.Event{Seq: 1, JobID: "a", Type: wal.JobSubmitted})
		require.NoError(t, foldErr)
		return err
	}
	for job := range jobs.List(Query{Order: ByUpdate}) {
		_, _ = json.Marshal(job)
		require.True(t, strings.HasPrefix(job.String(), "job "))
	}
	again := NewJobs()
	require.NoError(t, again.Load(bytes.NewReader(save(t, jobs))))
	require.Equal(t, slices.Collect(jobs.List(Query{})), slices.Collect(again.List(Query{})))
	return nil
}

func FuzzJobsLoad(f *testing.F) {
	for _, raw := range snapshots(f) {
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) { _ = checkLoad(t, raw) })
}

func FuzzStatsLoad(f *testing.F) {
	f.Add(save(f, NewStats()))
	s := NewStats()
	feed(f, s, 1, "a", "shell", wal.JobSubmitted, 0.0, wal.JobFailed, 1.0)
	f.Add(save(f, s))
	f.Fuzz(func(t *testing.T, raw []byte) {
		s := NewStats()
		if s.Load(bytes.NewReader(raw)) != nil {
			require.Equal(t, NewStats().Read(), s.Read())
			return
		}
		again := NewStats()
		require.NoError(t, again.Load(bytes.NewReader(save(t, s))))
		require.Equal(t, s.Read(), again.Read())
	})
}

func TestF16_CutSnapshotIsRefused(t *testing.T) {
	for _, raw := range snapshots(t) {
		require.NoError(t, checkLoad(t, raw))
		for n := range raw {
			require.Error(t, checkLoad(t, raw[:n]), "cut at %d of %d", n, len(raw))
			changed := slices.Clone(raw)
			changed[n] ^= 1 << (n % 8)
			_ = checkLoad(t, changed) // whatever: the checkpoint's checksum is what tells
		}
		require.ErrorContains(t, checkLoad(t, append(slices.Clone(raw), 0)), "goes on behind its end")
	}
	s := NewStats()
	feed(t, s, 1, "a", "shell", wal.JobSubmitted, 0.0, wal.JobFailed, 1.0)
	raw := save(t, s)
	for n := range raw {
		require.Error(t, NewStats().Load(bytes.NewReader(raw[:n])))
	}
}

// Lengths that nothing is behind cost no memory.
func TestF16_LoadIsBounded(t *testing.T) {
	num := func(numbers ...uint64) (raw []byte) {
		for _, n := range numbers {
			raw = binary.AppendUvarint(raw, n)
		}
		return raw
	}
	const huge = 1 << 50
	for name, raw := range map[string][]byte{
		"capabilities":         num(1, huge),
		"a name":               num(1, 1, huge),
		"refusals":             num(1, 0, huge),
		"ids of one":           num(1, 0, 1, 1, 0, 0, 1<<40),
		"strays":               num(1, 0, 0, huge),
		"a stray":              num(1, 0, 0, 1, huge),
		"a block":              num(1, 0, 0, 0, huge, 1, 0, 0),
		"ids of a block":       num(1, 0, 0, 0, 1, 1, huge, 0, 0),
		"payloads of a block":  num(1, 0, 0, 0, 1, 1, 0, huge, 0),
		"overflow of a length": num(1, 0, 0, 0, math.MaxUint64, 1, math.MaxUint64, math.MaxUint64),
		"a long payload": append(num(1, 1, 0, 0, 0, 15, 1, 1, 0),
			append(num(1, 1, 0, 1, 0, 1, 1<<40<<2|payloadHeld, 0, 0), make([]byte, 1)...)...),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		require.ErrorIs(t, NewJobs().Load(bytes.NewReader(raw)), errShort, name)
		runtime.ReadMemStats(&after)
		require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(1<<20), name)
	}
}
