package wal

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// testSeed is the checksum's state after some segment's salt.
var testSeed = saltSeed("0123456789abcdef")

// canonicalLine is an event's line as the writer writes it, newline included.
func canonicalLine(e Event, more int, durable uint64, seed uint32) []byte {
	at := place{seq: e.Seq, prev: e.Prev, epoch: e.Epoch, more: more, durable: durable}
	return appendLine(nil, at, appendBody(nil, &e), seed)
}

// sealed gives a line's text, written by hand, the right checksum. No newline.
func sealed(body string, seed uint32) []byte {
	return bytes.TrimSuffix(seal([]byte(body), 0, seed), []byte("\n"))
}

// reading is all that a line says.
type reading struct {
	Event   Event
	More    int
	Durable uint64
	Mark    mark // when Kind is set
}

func read(line []byte, seed uint32) (reading, error) {
	var d decoder
	var r record
	if err := d.decode(line, seed, &r); err != nil {
		return reading{}, err
	}
	return readingOf(&d, &r), nil
}

func readingOf(d *decoder, r *record) reading {
	if r.mark != nil {
		return reading{Mark: *r.mark, Durable: r.durable}
	}
	return reading{Event: d.event(r), More: r.more, Durable: r.durable}
}

// --- what rapid draws from

var textPieces = []string{"a", "B", "0", " ", "/", "<", ">", "&", "'", `"`, `\`, "é", "e\u0301", "\u2028", "\u2029", "🚀", "\U0010ffff",
	"\ufeff", "{", "}", "[", "]", ",", ":", `{"seq":1`, `,"crc":"00000000"}`, `\u0041`, "null", "job-1"}

func drawText(t *rapid.T, label string, more ...string) string {
	pieces := rapid.SampledFrom(append(slices.Clone(textPieces), more...))
	return strings.Join(rapid.SliceOfN(pieces, 0, 8).Draw(t, label), "")
}

var jsonTextPieces = []string{"a", "é", "🚀", "<", ">", "&", "\u2028", `\u2028`, `\"`, `\\`, `\/`, `\b`, `\u0041`, `\u0000`,
	`\ud83d\ude80`, `\uD83D\uDE80`, " ", "{", "}", "[", "]", ",", ":", "\x7f"}

var jsonScalars = []string{"null", "true", "false", "0", "-0", "-0.0", "7", "1e5", "1E+5", "-12.50e-3", "1234567890123456789012345",
	"18446744073709551616", "0.1", "1e308", "1e-400", "1.7976931348623157e308"}

// drawJSON draws a strict JSON value, spelled in any way.
func drawJSON(t *rapid.T, depth int) string {
	space := func() string {
		return rapid.SampledFrom([]string{"", "", "", " ", "\n", "\t", "\r\n"}).Draw(t, "space")
	}
	quoted := func(prefix string) string {
		return `"` + prefix + strings.Join(rapid.SliceOfN(rapid.SampledFrom(jsonTextPieces), 0, 4).Draw(t, "text"), "") + `"`
	}
	kinds := []string{"scalar", "text", "array", "object"}
	if depth == 0 {
		kinds = kinds[:2]
	}
	value := ""
	switch kind := rapid.SampledFrom(kinds).Draw(t, "kind"); kind {
	case "scalar":
		value = rapid.SampledFrom(jsonScalars).Draw(t, "scalar")
	case "text":
		value = quoted("")
	default:
		n := rapid.IntRange(0, 3).Draw(t, "members")
		members := make([]string, n)
		for i := range members {
			if members[i] = drawJSON(t, depth-1); kind == "object" {
				members[i] = space() + quoted(fmt.Sprint(i)) + space() + ":" + members[i]
			}
		}
		brackets := map[string]string{"array": "[]", "object": "{}"}[kind]
		value = brackets[:1] + space() + strings.Join(members, ",") + brackets[1:]
	}
	return space() + value + space()
}

func drawPayload(t *rapid.T, label string) json.RawMessage {
	if !rapid.Bool().Draw(t, label) {
		return nil
	}
	return json.RawMessage(drawJSON(t, 3))
}

var drawnTypes = []string{"job_submitted", "job_validated", "job_started", "job_completed", "job_failed", "job_rolled_back"}

func drawName(t *rapid.T, label string) string {
	s := drawText(t, label)
	for len(s) > maxName {
		_, n := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-n]
	}
	return s
}

// drawEvent draws what Append takes.
func drawEvent(t *rapid.T) Event {
	e := Event{
		Time:       time.Unix(rapid.Int64Range(0, maxUnix).Draw(t, "sec"), rapid.Int64Range(0, 999_999_999).Draw(t, "ns")),
		Type:       EventType(rapid.SampledFrom(drawnTypes).Draw(t, "type")),
		JobID:      drawName(t, "job_id") + "j",
		Capability: drawName(t, "capability"),
		Args:       drawPayload(t, "args"),
		Output:     drawPayload(t, "output"),
		Error:      drawText(t, "error", "\n", "\x00", "\x1f", "\b", "\u0085"),
	}
	if rapid.Bool().Draw(t, "unknown type") {
		e.Type = EventType("t" + drawName(t, "type"))
	}
	return e
}

func drawPlaced(t *rapid.T) (e Event, more int, durable uint64) {
	e = drawEvent(t)
	e.Seq = rapid.Uint64Min(1).Draw(t, "seq")
	e.Prev = rapid.Uint64().Draw(t, "prev")
	e.Epoch = rapid.Uint64().Draw(t, "epoch")
	return e, rapid.IntRange(0, maxGroup).Draw(t, "more"), rapid.Uint64().Draw(t, "durable")
}

// stands is the event as it stands in the log, by the standard library's reckoning and not by ours.
func stands(t testing.TB, e Event) Event {
	e.Time = time.Unix(e.Time.Unix(), int64(e.Time.Nanosecond())).UTC()
	for _, raw := range []*json.RawMessage{&e.Args, &e.Output} {
		if len(*raw) > 0 {
			*raw = compactByStdlib(t, string(*raw))
		}
	}
	return e
}

// --- what the writer writes reads the same

func TestLine_round_trip(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		given, more, durable := drawPlaced(rt)
		e, err := newDoor().check(given, time.Now)
		require.NoError(rt, err, "the door")
		line := canonicalLine(e, more, durable, testSeed)
		require.Equal(rt, len(line)-1, bytes.IndexByte(line, '\n'), "one line")
		require.True(rt, utf8.Valid(line))
		require.True(rt, json.Valid(line))
		line = line[:len(line)-1]

		got, err := read(line, testSeed)
		require.NoError(rt, err)
		require.Equal(rt, reading{Event: stands(t, given), More: more, Durable: durable}, got)

		var d decoder
		require.True(rt, d.canonical(line[:len(line)-crcLength], new(record)), "the writer's own line takes the fast path")
		var slow record
		require.NoError(rt, d.ordinary(line, &slow))
		require.Equal(rt, got, readingOf(&d, &slow))
	})
}

func TestLine_keeps_what_other_encoders_change(t *testing.T) {
	for _, payload := range []string{
		`{"html":"<b>&</b>","sep":"` + "\u2028\u2029" + `"}`,
		`{"n":1234567890123456789012345,"tiny":0.1000,"exp":1E+2,"zero":-0}`,
		`{"b":1,"a":2,"B":3}`,
		`"\u003c\/\u00e9\ud83d\ude80"`,
		`null`,
	} {
		e := Event{Seq: 1, Time: time.Unix(1, 0).UTC(), Type: JobSubmitted, JobID: "j", Args: json.RawMessage(payload)}
		line := canonicalLine(e, 0, 0, testSeed)
		require.Contains(t, string(line), `"args":`+payload+`,"durable"`)
		got, err := read(line[:len(line)-1], testSeed)
		require.NoError(t, err)
		require.Equal(t, payload, string(got.Event.Args))
	}
}

// respell writes a canonical line anew as some other program might: fields in another order, white space, escapes,
// names spelled with escapes, fields that nobody knows.
func respell(t *rapid.T, line []byte) []byte {
	var members map[string]json.RawMessage
	require.NoError(t, json.Unmarshal(line, &members))
	delete(members, "crc")
	members["later"] = json.RawMessage(drawJSON(t, 2))
	members["Type"] = json.RawMessage(`"not the type"`)
	members["SEQ"] = json.RawMessage(`[0]`)
	for _, optional := range []string{"capability", "error"} {
		if members[optional] == nil && rapid.Bool().Draw(t, "null") {
			members[optional] = json.RawMessage("null")
		}
	}
	for _, zero := range []string{"prev", "epoch", "durable", "ns"} {
		if string(members[zero]) == "0" && rapid.Bool().Draw(t, "left out") {
			delete(members, zero)
		}
	}
	names := make([]string, 0, len(members))
	for name := range members {
		names = append(names, name)
	}
	slices.Sort(names)
	space := func() string { return rapid.SampledFrom([]string{"", " ", "\t", "\r", "\n", "  "}).Draw(t, "space") }
	var b strings.Builder
	b.WriteString(space() + "{")
	for i, name := range rapid.Permutation(names).Draw(t, "order") {
		if i > 0 {
			b.WriteByte(',')
		}
		value := string(members[name])
		if name == "type" || name == "job_id" || name == "capability" || name == "error" {
			value = escapeSome(t, value)
		}
		b.WriteString(space() + escapeSome(t, `"`+name+`"`) + space() + ":" + space() + value + space())
	}
	return sealed(b.String(), testSeed)
}

// escapeSome spells some letters of a JSON string as escapes.
func escapeSome(t *rapid.T, quoted string) string {
	if quoted[0] != '"' || strings.Contains(quoted, `\`) || !rapid.Bool().Draw(t, "escape") {
		return quoted
	}
	var b strings.Builder
	for i, r := range quoted[1 : len(quoted)-1] {
		switch {
		case i%2 == 1:
			b.WriteRune(r)
		case r > 0xFFFF:
			fmt.Fprintf(&b, `\u%04X\u%04x`, 0xD800+(r-0x10000)>>10, 0xDC00+(r-0x10000)&0x3FF)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return `"` + b.String() + `"`
}

func TestLine_reads_the_same_however_it_is_spelled(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		e, more, durable := drawPlaced(rt)
		if rapid.Bool().Draw(rt, "zeros") {
			e.Prev, e.Epoch, durable, e.Time = 0, 0, 0, e.Time.Truncate(time.Second)
		}
		e, err := newDoor().check(e, time.Now)
		require.NoError(rt, err)
		line := canonicalLine(e, more, durable, testSeed)
		want, err := read(line[:len(line)-1], testSeed)
		require.NoError(rt, err)
		other := respell(rt, line)
		got, err := read(other, testSeed)
		require.NoError(rt, err, "%s", other)
		require.Equal(rt, want, got, "%s", other)
	})
}

// --- marks

func someMarks() []mark {
	at := time.Unix(1715800000, 5).UTC()
	return []mark{
		{Kind: markSegment, Version: 1, Log: "00112233445566778899aabbccddeeff", Salt: "0123456789abcdef", Prior: 7, First: 9,
			Epoch: 2, Time: at, Floor: 3, Durable: 8},
		{Kind: markOpened, Epoch: 2, Time: at, Durable: 8},
		{Kind: markDurable, Durable: 12},
		{Kind: markFloor, Floor: 5, Durable: 12},
		{Kind: markSealed, Last: 12, Durable: 12},
		{Kind: markClosed, Epoch: 2, Time: at, Last: 12, Durable: 12},
		{Kind: markClosed},
	}
}

func TestMark_round_trip(t *testing.T) {
	for _, m := range someMarks() {
		line := appendMark(nil, m, testSeed)
		got, err := read(line[:len(line)-1], testSeed)
		require.NoError(t, err)
		m.Time = time.Time{} // for people; no reader needs it
		require.Equal(t, reading{Mark: m, Durable: m.Durable}, got, "%s", line)
	}
	header := someMarks()[0]
	line := appendMark(nil, header, saltSeed(header.Salt))
	got, err := parseHeader(line[:len(line)-1])
	require.NoError(t, err)
	header.Time = time.Time{}
	require.Equal(t, header, *got)
	_, err = parseHeader(appendMark(nil, header, testSeed+1)[:len(line)-1])
	require.Error(t, err, "the checksum of another salt")
}

// --- F24: a bit flip is detected, always, the checksum's own digits and their frame included

func flipLines() map[string][]byte {
	at := time.Unix(1715800000, 123456789).UTC()
	lines := map[string][]byte{
		"event": canonicalLine(Event{Seq: 42, Prev: 40, Epoch: 3, Time: at, Type: JobCompleted, JobID: "abc123", Capability: "FileRead",
			Output: json.RawMessage(`{"bytes":12,"text":"größe \"🚀\""}`)}, 1, 41, testSeed),
		"smallest event":   canonicalLine(Event{Seq: 1, Time: time.Unix(0, 0), Type: "x", JobID: ""}, 0, 0, testSeed),
		"failure":          canonicalLine(Event{Seq: 9, Prev: 8, Epoch: 1, Time: at, Type: JobFailed, JobID: "j", Error: "a\nb\x00"}, 0, 8, testSeed),
		"other spelling":   append(sealed(` { "type" : "job_started" , "job_id":"j","ts":5, "seq":7 `, testSeed), '\n'),
		"problem":          append(sealed(`{"seq":7,"prev":3,"epoch":1,"ts":5,"ts":6,"type":"x","job_id":"j","durable":4`, testSeed), '\n'),
		"checksum letters": nil,
	}
	for _, m := range someMarks() {
		lines["mark "+m.Kind] = appendMark(nil, m, testSeed)
	}
	// A line whose checksum is all letters: "a" and "A" are one bit apart.
	for n := uint64(1); ; n++ {
		line := canonicalLine(Event{Seq: n, Time: at, Type: JobStarted, JobID: "j"}, 0, 0, testSeed)
		digits := line[len(line)-1-10 : len(line)-1-2]
		if !bytes.ContainsAny(digits, "0123456789") {
			lines["checksum letters"] = line
			return lines
		}
	}
}

func TestF24_every_single_bit_flip_is_detected(t *testing.T) {
	for name, line := range flipLines() {
		line = line[:len(line)-1]
		_, err := read(line, testSeed)
		require.NoError(t, err, name)
		flipped := bytes.Clone(line)
		for bit := range 8 * len(line) {
			flipped[bit/8] ^= 1 << (bit % 8)
			_, err := read(flipped, testSeed)
			require.ErrorIs(t, err, errChecksum, "%s: bit %d: %s", name, bit, flipped)
			flipped[bit/8] = line[bit/8]
		}
	}
}

func TestF24_every_single_bit_flip_in_a_header_is_detected(t *testing.T) {
	header := someMarks()[0]
	line := appendMark(nil, header, saltSeed(header.Salt))
	line = line[:len(line)-1]
	for bit := range 8 * len(line) {
		flipped := bytes.Clone(line)
		flipped[bit/8] ^= 1 << (bit % 8)
		_, err := parseHeader(flipped)
		require.Error(t, err, "bit %d: %s", bit, flipped)
	}
}

func TestLine_of_another_segment_is_not_taken(t *testing.T) {
	for name, line := range flipLines() {
		_, err := read(line[:len(line)-1], saltSeed("fedcba9876543210"))
		require.ErrorIs(t, err, errChecksum, name)
	}
}

func TestLine_cut_short_is_not_taken(t *testing.T) {
	for name, line := range flipLines() {
		for n := range len(line) - 1 {
			_, err := read(line[:n], testSeed)
			require.ErrorIs(t, err, errChecksum, "%s, %d bytes", name, n)
		}
	}
}

// --- F21: a right checksum, and yet no event that can be read

// problems are lines between `{"seq":7,"prev":5,"epoch":3` and `,"more":2,"durable":4`, which a line's place is read
// from whatever stands between them.
var problems = []struct{ name, middle, reason, job string }{
	{"duplicate field", `,"ts":5,"ns":0,"type":"job_started","job_id":"j","type":"job_failed"`, "duplicate name", "j"},
	{"duplicate field, one escaped", `,"ts":5,"type":"job_started","job_id":"j","t\u0073":6`, "duplicate name", "j"},
	{"duplicate field nobody knows", `,"ts":5,"type":"job_started","job_id":"j","x":1,"x":2`, "duplicate name", "j"},
	{"duplicate name in a payload", `,"ts":5,"ns":0,"type":"x","job_id":"j","output":{"a":1,"a":2}`, "duplicate name", "j"},
	{"raw NUL in a string", `,"ts":5,"ns":0,"type":"x","job_id":"j","error":"a` + "\x00" + `b"`, "control character", "j"},
	{"raw NUL between tokens", `,"ts":5,"ns":0,"type":"x","job_id":"j"` + "\x00", "unexpected", "j"},
	{"bad UTF-8 in the error", `,"ts":5,"ns":0,"type":"x","job_id":"j","error":"` + "\xff" + `"`, "UTF-8", "j"},
	{"bad UTF-8 in the job", `,"ts":5,"ns":0,"type":"x","job_id":"` + "\xff" + `"`, "UTF-8", ""},
	{"lone surrogate", `,"ts":5,"ns":0,"type":"x","job_id":"j","args":"\ud800"`, "surrogate", "j"},
	{"number beyond a double", `,"ts":5,"ns":0,"type":"x","job_id":"j","args":1e400`, "range of a double", "j"},
	{"101 deep", `,"ts":5,"ns":0,"type":"x","job_id":"j","args":` + strings.Repeat("[", 101) + strings.Repeat("]", 101), "deeper than", "j"},
	{"100,000 deep", `,"ts":5,"ns":0,"type":"x","job_id":"j","args":` + strings.Repeat("[", 100_000), "deeper than", "j"},
	{"no ts", `,"ns":0,"type":"x","job_id":"j"`, "ts: missing", "j"},
	{"no type", `,"ts":5,"ns":0,"job_id":"j"`, "type: missing", "j"},
	{"no job_id", `,"ts":5,"ns":0,"type":"x"`, "job_id: missing", ""},
	{"empty type", `,"ts":5,"ns":0,"type":"","job_id":"j"`, "no type", "j"},
	{"null type", `,"ts":5,"ns":0,"type":null,"job_id":"j"`, "no type", "j"},
	{"negative ts", `,"ts":-5,"ns":0,"type":"x","job_id":"j"`, "ts: not a whole number", "j"},
	{"ts with a fraction", `,"ts":5.5,"ns":0,"type":"x","job_id":"j"`, "ts: not a whole number", "j"},
	{"ts with an exponent", `,"ts":5e3,"ns":0,"type":"x","job_id":"j"`, "ts: not a whole number", "j"},
	{"ts as a string", `,"ts":"5","ns":0,"type":"x","job_id":"j"`, "ts: not a whole number", "j"},
	{"ts in the year 10000", `,"ts":253402300800,"ns":0,"type":"x","job_id":"j"`, "ts beyond", "j"},
	{"ts of 64 bits", `,"ts":18446744073709551615,"ns":0,"type":"x","job_id":"j"`, "ts: too large", "j"},
	{"ts of 65 bits", `,"ts":18446744073709551616,"ns":0,"type":"x","job_id":"j"`, "ts: not a whole number", "j"},
	{"ns of a whole second", `,"ts":5,"ns":1000000000,"type":"x","job_id":"j"`, "ns beyond", "j"},
	{"ns of 63 bits", `,"ts":5,"ns":9223372036854775807,"type":"x","job_id":"j"`, "ns beyond", "j"},
	{"ns of 64 bits", `,"ts":5,"ns":18446744073709551615,"type":"x","job_id":"j"`, "ns beyond", "j"},
	{"negative ns", `,"ts":5,"ns":-1,"type":"x","job_id":"j"`, "ns: not a whole number", "j"},
	{"type is a number", `,"ts":5,"ns":0,"type":1,"job_id":"j"`, "type: not a string", "j"},
	{"job is a number", `,"ts":5,"ns":0,"type":"x","job_id":1`, "job_id: not a string", ""},
	{"capability is an object", `,"ts":5,"ns":0,"type":"x","job_id":"j","capability":{}`, "capability: not a string", "j"},
	{"not JSON in the middle", `,"ts":5,"ns":0,"type":"x","job_id":"j",???`, "name is missing", "j"},
	{"a missing bracket", `,"ts":5,"ns":0,"type":"x","job_id":"j","args":{"a":[1,2}`, "unexpected", "j"},
	{"escaped job", `,"ts":5,"ns":0,"type":"","job_id":"\u006a\ud83d\ude80"`, "no type", "j🚀"},
}

func TestF21_right_checksum_but_no_event(t *testing.T) {
	for _, c := range problems {
		t.Run(c.name, func(t *testing.T) {
			got, err := read(sealed(`{"seq":7,"prev":5,"epoch":3`+c.middle+`,"more":2,"durable":4`, testSeed), testSeed)
			require.NoError(t, err)
			require.Contains(t, got.Event.Problem, c.reason)
			require.Equal(t, Event{Seq: 7, Prev: 5, JobID: c.job, Problem: got.Event.Problem}, got.Event)
			require.Equal(t, 2, got.More)
			require.Equal(t, uint64(4), got.Durable)
		})
	}
}

func TestF21_place_that_is_itself_not_well(t *testing.T) {
	rest := `,"ts":5,"ns":0,"type":"x","job_id":"j"`
	for _, c := range []struct {
		name, body string
		want       reading
	}{
		{"prev no number", `{"seq":7,"prev":"5","epoch":3` + rest + `,"durable":4`, reading{Event: Event{Seq: 7, JobID: "j"}, Durable: 4}},
		{"epoch negative", `{"seq":7,"prev":5,"epoch":-3` + rest + `,"durable":4`, reading{Event: Event{Seq: 7, Prev: 5, JobID: "j"}, Durable: 4}},
		{"durable of 65 bits", `{"seq":7,"prev":5,"epoch":3` + rest + `,"durable":18446744073709551616`, reading{Event: Event{Seq: 7, Prev: 5, JobID: "j"}}},
		{"durable with a leading zero", `{"seq":7,"prev":5,"epoch":3` + rest + `,"durable":04`, reading{Event: Event{Seq: 7, Prev: 5, JobID: "j"}}},
		{"more beyond any group", `{"seq":7,"prev":5,"epoch":3` + rest + `,"more":1048577,"durable":4`,
			reading{Event: Event{Seq: 7, Prev: 5, JobID: "j"}, More: maxGroup, Durable: 4}},
		{"more of 64 bits", `{"seq":7,"prev":5,"epoch":3` + rest + `,"more":18446744073709551615,"durable":4`,
			reading{Event: Event{Seq: 7, Prev: 5, JobID: "j"}, More: maxGroup, Durable: 4}},
		{"seq with a fraction", `{"seq":7.5,"ts":5`, reading{Event: Event{Seq: 7}}},
		{"only a seq", `{"seq":7`, reading{Event: Event{Seq: 7}}},
		{"only a seq and garbage", `{"seq":7` + "\xff\x00\x01", reading{Event: Event{Seq: 7}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := read(sealed(c.body, testSeed), testSeed)
			require.NoError(t, err)
			require.NotEmpty(t, got.Event.Problem)
			got.Event.Problem = ""
			require.Equal(t, c.want, got)
		})
	}
}

// Of what cannot even be placed nothing may be made; it was written, though, so it is never cut as a torn tail either.
func TestF21_right_checksum_but_no_place(t *testing.T) {
	for _, body := range []string{
		`x`, `{`, `[1`, `{}`, `"seq"`, `{"a":1`, `{"seq":0,"ts":1,"type":"x","job_id":"j"`, `{"seq":-1,"ts":1,"type":"x","job_id":"j"`,
		`{"seq":"1","ts":1,"type":"x","job_id":"j"`,
		`{"seq":18446744073709551616,"ts":1,"type":"x","job_id":"j"`, `{"seq":01,"ts":1,"type":"x","job_id":"j"`,
		`{"ts":1,"seq":3,"type":"x","type":"y","job_id":"j"`, `{"mark":5`, `{"mark":"durable","durable":"5"`, `{"mark":"durable","mark":"x"`,
		"\x00", `{"seq":`, `{"Seq":5,"ts":1,"type":"x","job_id":"j"`,
	} {
		_, err := read(sealed(body, testSeed), testSeed)
		require.ErrorIs(t, err, errFrame, body)
	}
}

// A line may have millions of fields that mean nothing here: held, they would take thirty times its length.
func TestF21_fields_without_a_meaning_are_not_held(t *testing.T) {
	line := []byte(`{"seq":1,"ts":1,"type":"x","job_id":"j"`)
	for i := range 1000 {
		line = fmt.Appendf(line, `,"k%x":%d`, i, i)
	}
	var f fields
	require.NoError(t, f.parse(new(jsonScanner), append(line, '}')))
	require.Equal(t, []string{"seq", "ts", "type", "job_id"}, f.names)
	require.Len(t, f.values, 4)
	require.Error(t, new(fields).parse(new(jsonScanner), append(line, `,"k3e7":0}`...)), "checked they are")
}

// Objects with more than a few names, one after the other and one in the other, share a map.
func TestNames_of_objects_in_a_row(t *testing.T) {
	var names []string
	for i := range 3 * fewNames {
		names = append(names, fmt.Sprintf(`"k%d":0`, i))
	}
	all := strings.Join(names, ",")
	var s jsonScanner
	for doc, well := range map[string]bool{
		`[{` + all + `},{` + all + `}]`:                       true,
		`{` + all + `,"in":{` + all + `,"in":{` + all + `}}}`: true,
		`{"in":{` + all + `},` + all + `}`:                    true,
		`[{` + all + `},{` + all + `,"k1":0}]`:                false,
		`{` + all + `,"in":{` + all + `,"\u006b1":0}}`:        false,
		`{"in":{` + all + `},` + all + `,"in":0}`:             false,
		`{` + all + `,"in":{` + all + `},"k2":{` + all + `}}`: false,
	} {
		_, err := s.check([]byte(doc))
		require.Equal(t, well, err == nil, "%v: %s", err, doc)
	}
}

func TestLine_unusual_but_well(t *testing.T) {
	at := time.Unix(5, 0).UTC()
	for _, c := range []struct {
		name, body string
		want       reading
	}{
		{"only what the ancestor has", `{"seq":7,"ts":5,"type":"x","job_id":"j"`, reading{Event: Event{Seq: 7, Time: at, Type: "x", JobID: "j"}}},
		{"unknown type", `{"seq":7,"prev":0,"epoch":1,"ts":5,"ns":0,"type":"job_paused","job_id":"j","durable":6`,
			reading{Event: Event{Seq: 7, Epoch: 1, Time: at, Type: "job_paused", JobID: "j"}, Durable: 6}},
		{"unknown fields", `{"seq":7,"ts":5,"type":"x","job_id":"j","later":{"a":[1]},"":null`, reading{Event: Event{Seq: 7, Time: at, Type: "x", JobID: "j"}}},
		{"fields in another case are other fields", `{"seq":7,"ts":5,"type":"x","job_id":"j","Type":9,"JOB_ID":null,"Seq":1`,
			reading{Event: Event{Seq: 7, Time: at, Type: "x", JobID: "j"}}},
		{"no job", `{"seq":7,"ts":5,"type":"jobs_forgotten","job_id":""`, reading{Event: Event{Seq: 7, Time: at, Type: "jobs_forgotten"}}},
		{"null for no job", `{"seq":7,"ts":5,"type":"x","job_id":null`, reading{Event: Event{Seq: 7, Time: at, Type: "x"}}},
		{"null for no capability, no error", `{"seq":7,"ts":5,"type":"x","job_id":"j","capability":null,"error":null`,
			reading{Event: Event{Seq: 7, Time: at, Type: "x", JobID: "j"}}},
		{"null as a payload", `{"seq":7,"ts":5,"type":"x","job_id":"j","output":null`,
			reading{Event: Event{Seq: 7, Time: at, Type: "x", JobID: "j", Output: json.RawMessage("null")}}},
		{"white space in a payload", `{"seq":7,"ts":5,"type":"x","job_id":"j","args": [ 1 , " " ] `,
			reading{Event: Event{Seq: 7, Time: at, Type: "x", JobID: "j", Args: json.RawMessage(`[1," "]`)}}},
		{"control character in a name, escaped", `{"seq":7,"ts":5,"type":"x","job_id":"a\u0000b"`,
			reading{Event: Event{Seq: 7, Time: at, Type: "x", JobID: "a\x00b"}}},
		{"name longer than Append takes", `{"seq":7,"ts":5,"type":"x","job_id":"` + strings.Repeat("j", 1000) + `"`,
			reading{Event: Event{Seq: 7, Time: at, Type: "x", JobID: strings.Repeat("j", 1000)}}},
		{"largest numbers", `{"seq":18446744073709551615,"prev":18446744073709551614,"epoch":18446744073709551615,"ts":253402300799,"ns":999999999,` +
			`"type":"x","job_id":"j","more":1048576,"durable":18446744073709551613`,
			reading{Event: Event{Seq: math.MaxUint64, Prev: math.MaxUint64 - 1, Epoch: math.MaxUint64,
				Time: time.Unix(maxUnix, 999_999_999).UTC(), Type: "x", JobID: "j"}, More: maxGroup, Durable: math.MaxUint64 - 2}},
		{"mark of a later version", `{"mark":"later","what":[1,{"a":2}],"durable":9`, reading{Mark: mark{Kind: "later", Durable: 9}, Durable: 9}},
		{"mark spelled in another way", "{ \"durable\" : 9 ,\t\"m\\u0061rk\":\"durable\" ", reading{Mark: mark{Kind: markDurable, Durable: 9}, Durable: 9}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := read(sealed(c.body, testSeed), testSeed)
			require.NoError(t, err)
			require.Equal(t, c.want, got)
		})
	}
}

// What is read owns its memory: the buffer that it was read from is used again.
func TestLine_reading_owns_its_memory(t *testing.T) {
	e := Event{Seq: 1, Time: time.Unix(1, 0).UTC(), Type: JobFailed, JobID: "job", Capability: "cap", Args: json.RawMessage(`{"a":1}`),
		Output: json.RawMessage(`[2]`), Error: "err"}
	line := canonicalLine(e, 0, 0, testSeed)
	got, err := read(line[:len(line)-1], testSeed)
	require.NoError(t, err)
	for i := range line {
		line[i] = 'X'
	}
	require.Equal(t, e, got.Event)
}

// One decoder reads many lines: nothing of one may show in another.
func TestLine_decoder_forgets(t *testing.T) {
	var d decoder
	var r record
	lines := flipLines()
	for range 3 {
		for name, line := range lines {
			want, err := read(line[:len(line)-1], testSeed)
			require.NoError(t, err)
			require.NoError(t, d.decode(line[:len(line)-1], testSeed, &r))
			require.Equal(t, want, readingOf(&d, &r), name)
		}
	}
}

func TestInterner_gives_back_what_it_was_given(t *testing.T) {
	var n interner
	rapid.Check(t, func(rt *rapid.T) {
		s := rapid.SampledFrom([]string{"", "a", "b", "job-1", "job-2", strings.Repeat("x", 256), strings.Repeat("x", 257)}).Draw(rt, "a") +
			rapid.StringN(0, 3, 8).Draw(rt, "b")
		require.Equal(rt, s, n.text(text{raw: []byte(s)}))
	})
}

// --- the picture in doc.go

// docLine is the event that doc.go shows, put together again.
func docLine(t *testing.T) string {
	doc, err := os.ReadFile("doc.go")
	require.NoError(t, err)
	var parts []string
	for _, l := range strings.Split(string(doc), "\n") {
		l = strings.TrimSpace(strings.TrimPrefix(l, "//"))
		if strings.HasPrefix(l, `{"seq":`) || strings.HasPrefix(l, `"capability":`) {
			parts = append(parts, l)
		}
	}
	require.Len(t, parts, 2, "doc.go shows one event on two lines")
	return strings.Join(parts, "")
}

func TestDoc_shows_a_line_as_the_writer_writes_it(t *testing.T) {
	shown := docLine(t)
	body := shown[:len(shown)-crcLength]
	require.Regexp(t, `^,"crc":"[0-9a-f]{8}"}$`, shown[len(body):])
	got, err := read(sealed(body, testSeed), testSeed)
	require.NoError(t, err)
	again := canonicalLine(got.Event, got.More, got.Durable, testSeed)
	require.Equal(t, body, string(again[:len(again)-1-crcLength]))
}
