package recovery

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/jobwal/jobwal/wal"
)

// A StepRecord is a step of a job that was recorded as done: see [Step].
type StepRecord struct {
	Name   string          // "" where the event does not say
	Output json.RawMessage // what came of it; nil: nothing
	Seq    uint64          // of its event
	Time   time.Time       // when it was recorded
	Undone bool            // what it did was undone since: see [UndoStep]
}

// Steps returns the steps of a job that were ever recorded, over all its attempts, oldest first; none: nil. Where one name
// stands several times, what was undone is the newest that was not yet. What is returned belongs to the caller.
//
// It reads the job's events as [Engine.History] does, and its errors are those of History; there are no steps with one.
func (e *Engine) Steps(ctx context.Context, id string) ([]StepRecord, error) {
	var all []StepRecord
	for event, err := range e.History(ctx, id) {
		if err != nil {
			return nil, err
		}
		all = recordStep(all, event)
	}
	return all, nil
}

// recordStep adds what an event says about a job's steps to what the ones before it said.
func recordStep(all []StepRecord, event wal.Event) []StepRecord {
	name := StepName(event)
	switch event.Type {
	case wal.JobStep:
		return append(all, StepRecord{Name: name, Output: event.Output, Seq: event.Seq, Time: event.Time})
	case wal.JobStepUndone:
		for i, step := range slices.Backward(all) {
			if step.Name == name && !step.Undone {
				all[i].Undone = true
				break
			}
		}
	}
	return all
}

// walk collects a job's events, newest first.
func (e *Engine) walk(ctx context.Context, id string, seq uint64) (events []wal.Event, err error) {
	for event, err := range e.past(ctx, id, seq) {
		if err != nil {
			return events, fmt.Errorf("recovery: history of job %q: %w", id, err)
		}
		events = append(events, event)
	}
	return events, nil
}

// past yields a job's event at seq and those before it, newest first, to its first one, or to where the way back is broken.
func (e *Engine) past(ctx context.Context, id string, seq uint64) iter.Seq2[wal.Event, error] {
	return func(yield func(wal.Event, error) bool) {
		if ctx == nil {
			yield(wal.Event{}, &wal.InvalidError{Field: "context", Reason: "nil"})
			return
		}
		next := seq
		for event, err := range chain(ctx, e.log, seq) {
			if err == nil && (event.Seq != next || event.JobID != id || event.Prev >= next) {
				err = noWayBack(next)
			}
			if err != nil {
				yield(wal.Event{}, err)
				return
			}
			if !yield(event, nil) {
				return
			}
			next = event.Prev
		}
		if next != 0 { // of a Chain that ends without a word
			yield(wal.Event{}, noWayBack(next))
		}
	}
}

func noWayBack(seq uint64) error { return fmt.Errorf("broken at seq %d", seq) }

// chain is what log's Chain yields, if it has one.
func chain(ctx context.Context, log Log, seq uint64) iter.Seq2[wal.Event, error] {
	if log, ok := log.(Chains); ok {
		return log.Chain(ctx, seq)
	}
	return func(yield func(wal.Event, error) bool) {
		for next := seq; next != 0; {
			event, err := log.At(ctx, next)
			if !yield(event, err) || err != nil {
				return
			}
			next = event.Prev
		}
	}
}
