package wal

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"
)

// A Checkpoint is a file in the log's directory with what someone folded from the events up to Seq, by its name and size
// only: whether it can be used, LoadCheckpoint says.
type Checkpoint struct {
	Seq   uint64
	Path  string
	Bytes int64
}

// A Section is one part of a checkpoint. Name is 1 to 256 bytes without control characters and unique in a checkpoint,
// Version from 0. Save writes what is to be kept, as many bytes and in as many writes as it likes; it is called once, in the
// goroutine of SaveCheckpoint, and must not keep the writer.
type Section struct {
	Name    string
	Version int
	Save    func(io.Writer) error
}

const (
	keptCheckpoints = 2
	chunkBytes      = 48 << 10 // of a section, on one line
)

// Checkpoints lists the checkpoints in the log's directory, newest first. None of them is read.
func (l *Log) Checkpoints() ([]Checkpoint, error) {
	if l.isClosed() {
		return nil, ErrClosed
	}
	found, err := list(l.fs, l.dir)
	if err != nil {
		return nil, err
	}
	var all []Checkpoint
	for _, name := range slices.Backward(found.checkpoints) {
		c := Checkpoint{Path: filepath.Join(l.dir, name)}
		c.Seq, _ = parseSideName(checkpointPrefix, name)
		if c.Bytes, err = sizeOf(l.fs, c.Path); err == nil {
			all = append(all, c)
		} else if !isNotExist(err) { // else a writer beside it has replaced it
			return nil, wrapped(err)
		}
	}
	return all, nil
}

func sizeOf(fsys FS, path string) (int64, error) {
	f, err := fsys.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return 0, err
	}
	size, err := f.Size()
	return size, errors.Join(err, f.Close())
}

// SaveCheckpoint writes what was folded from the events up to seq, which must be from 1 to LastSeq: each section's Save is
// called in turn. When it returns nil the checkpoint is on stable storage, whatever Options.Sync, and of the others all but
// the newest are removed, so that two remain. It runs beside appends, and beside no other SaveCheckpoint or Compact of this
// log, which it waits for. It takes some 128 KiB of memory.
//
// Any error before the file has its name leaves the older checkpoints as they were, no file behind, and the log open:
// [ErrNoSpace] for a full disk, ctx's, the disk's, or that of a Save. Only a failed sync of the directory, or of the segment
// where events up to seq were not on stable storage, is [ErrFailed]. [ErrInvalid] for a seq or sections as they must not be.
func (l *Log) SaveCheckpoint(ctx context.Context, seq uint64, sections []Section) (Checkpoint, error) {
	ctx, done, err := l.beginUpkeep(ctx)
	if err != nil {
		return Checkpoint{}, err
	}
	defer done()
	if err := l.checkpointable(seq, sections); err != nil {
		return Checkpoint{}, err
	}
	c, err := l.saveCheckpoint(ctx, seq, sections)
	return c, wrapped(err)
}

// checkpointable refuses what must not stand in a checkpoint.
func (l *Log) checkpointable(seq uint64, sections []Section) error {
	if last := l.LastSeq(); seq == 0 || seq > last {
		return invalid("seq", "%d; a checkpoint is of 1 to %d", seq, last)
	}
	names := make(map[string]bool)
	for i, s := range sections {
		field := fmt.Sprintf("section %d ", i)
		switch {
		case s.Name == "":
			return invalid(field+"Name", "empty")
		case names[s.Name]:
			return invalid(field+"Name", "%q again", s.Name)
		case s.Version < 0:
			return invalid(field+"Version", "%d", s.Version)
		case s.Save == nil:
			return invalid(field+"Save", "nil")
		}
		if err := checkName(field+"Name", s.Name); err != nil {
			return err
		}
		names[s.Name] = true
	}
	return nil
}

func (l *Log) saveCheckpoint(ctx context.Context, seq uint64, sections []Section) (c Checkpoint, err error) {
	if err := l.settle(seq); err != nil {
		return c, err
	}
	sum, err := l.sumOf(seq)
	if err != nil && !errors.Is(err, ErrDropped) {
		return c, err
	}
	w, err := l.newCheckpoint(seq, sum)
	if err != nil {
		return c, err
	}
	placed := false
	defer func() { // also when a Save panics
		if !placed {
			w.discard()
		}
	}()
	if err := writeSections(ctx, w, sections); err != nil {
		return c, err
	}
	if err := stopped(ctx); err != nil {
		return c, err
	}
	if err := l.commit(context.Background(), newTask(func() error { return l.place(w) })); err != nil {
		placed = errors.Is(err, ErrFailed) // whatever of it is there, the next Open tells
		return c, err
	}
	placed = true
	return Checkpoint{Seq: seq, Path: w.path, Bytes: w.at}, l.removeCheckpoints(seq)
}

// settle puts the events up to seq on stable storage, where Options.Sync has not done so.
func (l *Log) settle(seq uint64) error {
	l.mu.Lock()
	durable := l.durable
	l.mu.Unlock()
	if seq <= durable {
		return nil
	}
	return l.commit(context.Background(), newTask(l.syncActive))
}

// sumOf is the checksum of an event's line, as its 8 digits; ErrDropped when the event is below the floor.
func (l *Log) sumOf(seq uint64) (string, error) {
	snap, err := l.snapshot()
	if err != nil {
		return "", err
	}
	i, err := snap.find(seq)
	if err != nil {
		return "", err
	}
	f, err := l.openSegment(snap.segments[i], seq)
	if err != nil {
		return "", err
	}
	defer f.Close() // only read
	return sumIn(f, snap.segments[i], seq, snap.lastOf(i))
}

// sumIn is sumOf for an event that is known to be in a segment, whose last event is last.
func sumIn(f io.ReaderAt, seg segment, seq, last uint64) (string, error) {
	line, err := findLine(f, seg, seq, last)
	if err != nil {
		return "", err
	}
	var digits [8]byte
	if _, err := f.ReadAt(digits[:], line.end-int64(len(digits)+len("\"}\n"))); err != nil {
		return "", err
	}
	return string(digits[:]), nil
}

func (l *Log) newCheckpoint(seq uint64, sum string) (*sideWriter, error) {
	if err := l.held(); err != nil {
		return nil, err
	}
	l.mu.Lock()
	head := sideHead{log: l.id, seq: seq}
	epoch := l.epoch
	l.mu.Unlock()
	now := l.opts.Now()
	if now.Unix() < 0 {
		now = time.Unix(0, 0) // as for events: a clock that was never set
	}
	// crash C12: a temporary file, whole or not. Open sweeps it, and uses the checkpoints that there are.
	return newSideWriter(l.fs, l.dir, checkpointPrefix, head, func(dst []byte) []byte {
		return appendCheckpointHead(dst, seq, sum, epoch, now)
	}, false)
}

// appendCheckpointHead is what a checkpoint's header has behind the salt.
func appendCheckpointHead(dst []byte, seq uint64, sum string, epoch uint64, now time.Time) []byte {
	dst = strconv.AppendUint(append(dst, `,"seq":`...), seq, 10)
	dst = appendQuoted(append(dst, `,"event":`...), sum)
	dst = strconv.AppendUint(append(dst, `,"epoch":`...), epoch, 10)
	dst = strconv.AppendInt(append(dst, `,"ts":`...), now.Unix(), 10)
	return strconv.AppendInt(append(dst, `,"ns":`...), int64(now.Nanosecond()), 10)
}

// writeSections writes all that follows the header, and puts it on stable storage.
func writeSections(ctx context.Context, w *sideWriter, sections []Section) error {
	c := chunkWriter{ctx: ctx, w: w, lines: 1}
	for _, s := range sections {
		if err := c.section(s); err != nil {
			return err
		}
	}
	c.begin("end")
	w.buf = strconv.AppendInt(append(w.buf, `,"sections":`...), int64(len(sections)), 10)
	w.buf = strconv.AppendInt(append(w.buf, `,"bytes":`...), c.bytes, 10)
	if c.end(); c.err != nil {
		return c.err
	}
	return w.finish()
}

// chunkWriter puts what a section's Save writes on lines of their own.
type chunkWriter struct {
	ctx   context.Context
	w     *sideWriter
	chunk []byte
	lines uint64 // written, the header included
	bytes int64  // of all sections
	from  int    // where the line under way begins in w.buf
	err   error  // sticky: a Save may pass over it
}

// begin begins a line. Each has its number, so that none can be taken for another.
func (c *chunkWriter) begin(kind string) {
	c.from = len(c.w.buf)
	c.w.buf = appendQuoted(append(c.w.buf, `{"mark":`...), kind)
	c.w.buf = strconv.AppendUint(append(c.w.buf, `,"n":`...), c.lines, 10)
}

func (c *chunkWriter) end() {
	c.lines++
	c.err = cmp.Or(c.err, c.w.endLine(c.from))
}

func (c *chunkWriter) section(s Section) error {
	c.begin("section")
	c.w.buf = appendQuoted(append(c.w.buf, `,"name":`...), s.Name)
	c.w.buf = strconv.AppendInt(append(c.w.buf, `,"version":`...), int64(s.Version), 10)
	c.end()
	into := &sectionWriter{c}
	err := s.Save(into)
	into.c = nil
	if c.err == nil && len(c.chunk) > 0 {
		c.data()
	}
	if c.err == nil && err != nil {
		return fmt.Errorf("wal: checkpoint section %q: %w", s.Name, err)
	}
	return c.err
}

// sectionWriter is what one Save gets. What it writes after it has returned goes nowhere.
type sectionWriter struct{ c *chunkWriter }

var errSaved = errors.New("wal: the section is saved; its writer is not to be kept")

func (s *sectionWriter) Write(p []byte) (int, error) {
	if s.c == nil {
		return 0, errSaved
	}
	return s.c.write(p)
}

func (c *chunkWriter) write(p []byte) (n int, err error) {
	for len(p) > 0 && c.err == nil {
		if c.chunk == nil {
			c.chunk = make([]byte, 0, chunkBytes)
		}
		part := p[:min(len(p), chunkBytes-len(c.chunk))]
		c.chunk = append(c.chunk, part...)
		n, p = n+len(part), p[len(part):]
		if len(c.chunk) == chunkBytes {
			c.data()
		}
	}
	return n, c.err
}

// data writes one line of what was saved.
func (c *chunkWriter) data() {
	if c.err = stopped(c.ctx); c.err != nil {
		return
	}
	c.begin("data")
	c.w.buf = base64.StdEncoding.AppendEncode(append(c.w.buf, `,"data":"`...), c.chunk)
	c.w.buf = append(c.w.buf, '"')
	c.bytes += int64(len(c.chunk))
	c.chunk = c.chunk[:0]
	c.end()
}

// place gives a finished file its name, durably. For the committer.
func (l *Log) place(w *sideWriter) error {
	if err := l.held(); err != nil {
		return err
	}
	if err := w.rename(); err != nil {
		return err
	}
	// crash C13: the file has its name, which is not yet synced. It is there or not; nothing relies on it yet.
	return l.syncEntries()
}

// syncEntries syncs the log's directory. An error is final: what another sync would say proves nothing.
func (l *Log) syncEntries() error {
	if err := l.fs.SyncDir(l.dir); err != nil {
		return l.fail(err)
	}
	return nil
}

// removeCheckpoints leaves the one that was just made and the newest of the others. What speaks of more than there is can
// only be damaged, or of another log: else Open would have refused.
func (l *Log) removeCheckpoints(made uint64) error {
	found, err := list(l.fs, l.dir)
	if err != nil {
		return err
	}
	last, kept := l.LastSeq(), 1
	var old []string
	for _, name := range slices.Backward(found.checkpoints) {
		seq, _ := parseSideName(checkpointPrefix, name)
		switch {
		case seq == made:
		case seq <= last && kept < keptCheckpoints:
			kept++
		default:
			old = append(old, filepath.Join(l.dir, name))
		}
	}
	// crash C14: the new checkpoint is durable, and any part of the older ones may still be there. They are as good as they
	// were, and go with the next one.
	return l.removeUseless(old)
}

// removeUseless removes files that nothing durable relies on any more. It is the upkeep that removes them, since a large
// file takes its time; only the sync is the committer's. Where Close comes before that, the next Open does the rest.
func (l *Log) removeUseless(paths []string) error {
	if len(paths) == 0 {
		return nil
	}
	for _, path := range paths {
		if err := l.fs.Remove(path); err != nil && !isNotExist(err) {
			return err
		}
	}
	if err := l.commit(context.Background(), newTask(l.syncEntries)); !errors.Is(err, ErrClosed) {
		return err
	}
	return nil
}

// LoadCheckpoint calls load for each section of a checkpoint, in the order in which they were saved, with its name and
// version (Save is nil) and what Save wrote. Before the first call it reads the whole file: that it is of this log, what its
// name says, and as it was written, to the end; and that the event at its seq, as far as it is still there, is the one that
// it was made after. While it loads it checks again. Memory is bounded whatever the file holds.
//
// What load does not read is passed over. Its error ends it, and is wrapped in what is returned. Else the errors are
// [ErrCorrupt] (a *CorruptError), [ErrVersion] for a newer format, ctx's, or the file system's.
func (l *Log) LoadCheckpoint(ctx context.Context, c Checkpoint, load func(s Section, r io.Reader) error) error {
	if ctx == nil {
		return invalid("context", "nil")
	}
	last, err := l.refresh()
	if err != nil {
		return err
	}
	if c.Seq == 0 {
		return invalid("checkpoint", "seq 0")
	}
	side, err := openSide(l.fs, l.dir, checkpointPrefix, c.Seq)
	if err != nil {
		return wrapped(err)
	}
	defer side.Close() // only read
	if err := l.trust(ctx, side, last); err != nil {
		return wrapped(err)
	}
	return wrapped(side.sections(ctx, load))
}

// trust reads a checkpoint to its end, and holds it against the log.
func (l *Log) trust(ctx context.Context, side *sideFile, last uint64) error {
	if err := side.of(l.ID()); err != nil {
		return err
	}
	if side.head.seq > last {
		return side.ahead(last)
	}
	sum, err := l.sumOf(side.head.seq)
	if err != nil && !errors.Is(err, ErrDropped) {
		return err
	}
	if err == nil && sum != side.head.event {
		return side.swapped(sum)
	}
	return side.sections(ctx, func(Section, io.Reader) error { return nil })
}

func (s *sideFile) ahead(last uint64) error {
	return s.corrupt(0, s.head.seq, fmt.Sprintf("checkpoint of seq %d, and the log ends at seq %d", s.head.seq, last))
}

func (s *sideFile) swapped(sum string) error {
	return s.corrupt(0, s.head.seq, fmt.Sprintf("made after an event with checksum %q, and the log has %q there", s.head.event, sum))
}

// sections calls load for each section, and checks all of the file behind the header.
func (s *sideFile) sections(ctx context.Context, load func(s Section, r io.Reader) error) error {
	r := sectionReader{ctx: ctx, side: s, lines: newLineReader(s, s.body, s.size), n: 1}
	defer r.lines.close()
	if r.read(); r.err == nil && r.kind == "data" {
		r.bad(s.body, "data before any section")
	}
	for count := uint64(0); r.err == nil && r.kind != "end"; count++ {
		section := r.section
		r.read()
		if err := load(section, &r); r.err == nil && err != nil {
			return fmt.Errorf("wal: %s: section %q: %w", filepath.Base(s.path), section.Name, err)
		}
		for r.err == nil && r.kind == "data" { // what load left
			r.read()
		}
		r.found = count + 1
	}
	r.checkEnd()
	return r.err
}

// sectionReader reads a checkpoint line by line.
type sectionReader struct {
	ctx   context.Context
	side  *sideFile
	lines *lineReader
	n     uint64 // of the next line
	line  line

	kind    string // of the line that was read last: "section", "data" or "end"
	section Section
	data    []byte // of that line, what is not yet delivered
	room    []byte
	bytes   uint64 // delivered to load, or passed over
	found   uint64 // sections
	ended   struct{ sections, bytes uint64 }
	err     error
}

// Read is for load.
func (r *sectionReader) Read(p []byte) (int, error) {
	for r.err == nil && r.kind == "data" && len(r.data) == 0 {
		r.read()
	}
	switch {
	case r.err != nil:
		return 0, wrapped(r.err)
	case r.kind != "data":
		return 0, io.EOF
	}
	n := copy(p, r.data)
	r.data = r.data[n:]
	return n, nil
}

func (r *sectionReader) bad(at int64, reason string) {
	r.err = r.side.corrupt(at, r.side.head.seq, reason)
}

// read takes the next line apart.
func (r *sectionReader) read() {
	if r.err = stopped(r.ctx); r.err != nil {
		return
	}
	if r.line, r.err = r.lines.next(); errors.Is(r.err, io.EOF) {
		r.bad(r.lines.at, "the checkpoint ends here")
	}
	if r.err != nil {
		return
	}
	if wrong := lineWrong(r.line); wrong != "" {
		r.bad(r.line.at, wrong)
		return
	}
	body, intact := unseal(r.line.bytes, r.side.seed)
	if !intact {
		r.bad(r.line.at, errChecksum.Error())
		return
	}
	if !r.parse(body) {
		r.bad(r.line.at, "not the line that belongs here")
	}
	r.n++
}

// parse takes the writer's own spelling, and no other.
func (r *sectionReader) parse(body []byte) bool {
	p := parser{src: body, json: new(jsonScanner)}
	p.skip(`{"mark":`)
	kind := p.text()
	p.skip(`,"n":`)
	if n := p.uint(); p.bad || n != r.n {
		return false
	}
	switch r.kind = string(kind.raw); r.kind {
	case "section":
		p.skip(`,"name":`)
		name := p.text()
		p.skip(`,"version":`)
		version := p.uint()
		r.section = Section{Name: name.string(), Version: int(version)}
		p.bad = p.bad || version > math.MaxInt
	case "data":
		p.skip(`,"data":`)
		data := p.text()
		p.bad = p.bad || !r.decode(data.raw)
	case "end":
		p.skip(`,"sections":`)
		r.ended.sections = p.uint()
		p.skip(`,"bytes":`)
		r.ended.bytes = p.uint()
	default:
		return false
	}
	return !p.bad && p.at == len(body)
}

func (r *sectionReader) decode(encoded []byte) bool {
	var err error
	r.room, err = base64.StdEncoding.AppendDecode(r.room[:0], encoded)
	r.data = r.room
	r.bytes += uint64(len(r.data))
	return err == nil
}

// checkEnd holds the last line to be the last, and what it counts to be what was read.
func (r *sectionReader) checkEnd() {
	switch {
	case r.err != nil:
	case r.line.end != r.side.size:
		r.bad(r.line.end, "bytes behind the last line")
	case r.ended.sections != r.found || r.ended.bytes != r.bytes:
		r.bad(r.line.at, fmt.Sprintf("%d bytes in %d sections, not %d in %d", r.bytes, r.found, r.ended.bytes, r.ended.sections))
	}
}

// witnesses reads the headers of the checkpoints that the survey found: an intact one of this log says that its seq was
// durable. One that is damaged, or of another log, says nothing. What a reader was shown already it need not be told.
func (l *Log) witnesses(s *survey, t *tail) error {
	shown := l.LastSeq()
	for _, name := range slices.Backward(s.checkpoints) {
		seq, _ := parseSideName(checkpointPrefix, name)
		if seq <= shown {
			continue
		}
		said, err := saysDurable(l.fs, l.dir, seq, s.id)
		if err != nil {
			return err
		}
		if !said {
			continue
		}
		if seq >= t.next {
			return t.contradicted(l.dir, s, name, seq)
		}
		t.durable = max(t.durable, seq)
	}
	return nil
}

// saysDurable tells whether a checkpoint is a witness for its seq.
func saysDurable(fsys FS, dir string, seq uint64, id string) (bool, error) {
	side, err := openSide(fsys, dir, checkpointPrefix, seq)
	if isNotExist(err) || errors.Is(err, ErrCorrupt) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return side.of(id) == nil, side.Close()
}

// contradicted is the verdict on a log that ends before one of its checkpoints.
func (t *tail) contradicted(dir string, s *survey, name string, seq uint64) error {
	bad := &CorruptError{Path: filepath.Join(dir, name), Offset: t.end, Seq: t.next, Reason: "the log ends here"}
	if n := len(s.segments); n > 0 {
		bad.Path = s.segments[n-1].path
	}
	if t.damage != nil {
		bad.Offset, bad.Reason = t.damage.at, t.damage.reason
	}
	bad.Reason += fmt.Sprintf(", but seq %d was durable, as %s says", seq, name)
	return bad
}
