package projection

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// aWalk is a listing by pages that is on its way while events are applied. Its query asks only for what never changes
// about a job, so that what it must show can be told.
type aWalk struct {
	q     Query
	began uint64 // seq
	shown []statemachine.Job
}

// propJobsIsTheModel applies random events, asks random questions, and has a listing on its way meanwhile.
func propJobsIsTheModel(t *rapid.T) {
	jobs, m := NewJobs(), newModel()
	jobs.stretchLen = rapid.IntRange(1, 5).Draw(t, "stretch")
	jobs.gatherMax = rapid.SampledFrom([]int{0, 4, 1000}).Draw(t, "gather")
	jobs.limits = drawLimits(t)
	fold := rapid.Bool().Draw(t, "fold")
	var walk *aWalk
	take := func(e wal.Event) {
		job, err := m.apply(e)
		if !fold {
			require.NoError(t, jobs.Apply(e, job))
			return
		}
		folded, foldErr := jobs.Fold(e)
		require.Equal(t, job, folded)
		require.Equal(t, err, foldErr)
	}
	t.Repeat(map[string]func(*rapid.T){
		"": func(t *rapid.T) {
			require.Equal(t, len(m.jobs), jobs.Len())
			requireSound(t, jobs)
		},
		"apply": func(t *rapid.T) {
			for range rapid.IntRange(1, 10).Draw(t, "n") {
				take(drawAny(t, m))
			}
		},
		"apply many": func(t *rapid.T) {
			for _, e := range drawMany(t, m) {
				take(e)
			}
		},
		"forget": func(t *rapid.T) {
			before, most := drawTime(t), rapid.SampledFrom([]int{0, 1, 70, 1000}).Draw(t, "most")
			ids := jobs.Forgettable(before, most)
			all := m.forgettable(before)
			require.Equal(t, all[:min(most, len(all))], append([]string{}, ids...))
			e := Forgotten{Before: before, Jobs: ids}.Event()
			e.Seq, e.Time = m.last+1, before
			want := m.forget(e)
			gone, err := jobs.Forget(e)
			require.NoError(t, err)
			require.Equal(t, want, gone)
		},
		"refuses": func(t *rapid.T) {
			for id := range m.ids {
				require.Equal(t, m.refuses(id), jobs.Refuses(id), id)
			}
			require.Equal(t, m.refuses("never there"), jobs.Refuses("never there"))
		},
		"get": func(t *rapid.T) {
			for id, want := range m.jobs {
				job, ok := jobs.Get(id)
				require.True(t, ok)
				require.Equal(t, want, job)
			}
			_, ok := jobs.Get("no such job")
			require.False(t, ok)
		},
		"ask": func(t *rapid.T) { askEverything(t, jobs, m, drawQuery(t)) },
		"walk": func(t *rapid.T) {
			if walk == nil {
				q := drawQuery(t)
				walk = &aWalk{q: Query{
					Capabilities: q.Capabilities, Order: q.Order, Descending: q.Descending, Limit: 1 + q.Limit,
				}, began: m.last}
			}
			page, next, err := jobs.Page(walk.q)
			require.NoError(t, err)
			walk.shown = append(walk.shown, page...)
			walk.q.After = viaText(t, next)
			if next.IsZero() {
				checkWalk(t, m, walk)
				walk = nil
			}
		},
	})
}

// drawLimits lets the table be renumbered often, seldom, or never.
func drawLimits(t *rapid.T) limits {
	return limits{
		slots: rapid.SampledFrom([]int{100, math.MaxInt32}).Draw(t, "slots"),
		slabs: rapid.SampledFrom([]int{1, 1 << 14}).Draw(t, "slabs"),
		slack: rapid.SampledFrom([]int{0, 200, 1 << 14}).Draw(t, "slack"),
	}
}

// requireSound holds the parts of the table to each other.
func requireSound(t require.TestingT, j *Jobs) {
	var w census
	for i := range j.slabs {
		w.count(t, j, i)
	}
	cells := 0
	for i := range j.ids.shards {
		cells += j.ids.shards[i].used
	}
	require.Equal(t, []int{w.live, w.live, w.held}, []int{j.live, cells, j.held})
	for i, c := range j.capabilities {
		require.LessOrEqual(t, c.gone, c.live()+32)
		there := slices.DeleteFunc(slices.Clone(c.slots), func(slot uint32) bool { return !j.alive(slot) })
		if !slices.Equal(w.slots[i], there) || len(there) != c.live() {
			require.Equal(t, w.slots[i], there, "of %d", c.live())
		}
	}
	linked := 0
	for slot, seq := j.oldest, uint64(0); slot != none; slot = j.record(slot).newer {
		if j.record(slot).seq <= seq {
			require.Greater(t, j.record(slot).seq, seq)
		}
		seq = j.record(slot).seq
		linked++
	}
	require.Equal(t, w.live, linked)
}

// A census is what a table's records say.
type census struct {
	live, held int
	first      uint64
	slots      [8][]uint32 // by capability
}

func (w *census) count(t require.TestingT, j *Jobs, i int) {
	s := &j.slabs[i]
	require.GreaterOrEqual(t, s.first, w.first)
	if s.records == nil {
		require.Zero(t, s.live())
		require.Positive(t, i, "none at the front")
		return
	}
	w.held++
	for k := range min(slabLen, j.n-(j.base+i)*slabLen) {
		slot, r := uint32((j.base+i)*slabLen+k), &s.records[k]
		there := r.id != ""
		switch {
		case r.first < w.first, there != j.alive(slot), !there && !reflect.DeepEqual(*r, record{first: r.first}):
			require.Fail(t, "a wrong record", "slot %d: %v", slot, *r)
		case there && j.locate(r.id).slot != slot:
			require.Fail(t, "not found by its id", "slot %d: %q", slot, r.id)
		case there:
			w.live++
			w.slots[r.capability] = append(w.slots[r.capability], slot)
		}
		w.first = r.first
	}
}

// askEverything holds List, Page and Count to the model.
func askEverything(t *rapid.T, jobs *Jobs, m *model, q Query) {
	want := m.list(q)
	require.Equal(t, limited(want, q.Limit), slices.Collect(jobs.List(q)))
	count, err := jobs.Count(q)
	require.NoError(t, err)
	require.Equal(t, len(want), count)

	var paged []statemachine.Job
	for pages := 0; ; pages++ {
		page, next, err := jobs.Page(q)
		require.NoError(t, err)
		paged = append(paged, page...)
		if next.IsZero() {
			break
		}
		require.Len(t, page, cmp.Or(q.Limit, DefaultPage), "only the last page is short")
		q.After = viaText(t, next)
		require.Equal(t, want[len(paged)].ID, first(jobs, q).ID, "List goes on with a cursor too")
	}
	require.Equal(t, want, paged)
}

func first(jobs *Jobs, q Query) (job statemachine.Job) {
	for job = range jobs.List(q) {
		break
	}
	return job
}

// checkWalk says what a listing has to have shown, whatever happened while it was on its way.
func checkWalk(t *rapid.T, m *model, w *aWalk) {
	shown := map[uint64]int{} // by first seq: an id may have been another job's
	for i, job := range w.shown {
		shown[job.FirstSeq]++
		if i > 0 && !w.q.Descending {
			require.Greater(t, place(w.q.Order, job), place(w.q.Order, w.shown[i-1]))
		} else if i > 0 {
			require.Less(t, place(w.q.Order, job), place(w.q.Order, w.shown[i-1]))
		}
	}
	for _, job := range m.list(w.q) {
		switch {
		case w.q.Order == BySubmission && job.FirstSeq <= w.began, job.Seq <= w.began:
			require.Equal(t, 1, shown[job.FirstSeq], "%s: neither twice nor skipped", job.ID)
		case w.q.Order == BySubmission || w.q.Descending:
			require.LessOrEqual(t, shown[job.FirstSeq], 1, "%s: not twice", job.ID)
		}
	}
}

func TestR1_JobsIsTheModel(t *testing.T) { rapid.Check(t, propJobsIsTheModel) }

func FuzzR1_JobsIsTheModel(f *testing.F) { f.Fuzz(rapid.MakeFuzz(propJobsIsTheModel)) }

// Several slabs, many hash cells, both ways to list by update.
func TestR1_JobsIsTheModelOfThousands(t *testing.T) {
	jobs, m := NewJobs(), newModel()
	for i, e := range history(5000) {
		if i%7 == 0 {
			e.Type = "job_paused"
		}
		job, err := m.apply(e)
		folded, foldErr := jobs.Fold(e)
		require.Equal(t, job, folded)
		require.Equal(t, err, foldErr)
	}
	for _, q := range []Query{
		{}, {Descending: true}, {Order: ByUpdate}, {Order: ByUpdate, Descending: true}, {Parked: new(true)},
		{States: []statemachine.State{statemachine.Completed}, Order: ByUpdate},
		{Capabilities: []string{"cap1", "cap3"}, Descending: true}, {Since: noon, Until: noon.Add(time.Second)},
	} {
		require.Equal(t, m.list(q), slices.Collect(jobs.List(q)))
		count, err := jobs.Count(q)
		require.NoError(t, err)
		require.Equal(t, len(m.list(q)), count)
	}
}

// history returns the events of n jobs: four each, eight jobs at a time.
func history(n int) []wal.Event {
	types := []wal.EventType{wal.JobSubmitted, wal.JobValidated, wal.JobStarted, wal.JobCompleted}
	events := make([]wal.Event, 0, 4*n)
	for base := 0; base < n; base += 8 {
		for step, typ := range types {
			for i := base; i < min(base+8, n); i++ {
				e := wal.Event{Seq: uint64(len(events) + 1), Epoch: 1, Type: typ, JobID: jobID(i), Capability: fmt.Sprint("cap", i%5)}
				e.Time = noon.Add(time.Duration(len(events)) * time.Millisecond)
				if step > 0 {
					e.Prev = e.Seq - uint64(min(8, n-base))
				}
				events = append(events, e)
			}
		}
	}
	return events
}

func jobID(i int) string { return fmt.Sprintf("%016x%016x", uint64(i)*0x9e3779b97f4a7c15, i) }

func TestR1_JobsRefusesWhatItIsPast(t *testing.T) {
	jobs := NewJobs()
	e := wal.Event{Seq: 3, Type: wal.JobSubmitted, JobID: "j"}
	job, err := jobs.Fold(e)
	require.NoError(t, err)

	_, err = jobs.Fold(e)
	require.ErrorIs(t, err, statemachine.ErrMisdirected)
	require.ErrorIs(t, jobs.Apply(e, job), statemachine.ErrMisdirected)
	require.ErrorIs(t, jobs.Apply(wal.Event{Seq: 2}, statemachine.Job{}), statemachine.ErrMisdirected)

	next := wal.Event{Seq: 4, JobID: "k"}
	require.ErrorContains(t, jobs.Apply(next, job), "not as it stands after this event")
	late := statemachine.Job{ID: "k", FirstSeq: 1, Seq: 4, State: statemachine.Started}
	require.EqualError(t, jobs.Apply(next, late), `projection: jobs: seq 4: job "k" has earlier events, from seq 1`)
	late.State, late.FirstSeq = "running", 4
	require.ErrorContains(t, jobs.Apply(next, late), "not as it stands after this event")
	require.Equal(t, 1, jobs.Len())
}

func TestJobsKeepsTimesExactly(t *testing.T) {
	for _, at := range []time.Time{
		{}, time.Unix(0, 0).UTC(), noon, time.Unix(-9e9, 0).UTC(), time.Unix(9e9+1, 1).UTC(),
		time.Date(9999, 12, 31, 23, 59, 59, 999_999_999, time.UTC), time.Date(1, 1, 1, 0, 0, 0, 1, time.UTC),
		time.Unix(0, math.MinInt64).UTC(), time.Unix(0, math.MaxInt64).UTC(),
	} {
		jobs := NewJobs()
		job, err := jobs.Fold(wal.Event{Seq: 1, Type: wal.JobSubmitted, JobID: "j", Time: at})
		require.NoError(t, err)
		require.Equal(t, at, job.SubmittedAt)
		job, err = jobs.Fold(wal.Event{Seq: 2, Prev: 1, Type: wal.JobFailed, JobID: "j", Time: at, Error: "x"})
		require.NoError(t, err)
		got, _ := jobs.Get("j")
		require.Equal(t, job, got)
		require.Equal(t, at, got.FinishedAt)
	}
}

func TestQueryIsRefused(t *testing.T) {
	jobs := NewJobs()
	descending := Cursor{seq: 1, descending: true}
	for text, q := range map[string]Query{
		`States: unknown state "running"`: {States: []statemachine.State{"completed", "running"}},
		`Order: unknown order 7`:          {Order: 7},
		`Limit: -1 is negative`:           {Limit: -1},
		`Since: is after Until`:           {Since: noon.Add(1), Until: noon},
		`After: the cursor is of a query with another order or direction`: {After: descending},
	} {
		text = "projection: invalid query: " + text
		require.EqualError(t, q.Validate(), text)
		require.ErrorIs(t, q.Validate(), ErrQuery)
		require.ErrorIs(t, q.Validate(), wal.ErrInvalid)
		_, _, err := jobs.Page(q)
		require.EqualError(t, err, text)
		require.PanicsWithError(t, text, func() { jobs.List(q) })
	}
	_, err := jobs.Count(Query{States: []statemachine.State{"running"}})
	require.ErrorIs(t, err, ErrQuery)
	require.NoError(t, Query{Since: noon, Until: noon, After: Cursor{}, Descending: true}.Validate())
}

func TestCursorText(t *testing.T) {
	c := Cursor{seq: math.MaxUint64, slot: none, order: ByUpdate, descending: true}
	viaText(t, c)
	viaText(t, Cursor{})
	text, err := json.Marshal(struct{ Next Cursor }{Cursor{seq: 300, slot: 2}})
	require.NoError(t, err)
	require.Equal(t, `{"Next":"AQCsAgL3GHkH"}`, string(text), "version 1, for ever")

	good, _ := c.MarshalText()
	require.Regexp(t, `^[A-Za-z0-9_-]+$`, string(good))
	for i := range good {
		changed := slices.Clone(good)
		changed[i] ^= 1
		require.ErrorIs(t, new(Cursor).UnmarshalText(changed), ErrQuery, "byte %d", i)
		require.ErrorIs(t, new(Cursor).UnmarshalText(good[:i+1][:i]), map[bool]error{true: nil, false: ErrQuery}[i == 0])
	}
	for _, bad := range []string{"x", "100", "AAAAAAAAAAAAAAAA", "AgCsAgL3GHkH", string(good) + "A", " " + string(good)} {
		require.ErrorIs(t, new(Cursor).UnmarshalText([]byte(bad)), ErrQuery)
	}
}

func FuzzCursorText(f *testing.F) {
	f.Add([]byte("AQCsAgL3GHkH"))
	f.Fuzz(func(t *testing.T, text []byte) {
		var c Cursor
		if c.UnmarshalText(text) != nil {
			require.Zero(t, c)
			return
		}
		again, err := c.MarshalText()
		require.NoError(t, err)
		require.Equal(t, c, viaText(t, c))
		if len(text) == len(again) {
			require.Equal(t, string(text), string(again))
		}
		_, _, err = NewJobs().Page(Query{Order: c.order, Descending: c.descending, After: c})
		require.NoError(t, err)
	})
}

// Readers of every kind beside the applier; the race detector and the invariants look on.
func TestJobsWhileApplying(t *testing.T) {
	jobs, stats := NewJobs(), NewStats()
	jobs.stretchLen, jobs.gatherMax = 16, 64
	done := make(chan struct{})
	var wg sync.WaitGroup
	for _, q := range []Query{
		{}, {Descending: true}, {Order: ByUpdate}, {Order: ByUpdate, Descending: true},
		{States: []statemachine.State{statemachine.Started}}, {Capabilities: []string{"cap1"}, Order: ByUpdate},
	} {
		wg.Go(func() {
			for {
				readAll(t, jobs, stats, q)
				select {
				case <-done:
					return
				default:
				}
			}
		})
	}
	for _, e := range history(500) {
		job, err := jobs.Fold(e)
		require.NoError(t, err)
		require.NoError(t, stats.Apply(e, job))
	}
	close(done)
	wg.Wait()
}

func readAll(t *testing.T, jobs *Jobs, stats *Stats, q Query) {
	var last statemachine.Job
	for job := range jobs.List(q) {
		if last.ID != "" && (place(q.Order, job) > place(q.Order, last)) == q.Descending {
			t.Errorf("%v after %v", job, last)
		}
		if _, ok := jobs.Get(job.ID); !ok {
			t.Errorf("%v is listed but not there", job)
		}
		last = job
	}
	if n, err := jobs.Count(q); err != nil || n > jobs.Len() {
		t.Error(n, err)
	}
	_ = stats.Read()
}

// A caller may do what it likes within an iteration, feed the same Jobs too.
func TestNoLockWhileYielding(t *testing.T) {
	jobs := NewJobs()
	events := history(16)
	for _, e := range events[:32] {
		_, err := jobs.Fold(e)
		require.NoError(t, err)
	}
	next := events[32:]
	for range jobs.List(Query{Order: ByUpdate}) {
		_, err := jobs.Fold(next[0])
		require.NoError(t, err)
		next = next[1:]
	}
	require.Len(t, next, 24, "jobs that came meanwhile are left out")
}
