package wal

import (
	"bytes"
	"errors"
	"io"
	"sync"
)

// A line is what stands between two newlines.
type line struct {
	at    int64  // offset of its first byte
	bytes []byte // without the newline; valid until the next call; nil when it is too long to be held
	end   int64  // offset behind it, newline included
	whole bool   // a newline ends it; false for what is left at the end of the file
	gap   bool   // newlines stand in front of it: room for lines to come, which have not come
}

// lineReader splits part of a file into lines. It holds one buffer, which grows to a line's length and no further than
// MaxLineBytes: a longer line is passed over, never held. Empty lines, which are room for lines to come, are skipped.
type lineReader struct {
	f    io.ReaderAt
	at   int64 // offset in the file of the first byte not yet returned
	end  int64 // offset behind the last byte to read
	buf  []byte
	r, w int // buf[r:w] is read and not yet returned; it lies at offset at
}

const readBuffer = 256 << 10

var readBuffers = sync.Pool{New: func() any { b := make([]byte, readBuffer); return &b }}

// newLineReader reads f from offset at to offset end. Close gives its buffer back.
func newLineReader(f io.ReaderAt, at, end int64) *lineReader {
	return &lineReader{f: f, at: at, end: end, buf: *readBuffers.Get().(*[]byte)}
}

func (l *lineReader) close() {
	if buf := l.buf[:cap(l.buf)]; len(buf) == readBuffer {
		readBuffers.Put(&buf)
	}
	l.buf = nil
}

// next returns the next line that is not empty; io.EOF at the end.
func (l *lineReader) next() (line, error) {
	from := l.at
	got, err := l.nextLine()
	got.gap = err == nil && got.at != from
	return got, err
}

func (l *lineReader) nextLine() (line, error) {
	searched := 0
	for {
		l.skipEmpty(&searched)
		if i := bytes.IndexByte(l.buf[l.r+searched:l.w], '\n'); i >= 0 {
			return l.take(searched+i, true), nil
		}
		searched = l.w - l.r
		if searched > MaxLineBytes {
			return l.passOver()
		}
		if err := l.fill(); err == io.EOF {
			if l.r == l.w {
				return line{}, io.EOF
			}
			return l.take(l.w-l.r, false), nil
		} else if err != nil {
			return line{}, err
		}
	}
}

// skipEmpty passes over newlines in front of a line.
func (l *lineReader) skipEmpty(searched *int) {
	if *searched > 0 {
		return
	}
	for l.r < l.w && l.buf[l.r] == '\n' {
		l.r++
		l.at++
	}
}

func (l *lineReader) take(n int, whole bool) line {
	got := line{at: l.at, bytes: l.buf[l.r : l.r+n], end: l.at + int64(n), whole: whole}
	if whole {
		n++
		got.end++
	}
	l.r += n
	l.at += int64(n)
	return got
}

// passOver finds the end of a line that is too long to be held.
func (l *lineReader) passOver() (line, error) {
	got := line{at: l.at}
	for {
		if i := bytes.IndexByte(l.buf[l.r:l.w], '\n'); i >= 0 {
			got.end, got.whole = l.take(i, true).end, true
			return got, nil
		}
		got.end = l.take(l.w-l.r, false).end
		if err := l.fill(); err == io.EOF {
			return got, nil
		} else if err != nil {
			return line{}, err
		}
	}
}

// fill reads more bytes behind those that are there, making room first.
func (l *lineReader) fill() error {
	if l.r > 0 {
		copy(l.buf, l.buf[l.r:l.w])
		l.r, l.w = 0, l.w-l.r
	}
	if larger := min(2*len(l.buf), MaxLineBytes+1); l.w == len(l.buf) && larger <= cap(l.buf) {
		l.buf = l.buf[:larger]
	} else if l.w == len(l.buf) {
		grown := make([]byte, larger)
		copy(grown, l.buf)
		l.buf = grown
	}
	room := int(min(int64(len(l.buf)-l.w), l.end-l.at-int64(l.w)))
	if room <= 0 {
		return io.EOF
	}
	n, err := l.f.ReadAt(l.buf[l.w:l.w+room], l.at+int64(l.w))
	if n < 0 || n > room || n == 0 && err == nil {
		return io.ErrNoProgress // of an FS that does not keep to io.ReaderAt
	}
	l.w += n
	switch {
	case n > 0:
		return nil
	case errors.Is(err, io.EOF):
		return io.EOF // the file was cut since its size was asked for
	}
	return err
}

// smallLineReader is a lineReader for a few lines.
func smallLineReader(f io.ReaderAt, at, end int64) *lineReader {
	return &lineReader{f: f, at: at, end: end, buf: make([]byte, probeBytes)}
}

// sizedLineReader is a lineReader for few lines or many.
func sizedLineReader(f io.ReaderAt, at, end int64) *lineReader {
	if end-at >= readBuffer {
		return newLineReader(f, at, end)
	}
	return &lineReader{f: f, at: at, end: end, buf: make([]byte, max(end-at, probeBytes))}
}

// back makes the line that was returned last the next one again.
func (l *lineReader) back(got line) {
	n := int(l.at - got.at)
	l.r -= n
	l.at = got.at
}
