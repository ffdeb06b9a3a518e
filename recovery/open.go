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
	// Logger gets what happens while nobody waits to be told: a projection that stops, a torn tail that was cut.
	// Default: none.
	Logger *slog.Logger
	// OnProgress is called every 16,384 events while Open replays the log, and once at its end, on a goroutine of the
	// engine's; Open waits for it. Default: none.
	OnProgress func(Progress)
}

// Open opens the log in dir, makes it if there is none, and returns an Engine that has folded all of it. It goes
// through these steps:
//
//  1. [wal.Open] repairs what a crash left, and refuses what it must not repair.
//  2. The applier follows the log from its first event; each one goes to its job and to the projections.
//  3. When it has reached the end that the log had, the engine is open. The applier goes on.
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
	log, err := wal.Open(dir, opts.WAL)
	if err != nil {
		return nil, err
	}
	e, err := OpenLog(ctx, OnDisk(log), opts)
	if err != nil {
		return nil, err
	}
	e.opened.WAL, e.opened.Took = log.Report(), time.Since(started)
	return e, nil
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
	e := newEngine(log, opts)
	if err := e.replay(ctx); err != nil {
		return nil, errors.Join(err, e.Close())
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

func newEngine(log Log, opts Options) *Engine {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	e := &Engine{log: log, jobs: projection.NewJobs(), stats: projection.NewStats(), locks: newJobLocks()}
	e.applier = &applier{
		jobs: e.jobs, logger: opts.Logger, report: opts.OnProgress, started: time.Now(),
		waiting: make(map[uint64]chan struct{}), ready: make(chan struct{}),
	}
	for _, p := range append([]projection.Projection{e.stats}, opts.Projections...) {
		e.applier.views = append(e.applier.views, &view{Projection: p})
	}
	return e
}

// replay starts the applier and returns when it has caught up.
func (e *Engine) replay(ctx context.Context) error {
	first, last := e.log.FirstSeq(), e.log.LastSeq()
	a, ready := e.applier, e.applier.ready
	a.goal, a.applied = last, first-1
	if a.applied >= a.goal {
		close(ready)
		a.ready = nil
	}
	following, cancel := context.WithCancel(context.Background())
	e.cancel, e.done = cancel, make(chan struct{})
	go func() {
		defer close(e.done)
		a.follow(following, e.log, first)
	}()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-ready:
	}
	e.opened.Replayed = last + 1 - min(first, last+1)
	return a.err()
}
