package recovery

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// Steps tells of every step that was recorded, over attempts, and which of them were undone: of one name, the newest first.
func TestSteps(t *testing.T) {
	ctx := context.Background()
	e := opened(t, written(t))
	_, err := e.Do(ctx, Submit(Submission{JobID: "a"}), Validate("a"), Start("a"), Step("a", "fetch", 1), Step("a", "fetch", nil),
		SetProgress("a", 7), Step("a", "größe 🚀", []int{2}), Resume("a"), Step("a", "fetch", "again"), Fail("a", context.Canceled))
	require.NoError(t, err)
	_, err = e.Do(ctx, UndoStep("a", "fetch"), UndoStep("a", "fetch"), UndoStep("a", "never was"))
	require.NoError(t, err)
	got, err := e.Steps(ctx, "a")
	require.NoError(t, err)
	for i := range got {
		require.False(t, got[i].Time.IsZero())
		got[i].Time = got[0].Time
	}
	at := got[0].Time
	require.Equal(t, []StepRecord{
		{"fetch", json.RawMessage(`1`), 4, at, false},
		{"fetch", nil, 5, at, true},
		{"größe 🚀", json.RawMessage(`[2]`), 7, at, false},
		{"fetch", json.RawMessage(`"again"`), 9, at, true},
	}, got)

	_, err = e.Submit(ctx, Submission{JobID: "b"})
	require.NoError(t, err)
	none, err := e.Steps(ctx, "b")
	require.NoError(t, err)
	require.Nil(t, none)
}

// The errors of Steps are those of History, and there are no steps with one: work that went on from half of them would do
// the others again.
func TestSteps_all_or_none(t *testing.T) {
	e := opened(t, written(t, wal.Event{Type: wal.JobSubmitted, JobID: "a"}, wal.Event{Type: wal.JobStarted, JobID: "a", Prev: 1},
		wal.Event{Type: wal.JobStep, JobID: "b", Args: json.RawMessage(`{"step":"x"}`)},
		wal.Event{Type: wal.JobStep, JobID: "a", Prev: 3, Args: json.RawMessage(`{"step":"y"}`)}))
	steps, err := e.Steps(context.Background(), "a")
	require.ErrorContains(t, err, "broken at seq 3")
	require.Nil(t, steps)
	_, err = e.Steps(context.Background(), "c")
	require.ErrorIs(t, err, statemachine.ErrUnknownJob)
	var nobody context.Context
	_, err = e.Steps(nobody, "a")
	require.ErrorIs(t, err, wal.ErrInvalid)
}

// The short way to a step's name takes nothing that JSON has another opinion of, and all that is plain.
func TestStepName_short_way(t *testing.T) {
	taken := 0
	rapid.Check(t, func(t *rapid.T) {
		inside := strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{
			"fetch", "#2", "/", "größe 🚀", `"`, `\"`, `\\`, `\u0041`, `"}`, `,"step":"x"`, "\n", "\x00", "\xff", "\x7f", " ", "<&>",
		}), 0, 4).Draw(t, "parts"), "")
		args := []byte(`{"step":"` + inside + `"}`)
		name, ok := plainStep(args)
		var fields struct{ Step string }
		err := json.Unmarshal(args, &fields)
		if ok {
			taken++
			require.NoError(t, err)
			require.Equal(t, fields.Step, name)
		}
		require.Equal(t, ok, utf8.ValidString(inside) && !strings.ContainsAny(inside, "\"\\\n\x00"))
	})
	require.NotZero(t, taken)
}
