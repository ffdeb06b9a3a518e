package projection

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// propStatsIsTheModel counts anew, from the jobs as they stand, what Stats has counted event by event.
func propStatsIsTheModel(t *rapid.T) {
	stats, again, m := NewStats(), NewStats(), newModel()
	total := int64(0)
	for range rapid.IntRange(0, 80).Draw(t, "events") {
		e := drawEvent(t, m)
		job, err := m.apply(e)
		require.NoError(t, stats.Apply(e, job))
		require.NoError(t, again.Apply(e, job))
		if err == nil && (e.Type == wal.JobCompleted || e.Type == wal.JobFailed) {
			total++
		}
	}
	v := stats.Read()
	require.Equal(t, v, again.Read())
	require.Equal(t, m.last, v.LastSeq)
	require.Equal(t, total, v.Total.Count)
	requireTally(t, m, Query{}, v.Tally)
	for _, name := range capabilityNames {
		if jobs := m.list(Query{Capabilities: []string{name}}); len(jobs) > 0 {
			requireTally(t, m, Query{Capabilities: []string{name}}, v.Capabilities[name])
		}
	}
	for _, l := range []Latency{v.Validation, v.Waiting, v.Running, v.Total} {
		require.True(t, 0 <= l.P50 && l.P50 <= l.P95 && l.P95 <= l.P99 && l.P99 <= l.Max && l.Max <= longest)
	}
}

func requireTally(t *rapid.T, m *model, q Query, got Tally) {
	ended := map[statemachine.State]int{}
	for _, state := range statemachine.States() {
		q.States = []statemachine.State{state}
		require.Equal(t, len(m.list(q)), got.States[state], "%q", state)
		for _, job := range m.list(q) {
			ended[state]++
			if state == statemachine.RolledBack {
				ended[job.Before]++
			}
		}
	}
	q.States, q.Parked = nil, new(true)
	require.Equal(t, len(m.list(q)), got.Parked)
	completed, failed := ended[statemachine.Completed], ended[statemachine.Failed]
	require.EqualValues(t, completed, got.Ever[statemachine.Completed])
	require.EqualValues(t, failed, got.Ever[statemachine.Failed])
	require.InDelta(t, float64(failed)/float64(max(1, completed+failed)), got.FailureRate, 1e-9)
}

func TestR1_StatsIsTheModel(t *testing.T) { rapid.Check(t, propStatsIsTheModel) }

func FuzzR1_StatsIsTheModel(f *testing.F) { f.Fuzz(rapid.MakeFuzz(propStatsIsTheModel)) }

// feed gives a projection a job's events, at seconds after noon.
func feed(t require.TestingT, p Projection, from uint64, id, capability string, steps ...any) uint64 {
	var job statemachine.Job
	for i := 0; i < len(steps); i += 2 {
		e := wal.Event{Seq: from, Prev: job.Seq, JobID: id, Capability: capability, Type: steps[i].(wal.EventType)}
		e.Time = noon.Add(time.Duration(steps[i+1].(float64) * float64(time.Second)))
		job, _ = job.Apply(e)
		require.NoError(t, p.Apply(e, job))
		from++
	}
	return from
}

func TestStatsStages(t *testing.T) {
	s := NewStats()
	seq := feed(t, s, 1, "a", "shell", wal.JobSubmitted, 0.0, wal.JobValidated, 1.0, wal.JobStarted, 3.0, wal.JobCompleted, 7.0)
	seq = feed(t, s, seq, "b", "shell", wal.JobSubmitted, 10.0, wal.JobFailed, 2.0) // its clock went back
	feed(t, s, seq, "c", "shell", wal.JobSubmitted, 0.0, wal.JobValidated, 1e9)     // and 30 years on
	v := s.Read()

	near := func(want time.Duration, got time.Duration) { require.InEpsilon(t, float64(want), float64(got), 0.01) }
	near(4*time.Second, v.Running.P50)
	near(2*time.Second, v.Waiting.P99)
	near(7*time.Second, v.Total.Max)
	near(time.Second, v.Validation.P50)
	near(longest, v.Validation.Max)
	require.Equal(t, [4]int64{2, 1, 1, 2}, [4]int64{v.Validation.Count, v.Waiting.Count, v.Running.Count, v.Total.Count})
	require.Zero(t, v.Total.P50, "a time that went back counts as none")
	require.Equal(t, 0.5, v.FailureRate)
	require.Equal(t, noon, v.From)
	require.Equal(t, noon.Add(1e9*time.Second), v.To)
}

func TestStatsBoundsCapabilities(t *testing.T) {
	s := NewStats()
	seq := uint64(1)
	for i := range MaxCapabilities + 5 {
		seq = feed(t, s, seq, fmt.Sprint(i), fmt.Sprint("made up ", i), wal.JobSubmitted, 0.0, wal.JobFailed, 1.0)
	}
	feed(t, s, seq, "last", "made up 0", wal.JobSubmitted, 0.0)
	v := s.Read()
	require.Len(t, v.Capabilities, MaxCapabilities)
	require.Equal(t, 5, v.Other.States[statemachine.Failed])
	require.Equal(t, 1, v.Capabilities["made up 0"].States[statemachine.Submitted])
	require.Equal(t, MaxCapabilities+5, v.States[statemachine.Failed])
}

func TestStatsAsJSON(t *testing.T) {
	s := NewStats()
	feed(t, s, 1, "a", "shell", wal.JobSubmitted, 0.0, wal.JobFailed, 1.0)
	text, err := json.Marshal(s.Read())
	require.NoError(t, err)
	var back StatsView
	require.NoError(t, json.Unmarshal(text, &back))
	require.Equal(t, s.Read(), back)
}

func BenchmarkStatsApply(b *testing.B) {
	events, after := folded(10_000)
	b.ReportAllocs()
	for b.Loop() {
		s := NewStats()
		for i, e := range events {
			_ = s.Apply(e, after[i])
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(events)), "ns/event")
}

func BenchmarkStatsRead(b *testing.B) {
	s := NewStats()
	events, after := folded(10_000)
	for i, e := range events {
		_ = s.Apply(e, after[i])
	}
	for b.Loop() {
		_ = s.Read()
	}
}
