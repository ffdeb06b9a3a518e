package statemachine

import (
	"slices"

	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/wal"
)

// reference is the lifecycle once more, written from the words of its description and not from the table: a naive
// judge of every history.
func reference(from State, on wal.EventType) (State, bool) {
	switch on {
	case "job_submitted":
		return "submitted", from == ""
	case "job_validated":
		return "validated", from == "submitted"
	case "job_started":
		return "started", from == "validated"
	case "job_completed":
		return "completed", from == "started"
	case "job_failed":
		return "failed", from == "submitted" || from == "validated" || from == "started"
	case "job_rolled_back":
		return "rolled_back", from == "completed" || from == "failed"
	case "job_resumed", "job_step", "job_progress":
		return from, from == "started"
	case "job_step_undone":
		return from, from == "completed" || from == "failed"
	case "job_held", "job_released":
		return from, from == "submitted" || from == "validated" || from == "started"
	}
	return from, false
}

// referenceHold says whether a job that is held, or not, may take the event, and whether it is held then.
func referenceHold(held bool, on wal.EventType) (after, ok bool) {
	if on == "job_held" {
		return true, !held
	}
	if !held {
		return false, on != "job_released"
	}
	over := on == "job_released" || on == "job_failed" || on == "job_completed"
	return !over, over
}

// referenceFold says by the reference alone where a job stands after its events, and which event parked it.
func referenceFold(events []wal.Event) (state State, held bool, parkedBy uint64) {
	var last uint64
	for _, e := range events {
		to, ok := reference(state, e.Type)
		holds, may := referenceHold(held, e.Type)
		if !ok || !may || e.Prev != last || e.Problem != "" {
			return state, held, e.Seq
		}
		state, held, last = to, holds, e.Seq
	}
	return state, held, 0
}

// count counts the events of a type.
func count(events []wal.Event, types ...wal.EventType) (n int) {
	for _, e := range events {
		if slices.Contains(types, e.Type) {
			n++
		}
	}
	return n
}

var (
	knownStates = []State{"", "submitted", "validated", "started", "completed", "failed", "rolled_back"}
	knownTypes  = []wal.EventType{
		"job_submitted", "job_validated", "job_started", "job_completed", "job_failed", "job_rolled_back",
		"job_resumed", "job_step", "job_progress", "job_step_undone", "job_held", "job_released",
	}
	strangeTypes = []wal.EventType{"", "job_resume", "JOB_STARTED", "job_startee", "event_lost", "jobs_forgotten"}
)

func anyType() *rapid.Generator[wal.EventType] {
	return rapid.OneOf(rapid.SampledFrom(knownTypes), rapid.SampledFrom(strangeTypes),
		rapid.Map(rapid.String(), func(s string) wal.EventType { return wal.EventType(s) }))
}

// likelyType leans to what may follow, so that histories get far.
func likelyType(t *rapid.T, from State, held bool) wal.EventType {
	var legal []wal.EventType
	for _, on := range knownTypes {
		_, may := referenceHold(held, on)
		if _, ok := reference(from, on); ok && may {
			legal = append(legal, on)
		}
	}
	if len(legal) == 0 || rapid.IntRange(0, 9).Draw(t, "stray") == 0 {
		return anyType().Draw(t, "type")
	}
	return rapid.SampledFrom(legal).Draw(t, "type")
}
