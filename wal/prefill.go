package wal

import (
	"bytes"
	"log/slog"
	"slices"
)

// Prefill: newlines ahead of the writer. A sync that finds its blocks in place has data to write and nothing else; where
// the file grows, the file system's journal has to be written, too. The newlines go out in the same write as the lines
// in front of them, and on stable storage with the same sync: there is no second writer beside the committer, whose
// sync could swallow an error, and nothing to wait for. One append in some hundreds or thousands carries them.

// maxAhead is the most that is filled at once: what one append in a thousand has to write more, and the slowest one in a hundred
// where many callers share syncs. Those take 3.3 times as long as the median there, and with 256 KiB 3.7 times; with half, a
// twentieth of the events/s is lost.
const maxAhead = 192 << 10

// Prefill says whether the active segment is filled ahead of the writer; see Options.
type Prefill int

// The settings.
const (
	PrefillAuto Prefill = iota // where it pays: the FS says so, and something is synced
	PrefillOn
	PrefillOff
)

// A Rewriter is an FS that knows whether syncing what overwrites a file's bytes is cheaper, in dir, than syncing what
// makes it grow. Of one that does not say, PrefillAuto thinks that it is not.
type Rewriter interface {
	RewritesAreCheaper(dir string) bool
}

func (o *Options) prefills(dir string) bool {
	if o.Prefill != PrefillAuto {
		return o.Prefill == PrefillOn
	}
	r, ok := o.FS.(Rewriter)
	return ok && o.Sync != SyncNever && r.RewritesAreCheaper(dir)
}

// ahead is how many newlines are to follow size bytes of lines: none while there is room left from before, nor where they
// would not last for two writes like this one; else as many as the log has bytes, so that a small one stays small, and
// never so that a segment grows beyond its limit.
func (l *Log) ahead(size int64) int64 {
	end := l.segments[len(l.segments)-1].size + size
	if !l.prefill || end <= l.filled || size > maxAhead/2 {
		return 0
	}
	var total int64
	for _, seg := range l.segments {
		if total += seg.size; total >= maxAhead {
			break
		}
	}
	return max(0, min(total, maxAhead, l.opts.SegmentBytes-end))
}

// writeAhead writes lines behind what is shown, and newlines behind those. A disk that has room for the lines alone is
// no failure: from then on the file grows with its lines.
func (l *Log) writeAhead(buf []byte, newlines int64) error {
	at := l.segments[len(l.segments)-1].size
	l.filled = max(l.filled, at+int64(len(buf))+newlines)
	if newlines == 0 {
		return writeAll(l.active, buf, at)
	}
	padded := slices.Grow(buf, int(newlines))[:len(buf)+int(newlines)]
	for ahead := padded[len(buf):]; len(ahead) > 0; {
		ahead = ahead[copy(ahead, someNewlines):]
	}
	l.keep(padded)
	err := writeAll(l.active, padded, at)
	if !isNoSpace(err) {
		return err
	}
	l.prefill = false
	l.opts.Logger.Warn("wal: no room to fill ahead; the segment grows line by line from here on",
		slog.String("dir", l.dir), slog.Any("error", err))
	if err := l.cut(); err != nil { // the lines may need the room
		return err
	}
	l.filled = at + int64(len(buf))
	return writeAll(l.active, buf, at)
}

var someNewlines = bytes.Repeat([]byte("\n"), 4<<10)

// cut takes back what was filled ahead.
func (l *Log) cut() error {
	size := l.segments[len(l.segments)-1].size
	if l.filled <= size {
		return nil
	}
	l.filled = size
	return l.active.Truncate(size)
}

// putLast writes a segment's last mark and cuts it to its size, both put on stable storage by one sync.
func (l *Log) putLast(m mark) error {
	if err := l.putMark(m, false); err != nil {
		return err
	}
	// crash C11: what was filled ahead is cut, or not; the mark is there, or not. Newlines are no damage.
	if err := l.cut(); err != nil {
		return l.fail(err)
	}
	return l.syncFile()
}
