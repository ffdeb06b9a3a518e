package runnertest_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/recovery/crashtest"
	"github.com/jobwal/jobwal/recovery/runner"
	"github.com/jobwal/jobwal/recovery/runner/runnertest"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// payment reserves an order's goods, and takes the money.
type payment struct{ ledger *runnertest.Ledger[string] }

func (p payment) Execute(ctx context.Context, order string) (string, error) {
	_, err := runner.Step(ctx, "reserve", func(context.Context) (string, error) {
		return order, p.ledger.Do("reserve " + order)
	})
	if err != nil {
		return "", err
	}
	return "paid", p.ledger.Do("pay " + order)
}

// Undo may be called again for what it has undone already.
func (p payment) Undo(_ context.Context, order string, done runner.Done) error {
	return p.ledger.Do(strings.TrimSpace("undo "+done.Step) + " " + order)
}

func payments(effect recovery.Effect) runnertest.Crashes[string] {
	return runnertest.Crashes[string]{
		Register: func(reg *runner.Registry, ledger *runnertest.Ledger[string]) {
			runner.Add(reg, "pay", payment{ledger}, runner.Settings{Effect: effect})
		},
		Work: func(ctx context.Context, life runnertest.Life[string]) error {
			if _, err := life.Runner.Submit(ctx, "pay", "order 1", runner.ID("job")); err != nil {
				return err
			}
			_, err := life.Runner.Wait(ctx, "job")
			if err == nil {
				life.Ledger.Note("told")
			}
			return err
		},
		Check: func(_ context.Context, life runnertest.Life[string]) error {
			paid := 0
			for _, line := range life.Ledger.Lines() {
				if line == "pay order 1" {
					paid++
				}
			}
			if job, known := life.Engine.Job("job"); paid > 1 || paid == 0 && known && job.Held == "" {
				return fmt.Errorf("paid %d times: %s", paid, job)
			}
			return nil
		},
		Pictures: []crashfs.Policy{crashfs.SyncedOnly, crashfs.Everything},
	}
}

func ExampleCrashes() {
	var t *testing.T // the test's own

	synctest.Test(t, func(t *testing.T) {
		runnertest.Crashes[string]{
			Register: func(reg *runner.Registry, ledger *runnertest.Ledger[string]) {
				runner.Add(reg, "pay", payment{ledger}, runner.Settings{Effect: recovery.Irreversible})
			},
			Work: func(ctx context.Context, life runnertest.Life[string]) error {
				if _, err := life.Runner.Submit(ctx, "pay", "order 1", runner.ID("job")); err != nil {
					return err
				}
				_, err := life.Runner.Wait(ctx, "job")
				return err
			},
			// Ada is told what is held, looks at the books, and lets go on what was not paid.
			Then: func(ctx context.Context, life runnertest.Life[string]) error {
				job, _ := life.Engine.Job("job")
				if job.Held == "" || slices.Contains(life.Ledger.Lines(), "pay order 1") {
					return nil
				}
				_, err := life.Runner.Release(ctx, "job", "Ada: it was not paid")
				return err
			},
			Check: func(_ context.Context, life runnertest.Life[string]) error {
				lines := slices.DeleteFunc(life.Ledger.Lines(), func(line string) bool { return line != "pay order 1" })
				if len(lines) > 1 {
					return errors.New("paid more than once")
				}
				return nil
			},
		}.Run(t)
	})
}

// What a suite says of a program that is wrong.
func says(t *testing.T, c runnertest.Crashes[string]) (report string) {
	synctest.Test(t, func(t *testing.T) {
		var failed bool
		report, failed = crashtest.Fails(func(t rapid.TB) { c.Run(t) })
		require.True(t, failed, "%s", report)
	})
	return report
}

func TestCrashes_of_a_program_that_is_right(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cover := payments(recovery.Irreversible).Run(t)
		require.Greater(t, cover.Crashes, 15)
		require.Greater(t, cover.SecondCrashes, 100)
		require.Zero(t, cover.SecondLeft)
	})
}

func TestCrashes_find_what_is_done_twice(t *testing.T) {
	report := says(t, payments(recovery.Pure))
	require.Contains(t, report, "paid 2 times")
	_, how, _ := strings.Cut(report, `Replay(t, "`)
	how, _, _ = strings.Cut(how, `"`)
	synctest.Test(t, func(t *testing.T) {
		again, failed := crashtest.Fails(func(t rapid.TB) { payments(recovery.Pure).Replay(t, how) })
		require.True(t, failed)
		require.Contains(t, again, "paid 2 times")
	})
}

func TestCrashes_find_what_is_lost(t *testing.T) {
	c := payments(recovery.Irreversible)
	for _, s := range crashtest.Saboteurs() {
		if s.Name == crashtest.NoFsync || s.Name == crashtest.AckFirst {
			c.Disk = s.FS
			require.Regexp(t, "lost: job", says(t, c), s.Name)
		}
	}
}

// A policy that holds everything, and somebody who lets nothing go, are right; one who takes a job out of the runner's hands is not.
func TestCrashes_find_a_job_that_is_nobodys(t *testing.T) {
	c := payments(recovery.Irreversible)
	c.Check = func(context.Context, runnertest.Life[string]) error { return nil }
	c.Then = func(ctx context.Context, life runnertest.Life[string]) error {
		if job, known := life.Engine.Job("job"); known && job.Held != "" {
			_, err := life.Engine.Release(ctx, "job", "Ada: go on")
			return err
		}
		return nil
	}
	require.Contains(t, says(t, c), "a job that comes to no end")
}

func TestCrashes_say_what_is_missing(t *testing.T) {
	c := payments(recovery.Pure)
	c.Register = nil
	require.Contains(t, says(t, c), "Register, Work or Check is missing")
	c = payments(recovery.Pure)
	c.Options.Workers = -1
	require.ErrorContains(t, errors.New(says(t, c)), "negative")
}

// A dead process writes nothing into the ledger, and neither does one that has not begun.
func TestLedger_is_of_who_lives(t *testing.T) {
	var none runnertest.Ledger[string]
	require.ErrorIs(t, none.Do("a"), crashfs.ErrCrashed)
	none.Note("b")
	require.Empty(t, none.Lines())

	c, dead := payments(recovery.Irreversible), 0
	c.Work = func(ctx context.Context, life runnertest.Life[string]) error {
		err := life.Ledger.Do("a")
		life.Ledger.Note("b")
		if errors.Is(err, crashfs.ErrCrashed) {
			dead++
			require.Empty(t, life.Ledger.Lines())
		} else {
			require.Equal(t, []string{"a", "b"}, life.Ledger.Lines())
		}
		return err
	}
	c.Check = func(_ context.Context, life runnertest.Life[string]) error {
		life.Ledger.Note("mine alone")
		return nil
	}
	c.Budget = 1
	synctest.Test(t, func(t *testing.T) { c.Run(t) })
	require.Equal(t, 1, dead)
}
