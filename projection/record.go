package projection

import (
	"math"
	"time"

	"github.com/jobwal/jobwal/statemachine"
)

// A record is a job, packed: 168 bytes in place of 400. What few jobs have is put aside in more.
type record struct {
	id           string
	args, output statemachine.Payload
	times        [5]int64 // Unix nanoseconds, or noTime, or farTime
	first        uint64   // FirstSeq
	seq, epoch   uint64
	more         *more // nil when there is nothing in it

	capability   uint32
	older, newer uint32 // neighbours in order of update; none at the ends
	state        uint8  // numbers of the states
	before       uint8  // and the bit rollingBack
	attempts     uint8  // manyOf: in more
	steps        uint8
}

// manyOf are so many attempts or steps that their number stands in more.
const manyOf = math.MaxUint8

// rollingBack is set in before of a job that is being rolled back: the number of a state leaves it free.
const rollingBack = 1 << 7

type more struct {
	err, rollback, parked, held string
	parkedSeq                   uint64
	attempts, steps             int // both, if either is in more
	progress                    statemachine.Payload
	far                         *[5]time.Time
}

const (
	noTime  = math.MinInt64     // the zero time
	farTime = math.MinInt64 + 1 // too far from 1970 to count in nanoseconds (before 1678, after 2261): it is in more
)

func packTime(t time.Time) int64 {
	const reach = 9e9 // seconds
	switch s := t.Unix(); {
	case t.IsZero():
		return noTime
	case s < -reach || s > reach:
		return farTime
	}
	return t.UnixNano()
}

func unpackTime(ns int64) time.Time {
	if ns == noTime {
		return time.Time{}
	}
	return time.Unix(0, ns).UTC()
}

// pack keeps what may change with an event. The id, the capability and the first seq are a new record's own.
func (r *record) pack(job *statemachine.Job, state, before uint8) {
	r.args, r.output = job.Args, job.Output
	r.seq, r.epoch = job.Seq, job.Epoch
	r.state, r.before = state, before
	if job.RollingBack {
		r.before |= rollingBack
	}
	var far *[5]time.Time
	for i, t := range [...]time.Time{job.SubmittedAt, job.ValidatedAt, job.StartedAt, job.FinishedAt, job.RolledBackAt} {
		r.times[i] = packTime(t)
		if r.times[i] == farTime {
			if far == nil {
				far = new([5]time.Time)
			}
			far[i] = t.UTC()
		}
	}
	r.attempts, r.steps = uint8(min(job.Attempts, manyOf)), uint8(min(job.Steps, manyOf))
	many := r.attempts == manyOf || r.steps == manyOf
	r.more = nil
	if far != nil || many || job.Error+job.RollbackReason+job.Parked+job.Held != "" || !job.Progress.IsZero() {
		r.more = &more{
			err: job.Error, rollback: job.RollbackReason, parked: job.Parked, held: job.Held, parkedSeq: job.ParkedSeq,
			progress: job.Progress, far: far,
		}
		if many {
			r.more.attempts, r.more.steps = job.Attempts, job.Steps
		}
	}
}

// counts returns how many attempts and steps there were.
func (r *record) counts() (attempts, steps int) {
	if r.attempts == manyOf || r.steps == manyOf {
		return r.more.attempts, r.more.steps
	}
	return int(r.attempts), int(r.steps)
}

func (r *record) time(i int) time.Time {
	if r.times[i] == farTime {
		return r.more.far[i]
	}
	return unpackTime(r.times[i])
}

func (r *record) parked() bool { return r.more != nil && r.more.parked != "" }

func (r *record) held() bool { return r.more != nil && r.more.held != "" }

func (r *record) rollingBack() bool { return r.before&rollingBack != 0 }

func (r *record) stateBefore() uint8 { return r.before &^ rollingBack }

func (r *record) unpack(capability string) statemachine.Job {
	job := statemachine.Job{
		ID: r.id, Capability: capability, State: states[r.state], Before: states[r.stateBefore()],
		Args: r.args, Output: r.output, FirstSeq: r.first, Seq: r.seq, Epoch: r.epoch,
		SubmittedAt: r.time(0), ValidatedAt: r.time(1), StartedAt: r.time(2), FinishedAt: r.time(3), RolledBackAt: r.time(4),
		RollingBack: r.rollingBack(),
	}
	if m := r.more; m != nil {
		job.Error, job.RollbackReason, job.Parked, job.ParkedSeq = m.err, m.rollback, m.parked, m.parkedSeq
		job.Held, job.Progress = m.held, m.progress
	}
	job.Attempts, job.Steps = r.counts()
	return job
}
