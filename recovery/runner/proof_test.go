package runner_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/recovery/crashtest"
	"github.com/jobwal/jobwal/recovery/runner"
	"github.com/jobwal/jobwal/recovery/runner/runnertest"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// What a line of the ledger says.
const (
	began    = "begin"    // Execute was called, for the Attempt-th time
	acted    = "effect"   // a step was done, or ("") what is beside the steps
	returned = "returned" // Step returned: the step is recorded
	undid    = "undo"     // Undo of a step, or of the rest
	told     = "told"     // somebody was told that the job is in state Step
	found    = "found"    // a process found the step recorded when it was opened
	redone   = "redone"   // a process found the step's undo recorded when it was opened
)

type mark struct {
	What, Job, Step string
	Attempt         int
}

type (
	outside = runnertest.Ledger[mark]
	life    = runnertest.Life[mark]
)

// count counts lines of one kind, of a job and a step.
func count(lines []mark, what, job, step string) (n int) {
	for _, l := range lines {
		if l.What == what && l.Job == job && l.Step == step {
			n++
		}
	}
	return n
}

// A chore is the args of a job.
type chore struct {
	Job   string   `json:"-"`               // whose they are
	Steps []string `json:"steps,omitempty"` // "left/a": in a branch; those of one run of them are beside each other
	End   string   `json:"end,omitempty"`
}

// How a chore ends, after it has done all it does.
const (
	well      = ""
	badly     = "badly"
	never     = "invalid"   // Validate fails
	transient = "transient" // the first attempt fails, before it has done anything
	flaky     = "flaky"     // the first attempt fails after its steps, with an error that the capability tries again after
	flakyLate = "late"      // the first attempt fails so when it has done all
	waiting   = "waiting"   // the first attempt waits until its context ends
	deaf      = "deaf"      // the first attempt's first step waits for the world, whatever its context says
)

var errFlaky, errBad = errors.New("flaky"), errors.New("bad")

// A flaw is what is wrong with a saboteur.
type flaw string

const (
	none          flaw = ""
	actsFirst     flaw = "records the start after it acts"
	asksFirst     flaw = "records another attempt after it acts"
	recordsFirst  flaw = "records a step before it is done"
	forgetsSteps  flaw = "does a step again that is recorded"
	undoesForward flaw = "undoes the oldest step first"
	undoesAtOnce  flaw = "undoes all steps before the first undo is recorded"
	writesLate    flaw = "lets an attempt write that is over"
)

// A worker does chores, and tells the ledger.
type worker struct {
	*outside
	flaw
	write func(recovery.Command) error // past the runner, as only a saboteur does
	world <-chan struct{}              // closed when the world answers who waits for it
	looks bool                         // whether a step was done, before it does it
}

func (c chore) of(ctx context.Context) chore {
	job, _ := runner.JobOf(ctx)
	c.Job = job.ID
	return c
}

func (w worker) Validate(ctx context.Context, c chore) error {
	c = c.of(ctx)
	if c.End == never {
		return errBad
	}
	if w.flaw == actsFirst {
		return w.Do(mark{began, c.Job, "", 1})
	}
	return nil
}

func (w worker) Execute(ctx context.Context, c chore) (int, error) {
	c = c.of(ctx)
	job, _ := runner.JobOf(ctx)
	if w.flaw != actsFirst && (w.flaw != asksFirst || job.Attempts == 1) {
		if err := w.Do(mark{began, c.Job, "", job.Attempts}); err != nil {
			return 0, err
		}
	}
	if c.End == transient && job.Attempts == 1 {
		return 0, runner.Transient(errBad)
	}
	for _, beside := range c.groups() {
		if err := w.group(ctx, c, beside, job.Attempts); err != nil {
			return 0, err
		}
	}
	if err := runner.Progress(ctx, job.Attempts); err != nil {
		return 0, err
	}
	switch {
	case c.End == flaky && job.Attempts == 1:
		return 0, errFlaky
	case c.End == waiting && job.Attempts == 1:
		select {
		case <-ctx.Done():
			return 0, context.Cause(ctx)
		case <-w.world:
		}
	}
	if err := w.act(c, "", job.Attempts); err != nil {
		return 0, err
	}
	switch {
	case c.End == badly:
		return 0, errBad
	case c.End == flakyLate && job.Attempts == 1:
		return 0, errFlaky
	}
	return job.Attempts, nil
}

// A part is a step of a chore.
type part struct {
	scope, name string
	full        string // as it is recorded
	first       bool
}

// groups are the steps that are done beside each other, those of branches, and the others alone.
func (c chore) groups() (all [][]part) {
	branched := false
	for i, step := range c.Steps {
		p := part{name: step, full: step, first: i == 0}
		if n := strings.Count(" "+strings.Join(c.Steps[:i], "  ")+" ", " "+step+" "); n > 0 {
			p.full = fmt.Sprintf("%s#%d", step, n+1)
		}
		scope, name, ok := strings.Cut(step, "/")
		if ok {
			p.scope, p.name = scope, name
		}
		if ok && branched {
			all[len(all)-1] = append(all[len(all)-1], p)
		} else {
			all = append(all, []part{p})
		}
		branched = ok
	}
	return all
}

// group does parts that all begin before the first of them ends. By the clock, so that it is in the same order each time.
func (w worker) group(ctx context.Context, c chore, beside []part, attempt int) error {
	if beside[0].scope == "" {
		return w.step(ctx, c, beside[0], attempt, 0)
	}
	var all sync.WaitGroup
	errs := make([]error, len(beside))
	for i, p := range beside {
		all.Go(func() { errs[i] = w.step(runner.Branch(ctx, p.scope), c, p, attempt, time.Duration(i+1)*time.Second) })
	}
	all.Wait()
	return errors.Join(errs...)
}

func (w worker) step(ctx context.Context, c chore, p part, attempt int, wait time.Duration) error {
	act := func(ctx context.Context) (string, error) {
		if wait > 0 {
			select {
			case <-time.After(wait):
			case <-ctx.Done():
				return "", context.Cause(ctx)
			}
		}
		if c.End == deaf && attempt == 1 && p.first {
			<-w.world
		}
		return p.full, w.act(c, p.full, attempt)
	}
	if err := w.recorded(ctx, c, p, act); err != nil {
		return err
	}
	w.Note(mark{returned, c.Job, p.full, attempt})
	return nil
}

// recorded is Step, if there is no flaw.
func (w worker) recorded(ctx context.Context, c chore, p part, act func(context.Context) (string, error)) error {
	switch w.flaw {
	case recordsFirst:
		fresh := false
		_, err := runner.Step(ctx, p.name, func(context.Context) (string, error) { fresh = true; return p.full, nil })
		if err == nil && fresh {
			_, err = act(ctx)
		}
		return err
	case forgetsSteps:
		if _, err := act(ctx); err != nil {
			return err
		}
		_, err := runner.Step(ctx, p.name, func(context.Context) (string, error) { return p.full, nil })
		return err
	case writesLate:
		_, err := act(ctx)
		if err != nil {
			return err
		}
		return w.write(recovery.Step(c.Job, p.full, p.full))
	}
	out, err := runner.Step(ctx, p.name, act)
	if err == nil && out != p.full {
		err = fmt.Errorf("step %q of job %q returns the output %q", p.full, c.Job, out)
	}
	return err
}

// act does something to the world.
func (w worker) act(c chore, step string, attempt int) error {
	if w.looks && step != "" && count(w.Lines(), acted, c.Job, step) > 0 {
		return nil
	}
	return w.Do(mark{acted, c.Job, step, attempt})
}

func (w worker) Undo(ctx context.Context, c chore, done runner.Done) error {
	c = c.of(ctx)
	var full string
	if done.Step != "" && (done.Decode(&full) != nil || full != done.Step) {
		return fmt.Errorf("step %q of job %q is to be undone with the output %s", done.Step, c.Job, done.Output)
	}
	switch n := len(c.Steps); {
	case w.flaw == undoesForward && done.Step != "":
		i := slices.Index(c.Steps, done.Step)
		return w.Do(mark{undid, c.Job, c.Steps[n-1-i], 0})
	case w.flaw == undoesAtOnce && done.Step == c.Steps[n-1]:
		for _, step := range slices.Backward(c.Steps) {
			if err := w.Do(mark{undid, c.Job, step, 0}); err != nil {
				return err
			}
		}
		return nil
	}
	return w.Do(mark{undid, c.Job, done.Step, 0})
}

// Reconcile looks at what is beside the steps: those are looked for when they are done.
func (w worker) Reconcile(ctx context.Context, c chore) (runner.Found[int], error) {
	c = c.of(ctx)
	for _, l := range slices.Backward(w.Lines()) {
		if l.Job == c.Job && l.What == acted && l.Step == "" {
			return runner.Happened(l.Attempt), nil
		}
	}
	if w.flaw == asksFirst {
		return runner.DidNotHappen[int](), w.Do(mark{began, c.Job, "", 0})
	}
	return runner.DidNotHappen[int](), nil
}

// The capabilities. Those of "kept" stay failed.
var effects = map[string]recovery.Effect{
	"pure": recovery.Pure, "idempotent": recovery.Idempotent, "reconcilable": recovery.Reconcilable,
	"irreversible": recovery.Irreversible, "kept": recovery.Irreversible,
}

func (w worker) register(reg *runner.Registry) {
	for name, effect := range effects {
		w.looks = effect == recovery.Reconcilable
		again := runner.RetryFunc(func(err error, attempt int) (time.Duration, bool) {
			return time.Minute, errors.Is(err, errFlaky) || errors.Is(err, runner.ErrTransient)
		})
		runner.Add(reg, name, w, runner.Settings{Effect: effect, Retry: again, KeepFailed: name == "kept"})
	}
}

// A tale is what the log says of a job.
type tale struct {
	job      statemachine.Job
	attempts int
	steps    []string       // recorded, in order
	by       map[string]int // in which attempt
	undone   []string
}

func read(ctx context.Context, e *recovery.Engine, job statemachine.Job) (tale, error) {
	s := tale{job: job, by: make(map[string]int)}
	for event, err := range e.History(ctx, job.ID) {
		if err != nil {
			return s, err
		}
		name := recovery.StepName(event)
		switch event.Type {
		case wal.JobStarted, wal.JobResumed:
			s.attempts++
		case wal.JobStep:
			s.steps, s.by[name] = append(s.steps, name), s.attempts
		case wal.JobStepUndone:
			if name != "#rollback" {
				s.undone = append(s.undone, name)
			}
		case wal.JobProgress:
			if by := string(event.Output); by != fmt.Sprint(s.attempts) {
				return s, fmt.Errorf("%s: attempt %d is in progress, and attempt %s tells it", job, s.attempts, by)
			}
		}
	}
	return s, nil
}

// fits holds the log of a job against the ledger, at any instant.
func (s tale) fits(lines []mark) error {
	if n := count(lines, began, s.job.ID, ""); n > s.attempts {
		return fmt.Errorf("%s: its work has begun %d times, and %d beginnings are recorded", s.job, n, s.attempts)
	}
	for _, l := range lines {
		if l.Job != s.job.ID {
			continue
		}
		switch by := s.by[l.Step]; {
		case l.What == began && l.Attempt > s.attempts:
			return fmt.Errorf("%s: attempt %d has begun, and %d are recorded", s.job, l.Attempt, s.attempts)
		case l.What == returned && by == 0:
			return fmt.Errorf("%s: Step returned, and %q is not recorded", s.job, l.Step)
		case l.What == returned && by > l.Attempt:
			return fmt.Errorf("%s: step %q of attempt %d is recorded in attempt %d", s.job, l.Step, l.Attempt, by)
		case l.What == told && l.Step != string(s.job.State) && s.job.State != statemachine.RolledBack:
			return fmt.Errorf("%s: somebody was told that it is %s", s.job, l.Step)
		}
	}
	for _, step := range s.steps {
		if count(lines, acted, s.job.ID, step) == 0 {
			return fmt.Errorf("%s: step %q is recorded, and was not done", s.job, step)
		}
	}
	return errors.Join(s.onceRecorded(lines), s.backwards(lines))
}

// onceRecorded: what is recorded is not done again.
func (s tale) onceRecorded(lines []mark) error {
	known := make(map[mark]bool)
	for _, l := range lines {
		if l.Job != s.job.ID {
			continue
		}
		switch l.What {
		case found, redone:
			known[mark{What: l.What, Step: l.Step}] = true
		case returned:
			known[mark{What: found, Step: l.Step}] = true
		case acted:
			if known[mark{What: found, Step: l.Step}] {
				return fmt.Errorf("%s: step %q was recorded, and done again", s.job, l.Step)
			}
		case undid:
			if known[mark{What: redone, Step: l.Step}] {
				return fmt.Errorf("%s: the undo of step %q was recorded, and done again", s.job, l.Step)
			}
		}
	}
	return nil
}

// backwards: undo goes from the newest step to the oldest and then to the rest, each recorded before the next, and that it is to
// be, and the job's end, before them.
func (s tale) backwards(lines []mark) error {
	reversed := slices.Clone(s.steps)
	slices.Reverse(reversed)
	if n := len(s.undone); n > len(reversed) || !slices.Equal(s.undone, reversed[:n]) {
		return fmt.Errorf("%s: did %q, and undid %q", s.job, s.steps, s.undone)
	}
	for _, l := range lines {
		if l.Job != s.job.ID || l.What != undid {
			continue
		}
		switch {
		case !s.job.Finished():
			return fmt.Errorf("%s: undone while it goes on", s.job)
		case !s.job.RollingBack && s.job.State != statemachine.RolledBack:
			return fmt.Errorf("%s: %q was undone, and it does not say that it is to be", s.job, l.Step)
		}
		due := slices.Index(append(reversed, ""), l.Step)
		if due < 0 || due > len(s.undone) {
			return fmt.Errorf("%s: %q was undone when only the undo of %q was recorded", s.job, l.Step, s.undone)
		}
	}
	return nil
}

// ends is what must be when nothing goes on any more.
func (s tale) ends(lines []mark) error {
	id, did := s.job.ID, count(lines, acted, s.job.ID, "")
	if s.job.RollingBack || s.job.State != statemachine.RolledBack &&
		slices.ContainsFunc(lines, func(l mark) bool { return l.Job == id && l.What == undid }) {
		return fmt.Errorf("%s: it is half undone, and nobody goes on with it", s.job)
	}
	switch s.job.State {
	case statemachine.Completed:
		if did == 0 {
			return fmt.Errorf("%s: it was not done", s.job)
		}
	case statemachine.RolledBack:
		for _, step := range append(slices.Clone(s.steps), "") {
			if s.attempts > 0 && count(lines, undid, id, step) == 0 || len(s.undone) < len(s.steps) {
				return fmt.Errorf("%s: step %q was not undone", s.job, step)
			}
		}
	case statemachine.Failed:
		if s.attempts > 0 && s.job.Capability != "kept" || s.job.Error == "" {
			return fmt.Errorf("%s: it is not rolled back", s.job)
		}
	default:
		if s.job.Held == "" {
			return fmt.Errorf("%s: it has come to no end", s.job)
		}
	}
	if effects[s.job.Capability] != recovery.Irreversible && effects[s.job.Capability] != recovery.Reconcilable {
		return nil
	}
	for _, l := range lines {
		if n := count(lines, acted, id, l.Step); l.Job == id && n > 1 {
			return fmt.Errorf("%s: %q was done %d times", s.job, l.Step, n)
		}
	}
	return nil
}

// hold holds all jobs against the ledger.
func hold(ctx context.Context, p life, more ...func(tale, []mark) error) error {
	lines := p.Ledger.Lines()
	for _, l := range lines {
		if _, known := p.Engine.Job(l.Job); !known {
			return fmt.Errorf("%v, of a job that is not in the log", l)
		}
	}
	for job := range p.Engine.Jobs(projection.Query{}) {
		s, err := read(ctx, p.Engine, job)
		if err != nil {
			return err
		}
		for _, check := range append(more, tale.fits) {
			if err := check(s, lines); err != nil {
				return fmt.Errorf("%w\nrecorded %q, undone %q\n%v", err, s.steps, s.undone, lines)
			}
		}
	}
	return nil
}

// opened notes what a process finds in the log.
func opened(ctx context.Context, p life) error {
	if err := hold(ctx, p); err != nil {
		return err
	}
	return hold(ctx, p, func(s tale, lines []mark) error {
		for _, step := range s.steps {
			p.Ledger.Note(mark{found, s.job.ID, step, 0})
		}
		for _, step := range s.undone {
			p.Ledger.Note(mark{redone, s.job.ID, step, 0})
		}
		return nil
	})
}

// A play is a workload of the proof.
type play struct {
	name  string
	does  func(ctx context.Context, p life, answer func()) error // answer: see worker.world
	base  *crashfs.FS
	plans recovery.Policy
}

// crashes are those of a play.
func (x play) crashes(f flaw, policies ...recovery.Policy) runnertest.Crashes[mark] {
	var engine *recovery.Engine
	var answer func()
	c := runnertest.Crashes[mark]{
		Register: func(reg *runner.Registry, ledger *outside) {
			world := make(chan struct{})
			answer = sync.OnceFunc(func() { close(world) })
			worker{outside: ledger, flaw: f, world: world, write: func(c recovery.Command) error {
				_, err := engine.Do(context.Background(), c)
				return err
			}}.register(reg)
		},
		Work: func(ctx context.Context, p life) error {
			engine = p.Engine
			defer answer()
			return x.does(ctx, p, answer)
		},
		Opened: func(ctx context.Context, p life) error {
			engine = p.Engine
			answer()
			return opened(ctx, p)
		},
		Then:     decide,
		Check:    func(ctx context.Context, p life) error { return hold(ctx, p, tale.ends) },
		Base:     x.base,
		Policies: policies,
		Pictures: []crashfs.Policy{crashfs.SyncedOnly, crashfs.Everything},
		Budget:   lives,
	}
	if x.plans != nil {
		c.Policies = append(c.Policies, x.plans)
	}
	return c
}

// lives are tried of each play, which is every death of the first life, and some hundred of the next one's. Of all of those, some
// 2,000 for each play, none has shown more.
const lives = 500

// decide is somebody who looks at the world, and lets what was not done be done, if it can be told.
func decide(ctx context.Context, p life) error {
	for job := range p.Engine.Jobs(projection.Query{Held: new(true)}) {
		s, err := read(ctx, p.Engine, job)
		if err != nil {
			return err
		}
		lines := p.Ledger.Lines()
		if slices.ContainsFunc(lines, func(l mark) bool {
			return l.Job == job.ID && l.What == acted && !slices.Contains(s.steps, l.Step)
		}) {
			continue
		}
		if _, err := p.Runner.Release(ctx, job.ID, "Ada: it was not done"); err != nil {
			return err
		}
	}
	return nil
}

// submits submits chores, and waits for each; what came of it is told.
func submits(capability string, all ...chore) func(context.Context, life, func()) error {
	return func(ctx context.Context, p life, _ func()) error {
		for i, c := range all {
			if err := submit(ctx, p, capability, fmt.Sprint("job-", i), c); err != nil {
				return err
			}
			if err := wait(ctx, p, fmt.Sprint("job-", i)); err != nil {
				return err
			}
		}
		return nil
	}
}

func submit(ctx context.Context, p life, capability, id string, c chore) error {
	_, err := p.Runner.Submit(ctx, capability, c, runner.ID(id))
	return err
}

func wait(ctx context.Context, p life, id string) error {
	job, err := p.Runner.Wait(ctx, id)
	if err == nil && job.Finished() {
		p.Ledger.Note(mark{told, id, string(job.State), 0})
	}
	return err
}

var plays = []play{
	{name: "a loop, pure", does: submits("pure", chore{Steps: []string{"a", "b", "a"}})},
	{name: "branches, reconcilable", does: submits("reconcilable", chore{Steps: []string{"a", "left/a", "right/a", "b", "left/a"}})},
	{name: "steps, irreversible", does: submits("irreversible", chore{Steps: []string{"a", "b"}})},
	{name: "retries", does: submits("idempotent", chore{Steps: []string{"a"}, End: flaky}, chore{End: transient})},
	{name: "retries, irreversible", does: submits("irreversible", chore{Steps: []string{"a"}, End: transient})},
	{name: "retries, reconcilable", does: submits("reconcilable", chore{Steps: []string{"a"}, End: flaky}, chore{End: flakyLate})},
	{name: "fails, irreversible", does: submits("irreversible", chore{Steps: []string{"a", "b", "c"}, End: badly})},
	{name: "fails, idempotent", does: submits("idempotent", chore{Steps: []string{"left/a", "right/a"}, End: badly})},
	{name: "fails and is kept", does: submits("kept", chore{Steps: []string{"a"}, End: badly})},
	{name: "is not valid", does: submits("irreversible", chore{End: never}, chore{})},
	{name: "is cancelled", does: cancelled},
	{name: "is taken back", does: takenBack("irreversible", chore{Steps: []string{"a", "left/b", "c"}})},
	{name: "is taken back, as it failed", does: takenBack("kept", chore{Steps: []string{"a", "b"}, End: badly})},
	{name: "is taken back, and had no steps", does: takenBack("reconcilable", chore{})},
	{name: "is taken back, not valid", does: takenBack("irreversible", chore{End: never})},
	{name: "drain", does: drained},
	{name: "is overtaken", does: overtaken},
	{name: "is released while it works", does: letGoOn},
	{name: "a plan is applied", does: applied, base: leftBehind(), plans: recovery.PolicyFunc(asNamed)},
}

// takenBack: what has ended, well or badly, is rolled back because somebody wants it.
func takenBack(capability string, c chore) func(context.Context, life, func()) error {
	return func(ctx context.Context, p life, _ func()) error {
		if err := submits(capability, c)(ctx, p, nil); err != nil {
			return err
		}
		_, err := p.Runner.RollBack(ctx, "job-0", "Ada wants it back")
		return err
	}
}

// letGoOn: while an attempt does not come back, somebody holds the job, and then lets it go on, past the runner.
func letGoOn(ctx context.Context, p life, answer func()) error {
	if err := submit(ctx, p, "irreversible", "job", chore{Steps: []string{"a"}, End: deaf}); err != nil {
		return err
	}
	synctest.Wait()
	for _, c := range []recovery.Command{recovery.Hold("job", "it hangs"), recovery.Release("job", "Ada: let it go on")} {
		if _, err := p.Engine.Do(ctx, c); err != nil {
			return err
		}
	}
	answer()
	return wait(ctx, p, "job")
}

// leftBehind is what a process left behind that had four jobs at work, and did nothing yet. They are named after what is to be done with
// them; the one that is resumed comes last, so that it is worked on when all else is done.
func leftBehind() *crashfs.FS {
	ctx, disk := context.Background(), crashfs.New()
	e, err := recovery.Open(ctx, "jobs", recovery.Options{WAL: wal.Options{FS: disk}})
	for _, id := range []string{"hold", "fail", "roll_back", "reconcile"} {
		capability := map[string]string{"hold": "irreversible", "fail": "kept"}[id] // what is to fail is not to be undone
		capability = cmp.Or(capability, "reconcilable")
		if err == nil {
			_, err = e.Do(ctx, recovery.Submit(recovery.Submission{JobID: id, Capability: capability, Args: chore{Steps: []string{"a"}}}),
				recovery.Validate(id), recovery.Start(id))
		}
	}
	if err = cmp.Or(err, e.Close()); err != nil {
		panic(err)
	}
	return disk
}

func asNamed(ev recovery.Evidence) (recovery.Action, string, bool) {
	action := recovery.Action(ev.JobID)
	return action, "as it is named", action == recovery.ActionFail || action == recovery.ActionRollBack
}

// applied is a first life that recovers what another one left.
func applied(ctx context.Context, p life, answer func()) error {
	answer()
	applied, err := p.Runner.Recover(ctx, recovery.PolicyFunc(asNamed))
	if err := cmp.Or(err, applied.Err()); err != nil {
		return err
	}
	return wait(ctx, p, "reconcile")
}

// cancelled: one that is at work, and one that waits for the only worker.
func cancelled(ctx context.Context, p life, _ func()) error {
	if err := submit(ctx, p, "idempotent", "at work", chore{Steps: []string{"a", "b"}, End: waiting}); err != nil {
		return err
	}
	synctest.Wait()
	if err := submit(ctx, p, "idempotent", "waits", chore{}); err != nil {
		return err
	}
	for _, id := range []string{"waits", "at work"} {
		if _, err := p.Runner.Cancel(ctx, id, "Ada"); err != nil {
			return err
		}
		if err := wait(ctx, p, id); err != nil {
			return err
		}
	}
	return nil
}

// drained: one is at work when there is no more time, and one waits.
func drained(ctx context.Context, p life, _ func()) error {
	if err := submit(ctx, p, "reconcilable", "at work", chore{Steps: []string{"a"}, End: waiting}); err != nil {
		return err
	}
	synctest.Wait()
	if err := submit(ctx, p, "irreversible", "waits", chore{Steps: []string{"a"}}); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if err := p.Runner.Drain(ctx); err != nil && !errors.As(err, new(*runner.DrainError)) {
		return err
	}
	return nil
}

// overtaken: while an attempt does not come back, somebody holds the job, releases it, and makes another one elsewhere.
func overtaken(ctx context.Context, p life, answer func()) error {
	if err := submit(ctx, p, "pure", "job", chore{Steps: []string{"a"}, End: deaf}); err != nil {
		return err
	}
	synctest.Wait()
	for _, c := range []recovery.Command{recovery.Hold("job", "it hangs"), recovery.Release("job", "Ada does it"), recovery.Resume("job")} {
		if _, err := p.Engine.Do(ctx, c); err != nil {
			return err
		}
	}
	answer()
	synctest.Wait()
	return nil
}

// The runner is killed at each operation of each play on the disk and on the world, and so before and after each event, and then
// again in its recovery. What is irreversible, or can be asked about, is done once at most; nothing that anybody was told is
// lost; a step that is recorded was done, and is not done again; undo goes backwards, each recorded before the next, and comes to its
// end, whoever wanted it; a plan that is applied again does nothing; and in the end every job has ended, or is held for a reason.
func TestR1_R3_S1_runner_killed_at_every_event(t *testing.T) {
	for _, x := range plays {
		t.Run(x.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { x.crashes(none).Run(t) })
		})
	}
}

// A saboteur is a runner that does one thing as it must not, and the play that shows it.
type saboteur struct {
	name     string
	play     string
	flaw     flaw
	policies []recovery.Policy
	disk     func(wal.FS) wal.FS
	says     string // what is found out
}

var saboteurs = []saboteur{
	{name: string(actsFirst), play: "steps, irreversible", flaw: actsFirst, says: "its work has begun"},
	{name: string(asksFirst), play: "branches, reconcilable", flaw: asksFirst, says: "its work has begun"},
	{name: "has a start durable after it acts", play: "steps, irreversible", disk: late(wal.JobStarted), says: "lost"},
	{name: "has another attempt durable after it acts", play: "retries", disk: late(wal.JobResumed), says: "lost"},
	{name: "has a step durable after it goes on", play: "steps, irreversible", disk: late(wal.JobStep), says: "lost"},
	{name: "has an undo durable after it goes on", play: "fails, irreversible", disk: late(wal.JobStepUndone), says: "lost"},
	{name: "has the decision to undo durable after it undoes", play: "is taken back, and had no steps", disk: late(wal.JobStepUndone), says: "lost"},
	{name: string(recordsFirst), play: "steps, irreversible", flaw: recordsFirst, says: "is recorded, and was not done"},
	{name: string(forgetsSteps), play: "a loop, pure", flaw: forgetsSteps, says: "was recorded, and done again"},
	{name: string(undoesForward), play: "fails, irreversible", flaw: undoesForward, says: "was undone when only"},
	{name: string(undoesAtOnce), play: "fails, irreversible", flaw: undoesAtOnce, says: "was undone when only"},
	{name: "resumes what is irreversible", play: "steps, irreversible", says: "was done 2 times",
		policies: []recovery.Policy{recovery.PolicyFunc(func(recovery.Evidence) (recovery.Action, string, bool) {
			return recovery.ActionResume, "on with it", true
		})}},
	{name: string(writesLate), play: "is overtaken", flaw: writesLate, says: "of attempt 1 is recorded in attempt 2"},
}

func TestProofCatchesSaboteurs(t *testing.T) {
	for _, s := range saboteurs {
		t.Run(s.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				i := slices.IndexFunc(plays, func(x play) bool { return x.name == s.play })
				c := plays[i].crashes(s.flaw, s.policies...)
				c.Disk = s.disk
				report, failed := crashtest.Fails(func(t rapid.TB) { c.Run(t) })
				if !failed || !strings.Contains(report, s.says) {
					t.Errorf("it was to be found out that %q, and this was:\n%s", s.says, report)
				}
			})
		})
	}
}

// late is a disk on which events of one type are not synced when they are written, but with whatever is written next.
func late(on wal.EventType) func(wal.FS) wal.FS {
	return func(disk wal.FS) wal.FS { return lateFS{disk, on} }
}

type lateFS struct {
	wal.FS
	on wal.EventType
}

func (l lateFS) OpenFile(name string, flag int, perm fs.FileMode) (wal.File, error) {
	f, err := l.FS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return &lateFile{File: f, on: l.on}, nil
}

type lateFile struct {
	wal.File
	on   wal.EventType
	held bool // the newest that was written is such an event
}

func (f *lateFile) WriteAt(p []byte, off int64) (int, error) {
	f.held = bytes.Contains(p, fmt.Appendf(nil, "%q:%q", "type", f.on))
	return f.File.WriteAt(p, off)
}

func (f *lateFile) Sync() error {
	if f.held {
		return nil
	}
	return f.File.Sync()
}
