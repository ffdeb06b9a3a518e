package projection_test

import (
	"bytes"
	"fmt"
	"time"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// log returns the events of three jobs, a second apart.
func log() []wal.Event {
	events := []wal.Event{
		{Seq: 1, Prev: 0, JobID: "a", Type: wal.JobSubmitted, Capability: "shell"},
		{Seq: 2, Prev: 0, JobID: "b", Type: wal.JobSubmitted, Capability: "file_read"},
		{Seq: 3, Prev: 1, JobID: "a", Type: wal.JobValidated},
		{Seq: 4, Prev: 0, JobID: "c", Type: wal.JobSubmitted, Capability: "shell"},
		{Seq: 5, Prev: 2, JobID: "b", Type: wal.JobFailed, Error: "no such file"},
		{Seq: 6, Prev: 3, JobID: "a", Type: wal.JobStarted},
		{Seq: 7, Prev: 6, JobID: "a", Type: wal.JobCompleted},
	}
	for i := range events {
		events[i].Time = time.Date(2024, 5, 15, 12, 0, i, 0, time.UTC)
	}
	return events
}

func ExampleJobs_List() {
	jobs := projection.NewJobs()
	for _, e := range log() {
		if _, err := jobs.Fold(e); err != nil {
			fmt.Println(err) // the job is parked now
		}
	}
	for job := range jobs.List(projection.Query{Order: projection.ByUpdate, Descending: true}) {
		fmt.Println(job)
	}
	// Output:
	// job a (shell) completed
	// job b (file_read) failed: no such file
	// job c (shell) submitted
}

func ExampleJobs_Page() {
	jobs := projection.NewJobs()
	for _, e := range log() {
		_, _ = jobs.Fold(e)
	}
	q := projection.Query{Capabilities: []string{"shell"}, Limit: 1}
	for {
		page, next, err := jobs.Page(q)
		if err != nil {
			fmt.Println(err)
			return
		}
		text, _ := next.MarshalText()
		fmt.Printf("%v %q\n", page, text)
		if next.IsZero() {
			return
		}
		q.After = next
	}
	// Output:
	// [job a (shell) completed] "AQABAIDjiTg"
	// [job c (shell) submitted] ""
}

// What finished long ago is forgotten by an event, so that all who fold the log forget the same.
func ExampleJobs_Forget() {
	jobs := projection.NewJobs()
	events := log()
	for _, e := range events {
		_, _ = jobs.Fold(e)
	}
	cutOff := events[5].Time
	due := projection.Forgotten{Before: cutOff, Jobs: jobs.Forgettable(cutOff, 1000)}
	e := due.Event() // to be appended to the log, which gives it a seq and a time
	e.Seq, e.Time = 8, events[6].Time.Add(time.Hour)
	fmt.Println(string(e.Args))

	gone, err := jobs.Forget(e)
	fmt.Println(gone, err)
	fmt.Println(jobs.Len(), jobs.Refuses("b"))
	// Output:
	// {"before":"2024-05-15T12:00:05Z","jobs":["b"]}
	// [job b (file_read) failed: no such file] <nil>
	// 2 true
}

// A snapshot is written beside an applier that goes on.
func ExampleJobs_Snapshot() {
	jobs, events := projection.NewJobs(), log()
	for _, e := range events[:4] {
		_, _ = jobs.Fold(e)
	}
	save, err := jobs.Snapshot()
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, e := range events[4:] {
		_, _ = jobs.Fold(e)
	}
	var checkpoint bytes.Buffer
	fmt.Println(save(&checkpoint))

	again := projection.NewJobs()
	fmt.Println(again.Load(&checkpoint))
	for job := range again.List(projection.Query{}) {
		fmt.Println(job)
	}
	// Output:
	// <nil>
	// <nil>
	// job a (shell) validated
	// job b (file_read) submitted
	// job c (shell) submitted
}

func ExampleStats() {
	stats := projection.NewStats()
	jobs := map[string]statemachine.Job{}
	for _, e := range log() {
		jobs[e.JobID], _ = jobs[e.JobID].Apply(e)
		_ = stats.Apply(e, jobs[e.JobID])
	}
	v := stats.Read()
	fmt.Println(v.States[statemachine.Completed], v.States[statemachine.Failed], v.States[statemachine.Submitted])
	fmt.Println(v.Capabilities["file_read"].FailureRate)
	fmt.Println(v.Running.P50.Round(100 * time.Millisecond))
	// Output:
	// 1 1 1
	// 1
	// 1s
}

// Spending is a projection of a program's own: what each capability has been paid for.
type Spending struct{ jobs map[string]int }

func (s *Spending) Name() string { return "spending" }

func (s *Spending) Apply(e wal.Event, job statemachine.Job) error {
	if e.Type == wal.JobStarted && job.Parked == "" {
		s.jobs[job.Capability]++
	}
	return nil
}

func ExampleProjection() {
	var p projection.Projection = &Spending{jobs: map[string]int{}}
	table := projection.NewJobs()
	for _, e := range log() {
		job, _ := table.Fold(e)
		_ = p.Apply(e, job)
	}
	fmt.Println(p.Name(), p.(*Spending).jobs)
	// Output:
	// spending map[shell:1]
}
