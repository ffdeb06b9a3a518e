package recovery

import (
	"errors"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// step is the reference machine: where a command leads to, by a plain switch that knows nothing of the lifecycle's
// table. "" means refused.
func step(from statemachine.State, on wal.EventType) statemachine.State {
	switch on {
	case wal.JobSubmitted:
		if from == "" {
			return "submitted"
		}
	case wal.JobValidated:
		if from == "submitted" {
			return "validated"
		}
	case wal.JobStarted:
		if from == "validated" {
			return "started"
		}
	case wal.JobCompleted:
		if from == "started" {
			return "completed"
		}
	case wal.JobFailed:
		if from == "submitted" || from == "validated" || from == "started" {
			return "failed"
		}
	case wal.JobRolledBack:
		if from == "completed" || from == "failed" {
			return "rolled_back"
		}
	case wal.JobResumed, wal.JobStep, wal.JobProgress:
		if from == "started" {
			return from
		}
	case wal.JobStepUndone:
		if from == "completed" || from == "failed" {
			return from
		}
	case wal.JobHeld, wal.JobReleased:
		if from == "submitted" || from == "validated" || from == "started" {
			return from
		}
	}
	return ""
}

// holdStep is the other half of the reference machine: whether a job that is held, or not, may take the event, and
// whether it is held then.
func holdStep(held bool, on wal.EventType) (after, ok bool) {
	switch on {
	case wal.JobHeld:
		return true, !held
	case wal.JobReleased:
		return false, held
	case wal.JobFailed, wal.JobCompleted:
		return false, true
	}
	return held, !held
}

var kinds = []wal.EventType{
	wal.JobSubmitted, wal.JobValidated, wal.JobStarted, wal.JobCompleted, wal.JobFailed, wal.JobRolledBack,
	wal.JobResumed, wal.JobStep, wal.JobProgress, wal.JobStepUndone, wal.JobHeld, wal.JobReleased,
}

// commandOf is a command with nothing to say.
func commandOf(on wal.EventType, id string) Command {
	switch on {
	case wal.JobSubmitted:
		return Submit(Submission{JobID: id})
	case wal.JobValidated:
		return Validate(id)
	case wal.JobStarted:
		return Start(id)
	case wal.JobCompleted:
		return Complete(id, nil)
	case wal.JobFailed:
		return Fail(id, errors.New("no"))
	case wal.JobResumed:
		return Resume(id)
	case wal.JobStep:
		return Step(id, "one", 1)
	case wal.JobProgress:
		return SetProgress(id, nil)
	case wal.JobStepUndone:
		return UndoStep(id, "one")
	case wal.JobHeld:
		return Hold(id, "why")
	case wal.JobReleased:
		return Release(id, "go on")
	}
	return RollBack(id, "")
}

// recorder is a projection that keeps everything it is told.
type recorder struct{ seqs []uint64 }

func (r *recorder) Name() string { return "recorder" }
func (r *recorder) Apply(e wal.Event, _ statemachine.Job) error {
	r.seqs = append(r.seqs, e.Seq)
	return nil
}

var someIDs = []string{"a", "b", "c", "größe 🚀", "e"}

// states is what an engine says of its jobs, for comparing.
func states(e *Engine) map[string]statemachine.Job {
	all := make(map[string]statemachine.Job)
	for job := range e.Jobs(projection.Query{}) {
		all[job.ID] = job
	}
	return all
}

// inUse counts the locks that somebody holds or waits for.
func (l *jobLocks) inUse() (n int) {
	for i := range l.shards {
		l.shards[i].mu.Lock()
		n += len(l.shards[i].held)
		l.shards[i].mu.Unlock()
	}
	return n
}

func inOrder(jobs []statemachine.Job) (ids []string) {
	for _, job := range jobs {
		ids = append(ids, job.ID)
	}
	return ids
}
