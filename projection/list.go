package projection

import (
	"cmp"
	"iter"
	"math"
	"math/bits"
	"slices"

	"github.com/jobwal/jobwal/statemachine"
)

const (
	// defaultStretch is how many jobs a listing looks at before it lets the applier in between.
	defaultStretch = 1024
	// batchLen is how many jobs List takes out of the lock at once.
	batchLen = 128
	// defaultGather: so many candidates are sorted by update sooner than found on the way along all jobs.
	defaultGather = 1024
	// listsMax: with more capabilities than this, their lists are not merged.
	listsMax = 16
)

// List yields the jobs that satisfy q, each as it is at some moment of the iteration: what changes meanwhile is as
// [Cursor] says, except that jobs whose place lies behind the end as it was when the iteration began are left out, so
// that it ends. No lock is held while yielding.
//
// List panics if q is not valid, since nothing that it could yield would say so: see [Query.Validate], and [Jobs.Page],
// which returns the error.
func (j *Jobs) List(q Query) iter.Seq[statemachine.Job] {
	if err := q.Validate(); err != nil {
		panic(err)
	}
	return func(yield func(statemachine.Job) bool) {
		left := q.Limit
		if left == 0 {
			left = math.MaxInt
		}
		w := walk{q: &q, at: q.After, until: j.applied()}
		batch := make([]statemachine.Job, 0, min(batchLen, left))
		for left > 0 && !w.done {
			batch = batch[:0]
			j.stretch(&w, min(batchLen, left), func(r *record) { batch = append(batch, j.job(r)) })
			left -= len(batch)
			for _, job := range batch {
				if !yield(job) {
					return
				}
			}
		}
	}
}

// Page returns the next jobs that satisfy q, at most Limit of them, and the cursor to go on with: the zero Cursor when
// there are no more. The error is a *[QueryError].
func (j *Jobs) Page(q Query) (jobs []statemachine.Job, next Cursor, err error) {
	if err := q.Validate(); err != nil {
		return nil, Cursor{}, err
	}
	limit := q.Limit
	if limit == 0 {
		limit = DefaultPage
	}
	w := walk{q: &q, at: q.After, until: math.MaxUint64}
	for len(jobs) < limit && !w.done {
		j.stretch(&w, limit-len(jobs), func(r *record) { jobs = append(jobs, j.job(r)) })
	}
	next = w.at
	more := false
	for !more && !w.done {
		j.stretch(&w, 1, func(*record) { more = true })
	}
	if !more {
		next = Cursor{}
	}
	return jobs, next, nil
}

// Count returns how many jobs satisfy q, whatever its Order, Limit and After. By state and capability it costs nothing;
// with Parked, Held, RollingBack, Since or Until it looks at every job that may satisfy it. The error is a *[QueryError].
func (j *Jobs) Count(q Query) (int, error) {
	q.Order, q.Descending, q.Limit, q.After = BySubmission, false, 0, Cursor{}
	if err := q.Validate(); err != nil {
		return 0, err
	}
	if q.Parked == nil && q.Held == nil && q.RollingBack == nil && !q.wantsTime() {
		return j.countFiled(&q), nil
	}
	count := 0
	w := walk{q: &q, until: j.applied()}
	for !w.done {
		j.stretch(&w, math.MaxInt, func(*record) { count++ })
	}
	return count, nil
}

func (j *Jobs) countFiled(q *Query) int {
	j.mu.RLock()
	defer j.mu.RUnlock()
	total := 0
	for _, s := range wantedStates(q) {
		if len(q.Capabilities) == 0 {
			total += j.counts[s]
		}
		for _, c := range j.wantedCapabilities(q) {
			total += j.capabilities[c].counts[s]
		}
	}
	return total
}

func (j *Jobs) applied() uint64 {
	j.mu.RLock()
	defer j.mu.RUnlock()
	return j.last
}

// wantedStates returns the numbers of the states that q lets through.
func wantedStates(q *Query) []uint8 {
	var wanted []uint8
	for s, state := range states {
		if len(q.States) == 0 || slices.Contains(q.States, state) {
			wanted = append(wanted, uint8(s))
		}
	}
	return wanted
}

// wantedCapabilities returns the numbers of those that q names, as far as there are jobs of them.
func (j *Jobs) wantedCapabilities(q *Query) []uint32 {
	var wanted []uint32
	for _, name := range q.Capabilities {
		if c, ok := j.capabilityByName[name]; ok {
			wanted = append(wanted, c)
		}
	}
	slices.Sort(wanted)
	return slices.Compact(wanted)
}

// A walk is a listing on its way. It goes in stretches, each under the lock; between them jobs may come and change, so
// it knows its place by seq, and the slot only as a hint.
type walk struct {
	q     *Query
	at    Cursor // the last job that was looked at
	until uint64 // nothing beyond this seq
	done  bool
}

// stretch goes on with the walk: it visits at most room jobs that satisfy the query, and looks at no more than
// stretchLen, or gatherMax, of all.
func (j *Jobs) stretch(w *walk, room int, visit func(*record)) {
	j.mu.RLock()
	defer j.mu.RUnlock()
	c := j.candidatesFor(w.q)
	switch {
	case w.q.Order == BySubmission:
		j.alongSlots(w, &c, room, visit)
	case c.count <= j.gatherMax:
		j.gather(w, &c, room, visit)
	default:
		j.alongUpdates(w, &c, room, visit)
	}
}

func (j *Jobs) alongSlots(w *walk, c *candidates, room int, visit func(*record)) {
	slot, step := j.firstSlot(w), 1
	if w.q.Descending {
		step = -1
	}
	for range j.stretchLen {
		if slot = c.next(slot, step); slot < 0 || j.record(uint32(slot)).first > w.until {
			w.done = true
			return
		}
		r := j.record(uint32(slot))
		w.moveTo(r.first, uint32(slot))
		slot += step
		if c.match(r) {
			visit(r)
			if room--; room == 0 {
				return
			}
		}
	}
}

// firstSlot is where the walk goes on. Slots are in the order of first seqs.
func (j *Jobs) firstSlot(w *walk) int {
	switch {
	case !w.q.Descending:
		return j.firstWhere(func(first uint64) bool { return first > w.at.seq })
	case w.at.IsZero():
		return j.n - 1
	}
	return j.firstWhere(func(first uint64) bool { return first >= w.at.seq }) - 1
}

func (w *walk) moveTo(seq uint64, slot uint32) {
	w.at = Cursor{seq: seq, slot: slot, order: w.q.Order, descending: w.q.Descending}
}

// gather sorts the few jobs that are left of a walk by update.
func (j *Jobs) gather(w *walk, c *candidates, room int, visit func(*record)) {
	var found []uint32
	for slot := c.next(0, 1); slot >= 0; slot = c.next(slot+1, 1) {
		r := j.record(uint32(slot))
		ahead := r.seq > w.at.seq && r.seq <= w.until
		if w.q.Descending {
			ahead = w.at.IsZero() || r.seq < w.at.seq
		}
		if ahead && c.match(r) {
			found = append(found, uint32(slot))
		}
	}
	slices.SortFunc(found, func(a, b uint32) int { return cmp.Compare(j.record(a).seq, j.record(b).seq) })
	if w.q.Descending {
		slices.Reverse(found)
	}
	w.done = len(found) <= room
	for _, slot := range found[:min(room, len(found))] {
		visit(j.record(slot))
		w.moveTo(j.record(slot).seq, slot)
	}
}

func (j *Jobs) alongUpdates(w *walk, c *candidates, room int, visit func(*record)) {
	slot := j.firstUpdate(w)
	for range j.stretchLen {
		if slot == none || j.record(slot).seq > w.until && !w.q.Descending {
			w.done = true
			return
		}
		r := j.record(slot)
		w.moveTo(r.seq, slot)
		slot = r.newer
		if w.q.Descending {
			slot = r.older
		}
		if c.match(r) {
			visit(r)
			if room--; room == 0 {
				return
			}
		}
	}
}

// firstUpdate is where the walk goes on. The job it came to last still shows the way, unless it has moved since.
func (j *Jobs) firstUpdate(w *walk) uint32 {
	switch hint := w.at.slot; {
	case w.at.IsZero() && w.q.Descending:
		return j.newest
	case w.at.IsZero():
		return j.oldest
	case j.at(hint, w.at.seq) && w.q.Descending:
		return j.record(hint).older
	case j.at(hint, w.at.seq):
		return j.record(hint).newer
	case w.q.Descending:
		older, _ := j.around(w.at.seq - 1)
		return older
	}
	_, newer := j.around(w.at.seq)
	return newer
}

// around returns the neighbours in order of update between which seq lies: the last at or before it, and the first
// behind it. It comes from both ends at once, so its cost is the distance to the nearer.
func (j *Jobs) around(seq uint64) (older, newer uint32) {
	older, newer = none, j.oldest
	for up, down := j.oldest, j.newest; up != none && down != none; {
		u, d := j.record(up), j.record(down)
		switch {
		case u.seq > seq:
			return u.older, up
		case d.seq <= seq:
			return down, d.newer
		}
		up, down = u.newer, d.older
	}
	return older, newer
}

// candidates are jobs among which all those are that satisfy a query: those with the right states, or with the right
// capabilities, whichever are fewer.
type candidates struct {
	q            *Query
	jobs         *Jobs
	states       []uint8
	capabilities []uint32
	byCapability bool
	count        int // at most so many
}

func (j *Jobs) candidatesFor(q *Query) candidates {
	c := candidates{q: q, jobs: j, states: wantedStates(q), capabilities: j.wantedCapabilities(q)}
	for _, s := range c.states {
		c.count += j.counts[s]
	}
	if q.Parked != nil && *q.Parked {
		c.count = min(c.count, j.parks)
	}
	if q.Held != nil && *q.Held {
		c.count = min(c.count, j.holds)
	}
	if q.RollingBack != nil && *q.RollingBack {
		c.count = min(c.count, j.rolls)
	}
	listed := 0
	for _, n := range c.capabilities {
		listed += len(j.capabilities[n].slots)
	}
	if len(q.Capabilities) > 0 && len(c.capabilities) <= listsMax && listed < c.count {
		c.byCapability, c.count = true, listed
	}
	return c
}

func (c *candidates) match(r *record) bool {
	return slices.Contains(c.states, r.state) &&
		(len(c.q.Capabilities) == 0 || slices.Contains(c.capabilities, r.capability)) &&
		(c.q.Parked == nil || *c.q.Parked == r.parked()) &&
		(c.q.Held == nil || *c.q.Held == r.held()) &&
		(c.q.RollingBack == nil || *c.q.RollingBack == r.rollingBack()) &&
		(!c.q.wantsTime() || c.q.inTime(r.time(0)))
}

// next returns the first candidate at slot or, by step 1 or -1, beyond; -1 when there is none.
func (c *candidates) next(slot, step int) int {
	switch {
	case slot < 0 || slot >= c.jobs.n:
		return -1
	case c.byCapability && step > 0:
		return c.nextListed(uint32(slot))
	case c.byCapability:
		return c.previousListed(uint32(slot))
	case step > 0:
		return c.nextBit(slot)
	}
	return c.previousBit(slot)
}

func (c *candidates) nextListed(slot uint32) int {
	best := -1
	for _, n := range c.capabilities {
		slots := c.jobs.capabilities[n].slots
		i, _ := slices.BinarySearch(slots, slot)
		for i < len(slots) && !c.jobs.alive(slots[i]) {
			i++
		}
		if i < len(slots) && (best < 0 || int(slots[i]) < best) {
			best = int(slots[i])
		}
	}
	return best
}

func (c *candidates) previousListed(slot uint32) int {
	best := -1
	for _, n := range c.capabilities {
		slots := c.jobs.capabilities[n].slots
		i, found := slices.BinarySearch(slots, slot)
		if !found {
			i--
		}
		for i >= 0 && !c.jobs.alive(slots[i]) {
			i--
		}
		if i >= 0 {
			best = max(best, int(slots[i]))
		}
	}
	return best
}

func (c *candidates) nextBit(slot int) int {
	slabs, base := c.jobs.slabs, c.jobs.base
	slot = max(slot, base*slabLen)
	i := slot/slabLen - base
	if i >= len(slabs) {
		return -1
	}
	word := c.word(&slabs[i]) >> (slot % slabLen) << (slot % slabLen)
	for word == 0 {
		if i++; i == len(slabs) {
			return -1
		}
		word = c.word(&slabs[i])
	}
	return (base+i)*slabLen + bits.TrailingZeros64(word)
}

func (c *candidates) previousBit(slot int) int {
	slabs, base := c.jobs.slabs, c.jobs.base
	i, above := slot/slabLen-base, slabLen-1-slot%slabLen
	if i < 0 || i >= len(slabs) {
		return -1
	}
	word := c.word(&slabs[i]) << above >> above
	for word == 0 {
		if i--; i < 0 {
			return -1
		}
		word = c.word(&slabs[i])
	}
	return (base+i)*slabLen + bits.Len64(word) - 1
}

// word has the bits of those in s that are candidates.
func (c *candidates) word(s *slab) uint64 {
	var word uint64
	for _, state := range c.states {
		word |= s.inState[state]
	}
	word = only(c.q.RollingBack, s.rolling, word)
	return only(c.q.Held, s.held, only(c.q.Parked, s.parked, word))
}

// only leaves of word what is in the set, or what is not, as it is wanted; all where that does not matter.
func only(wanted *bool, set, word uint64) uint64 {
	switch {
	case wanted == nil:
		return word
	case *wanted:
		return word & set
	}
	return word &^ set
}
