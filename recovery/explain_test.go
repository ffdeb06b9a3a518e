package recovery

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

func TestExplain_says_what_a_job_waits_for(t *testing.T) {
	ctx := t.Context()
	e, _ := interrupted(t)
	_, err := e.Do(ctx, Submit(Submission{JobID: "new"}), Submit(Submission{JobID: "checked"}), Validate("checked"),
		Submit(Submission{JobID: "busy"}), Validate("busy"), Start("busy"))
	require.NoError(t, err)
	for id, want := range map[string]struct {
		waits  string
		action Action
	}{
		"irreversible": {"a recovery: whoever was at work on it is gone", ActionHold},
		"pure":         {"a recovery: whoever was at work on it is gone", ActionResume},
		"held":         {"somebody's decision: why", ""},
		"over":         {"nothing: it is over", ""},
		"new":          {"its validation", ActionResume},
		"checked":      {"its start", ActionResume},
		"busy":         {"its end: it is being worked on", ActionHold},
	} {
		x, err := e.Explain(ctx, id, DefaultPolicy(effects))
		require.NoError(t, err)
		require.Equal(t, want.waits, x.Waits, id)
		require.Equal(t, want.action != "", x.Decision != nil, id)
		if x.Decision != nil {
			require.Equal(t, want.action, x.Decision.Action, id)
			require.Equal(t, x.Interrupted, strings.Contains(x.String(), "a recovery would"), id)
		}
		require.Empty(t, x.Problem)
		require.Equal(t, x.Job.Seq, x.Events[len(x.Events)-1].Seq)
	}
	_, err = e.Explain(ctx, "nobody")
	require.ErrorIs(t, err, statemachine.ErrUnknownJob)
	var none context.Context
	_, err = e.Explain(none, "held")
	require.ErrorIs(t, err, wal.ErrInvalid)
}

func TestExplain_remembers_what_was_refused(t *testing.T) {
	ctx := t.Context()
	e := inMemory(t, crashfs.New(), Options{})
	_, err := e.Do(ctx, Submit(Submission{JobID: "a"}), Submit(Submission{JobID: "b"}))
	require.NoError(t, err)
	_, refused := e.Start(ctx, "a")
	for i := range maxRefused - 1 {
		_, err := e.Complete(ctx, "b", i)
		require.Error(t, err)
	}
	x, err := e.Explain(ctx, "a")
	require.NoError(t, err)
	require.Len(t, x.Refused, 1)
	require.Equal(t, []any{"a", wal.JobStarted, refused}, []any{x.Refused[0].JobID, x.Refused[0].Event, x.Refused[0].Err})
	require.Contains(t, x.String(), "job_started not allowed from submitted")
	require.NotZero(t, x.Refused[0].At)

	_, err = e.Complete(ctx, "b", nil)
	require.Error(t, err)
	x, err = e.Explain(ctx, "a")
	require.NoError(t, err)
	require.Empty(t, x.Refused, "only the newest are remembered")
	var many []Command
	for range 3 * maxRefused {
		many = append(many, Start("b"))
	}
	_, err = e.Do(ctx, many...)
	require.Error(t, err)
	x, err = e.Explain(ctx, "b")
	require.NoError(t, err)
	require.Len(t, x.Refused, maxRefused)
}

func TestExplain_knows_the_steps_that_are_left(t *testing.T) {
	ctx := t.Context()
	e, _ := interrupted(t)
	_, err := e.Do(ctx, Step("pure", "write", 2), Step("pure", "fetch", 3), Fail("pure", errBroken), UndoStep("pure", "fetch"))
	require.NoError(t, err)
	x, err := e.Explain(ctx, "pure")
	require.NoError(t, err)
	require.Equal(t, []string{"fetch", "write"}, x.Steps, "the newest fetch was undone")
	require.Equal(t, x.Job.Steps, len(x.Steps))
	require.Contains(t, x.String(), "attempts: 1; steps done: 2 (fetch, write)")
	require.Equal(t, "the rest of its rollback, which was begun and is not finished", x.Waits)
	_, err = e.RollBack(ctx, "pure", "why")
	require.NoError(t, err)
	x, err = e.Explain(ctx, "pure")
	require.NoError(t, err)
	require.Equal(t, "nothing: it is over", x.Waits)
}

// exported is a job's bundle.
func exported(t require.TestingT, e *Engine, id string, redact func(wal.Event) wal.Event) string {
	var b strings.Builder
	require.NoError(t, e.Export(context.Background(), id, &b, redact))
	return b.String()
}

func TestBundle_comes_back_as_it_was(t *testing.T) {
	ctx := t.Context()
	e, _ := interrupted(t)
	_, err := e.Do(ctx, Submit(Submission{JobID: "a", Capability: "<&>", Args: json.RawMessage(`{"n":12345678901234567890,"s":"<\u0041>"}`)}),
		Hold("a", "why\nnot"))
	require.NoError(t, err)
	for _, id := range []string{"a", "pure", "over"} {
		var want []wal.Event
		for event, err := range e.History(ctx, id) {
			require.NoError(t, err)
			want = append(want, event)
		}
		got, err := ReadBundle(strings.NewReader(exported(t, e, id, nil)))
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	text := exported(t, e, "a", func(event wal.Event) wal.Event {
		event.JobID, event.Args, event.Error = "nobody", nil, "redacted"
		event.Seq, event.Prev, event.Epoch, event.Type = 99, 99, 99, "x"
		return event
	})
	require.NotContains(t, text, "12345678901234567890")
	require.NotContains(t, text, "why")
	got, err := ReadBundle(strings.NewReader(text))
	require.NoError(t, err)
	require.Equal(t, []wal.EventType{wal.JobSubmitted, wal.JobHeld}, []wal.EventType{got[0].Type, got[1].Type})
	require.Equal(t, []any{"nobody", got[0].Seq}, []any{got[1].JobID, got[1].Prev})

	require.ErrorIs(t, e.Export(ctx, "nobody", io.Discard, nil), statemachine.ErrUnknownJob)
	require.ErrorIs(t, e.Export(ctx, "a", io.Discard, func(event wal.Event) wal.Event {
		event.JobID = fmt.Sprint(event.Seq)
		return event
	}), wal.ErrInvalid)
	require.Error(t, e.Export(ctx, "a", io.Discard, func(event wal.Event) wal.Event { event.Args = []byte("{"); return event }))
	r, w := io.Pipe()
	require.NoError(t, r.CloseWithError(errBroken))
	require.ErrorIs(t, e.Export(ctx, "a", w, nil), errBroken)
}

func TestReadBundle_refuses_what_is_none(t *testing.T) {
	e, _ := interrupted(t)
	good := exported(t, e, "pure", nil)
	lines := strings.SplitAfter(good, "\n")
	for n := range len(good) - 1 {
		_, err := ReadBundle(strings.NewReader(good[:n]))
		require.Error(t, err, "cut at %d", n)
	}
	for name, bad := range map[string]string{
		"more":        good + lines[1],
		"no header":   strings.Join(lines[1:], ""),
		"twice":       lines[0] + lines[1] + lines[1] + strings.Join(lines[3:], ""),
		"another job": strings.Replace(good, `"job_id":"pure"`, `"job_id":"other"`, 2),
		"version 0":   strings.Replace(good, `"bundle":1`, `"bundle":0`, 1),
		"events":      strings.Replace(good, `"events":5`, `"events":-1`, 1),
		"many events": strings.Replace(good, `"events":5`, `"events":9000000000`, 1),
		"array":       "[]",
	} {
		_, err := ReadBundle(strings.NewReader(bad))
		require.Error(t, err, name)
		require.ErrorContains(t, err, "bundle: line", name)
	}
	_, err := ReadBundle(strings.NewReader(strings.Replace(good, `"bundle":1`, `"bundle":2`, 1)))
	require.ErrorIs(t, err, wal.ErrVersion)
	_, err = ReadBundle(io.MultiReader(strings.NewReader(lines[0]), endless{}))
	require.Error(t, err, "a line that does not end")
}

// endless is a line that never ends.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return copy(p, bytes.Repeat([]byte(" "), len(p))), nil }

func FuzzReadBundle(f *testing.F) {
	f.Add([]byte(`{"bundle":1,"log":"x","job_id":"a","events":1}` + "\n" + `{"seq":1,"ts":1,"ns":0,"type":"job_submitted","job_id":"a","args":1}` + "\n"))
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		events, err := ReadBundle(bytes.NewReader(raw))
		require.Equal(t, err == nil, len(events) > 0)
	})
}

// R2: of any story, the bundle is the story.
func TestR2_any_bundle_comes_back(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e, err := Open(context.Background(), "jobs", Options{WAL: wal.Options{FS: crashfs.New()}})
		require.NoError(t, err)
		defer e.Close()
		_, err = e.Submit(context.Background(), Submission{JobID: "a", Args: rapid.String().Draw(t, "args")})
		require.NoError(t, err)
		for range rapid.IntRange(0, 10).Draw(t, "steps") {
			job, _ := e.Job("a")
			if allowed := job.Allowed(); len(allowed) > 0 {
				_, err = e.Do(context.Background(), commandOf(rapid.SampledFrom(allowed).Draw(t, "on"), "a"))
				require.NoError(t, err)
			}
		}
		events, err := ReadBundle(strings.NewReader(exported(t, e, "a", nil)))
		require.NoError(t, err)
		var again statemachine.Job
		for _, event := range events {
			again, err = again.Apply(event)
			require.NoError(t, err)
		}
		job, _ := e.Job("a")
		require.Equal(t, job, again)
		require.WithinDuration(t, time.Now(), again.SubmittedAt, time.Hour)
	})
}

// A mark that a runner has left is an event of the job, and none of its steps.
func TestExplain_counts_no_marks(t *testing.T) {
	e := inMemory(t, crashfs.New(), Options{})
	jobs, err := e.Do(t.Context(), Submit(Submission{JobID: "job"}), Validate("job"), Start("job"), Step("job", "one", 1), Step("job", "#mark", nil))
	require.NoError(t, err)
	x, err := e.Explain(t.Context(), "job")
	require.NoError(t, err)
	require.Equal(t, []string{"one"}, x.Steps)
	require.Contains(t, x.String(), "job_step #mark")
	require.Contains(t, x.String(), "steps done: 1 (one)")
	require.Equal(t, "one", x.Decision.Evidence.LastStep)

	var back []uint64
	for event, err := range e.Backward(t.Context(), "job") {
		require.NoError(t, err)
		back = append(back, event.Seq)
	}
	require.Equal(t, []uint64{5, 4, 3, 2, 1}, back)
	require.Equal(t, jobs[0].Seq, back[0])
	for _, err := range e.Backward(t.Context(), "nobody") {
		require.ErrorIs(t, err, statemachine.ErrUnknownJob)
	}
}

// Of a group that was refused because of one job, the others are not told: theirs was in order, and is often carried out right behind.
func TestExplain_tells_a_job_of_no_others_refusal(t *testing.T) {
	e := inMemory(t, crashfs.New(), Options{})
	_, err := e.Do(t.Context(), Submit(Submission{JobID: "good"}), Submit(Submission{JobID: "bad"}))
	require.NoError(t, err)
	for _, commands := range [][]Command{
		{Validate("good"), Start("bad"), Start("good")},
		{Validate("good"), Validate("bad").IfSeq(1)},
		{Validate("good"), Hold("bad", "")},
	} {
		_, err = e.Do(t.Context(), commands...)
		require.Error(t, err)
	}
	for id, n := range map[string]int{"good": 0, "bad": 3} {
		x, err := e.Explain(t.Context(), id)
		require.NoError(t, err)
		require.Len(t, x.Refused, n, id)
	}
}
