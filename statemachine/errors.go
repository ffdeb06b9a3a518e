package statemachine

import (
	"errors"
	"fmt"
	"strings"

	"github.com/jobwal/jobwal/wal"
)

// The sentinels, for errors.Is. Where more is known than the kind, a struct carries it, for errors.As.
var (
	// ErrTransition: the lifecycle has no such step. See [TransitionError].
	ErrTransition = errors.New("statemachine: transition not allowed")
	// ErrDuplicateJob comes with ErrTransition: job_submitted for a job that is there already.
	ErrDuplicateJob = errors.New("statemachine: job exists already")
	// ErrUnknownJob comes with ErrTransition: an event other than job_submitted for a job that was never submitted.
	ErrUnknownJob = errors.New("statemachine: no such job")
	// ErrUnknownEvent comes with ErrTransition: this version does not know the event's type. A newer one may.
	ErrUnknownEvent = errors.New("statemachine: event type not known to this version")
	// ErrParked: the job was parked and takes no commands. See [ParkedError].
	ErrParked = errors.New("statemachine: job is parked")
	// ErrHeld: the job waits for somebody's decision, and takes nothing before. See [HeldError].
	ErrHeld = errors.New("statemachine: job is held")
	// ErrNotHeld: job_released for a job that waits for nobody. See [HeldError].
	ErrNotHeld = errors.New("statemachine: job is not held")
	// ErrMisdirected: the event given to [Job.Apply] is of another job, of none, or one that the job is past. The
	// mistake is the caller's, and the job is as it was.
	ErrMisdirected = errors.New("statemachine: not an event that is next for this job")
)

// A TransitionError says which step was refused, and what would have been allowed. Besides [ErrTransition] it matches
// whichever of [ErrDuplicateJob], [ErrUnknownJob] and [ErrUnknownEvent] is true of it.
type TransitionError struct {
	JobID   string // "" where no job was spoken of
	From    State
	Event   wal.EventType
	Allowed []wal.EventType // as the job stands, in the order of the lifecycle; empty when it takes nothing any more
}

func (e *TransitionError) Error() string {
	if e.JobID == "" {
		return "statemachine: " + e.reason()
	}
	return fmt.Sprintf("statemachine: job %q: %s", e.JobID, e.reason())
}

func (e *TransitionError) reason() string {
	what := fmt.Sprintf("%s not allowed from %s", e.Event, e.From.name())
	switch {
	case e.Is(ErrUnknownEvent):
		// Whatever wrote the log chose this text.
		what = fmt.Sprintf("event type %.64q is not known to this version", string(e.Event))
	case e.Is(ErrDuplicateJob):
		what = fmt.Sprintf("%s for a job that exists already, in state %s", e.Event, e.From)
	case e.Is(ErrUnknownJob):
		what = fmt.Sprintf("%s for a job that was never submitted", e.Event)
	}
	if len(e.Allowed) == 0 {
		return fmt.Sprintf("%s; nothing is allowed from %s", what, e.From.name())
	}
	return what + "; allowed: " + join(e.Allowed)
}

func join(types []wal.EventType) string {
	names := make([]string, len(types))
	for i, t := range types {
		names[i] = string(t)
	}
	return strings.Join(names, ", ")
}

// Is makes errors.Is work for the sentinels that e is a case of.
func (e *TransitionError) Is(target error) bool {
	switch target {
	case ErrTransition:
		return true
	case ErrUnknownEvent:
		return !rules.knows(e.Event)
	case ErrDuplicateJob:
		return e.From != None && e.Event == wal.JobSubmitted
	case ErrUnknownJob:
		return e.From == None && e.Event != wal.JobSubmitted && rules.knows(e.Event)
	}
	return false
}

// An ApplyError says which event parked a job when it was folded, and why. Where the lifecycle refused the event,
// errors.As finds the *[TransitionError], or the *[HeldError].
type ApplyError struct {
	JobID  string
	Seq    uint64
	Event  wal.EventType
	Reason string
	err    error
}

func (e *ApplyError) Error() string {
	return fmt.Sprintf("statemachine: job %q parked by %s", e.JobID, e.parked())
}

// parked is what stands in [Job.Parked].
func (e *ApplyError) parked() string {
	return fmt.Sprintf("seq %d (%.64s): %s", e.Seq, e.Event, e.Reason)
}

func (e *ApplyError) Unwrap() error { return e.err }

// A ParkedError says why a job takes no commands. It matches [ErrParked].
type ParkedError struct {
	JobID  string
	Reason string // as in [Job.Parked]
}

func (e *ParkedError) Error() string {
	return fmt.Sprintf("statemachine: job %q is parked: %s", e.JobID, e.Reason)
}

// Is makes errors.Is(err, ErrParked) true.
func (e *ParkedError) Is(target error) bool { return target == ErrParked }

// A HeldError says that a job did not take an event that its state allows, because the job is held ([ErrHeld]), or,
// of job_released, because it is not ([ErrNotHeld]).
type HeldError struct {
	JobID  string
	Event  wal.EventType
	Reason string // as in [Job.Held]; "" with ErrNotHeld
}

func (e *HeldError) Error() string {
	return fmt.Sprintf("statemachine: job %q: %s", e.JobID, e.reason())
}

func (e *HeldError) reason() string {
	if e.Reason == "" {
		return fmt.Sprintf("%s for a job that is not held", e.Event)
	}
	return fmt.Sprintf("%s for a job that is held: %s; allowed: %s, %s, %s if it has started",
		e.Event, e.Reason, wal.JobReleased, wal.JobFailed, wal.JobCompleted)
}

// Is makes errors.Is work for the sentinel that e is a case of.
func (e *HeldError) Is(target error) bool {
	return e.Reason != "" && target == ErrHeld || e.Reason == "" && target == ErrNotHeld
}

// invalid is a caller's mistake. It matches [wal.ErrInvalid], as those that the log refuses do.
type invalid string

func invalidf(format string, args ...any) error { return invalid(fmt.Sprintf(format, args...)) }

func (e invalid) Error() string        { return "statemachine: invalid " + string(e) }
func (e invalid) Is(target error) bool { return target == wal.ErrInvalid }
