package wal

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"strconv"
	"time"
)

// Bytes to events and back; no I/O. The format's picture stands in doc.go.

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// saltSeed is the checksum's state after a segment's salt, as its 16 hex digits stand in the header.
func saltSeed(salt string) uint32 { return crc32.Checksum([]byte(salt), castagnoli) }

const (
	crcName   = `,"crc":"`
	crcLength = len(crcName) + 8 + len(`"}`) // the end of every line, newline not counted
)

// seal ends a line that was begun at from: the checksum over all its bytes, the brace, the newline.
func seal(buf []byte, from int, seed uint32) []byte {
	sum := crc32.Update(seed, castagnoli, buf[from:])
	buf = append(buf, crcName...)
	for shift := 28; shift >= 0; shift -= 4 {
		buf = append(buf, hexDigits[sum>>shift&15])
	}
	return append(buf, "\"}\n"...)
}

// unseal returns the part of a line (without its newline) that the checksum covers, if the checksum is right. The end is
// compared as bytes: a parse that took "9F3A01BC" for "9f3a01bc" would let bit flips through.
func unseal(line []byte, seed uint32) (body []byte, ok bool) {
	at := len(line) - crcLength
	if at < 1 {
		return nil, false
	}
	var want [crcLength]byte
	sum := crc32.Update(seed, castagnoli, line[:at])
	copy(want[:], crcName)
	for i := range 8 {
		want[len(crcName)+i] = hexDigits[sum>>(28-4*i)&15]
	}
	copy(want[len(crcName)+8:], `"}`)
	return line[:at], bytes.Equal(line[at:], want[:])
}

// appendBody appends what the caller of Append decides about an event, in canonical order and spelling. It starts with
// a comma: the committer puts seq, prev and epoch before it.
func appendBody(dst []byte, e *Event) []byte {
	dst = append(dst, `,"ts":`...)
	dst = strconv.AppendInt(dst, e.Time.Unix(), 10)
	dst = append(dst, `,"ns":`...)
	dst = strconv.AppendInt(dst, int64(e.Time.Nanosecond()), 10)
	dst = append(dst, `,"type":`...)
	dst = appendQuoted(dst, string(e.Type))
	dst = append(dst, `,"job_id":`...)
	dst = appendQuoted(dst, e.JobID)
	if e.Capability != "" {
		dst = appendQuoted(append(dst, `,"capability":`...), e.Capability)
	}
	if len(e.Args) > 0 {
		dst = append(append(dst, `,"args":`...), e.Args...)
	}
	if len(e.Output) > 0 {
		dst = append(append(dst, `,"output":`...), e.Output...)
	}
	if e.Error != "" {
		dst = appendQuoted(append(dst, `,"error":`...), e.Error)
	}
	return dst
}

// place is what only the committer knows about an event when it writes the line.
type place struct {
	seq, prev, epoch uint64
	more             int    // events of the same group that follow
	durable          uint64 // the highest seq known to be on disk
}

// appendLine appends a whole line, newline included.
func appendLine(dst []byte, at place, body []byte, seed uint32) []byte {
	from := len(dst)
	dst = strconv.AppendUint(append(dst, `{"seq":`...), at.seq, 10)
	dst = strconv.AppendUint(append(dst, `,"prev":`...), at.prev, 10)
	dst = strconv.AppendUint(append(dst, `,"epoch":`...), at.epoch, 10)
	dst = append(dst, body...)
	if at.more > 0 {
		dst = strconv.AppendInt(append(dst, `,"more":`...), int64(at.more), 10)
	}
	dst = strconv.AppendUint(append(dst, `,"durable":`...), at.durable, 10)
	return seal(dst, from, seed)
}

// A record is a line taken apart. Its spans point into the line and are gone with it.
type record struct {
	place
	sec, ns       int64
	typ, job, cap text
	args, out     []byte
	errText       text
	mark          *mark  // the line is a mark: nothing above is set but durable
	problem       string // the checksum is right, but it is no event that this version can read
}

// text is the inside of a checked JSON string.
type text struct {
	raw     []byte
	escaped bool
}

func (t text) string() string {
	if !t.escaped {
		return string(t.raw)
	}
	return string(appendUnquoted(nil, t.raw))
}

var (
	errChecksum = errors.New("checksum mismatch")
	errFrame    = errors.New("the checksum is right, but this is neither an event nor a mark")
)

// decoder takes lines apart. It is reused to keep the scanner's memory; not for concurrent use.
type decoder struct {
	json  jsonScanner
	names interner
	slab  slab
}

// decode takes one line, without its newline, apart. errChecksum: the bytes are not as they were written. errFrame:
// they are, but say nothing that can be placed in a log. A record with a problem can be placed, but not read.
func (d *decoder) decode(line []byte, seed uint32, r *record) error {
	body, ok := unseal(line, seed)
	if !ok {
		return errChecksum
	}
	*r = record{}
	if d.canonical(body, r) {
		return nil
	}
	*r = record{}
	err := d.ordinary(line, r)
	if err == nil {
		return nil
	}
	*r = record{problem: err.Error()}
	if !d.frame(body, r) {
		return errFrame
	}
	return nil
}

// canonical is the fast path: the writer's own order and spelling, without looking back. What it does not take,
// ordinary judges; what it takes, ordinary takes to the same result.
func (d *decoder) canonical(body []byte, r *record) bool {
	p := parser{src: body, json: &d.json}
	// The names stand here, and not in the functions behind them, so that each is compared as the constant that it is.
	p.skip(`{"seq":`)
	r.seq = p.uint()
	p.skip(`,"prev":`)
	r.prev = p.uint()
	p.skip(`,"epoch":`)
	r.epoch = p.uint()
	p.skip(`,"ts":`)
	r.sec = p.int()
	p.skip(`,"ns":`)
	r.ns = p.int()
	p.skip(`,"type":`)
	r.typ = p.text()
	p.skip(`,"job_id":`)
	r.job = p.text()
	if p.has(`,"capability":`) {
		r.cap = p.text()
	}
	if p.has(`,"args":`) {
		r.args = p.value()
	}
	if p.has(`,"output":`) {
		r.out = p.value()
	}
	if p.has(`,"error":`) {
		r.errText = p.text()
	}
	if p.has(`,"more":`) {
		r.more = p.count()
	}
	p.skip(`,"durable":`)
	r.durable = p.uint()
	return !p.bad && p.at == len(body) && r.check() == nil
}

// check is what both paths hold of an event.
func (r *record) check() error {
	switch {
	case r.seq == 0:
		return errors.New("seq 0")
	case r.sec > maxUnix:
		return errors.New("ts beyond the year 9999")
	case r.ns < 0 || r.ns > 999_999_999: // below 0: 64 bits in the file
		return errors.New("ns beyond a second")
	case len(r.typ.raw) == 0:
		return errors.New("no type")
	}
	return nil
}

// maxUnix is the last second that time.Time can marshal: 9999-12-31T23:59:59Z.
const maxUnix = 253402300799

// parser walks over canonical bytes. After the first thing that is not as expected, bad stays set.
type parser struct {
	src  []byte
	at   int
	bad  bool
	json *jsonScanner
}

// has tells whether name comes next, and passes over it.
func (p *parser) has(name string) bool {
	if p.bad || len(p.src)-p.at < len(name) || string(p.src[p.at:p.at+len(name)]) != name {
		return false
	}
	p.at += len(name)
	return true
}

func (p *parser) skip(name string) {
	if !p.has(name) {
		p.bad = true
	}
}

func (p *parser) uint() uint64 {
	if p.bad {
		return 0
	}
	n, end, ok := parseUint(p.src, p.at)
	p.at, p.bad = end, !ok
	return n
}

func (p *parser) int() int64 {
	n := p.uint()
	if n > math.MaxInt64 {
		p.bad = true
	}
	return int64(n)
}

func (p *parser) count() int {
	n := p.uint()
	if n > maxGroup {
		p.bad = true
	}
	return int(n)
}

func (p *parser) text() text {
	if p.bad || p.at >= len(p.src) || p.src[p.at] != '"' {
		p.bad = true
		return text{}
	}
	end, escaped, err := scanText(p.src, p.at)
	if err != nil {
		p.bad = true
		return text{}
	}
	t := text{p.src[p.at+1 : end-1], escaped}
	p.at = end
	return t
}

func (p *parser) value() []byte {
	if p.bad {
		return nil
	}
	p.json.src, p.json.spaces, p.json.names = p.src, 0, p.json.names[:0]
	end, err := p.json.value(p.at, 1)
	if err != nil || p.json.spaces > 0 {
		p.bad = true
		return nil
	}
	v := p.src[p.at:end]
	p.at = end
	return v
}

// parseUint reads a decimal number as JSON spells it: no sign, no leading zero, at most 64 bits.
func parseUint(src []byte, i int) (n uint64, end int, ok bool) {
	from := i
	for ; i < len(src) && isDigit(src[i]); i++ {
		c := uint64(src[i] - '0')
		if i-from >= 19 && n > (math.MaxUint64-c)/10 { // 19 digits always fit
			return 0, i, false
		}
		n = n*10 + c
	}
	return n, i, i > from && (src[from] != '0' || i == from+1)
}

// maxGroup is the most events that one append may have.
const maxGroup = 1 << 20

// ordinary takes any other strict JSON: names in any order, white space, fields it does not know.
func (d *decoder) ordinary(line []byte, r *record) error {
	var f fields
	if err := f.parse(&d.json, line); err != nil {
		return err
	}
	if _, isEvent := f.get("seq"); !isEvent {
		r.mark = new(mark)
		err := r.mark.parse(&f)
		r.durable = r.mark.Durable
		return err
	}
	r.seq = f.uint("seq")
	r.prev = f.uintOr0("prev")
	r.epoch = f.uintOr0("epoch")
	r.sec = f.int("ts")
	r.ns = int64(f.uintOr0("ns"))
	r.typ = f.text("type")
	r.job = f.text("job_id")
	r.cap = f.textOrNone("capability")
	r.args = f.raw("args")
	r.out = f.raw("output")
	r.errText = f.textOrNone("error")
	r.more = int(min(f.uintOr0("more"), math.MaxInt32))
	r.durable = f.uintOr0("durable")
	if f.err == nil && r.more > maxGroup {
		f.err = errors.New("more: too many")
	}
	if f.err == nil {
		f.err = r.check()
	}
	return f.err
}

// fields is one JSON object's members that have a meaning here, names unquoted, values as they stand. The others, of which
// a hostile line has millions, are checked and passed over.
type fields struct {
	names  []string
	values [][]byte
	err    error // the first field that was not what it had to be
}

func (f *fields) parse(scan *jsonScanner, object []byte) error {
	// One deeper than a payload: the line itself is an object.
	scan.src, scan.spaces, scan.names = object, 0, scan.names[:0]
	end, err := scan.value(scan.space(0), 0)
	if err != nil {
		return err
	}
	i := scan.space(0)
	if object[i] != '{' || scan.space(end) != len(object) {
		return errors.New("not a JSON object")
	}
	for i = scan.space(i + 1); object[i] != '}'; {
		nameEnd, _, _ := scanText(object, i)
		name, known := fieldNames[string(scan.unquoted(span{i, nameEnd}))]
		i = scan.space(scan.space(nameEnd) + 1)
		end, _ := scan.value(i, 1)
		if known {
			f.names, f.values = append(f.names, name), append(f.values, object[i:end])
		}
		if i = scan.space(end); object[i] == ',' {
			i = scan.space(i + 1)
		}
	}
	return nil
}

// fieldNames are the names that an event or a mark is asked for.
var fieldNames = func() map[string]string {
	known := make(map[string]string)
	for _, name := range []string{
		"seq", "prev", "epoch", "ts", "ns", "type", "job_id", "capability", "args", "output", "error", "more", "durable",
		"mark", "version", "log", "salt", "prior", "first", "last", "floor",
		"carried", "count", "event",
	} {
		known[name] = name
	}
	return known
}()

func (f *fields) get(name string) ([]byte, bool) {
	for i, n := range f.names {
		if n == name {
			return f.values[i], true
		}
	}
	return nil, false
}

func (f *fields) fail(name, reason string) {
	if f.err == nil {
		f.err = fmt.Errorf("%s: %s", name, reason)
	}
}

func (f *fields) uint(name string) uint64 {
	if _, ok := f.get(name); !ok {
		f.fail(name, "missing")
	}
	return f.uintOr0(name)
}

func (f *fields) uintOr0(name string) uint64 {
	v, ok := f.get(name)
	if !ok {
		return 0
	}
	n, end, ok := parseUint(v, 0)
	if !ok || end != len(v) {
		f.fail(name, "not a whole number")
	}
	return n
}

func (f *fields) int(name string) int64 {
	n := f.uint(name)
	if n > math.MaxInt64 {
		f.fail(name, "too large")
	}
	return int64(n)
}

func (f *fields) text(name string) text {
	if _, ok := f.get(name); !ok {
		f.fail(name, "missing")
	}
	return f.textOrNone(name)
}

// textOrNone takes null for a missing string, as the ancestor's reader does.
func (f *fields) textOrNone(name string) text {
	v, ok := f.get(name)
	if !ok || string(v) == "null" {
		return text{}
	}
	if v[0] != '"' {
		f.fail(name, "not a string")
		return text{}
	}
	return text{raw: v[1 : len(v)-1], escaped: bytes.IndexByte(v, '\\') >= 0}
}

func (f *fields) raw(name string) []byte {
	v, ok := f.get(name)
	if !ok {
		return nil
	}
	return appendCompact(nil, v)
}

// frame reads, of a line that will not decode, what places it in the log: its number at the front, more and durable at
// the back, where the writer puts them; and the job, if it can be found. Of a seq of 7.5 it takes the 7: whether that is
// the line's place is for the lines around it to say.
func (d *decoder) frame(body []byte, r *record) bool {
	p := parser{src: body, json: &d.json}
	p.skip(`{"seq":`)
	if r.seq = p.uint(); p.bad || r.seq == 0 {
		return false
	}
	p.skip(`,"prev":`)
	if r.prev = p.uint(); p.bad {
		r.prev = 0
	}
	rest, durable := numberBefore(body, `,"durable":`)
	_, more := numberBefore(rest, `,"more":`)
	r.durable, r.more = durable, int(min(more, maxGroup))
	if i := bytes.Index(body, []byte(`,"job_id":"`)); i >= 0 {
		p := parser{src: body, at: i + len(`,"job_id":`), json: &d.json}
		if job := p.text(); !p.bad {
			r.job = job
		}
	}
	return true
}

// numberBefore takes name and a number off the end of src.
func numberBefore(src []byte, name string) (rest []byte, n uint64) {
	i := len(src)
	for i > 0 && isDigit(src[i-1]) {
		i--
	}
	n, _, ok := parseUint(src, i)
	if !ok || !bytes.HasSuffix(src[:i], []byte(name)) {
		return src, 0
	}
	return src[:i-len(name)], n
}

// event makes an Event that owns its memory.
func (d *decoder) event(r *record) Event {
	e := d.shared(r)
	e.Args, e.Output = d.slab.clone(e.Args), d.slab.clone(e.Output)
	return e
}

// shared makes an Event whose payloads lie in the line still.
func (d *decoder) shared(r *record) Event {
	e := Event{
		Seq: r.seq, Prev: r.prev, Epoch: r.epoch,
		Type: EventType(d.names.text(r.typ)), JobID: d.names.text(r.job), Capability: d.names.text(r.cap),
		Error: r.errText.string(), Problem: r.problem,
	}
	if r.problem == "" {
		e.Time = time.Unix(r.sec, r.ns).UTC()
		e.Args, e.Output = r.args, r.out
	}
	return e
}

// slab is where copies of small payloads go: one allocation for many. Each copy is its owner's to change, and to append
// to; a slab is freed with the last of them. The zero slab allocates each by itself.
type slab struct {
	size int // of a slab
	free []byte
}

const slabSize = 4 << 10

// takes is what a copy of raw takes of the slab: nothing when it is not small.
func (s *slab) takes(raw []byte) int {
	if len(raw) > s.size/8 {
		return 0
	}
	return len(raw)
}

func (s *slab) clone(raw []byte) json.RawMessage {
	n := s.takes(raw)
	if n == 0 {
		return cloneRaw(raw)
	}
	if len(s.free) < n {
		s.free = make([]byte, s.size)
	}
	kept := s.free[:n:n]
	s.free = s.free[n:]
	copy(kept, raw)
	return kept
}

// interner remembers recent names, so that a job's id is one string however many events it has. A fixed table, the
// newest wins: bounded whatever a file holds.
type interner struct{ recent [512]string }

func (n *interner) text(t text) string {
	if len(t.raw) == 0 {
		return ""
	}
	if t.escaped || len(t.raw) > 256 {
		return t.string()
	}
	slot := &n.recent[nameHash(t.raw)%uint32(len(n.recent))]
	if *slot != string(t.raw) {
		*slot = string(t.raw)
	}
	return *slot
}

// nameHash is of the last 8 bytes and the length: names differ in their ends.
func nameHash(name []byte) uint32 {
	var end uint64
	if n := len(name); n >= 8 {
		end = binary.LittleEndian.Uint64(name[n-8:])
	} else {
		for _, c := range name {
			end = end<<8 | uint64(c)
		}
	}
	return uint32((end ^ uint64(len(name))) * 0x9E3779B97F4A7C15 >> 32) // Knuth's multiplicative hashing, by the golden ratio
}
