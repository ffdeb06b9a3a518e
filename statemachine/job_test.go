package statemachine

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/wal"
)

var noon = time.Date(2024, 5, 15, 12, 0, 0, 5, time.UTC)

// drawHistory draws one job's events as a log may hold them: mostly legal, with gaps between seqs, sometimes with a
// wrong prev, an unknown type or a problem, and with a clock that jumps.
func drawHistory(t *rapid.T) []wal.Event {
	var events []wal.Event
	var seq uint64
	var state State
	var held bool
	for range rapid.IntRange(0, 12).Draw(t, "events") {
		e := wal.Event{Prev: seq, JobID: "j", Capability: "c", Type: likelyType(t, state, held)}
		seq += rapid.Uint64Range(1, 5).Draw(t, "gap")
		e.Seq, e.Epoch = seq, seq/4+1
		e.Time = noon.Add(time.Duration(rapid.Int64Range(-1e12, 1e12).Draw(t, "time")))
		switch rapid.IntRange(0, 19).Draw(t, "fault") {
		case 0:
			e.Prev += rapid.Uint64Range(1, 3).Draw(t, "off by")
		case 1:
			e.Problem = "args: not JSON"
		}
		if e.Type == wal.JobHeld || e.Type == wal.JobFailed {
			e.Error = rapid.SampledFrom([]string{"", "why"}).Draw(t, "error")
		}
		if e.Type == wal.JobStep || e.Type == wal.JobStepUndone {
			e.Args = json.RawMessage(rapid.SampledFrom([]string{"", `{"step":"#"}`, `{"step":"a"}`, `{"step":"a#2"}`, `{"step":"#mark"}`}).Draw(t, "args"))
		}
		state, _ = reference(state, e.Type)
		held, _ = referenceHold(held, e.Type)
		events = append(events, e)
	}
	return events
}

func propApplyIsTheReference(t *rapid.T) {
	var j Job
	var err error
	events := drawHistory(t)
	for i, e := range events {
		before := j
		j, err = j.Apply(e)
		state, held, parkedBy := referenceFold(events[:i+1])

		require.Equal(t, state, j.State)
		require.Equal(t, held, j.Held != "")
		require.Equal(t, parkedBy, j.ParkedSeq)
		require.Equal(t, parkedBy != 0, j.Parked != "")
		require.Equal(t, []uint64{events[0].Seq, e.Seq, e.Epoch}, []uint64{j.FirstSeq, j.Seq, j.Epoch})
		require.GreaterOrEqual(t, min(j.Queued(), j.Took()), time.Duration(0))
		switch {
		case parkedBy == 0:
			require.NoError(t, err)
			require.Equal(t, before.State, j.Before)
			require.Equal(t, count(events[:i+1], "job_started", "job_resumed"), j.Attempts)
			real := slices.DeleteFunc(slices.Clone(events[:i+1]), func(e wal.Event) bool { return bytes.Contains(e.Args, []byte(`"#`)) })
			require.Equal(t, max(0, count(real, "job_step")-count(real, "job_step_undone")), j.Steps)
			begun, done := count(events[:i+1], "job_step_undone") > 0, count(events[:i+1], "job_rolled_back") > 0
			require.Equal(t, begun && !done, j.RollingBack)
		case parkedBy == e.Seq:
			var ae *ApplyError
			require.ErrorAs(t, err, &ae)
			require.Contains(t, j.Parked, fmt.Sprintf("seq %d (%.64s)", e.Seq, e.Type))
		default:
			require.ErrorIs(t, err, ErrParked)
			require.Equal(t, before.Parked, j.Parked)
		}
	}
}

func TestS1_ApplyIsTheReference(t *testing.T) { rapid.Check(t, propApplyIsTheReference) }

func FuzzS1_ApplyIsTheReference(f *testing.F) { f.Fuzz(rapid.MakeFuzz(propApplyIsTheReference)) }

// life returns the events of one job, one after the other, a second apart.
func life(types ...wal.EventType) []wal.Event {
	events := make([]wal.Event, len(types))
	for i, typ := range types {
		events[i] = wal.Event{
			Seq: uint64(i + 1), Prev: uint64(i), Epoch: 1, Time: noon.Add(time.Duration(i) * time.Second),
			Type: typ, JobID: "7f3a", Capability: "shell",
		}
		switch typ {
		case wal.JobSubmitted:
			events[i].Args = json.RawMessage(`{"cmd":"<ls>"}`)
		case wal.JobCompleted:
			events[i].Output = json.RawMessage(`12345678901234567890123456`)
		case wal.JobFailed:
			events[i].Error = "exit status 1"
		case wal.JobRolledBack:
			events[i].Error = "no longer wanted"
		}
	}
	return events
}

func fold(t require.TestingT, events []wal.Event) Job {
	var j Job
	var err error
	for _, e := range events {
		j, err = j.Apply(e)
		require.NoError(t, err)
	}
	return j
}

func TestApplyKeepsWhatEventsSay(t *testing.T) {
	done := fold(t, life(wal.JobSubmitted, wal.JobValidated, wal.JobStarted, wal.JobCompleted))
	second := func(n int) time.Time { return noon.Add(time.Duration(n) * time.Second) }
	require.Equal(t, Job{
		ID: "7f3a", Capability: "shell", State: Completed, Before: Started,
		Args:     NewPayload(1, json.RawMessage(`{"cmd":"<ls>"}`)),
		Output:   NewPayload(4, json.RawMessage(`12345678901234567890123456`)),
		FirstSeq: 1, Seq: 4, Epoch: 1, Attempts: 1,
		SubmittedAt: second(0), ValidatedAt: second(1), StartedAt: second(2), FinishedAt: second(3),
	}, done)
	require.True(t, done.Finished())
	require.Equal(t, 2*time.Second, done.Queued())
	require.Equal(t, time.Second, done.Took())

	undone := fold(t, life(wal.JobSubmitted, wal.JobFailed, wal.JobRolledBack))
	require.Equal(t, [2]string{"exit status 1", "no longer wanted"}, [2]string{undone.Error, undone.RollbackReason})
	require.Equal(t, Failed, undone.Before, "what it was before it was rolled back")
	require.Equal(t, second(2), undone.RolledBackAt)
	require.Zero(t, undone.Took(), "it never started")
}

// Every event of the lifecycle must leave something in the job, so that none is added to the table and forgotten here.
func TestApplyKnowsEveryEvent(t *testing.T) {
	for _, e := range lifecycle {
		as := Job{Held: "why", Steps: 5}
		before := as
		as.record(&wal.Event{Type: wal.EventType(e.Name), Time: noon, Output: json.RawMessage("1")})
		require.NotEqual(t, before, as, e.Name)
	}
}

func TestR4_ParkedJobKeepsItsFirstReason(t *testing.T) {
	j := fold(t, life(wal.JobSubmitted))
	j, err := j.Apply(wal.Event{Seq: 5, Prev: 1, Epoch: 2, Type: wal.JobStarted, JobID: "7f3a", Time: noon})
	var te *TransitionError
	require.ErrorAs(t, err, &te)
	require.Equal(t, "7f3a", te.JobID)
	require.EqualError(t, err, `statemachine: job "7f3a" parked by `+j.Parked)
	require.Equal(t, "seq 5 (job_started): job_started not allowed from submitted; allowed: job_validated, job_failed, job_held", j.Parked)

	parked, err := j.Apply(wal.Event{Seq: 9, Prev: 5, Epoch: 3, Type: wal.JobValidated, JobID: "7f3a", Time: noon})
	require.EqualError(t, err, `statemachine: job "7f3a" is parked: `+j.Parked)
	require.ErrorIs(t, err, ErrParked)
	j.Seq, j.Epoch = 9, 3
	require.Equal(t, j, parked, "only seq and epoch go on")
}

func TestR4_FirstEventParks(t *testing.T) {
	for _, c := range []struct {
		event  wal.Event
		parked string
	}{
		{wal.Event{Seq: 3, Type: wal.JobStarted},
			"seq 3 (job_started): job_started for a job that was never submitted; allowed: job_submitted"},
		{wal.Event{Seq: 3, Prev: 2, Type: wal.JobSubmitted},
			"seq 3 (job_submitted): its prev is 2, the job's newest event is 0"},
		{wal.Event{Seq: 3, Problem: "args: depth over 100", Type: wal.JobSubmitted},
			"seq 3 (job_submitted): not readable: args: depth over 100"},
		{wal.Event{Seq: 3, Type: "job_paused"},
			`seq 3 (job_paused): event type "job_paused" is not known to this version; allowed: job_submitted`},
	} {
		c.event.JobID, c.event.Capability = "j", "c"
		j, err := Job{}.Apply(c.event)
		require.Error(t, err)
		require.Equal(t, Job{ID: "j", Capability: "c", FirstSeq: 3, Seq: 3, Parked: c.parked, ParkedSeq: 3}, j)
		require.False(t, j.Finished())
	}
}

func TestApplyMisdirected(t *testing.T) {
	j := fold(t, life(wal.JobSubmitted, wal.JobValidated))
	for _, e := range []wal.Event{
		{Seq: 3, Prev: 2, Type: wal.JobStarted, JobID: "other"},
		{Seq: 3, Prev: 2, Type: wal.JobStarted},
		{Seq: 2, Prev: 1, Type: wal.JobValidated, JobID: "7f3a"}, // applied before: exactly once
	} {
		same, err := j.Apply(e)
		require.ErrorIs(t, err, ErrMisdirected)
		require.Equal(t, j, same)
	}
}

func TestDurationsAreNeverNegative(t *testing.T) {
	events := life(wal.JobSubmitted, wal.JobValidated, wal.JobStarted, wal.JobFailed)
	events[2].Time, events[3].Time = noon.Add(-time.Hour), noon.Add(-2*time.Hour)
	j := fold(t, events)
	require.Zero(t, j.Queued())
	require.Zero(t, j.Took())
	require.Equal(t, Failed, j.State, "order comes from seq")
}

func TestTimesAreUTCWithoutMonotonicReading(t *testing.T) {
	now := time.Now()
	j, err := Job{}.Apply(wal.Event{Seq: 1, Type: wal.JobSubmitted, JobID: "j", Time: now.In(time.FixedZone("x", 3600))})
	require.NoError(t, err)
	require.Equal(t, time.Unix(now.Unix(), int64(now.Nanosecond())).UTC(), j.SubmittedAt)
}

// A payload that is let go keeps its place and its size, and takes no room.
func TestPayloadIsShed(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		raw := json.RawMessage(fmt.Sprintf("%q", strings.Repeat("x", rapid.IntRange(0, 5000).Draw(t, "length"))))
		p, limit := NewPayload(7, raw), rapid.IntRange(-1, 6000).Draw(t, "limit")
		shed := p.Shed(limit)
		require.Equal(t, len(raw), shed.Size())
		require.EqualValues(t, 7, shed.Seq())
		require.False(t, shed.IsZero())
		if len(raw) <= limit {
			require.Equal(t, p, shed)
			require.True(t, shed.Held())
			return
		}
		require.Equal(t, UnheldPayload(7, len(raw)), shed)
		require.NotEqual(t, UnheldPayload(7, len(raw)+1), shed)
		require.Equal(t, shed, shed.Shed(limit))
		require.False(t, shed.Held())
		got, ok := shed.JSON()
		require.Nil(t, got)
		require.False(t, ok)
		appended, ok := shed.AppendJSON([]byte("before"))
		require.Equal(t, "before", string(appended))
		require.False(t, ok)
		text, err := json.Marshal(Job{ID: "a", Args: shed})
		require.NoError(t, err)
		require.Contains(t, string(text), `"args":null`)
	})
}

func TestPayload(t *testing.T) {
	p := NewPayload(7, json.RawMessage(`{"n":12345678901234567890123456}`))
	require.Equal(t, 32, p.Size())
	require.EqualValues(t, 7, p.Seq())
	require.False(t, p.IsZero())
	raw, ok := p.JSON()
	require.True(t, ok)
	raw[0] = 'x'
	again, _ := p.JSON()
	require.JSONEq(t, `{"n":12345678901234567890123456}`, string(again), "what was handed out is the caller's")

	for _, empty := range []Payload{{}, NewPayload(7, nil), NewPayload(7, json.RawMessage{})} {
		raw, ok := empty.JSON()
		require.True(t, empty.IsZero())
		require.False(t, ok)
		require.Nil(t, raw)
		text, err := json.Marshal(empty)
		require.NoError(t, err)
		require.Equal(t, "null", string(text))
	}
	require.False(t, NewPayload(1, json.RawMessage("null")).IsZero(), "null is a value")
	appended, ok := NewPayload(1, json.RawMessage("null")).AppendJSON([]byte("before "))
	require.True(t, ok)
	require.Equal(t, "before null", string(appended))
	require.Equal(t, Payload{}, UnheldPayload(7, 0))
	require.Equal(t, Payload{}, UnheldPayload(7, -1))
	require.Equal(t, math.MaxInt, UnheldPayload(7, math.MaxInt).Size())
	require.Equal(t, Payload{}, Payload{}.Shed(-1))
	require.EqualValues(t, 32, reflect.TypeFor[Payload]().Size(), "a million jobs have two each")
}

func TestJobAsJSON(t *testing.T) {
	j := fold(t, life(wal.JobSubmitted, wal.JobFailed, wal.JobRolledBack))
	text, err := json.Marshal(j)
	require.NoError(t, err)
	require.JSONEq(t, `{"id":"7f3a","capability":"shell","state":"rolled_back","before":"failed",
		"args":{"cmd":"<ls>"},"error":"exit status 1","rollback_reason":"no longer wanted",
		"first_seq":1,"seq":3,"epoch":1,"submitted_at":"2024-05-15T12:00:00.000000005Z",
		"finished_at":"2024-05-15T12:00:01.000000005Z","rolled_back_at":"2024-05-15T12:00:02.000000005Z"}`, string(text))
	var back Job
	require.NoError(t, json.Unmarshal(text, &back))
	again, err := json.Marshal(back)
	require.NoError(t, err)
	require.Equal(t, string(text), string(again))
}

func BenchmarkApply(b *testing.B) {
	events := life(wal.JobSubmitted, wal.JobValidated, wal.JobStarted, wal.JobCompleted)
	b.ReportAllocs()
	for b.Loop() {
		var j Job
		for _, e := range events {
			j, _ = j.Apply(e)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(events)), "ns/event")
}
