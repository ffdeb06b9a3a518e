package recovery

import (
	"context"
	"encoding/json"
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
