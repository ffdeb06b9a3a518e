package projection

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// working is a Jobs with one job of this id that has started, and what folds its next event.
func working(t *testing.T, opts JobsOptions, id string) (*Jobs, func(wal.EventType, string) statemachine.Job) {
	jobs := NewJobsWith(opts)
	next := func(on wal.EventType, output string) statemachine.Job {
		before, _ := jobs.Get(id)
		e := wal.Event{Seq: jobs.last + 1, Prev: before.Seq, JobID: id, Type: on, Time: noon, Error: "why"}
		if output != "" {
			e.Output = json.RawMessage(output)
		}
		job, err := jobs.Fold(e)
		require.NoError(t, err)
		return job
	}
	next(wal.JobSubmitted, "")
	next(wal.JobValidated, "")
	next(wal.JobStarted, "")
	return jobs, next
}

// R2: more attempts and steps than a record counts by itself come back from a record and from a snapshot.
func TestR2_ManyAttemptsAndSteps(t *testing.T) {
	jobs, next := working(t, JobsOptions{}, "a")
	for n := 1; n <= 2*manyOf; n++ {
		want := next(wal.JobStep, "")
		require.Equal(t, []int{1, n}, []int{want.Attempts, want.Steps})
		got, _ := jobs.Get("a")
		require.Equal(t, want, got)
	}
	for n := 2; n <= manyOf+2; n++ {
		require.Equal(t, n, next(wal.JobResumed, "").Attempts)
	}
	next(wal.JobFailed, "")
	for n := range 2*manyOf - 2 {
		job := next(wal.JobStepUndone, "")
		require.Equal(t, []int{manyOf + 2, 2*manyOf - n - 1}, []int{job.Attempts, job.Steps})
		if n%100 == 0 {
			loaded := NewJobs()
			require.NoError(t, loaded.Load(bytes.NewReader(save(t, jobs))))
			got, _ := loaded.Get("a")
			require.Equal(t, job, got)
		}
	}
}

// An ordinary job takes no more memory for having attempts and steps.
func TestOrdinaryJobHasNoMore(t *testing.T) {
	jobs, next := working(t, JobsOptions{}, "a")
	next(wal.JobStep, "1")
	next(wal.JobResumed, "")
	next(wal.JobProgress, `"half"`)
	require.NotNil(t, jobs.record(0).more)
	next(wal.JobHeld, "")
	next(wal.JobReleased, "")
	next(wal.JobCompleted, "")
	require.Nil(t, jobs.record(0).more)
}

func TestProgressIsHeldAsOtherPayloadsAre(t *testing.T) {
	long := `"` + strings.Repeat("x", 2000) + `"`
	for _, c := range []struct {
		hold int
		text string
		held bool
	}{{0, long, true}, {-1, "1", false}, {100, long, false}, {100, "1", true}} {
		jobs, next := working(t, JobsOptions{HoldBytes: c.hold}, "a")
		job := next(wal.JobProgress, c.text)
		require.Equal(t, []any{c.held, len(c.text), uint64(4)}, []any{job.Progress.Held(), job.Progress.Size(), job.Progress.Seq()})
		for _, load := range []int{0, -1} {
			loaded := NewJobsWith(JobsOptions{HoldBytes: load})
			require.NoError(t, loaded.Load(bytes.NewReader(save(t, jobs))))
			got, _ := loaded.Get("a")
			require.Equal(t, len(c.text), got.Progress.Size())
			require.Equal(t, c.held && load == 0, got.Progress.Held())
		}
	}
}

// What leaves a job in its state is not counted as if it came into it again, and takes no part in how long a stage took.
func TestStatsPassOverWhatLeavesAJobInItsState(t *testing.T) {
	s := NewStats()
	feed(t, s, 1, "a", "shell", wal.JobSubmitted, 0.0, wal.JobHeld, 0.0, wal.JobReleased, 1.0, wal.JobValidated, 1.0,
		wal.JobStarted, 3.0, wal.JobStep, 4.0, wal.JobProgress, 5.0, wal.JobResumed, 6.0, wal.JobCompleted, 7.0, wal.JobStepUndone, 90.0)
	v := s.Read()
	once := map[statemachine.State]uint64{"submitted": 1, "validated": 1, "started": 1, "completed": 1, "failed": 0, "rolled_back": 0}
	require.Equal(t, once, v.Ever)
	require.Equal(t, 1, v.States[statemachine.Completed])
	require.Equal(t, [4]int64{1, 1, 1, 1}, [4]int64{v.Validation.Count, v.Waiting.Count, v.Running.Count, v.Total.Count})
	require.InEpsilon(t, float64(4e9), float64(v.Running.P50), 0.01)
	require.EqualValues(t, 10, v.Events)
}

// R2: that a job is being rolled back comes back from a record and from a snapshot, is found by a query, and takes no memory.
func TestR2_ListsJobsThatAreRolledBack(t *testing.T) {
	jobs, next := working(t, JobsOptions{}, "a")
	listed := func(jobs *Jobs, wanted bool) []statemachine.Job {
		q := Query{RollingBack: new(wanted)}
		all := slices.Collect(jobs.List(q))
		n, err := jobs.Count(q)
		require.NoError(t, err)
		require.Len(t, all, n)
		return all
	}
	var begun statemachine.Job
	for _, on := range []wal.EventType{wal.JobCompleted, wal.JobStepUndone, wal.JobStepUndone, wal.JobRolledBack} {
		job := next(on, "")
		require.Equal(t, on == wal.JobStepUndone, job.RollingBack)
		require.Equal(t, on == wal.JobRolledBack, jobs.record(0).more != nil)
		loaded := NewJobs()
		require.NoError(t, loaded.Load(bytes.NewReader(save(t, jobs))))
		for _, jobs := range []*Jobs{jobs, loaded} {
			require.Equal(t, []statemachine.Job{job}, listed(jobs, job.RollingBack))
			require.Empty(t, listed(jobs, !job.RollingBack))
		}
		if job.RollingBack {
			begun = job
		}
	}
	require.Equal(t, statemachine.Completed, begun.State)
}

func TestListsHeldJobs(t *testing.T) {
	jobs, next := working(t, JobsOptions{}, "a")
	held := func(wanted bool) []string {
		q := Query{Held: new(wanted)}
		var ids []string
		for job := range jobs.List(q) {
			ids = append(ids, job.ID)
		}
		n, err := jobs.Count(q)
		require.NoError(t, err)
		require.Equal(t, len(ids), n)
		return slices.Clip(ids)
	}
	require.Equal(t, []string{"a"}, held(false))
	next(wal.JobHeld, "")
	require.Equal(t, []string{"a"}, held(true))
	require.Empty(t, held(false))
	next(wal.JobFailed, "")
	require.Empty(t, held(true))
}
