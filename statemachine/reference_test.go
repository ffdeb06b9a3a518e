package statemachine

import (
	"github.com/jobwal/jobwal/wal"
	"pgregory.net/rapid"
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
	}
	return from, false
}

// referenceFold says by the reference alone where a job stands after its events, and which event parked it.
func referenceFold(events []wal.Event) (state State, parkedBy uint64) {
	var last uint64
	for _, e := range events {
		to, ok := reference(state, e.Type)
		if !ok || e.Prev != last || e.Problem != "" {
			return state, e.Seq
		}
		state, last = to, e.Seq
	}
	return state, 0
}

var (
	knownStates = []State{"", "submitted", "validated", "started", "completed", "failed", "rolled_back"}
	knownTypes  = []wal.EventType{
		"job_submitted", "job_validated", "job_started", "job_completed", "job_failed", "job_rolled_back",
	}
	strangeTypes = []wal.EventType{"", "job_resumed", "JOB_STARTED", "job_startee", "event_lost", "jobs_forgotten"}
)

func anyType() *rapid.Generator[wal.EventType] {
	return rapid.OneOf(rapid.SampledFrom(knownTypes), rapid.SampledFrom(strangeTypes),
		rapid.Map(rapid.String(), func(s string) wal.EventType { return wal.EventType(s) }))
}

// likelyType leans to what may follow, so that histories get far.
func likelyType(t *rapid.T, from State) wal.EventType {
	var legal []wal.EventType
	for _, on := range knownTypes {
		if _, ok := reference(from, on); ok {
			legal = append(legal, on)
		}
	}
	if len(legal) == 0 || rapid.IntRange(0, 9).Draw(t, "stray") == 0 {
		return anyType().Draw(t, "type")
	}
	return rapid.SampledFrom(legal).Draw(t, "type")
}
