package wal

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Open opens the log in dir, makes the directory and a new log if there is none, and repairs what a crash left: it
// goes through these steps, and changes nothing before step 6.
//
//  1. A directory that holds other files and no log is refused (ErrInvalid): it was probably named by mistake.
//  2. The lock is taken (ErrLocked), unless Options.ReadOnly.
//  3. All headers, those of checkpoints included, and the newest segment are read. A newer format is ErrVersion.
//  4. Verdict: damage to what was acknowledged is ErrCorrupt, as is a log that ends before Options.MinSeq or before one of
//     its checkpoints.
//  5. Options.Inspect is called, and may refuse.
//  6. A torn tail is copied to quarantine, what no witness covers is written anew, the tail is cut, all of it synced.
//  7. The new epoch is written and synced: in the same segment after a clean Close, else in a new one.
//
// A crash in any of these, and any number of times, leaves a directory that Open opens to the same events. What was
// found and done is in [Log.Report]; a torn tail is no error.
//
// A Log is safe for concurrent use.
func Open(dir string, opts Options) (*Log, error) {
	started := time.Now()
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	if dir == "" {
		return nil, invalid("directory", "empty")
	}
	l := &Log{dir: dir, opts: opts, fs: opts.FS, upkeep: make(chan struct{}, 1)}
	if opts.ReadOnly {
		err = l.openReader()
	} else {
		err = l.openWriter()
	}
	if err != nil {
		return nil, wrapped(err)
	}
	l.report.Took = time.Since(started)
	return l, nil
}

func (l *Log) openWriter() (err error) {
	found, err := list(l.fs, l.dir)
	if err != nil && !isNotExist(err) {
		return err
	}
	if err := found.ours(l.dir); err != nil {
		return err
	}
	if len(found.segments) == 0 {
		// crash C3: directories made, but not all synced. The next Open makes or syncs them again.
		if err := makeDirs(l.fs, l.dir); err != nil {
			return noSpace(err, l.dir, maxHeader)
		}
	}
	if l.lock, err = l.fs.Lock(l.dir); err != nil {
		return noSpace(err, l.dir, maxHeader)
	}
	open := false
	defer func() { // also when Options.Inspect panics
		if !open {
			err = errors.Join(err, l.lock.Close())
		}
	}()
	if err := l.recover(); err != nil {
		return err
	}
	l.prefill = l.opts.prefills(l.dir)
	l.idle = time.AfterFunc(math.MaxInt64, l.onIdle)
	open = true
	return nil
}

// recover is steps 3 to 7.
func (l *Log) recover() error {
	found, err := list(l.fs, l.dir)
	if err != nil {
		return err
	}
	s, err := surveySegments(l.fs, l.dir, found)
	if err != nil {
		return err
	}
	t, err := l.judge(&s)
	if err != nil {
		return err
	}
	if s.epoch == math.MaxUint64 || t.next == math.MaxUint64 {
		return &CorruptError{Path: l.dir, Seq: t.next, Reason: "numbers are used up"}
	}
	if err := l.inspect(s, t); err != nil {
		return err
	}
	l.take(s, t)
	if err := l.repair(&s, t); err != nil {
		return err
	}
	return l.sweep(found, &s)
}

// judge reads the newest segment and gives the verdict. It changes nothing.
func (l *Log) judge(s *survey) (tail, error) {
	t := tail{next: 1}
	if n := len(s.segments); n > 0 {
		var err error
		newest := s.segments[n-1]
		if t, err = readTail(l.fs, newest); err != nil {
			return t, err
		}
		raise(&s.floor, &s.carried, t.floor, t.carried)
		s.epoch = max(s.epoch, t.epoch)
		if err := s.checkChain(); err != nil {
			return t, err
		}
		if err := t.verdict(newest.path); err != nil {
			return t, err
		}
	}
	if err := l.witnesses(s, &t); err != nil {
		return t, err
	}
	if s.blank != nil && s.blank.first != t.next {
		return t, &CorruptError{Path: s.blank.path, Seq: t.next,
			Reason: fmt.Sprintf("no segment header, and the log ends before seq %d", s.blank.first)}
	}
	if last := t.next - 1; last < l.opts.MinSeq {
		return t, &CorruptError{Path: l.dir, Offset: t.end, Seq: t.next,
			Reason: fmt.Sprintf("the log ends at seq %d, before Options.MinSeq %d", last, l.opts.MinSeq)}
	}
	return t, s.checkCarried(l.fs, l.dir)
}

func readTail(fsys FS, seg segment) (tail, error) {
	f, err := fsys.OpenFile(seg.path, os.O_RDONLY, 0)
	if err != nil {
		return tail{}, err
	}
	t, err := scanTail(f, seg, seg.header, seg.first)
	return t, errors.Join(err, f.Close())
}

// take fills in what the survey and the tail say, before anyone else has the log. The newest segment's size becomes that of its part that counts.
func (l *Log) take(s survey, t tail) {
	l.report = Report{Dir: l.dir, LogID: s.id, Epoch: s.epoch, Segments: len(s.segments), Events: t.events, Clean: t.closed,
		Carried: s.carried, Checkpoints: len(s.checkpoints)}
	l.id, l.epoch, l.floor, l.carried = s.id, s.epoch, s.floor, s.carried
	l.last, l.durable = t.next-1, t.next-1
	l.segments = s.segments[s.dropped():]
	for _, seg := range s.segments {
		l.report.Bytes += seg.size
	}
	l.report.FirstSeq, l.report.LastSeq = l.last+1, l.last
	if n := len(l.segments); n > 0 {
		l.segments[n-1].size = t.end
		l.report.FirstSeq = l.segments[0].first
		if torn, ok := t.torn(l.segments[n-1].path); ok {
			l.report.Torn = append(l.report.Torn, torn)
		}
	}
	if s.blank != nil && s.blank.size > 0 {
		l.report.Torn = append(l.report.Torn, Torn{Path: s.blank.path, Bytes: s.blank.size, Seq: t.next,
			Reason: errNoHeader.Error()})
	}
}

// inspect is step 5. What it shows ends where the newest witness says: the rest may be in the page cache alone.
func (l *Log) inspect(s survey, t tail) error {
	inspect := l.opts.Inspect
	l.opts.Inspect = nil // what it holds may be large, and a stopped timer holds the log for a while after Close
	if inspect == nil || len(s.segments) == 0 {
		return nil
	}
	s.segments = slices.Clone(s.segments)
	view := &Log{dir: l.dir, opts: l.opts, fs: l.fs, reader: &reader{still: true}}
	view.take(s, t)
	if err := view.reader.show(view, s, t); err != nil {
		return err
	}
	defer view.Close() // has nothing to give back
	return inspect(view)
}

// repair is steps 6 and 7.
func (l *Log) repair(s *survey, t tail) error {
	for i := range l.report.Torn {
		torn := &l.report.Torn[i]
		var err error
		if torn.Quarantine, err = quarantine(l.fs, l.dir, *torn, l.opts.Now()); err != nil {
			return err
		}
		// crash C4: the copy is made, nothing is cut yet. The next Open finds the copy and does not make another.
		l.opts.Logger.Warn("wal: torn tail cut", slog.String("segment", torn.Path), slog.Int64("offset", torn.Offset),
			slog.Int64("bytes", torn.Bytes), slog.String("reason", torn.Reason), slog.String("copy", torn.Quarantine))
	}
	l.epoch = s.epoch + 1
	l.report.Epoch = l.epoch
	opened := mark{Kind: markOpened, Epoch: l.epoch, Time: l.opts.Now(), Durable: l.last}
	if len(l.segments) == 0 {
		l.id, l.epoch, l.report.Created = randomHex(16), 1, true
		l.report.LogID, l.report.Epoch, opened.Epoch, l.floor = l.id, 1, 1, 1
		return l.addSegment(opened)
	}
	if t.closed && t.damage == nil && s.blank == nil && t.end < l.opts.SegmentBytes {
		return l.goOn(t, opened)
	}
	if err := l.seal(t); err != nil {
		return err
	}
	// crash C6: the old segment is final, the new one not there yet. The next Open finds nothing to cut and makes it.
	return l.addSegment(opened)
}

// rewrite reads what no witness covers (what stands behind the event that the newest witness names, and, of the marks
// there, the last that a clean Close made and those behind it), so that
// it can be written anew: after a failed sync the page cache may show what the disk does not have, and a second sync
// that succeeds proves nothing.
func (l *Log) rewrite(f File, t tail, write func(at int64, buf []byte) error) error {
	seg := l.segments[len(l.segments)-1]
	from := seg.header
	if t.durable >= seg.first {
		at, err := findLine(f, seg, t.durable, t.next-1)
		if err != nil {
			return err
		}
		from = at.end
	}
	from = max(from, t.settled)
	l.report.Rewritten = t.end - from
	buf := make([]byte, min(t.end-from, 1<<20))
	for from < t.end {
		n, err := f.ReadAt(buf[:min(int64(len(buf)), t.end-from)], from)
		if n == 0 {
			return cmp.Or(err, io.ErrNoProgress)
		}
		if err := write(from, buf[:n]); err != nil {
			return noSpace(err, seg.path, t.end-from) // of a file system that never writes in place
		}
		from += int64(n)
	}
	return nil
}

// goOn continues the newest segment after a clean Close.
func (l *Log) goOn(t tail, opened mark) (err error) {
	seg := &l.segments[len(l.segments)-1]
	f, err := l.fs.OpenFile(seg.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	err = l.rewrite(f, t, func(at int64, buf []byte) error { return writeAll(f, buf, at) })
	if err != nil {
		return err
	}
	if t.size > t.end { // blanks
		if err := f.Truncate(t.end); err != nil {
			return err
		}
	}
	// crash C7: the mark is written, whole or not, and not synced. No event stands behind it: the next Open cuts it, or
	// takes it for the opening that it was.
	line := appendMark(nil, opened, seg.seed)
	if err := writeAll(f, line, t.end); err != nil {
		if isNoSpace(err) {
			return errors.Join(noSpace(err, seg.path, int64(len(line))), f.Truncate(t.end), f.Sync())
		}
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	l.active, l.next, l.witnessed = f, l.last+1, opened.Durable
	seg.size = t.end + int64(len(line))
	l.filled = seg.size
	return nil
}

// seal makes the newest segment final after an end that was not a clean Close: nothing is ever written behind it again,
// for what a crash took from its end may come back.
func (l *Log) seal(t tail) (err error) {
	seg := l.segments[len(l.segments)-1]
	f, err := l.fs.OpenFile(seg.path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	err = l.rewrite(f, t, func(at int64, buf []byte) error { return writeAll(f, buf, at) })
	if err != nil {
		return err
	}
	if err := f.Truncate(t.end); err != nil {
		return err
	}
	// crash C5: the tail is cut, or not; what was written anew is the same bytes as before. The next Open does it again.
	return f.Sync()
}

// addSegment makes the next segment and writes to it from now on. A segment without events has the name of the next
// one: it is replaced, in one step.
func (l *Log) addSegment(extra ...mark) error {
	var prior uint64
	n := len(l.segments)
	replace := n > 0 && l.segments[n-1].first == l.last+1
	switch {
	case replace:
		prior = l.segments[n-1].prior
	case n > 0:
		prior = l.segments[n-1].first
	}
	if err := l.held(); err != nil {
		return err
	}
	seg, f, err := createSegment(l.fs, l.dir, mark{
		Log: l.id, Prior: prior, First: l.last + 1, Epoch: l.epoch, Time: l.opts.Now(), Floor: l.floor, Carried: l.carried,
		Durable: l.last,
	}, extra...)
	if err != nil {
		return err
	}
	if err := l.held(); err != nil { // moved while it was made: whoever has the name, it is not this log
		return errors.Join(err, f.Close())
	}
	l.mu.Lock()
	if replace {
		l.segments = l.segments[: n-1 : n-1]
	}
	l.segments = append(l.segments, seg)
	l.mu.Unlock()
	l.active, l.next, l.witnessed, l.filled = f, l.last+1, l.last, seg.size
	return nil
}

// held asks the lock, if it can say so, whether the directory is still the one that is locked.
func (l *Log) held() error {
	if lock, ok := l.lock.(interface{ Held() error }); ok {
		return lock.Held()
	}
	return nil
}

// sweep removes what interrupted work left: temporary files, segments below the floor, and carried files other than the
// one that the floor names.
func (l *Log) sweep(found listing, s *survey) error {
	left := found.temps
	for _, seg := range s.segments[:s.dropped()] {
		left = append(left, filepath.Base(seg.path))
	}
	for _, name := range found.carried {
		if s.carried == 0 || name != sideName(carriedPrefix, s.floor) {
			left = append(left, name)
		}
	}
	if err := errors.Join(l.remove("", left), l.remove(quarantineDir, unfinishedCopies(l.fs, l.dir))); err != nil {
		return errors.Join(err, l.active.Close())
	}
	return nil
}

// remove removes files of the log's directory, or of one below it.
func (l *Log) remove(below string, names []string) error {
	for _, name := range names {
		if err := l.fs.Remove(filepath.Join(l.dir, below, name)); err != nil && !isNotExist(err) {
			return err
		}
		l.report.Swept = append(l.report.Swept, filepath.Join(below, name))
	}
	if len(names) == 0 {
		return nil
	}
	return l.fs.SyncDir(filepath.Join(l.dir, below))
}
