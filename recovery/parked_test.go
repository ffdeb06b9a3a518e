package recovery

import (
	"bytes"
	"context"
	"fmt"
	"hash/crc32"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// signed ends a line as a writer of the segment would: with a right checksum, whatever stands in it.
func signed(salt, body string) string {
	table := crc32.MakeTable(crc32.Castagnoli)
	sum := crc32.Update(crc32.Checksum([]byte(salt), table), table, []byte(body))
	return fmt.Sprintf("%s,\"crc\":\"%08x\"}\n", body, sum)
}

// handMade is a log with these lines behind its events. Each line lacks its checksum.
func handMade(t require.TestingT, events []wal.Event, lines ...string) *crashfs.FS {
	disk := crashfs.New()
	l, err := wal.Open("jobs", wal.Options{FS: disk})
	require.NoError(t, err)
	for _, e := range events {
		_, err := l.Append(context.Background(), e)
		require.NoError(t, err)
	}
	files := read(t, disk, "jobs")
	require.NoError(t, l.Close())
	name := newest(files)
	segment := bytes.TrimRight(files[name], "\n")
	_, rest, found := bytes.Cut(segment, []byte(`"salt":"`))
	require.True(t, found)
	segment = append(segment, '\n')
	for _, line := range lines {
		segment = append(segment, signed(string(rest[:16]), line)...)
	}
	return put(t, "jobs", map[string][]byte{name: segment})
}

// R4, F21, F22: lines with a right checksum that are not what they have to be. Each parks its own job, with a reason
// that names its seq and what is wrong, or is listed where no job can be made out; both other jobs recover and go on;
// the parked one refuses every command for that reason; and so it is at the next Open.
func TestR4_F21_F22_lines_that_this_version_cannot_take(t *testing.T) {
	before := []wal.Event{{Type: wal.JobSubmitted, JobID: "bad"}, {Type: wal.JobSubmitted, JobID: "good"}}
	const good = `{"seq":4,"prev":2,"epoch":1,"ts":1,"ns":0,"type":"job_validated","job_id":"good","durable":3`
	for name, c := range map[string]struct {
		line    string
		says    string
		unknown bool // even of which job it is
	}{
		"a type from the future":     {`{"seq":3,"prev":1,"epoch":1,"ts":1,"ns":0,"type":"job_paused","job_id":"bad","durable":2`, "job_paused", false},
		"a step that is not allowed": {`{"seq":3,"prev":1,"epoch":1,"ts":1,"ns":0,"type":"job_started","job_id":"bad","durable":2`, "job_started", false},
		"prev of another job":        {`{"seq":3,"prev":2,"epoch":1,"ts":1,"ns":0,"type":"job_validated","job_id":"bad","durable":2`, "prev is 2", false},
		"no prev":                    {`{"seq":3,"prev":0,"epoch":1,"ts":1,"ns":0,"type":"job_validated","job_id":"bad","durable":2`, "prev is 0", false},
		"a duplicate name":           {`{"seq":3,"prev":1,"epoch":1,"ts":1,"ns":0,"type":"job_failed","job_id":"bad","error":"a","error":"b","durable":2`, "duplicate", false},
		"a lone surrogate":           {`{"seq":3,"prev":1,"epoch":1,"ts":1,"ns":0,"type":"job_failed","job_id":"bad","error":"\ud800","durable":2`, "surrogate", false},
		"time as text":               {`{"seq":3,"prev":1,"epoch":1,"ts":"now","ns":0,"type":"job_validated","job_id":"bad","durable":2`, "ts", false},
		"prev as text":               {`{"seq":3,"prev":"1","epoch":1,"ts":1,"ns":0,"type":"job_validated","job_id":"bad","durable":2`, "prev", false},
		"torn JSON within":           {`{"seq":3,"prev":1,"epoch":1,"ts":1,"ns":0,"type":"job_failed","job_id":"bad","output":{"a":,"durable":2`, "", false},
		"a job that is a number":     {`{"seq":3,"prev":1,"epoch":1,"ts":1,"ns":0,"type":"job_validated","job_id":7,"durable":2`, "", true},
		"no job":                     {`{"seq":3,"prev":1,"epoch":1,"ts":1,"ns":0,"type":"job_validated","durable":2`, "", true},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, disk := context.Background(), handMade(t, before, c.line, good)
			for range 2 {
				e, err := Open(ctx, "jobs", Options{WAL: wal.Options{FS: disk}})
				require.NoError(t, err)
				r := e.Report()
				require.Empty(t, r.WAL.Torn, "it is no torn tail")
				require.EqualValues(t, e.log.LastSeq(), r.Replayed)
				job, known := e.Job("good")
				require.True(t, known)
				require.Empty(t, job.Parked)
				require.Contains(t, []statemachine.State{statemachine.Validated, statemachine.Started}, job.State)
				if job.State == statemachine.Validated {
					_, err = e.Start(ctx, "good")
					require.NoError(t, err)
				}
				checkBad(t, e, c.says, c.unknown)
				require.NoError(t, e.Close())
			}
		})
	}
}

func checkBad(t *testing.T, e *Engine, says string, unknown bool) {
	ctx, r := context.Background(), e.Report()
	job, known := e.Job("bad")
	require.True(t, known)
	require.Equal(t, statemachine.Submitted, job.State, "as it was before")
	if unknown {
		require.Empty(t, r.Parked)
		require.Len(t, r.Unreadable, 1)
		require.EqualValues(t, 3, r.Unreadable[0].Seq)
		require.NotEmpty(t, r.Unreadable[0].Problem)
		return
	}
	require.Empty(t, r.Unreadable)
	require.Equal(t, []statemachine.Job{job}, r.Parked)
	require.Contains(t, job.Parked, "seq 3")
	require.Contains(t, job.Parked, says)
	require.EqualValues(t, 3, job.ParkedSeq)
	require.NotContains(t, inOrder(e.Interrupted()), "bad")
	last := e.log.LastSeq()
	for _, c := range []Command{Submit(Submission{JobID: "bad"}), Validate("bad"), Start("bad"), Complete("bad", 1), Fail("bad", errBroken), RollBack("bad", ""), Hold("bad", "why")} {
		_, err := e.Do(ctx, c)
		var parked *statemachine.ParkedError
		require.ErrorAs(t, err, &parked)
		require.ErrorIs(t, err, statemachine.ErrParked)
		require.Equal(t, []string{"bad", job.Parked}, []string{parked.JobID, parked.Reason})
		_, err = e.Do(ctx, Submit(Submission{JobID: "with it"}), c)
		require.ErrorIs(t, err, statemachine.ErrParked)
		require.ErrorContains(t, err, "command 2 of 2")
	}
	require.Equal(t, last, e.log.LastSeq())
	seqs, errs := walked(e, "bad")
	require.Contains(t, seqs, uint64(3), "its history can still be looked at")
	require.True(t, len(errs) == 1 || slices.Equal(seqs, []uint64{1, 3}), "what is left out is said: %v %v", seqs, errs)
}

// R4, R2: random events of any type, with any prev, in any order, none of which is checked when it is appended. The jobs
// are what a fold by the reference makes of them, each for itself; the same at the next Open.
func TestR4_R2_any_events_at_all(t *testing.T) {
	types := append(slices.Clone(kinds), "job_paused", "JOB_STARTED")
	rapid.Check(t, func(t *rapid.T) {
		disk := crashfs.New()
		l, err := wal.Open("jobs", wal.Options{FS: disk})
		require.NoError(t, err)
		type ref struct {
			state  statemachine.State
			held   bool
			seq    uint64
			parked uint64
		}
		want := make(map[string]ref)
		for seq := uint64(1); seq <= uint64(rapid.IntRange(0, 40).Draw(t, "events")); seq++ {
			id := rapid.SampledFrom(someIDs).Draw(t, "id")
			job := want[id]
			e := wal.Event{Type: rapid.SampledFrom(types).Draw(t, "type"), JobID: id, Prev: job.seq}
			if rapid.IntRange(0, 9).Draw(t, "wrong prev") == 0 {
				e.Prev = rapid.Uint64Range(0, seq-1).Draw(t, "prev")
			}
			if rapid.Bool().Draw(t, "legal") {
				legal := slices.DeleteFunc(slices.Clone(kinds), func(k wal.EventType) bool {
					_, may := holdStep(job.held, k)
					return step(job.state, k) == "" || !may
				})
				if len(legal) > 0 {
					e.Type = rapid.SampledFrom(legal).Draw(t, "legal type")
				}
			}
			_, err := l.Append(context.Background(), e)
			require.NoError(t, err)
			holds, may := holdStep(job.held, e.Type)
			switch to := step(job.state, e.Type); {
			case job.parked != 0:
			case e.Prev != job.seq || to == "" || !may:
				job.parked = seq
			default:
				job.state, job.held = to, holds
			}
			job.seq = seq
			want[id] = job
		}
		require.NoError(t, l.Close())
		for range 2 {
			e, err := Open(context.Background(), "jobs", Options{WAL: wal.Options{FS: disk}})
			require.NoError(t, err)
			parked := 0
			for id, ref := range want {
				job, known := e.Job(id)
				require.True(t, known)
				require.Equal(t, []any{ref.state, ref.seq, ref.parked}, []any{job.State, job.Seq, job.ParkedSeq}, id)
				require.Equal(t, ref.parked != 0, job.Parked != "")
				require.Equal(t, ref.held, job.Held != "")
				if ref.parked != 0 {
					parked++
				}
			}
			require.Len(t, e.Report().Parked, parked)
			require.ElementsMatch(t, slices.Collect(maps.Keys(want)), inOrder(slices.Collect(e.Jobs(projection.Query{}))))
			require.NoError(t, e.Close())
		}
	})
}

// R4: an event that is lost for good, and known to be (by Salvage), parks the one job that it was of.
func TestR4_salvaged_log_parks_the_job_with_the_hole(t *testing.T) {
	dir, into := t.TempDir(), filepath.Join(t.TempDir(), "saved")
	var events []wal.Event
	for seq := uint64(1); seq <= 12; seq += 2 { // "a" and "b" in turn, through their lives
		kind := wal.JobSubmitted
		if seq > 1 {
			kind = kinds[min(int(seq/2), 3)]
		}
		if seq > 7 {
			break
		}
		events = append(events, wal.Event{Type: kind, JobID: "a", Prev: max(seq, 2) - 2}, wal.Event{Type: kind, JobID: "b", Prev: max(seq+1, 2) - 2})
	}
	events[0].Prev, events[1].Prev = 0, 0
	l, err := wal.Open(dir, wal.Options{})
	require.NoError(t, err)
	for _, e := range events {
		_, err := l.Append(context.Background(), e)
		require.NoError(t, err)
	}
	require.NoError(t, l.Close())
	path := filepath.Join(dir, "00000000000000000001.jsonl")
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	damaged := strings.Replace(string(text), `"type":"job_validated","job_id":"b"`, `"type":"job_validated","job_id":"c"`, 1)
	require.NotEqual(t, string(text), damaged)
	require.NoError(t, os.WriteFile(path, []byte(damaged), 0o644))
	_, err = Open(context.Background(), dir, Options{})
	require.ErrorIs(t, err, wal.ErrCorrupt)
	require.ErrorContains(t, err, "Salvage")
	report, err := wal.Salvage(dir, into)
	require.NoError(t, err)
	require.EqualValues(t, 1, report.Lost)

	e := opened(t, into)
	a, _ := e.Job("a")
	require.Equal(t, []any{statemachine.Completed, ""}, []any{a.State, a.Parked})
	b, _ := e.Job("b")
	require.Equal(t, statemachine.Submitted, b.State)
	require.NotEmpty(t, b.Parked)
	require.Equal(t, []string{"b"}, inOrder(e.Report().Parked))
	seqs, errs := walked(e, "b")
	require.Len(t, errs, 1)
	require.Equal(t, []uint64{6, 8}, seqs)
}

// read returns the segments of a directory by name.
func read(t require.TestingT, disk wal.FS, dir string) map[string][]byte {
	files := make(map[string][]byte)
	list, err := disk.ReadDir(dir)
	require.NoError(t, err)
	for _, entry := range list {
		if !strings.HasSuffix(entry.Name(), ".jsonl") {
			continue
		}
		f, err := disk.OpenFile(path.Join(dir, entry.Name()), os.O_RDONLY, 0)
		require.NoError(t, err)
		size, err := f.Size()
		require.NoError(t, err)
		content := make([]byte, size)
		_, err = f.ReadAt(content, 0)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		files[entry.Name()] = content
	}
	return files
}

// put makes a disk with these segments on it.
func put(t require.TestingT, dir string, files map[string][]byte) *crashfs.FS {
	disk := crashfs.New()
	require.NoError(t, disk.Mkdir(dir, 0o755))
	for name, content := range files {
		f, err := disk.OpenFile(path.Join(dir, name), os.O_RDWR|os.O_CREATE, 0o644)
		require.NoError(t, err)
		_, err = f.WriteAt(content, 0)
		require.NoError(t, err)
		require.NoError(t, f.Close())
	}
	return disk
}

// newest is the name of the last segment.
func newest(files map[string][]byte) string {
	name := ""
	for n := range files {
		name = max(name, n)
	}
	return name
}
