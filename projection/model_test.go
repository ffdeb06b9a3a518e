package projection

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

var noon = time.Date(2024, 5, 15, 12, 0, 0, 0, time.UTC)

// model is what Jobs has to be equal to: a map, searched through and sorted at every question.
type model struct {
	jobs    map[string]statemachine.Job
	last    uint64
	refused []namedAt
	ids     map[string]bool // that there ever were
}

// namedAt are ids that an event at this time has named.
type namedAt struct {
	at  time.Time
	ids []string
}

func newModel() *model { return &model{jobs: map[string]statemachine.Job{}, ids: map[string]bool{}} }

func (m *model) clone() *model {
	return &model{maps.Clone(m.jobs), m.last, slices.Clone(m.refused), maps.Clone(m.ids)}
}

func (m *model) apply(e wal.Event) (statemachine.Job, error) {
	m.last = e.Seq
	if e.JobID == "" {
		if e.Type == wal.JobsForgotten {
			m.forget(e)
		}
		return statemachine.Job{}, nil
	}
	m.ids[e.JobID] = true
	job, err := m.jobs[e.JobID].Apply(e)
	m.jobs[e.JobID] = job
	return job, err
}

func (m *model) forget(e wal.Event) (gone []statemachine.Job) {
	m.last = e.Seq
	f, err := ParseForgotten(e)
	if err != nil {
		panic(err)
	}
	m.refused = slices.DeleteFunc(slices.Clone(m.refused), func(n namedAt) bool { return n.at.Before(f.IDsBefore) })
	named := namedAt{at: e.Time}
	for _, id := range f.Jobs {
		job, ok := m.jobs[id]
		switch {
		case ok && (!job.Finished() || job.Parked != ""):
			continue
		case ok:
			gone = append(gone, job)
			delete(m.jobs, id)
		}
		named.ids = append(named.ids, id)
	}
	m.refused = append(m.refused, named)
	return gone
}

func (m *model) refuses(id string) bool {
	return slices.ContainsFunc(m.refused, func(n namedAt) bool { return slices.Contains(n.ids, id) })
}

// forgettable are in order of submission.
func (m *model) forgettable(before time.Time) []string {
	ids := []string{}
	for _, job := range m.list(Query{Parked: new(false), RollingBack: new(false)}) {
		end := job.FinishedAt
		if job.State == statemachine.RolledBack {
			end = job.RolledBackAt
		}
		if job.Finished() && end.Before(before) {
			ids = append(ids, job.ID)
		}
	}
	return ids
}

func place(o Order, job statemachine.Job) uint64 {
	if o == ByUpdate {
		return job.Seq
	}
	return job.FirstSeq
}

// list answers q but for Limit and After.
func (m *model) list(q Query) []statemachine.Job {
	var found []statemachine.Job
	for _, job := range m.jobs {
		if satisfies(job, q) {
			found = append(found, job)
		}
	}
	slices.SortFunc(found, func(a, b statemachine.Job) int { return cmp.Compare(place(q.Order, a), place(q.Order, b)) })
	if q.Descending {
		slices.Reverse(found)
	}
	return found
}

func satisfies(job statemachine.Job, q Query) bool {
	at := job.SubmittedAt
	return (len(q.States) == 0 || slices.Contains(q.States, job.State)) &&
		(len(q.Capabilities) == 0 || slices.Contains(q.Capabilities, job.Capability)) &&
		(q.Parked == nil || *q.Parked == (job.Parked != "")) &&
		(q.Held == nil || *q.Held == (job.Held != "")) &&
		(q.RollingBack == nil || *q.RollingBack == job.RollingBack) &&
		(q.Since.IsZero() || !at.IsZero() && !at.Before(q.Since)) &&
		(q.Until.IsZero() || !at.IsZero() && at.Before(q.Until))
}

func limited(jobs []statemachine.Job, limit int) []statemachine.Job {
	if limit > 0 && limit < len(jobs) {
		return jobs[:limit]
	}
	return jobs
}

var capabilityNames = []string{"", "shell", "file_read", "file_write"}

// drawEvent draws the next event of some log: mostly legal, of a few jobs, some of them anew, with gaps in the times.
func drawEvent(t *rapid.T, m *model) wal.Event {
	e := wal.Event{Seq: m.last + rapid.Uint64Range(1, 3).Draw(t, "gap"), Epoch: m.last/8 + 1, Time: drawTime(t)}
	kind := rapid.IntRange(0, 9).Draw(t, "kind")
	if kind == 0 {
		e.Type = "log_event"
		return e
	}
	e.JobID = fmt.Sprint("job", rapid.IntRange(0, 20+len(m.jobs)).Draw(t, "id"))
	e.Capability = rapid.SampledFrom(capabilityNames).Draw(t, "capability")
	job := m.jobs[e.JobID]
	e.Prev = job.Seq
	allowed := job.Allowed()
	if kind == 1 || len(allowed) == 0 {
		allowed = []wal.EventType{wal.JobStarted, wal.JobSubmitted, "job_paused"}
	}
	e.Type = rapid.SampledFrom(allowed).Draw(t, "type")
	switch e.Type {
	case wal.JobSubmitted:
		e.Args = json.RawMessage(`[1]`)
	case wal.JobCompleted:
		e.Output = json.RawMessage(fmt.Sprint(e.Seq))
	case wal.JobProgress, wal.JobStep:
		e.Output = json.RawMessage(fmt.Sprintf(`"%d%s"`, e.Seq, strings.Repeat(".", rapid.SampledFrom([]int{0, 9, 600}).Draw(t, "far"))))
	case wal.JobStepUndone:
		e.Args = json.RawMessage(fmt.Sprintf(`{"step":%q}`, rapid.SampledFrom([]string{"a", "#mark"}).Draw(t, "step")))
	case wal.JobFailed, wal.JobRolledBack, wal.JobHeld, wal.JobReleased:
		e.Error = rapid.SampledFrom([]string{"", "exit status 1"}).Draw(t, "error")
	}
	return e
}

// drawAny draws an event as drawEvent does, or one that forgets: what may be forgotten, all, a part or little of it, and
// now and then what may not.
func drawAny(t *rapid.T, m *model) wal.Event {
	if rapid.IntRange(0, 7).Draw(t, "forget") > 0 {
		return drawEvent(t, m)
	}
	f := Forgotten{Before: drawTime(t)}
	if rapid.Bool().Draw(t, "release") {
		f.IDsBefore = drawTime(t)
	}
	ids, nth := m.forgettable(f.Before), rapid.SampledFrom([]int{1, 1, 2, 5, 65}).Draw(t, "nth")
	for i := rapid.IntRange(0, 3).Draw(t, "skipped"); i < len(ids); i += nth {
		f.Jobs = append(f.Jobs, ids[i])
	}
	if rapid.Bool().Draw(t, "too much") {
		f.Jobs = append(f.Jobs, slices.Sorted(maps.Keys(m.jobs))...)
		f.Jobs = append(f.Jobs, "never there", "never there")
	}
	e := f.Event()
	e.Seq, e.Time = m.last+1, drawTime(t)
	return e
}

// drawMany draws the events of many new jobs that come to their ends at once, by the hundred: what fills slabs. Every so many of
// them is half undone then, and stays when the others are forgotten.
func drawMany(t *rapid.T, m *model) []wal.Event {
	var events []wal.Event
	seq, at, capability := m.last, drawTime(t), rapid.SampledFrom(capabilityNames).Draw(t, "capability")
	nth := rapid.SampledFrom([]int{1000, 40, 3}).Draw(t, "half undone")
	for n := range rapid.IntRange(1, 150).Draw(t, "many") {
		id, prev := fmt.Sprint("one of many ", seq), uint64(0)
		for _, typ := range []wal.EventType{wal.JobSubmitted, wal.JobFailed, wal.JobStepUndone} {
			if typ == wal.JobStepUndone && (n+1)%nth > 0 {
				continue
			}
			events = append(events, wal.Event{Seq: seq + 1, Prev: prev, JobID: id, Type: typ, Time: at, Capability: capability})
			seq++
			prev = seq
		}
	}
	return events
}

// drawTime draws around noon, and now and then a time that nanoseconds since 1970 can't express.
func drawTime(t *rapid.T) time.Time {
	if rapid.IntRange(0, 9).Draw(t, "far") == 0 {
		return time.Date(9999, 12, 31, 23, 59, 59, 999_999_999, time.UTC)
	}
	return noon.Add(time.Duration(rapid.Int64Range(-20, 20).Draw(t, "s")) * time.Second)
}

func drawQuery(t *rapid.T) Query {
	q := Query{
		Order:      rapid.SampledFrom([]Order{BySubmission, ByUpdate}).Draw(t, "order"),
		Descending: rapid.Bool().Draw(t, "descending"),
		Limit:      rapid.IntRange(0, 6).Draw(t, "limit"),
	}
	if rapid.Bool().Draw(t, "by state") {
		q.States = rapid.SliceOf(rapid.SampledFrom(statemachine.States())).Draw(t, "states")
	}
	if rapid.Bool().Draw(t, "by capability") {
		q.Capabilities = rapid.SliceOf(rapid.SampledFrom(append([]string{"never seen"}, capabilityNames...))).Draw(t, "capabilities")
	}
	if rapid.IntRange(0, 3).Draw(t, "by parked") == 0 {
		q.Parked = new(rapid.Bool().Draw(t, "parked"))
	}
	if rapid.IntRange(0, 3).Draw(t, "by held") == 0 {
		q.Held = new(rapid.Bool().Draw(t, "held"))
	}
	if rapid.IntRange(0, 3).Draw(t, "by rolling back") == 0 {
		q.RollingBack = new(rapid.Bool().Draw(t, "rolling back"))
	}
	if rapid.IntRange(0, 3).Draw(t, "by time") == 0 {
		q.Since, q.Until = drawTime(t), drawTime(t)
		if q.Since.After(q.Until) {
			q.Since, q.Until = q.Until, q.Since
		}
	}
	return q
}

// viaText sends a cursor out and takes it back.
func viaText(t require.TestingT, c Cursor) Cursor {
	text, err := c.MarshalText()
	require.NoError(t, err)
	var back Cursor
	require.NoError(t, back.UnmarshalText(text))
	require.Equal(t, c, back)
	return back
}
