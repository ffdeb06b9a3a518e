package wal

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"time"
)

// Group commit. Callers put requests into a queue; the first of them becomes the committer, writes and syncs whatever
// is queued as one batch, wakes those whose events are durable, and hands over to whoever is then at the head of the
// queue. So a lone caller switches no goroutine, callers that come while a sync runs share the next one, and nothing
// runs when nobody appends. There is one committer at a time, and it alone writes and syncs: a sync beside it could
// swallow the one report of an error.

const (
	maxBatch  = 1 << 20  // a batch grows no further once it is this large: a sync's cost grows from there on
	maxQueued = 16 << 20 // callers wait when this much is queued
	idleAfter = 5 * time.Millisecond
)

// commit queues a request and returns when it is done.
func (l *Log) commit(ctx context.Context, r *request) error {
	l.mu.Lock()
	if last := l.last; r.reach > last {
		l.mu.Unlock()
		return r.checkPrev(last)
	}
	for {
		if err := l.refusedLocked(); err != nil {
			l.mu.Unlock()
			return err
		}
		if l.queued < maxQueued { // one may go beyond it: waiting for room of its own size, a large one would never have it
			break
		}
		if l.room == nil {
			l.room = make(chan struct{})
		}
		room := l.room
		l.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
			return ctx.Err()
		}
		l.mu.Lock()
	}
	lead := l.enqueueLocked(r)
	l.mu.Unlock()
	if lead || r.wait() {
		l.lead(r)
	}
	return r.err
}

func (l *Log) refusedLocked() error {
	switch {
	case l.closed:
		return ErrClosed
	case l.failed != nil:
		return l.failed
	}
	return nil
}

// enqueueLocked puts r at the end of the queue and tells whether it is for the caller to lead.
func (l *Log) enqueueLocked(r *request) (lead bool) {
	l.queue = append(l.queue, r)
	l.queued += r.size
	if l.leading {
		r.gate.Add(1)
		return false
	}
	l.leading = true
	return true
}

// lead does one batch, whose first request is own, and hands over.
func (l *Log) lead(own *request) {
	l.gather()
	l.mu.Lock()
	batch := l.takeLocked()
	refused := l.refusedLocked()
	l.mu.Unlock()

	over := false
	defer func() {
		if !over {
			setErr(batch, l.fail(errGone))
		}
		l.handOver(batch, own)
	}()
	switch {
	case refused != nil && !own.final:
		setErr(batch, refused)
	case own.task != nil:
		own.err = own.task()
	default:
		l.write(batch)
	}
	over = true
}

// gather lets callers that were just woken come back with their next event before the batch is taken: without this a
// closed loop of n callers gets stuck at half of them a sync. It waits only as long as more come, and not at all when all
// are there who were about when the last batch was done.
//
// A caller who seems to be alone gives way now and then, which costs him some microseconds. On one processor he might not
// be: the scheduler takes it from a system call that lasts, not from one short sync after the other, and whoever could
// have shared them would wait until his time slice is over.
func (l *Log) gather() {
	const (
		patience = 10 // yields in which nobody came: some microseconds where nothing else runs, and nothing beside a sync
		often    = 16
	)
	if l.crowd <= 1 {
		if l.alone++; l.alone%often == 0 {
			runtime.Gosched()
		}
		return
	}
	queued := l.waiting()
	for idle := 0; queued < l.crowd && idle < patience; idle++ {
		runtime.Gosched()
		if n := l.waiting(); n > queued {
			queued, idle = n, 0
		}
	}
}

// waiting is how many requests are in the queue.
func (l *Log) waiting() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.queue)
}

// errGone: code that is not ours did not come back to the committer. The panic goes on; nobody is left waiting for it.
var errGone = errors.New("Options.FS or Options.Now panicked, or ended the goroutine, in the middle of a write")

// takeLocked takes the head of the queue: one task, or the appends that go into one write.
func (l *Log) takeLocked() []*request {
	n, size := 1, l.queue[0].size
	if l.queue[0].task == nil {
		limit := l.batchLimitLocked(size)
		for n < len(l.queue) && l.queue[n].task == nil && size+l.queue[n].size <= limit {
			size += l.queue[n].size
			n++
		}
	}
	l.batch = append(l.batch[:0], l.queue[:n]...)
	rest := copy(l.queue, l.queue[n:])
	clear(l.queue[rest:])
	l.queue = l.queue[:rest]
	l.queued -= size
	if l.room != nil {
		close(l.room)
		l.room = nil
	}
	return l.batch
}

// batchLimitLocked: a batch fits into one segment.
func (l *Log) batchLimitLocked(first int64) int64 {
	room := l.opts.SegmentBytes
	if left := room - l.segments[len(l.segments)-1].size; !l.newSegment && first <= left {
		room = left
	}
	return min(room, maxBatch)
}

// handOver wakes the batch and makes the head of the queue the next committer.
func (l *Log) handOver(batch []*request, own *request) {
	for i, r := range batch {
		batch[i] = nil // it is the next committer's, and must not hold on to what it once held
		if r != own {
			r.open(false)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.crowd = len(batch) + len(l.queue)
	if len(l.queue) > 0 {
		l.queue[0].open(true)
		return
	}
	l.leading = false
	if l.refusedLocked() == nil && l.witnessed < l.durable && !l.newSegment { // nothing goes behind what is final
		l.idle.Reset(idleAfter)
	}
}

func setErr(batch []*request, err error) {
	for _, r := range batch {
		r.err = err
	}
}

// fail ends appending for good, with the first cause for all who come.
func (l *Log) fail(cause error) *failure {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed == nil {
		l.failed = &failure{cause: cause}
	}
	return &failure{cause: l.failed.cause, unknown: true}
}

// write puts a batch into the log.
func (l *Log) write(batch []*request) {
	var size int64
	for _, r := range batch {
		size += r.size
	}
	if err := l.makeRoom(size); err != nil {
		if errors.Is(err, ErrFailed) {
			err = &failure{cause: errors.Unwrap(err)} // nothing of this batch was written: its outcome is known
		}
		setErr(batch, err)
		return
	}
	buf := l.encode(batch)
	if err := l.put(buf, l.ahead(int64(len(buf))), l.opts.Sync == SyncAlways); err != nil {
		setErr(batch, err)
		return
	}
	l.show(batch, int64(len(buf)))
}

// encode gives a batch its places and its bytes.
func (l *Log) encode(batch []*request) []byte {
	seg := l.segments[len(l.segments)-1]
	buf, seq := l.buf[:0], l.next
	note := noting{to: seg.places} // should the write fail, a place that is not one does no harm
	for _, r := range batch {
		r.first = seq
		from := 0
		for i := range r.events {
			e := &r.events[i]
			e.Seq, e.Epoch = seq, l.epoch
			if j := r.links[i]; j >= 0 {
				e.Prev = r.first + uint64(j)
			}
			at := place{seq: seq, prev: e.Prev, epoch: l.epoch, more: len(r.events) - 1 - i, durable: l.durable}
			begin := seg.size + int64(len(buf))
			buf = appendLine(buf, at, r.bodies[from:r.ends[i]], seg.seed)
			note.line(seq, begin, seg.size+int64(len(buf)))
			from = r.ends[i]
			seq++
		}
	}
	l.keep(buf)
	return buf
}

// keep leaves a buffer to the next write, unless it is a very large one.
func (l *Log) keep(buf []byte) {
	if cap(buf) <= 2*maxBatch {
		l.buf = buf
	}
}

// put writes bytes behind what is shown, with so many newlines behind them, and, if it is to, syncs them. On an error
// that is not a failure of the log, the file is as it was.
func (l *Log) put(buf []byte, newlines int64, sync bool) error {
	seg := &l.segments[len(l.segments)-1]
	if err := l.writeAhead(buf, newlines); err != nil {
		if !isNoSpace(err) {
			return l.fail(err)
		}
		return l.takeBack(&NoSpaceError{Path: seg.path, Need: int64(len(buf)), Err: err})
	}
	// crash C8: the group is written, whole, in part or not at all, and not synced. Nobody was told: the next Open keeps
	// it if it is whole, and cuts it if not.
	if !sync {
		return nil
	}
	return l.syncFile()
}

func (l *Log) syncFile() error {
	if err := l.active.Sync(); err != nil {
		return l.fail(err)
	}
	return nil
}

// takeBack cuts what a write without room left behind. Nothing goes behind the cut: what was there may come back.
func (l *Log) takeBack(cause *NoSpaceError) error {
	size := l.segments[len(l.segments)-1].size
	if err := l.active.Truncate(size); err != nil {
		return l.fail(errors.Join(cause, err))
	}
	l.filled = size
	if err := l.active.Sync(); err != nil {
		return l.fail(errors.Join(cause, err))
	}
	// With the others than SyncAlways this sync covered what was shown before, too.
	l.newSegment = true
	l.mu.Lock()
	l.durable = l.last
	l.mu.Unlock()
	return cause
}

// show lets everyone see a batch that is written and, if that was asked for, durable.
func (l *Log) show(batch []*request, size int64) {
	l.witnessed = max(l.witnessed, l.durable)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range batch {
		l.recent.add(r.events)
		l.next += uint64(len(r.events))
	}
	l.segments[len(l.segments)-1].size += size
	l.last = l.next - 1
	if l.opts.Sync == SyncAlways {
		l.durable = l.last
	} else if l.opts.Sync > 0 && !l.syncArmed {
		l.syncArmed = true
		time.AfterFunc(time.Duration(l.opts.Sync), l.onSyncDue)
	}
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// makeRoom rotates when the active segment is full or final. On an error that is not a failure of the log, the log is
// as it was and the next call tries again.
func (l *Log) makeRoom(size int64) error {
	seg := l.segments[len(l.segments)-1]
	full := seg.first != l.next && seg.size+size > l.opts.SegmentBytes
	if !full && !l.newSegment {
		return nil
	}
	return l.rotate()
}

// rotate goes on in a new segment, with the errors of makeRoom.
func (l *Log) rotate() error {
	if !l.newSegment {
		if err := l.sealActive(); err != nil && !errors.Is(err, ErrNoSpace) {
			return err
		}
		l.newSegment = true
	}
	if l.active != nil {
		err := l.active.Close()
		l.active = nil
		if err != nil {
			return l.fail(err)
		}
	}
	// crash C9: the old segment is sealed, the new one not there yet. The next Open makes it.
	err := l.addSegment()
	switch {
	case err == nil:
		l.newSegment = false
		return nil
	case errors.Is(err, ErrNoSpace):
		return err
	}
	return l.fail(err)
}

// sealActive syncs the active segment and marks its end. Without room for the mark it goes without.
func (l *Log) sealActive() error {
	if err := l.syncActive(); err != nil {
		return err
	}
	return l.putLast(mark{Kind: markSealed, Last: l.last, Durable: l.last})
}

// syncActive puts what SyncEvery and SyncNever left unsynced on stable storage.
func (l *Log) syncActive() error {
	if l.durable == l.last || l.active == nil {
		return nil
	}
	if err := l.active.Sync(); err != nil {
		return l.fail(err)
	}
	l.mu.Lock()
	l.durable = l.last
	l.mu.Unlock()
	return nil
}

// putMark writes a mark behind what is shown.
func (l *Log) putMark(m mark, sync bool) error {
	n := len(l.segments) - 1
	buf := appendMark(l.buf[:0], m, l.segments[n].seed)
	if err := l.put(buf, 0, sync); err != nil {
		return err
	}
	l.witnessed = max(l.witnessed, m.Durable)
	l.mu.Lock()
	l.segments[n].size += int64(len(buf))
	l.mu.Unlock()
	return nil
}

// onIdle writes, without a sync, that the last group is durable, once the log has been idle for some milliseconds: so
// damage to it is told from a torn tail, and readers in other processes see it.
func (l *Log) onIdle() {
	l.tryTask(func() error {
		if l.witnessed >= l.durable || l.newSegment || l.active == nil {
			return nil
		}
		return l.putMark(mark{Kind: markDurable, Durable: l.durable}, false)
	})
}

func (l *Log) onSyncDue() {
	l.mu.Lock()
	l.syncArmed = false
	l.mu.Unlock()
	if err := l.commit(context.Background(), newTask(l.syncActive)); err != nil && !errors.Is(err, ErrClosed) {
		l.logFailure(err)
	}
}

// tryTask runs a task if nothing else is going on.
func (l *Log) tryTask(run func() error) {
	l.mu.Lock()
	if l.refusedLocked() != nil || l.leading {
		l.mu.Unlock()
		return
	}
	r := newTask(run)
	l.enqueueLocked(r)
	l.mu.Unlock()
	l.lead(r)
	// A disk too full for the mark shows at the next append, to someone who waits for it.
	if r.err != nil && !errors.Is(r.err, ErrNoSpace) {
		l.logFailure(r.err)
	}
}

// logFailure is for failures that happen while nobody waits; whoever appends next is told, too.
func (l *Log) logFailure(err error) {
	l.opts.Logger.Error("wal: the log has failed", slog.String("dir", l.dir), slog.Any("error", err))
}

// closeWriter ends writing. Close has set closed, so the queue only drains.
func (l *Log) closeWriter() error {
	l.idle.Stop()
	defer l.awaitUpkeep()()
	r := newTask(l.finish)
	r.final = true
	l.mu.Lock()
	lead := l.enqueueLocked(r)
	l.mu.Unlock()
	if lead || r.wait() {
		l.lead(r)
	}
	return r.err
}

// finish syncs what is not synced, marks a clean end, closes the file and gives the lock back.
func (l *Log) finish() (err error) {
	defer func() { // also when something panics
		if l.active != nil {
			err = errors.Join(err, l.active.Close())
			l.active = nil
		}
		err = errors.Join(err, l.lock.Close())
	}()
	l.mu.Lock()
	failed := l.failed
	l.mu.Unlock()
	if failed != nil {
		return failed
	}
	return l.markClosed()
}

func (l *Log) markClosed() error {
	if err := l.syncActive(); err != nil {
		return err
	}
	if l.newSegment || l.active == nil {
		return nil // the segment is final; the next Open goes on in a new one
	}
	err := l.putLast(mark{Kind: markClosed, Epoch: l.epoch, Time: l.opts.Now(), Last: l.last, Durable: l.last})
	if errors.Is(err, ErrNoSpace) {
		return nil // all is durable; only the mark is missing
	}
	return err
}
