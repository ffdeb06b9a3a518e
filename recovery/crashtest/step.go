package crashtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/wal"
)

// A Step is one thing asked of one job: what a program submits, and what a [Reference] and a [History] remember of it.
// It is the event without what only the log can know.
type Step struct {
	Type       wal.EventType   `json:"type"`
	JobID      string          `json:"job_id"`
	Capability string          `json:"capability,omitempty"` // of job_submitted; a job's later events have its own
	Args       json.RawMessage `json:"args,omitempty"`       // of job_submitted, job_step and job_step_undone
	Output     json.RawMessage `json:"output,omitempty"`     // of job_completed, job_step and job_progress
	Error      string          `json:"error,omitempty"`      // of job_failed, job_rolled_back, job_held and job_released
}

// Command returns the engine's command for the step. It panics for a type that no command has.
func (s Step) Command() recovery.Command {
	switch s.Type {
	case wal.JobSubmitted:
		return recovery.Submit(recovery.Submission{JobID: s.JobID, Capability: s.Capability, Args: payload(s.Args)})
	case wal.JobValidated:
		return recovery.Validate(s.JobID)
	case wal.JobStarted:
		return recovery.Start(s.JobID)
	case wal.JobCompleted:
		return recovery.Complete(s.JobID, payload(s.Output))
	case wal.JobFailed:
		return recovery.Fail(s.JobID, errors.New(s.Error))
	case wal.JobRolledBack:
		return recovery.RollBack(s.JobID, s.Error)
	case wal.JobResumed:
		return recovery.Resume(s.JobID)
	case wal.JobStep:
		return recovery.Step(s.JobID, recovery.StepName(s.Event()), payload(s.Output))
	case wal.JobStepUndone:
		return recovery.UndoStep(s.JobID, recovery.StepName(s.Event()))
	case wal.JobProgress:
		return recovery.SetProgress(s.JobID, payload(s.Output))
	case wal.JobHeld:
		return recovery.Hold(s.JobID, s.Error)
	case wal.JobReleased:
		return recovery.Release(s.JobID, s.Error)
	}
	panic(fmt.Sprintf("crashtest: no command for event type %q", s.Type))
}

// Commands returns the engine's commands for the steps.
func Commands(steps ...Step) []recovery.Command {
	commands := make([]recovery.Command, len(steps))
	for i, s := range steps {
		commands[i] = s.Command()
	}
	return commands
}

// payload keeps an absent payload apart from a JSON null.
func payload(raw json.RawMessage) any {
	if raw == nil {
		return nil
	}
	return raw
}

// Event returns the step as an event, for a log that is appended to directly. Prev is the caller's to set.
func (s Step) Event() wal.Event {
	return wal.Event{Type: s.Type, JobID: s.JobID, Capability: s.Capability, Args: s.Args, Output: s.Output, Error: s.Error}
}

// StepOf returns what an event says beyond what the log itself put there.
func StepOf(e wal.Event) Step {
	return Step{Type: e.Type, JobID: e.JobID, Capability: e.Capability, Args: e.Args, Output: e.Output, Error: e.Error}
}

// Same tells whether two steps ask for the same, byte for byte but for white space in JSON, which the log does not keep.
func (s Step) Same(other Step) bool {
	return s.Type == other.Type && s.JobID == other.JobID && s.Capability == other.Capability && s.Error == other.Error &&
		sameJSON(s.Args, other.Args) && sameJSON(s.Output, other.Output)
}

func sameJSON(a, b json.RawMessage) bool { return bytes.Equal(compact(a), compact(b)) }

// compact returns what is not JSON unchanged.
func compact(raw json.RawMessage) []byte {
	var buf bytes.Buffer
	if json.Compact(&buf, raw) != nil {
		return raw
	}
	return buf.Bytes()
}

func (s Step) String() string {
	text := fmt.Sprintf("%s %s", s.Type, s.JobID)
	if s.Capability != "" {
		text += " capability=" + s.Capability
	}
	if s.Args != nil {
		text += fmt.Sprintf(" args=%.40s", s.Args)
	}
	if s.Output != nil {
		text += fmt.Sprintf(" output=%.40s", s.Output)
	}
	if s.Error != "" {
		text += fmt.Sprintf(" error=%.40q", s.Error)
	}
	return text
}
