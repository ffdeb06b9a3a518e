package crashtest_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/recovery/crashtest"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// sweeper is the program under test: at each start it fails what was interrupted.
type sweeper struct{ engine *recovery.Engine }

func (s *sweeper) sweep() (steps []crashtest.Step) {
	for _, job := range s.engine.Interrupted() {
		steps = append(steps, crashtest.Step{Type: wal.JobFailed, JobID: job.ID, Error: "interrupted"})
	}
	return steps
}

// A state machine test of a program around an engine, with an action and an invariant of its own. A test calls it as
// rapid.Check(t, sweepsUp), a fuzz target as crashtest.Fuzz(f, sweepsUp).
func sweepsUp(t *rapid.T) {
	rapid.SyncTest(t, func(t *rapid.T) {
		var program *sweeper
		a := &crashtest.Actions{
			Idle:   time.Second,
			OnOpen: func(engine *recovery.Engine) { program = &sweeper{engine} },
			Check: func(t *rapid.T, engine *recovery.Engine, ref *crashtest.Reference) {
				for _, id := range ref.Jobs() {
					history := ref.History(id)
					if last := history[len(history)-1]; last.Error == "interrupted" && last.Epoch == history[0].Epoch {
						t.Fatalf("job %q failed in the epoch that submitted it", id)
					}
				}
			},
		}
		a.Open(t)
		actions := a.Map()
		actions["sweep"] = func(t *rapid.T) {
			steps := program.sweep()
			if len(steps) == 0 {
				t.Skip("nothing was interrupted")
			}
			a.Do(t, steps...)
		}
		t.Repeat(actions)
	})
}

func ExampleActions() {
	// In a _test.go file:
	_ = func(t *testing.T) { rapid.Check(t, sweepsUp) }
}

func TestSweeper(t *testing.T) {
	thinned(t, 5)
	rapid.Check(t, sweepsUp)
}

func ExampleFuzz() {
	// In a _test.go file:
	_ = func(f *testing.F) { crashtest.Fuzz(f, sweepsUp) }
}

// Two jobs at once: each one's steps keep their order, and every step is legal where it stands.
func ExampleLegalHistories() {
	var ref crashtest.Reference
	for _, step := range crashtest.LegalHistories(2, 8).Example(5) {
		fmt.Println(ref.Append(1, step), step.Type, step.JobID)
	}
	// Output:
	// true job_submitted cf
	// true job_submitted b
	// true job_validated cf
	// true job_started cf
	// true job_validated b
	// true job_started b
	// true job_completed b
	// true job_completed cf
}

// What the door must refuse, it refuses, and writes nothing.
func ExampleBadPayloads() {
	engine, err := recovery.Open(context.Background(), "jobs", recovery.Options{WAL: wal.Options{FS: crashfs.New()}})
	if err != nil {
		panic(err)
	}
	defer engine.Close()
	refused := 0
	for seed := range 20 {
		_, err := engine.Submit(context.Background(), recovery.Submission{Args: crashtest.BadPayloads().Example(seed)})
		if errors.Is(err, wal.ErrInvalid) {
			refused++
		}
	}
	fmt.Println(refused, "of 20 refused;", engine.Stats().Events, "events written")
	// Output: 20 of 20 refused; 0 events written
}
