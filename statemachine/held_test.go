package statemachine

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/wal"
)

// S1: while a job is held it takes no more than its release and its ends, of the machine and of the fold alike; the error
// says what it waits for.
func TestS1_HeldJobGoesNowhereButToAnEnd(t *testing.T) {
	for _, way := range [][]wal.EventType{
		{wal.JobSubmitted}, {wal.JobSubmitted, wal.JobValidated}, {wal.JobSubmitted, wal.JobValidated, wal.JobStarted},
	} {
		events := life(append(way, wal.JobHeld)...)
		events[len(events)-1].Error = "was it sent?"
		held := fold(t, events)
		require.Equal(t, "was it sent?", held.Held)
		for _, on := range knownTypes {
			_, legal := reference(held.State, on)
			over, may := referenceHold(true, on)
			m := NewMachine(held)
			err := m.Fire(t.Context(), on, appended)
			next, foldErr := held.Apply(wal.Event{Seq: 9, Prev: held.Seq, Type: on, JobID: held.ID, Time: noon})
			require.Equal(t, err == nil, foldErr == nil, "machine and fold agree on %s", on)
			require.Equal(t, err == nil, slices.Contains(held.Allowed(), on))
			switch {
			case !legal:
				require.ErrorIs(t, err, ErrTransition)
			case !may:
				require.Equal(t, &HeldError{held.ID, on, "was it sent?"}, err)
				require.ErrorIs(t, err, ErrHeld)
				require.NotErrorIs(t, err, ErrNotHeld)
				var he *HeldError
				require.ErrorAs(t, foldErr, &he)
				require.Contains(t, next.Parked, "was it sent?")
				require.Equal(t, "was it sent?", next.Held, "parked as it was")
			default:
				require.NoError(t, err)
				require.False(t, over)
				require.Empty(t, next.Held)
			}
		}
	}
}

func TestReleaseWithoutAHold(t *testing.T) {
	m := NewMachine(Job{ID: "j", State: Started})
	err := m.Fire(t.Context(), wal.JobReleased, appended)
	require.ErrorIs(t, err, ErrNotHeld)
	require.NotErrorIs(t, err, ErrHeld)
	require.EqualError(t, err, `statemachine: job "j": job_released for a job that is not held`)

	j := fold(t, life(wal.JobSubmitted))
	j, err = j.Apply(wal.Event{Seq: 2, Prev: 1, Type: wal.JobReleased, JobID: j.ID, Time: noon})
	require.ErrorIs(t, err, ErrNotHeld)
	require.Equal(t, "seq 2 (job_released): job_released for a job that is not held", j.Parked)
}

// Whoever holds and releases by one machine, as a group of commands does, is held to it.
func TestMachineKnowsOfItsOwnHold(t *testing.T) {
	m := NewMachine(Job{ID: "j", State: Validated})
	require.Equal(t, errDisk, m.Fire(t.Context(), wal.JobHeld, func(context.Context) error { return errDisk }))
	require.True(t, m.Can(wal.JobStarted), "not held, since that was not appended")
	require.NoError(t, m.Fire(t.Context(), wal.JobHeld, appended))
	require.ErrorIs(t, m.Fire(t.Context(), wal.JobStarted, appended), ErrHeld)
	require.ErrorIs(t, m.Fire(t.Context(), wal.JobHeld, appended), ErrHeld)
	require.Equal(t, errDisk, m.Fire(t.Context(), wal.JobReleased, func(context.Context) error { return errDisk }))
	require.False(t, m.Can(wal.JobStarted))
	require.NoError(t, m.Fire(t.Context(), wal.JobReleased, appended))
	require.NoError(t, m.Fire(t.Context(), wal.JobStarted, appended))
	m.Reset(Job{ID: "k", State: Started, Held: "why"})
	require.ErrorIs(t, m.Fire(t.Context(), wal.JobStep, appended), ErrHeld)
	m.Reset(Job{ID: "l", State: Started})
	require.NoError(t, m.Fire(t.Context(), wal.JobStep, appended))
}

func TestApplyCountsAttemptsAndSteps(t *testing.T) {
	events := life(wal.JobSubmitted, wal.JobValidated, wal.JobStarted, wal.JobStep, wal.JobResumed, wal.JobStep,
		wal.JobProgress, wal.JobProgress, wal.JobHeld)
	events[6].Output = json.RawMessage(`{"percent":40}`)
	j := fold(t, events)
	require.Equal(t, []int{2, 2}, []int{j.Attempts, j.Steps})
	require.Equal(t, NewPayload(7, json.RawMessage(`{"percent":40}`)), j.Progress, "a heartbeat says nothing new")
	require.Equal(t, "no reason was given", j.Held)
	require.Contains(t, j.String(), "held: no reason was given")
	require.True(t, j.Output.IsZero(), "what came of a step is in the log alone")

	last := func(j Job, types ...wal.EventType) Job {
		for _, on := range types {
			var err error
			j, err = j.Apply(wal.Event{Seq: j.Seq + 1, Prev: j.Seq, Type: on, JobID: j.ID, Time: noon, Error: "e"})
			require.NoError(t, err)
		}
		return j
	}
	done := last(j, wal.JobCompleted, wal.JobStepUndone)
	require.Equal(t, []any{1, "", true, Completed, Completed}, []any{done.Steps, done.Held, done.Progress.IsZero(), done.State, done.Before})
	failed := last(j, wal.JobFailed, wal.JobStepUndone, wal.JobStepUndone, wal.JobStepUndone)
	require.Equal(t, []any{0, "", false, "e"}, []any{failed.Steps, failed.Held, failed.Progress.IsZero(), failed.Error})
	require.Equal(t, []bool{false, true, true}, []bool{j.RollingBack, done.RollingBack, failed.RollingBack})
	require.Contains(t, done.String(), "completed, its rollback begun")
	back := last(failed, wal.JobRolledBack)
	require.Equal(t, []any{Failed, false}, []any{back.Before, back.RollingBack})
	released := last(j, wal.JobReleased)
	require.Equal(t, []any{"", Started, 2}, []any{released.Held, released.State, released.Attempts})

	for _, j := range []Job{j, done} {
		text, err := json.Marshal(j)
		require.NoError(t, err)
		var back Job
		require.NoError(t, json.Unmarshal(text, &back))
		require.Equal(t, []any{j.Attempts, j.Steps, j.Held, j.RollingBack}, []any{back.Attempts, back.Steps, back.Held, back.RollingBack})
	}
	require.True(t, errors.Is(&HeldError{Reason: "x"}, ErrHeld))
}
