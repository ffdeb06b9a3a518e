package recovery

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

var effects = Effects{"pure": Pure, "idempotent": Idempotent, "reconcilable": Reconcilable, "irreversible": Irreversible}

// interrupted is an engine with a started job of each capability, named after it, and others, all of a process that died.
func interrupted(t *testing.T) (*Engine, *crashfs.FS) {
	ctx, disk := context.Background(), crashfs.New()
	e, err := Open(ctx, "jobs", Options{WAL: wal.Options{FS: disk}})
	require.NoError(t, err)
	do := func(commands ...Command) {
		_, err := e.Do(ctx, commands...)
		require.NoError(t, err)
	}
	for _, id := range []string{"pure", "idempotent", "reconcilable", "irreversible", "unheard of"} {
		do(Submit(Submission{JobID: id, Capability: id}), Validate(id), Start(id))
	}
	do(Submit(Submission{JobID: "submitted", Capability: "irreversible"}))
	do(Submit(Submission{JobID: "validated", Capability: "pure"}), Validate("validated"))
	do(Step("pure", "fetch", 1), SetProgress("pure", 0.5))
	do(Submit(Submission{JobID: "held"}), Hold("held", "why"))
	do(Submit(Submission{JobID: "over"}), Fail("over", errBroken))
	disk = disk.Crash(crashfs.SyncedOnly)
	_ = e.Close()
	e = inMemory(t, disk, Options{})
	return e, disk
}

func TestPlan_does_what_is_safe_by_default(t *testing.T) {
	e, _ := interrupted(t)
	last := e.log.LastSeq()
	p, err := e.Plan(t.Context(), DefaultPolicy(effects))
	require.NoError(t, err)
	got := make(map[string]Action)
	for _, d := range p.Decisions {
		got[d.JobID] = d.Action
		require.NotEmpty(t, d.Reason)
		job, _ := e.Job(d.JobID)
		require.Equal(t, []any{job.Seq, job.Seq, job.Attempts, job.State, job.Epoch},
			[]any{d.Seq, d.Evidence.LastSeq, d.Evidence.Attempts, d.Evidence.State, d.Evidence.Epoch})
		require.Equal(t, effects[job.Capability], d.Evidence.Effect)
	}
	require.Equal(t, map[string]Action{"pure": ActionResume, "idempotent": ActionResume, "reconcilable": ActionReconcile,
		"irreversible": ActionHold, "unheard of": ActionHold, "submitted": ActionResume, "validated": ActionResume}, got)
	require.Equal(t, "started in epoch 1 without a result: whether it happened is unknown", p.Decision("irreversible").Reason)
	ev := p.Decision("pure").Evidence
	require.Equal(t, []any{"fetch", 1, wal.JobProgress}, []any{ev.LastStep, ev.Steps, ev.LastEvent})
	require.Equal(t, last, e.log.LastSeq(), "a plan changes nothing")
	again, err := e.Plan(t.Context(), DefaultPolicy(effects))
	require.NoError(t, err)
	require.Equal(t, p, again)
}

func TestPlan_is_kept_compared_and_edited(t *testing.T) {
	e, _ := interrupted(t)
	p, err := e.Plan(t.Context(), DefaultPolicy(effects))
	require.NoError(t, err)
	text, err := json.Marshal(p)
	require.NoError(t, err)
	var back Plan
	require.NoError(t, json.Unmarshal(text, &back))
	require.Equal(t, p, back)
	require.Empty(t, p.Diff(back))
	require.Error(t, json.Unmarshal([]byte(strings.Replace(string(text), `"effect":"pure"`, `"effect":"purest"`, 1)), &Plan{}), "an effect that nobody knows")

	back.Decision("irreversible").Action = ActionFail
	back.Decisions = back.Decisions[1:]
	back.Decisions = append(back.Decisions, Decision{JobID: "more", Action: ActionHold})
	var told []string
	for _, d := range p.Diff(back) {
		told = append(told, d.String())
	}
	require.Equal(t, "job pure: resume at seq 20 (pure: it may be done again; it was tried once), then not in the plan", told[0])
	require.Contains(t, told[1], "job irreversible: hold at seq 12 (started in")
	require.Contains(t, told[1], "then fail at seq 12 (started in")
	require.Equal(t, "job more: not in the plan, then hold at seq 0 ()", told[2])
	require.Len(t, told, 3)
	require.Nil(t, p.Decision("nobody"))

	p.Decision("pure").Reason = "two\nlines\tand " + strings.Repeat("é", 500)
	require.Equal(t, 2+len(p.Decisions), strings.Count(p.String(), "\n"), p.String())
	require.Contains(t, p.String(), "ATTEMPTS  LAST STEP  ACTION")
}

// One policy is not allowed to stop the plan of all others.
func TestPlan_goes_on_where_a_policy_fails(t *testing.T) {
	e, _ := interrupted(t)
	p, err := e.Plan(t.Context(), First(
		ByCapability(map[string]Policy{
			"pure":         PolicyFunc(func(Evidence) (Action, string, bool) { panic("no") }),
			"irreversible": PolicyFunc(func(ev Evidence) (Action, string, bool) { return ActionFail, ev.JobID, true }),
			"idempotent":   MaxAttempts(1, ActionFail),
			"reconcilable": DefaultPolicy(effects),
		})))
	require.NoError(t, err)
	require.Equal(t, Decision{JobID: "pure", Seq: 20, Action: ActionHold, Reason: "panic: no"}, brief(p.Decision("pure")))
	require.Equal(t, "panic: no", p.Decision("validated").Reason)
	require.Equal(t, ActionFail, p.Decision("submitted").Action)
	require.Equal(t, "it was tried once, the most is 1", p.Decision("idempotent").Reason)
	require.Equal(t, Reconcilable, p.Decision("reconcilable").Evidence.Effect, "asked of the policy inside")
	require.Equal(t, "the policy has no opinion about it", p.Decision("unheard of").Reason)
	require.Equal(t, ActionHold, p.Decision("unheard of").Action)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = e.Plan(ctx, nil)
	require.ErrorIs(t, err, context.Canceled)
	var none context.Context
	_, err = e.Plan(none, nil)
	require.ErrorIs(t, err, wal.ErrInvalid)
}

func brief(d *Decision) Decision {
	c := *d
	c.Evidence = Evidence{}
	return c
}

// R4: a job whose events can't be read does not stop the plan of the others.
func TestR4_Plan_holds_a_job_that_cannot_be_read(t *testing.T) {
	e, _ := interrupted(t)
	job, _ := e.Job("pure")
	e.log = brokenAt{e.log, job.Seq}
	p, err := e.Plan(t.Context(), DefaultPolicy(effects))
	require.NoError(t, err)
	require.Len(t, p.Decisions, 7)
	d := p.Decision("pure")
	require.Equal(t, []any{ActionHold, "no such sector", "its events can't be read: no such sector"}, []any{d.Action, d.Evidence.Problem, d.Reason})
	require.Equal(t, ActionResume, p.Decision("idempotent").Action)
}

// brokenAt is a log with an event that can't be read.
type brokenAt struct {
	Log
	seq uint64
}

func (b brokenAt) At(ctx context.Context, seq uint64) (wal.Event, error) {
	if seq == b.seq {
		return wal.Event{}, errors.New("no such sector")
	}
	return b.Log.At(ctx, seq)
}

// calls are functions for Apply that note what they were called for.
type calls struct {
	mu  sync.Mutex
	all map[string]int
}

func (c *calls) note(what string, job statemachine.Job) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all == nil {
		c.all = make(map[string]int)
	}
	c.all[what+" "+job.ID]++
}

func (c *calls) options() ApplyOptions {
	return ApplyOptions{
		Resume: func(_ context.Context, job statemachine.Job) error { c.note("resume", job); return nil },
		Reconcile: func(_ context.Context, job statemachine.Job) (Reconciled, error) {
			c.note("reconcile", job)
			return Happened("found"), nil
		},
		RollBack: func(_ context.Context, job statemachine.Job) error { c.note("roll back", job); return nil },
	}
}

func results(a Applied) map[string]Result {
	all := make(map[string]Result)
	for _, o := range a.Outcomes {
		all[o.JobID] = o.Result
	}
	return all
}

// Each decision is carried out, once, however often the plan is applied; what is decided is durable before it is acted on.
func TestApply_does_nothing_twice(t *testing.T) {
	e, disk := interrupted(t)
	p, err := e.Plan(t.Context(), DefaultPolicy(effects))
	require.NoError(t, err)
	p.Decision("idempotent").Action = ActionRollBack
	p.Decision("unheard of").Action = ActionFail
	p.Decision("submitted").Action = ActionRollBack
	var c calls
	opts := c.options()
	durable := func(job statemachine.Job) statemachine.Job {
		after, err := Open(context.Background(), "jobs", Options{WAL: wal.Options{FS: disk.Crash(crashfs.SyncedOnly)}})
		require.NoError(t, err)
		defer after.Close()
		kept, _ := after.Job(job.ID)
		return kept
	}
	resume := opts.Resume
	opts.Resume = func(ctx context.Context, job statemachine.Job) error {
		if job.State == statemachine.Started && durable(job).Attempts != 2 {
			return errors.New("the attempt is not durable")
		}
		return resume(ctx, job)
	}
	opts.RollBack = func(ctx context.Context, job statemachine.Job) error {
		c.note("roll back", job)
		if durable(job).State != statemachine.Failed {
			return errors.New("the failure is not durable")
		}
		return nil
	}
	applied, err := p.Apply(t.Context(), e, opts)
	require.NoError(t, err)
	require.NoError(t, applied.Err())
	require.Equal(t, map[string]Result{"pure": Resumed, "idempotent": RolledBack, "reconcilable": Completed, "irreversible": Held,
		"unheard of": Failed, "submitted": RolledBack, "validated": Resumed}, results(applied))
	want := map[string]int{"resume pure": 1, "resume validated": 1, "roll back idempotent": 1, "reconcile reconcilable": 1}
	require.Equal(t, want, c.all)
	job, _ := e.Job("irreversible")
	require.Equal(t, p.Decision("irreversible").Reason, job.Held)
	job, _ = e.Job("reconcilable")
	output, _ := job.Output.JSON()
	require.Equal(t, `"found"`, string(output))
	require.Equal(t, []string{"irreversible", "held"}, inOrder(e.Report().Held))

	last := e.log.LastSeq()
	applied, err = p.Apply(t.Context(), e, opts)
	require.NoError(t, err)
	require.NoError(t, applied.Err())
	require.Equal(t, last, e.log.LastSeq())
	for id, r := range results(applied) {
		if id != "validated" { // it is as it was: nothing tells that it was resumed
			require.Equal(t, Skipped, r, id)
		}
	}
	want["resume validated"]++
	require.Equal(t, want, c.all)
	require.Contains(t, applied.String(), "has changed since: seq 20 was its newest event, now it is seq")
	require.Contains(t, applied.String(), "(job_resumed)")
}

// What one job's function does stops no other.
func TestApply_one_failure_stops_no_other(t *testing.T) {
	e, _ := interrupted(t)
	p, err := e.Plan(t.Context(), DefaultPolicy(effects))
	require.NoError(t, err)
	p.Decision("unheard of").Action = ActionRollBack
	var c calls
	opts := c.options()
	opts.Concurrency = 1
	opts.Resume = func(_ context.Context, job statemachine.Job) error {
		switch job.ID {
		case "pure":
			panic(errBroken)
		case "idempotent":
			runtime.Goexit()
		}
		return nil
	}
	opts.Reconcile = func(context.Context, statemachine.Job) (Reconciled, error) { return Happened(1), errBroken }
	opts.RollBack = func(context.Context, statemachine.Job) error { return errBroken }
	applied, err := p.Apply(t.Context(), e, opts)
	require.NoError(t, err)
	require.Equal(t, map[string]Result{"pure": Resumed, "idempotent": NotApplied, "reconcilable": NotApplied, "irreversible": Held,
		"unheard of": Failed, "submitted": Resumed, "validated": Resumed}, results(applied))
	errs := make(map[string]error)
	for _, o := range applied.Outcomes {
		errs[o.JobID] = o.Err
	}
	require.ErrorIs(t, errs["pure"], errBroken)
	require.ErrorIs(t, errs["idempotent"], errGone)
	require.ErrorIs(t, errs["reconcilable"], errBroken)
	require.ErrorIs(t, applied.Err(), errBroken)
	job, _ := e.Job("reconcilable")
	require.Equal(t, statemachine.Started, job.State, "as it was")

	// The rollback goes on where it was cut short, also behind a step that it had undone.
	_, err = e.UndoStep(t.Context(), "unheard of", "one")
	require.NoError(t, err)
	opts.RollBack = func(context.Context, statemachine.Job) error { return nil }
	applied, err = p.Apply(t.Context(), e, opts)
	require.NoError(t, err)
	require.Equal(t, RolledBack, results(applied)["unheard of"])
	applied, err = p.Apply(t.Context(), e, opts)
	require.NoError(t, err)
	require.Equal(t, Skipped, results(applied)["unheard of"])
}

func TestApply_reconciles(t *testing.T) {
	for name, c := range map[string]struct {
		answer Reconciled
		opts   ApplyOptions
		result Result
		reason string
	}{
		"happened":              {Happened(nil), ApplyOptions{}, Completed, "asked: it happened"},
		"did not":               {DidNotHappen(), ApplyOptions{}, Resumed, "asked: it did not happen"},
		"did not, tried enough": {DidNotHappen(), ApplyOptions{MaxAttempts: 1}, Held, "asked: it did not happen, and it was tried once"},
		"did not, no limit":     {DidNotHappen(), ApplyOptions{MaxAttempts: -1}, Resumed, "asked: it did not happen"},
		"cannot tell":           {CannotTell("no answer"), ApplyOptions{}, Held, "asked, and it can't be told whether it happened: no answer"},
		"zero":                  {Reconciled{}, ApplyOptions{}, Held, "asked, and it can't be told whether it happened: no reason was given"},
	} {
		e, _ := interrupted(t)
		p, err := e.Plan(t.Context(), DefaultPolicy(effects))
		require.NoError(t, err)
		p.Decisions = []Decision{*p.Decision("reconcilable")}
		c.opts.Resume = func(context.Context, statemachine.Job) error { return nil }
		c.opts.Reconcile = func(context.Context, statemachine.Job) (Reconciled, error) { return c.answer, nil }
		applied, err := p.Apply(t.Context(), e, c.opts)
		require.NoError(t, err)
		require.Equal(t, Outcome{"reconcilable", ActionReconcile, c.result, c.reason, nil}, applied.Outcomes[0], name)
	}
}

func TestApply_refuses_what_it_cannot_do(t *testing.T) {
	e, _ := interrupted(t)
	good, err := e.Plan(t.Context(), DefaultPolicy(effects))
	require.NoError(t, err)
	last := e.log.LastSeq()
	var c calls
	for name, bad := range map[string]struct {
		edit func(p *Plan, opts *ApplyOptions)
		says string
	}{
		"another log":   {func(p *Plan, _ *ApplyOptions) { p.LogID = "x" }, "LogID"},
		"twice":         {func(p *Plan, _ *ApplyOptions) { p.Decisions = append(p.Decisions, p.Decisions[0]) }, "there twice"},
		"no action":     {func(p *Plan, _ *ApplyOptions) { p.Decisions[0].Action = "" }, "unknown action"},
		"no job":        {func(p *Plan, _ *ApplyOptions) { p.Decisions[0].JobID = "" }, "no job"},
		"no Resume":     {func(_ *Plan, o *ApplyOptions) { o.Resume = nil }, "Resume is nil"},
		"no Reconcile":  {func(_ *Plan, o *ApplyOptions) { o.Reconcile = nil }, "Reconcile is nil"},
		"no RollBack":   {func(p *Plan, o *ApplyOptions) { p.Decisions[0].Action, o.RollBack = ActionRollBack, nil }, "RollBack is nil"},
		"reconcile, no": {func(p *Plan, o *ApplyOptions) { p.Decisions, o.Resume = []Decision{*p.Decision("reconcilable")}, nil }, "Resume is nil"},
	} {
		p, opts := Plan{LogID: good.LogID, Decisions: append([]Decision{}, good.Decisions...)}, c.options()
		bad.edit(&p, &opts)
		_, err := p.Apply(t.Context(), e, opts)
		require.ErrorIs(t, err, wal.ErrInvalid, name)
		require.ErrorContains(t, err, bad.says, name)
	}
	var none context.Context
	_, err = good.Apply(none, e, c.options())
	require.ErrorIs(t, err, wal.ErrInvalid)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	applied, err := good.Apply(ctx, e, c.options())
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorIs(t, applied.Err(), context.Canceled)
	require.Equal(t, last, e.log.LastSeq())
	require.Empty(t, c.all)
}

func TestApply_bounds_concurrency(t *testing.T) {
	ctx, disk := context.Background(), crashfs.New()
	e, err := Open(ctx, "jobs", Options{WAL: wal.Options{FS: disk}})
	require.NoError(t, err)
	for i := range 40 {
		_, err := e.Submit(ctx, Submission{JobID: fmt.Sprint(i)})
		require.NoError(t, err)
	}
	require.NoError(t, e.Close())
	e = inMemory(t, disk, Options{})
	p, err := e.Plan(ctx, nil)
	require.NoError(t, err)
	var now, most atomic.Int64
	opts := ApplyOptions{Concurrency: 3, Resume: func(context.Context, statemachine.Job) error {
		n := now.Add(1)
		defer now.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		for range 100 {
			runtime.Gosched()
		}
		return nil
	}}
	applied, err := p.Apply(ctx, e, opts)
	require.NoError(t, err)
	require.Len(t, applied.Outcomes, 40)
	require.LessOrEqual(t, most.Load(), int64(3))
}

// What somebody has released is not held for the same reason again: the decision stands, until work has begun.
func TestPlan_knows_of_a_decision(t *testing.T) {
	ctx := t.Context()
	e, disk := interrupted(t)
	for _, c := range []Command{Hold("irreversible", "did it?"), Release("irreversible", "it did not, by Ada")} {
		_, err := e.Do(ctx, c)
		require.NoError(t, err)
	}
	again := func() Decision {
		require.NoError(t, e.Close())
		e = inMemory(t, disk, Options{})
		p, err := e.Plan(ctx, First(MaxAttempts(1, ActionFail), DefaultPolicy(effects)))
		require.NoError(t, err)
		return *p.Decision("irreversible")
	}
	require.Equal(t, ActionResume, again().Action)
	_, err := e.Resume(ctx, "irreversible")
	require.NoError(t, err)
	require.Equal(t, ActionFail, again().Action, "its work has begun since")
}

// A release while the work goes on, or may, says nothing about what is done after it: the process dies, and it is unknown again.
func TestPlan_trusts_no_release_of_work_under_way(t *testing.T) {
	for _, steps := range []int{0, 1} {
		ctx, disk := t.Context(), crashfs.New()
		e := inMemory(t, disk, Options{})
		commands := []Command{Submit(Submission{JobID: "a", Capability: "irreversible"}), Validate("a"), Start("a"), Step("a", "one", nil)}
		for _, c := range append(commands[:3+steps], Hold("a", "it hangs"), Release("a", "Ada: let it go on")) {
			_, err := e.Do(ctx, c)
			require.NoError(t, err)
		}
		disk = disk.Crash(crashfs.SyncedOnly)
		e = inMemory(t, disk, Options{})
		p, err := e.Plan(ctx, DefaultPolicy(effects))
		require.NoError(t, err)
		require.Equal(t, ActionHold, p.Decision("a").Action)
		_, err = p.Apply(ctx, e, ApplyOptions{})
		require.NoError(t, err)
		_, err = e.Release(ctx, "a", "Ada: whoever did it is dead, and it was not done")
		require.NoError(t, err)
		require.NoError(t, e.Close())
		e = inMemory(t, disk, Options{})
		p, err = e.Plan(ctx, DefaultPolicy(effects))
		require.NoError(t, err)
		require.Equal(t, ActionResume, p.Decision("a").Action)
	}
}

func TestEffectAsText(t *testing.T) {
	for x := Unknown; x <= Irreversible; x++ {
		text, err := x.MarshalText()
		require.NoError(t, err)
		var back Effect
		require.NoError(t, back.UnmarshalText(text))
		require.Equal(t, x, back)
	}
	_, err := Effect(9).MarshalText()
	require.ErrorIs(t, err, wal.ErrInvalid)
	require.Equal(t, "effect 9", Effect(9).String())
	require.ErrorIs(t, new(Effect).UnmarshalText([]byte("x")), wal.ErrInvalid)
}

func TestStepName(t *testing.T) {
	for args, want := range map[string]string{
		`{"step":"fetch"}`: "fetch", `{"Step":"fetch"}`: "", `{"step":1}`: "", `[]`: "", ``: "", `{"step":"a","more":1}`: "a",
	} {
		require.Equal(t, want, StepName(wal.Event{Type: wal.JobStep, Args: json.RawMessage(args)}), args)
		require.Empty(t, StepName(wal.Event{Type: wal.JobSubmitted, Args: json.RawMessage(args)}))
	}
	e, _ := interrupted(t)
	var names []string
	for event := range e.History(t.Context(), "pure") {
		if name := StepName(event); name != "" {
			names = append(names, name)
			require.Equal(t, "1", string(event.Output))
		}
	}
	require.Equal(t, []string{"fetch"}, names)
	job, err := e.SetProgress(t.Context(), "pure", map[string]int{"percent": 70})
	require.NoError(t, err)
	raw, err := e.Read(t.Context(), job.Progress)
	require.NoError(t, err)
	require.Equal(t, `{"percent":70}`, string(raw))
	require.NotEqual(t, time.Time{}, job.StartedAt)
}

// Whoever makes the attempt durable himself is handed the job as it was looked at; applied again, it is handed to him again.
func TestApply_leaves_the_attempt_to_Resume(t *testing.T) {
	e, _ := interrupted(t)
	p, err := e.Plan(t.Context(), First(ByCapability(map[string]Policy{"reconcilable": decideAlways(ActionReconcile)}), DefaultPolicy(effects)))
	require.NoError(t, err)
	var mu sync.Mutex
	handed := make(map[string]int)
	opts := ApplyOptions{
		ResumeLater: true,
		Resume: func(_ context.Context, job statemachine.Job) error {
			mu.Lock()
			defer mu.Unlock()
			require.Equal(t, p.Decision(job.ID).Seq, job.Seq)
			handed[job.ID]++
			return nil
		},
		Reconcile: func(context.Context, statemachine.Job) (Reconciled, error) { return DidNotHappen(), nil },
	}
	for range 2 {
		applied, err := p.Apply(t.Context(), e, opts)
		require.NoError(t, errors.Join(err, applied.Err()))
	}
	require.Equal(t, map[string]int{"pure": 2, "idempotent": 2, "reconcilable": 2, "submitted": 2, "validated": 2}, handed)
	for id := range handed {
		job, _ := e.Job(id)
		require.Equal(t, p.Decision(id).Evidence.Attempts, job.Attempts)
	}
}

func decideAlways(action Action) Policy {
	return PolicyFunc(func(Evidence) (Action, string, bool) { return action, "always", true })
}

// What goes into the log with the failure is there with it or not at all, and an apply that a crash cut short goes on behind it.
func TestApply_writes_more_with_a_failure(t *testing.T) {
	e, _ := interrupted(t)
	p, err := e.Plan(t.Context(), DefaultPolicy(effects))
	require.NoError(t, err)
	p.Decisions = []Decision{*p.Decision("pure")}
	p.Decisions[0].Action = ActionRollBack
	undos := 0
	opts := ApplyOptions{
		FailWith: func(job statemachine.Job) []Command {
			return []Command{UndoStep(job.ID, "#to be undone"), UndoStep(job.ID, "#at once")}
		},
		RollBack: func(_ context.Context, job statemachine.Job) error {
			require.True(t, job.RollingBack)
			if undos++; undos > 2 {
				return nil
			}
			_, err := e.UndoStep(t.Context(), job.ID, "fetch")
			return errors.Join(err, errBroken)
		},
	}
	for range 2 {
		applied, err := p.Apply(t.Context(), e, opts)
		require.NoError(t, err)
		require.ErrorIs(t, applied.Err(), errBroken)
	}
	applied, err := p.Apply(t.Context(), e, opts)
	require.NoError(t, errors.Join(err, applied.Err()))
	require.Equal(t, 3, undos)
	var types []wal.EventType
	for event, err := range e.History(t.Context(), "pure") {
		require.NoError(t, err)
		if event.Seq > p.Decisions[0].Seq {
			types = append(types, event.Type)
		}
	}
	require.Equal(t, []wal.EventType{wal.JobFailed, wal.JobStepUndone, wal.JobStepUndone, wal.JobStepUndone, wal.JobStepUndone, wal.JobRolledBack}, types)

	other := opts
	other.FailWith = nil
	p.Decisions[0].Seq = 1
	applied, err = p.Apply(t.Context(), e, other)
	require.NoError(t, err)
	require.Equal(t, Skipped, applied.Outcomes[0].Result)
}

// A plan that somebody has edited resumed what had ended, it said, and nothing had been done.
func TestApply_resumes_nothing_that_has_ended(t *testing.T) {
	ctx := t.Context()
	e := opened(t, written(t))
	jobs, err := e.Do(ctx, Submit(Submission{JobID: "a"}), Validate("a"), Start("a"), Step("a", "s", 1), Complete("a", 1), UndoStep("a", "s"))
	require.NoError(t, err)
	never := func(context.Context, statemachine.Job) error { t.Error("called"); return nil }
	for _, action := range []Action{ActionResume, ActionReconcile} {
		p := Plan{LogID: e.log.ID(), Decisions: []Decision{{JobID: "a", Seq: jobs[5].Seq, Action: action}}}
		for _, later := range []bool{true, false} {
			applied, err := p.Apply(ctx, e, ApplyOptions{Resume: never, ResumeLater: later,
				Reconcile: func(context.Context, statemachine.Job) (Reconciled, error) {
					t.Error("asked")
					return DidNotHappen(), nil
				}})
			require.NoError(t, err)
			require.ErrorIs(t, applied.Err(), statemachine.ErrTransition)
			require.Equal(t, NotApplied, applied.Outcomes[0].Result)
		}
	}
}

// A job that had ended when it was looked at is rolled back by as many applies of the plan as are cut short, each of which goes on
// behind what was undone; no other change of the job is passed over. (A plan was skipped as soon as one step was undone.)
func TestApply_rolls_back_what_has_ended(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ctx, steps := context.Background(), rapid.IntRange(0, 3).Draw(t, "steps")
		e, err := Open(ctx, "jobs", Options{WAL: wal.Options{FS: crashfs.New()}})
		require.NoError(t, err)
		defer func() { require.NoError(t, e.Close()) }()
		commands := []Command{Submit(Submission{JobID: "a"}), Validate("a"), Start("a")}
		for i := range steps {
			commands = append(commands, Step("a", fmt.Sprint("s", i), i))
		}
		late := rapid.Bool().Draw(t, "ended since")
		end := Complete("a", 1)
		if rapid.Bool().Draw(t, "failed") {
			end = Fail("a", errBroken)
		}
		if !late {
			commands = append(commands, end)
		}
		if !late && rapid.Bool().Draw(t, "begun") {
			commands = append(commands, UndoStep("a", "#rollback"))
		}
		jobs, err := e.Do(ctx, commands...)
		require.NoError(t, err)
		p := Plan{LogID: e.log.ID(), Decisions: []Decision{{JobID: "a", Seq: jobs[0].Seq, Action: ActionRollBack, Reason: "half of it"}}}
		if late {
			_, err := e.Do(ctx, end)
			require.NoError(t, err)
		}
		cuts, left := steps, steps
		if late {
			cuts = 0
		}
		opts := ApplyOptions{RollBack: func(context.Context, statemachine.Job) error {
			if left == 0 {
				return nil
			}
			left--
			_, err := e.UndoStep(ctx, "a", fmt.Sprint("s", left))
			return errors.Join(err, errBroken)
		}}
		for range cuts {
			applied, err := p.Apply(ctx, e, opts)
			require.NoError(t, err)
			require.ErrorIs(t, applied.Err(), errBroken)
			job, _ := e.Job("a")
			require.Equal(t, []any{true, left}, []any{job.RollingBack, job.Steps})
			want := NotApplied
			if job.State == statemachine.Failed {
				want = Failed
			}
			require.Equal(t, want, applied.Outcomes[0].Result)
		}
		for _, want := range []Result{RolledBack, Skipped} {
			if late {
				want = Skipped
			}
			applied, err := p.Apply(ctx, e, opts)
			require.NoError(t, errors.Join(err, applied.Err()))
			require.Equal(t, want, applied.Outcomes[0].Result)
		}
	})
}

// What an outcome says has become of a job is so, though the function that rolled it back returned an error. (It said Failed.)
func TestApply_rolled_back_and_an_error(t *testing.T) {
	e := inMemory(t, crashfs.New(), Options{})
	jobs, err := e.Do(t.Context(), Submit(Submission{JobID: "a"}), Validate("a"), Start("a"))
	require.NoError(t, err)
	p := Plan{LogID: e.log.ID(), Decisions: []Decision{{JobID: "a", Seq: jobs[0].Seq, Action: ActionRollBack}}}
	applied, err := p.Apply(t.Context(), e, ApplyOptions{RollBack: func(ctx context.Context, job statemachine.Job) error {
		_, err := e.RollBack(ctx, job.ID, "why")
		return errors.Join(err, errBroken)
	}})
	require.NoError(t, err)
	require.ErrorIs(t, applied.Err(), errBroken)
	require.Equal(t, RolledBack, applied.Outcomes[0].Result)
}
