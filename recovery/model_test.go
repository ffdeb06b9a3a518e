package recovery

import (
	"context"
	"encoding/json"
	"errors"
	"slices"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// fact is an event as the reference has it: what was asked for, and where it has to stand.
type fact struct {
	kind     wal.EventType
	id       string
	payload  string // JSON
	text     string
	capacity string
	prev     uint64
	epoch    uint64
	into     statemachine.State
	from     statemachine.State
}

// story is a log as the reference has it: its events in order, seq 1 first. It knows nothing of how the engine folds.
type story []fact

// head is the seq of the job's newest event and where it led to.
func (s story) head(id string) (seq uint64, f fact) {
	for i, f := range slices.Backward(s) {
		if f.id == id {
			return uint64(i + 1), f
		}
	}
	return 0, fact{}
}

// with is the story with a group behind it; false when the reference machine refuses one of its steps.
func (s story) with(epoch uint64, group ...fact) (story, bool) {
	after := slices.Clone(s)
	for _, f := range group {
		seq, before := after.head(f.id)
		f.prev, f.epoch, f.from, f.into = seq, epoch, before.into, step(before.into, f.kind)
		if f.into == "" {
			return s, false
		}
		if seq != 0 {
			f.capacity = before.capacity
		}
		after = append(after, f)
	}
	return after, true
}

// ids are the jobs in order of submission.
func (s story) ids() (ids []string) {
	for _, f := range s {
		if f.prev == 0 {
			ids = append(ids, f.id)
		}
	}
	return ids
}

// command is what asks for the fact.
func (f fact) command() Command {
	switch f.kind {
	case wal.JobSubmitted:
		return Submit(Submission{JobID: f.id, Capability: f.capacity, Args: raw(f.payload)})
	case wal.JobValidated:
		return Validate(f.id)
	case wal.JobStarted:
		return Start(f.id)
	case wal.JobCompleted:
		return Complete(f.id, raw(f.payload))
	case wal.JobFailed:
		return Fail(f.id, errors.New(f.text))
	}
	return RollBack(f.id, f.text)
}

func raw(text string) any {
	if text == "" {
		return nil
	}
	return json.RawMessage(text)
}

var kinds = []wal.EventType{
	wal.JobSubmitted, wal.JobValidated, wal.JobStarted, wal.JobCompleted, wal.JobFailed, wal.JobRolledBack,
}

var payloads = []string{"", "null", `"<&>"`, `{"n":1234567890123456789012345}`, `[[],{}]`, `"größe 🚀"`, `{"a":{"b":[1,2,3]}}`}

// drawFact draws a step, more often than not one that is legal: a test in which everything is refused tests little.
func drawFact(t *rapid.T, s story) fact {
	f := fact{id: rapid.SampledFrom(someIDs).Draw(t, "id"), kind: rapid.SampledFrom(kinds).Draw(t, "kind")}
	if _, before := s.head(f.id); rapid.IntRange(0, 4).Draw(t, "legal") > 0 {
		legal := slices.DeleteFunc(slices.Clone(kinds), func(k wal.EventType) bool { return step(before.into, k) == "" })
		if len(legal) > 0 {
			f.kind = rapid.SampledFrom(legal).Draw(t, "legal kind")
		}
	}
	switch f.kind {
	case wal.JobSubmitted:
		f.capacity = rapid.SampledFrom([]string{"", "shell", "größe"}).Draw(t, "capability")
		f.payload = rapid.SampledFrom(payloads).Draw(t, "args")
	case wal.JobCompleted:
		f.payload = rapid.SampledFrom(payloads).Draw(t, "output")
	case wal.JobFailed, wal.JobRolledBack:
		f.text = rapid.SampledFrom([]string{"", "no", "line\nfeed \x00 <&>"}).Draw(t, "text")
	}
	return f
}

// checkStory holds everything that the engine says against the story. R1, S1.
func checkStory(t require.TestingT, e *Engine, s story) {
	ctx := context.Background()
	require.EqualValues(t, len(s), e.log.LastSeq())
	var jobs, interrupted []string
	counts, walks := make(map[statemachine.State]int), make(map[string][]uint64)
	for i, f := range s {
		walks[f.id] = append(walks[f.id], uint64(i+1))
	}
	for _, id := range s.ids() {
		seq, f := s.head(id)
		checkJob(t, e, s, id)
		jobs = append(jobs, id)
		counts[f.into]++
		if f.into != "completed" && f.into != "failed" && f.into != "rolled_back" && f.epoch != e.log.Epoch() {
			interrupted = append(interrupted, id)
		}
		require.Equal(t, seq, walks[id][len(walks[id])-1])
		seqs, errs := walked(e, id)
		require.Empty(t, errs)
		require.Equal(t, walks[id], seqs)
	}
	require.Equal(t, jobs, inOrder(slices.Collect(e.Jobs(projection.Query{}))), "in order of submission")
	require.Equal(t, interrupted, inOrder(e.Interrupted()), "in order of submission")
	r := e.Report()
	require.Equal(t, counts, r.Jobs)
	require.Equal(t, len(interrupted), r.Interrupted)
	require.Empty(t, r.Parked)
	require.Empty(t, r.Unreadable)
	require.Empty(t, r.Failed)
	require.EqualValues(t, len(s), e.Stats().Events)

	from := uint64(1)
	if len(s) > 0 {
		from += uint64(len(s)) / 2
	}
	checkEvents(t, e, s, from)
	checkEvents(t, e, s, 1)
	require.Zero(t, e.locks.inUse(), "no job stays locked")
	_, known := e.Job("nobody")
	require.False(t, known)
	_, err := e.Validate(ctx, "nobody")
	require.ErrorIs(t, err, statemachine.ErrUnknownJob)
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

// checkJob holds one job against all that the story says of it.
func checkJob(t require.TestingT, e *Engine, s story, id string) {
	job, known := e.Job(id)
	require.True(t, known)
	seq, newest := s.head(id)
	require.Equal(t, []any{id, newest.into, newest.from, seq, newest.epoch, newest.capacity, ""},
		[]any{job.ID, job.State, job.Before, job.Seq, job.Epoch, job.Capability, job.Parked})
	var args, output, failure, reason string
	first := uint64(0)
	for i, f := range s {
		if f.id != id {
			continue
		}
		if first == 0 {
			first = uint64(i + 1)
		}
		switch f.kind {
		case wal.JobSubmitted:
			args = f.payload
		case wal.JobCompleted:
			output = f.payload
		case wal.JobFailed:
			failure = f.text
		case wal.JobRolledBack:
			reason = f.text
		}
	}
	gotArgs, err := e.Read(context.Background(), job.Args)
	require.NoError(t, err)
	gotOutput, err := e.Read(context.Background(), job.Output)
	require.NoError(t, err)
	require.Equal(t, []any{first, args, output, failure, reason},
		[]any{job.FirstSeq, string(gotArgs), string(gotOutput), job.Error, job.RollbackReason})
}

// checkEvents follows the log from a seq to its end, field by field.
func checkEvents(t require.TestingT, e *Engine, s story, from uint64) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	next := from
	if next > uint64(len(s)) {
		return
	}
	for event, err := range e.Follow(ctx, from) {
		require.NoError(t, err)
		f := s[next-1]
		require.Equal(t, []any{next, f.prev, f.epoch, f.kind, f.id, f.payload, f.text, f.capacity},
			[]any{event.Seq, event.Prev, event.Epoch, event.Type, event.JobID,
				string(event.Args) + string(event.Output), event.Error, event.Capability})
		if next++; next > uint64(len(s)) {
			return
		}
	}
}
