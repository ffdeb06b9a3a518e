package recovery_test

import (
	"context"
	"errors"
	flags "flag"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/recovery/crashtest"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

var errFlaky = errors.New("no answer")

var effects = recovery.Effects{"pure": recovery.Pure, "idempotent": recovery.Idempotent,
	"reconcilable": recovery.Reconcilable, "irreversible": recovery.Irreversible}

// world is a program that does things to an outside world, which no power cut takes back, and is crashed while it works,
// plans, edits and applies.
type world struct {
	disk   *crashfs.FS
	faulty *crashfs.Faulty
	e      *recovery.Engine
	jobs   int
	plan   *recovery.Plan
	broken saboteur
	choice int // differs from action to action: what functions do, that run beside each other

	mu      sync.Mutex     // guards the fields below
	done    map[string]int // how often each job's effect happened
	allowed map[string]int // how often a person has released it
	acked   map[string]int // attempts that are known to be durable
}

func (w *world) open(t *rapid.T) {
	for w.e == nil {
		w.faulty = crashfs.Inject(w.disk, nil)
		if rapid.IntRange(0, 3).Draw(t, "power goes in Open") == 0 {
			w.faulty.CrashAfter(rapid.IntRange(0, 12).Draw(t, "operations"))
		}
		e, err := recovery.Open(context.Background(), "jobs", recovery.Options{WAL: wal.Options{FS: w.faulty}})
		if err != nil {
			require.True(t, w.faulty.Crashed(), "%v", err)
			w.cut(t)
			continue
		}
		w.e = e
	}
}

func (w *world) cut(t *rapid.T) {
	w.faulty.Stop()
	if w.e != nil {
		_ = w.e.Close()
		w.e = nil
	}
	policy := rapid.SampledFrom([]crashfs.Policy{crashfs.SyncedOnly, crashfs.Everything, crashfs.Seed(7), crashfs.Pages(3)}).Draw(t, "power cut")
	w.disk = w.disk.Crash(policy)
}

func (w *world) crash(t *rapid.T) {
	w.cut(t)
	w.open(t)
}

// soon lets the power go at one of the next operations, or not.
func (w *world) soon(t *rapid.T) {
	if rapid.Bool().Draw(t, "power goes soon") {
		w.faulty.CrashAfter(rapid.IntRange(0, 25).Draw(t, "operations"))
	}
}

// after: the process that met the power cut is dead.
func (w *world) after(t *rapid.T) {
	if w.faulty.Crashed() {
		w.crash(t)
	}
}

// A saboteur is a program that gets one thing wrong.
type saboteur string

const (
	sound        saboteur = ""
	actsFirst    saboteur = "acts before its attempt is durable"
	trustsNobody saboteur = "takes what was started and has no result for not done"
)

var worldly = []string{"pure", "idempotent", "reconcilable", "irreversible", "unheard of"}

// begin submits a job, and takes it as far as is drawn: to its start, its effect, its end.
func (w *world) begin(t *rapid.T) {
	w.jobs++
	id, capability := fmt.Sprint("job-", w.jobs), rapid.SampledFrom(worldly).Draw(t, "capability")
	far := rapid.IntRange(0, 4).Draw(t, "far")
	w.soon(t)
	commands := []recovery.Command{recovery.Submit(recovery.Submission{JobID: id, Capability: capability}), recovery.Validate(id), recovery.Start(id)}
	if w.broken == actsFirst && far > 1 {
		w.done[id]++
		far = min(far, 2)
	}
	for i, c := range commands[:min(far+1, 3)] {
		jobs, err := w.e.Do(context.Background(), c)
		if err != nil {
			break
		}
		if i == 2 {
			_ = w.work(context.Background(), jobs[0], far > 3, far > 2)
		}
	}
	w.after(t)
}

// work is what a started job does. The attempt is durable.
func (w *world) work(ctx context.Context, job statemachine.Job, completes, happens bool) error {
	if w.faulty.Crashed() {
		return crashfs.ErrCrashed // whoever would do it is dead
	}
	w.mu.Lock()
	w.acked[job.ID] = max(w.acked[job.ID], job.Attempts)
	if happens {
		w.done[job.ID]++
	}
	w.mu.Unlock()
	if !completes {
		return errFlaky
	}
	_, err := w.e.Complete(ctx, job.ID, "done")
	return err
}

func (w *world) makePlan(t *rapid.T) {
	known := effects
	if w.broken == trustsNobody {
		known = recovery.Effects{"pure": recovery.Pure, "irreversible": recovery.Idempotent}
	}
	p, err := w.e.Plan(context.Background(), recovery.First(recovery.MaxAttempts(4, recovery.ActionFail), recovery.DefaultPolicy(known)))
	require.NoError(t, err)
	for _, d := range p.Decisions {
		job, _ := w.e.Job(d.JobID)
		if effect := known[job.Capability]; d.Action == recovery.ActionResume && job.State == statemachine.Started {
			require.True(t, effect == recovery.Pure || effect == recovery.Idempotent || d.Evidence.LastEvent == wal.JobReleased, "%+v", d)
		}
	}
	require.Len(t, p.Decisions, len(w.e.Interrupted()), "every interrupted job is decided about")
	w.plan = &p
}

// edit changes a decision to one that is safe, whatever the job.
func (w *world) edit(t *rapid.T) {
	if w.plan == nil || len(w.plan.Decisions) == 0 {
		return // there is no plan
	}
	i := rapid.IntRange(0, len(w.plan.Decisions)-1).Draw(t, "decision")
	if rapid.IntRange(0, 4).Draw(t, "take out") == 0 {
		w.plan.Decisions = slices.Delete(w.plan.Decisions, i, i+1)
		return
	}
	d := &w.plan.Decisions[i]
	d.Action = rapid.SampledFrom([]recovery.Action{recovery.ActionHold, recovery.ActionFail, recovery.ActionRollBack}).Draw(t, "action")
	d.Reason = "decided by a person"
}

// apply applies the plan, which may be of an earlier process.
func (w *world) apply(t *rapid.T) {
	if w.plan == nil {
		return // there is no plan
	}
	w.soon(t)
	_, err := w.plan.Apply(context.Background(), w.e, w.options(rapid.IntRange(1, 4).Draw(t, "at once")))
	require.NoError(t, err)
	w.after(t)
}

func (w *world) options(concurrency int) recovery.ApplyOptions {
	w.choice++
	choice := func(job statemachine.Job, n int) int { return (w.choice*31 + len(job.ID)*7 + int(job.Seq)) % n }
	return recovery.ApplyOptions{
		Concurrency: concurrency,
		Resume: func(ctx context.Context, job statemachine.Job) error {
			for job.State != statemachine.Started {
				c := recovery.Validate(job.ID)
				if job.State == statemachine.Validated {
					c = recovery.Start(job.ID)
				}
				jobs, err := w.e.Do(ctx, c)
				if err != nil {
					return err
				}
				job = jobs[0]
			}
			if choice(job, 7) == 0 {
				panic("a bug in a capability")
			}
			return w.work(ctx, job, choice(job, 3) > 0, choice(job, 4) > 0 || choice(job, 3) > 0)
		},
		Reconcile: func(_ context.Context, job statemachine.Job) (recovery.Reconciled, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			switch happened := w.done[job.ID] > 0; {
			case choice(job, 5) == 0:
				return recovery.CannotTell("the service does not answer"), nil
			case choice(job, 5) == 1:
				return recovery.Happened(nil), errFlaky
			case happened:
				return recovery.Happened("found"), nil
			}
			return recovery.DidNotHappen(), nil
		},
		RollBack: func(_ context.Context, job statemachine.Job) error {
			if w.faulty.Crashed() {
				return crashfs.ErrCrashed
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			w.done[job.ID] = 0
			return nil
		},
	}
}

// release is a person's decision: it did not happen, or it may happen once more.
func (w *world) release(t *rapid.T) {
	held := w.e.Report().Held
	if len(held) == 0 {
		return // no job is held
	}
	job := rapid.SampledFrom(held).Draw(t, "job")
	w.mu.Lock()
	w.allowed[job.ID]++
	w.mu.Unlock()
	w.soon(t)
	if _, err := w.e.Release(context.Background(), job.ID, "go on"); err != nil {
		require.True(t, w.faulty.Crashed(), "%v", err)
	}
	w.after(t)
}

// check is true at all times.
func (w *world) check(t *rapid.T) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for job := range w.e.Jobs(projection.Query{}) {
		require.Empty(t, job.Parked)
		require.GreaterOrEqual(t, job.Attempts, w.acked[job.ID], "no crash hides an attempt")
		switch job.Capability {
		case "irreversible", "unheard of", "reconcilable":
			require.LessOrEqual(t, w.done[job.ID], 1+w.allowed[job.ID], "%s was done again, and nobody had decided that: %v", job.ID, job)
		}
		if job.State == statemachine.Completed && job.Capability != "" {
			require.Positive(t, w.done[job.ID], "%v", job)
		}
		require.LessOrEqual(t, w.done[job.ID], job.Attempts)
	}
}

// settle: without crashes, a few plans bring every job to its end, or to a person.
func (w *world) settle(t *rapid.T) {
	w.cut(t)
	w.faulty = crashfs.Inject(w.disk, nil)
	for range 6 {
		e, err := recovery.Open(context.Background(), "jobs", recovery.Options{WAL: wal.Options{FS: w.faulty}})
		require.NoError(t, err)
		w.e = e
		w.makePlan(t)
		if len(w.plan.Decisions) == 0 {
			break
		}
		_, err = w.plan.Apply(context.Background(), w.e, w.options(4))
		require.NoError(t, err)
		w.check(t)
		require.NoError(t, w.e.Close())
	}
	require.Empty(t, w.e.Interrupted(), "not decided")
	for job := range w.e.Jobs(projection.Query{}) {
		require.True(t, job.Finished() || job.Held != "", "%v", job)
	}
	require.NoError(t, w.e.Close())
}

// S1, R1, R4: plan, edit, apply, and crashes at any operation of any of them, inside recoveries too. Nothing
// irreversible is done again by itself, no attempt is hidden, and applying again and again comes to an end.
func TestR1_R4_S1_plans_survive_crashes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) { plansSurviveCrashes(t, sound) })
}

func FuzzPlansSurviveCrashes(f *testing.F) {
	f.Fuzz(rapid.MakeFuzz(func(t *rapid.T) { plansSurviveCrashes(t, sound) }))
}

// Programs that get it wrong are caught.
func TestR1_plans_of_saboteurs_are_caught(t *testing.T) {
	for flag, value := range map[string]string{"rapid.nofailfile": "true", "rapid.shrinktime": "1s"} {
		before := flags.Lookup(flag).Value.String()
		require.NoError(t, flags.Set(flag, value))
		defer func() { require.NoError(t, flags.Set(flag, before)) }()
	}
	for broken, notices := range map[saboteur]string{
		actsFirst:    "is not less than or equal to",
		trustsNobody: "was done again, and nobody had decided that",
	} {
		said, failed := crashtest.Fails(func(t rapid.TB) {
			rapid.Check(t, func(t *rapid.T) { plansSurviveCrashes(t, broken) })
		})
		require.True(t, failed, "%s, and nobody noticed", broken)
		// Of jobs that are worked on beside each other rapid may not get the same failure twice; then it shows only where.
		require.True(t, strings.Contains(said, notices) || strings.Contains(said, "(*world).check"), said)
	}
}

func plansSurviveCrashes(t *rapid.T, broken saboteur) {
	w := &world{broken: broken, disk: crashfs.New(), done: map[string]int{}, allowed: map[string]int{}, acked: map[string]int{}}
	w.open(t)
	defer func() { // also when the property is broken off
		if w.e != nil {
			_ = w.e.Close()
		}
	}()
	t.Repeat(map[string]func(*rapid.T){
		"": w.check, "begin": w.begin, "crash": w.crash, "plan": w.makePlan, "edit": w.edit, "apply": w.apply, "release": w.release,
	})
	w.settle(t)
}
