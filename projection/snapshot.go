package projection

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"slices"
	"sync/atomic"

	"github.com/jobwal/jobwal/statemachine"
)

// A snapshot of Jobs is, in this order:
//
//	last                          seq of the newest event
//	capabilities                  how many, and their names
//	refusals                      how many, and of each event seq, time, number of ids, and 8 bytes for each
//	strays                        how many, and of each id and seq
//	blocks of up to 64 jobs       four lengths: head, number of jobs, ids, short payloads; then these themselves, one
//	                              job behind the other; then the long payloads
//	0 in place of a head's length, number of all jobs
//
// In a block's head a job is as [encoder.job] has it. Ids and short payloads lie together so that they can be brought
// into memory together.

// jobsVersion is that of the layout above, and of what a fold makes of an event: 1 had no jobs that are rolling back, and
// counted marks among their steps. A checkpoint with that is passed over: see [Snapshotter].
const jobsVersion = 2

// shortLen is how many bytes a payload has at most to lie with others.
const shortLen = 512

// A freeze is the state that a snapshot is to have, while it is being saved: what may change of it since then is put
// aside by the applier before it does, record by record, unless the saver has passed it by.
type freeze struct {
	last         uint64
	n            int // slots below this are frozen
	next         int // the slab that the saver comes to next
	capabilities int
	refused      []refusal
	strays       []Stray

	aside   map[int]*setAside // by number of slab
	records int               // in aside
	peak    int               // most there have been
	begun   atomic.Bool
}

// setAside are records of one slab as they were when it was frozen.
type setAside struct {
	taken   uint64 // a bit for each record that is here
	records []placed
}

type placed struct {
	record
	i int // in its slab
}

// Version implements [Snapshotter]: 2.
func (j *Jobs) Version() int { return jobsVersion }

// maxFrozen is how many snapshots may wait to be saved. One is what a caller needs; one more, so that an earlier one that
// is still being saved is not lost to the next. A save that is never called costs no more than that.
const maxFrozen = 2

// Snapshot implements [Snapshotter]. It copies nothing: while save is on its way, or is not called at all, the record of
// a job that changes is kept as it was, some 200 bytes for each such job that save has not come to. save takes the
// readers' lock for a few microseconds at a time. The two newest snapshots can be saved: with a third the oldest is given
// up.
func (j *Jobs) Snapshot() (save func(io.Writer) error, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	f := &freeze{
		last: j.last, n: j.n, next: j.base, capabilities: len(j.capabilities), refused: j.refused.events,
		strays: j.strayList(), aside: make(map[int]*setAside),
	}
	j.frozen = append(j.frozen, f)
	if len(j.frozen) > maxFrozen {
		j.frozen = slices.Delete(j.frozen, 0, 1)
	}
	return func(w io.Writer) error {
		if f.begun.Swap(true) {
			return fmt.Errorf("projection: jobs: snapshot at seq %d: saved before", f.last)
		}
		defer j.thaw(f)
		if err := j.save(f, w); err != nil {
			return fmt.Errorf("projection: jobs: snapshot at seq %d: %w", f.last, err)
		}
		return nil
	}, nil
}

func (j *Jobs) thaw(f *freeze) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.frozen = slices.DeleteFunc(j.frozen, func(other *freeze) bool { return other == f })
}

// errThawed: the state is not there any more.
var errThawed = errors.New("the frozen state is not kept any more, for there are newer ones")

// keptLocked returns errThawed when f was given up.
func (j *Jobs) keptLocked(f *freeze) error {
	if slices.Contains(j.frozen, f) {
		return nil
	}
	return errThawed
}

// putAside keeps a record as it is for the savers, before it changes.
func (t *table) putAside(slot uint32) {
	for _, f := range t.frozen {
		f.putAside(slot, t.record(slot))
	}
}

func (f *freeze) putAside(slot uint32, r *record) {
	number, bit := int(slot/slabLen), uint64(1)<<(slot%slabLen)
	if number < f.next || int(slot) >= f.n {
		return
	}
	a := f.aside[number]
	if a == nil {
		a = new(setAside)
		f.aside[number] = a
	}
	if a.taken&bit != 0 {
		return
	}
	a.taken |= bit
	a.records = append(a.records, placed{*r, int(slot % slabLen)})
	f.records++
	f.peak = max(f.peak, f.records)
}

// collect copies the frozen records of the next slab that has any; 0 of them at the end.
func (j *Jobs) collect(f *freeze, into *[slabLen]record) (n int, err error) {
	for n == 0 && err == nil && f.next*slabLen < f.n {
		n, err = j.collectStretch(f, into)
	}
	return n, err
}

// collectStretch holds the readers' lock for one slab that has records, or for many that have none. The applier is kept
// out by it, and no one else looks at f.
func (j *Jobs) collectStretch(f *freeze, into *[slabLen]record) (n int, err error) {
	j.mu.RLock()
	defer j.mu.RUnlock()
	if err := j.keptLocked(f); err != nil {
		return 0, err
	}
	for end := f.next + defaultStretch; n == 0 && f.next < end && f.next*slabLen < f.n; f.next++ {
		n = j.pick(f, into)
	}
	return n, nil
}

// pick copies the frozen records of one slab: from aside those that have changed or are gone.
func (t *table) pick(f *freeze, into *[slabLen]record) int {
	var from [slabLen]*record
	if s := t.slab(f.next); s != nil {
		for live := s.live(); live != 0; live &= live - 1 {
			if i := bits.TrailingZeros64(live); f.next*slabLen+i < f.n {
				from[i] = &s.records[i]
			}
		}
	}
	if a := f.aside[f.next]; a != nil {
		for k := range a.records {
			from[a.records[k].i] = &a.records[k].record
		}
		f.records -= len(a.records)
		delete(f.aside, f.next)
	}
	n := 0
	for _, r := range from {
		if r != nil {
			into[n] = *r
			n++
		}
	}
	return n
}

func (j *Jobs) save(f *freeze, w io.Writer) error {
	names, err := j.names(f)
	if err != nil {
		return err
	}
	out := encoder{w: w}
	if err := out.opening(f, names); err != nil {
		return err
	}
	var records [slabLen]record
	total := 0
	for {
		n, err := j.collect(f, &records)
		if err != nil {
			return err
		}
		if n == 0 {
			out.buf = binary.AppendUvarint(append(out.buf, 0), uint64(total))
			return out.flush(0)
		}
		total += n
		if err := out.block(records[:n]); err != nil {
			return err
		}
	}
}

// names returns those of the capabilities.
func (j *Jobs) names(f *freeze) ([]string, error) {
	j.mu.RLock()
	defer j.mu.RUnlock()
	if err := j.keptLocked(f); err != nil {
		return nil, err
	}
	names := make([]string, f.capabilities)
	for i := range names {
		names[i] = j.capabilities[i].name
	}
	return names, nil
}

// An encoder writes a snapshot.
type encoder struct {
	w   io.Writer
	buf []byte // not written yet

	head, ids, short []byte // of one block
	long             []statemachine.Payload
	first            uint64 // of the job before
	time             int64  // the one before, of any job
}

// flush writes out when there is more than this.
func (x *encoder) flush(over int) error {
	if len(x.buf) <= over {
		return nil
	}
	_, err := x.w.Write(x.buf)
	x.buf = x.buf[:0]
	return err
}

func (x *encoder) opening(f *freeze, names []string) error {
	x.buf = binary.AppendUvarint(x.buf, f.last)
	x.buf = binary.AppendUvarint(x.buf, uint64(len(names)))
	for _, name := range names {
		x.buf = appendText(x.buf, name)
	}
	x.buf = binary.AppendUvarint(x.buf, uint64(len(f.refused)))
	for _, r := range f.refused {
		x.buf = appendTime(binary.AppendUvarint(x.buf, r.seq), r.at)
		x.buf = binary.AppendUvarint(x.buf, uint64(len(r.prints)))
		for _, print := range r.prints {
			x.buf = binary.BigEndian.AppendUint64(x.buf, print)
		}
		if err := x.flush(pieceLen); err != nil {
			return err
		}
	}
	x.buf = binary.AppendUvarint(x.buf, uint64(len(f.strays)))
	for _, s := range f.strays {
		x.buf = binary.AppendUvarint(appendText(x.buf, s.JobID), s.Seq)
	}
	return x.flush(pieceLen)
}

func (x *encoder) block(records []record) error {
	x.head, x.ids, x.short, x.long = x.head[:0], x.ids[:0], x.short[:0], x.long[:0]
	for i := range records {
		x.job(&records[i])
	}
	for _, n := range [...]int{len(x.head), len(records), len(x.ids), len(x.short)} {
		x.buf = binary.AppendUvarint(x.buf, uint64(n))
	}
	x.buf = append(append(append(x.buf, x.head...), x.ids...), x.short...)
	for _, p := range x.long {
		if err := x.flush(pieceLen); err != nil {
			return err
		}
		x.buf, _ = p.AppendJSON(x.buf)
	}
	clear(x.long)
	return x.flush(pieceLen)
}

// job appends one to the block's head: the length of its id, first seq, newest seq, epoch, capability, states, attempts and
// steps, times, payloads, and what few have. Seqs and times are written as what they differ by.
func (x *encoder) job(r *record) {
	x.ids = append(x.ids, r.id...)
	h := binary.AppendUvarint(x.head, uint64(len(r.id)))
	h = binary.AppendUvarint(h, r.first-x.first)
	h = binary.AppendUvarint(h, r.seq-r.first)
	h = binary.AppendUvarint(h, r.epoch)
	h = binary.AppendUvarint(h, uint64(r.capability))
	x.first = r.first
	flags := uint64(r.state) | uint64(r.stateBefore())<<3
	if r.rollingBack() {
		flags |= isRollingBack
	}
	if r.more != nil {
		flags |= hasMore
	}
	attempts, steps := r.counts()
	if attempts|steps != 0 {
		flags |= hasCounts
	}
	for i, at := range r.times {
		flags |= timeKind(at) << (timesShift + 2*i)
	}
	h = binary.AppendUvarint(h, flags)
	if flags&hasCounts != 0 {
		h = binary.AppendUvarint(binary.AppendUvarint(h, uint64(attempts)), uint64(steps))
	}
	for _, at := range r.times {
		if timeKind(at) == timeNear {
			h = binary.AppendVarint(h, at-x.time)
			x.time = at
		}
	}
	x.head = h
	x.payload(r.args, r.first)
	x.payload(r.output, r.first)
	if r.more != nil {
		x.more(r)
	}
}

// Of the flags the lowest six bits are the states.
const (
	hasMore    = 1 << 6
	timesShift = 7 // two bits for each time
	hasCounts  = 1 << (timesShift + 2*5)

	isRollingBack = hasCounts << 1

	timeNone = 0
	timeNear = 1 // nanoseconds, behind the flags
	timeFar  = 2 // in more
)

func timeKind(at int64) uint64 {
	switch at {
	case noTime:
		return timeNone
	case farTime:
		return timeFar
	}
	return timeNear
}

// The lowest two bits of a payload's size.
const (
	payloadNone   = 0
	payloadHeld   = 1
	payloadUnheld = 2
)

func (x *encoder) payload(p statemachine.Payload, first uint64) {
	var held bool
	kind, size := payloadHeld, p.Size()
	if size > shortLen {
		if held = p.Held(); held {
			x.long = append(x.long, p)
		}
	} else {
		x.short, held = p.AppendJSON(x.short)
	}
	switch {
	case p.IsZero():
		x.head = append(x.head, payloadNone)
		return
	case !held:
		kind = payloadUnheld
	}
	x.head = binary.AppendUvarint(x.head, uint64(size)<<2|uint64(kind))
	x.head = binary.AppendVarint(x.head, int64(p.Seq()-first))
}

func (x *encoder) more(r *record) {
	m := r.more
	x.head = appendText(appendText(appendText(x.head, m.err), m.rollback), m.parked)
	x.head = binary.AppendUvarint(appendText(x.head, m.held), m.parkedSeq)
	x.payload(m.progress, r.first)
	for i, at := range r.times {
		if at == farTime {
			x.head = appendTime(x.head, m.far[i])
		}
	}
}
