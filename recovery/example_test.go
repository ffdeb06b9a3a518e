package recovery_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// open opens an engine in a new directory, for the examples.
func open(opts recovery.Options) (engine *recovery.Engine, done func()) {
	dir, err := os.MkdirTemp("", "jobwal")
	check(err)
	engine, err = recovery.Open(context.Background(), dir, opts)
	check(err)
	return engine, func() {
		check(engine.Close())
		check(os.RemoveAll(dir))
	}
}

// A job's life: each step is durable when the call returns.
func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "jobwal")
	check(err)
	defer os.RemoveAll(dir)

	engine, err := recovery.Open(ctx, dir, recovery.Options{})
	check(err)
	defer engine.Close()

	job, err := engine.Submit(ctx, recovery.Submission{JobID: "job-1", Capability: "greet", Args: map[string]string{"name": "Ada"}})
	check(err)
	fmt.Println(job)
	job, err = engine.Validate(ctx, job.ID)
	check(err)
	fmt.Println(job)
	job, err = engine.Start(ctx, job.ID) // before the work
	check(err)
	fmt.Println(job)
	job, err = engine.Complete(ctx, job.ID, "Hello, Ada!")
	check(err)
	fmt.Println(job)

	_, err = engine.Fail(ctx, job.ID, errors.New("too late"))
	fmt.Println(err)
	var refused *statemachine.TransitionError
	if errors.As(err, &refused) {
		fmt.Println(refused.Allowed)
	}
	// Output:
	// job job-1 (greet) submitted
	// job job-1 (greet) validated
	// job job-1 (greet) started
	// job job-1 (greet) completed
	// statemachine: job "job-1": job_failed not allowed from completed; allowed: job_rolled_back, job_step_undone
	// [job_rolled_back job_step_undone]
}

// What to do with a job that was cut off, the caller decides: here, what never started starts over, and the rest fails.
func ExampleEngine_Interrupted() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "jobwal")
	check(err)
	defer os.RemoveAll(dir)

	before, err := recovery.Open(ctx, dir, recovery.Options{})
	check(err)
	_, err = before.Do(ctx,
		recovery.Submit(recovery.Submission{JobID: "waits"}),
		recovery.Submit(recovery.Submission{JobID: "works"}), recovery.Validate("works"), recovery.Start("works"),
		recovery.Submit(recovery.Submission{JobID: "over"}), recovery.Fail("over", errors.New("no")))
	check(err)
	check(before.Close()) // a crash would do as well

	engine, err := recovery.Open(ctx, dir, recovery.Options{})
	check(err)
	defer engine.Close()
	for _, job := range engine.Interrupted() {
		fmt.Println(job)
		if job.State == statemachine.Started {
			_, err = engine.Fail(ctx, job.ID, errors.New("interrupted"))
		} else {
			_, err = engine.Validate(ctx, job.ID)
		}
		check(err)
	}
	fmt.Println("interrupted now:", len(engine.Interrupted()))
	// Output:
	// job waits submitted
	// job works started
	// interrupted now: 0
}

func ExampleEngine_History() {
	ctx := context.Background()
	engine, done := open(recovery.Options{})
	defer done()
	_, err := engine.Submit(ctx, recovery.Submission{JobID: "a", Args: []int{1, 2}})
	check(err)
	_, err = engine.Submit(ctx, recovery.Submission{JobID: "b"})
	check(err)
	_, err = engine.Fail(ctx, "a", errors.New("no such file"))
	check(err)
	for event, err := range engine.History(ctx, "a") {
		check(err)
		fmt.Printf("%d after %d: %s %s%s\n", event.Seq, event.Prev, event.Type, event.Args, event.Error)
	}
	// Output:
	// 1 after 0: job_submitted [1,2]
	// 3 after 1: job_failed no such file
}

// Several steps in one durable append: all of them, or none.
func ExampleEngine_Do() {
	ctx := context.Background()
	engine, done := open(recovery.Options{})
	defer done()
	jobs, err := engine.Do(ctx,
		recovery.Submit(recovery.Submission{JobID: "a"}),
		recovery.Validate("a"),
		recovery.Start("a"))
	check(err)
	fmt.Println(jobs[0])
	_, err = engine.Do(ctx, recovery.Complete("a", nil), recovery.Start("a"))
	fmt.Println(err)
	job, _ := engine.Job("a")
	fmt.Println(job)
	// Output:
	// job a started
	// recovery: command 2 of 2: statemachine: job "a": job_started not allowed from completed; allowed: job_rolled_back, job_step_undone
	// job a started
}

// failures is a read model of one's own. This one is read when nothing is written; otherwise it would need a lock.
type failures map[string]int

func (failures) Name() string { return "failures by capability" }

func (f failures) Apply(e wal.Event, job statemachine.Job) error {
	if e.Type == wal.JobFailed {
		f[job.Capability]++
	}
	return nil
}

func ExampleOptions_projections() {
	ctx := context.Background()
	count := failures{}
	engine, done := open(recovery.Options{Projections: []projection.Projection{count}})
	defer done()
	for _, capability := range []string{"shell", "shell", "http"} {
		job, err := engine.Submit(ctx, recovery.Submission{Capability: capability})
		check(err)
		_, err = engine.Fail(ctx, job.ID, errors.New("no"))
		check(err)
	}
	fmt.Println(count) // a command returns when the projections have its event
	// Output:
	// map[http:1 shell:2]
}
