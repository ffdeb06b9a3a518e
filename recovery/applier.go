package recovery

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// applier folds the log, in order, for as long as the engine lives. There is no other way for an event to change
// anything in memory: what runs after a crash is what runs all day.
type applier struct {
	jobs    *projection.Jobs
	views   []*view
	logger  *slog.Logger
	goal    uint64 // where the log ended when the engine was opened
	report  func(Progress)
	started time.Time
	due     chan struct{} // gets a value, if there is room for it, when events have come to dueAt

	folding sync.Mutex    // held for the time of one event: who freezes the state holds it, too
	dueAt   atomic.Uint64 // the seq at which the next checkpoint is due

	applied atomic.Uint64 // every event up to this seq is in the jobs and the projections, exactly once
	over    atomic.Bool   // stopped is set
	waiters atomic.Int64  // how many are in waiting; whoever adds himself looks at applied afterwards

	mu         sync.Mutex // guards the fields below
	waiting    map[uint64]chan struct{}
	stopped    error // why no more events are applied
	unreadable []Unreadable
	failed     []*ProjectionError
	keepErr    error // of the newest checkpoint or compaction in the background
}

// view is one projection, and whether it still follows. The applier's own.
type view struct {
	projection.Projection
	loaded bool // from a checkpoint
	out    bool // it returned an error or panicked
}

// A ProjectionError says which event a projection could not take. It gets no more events; the log, the command that
// appended the event, and all other projections go on.
type ProjectionError struct {
	Name  string
	Seq   uint64
	JobID string
	Err   error // what Apply returned, or what it panicked with
}

func (e *ProjectionError) Error() string {
	return fmt.Sprintf("recovery: projection %q stopped at seq %d (job %q): %v", e.Name, e.Seq, e.JobID, e.Err)
}

func (e *ProjectionError) Unwrap() error { return e.Err }

// follow applies whatever comes. It returns when that ends. Nobody is left waiting, even if a
// projection ends the goroutine by runtime.Goexit, as t.FailNow does.
func (a *applier) follow(events iter.Seq2[wal.Event, error]) {
	err := errors.New("a projection or OnProgress ended the applier's goroutine")
	defer func() { a.stop(err) }()
	if err = a.applyAll(events); err == nil {
		err = errors.New("the log ended")
	}
}

func (a *applier) applyAll(events iter.Seq2[wal.Event, error]) error {
	for e, err := range events {
		if err != nil {
			return err
		}
		if err := a.apply(e); err != nil {
			return err
		}
	}
	return nil
}

// apply folds one event into its job, hands both to the projections, and wakes who waits for it.
func (a *applier) apply(e wal.Event) error {
	if err := a.fold(e); err != nil {
		return err
	}
	// Before Open can know that it is done: the caller is not told anything after that.
	if a.report != nil && e.Seq <= a.goal && (e.Seq%progressEvery == 0 || e.Seq == a.goal) {
		a.report(Progress{Applied: e.Seq, Last: a.goal, Took: time.Since(a.started)})
	}
	if a.waiters.Load() > 0 {
		a.wake(e.Seq)
	}
	if e.Seq >= a.dueAt.Load() {
		select {
		case a.due <- struct{}{}:
		default: // told already
		}
	}
	return nil
}

// wake wakes whoever waits for the event at seq.
func (a *applier) wake(seq uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if woken, ok := a.waiting[seq]; ok {
		close(woken)
		a.removeLocked(seq)
	}
}

func (a *applier) removeLocked(seq uint64) {
	delete(a.waiting, seq)
	a.waiters.Add(-1)
}

// progressEvery is how many events lie between two calls of Options.OnProgress.
const progressEvery = 16384

// fold brings the event's job forward, and with it the projections. An event that its job can't take parks the job and
// stops nothing: why a job is parked stands in the job.
func (a *applier) fold(e wal.Event) error {
	a.folding.Lock()
	defer a.folding.Unlock() // also when a projection ends the goroutine
	if e.Type == wal.JobsForgotten {
		return a.forget(e)
	}
	if e.JobID == "" && e.Problem != "" {
		a.noteUnreadable(e.Seq, e.Problem)
	}
	job, err := a.jobs.Fold(e)
	if errors.Is(err, statemachine.ErrMisdirected) {
		return err
	}
	if e.JobID == "" || job.ID != "" { // else it is of a job that is forgotten further on
		a.showAll(e, func(p projection.Projection) error { return p.Apply(e, job) })
	}
	a.applied.Store(e.Seq)
	return nil
}

// forget lets go of the jobs that the event names.
func (a *applier) forget(e wal.Event) error {
	jobs, err := a.jobs.Forget(e)
	if errors.Is(err, statemachine.ErrMisdirected) {
		return err
	}
	if err != nil {
		a.noteUnreadable(e.Seq, err.Error())
	}
	a.showAll(e, func(p projection.Projection) error {
		if f, ok := p.(projection.Forgetter); ok {
			return f.Forget(e, jobs)
		}
		return p.Apply(e, statemachine.Job{})
	})
	a.applied.Store(e.Seq)
	return nil
}

// showAll lets each projection take an event.
func (a *applier) showAll(e wal.Event, take func(projection.Projection) error) {
	for _, v := range a.views {
		if v.out {
			continue
		}
		if err := guarded(func() error { return take(v.Projection) }); err != nil {
			a.drop(v, e, err)
		}
	}
}

// drop stops a projection.
func (a *applier) drop(v *view, e wal.Event, err error) {
	v.out = true
	failed := &ProjectionError{Name: v.Name(), Seq: e.Seq, JobID: e.JobID, Err: err}
	a.mu.Lock()
	a.failed = append(a.failed, failed)
	a.mu.Unlock()
	a.logger.Error("recovery: projection stopped", slog.Any("error", failed))
}

// guarded makes a panic of code that is not ours an error.
func guarded(do func() error) (err error) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case error:
			err = fmt.Errorf("panic: %w", r)
		default:
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	return do()
}

func (a *applier) noteUnreadable(seq uint64, problem string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.unreadable) < maxListed {
		a.unreadable = append(a.unreadable, Unreadable{Seq: seq, Problem: problem})
	}
}

// stop ends applying for good and wakes everyone.
func (a *applier) stop(err error) {
	a.wakeAll(err)
	if err := a.broken(); err != nil {
		a.logger.Error("recovery: the engine follows its log no more", slog.Any("error", err))
	}
}

// broken is why nothing is applied any more; nil while all is well, and when Close has ended it.
func (a *applier) broken() error {
	if err := a.err(); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

func (a *applier) wakeAll(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	defer a.over.Store(true)
	a.stopped = fmt.Errorf("recovery: stopped behind seq %d: %w", a.applied.Load(), err)
	for seq, woken := range a.waiting {
		close(woken)
		a.removeLocked(seq)
	}
}

// wait returns when the event at seq is applied. Each seq is waited for by the one command that appended it. The applier
// was woken before that command was, so that it mostly is there already, or only needs to be let run.
func (a *applier) wait(seq uint64) error {
	for range 2 {
		if a.applied.Load() >= seq {
			return nil
		}
		runtime.Gosched()
	}
	woken := make(chan struct{})
	a.mu.Lock()
	a.waiting[seq] = woken
	a.waiters.Add(1)
	if a.applied.Load() >= seq || a.stopped != nil {
		defer a.mu.Unlock()
		a.removeLocked(seq)
		return a.errLocked(seq)
	}
	a.mu.Unlock()
	<-woken
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.errLocked(seq)
}

func (a *applier) errLocked(seq uint64) error {
	if a.applied.Load() >= seq {
		return nil
	}
	return a.stopped
}

// err says why nothing is applied any more; nil while all is well.
func (a *applier) err() error {
	if !a.over.Load() {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.stopped
}
