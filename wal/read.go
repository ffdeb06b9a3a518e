package wal

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sort"
	"strconv"
)

// Reading what is shown: ranges from the front, single events by search, the last n from the back.

// snapshot is what a read needs of the log, as it was at one moment.
type snapshot struct {
	segments []segment
	last     uint64
}

func (l *Log) snapshot() (snapshot, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return snapshot{}, ErrClosed
	}
	return snapshot{slices.Clone(l.segments), l.last}, nil
}

// find returns the index of the segment that holds seq, or the DroppedError that says why there is none.
func (s snapshot) find(seq uint64) (int, error) {
	i := sort.Search(len(s.segments), func(i int) bool { return s.segments[i].first > seq }) - 1
	if i < 0 {
		return 0, &DroppedError{Seq: seq, First: s.first()}
	}
	return i, nil
}

// first is the first seq there is, or the next one there will be.
func (s snapshot) first() uint64 {
	if len(s.segments) == 0 {
		return s.last + 1
	}
	return s.segments[0].first
}

// lastOf is the last seq of the i-th segment.
func (s snapshot) lastOf(i int) uint64 {
	if i+1 < len(s.segments) {
		return min(s.last, s.segments[i+1].first-1)
	}
	return s.last
}

// read yields the events from..last.
func (l *Log) read(from, last uint64, yield func(Event, error) bool) {
	for from <= last {
		snap, err := l.snapshot()
		if err != nil {
			yield(Event{}, err)
			return
		}
		if from == 0 {
			if len(snap.segments) == 0 {
				return // ReadOnly, and no log yet
			}
			from = snap.segments[0].first
			continue
		}
		i, err := snap.find(from)
		if err != nil {
			yield(Event{}, err)
			return
		}
		to := min(last, snap.lastOf(i))
		final := i+1 < len(snap.segments) && to == snap.lastOf(i)
		if !l.readSegment(snap.segments[i], from, to, snap.lastOf(i), final, yield) {
			return
		}
		from = to + 1
	}
}

// readSegment yields the events from..to, which one segment holds, whose last event is last, and tells whether to go on.
// final: to is the last one of a sealed segment, so that no event may stand behind it.
func (l *Log) readSegment(seg segment, from, to, last uint64, final bool, yield func(Event, error) bool) bool {
	f, err := l.openSegment(seg, from)
	if err != nil {
		yield(Event{}, err)
		return false
	}
	defer f.Close() // only read
	at := seg.header
	if from > seg.first {
		start, err := findLine(f, seg, from, last)
		if err != nil {
			yield(Event{}, wrapped(err))
			return false
		}
		at = start.at
	}
	r := newRangeReader(seg, newLineReader(f, at, seg.size), from)
	if to-from >= slabFrom {
		r.slab.size = slabSize
	}
	defer r.lines.close()
	for r.next <= to {
		e, err := r.event()
		if err == nil && l.isClosed() {
			err = ErrClosed
		}
		if err != nil {
			yield(Event{}, wrapped(err))
			return false
		}
		if !yield(e, nil) {
			return false
		}
	}
	if !final {
		return true
	}
	if err := r.over(); err != nil {
		yield(Event{}, wrapped(err))
		return false
	}
	return true
}

// slabFrom is how many events make it pay to have their payloads copied into slabs.
const slabFrom = 16

// openSegment opens a segment for reading. One that is gone was dropped since the snapshot was taken.
func (l *Log) openSegment(seg segment, seq uint64) (File, error) {
	f, err := l.fs.OpenFile(seg.path, os.O_RDONLY, 0)
	if isNotExist(err) {
		// A ReadOnly log learns only now what the writer beside it dropped.
		if _, err := l.refresh(); err != nil {
			return nil, err
		}
		if first := l.FirstSeq(); seq < first {
			return nil, &DroppedError{Seq: seq, First: first}
		}
		return nil, &CorruptError{Path: seg.path, Seq: seq, Reason: "the segment is gone"}
	}
	return f, wrapped(err)
}

func (l *Log) isClosed() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.closed
}

// rangeReader reads events that are known to be there.
type rangeReader struct {
	decoder
	seg   segment
	lines *lineReader
	next  uint64
	rec   record
	note  noting
}

func newRangeReader(seg segment, lines *lineReader, next uint64) *rangeReader {
	return &rangeReader{seg: seg, lines: lines, next: next, note: noting{to: seg.places}}
}

func (r *rangeReader) event() (Event, error) {
	if _, err := r.line(); err != nil {
		return Event{}, err
	}
	return r.decoder.event(&r.rec), nil
}

// line reads the next event into rec and returns its line.
func (r *rangeReader) line() ([]byte, error) {
	for {
		l, err := r.lines.next()
		if errors.Is(err, io.EOF) {
			return nil, r.corrupt(r.lines.at, "the segment ends here")
		}
		if err != nil {
			return nil, err
		}
		if l.gap {
			return nil, r.corrupt(l.at, errGap.Error())
		}
		if l.bytes == nil || !l.whole {
			return nil, r.corrupt(l.at, errIncomplete.Error())
		}
		if err := r.decode(l.bytes, r.seg.seed, &r.rec); err != nil {
			return nil, r.corrupt(l.at, err.Error())
		}
		if r.rec.mark != nil {
			continue
		}
		if r.rec.seq != r.next {
			return nil, r.corrupt(l.at, fmt.Sprintf("seq %d where %d was expected", r.rec.seq, r.next))
		}
		r.note.line(r.next, l.at, l.end)
		r.next++
		return l.bytes, nil
	}
}

// over reads what follows a sealed segment's last event. If it speaks of a later one as durable, that seq was given twice,
// as when files of two copies of one log, each of which went on by itself, lie in one directory. What nothing speaks of
// is a torn tail that was cut, on a disk that lied about it.
func (r *rangeReader) over() error {
	for {
		l, err := r.lines.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if r.decode(l.bytes, r.seg.seed, &r.rec) == nil && r.rec.durable >= r.next {
			return r.corrupt(l.at, fmt.Sprintf("seq %d was durable here, and the next segment claims it too", r.rec.durable))
		}
	}
}

func (r *rangeReader) corrupt(at int64, reason string) error {
	return &CorruptError{Path: r.seg.path, Offset: at, Seq: r.next, Reason: reason}
}

// lineOf is where an event's line lies, and what it says.
type lineOf struct {
	at, end int64
	event   Event
}

// findLine finds the line of an event that is known to be in the segment, whose last event is last. Seqs rise with
// offsets, so it can be searched for; what is known of places makes that short, and is not believed: what is not found in
// its light is looked for without it.
func findLine(f io.ReaderAt, seg segment, seq, last uint64) (lineOf, error) {
	return new(decoder).findLine(f, seg, seq, last)
}

func (d *decoder) findLine(f io.ReaderAt, seg segment, seq, last uint64) (lineOf, error) {
	first, end := placed{seg.first, seg.header}, placed{last + 1, seg.size}
	lo, hi := seg.places.around(seq, first, end)
	got, err := d.search(f, seg, lo, hi, seq)
	if err != nil && (lo != first || hi != end) {
		return d.search(f, seg, first, end, seq)
	}
	return got, err
}

// search finds the line of seq, which begins in [lo, hi). It guesses from the seqs where that may be; every third step halves
// what is left, however wrong the guesses are.
func (d *decoder) search(f io.ReaderAt, seg segment, lo, hi placed, seq uint64) (lineOf, error) {
	for step := 1; ; step++ {
		if hi.at-lo.at <= glanceBytes || distance(lo, hi, seq) <= glanceBytes/2 {
			if got, ok := d.glance(f, seg, lo, hi, seq); ok {
				return got, nil
			}
		}
		if hi.at-lo.at <= 2*probeBytes {
			return d.walk(f, seg, lo.at, hi.at, seq)
		}
		// Somewhat before it, so that a glance on from there meets it.
		mid := max(lo.at+1, lo.at+distance(lo, hi, seq)-glanceBytes/4)
		if step%3 == 0 {
			mid = lo.at + (hi.at-lo.at)/2
		}
		got, at, end, err := d.probe(f, seg, mid, hi.at)
		if err != nil {
			return lineOf{}, err
		}
		switch {
		case got == 0: // no event begins in [mid, hi)
			hi.at = mid
		case got > seq: // a later one is the first to
			hi = placed{got, mid}
		case got < seq:
			lo = placed{got + 1, end}
		default:
			return d.walk(f, seg, at, end, seq)
		}
	}
}

// distance is how far behind lo the line of seq would be, if all lines were of one length.
func distance(lo, hi placed, seq uint64) int64 {
	if seq <= lo.seq || hi.seq <= seq {
		return 0
	}
	return int64(float64(hi.at-lo.at) * (float64(seq-lo.seq) / float64(hi.seq-lo.seq)))
}

const (
	probeBytes  = 4 << 10  // what one step of a search reads; a few lines
	glanceBytes = 32 << 10 // what is read at once when the line should be there
)

// glance looks for the line of seq in the beginning of [lo, hi), in the writer's spelling, and passes over the others unread.
// Not to find it says nothing.
func (d *decoder) glance(f io.ReaderAt, seg segment, lo, hi placed, seq uint64) (lineOf, bool) {
	if lo.seq != seq { // else the line begins at lo, however long it is
		hi.at = min(hi.at, lo.at+glanceBytes)
	}
	lines := newLineReader(f, lo.at, hi.at)
	if hi.seq != seq+1 { // else all of it is this line
		lines.buf = lines.buf[:glanceBytes]
	}
	defer lines.close()
	begin := append(strconv.AppendUint([]byte(`{"seq":`), seq, 10), ',')
	var rec record
	for {
		l, err := lines.next()
		if err != nil {
			return lineOf{}, false
		}
		if bytes.HasPrefix(l.bytes, begin) && l.whole && d.decode(l.bytes, seg.seed, &rec) == nil && rec.seq == seq {
			seg.places.add(seq, l.at, l.end)
			return lineOf{l.at, l.end, d.event(&rec)}, true
		}
	}
}

// probe returns the first event whose line begins behind the first newline in [from, to); seq 0 when there is none.
// Lines that are not intact are passed over: they are not what is looked for, or walk will say so.
func (d *decoder) probe(f io.ReaderAt, seg segment, from, to int64) (seq uint64, at, end int64, err error) {
	lines := smallLineReader(f, from-1, seg.size)
	defer lines.close()
	// What stands before the first newline began before from; if the byte before from is a newline, that is nothing.
	first, err := lines.next()
	if err == nil && first.at > from-1 && first.bytes != nil {
		lines.back(first)
	}
	var rec record
	for err == nil {
		var l line
		if l, err = lines.next(); err != nil || l.at >= to {
			break
		}
		if l.whole && d.decode(l.bytes, seg.seed, &rec) == nil && rec.mark == nil {
			seg.places.add(rec.seq, l.at, l.end)
			return rec.seq, l.at, l.end, nil
		}
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return 0, 0, 0, err
}

// walk reads the lines that begin in [lo, hi) one by one.
func (d *decoder) walk(f io.ReaderAt, seg segment, lo, hi int64, seq uint64) (lineOf, error) {
	lines := smallLineReader(f, lo, seg.size)
	if hi-lo > probeBytes {
		lines = newLineReader(f, lo, seg.size)
	}
	defer lines.close()
	missing := func(at int64, reason string) error {
		return &CorruptError{Path: seg.path, Offset: at, Seq: seq, Reason: reason}
	}
	var rec record
	for bad := ""; ; {
		l, err := lines.next()
		if errors.Is(err, io.EOF) || err == nil && l.at >= hi {
			return lineOf{}, missing(lo, "the event is not here"+bad)
		}
		if err != nil {
			return lineOf{}, err
		}
		if err := d.decode(l.bytes, seg.seed, &rec); err != nil || !l.whole {
			bad = fmt.Sprintf("; offset %d: %v", l.at, cmp.Or(err, errIncomplete))
			continue
		}
		switch {
		case rec.mark != nil || rec.seq < seq:
		case rec.seq == seq:
			return lineOf{l.at, l.end, d.event(&rec)}, nil
		default:
			return lineOf{}, missing(l.at, fmt.Sprintf("seq %d where %d was expected%s", rec.seq, seq, bad))
		}
	}
}

// readOne finds one event.
func (l *Log) readOne(seq uint64) (Event, error) {
	snap, err := l.snapshot()
	if err != nil {
		return Event{}, err
	}
	i, err := snap.find(seq)
	if err != nil {
		return Event{}, err
	}
	f, err := l.openSegment(snap.segments[i], seq)
	if err != nil {
		return Event{}, err
	}
	defer f.Close() // only read
	got, err := findLine(f, snap.segments[i], seq, snap.lastOf(i))
	return got.event, wrapped(err)
}

// readLast reads the events last-n+1..last, or as many of them as there are.
func (l *Log) readLast(last uint64, n int) ([]Event, error) {
	snap, err := l.snapshot()
	if err != nil || len(snap.segments) == 0 || last < snap.segments[0].first {
		return nil, err
	}
	from := snap.segments[0].first
	if uint64(n) < last-from+1 {
		from = last - uint64(n) + 1
	}
	events := make([]Event, 0, min(n, 1024))
	l.read(from, last, func(e Event, readErr error) bool {
		if readErr != nil {
			err = readErr
			return false
		}
		events = append(events, e)
		return true
	})
	if err != nil {
		return nil, err
	}
	return events, nil
}

// follow yields what is there and waits for more.
func (l *Log) follow(ctx context.Context, from uint64, yield func(Event, error) bool) {
	more := true
	deliver := func(e Event, err error) bool {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			yield(Event{}, err)
			more = false
			return false
		}
		from = e.Seq + 1
		more = yield(e, nil)
		return more
	}
	room := make([]Event, 0, 64)
	for more {
		recent, last, wait, err := l.newer(from, room)
		switch {
		case err != nil:
			deliver(Event{}, err)
		case wait != nil:
			if err := l.wait(ctx, wait); err != nil {
				deliver(Event{}, err)
			}
		case len(recent) == 0:
			l.read(from, last, deliver)
		}
		for i := 0; more && i < len(recent); i++ {
			deliver(recent[i].clone(), nil)
		}
		clear(recent) // the events are not held while there is nothing new
	}
}

// newer returns what there is to deliver from seq from on: events from memory, put into room, or last for a read up to
// there, or else a channel to wait on.
func (l *Log) newer(from uint64, room []Event) (recent []Event, last uint64, wait <-chan struct{}, err error) {
	if last, err = l.refresh(); err != nil {
		return nil, 0, nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		return nil, 0, nil, ErrClosed
	case from == 0:
		from = l.firstLocked()
	case from < l.firstLocked(): // also if it still is in memory: dropped is dropped, for every reader
		return nil, 0, nil, &DroppedError{Seq: from, First: l.firstLocked()}
	}
	if last = l.last; from <= last {
		return l.recent.from(from, room), last, nil, nil
	}
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	return nil, last, l.changed, nil
}

// wait returns when there may be something new.
func (l *Log) wait(ctx context.Context, changed <-chan struct{}) error {
	poll, stop := l.poll()
	defer stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-changed:
	case <-poll:
	}
	return nil
}
