package recovery

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/wal"
)

// Options are the settings of one opening. The zero value is the safest.
type Options struct {
	// WAL: the log's own settings. Its Logger, when nil, is the Logger below.
	WAL wal.Options
	// Projections: read models of the caller's own, each with a name of its own; "jobs" and "stats" are taken. They see
	// every event from the log's first on.
	Projections []projection.Projection
	// Logger gets what happens while nobody waits to be told: a projection that stops, an engine that can't
	// follow its log any more, a torn tail that was cut. Default: none.
	Logger *slog.Logger
	// OnProgress is called every 16,384 events while Open replays the log, and at its end: twice, where a crash left
	// events that had first to be made durable. Open waits for it. Default: none.
	OnProgress func(Progress)
}

// Open opens the log in dir, makes it if there is none, and returns an Engine that has folded all of it. It goes
// through these steps:
//
//  1. [wal.Open] takes the lock, and refuses what it must not repair.
//  2. The applier takes what is known to be durable, from the log's first event on; each one goes to its job and to the
//     projections. Up to here nothing on disk has changed: damage anywhere in the log, or a ctx that is done, leaves the
//     directory as it was.
//  3. wal.Open repairs what a crash left, and begins a new epoch.
//  4. The applier follows the log. When it has reached the end that the log had, the engine is open. The applier goes on.
//
// The errors are those of [wal.Open]; wal.ErrCorrupt also for damage that only reading everything shows; ctx's, which
// ends the replay; wal.ErrInvalid for a nil ctx or a bad option. A torn tail, a parked job, and a projection that
// stopped are no errors: they are in the [Report].
func Open(ctx context.Context, dir string, opts Options) (*Engine, error) {
	started := time.Now()
	if err := opts.check(ctx); err != nil {
		return nil, err
	}
	if opts.WAL.Logger == nil {
		opts.WAL.Logger = opts.Logger
	}
	e := newEngine(opts)
	opts.WAL.Inspect = both(opts.WAL.Inspect, func(log *wal.Log) error { return e.applier.catchUp(ctx, OnDisk(log)) })
	log, err := wal.Open(dir, opts.WAL)
	if err != nil {
		return nil, err
	}
	if err := e.serve(ctx, OnDisk(log)); err != nil {
		return nil, err
	}
	e.opened.WAL, e.opened.Took = log.Report(), time.Since(started)
	return e, nil
}

func both(first, second func(*wal.Log) error) func(*wal.Log) error {
	if first == nil {
		return second
	}
	return func(log *wal.Log) error {
		if err := first(log); err != nil {
			return err
		}
		return second(log)
	}
}

// OpenLog is Open for a log that is already open, of whatever kind. The engine closes it, also if OpenLog fails.
// Options.WAL is not used.
func OpenLog(ctx context.Context, log Log, opts Options) (_ *Engine, err error) {
	started := time.Now()
	if log == nil {
		return nil, &wal.InvalidError{Field: "log", Reason: "nil"}
	}
	if err := opts.check(ctx); err != nil {
		return nil, errors.Join(err, log.Close())
	}
	e := newEngine(opts)
	if err := e.applier.catchUp(ctx, log); err != nil {
		return nil, errors.Join(err, log.Close())
	}
	if err := e.serve(ctx, log); err != nil {
		return nil, err
	}
	e.opened.Took = time.Since(started)
	return e, nil
}

func (o *Options) check(ctx context.Context) error {
	if ctx == nil {
		return &wal.InvalidError{Field: "context", Reason: "nil"}
	}
	names := map[string]bool{"jobs": true, "stats": true}
	for i, p := range o.Projections {
		if p == nil {
			return &wal.InvalidError{Field: "Options.Projections", Reason: fmt.Sprintf("number %d is nil", i)}
		}
		if name := p.Name(); name == "" || names[name] {
			return &wal.InvalidError{Field: "Options.Projections", Reason: fmt.Sprintf("name %q is empty or taken", name)}
		}
		names[p.Name()] = true
	}
	return ctx.Err()
}

func newEngine(opts Options) *Engine {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	e := &Engine{jobs: projection.NewJobs(), stats: projection.NewStats(), locks: newJobLocks()}
	e.applier = &applier{
		jobs: e.jobs, logger: opts.Logger, report: opts.OnProgress, started: time.Now(),
		waiting: make(map[uint64]chan struct{}),
	}
	for _, p := range append([]projection.Projection{e.stats}, opts.Projections...) {
		e.applier.views = append(e.applier.views, &view{Projection: p})
	}
	return e
}

// serve starts the applier, and returns when it is at the log's end. The engine has the log from here on, and closes it
// if that fails.
func (e *Engine) serve(ctx context.Context, log Log) error {
	e.log = log
	first, last := log.FirstSeq(), log.LastSeq()
	e.opened.Replayed = last + 1 - min(first, last+1)
	a, ready := e.applier, make(chan struct{})
	applied := max(a.applied.Load(), first-1)
	a.applied.Store(applied)
	a.goal = last
	if applied < last {
		a.ready = ready
	} else {
		close(ready)
	}
	following, cancel := context.WithCancel(context.Background())
	e.cancel, e.done = cancel, make(chan struct{})
	events := log.Follow(following, applied+1)
	go func() {
		defer close(e.done)
		a.follow(events)
	}()
	var err error
	select {
	case <-ctx.Done():
		err = ctx.Err()
	case <-ready:
		err = a.err()
	}
	if err != nil {
		return errors.Join(err, e.Close())
	}
	return nil
}
