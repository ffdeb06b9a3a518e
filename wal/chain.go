package wal

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
)

// Reading backwards: a job's events, from one to the one before it.

// Chain yields the event at seq, then the one that its Prev names, and so on, newest first, down to one that has no Prev:
// a job's past, as far as seq. Of seq 0 there is none. Each is what [Log.At] returns, checked as there; but events that lie
// near each other share a read, of 256 KiB at most, so that a thousand cost some milliseconds. One that lies far off costs
// what At does.
//
// Whose events they are is for the caller to look at: the log keeps the Prev that it was given. Chain ends at the first
// error: those of At, or [ErrCorrupt] behind an event whose Prev does not lead back. It reads as it goes, in bounded
// memory; what is dropped meanwhile it may yet yield. What is yielded belongs to the caller.
func (l *Log) Chain(seq uint64) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) { l.chain(seq, glanceBytes, yield) }
}

// chain yields what Chain does. The first block has so many bytes, and each that follows on it twice as many.
func (l *Log) chain(seq uint64, first int64, yield func(Event, error) bool) {
	if seq == 0 {
		return
	}
	last, err := l.refresh()
	if err == nil && seq > last {
		err = unreached(seq, last)
	}
	if err != nil {
		yield(Event{}, err)
		return
	}
	c := chain{log: l, first: first, width: first}
	defer c.end()
	for seq != 0 {
		got, err := c.event(seq)
		if err != nil {
			yield(Event{}, wrapped(err))
			return
		}
		if !yield(got.event, nil) {
			return
		}
		if seq = got.event.Prev; seq >= got.event.Seq {
			yield(Event{}, &CorruptError{Path: c.seg.path, Offset: got.at, Seq: got.event.Seq,
				Reason: fmt.Sprintf("prev %d does not lead back", seq)})
			return
		}
	}
}

// chain is on its way back, through one file after the other.
type chain struct {
	decoder
	log   *Log
	file  File      // nil: none is open
	side  *sideFile // the same, if it is what a compaction kept
	seg   segment   // what it is; of a side file, as far as that is like a segment
	last  uint64    // the seq of its last event
	at    placed    // the event that was found last; when the file was just entered, its end
	first int64     // how much of the file the first block takes
	width int64     // and the next one
	block block
	found int // events
}

// event finds an event that is older than those that were found before.
func (c *chain) event(seq uint64) (lineOf, error) {
	if c.log.isClosed() {
		return lineOf{}, ErrClosed
	}
	if c.file == nil || seq < c.seg.first {
		c.leave()
		if err := c.enter(seq); err != nil {
			return lineOf{}, err
		}
	}
	if c.found++; c.found == slabFrom {
		c.slab.size = slabSize
	}
	got, err := c.find(seq)
	c.at = placed{seq, got.at}
	return got, err
}

// enter opens the file that holds seq.
func (c *chain) enter(seq uint64) error {
	err := c.enterSegment(seq)
	if errors.Is(err, ErrDropped) {
		err = c.enterCarried(err)
	}
	c.at = placed{c.last + 1, c.seg.size}
	return err
}

func (c *chain) enterSegment(seq uint64) error {
	snap, err := c.log.snapshot()
	if err != nil {
		return err
	}
	i, err := snap.find(seq)
	if err != nil {
		return err
	}
	c.seg, c.last = snap.segments[i], snap.lastOf(i)
	c.file, err = c.log.openSegment(c.seg, seq)
	return err
}

// enterCarried opens what compaction kept; dropped is what to say when that is nothing.
func (c *chain) enterCarried(dropped error) error {
	side, _, err := c.log.openCarried()
	if err != nil {
		return err
	}
	if side == nil {
		return dropped
	}
	c.file, c.side, c.last = side, side, side.head.seq-1
	c.seg = segment{path: side.path, first: 1, seed: side.seed, header: side.body, size: side.size, places: new(places)}
	return nil
}

func (c *chain) leave() {
	if c.file != nil {
		c.file.Close() // only read
	}
	c.file, c.side = nil, nil
	c.block.forget()
}

func (c *chain) end() {
	c.leave()
	c.block.free()
}

// find looks in the block, then in the one before it if the line should be there. What is not found there is looked for as
// At does, which knows what to say when it is not found at all.
func (c *chain) find(seq uint64) (lineOf, error) {
	if got, ok := c.held(seq); ok {
		return got, nil
	}
	if c.near(seq) {
		c.block.read(c.file, max(c.seg.header, c.at.at-c.width), c.at)
		if got, ok := c.held(seq); ok {
			c.width = min(2*c.width, readBuffer)
			return got, nil
		}
	}
	c.width = c.first
	return c.search(seq)
}

// near tells whether the line should be a short way before the one that was found last.
func (c *chain) near(seq uint64) bool {
	lo, hi := c.seg.places.around(seq, placed{c.seg.first, c.seg.header}, c.at)
	return c.at.at-lo.at-distance(lo, hi, seq) <= glanceBytes
}

// held finds an event in the block.
func (c *chain) held(seq uint64) (lineOf, bool) {
	var rec record
	l, ok := c.block.find(seq)
	if !ok || c.decode(l.bytes, c.seg.seed, &rec) != nil || rec.seq != seq {
		return lineOf{}, false
	}
	return lineOf{l.at, l.end, c.decoder.event(&rec)}, true
}

func (c *chain) search(seq uint64) (lineOf, error) {
	got, err := c.findLine(c.file, c.seg, seq, c.last)
	if err == nil || c.side == nil {
		return got, err
	}
	// In a file with gaps, not to be there is no damage.
	got, found, err := c.side.find(seq)
	if err == nil && !found {
		err = &DroppedError{Seq: seq, First: c.log.FirstSeq()}
	}
	return got, err
}

// block is some lines of a file, in memory. It is where a line is looked for first, and is not believed.
type block struct {
	buf    []byte // of readBuffer bytes; nil until it is needed
	lines  []byte // in buf; empty: it holds none
	lo, hi placed // the first event in lines, and the one behind them
}

// read takes what lies from offset from on up to a line that is known. It may begin with the rest of a line, which is passed
// over, since it does not begin as one.
func (b *block) read(f File, from int64, end placed) {
	if b.buf == nil {
		b.buf = *readBuffers.Get().(*[]byte)
	}
	b.forget()
	buf := b.buf[:end.at-from]
	if n, _ := f.ReadAt(buf, from); n < len(buf) {
		return // the line is looked for without the block then, and what is wrong will show
	}
	if n := len(bytes.TrimRight(buf, "\n")); n+1 < len(buf) { // room for lines that never came
		buf, end.at = buf[:n+1], from+int64(n+1)
	}
	b.lines, b.lo, b.hi = buf, placed{at: from}, end
	if _, b.lo.seq = b.event(from, end.at); b.lo.seq == 0 {
		b.forget()
	}
}

func (b *block) forget() { b.lines = nil }

func (b *block) free() {
	if buf := b.buf; buf != nil {
		readBuffers.Put(&buf)
	}
	*b = block{}
}

// find returns the line that says to be that of seq.
func (b *block) find(seq uint64) (line, bool) {
	lo, hi := b.lo, b.hi
	if len(b.lines) == 0 || seq < lo.seq || seq >= hi.seq {
		return line{}, false
	}
	for step := 1; lo.at < hi.at; step++ {
		mid := min(lo.at+distance(lo, hi, seq), hi.at-1)
		if step%3 == 0 { // however wrong the guesses are
			mid = lo.at + (hi.at-lo.at)/2
		}
		mid = b.lineStart(lo.at, mid)
		switch l, got := b.event(mid, hi.at); {
		case got == seq:
			return l, true
		case got == 0: // no event begins in [mid, hi)
			hi.at = mid
		case got > seq:
			hi = placed{got, mid}
		default:
			lo = placed{got + 1, l.end}
		}
	}
	return line{}, false
}

// lineStart is where the line begins in which at lies; a line begins at lo.
func (b *block) lineStart(lo, at int64) int64 {
	return lo + int64(bytes.LastIndexByte(b.lines[lo-b.lo.at:at-b.lo.at], '\n')+1)
}

// event returns the first line in [from, to), where lines begin, that is an event's in the writer's spelling; seq 0 when
// there is none.
func (b *block) event(from, to int64) (l line, seq uint64) {
	for from < to {
		rest := b.lines[from-b.lo.at : to-b.lo.at]
		n := bytes.IndexByte(rest, '\n')
		if n < 0 {
			break
		}
		l = line{at: from, bytes: rest[:n], end: from + int64(n) + 1, whole: true}
		if digits, ok := bytes.CutPrefix(l.bytes, []byte(`{"seq":`)); ok {
			if seq, _, ok = parseUint(digits, 0); ok && seq > 0 {
				return l, seq
			}
		}
		from = l.end
	}
	return line{}, 0
}
