package crashtest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// What an error means is what the engine's documentation says of it; what it does not speak of means nothing.
func TestOutcomeOf(t *testing.T) {
	both := fmt.Errorf("%w: %w", wal.ErrFailed, wal.ErrOutcomeUnknown)
	for _, tt := range []struct {
		err  error
		want Outcome
	}{
		{nil, OutcomeOK},
		{both, OutcomeUnknown},
		{errors.Join(&wal.NoSpaceError{Err: syscall.ENOSPC}, both), OutcomeUnknown},
		{fmt.Errorf("recovery: %w", wal.ErrFailed), OutcomeFailed},
		{&wal.NoSpaceError{Err: syscall.ENOSPC}, OutcomeFailed},
		{&wal.InvalidError{}, OutcomeFailed},
		{&wal.TooLargeError{}, OutcomeFailed},
		{wal.ErrClosed, OutcomeFailed},
		{wal.ErrReadOnly, OutcomeFailed},
		{&statemachine.TransitionError{}, OutcomeFailed},
		{&statemachine.ParkedError{}, OutcomeFailed},
		{recovery.ErrConflict, OutcomeFailed},
		{context.Canceled, OutcomeFailed},
		{context.DeadlineExceeded, OutcomeFailed},
		{&wal.CorruptError{}, OutcomeUnknown},
		{io.ErrUnexpectedEOF, OutcomeUnknown},
		{syscall.EIO, OutcomeUnknown},
	} {
		require.Equal(t, tt.want, OutcomeOf(tt.err), "%v", tt.err)
	}
}

// doer answers as it is told, after it has been asked.
type doer func(commands []recovery.Command) ([]statemachine.Job, error)

func (d doer) Do(_ context.Context, commands ...recovery.Command) ([]statemachine.Job, error) {
	return d(commands)
}

// A command's place is found by the job that its own step left where it is; where others have moved all of them on, it
// is not known, and that is no mistake.
func TestHistoryDoFindsThePlace(t *testing.T) {
	job := func(id string, state statemachine.State, seq uint64) statemachine.Job {
		return statemachine.Job{ID: id, State: state, Seq: seq}
	}
	for _, tt := range []struct {
		name  string
		steps []Step
		jobs  []statemachine.Job
		first uint64
	}{
		{"one", []Step{submit("a")}, []statemachine.Job{job("a", "submitted", 7)}, 7},
		{"two of one job", []Step{submit("a"), validate("a")}, []statemachine.Job{job("a", "validated", 8), job("a", "validated", 8)}, 7},
		{"two jobs", []Step{submit("a"), submit("b")}, []statemachine.Job{job("a", "submitted", 7), job("b", "submitted", 8)}, 7},
		{"one was moved on", []Step{submit("a"), submit("b")}, []statemachine.Job{job("a", "validated", 11), job("b", "submitted", 8)}, 7},
		{"all were moved on", []Step{submit("a")}, []statemachine.Job{job("a", "started", 12)}, 0},
		{"parked since", []Step{submit("a")}, []statemachine.Job{{ID: "a", State: "submitted", Seq: 9, Parked: "why"}}, 0},
		{"no answer worth the name", []Step{submit("a")}, nil, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var h History
			_, err := h.Do(context.Background(), doer(func([]recovery.Command) ([]statemachine.Job, error) { return tt.jobs, nil }), tt.steps...)
			require.NoError(t, err)
			require.Equal(t, tt.first, h.Attempts()[0].First)
			require.Equal(t, OutcomeOK, h.Attempts()[0].Outcome)
		})
	}
}

// The beginning is on record before anything is done, and whoever panics leaves an unknown outcome.
func TestHistoryDoRecordsTheBeginningFirst(t *testing.T) {
	var h History
	require.Panics(t, func() {
		_, _ = h.Do(context.Background(), doer(func([]recovery.Command) ([]statemachine.Job, error) {
			require.Len(t, h.Attempts(), 1)
			panic("killed")
		}), submit("a"))
	})
	require.Equal(t, OutcomeUnknown, h.Attempts()[0].Outcome)
	require.Zero(t, h.Attempts()[0].End)
}

// What an engine drops or replaces is dropped and replaced on record, too, and a job without a name gets one: otherwise
// a true log would be taken for a false one.
func TestHistoryDoRecordsWhatTheEngineIsAsked(t *testing.T) {
	var h History
	e := opened(t, crashfs.New())
	_, err := h.Do(t.Context(), e, Step{Type: wal.JobSubmitted, Capability: "shell", Output: json.RawMessage(`1`)})
	require.NoError(t, err)
	id := h.Attempts()[0].Steps[0].JobID
	require.Len(t, id, 32)
	_, err = h.Do(t.Context(), e, Step{Type: wal.JobValidated, JobID: id, Capability: "other", Args: json.RawMessage(`1`)},
		Step{Type: wal.JobFailed, JobID: id, Error: "bad \xff\xfe text"})
	require.NoError(t, err)
	_, err = h.Do(t.Context(), e, Step{Type: wal.JobSubmitted, JobID: "b", Args: json.RawMessage(`{"a":`)})
	require.ErrorIs(t, err, wal.ErrInvalid)
	_, err = h.Do(t.Context(), e)
	require.ErrorIs(t, err, wal.ErrInvalid)
	require.NoError(t, Check(&h, Events(e)))
	require.NoError(t, Check(reread(t, &h), Events(e)))
	require.NoError(t, e.Close())
}

func opened(t require.TestingT, disk wal.FS) *recovery.Engine {
	e, err := recovery.Open(context.Background(), "jobs", recovery.Options{WAL: wal.Options{FS: disk, SegmentBytes: 4096}})
	require.NoError(t, err)
	return e
}

// Only the first end counts, whoever brings it.
func TestPendingEndsOnce(t *testing.T) {
	var h History
	p := h.Begin(submit("a"))
	p.Done(0, wal.ErrClosed)
	p.OK(1)
	p.Unknown(nil)
	require.Len(t, h.Attempts(), 1)
	require.Equal(t, OutcomeFailed, h.Attempts()[0].Outcome)
	require.Contains(t, h.Attempts()[0].Err, "closed")
	require.NoError(t, Check(reread(t, &h), yields(nil)))
}

// steps draws what anybody might ask for, the worst included.
func hostileSteps() *rapid.Generator[[]Step] {
	payload := rapid.OneOf(
		rapid.SampledFrom([]json.RawMessage{nil, json.RawMessage(`null`), json.RawMessage(` { "a" : 1e400 } `), json.RawMessage(`"<&>\u2028` + "\u2028" + `"`),
			json.RawMessage(`{"a":`), json.RawMessage("\"\xff\""), json.RawMessage(strings.Repeat("[", 9999) + strings.Repeat("]", 9999)),
			json.RawMessage(strings.Repeat("[", 20000)), json.RawMessage("1\n2"), json.RawMessage("\"\x00\"")}),
		rapid.Custom(func(t *rapid.T) json.RawMessage { return rapid.SliceOfN(rapid.Byte(), 1, 20).Draw(t, "bytes") }))
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Step {
		return Step{Type: wal.EventType(rapid.String().Draw(t, "type")), JobID: rapid.String().Draw(t, "id"), Capability: rapid.String().Draw(t, "capability"),
			Args: payload.Draw(t, "args"), Output: payload.Draw(t, "output"), Error: rapid.String().Draw(t, "error")}
	}), 0, 3)
}

// What is read is what was written, whatever was asked for.
func TestHistoryRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var h History
		var file bytes.Buffer
		if rapid.Bool().Draw(t, "streamed") {
			h.Stream(&file)
		}
		for range rapid.IntRange(0, 6).Draw(t, "records") {
			p := h.Begin(hostileSteps().Draw(t, "steps")...)
			switch rapid.IntRange(0, 7).Draw(t, "then") {
			case 0:
				p.OK(rapid.Uint64().Draw(t, "first"))
			case 1:
				p.Done(0, errors.New(rapid.String().Draw(t, "error")))
			case 2:
				h.Crash()
				p.Failed(errors.New("\xff"))
			case 3:
				h.Opened(1+rapid.Uint64().Draw(t, "epoch")/2, rapid.Uint64().Draw(t, "last"))
			case 4:
				h.Saw(wal.Event{Seq: 1 + rapid.Uint64().Draw(t, "seq")/2, JobID: "a"})
			case 5:
				h.Dropped(rapid.Uint64().Draw(t, "before"))
			case 6:
				h.Compacts()
			}
		}
		require.NoError(t, h.Err())
		if file.Len() == 0 {
			_, err := h.WriteTo(&file)
			require.NoError(t, err)
		}
		again, err := ReadHistory(bytes.NewReader(file.Bytes()))
		require.NoError(t, err)
		require.Zero(t, again.Torn())
		a, b := h.Attempts(), again.Attempts()
		require.Equal(t, len(a), len(b))
		for i := range a {
			require.Equal(t, len(a[i].Steps), len(b[i].Steps))
			for k := range a[i].Steps {
				require.True(t, a[i].Steps[k].Same(b[i].Steps[k]), "%#v\n%#v", a[i].Steps[k], b[i].Steps[k])
				require.Equal(t, a[i].Steps[k].Args == nil, b[i].Steps[k].Args == nil, "none is not null")
			}
			a[i].Steps, b[i].Steps = nil, nil
		}
		require.Equal(t, a, b)
		require.Equal(t, h.testify(nil).saw, again.testify(nil).saw)
	})
}

// A process may die at any byte that it writes. What it wrote before is read, what is torn is dropped and counted; the
// process that comes after it appends to the same file, and is read, too.
func TestHistoryIsReadableAfterAnyCut(t *testing.T) {
	var h History
	var file bytes.Buffer
	h.Stream(&file)
	h.Opened(1, 0)
	h.Begin(submit("a"), validate("a")).OK(1)
	p := h.Begin(submit("b"))
	h.Saw(logOf(submit("a"))[0])
	p.Failed(errors.New("no"))
	whole := file.Bytes()
	records := len(h.records)
	for cut := range len(whole) + 1 {
		left := bytes.NewBuffer(bytes.Clone(whole[:cut]))
		first, err := ReadHistory(bytes.NewReader(left.Bytes()))
		require.NoError(t, err, "cut at %d", cut)
		require.LessOrEqual(t, first.Torn(), 1)
		lines := bytes.Count(whole[:cut], []byte("}\n"))
		atEnd := cut < len(whole) && whole[cut] == '\n' && cut > 0 // all but the newline is there
		require.Equal(t, lines+map[bool]int{true: 1}[atEnd], len(first.records), "cut at %d", cut)

		var next History
		next.Stream(left)
		next.Opened(2, 2)
		next.Begin(submit("c")).OK(3)
		both, err := ReadHistory(bytes.NewReader(left.Bytes()))
		require.NoError(t, err, "cut at %d", cut)
		require.Equal(t, len(first.records)+4, len(both.records), "cut at %d", cut)
		require.Equal(t, first.Torn(), both.Torn())
	}
	require.Equal(t, 7, records)

	// Files one after the other are one history; a process that is torn does not take the other's lines with it.
	torn := whole[:len(whole)-5]
	var other History
	other.Begin(submit("d")).OK(0)
	var rest bytes.Buffer
	_, err := other.WriteTo(&rest)
	require.NoError(t, err)
	both, err := ReadHistory(io.MultiReader(bytes.NewReader(torn), strings.NewReader("\n"), &rest))
	require.NoError(t, err)
	require.Len(t, both.Attempts(), 3)
	require.Equal(t, 1, both.Torn())
	require.Equal(t, OutcomeUnknown, both.Attempts()[1].Outcome, "its end was torn")
}

// Hostile files are refused, with the line and the reason.
func TestReadHistoryRefuses(t *testing.T) {
	const (
		run   = `{"kind":"run","run":"r","n":1,"ns":0,"version":1,"start":"2026-01-01T00:00:00Z"}` + "\n"
		begin = `{"kind":"begin","run":"r","n":2,"ns":1,"command":1,"steps":[{"type":"job_submitted","job_id":"a"}]}` + "\n"
	)
	for _, tt := range []struct{ name, file, want string }{
		{"no history", "hello\nworld\n", `line 1: not a record: "hello"`},
		{"no run", begin, `line 1: a record of run "r", which never began`},
		{"a run twice", run + run, `line 2: run "r" begins twice`},
		{"a newer version", strings.Replace(run, `"version":1`, `"version":2`, 1), "line 1: version 2, this one knows 1"},
		{"no version", `{"kind":"run","run":"r","n":1}`, "line 1: run: no version"},
		{"a line is missing", run + strings.Replace(begin, `"n":2`, `"n":3`, 1), "line 2: record 3 of run r where 2 was expected"},
		{"a line twice", run + begin + begin, "line 3: record 2 of run r where 3 was expected"},
		{"time goes back", run + begin + `{"kind":"crash","run":"r","n":3,"ns":0}`, "line 3: time goes back, from 1 to 0 ns"},
		{"torn in the middle", run + `{"kind":"be` + "\n" + `{"kind":"crash","run":"r","n":3,"ns":0}`, "line 3: record 3 of run r where 2 was expected"},
		{"torn too often", run + strings.Repeat(`{"kind":"be`+"\n", 3), "line 4: not a record"},
		{"an unknown kind", run + `{"kind":"end?","run":"r","n":2}`, `line 2: a record of unknown kind "end?"`},
		{"an end without beginning", run + `{"kind":"end","run":"r","n":2,"command":1,"outcome":"ok"}`, "line 2: end: command 1 was never begun"},
		{"two ends", run + begin + `{"kind":"end","run":"r","n":3,"ns":1,"command":1,"outcome":"ok"}` + "\n" +
			`{"kind":"end","run":"r","n":4,"ns":1,"command":1,"outcome":"ok"}`, "line 4: end: command 1 was never begun, or has ended"},
		{"an unknown outcome", run + begin + `{"kind":"end","run":"r","n":3,"ns":1,"command":1,"outcome":"fine"}`, `line 3: end: outcome "fine"`},
		{"a step that is not there", run + begin + `{"kind":"end","run":"r","n":3,"ns":1,"command":1,"outcome":"ok","seq":5,"step":1}`, "line 3: end: step 1 of 1"},
		{"a step before it", run + begin + `{"kind":"end","run":"r","n":3,"ns":1,"command":1,"outcome":"ok","seq":5,"step":-1}`, "line 3: end: step -1 of 1"},
		{"a command twice", run + begin + strings.Replace(begin, `"n":2`, `"n":3`, 1), "line 3: begin: command 1 where 2 was expected"},
		{"no digest", run + `{"kind":"saw","run":"r","n":2,"seq":1,"digest":"00"}`, "line 2: saw"},
		{"a type that does not fit", run + `{"kind":"saw","run":"r","n":"2"}`, "line 2: not a record: json"},
		{"steps that are none", run + `{"kind":"begin","run":"r","n":2,"steps":{}}`, "line 2: steps: not an array"},
		{"epoch 0", run + `{"kind":"opened","run":"r","n":2}`, "line 2: opened: epoch 0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ReadHistory(strings.NewReader(tt.file))
			var bad *HistoryError
			require.ErrorAs(t, err, &bad)
			require.ErrorContains(t, err, tt.want)
		})
	}
	_, err := ReadHistory(io.MultiReader(strings.NewReader(run), iotestErr{}))
	require.ErrorIs(t, err, syscall.EIO)
}

type iotestErr struct{}

func (iotestErr) Read([]byte) (int, error) { return 0, syscall.EIO }

// endless is a file of one line, or of lines, that never ends.
type endless struct {
	head, unit string
	read       int64
}

func (r *endless) Read(p []byte) (int, error) {
	n := copy(p, r.head)
	r.head = r.head[n:]
	for n < len(p) && r.head == "" {
		n += copy(p[n:], r.unit)
	}
	r.read += int64(n)
	return n, nil
}

// A file that never ends is not read for ever.
func TestReadHistoryBoundsMemory(t *testing.T) {
	const run = `{"kind":"run","run":"r","n":1,"ns":0,"version":1,"start":"2026-01-01T00:00:00Z"}` + "\n"
	small := limits{line: 1 << 20, memory: 4 << 20}
	for _, tt := range []struct{ name, head, unit, want string }{
		{"one line", run, "x", "line 2: longer than"},
		{"steps", run + `{"kind":"begin","run":"r","n":2,"command":1,"steps":[{}`, ",{}", "line 2: longer than"},
		{"bad lines", run, "{\"kind\":\"\n", "line 4: not a record"},
	} {
		r := &endless{head: tt.head, unit: tt.unit}
		_, err := readHistory(r, small)
		require.ErrorContains(t, err, tt.want, tt.name)
		require.Less(t, r.read, int64(2<<20), tt.name)
	}
	var many strings.Builder
	many.WriteString(run)
	for n := range 20000 {
		fmt.Fprintf(&many, `{"kind":"crash","run":"r","n":%d}`+"\n", n+2)
	}
	_, err := readHistory(strings.NewReader(many.String()), small)
	require.ErrorContains(t, err, "takes more than 4194304 bytes")
	_, err = readHistory(strings.NewReader(run+`{"kind":"begin","run":"r","n":2,"command":1,"steps":[{}`+strings.Repeat(",{}", 20000)+"]}"), small)
	require.ErrorContains(t, err, "takes more than 4194304 bytes")
}

func FuzzReadHistory(f *testing.F) {
	var h History
	h.Opened(1, 0)
	h.Begin(submit("a"), validate("a")).OK(1)
	h.Begin(Step{Type: wal.JobSubmitted, JobID: "b", Args: json.RawMessage(`{"a`)}).Failed(io.EOF)
	h.Saw(logOf(submit("a"))[0])
	h.Crash()
	var file bytes.Buffer
	_, _ = h.WriteTo(&file)
	f.Add(file.Bytes())
	f.Add(file.Bytes()[:file.Len()/2])
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := readHistory(bytes.NewReader(data), limits{line: 1 << 16, memory: 1 << 20})
		if err != nil {
			return
		}
		again := reread(t, h)
		require.Equal(t, len(h.records), len(again.records))
		require.Equal(t, Check(h, yields(nil)) == nil, Check(again, yields(nil)) == nil)
		require.Equal(t, len(h.records), len(Merge(h).records))
	})
}

// A disk that is full does not stop the program, which can ask.
func TestHistoryStreamFails(t *testing.T) {
	var h History
	h.Stream(failing{})
	require.ErrorIs(t, h.Err(), syscall.ENOSPC)
	h.Begin(submit("a")).OK(1)
	require.ErrorIs(t, h.Err(), syscall.ENOSPC)
	require.NoError(t, Check(&h, yields(logOf(submit("a")))))
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

// Histories of processes that ran side by side make one, in the order of the clock, and each keeps its own.
func TestMerge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // the machine's clock may be set in between
		tick := func() { time.Sleep(time.Millisecond) }
		var writer, reader History
		writer.Opened(1, 0)
		p := writer.Begin(submit("a"))
		tick()
		reader.Saw(logOf(submit("a"))[0])
		tick()
		p.OK(1)
		merged := Merge(reread(t, &writer), reread(t, &reader))
		require.NoError(t, Check(merged, yields(logOf(submit("a")))))
		require.Equal(t, RuleAcknowledged, judge(t, merged, nil))
		require.NoError(t, Check(reread(t, merged), yields(logOf(submit("a")))))
		require.Len(t, merged.Attempts(), 1)
		kinds := ""
		for _, r := range merged.records {
			kinds += r.Kind + " "
		}
		require.Equal(t, "run opened begin run saw end ", kinds)
	})
}

// Many goroutines may record at once; what comes out is one history, each line whole.
func TestHistoryConcurrent(t *testing.T) {
	var h History
	var file bytes.Buffer
	h.Stream(&file)
	var all sync.WaitGroup
	for g := range 8 {
		all.Go(func() {
			for i := range 50 {
				p := h.Begin(submit(fmt.Sprint(g, "-", i)))
				h.Saw(wal.Event{Seq: uint64(i + 1)})
				p.Failed(nil)
				_ = h.Attempts()
			}
		})
	}
	all.Wait()
	again, err := ReadHistory(&file)
	require.NoError(t, err)
	require.Len(t, again.Attempts(), 400)
	require.Equal(t, h.Attempts(), again.Attempts())
}

const historyChild = "CRASHTEST_HISTORY_CHILD"

// TestHistoryChild is the process that TestF14_SIGKILL_many_callers_and_what_they_knew kills; by itself it does nothing.
func TestHistoryChild(t *testing.T) {
	dir := os.Getenv(historyChild)
	if dir == "" {
		t.Skip("only as a child of TestF14_SIGKILL_many_callers_and_what_they_knew")
	}
	file, err := os.OpenFile(filepath.Join(dir, "history.jsonl"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	require.NoError(t, err)
	e, err := recovery.Open(t.Context(), filepath.Join(dir, "jobs"), recovery.Options{WAL: wal.Options{SegmentBytes: 4096}})
	require.NoError(t, err)
	var h History
	h.Stream(io.MultiWriter(file, os.Stdout)) // the parent listens, to know when to kill
	report := e.Report().WAL
	h.Opened(report.Epoch, report.LastSeq)
	go func() {
		for e, err := range e.Follow(t.Context(), 1) {
			if err == nil {
				h.Saw(e)
			}
		}
	}()
	for c := range 4 {
		go func() {
			for i := 0; ; i++ {
				id := fmt.Sprintf("job-%d-%d-%d", report.Epoch, c, i)
				_, _ = h.Do(t.Context(), e, submit(id), validate(id))
				_, _ = h.Do(t.Context(), e, start(id))
				_, _ = h.Do(t.Context(), e, validate(id)) // refused
				_, _ = h.Do(t.Context(), e, fail(id))
			}
		}()
	}
	_, _ = io.Copy(io.Discard, os.Stdin) // until it is killed, or its parent is
}

// F14: real processes, one after the other, are killed at any instant, and leave one file that tells all: each time, the
// engine that opens what they left is held against it.
func TestF14_SIGKILL_many_callers_and_what_they_knew(t *testing.T) {
	t.Parallel()
	dir, torn := filepath.Join(t.TempDir(), "deeper"), 0
	jobs := filepath.Join(dir, "jobs")
	require.NoError(t, os.Mkdir(dir, 0o755))
	var h *History
	for round := range 8 {
		killHistoryChild(t, dir, 50+60*round)
		file, err := os.Open(filepath.Join(dir, "history.jsonl"))
		require.NoError(t, err)
		h, err = ReadHistory(file)
		require.NoError(t, errors.Join(err, file.Close()))
		found, err := wal.Verify(jobs)
		require.NoError(t, err)
		torn += len(found.Torn)
		require.NoError(t, Recover(nil, jobs, h, recovery.Options{}), "kill %d", round+1)
	}
	outcomes := make(map[Outcome]int)
	for _, a := range h.Attempts() {
		outcomes[a.judged()]++
	}
	require.Positive(t, outcomes[OutcomeOK])
	require.Positive(t, outcomes[OutcomeFailed])
	t.Logf("commands %v, %d torn lines of the history, %d torn tails of the log", outcomes, h.Torn(), torn)

	// And it has teeth: the same log without its last acknowledged event.
	e, err := recovery.Open(t.Context(), jobs, recovery.Options{})
	require.NoError(t, err)
	defer e.Close()
	var log []wal.Event
	for event, err := range Events(e) {
		require.NoError(t, err)
		log = append(log, event)
	}
	placed := h.testify(nil).placed
	require.Equal(t, RuleAcknowledged, judge(t, h, log[:placed[len(placed)-1].First-1]))
}

// killHistoryChild lets a child work until it has said so many lines.
func killHistoryChild(t *testing.T, dir string, after int) {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(self, "-test.run=^TestHistoryChild$")
	cmd.Env = append(os.Environ(), historyChild+"="+dir)
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	lines := bufio.NewScanner(out)
	for range after {
		require.True(t, lines.Scan(), "the child died by itself")
	}
	require.NoError(t, cmd.Process.Kill())
	_, _ = io.Copy(io.Discard, out)
	require.Error(t, cmd.Wait(), "killed")
	_ = in.Close() // it was held open for the child, which is gone
}
