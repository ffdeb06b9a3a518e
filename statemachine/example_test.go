package statemachine_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

func ExampleNext() {
	fmt.Println(statemachine.Next(statemachine.Started, wal.JobFailed))
	_, err := statemachine.Next(statemachine.Started, wal.JobRolledBack)
	fmt.Println(err)
	// Output:
	// failed <nil>
	// statemachine: job_rolled_back not allowed from started; allowed: job_completed, job_failed, job_resumed, job_step, job_progress, job_held
}

func ExampleJob_Apply() {
	var job statemachine.Job
	for _, e := range []wal.Event{
		{Seq: 1, Prev: 0, Type: wal.JobSubmitted, JobID: "7f3a", Capability: "shell"},
		{Seq: 4, Prev: 1, Type: wal.JobValidated, JobID: "7f3a"},
		{Seq: 6, Prev: 4, Type: wal.JobCompleted, JobID: "7f3a"}, // it never started
	} {
		var err error
		if job, err = job.Apply(e); err != nil {
			fmt.Println(err)
		}
	}
	fmt.Println(job.State)
	// Output:
	// statemachine: job "7f3a" parked by seq 6 (job_completed): job_completed not allowed from validated; allowed: job_started, job_failed, job_held
	// validated
}

func ExampleMachine_Fire() {
	ctx := context.Background()
	m := statemachine.NewMachine(statemachine.Job{ID: "7f3a"})
	submit := func(appendFn func(context.Context) error) {
		fmt.Println(m.Fire(ctx, wal.JobSubmitted, appendFn), m.State() == statemachine.Submitted)
	}
	submit(func(context.Context) error { return errors.New("disk is full") })
	submit(func(context.Context) error { return nil }) // durable now
	submit(func(context.Context) error { panic("never called") })
	// Output:
	// disk is full false
	// <nil> true
	// statemachine: job "7f3a": job_submitted for a job that exists already, in state submitted; allowed: job_validated, job_failed, job_held true
}

func ExampleDiagram() {
	diagram, _ := statemachine.Diagram("mermaid")
	fmt.Println(diagram)
	// Output:
	// stateDiagram-v2
	//     [*] --> none
	//     completed --> rolled_back: job_rolled_back
	//     completed --> completed: job_step_undone
	//     failed --> rolled_back: job_rolled_back
	//     failed --> failed: job_step_undone
	//     none --> submitted: job_submitted
	//     started --> completed: job_completed
	//     started --> failed: job_failed
	//     started --> started: job_held
	//     started --> started: job_progress
	//     started --> started: job_released
	//     started --> started: job_resumed
	//     started --> started: job_step
	//     submitted --> failed: job_failed
	//     submitted --> submitted: job_held
	//     submitted --> submitted: job_released
	//     submitted --> validated: job_validated
	//     validated --> failed: job_failed
	//     validated --> validated: job_held
	//     validated --> validated: job_released
	//     validated --> started: job_started
}
