package wal

import (
	"encoding/json"
	"slices"
	"time"
)

// EventType names what happened, as a fact in the past tense. The log stores any type; which types mean something,
// and in which order, is the statemachine package's business. A reader that meets a type it does not know keeps it.
type EventType string

// The six steps of a job's life, spelled as runtimo-core 0.1.0 spelled them.
const (
	JobSubmitted  EventType = "job_submitted"
	JobValidated  EventType = "job_validated"
	JobStarted    EventType = "job_started"
	JobCompleted  EventType = "job_completed"
	JobFailed     EventType = "job_failed"
	JobRolledBack EventType = "job_rolled_back"
)

// What else is said of a job, and leaves it in the state that it is in. The ancestor's reader passes over these.
const (
	// JobResumed: a started job's work begins once more. Durable before it does, like JobStarted, so that no crash hides
	// an attempt.
	JobResumed EventType = "job_resumed"
	// JobStep: a step of a started job is done. Args are {"step":"its name"}, Output what came of it.
	JobStep EventType = "job_step"
	// JobProgress: a started job is alive. Output, if there is one, says how far it is.
	JobProgress EventType = "job_progress"
	// JobStepUndone: of a completed or failed job, what a step did was undone. Args as of JobStep. Of a name that begins
	// with '#', and is no step's: it is going to be.
	JobStepUndone EventType = "job_step_undone"
	// JobHeld: an unfinished job waits for somebody's decision. Error says why.
	JobHeld EventType = "job_held"
	// JobReleased: a held job goes on. Error says what was decided, and by whom.
	JobReleased EventType = "job_released"
)

// JobsForgotten is about the log itself: which jobs are remembered no longer, as Args say. It has no job.
const JobsForgotten EventType = "jobs_forgotten"

// EventLost is written by Salvage, and only by it, in the place of an event that could not be saved, so that seqs
// stay dense and every other event keeps its own. It has no job.
const EventLost EventType = "event_lost"

// An Event is one fact about one job.
//
// Append keeps Type, JobID, Capability, Error and the meaning of Args and Output as they are given; white space
// between JSON tokens is dropped, and nothing else is changed: a 25-digit number, a "<" or an escape comes back as it
// went in. See [Log.Append] for what is refused.
type Event struct {
	// Seq is the event's position in the log: from 1, without gaps. Append sets it.
	Seq uint64
	// Prev is the Seq of the same job's previous event, 0 for its first. The caller gives it, since the caller holds
	// the job; for the second and later events of one job within one Append, Append sets it.
	Prev uint64
	// Epoch tells which opening of the log wrote the event, from 1. Append sets it.
	Epoch uint64
	// Time is when it happened, to the nanosecond, in UTC. Append sets it when it is zero. It is data: order comes
	// from Seq, and a clock that jumps does no harm. Years 1970 to 9999.
	Time time.Time
	Type EventType
	// JobID is empty only for events about the log itself.
	JobID      string
	Capability string
	Args       json.RawMessage // on job_submitted, job_step and job_step_undone
	Output     json.RawMessage // on job_completed, job_step and job_progress
	Error      string          // on job_failed, job_rolled_back, job_held and job_released

	// Problem says why a line with a right checksum is not an event that this version can read; "" for a healthy
	// event. Seq is right even then; the other fields hold what could be made out. Append refuses an event with one.
	Problem string
}

// Prepare does to events what [Log.Append] does before it looks at the log: it refuses what must not stand in one, with the
// same errors, and returns the events as they would stand there, with payloads that are compact and of their own, and
// Time set. Seq, Prev and Epoch are as they were given, since those depend on the log. It is for other implementations of
// a log, so that they take and refuse what this one does. Of opts it uses MaxEventBytes and Now. The events that are
// given are not changed.
func Prepare(opts Options, events ...Event) ([]Event, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	r, err := opts.prepare(events)
	if err != nil {
		return nil, err
	}
	prepared := slices.Clone(r.events)
	r.free()
	return prepared, nil
}

// clone returns e with payloads of its own.
func (e Event) clone() Event {
	e.Args = cloneRaw(e.Args)
	e.Output = cloneRaw(e.Output)
	return e
}

func cloneRaw(raw json.RawMessage) json.RawMessage {
	if raw == nil {
		return nil
	}
	return append(make(json.RawMessage, 0, len(raw)), raw...)
}
