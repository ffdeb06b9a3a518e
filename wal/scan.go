package wal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// Torn tail or corruption? The newest segment is read from its start to its end, and the answer is a pure function of
// what the lines say.

// tail is what the newest segment holds.
type tail struct {
	next    uint64 // the first seq that is not delivered as part of a whole group
	end     int64  // offset behind the last line that counts
	durable uint64 // the highest seq that any intact line, mark or header speaks of as durable
	epoch   uint64
	floor   uint64
	carried uint64
	closed  bool    // the last line that counts is the mark of a clean Close
	events  uint64  // whole ones read
	damage  *damage // what ends the part that counts; nil when only blanks follow
	settled int64   // offset of the last mark of a clean Close: what stands before it was synced before it was written
	size    int64
}

// damage is the first line that is not as it should be.
type damage struct {
	at     int64
	reason string
}

// verdict is promise W3: nil for a whole log or a torn tail, which may be cut, or else a *CorruptError.
func (t *tail) verdict(path string) error {
	if t.durable < t.next {
		return nil
	}
	if t.damage == nil {
		return &CorruptError{Path: path, Offset: t.end, Seq: t.next,
			Reason: fmt.Sprintf("the log ends here, but seq %d was durable", t.durable)}
	}
	return &CorruptError{Path: path, Offset: t.damage.at, Seq: t.next,
		Reason: fmt.Sprintf("%s, but seq %d was durable", t.damage.reason, t.durable)}
}

// torn describes what follows the part that counts, as a Report tells it.
func (t *tail) torn(path string) (Torn, bool) {
	if t.damage == nil {
		return Torn{}, false
	}
	return Torn{Path: path, Offset: t.end, Bytes: t.size - t.end, Seq: t.next, Reason: t.damage.reason}, true
}

// scanner reads lines of one segment in order and keeps the tail up to date.
type scanner struct {
	decoder
	seg   segment
	lines *lineReader
	rec   record
	note  noting
	tail
	left int // events that the group under way still lacks
	want uint64
}

// scanTail reads a segment's lines from start, where the next seq is expected, to the end of the file.
func scanTail(f File, seg segment, start int64, next uint64) (tail, error) {
	size, err := f.Size()
	if err != nil {
		return tail{}, err
	}
	s := newScanner(seg, newLineReader(f, start, size), next)
	defer s.lines.close()
	return s.run()
}

// newScanner begins where the next line of lines is that of seq next, or a mark.
func newScanner(seg segment, lines *lineReader, next uint64) *scanner {
	return &scanner{seg: seg, lines: lines, want: next, note: noting{to: seg.places},
		tail: tail{next: next, end: lines.at, durable: seg.first - 1, epoch: seg.epoch, size: lines.end}}
}

func (s *scanner) run() (tail, error) {
	for s.damage == nil {
		l, err := s.lines.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return s.tail, err
		}
		if reason := s.line(l); reason != "" {
			s.damage = &damage{l.at, reason}
			s.witness(l)
		}
	}
	if s.damage == nil && s.left > 0 {
		s.damage = &damage{s.end, fmt.Sprintf("a group lacks its last %d events", s.left)}
	}
	return s.tail, s.beyond()
}

var (
	errIncomplete = errors.New("incomplete line")
	errGap        = errors.New("newlines in front of it, where a line should be")
)

// line takes one line and returns what is wrong with it.
func (s *scanner) line(l line) string {
	switch {
	case l.gap:
		return errGap.Error()
	case l.bytes == nil:
		return fmt.Sprintf("line longer than %d bytes", MaxLineBytes)
	case len(bytes.Trim(l.bytes, "\x00")) == 0:
		return "zeros"
	case !l.whole:
		return errIncomplete.Error()
	}
	if err := s.decode(l.bytes, s.seg.seed, &s.rec); err != nil {
		if errors.Is(err, errFrame) {
			s.durable = max(s.durable, s.next) // as it was written, so it may have been acknowledged: never cut
		}
		return err.Error()
	}
	if s.rec.mark != nil {
		return s.takeMark(s.rec.mark, l)
	}
	return s.takeEvent(&s.rec, l)
}

func (s *scanner) takeEvent(r *record, l line) string {
	if r.seq != s.want {
		return fmt.Sprintf("seq %d where %d was expected", r.seq, s.want)
	}
	if s.left > 0 && r.more != s.left-1 {
		return fmt.Sprintf("%d events are to follow in the group where %d were expected", r.more, s.left-1)
	}
	s.note.line(r.seq, l.at, l.end)
	s.durable = max(s.durable, r.durable)
	s.epoch = max(s.epoch, r.epoch)
	s.want++
	if s.left = r.more; s.left == 0 {
		s.events += s.want - s.next
		s.next, s.end, s.closed = s.want, l.end, false
	}
	return ""
}

func (s *scanner) takeMark(m *mark, l line) string {
	switch {
	case s.left > 0:
		return "a mark inside a group"
	case m.Kind == markSegment:
		return "a second segment header"
	case m.Floor > s.seg.first:
		// Whole sealed segments go, and no others. Taken at its word, this would have every Open drop more of them.
		s.durable = max(s.durable, s.next)
		return fmt.Sprintf("floor %d inside the segment of seq %d", m.Floor, s.seg.first)
	}
	s.durable = max(s.durable, m.Durable)
	s.epoch = max(s.epoch, m.Epoch)
	raise(&s.floor, &s.carried, m.Floor, m.Carried)
	if s.end, s.closed = l.end, m.Kind == markClosed; s.closed {
		s.settled = l.at
	}
	return ""
}

// beyond looks behind the damage for intact lines that speak of what was durable.
func (s *scanner) beyond() error {
	if s.damage == nil {
		return nil
	}
	for {
		l, err := s.lines.next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		s.witness(l)
	}
}

// witness takes what an intact line says is durable, wherever the line stands: also behind bytes that took the place
// of the newline before it.
func (s *scanner) witness(l line) {
	if i := intactEnd(l.bytes, s.seg.seed); i >= 0 && s.decode(l.bytes[i:], s.seg.seed, &s.rec) == nil {
		s.durable = max(s.durable, s.rec.durable)
	}
}

// intactEnd returns where in b the intact line begins that b ends with, -1 if there is none. The checksum is run
// backwards from the end until it is what it was begun with, so b is gone over once, however many lines it may seem to
// hold: a payload is free to look like events.
func intactEnd(b []byte, seed uint32) int {
	sum, i, ok := checksumOf(b)
	for state := ^sum; ok && i > 0; {
		i--
		if state = crcBack(state, b[i]); ^state == seed && b[i] == '{' {
			return i
		}
	}
	return -1
}

// checksumOf reads the checksum at a line's end; covered is how many bytes stand before it.
func checksumOf(b []byte) (sum uint32, covered int, ok bool) {
	covered = len(b) - crcLength
	if covered < 1 || !bytes.HasPrefix(b[covered:], []byte(crcName)) || !bytes.HasSuffix(b, []byte(`"}`)) {
		return 0, 0, false
	}
	n, err := strconv.ParseUint(string(b[covered+len(crcName):len(b)-len(`"}`)]), 16, 32)
	return uint32(n), covered, err == nil
}

// crcBack is the checksum's inner state before byte c, given the one behind it.
func crcBack(state uint32, c byte) uint32 {
	entry := crcByTop[state>>24]
	return (state^castagnoli[entry])<<8 | uint32(entry^c)
}

// crcByTop is the index of the table entry with a given top byte: no two have the same.
var crcByTop = func() (index [256]byte) {
	for i, entry := range castagnoli {
		index[entry>>24] = byte(i)
	}
	return index
}()
