package main

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/statemachine"
)

// The program goes on with what a process has left that died between its two steps, and buys one lamp, however often it runs.
func TestRunAgain(t *testing.T) {
	t.Chdir(t.TempDir())
	ctx := context.Background()
	engine, err := recovery.Open(ctx, "runner-jobs", recovery.Options{})
	require.NoError(t, err)
	_, err = engine.Do(ctx, recovery.Submit(recovery.Submission{JobID: "left", Capability: "purchase", Args: Order{"chair", "Bergen"}}),
		recovery.Validate("left"), recovery.Start("left"), recovery.Step("left", "reserve", "chair on shelf 7"))
	require.NoError(t, err)
	require.NoError(t, engine.Close())
	for range 2 {
		main()
	}
	engine, err = recovery.Open(ctx, "runner-jobs", recovery.Options{})
	require.NoError(t, err)
	require.Equal(t, 2, engine.Report().Jobs[statemachine.Completed])
	for job := range engine.Jobs(projection.Query{}) {
		output, _ := job.Output.JSON()
		require.Equal(t, map[bool]string{true: `"paid: chair on shelf 7"`, false: `"paid: lamp on shelf 12"`}[job.ID == "left"], string(output))
		require.Equal(t, 2, job.Steps)
	}
	require.NoError(t, engine.Close())
}
