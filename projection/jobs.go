package projection

import (
	"fmt"
	"sync"

	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// Jobs finds jobs by id, state, capability and time, and lists them in order: the table of all jobs that the log
// remembers. Beyond its payloads a finished job takes some 230 bytes of heap, with an id of 32; a failed, held or parked one,
// and one that says how far it is, 128 more and what it says. Of a forgotten job nothing stays but the fingerprint of its id, some 24 bytes, for as long as
// the log says: see [Jobs.Refuses]. Use [NewJobs] or [NewJobsWith].
//
// One goroutine applies, by Fold, Forget or Apply, and calls Snapshot; all other methods may be called from any number
// of goroutines at any time, and see each event whole or not at all.
type Jobs struct {
	mu    sync.RWMutex // guards the table; the applier, who alone writes it, reads it without
	table              // see there
	opts  JobsOptions

	stretchLen, gatherMax int // of listings; small in tests
	limits                limits
}

// JobsOptions are those of [NewJobsWith].
type JobsOptions struct {
	// HoldBytes: args, outputs and progress of more bytes than this are not held in memory: [statemachine.Payload] knows their
	// place and size. 0, the default: all are held. Negative: none.
	HoldBytes int
	// Floor: events of forgotten jobs may be missing from the log below this seq, since the log was compacted. What is
	// left of such a job above it is passed over: see [Jobs.Strays]. 0, the default: the log is whole, and an event
	// whose job's earlier ones are missing parks its job.
	Floor uint64
	// Lost are jobs whose events are not passed over all the same: they were not forgotten, the log has lost their
	// beginning, and what is left parks them. If an event forgets such a job after all, as where another had the id before, that
	// was a rest to be passed over, and goes. Default: none.
	Lost map[string]bool
}

// NewJobs returns a Jobs without a job in it, with the default options.
func NewJobs() *Jobs { return NewJobsWith(JobsOptions{}) }

// NewJobsWith returns a Jobs without a job in it.
func NewJobsWith(opts JobsOptions) *Jobs {
	return &Jobs{
		table:      newTable(),
		opts:       opts,
		stretchLen: defaultStretch,
		gatherMax:  defaultGather,
		limits:     defaultLimits,
	}
}

// Name implements [Projection]: "jobs".
func (j *Jobs) Name() string { return "jobs" }

// Fold applies the next event of the log to its job as Jobs has it, keeps what comes out, and returns it: Get,
// [statemachine.Job.Apply] and Apply in one, looking the id up once. Payloads that are not to be held are let go in both.
// An error is that of Job.Apply, by which the job is parked now; the event was applied all the same. It takes over e's
// slices.
//
// An event at or before one that was applied already changes nothing, and its error matches
// [statemachine.ErrMisdirected]. For events about the log itself Fold returns the zero Job; those of type jobs_forgotten
// it folds as Forget does. For events that are passed over, see [Jobs.Strays], it returns the zero Job and nil.
func (j *Jobs) Fold(e wal.Event) (statemachine.Job, error) {
	if err := j.isNext(e); err != nil {
		return statemachine.Job{}, err
	}
	if e.JobID == "" {
		return statemachine.Job{}, j.foldLog(e)
	}
	var job statemachine.Job
	at := j.locate(e.JobID)
	switch {
	case at.slot != none:
		job = j.job(j.record(at.slot))
	case j.isStray(&e):
		j.passStray(&e)
		return statemachine.Job{}, nil
	}
	job, err := job.Apply(e)
	j.shed(&job)
	j.store(at, &job, uint8(stateNumber(job.State)), uint8(stateNumber(job.Before)))
	return job, err
}

// Apply implements [Projection]: it keeps job, which must have been given from its first event on. A jobs_forgotten event
// it folds as Forget does, but that one which can't be read is no error here: it forgets nothing, and all others go on.
func (j *Jobs) Apply(e wal.Event, job statemachine.Job) error {
	if err := j.isNext(e); err != nil {
		return err
	}
	if e.JobID == "" {
		_ = j.foldLog(e)
		return nil
	}
	at := j.locate(e.JobID)
	if at.slot == none && job.ID == "" && j.isStray(&e) {
		j.passStray(&e)
		return nil
	}
	state, before := stateNumber(job.State), stateNumber(job.Before)
	switch {
	case job.ID != e.JobID || job.Seq != e.Seq || state < 0 || before < 0:
		return fmt.Errorf("projection: jobs: seq %d: job %q is not as it stands after this event", e.Seq, e.JobID)
	case at.slot == none && job.FirstSeq != e.Seq:
		return fmt.Errorf("projection: jobs: seq %d: job %q has earlier events, from seq %d", e.Seq, e.JobID, job.FirstSeq)
	}
	j.shed(&job)
	j.store(at, &job, uint8(state), uint8(before))
	return nil
}

func (j *Jobs) isNext(e wal.Event) error {
	if e.Seq > j.last {
		return nil
	}
	return fmt.Errorf("projection: jobs: seq %d after seq %d: %w", e.Seq, j.last, statemachine.ErrMisdirected)
}

// shed lets go of the payloads that are not to be held.
func (j *Jobs) shed(job *statemachine.Job) {
	if j.opts.HoldBytes != 0 {
		limit := max(0, j.opts.HoldBytes)
		job.Args, job.Output, job.Progress = job.Args.Shed(limit), job.Output.Shed(limit), job.Progress.Shed(limit)
	}
}

// foldLog folds an event about the log itself.
func (j *Jobs) foldLog(e wal.Event) error {
	if e.Type == wal.JobsForgotten {
		_, err := j.Forget(e)
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.last = e.Seq
	return nil
}

func (j *Jobs) store(at location, job *statemachine.Job, state, before uint8) {
	j.mu.Lock()
	defer j.mu.Unlock()
	slot := at.slot
	if slot == none {
		slot = j.add(at, job.ID, job.Capability, job.FirstSeq)
	} else {
		j.putAside(slot)
		j.file(slot, -1)
		j.unlink(slot)
	}
	j.record(slot).pack(job, state, before)
	j.file(slot, 1)
	j.link(slot)
	j.last = job.Seq
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

// Len is the number of all jobs that are there.
func (j *Jobs) Len() int {
	j.mu.RLock()
	defer j.mu.RUnlock()
	return j.live
}
