package wal

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// A stand-in for the ancestor's reader, runtimo-core 0.1.0: what Rust's serde_json 1 does with
//
//	struct WalEvent { seq: u64, ts: u64, type: WalEventType, job_id: String, capability: Option<String>,
//	                  output: Option<Value>, error: Option<String> }
//
// line by line: names in their exact case, in any order; a known name twice is an error; unknown ones are passed over,
// whatever they hold; numbers beyond a double, lone surrogates and 128 levels are errors. It shares no code with the
// package.

type ancestorEvent struct {
	seq, ts                 uint64
	kind, job               string
	capability, output, err *string // output as JSON text
}

var ancestorKinds = map[string]bool{"job_submitted": true, "job_validated": true, "job_started": true, "job_completed": true,
	"job_failed": true, "job_rolled_back": true}

// ancestorLoad is WalReader::load: the file has to be UTF-8, and a line that is no event is passed over in silence.
func ancestorLoad(file []byte) ([]ancestorEvent, error) {
	if !utf8.Valid(file) {
		return nil, errors.New("stream did not contain valid UTF-8")
	}
	var events []ancestorEvent
	for _, line := range strings.Split(string(file), "\n") {
		if e, err := ancestorParse(strings.TrimSuffix(line, "\r")); err == nil {
			events = append(events, e)
		}
	}
	return events, nil
}

type serde struct {
	in string
	at int
}

type serdeError string

func ancestorParse(line string) (e ancestorEvent, err error) {
	defer func() {
		if r := recover(); r != nil {
			bad, ours := r.(serdeError)
			if !ours {
				panic(r)
			}
			err = errors.New(string(bad))
		}
	}()
	s := &serde{in: line}
	e = s.event()
	s.space()
	s.must(s.at == len(s.in), "trailing characters")
	return e, nil
}

func (s *serde) must(ok bool, format string, args ...any) {
	if !ok {
		panic(serdeError(fmt.Sprintf(format, args...) + fmt.Sprintf(" at column %d", s.at)))
	}
}

func (s *serde) peek() byte {
	if s.at < len(s.in) {
		return s.in[s.at]
	}
	return 0
}

func (s *serde) space() {
	for s.at < len(s.in) && strings.IndexByte(" \t\r\n", s.in[s.at]) >= 0 {
		s.at++
	}
}

func (s *serde) word(w string) bool {
	if !strings.HasPrefix(s.in[s.at:], w) {
		return false
	}
	s.at += len(w)
	return true
}

// members walks over an object whose brace is next.
func (s *serde) members(each func(name string)) {
	s.must(s.word("{"), "expected an object")
	if s.space(); s.word("}") {
		return
	}
	for {
		s.space()
		name := s.text()
		s.space()
		s.must(s.word(":"), "expected a colon")
		s.space()
		each(name)
		if s.space(); s.word("}") {
			return
		}
		s.must(s.word(","), "expected a comma")
	}
}

func (s *serde) elements(each func()) {
	s.must(s.word("["), "expected an array")
	if s.space(); s.word("]") {
		return
	}
	for {
		s.space()
		each()
		if s.space(); s.word("]") {
			return
		}
		s.must(s.word(","), "expected a comma")
	}
}

func (s *serde) event() (e ancestorEvent) {
	seen := make(map[string]bool)
	s.space()
	s.members(func(name string) {
		switch name {
		case "seq", "ts", "type", "job_id", "capability", "output", "error":
			s.must(!seen[name], "duplicate field `%s`", name)
			seen[name] = true
		}
		switch name {
		case "seq":
			e.seq = s.u64()
		case "ts":
			e.ts = s.u64()
		case "type":
			e.kind = s.text()
			s.must(ancestorKinds[e.kind], "unknown variant `%s`", e.kind)
		case "job_id":
			e.job = s.text()
		case "capability":
			e.capability = s.optional(s.text)
		case "error":
			e.err = s.optional(s.text)
		case "output":
			e.output = s.optional(func() string { from := s.at; s.value(126); return s.in[from:s.at] })
		default:
			s.ignore()
		}
	})
	for _, name := range []string{"seq", "ts", "type", "job_id"} {
		s.must(seen[name], "missing field `%s`", name)
	}
	return e
}

func (s *serde) optional(value func() string) *string {
	if s.word("null") {
		return nil
	}
	v := value()
	return &v
}

// number returns the next number's text and whether it is an integer.
func (s *serde) number() (text string, integer bool) {
	from := s.at
	digits := func() bool {
		start := s.at
		for s.peek() >= '0' && s.peek() <= '9' {
			s.at++
		}
		return s.at > start
	}
	s.word("-")
	start := s.at
	s.must(digits() && (s.in[start] != '0' || s.at == start+1), "invalid number")
	integer = true
	if s.word(".") {
		integer = false
		s.must(digits(), "invalid number")
	}
	if s.word("e") || s.word("E") {
		integer = false
		_ = s.word("+") || s.word("-")
		s.must(digits(), "invalid number")
	}
	return s.in[from:s.at], integer
}

func (s *serde) u64() uint64 {
	text, integer := s.number()
	n, err := strconv.ParseUint(text, 10, 64)
	s.must(integer && err == nil, "invalid type: expected u64")
	return n
}

func (s *serde) text() string {
	s.must(s.word(`"`), "expected a string")
	var b strings.Builder
	for {
		c := s.peek()
		s.must(s.at < len(s.in), "EOF while parsing a string")
		s.must(c >= 0x20, "control character while parsing a string")
		s.at++
		switch c {
		case '"':
			return b.String()
		case '\\':
			b.WriteRune(s.escape())
		default:
			b.WriteByte(c)
		}
	}
}

func (s *serde) escape() rune {
	c := s.peek()
	s.at++
	if i := strings.IndexByte(`"\/bfnrt`, c); i >= 0 && c != 0 {
		return rune("\"\\/\b\f\n\r\t"[i])
	}
	s.must(c == 'u', "invalid escape")
	r := s.hex()
	s.must(r < 0xDC00 || r > 0xDFFF, "lone trailing surrogate")
	if r < 0xD800 || r > 0xDFFF {
		return r
	}
	s.must(s.word(`\u`), "lone leading surrogate")
	low := s.hex()
	s.must(low >= 0xDC00 && low <= 0xDFFF, "lone leading surrogate")
	return 0x10000 + (r-0xD800)<<10 + low - 0xDC00
}

func (s *serde) hex() rune {
	s.must(s.at+4 <= len(s.in), "EOF in an escape")
	n, err := strconv.ParseUint(s.in[s.at:s.at+4], 16, 16)
	s.must(err == nil, "invalid escape")
	s.at += 4
	return rune(n)
}

// value is serde_json::Value. deeper is how many more levels may open: 128, of which the last is never entered, and the
// line's own object is one.
func (s *serde) value(deeper int) {
	switch c := s.peek(); {
	case c == '{':
		s.must(deeper > 0, "recursion limit exceeded")
		s.members(func(string) { s.value(deeper - 1) })
	case c == '[':
		s.must(deeper > 0, "recursion limit exceeded")
		s.elements(func() { s.value(deeper - 1) })
	case c == '"':
		s.text()
	case c == '-' || c >= '0' && c <= '9':
		text, _ := s.number()
		s.must(!math.IsInf(serdeFloat(text), 0), "number out of range")
	default:
		s.must(s.word("true") || s.word("false") || s.word("null"), "expected a value")
	}
}

// serdeFloat is how serde_json makes a double without its feature float_roundtrip: up to 64 bits of digits, then one
// multiplication by a power of ten. It is off by a bit now and then, so that a number within a hair of the largest
// double may become an infinity, which it refuses.
func serdeFloat(text string) float64 {
	mantissa, exp, _ := strings.Cut(strings.ToLower(strings.TrimPrefix(text, "-")), "e")
	exponent := 0
	if exp != "" {
		exponent, _ = strconv.Atoi(exp) // at the ends of int on overflow
		exponent = max(-1_000_000, min(exponent, 1_000_000))
	}
	whole, fraction, _ := strings.Cut(mantissa, ".")
	var significand uint64
	full := false
	for i, c := range whole + fraction {
		d := uint64(c - '0')
		if full = full || significand > (math.MaxUint64-d)/10; full {
			if i < len(whole) {
				exponent++
			}
			continue
		}
		significand = significand*10 + d
		if i >= len(whole) {
			exponent--
		}
	}
	f := float64(significand)
	for f != 0 && exponent < -308 {
		f /= 1e308
		exponent += 308
	}
	switch {
	case f == 0:
		return 0
	case exponent > 308:
		return math.Inf(1)
	case exponent < 0:
		return f / powerOfTen(-exponent)
	}
	return f * powerOfTen(exponent)
}

func powerOfTen(n int) float64 {
	f, _ := strconv.ParseFloat("1e"+strconv.Itoa(n), 64)
	return f
}

// ignore is IgnoredAny: it wants JSON, of any depth and any numbers.
func (s *serde) ignore() {
	switch c := s.peek(); {
	case c == '{':
		s.members(func(string) { s.ignore() })
	case c == '[':
		s.elements(s.ignore)
	case c == '"':
		s.text()
	case c == '-' || c >= '0' && c <= '9':
		s.number()
	default:
		s.must(s.word("true") || s.word("false") || s.word("null"), "expected a value")
	}
}

// The stand-in does with the ancestor's own files what the ancestor did.
func TestAncestor_stand_in_reads_its_files(t *testing.T) {
	for name, want := range map[string]int{"ordinary": 1050, "torn-tail": 33, "torn-then-appended": 50, "two-writers": 142, "cleaned": 159} {
		events, err := ancestorLoad(ancestorFile(t, name))
		require.NoError(t, err)
		require.Len(t, events, want, name)
	}
	_, err := ancestorLoad(ancestorFile(t, "torn-utf8"))
	require.ErrorContains(t, err, "UTF-8")
}

func TestAncestor_stand_in_is_as_strict(t *testing.T) {
	head := `{"seq":1,"ts":2,"type":"job_started","job_id":"j"`
	for _, ok := range []string{``, `,"capability":null,"output":null,"error":null`, `,"x":1,"x":2,"Seq":3,"y":1e999,"z":` + nested("[", "]", 200),
		`,"output":` + nested("[", "]", 126), `,"output":{"a":1,"a":2}`, `,"output":1e308`} {
		_, err := ancestorParse(head + ok + "}")
		require.NoError(t, err, ok)
	}
	for _, bad := range []string{`,"seq":1`, `,"job_id":"k"`, `,"output":1,"output":2`, `,"capability":1`, `,"error":{}`, `,"output":1e309`,
		`,"output":"\ud800"`, `,"output":` + nested("[", "]", 127), `,"x":01`, `,`, `,"x"`} {
		_, err := ancestorParse(head + bad + "}")
		require.Error(t, err, bad)
	}
	for _, bad := range []string{``, `{}`, `[]`, head, head + `}}`, `{"seq":-1,"ts":2,"type":"job_started","job_id":"j"}`,
		`{"seq":1.0,"ts":2,"type":"job_started","job_id":"j"}`, `{"seq":1,"ts":2,"type":"job_paused","job_id":"j"}`,
		`{"seq":18446744073709551616,"ts":2,"type":"job_started","job_id":"j"}`, `{"seq":1,"ts":2,"type":"job_started"}`} {
		_, err := ancestorParse(bad)
		require.Error(t, err, bad)
	}
}

// asAncestor is what the ancestor's reader ought to see of an event.
func asAncestor(e Event) ancestorEvent {
	orNone := func(s string, null bool) *string {
		if s == "" || null {
			return nil
		}
		return &s
	}
	return ancestorEvent{seq: e.Seq, ts: uint64(e.Time.Unix()), kind: string(e.Type), job: e.JobID,
		capability: orNone(e.Capability, false), output: orNone(string(e.Output), string(e.Output) == "null"), err: orNone(e.Error, false)}
}

// A segment written by this package is read in full by the ancestor: every event of a type that it knows, and nothing
// else, whatever marks stand between them.
func TestAncestor_reads_our_segments_in_full(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(t.TempDir(), "log")
		require.NoError(rt, err)
		var want []ancestorEvent
		for range rapid.IntRange(1, 3).Draw(rt, "openings") {
			log, err := Open(dir, Options{Sync: SyncNever, SegmentBytes: rapid.SampledFrom([]int64{MinSegmentBytes, 0}).Draw(rt, "segment")})
			require.NoError(rt, err)
			for range rapid.IntRange(0, 4).Draw(rt, "appends") {
				group := rapid.SliceOfN(rapid.Custom(drawEvent), 1, 3).Draw(rt, "group")
				first, err := log.Append(context.Background(), group...)
				require.NoError(rt, err)
				for i, e := range group {
					if e.Seq = first + uint64(i); ancestorKinds[string(e.Type)] {
						want = append(want, asAncestor(stands(t, e)))
					}
				}
			}
			require.NoError(rt, log.DropBefore(0))
			require.NoError(rt, log.Close())
		}
		paths, err := filepath.Glob(filepath.Join(dir, "*"+segmentSuffix))
		require.NoError(rt, err)
		var got []ancestorEvent
		for _, path := range paths {
			file, err := os.ReadFile(path)
			require.NoError(rt, err)
			events, err := ancestorLoad(file)
			require.NoError(rt, err)
			got = append(got, events...)
		}
		require.Equal(rt, want, got)
	})
}

func TestAncestor_passes_over_every_mark(t *testing.T) {
	for _, m := range someMarks() {
		_, err := ancestorParse(strings.TrimSuffix(string(appendMark(nil, m, testSeed)), "\n"))
		require.ErrorContains(t, err, "missing field", m.Kind)
	}
	events, err := ancestorLoad(bytes.Repeat([]byte("\n"), 4096)) // room for lines to come
	require.NoError(t, err)
	require.Empty(t, events)
}

func TestAncestor_reads_the_deepest_payload(t *testing.T) {
	for _, deepest := range []string{nested("[", "]", maxDepth), strings.Repeat(`{"a":`, maxDepth-1) + "{}" + strings.Repeat("}", maxDepth-1)} {
		line := canonicalLine(Event{Seq: 1, Time: time.Unix(1, 0), Type: JobCompleted, JobID: "j", Output: json.RawMessage(deepest)}, 0, 0, testSeed)
		e, err := ancestorParse(strings.TrimSuffix(string(line), "\n"))
		require.NoError(t, err)
		require.Equal(t, deepest, *e.output)
	}
}

func ancestorFile(t testing.TB, name string) []byte {
	t.Helper()
	file, err := os.ReadFile(filepath.Join("testdata", "import", name+".jsonl"))
	require.NoError(t, err)
	return file
}
