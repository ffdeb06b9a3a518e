package statemachine

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/jobwal/jobwal/wal"
)

// A Payload is a JSON value that lies in the log, as the args or the output of a job. It need not be held in memory:
// then it knows its Seq and its Size, and no more. The zero Payload is none at all. A Payload never changes and may be
// read from any number of goroutines.
type Payload struct {
	// raw is the value, shared by all copies: never written to, never handed out. Of one that is not held it is notHeld
	// and the size in its place, which costs 8 bytes where a field of its own would make every Payload larger.
	raw json.RawMessage
	seq uint64
}

// notHeld is the first byte of what stands in the place of a value. No JSON value begins with it.
const notHeld = 0

// NewPayload returns the JSON value raw of the event at seq; the zero Payload when raw is empty. It takes raw over: the
// caller must not change it any more.
func NewPayload(seq uint64, raw json.RawMessage) Payload {
	if len(raw) == 0 {
		return Payload{}
	}
	return Payload{raw: raw, seq: seq}
}

// UnheldPayload returns the value of size bytes of the event at seq, known by its place only; the zero Payload when size
// is not positive.
func UnheldPayload(seq uint64, size int) Payload {
	if size <= 0 {
		return Payload{}
	}
	raw := make([]byte, 1, 8) // notHeld, and room for the size
	return Payload{raw: binary.AppendUvarint(raw, uint64(size)), seq: seq}
}

// Shed returns p without its bytes when they are more than limit, else p as it is. The bytes are freed with the last
// copy of p that holds them.
func (p Payload) Shed(limit int) Payload {
	if p.Size() <= limit || !p.Held() {
		return p
	}
	return UnheldPayload(p.seq, len(p.raw))
}

// Held tells whether there is a value, and it is in memory: whether JSON has it.
func (p Payload) Held() bool { return len(p.raw) > 0 && p.raw[0] != notHeld }

// IsZero tells whether there is no value. JSON null is a value.
func (p Payload) IsZero() bool { return len(p.raw) == 0 }

// Seq is the position in the log of the event that holds the value, 0 for the zero Payload.
func (p Payload) Seq() uint64 { return p.seq }

// Size is the value's length in bytes, whether it is held in memory or not.
func (p Payload) Size() int {
	if len(p.raw) == 0 || p.raw[0] != notHeld {
		return len(p.raw)
	}
	size, _ := binary.Uvarint(p.raw[1:])
	return int(size)
}

// JSON returns a copy of the value, which is the caller's; false when there is none, or when it is too large to be held
// in memory.
func (p Payload) JSON() (json.RawMessage, bool) {
	if !p.Held() {
		return nil, false
	}
	return slices.Clone(p.raw), true
}

// AppendJSON appends the value to dst; false, and dst as it was, where [Payload.JSON] has none.
func (p Payload) AppendJSON(dst []byte) ([]byte, bool) {
	if !p.Held() {
		return dst, false
	}
	return append(dst, p.raw...), true
}

// MarshalJSON returns the value, or null where [Payload.JSON] has none.
func (p Payload) MarshalJSON() ([]byte, error) {
	if !p.Held() {
		return []byte("null"), nil
	}
	return slices.Clone(p.raw), nil
}

// UnmarshalJSON takes a value that was marshalled elsewhere. It lies in no log that is known here, so its Seq is 0.
func (p *Payload) UnmarshalJSON(data []byte) error {
	*p = NewPayload(0, slices.Clone(data))
	return nil
}

// A Job is all that the log says of one job, folded by [Job.Apply]. It is a value: copies share nothing that can
// change. Times are in UTC, and zero for what has not happened.
type Job struct {
	ID string `json:"id"`
	// Capability is that of the job's first event, for good.
	Capability string `json:"capability,omitempty"`
	State      State  `json:"state"`
	// Before is the state that the job had before its newest event: of a job that was rolled back it tells whether it
	// had completed or failed.
	Before State   `json:"before,omitempty"`
	Args   Payload `json:"args,omitzero"`
	Output Payload `json:"output,omitzero"`
	// Error is why the job failed. A rollback leaves it alone, and gives its own reason in RollbackReason.
	Error          string `json:"error,omitempty"`
	RollbackReason string `json:"rollback_reason,omitempty"`

	FirstSeq uint64 `json:"first_seq"` // of the job's first event: jobs in order of submission are in order of this
	Seq      uint64 `json:"seq"`       // of its newest event: the Prev of the next, where its history starts from
	Epoch    uint64 `json:"epoch"`     // of its newest event

	SubmittedAt  time.Time `json:"submitted_at,omitzero"`
	ValidatedAt  time.Time `json:"validated_at,omitzero"`
	StartedAt    time.Time `json:"started_at,omitzero"`
	FinishedAt   time.Time `json:"finished_at,omitzero"` // completed or failed
	RolledBackAt time.Time `json:"rolled_back_at,omitzero"`

	// Attempts is how often its work has begun: once when it started, and once with each job_resumed.
	Attempts int `json:"attempts,omitempty"`
	// Steps is how many steps were recorded as done, less those that were recorded as undone; never negative. What came
	// of them stands in the log alone, and so do their names, but for this: one that begins with '#' is a mark of whoever
	// runs the job, and neither its job_step nor its job_step_undone counts. (A mark is known by Args that begin with
	// {"step":"#, as package recovery writes them: a fold of millions of events parses no JSON.)
	Steps int `json:"steps,omitempty"`
	// RollingBack: its undo was begun, or decided, and is not done. Each job_step_undone says so, that of a mark, too;
	// job_rolled_back ends it.
	RollingBack bool `json:"rolling_back,omitempty"`
	// Progress is what was said last of how far the job is. A completed job has none, its Output says more.
	Progress Payload `json:"progress,omitzero"`
	// Held is why the job waits for somebody's decision; "" when it does not. Until it is released, it can only end.
	Held string `json:"held,omitempty"`

	// Parked is why the job takes no more commands; "" for a healthy one. State is the one it was parked in.
	Parked    string `json:"parked,omitempty"`
	ParkedSeq uint64 `json:"parked_seq,omitempty"` // of the event that parked it
}

// Apply folds the next event of this job, for the zero Job the first one, into it.
//
// An event that is not legal parks the job: what the lifecycle refuses, a type that is not known, a Prev that is not
// the job's newest event, an event with a Problem. The job that is returned then says so, and the error is an
// *[ApplyError]. A parked job stays parked, for its first reason: each later event only brings Seq and Epoch forward,
// so that its history can still be walked, and returns a *[ParkedError]. In all these cases the job that is returned is
// the one to keep. Only with [ErrMisdirected] it is as it was.
//
// Apply takes over e's slices.
func (j Job) Apply(e wal.Event) (Job, error) {
	if e.JobID == "" || j.ID != "" && j.ID != e.JobID || e.Seq <= j.Seq {
		return j, fmt.Errorf("%w: job %q at seq %d, event of job %q at seq %d", ErrMisdirected, j.ID, j.Seq, e.JobID, e.Seq)
	}
	to, refused := j.step(&e)
	j.touch(&e)
	switch {
	case j.Parked != "":
		return j, &ParkedError{JobID: j.ID, Reason: j.Parked}
	case refused != nil:
		j.Parked, j.ParkedSeq = refused.parked(), e.Seq
		return j, refused
	}
	j.Before, j.State = j.State, to
	j.record(&e)
	return j, nil
}

// step checks e against the job as it stands and returns where it leads to.
func (j *Job) step(e *wal.Event) (State, *ApplyError) {
	switch {
	case j.Parked != "":
		return j.State, nil
	case e.Problem != "":
		return j.State, parkedBy(e, "not readable: "+e.Problem, nil)
	case e.Prev != j.Seq:
		return j.State, parkedBy(e, fmt.Sprintf("its prev is %d, the job's newest event is %d", e.Prev, j.Seq), nil)
	}
	to, ok := rules.next(j.State, e.Type)
	if !ok {
		err := rules.refuse(e.JobID, j.State, j.Held != "", e.Type)
		return j.State, parkedBy(e, err.reason(), err)
	}
	if !permits(j.Held != "", e.Type) {
		err := &HeldError{JobID: e.JobID, Event: e.Type, Reason: j.Held}
		return j.State, parkedBy(e, err.reason(), err)
	}
	return to, nil
}

func parkedBy(e *wal.Event, reason string, err error) *ApplyError {
	return &ApplyError{JobID: e.JobID, Seq: e.Seq, Event: e.Type, Reason: reason, err: err}
}

// touch does what every event of a job does to it, the illegal ones too.
func (j *Job) touch(e *wal.Event) {
	if j.FirstSeq == 0 {
		j.ID, j.Capability, j.FirstSeq = e.JobID, e.Capability, e.Seq
	}
	j.Seq, j.Epoch = e.Seq, e.Epoch
}

// record keeps what a legal event says.
func (j *Job) record(e *wal.Event) {
	at := e.Time.Round(0).UTC() // without a monotonic reading, which no log keeps
	switch e.Type {
	case wal.JobSubmitted:
		j.SubmittedAt, j.Args = at, NewPayload(e.Seq, e.Args)
	case wal.JobValidated:
		j.ValidatedAt = at
	case wal.JobStarted:
		j.StartedAt = at
		j.Attempts++
	case wal.JobCompleted:
		j.FinishedAt, j.Output = at, NewPayload(e.Seq, e.Output)
		j.Held, j.Progress = "", Payload{}
	case wal.JobFailed:
		j.FinishedAt, j.Error = at, e.Error
		j.Held = ""
	case wal.JobRolledBack:
		j.RolledBackAt, j.RollbackReason = at, e.Error
		j.RollingBack = false
	default:
		j.note(e)
	}
}

// note keeps what an event says that leaves the job in its state.
func (j *Job) note(e *wal.Event) {
	switch e.Type {
	case wal.JobResumed:
		j.Attempts++
	case wal.JobStep:
		if !isMark(e) {
			j.Steps++
		}
	case wal.JobStepUndone:
		j.RollingBack = true
		if !isMark(e) {
			j.Steps = max(0, j.Steps-1)
		}
	case wal.JobProgress:
		if len(e.Output) > 0 { // else it only says that it is alive
			j.Progress = NewPayload(e.Seq, e.Output)
		}
	case wal.JobHeld:
		j.Held = cmp.Or(e.Error, "no reason was given")
	case wal.JobReleased:
		j.Held = ""
	}
}

// isMark: see [Job].Steps.
func isMark(e *wal.Event) bool { return bytes.HasPrefix(e.Args, []byte(`{"step":"#`)) }

// Allowed returns the events that the job may take as it stands, in the order of the lifecycle; none when it is parked.
// The slice is the caller's.
func (j Job) Allowed() []wal.EventType {
	if j.Parked != "" {
		return nil
	}
	return rules.allowed(j.State, j.Held != "")
}

// Finished tells whether the job's work is over: it completed, failed, or was rolled back.
func (j Job) Finished() bool {
	return j.State == Completed || j.State == Failed || j.State == RolledBack
}

// Queued is how long the job waited from its submission to its start. Never negative; 0 until it has started.
func (j Job) Queued() time.Duration { return between(j.SubmittedAt, j.StartedAt) }

// Took is how long the job ran from its start to its end. Never negative; 0 until it has ended, and for a job that
// failed before it started.
func (j Job) Took() time.Duration { return between(j.StartedAt, j.FinishedAt) }

func between(start, end time.Time) time.Duration {
	if start.IsZero() || end.IsZero() {
		return 0
	}
	return max(0, end.Sub(start))
}

// String describes the job in one line, for people.
func (j Job) String() string {
	s := "job " + j.ID
	if j.Capability != "" {
		s += " (" + j.Capability + ")"
	}
	s += " " + j.State.name()
	if j.Error != "" {
		s += ": " + j.Error
	}
	if j.Held != "" {
		s += ", held: " + j.Held
	}
	if j.RollingBack {
		s += ", its rollback begun"
	}
	if j.Parked != "" {
		s += ", parked by " + j.Parked
	}
	return s
}
