package wal

import (
	"errors"
	"fmt"
	"slices"
	"sync"
)

// A request is one append, or something else that only the committer may do.
type request struct {
	events []Event
	bodies []byte // of the events, one after the other
	ends   []int  // where each ends in bodies
	links  []int  // for each event the index of its job's previous one in this group, or -1
	reach  uint64 // the highest Prev of those without a link
	task   func() error
	final  bool // the task of Close, which runs on a closed or failed log too
	first  uint64
	err    error
	gate   sync.WaitGroup // opened when it is done, or its caller is to lead
	leads  bool           // set before the gate is opened
	size   int64          // the most that it takes in the log

	json jsonScanner // the memory that it checks payloads with
}

func newTask(run func() error) *request { return &request{task: run} }

// requests are those that were appends, for the next ones.
var requests = sync.Pool{New: func() any { return new(request) }}

// free leaves a request that is done, or was never queued, to the next append. The committer has let go of it, and the log
// keeps copies of its events, which share their payloads.
func (r *request) free() {
	if cap(r.bodies) > maxBatch || cap(r.events) > 4096 || cap(r.json.names) > 1024 {
		return // the next may be a small one
	}
	clear(r.events)
	r.json.src = nil
	r.reach, r.first, r.err, r.leads, r.size = 0, 0, nil, false, 0
	requests.Put(r)
}

// prepare checks and encodes events in the caller's own goroutine.
func (l *Log) prepare(events []Event) (*request, error) {
	r, err := l.opts.prepare(events)
	if err != nil {
		return nil, err
	}
	r.link()
	return r, nil
}

// prepare does as much as can be done without knowing the log.
func (o *Options) prepare(events []Event) (*request, error) {
	if len(events) == 0 {
		return nil, invalid("events", "none")
	}
	if len(events) > maxGroup {
		return nil, &TooLargeError{What: "append: number of events", Size: int64(len(events)), Limit: maxGroup}
	}
	n := len(events)
	r := requests.Get().(*request)
	r.events, r.ends, r.links = slices.Grow(r.events[:0], n)[:n], slices.Grow(r.ends[:0], n)[:n], slices.Grow(r.links[:0], n)[:n]
	r.bodies = slices.Grow(r.bodies[:0], roomFor(events))
	d := door{json: &r.json}
	if len(events) > 1 {
		d.slab = slabFor(events)
	}
	for i := range events {
		if err := o.prepareOne(r, i, events[i], &d); err != nil {
			return nil, inGroup(err, i, len(events))
		}
	}
	if r.size = int64(len(r.bodies) + maxEnvelope*len(r.events)); r.size > MaxLineBytes {
		return nil, &TooLargeError{What: "append", Size: r.size, Limit: MaxLineBytes}
	}
	return r, nil
}

// slabFor is a slab that begins with no more room than the events' payloads take: the window holds on to all of it.
func slabFor(events []Event) slab {
	s, size := slab{size: slabSize}, 0
	for i := 0; i < len(events) && size < slabSize; i++ {
		size += s.takes(events[i].Args) + s.takes(events[i].Output)
	}
	s.free = make([]byte, min(size, slabSize))
	return s
}

// roomFor is about what the events' bodies take, so that the buffer grows once at most. What is far too large is refused
// before it is all encoded.
func roomFor(events []Event) (size int) {
	for i := range events {
		e := &events[i]
		size += 128 + len(e.JobID) + len(e.Capability) + len(e.Args) + len(e.Output) + len(e.Error)
	}
	return min(size, maxBatch)
}

// checkPrev refuses a Prev that the log has not reached. Those within the group are set by Append, whatever was given.
func (r *request) checkPrev(last uint64) error {
	for i, e := range r.events {
		if r.links[i] < 0 && e.Prev > last {
			return inGroup(invalid("Prev", "%d; the log ends at seq %d", e.Prev, last), i, len(r.events))
		}
	}
	return nil
}

func (o *Options) prepareOne(r *request, i int, given Event, d *door) error {
	e, err := d.check(given, o.Now)
	if err != nil {
		return err
	}
	before := len(r.bodies)
	r.bodies = appendBody(r.bodies, &e)
	if size := len(r.bodies) - before + maxEnvelope; size > o.MaxEventBytes {
		return &TooLargeError{What: "event", Size: int64(size), Limit: int64(o.MaxEventBytes)}
	}
	r.events[i], r.ends[i] = e, len(r.bodies)
	return nil
}

// inGroup says which event of several was refused.
func inGroup(err error, i, n int) error {
	var bad *InvalidError
	var large *TooLargeError
	switch {
	case n == 1:
	case errors.As(err, &bad):
		return invalid(fmt.Sprintf("event %d %s", i, bad.Field), "%s", bad.Reason)
	case errors.As(err, &large):
		large.What = fmt.Sprintf("event %d", i)
	}
	return err
}

// link finds, for each event, its job's previous one in the same group.
func (r *request) link() {
	if len(r.events) == 1 {
		r.links[0], r.reach = -1, r.events[0].Prev
		return
	}
	before := make(map[string]int, len(r.events))
	for i := range r.events {
		e := &r.events[i]
		if j, ok := before[e.JobID]; ok && e.JobID != "" {
			r.links[i] = j
		} else {
			r.links[i], r.reach = -1, max(r.reach, e.Prev)
		}
		before[e.JobID] = i
	}
}

// wait returns when the request is done (false), or its caller is to lead (true).
func (r *request) wait() (lead bool) {
	r.gate.Wait()
	return r.leads
}

func (r *request) open(lead bool) {
	r.leads = lead
	r.gate.Done()
}
