package wal

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/require"
)

// imported is what Import yields of one file, events and complaints in the order they came.
type imported struct {
	events     []Event
	complaints []*ImportError
	err        error // the reader's
}

func importAll(t testing.TB, r io.Reader) (got imported) {
	t.Helper()
	for e, err := range Import(r) {
		require.NoError(t, got.err, "nothing comes behind the reader's error")
		var complaint *ImportError
		switch {
		case err == nil:
			got.events = append(got.events, e)
		case errors.As(err, &complaint):
			require.Equal(t, Event{}, e, "a complaint comes by itself")
			got.complaints = append(got.complaints, complaint)
		default:
			got.err = err
		}
	}
	return got
}

// plainEvents reads one of the ancestor's files with encoding/json and nothing of ours: the whole lines, in order.
func plainEvents(t testing.TB, file []byte) (events []Event) {
	last := make(map[string]uint64)
	for _, line := range bytes.Split(file, []byte("\n")) {
		var theirs struct {
			TS         int64           `json:"ts"`
			Type       EventType       `json:"type"`
			JobID      string          `json:"job_id"`
			Capability string          `json:"capability"`
			Output     json.RawMessage `json:"output"`
			Error      string          `json:"error"`
		}
		if json.Unmarshal(line, &theirs) != nil {
			continue
		}
		e := Event{Seq: uint64(len(events) + 1), Prev: last[theirs.JobID], Time: time.Unix(theirs.TS, 0).UTC(), Type: theirs.Type, JobID: theirs.JobID,
			Capability: theirs.Capability, Output: theirs.Output, Error: theirs.Error}
		if e.Type == JobSubmitted {
			e.Args, e.Output = e.Output, nil
		}
		last[e.JobID] = e.Seq
		events = append(events, e)
	}
	return events
}

var ancestorFiles = []struct {
	name       string
	events     int
	kept       int // complaints about events that were yielded all the same
	complaints []ImportError
}{
	{"ordinary", 1050, 0, nil},
	{"torn-tail", 33, 0, []ImportError{{Line: 34, Reason: "not an event: not strict JSON at byte 61: string without an end"}}},
	{"torn-then-appended", 50, 0, []ImportError{{Line: 34, Reason: "two lines fused: a torn event, and behind it, at byte 41, " +
		"the event seq 33 (job_submitted of job 5c55827df1d1b1a46635dd3d52d0e39f)"}}},
	{"torn-utf8", 33, 0, []ImportError{{Line: 34, Reason: "not an event: not strict JSON at byte 58: invalid UTF-8"}}},
	{"two-writers", 142, 70, nil},
	{"cleaned", 159, 0, nil},
}

func TestImport_the_ancestors_files(t *testing.T) {
	for _, c := range ancestorFiles {
		t.Run(c.name, func(t *testing.T) {
			file := ancestorFile(t, c.name)
			got := importAll(t, bytes.NewReader(file))
			require.NoError(t, got.err)
			require.Len(t, got.events, c.events)
			require.Equal(t, plainEvents(t, file), got.events, "every whole line, in file order, with its time")
			kept := 0
			var complaints []ImportError
			for _, complaint := range got.complaints {
				if complaint.Kept {
					kept++
					continue
				}
				complaint.Behind = nil
				complaints = append(complaints, *complaint)
			}
			require.Equal(t, c.kept, kept)
			require.Equal(t, c.complaints, complaints)

			small := importAll(t, iotest.OneByteReader(bytes.NewReader(file)))
			require.Equal(t, got.events, small.events, "however it is read")
		})
	}
}

// What was imported and appended is there, the same, and each job's events hang together.
func TestImport_then_Append_reads_back_the_same(t *testing.T) {
	for _, c := range ancestorFiles {
		t.Run(c.name, func(t *testing.T) {
			log, err := Open(t.TempDir(), Options{Sync: SyncNever})
			require.NoError(t, err)
			defer log.Close()
			want := importAll(t, bytes.NewReader(ancestorFile(t, c.name))).events
			for _, e := range want {
				seq, err := log.Append(context.Background(), e)
				require.NoError(t, err)
				require.Equal(t, e.Seq, seq)
			}
			last := make(map[string]uint64)
			n := 0
			for e, err := range log.Events(1) {
				require.NoError(t, err)
				require.Equal(t, last[e.JobID], e.Prev, "seq %d", e.Seq)
				last[e.JobID] = e.Seq
				require.Equal(t, uint64(1), e.Epoch)
				e.Epoch = 0
				require.Equal(t, want[n], e)
				n++
			}
			require.Equal(t, c.events, n)
		})
	}
}

const (
	importHead = `{"seq":0,"ts":1715800000,"type":"job_submitted","job_id":"a","output":{"p":1}}` + "\n"
	importNext = `{"seq":1,"ts":1715800001,"type":"job_started","job_id":"a"}` + "\n"
)

func TestImport_tells_what_it_found(t *testing.T) {
	for _, c := range []struct {
		name, in string
		events   int
		want     []string // complaints: line, kept, reason
	}{
		{"nothing", "", 0, nil},
		{"one newline", "\n", 0, nil},
		{"blank lines", "\n\n \t\r\n" + importHead + "\n\n" + importNext + "\n \n", 2, nil},
		{"no newline at the end", importHead + strings.TrimSuffix(importNext, "\n"), 2, nil},
		{"Windows line ends", strings.ReplaceAll(importHead+importNext, "\n", "\r\n"), 2, nil},
		{"BOM at the start", "\ufeff" + importHead + importNext, 2, nil},
		{"BOM and nothing", "\ufeff", 0, nil},
		{"BOM further on", importHead + "\ufeff" + importNext, 1, []string{"2 false behind it, at byte 3, the event seq 1"}},
		{"NULs between lines", importHead + "\x00\x00\x00\n" + importNext, 2, []string{"2 false not an event"}},
		{"NULs at the end", importHead + importNext + strings.Repeat("\x00", 1000), 2, []string{"3 false not an event"}},
		{"a NUL in a string", importHead + `{"seq":1,"ts":1,"type":"job_started","job_id":"a` + "\x00\"}\n" + importNext, 2,
			[]string{"2 false not an event: not strict JSON at byte 48: control character"}},
		{"JSON that is no object", importHead + "[1]\n5\nnull\n" + importNext, 2, []string{"2 false not a JSON object", "3 false not a JSON object", "4 false not a JSON object"}},
		{"an object that is no event", "{}\n" + importHead, 1, []string{"1 false seq: missing"}},
		{"no job", `{"seq":0,"ts":1,"type":"job_started","job_id":""}` + "\n" + importHead, 1, []string{"1 false JobID"}},
		{"no type", `{"seq":0,"ts":1,"type":"","job_id":"a"}` + "\n" + importHead, 1, []string{"1 false Type"}},
		{"negative ts", `{"seq":0,"ts":-1,"type":"job_submitted","job_id":"a"}` + "\n" + importHead, 1, []string{"1 false ts: not a whole number"}},
		{"ts in the year 10000", `{"seq":0,"ts":253402300800,"type":"job_submitted","job_id":"a"}` + "\n" + importHead, 1, []string{"1 false Time"}},
		{"ts of 64 bits", `{"seq":0,"ts":18446744073709551615,"type":"job_submitted","job_id":"a"}` + "\n" + importHead, 1, []string{"1 false ts: too large"}},
		{"duplicate names", `{"seq":0,"ts":1,"ts":2,"type":"job_submitted","job_id":"a"}` + "\n" + importHead, 1, []string{"1 false duplicate name"}},
		{"duplicate names in the output", `{"seq":0,"ts":1,"type":"job_submitted","job_id":"a","output":{"x":1,"x":2}}` + "\n" + importHead, 1, []string{"1 false duplicate name"}},
		{"seqs collide", importHead + importNext + importNext, 3, []string{"3 true seq 1 does not follow on seq 1"}},
		{"seqs go back", importNext + importHead, 2, []string{"1 true starts with job_started", "2 true seq 0 does not follow on seq 1"}},
		{"a job starts in the middle", importNext, 1, []string{`1 true job "a" starts with job_started: its first events are missing`}},
		{"a job starts in the middle only once", importNext + strings.Replace(importNext, `"seq":1`, `"seq":2`, 1), 2, []string{"1 true starts with"}},
		{"unknown type", strings.Replace(importHead, "submitted", "paused", 1), 1, []string{"1 true starts with job_paused"}},
		{"two events fused", strings.TrimSuffix(importHead, "\n") + importNext, 0, []string{"1 false two lines fused"}},
		{"three fused", `{"seq":0,"ts":1,"ty{"seq":1,"ts":2,{"seq":2,"ts":3,"type":"job_started","job_id":"a"}` + "\n" + importHead, 1,
			[]string{"1 false behind it, at byte 35, the event seq 2 (job_started of job a)"}},
		{"our own marks", `{"mark":"durable","durable":3,"crc":"00000000"}` + "\n" + importHead, 1, []string{"1 false seq: missing"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := importAll(t, strings.NewReader(c.in))
			require.NoError(t, got.err)
			require.Len(t, got.events, c.events)
			require.Len(t, got.complaints, len(c.want), "%v", got.complaints)
			for i, complaint := range got.complaints {
				at, reason, _ := strings.Cut(c.want[i], " ")
				kept, reason, _ := strings.Cut(reason, " ")
				require.Equal(t, at+" "+kept, fmt.Sprint(complaint.Line, " ", complaint.Kept))
				require.Contains(t, complaint.Reason, reason)
				require.Equal(t, fmt.Sprintf("wal: import: line %d: %s", complaint.Line, complaint.Reason), complaint.Error())
			}
			for i, e := range got.events {
				require.Equal(t, uint64(i+1), e.Seq)
			}
		})
	}
}

func TestImport_output_of_a_submission_becomes_args(t *testing.T) {
	got := importAll(t, strings.NewReader(importHead+
		`{"seq":1,"ts":5,"type":"job_completed","job_id":"a","output":[1, 12345678901234567890123]}`+"\n"+
		`{"seq":2,"ts":5,"type":"job_submitted","job_id":"b","args":{"x":1},"output":{"y":2}}`+"\n"+
		`{"seq":3,"ts":5,"type":"job_submitted","job_id":"c","capability":null,"output":null,"error":null}`+"\n"))
	require.Empty(t, got.complaints)
	payloads := make([]string, 0, 8)
	for _, e := range got.events {
		payloads = append(payloads, string(e.Args), string(e.Output))
	}
	require.Equal(t, []string{`{"p":1}`, "", "", "[1,12345678901234567890123]", `{"x":1}`, `{"y":2}`, "null", ""}, payloads)
}

// The event that the ancestor's next writer put right behind a torn one was acknowledged, and is handed over with the
// complaint.
func TestImport_hands_over_what_stands_behind_a_torn_event(t *testing.T) {
	got := importAll(t, bytes.NewReader(ancestorFile(t, "torn-then-appended")))
	behind := got.complaints[0].Behind
	require.NotNil(t, behind)
	require.Equal(t, uint64(33), behind.Seq, "the ancestor's")
	require.Equal(t, JobSubmitted, behind.Type)
	require.Equal(t, "ShellExec", behind.Capability)
	require.Contains(t, string(behind.Args), "/srv/data/20.txt")
	require.Nil(t, behind.Output)
	_, err := newDoor().check(*behind, time.Now)
	require.NoError(t, err, "Append takes it")
}

func TestImport_readers_error_surfaces_and_ends_it(t *testing.T) {
	broken := errors.New("the cable came out")
	for name, before := range map[string]string{"at once": "", "behind a line": importHead, "inside a line": importHead + importNext[:20],
		"inside a line that is too long": importHead + strings.Repeat("x", MaxLineBytes+2*readBuffer)} {
		got := importAll(t, io.MultiReader(strings.NewReader(before), iotest.ErrReader(broken)))
		require.ErrorIs(t, got.err, broken, name)
		require.ErrorContains(t, got.err, fmt.Sprintf("wal: import: line %d: ", min(len(before), 1)+1))
		require.Empty(t, got.complaints, name)
		require.Len(t, got.events, min(len(before), 1), name)
	}
}

func TestImport_stops_when_it_is_told_to(t *testing.T) {
	bad := "x\n" + importNext + importNext + "{\n" + importHead
	all := 0
	for range Import(strings.NewReader(bad)) {
		all++
	}
	require.Equal(t, 8, all)
	for stop := 1; stop <= all; stop++ {
		n := 0
		for range Import(strings.NewReader(bad)) {
			if n++; n == stop {
				break
			}
		}
		require.Equal(t, stop, n)
	}
}

var exes = bytes.Repeat([]byte("x"), 64<<10)

// endless is a line of a given length, made as it is read.
type endless struct{ left int64 }

func (e *endless) Read(p []byte) (int, error) {
	if e.left == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(int64(len(p)), e.left)], exes)
	e.left -= int64(n)
	return n, nil
}

// F20: a hostile line of a gigabyte costs no more memory than the longest line that is one, and what follows is read.
func TestF20_import_of_a_gigabyte_line(t *testing.T) {
	for name, end := range map[string]string{"whole": "\n" + importNext, "without an end": ""} {
		size := int64(1 << 30)
		if end == "" {
			size = MaxLineBytes + 2*readBuffer
		}
		r := io.MultiReader(strings.NewReader(importHead), &endless{size}, strings.NewReader(end))
		runtime.GC()
		var before, during runtime.MemStats
		runtime.ReadMemStats(&before)
		got := importAll(t, bufio.NewReader(r))
		runtime.ReadMemStats(&during)
		require.NoError(t, got.err)
		require.Len(t, got.complaints, 1, name)
		require.Equal(t, ImportError{Line: 2, Reason: "longer than 67108864 bytes"}, *got.complaints[0])
		require.Len(t, got.events, 1+min(len(end), 1), name)
		require.Less(t, during.TotalAlloc-before.TotalAlloc, uint64(6*MaxLineBytes), "in all, growing included")
	}
}

// What was found: the events of one group were refused for the Prev that Import had given them, and that Append sets.
func TestImport_appends_in_groups(t *testing.T) {
	f, err := os.Open("testdata/import/ordinary.jsonl")
	require.NoError(t, err)
	defer f.Close()
	var events []Event
	for e, err := range Import(f) {
		require.NoError(t, err)
		events = append(events, e)
	}
	l, err := Open(t.TempDir(), Options{})
	require.NoError(t, err)
	for group := range slices.Chunk(events, 100) {
		_, err := l.Append(context.Background(), group...)
		require.NoError(t, err)
	}
	for e, err := range l.Events(1) {
		require.NoError(t, err)
		require.Equal(t, events[e.Seq-1].Prev, e.Prev)
	}
	require.NoError(t, l.Close())
}

// What was found: an event that is small as it stands in the log was refused for the white space that it came with.
func TestAppend_measures_what_stands_in_the_log(t *testing.T) {
	l, err := Open(t.TempDir(), Options{MaxEventBytes: 1 << 10})
	require.NoError(t, err)
	padded := append(bytes.Repeat([]byte(" "), 1<<12), '1')
	_, err = l.Append(context.Background(), Event{Type: JobSubmitted, JobID: "a", Args: padded})
	require.NoError(t, err)
	_, err = l.Append(context.Background(), Event{Type: EventLost})
	require.ErrorIs(t, err, ErrInvalid)
	require.NoError(t, l.Close())
}
