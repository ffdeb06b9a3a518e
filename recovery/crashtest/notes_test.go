package crashtest_test

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/recovery/crashtest"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// S1: the reference and the fold agree about what leaves a job in its state, held or not.
func TestS1_ReferenceKnowsHoldsAndNotes(t *testing.T) {
	all := []wal.EventType{
		wal.JobSubmitted, wal.JobValidated, wal.JobStarted, wal.JobCompleted, wal.JobFailed, wal.JobRolledBack,
		wal.JobResumed, wal.JobStep, wal.JobProgress, wal.JobStepUndone, wal.JobHeld, wal.JobReleased,
	}
	met := make(map[wal.EventType]bool)
	rapid.Check(t, func(t *rapid.T) {
		var ref crashtest.Reference
		var job statemachine.Job
		ahead := slices.Clone(all[:rapid.IntRange(0, 3).Draw(t, "ahead")]) // as far as a start
		for n := range rapid.IntRange(1, 20).Draw(t, "steps") {
			on := rapid.SampledFrom(slices.Concat(job.Allowed(), job.Allowed(), all)).Draw(t, "on")
			if n < len(ahead) {
				on = ahead[n]
			}
			next, err := job.Apply(wal.Event{Seq: job.Seq + 1, Prev: job.Seq, JobID: "j", Type: on})
			require.Equal(t, err == nil, ref.Append(1, crashtest.Step{Type: on, JobID: "j"}), "%s of %v", on, job)
			if err != nil {
				continue
			}
			job, met[on] = next, true
			require.Equal(t, string(job.State), ref.State("j"))
			require.Equal(t, job.Held != "", ref.Held("j"))
			require.Equal(t, job.Held == "" && !job.Finished(), len(ref.Interrupted(2)) == 1)
		}
	})
	require.Len(t, met, len(all))
}

// Programs that say more of their jobs than the lifecycle asks for are held to it like others, crash by crash.
func TestW2_R1_notes_survive_every_crash(t *testing.T) {
	step := func(on wal.EventType, text string) crashtest.Step {
		s := crashtest.Step{Type: on, JobID: "a"}
		switch on {
		case wal.JobStep, wal.JobStepUndone:
			s.Args = json.RawMessage(`{"step":"` + text + `"}`)
		case wal.JobProgress:
			s.Output = json.RawMessage(`"` + text + `"`)
		case wal.JobHeld, wal.JobReleased, wal.JobFailed:
			s.Error = text
		}
		return s
	}
	crashtest.CrashEveryOp(t, func(disk wal.FS, h *crashtest.History) error {
		engine, err := recovery.Open(t.Context(), "jobs", recovery.Options{WAL: wal.Options{FS: disk}})
		if err != nil {
			return err
		}
		defer engine.Close()
		for _, steps := range [][]crashtest.Step{
			{step(wal.JobSubmitted, ""), step(wal.JobHeld, "why"), step(wal.JobReleased, "go on"), step(wal.JobValidated, "")},
			{step(wal.JobStarted, ""), step(wal.JobStep, "one"), step(wal.JobStep, "#mark"), step(wal.JobProgress, "half"), step(wal.JobResumed, "")},
			{step(wal.JobHeld, "again"), step(wal.JobFailed, "no"), step(wal.JobStepUndone, "#rollback"), step(wal.JobStepUndone, "one")},
		} {
			if _, err := h.Do(t.Context(), engine, steps...); err != nil {
				return err
			}
		}
		return nil
	}, func(disk wal.FS, h *crashtest.History) error {
		return crashtest.Recover(disk, "jobs", h, recovery.Options{})
	})
}

// R1, R2, S1: what steps, marks among them, and their undos make of a job is so in every opening, as the view without package
// statemachine has it.
func TestR1_R2_S1_actions_with_steps_and_marks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := &crashtest.Actions{}
		a.Open(t)
		step := func(on wal.EventType) crashtest.Step { return crashtest.Step{Type: on, JobID: "a"} }
		named := func(on wal.EventType) (some []crashtest.Step) {
			for range rapid.IntRange(0, 3).Draw(t, "some") {
				s := step(on)
				s.Args = json.RawMessage(`{"step":"` + rapid.SampledFrom([]string{"one", "two#2", "#", "#mark"}).Draw(t, "name") + `"}`)
				some = append(some, s)
			}
			return some
		}
		end := rapid.SampledFrom([]wal.EventType{wal.JobCompleted, wal.JobFailed}).Draw(t, "end")
		for _, steps := range [][]crashtest.Step{
			{step(wal.JobSubmitted), step(wal.JobValidated), step(wal.JobStarted)}, named(wal.JobStep), {step(end)},
			named(wal.JobStepUndone), named(wal.JobStepUndone), {step(wal.JobRolledBack)},
		} {
			if len(steps) > 0 {
				a.Do(t, steps...)
			}
			if rapid.Bool().Draw(t, "crash") {
				a.Crash(t)
			}
			a.Invariant(t)
		}
	})
}
