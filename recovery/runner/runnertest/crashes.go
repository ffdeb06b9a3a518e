package runnertest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/recovery/crashtest"
	"github.com/jobwal/jobwal/recovery/runner"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// A Life is one process, from its opening of the log to its end.
type Life[L any] struct {
	Engine *recovery.Engine
	Runner *runner.Runner
	Ledger *Ledger[L]
}

// Crashes are the deaths of a program that has a runner. Register, Work and Check are needed, nothing else is. All its functions get
// the same ledger in one life, and return an error for what must not be; once the process is dead an error is as good as none.
// It holds no state: it may be copied, and run any number of times.
type Crashes[L any] struct {
	// Register adds the capabilities, whose functions do to the ledger what they do to the world. It is called for each life.
	Register func(reg *runner.Registry, ledger *Ledger[L])
	// Work is what the program does in its first life. It must do it in the same order each time; see the package.
	Work func(ctx context.Context, life Life[L]) error
	// Opened looks at what a death left, before anything is done about it. Default: nothing.
	Opened func(ctx context.Context, life Life[L]) error
	// Then is what people and callers do once the next life has recovered, and all its jobs are at rest: release what is held,
	// submit again what may be lost. Default: nothing.
	Then func(ctx context.Context, life Life[L]) error
	// Check looks at log and ledger when all jobs are at rest.
	Check func(ctx context.Context, life Life[L]) error

	Options  runner.Options    // Default: those of the runner, with one worker
	Policies []recovery.Policy // of Recover, before the runner's own. Default: none
	// Base is a disk with a log in directory "jobs", for a first life that finds one. Default: an empty disk.
	Base *crashfs.FS
	// Disk is put around the disk of each life, as crashtest.Saboteur.FS is. Default: nothing.
	Disk func(wal.FS) wal.FS
	// Pictures are tried of each death. Default: those of [crashtest.Crashes].
	Pictures []crashfs.Policy
	// Budget is the number of lives after the first. Default: [crashtest.DefaultBudget].
	Budget int
}

// Run does it all: see the package. It has to be called in a synctest bubble. It logs its coverage, and fails the test where
// something is wrong, with the shortest way there that it found, for Replay.
func (c Crashes[L]) Run(t rapid.TB) crashtest.Coverage {
	t.Helper()
	return c.crashes(t).Run(t)
}

// Replay runs again what the message of a failed Run gives as the way to its failure, under the same settings.
func (c Crashes[L]) Replay(t rapid.TB, reproducer string) {
	t.Helper()
	c.crashes(t).Replay(t, reproducer)
}

func (c Crashes[L]) crashes(t rapid.TB) crashtest.Crashes[Ledger[L]] {
	t.Helper()
	if c.Register == nil || c.Work == nil || c.Check == nil {
		t.Fatalf("runnertest: Register, Work or Check is missing")
	}
	if c.Options.Workers == 0 {
		c.Options.Workers = 1
	}
	base := crashfs.New()
	if c.Base != nil {
		base = c.Base.Crash(crashfs.SyncedOnly)
	}
	if err := errors.Join(base.Mkdir(outside, 0o755), base.SyncDir(".")); err != nil {
		t.Fatalf("runnertest: %v", err)
	}
	return crashtest.Crashes[Ledger[L]]{
		Base: base, Policies: c.Pictures, Budget: c.Budget,
		Workload: func(disk wal.FS, ledger *Ledger[L]) error { return c.live(disk, ledger, c.Work) },
		Check:    func(disk wal.FS, ledger *Ledger[L]) error { return c.live(disk, ledger, c.recovered) },
	}
}

// patience is how long work may take to come back whose context has ended, in the bubble's time.
const patience = time.Hour

// live is one life, from opening to end. The first error counts: what comes behind it is its consequence.
func (c Crashes[L]) live(disk wal.FS, ledger *Ledger[L], do func(context.Context, Life[L]) error) error {
	ledger.begin(disk)
	defer ledger.begin(nil)
	below := disk
	if c.Disk != nil {
		below = c.Disk(disk)
	}
	e, err := recovery.Open(context.Background(), "jobs", recovery.Options{CheckpointEvery: -1, WAL: wal.Options{FS: below}})
	if err != nil {
		return excused(disk, err)
	}
	err = c.run(disk, Life[L]{Engine: e, Ledger: ledger}, do)
	ledger.show(e)
	return cmp.Or(err, excused(disk, e.Close()))
}

func (c Crashes[L]) run(disk wal.FS, life Life[L], do func(context.Context, Life[L]) error) (err error) {
	if err := life.Ledger.lost(life.Engine); err != nil {
		return err
	}
	reg, opts := runner.NewRegistry(), c.Options
	opts.Grace = patience
	c.Register(reg, life.Ledger)
	if life.Runner, err = runner.New(life.Engine, reg, opts); err != nil {
		return err
	}
	err = excused(disk, do(context.Background(), life))
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return cmp.Or(err, excused(disk, life.Runner.Drain(ctx)))
}

// excused is an error as crashtest wants it of a process that is dead: nothing else could be expected of it.
func excused(disk wal.FS, err error) error {
	if err == nil || !isDead(disk) || errors.Is(err, crashfs.ErrCrashed) {
		return err
	}
	return fmt.Errorf("%w: %w", crashfs.ErrCrashed, err)
}

// recovered is a life that finds a log which another one left.
func (c Crashes[L]) recovered(ctx context.Context, life Life[L]) error {
	for _, do := range []func(context.Context, Life[L]) error{c.Opened, c.recover, c.Then, rest[L], c.Check} {
		if do == nil {
			continue
		}
		if err := do(ctx, life); err != nil {
			return err
		}
	}
	return nil
}

// recover applies the plans of those who died while they did, and then its own, twice: nothing is done twice, and nothing is left to
// be done.
func (c Crashes[L]) recover(ctx context.Context, life Life[L]) error {
	plan, err := life.Runner.Plan(ctx, c.Policies...)
	if err != nil {
		return err
	}
	for _, old := range life.Ledger.applies(plan) {
		if err := apply(ctx, life, old); err != nil {
			return err
		}
	}
	if err := cmp.Or(apply(ctx, life, plan), rest(ctx, life)); err != nil {
		return err
	}
	last := life.Engine.Stats().LastSeq
	if err := cmp.Or(apply(ctx, life, plan), rest(ctx, life)); err != nil {
		return err
	}
	if now := life.Engine.Stats().LastSeq; now != last {
		return fmt.Errorf("runnertest: a plan that was applied again has written events %d to %d:\n%s", last+1, now, plan)
	}
	plan, err = life.Runner.Plan(ctx, c.Policies...)
	if err == nil && len(plan.Decisions) > 0 {
		err = fmt.Errorf("runnertest: behind the recovery there is something to recover:\n%s", plan)
	}
	return err
}

// apply applies one decision after the other, and lets what it began come to rest: so all is done in the same order each time.
func apply[L any](ctx context.Context, life Life[L], plan recovery.Plan) error {
	for _, d := range plan.Decisions {
		one := plan
		one.Decisions = []recovery.Decision{d}
		applied, err := life.Runner.Apply(ctx, one)
		if err := cmp.Or(err, applied.Err(), settle(ctx, life)); err != nil {
			return fmt.Errorf("runnertest: %w\n%s", err, plan)
		}
	}
	return nil
}

// settle waits for all that the runner has.
func settle[L any](ctx context.Context, life Life[L]) error {
	for job := range life.Engine.Jobs(projection.Query{}) {
		if _, err := life.Runner.Wait(ctx, job.ID); err != nil && !errors.Is(err, runner.ErrNotRunning) {
			return err
		}
	}
	return nil
}

// rest waits until every job has ended, or is held, which it is with a reason.
func rest[L any](ctx context.Context, life Life[L]) error {
	for job := range life.Engine.Jobs(projection.Query{}) {
		job, err := life.Runner.Wait(ctx, job.ID)
		if err != nil {
			return fmt.Errorf("runnertest: a job that comes to no end: %w", err)
		}
		if job.Parked != "" {
			return fmt.Errorf("runnertest: %s", job)
		}
	}
	return nil
}
