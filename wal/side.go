package wal

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Files beside the segments: checkpoints, and what a compaction carried over. Both are JSON Lines with a checksum by line,
// begun with a salt of their own, and both are written once, under a temporary name, and never changed afterwards.

const (
	checkpointPrefix = "checkpoint-"
	carriedPrefix    = "carried-"

	sideVersion = 1
	sideBuffer  = 64 << 10
	sideStep    = 96 << 10 // bytes written between two syncs: a larger one would hold up those of the segments
	maxRest     = 10 * time.Millisecond
)

func sideName(prefix string, seq uint64) string { return prefix + segmentName(seq) }

func parseSideName(prefix, name string) (uint64, bool) {
	rest, ok := strings.CutPrefix(name, prefix)
	if !ok {
		return 0, false
	}
	return parseSegmentName(rest)
}

// sideHead is the first line of such a file.
type sideHead struct {
	kind      string // markCheckpoint or markCarried
	version   uint64
	log, salt string
	seq       uint64 // a checkpoint's; of what was carried, the floor
	event     string // a checkpoint's: the checksum of the event at seq, as 8 hex digits; "" when that was gone
}

const (
	markCheckpoint = "checkpoint"
	markCarried    = "carried"
)

func kindOf(prefix string) string { return strings.TrimSuffix(prefix, "-") }

// appendSideHead begins the line; what only one kind has follows, and the checksum.
func appendSideHead(dst []byte, h sideHead) []byte {
	dst = appendQuoted(append(dst, `{"mark":`...), h.kind)
	dst = strconv.AppendUint(append(dst, `,"version":`...), sideVersion, 10)
	dst = appendQuoted(append(dst, `,"log":`...), h.log)
	return appendQuoted(append(dst, `,"salt":`...), h.salt)
}

// parseSideHead reads a header of any version, as far as all of them have to agree.
func parseSideHead(line []byte, kind string) (h sideHead, err error) {
	var f fields
	if f.parse(new(jsonScanner), line) != nil {
		return h, errors.New("no intact header")
	}
	h = sideHead{
		kind: f.text("mark").string(), version: f.uint("version"), log: f.text("log").string(), salt: f.text("salt").string(),
	}
	if kind == markCheckpoint {
		h.seq, h.event = f.uint("seq"), f.textOrNone("event").string()
	} else {
		h.seq = f.uint("floor")
	}
	_, intact := unseal(line, saltSeed(h.salt))
	switch {
	case !intact || f.err != nil || h.kind != kind || h.version == 0:
		return h, errors.New("no intact header")
	case !isHex(h.log, 32) || !isHex(h.salt, 16) || h.event != "" && !isHex(h.event, 8):
		return h, errors.New("the header has no log id, salt or checksum that a writer made")
	}
	return h, nil
}

// sideFile is one that is open for reading.
type sideFile struct {
	File
	path string
	head sideHead
	seed uint32
	body int64 // offset behind the header
	size int64
}

// openSide opens a file and reads its header: *CorruptError if that is not intact, or not the name's; *VersionError if it
// is of a newer version; else the file system's own error.
func openSide(fsys FS, dir, prefix string, seq uint64) (_ *sideFile, err error) {
	s := &sideFile{path: filepath.Join(dir, sideName(prefix, seq))}
	if s.File, err = fsys.OpenFile(s.path, os.O_RDONLY, 0); err != nil {
		return nil, err
	}
	if err = s.readHead(kindOf(prefix), seq); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *sideFile) readHead(kind string, seq uint64) (err error) {
	if s.size, err = s.Size(); err != nil {
		return err
	}
	lines := smallLineReader(s, 0, min(s.size, maxHeader))
	defer lines.close()
	l, err := lines.next()
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err != nil || !l.whole || l.at != 0 {
		return s.corrupt(0, seq, "no intact header")
	}
	if s.head, err = parseSideHead(l.bytes, kind); err != nil {
		return s.corrupt(0, seq, err.Error())
	}
	if s.head.version > sideVersion {
		return &VersionError{Path: s.path, Found: s.head.version, Known: sideVersion}
	}
	if s.head.seq != seq {
		return s.corrupt(0, seq, fmt.Sprintf("the header is that of seq %d", s.head.seq))
	}
	s.seed, s.body = saltSeed(s.head.salt), l.end
	return nil
}

// of holds the file to be that of a log; any will do where none is known.
func (s *sideFile) of(id string) error {
	if id == "" || s.head.log == id {
		return nil
	}
	return s.corrupt(0, s.head.seq, s.head.kind+" of another log")
}

func (s *sideFile) corrupt(at int64, seq uint64, reason string) error {
	return &CorruptError{Path: s.path, Offset: at, Seq: seq, Reason: reason}
}

// lineWrong says what is wrong with a line's frame; "" for nothing.
func lineWrong(l line) string {
	switch {
	case l.gap:
		return errGap.Error()
	case l.bytes == nil || !l.whole:
		return errIncomplete.Error()
	}
	return ""
}

// sideWriter writes a file beside the segments. Without one (a dry run) it counts.
type sideWriter struct {
	fs      FS
	f       File
	path    string // the name that it will have
	seed    uint32
	buf     []byte
	at      int64 // bytes in the file
	synced  int64
	rested  time.Time // when the step under way began
	dry     bool
	renamed bool
}

// newSideWriter makes the file under its temporary name, and begins it with the header; more is what follows the salt.
func newSideWriter(fsys FS, dir, prefix string, h sideHead, more func(dst []byte) []byte, dry bool) (_ *sideWriter, err error) {
	h.kind, h.salt = kindOf(prefix), randomHex(8)
	w := &sideWriter{fs: fsys, path: filepath.Join(dir, sideName(prefix, h.seq)), seed: saltSeed(h.salt), rested: time.Now(), dry: dry}
	if !dry {
		if w.f, err = fsys.OpenFile(w.path+tempSuffix, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644); err != nil {
			return nil, noSpace(err, w.path, maxHeader)
		}
	}
	w.buf = seal(more(appendSideHead(nil, h)), 0, w.seed)
	return w, nil
}

// endLine ends the line that begins at buf[from].
func (w *sideWriter) endLine(from int) error {
	w.buf = seal(w.buf, from, w.seed)
	if len(w.buf) < sideBuffer {
		return nil
	}
	return w.flush()
}

func (w *sideWriter) flush() error {
	n := int64(len(w.buf))
	if !w.dry {
		if err := writeAll(w.f, w.buf, w.at); err != nil {
			return noSpace(err, w.path, w.at+n)
		}
	}
	w.at += n
	if w.buf = w.buf[:0]; cap(w.buf) > 4*sideBuffer {
		w.buf = nil
	}
	if w.at-w.synced < sideStep {
		return nil
	}
	err := w.sync()
	w.rest()
	return err
}

// rest leaves the disk and the processors to the appends for as long as the step behind it took: nobody waits for these
// files as they do for an append.
func (w *sideWriter) rest() {
	if !w.dry {
		time.Sleep(min(time.Since(w.rested), maxRest))
		w.rested = time.Now()
	}
}

func (w *sideWriter) sync() error {
	w.synced = w.at
	if w.dry {
		return nil
	}
	return noSpace(w.f.Sync(), w.path, w.at)
}

// finish puts all of it on stable storage, still under its temporary name.
func (w *sideWriter) finish() error {
	err := w.flush()
	if err == nil && w.synced < w.at {
		err = w.sync()
	}
	return errors.Join(err, w.close())
}

func (w *sideWriter) close() error {
	if w.f == nil {
		return nil
	}
	f := w.f
	w.f = nil
	return f.Close()
}

// rename gives the file its name. That is durable when the directory is synced, which the committer alone does.
func (w *sideWriter) rename() error {
	if err := w.fs.Rename(w.path+tempSuffix, w.path); err != nil {
		return noSpace(err, w.path, w.at)
	}
	w.renamed = true
	return nil
}

// discard takes the file back. What it fails to remove, the next Open sweeps.
func (w *sideWriter) discard() {
	if w.dry {
		return
	}
	_ = w.close()
	name := w.path
	if !w.renamed {
		name += tempSuffix
	}
	_ = w.fs.Remove(name)
}
