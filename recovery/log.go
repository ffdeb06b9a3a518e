package recovery

import (
	"context"
	"errors"
	"io"
	"iter"

	"github.com/jobwal/jobwal/wal"
)

// ErrConflict: the append's expected version was wrong. An event's Prev says which event its caller believes to be its
// job's newest; on a log that several engines append to, another may have been faster. Nothing was written. The engine
// that lost learns of the other's event as it follows the log; the command can then be tried again.
var ErrConflict = errors.New("recovery: lost a race for the job")

// Log is all that an Engine knows of the log. *[wal.Log] satisfies it by way of [OnDisk]; a log that several hosts
// share can stand in its place.
type Log interface {
	// ID names the log, for good.
	ID() string
	// Append adds events, all or none, and returns the seq of the first when they are durable. Of the events it sets
	// Seq and Epoch, Time where it is zero, and Prev of a job's second and later events. A job's first event in an
	// append carries its expected version: Prev must be the seq of the job's newest event in the log, 0 if it has none;
	// otherwise the error matches ErrConflict. A log with one writer, who holds its jobs, may leave that check to it.
	Append(ctx context.Context, events ...wal.Event) (first uint64, err error)
	// Events yields what there is from seq from on, in order, to the end as it was at the call; it ends at an error.
	Events(ctx context.Context, from uint64) iter.Seq2[wal.Event, error]
	// Follow yields what there is from seq from on, in order, then each event that is durable, until ctx is done or the
	// log is closed, without gap or duplicate. Events that other engines appended are among them.
	Follow(ctx context.Context, from uint64) iter.Seq2[wal.Event, error]
	// At returns one event. wal.ErrDropped: it is gone.
	At(ctx context.Context, seq uint64) (wal.Event, error)
	// FirstSeq and LastSeq bound what is there now; LastSeq is durable. Seqs rise by one from event to event.
	FirstSeq() uint64
	LastSeq() uint64
	// Epoch is the number under which this engine's appends are made, from 1. Live tells whether whoever appends under
	// an epoch is still at work, or may be: what it left unfinished is not interrupted yet.
	Epoch() uint64
	Live(epoch uint64) bool
	Close() error
}

// Files is what a log in a directory can do besides, and others need not: keep checkpoints beside itself, and let go of
// its beginning. An Engine on a log without it replays all of it at each Open and forgets nothing.
type Files interface {
	// Checkpoints, SaveCheckpoint and LoadCheckpoint are those of [wal.Log].
	Checkpoints() ([]wal.Checkpoint, error)
	SaveCheckpoint(ctx context.Context, seq uint64, sections []wal.Section) (wal.Checkpoint, error)
	LoadCheckpoint(ctx context.Context, c wal.Checkpoint, load func(wal.Section, io.Reader) error) error
	// Carried yields what compaction kept of the events below FirstSeq: those of jobs that are remembered.
	Carried() iter.Seq2[wal.Event, error]
	Compact(ctx context.Context, before uint64, opts wal.CompactOptions) (wal.Compacted, error)
}

// Chains is what a log can do besides, and others need not: yield a job's past at once. An Engine on a log without it asks
// At for each event.
type Chains interface {
	// Chain yields what At returns for seq, then for that event's Prev, and so on, until there is none; it ends at an error.
	// See [wal.Log.Chain].
	Chain(ctx context.Context, seq uint64) iter.Seq2[wal.Event, error]
}

// OnDisk makes a log in a directory the log of an Engine.
func OnDisk(log *wal.Log) Log { return diskLog{log} }

type diskLog struct{ *wal.Log }

func (l diskLog) Events(ctx context.Context, from uint64) iter.Seq2[wal.Event, error] {
	return until(ctx, l.Log.Events(from))
}

func (l diskLog) Chain(ctx context.Context, seq uint64) iter.Seq2[wal.Event, error] {
	return until(ctx, l.Log.Chain(seq))
}

// until ends what yields events when ctx is done.
func until(ctx context.Context, events iter.Seq2[wal.Event, error]) iter.Seq2[wal.Event, error] {
	return func(yield func(wal.Event, error) bool) {
		if ctx == nil {
			yield(wal.Event{}, &wal.InvalidError{Field: "context", Reason: "nil"})
			return
		}
		for e, err := range events {
			if err == nil && ctx.Err() != nil {
				e, err = wal.Event{}, ctx.Err()
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

func (l diskLog) At(ctx context.Context, seq uint64) (wal.Event, error) {
	if ctx == nil {
		return wal.Event{}, &wal.InvalidError{Field: "context", Reason: "nil"}
	}
	if err := ctx.Err(); err != nil {
		return wal.Event{}, err
	}
	return l.Log.At(seq)
}

// Live: a directory has one writer, so every epoch but the newest has ended. Of a log that was opened read-only, the
// newest may be that of a writer at work.
func (l diskLog) Live(epoch uint64) bool { return epoch == l.Epoch() }
