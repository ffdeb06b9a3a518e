package projection

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/jobwal/jobwal/statemachine"
)

// Load implements [Snapshotter]. Payloads larger than HoldBytes are not held, whatever the writer held; those that the
// writer did not hold stay so.
func (j *Jobs) Load(r io.Reader) error {
	if j.last != 0 || j.n != 0 {
		return errors.New("projection: jobs: a snapshot is loaded into a new Jobs only")
	}
	l := loader{source: newSource(r), table: newTable(), opts: j.opts}
	if err := l.load(); err != nil {
		return fmt.Errorf("projection: jobs: not a snapshot, or damaged: %w", err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.table = l.table
	return nil
}

// A loader makes a table from a snapshot.
type loader struct {
	*source
	table
	opts  JobsOptions
	names []string
	total uint64

	block  []byte // one block, for the next to reuse
	arena  arena
	long   []longPlace // of this block
	first  uint64      // of the job before
	time   int64
	orders []order
}

// An order is a job's place in the order of update.
type order struct {
	seq  uint64
	slot uint32
}

func (l *loader) load() error {
	l.last = l.uint()
	l.loadNames()
	l.loadRefusals()
	l.loadStrays()
	for l.err == nil && l.loadBlock() {
	}
	if total := l.uint(); total != l.total {
		l.failf("it has %d jobs in place of %d", l.total, total)
	}
	l.end()
	if l.err == nil {
		l.linkAll()
	}
	return l.err
}

func (l *loader) loadNames() {
	for n := l.uint(); n > 0 && l.err == nil; n-- {
		l.names = append(l.names, l.text())
	}
}

func (l *loader) loadRefusals() {
	for n := l.uint(); n > 0 && l.err == nil; n-- {
		r := refusal{seq: l.uintTo(l.last, "seq"), at: l.source.time()}
		size := l.uintTo(1<<40, "number of ids")
		l.block = l.bytes(l.block[:0], 8*size)
		if l.err != nil {
			return
		}
		r.prints = make([]uint64, size)
		for i := range r.prints {
			r.prints[i] = max(1, binary.BigEndian.Uint64(l.block[8*i:]))
		}
		l.refused.add(r)
	}
}

func (l *loader) loadStrays() {
	for n := l.uint(); n > 0 && l.err == nil; n-- {
		if l.strays == nil {
			l.strays = make(map[string]uint64)
		}
		id, seq := l.text(), l.uintTo(l.last, "seq")
		if !l.opts.Lost[id] {
			l.strays[id] = seq
		}
	}
}

// loadBlock returns false at the end.
func (l *loader) loadBlock() bool {
	head := l.uint()
	if head == 0 {
		return false
	}
	jobs, ids, short := l.uintTo(slabLen, "number of jobs"), l.uint(), l.uint()
	l.block = l.bytes(l.block[:0], head)
	l.block = l.bytes(l.block, ids)
	l.block = l.bytes(l.block, short)
	if l.err != nil {
		return false
	}
	b := blockParser{
		head:  parser{src: l.block[:head]},
		ids:   string(l.block[head : head+ids]), // one for all
		short: parser{src: l.block[head+ids:]},
	}
	for range jobs {
		l.job(&b)
	}
	l.loadLong()
	if l.err == nil && (b.head.bad || b.short.bad || len(b.head.src)+len(b.ids)+len(b.short.src) > 0) {
		l.failf("a block is not as long as it says")
	}
	return l.err == nil
}

type blockParser struct {
	head, short parser
	ids         string
}

// job reads what [encoder.job] wrote. What it makes of it may be wrong, but it is a record that nothing trips over.
func (l *loader) job(b *blockParser) {
	if l.err != nil {
		return
	}
	h := &b.head
	idLen := h.uint()
	if idLen == 0 || idLen > uint64(len(b.ids)) {
		l.failf("an id of %d bytes", idLen)
		return
	}
	id := b.ids[:idLen]
	b.ids = b.ids[idLen:]
	first := l.first + h.uint()
	r := record{seq: first + h.uint(), epoch: h.uint()}
	capability, flags := h.uint(), h.uint()
	r.state, r.before = uint8(flags&7), uint8(flags>>3&7)
	if flags&isRollingBack != 0 {
		r.before |= rollingBack
	}
	attempts, steps := l.counts(h, flags)
	l.times(&r, h, flags)
	args := l.place(h, first)
	output := l.place(h, first)
	var progress payloadPlace
	if flags&hasMore != 0 {
		progress = l.more(&r, h, first)
	}
	l.keepCounts(&r, attempts, steps)
	at := l.locate(id)
	switch {
	case h.bad:
		l.failf("a job ends too early")
	case first <= l.first || r.seq < first || r.seq > l.last:
		l.failf("job %.64q from seq %d to %d does not follow on seq %d", id, first, r.seq, l.first)
	case capability >= uint64(len(l.names)) || r.state >= numStates || r.stateBefore() >= numStates:
		l.failf("job %.64q has an unknown capability or state", id)
	case r.more == nil && slices.Contains(r.times[:], int64(farTime)):
		l.failf("job %.64q lacks a time", id)
	case at.slot != none:
		l.failf("job %.64q is there twice", id)
	default:
		l.first = first
		l.insert(at, id, l.names[capability], first, &r)
		into := l.record(uint32(l.n - 1))
		into.args = l.payload(b, args, uint32(l.n-1), ofArgs)
		into.output = l.payload(b, output, uint32(l.n-1), ofOutput)
		if into.more != nil {
			into.more.progress = l.payload(b, progress, uint32(l.n-1), ofProgress)
		}
	}
}

// counts reads the attempts and the steps.
func (l *loader) counts(h *parser, flags uint64) (attempts, steps uint64) {
	if flags&hasCounts == 0 {
		return 0, 0
	}
	attempts, steps = h.uint(), h.uint()
	if max(attempts, steps) > l.last { // there is an event for each
		l.failf("%d attempts and %d steps in %d events", attempts, steps, l.last)
	}
	return attempts, steps
}

func (l *loader) keepCounts(r *record, attempts, steps uint64) {
	r.attempts, r.steps = uint8(min(attempts, manyOf)), uint8(min(steps, manyOf))
	if max(r.attempts, r.steps) < manyOf {
		return
	}
	if r.more == nil {
		r.more = new(more)
	}
	r.more.attempts, r.more.steps = int(attempts), int(steps)
}

func (l *loader) insert(at location, id, capability string, first uint64, r *record) {
	slot := l.add(at, id, capability, first)
	into := l.record(slot)
	r.id, r.first, r.capability = id, first, into.capability
	*into = *r
	l.file(slot, 1)
	l.orders = append(l.orders, order{r.seq, slot})
	l.total++
}

func (l *loader) times(r *record, h *parser, flags uint64) {
	for i := range r.times {
		switch flags >> (timesShift + 2*i) & 3 {
		case timeNear:
			l.time += h.int()
			r.times[i] = max(l.time, farTime+1)
		case timeFar:
			r.times[i] = farTime
		default:
			r.times[i] = noTime
		}
	}
}

// A payloadPlace is what a job's line in the head says of a payload.
type payloadPlace struct {
	kind      int
	size, seq uint64
}

func (l *loader) place(h *parser, first uint64) payloadPlace {
	n := h.uint()
	p := payloadPlace{kind: int(n & 3), size: n >> 2}
	if p.kind != payloadNone {
		p.seq = first + uint64(h.int())
	}
	if (p.size == 0) != (p.kind == payloadNone) || p.kind > payloadUnheld || p.size > 1<<40 {
		l.failf("a payload of kind %d with %d bytes", p.kind, p.size)
	}
	return p
}

// payload returns what is to be kept. The bytes of a long one come behind the block.
func (l *loader) payload(b *blockParser, p payloadPlace, slot uint32, of payloadOf) statemachine.Payload {
	switch {
	case p.kind == payloadNone:
		return statemachine.Payload{}
	case p.kind == payloadHeld && p.size > shortLen:
		l.long = append(l.long, longPlace{p, slot, of})
		return statemachine.Payload{}
	case p.kind == payloadHeld:
		if raw := b.short.cut(p.size); !l.sheds(p.size) {
			return l.held(p, l.arena.clone(raw))
		}
	}
	return statemachine.UnheldPayload(p.seq, int(p.size))
}

func (l *loader) sheds(size uint64) bool {
	return l.opts.HoldBytes != 0 && size > uint64(max(0, l.opts.HoldBytes))
}

func (l *loader) held(p payloadPlace, raw []byte) statemachine.Payload {
	if len(raw) == 0 || raw[0] == 0 {
		l.failf("a payload that is no JSON value")
		return statemachine.Payload{}
	}
	return statemachine.NewPayload(p.seq, raw)
}

type longPlace struct {
	payloadPlace
	slot uint32
	of   payloadOf
}

// payloadOf says which of a job's payloads one is.
type payloadOf uint8

const (
	ofArgs payloadOf = iota
	ofOutput
	ofProgress
)

func (r *record) payload(of payloadOf) *statemachine.Payload {
	switch of {
	case ofArgs:
		return &r.args
	case ofOutput:
		return &r.output
	}
	return &r.more.progress
}

func (l *loader) loadLong() {
	for _, p := range l.long {
		into := l.record(p.slot).payload(p.of)
		if l.sheds(p.size) {
			l.skip(p.size)
			*into = statemachine.UnheldPayload(p.seq, int(p.size))
		} else if raw := l.own(p.size); l.err == nil {
			*into = l.held(p.payloadPlace, raw)
		}
	}
	l.long = l.long[:0]
}

// An arena is where copies of short payloads go: one allocation for many. It is freed with the last of them.
type arena struct{ free []byte }

const arenaLen = 8 * shortLen

func (a *arena) clone(raw []byte) []byte {
	n := len(raw)
	if len(a.free) < n {
		a.free = make([]byte, arenaLen)
	}
	kept := a.free[:n:n]
	a.free = a.free[n:]
	copy(kept, raw)
	return kept
}

// more returns the place of what is said of the job's progress.
func (l *loader) more(r *record, h *parser, first uint64) payloadPlace {
	m := &more{err: h.text(), rollback: h.text(), parked: h.text(), held: h.text(), parkedSeq: h.uint()}
	progress := l.place(h, first)
	for i, at := range r.times {
		if at == farTime {
			if m.far == nil {
				m.far = new([5]time.Time)
			}
			sec, ns := h.int(), h.uint()
			m.far[i] = time.Unix(sec, int64(min(ns, 1e9-1))).UTC()
		}
	}
	r.more = m
	return progress
}

// linkAll brings the jobs in order of update.
func (l *loader) linkAll() {
	slices.SortFunc(l.orders, func(a, b order) int { return cmp.Compare(a.seq, b.seq) })
	for i, o := range l.orders {
		if i > 0 && o.seq == l.orders[i-1].seq {
			l.failf("seq %d is the newest of two jobs", o.seq)
			return
		}
		l.link(o.slot)
	}
}
