package crashtest_test

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/recovery/crashtest"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// elsewhere is an engine with two jobs, after three openings; other jobs' events lie between theirs.
func elsewhere(t *testing.T) *recovery.Engine {
	ctx, disk := context.Background(), crashfs.New()
	var engine *recovery.Engine
	for _, commands := range [][]recovery.Command{
		{recovery.Submit(recovery.Submission{JobID: "x"}), recovery.Submit(recovery.Submission{JobID: "a", Capability: "mail", Args: 1}),
			recovery.Validate("x"), recovery.Validate("a"), recovery.Start("a"), recovery.Step("a", "fetch", "text")},
		{recovery.Resume("a"), recovery.Fail("x", errors.New("no")), recovery.SetProgress("a", 0.5),
			recovery.Submit(recovery.Submission{JobID: "h"}), recovery.Hold("h", "who pays?")},
		nil,
	} {
		var err error
		engine, err = recovery.Open(ctx, "jobs", recovery.Options{WAL: wal.Options{FS: disk}})
		require.NoError(t, err)
		if commands != nil {
			_, err = engine.Do(ctx, commands...)
			require.NoError(t, err)
			require.NoError(t, engine.Close())
		}
	}
	t.Cleanup(func() { require.NoError(t, engine.Close()) })
	return engine
}

func TestR2_fixture_is_the_job_as_it_was(t *testing.T) {
	engine := elsewhere(t)
	for _, id := range []string{"a", "h"} {
		was, _ := engine.Job(id)
		var bundle bytes.Buffer
		require.NoError(t, engine.Export(t.Context(), id, &bundle, nil))
		again, disk := crashtest.Fixture(t, &bundle, recovery.Options{})
		job, known := again.Job(id)
		require.True(t, known)
		require.Equal(t, len(engine.Interrupted()) == 1 && id == "a", len(again.Interrupted()) == 1)
		require.Equal(t, []any{was.State, was.Attempts, was.Steps, was.Held, was.Capability, was.StartedAt, was.Progress.Size()},
			[]any{job.State, job.Attempts, job.Steps, job.Held, job.Capability, job.StartedAt, job.Progress.Size()})

		// It goes on from there, and can be crashed.
		_, err := again.Fail(t.Context(), id, errors.New("enough"))
		require.NoError(t, err)
		after, err := recovery.Open(t.Context(), "jobs", recovery.Options{WAL: wal.Options{FS: disk.Crash(crashfs.SyncedOnly)}})
		require.NoError(t, err)
		job, _ = after.Job(id)
		require.Equal(t, statemachine.Failed, job.State)
		require.NoError(t, errors.Join(after.Close(), again.Close()))
	}
}

// R4: what parked the job there parks it here: a wrong prev, an illegal step, what can't be read.
func TestR4_fixture_of_a_parked_job(t *testing.T) {
	for name, line := range map[string]string{
		"illegal":    `{"seq":9,"prev":4,"epoch":2,"ts":1,"ns":0,"type":"job_completed","job_id":"a"}`,
		"wrong prev": `{"seq":9,"prev":3,"epoch":2,"ts":1,"ns":0,"type":"job_validated","job_id":"a"}`,
		"unreadable": `{"seq":9,"prev":4,"epoch":2,"ts":1,"ns":0,"type":"job_validated","job_id":"a","problem":"args: \ud800"}`,
		"no such":    `{"seq":9,"prev":4,"epoch":2,"ts":1,"ns":0,"type":"job_dreamt","job_id":"a"}`,
	} {
		bundle := `{"bundle":1,"log":"x","job_id":"a","events":2}
{"seq":4,"prev":0,"epoch":1,"ts":1,"ns":0,"type":"job_submitted","job_id":"a"}
` + line + "\n"
		engine, _ := crashtest.Fixture(t, strings.NewReader(bundle), recovery.Options{})
		job, _ := engine.Job("a")
		require.Equal(t, []any{statemachine.Submitted, uint64(2)}, []any{job.State, job.ParkedSeq}, name)
		require.NoError(t, engine.Close())
	}
	_, failed := crashtest.Fails(func(t rapid.TB) { crashtest.Fixture(t, strings.NewReader("{}"), recovery.Options{}) })
	require.True(t, failed)
}
