package recovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/wal"
)

// Options are the settings of one opening. The zero value is the safest.
type Options struct {
	// WAL: the log's own settings. Its Logger, when nil, is the Logger below.
	WAL wal.Options
	// Projections: read models of the caller's own, each with a name of its own; "jobs", "stats" and "engine" are taken. They see
	// every event from the log's first on, or, if they are a [projection.Snapshotter], their own snapshot and every event
	// behind it. One that a checkpoint does not have makes Open replay the whole log for it.
	Projections []projection.Projection
	// AllowIncomplete names projections that may be built from the jobs that are still remembered, where no checkpoint
	// has them and the log's beginning was compacted away. Otherwise Open, and Compact before it comes to that, refuse
	// with an [IncompleteError]. Default: none.
	AllowIncomplete []string
	// CheckpointEvery: so many events behind the last checkpoint the next one is written, in the background. The next
	// Open replays what lies behind the newest checkpoint, and no more. Default 100,000, or as many as there are jobs where
	// that is more: so what checkpoints cost an event does not grow with the jobs, nor does what Open replays outgrow what
	// it loads. Negative: only [Engine.Checkpoint] writes one. A read-only log and one that is no directory have none.
	CheckpointEvery int
	// Retain: with each checkpoint, finished jobs that ended longer ago are forgotten and their events removed, as
	// [Engine.Compact] does. Default 0: nothing is forgotten by itself.
	Retain time.Duration
	// RefuseIDs: how long after its job was forgotten an id stays refused at least, so that a command that comes late is
	// not taken for a new job. It costs some 24 bytes of heap an id, and on disk the id itself. Default: as long again as
	// a finished job is remembered (Retain, or what Compact is given). Negative: an id may be used again at once.
	RefuseIDs time.Duration
	// HoldBytes: args, outputs and progress of more bytes are not held in memory; [Engine.Read] reads them from the log. Default
	// 1024; negative: all are held.
	HoldBytes int
	// Archive, if set, is handed each segment that compaction is about to remove, oldest first. An error keeps that
	// segment and those behind it. After a crash it may be handed one again.
	Archive func(context.Context, wal.Sealed) error
	// Logger gets what happens while nobody waits to be told: a projection that stops, an engine that can't
	// follow its log any more, a torn tail that was cut. Default: none.
	Logger *slog.Logger
	// OnProgress is called every 16,384 events while Open replays the log, and at its end: twice, where a crash left
	// events that had first to be made durable. It begins again, lower, where Open reads the log again: projections that no
	// checkpoint has take all of it, before the others take what lies behind the checkpoint; and a reader begins anew whom a
	// writer's compaction has overtaken. Open waits for it. Default: none.
	OnProgress func(Progress)
}

// Open opens the log in dir, makes it if there is none, and returns an Engine that has folded all of it. It goes
// through these steps:
//
//  1. [wal.Open] takes the lock, and refuses what it must not repair.
//  2. The newest checkpoint that is whole and of this log is loaded; one that is not is passed over and reported.
//  3. The applier takes what is known to be durable, from there on, or from the log's first event on; each one goes to
//     its job and to the projections. Up to here nothing on disk has changed: damage anywhere in what is read, or a ctx
//     that is done, leaves the directory as it was.
//  4. wal.Open repairs what a crash left, and begins a new epoch.
//  5. What could not be believed before that is applied, too. The engine is open, and the applier follows the log.
//
// The errors are those of [wal.Open]; wal.ErrCorrupt also for damage that only reading everything shows; wal.ErrVersion
// for a checkpoint of a newer format; an [IncompleteError]; ctx's, which ends the replay; wal.ErrInvalid for a nil ctx or
// a bad option. With Options.WAL.ReadOnly, wal.ErrDropped when the writer beside it compacts the log too often meanwhile.
// A torn tail, a parked job, and a projection that stopped are no errors: they are in the [Report].
func Open(ctx context.Context, dir string, opts Options) (*Engine, error) {
	started := time.Now()
	if err := opts.check(ctx); err != nil {
		return nil, err
	}
	if opts.WAL.Logger == nil {
		opts.WAL.Logger = opts.Logger
	}
	e := newEngine(opts)
	opts.WAL.Inspect = both(opts.WAL.Inspect, func(log *wal.Log) error { return e.restore(ctx, OnDisk(log)) })
	log, err := wal.Open(dir, opts.WAL)
	if err != nil {
		return nil, err
	}
	fold := e.catchUp
	if opts.WAL.ReadOnly { // then nothing was inspected
		fold = e.restoreBeside
	}
	if err := e.serve(ctx, OnDisk(log), fold); err != nil {
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
	if err := e.serve(ctx, log, e.restoreBeside); err != nil {
		return nil, err
	}
	e.opened.Took = time.Since(started)
	return e, nil
}

func (o *Options) check(ctx context.Context) error {
	if ctx == nil {
		return &wal.InvalidError{Field: "context", Reason: "nil"}
	}
	names := map[string]bool{"jobs": true, "stats": true, ownSection: true}
	for i, p := range o.Projections {
		if p == nil {
			return &wal.InvalidError{Field: "Options.Projections", Reason: fmt.Sprintf("number %d is nil", i)}
		}
		name := p.Name()
		if name == "" || names[name] {
			return &wal.InvalidError{Field: "Options.Projections", Reason: fmt.Sprintf("name %q is empty or taken", name)}
		}
		if len(name) > 256 || !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl) {
			return &wal.InvalidError{Field: "Options.Projections",
				Reason: fmt.Sprintf("name %.64q: more than 256 bytes, invalid UTF-8, or control characters", name)}
		}
		names[name] = true
	}
	return ctx.Err()
}

func newEngine(opts Options) *Engine {
	opts.setDefaults()
	e := &Engine{
		opts: opts, locks: newJobLocks(), keeping: make(chan struct{}, 1),
	}
	e.life, e.end = context.WithCancel(context.Background())
	e.applier = &applier{
		logger: opts.Logger, report: opts.OnProgress, started: time.Now(),
		waiting: make(map[uint64]chan struct{}), due: make(chan struct{}, 1),
	}
	e.applier.dueAt.Store(math.MaxUint64)
	e.reset(0)
	return e
}

// reset makes the state that of a log without events. floor: see [projection.JobsOptions].
func (e *Engine) reset(floor uint64) {
	e.jobs, e.stats = projection.NewJobsWith(e.jobsOptions(floor)), projection.NewStats()
	a := e.applier
	a.jobs, a.views, a.failed, a.unreadable = e.jobs, nil, nil, nil
	a.applied.Store(0)
	for _, p := range append([]projection.Projection{e.stats}, e.opts.Projections...) {
		a.views = append(a.views, &view{Projection: p})
	}
}

func (e *Engine) jobsOptions(floor uint64) projection.JobsOptions {
	return projection.JobsOptions{HoldBytes: max(0, e.opts.HoldBytes), Floor: floor} // 0: all are held
}

func (o *Options) setDefaults() {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.WAL.Now == nil {
		o.WAL.Now = time.Now
	}
	o.HoldBytes = cmp.Or(o.HoldBytes, DefaultHoldBytes)
}

// What Options{} means.
const (
	DefaultCheckpointEvery = 100_000
	DefaultHoldBytes       = 1 << 10
)

// serve folds what there is, and starts the applier behind it. The engine has the log from here on, and closes it if that
// fails.
func (e *Engine) serve(ctx context.Context, log Log, fold func(context.Context, Log) error) (err error) {
	e.log = log
	serving := false
	defer func() { // also when a projection ends the goroutine
		if !serving {
			err = errors.Join(err, log.Close())
		}
	}()
	if err := cmp.Or(fold(ctx, log), ctx.Err()); err != nil {
		return err
	}
	e.jobs.EndFloor() // what forgets jobs was durable before their events went
	following, cancel := context.WithCancel(context.Background())
	e.cancel, e.done = cancel, make(chan struct{})
	events := log.Follow(following, e.applier.applied.Load()+1)
	go func() {
		defer close(e.done)
		e.applier.follow(events)
	}()
	e.keep()
	serving = true
	return nil
}
