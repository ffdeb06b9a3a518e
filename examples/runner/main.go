// Runner buys a lamp, in two steps. Kill it at any moment, and run it again: there is one purchase, and what is recorded as done
// is not done twice.
package main

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/recovery/runner"
)

type Order struct{ Item, Address string }

type Purchase struct{} // it may have Validate and Reconcile, too

func (Purchase) Execute(ctx context.Context, o Order) (receipt string, err error) {
	shelf, err := runner.Step(ctx, "reserve", func(context.Context) (string, error) { return o.Item + " on shelf 12", nil })
	if err != nil {
		return "", err
	}
	return runner.Step(ctx, "pay", func(context.Context) (string, error) { return "paid: " + shelf, nil })
}

// Undo takes back one step, newest first, when the job has failed; and at last whatever is no recorded step.
func (Purchase) Undo(_ context.Context, o Order, done runner.Done) error {
	fmt.Printf("undoing %s: %q %s\n", o.Item, done.Step, done.Output)
	return nil
}

func main() {
	ctx := context.Background()
	engine, err := recovery.Open(ctx, "runner-jobs", recovery.Options{})
	check(err)
	defer engine.Close()
	reg := runner.NewRegistry()
	purchase := runner.Add(reg, "purchase", Purchase{}, runner.Settings{
		Effect:  recovery.Idempotent, // what doing it twice means
		Timeout: time.Minute,
		Retry:   runner.OnIs(runner.ErrTimeout, runner.Backoff{Attempts: 3}),
	})
	r, err := runner.New(engine, reg, runner.Options{Workers: 4})
	check(err)
	plan, err := r.Plan(ctx) // about what the last process has left; nothing is done yet
	check(err)
	fmt.Print(plan)
	applied, err := r.Apply(ctx, plan)
	check(err)
	if err := applied.Err(); err != nil {
		log.Print(err) // of single jobs, which stop no others: of what could not be undone, say
	}

	order := Order{"lamp", "Oslo"}
	receipt, err := purchase.Do(ctx, r, order, runner.Once("order-17")) // or Submit now, and Result later
	check(err)
	fmt.Println(receipt)
	check(r.Drain(ctx)) // what runs comes to its end; what waits is there for the next process
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
