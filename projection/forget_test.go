package projection

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

func TestForgottenIsReadAsWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := Forgotten{Before: drawTime(t), Jobs: rapid.SliceOf(rapid.StringN(1, 10, -1)).Draw(t, "ids")}
		if rapid.Bool().Draw(t, "release") {
			f.IDsBefore = drawTime(t)
		}
		back, err := ParseForgotten(f.Event())
		require.NoError(t, err)
		require.Equal(t, f, back)
	})
	e := Forgotten{Before: noon, IDsBefore: noon.Add(-1), Jobs: []string{"a", "b"}}.Event()
	require.Equal(t, wal.JobsForgotten, e.Type)
	require.JSONEq(t, `{"before":"2024-05-15T12:00:00Z","ids_before":"2024-05-15T11:59:59.999999999Z","jobs":["a","b"]}`, string(e.Args))
	require.JSONEq(t, `{"before":"0001-01-01T00:00:00Z","jobs":[]}`, string(Forgotten{}.Event().Args))

	prepared, err := wal.Prepare(wal.Options{}, e)
	require.NoError(t, err, "the log takes it")
	require.Equal(t, string(e.Args), string(prepared[0].Args))
}

func TestForgottenIsRefused(t *testing.T) {
	for args, reason := range map[string]string{
		``:                                  "unexpected end",
		`null`:                              "before",
		`[]`:                                "cannot unmarshal array",
		`{"before":"noon","jobs":[]}`:       "before",
		`{"before":1,"jobs":[]}`:            "before",
		`{"Before":"2024-05-15T12:00:00Z"}`: "before",
		`{"before":"2024-05-15T12:00:00Z"}`: "jobs",
		`{"before":"2024-05-15T12:00:00Z","jobs":null}`:               "jobs: null",
		`{"before":"2024-05-15T12:00:00Z","jobs":["a",""]}`:           "the id at 1 is empty",
		`{"before":"2024-05-15T12:00:00Z","jobs":["a",null]}`:         "the id at 1 is empty",
		`{"before":"2024-05-15T12:00:00Z","jobs":["a",7]}`:            "jobs",
		`{"before":"2024-05-15T12:00:00Z","jobs":["a"],"Jobs":7,"x"}`: "invalid character",
		`{"before":"2024-05-15T12:00:00Z","ids_before":"","jobs":[]}`: "ids_before",
	} {
		jobs := ended(t, "a")
		e := wal.Event{Seq: 9, Type: wal.JobsForgotten, Args: json.RawMessage(args)}
		job, err := jobs.Fold(e)
		require.ErrorContains(t, err, "projection: seq 9 (jobs_forgotten): ", args)
		require.ErrorContains(t, err, reason, args)
		require.NotErrorIs(t, err, statemachine.ErrMisdirected)
		require.Zero(t, job)
		require.Equal(t, 1, jobs.Len())
		require.EqualValues(t, 9, jobs.last, "it was applied")
		e.Seq++
		require.NoError(t, jobs.Apply(e, statemachine.Job{}), "as a projection it goes on")
		require.Equal(t, 1, jobs.Len())
	}
	jobs := ended(t, "a")
	_, err := jobs.Forget(wal.Event{Seq: 9, Type: wal.JobsForgotten, Problem: "no JSON"})
	require.EqualError(t, err, "projection: seq 9 (jobs_forgotten): not readable: no JSON")
	for _, e := range []wal.Event{
		{Seq: 9, Type: wal.JobsForgotten}, {Seq: 10, JobID: "a", Type: wal.JobsForgotten}, {Seq: 10, Type: "log_event"},
	} {
		_, err = jobs.Forget(e)
		require.ErrorIs(t, err, statemachine.ErrMisdirected)
		require.EqualValues(t, 9, jobs.last, "nothing has changed")
	}
	job, err := jobs.Fold(wal.Event{Seq: 10, Prev: 2, JobID: "a", Type: wal.JobsForgotten})
	require.ErrorIs(t, err, statemachine.ErrUnknownEvent, "of a job it is an event like any other")
	require.NotEmpty(t, job.Parked)
}

// ended returns a Jobs in which this job has failed, by seqs 1 and 2.
func ended(t require.TestingT, id string) *Jobs {
	jobs := NewJobs()
	for i, typ := range []wal.EventType{wal.JobSubmitted, wal.JobFailed} {
		_, err := jobs.Fold(wal.Event{Seq: uint64(i + 1), Prev: uint64(i), JobID: id, Type: typ, Time: noon})
		require.NoError(t, err)
	}
	return jobs
}

// forget has the jobs forgotten by the next event, at this time.
func forget(t require.TestingT, jobs *Jobs, at time.Time, idsBefore time.Time, ids ...string) []statemachine.Job {
	e := Forgotten{Before: at, IDsBefore: idsBefore, Jobs: ids}.Event()
	e.Seq, e.Time = jobs.last+1, at
	gone, err := jobs.Forget(e)
	require.NoError(t, err)
	return gone
}

// An unfinished job and a parked one are left alone, whoever names them, and their ids with them.
func TestR5_OnlyFinishedJobsAreForgotten(t *testing.T) {
	jobs := NewJobs()
	seq := uint64(0)
	for state, steps := range map[string][]wal.EventType{
		"submitted":   {wal.JobSubmitted},
		"validated":   {wal.JobSubmitted, wal.JobValidated},
		"started":     {wal.JobSubmitted, wal.JobValidated, wal.JobStarted},
		"completed":   {wal.JobSubmitted, wal.JobValidated, wal.JobStarted, wal.JobCompleted},
		"failed":      {wal.JobSubmitted, wal.JobFailed},
		"rolled_back": {wal.JobSubmitted, wal.JobFailed, wal.JobRolledBack},
	} {
		for _, id := range []string{state, state + ", parked"} {
			all := steps
			if id != state {
				all = append(all[:len(all):len(all)], "job_paused")
			}
			prev := uint64(0)
			for _, typ := range all {
				seq++
				_, _ = jobs.Fold(wal.Event{Seq: seq, Prev: prev, JobID: id, Type: typ, Time: noon})
				prev = seq
			}
		}
	}
	var all []string
	for job := range jobs.List(Query{}) {
		all = append(all, job.ID)
	}
	require.ElementsMatch(t, []string{"completed", "failed", "rolled_back"}, jobs.Forgettable(noon.Add(1), 100))
	require.Empty(t, jobs.Forgettable(noon, 100))
	require.Len(t, forget(t, jobs, noon, time.Time{}, all...), 3)
	require.Equal(t, 9, jobs.Len())
	for _, id := range all {
		_, there := jobs.Get(id)
		require.NotEqual(t, there, jobs.Refuses(id), id)
	}
}

// A job that was rolled back has ended with that.
func TestForgettableGoesByTheEnd(t *testing.T) {
	jobs := ended(t, "a")
	_, err := jobs.Fold(wal.Event{Seq: 3, Prev: 2, JobID: "a", Type: wal.JobRolledBack, Time: noon.Add(time.Hour)})
	require.NoError(t, err)
	require.Empty(t, jobs.Forgettable(noon.Add(time.Minute), 1))
	require.Equal(t, []string{"a"}, jobs.Forgettable(noon.Add(2*time.Hour), 1))
	require.Empty(t, jobs.Forgettable(noon.Add(2*time.Hour), 0))
}

func TestRefusedIDsAreLetGo(t *testing.T) {
	jobs := ended(t, "a")
	at := func(minutes int) time.Time { return noon.Add(time.Duration(minutes) * time.Minute) }
	forget(t, jobs, at(10), time.Time{}, "a", "gone before")
	require.True(t, jobs.Refuses("a"))
	require.True(t, jobs.Refuses("gone before"), "in a log that was compacted it is not there any more")
	require.False(t, jobs.Refuses("b"))

	forget(t, jobs, at(20), at(10), "b")
	require.True(t, jobs.Refuses("a"), "at(10) is not before at(10)")
	forget(t, jobs, at(15), at(10).Add(1), "c", "b")
	require.False(t, jobs.Refuses("a"))
	forget(t, jobs, at(30), at(16)) // the clock had gone back
	require.False(t, jobs.Refuses("c"))
	require.True(t, jobs.Refuses("b"), "named at 20 too")
	forget(t, jobs, at(30), at(21))
	require.False(t, jobs.Refuses("b"))
	require.Empty(t, jobs.refused.events)

	seq := jobs.last
	forget(t, jobs, at(40), time.Time{}, "a")
	_, err := jobs.Fold(wal.Event{Seq: seq + 2, JobID: "a", Type: wal.JobSubmitted})
	require.NoError(t, err, "to refuse is not the fold's business")
	require.Equal(t, 1, jobs.Len())
}

// Each fingerprint is held as often as it was added, whatever they collide with.
func TestPrintSetIsTheModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var set printSet
		model, prints := map[uint64]int{}, rapid.SliceOfN(rapid.Uint64Range(1, 40), 1, 200).Draw(t, "prints")
		for _, print := range prints {
			print = print<<2&31 | print // that many have one home
			if model[print] > 0 && rapid.Bool().Draw(t, "remove") {
				set.remove(print)
				model[print]--
			} else {
				set.add(print)
				model[print]++
			}
			for print, n := range model {
				require.Equal(t, n > 0, set.has(print))
			}
		}
	})
}

// What is left above the floor of a job that was forgotten is passed over, and nothing else is.
func TestR5_StraysArePassedOver(t *testing.T) {
	jobs := NewJobsWith(JobsOptions{Floor: 100})
	fold := func(seq, prev uint64, id string, typ wal.EventType) (statemachine.Job, error) {
		return jobs.Fold(wal.Event{Seq: seq, Prev: prev, JobID: id, Type: typ, Time: noon})
	}
	for _, seqs := range [][2]uint64{{101, 99}, {103, 101}} {
		job, err := fold(seqs[0], seqs[1], "a", wal.JobStarted)
		require.NoError(t, err)
		require.Zero(t, job)
	}
	require.NoError(t, jobs.Apply(wal.Event{Seq: 104, Prev: 50, JobID: "b", Type: wal.JobFailed}, statemachine.Job{}))
	require.Equal(t, []Stray{{"a", 103}, {"b", 104}}, jobs.Strays())
	require.Zero(t, jobs.Len())

	for i, e := range []wal.Event{
		{Prev: 100, JobID: "lost"}, // its event at the floor has to be there
		{Prev: 103, JobID: "other"},
		{Prev: 101, JobID: "a"}, // not the newest that was passed over
		{Prev: 0, JobID: "first"},
	} {
		e.Seq, e.Type = uint64(110+i), wal.JobStarted
		job, err := jobs.Fold(e)
		require.Error(t, err)
		require.NotEmpty(t, job.Parked)
	}
	loaded := NewJobs()
	require.NoError(t, loaded.Load(bytes.NewReader(save(t, jobs))))
	require.Equal(t, jobs.Strays(), loaded.Strays())
	loaded = NewJobsWith(JobsOptions{Lost: map[string]bool{"a": true}})
	require.NoError(t, loaded.Load(bytes.NewReader(save(t, jobs))))
	require.Equal(t, []Stray{{"b", 104}}, loaded.Strays(), "what is lost is not passed over any more")

	_, err := fold(120, 104, "b", wal.JobRolledBack)
	require.NoError(t, err)
	require.Empty(t, forget(t, jobs, noon, time.Time{}, "b"))
	require.True(t, jobs.Refuses("b"))
	require.Equal(t, []Stray{{"a", 103}}, jobs.Strays())
	_, err = fold(130, 0, "b", wal.JobSubmitted)
	require.NoError(t, err, "a new job with that id")
}

// Without a floor nothing is passed over.
func TestR4_WithoutAFloorNothingIsAStray(t *testing.T) {
	jobs := NewJobs()
	job, err := jobs.Fold(wal.Event{Seq: 5, Prev: 4, JobID: "a", Type: wal.JobStarted})
	require.Error(t, err)
	require.NotEmpty(t, job.Parked)
	require.Empty(t, jobs.Strays())
}

// The rest of a job that was thought to be lost is forgotten by the event that forgets the job, as a rest that was passed over
// is: what has come of the same id behind that is lost, and parked, by itself.
func TestR4_ALostJobThatIsForgottenAfterAllGoes(t *testing.T) {
	jobs := NewJobsWith(JobsOptions{Floor: 100, Lost: map[string]bool{"a": true}})
	rest := wal.Event{Seq: 101, Prev: 99, JobID: "a", Type: wal.JobFailed}
	job, err := jobs.Fold(rest)
	require.Error(t, err)
	require.NotEmpty(t, job.Parked)
	require.Empty(t, forget(t, jobs, noon, time.Time{}, "a"), "as the job never was")
	require.Zero(t, jobs.Len())
	require.True(t, jobs.Refuses("a"))
	rest.Seq, rest.Prev = 110, 98
	job, err = jobs.Fold(rest)
	require.Error(t, err)
	require.EqualValues(t, 110, job.FirstSeq)
	require.EqualValues(t, 110, job.ParkedSeq)
}

// When the floor has ended nothing is passed over any more.
func TestR4_BehindTheFloorsEndNothingIsAStray(t *testing.T) {
	jobs := NewJobsWith(JobsOptions{Floor: 100})
	jobs.EndFloor()
	job, err := jobs.Fold(wal.Event{Seq: 101, Prev: 4, JobID: "a", Type: wal.JobStarted})
	require.Error(t, err)
	require.NotEmpty(t, job.Parked)
	require.Empty(t, jobs.Strays())
}

// churn submits and fails jobs, and has all but the newest keep forgotten, by a thousand.
// The first job stays open. Ids are let go too.
func churn(t require.TestingT, jobs *Jobs, from, to, keep int) {
	at := func(i int) time.Time { return noon.Add(time.Duration(i) * time.Millisecond) }
	args, reason := json.RawMessage(`{"path":"/srv"}`), strings.Repeat("x", 50)
	for i := from; i < to; i++ {
		id, seq := jobID(i), jobs.last
		_, _ = jobs.Fold(wal.Event{Seq: seq + 1, JobID: id, Type: wal.JobSubmitted, Args: args, Time: at(i), Capability: "shell"})
		if i == 0 {
			continue
		}
		_, _ = jobs.Fold(wal.Event{Seq: seq + 2, Prev: seq + 1, JobID: id, Type: wal.JobFailed, Error: reason, Time: at(i)})
		if i%keep == 0 {
			ids := jobs.Forgettable(at(i-keep), 2*keep)
			e := Forgotten{IDsBefore: at(i - 10*keep), Jobs: ids}.Event()
			e.Seq, e.Time = seq+3, at(i)
			_, err := jobs.Forget(e)
			require.NoError(t, err)
		}
	}
}

// Heap and table stay as they are, however many jobs have been forgotten.
func TestR5_MemoryComesBack(t *testing.T) {
	jobs := NewJobs()
	jobs.limits.slabs = 1 << 9 // as often as with 2 million jobs
	churn(t, jobs, 0, 50_000, 1000)
	before := heap()
	churn(t, jobs, 50_000, 300_000, 1000)
	after := heap()
	require.Less(t, float64(after), float64(before)+256<<10, "250,000 forgotten jobs")
	require.Less(t, jobs.Len(), 2100)
	require.LessOrEqual(t, jobs.held, 40)
	require.LessOrEqual(t, len(jobs.slabs), 1<<9+40)
	require.Less(t, cap(jobs.capabilities[0].slots), 6000)
	job, ok := jobs.Get(jobID(0))
	require.True(t, ok)
	require.Equal(t, statemachine.Submitted, job.State)
	requireSound(t, jobs)
}

// A job in each slab stays: the slabs are not kept for it.
func TestR5_FewThatStayPinNoSlabs(t *testing.T) {
	jobs := NewJobs()
	jobs.limits.slack = 1 << 10
	for round := range 50 {
		var ids []string
		for i := range 2 * slabLen {
			id, seq := fmt.Sprint(round, " ", i), jobs.last
			_, _ = jobs.Fold(wal.Event{Seq: seq + 1, JobID: id, Type: wal.JobSubmitted})
			if i%slabLen > 0 {
				_, _ = jobs.Fold(wal.Event{Seq: seq + 2, Prev: seq + 1, JobID: id, Type: wal.JobFailed})
				ids = append(ids, id)
			}
		}
		forget(t, jobs, noon, noon.Add(1), ids...)
	}
	require.Equal(t, 100, jobs.Len())
	require.LessOrEqual(t, slabLen*jobs.held, 4*100+1<<10+2*slabLen)
	requireSound(t, jobs)
}

func TestStatsForgets(t *testing.T) {
	s := NewStats()
	seq := feed(t, s, 1, "a", "shell", wal.JobSubmitted, 0.0, wal.JobFailed, 1.0)
	seq = feed(t, s, seq, "b", "shell", wal.JobSubmitted, 0.0)
	a := statemachine.Job{ID: "a", Capability: "shell", State: statemachine.Failed}
	require.NoError(t, s.Forget(wal.Event{Seq: seq, Type: wal.JobsForgotten}, []statemachine.Job{a}))
	require.NoError(t, s.Apply(wal.Event{Seq: seq + 1, JobID: "gone", Prev: 1, Type: wal.JobFailed, Time: noon}, statemachine.Job{}))
	v := s.Read()
	require.Equal(t, seq+1, v.LastSeq)
	require.EqualValues(t, 3, v.Events, "what was passed over is not counted")
	require.NotContains(t, v.Capabilities, "")
	for _, tally := range []Tally{v.Tally, v.Capabilities["shell"]} {
		require.Equal(t, 0, tally.States[statemachine.Failed])
		require.Equal(t, 1, tally.States[statemachine.Submitted])
		require.EqualValues(t, 1, tally.Ever[statemachine.Failed], "for good")
		require.Equal(t, 1.0, tally.FailureRate)
	}
}
