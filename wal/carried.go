package wal

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"path/filepath"
	"strconv"
)

// What a compaction carried over: the lines of the events below the floor that are still wanted, as they were but for
// their checksums, in the order of their seqs. Exactly the file that the highest floor names is used.

// Carried yields the events below FirstSeq that a compaction kept, in the order of their seqs, which have gaps: none where
// nothing was kept. It ends at the first error: [ErrCorrupt], [ErrClosed], or the file system's. What is yielded belongs to
// the caller.
//
// To read a log whole beside a compaction, ask for FirstSeq first, then read Carried, then Events from that seq on: if a
// compaction came between, the last of these is [ErrDropped], and one begins again.
func (l *Log) Carried() iter.Seq2[Event, error] {
	_, err := l.refresh()
	return func(yield func(Event, error) bool) {
		if err != nil {
			yield(Event{}, err)
			return
		}
		if err := l.eachCarried(yield); err != nil {
			yield(Event{}, wrapped(err))
		}
	}
}

func (l *Log) eachCarried(yield func(Event, error) bool) error {
	side, count, err := l.openCarried()
	if err != nil || side == nil {
		return err
	}
	defer side.Close() // only read
	r := newCarriedReader(side)
	defer r.lines.close()
	r.slab.size = slabSize
	for {
		line, err := r.next()
		if err == nil && l.isClosed() {
			err = ErrClosed
		}
		if err != nil {
			return err
		}
		if line == nil {
			return r.counted(count)
		}
		if !yield(r.event(&r.rec), nil) {
			return nil
		}
	}
}

// openCarried opens the carried file that the floor names; nil when there is none. One that is gone was replaced by a
// compaction since the floor was read.
func (l *Log) openCarried() (_ *sideFile, count uint64, err error) {
	for {
		l.mu.Lock()
		id, floor, count, closed := l.id, l.floor, l.carried, l.closed
		l.mu.Unlock()
		if closed {
			return nil, 0, ErrClosed
		}
		if count == 0 {
			return nil, 0, nil
		}
		side, err := openSide(l.fs, l.dir, carriedPrefix, floor)
		if err == nil {
			if err = side.of(id); err == nil {
				return side, count, nil
			}
			return nil, 0, errors.Join(err, side.Close())
		}
		if !isNotExist(err) {
			return nil, 0, err
		}
		// A ReadOnly log learns only now what the writer beside it did.
		if _, err := l.refresh(); err != nil {
			return nil, 0, err
		}
		if l.floorNow() == floor {
			return nil, 0, carriedGone(l.dir, floor, count)
		}
	}
}

func (l *Log) floorNow() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.floor
}

func carriedGone(dir string, floor, count uint64) error {
	return &CorruptError{Path: filepath.Join(dir, sideName(carriedPrefix, floor)), Seq: 1,
		Reason: fmt.Sprintf("the file is missing, and floor %d says that %d events are in it", floor, count)}
}

// checkCarried holds the carried file that the floor names to be there. Its lines are checked when they are read.
func (s *survey) checkCarried(fsys FS, dir string) error {
	if len(s.segments) == 0 && len(s.strays) > 0 { // no crash leaves that, and to sweep it would be to finish the work
		return &CorruptError{Path: filepath.Join(dir, s.strays[0]), Seq: 1, Reason: "there is no segment of the log that it belongs to"}
	}
	if s.carried == 0 {
		return nil
	}
	side, err := openSide(fsys, dir, carriedPrefix, s.floor)
	if isNotExist(err) {
		return carriedGone(dir, s.floor, s.carried)
	}
	if err != nil {
		return err
	}
	return errors.Join(side.of(s.id), side.Close())
}

// carriedReader reads the events of a carried file.
type carriedReader struct {
	decoder
	side  *sideFile
	lines *lineReader
	at    int64  // of the line that was read last
	rec   record // what it says
	last  uint64 // its seq
	count uint64
}

func newCarriedReader(side *sideFile) *carriedReader {
	return &carriedReader{side: side, lines: newLineReader(side, side.body, side.size)}
}

// next reads the next event into rec and returns its line; nil behind the last.
func (r *carriedReader) next() ([]byte, error) {
	l, err := r.lines.next()
	if errors.Is(err, io.EOF) {
		return nil, r.corrupt(r.lines.at, "the file ends here")
	}
	if err != nil {
		return nil, err
	}
	r.at = l.at
	if wrong := r.take(l); wrong != "" {
		return nil, r.corrupt(l.at, wrong)
	}
	if r.rec.mark != nil {
		return nil, nil
	}
	r.last = r.rec.seq
	r.count++
	return l.bytes, nil
}

// take reads a line and says what is wrong with it.
func (r *carriedReader) take(l line) string {
	if wrong := lineWrong(l); wrong != "" {
		return wrong
	}
	if err := r.decode(l.bytes, r.side.seed, &r.rec); err != nil {
		return err.Error()
	}
	if m := r.rec.mark; m != nil {
		return r.takeMark(m, l)
	}
	if r.rec.seq <= r.last || r.rec.seq >= r.side.head.seq {
		return fmt.Sprintf("seq %d after %d, below floor %d", r.rec.seq, r.last, r.side.head.seq)
	}
	return ""
}

// takeMark takes the one mark that may stand there, at the end.
func (r *carriedReader) takeMark(m *mark, l line) string {
	switch {
	case m.Kind != markSealed:
		return "a mark out of place"
	case m.Last != r.last || m.Count != r.count:
		return fmt.Sprintf("%d events up to seq %d, not %d up to seq %d", r.count, r.last, m.Count, m.Last)
	case l.end != r.side.size:
		return "bytes behind the last line"
	}
	return ""
}

// counted holds the file, when it is read to its end, to be as large as the floor says.
func (r *carriedReader) counted(want uint64) error {
	if r.count == want {
		return nil
	}
	return r.corrupt(r.at, fmt.Sprintf("%d events, and the floor says %d", r.count, want))
}

func (r *carriedReader) corrupt(at int64, reason string) error {
	return r.side.corrupt(at, r.last+1, reason)
}

// readAny finds one event, above the floor or below it.
func (l *Log) readAny(seq uint64) (Event, error) {
	e, err := l.readOne(seq)
	if !errors.Is(err, ErrDropped) {
		return e, err
	}
	side, _, openErr := l.openCarried()
	if openErr != nil {
		return Event{}, wrapped(openErr)
	}
	if side == nil {
		return Event{}, err
	}
	defer side.Close() // only read
	got, found, err := side.find(seq)
	if err == nil && !found {
		err = &DroppedError{Seq: seq, First: l.FirstSeq()}
	}
	return got.event, wrapped(err)
}

// find finds an event, by bisection over the bytes as findLine does. That it is not there has to be shown: by intact lines
// of an earlier and of a later one with nothing damaged between.
func (s *sideFile) find(seq uint64) (_ lineOf, found bool, err error) {
	var d decoder
	seg := segment{path: s.path, seed: s.seed, size: s.size}
	lo, hi := s.body, s.size // it begins behind lo; no event before lo is it, or follows it
	for hi-lo > 2*probeBytes {
		mid := lo + (hi-lo)/2
		got, _, end, err := d.probe(s, seg, mid, hi)
		if err != nil {
			return lineOf{}, false, err
		}
		if got == 0 || got >= seq {
			hi = mid
		} else {
			lo = end
		}
	}
	r := carriedReader{side: s, lines: smallLineReader(s, lo, s.size)}
	defer r.lines.close()
	return r.seek(seq)
}

// seek reads on to an event, or to one behind it. What is damaged before an intact earlier event is not what is looked
// for.
func (r *carriedReader) seek(seq uint64) (_ lineOf, found bool, err error) {
	var damaged error
	for {
		l, err := r.lines.next()
		if errors.Is(err, io.EOF) {
			if damaged == nil {
				damaged = r.side.corrupt(r.lines.at, seq, "the file ends here")
			}
			return lineOf{}, false, damaged
		}
		if err != nil {
			return lineOf{}, false, err
		}
		wrong := lineWrong(l)
		if wrong == "" {
			if err := r.decode(l.bytes, r.side.seed, &r.rec); err != nil {
				wrong = err.Error()
			}
		}
		switch {
		case wrong != "":
			damaged = r.side.corrupt(l.at, seq, wrong)
		case r.rec.mark == nil && r.rec.seq < seq:
			damaged = nil
		case r.rec.mark == nil && r.rec.seq == seq:
			return lineOf{l.at, l.end, r.event(&r.rec)}, true, nil
		default: // a later one, or the end
			return lineOf{}, false, damaged
		}
	}
}

// carriedWriter writes a carried file; it is made with the first event that is to be in it.
type carriedWriter struct {
	*sideWriter
	last, count uint64
}

// newCarried makes a carried file for a log and a floor.
func newCarried(fsys FS, dir, log string, floor uint64, dry bool) (*carriedWriter, error) {
	w, err := newSideWriter(fsys, dir, carriedPrefix, sideHead{log: log, seq: floor}, func(dst []byte) []byte {
		return strconv.AppendUint(append(dst, `,"floor":`...), floor, 10)
	}, dry)
	if err != nil {
		return nil, err
	}
	return &carriedWriter{sideWriter: w}, nil
}

// add writes an event's line, of which body is all but the checksum.
func (w *carriedWriter) add(seq uint64, body []byte) error {
	from := len(w.buf)
	w.buf = append(w.buf, body...)
	w.last = seq
	w.count++
	return w.endLine(from)
}

// finish marks the end, and puts all of it on stable storage.
func (w *carriedWriter) finish() error {
	from := len(w.buf)
	w.buf = appendQuoted(append(w.buf, `{"mark":`...), markSealed)
	w.buf = strconv.AppendUint(append(w.buf, `,"last":`...), w.last, 10)
	w.buf = strconv.AppendUint(append(w.buf, `,"count":`...), w.count, 10)
	if err := w.endLine(from); err != nil {
		return err
	}
	return w.sideWriter.finish()
}
