package wal

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// shortReads is a file of which every read returns as little as it likes, and at least a byte.
type shortReads struct {
	content []byte
	most    int
}

func (s shortReads) ReadAt(p []byte, at int64) (int, error) {
	if at >= int64(len(s.content)) {
		return 0, io.EOF
	}
	n := copy(p, s.content[at:])
	if n > s.most {
		return s.most, nil
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// heldLine is a line with bytes of its own.
type heldLine struct {
	at, end int64
	text    string
	whole   bool
}

// splitLines is what a lineReader has to yield, told by bytes.Split.
func splitLines(content []byte, from, to int64) (want []heldLine) {
	at := from
	parts := bytes.Split(content[from:to], []byte("\n"))
	for i, part := range parts {
		whole := i < len(parts)-1
		end := at + int64(len(part))
		if whole {
			end++
		}
		if len(part) > 0 {
			want = append(want, heldLine{at, end, string(part), whole})
		}
		at = end
	}
	return want
}

func takeLines(t require.TestingT, l *lineReader) (got []heldLine) {
	defer l.close()
	for {
		next, err := l.next()
		if errors.Is(err, io.EOF) {
			_, err = l.next()
			require.ErrorIs(t, err, io.EOF, "the end stays the end")
			return got
		}
		require.NoError(t, err)
		got = append(got, heldLine{next.at, next.end, string(next.bytes), next.whole})
	}
}

func TestLines_as_bytes_Split_has_them(t *testing.T) {
	lengths := []int{0, 0, 0, 1, 2, 10, 200, probeBytes - 1, probeBytes, probeBytes + 1, 3 * probeBytes}
	rapid.Check(t, func(rt *rapid.T) {
		var content []byte
		for i, n := range rapid.SliceOfN(rapid.SampledFrom(lengths), 0, 12).Draw(rt, "lengths") {
			content = append(append(content, bytes.Repeat([]byte{'a' + byte(i)}, n)...), '\n')
		}
		content = content[:len(content)-rapid.IntRange(0, min(3, len(content))).Draw(rt, "cut")]
		from := rapid.Int64Range(0, int64(len(content))).Draw(rt, "from")
		to := rapid.Int64Range(from, int64(len(content))).Draw(rt, "to")
		f := shortReads{content, rapid.SampledFrom([]int{1 << 30, 1, 7, probeBytes - 1}).Draw(rt, "most")}
		want := splitLines(content, from, to)
		require.Equal(rt, want, takeLines(rt, smallLineReader(f, from, to)))
		require.Equal(rt, want, takeLines(rt, newLineReader(f, from, to)))
	})
}

func TestLines_across_read_buffers(t *testing.T) {
	t.Parallel()
	for _, n := range []int{readBuffer - 2, readBuffer - 1, readBuffer, readBuffer + 1, 2*readBuffer - 1, 2 * readBuffer, 3*readBuffer + 5, 16 << 20} {
		content := bytes.Repeat([]byte("x"), n)
		content = append(content, "\nshort\n\n\n"...)
		content = append(content, bytes.Repeat([]byte("y"), n)...)
		content = append(content, "\nlast"...)
		require.Equal(t, splitLines(content, 0, int64(len(content))), takeLines(t, newLineReader(bytes.NewReader(content), 0, int64(len(content)))), "%d", n)
	}
}

func TestLines_back_makes_a_line_the_next_one_again(t *testing.T) {
	content := []byte("\n\none\n" + string(bytes.Repeat([]byte("2"), 3*probeBytes)) + "\n\nthree")
	l := smallLineReader(bytes.NewReader(content), 0, int64(len(content)))
	for _, want := range splitLines(content, 0, int64(len(content))) {
		for range 3 {
			got, err := l.next()
			require.NoError(t, err)
			require.Equal(t, want, heldLine{got.at, got.end, string(got.bytes), got.whole})
			l.back(got)
		}
		_, err := l.next()
		require.NoError(t, err)
	}
}

// hugeFile is a file of one letter, with newlines at some offsets; it is made as it is read.
type hugeFile struct {
	size     int64
	newlines []int64
}

func (h hugeFile) ReadAt(p []byte, at int64) (int, error) {
	n := int(min(int64(len(p)), h.size-at))
	if n <= 0 {
		return 0, io.EOF
	}
	for filled := 0; filled < n; {
		filled += copy(p[filled:n], exes)
	}
	for _, newline := range h.newlines {
		if newline >= at && newline < at+int64(n) {
			p[newline-at] = '\n'
		}
	}
	return n, nil
}

func TestF20_lines_too_long_to_be_held_are_passed_over(t *testing.T) {
	const gigabyte = 1 << 30
	for name, lengths := range map[string][]int64{
		"ends with the longest that is held": {9, MaxLineBytes, MaxLineBytes + 1, 1, gigabyte, gigabyte / 2, 10, MaxLineBytes},
		"ends with one that is not":          {MaxLineBytes + 1, 9, MaxLineBytes + 1},
	} {
		t.Run(name, func(t *testing.T) {
			var f hugeFile
			for i, length := range lengths {
				if f.size += length; i < len(lengths)-1 {
					f.newlines = append(f.newlines, f.size)
					f.size++
				}
			}
			l := newLineReader(f, 0, f.size)
			defer l.close()
			at := int64(0)
			for i, length := range lengths {
				got, err := l.next()
				require.NoError(t, err)
				require.Equal(t, at, got.at)
				require.Equal(t, i < len(lengths)-1, got.whole)
				if at += length; got.whole {
					at++
				}
				require.Equal(t, at, got.end)
				require.Equal(t, length <= MaxLineBytes, got.bytes != nil, "line %d", i)
				if got.bytes != nil {
					require.Len(t, got.bytes, int(length))
				}
				require.LessOrEqual(t, len(l.buf), MaxLineBytes+1)
			}
			_, err := l.next()
			require.ErrorIs(t, err, io.EOF)
		})
	}
}

// failsAt is a file that cannot be read from some offset on.
type failsAt struct {
	content []byte
	at      int64
	err     error
}

func (f failsAt) ReadAt(p []byte, at int64) (int, error) {
	if at >= f.at {
		return 0, f.err
	}
	n := copy(p, f.content[at:f.at])
	if n < len(p) {
		return n, f.err
	}
	return n, nil
}

func TestLines_read_errors(t *testing.T) {
	content := []byte("one\ntwo\nthree\n")
	broken := errors.New("EIO")
	for at := range len(content) {
		l := smallLineReader(failsAt{content, int64(at), broken}, 0, int64(len(content)))
		var got []string
		var err error
		for err == nil {
			var next line
			if next, err = l.next(); err == nil {
				require.True(t, next.whole, "no part of a line passes for one")
				got = append(got, string(next.bytes))
			}
		}
		require.ErrorIs(t, err, broken)
		require.Len(t, got, bytes.Count(content[:at], []byte("\n")))
	}
	// A file may have been cut since its size was asked for: it ends where it ends.
	for at := range len(content) {
		got := takeLines(t, smallLineReader(bytes.NewReader(content[:at]), 0, int64(len(content))))
		require.Equal(t, splitLines(content, 0, int64(at)), got)
	}
}
