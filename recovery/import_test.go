package recovery

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// ancestorLine is a line of the ancestor's, as its own reader took it.
type ancestorLine struct {
	TS         int64           `json:"ts"`
	Type       string          `json:"type"`
	JobID      string          `json:"job_id"`
	Capability string          `json:"capability"`
	Output     json.RawMessage `json:"output"`
	Error      string          `json:"error"`
}

// ancestorJob is what an independent fold makes of a job's lines: last one wins, nothing checked.
type ancestorJob struct {
	State                      statemachine.State
	Capability                 string
	Args, Output, Err          string
	Submitted, Finished, Lines int64
}

// foldAncestor reads a file as the ancestor did: a line that is not JSON is passed over.
func foldAncestor(t *testing.T, text string) (jobs map[string]ancestorJob, lines int) {
	jobs = make(map[string]ancestorJob)
	for line := range strings.Lines(text) {
		var l ancestorLine
		if json.Unmarshal([]byte(line), &l) != nil || l.Type == "" {
			continue
		}
		lines++
		job := jobs[l.JobID]
		job.State = statemachine.State(strings.TrimPrefix(l.Type, "job_"))
		job.Lines++
		if job.Lines == 1 {
			job.Capability = l.Capability
		}
		switch l.Type {
		case "job_submitted":
			job.Args, job.Submitted = compact(t, l.Output), l.TS
		case "job_completed":
			job.Output, job.Finished = compact(t, l.Output), l.TS
		case "job_failed":
			job.Err, job.Finished = l.Error, l.TS
		}
		jobs[l.JobID] = job
	}
	return jobs, lines
}

func compact(t *testing.T, raw json.RawMessage) string {
	if len(raw) == 0 || string(raw) == "null" {
		return ""
	}
	var v any
	require.NoError(t, json.Unmarshal(raw, &v))
	text, err := json.Marshal(v)
	require.NoError(t, err)
	return string(text)
}

func compactPayload(t *testing.T, p statemachine.Payload) string {
	raw, _ := p.JSON()
	return compact(t, raw)
}

// imported appends what Import yields, group by group, and opens an engine on it.
func imported(t *testing.T, text string, group int) (e *Engine, events, complaints int) {
	disk := crashfs.New()
	l, err := wal.Open("jobs", wal.Options{FS: disk})
	require.NoError(t, err)
	var batch []wal.Event
	for event, err := range wal.Import(strings.NewReader(text)) {
		if err != nil {
			var complaint *wal.ImportError
			require.ErrorAs(t, err, &complaint)
			complaints++
			continue
		}
		if batch, events = append(batch, event), events+1; len(batch) == group {
			_, err := l.Append(context.Background(), batch...)
			require.NoError(t, err)
			batch = nil
		}
	}
	if len(batch) > 0 {
		_, err := l.Append(context.Background(), batch...)
		require.NoError(t, err)
	}
	require.NoError(t, l.Close())
	return inMemory(t, disk, Options{}), events, complaints
}

// The ancestor's six logs, appended one by one and in groups: the jobs are those of an independent fold, field by field,
// and counted by state.
func TestImportOfTheAncestorsLogs(t *testing.T) {
	for _, file := range []string{"ordinary", "torn-tail", "torn-then-appended", "torn-utf8", "two-writers", "cleaned"} {
		for _, group := range []int{1, 7, 10_000} {
			text, err := os.ReadFile(filepath.Join("testdata/ancestor", file+".jsonl"))
			require.NoError(t, err)
			e, events, _ := imported(t, string(text), group)
			want, lines := foldAncestor(t, string(text))
			require.Equal(t, lines, events, file)
			counts, got := make(map[statemachine.State]int), states(e)
			require.Len(t, got, len(want), file)
			for id, job := range got {
				require.Empty(t, job.Parked, "%s: %s", file, id)
				w := want[id]
				counts[w.State]++
				var submitted, finished int64
				if submitted = job.SubmittedAt.Unix(); !job.FinishedAt.IsZero() {
					finished = job.FinishedAt.Unix()
				}
				seqs, errs := walked(e, id)
				require.Empty(t, errs)
				require.Equal(t, w, ancestorJob{job.State, job.Capability, compactPayload(t, job.Args),
					compactPayload(t, job.Output), job.Error, submitted, finished, int64(len(seqs))}, "%s: %s", file, id)
			}
			require.Equal(t, counts, e.Report().Jobs, file)
			unfinished := counts["submitted"] + counts["validated"] + counts["started"]
			require.Len(t, e.Interrupted(), unfinished, "whoever was at work on them is gone")
			if group == 1 {
				t.Logf("%s: %d events, %v", file, events, counts)
			}
		}
	}
}

// What no writer should have written: a job that begins in the middle, a step twice, a torn line with an event behind
// it. Complained of, kept, parked; and the jobs beside them live on.
func TestImportOfABrokenLogParksWhatIsBroken(t *testing.T) {
	const text = `{"seq":0,"ts":1,"type":"job_submitted","job_id":"good","capability":"FileRead","output":{"a":1}}
{"seq":1,"ts":2,"type":"job_started","job_id":"middle","capability":"FileRead"}
{"seq":2,"ts":3,"type":"job_submitted","job_id":"twice","capability":"FileRead"}
{"seq":3,"ts":4,"type":"job_submitted","job_id":"twice","capability":"FileRead"}
{"seq":4,"ts":5,"type":"job_va{"seq":4,"ts":5,"type":"job_validated","job_id":"good","capability":"FileRead"}
{"seq":5,"ts":6,"type":"job_completed","job_id":"middle","capability":"FileRead","output":{}}
{"seq":6,"ts":7,"type":"job_validated","job_id":"good","capability":"FileRead"}
`
	for _, group := range []int{1, 3, 100} {
		e, events, complaints := imported(t, text, group)
		require.Equal(t, 6, events)
		require.GreaterOrEqual(t, complaints, 2, "a torn line, a job that begins in the middle")
		good, _ := e.Job("good")
		require.Equal(t, []any{statemachine.Validated, ""}, []any{good.State, good.Parked})
		require.Equal(t, `{"a":1}`, compactPayload(t, good.Args))
		middle, _ := e.Job("middle")
		require.Equal(t, statemachine.None, middle.State)
		require.Contains(t, middle.Parked, "job_started")
		twice, _ := e.Job("twice")
		require.Equal(t, statemachine.Submitted, twice.State)
		require.Contains(t, twice.Parked, "job_submitted")
		require.Equal(t, []string{"middle", "twice"}, inOrder(e.Report().Parked))
		require.Equal(t, []string{"good"}, inOrder(e.Interrupted()))
		for _, id := range []string{"middle", "twice"} {
			_, errs := walked(e, id)
			require.Empty(t, errs, "all of it is there to be looked at")
			_, err := e.Validate(context.Background(), id)
			require.True(t, errors.Is(err, statemachine.ErrParked))
		}
		for job := range e.Jobs(projection.Query{Parked: new(true)}) {
			require.NotEmpty(t, job.Parked)
		}
	}
}
