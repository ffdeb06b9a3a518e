package recovery

import (
	"cmp"
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

	applied atomic.Uint64 // every event up to this seq is in the jobs and the projections, exactly once
	over    atomic.Bool   // stopped is set
	waiters atomic.Int64  // how many are in waiting; whoever adds himself looks at applied afterwards

	mu         sync.Mutex // guards the fields below
	waiting    map[uint64]chan struct{}
	ready      chan struct{} // closed when applied reaches goal
	stopped    error         // why no more events are applied
	unreadable []Unreadable
	failed     []*ProjectionError
}

// view is one projection, and whether it still follows.
type view struct {
	projection.Projection
	out bool // it returned an error or panicked; the applier's own
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

// catchUp applies what there is, before anyone can append. Of a directory, the log can only be read by then: damage
// anywhere, or a ctx that is done, ends Open before anything on disk has changed.
func (a *applier) catchUp(ctx context.Context, log Log) error {
	a.applied.Store(log.FirstSeq() - 1)
	a.goal = log.LastSeq()
	err := a.applyAll(readAhead(log.Events(ctx, log.FirstSeq())))
	return cmp.Or(err, ctx.Err()) // it may all have been read before ctx was done
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
	job, err := a.fold(e)
	if err != nil {
		return err
	}
	for _, v := range a.views {
		if !v.out {
			a.show(v, e, job)
		}
	}
	// Before Open can know that it is done: the caller is not told anything after that.
	if a.report != nil && e.Seq <= a.goal && (e.Seq%progressEvery == 0 || e.Seq == a.goal) {
		a.report(Progress{Applied: e.Seq, Last: a.goal, Took: time.Since(a.started)})
	}
	a.applied.Store(e.Seq)
	if e.Seq == a.goal || a.waiters.Load() > 0 {
		a.wake(e.Seq)
	}
	return nil
}

// wake wakes whoever waits for the event at seq, and Open when that was what it waits for.
func (a *applier) wake(seq uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if woken, ok := a.waiting[seq]; ok {
		close(woken)
		a.removeLocked(seq)
	}
	if seq >= a.goal && a.ready != nil {
		close(a.ready)
		a.ready = nil
	}
}

func (a *applier) removeLocked(seq uint64) {
	delete(a.waiting, seq)
	a.waiters.Add(-1)
}

// progressEvery is how many events lie between two calls of Options.OnProgress.
const progressEvery = 16384

// fold brings the event's job forward. An event that its job can't take parks the job and stops nothing.
func (a *applier) fold(e wal.Event) (statemachine.Job, error) {
	if e.JobID == "" && e.Problem != "" {
		a.noteUnreadable(e)
	}
	job, err := a.jobs.Fold(e)
	if errors.Is(err, statemachine.ErrMisdirected) {
		return job, err
	}
	return job, nil // why a job is parked stands in the job
}

// show lets one projection take an event.
func (a *applier) show(v *view, e wal.Event, job statemachine.Job) {
	err := applyTo(v.Projection, e, job)
	if err == nil {
		return
	}
	v.out = true
	failed := &ProjectionError{Name: v.Name(), Seq: e.Seq, JobID: e.JobID, Err: err}
	a.mu.Lock()
	a.failed = append(a.failed, failed)
	a.mu.Unlock()
	a.logger.Error("recovery: projection stopped", slog.Any("error", failed))
}

func applyTo(p projection.Projection, e wal.Event, job statemachine.Job) (err error) {
	defer func() {
		switch r := recover().(type) {
		case nil:
		case error:
			err = fmt.Errorf("panic: %w", r)
		default:
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	return p.Apply(e, job)
}

func (a *applier) noteUnreadable(e wal.Event) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.unreadable) < maxListed {
		a.unreadable = append(a.unreadable, Unreadable{Seq: e.Seq, Problem: e.Problem})
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
	if a.ready != nil {
		close(a.ready)
		a.ready = nil
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
