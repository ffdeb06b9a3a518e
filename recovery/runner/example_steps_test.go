package runner_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"sync"
	"time"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/recovery/runner"
)

// steps opens an engine and a runner in a new directory, for the examples of steps.
func steps(reg *runner.Registry) (engine *recovery.Engine, r *runner.Runner, done func()) {
	dir, err := os.MkdirTemp("", "jobwal")
	if err != nil {
		log.Fatal(err)
	}
	if engine, err = recovery.Open(context.Background(), dir, recovery.Options{}); err != nil {
		log.Fatal(err)
	}
	if r, err = runner.New(engine, reg, runner.Options{}); err != nil {
		log.Fatal(err)
	}
	return engine, r, func() {
		err := errors.Join(r.Drain(context.Background()), engine.Close(), os.RemoveAll(dir))
		if err != nil {
			log.Fatal(err)
		}
	}
}

// A job of two steps, of which the second fails the first time. When the job is tried again, after a crash as well as after an
// error, what the first step returned is in the log, and it is not done again.
func ExampleStep() {
	calls := 0
	report := func(ctx context.Context, city string) (string, error) {
		degrees, err := runner.Step(ctx, "measure", func(context.Context) (int, error) {
			fmt.Println("measuring in", city)
			return 12, nil
		})
		if err != nil {
			return "", err
		}
		return runner.Step(ctx, "send", func(context.Context) (string, error) {
			calls++
			fmt.Printf("sending %d °C, call %d\n", degrees, calls)
			if calls == 1 {
				return "", runner.Transient(errors.New("the line is busy"))
			}
			return "sent", nil
		})
	}

	reg := runner.NewRegistry()
	weather := runner.Add(reg, "weather", runner.Func[string, string](report), runner.Settings{
		Effect: recovery.Idempotent,
		Retry:  runner.Backoff{First: time.Millisecond},
	})
	_, r, done := steps(reg)
	defer done()
	result, err := weather.Do(context.Background(), r, "Oslo")
	fmt.Println(result, err)
	// Output:
	// measuring in Oslo
	// sending 12 °C, call 1
	// sending 12 °C, call 2
	// sent <nil>
}

// Work that goes on side by side has a branch for each part: in which order they finish does not matter.
func ExampleBranch() {
	measure := func(ctx context.Context, cities []string) (warmest int, err error) {
		degrees, errs := make([]int, len(cities)), make([]error, len(cities))
		var all sync.WaitGroup
		for i, city := range cities {
			all.Go(func() {
				degrees[i], errs[i] = runner.Step(runner.Branch(ctx, city), "measure", func(context.Context) (int, error) {
					return len(city), nil
				})
			})
		}
		all.Wait() // for all of them: none may be at work when the job is done
		for _, d := range degrees {
			warmest = max(warmest, d)
		}
		return warmest, errors.Join(errs...)
	}

	reg := runner.NewRegistry()
	weather := runner.Add(reg, "weather", runner.Func[[]string, int](measure), runner.Settings{Effect: recovery.Pure})
	engine, r, done := steps(reg)
	defer done()
	ctx := context.Background()
	job, err := weather.Submit(ctx, r, []string{"Oslo", "Helsinki"})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(weather.Result(ctx, r, job.ID))
	recorded, err := engine.Steps(ctx, job.ID)
	fmt.Println(len(recorded), err)
	for _, s := range recorded {
		if s.Name == "Oslo/measure" {
			fmt.Println(s.Name, string(s.Output))
		}
	}
	// Output:
	// 8 <nil>
	// 2 <nil>
	// Oslo/measure 4
}
