package wal_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"regexp"
	"strconv"
	"strings"
	"sync"
)

// The judge says what Open has to make of a directory. It knows the documented format and nothing of the package: it is
// slow, holds everything in memory, parses with encoding/json, and is meant to be read beside promise W3.

type verdict struct {
	refuse   string            // why Open must refuse as corrupt; "" when it must open
	first    uint64            // the first event's seq
	last     uint64            // the log then holds exactly first..last
	readable uint64            // reading from the front delivers first..readable
	corrupt  bool              // and is corrupt behind it
	cut      map[string][]byte // by segment, the bytes that Open cuts
	offset   map[string]int    // and where
	durable  uint64            // the highest witness
	clean    bool
}

func (v verdict) String() string {
	if v.refuse != "" {
		return "refuse: " + v.refuse
	}
	return fmt.Sprintf("open %d..%d, readable to %d, cut %v", v.first, v.last, v.readable, v.offset)
}

type jLine struct {
	at, end int // in the file; end is behind the newline
	text    []byte
	whole   bool
	gap     bool // blank lines stand before it
}

func jLines(file []byte, from int) (lines []jLine) {
	for at := from; at < len(file); {
		n := bytes.IndexByte(file[at:], '\n')
		l := jLine{at, len(file), file[at:], n >= 0, at > from && (len(lines) == 0 || lines[len(lines)-1].end != at)}
		if l.whole {
			l.end, l.text = at+n+1, file[at:at+n]
		}
		at = l.end
		if len(l.text) > 0 {
			lines = append(lines, l)
		}
	}
	return lines
}

// jRecord is any intact line.
type jRecord struct {
	Mark    string
	Seq     uint64
	More    uint64
	Durable uint64
	Epoch   uint64
	First   uint64
	Prior   uint64
	Floor   uint64
	Version uint64
	Log     string
	Salt    string
}

var jEnd = regexp.MustCompile(`^,"crc":"[0-9a-f]{8}"}$`)

var jTable = crc32.MakeTable(crc32.Castagnoli)

// jKnown are the intact lines that were met, by salt and text: most of what is judged has been judged before.
var jKnown sync.Map

// jIntact parses a line whose checksum is right.
func jIntact(text []byte, salt string) (r jRecord, ok bool) {
	at := len(text) - len(`,"crc":"01234567"}`)
	if at < 1 || !jEnd.Match(text[at:]) {
		return r, false
	}
	want, _ := strconv.ParseUint(string(text[at+8:at+16]), 16, 32)
	sum := crc32.Update(crc32.Checksum([]byte(salt), jTable), jTable, text[:at])
	if uint64(sum) != want {
		return r, false
	}
	key := salt + string(text)
	if known, ok := jKnown.Load(key); ok {
		return known.(jRecord), true
	}
	if json.Unmarshal(text, &r) != nil {
		return r, false
	}
	jKnown.Store(key, r)
	return r, true
}

// jHeader is the first line, if it is a header with a right checksum.
func jHeader(file []byte) (r jRecord, end int, ok bool) {
	n := bytes.IndexByte(file, '\n')
	if n < 0 {
		return r, 0, false
	}
	salt := jSaltIn.FindSubmatch(file[:n])
	if salt == nil {
		return r, 0, false
	}
	r, ok = jIntact(file[:n], string(salt[1]))
	return r, n + 1, ok && r.Mark == "segment"
}

var jSaltIn = regexp.MustCompile(`"salt":"([^"]*)"`)

// jWitness looks for intact lines wherever they begin in a damaged line.
func jWitness(text []byte, salt string) (durable uint64) {
	for i := range text {
		if text[i] != '{' {
			continue
		}
		if r, ok := jIntact(text[i:], salt); ok {
			durable = max(durable, r.Durable)
		}
	}
	return durable
}

type jSegment struct {
	name   string
	first  uint64
	header jRecord
	body   int
	file   []byte
}

func judge(img image) (v verdict) {
	v.cut, v.offset = make(map[string][]byte), make(map[string]int)
	var segments []jSegment
	var blank *jSegment
	floor, names := uint64(1), img.names()
	for i, name := range names {
		first, _ := strconv.ParseUint(strings.TrimSuffix(name, ".jsonl"), 10, 64)
		s := jSegment{name: name, first: first, file: img[name]}
		var ok bool
		s.header, s.body, ok = jHeader(s.file)
		switch {
		case !ok && (i < len(names)-1 || jHasOurs(s.file)):
			v.refuse = name + ": no header"
			return v
		case !ok:
			blank = &s
			continue
		case s.header.First != first || s.header.Durable != first-1 || s.header.Floor > first:
			v.refuse = name + ": the header is not its own"
			return v
		case len(segments) > 0 && segments[0].header.Log != s.header.Log:
			v.refuse = name + ": of another log"
			return v
		}
		floor = max(floor, s.header.Floor)
		segments = append(segments, s)
	}
	v.first, v.last, v.readable = 1, 0, 0
	if len(segments) > 0 {
		newest := segments[len(segments)-1]
		t := jScan(newest)
		floor = max(floor, t.floor)
		for len(segments) > 1 && segments[1].first <= floor {
			segments = segments[1:]
		}
		if segments[0].first > floor {
			v.refuse = "the oldest segment is missing"
			return v
		}
		for i := 1; i < len(segments); i++ {
			if segments[i].header.Prior != segments[i-1].first || segments[i].header.Epoch < segments[i-1].header.Epoch {
				v.refuse = segments[i].name + ": does not follow the one before"
				return v
			}
		}
		v.durable, v.clean = t.durable, t.clean
		if t.durable >= t.next {
			v.refuse = fmt.Sprintf("%s: seq %d cannot be delivered, seq %d was durable (%s)", newest.name, t.next, t.durable, t.reason)
			return v
		}
		if t.reason != "" {
			v.cut[newest.name], v.offset[newest.name] = newest.file[t.end:], t.end
		}
		v.first, v.last = segments[0].first, t.next-1
		v.readable, v.corrupt = jReadable(segments, v.last)
	}
	if blank != nil {
		if blank.first != v.last+1 {
			v.refuse = blank.name + ": no header, and the log ends before it"
			return v
		}
		if len(blank.file) > 0 {
			v.cut[blank.name], v.offset[blank.name] = blank.file, 0
		}
	}
	return v
}

// jHasOurs: lines that look like ours may have been acknowledged, even where the header is lost.
func jHasOurs(file []byte) bool {
	for _, l := range jLines(file, 0) {
		if l.whole && l.text[0] == '{' && l.text[len(l.text)-1] == '}' {
			return true
		}
	}
	return false
}

type jTail struct {
	next, durable, floor uint64
	end                  int
	reason               string
	clean                bool
}

// jScan is promise W3 for one segment: whole groups up to the first thing that is not right; witnesses everywhere.
func jScan(s jSegment) jTail {
	t := jTail{next: s.first, durable: s.first - 1, end: s.body}
	want, left := s.first, uint64(0)
	lines := jLines(s.file, s.body)
	for i, l := range lines {
		r, ok := jIntact(l.text, s.header.Salt)
		switch {
		case !l.whole || !ok || l.gap:
			t.reason = "bad line"
		case r.Mark != "" && (left > 0 || r.Mark == "segment"):
			t.reason = "misplaced mark"
		case r.Mark != "" && r.Floor > s.first:
			t.reason, t.durable = "a floor that no writer gives", max(t.durable, t.next)
		case r.Mark != "":
			t.floor, t.end, t.clean = max(t.floor, r.Floor), l.end, r.Mark == "closed"
		case r.Seq != want || left > 0 && r.More != left-1:
			t.reason = "misplaced event"
		default:
			want++
			if left = r.More; left == 0 {
				t.next, t.end, t.clean = want, l.end, false
			}
		}
		if t.reason != "" {
			for _, after := range lines[i:] {
				t.durable = max(t.durable, jWitness(after.text, s.header.Salt))
			}
			return t
		}
		t.durable = max(t.durable, r.Durable)
	}
	if left > 0 {
		t.reason = "group not whole"
	}
	return t
}

// jReadable reads all segments from the front and returns the last seq before the first damage, if there is any.
func jReadable(segments []jSegment, last uint64) (readable uint64, corrupt bool) {
	readable = segments[0].first - 1
	for i, s := range segments {
		to, sealed := last, i+1 < len(segments)
		if sealed {
			to = segments[i+1].first - 1
		}
		for _, l := range jLines(s.file, s.body) {
			r, ok := jIntact(l.text, s.header.Salt)
			switch {
			case readable == to && ok && sealed && r.Durable > to:
				return readable, true // the next segment claims that seq, too
			case readable == to:
			case !l.whole || !ok || l.gap || r.Mark == "" && r.Seq != readable+1:
				return readable, true
			case r.Mark == "":
				readable++
			}
		}
		if readable < to {
			return readable, true
		}
	}
	return readable, false
}
