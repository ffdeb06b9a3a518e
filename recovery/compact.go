package recovery

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// ErrForgotten: the job was there, and is remembered no longer. See [ForgottenError].
var ErrForgotten = errors.New("recovery: job is forgotten")

// A ForgottenError says that a job was compacted away ([Engine.Compact]) and that its id is still refused
// (Options.RefuseIDs). It matches ErrForgotten and wal.ErrDropped; as the answer to Submit also
// statemachine.ErrDuplicateJob, to any other command statemachine.ErrUnknownJob.
type ForgottenError struct {
	JobID string
	Event wal.EventType // of the command; "" where none was given
}

func (e *ForgottenError) Error() string {
	return fmt.Sprintf("recovery: job %q is forgotten: it was finished, and its events are compacted away", e.JobID)
}

// Is makes errors.Is work for the sentinels that e is a case of.
func (e *ForgottenError) Is(target error) bool {
	switch target {
	case ErrForgotten, wal.ErrDropped:
		return true
	case statemachine.ErrDuplicateJob:
		return e.Event == wal.JobSubmitted
	case statemachine.ErrUnknownJob:
		return e.Event != wal.JobSubmitted
	}
	return false
}

// A Compaction says what [Engine.Compact] did, or would do.
type Compaction struct {
	Before     time.Time // finished jobs that ended before this were forgotten
	Forgotten  int       // jobs
	Remembered int       // jobs, afterwards
	// Of the log: its first event afterwards, what was removed, and what of it was carried, for the jobs that are
	// remembered. The log is freed in whole segments, and never of the newest: often less goes than could.
	wal.Compacted
}

// A CompactOption changes what [Engine.Compact] does.
type CompactOption int

// DryRun changes nothing: the [Compaction] says what would have happened, had no job changed meanwhile.
const DryRun CompactOption = 1

// Compact forgets the finished jobs that ended longer ago than olderThan, and frees the log of their events. Unfinished
// and parked jobs are never forgotten, nor those that are being rolled back, and all that are remembered keep their whole
// history.
//
// Each step is durable before the next begins: that the jobs are forgotten, as events (wal.JobsForgotten), so that every
// fold of the log, a follower's too, forgets the same; a checkpoint; what remembered jobs need of the segments that go;
// then these are removed. It runs beside commands; those on a job that is about to be forgotten wait for the moment
// that takes, and are answered with a [ForgottenError]. Compactions and checkpoints wait for each other.
//
// Errors are those of [Engine.Checkpoint] and [Engine.Do]; an [IncompleteError], before anything was changed; and that of
// Options.Archive, whose segments stay. Whatever the error, the log is whole: what was not done is done the next time.
func (e *Engine) Compact(ctx context.Context, olderThan time.Duration, opts ...CompactOption) (Compaction, error) {
	ctx, release, err := e.own(ctx)
	if err != nil {
		return Compaction{}, err
	}
	defer release()
	c, err := e.compact(ctx, olderThan, len(opts) > 0 && opts[0] == DryRun)
	return c, e.closedInstead(err)
}

func (e *Engine) compact(ctx context.Context, olderThan time.Duration, dry bool) (c Compaction, err error) {
	files, ok := e.log.(Files)
	switch {
	case !ok:
		return c, fmt.Errorf("recovery: compact: this log is no directory: %w", errors.ErrUnsupported)
	case e.opts.WAL.ReadOnly:
		return c, wal.ErrReadOnly
	case olderThan < 0:
		return c, &wal.InvalidError{Field: "olderThan", Reason: "negative"}
	}
	if refused := e.refusedIncomplete(e.unsaved()); len(refused) > 0 {
		return c, &IncompleteError{Names: refused, FirstSeq: e.log.FirstSeq()}
	}
	now := e.opts.WAL.Now()
	c.Before = now.Add(-olderThan)
	going := goes{before: c.Before}
	if dry {
		c.Forgotten = e.countForgettable(c.Before)
	} else if c.Forgotten, err = e.forget(ctx, now, olderThan); err != nil {
		return c, err
	} else if err = e.checkpoint(ctx); err != nil {
		return c, err
	} else if refused := e.refusedIncomplete(e.lacking); len(refused) > 0 {
		return c, &IncompleteError{Names: refused, FirstSeq: e.log.FirstSeq()}
	} else {
		going = goes{} // they are gone
	}
	c.Remembered = e.jobs.Len()
	if dry {
		c.Remembered -= c.Forgotten
	}
	c.Compacted, err = files.Compact(ctx, e.freeBelow(going), wal.CompactOptions{
		Keep: e.keeps(going), Archive: e.opts.Archive, DryRun: dry,
	})
	return c, err
}

// goes tells which jobs a dry run counts as gone.
type goes struct{ before time.Time }

func (g goes) job(job statemachine.Job) bool {
	return !g.before.IsZero() && job.Finished() && job.Parked == "" && !job.RollingBack && ended(job).Before(g.before)
}

// ended is when a finished job came to its end.
func ended(job statemachine.Job) time.Time {
	if job.State == statemachine.RolledBack {
		return job.RolledBackAt
	}
	return job.FinishedAt
}

// unsaved returns the names of projections that a checkpoint made now would lack.
func (e *Engine) unsaved() []string {
	a := e.applier
	a.folding.Lock()
	defer a.folding.Unlock()
	var names []string
	for _, v := range a.views {
		if _, ok := v.Projection.(projection.Snapshotter); !ok || v.out {
			names = append(names, v.Name())
		}
	}
	return names
}

// forgetAtOnce is how many jobs one event lets go of: what the applier is held up by.
const forgetAtOnce = 64

// forget lets go of finished jobs, some at a time, and of ids that were refused for long enough.
func (e *Engine) forget(ctx context.Context, now time.Time, olderThan time.Duration) (forgotten int, err error) {
	f := projection.Forgotten{Before: now.Add(-olderThan), IDsBefore: now.Add(-e.refuseFor(olderThan))}
	atOnce := forgetAtOnce
	for {
		ids := e.jobs.Forgettable(f.Before, atOnce)
		if len(ids) == 0 && !e.jobs.Releasable(f.IDsBefore) {
			return forgotten, nil
		}
		start := time.Now()
		n, err := e.forgetSome(ctx, ids, now, f)
		forgotten += n
		if errors.Is(err, wal.ErrTooLarge) && atOnce > 1 { // Options.WAL.MaxEventBytes is small
			atOnce /= 2
			continue
		}
		if err != nil {
			return forgotten, err
		}
		time.Sleep(min(time.Since(start), 10*time.Millisecond)) // the applier is the commands' as long as it was ours
	}
}

// refuseFor is how long an id is refused.
func (e *Engine) refuseFor(olderThan time.Duration) time.Duration {
	if e.opts.RefuseIDs == 0 {
		return olderThan
	}
	return max(0, e.opts.RefuseIDs)
}

// forgetSome appends one event that names jobs, while nobody else may touch them, and waits until it is applied.
func (e *Engine) forgetSome(ctx context.Context, ids []string, now time.Time, f projection.Forgotten) (int, error) {
	if !e.gate.TryRLock() {
		return 0, wal.ErrClosed
	}
	defer e.gate.RUnlock()
	if err := e.refused(); err != nil {
		return 0, err
	}
	ids, err := e.locks.lock(ctx, ids)
	if err != nil {
		return 0, err
	}
	defer e.locks.unlock(ids)
	for _, id := range ids { // a command may have come first
		if job, ok := e.jobs.Get(id); ok && (goes{f.Before}).job(job) {
			f.Jobs = append(f.Jobs, id)
		}
	}
	event := f.Event()
	event.Time = now
	seq, err := e.log.Append(ctx, event)
	if err != nil {
		return 0, err
	}
	if err := e.applier.wait(seq); err != nil {
		return 0, &unappliedError{err}
	}
	return len(f.Jobs), nil
}

func (e *Engine) countForgettable(before time.Time) (n int) {
	q := projection.Query{Parked: new(false), States: finished}
	for job := range e.jobs.List(q) {
		if (goes{before}).job(job) {
			n++
		}
	}
	return n
}

var finished = []statemachine.State{statemachine.Completed, statemachine.Failed, statemachine.RolledBack}

// freeBelow returns the seq below which little is worth keeping: the newest event of the finished job that was touched
// longest ago. What lies below it belongs to forgotten jobs, to unfinished and half undone ones, and to the few whose last
// event lies above it. One finished job in sixteen may lie below it all the same, so that some whose clock was ahead do not pin the
// log for as long as it was ahead.
func (e *Engine) freeBelow(going goes) uint64 {
	below := e.applier.applied.Load() + 1
	n, _ := e.jobs.Count(projection.Query{States: finished}) // the query is valid
	left := n / 16
	q := projection.Query{Parked: new(false), RollingBack: new(false), States: finished, Order: projection.ByUpdate}
	for job := range e.jobs.List(q) {
		if going.job(job) {
			continue
		}
		if left == 0 {
			return min(below, job.Seq)
		}
		left--
	}
	return below
}

// keeps tells of each event that is about to go whether it is needed: by a job that is remembered, or to refuse the ids of
// those that are not. What nobody knows is kept.
func (e *Engine) keeps(going goes) func(wal.Event) bool {
	return func(event wal.Event) bool {
		switch {
		case event.Type == wal.JobsForgotten:
			return e.jobs.RefusesFrom(event.Seq)
		case event.JobID == "":
			return event.Type != wal.EventLost
		}
		job, ok := e.jobs.Get(event.JobID)
		return ok && event.Seq >= job.FirstSeq && !going.job(job)
	}
}
