package crashtest

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// How Actions lose power, and what has to be there after.

// Policies draws what a power cut may leave; see [crashfs.Policy]. It shrinks to what was synced, and nothing else.
func Policies() *rapid.Generator[crashfs.Policy] {
	return rapid.Custom(func(t *rapid.T) crashfs.Policy {
		kind := rapid.IntRange(0, 11).Draw(t, "policy")
		switch kind {
		case 0:
			rapid.Just(0).Draw(t, "")
			return crashfs.SyncedOnly
		case 1:
			return crashfs.Everything
		case 2:
			return crashfs.Zeros
		}
		seed := rapid.Uint64().Draw(t, "seed")
		switch kind {
		case 3:
			return crashfs.Sectors(seed)
		case 4:
			return crashfs.Pages(seed)
		case 5:
			return crashfs.Stale(seed)
		case 6:
			return crashfs.Entries(seed)
		}
		return crashfs.Seed(seed)
	})
}

// Crash cuts the power now, and recovers. While Open recovers the power may go again.
func (a *Actions) Crash(t *rapid.T) {
	t.Helper()
	a.lose(t)
}

// soon is how many operations ahead a power cut may lie: a command has two, with a rotation a dozen, as has Open.
const soon = 12

func (a *Actions) crashSoon(t *rapid.T) {
	a.faulty.CrashAfter(rapid.IntRange(0, soon).Draw(t, "operations"))
	a.Do(t, drawNextStep(t, a.ref, a.Step))
}

// Reopen closes the engine and opens it again. What is clean has nothing to repair.
func (a *Actions) Reopen(t *rapid.T) {
	t.Helper()
	switch err := a.engine.Close(); {
	case err == nil:
		a.clean = true
		a.open(t, true)
	case a.died(err):
		a.lose(t)
	default:
		t.Fatalf("close: %v", err)
	}
}

// lose: the power is gone. What is left of the disk is drawn.
func (a *Actions) lose(t *rapid.T) {
	t.Helper()
	a.faulty.Stop()
	_ = a.engine.Close() // it can't be clean; this ends the dead process's goroutines
	a.cut(t)
	a.open(t, true)
}

func (a *Actions) cut(t *rapid.T) {
	t.Helper()
	policy := Policies().Draw(t, "power cut")
	t.Logf("power cut: %v", policy)
	a.Disk = a.Disk.Crash(policy)
}

// open opens the engine on what is left. If the power may go meanwhile, and does, it goes on with what is left then.
func (a *Actions) open(t *rapid.T, may bool) {
	t.Helper()
	for {
		a.faulty = crashfs.Inject(a.Disk, nil)
		if may && rapid.IntRange(0, 3).Draw(t, "power goes in Open") == 3 {
			a.faulty.CrashAfter(rapid.IntRange(0, soon).Draw(t, "operations"))
		}
		err := a.start()
		a.faulty.CrashAfter(-1)
		if err == nil && !a.faulty.Crashed() {
			a.settle(t)
			return
		}
		if err == nil {
			_ = a.engine.Close() // the power went when Open had just returned
		} else if !a.died(err) {
			t.Fatalf("acknowledged: %d events. Open: %v\n%v", a.acknowledged(), err, a.Disk)
		}
		t.Log("the power went in Open")
		a.clean = false
		a.cut(t)
	}
}

func (a *Actions) acknowledged() uint64 {
	if a.ref == nil {
		return 0
	}
	return a.ref.Last()
}

// start opens one engine.
func (a *Actions) start() error {
	a.told, a.checked = new(witness), 0
	opts := a.Options
	opts.Projections = append([]projection.Projection{a.told}, opts.Projections...)
	if a.Projections != nil {
		opts.Projections = append(opts.Projections, a.Projections()...)
	}
	opts.WAL.FS = a.faulty
	if a.Wrap != nil {
		opts.WAL.FS = a.Wrap(a.faulty)
	}
	engine, err := a.OpenEngine(context.Background(), a.Dir, opts)
	if err == nil {
		a.engine = engine
	}
	return err
}

// settle: acknowledged ⊑ recovered ⊑ submitted. What was unknown is known now, and stays.
func (a *Actions) settle(t *rapid.T) {
	t.Helper()
	report := a.engine.Report().WAL
	a.first = max(report.FirstSeq, 1)
	if a.ref == nil { // the first opening: what is there counts
		if a.first > 1 {
			t.Fatalf("crashtest: a log that starts at seq %d: Actions have to know it from its beginning", a.first)
		}
		a.ref = &Reference{reuse: a.Options.RefuseIDs < 0}
		a.hold(t, "what the disk held", a.take)
	}
	before := a.ref.Last()
	switch n := a.recovered(); {
	case n < before:
		t.Fatalf("acknowledged: %d events; recovered: %d", before, n)
	case n > before:
		a.hold(t, "more than was acknowledged", a.takeUnknown)
	}
	if a.unknown != nil {
		t.Logf("in flight were %d steps; %d events were acknowledged, %d are there", len(a.unknown), before, a.ref.Last())
	}
	a.unknown, a.forgets = nil, false
	if a.epoch = report.Epoch; report.Epoch != 0 && report.Epoch <= a.newestEpoch() {
		t.Fatalf("epoch %d, behind %d", report.Epoch, a.newestEpoch())
	}
	if a.clean && report.Dir != "" && (!report.Clean || len(report.Torn) > 0) {
		t.Fatalf("closed, and not clean, or torn: %+v", report.Torn)
	}
	a.clean = false
	a.hold(t, "recovered", a.all)
	if a.OnOpen != nil {
		a.OnOpen(a.engine)
	}
}

// recovered is how many events the engine has.
func (a *Actions) recovered() uint64 { return a.engine.Stats().LastSeq }

// take takes the events that the engine has beyond the Reference, whatever they are. Those that forgot jobs may be gone
// from the log by now.
func (a *Actions) take() error {
	var events []wal.Event
	for seq := a.ref.Last() + 1; seq < a.first; seq++ {
		e, known := a.told.forgotAt(seq)
		if !known {
			return fmt.Errorf("seq %d was dropped, and forgot nothing", seq)
		}
		events = append(events, e)
	}
	there, err := a.follow(max(a.ref.Last()+1, a.first), a.recovered())
	for _, e := range append(events, there...) {
		a.see(e)
		err = errors.Join(err, a.dueBy(e), a.ref.Take(e))
	}
	return err
}

// dueBy: jobs are forgotten when they ended before the cut-off.
func (a *Actions) dueBy(e wal.Event) error {
	if !forgets(e) {
		return nil
	}
	f, err := readForgetting(e)
	for _, id := range f.Jobs {
		if _, known := a.ref.heads[id]; known && !a.endOf(id).Before(f.Before) {
			err = errors.Join(err, fmt.Errorf("seq %d forgets job %q, which ended at %v", e.Seq, id, a.endOf(id)))
		}
	}
	return err
}

// takeUnknown takes them if they are the group that was in flight, whole.
func (a *Actions) takeUnknown() error {
	group, n := a.unknown, a.ref.Last()
	if err := a.take(); err != nil {
		return err
	}
	events := a.ref.Events()[n:]
	if a.forgets {
		events = slices.DeleteFunc(events, forgets)
	}
	if len(events) != len(group) {
		return fmt.Errorf("%d events behind seq %d, in flight were %v", len(events), n, group)
	}
	for i, e := range events {
		if group[i].Type != wal.JobSubmitted {
			group[i].Capability = e.Capability // the job's own
		}
		if !group[i].Same(StepOf(e)) {
			return fmt.Errorf("never submitted: %v; in flight were %v", StepOf(e), group)
		}
	}
	return nil
}
