package recovery_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"time"

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

// What was started in a process that is gone: a plan first, then its application.
func ExampleEngine_Plan() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "jobwal")
	check(err)
	defer os.RemoveAll(dir)
	before, err := recovery.Open(ctx, dir, recovery.Options{})
	check(err)
	for _, capability := range []string{"fetch", "charge", "mail"} {
		id := "job-" + capability
		_, err = before.Do(ctx, recovery.Submit(recovery.Submission{JobID: id, Capability: capability}),
			recovery.Validate(id), recovery.Start(id))
		check(err)
	}
	check(before.Close()) // a crash would do as well

	engine, err := recovery.Open(ctx, dir, recovery.Options{})
	check(err)
	defer engine.Close()
	plan, err := engine.Plan(ctx, recovery.DefaultPolicy(recovery.Effects{
		"fetch": recovery.Pure, "charge": recovery.Reconcilable, "mail": recovery.Irreversible,
	}))
	check(err)
	for _, d := range plan.Decisions {
		fmt.Printf("%s %s: %s\n", d.Action, d.JobID, d.Reason)
	}
	applied, err := plan.Apply(ctx, engine, recovery.ApplyOptions{
		Resume: func(ctx context.Context, job statemachine.Job) error { // its attempt is durable
			_, err := engine.Complete(ctx, job.ID, "fetched")
			return err
		},
		Reconcile: func(context.Context, statemachine.Job) (recovery.Reconciled, error) { // asks the bank
			return recovery.Happened(map[string]string{"receipt": "r-17"}), nil
		},
	})
	check(errors.Join(err, applied.Err()))
	for _, o := range applied.Outcomes {
		job, _ := engine.Job(o.JobID)
		fmt.Println(o.Result, "→", job)
	}
	// Output:
	// resume job-fetch: pure: it may be done again; it was tried once
	// reconcile job-charge: started in epoch 1 without a result: whether it happened is unknown
	// hold job-mail: started in epoch 1 without a result: whether it happened is unknown
	// resumed → job job-fetch (fetch) completed
	// completed → job job-charge (charge) completed
	// held → job job-mail (mail) started, held: started in epoch 1 without a result: whether it happened is unknown
}

// Policies compose: the first that has an opinion decides.
func ExampleFirst() {
	policy := recovery.First(
		recovery.MaxAttempts(5, recovery.ActionFail),
		recovery.ByCapability(map[string]recovery.Policy{
			"deploy": recovery.PolicyFunc(func(recovery.Evidence) (recovery.Action, string, bool) {
				return recovery.ActionRollBack, "half a deployment is worse than none", true
			}),
		}),
		recovery.DefaultPolicy(recovery.Effects{"fetch": recovery.Pure}),
	)
	for _, ev := range []recovery.Evidence{
		{State: statemachine.Started, Capability: "fetch", Attempts: 5},
		{State: statemachine.Started, Capability: "deploy", Attempts: 1},
		{State: statemachine.Validated, Capability: "mail"},
	} {
		fmt.Println(policy.Decide(ev))
	}
	// Output:
	// fail it was tried 5 times, the most is 5 true
	// roll_back half a deployment is worse than none true
	// resume validated, and not started: nothing was done yet true
}

// A job that waits for a person.
func ExampleEngine_Hold() {
	ctx := context.Background()
	engine, done := open(recovery.Options{})
	defer done()
	_, err := engine.Do(ctx, recovery.Submit(recovery.Submission{JobID: "a"}), recovery.Validate("a"), recovery.Hold("a", "costs 900 €"))
	check(err)
	_, err = engine.Start(ctx, "a")
	fmt.Println(errors.Is(err, statemachine.ErrHeld), err)
	fmt.Println(engine.Report().Held)
	_, err = engine.Release(ctx, "a", "Ada agrees")
	check(err)
	job, err := engine.Start(ctx, "a")
	check(err)
	fmt.Println(job, job.Attempts)
	// Output:
	// true statemachine: job "a": job_started for a job that is held: costs 900 €; allowed: job_released, job_failed, job_completed if it has started
	// [job a validated, held: costs 900 €]
	// job a started 1
}

// One job's story. The clock is a fixed one here, so that the text is always the same.
func ExampleEngine_Explain() {
	ctx := context.Background()
	noon := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	engine, done := open(recovery.Options{WAL: wal.Options{Now: func() time.Time { return noon }}})
	defer done()
	_, err := engine.Do(ctx, recovery.Submit(recovery.Submission{JobID: "a", Capability: "report", Args: []int{7}}),
		recovery.Validate("a"), recovery.Start("a"), recovery.Step("a", "fetch", "12 rows"))
	check(err)
	_, err = engine.Validate(ctx, "a")
	fmt.Println(err != nil)
	story, err := engine.Explain(ctx, "a")
	check(err)
	fmt.Print(story)
	// Output:
	// true
	// job a (report) started
	//   2026-03-01T12:00:00Z  epoch 1  seq 1  job_submitted args [7]
	//   2026-03-01T12:00:00Z  epoch 1  seq 2  job_validated
	//   2026-03-01T12:00:00Z  epoch 1  seq 3  job_started
	//   2026-03-01T12:00:00Z  epoch 1  seq 4  job_step fetch output "12 rows"
	// attempts: 1; steps done: 1 (fetch)
	// waits for: its end: it is being worked on
	// a recovery, if the process died now, would hold it: started in epoch 1 without a result: whether it happened is unknown
	// refused: 2026-03-01T12:00:00Z  job_validated: statemachine: job "a": job_validated not allowed from started; allowed: job_completed, job_failed, job_resumed, job_step, job_progress, job_held
}

// One job's story as a file, without what is secret. [recovery.ReadBundle] reads it back.
func ExampleEngine_Export() {
	ctx := context.Background()
	engine, done := open(recovery.Options{})
	defer done()
	_, err := engine.Do(ctx, recovery.Submit(recovery.Submission{JobID: "a", Args: map[string]string{"token": "hunter2"}}),
		recovery.Fail("a", errors.New("no such host")))
	check(err)
	var bundle bytes.Buffer
	check(engine.Export(ctx, "a", &bundle, func(event wal.Event) wal.Event {
		if event.Args != nil {
			event.Args = []byte(`"redacted"`)
		}
		return event
	}))
	events, err := recovery.ReadBundle(&bundle)
	check(err)
	for _, event := range events {
		fmt.Printf("%s %s%s\n", event.Type, event.Args, event.Error)
	}
	// Output:
	// job_submitted "redacted"
	// job_failed no such host
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

// Work that goes on after a crash asks what of it is done.
func ExampleEngine_Steps() {
	ctx := context.Background()
	engine, done := open(recovery.Options{})
	defer done()
	_, err := engine.Do(ctx,
		recovery.Submit(recovery.Submission{JobID: "a"}), recovery.Validate("a"), recovery.Start("a"),
		recovery.Step("a", "fetch", map[string]int{"bytes": 12}),
		recovery.Step("a", "convert", nil),
		recovery.Fail("a", errors.New("no room")),
		recovery.UndoStep("a", "convert"))
	check(err)
	steps, err := engine.Steps(ctx, "a")
	check(err)
	for _, step := range steps {
		fmt.Printf("seq %d: %s, output %s, undone: %v\n", step.Seq, step.Name, step.Output, step.Undone)
	}
	// Output:
	// seq 4: fetch, output {"bytes":12}, undone: false
	// seq 5: convert, output , undone: true
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
