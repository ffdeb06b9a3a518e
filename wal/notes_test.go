package wal

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// The ancestor's reader passes over the events that leave a job in its state, and has all others.
func TestAncestorPassesOverWhatLeavesAJobInItsState(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(dir, Options{})
	require.NoError(t, err)
	all := []EventType{JobSubmitted, JobHeld, JobReleased, JobValidated, JobStarted, JobStep, JobProgress, JobResumed,
		JobFailed, JobStepUndone, JobRolledBack}
	for i, on := range all {
		_, err := l.Append(context.Background(), Event{Type: on, JobID: "a", Prev: uint64(i), Args: []byte(`{"step":"one"}`)})
		require.NoError(t, err)
		_, err = l.Append(context.Background(), Event{Type: on})
		require.ErrorIs(t, err, ErrInvalid, "%s is about a job", on)
	}
	require.NoError(t, l.Close())
	text, err := os.ReadFile(filepath.Join(dir, "00000000000000000001.jsonl"))
	require.NoError(t, err)
	events, err := ancestorLoad(text)
	require.NoError(t, err)
	var kinds []string
	for _, e := range events {
		kinds = append(kinds, e.kind)
	}
	require.Equal(t, []string{"job_submitted", "job_validated", "job_started", "job_failed", "job_rolled_back"}, kinds)
}
