package wal

import (
	"context"
	"io"
	"iter"
	"sync"
	"time"
)

// A Log is one opening of a log. Its methods are safe for concurrent use.
type Log struct {
	dir    string
	opts   Options
	fs     FS
	lock   io.Closer
	report Report
	idle   *time.Timer

	// The committer's own. Whoever set leading, under mu, is the committer until it hands that on; nobody else touches
	// these.
	active     File
	next       uint64 // the seq of the next event
	newSegment bool   // the active segment is final: what comes next goes to a new one
	witnessed  uint64 // the highest durable seq that a line speaks of
	prefill    bool   // newlines are written ahead of the lines
	filled     int64  // the active segment's end on disk: size, and newlines behind it
	crowd      int    // how many requests the last batch had, and how many waited when it was done
	alone      int    // how many batches have begun behind one that had one request, and nobody waited; the committer's
	buf        []byte
	batch      []*request // what takeLocked has taken

	mu        sync.Mutex // guards the fields below; never held during I/O, nor while yielding
	id        string     // with ReadOnly it may change from "", and epoch grow
	epoch     uint64
	segments  []segment // oldest first; the last is the active one, its size that of what is shown
	floor     uint64
	carried   uint64 // events below the floor that the carried file of that floor holds; 0: there is no such file
	last      uint64 // shown to all
	durable   uint64 // on stable storage; last == durable with SyncAlways
	recent    window
	queue     []*request // whoever is at its head leads next; empty when nobody leads
	queued    int64      // bytes in it
	leading   bool
	room      chan struct{} // closed when the queue has been taken from; nil when nobody waits for it
	changed   chan struct{} // closed when last grows, or the log closes; nil when nobody waits for it
	failed    *failure
	closed    bool
	done      chan struct{} // closed when Close is done
	closeErr  error
	syncArmed bool // a sync of SyncEvery is under way

	stopUpkeep context.CancelCauseFunc // ends the one that is under way

	upkeep chan struct{} // holds what the one upkeep at a time has put there; see beginUpkeep

	reader *reader // set with Options.ReadOnly, and then none of the committer's
}

// Append adds events, all or none, as one group, and returns the seq of the first when they are on stable storage
// (Options.Sync says what a weaker setting means by that). Events of several callers that wait at the same time share
// one sync.
//
// Refused, with nothing written: no events or a nil ctx, a Time outside 1970 to 9999, an empty Type, a job's event
// without JobID, a Type, JobID or Capability of more than 256 bytes, of invalid UTF-8 or with control characters, an
// Error of invalid UTF-8, Args or Output that are not strict JSON (RFC 7493: valid UTF-8, no duplicate names, no lone
// surrogates, numbers within a double's range; at most 100 deep), a Prev that the log has not reached (all
// [ErrInvalid]); an event beyond Options.MaxEventBytes, or events beyond MaxLineBytes together ([ErrTooLarge]).
//
// ctx ends the wait for a place in the queue; once queued, the call waits for the outcome, which is one of: nil;
// [ErrNoSpace], with what was written taken back; [ErrFailed], for good; [ErrFailed] with [ErrOutcomeUnknown] when the
// events may or may not be there at the next Open; [ErrClosed].
//
// The events and what they point to stay the caller's and are not changed; Seq and Epoch in them are ignored.
func (l *Log) Append(ctx context.Context, events ...Event) (first uint64, err error) {
	if ctx == nil {
		return 0, invalid("context", "nil")
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	if l.reader != nil {
		return 0, ErrReadOnly
	}
	r, err := l.prepare(events)
	if err != nil {
		return 0, err
	}
	err = l.commit(ctx, r)
	first = r.first
	r.free()
	if err != nil {
		return 0, err
	}
	return first, nil
}

// Events yields the events from seq from on, in order, to the end as it was when Events was called; from 0 means the
// first that is there. It reads as it goes, in bounded memory. It ends at the first error: [ErrDropped] when from was
// dropped, [ErrCorrupt], [ErrClosed], or the file system's. What is yielded belongs to the caller.
func (l *Log) Events(from uint64) iter.Seq2[Event, error] {
	last, err := l.refresh()
	return func(yield func(Event, error) bool) {
		if err != nil {
			yield(Event{}, err)
			return
		}
		l.read(from, last, yield)
	}
}

// Follow yields the events from seq from on, in order, and then each new one when it is durable, without gap or
// duplicate, until ctx is done or the log is closed: it ends with ctx.Err() or [ErrClosed]. Inside one process it does
// not poll; a ReadOnly log looks for what another process wrote every few milliseconds. A follower that falls behind
// reads from disk; one that falls behind DropBefore gets [ErrDropped]. What is yielded belongs to the caller.
func (l *Log) Follow(ctx context.Context, from uint64) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		if ctx == nil {
			yield(Event{}, invalid("context", "nil"))
			return
		}
		l.follow(ctx, from, yield)
	}
}

// At returns the event with the given seq: ErrInvalid when the log has not reached it, [ErrDropped] when it is gone. What
// a compaction kept is there, too. It costs one read where the log has been read or written before, and a few elsewhere,
// however large it is.
func (l *Log) At(seq uint64) (Event, error) {
	last, err := l.refresh()
	if err != nil {
		return Event{}, err
	}
	if seq == 0 || seq > last {
		return Event{}, unreached(seq, last)
	}
	return l.readAny(seq)
}

func unreached(seq, last uint64) error {
	return invalid("seq", "%d; the log ends at seq %d", seq, last)
}

// Tail returns the last n events, or all when there are fewer, oldest first. Its cost grows with n, not with the log.
func (l *Log) Tail(n int) ([]Event, error) {
	last, err := l.refresh()
	if err != nil || n <= 0 {
		return nil, err
	}
	return l.readLast(last, n)
}

// ID is the log's own name, 32 hex digits, made once, when the log was made. A ReadOnly log that found nothing yet
// has none.
func (l *Log) ID() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.id
}

// FirstSeq is the seq of the oldest event that is there, LastSeq()+1 when there is none.
func (l *Log) FirstSeq() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.firstLocked()
}

func (l *Log) firstLocked() uint64 {
	if len(l.segments) == 0 {
		return l.last + 1
	}
	return l.segments[0].first
}

// LastSeq is the seq of the newest event that is shown, 0 for an empty log. A ReadOnly log learns of new ones when it
// is read.
func (l *Log) LastSeq() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}

// Epoch is the number of this opening, from 1; for a ReadOnly log, of the newest that it found.
func (l *Log) Epoch() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.epoch
}

// Report says what Open found and did.
func (l *Log) Report() Report { return l.report }

// DropBefore removes the oldest segments as far as every event in them is older than seq. Only whole segments go, and
// never the active one. After a crash in the middle the next Open finishes it. It is [Log.Compact] that keeps nothing.
func (l *Log) DropBefore(seq uint64) error {
	_, err := l.Compact(context.Background(), seq, CompactOptions{})
	return err
}

// Close ends the log. Appends in flight finish first; those that wait in the queue return ErrClosed, with nothing
// written, as everything does afterwards. It syncs, marks the end as a clean one, and gives the lock back. Its error
// is that of a log that had failed, or of closing it. Closing again returns the same. A checkpoint or a compaction that is
// under way is ended, and waited for: do not close from within a function that one of them calls.
func (l *Log) Close() error {
	l.mu.Lock()
	if l.closed {
		done := l.done
		l.mu.Unlock()
		<-done
		return l.closeErr
	}
	l.closed, l.done = true, make(chan struct{})
	if l.stopUpkeep != nil {
		l.stopUpkeep(ErrClosed)
	}
	l.wakeLocked()
	l.mu.Unlock()
	defer close(l.done)
	if l.reader == nil {
		l.closeErr = &failure{cause: errGone} // unless closeWriter returns
		l.closeErr = l.closeWriter()
	}
	return l.closeErr
}

// wakeLocked wakes whoever waits for a change, or for room in the queue.
func (l *Log) wakeLocked() {
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
	if l.room != nil {
		close(l.room)
		l.room = nil
	}
}
