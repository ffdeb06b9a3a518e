package wal

import (
	"bytes"
	"cmp"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
)

// The last events of a log that nobody has opened: from its end backwards, and no further than it takes.

// Tail returns the last n events of the log in dir, or all when there are fewer, oldest first. It opens no log: it takes no
// lock, changes nothing, and may stand beside a live writer. Its cost grows with n and the size of those events, not
// with the log or its newest segment, which [Open] reads to its end; so it is for a look from outside, not for polling
// ([Log.Follow]) or for many reads ([Log.Tail]).
//
// It returns what Open with Options.ReadOnly, and then [Log.Tail], would: events that the log itself says are durable, each
// with its checksum checked, without a gap. What is torn at the end is passed over. Damage in what it reads, before
// something that was acknowledged, is [ErrCorrupt]. What it does not read it does not judge: damage before the events
// that it returns goes unnoticed, as do segments that are missing there. Its other errors are those of Open. What is
// returned belongs to the caller.
func Tail(dir string, n int) ([]Event, error) { return lastEvents(OS, dir, n, firstStretch) }

// firstStretch is what is read at first of a segment's end; if that is too little, four times as much, and so on.
const firstStretch = 32 << 10

// lastEvents reads backwards while all is plain. Where it is not (damage, a file that a writer just made, cut or removed),
// it has the log opened, which reads all and knows whether to look again.
func lastEvents(fsys FS, dir string, n int, first int64) (events []Event, err error) {
	if n <= 0 {
		return nil, nil
	}
	for range 100 {
		b := backward{fs: fsys, first: first}
		if events, err = b.last(dir, n); err == nil {
			return events, nil
		}
		if events, err = openedTail(fsys, dir, n); !errors.Is(err, ErrDropped) { // dropped since it was opened
			break
		}
	}
	return events, err
}

func openedTail(fsys FS, dir string, n int) ([]Event, error) {
	log, err := Open(dir, Options{ReadOnly: true, FS: fsys})
	if err != nil {
		return nil, err
	}
	events, err := log.Tail(n)
	return events, errors.Join(err, log.Close())
}

// backward reads segments from the newest on.
type backward struct {
	decoder
	fs    FS
	first int64 // the first stretch's bytes
	id    string
	newer segment // the one that was read before, if any
	floor uint64  // once the newest segment is read whole
	saved uint64  // the seq of the newest checkpoint, by its name
}

// errUnclear: to be judged by who reads it all.
var errUnclear = errors.New("wal: not plainly the end of a log")

// last returns the last n events.
func (b *backward) last(dir string, n int) ([]Event, error) {
	found, err := list(b.fs, dir)
	if err != nil {
		return nil, err
	}
	if n := len(found.checkpoints); n > 0 {
		b.saved, _ = parseSideName(checkpointPrefix, found.checkpoints[n-1])
	}
	var parts [][]Event // newest first
	for i := len(found.segments) - 1; n > 0; i-- {
		if i < 0 {
			return nil, errUnclear
		}
		seg, err := b.enter(filepath.Join(dir, found.segments[i]))
		if err != nil {
			return nil, err
		}
		events, err := b.segment(seg, n)
		if err != nil {
			return nil, err
		}
		parts, n = append(parts, events), n-len(events)
		if seg.first <= b.floor { // only the newest of those that begin at the floor, or below it, is kept
			break
		}
		b.newer = seg
	}
	slices.Reverse(parts)
	return slices.Concat(parts...), nil
}

// enter reads a segment's header, which has to be that of the one before the newer one.
func (b *backward) enter(path string) (segment, error) {
	seg, head, err := readHeader(b.fs, path)
	if err != nil {
		return seg, err
	}
	if b.newer.first == 0 {
		b.id, b.floor = head.Log, max(1, head.Floor)
	} else if head.Log != b.id || seg.first != b.newer.prior || seg.epoch > b.newer.epoch {
		return seg, errUnclear
	}
	return seg, nil
}

// segment returns the last events of one segment, n at most.
func (b *backward) segment(seg segment, n int) (_ []Event, err error) {
	f, err := b.fs.OpenFile(seg.path, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if seg.size, err = contentEnd(f, seg.header, size); err != nil {
		return nil, err
	}
	w, err := b.stretch(f, seg, n)
	if err != nil {
		return nil, err
	}
	b.floor = max(b.floor, w.floor)
	return w.read(f, seg, n)
}

// stretch is lines of a segment, from one of them to its end.
type stretch struct {
	tail
	at    int64
	first uint64 // the seq of the first event in it
	last  uint64 // the last event that is durable, in it or before it
}

func (w *stretch) holds(n int) bool { return w.first <= w.last && w.last-w.first >= uint64(n-1) }

// stretch reads the last lines of a segment, and more of them until n events are there.
func (b *backward) stretch(f File, seg segment, n int) (stretch, error) {
	for width := b.first; ; width *= 4 {
		w := stretch{at: seg.header, first: seg.first}
		if from := seg.size - width; from > seg.header {
			seq, at, _, err := b.probe(f, seg, from, seg.size)
			if err != nil {
				return w, err
			}
			if seq == 0 {
				continue
			}
			w.first, w.at = seq, at
		}
		if err := b.scan(&w, f, seg); err != nil {
			return w, err
		}
		if w.at == seg.header || w.holds(n) {
			return w, nil
		}
	}
}

// scan judges a stretch as Open judges a segment.
func (b *backward) scan(w *stretch, f File, seg segment) (err error) {
	s := newScanner(seg, sizedLineReader(f, w.at, seg.size), w.first)
	defer s.lines.close()
	if w.tail, err = s.run(); err != nil {
		return err
	}
	w.last = w.durable
	if b.newer.first > 0 {
		w.last = b.newer.first - 1
	} else if b.saved > w.last {
		return errUnclear // a witness for more than the lines say, if it is intact
	}
	if w.durable > w.last {
		return errUnclear
	}
	return w.verdict(seg.path)
}

// read returns the last n events of those that are durable.
func (w *stretch) read(f File, seg segment, n int) ([]Event, error) {
	from := w.first
	if w.holds(n) {
		from = w.last - uint64(n) + 1
	}
	r := newRangeReader(seg, sizedLineReader(f, w.at, seg.size), w.first)
	defer r.lines.close()
	r.slab.size = slabSize
	var events []Event
	for r.next <= w.last {
		e, err := r.event()
		if err != nil {
			return nil, err
		}
		if e.Seq >= from {
			events = append(events, e)
		}
	}
	return events, nil
}

// contentEnd is the offset behind the last line of a file: what follows are newlines, room for lines to come.
func contentEnd(f File, from, size int64) (int64, error) {
	buf := make([]byte, firstStretch)
	for end := size; end > from; {
		part := buf[:min(int64(len(buf)), end-from)]
		n, err := f.ReadAt(part, end-int64(len(part)))
		if n < len(part) { // it was cut meanwhile
			return 0, cmp.Or(err, io.ErrUnexpectedEOF)
		}
		end -= int64(n)
		if kept := len(bytes.TrimRight(part, "\n")); kept > 0 {
			return min(size, end+int64(kept)+1), nil
		}
	}
	return from, nil
}
