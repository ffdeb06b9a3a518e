package projection

import (
	"fmt"
	"hash/maphash"
	"sync"

	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

const (
	slabLen   = 64         // records in a slab, as many as bits in a word
	none      = ^uint32(0) // no slot
	numStates = 7
)

// Jobs finds jobs by id, state, capability and time, and lists them in order: the table of all jobs that the log
// remembers. Beyond its payloads a finished job takes some 230 bytes of heap, with an id of 32; a failed or parked one
// 64 more and its reason. Use [NewJobs].
//
// One goroutine applies, by Fold or by Apply; all other methods may be called from any number of goroutines at any
// time, and see each event whole or not at all.
type Jobs struct {
	mu sync.RWMutex // guards the fields below; the applier, who alone writes them, reads them without

	// A job has a slot, numbered in the order of first events. Its record never moves: slabs are added, none grows.
	slabs []*[slabLen]record
	n     int
	ids   idIndex

	// Bit s%64 of word s/64 is for slot s, so that a listing meets the jobs it wants and passes over 64 others at once.
	inState [numStates][]uint64
	parked  []uint64
	counts  [numStates]int
	parks   int // how many are parked

	capabilities     []capability // numbered as they come
	capabilityByName map[string]uint32

	oldest, newest uint32 // ends of the list in the order of newest events
	last           uint64 // seq of the newest event that was applied

	stretchLen, gatherMax int // of listings; small in tests
}

type capability struct {
	name   string
	slots  []uint32 // of its jobs, ascending
	counts [numStates]int
}

// NewJobs returns a Jobs without a job in it.
func NewJobs() *Jobs {
	return &Jobs{
		ids:              idIndex{seed: maphash.MakeSeed()},
		capabilityByName: make(map[string]uint32),
		oldest:           none,
		newest:           none,
		stretchLen:       defaultStretch,
		gatherMax:        defaultGather,
	}
}

// Name implements [Projection]: "jobs".
func (j *Jobs) Name() string { return "jobs" }

// Fold applies the next event of the log to its job as Jobs has it, keeps what comes out, and returns it: Get,
// [statemachine.Job.Apply] and Apply in one, looking the id up once. An error is that of Job.Apply, by which the job is
// parked now; the event was applied all the same. It takes over e's slices.
//
// An event at or before one that was applied already changes nothing, and its error matches
// [statemachine.ErrMisdirected]. For events about the log itself Fold returns the zero Job.
func (j *Jobs) Fold(e wal.Event) (statemachine.Job, error) {
	if err := j.isNext(e); err != nil {
		return statemachine.Job{}, err
	}
	if e.JobID == "" {
		j.pass(e)
		return statemachine.Job{}, nil
	}
	var job statemachine.Job
	at := j.locate(e.JobID)
	if at.slot != none {
		job = j.job(j.record(at.slot))
	}
	job, err := job.Apply(e)
	j.store(at, &job, uint8(stateNumber(job.State)), uint8(stateNumber(job.Before)))
	return job, err
}

// Apply implements [Projection]: it keeps job, which must have been given from its first event on.
func (j *Jobs) Apply(e wal.Event, job statemachine.Job) error {
	if err := j.isNext(e); err != nil {
		return err
	}
	if e.JobID == "" {
		j.pass(e)
		return nil
	}
	at := j.locate(e.JobID)
	state, before := stateNumber(job.State), stateNumber(job.Before)
	switch {
	case job.ID != e.JobID || job.Seq != e.Seq || state < 0 || before < 0:
		return fmt.Errorf("projection: jobs: seq %d: job %q is not as it stands after this event", e.Seq, e.JobID)
	case at.slot == none && job.FirstSeq != e.Seq:
		return fmt.Errorf("projection: jobs: seq %d: job %q has earlier events, from seq %d", e.Seq, e.JobID, job.FirstSeq)
	}
	j.store(at, &job, uint8(state), uint8(before))
	return nil
}

func (j *Jobs) isNext(e wal.Event) error {
	if e.Seq > j.last {
		return nil
	}
	return fmt.Errorf("projection: jobs: seq %d after seq %d: %w", e.Seq, j.last, statemachine.ErrMisdirected)
}

// pass takes note of an event about the log itself.
func (j *Jobs) pass(e wal.Event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.last = e.Seq
}

// A location is where a job is, or where it is to go, as one look for its id found it.
type location struct {
	shard *shard
	tag   uint32
	slot  uint32 // none when the job is not there
}

func (j *Jobs) locate(id string) location {
	at := location{slot: none}
	at.shard, at.tag = j.ids.place(id)
	slot, ok := at.shard.find(at.tag, func(slot uint32) bool { return j.record(slot).id == id })
	if ok {
		at.slot = slot
	}
	return at
}

func (j *Jobs) record(slot uint32) *record { return &j.slabs[slot/slabLen][slot%slabLen] }

func (j *Jobs) job(r *record) statemachine.Job { return r.unpack(j.capabilities[r.capability].name) }

func (j *Jobs) store(at location, job *statemachine.Job, state, before uint8) {
	j.mu.Lock()
	defer j.mu.Unlock()
	slot := at.slot
	if slot == none {
		slot = j.addLocked(at, job)
	} else {
		j.file(slot, -1)
		j.unlink(slot)
	}
	j.record(slot).pack(job, state, before)
	j.file(slot, 1)
	j.link(slot)
	j.last = job.Seq
}

// addLocked gives the job the next slot, and a record with what will not change.
func (j *Jobs) addLocked(at location, job *statemachine.Job) uint32 {
	slot := uint32(j.n)
	if slot%slabLen == 0 {
		j.slabs = append(j.slabs, new([slabLen]record))
		j.parked = append(j.parked, 0)
		for s := range j.inState {
			j.inState[s] = append(j.inState[s], 0)
		}
	}
	j.n++
	at.shard.add(at.tag, slot)
	number := j.intern(job.Capability)
	j.capabilities[number].slots = append(j.capabilities[number].slots, slot)
	*j.record(slot) = record{id: job.ID, first: job.FirstSeq, capability: number}
	return slot
}

func (j *Jobs) intern(name string) uint32 {
	number, ok := j.capabilityByName[name]
	if !ok {
		number = uint32(len(j.capabilities))
		j.capabilities = append(j.capabilities, capability{name: name})
		j.capabilityByName[name] = number
	}
	return number
}

// file puts the job into the sets that it belongs to as its record is now, by +1, or takes it out of them, by -1.
func (j *Jobs) file(slot uint32, by int) {
	r := j.record(slot)
	word, bit := slot/64, uint64(1)<<(slot%64)
	j.inState[r.state][word] ^= bit
	j.counts[r.state] += by
	j.capabilities[r.capability].counts[r.state] += by
	if r.parked() {
		j.parked[word] ^= bit
		j.parks += by
	}
}

// link makes the job the newest.
func (j *Jobs) link(slot uint32) {
	r := j.record(slot)
	r.older, r.newer = j.newest, none
	if j.newest == none {
		j.oldest = slot
	} else {
		j.record(j.newest).newer = slot
	}
	j.newest = slot
}

func (j *Jobs) unlink(slot uint32) {
	r := j.record(slot)
	if r.older == none {
		j.oldest = r.newer
	} else {
		j.record(r.older).newer = r.newer
	}
	if r.newer == none {
		j.newest = r.older
	} else {
		j.record(r.newer).older = r.older
	}
}

// Get returns the job with this id.
func (j *Jobs) Get(id string) (statemachine.Job, bool) {
	j.mu.RLock()
	defer j.mu.RUnlock()
	at := j.locate(id)
	if at.slot == none {
		return statemachine.Job{}, false
	}
	return j.job(j.record(at.slot)), true
}

// Len is the number of all jobs.
func (j *Jobs) Len() int {
	j.mu.RLock()
	defer j.mu.RUnlock()
	return j.n
}
