package projection

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"time"
)

// Snapshots are made of varints, zigzag where they may be negative, and of texts: a length and so many bytes.

var errShort = errors.New("it ends too early")

func appendText(dst []byte, s string) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

// appendTime keeps any time in UTC, which nanoseconds since 1970 would not.
func appendTime(dst []byte, t time.Time) []byte {
	return binary.AppendUvarint(binary.AppendVarint(dst, t.Unix()), uint64(t.Nanosecond()))
}

// A source reads a snapshot, of which it believes nothing. After the first error, which it keeps, all it reads is zero.
type source struct {
	r   *bufio.Reader
	err error
}

func newSource(r io.Reader) *source { return &source{r: bufio.NewReaderSize(r, 64<<10)} }

func (s *source) fail(err error) {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errShort
	}
	if s.err == nil {
		s.err = err
	}
}

func (s *source) failf(format string, args ...any) { s.fail(fmt.Errorf(format, args...)) }

func (s *source) uint() uint64 {
	if s.err != nil {
		return 0
	}
	n, err := binary.ReadUvarint(s.r)
	if err != nil {
		s.fail(err)
		return 0
	}
	return n
}

func (s *source) int() int64 {
	n := s.uint()
	return int64(n>>1) ^ -int64(n&1)
}

// uintTo reads a number that is at most this.
func (s *source) uintTo(most uint64, what string) uint64 {
	n := s.uint()
	if n > most {
		s.failf("%s is %d, the most is %d", what, n, most)
		return 0
	}
	return n
}

// pieceLen is how much is allocated on the word of a length alone: more only as bytes come.
const pieceLen = 64 << 10

// bytes reads n bytes into what it appends to dst.
func (s *source) bytes(dst []byte, n uint64) []byte {
	for n > 0 && s.err == nil {
		piece, at := int(min(n, pieceLen)), len(dst)
		dst = slices.Grow(dst, piece)[:at+piece]
		if _, err := io.ReadFull(s.r, dst[at:]); err != nil {
			s.fail(err)
			return nil
		}
		n -= uint64(piece)
	}
	return dst
}

// own reads n bytes into memory of just that size.
func (s *source) own(n uint64) []byte {
	b := s.bytes(make([]byte, 0, min(n, pieceLen)), n)
	if n > pieceLen {
		return slices.Clone(b)
	}
	return b
}

func (s *source) skip(n uint64) {
	if s.err != nil {
		return
	}
	if n > math.MaxInt64 {
		s.fail(errShort)
	} else if _, err := io.CopyN(io.Discard, s.r, int64(n)); err != nil {
		s.fail(err)
	}
}

func (s *source) text() string { return string(s.bytes(nil, s.uint())) }

func (s *source) time() time.Time {
	sec, ns := s.int(), s.uintTo(1e9-1, "nanoseconds")
	return time.Unix(sec, int64(ns)).UTC()
}

// end wants nothing more to come.
func (s *source) end() {
	if s.err != nil {
		return
	}
	if _, err := s.r.ReadByte(); err == nil {
		s.failf("it goes on behind its end")
	} else if !errors.Is(err, io.EOF) {
		s.fail(err)
	}
}

// A parser reads what a source has brought into memory, several times as fast.
type parser struct {
	src []byte
	bad bool
}

func (p *parser) uint() uint64 {
	if len(p.src) > 0 && p.src[0] < 0x80 {
		n := p.src[0]
		p.src = p.src[1:]
		return uint64(n)
	}
	n, size := binary.Uvarint(p.src)
	if size <= 0 {
		p.bad, p.src = true, nil
		return 0
	}
	p.src = p.src[size:]
	return n
}

func (p *parser) int() int64 {
	n := p.uint()
	return int64(n>>1) ^ -int64(n&1)
}

// cut takes the next n bytes, which stay the source's.
func (p *parser) cut(n uint64) []byte {
	if n > uint64(len(p.src)) {
		p.bad, p.src = true, nil
		return nil
	}
	b := p.src[:n]
	p.src = p.src[n:]
	return b
}

func (p *parser) text() string { return string(p.cut(p.uint())) }
