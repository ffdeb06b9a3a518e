package runner_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/recovery/crashtest"
	"github.com/jobwal/jobwal/recovery/runner"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// A day's work: a runner whose jobs go on only when the test lets them, so that it always knows where each of them must be.

// A task is the args of a job: so many steps, and how it ends (see chore).
type task struct {
	Steps int    `json:"steps"`
	End   string `json:"end"`
}

// A shop is one process. Before each thing that is done to the world there is a gate, where the job waits until it is let
// through.
type shop struct {
	machine *machine
	mu      sync.Mutex               // guards gates
	gates   map[string]chan struct{} // those who wait, by job
}

func (s *shop) gate(ctx context.Context, id string) error {
	open := make(chan struct{})
	s.mu.Lock()
	s.gates[id] = open
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.gates[id] == open {
			delete(s.gates, id)
		}
	}()
	select {
	case <-open:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// act does something to the world, when it may. The steps of what can be asked about look whether they were done.
func (s *shop) act(ctx context.Context, what, step string) error {
	job, _ := runner.JobOf(ctx)
	if err := s.gate(ctx, job.ID); err != nil {
		return err
	}
	if s.machine.shop != s {
		return errors.New("the process is dead")
	}
	if what == acted && step != "" && job.Capability == "reconcilable" && s.machine.did(acted, job.ID, step) {
		return nil
	}
	s.machine.mu.Lock()
	defer s.machine.mu.Unlock()
	s.machine.lines = append(s.machine.lines, mark{what, job.ID, step, job.Attempts})
	return nil
}

func (s *shop) Execute(ctx context.Context, args task) (int, error) {
	job, _ := runner.JobOf(ctx)
	for i := range args.Steps {
		step := stepName(i)
		if _, err := runner.Step(ctx, step, func(ctx context.Context) (int, error) { return i, s.act(ctx, acted, step) }); err != nil {
			return 0, err
		}
	}
	if err := s.act(ctx, acted, ""); err != nil {
		return 0, err
	}
	if err := s.gate(ctx, job.ID); err != nil {
		return 0, err
	}
	switch {
	case args.End == badly:
		return 0, errBad
	case args.End == flaky && job.Attempts == 1:
		return 0, errFlaky
	}
	return args.Steps, nil
}

func stepName(i int) string { return string(rune('a' + i)) }

func (s *shop) Undo(ctx context.Context, _ task, done runner.Done) error {
	return s.act(ctx, undid, done.Step)
}

func (s *shop) Reconcile(ctx context.Context, args task) (runner.Found[int], error) {
	job, _ := runner.JobOf(ctx)
	if s.machine.did(acted, job.ID, "") {
		return runner.Happened(args.Steps), nil
	}
	return runner.DidNotHappen[int](), nil
}

const most = 3 // Options.MaxAttempts

// A ref is what a job must be, by the most naive means there are.
type ref struct {
	task
	id, capability string
	state          statemachine.State
	held           bool
	released       bool // when the process in which its work last began was over, and nothing was done since
	attempts       int
	steps          int  // recorded
	undone         int  // recorded
	rolling        bool // that it is to be undone is recorded, with its failure or by itself
	alive          bool // this process has done something to it
	begun          bool // its work last began in this process

	// In this process; idle means that it has no task.
	doing  string // idle, "work", "undo" or "retry"
	passed int    // of the gates of this work or undo
	reason string // of the plan that undoes it
	failed uint64 // its newest event when that plan was made
}

const idle, atWork, undoing, retrying = "", "work", "undo", "retry"

// A machine is what rapid acts on.
type machine struct {
	disk   *crashfs.FS
	shop   *shop
	engine *recovery.Engine
	runner *runner.Runner
	plan   recovery.Plan

	mu    sync.Mutex // guards lines
	lines []mark
	jobs  map[string]*ref
}

func (m *machine) did(what, job, step string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return count(m.lines, what, job, step) > 0
}

// open begins a process.
func (m *machine) open(t *rapid.T) {
	var err error
	m.engine, err = recovery.Open(context.Background(), "jobs", recovery.Options{CheckpointEvery: -1, WAL: wal.Options{FS: m.disk}})
	require.NoError(t, err)
	m.shop = &shop{machine: m, gates: make(map[string]chan struct{})}
	reg := runner.NewRegistry()
	again := runner.RetryFunc(func(err error, _ int) (time.Duration, bool) { return time.Minute, errors.Is(err, errFlaky) })
	for name, effect := range effects {
		runner.Add(reg, name, m.shop, runner.Settings{Effect: effect, Retry: again, KeepFailed: name == "kept"})
	}
	m.runner, err = runner.New(m.engine, reg, runner.Options{Workers: 32, MaxAttempts: most, Grace: time.Hour})
	require.NoError(t, err)
	for _, j := range m.jobs {
		j.doing, j.alive, j.begun = idle, false, false
	}
}

// end ends a process, which leaves what it works on as it is.
func end(t *rapid.T, engine *recovery.Engine, r *runner.Runner) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := r.Drain(ctx); err != nil {
		e := new(runner.DrainError)
		require.ErrorAs(t, err, &e)
		require.Empty(t, e.Running)
	}
	require.NoError(t, engine.Close())
}

func (m *machine) reopen(t *rapid.T) {
	end(t, m.engine, m.runner)
	m.open(t)
}

// crash: the old process ends as it may, in a world of its own.
func (m *machine) crash(t *rapid.T) {
	e, r := m.engine, m.runner
	m.disk = m.disk.Crash(crashtest.Policies().Draw(t, "what is left"))
	m.shop = nil
	end(t, e, r)
	m.open(t)
}

// pick draws a job, if there is one.
func (m *machine) pick(t *rapid.T, which func(*ref) bool) *ref {
	var ids []string
	for id, j := range m.jobs {
		if which(j) {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		return nil
	}
	slices.Sort(ids)
	return m.jobs[rapid.SampledFrom(ids).Draw(t, "job")]
}

func anyJob(*ref) bool { return true }

func (m *machine) submit(t *rapid.T) {
	if len(m.jobs) == 8 {
		return
	}
	j := &ref{id: fmt.Sprintf("job-%02d", len(m.jobs)), state: statemachine.Started, attempts: 1, doing: atWork, alive: true, begun: true}
	j.capability = rapid.SampledFrom(slices.Sorted(maps.Keys(effects))).Draw(t, "capability")
	j.Steps, j.End = rapid.IntRange(0, 3).Draw(t, "steps"), rapid.SampledFrom([]string{well, badly, flaky}).Draw(t, "end")
	_, err := m.runner.Submit(t.Context(), j.capability, j.task, runner.ID(j.id))
	require.NoError(t, err)
	m.jobs[j.id] = j
}

// work lets a job through a gate.
func (m *machine) work(t *rapid.T) {
	j := m.pick(t, func(j *ref) bool { return j.doing == atWork || j.doing == undoing })
	if j == nil {
		return
	}
	m.shop.mu.Lock()
	close(m.shop.gates[j.id])
	delete(m.shop.gates, j.id)
	m.shop.mu.Unlock()
	j.alive = true
	j.passed++
	if j.doing == undoing {
		j.undoes()
		return
	}
	j.works()
}

// begins: an attempt, which does not do again what is recorded.
func (j *ref) begins() {
	j.doing, j.passed, j.released, j.alive, j.begun = atWork, j.steps, false, true, true
	j.attempts++
}

func (j *ref) works() {
	switch {
	case j.passed <= j.Steps && j.held: // it was done, and can't be recorded
		j.doing = idle
	case j.passed <= j.Steps:
		j.steps++
	case j.passed == j.Steps+1: // what is beside the steps
	case j.End == badly, j.End == flaky && j.attempts == 1 && effects[j.capability] == recovery.Irreversible:
		j.fails()
	case j.End == flaky && j.attempts == 1:
		if j.doing = retrying; j.held { // whoever holds it decides
			j.doing = idle
		}
	default:
		j.state, j.held, j.doing = statemachine.Completed, false, idle
	}
}

// fails: it fails by itself, or is cancelled.
func (j *ref) fails() {
	j.state, j.held, j.released, j.alive = statemachine.Failed, false, false, true
	if j.doing = idle; j.capability != "kept" {
		j.undo()
	}
}

func (j *ref) undo() {
	j.alive = j.alive || !j.rolling
	j.doing, j.passed, j.rolling = undoing, j.undone, true
}

func (j *ref) undoes() {
	if j.passed <= j.steps {
		j.undone++
		return
	}
	j.state, j.doing, j.rolling = statemachine.RolledBack, idle, false
}

// sleep lets so much time go by that what waits for another attempt has it.
func (m *machine) sleep(*rapid.T) {
	<-time.After(2 * time.Minute)
	for _, j := range m.jobs {
		switch {
		case j.doing != retrying:
		case j.held: // the runner leaves it
			j.doing = idle
		case j.capability == "reconcilable": // it asks, and all was done
			j.state, j.doing, j.alive = statemachine.Completed, idle, true
		default:
			j.begins()
		}
	}
}

func (m *machine) cancel(t *rapid.T) {
	j := m.pick(t, anyJob)
	if j == nil {
		return
	}
	errs := make(chan error, 1)
	go func() {
		_, err := m.runner.Cancel(context.Background(), j.id, "Ada")
		errs <- err
	}()
	synctest.Wait()
	switch {
	case j.state == statemachine.Started:
		j.fails()
	case j.doing == idle:
		require.ErrorIs(t, <-errs, statemachine.ErrTransition)
	}
}

// hold is somebody who wants to look at a job first.
func (m *machine) hold(t *rapid.T) {
	j := m.pick(t, anyJob)
	if j == nil {
		return
	}
	_, err := m.engine.Hold(t.Context(), j.id, "Ada looks at it")
	if j.state != statemachine.Started || j.held {
		require.Error(t, err)
		return
	}
	require.NoError(t, err)
	j.held, j.released, j.alive = true, false, true
}

// safe tells whether a job may have another attempt: whether what it did is recorded, or may be done twice.
func (m *machine) safe(j *ref) bool {
	switch effects[j.capability] {
	case recovery.Irreversible:
		return !m.did(acted, j.id, "") && !m.did(acted, j.id, stepName(j.steps))
	case recovery.Reconcilable:
		return !m.did(acted, j.id, "")
	}
	return true
}

func (m *machine) release(t *rapid.T) {
	j := m.pick(t, m.safe)
	if j == nil {
		return
	}
	bare := rapid.Bool().Draw(t, "by the engine")
	release := m.runner.Release
	if bare {
		release = m.engine.Release
	}
	_, err := release(t.Context(), j.id, "Ada: go on")
	switch {
	case j.doing != idle && !bare:
		require.ErrorIs(t, err, runner.ErrBusy)
	case !j.held:
		require.Error(t, err)
	default:
		require.NoError(t, err)
		j.held, j.released, j.alive = false, !j.begun, true
		if !bare {
			j.begins()
		}
	}
}

func (m *machine) rollBack(t *rapid.T) {
	j := m.pick(t, anyJob)
	if j == nil {
		return
	}
	errs := make(chan error, 1)
	go func() {
		_, err := m.runner.RollBack(context.Background(), j.id, "Ada wants it back")
		errs <- err
	}()
	synctest.Wait()
	switch {
	case j.doing != idle:
		require.ErrorIs(t, <-errs, runner.ErrBusy)
	case j.state == statemachine.Completed || j.state == statemachine.Failed:
		j.undo()
	default:
		require.ErrorIs(t, <-errs, statemachine.ErrTransition)
	}
}

// decision is what the runner's own policy must say; "": the job is in no plan.
func (j *ref) decision() recovery.Action {
	effect := effects[j.capability]
	switch {
	case j.alive:
		return ""
	case j.rolling:
		return recovery.ActionRollBack
	case j.state != statemachine.Started || j.held:
		return ""
	case j.released:
		return recovery.ActionResume
	case j.attempts >= most:
		return recovery.ActionHold
	case effect == recovery.Pure || effect == recovery.Idempotent:
		return recovery.ActionResume
	case effect == recovery.Reconcilable:
		return recovery.ActionReconcile
	}
	return recovery.ActionHold
}

// makePlan makes one, and edits it.
func (m *machine) makePlan(t *rapid.T) {
	plan, err := m.runner.Plan(t.Context())
	require.NoError(t, err)
	got, want := make(map[string]recovery.Action), make(map[string]recovery.Action)
	for _, d := range plan.Decisions {
		got[d.JobID] = d.Action
		require.NotEmpty(t, d.Reason)
	}
	for id, j := range m.jobs {
		if action := j.decision(); action != "" {
			want[id] = action
		}
	}
	require.Equal(t, want, got)
	plan.Decisions = slices.DeleteFunc(plan.Decisions, func(d recovery.Decision) bool {
		return rapid.IntRange(0, 9).Draw(t, "leave it out") == 9
	})
	for i := range plan.Decisions {
		d := &plan.Decisions[i]
		if j := m.jobs[d.JobID]; j.state == statemachine.Started && rapid.Bool().Draw(t, "edit") {
			d.Action = rapid.SampledFrom(m.sensible(j)).Draw(t, "action")
			d.Reason = rapid.SampledFrom([]string{"Ada says so", "Bob says so"}).Draw(t, "reason")
		}
	}
	m.plan = plan
}

// sensible are the actions that somebody who looks at the world may choose.
func (m *machine) sensible(j *ref) []recovery.Action {
	all := []recovery.Action{recovery.ActionFail, recovery.ActionRollBack, recovery.ActionHold}
	if m.safe(j) {
		all = append(all, recovery.ActionResume)
	}
	if m.safe(j) || j.capability == "reconcilable" {
		all = append(all, recovery.ActionReconcile)
	}
	return all
}

// apply applies the newest plan, which may be old by now, and may have been applied before.
func (m *machine) apply(t *rapid.T) {
	type before struct {
		*ref
		recovery.Decision
		seq        uint64
		onlyUndone bool // since then
	}
	var all []before
	for _, d := range m.plan.Decisions {
		job, _ := m.engine.Job(d.JobID)
		b := before{m.jobs[d.JobID], d, job.Seq, job.Finished()}
		for event, err := range m.engine.History(t.Context(), d.JobID) {
			require.NoError(t, err)
			b.onlyUndone = b.onlyUndone && (event.Seq <= d.Seq || event.Type == wal.JobStepUndone)
		}
		all = append(all, b)
	}
	plan := m.plan
	go m.runner.Apply(context.Background(), plan)
	synctest.Wait()
	for _, b := range all {
		same := b.seq == b.Seq
		goesOn := b.Action == recovery.ActionRollBack &&
			(b.onlyUndone || b.ref.state == statemachine.Failed && b.failed == b.Seq && b.reason == b.Reason)
		if b.doing == idle && (same || goesOn) {
			b.applied(b.Decision, m.did(acted, b.id, ""))
		}
	}
}

// applied does as decided; did: what is beside the steps was done.
func (j *ref) applied(d recovery.Decision, did bool) {
	j.alive = j.alive || j.state == statemachine.Started
	switch d.Action {
	case recovery.ActionResume:
		j.begins()
	case recovery.ActionFail:
		j.state, j.released = statemachine.Failed, false
	case recovery.ActionHold:
		j.held, j.released = true, false
	case recovery.ActionRollBack:
		if j.state == statemachine.Started {
			j.state, j.released, j.reason, j.failed = statemachine.Failed, false, d.Reason, d.Seq
		}
		j.undo()
	case recovery.ActionReconcile:
		switch {
		case did:
			j.state, j.released = statemachine.Completed, false
		case j.attempts < most:
			j.begins()
		default:
			j.held, j.released = true, false
		}
	}
}

// check holds everything against the reference.
func (m *machine) check(t *rapid.T) {
	synctest.Wait()
	wait := make(map[string]bool)
	for id, j := range m.jobs {
		job, known := m.engine.Job(id)
		require.True(t, known)
		require.Equal(t, []any{j.state, j.held, j.attempts, "", j.rolling, j.steps - j.undone},
			[]any{job.State, job.Held != "", job.Attempts, job.Parked, job.RollingBack, job.Steps}, "%s: %+v", job, j)
		steps, err := m.engine.Steps(t.Context(), id)
		require.NoError(t, err)
		require.Len(t, steps, j.steps, "%s", job)
		for i, s := range steps {
			require.Equal(t, []any{stepName(i), i >= j.steps-j.undone}, []any{s.Name, s.Undone}, "%s", job)
		}
		if j.doing == atWork || j.doing == undoing {
			wait[id] = true
		}
		if x := effects[j.capability]; x == recovery.Irreversible || x == recovery.Reconcilable {
			for i := range j.Steps + 1 {
				require.LessOrEqual(t, count(m.lines, acted, id, stepName(i)), 1, "%s: %v", job, m.lines)
			}
			require.LessOrEqual(t, count(m.lines, acted, id, ""), 1, "%s: %v", job, m.lines)
		}
	}
	m.shop.mu.Lock()
	defer m.shop.mu.Unlock()
	for id := range wait {
		require.Contains(t, m.shop.gates, id, "%+v", m.jobs[id])
	}
	require.Len(t, m.shop.gates, len(wait))
}

// day is a property: whatever is done in whatever order, every job is where it must be.
func day(t *rapid.T) {
	rapid.SyncTest(t, func(t *rapid.T) {
		m := &machine{disk: crashfs.New(), jobs: make(map[string]*ref)}
		m.open(t)
		defer func() { end(t, m.engine, m.runner) }()
		t.Repeat(map[string]func(*rapid.T){
			"": m.check, "submit": m.submit, "work": m.work, "work more": m.work, "work yet more": m.work, "sleep": m.sleep,
			"cancel": m.cancel, "hold": m.hold, "release": m.release, "roll back": m.rollBack,
			"plan": m.makePlan, "apply": m.apply, "plan and apply": in(m.makePlan, m.apply),
			"apply, crash and apply again": in(m.apply, m.check, m.work, m.check, m.crash, m.check, m.apply),
			"crash":                        m.crash, "reopen": m.reopen,
		})
	})
}

// in is actions in order.
func in(all ...func(*rapid.T)) func(*rapid.T) {
	return func(t *rapid.T) {
		for _, do := range all {
			do(t)
		}
	}
}

// A day is a few milliseconds, and much has to come together for some of what can go wrong.
func TestR1_R2_S1_runner_is_the_reference(t *testing.T) {
	for i := range 8 {
		t.Run(fmt.Sprint(i), func(t *testing.T) { rapid.Check(t, day) })
	}
}

func FuzzRunner(f *testing.F) { crashtest.Fuzz(f, day) }
