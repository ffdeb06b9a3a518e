package crashtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/jobwal/jobwal/wal"
)

// Lines as the judge reads them: by encoding/json and regular expressions, from what package wal documents.

// span is what stands between two newlines.
type span struct {
	at, end int // in the file; end is behind the newline
	text    []byte
	whole   bool // a newline ends it
	gap     bool // empty lines stand in front of it
}

// spans are the lines of a file from an offset on. Empty ones are room for lines to come.
func spans(file []byte, from int) (lines []span) {
	gap := false
	lines = make([]span, 0, bytes.Count(file[from:], []byte("\n"))+1)
	for at := from; at < len(file); {
		n := bytes.IndexByte(file[at:], '\n')
		l := span{at, len(file), file[at:], n >= 0, gap}
		if l.whole {
			l.end, l.text = at+n+1, file[at:at+n]
		}
		at, gap = l.end, len(l.text) == 0
		if !gap {
			lines = append(lines, l)
		}
	}
	return lines
}

// looksOurs: it may have been acknowledged, even where the header, and with it the salt, is lost.
func (l span) looksOurs() bool { return l.whole && l.text[0] == '{' && l.text[len(l.text)-1] == '}' }

// lineRecord is what a line says.
type lineRecord struct {
	intact    bool   // its checksum is right
	misplaced bool   // and yet it says nothing that has a place in a log
	problem   string // it has a place, but is no event that can be read
	mark      string // what kind of mark it is; "" for an event

	seq, prev, epoch, more, durable uint64
	version, first, prior, floor    uint64
	log, salt                       string
	sec, ns                         uint64
	typ, job, capability, errText   string
	args, output                    json.RawMessage
}

func (r lineRecord) event() wal.Event {
	if r.problem != "" {
		return wal.Event{Seq: r.seq, Prev: r.prev, JobID: r.job, Problem: r.problem}
	}
	return copied(wal.Event{Seq: r.seq, Prev: r.prev, Epoch: r.epoch, Time: time.Unix(int64(r.sec), int64(r.ns)).UTC(),
		Type: wal.EventType(r.typ), JobID: r.job, Capability: r.capability, Args: r.args, Output: r.output, Error: r.errText})
}

// known are lines that were taken apart: of images that are judged one after the other, most lines are the same.
var known struct {
	mu    sync.RWMutex // guards the field below
	lines map[string]lineRecord
}

// mostKnown bounds the memory that they take, to some 20 MiB.
const mostKnown = 1 << 14

// readLine reads a line. Of one that is not intact nothing else is said.
func readLine(text []byte, salt string) lineRecord {
	if !isSealed(salt, text) {
		return lineRecord{}
	}
	known.mu.RLock()
	r, is := known.lines[string(text)]
	known.mu.RUnlock()
	if is {
		return r
	}
	r = parse(text)
	if len(text) > 1<<10 {
		return r
	}
	known.mu.Lock()
	defer known.mu.Unlock()
	if known.lines == nil || len(known.lines) >= mostKnown {
		known.lines = make(map[string]lineRecord)
	}
	known.lines[string(text)] = r
	return r
}

// readHeader is a file's first line, if it is a header with a right checksum.
func readHeader(file []byte) (r lineRecord, end int, ok bool) {
	n := bytes.IndexByte(file, '\n')
	if n < 0 {
		return lineRecord{}, 0, false
	}
	if r = readLine(file[:n], Salt(file)); r.mark != "segment" {
		return lineRecord{}, 0, false
	}
	return r, n + 1, true
}

// parse takes a line apart whose checksum is right.
func parse(text []byte) lineRecord {
	r := lineRecord{intact: true}
	err := strict(text)
	if err == nil {
		if err = r.fields(text); err == nil {
			return r
		}
	}
	r = lineRecord{intact: true, problem: err.Error()}
	r.place(text)
	return r
}

// fields reads the members of a line that is strict JSON. Names are what they are, byte for byte: encoding/json would
// take "Seq" for "seq" in a struct.
func (r *lineRecord) fields(text []byte) (err error) {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(text, &members); err != nil {
		return err
	}
	number := func(name string, most uint64) uint64 {
		value, there := members[name]
		if !there {
			return 0
		}
		n, bad := strconv.ParseUint(string(value), 10, 64)
		if bad != nil || n > most {
			err = errors.Join(err, fmt.Errorf("%s: not such a number", name))
		}
		return n
	}
	words := func(name string, required bool) (s string) {
		value, there := members[name]
		if !there && required || there && json.Unmarshal(value, &s) != nil {
			err = errors.Join(err, fmt.Errorf("%s: not a text", name))
		}
		return s
	}
	payload := func(name string) json.RawMessage {
		if members[name] == nil {
			return nil
		}
		return compact(members[name])
	}
	const any64 = 1<<64 - 1
	r.epoch, r.durable = number("epoch", any64), number("durable", any64)
	if _, event := members["seq"]; !event {
		r.mark = words("mark", true)
		r.version, r.first, r.prior, r.floor = number("version", any64), number("first", any64), number("prior", any64), number("floor", any64)
		r.log, r.salt = words("log", false), words("salt", false)
		number("last", any64)
		return err
	}
	const lastSecond, mostMore = 253402300799, 1 << 20
	r.seq, r.prev, r.more = number("seq", any64), number("prev", any64), number("more", mostMore)
	r.sec, r.ns = number("ts", lastSecond), number("ns", 999_999_999)
	r.typ, r.job = words("type", true), words("job_id", true)
	r.capability, r.errText = words("capability", false), words("error", false)
	r.args, r.output = payload("args"), payload("output")
	if _, timed := members["ts"]; !timed || r.seq == 0 || r.typ == "" {
		err = errors.Join(err, errors.New("ts, seq or type is missing"))
	}
	return err
}

// What the writer puts at the front and at the back of an event's line, and its job.
var (
	front = regexp.MustCompile(`^\{"seq":([1-9][0-9]*)(?:,"prev":(0|[1-9][0-9]*))?`)
	back  = regexp.MustCompile(`(?:,"more":(0|[1-9][0-9]*))?(?:,"durable":(0|[1-9][0-9]*))?,"crc":"[0-9a-f]{8}"\}$`)
	whose = regexp.MustCompile(`,"job_id":("(?:[^"\\]|\\.)*")`)
)

// place reads, of an event that cannot be read, what gives it its place.
func (r *lineRecord) place(text []byte) {
	at := front.FindSubmatch(text)
	if at == nil {
		r.misplaced = true
		return
	}
	end := back.FindSubmatch(text)
	r.seq, r.misplaced = number(at[1])
	r.prev, _ = number(at[2])
	r.more, _ = number(end[1])
	r.more = min(r.more, 1<<20)
	r.durable, _ = number(end[2])
	if id := whose.FindSubmatch(text); id != nil && strict(id[1]) == nil {
		_ = json.Unmarshal(id[1], &r.job) // strict JSON: it is a string
	}
}

// number is 0 for what is none, or takes more than 64 bits.
func number(digits []byte) (n uint64, bad bool) {
	n, err := strconv.ParseUint(string(digits), 10, 64)
	if err != nil {
		return 0, true
	}
	return n, false
}

// deepest is how deep a line may be nested: a payload's 100, and the line itself.
const deepest = 101

// strict is RFC 7493 with the limits that package wal documents.
func strict(text []byte) error {
	if !utf8.Valid(text) {
		return errors.New("not valid UTF-8")
	}
	if !json.Valid(text) {
		return errors.New("not JSON")
	}
	if err := surrogates(text); err != nil {
		return err
	}
	tokens := json.NewDecoder(bytes.NewReader(text))
	tokens.UseNumber()
	return strictValue(tokens, 0)
}

func strictValue(tokens *json.Decoder, depth int) error {
	token, err := tokens.Token()
	if err != nil {
		return err
	}
	switch v := token.(type) {
	case json.Number:
		if _, err := strconv.ParseFloat(string(v), 64); err != nil {
			return errors.New("a number beyond a double's range")
		}
	case json.Delim:
		if depth++; depth > deepest {
			return errors.New("nested too deeply")
		}
		return strictMembers(tokens, depth, v == '{')
	}
	return nil
}

// strictMembers checks what stands between two brackets, up to the closing one.
func strictMembers(tokens *json.Decoder, depth int, named bool) error {
	names := make(map[string]bool)
	for tokens.More() {
		if named {
			name, err := tokens.Token()
			if err != nil {
				return err
			}
			if names[name.(string)] {
				return fmt.Errorf("duplicate name %q", name)
			}
			names[name.(string)] = true
		}
		if err := strictValue(tokens, depth); err != nil {
			return err
		}
	}
	_, err := tokens.Token()
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// surrogates finds the halves of a pair that stand alone, in text that is JSON: every backslash begins an escape.
func surrogates(text []byte) error {
	high := func(n uint64) bool { return n >= 0xd800 && n < 0xdc00 }
	low := func(n uint64) bool { return n >= 0xdc00 && n < 0xe000 }
	unit := func(i int) uint64 { // of the escape at i; 0 when there is none
		if i+6 > len(text) || text[i] != '\\' || text[i+1] != 'u' {
			return 0
		}
		n, _ := strconv.ParseUint(string(text[i+2:i+6]), 16, 16)
		return n
	}
	for i := 0; i < len(text); i++ {
		if text[i] != '\\' {
			continue
		}
		switch n := unit(i); {
		case low(n), high(n) && !low(unit(i+6)):
			return errors.New("a lone surrogate")
		case high(n):
			i += 11
		default:
			i++
		}
	}
	return nil
}
