package wal

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Verify reads every byte of the log in dir and changes nothing. The error is the first damage ([ErrCorrupt], or
// [ErrVersion] for a newer format), the Report has it all. A torn tail is no damage; a checkpoint that cannot be used is,
// though Open has no need of it. It needs no lock and may run beside a live writer, whose appends in flight may then stand
// in Report.Torn.
func Verify(dir string) (Report, error) { return verify(OS, dir) }

func verify(fsys FS, dir string) (Report, error) {
	for try := 0; ; try++ {
		before, _ := list(fsys, dir)
		c := checker{fs: fsys, report: Report{Dir: dir}, started: time.Now()}
		err := c.run(dir, func(found) error { return nil })
		if err == nil && len(c.report.Damage) > 0 {
			err = c.report.Damage[0]
		}
		// A writer beside it may have dropped, or made, segments meanwhile: what looks wrong then is looked at again.
		if err != nil && (isNotExist(err) || errors.Is(err, ErrCorrupt)) && try < 100 {
			if after, _ := list(fsys, dir); !before.same(after) {
				continue
			}
		}
		return c.report, wrapped(err)
	}
}

// Salvage copies what is intact of the log in dir into another directory, which has to be empty or new, as a log of its
// own (with an ID of its own) that Open takes. It never touches dir. Events keep their seqs; for each that could not be
// saved an [EventLost] stands in its place, so that a job whose history has a hole is seen to have one. Lines keep their
// bytes but for the checksum. A torn tail is left out, as Open would leave it out. What compactions carried over is copied;
// checkpoints are not.
//
// Damage is no error here: the Report lists it, and counts what was lost. An error means that there is no copy.
func Salvage(dir, into string) (Report, error) { return salvage(OS, dir, into) }

func salvage(fsys FS, dir, into string) (Report, error) {
	c := checker{fs: fsys, report: Report{Dir: dir}, started: time.Now()}
	entries, err := fsys.ReadDir(into)
	switch {
	case err == nil && len(entries) > 0:
		return c.report, invalid("into", "%s is not empty", into)
	case err != nil && !isNotExist(err):
		return c.report, wrapped(err)
	}
	if err := makeDirs(fsys, into); err != nil {
		return c.report, wrapped(err)
	}
	w := copyWriter{fs: fsys, dir: into, log: randomHex(16)}
	c.carry = func(seq uint64, body []byte) error { return w.carry(c.report.FirstSeq, seq, body) }
	err = c.run(dir, func(e found) error {
		w.begin(c.report.FirstSeq)
		return w.event(e)
	})
	if err == nil {
		err = w.finish(c.report.FirstSeq, max(c.want-1, c.durable), c.report.Epoch)
	}
	if err = errors.Join(err, w.close()); err != nil {
		return c.report, wrapped(err)
	}
	c.report.Lost += w.lost
	_, err = verify(fsys, into)
	return c.report, err
}

// checker walks over all lines of a log, damaged or not.
type checker struct {
	decoder
	fs      FS
	report  Report
	started time.Time
	want    uint64 // the seq expected next
	durable uint64 // the highest witness met
	// carry, if set, takes each intact event that was carried over; before all others.
	carry func(seq uint64, body []byte) error
	// headless are the segments that lost their header: Open refuses them, so no tail of theirs passes for a torn one.
	headless map[string]bool
	// named is the highest first seq of a segment of which nothing can be read: what lies below it was durable when that was
	// made.
	named uint64
}

// found is an intact event's line, the checksum left out.
type found struct {
	seq, epoch uint64
	more       int
	body       []byte
}

// run hands each intact event that was acknowledged, or may have been, to take, in the order of seqs.
func (c *checker) run(dir string, take func(found) error) error {
	defer func() { c.report.Took = time.Since(c.started) }()
	l, err := list(c.fs, dir)
	if err != nil {
		return err
	}
	if err := l.ours(dir); err != nil {
		return err
	}
	s, err := c.headers(dir, l)
	if err != nil {
		return err
	}
	if err := c.carriedFile(dir, s); err != nil {
		return err
	}
	for i, seg := range s.segments {
		end := uint64(0)
		if i+1 < len(s.segments) {
			end = s.segments[i+1].first
		}
		if err := c.segment(seg, end, take); err != nil {
			return err
		}
	}
	if err := c.checkpoints(dir, s); err != nil {
		return err
	}
	c.report.LogID, c.report.Epoch = s.id, max(c.report.Epoch, s.epoch)
	c.asOpen(dir, l)
	if c.want == 0 {
		c.want = 1
	}
	c.report.LastSeq = c.want - 1
	if c.report.FirstSeq == 0 {
		c.report.FirstSeq = c.want
	}
	return nil
}

// asOpen asks what Open would say, where nothing was found so far: lines that are all intact may still not be in place.
func (c *checker) asOpen(dir string, l listing) {
	if c.report.Damages > 0 {
		return
	}
	s, err := surveySegments(c.fs, dir, l)
	if err == nil {
		_, err = (&Log{dir: dir, fs: c.fs}).judge(&s)
	}
	var bad *CorruptError
	if errors.As(err, &bad) {
		c.damage(bad)
	}
}

// headers is a survey that goes on where Open stops.
func (c *checker) headers(dir string, l listing) (survey, error) {
	names := l.segments
	s := survey{floor: 1, checkpoints: l.checkpoints}
	for i, name := range names {
		seg, head, err := readHeader(c.fs, filepath.Join(dir, name))
		var bad *CorruptError
		switch {
		case errors.Is(err, errNoHeader) && i == len(names)-1:
			c.report.Torn = append(c.report.Torn, Torn{Path: seg.path, Bytes: seg.size, Seq: seg.first, Reason: err.Error()})
			continue
		case errors.As(err, &bad):
			c.damage(bad)
			ok, err := c.recoverSeed(&seg, before(names, i))
			if err != nil {
				return s, err
			}
			if !ok {
				c.named = max(c.named, seg.first)
				continue
			}
			if c.headless == nil {
				c.headless = make(map[string]bool)
			}
			c.headless[seg.path] = true
			s.segments = append(s.segments, seg)
		case errors.Is(err, errNoHeader):
			c.damage(&CorruptError{Path: seg.path, Seq: seg.first, Reason: err.Error()})
			continue
		case err != nil:
			return s, err
		default:
			if err := s.add(seg, head); errors.As(err, &bad) {
				c.damage(bad)
				continue
			}
			c.durable = max(c.durable, head.Durable)
		}
		c.report.Segments++
		c.report.Bytes += seg.size
	}
	if err := c.floors(&s); err != nil {
		return s, err
	}
	return s, c.witnesses(dir, &s)
}

// floors finds what was dropped: the newest segment's marks tell.
func (c *checker) floors(s *survey) error {
	if len(s.segments) == 0 {
		return nil
	}
	t, err := readTail(c.fs, s.segments[len(s.segments)-1])
	if err != nil {
		return err
	}
	raise(&s.floor, &s.carried, t.floor, t.carried)
	s.epoch = max(s.epoch, t.epoch)
	c.durable = max(c.durable, t.durable)
	s.segments = s.segments[s.dropped():]
	first := s.segments[0]
	if first.first > s.floor {
		c.damage(&CorruptError{Path: first.path, Seq: s.floor, Reason: fmt.Sprintf("the events before seq %d are missing", first.first)})
		c.report.Lost += first.first - s.floor
	}
	c.want, c.report.FirstSeq = first.first, first.first
	return nil
}

func (c *checker) damage(err *CorruptError) {
	if c.report.Damages++; c.report.Damages <= 100 {
		c.report.Damage = append(c.report.Damage, err)
	}
}

// segment checks one segment; end is the first seq of the next one, 0 for the newest.
func (c *checker) segment(seg segment, end uint64, take func(found) error) error {
	f, err := c.fs.OpenFile(seg.path, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close() // only read
	t, err := scanTail(f, seg, seg.header, seg.first)
	if err != nil {
		return err
	}
	c.report.Epoch = max(c.report.Epoch, t.epoch)
	t.durable = max(t.durable, c.durable, end-min(end, 1))
	if end == 0 && t.verdict(seg.path) == nil && !c.headless[seg.path] && c.named <= t.next {
		c.report.Clean = t.closed
		if torn, ok := t.torn(seg.path); ok {
			c.report.Torn = append(c.report.Torn, torn)
		}
		seg.size = t.end
	}
	newest, behind := end == 0, end
	if newest {
		end, behind = t.durable+1, math.MaxUint64
		c.durable = t.durable
	}
	events, err := c.intact(f, seg, behind)
	if err != nil {
		return err
	}
	return c.lines(f, seg, events, max(end, t.next), newest, take)
}

// where is an intact event's place in its file.
type where struct {
	seq, epoch uint64
	more       int
	at         int64
	size       int
}

// lines puts the intact events of one segment in the order of their seqs, and hands them on. It takes some 40 bytes of
// memory an event of one segment.
func (c *checker) lines(f File, seg segment, events []where, end uint64, newest bool, take func(found) error) error {
	slices.SortStableFunc(events, func(a, b where) int {
		switch {
		case a.seq < b.seq:
			return -1
		case a.seq > b.seq:
			return 1
		}
		return 0
	})
	if newest {
		end = c.namedFrom(events, wholeFrom(events, end))
	}
	for _, w := range events {
		if w.seq < c.want || w.seq < seg.first || w.seq >= end {
			continue // a copy of one that was taken, or of no place: intact has complained
		}
		c.gap(seg, w.at, w.seq)
		body := make([]byte, w.size-crcLength)
		if _, err := f.ReadAt(body, w.at); err != nil {
			return err
		}
		c.report.Events++
		if err := take(found{w.seq, w.epoch, w.more, body}); err != nil {
			return err
		}
		c.want = w.seq + 1
	}
	c.gap(seg, seg.size, end)
	return nil
}

// namedFrom goes on from seq end to the last event that was durable when a segment was made of which nothing can be read. The
// name alone, of whatever file, makes up for no event that is not there.
func (c *checker) namedFrom(events []where, end uint64) uint64 {
	if len(events) == 0 {
		return end
	}
	return max(end, min(c.named, events[len(events)-1].seq+1))
}

// wholeFrom returns how far whole groups follow each other from seq end on: what no witness covers any more may have been
// acknowledged, too.
func wholeFrom(events []where, end uint64) uint64 {
	next := end
	for _, w := range events {
		if w.seq > next {
			break
		}
		if w.seq == next {
			next++
			if w.more == 0 {
				end = next
			}
		}
	}
	return end
}

// gap complains of missing events before seq to.
func (c *checker) gap(seg segment, at int64, to uint64) {
	if to > c.want {
		c.damage(&CorruptError{Path: seg.path, Offset: at, Seq: c.want,
			Reason: fmt.Sprintf("%d events are missing here", to-c.want)})
	}
}

// intact finds the intact events of a segment, and complains of everything that is not as it should be. behind is the first seq of the next segment.
func (c *checker) intact(f File, seg segment, behind uint64) ([]where, error) {
	lines := newLineReader(f, seg.header, seg.size)
	defer lines.close()
	var events []where
	var rec record
	next := seg.first
	for {
		l, err := lines.next()
		if errors.Is(err, io.EOF) {
			return events, nil
		}
		if err != nil {
			return nil, err
		}
		rest, at := c.intactPart(l, seg, &rec)
		if l.gap {
			c.damage(&CorruptError{Path: seg.path, Offset: l.at, Seq: next, Reason: errGap.Error()})
		}
		if at > 0 || rest == nil {
			c.damage(&CorruptError{Path: seg.path, Offset: l.at, Seq: next, Reason: "checksum mismatch"})
		} else if !l.whole {
			c.damage(&CorruptError{Path: seg.path, Offset: l.at, Seq: next, Reason: errIncomplete.Error()})
		}
		if rest != nil && next >= behind && rec.durable >= behind && behind < math.MaxUint64 { // as rangeReader.over has it
			c.damage(&CorruptError{Path: seg.path, Offset: l.at, Seq: behind, Reason: fmt.Sprintf("seq %d was durable here, and the next segment claims it too", rec.durable)})
		}
		if rest == nil || rec.mark != nil {
			continue
		}
		if rec.seq < next {
			c.damage(&CorruptError{Path: seg.path, Offset: l.at, Seq: rec.seq, Reason: fmt.Sprintf("seq %d again, after %d", rec.seq, next-1)})
		}
		if rec.seq >= behind {
			c.damage(&CorruptError{Path: seg.path, Offset: l.at, Seq: rec.seq, Reason: fmt.Sprintf("seq %d, which the next segment begins with or holds", rec.seq)})
		}
		next = max(next, rec.seq+1)
		events = append(events, where{rec.seq, rec.epoch, rec.more, l.at + int64(at), len(rest)})
	}
}

// intactPart finds the intact line that a line ends with.
func (c *checker) intactPart(l line, seg segment, rec *record) (rest []byte, at int) {
	if c.decode(l.bytes, seg.seed, rec) == nil {
		return l.bytes, 0
	}
	if at = intactEnd(l.bytes, seg.seed); at >= 0 && c.decode(l.bytes[at:], seg.seed, rec) == nil {
		return l.bytes[at:], at
	}
	return nil, 0
}

// recoverSeed finds what the checksums of a segment without a header were begun with: every intact line tells, since
// CRC-32 can be run backwards, and lines that agree with each other, or with the salt in what is left of the header, do
// not do so by chance.
func (c *checker) recoverSeed(seg *segment, below uint64) (bool, error) {
	f, err := c.fs.OpenFile(seg.path, os.O_RDONLY, 0)
	if err != nil {
		return false, err
	}
	defer f.Close() // only read
	found, err := findSeed(f, seg, below)
	if err != nil || !found {
		return false, err
	}
	lines := newLineReader(f, 0, seg.size)
	defer lines.close()
	var rec record
	for {
		l, err := lines.next()
		if err != nil {
			return false, notEOF(err)
		}
		part, at := c.intactPart(l, *seg, &rec)
		if part != nil && (rec.mark == nil || rec.mark.Kind != markSegment) {
			seg.header = l.at + int64(at) // whatever comes before it is no more than what is left of the header, or lost
			return true, nil
		}
	}
}

// before is the seq that the events of the i-th segment lie below.
func before(names []string, i int) uint64 {
	if i+1 == len(names) {
		return math.MaxUint64
	}
	first, _ := parseSegmentName(names[i+1])
	return first
}

// belongs is false for a line that says by its seq, or as a header, that it is another segment's.
func belongs(b []byte, seg *segment, below uint64) bool {
	p := parser{src: b}
	p.skip(`{"seq":`)
	if seq := p.uint(); !p.bad {
		return seq >= seg.first && seq < below
	}
	_, rest, ok := bytes.Cut(b, []byte(`,"first":`))
	first, _, number := parseUint(rest, 0)
	return !ok || !number || first == seg.first
}

// findSeed lets the lines vote: stale ones of other segments may be among them.
func findSeed(f File, seg *segment, below uint64) (bool, error) {
	lines := newLineReader(f, 0, seg.size)
	defer lines.close()
	votes := make(map[uint32]int)
	vote := func(seed uint32) {
		if votes[seed] > 0 || len(votes) < 1000 {
			votes[seed]++
		}
		if votes[seed] > votes[seg.seed] {
			seg.seed = seed
		}
	}
	for {
		l, err := lines.next()
		if errors.Is(err, io.EOF) {
			return votes[seg.seed] > 1, nil
		}
		if err != nil {
			return false, err
		}
		if !belongs(l.bytes, seg, below) {
			continue
		}
		if salt, ok := saltIn(l.bytes); ok && l.at < maxHeader {
			vote(saltSeed(salt))
			if intactEnd(l.bytes, saltSeed(salt)) > 0 {
				vote(saltSeed(salt)) // the header lost its newline
			}
		}
		if seed, ok := impliedSeed(l.bytes); ok {
			vote(seed)
		}
	}
}

// saltIn finds the salt in a damaged header.
func saltIn(b []byte) (string, bool) {
	const name, digits = `"salt":"`, 16
	_, rest, ok := bytes.Cut(b, []byte(name))
	if !ok || len(rest) < digits {
		return "", false
	}
	return string(rest[:digits]), true
}

// impliedSeed is the checksum's state before the line, if the line is intact.
func impliedSeed(b []byte) (uint32, bool) {
	sum, i, ok := checksumOf(b)
	state := ^sum
	for ; ok && i > 0; i-- {
		state = crcBack(state, b[i-1])
	}
	return ^state, ok
}

// copyWriter writes events that keep their seqs into a new log.
type copyWriter struct {
	fs    FS
	dir   string
	log   string
	seg   segment
	f     File
	first uint64 // of the log
	next  uint64
	epoch uint64 // of the last event
	left  int    // events that the group under way still lacks
	lost  uint64
	buf   []byte

	below   *carriedWriter // under way, until the first segment is made
	carried uint64
}

// maxLost bounds what a hostile number can make Salvage write.
const maxLost = 10_000_000

// begin says where the log begins: events may be lost before the first that is not.
func (w *copyWriter) begin(first uint64) {
	if w.next == 0 {
		w.first, w.next, w.epoch = first, first, 1
	}
}

func (w *copyWriter) event(e found) error {
	if err := w.fill(e.seq); err != nil {
		return err
	}
	w.epoch = max(w.epoch, e.epoch)
	return w.line(e.body, e.more)
}

// fill puts an EventLost in the place of each event before seq to. It takes over the place of a group's member, too.
func (w *copyWriter) fill(to uint64) error {
	if to > w.next && w.lost+(to-w.next) > maxLost {
		return &CorruptError{Path: w.dir, Seq: w.next,
			Reason: fmt.Sprintf("%d events are missing, more than can be made up for", to-w.next)}
	}
	for w.next < to {
		w.lost++
		more := max(w.left-1, 0)
		if err := w.line(lostBody(w.next, w.epoch, more), more); err != nil {
			return err
		}
	}
	return nil
}

// lostBody is an EventLost's line without its checksum.
func lostBody(seq, epoch uint64, more int) []byte {
	e := Event{Type: EventLost, Time: time.Unix(0, 0)}
	line := appendLine(nil, place{seq: seq, epoch: epoch, more: more}, appendBody(nil, &e), 0)
	return line[:len(line)-crcLength-1]
}

// line writes the next line's body with a checksum of its own. A group stays in one segment. One that the next line does
// not go on with, as where the files of two copies meet, is left as it is in a segment that ends there: behind it in the
// same one, the next Open would take it for a torn tail that must not be.
func (w *copyWriter) line(body []byte, more int) error {
	if w.f == nil || w.left == 0 && w.seg.size > DefaultSegmentBytes || w.broken(more) {
		if err := w.rotate(); err != nil {
			return err
		}
	}
	from := len(w.buf)
	w.buf = seal(append(w.buf, body...), from, w.seg.seed)
	w.left = more
	w.next++
	if len(w.buf) < maxBatch {
		return nil
	}
	return w.flush()
}

// broken is true when a group is under way and a line with so many to follow is not its next.
func (w *copyWriter) broken(more int) bool { return w.left > 0 && more != w.left-1 }

func (w *copyWriter) flush() error {
	err := writeAll(w.f, w.buf, w.seg.size)
	w.seg.size += int64(len(w.buf))
	w.buf = w.buf[:0]
	return noSpace(err, w.seg.path, maxBatch)
}

// carry writes an event that lies below the copy's floor.
func (w *copyWriter) carry(floor, seq uint64, body []byte) (err error) {
	if w.below == nil {
		if w.below, err = newCarried(w.fs, w.dir, w.log, floor, false); err != nil {
			return err
		}
	}
	return w.below.add(seq, body)
}

// endCarried puts the carried file in place: the first segment's header names it.
func (w *copyWriter) endCarried() error {
	below := w.below
	if w.below = nil; below == nil {
		return nil
	}
	w.carried = below.count
	if err := below.finish(); err != nil {
		return err
	}
	if err := below.rename(); err != nil {
		return err
	}
	return w.fs.SyncDir(w.dir)
}

func (w *copyWriter) rotate() error {
	if err := w.endCarried(); err != nil {
		return err
	}
	var prior uint64
	if w.f != nil {
		prior = w.seg.first
		if err := w.end(); err != nil {
			return err
		}
	}
	var err error
	w.seg, w.f, err = createSegment(w.fs, w.dir, mark{Log: w.log, Prior: prior, First: w.next, Epoch: w.epoch,
		Time: time.Now(), Floor: w.first, Carried: w.carried, Durable: w.next - 1})
	return err
}

// end syncs and closes the segment that is written.
func (w *copyWriter) end() error {
	err := w.flush()
	if err == nil {
		err = w.f.Sync()
	}
	err = errors.Join(err, w.f.Close())
	w.f = nil
	return err
}

// finish makes up for events missing at the end and marks the end. Of a log that never had one there is no copy but an
// empty directory, which is an empty log.
func (w *copyWriter) finish(first, last, epoch uint64) error {
	if w.next == 0 && last < first && first <= 1 {
		return nil
	}
	w.begin(first)
	if err := w.fill(last + 1); err != nil {
		return err
	}
	if w.left > 0 || w.f == nil { // of a log whose events all went, the copy has none, and goes on where that did
		if err := w.rotate(); err != nil {
			return err
		}
	}
	w.buf = appendMark(w.buf, mark{Kind: markClosed, Epoch: max(epoch, w.epoch), Time: time.Now(), Last: w.next - 1,
		Durable: w.next - 1}, w.seg.seed)
	return w.end()
}

func (w *copyWriter) close() error {
	if w.below != nil {
		w.below.discard()
	}
	if w.f == nil {
		return nil
	}
	return w.f.Close()
}
