package crashtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// What an engine makes of the log.
var engineParts = []logPart{
	{"an engine takes jobs through their lives", testEngine},
	{"an engine parks what it cannot read and goes on", testEngineParks},
	{"engines beside each other lose races with a conflict", testEngines},
}

// arrivals tells how far an engine is.
type arrivals struct {
	mu   sync.Mutex // guards the fields below
	seq  uint64
	news chan struct{} // closed with the next event
}

func newArrivals() *arrivals { return &arrivals{news: make(chan struct{})} }

func (a *arrivals) Name() string { return "crashtest arrivals" }

func (a *arrivals) Apply(e wal.Event, _ statemachine.Job) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.seq = e.Seq
	close(a.news)
	a.news = make(chan struct{})
	return nil
}

func (t *trial) arrives(a *arrivals, seq uint64) {
	t.Helper()
	for {
		a.mu.Lock()
		at, news := a.seq, a.news
		a.mu.Unlock()
		if at >= seq {
			return
		}
		t.wait(fmt.Sprintf("an engine to follow up to seq %d; it is at %d", seq, at), news)
	}
}

// engine opens the log with an engine on it, which closes it.
func (t *trial) engine() (*recovery.Engine, recovery.Log, *arrivals) {
	t.Helper()
	log := t.open()
	e, watch := t.engineOn(log)
	return e, log, watch
}

func (t *trial) engineOn(log recovery.Log) (*recovery.Engine, *arrivals) {
	t.Helper()
	watch := newArrivals()
	e, err := recovery.OpenLog(t.ctx, log, recovery.Options{Projections: []projection.Projection{watch}})
	t.must(err, "OpenLog")
	return e, watch
}

func (t *trial) do(e *recovery.Engine, commands ...recovery.Command) {
	t.Helper()
	_, err := e.Do(t.ctx, commands...)
	t.must(err, "Do")
}

func testEngine(t *trial) {
	e, log, _ := t.engine()
	output := json.RawMessage(`{"big":12345678901234567890}`)
	t.do(e, recovery.Submit(recovery.Submission{JobID: "done", Capability: "shell", Args: json.RawMessage(`[1]`)}))
	t.do(e, recovery.Validate("done"), recovery.Start("done"))
	t.do(e, recovery.Complete("done", output))
	t.do(e, recovery.Submit(recovery.Submission{JobID: "undone"}), recovery.Fail("undone", errors.New("why")),
		recovery.RollBack("undone", "because"), recovery.Submit(recovery.Submission{JobID: "new"}))
	t.do(e, recovery.Submit(recovery.Submission{JobID: "left"}), recovery.Validate("left"))
	t.do(e, recovery.Start("left"))
	_, err := e.Start(t.ctx, "new")
	t.check(errors.Is(err, statemachine.ErrTransition), "Start of a job that was only submitted returned %v", err)
	t.check(len(e.Interrupted()) == 0, "jobs are interrupted while their engine is at work: %v", e.Interrupted())

	want := []statemachine.State{
		statemachine.Completed, statemachine.RolledBack, statemachine.Submitted, statemachine.Started,
	}
	before := slices.Collect(e.Jobs(projection.Query{}))
	for range 2 {
		t.lives(e, before, want)
		history := 0
		for event, err := range e.History(t.ctx, "done") {
			t.must(err, "History")
			t.same([]wal.Event{t.at(log, event.Seq)}, []wal.Event{event}, "an event of a job's History")
			history++
		}
		t.check(history == 4, "a job of 4 events has a history of %d", history)
		job, _ := e.Job("done")
		raw, err := e.Read(t.ctx, job.Output)
		t.check(err == nil && bytes.Equal(raw, output), "Read returned %s, %v; want %s", raw, err, output)
		t.must(e.Close(), "Close of the engine")
		_, err = log.Append(t.ctx, t.submitted())
		t.check(errors.Is(err, wal.ErrClosed), "Append after the engine was closed returned %v", err)
		e, log, _ = t.engine()
		interrupted := idsOf(e.Interrupted())
		t.check(slices.Equal(interrupted, []string{"new", "left"}), "interrupted are %q", interrupted)
	}
	t.do(e, recovery.Complete("left", nil), recovery.Validate("new"))
	t.check(len(e.Interrupted()) == 0, "still interrupted after a step: %q", idsOf(e.Interrupted()))
	t.must(e.Close(), "Close of the engine")
}

// lives: the engine's jobs are those, in those states.
func (t *trial) lives(e *recovery.Engine, jobs []statemachine.Job, states []statemachine.State) {
	t.Helper()
	got := slices.Collect(e.Jobs(projection.Query{}))
	t.check(len(got) == len(states) && len(jobs) == len(states), "%d jobs; want %d", len(got), len(states))
	for i, job := range got {
		t.check(job.State == states[i], "job %q is %s; want %s", job.ID, job.State, states[i])
		is, was := fmt.Sprintf("%+v", job), fmt.Sprintf("%+v", jobs[i])
		t.check(is == was, "job %q is %s; was %s", job.ID, is, was)
	}
}

func testEngineParks(t *trial) {
	log := t.open()
	first := t.append(log,
		wal.Event{Type: wal.JobSubmitted, JobID: "parked"}, wal.Event{Type: "job_dreamt", JobID: "parked"})
	t.append(log, wal.Event{Type: wal.JobSubmitted, JobID: "healthy"}, wal.Event{Type: "about_the_log"})
	t.close(log)
	e, _, _ := t.engine()
	parked, _ := e.Job("parked")
	t.check(parked.Parked != "" && parked.ParkedSeq == first+1,
		"a job with an unknown event is not parked by it: %+v", parked)
	_, err := e.Validate(t.ctx, "parked")
	t.check(err != nil, "a parked job took a command")
	t.do(e, recovery.Validate("healthy"))
	t.must(e.Close(), "Close of the engine")
}

// behindLog is a log whose engine does not learn that any job was completed before it has appended something itself.
type behindLog struct {
	recovery.Log
	appended chan struct{}
	once     sync.Once
}

func (b *behindLog) Append(ctx context.Context, events ...wal.Event) (uint64, error) {
	defer b.once.Do(func() { close(b.appended) })
	return b.Log.Append(ctx, events...)
}

func (b *behindLog) Follow(ctx context.Context, from uint64) iter.Seq2[wal.Event, error] {
	return func(yield func(wal.Event, error) bool) {
		for e, err := range b.Log.Follow(ctx, from) {
			if err == nil && e.Type == wal.JobCompleted {
				select {
				case <-b.appended:
				case <-ctx.Done():
				}
			}
			if !yield(e, err) {
				return
			}
		}
	}
}

func testEngines(t *trial) {
	if !t.may(SeveralWriters) || t.may(NoConflicts) {
		t.Skip("needs " + SeveralWriters + ", and conflicts")
	}
	a, log, sawA := t.engine()
	b, sawB := t.engineOn(&behindLog{Log: t.open(), appended: make(chan struct{})})
	t.do(a, recovery.Submit(recovery.Submission{JobID: "lost"}), recovery.Validate("lost"), recovery.Start("lost"))
	t.arrives(sawB, log.LastSeq())
	t.do(a, recovery.Complete("lost", "a"))
	_, err := b.Complete(t.ctx, "lost", "b")
	t.check(errors.Is(err, recovery.ErrConflict), "an engine that had not learned of another's event got %v", err)
	t.arrives(sawB, log.LastSeq())
	_, err = b.Complete(t.ctx, "lost", "b")
	t.check(errors.Is(err, statemachine.ErrTransition), "an engine that has learned of another's event got %v", err)

	for i := range 30 {
		id := fmt.Sprint("raced-", i)
		t.do(a, recovery.Submit(recovery.Submission{JobID: id}), recovery.Validate(id), recovery.Start(id))
		t.arrives(sawB, log.LastSeq())
		errs := make([]error, 2)
		var both sync.WaitGroup
		both.Go(func() { _, errs[0] = a.Complete(t.ctx, id, "a") })
		both.Go(func() { _, errs[1] = b.Complete(t.ctx, id, "b") })
		both.Wait()
		t.check((errs[0] == nil) != (errs[1] == nil), "two engines raced for a job's last step: %v", errs)
		lost := errors.Join(errs...)
		t.check(errors.Is(lost, recovery.ErrConflict) || errors.Is(lost, statemachine.ErrTransition),
			"the loser got %v", lost)
		t.arrives(sawA, log.LastSeq())
		t.arrives(sawB, log.LastSeq())
		one, _ := a.Job(id)
		two, _ := b.Job(id)
		t.check(fmt.Sprintf("%+v", one) == fmt.Sprintf("%+v", two), "the engines differ: %+v, %+v", one, two)
	}
	t.do(a, recovery.Submit(recovery.Submission{JobID: "left"}))
	t.arrives(sawB, log.LastSeq())
	t.check(len(b.Interrupted()) == 0, "a job is interrupted whose engine is at work")
	t.must(a.Close(), "Close of the engine")
	left := idsOf(b.Interrupted())
	t.check(slices.Equal(left, []string{"left"}), "interrupted are %q; want what the closed engine left", left)
	t.must(b.Close(), "Close of the engine")
}
