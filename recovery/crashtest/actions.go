package crashtest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// Actions are an engine on a disk that may lose power at any operation, what must be true of it, and what can be done to
// it: a state machine test, ready for rapid's Repeat.
//
//	func TestMyProgram(t *testing.T) {
//		rapid.Check(t, func(t *rapid.T) {
//			rapid.SyncTest(t, func(t *rapid.T) {
//				a := &crashtest.Actions{Idle: time.Second}
//				a.Open(t)
//				actions := a.Map()
//				actions["my own"] = func(t *rapid.T) { a.Do(t, …) }
//				t.Repeat(actions)
//			})
//		})
//	}
//
// What was acknowledged is in a [Reference]. After each action, and after each recovery, all that the engine says is held
// against it: acknowledged ⊑ recovered ⊑ submitted, where the two differ by the one group that was in flight when the power
// went, and that group is there as a whole or not at all. Jobs, payloads, lists, histories, interrupted jobs, counts, and
// what projections are told are those of the events; what was seen once stays as it was.
//
// An Actions is used by one goroutine, for one run of a property. It belongs into a bubble of testing/synctest, as above: an
// idle log writes a mark after some milliseconds, so that elsewhere the same draws need not lead to the same operations,
// and rapid can reproduce less. It works outside, too.
type Actions struct {
	// Dir is the engine's directory. Default: "jobs".
	Dir string
	// Options are those of each opening. WAL.FS is not used, and WAL.SegmentBytes is 2 KiB by default, so that segments
	// come and go. Projections are given to one engine after the other, each of which folds the whole log anew; see the
	// field of that name.
	Options recovery.Options
	// Projections returns what each opening has in addition to Options.Projections. Default: none.
	Projections func() []projection.Projection
	// Disk is what Open finds. Default: an empty disk. It is set anew by every crash.
	Disk *crashfs.FS
	// Wrap is called at each opening with the disk, that is, with the power switch before it, and returns what the engine is
	// to see of it: a [Saboteur], or faults of a schedule. Default: the disk itself. With one in place, an engine whose log
	// has failed is taken for one whose power went, and wal.ErrNoSpace for a fair answer.
	Wrap func(disk wal.FS) wal.FS
	// OpenEngine is called at each opening; opts.WAL.FS is the disk. Default: recovery.Open. It is the place for a log of
	// another kind, by recovery.OpenLog.
	OpenEngine func(ctx context.Context, dir string, opts recovery.Options) (*recovery.Engine, error)
	// OnOpen is called with each engine, once it is known to be what it should be: a program around the engine starts here.
	// What it does to the engine's jobs, it must do later, by Do. Default: none.
	OnOpen func(*recovery.Engine)
	// Check is called whenever the engine was held against the Reference, which it must not change. Default: none.
	Check func(t *rapid.T, engine *recovery.Engine, ref *Reference)
	// Checkpoint is called by the action of that name, which is there only if this is set, such as to
	// (*recovery.Engine).Checkpoint. Power may go while it runs; any other error is a failure.
	Checkpoint func(*recovery.Engine, context.Context) error
	// Compact, if more than 0, makes the action of that name, which forgets jobs that ended as long ago as up to this by the
	// clock of Options.WAL.Now. Projections that are not to stand in its way are a projection.Snapshotter, or named in
	// Options.AllowIncomplete. Options.Retain must be 0: it may forget between any two looks at the engine.
	Compact time.Duration
	// Step draws what a step of a type says: its capability, its payload, its text. Default: anything that the engine takes, by
	// [Capabilities], [Payloads] and [Texts].
	Step func(t *rapid.T, id string, on wal.EventType) Step
	// Idle is how long the action of that name sleeps. Default 0: there is no such action. Set it in a bubble, where sleeping
	// takes no time; there it also says that nothing but commands writes, and what is refused is seen to write nothing.
	Idle time.Duration

	faulty  *crashfs.Faulty
	engine  *recovery.Engine
	ref     *Reference
	unknown []Step               // the group that was in flight when the power went; nil when there was none
	epoch   uint64               // of the engine; 0 while it is not known
	times   map[uint64]time.Time // of the events, by seq, as they were first seen
	first   uint64               // the log starts here
	forgets bool                 // when the power went, jobs were being forgotten
	told    *witness
	checked uint64 // up to here the events of this opening were read and found right
	clean   bool   // the last engine was closed, and said so
}

// Open opens the engine on what Disk holds, and holds it against it. It closes the engine when t ends, so that a bubble can
// end. Events that are on the disk before are taken for acknowledged, and have to be those of correct engines.
func (a *Actions) Open(t *rapid.T) {
	t.Helper()
	if a.Disk == nil {
		a.Disk = crashfs.New()
	}
	if a.Dir == "" {
		a.Dir = "jobs"
	}
	if a.Options.WAL.SegmentBytes == 0 {
		a.Options.WAL.SegmentBytes = 2048
	}
	if a.OpenEngine == nil {
		a.OpenEngine = recovery.Open
	}
	if a.Step == nil {
		a.Step = looseStep
	}
	if a.Options.Retain > 0 {
		t.Fatalf("crashtest: Options.Retain is set: use Actions.Compact")
	}
	t.Cleanup(func() { a.close() })
	a.open(t, false)
}

func (a *Actions) close() {
	if a.engine != nil {
		_ = a.engine.Close() // where it matters whether that worked, the action "reopen" looks
	}
}

// Engine is the engine that is open now; each crash, and the action "reopen", put another in its place.
func (a *Actions) Engine() *recovery.Engine { return a.engine }

// Reference is what was acknowledged so far. It must not be changed.
func (a *Actions) Reference() *Reference { return a.ref }

// Faulty is the disk's power switch: Stop is a power cut, CrashAfter one that is to come. What the engine sees lies before
// it; see Wrap. Each crash puts another in its place.
func (a *Actions) Faulty() *crashfs.Faulty { return a.faulty }

// Map returns the actions, by name, for rapid's Repeat; the one without a name is the invariant. The map is the caller's, who
// may add actions of his own, remove some, or wrap them. Those for which there is nothing to do are skipped.
//
//	submit, validate, start, complete, fail, roll back    one command, of a job that may take it
//	batch             two to five commands as one group; one of them may be illegal, and then nothing is done
//	illegal command   refused, with what would have been allowed, and nothing is written
//	bad input         payloads, ids, commands and contexts that the door must refuse
//	crash             the power goes now, in any way that a disk may take it; perhaps once more while Open recovers
//	crash soon        the power goes at one of the next 13 operations that change the disk, in the command that comes with
//	                  it or in whatever is done then
//	reopen            a clean Close, and Open
//	idle              nothing happens for a while; see the field Idle
//	read              queries, pages, and following from some event on
//	checkpoint        see the field Checkpoint
//	compact           see the field Compact; or a dry run of it, which changes nothing
func (a *Actions) Map() map[string]func(*rapid.T) {
	actions := map[string]func(*rapid.T){
		"submit": a.submit, "validate": a.one(wal.JobValidated), "start": a.one(wal.JobStarted),
		"complete": a.one(wal.JobCompleted), "fail": a.one(wal.JobFailed), "roll back": a.one(wal.JobRolledBack),
		"batch": a.batch, "illegal command": a.illegal, "bad input": a.badInput,
		"crash": a.Crash, "crash soon": a.crashSoon, "reopen": a.Reopen, "read": a.read, "": a.Invariant,
	}
	if a.Idle > 0 {
		actions["idle"] = func(*rapid.T) { time.Sleep(a.Idle) }
	}
	if a.Checkpoint != nil {
		actions["checkpoint"] = a.checkpoint
	}
	if a.Compact > 0 {
		actions["compact"] = a.compact
	}
	return actions
}

func (a *Actions) submit(t *rapid.T) {
	a.Do(t, a.Step(t, drawNew(t, "id", a.ref), wal.JobSubmitted))
}

// looseStep draws texts that are not UTF-8, too: the engine takes them.
func looseStep(t *rapid.T, id string, on wal.EventType) Step {
	s := drawStep(t, id, on)
	if s.Error != "" && rapid.IntRange(0, 9).Draw(t, "not UTF-8") == 9 {
		s.Error += "\xff\xfe" + s.Error
	}
	return s
}

// one is a command that some job may take; where none may, a batch of others. (It does not skip: rapid gives up when nothing
// but skipping actions comes, as it may from a fuzzer.)
func (a *Actions) one(on wal.EventType) func(*rapid.T) {
	return func(t *rapid.T) {
		ids := slices.DeleteFunc(a.ref.Jobs(), func(id string) bool { return !slices.Contains(legalTypes(a.ref.states[id]), on) })
		if len(ids) == 0 {
			a.batch(t)
			return
		}
		a.Do(t, a.Step(t, rapid.SampledFrom(ids).Draw(t, "job"), on))
	}
}

func (a *Actions) batch(t *rapid.T) {
	ahead := a.ref.Clone()
	step := rapid.Custom(func(t *rapid.T) Step {
		s := drawNextStep(t, ahead, a.Step)
		ahead.Append(math.MaxUint64, s)
		return s
	})
	a.Do(t, rapid.SliceOfN(step, 2, 5).Draw(t, "group")...)
}

func (a *Actions) illegal(t *rapid.T) {
	if gone := a.gone(); len(gone) > 0 && !a.ref.reuse && rapid.Bool().Draw(t, "of a forgotten job") {
		a.Do(t, a.Step(t, rapid.SampledFrom(gone).Draw(t, "job"), rapid.SampledFrom(types).Draw(t, "type")))
		return
	}
	a.Do(t, illegalStep(t, a.ref, a.Step))
}

// gone are the ids of forgotten jobs that are refused, and not used again.
func (a *Actions) gone() (ids []string) {
	for _, r := range a.ref.refused {
		ids = append(ids, r.ids...)
	}
	return slices.DeleteFunc(ids, func(id string) bool { return a.ref.State(id) != "" })
}

// Do has the engine carry out the steps as one group, legal or not, and holds what comes of it against the Reference. It is
// for actions of one's own, too. It returns the jobs as Engine.Do does; nil where the steps were refused, as they had to
// be, or the power went: then there is another engine by now.
func (a *Actions) Do(t *rapid.T, steps ...Step) []statemachine.Job {
	t.Helper()
	a.wantOpen(t)
	commands, steps := Commands(steps...), asStored(steps)
	legal, operations := a.ref.Legal(steps...), a.faulty.Count()
	jobs, err := a.engine.Do(context.Background(), commands...)
	switch {
	case err == nil && !legal:
		t.Fatalf("not legal, and not refused: %v", steps)
	case err == nil:
		a.acknowledge(t, jobs, steps)
		return jobs
	case a.died(err):
		if legal && (errors.Is(err, wal.ErrOutcomeUnknown) || !errors.Is(err, wal.ErrFailed)) {
			a.unknown = steps
		}
		a.hold(t, "what was not acknowledged is not shown", a.shown)
		a.lose(t)
	case a.Wrap != nil && errors.Is(err, wal.ErrNoSpace) && legal:
	case legal:
		t.Fatalf("legal, and refused: %v: %v", steps, err)
	default:
		a.hold(t, "refused for another reason", func() error { return a.rightlyRefused(err, steps) })
		a.wroteNothing(t, operations)
	}
	return nil
}

func (a *Actions) wantOpen(t *rapid.T) {
	t.Helper()
	if a.engine == nil {
		t.Fatalf("crashtest: no engine is open: call Actions.Open first, in the same run of the property")
	}
}

// asStored is what the log will have of steps: what a command of the type says, payloads without white space, texts with
// U+FFFD for what is not UTF-8.
func asStored(steps []Step) []Step {
	stored := make([]Step, len(steps))
	for i, s := range steps {
		stored[i] = Step{Type: s.Type, JobID: s.JobID}
		switch s.Type {
		case wal.JobSubmitted:
			stored[i].Capability, stored[i].Args = s.Capability, compact(s.Args)
		case wal.JobStep, wal.JobStepUndone:
			stored[i].Args, stored[i].Output = compact(s.Args), compact(s.Output)
		case wal.JobCompleted, wal.JobProgress:
			stored[i].Output = compact(s.Output)
		case wal.JobFailed, wal.JobRolledBack, wal.JobHeld, wal.JobReleased:
			stored[i].Error = strings.ToValidUTF8(s.Error, "\ufffd")
		}
	}
	return stored
}

// died tells whether an error is that of a disk whose power went, or of a log that has failed for good.
func (a *Actions) died(err error) bool {
	if a.faulty.Crashed() {
		return errors.Is(err, wal.ErrFailed) || errors.Is(err, crashfs.ErrCrashed)
	}
	return a.Wrap != nil && errors.Is(err, wal.ErrFailed)
}

// acknowledge: from here on, the steps have to be there for ever.
func (a *Actions) acknowledge(t *rapid.T, jobs []statemachine.Job, steps []Step) {
	t.Helper()
	if len(jobs) != len(steps) {
		t.Fatalf("%d jobs for %d commands", len(jobs), len(steps))
	}
	epoch := jobs[0].Epoch
	if a.epoch == 0 && epoch > a.newestEpoch() {
		a.epoch = epoch
	}
	if epoch != a.epoch {
		t.Fatalf("epoch %d, in an opening whose epoch is %d", epoch, a.epoch)
	}
	a.ref.Append(epoch, steps...)
	for i, s := range steps { // a caller reads its own writes
		if got, want := glanceAt(jobs[i]), viewOf(a.ref.History(s.JobID)).glance; got != want {
			t.Fatalf("the job that was returned is %+v, not %+v", got, want)
		}
	}
}

func (a *Actions) newestEpoch() uint64 {
	events := a.ref.events
	if len(events) == 0 {
		return 0
	}
	return events[len(events)-1].Epoch
}

// allowed is what a job that stands so may take, of all that there is.
func allowed(standing string) []wal.EventType {
	return slices.DeleteFunc(slices.Concat(types, notes), func(on wal.EventType) bool { _, legal := after(standing, on); return !legal })
}

// rightlyRefused looks at the reason for which the steps were refused: it is the first that is not legal.
func (a *Actions) rightlyRefused(err error, steps []Step) error {
	ahead := a.ref.Clone()
	for _, s := range steps {
		from, standing := ahead.State(s.JobID), ahead.states[s.JobID]
		if ahead.Append(math.MaxUint64, s) {
			continue
		}
		if errors.Is(err, statemachine.ErrHeld) && from != standing || errors.Is(err, statemachine.ErrNotHeld) && from == standing {
			return nil
		}
		if from == "" && a.ref.Refuses(s.JobID) && !a.ref.reuse {
			if !errors.Is(err, recovery.ErrForgotten) ||
				errors.Is(err, statemachine.ErrDuplicateJob) != (s.Type == wal.JobSubmitted) ||
				errors.Is(err, statemachine.ErrUnknownJob) == (s.Type == wal.JobSubmitted) {
				return fmt.Errorf("job %q is forgotten: %w", s.JobID, err)
			}
			return nil
		}
		var refused *statemachine.TransitionError
		if !errors.As(err, &refused) || !errors.Is(err, statemachine.ErrTransition) {
			return err
		}
		got := fmt.Sprintf("%q %s %q %v", refused.From, refused.Event, refused.JobID, refused.Allowed)
		if want := fmt.Sprintf("%q %s %q %v", from, s.Type, s.JobID, allowed(standing)); got != want {
			return fmt.Errorf("%s, not %s: %w", got, want, err)
		}
		if errors.Is(err, statemachine.ErrUnknownJob) != (from == "") ||
			errors.Is(err, statemachine.ErrDuplicateJob) != (s.Type == wal.JobSubmitted) {
			return fmt.Errorf("job in state %q: %w", from, err)
		}
		return nil
	}
	return errors.New("all of the steps are legal")
}

// wroteNothing: where nothing but commands can write, the disk has seen no operation since.
func (a *Actions) wroteNothing(t *rapid.T, operations int) {
	t.Helper()
	if ops := a.faulty.Ops(); a.Idle > 0 && len(ops) > operations {
		t.Fatalf("refused, and something was written: %v", ops[operations:])
	}
}

func (a *Actions) badInput(t *rapid.T) {
	started := slices.DeleteFunc(a.ref.Jobs(), func(id string) bool { return a.ref.State(id) != "started" })
	fresh := drawNew(t, "id", a.ref)
	submit := func(id, capability string, args any) recovery.Command {
		return recovery.Submit(recovery.Submission{JobID: id, Capability: capability, Args: args})
	}
	ctx, want := context.Background(), wal.ErrInvalid
	var bad recovery.Command
	switch rapid.IntRange(0, 7).Draw(t, "bad") {
	case 0, 1:
		bad = submit(fresh, "", BadPayloads().Draw(t, "args"))
	case 2, 3:
		if len(started) == 0 {
			bad = submit(fresh, "", BadPayloads().Draw(t, "args"))
			break
		}
		bad = recovery.Complete(started[0], BadPayloads().Draw(t, "output"))
	case 4:
		bad = submit(BadJobIDs().Draw(t, "id"), "", nil)
	case 5:
		bad = submit(fresh, BadJobIDs().Draw(t, "capability"), nil)
	case 6:
		bad = rapid.SampledFrom([]recovery.Command{{}, recovery.Fail(fresh, nil), submit(fresh, "", math.NaN())}).Draw(t, "command")
	case 7:
		gone, cancel := context.WithCancel(ctx)
		cancel()
		bad, ctx, want = submit(fresh, "", nil), gone, context.Canceled
	}
	commands := []recovery.Command{bad}
	if rapid.Bool().Draw(t, "behind a good one") {
		commands = []recovery.Command{submit(drawNew(t, "good", a.ref, fresh), "", nil), bad}
	}
	a.refuses(t, ctx, want, commands)
}

func (a *Actions) refuses(t *rapid.T, ctx context.Context, want error, commands []recovery.Command) {
	t.Helper()
	operations := a.faulty.Count()
	switch _, err := a.engine.Do(ctx, commands...); {
	case err != nil && a.died(err):
		a.lose(t)
	case !errors.Is(err, want):
		t.Fatalf("bad input was answered with %v, not %v", err, want)
	default:
		a.wroteNothing(t, operations)
	}
}

func (a *Actions) checkpoint(t *rapid.T) {
	if err := a.Checkpoint(a.engine, context.Background()); err != nil {
		if !a.died(err) {
			t.Fatalf("checkpoint: %v", err)
		}
		a.lose(t)
	}
}

func (a *Actions) compact(t *rapid.T) {
	olderThan := time.Duration(rapid.Int64Range(0, int64(a.Compact)).Draw(t, "older than"))
	var opts []recovery.CompactOption
	dry := rapid.IntRange(0, 4).Draw(t, "dry run") == 4
	if dry {
		opts = append(opts, recovery.DryRun)
	}
	operations := a.faulty.Count()
	c, err := a.engine.Compact(context.Background(), olderThan, opts...)
	switch {
	case err != nil && a.died(err):
		a.forgets = !dry
		a.lose(t)
	case a.Wrap != nil && errors.Is(err, wal.ErrNoSpace):
		a.hold(t, "compaction without room", a.take)
	case err != nil:
		t.Fatalf("compact: %v", err)
	case dry:
		a.hold(t, "a dry run", func() error { return a.wouldForget(c) })
		a.wroteNothing(t, operations)
	default:
		a.first = max(a.first, c.FirstSeq)
		a.hold(t, "forgotten", a.take)
		a.hold(t, "compacted", func() error { return a.hasForgotten(c) })
	}
	a.checked = 0 // all that is remembered is still there
}

// overdue are the jobs that ended before, and are not half undone.
func (a *Actions) overdue(before time.Time) (ids []string) {
	return slices.DeleteFunc(a.ref.Jobs(), func(id string) bool {
		return a.ref.events[a.ref.heads[id]].Type == wal.JobStepUndone || !ended(a.ref.State(id)) || !a.endOf(id).Before(before)
	})
}

// endOf is when a job's newest event was made.
func (a *Actions) endOf(id string) time.Time { return a.times[a.ref.events[a.ref.heads[id]].Seq] }

func (a *Actions) wouldForget(c recovery.Compaction) error {
	if due := a.overdue(c.Before); c.Forgotten != len(due) || c.Remembered != len(a.ref.Jobs())-len(due) {
		return fmt.Errorf("%d jobs would be forgotten, and %d remembered: %q have ended before %v", c.Forgotten, c.Remembered, due, c.Before)
	}
	return nil
}

func (a *Actions) hasForgotten(c recovery.Compaction) error {
	if due := a.overdue(c.Before); len(due) > 0 || c.Remembered != len(a.ref.Jobs()) {
		return fmt.Errorf("%q are not forgotten, though they ended before %v; %d jobs are remembered, not %d", due, c.Before,
			c.Remembered, len(a.ref.Jobs()))
	}
	return nil
}
