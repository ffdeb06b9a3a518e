package projection

import (
	"hash/maphash"
	"math"
	"math/bits"
	"slices"
	"sort"

	"github.com/jobwal/jobwal/statemachine"
)

const (
	slabLen   = 64         // records in a slab, as many as bits in a word
	none      = ^uint32(0) // no slot
	numStates = 7
)

// A table is what Jobs holds, apart from its lock.
//
// A job has a slot, numbered in the order of first events. Its record stays where it is: slabs are added and freed,
// none grows. A slot is not given again when its job is forgotten: that leaves a hole, in a slab or, once all jobs of
// a slab are gone, as long as a slab.
type table struct {
	slabs []slab // number base and those behind it
	base  int    // slabs before this number are gone without a trace
	n     int    // slots that were given, those of forgotten jobs included
	live  int    // jobs
	held  int    // slabs with records
	ids   idIndex

	counts [numStates]int
	parks  int // how many are parked
	holds  int // how many are held
	rolls  int // how many are being rolled back

	capabilities     []capability // numbered as they come
	capabilityByName map[string]uint32

	oldest, newest uint32 // ends of the list in the order of newest events
	last           uint64 // seq of the newest event that was applied

	refused refusals
	strays  map[string]uint64 // seq of the newest event of each that was passed over

	frozen []*freeze // snapshots to be saved, the oldest first; maxFrozen at most
}

// A slab has the records of 64 slots. Bit i of a word is for its record i, so that a listing meets the jobs it wants
// and passes over 64 others at once. These words lie together with those of the next slab.
type slab struct {
	records *[slabLen]record // nil when all are gone
	first   uint64           // first seq of record 0, which may be gone
	inState [numStates]uint64
	parked  uint64
	held    uint64
	rolling uint64
}

// live has the bits of those that are there: each is in one state.
func (s *slab) live() uint64 {
	var live uint64
	for _, word := range s.inState {
		live |= word
	}
	return live
}

type capability struct {
	name   string
	slots  []uint32 // of its jobs, ascending; some of them may be gone, but not the first
	gone   int      // how many are, of those that the slots' array has held
	counts [numStates]int
}

func (c *capability) live() int {
	n := 0
	for _, count := range c.counts {
		n += count
	}
	return n
}

func newTable() table {
	return table{
		ids:              idIndex{seed: maphash.MakeSeed()},
		capabilityByName: make(map[string]uint32),
		oldest:           none,
		newest:           none,
	}
}

// slab returns the one with this number; nil when it is gone without a trace, or not there yet.
func (t *table) slab(number int) *slab {
	if i := number - t.base; i >= 0 && i < len(t.slabs) {
		return &t.slabs[i]
	}
	return nil
}

// record returns that of a job which is there.
func (t *table) record(slot uint32) *record {
	return &t.slabs[int(slot/slabLen)-t.base].records[slot%slabLen]
}

// at tells whether the job in this slot, if there is one, has its newest event at seq.
func (t *table) at(slot uint32, seq uint64) bool { return t.alive(slot) && t.record(slot).seq == seq }

func (t *table) alive(slot uint32) bool {
	s := t.slab(int(slot / slabLen))
	return s != nil && s.live()>>(slot%slabLen)&1 == 1
}

func (t *table) job(r *record) statemachine.Job { return r.unpack(t.capabilities[r.capability].name) }

// A location is where a job is, or where it is to go, as one look for its id found it.
type location struct {
	shard *shard
	tag   uint32
	slot  uint32 // none when the job is not there
}

func (t *table) locate(id string) location {
	at := location{slot: none}
	at.shard, at.tag = t.ids.place(id)
	slot, ok := at.shard.find(at.tag, func(slot uint32) bool { return t.record(slot).id == id })
	if ok {
		at.slot = slot
	}
	return at
}

// add gives the job the next slot, and a record with what will not change.
func (t *table) add(at location, id, capability string, first uint64) uint32 {
	slot := uint32(t.n)
	if slot%slabLen == 0 {
		t.slabs = append(t.slabs, slab{records: new([slabLen]record), first: first})
		t.held++
	}
	t.n++
	t.live++
	at.shard.add(at.tag, slot)
	number := t.intern(capability)
	t.capabilities[number].slots = append(t.capabilities[number].slots, slot)
	*t.record(slot) = record{id: id, first: first, capability: number}
	return slot
}

func (t *table) intern(name string) uint32 {
	number, ok := t.capabilityByName[name]
	if !ok {
		number = uint32(len(t.capabilities))
		t.capabilities = append(t.capabilities, capability{name: name})
		t.capabilityByName[name] = number
	}
	return number
}

// file puts the job into the sets that it belongs to as its record is now, by +1, or takes it out of them, by -1.
func (t *table) file(slot uint32, by int) {
	r, s, bit := t.record(slot), t.slab(int(slot/slabLen)), uint64(1)<<(slot%slabLen)
	s.inState[r.state] ^= bit
	t.counts[r.state] += by
	t.capabilities[r.capability].counts[r.state] += by
	if r.parked() {
		s.parked ^= bit
		t.parks += by
	}
	if r.held() {
		s.held ^= bit
		t.holds += by
	}
	if r.rollingBack() {
		s.rolling ^= bit
		t.rolls += by
	}
}

// link makes the job the newest.
func (t *table) link(slot uint32) {
	r := t.record(slot)
	r.older, r.newer = t.newest, none
	if t.newest == none {
		t.oldest = slot
	} else {
		t.record(t.newest).newer = slot
	}
	t.newest = slot
}

func (t *table) unlink(slot uint32) {
	r := t.record(slot)
	if r.older == none {
		t.oldest = r.newer
	} else {
		t.record(r.older).newer = r.newer
	}
	if r.newer == none {
		t.newest = r.older
	} else {
		t.record(r.newer).older = r.older
	}
}

// remove forgets the job. Of its record only the first seq stays, by which slots are searched.
func (t *table) remove(at location) {
	r, slot := t.record(at.slot), at.slot
	t.file(slot, -1)
	t.unlink(slot)
	at.shard.remove(at.tag, slot)
	number := r.capability
	*r = record{first: r.first}
	t.live--
	t.release(int(slot / slabLen))
	t.strike(&t.capabilities[number])
}

// release frees the slab if nothing of it is left or to come, and the front of the table as far as it is free.
func (t *table) release(number int) {
	s := t.slab(number)
	if s.live() != 0 || (number+1)*slabLen > t.n {
		return
	}
	s.records = nil
	t.held--
	for len(t.slabs) > 0 && t.slabs[0].records == nil {
		t.slabs = t.slabs[1:]
		t.base++
	}
}

// strike takes note of a slot less. The list is made anew when half of what it holds is gone, and never begins with
// what is gone, so that a listing has little to pass over.
func (t *table) strike(c *capability) {
	for len(c.slots) > 0 && !t.alive(c.slots[0]) {
		c.slots = c.slots[1:]
	}
	c.gone++
	if c.gone <= c.live()+32 {
		return
	}
	kept := make([]uint32, 0, c.live())
	for _, slot := range c.slots {
		if t.alive(slot) {
			kept = append(kept, slot)
		}
	}
	c.slots, c.gone = kept, 0
}

// firstWhere returns the first slot whose first seq is beyond something: beyond is false up to some seq, then true. A
// slab that is gone counts as not beyond if its first record was not.
func (t *table) firstWhere(beyond func(first uint64) bool) int {
	i := sort.Search(len(t.slabs), func(i int) bool { return beyond(t.slabs[i].first) })
	from := (t.base + i) * slabLen
	if i == 0 {
		return from
	}
	records := t.slabs[i-1].records
	if records == nil {
		return from
	}
	from -= slabLen
	return from + sort.Search(min(slabLen, t.n-from), func(i int) bool { return beyond(records[i].first) })
}

// limits say when a table with holes is renumbered; small in tests.
type limits struct {
	slots int // at so many, before their numbers end
	slabs int // at so many, if an eighth of them at most has records
	slack int // at so many records more than four times those that are needed
}

var defaultLimits = limits{slots: math.MaxInt32, slabs: 1 << 14, slack: 1 << 14}

// hollow tells whether holes take more than the jobs do, so that renumbering costs less than what was forgotten since
// it was last done.
func (t *table) hollow(l limits) bool {
	return len(t.slabs) >= l.slabs && 8*t.held <= len(t.slabs) || slabLen*t.held > 4*t.live+l.slack
}

// renumber moves the jobs, in their order, into as few slabs as they need. Only slots change, which are nowhere known
// but in a [Cursor], where they are a hint.
func (t *table) renumber() {
	old, base := t.slabs, t.base
	before := make([]uint32, len(old)) // jobs in slabs before this one
	for i := 1; i < len(old); i++ {
		before[i] = before[i-1] + uint32(bits.OnesCount64(old[i-1].live()))
	}
	moved := func(slot uint32) uint32 {
		if slot == none {
			return none
		}
		i := int(slot/slabLen) - base
		return before[i] + uint32(bits.OnesCount64(old[i].live()&(1<<(slot%slabLen)-1)))
	}
	for i := range t.capabilities {
		c := &t.capabilities[i]
		c.slots = slices.DeleteFunc(slices.Clone(c.slots), func(slot uint32) bool { return !t.alive(slot) })
		for k, slot := range c.slots {
			c.slots[k] = moved(slot)
		}
		c.gone = 0
	}
	t.ids.renumber(moved)
	t.oldest, t.newest = moved(t.oldest), moved(t.newest)
	t.base, t.n, t.held, t.slabs = 0, 0, 0, make([]slab, 0, t.live/slabLen+1)
	for i := range old {
		for live := old[i].live(); live != 0; live &= live - 1 {
			b := bits.TrailingZeros64(live)
			t.take(&old[i], b)
			r := t.record(uint32(t.n - 1))
			r.older, r.newer = moved(r.older), moved(r.newer)
		}
		old[i].records = nil // not both tables at once
	}
}

// take gives record b of another table's slab the next slot.
func (t *table) take(from *slab, b int) {
	if t.n%slabLen == 0 {
		t.slabs = append(t.slabs, slab{records: new([slabLen]record), first: from.records[b].first})
		t.held++
	}
	into, bit := &t.slabs[t.n/slabLen], uint64(1)<<(t.n%slabLen)
	into.records[t.n%slabLen] = from.records[b]
	for s := range from.inState {
		if from.inState[s]>>b&1 == 1 {
			into.inState[s] |= bit
		}
	}
	if from.parked>>b&1 == 1 {
		into.parked |= bit
	}
	if from.held>>b&1 == 1 {
		into.held |= bit
	}
	if from.rolling>>b&1 == 1 {
		into.rolling |= bit
	}
	t.n++
}
