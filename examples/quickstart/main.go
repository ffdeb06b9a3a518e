// Quickstart takes one job through its life, and shows what the log remembers of it. Run it twice.
package main

import (
	"context"
	"fmt"
	"log"

	"github.com/jobwal/jobwal/recovery"
)

func main() {
	ctx := context.Background()
	engine, err := recovery.Open(ctx, "quickstart-jobs", recovery.Options{}) // everything acknowledged is back
	check(err)
	defer engine.Close()
	for _, job := range engine.Interrupted() { // unfinished, and whoever was at work on them is gone
		_, err := engine.Fail(ctx, job.ID, fmt.Errorf("interrupted when %s", job.State))
		check(err)
	}

	job, err := engine.Submit(ctx, recovery.Submission{Capability: "greet", Args: map[string]string{"name": "Ada"}})
	check(err)
	_, err = engine.Do(ctx, recovery.Validate(job.ID), recovery.Start(job.ID)) // one append, durable before the work
	check(err)
	job, err = engine.Complete(ctx, job.ID, "Hello, Ada!")
	check(err)

	fmt.Println(job)
	for event, err := range engine.History(ctx, job.ID) {
		check(err)
		fmt.Printf("  seq %d after %d  %s %s%s\n", event.Seq, event.Prev, event.Type, event.Args, event.Output)
	}
	fmt.Println("jobs so far:", engine.Report().Jobs)
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
