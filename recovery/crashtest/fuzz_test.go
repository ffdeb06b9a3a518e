package crashtest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/recovery/crashtest"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// FuzzActions is the whole state machine, from bytes: which actions, on which jobs, with which payloads, and what each power
// cut leaves.
func FuzzActions(f *testing.F) { crashtest.Fuzz(f, bubbled(act)) }

// directory is a directory as text, so that a corpus can be read and fuzzing can move lines about: each file is a line
// "-- name --" and what follows it, up to the next such line.
type directory map[string][]byte

func parseDirectory(text []byte) directory {
	d, name := directory{}, ""
	for line := range bytes.Lines(text) {
		if head, ok := bytes.CutPrefix(bytes.TrimSuffix(line, []byte("\n")), []byte("-- ")); ok && bytes.HasSuffix(head, []byte(" --")) {
			name = strings.TrimSuffix(string(head), " --")
			if !fs.ValidPath(name) || name == "." || strings.Contains(name, "/") || len(d) > 20 {
				name = ""
			}
			if name != "" {
				d[name] = nil
			}
		} else if name != "" {
			d[name] = append(d[name], line...)
		}
	}
	return d
}

func (d directory) String() string {
	var text strings.Builder
	for _, name := range slices.Sorted(maps.Keys(d)) {
		fmt.Fprintf(&text, "-- %s --\n%s", name, d[name])
	}
	return text.String()
}

// disk has the files in directory "jobs".
func (d directory) disk(t require.TestingT) *crashfs.FS {
	disk := crashfs.New()
	require.NoError(t, disk.Mkdir("jobs", 0o755))
	for name, content := range d {
		f, err := disk.OpenFile(path.Join("jobs", name), os.O_RDWR|os.O_CREATE, 0o644)
		require.NoError(t, err)
		_, err = f.WriteAt(content, 0)
		require.NoError(t, err)
		require.NoError(t, f.Sync())
		require.NoError(t, f.Close())
	}
	require.NoError(t, disk.SyncDir("jobs"))
	require.NoError(t, disk.SyncDir("."))
	return disk
}

// directoryOf reads the segments back.
func directoryOf(t require.TestingT, disk wal.FS) directory {
	d := directory{}
	list, err := disk.ReadDir("jobs")
	require.NoError(t, err)
	for _, entry := range list {
		if !strings.HasSuffix(entry.Name(), ".jsonl") {
			continue
		}
		f, err := disk.OpenFile(path.Join("jobs", entry.Name()), os.O_RDONLY, 0)
		require.NoError(t, err)
		size, err := f.Size()
		require.NoError(t, err)
		d[entry.Name()] = make([]byte, size)
		if size > 0 {
			_, err = f.ReadAt(d[entry.Name()], 0)
			require.NoError(t, err)
		}
		require.NoError(t, f.Close())
	}
	return d
}

// resealed gives each line the checksum that its bytes, and the salt that its segment's header names, ask for: what fuzzing
// changes gets past the checksum, as what a faulty writer wrote would.
func (d directory) resealed() directory {
	sealed := directory{}
	for name, content := range d {
		var header struct{ Salt string }
		first, _, _ := bytes.Cut(content, []byte("\n"))
		_ = json.Unmarshal(first, &header) // without a salt it is damaged, and stays so
		table := crc32.MakeTable(crc32.Castagnoli)
		salt := crc32.Checksum([]byte(header.Salt), table)
		for line := range bytes.Lines(content) {
			if i := bytes.LastIndex(line, []byte(`,"crc":"`)); i > 0 {
				line = fmt.Appendf(bytes.Clone(line[:i]), `,"crc":"%08x"}`+"\n", crc32.Update(salt, table, line[:i]))
			}
			sealed[name] = append(sealed[name], line...)
		}
	}
	return sealed
}

// FuzzDirectory: whatever lies in a directory, Open does not panic. It refuses with an error that says what it is, or opens
// an engine that is the fold of its events; every time the same, and it goes on from there.
func FuzzDirectory(f *testing.F) {
	for seed := range 6 {
		f.Add([]byte(lived(f, seed).String()), seed%2 == 0)
	}
	f.Fuzz(func(t *testing.T, text []byte, reseal bool) {
		d := parseDirectory(text)
		if reseal {
			d = d.resealed()
		}
		disk := d.disk(t)
		first := openAny(t, disk, "")
		if first == nil {
			return
		}
		require.Equal(t, first, openAny(t, disk, "one more"), "opened again")
		again := openAny(t, disk, "")
		delete(again, "one more")
		require.Equal(t, first, again, "opened again, after it went on")
	})
}

// lived is what an engine leaves that was led through a history, with several openings, closed or not.
func lived(t require.TestingT, seed int) directory {
	disk := crashfs.New()
	long := func(history []crashtest.Step) bool { return len(history) > 8 }
	history := crashtest.LegalHistories(5, 25).Filter(long).Example(seed)
	for part := range slices.Chunk(history, 6) {
		e, err := recovery.Open(context.Background(), "jobs", recovery.Options{WAL: wal.Options{FS: disk, SegmentBytes: 1024}})
		require.NoError(t, err)
		for group := range slices.Chunk(part, 2) {
			if len(fmt.Sprint(group)) < 1000 && small(group) {
				_, _ = e.Do(context.Background(), crashtest.Commands(group...)...) // not legal where one before was too large
			}
		}
		if seed%3 == 0 {
			disk = disk.Crash(crashfs.Everything)
		}
		require.NoError(t, e.Close())
	}
	return directoryOf(t, disk)
}

// small keeps a corpus short.
func small(group []crashtest.Step) bool {
	return !slices.ContainsFunc(group, func(s crashtest.Step) bool { return len(s.Args)+len(s.Output)+len(s.Error) > 500 })
}

// refusals are the errors that Open may refuse a directory with.
var refusals = []error{wal.ErrCorrupt, wal.ErrVersion, wal.ErrInvalid}

// openAny opens an engine on anything, holds it against the fold of its events, and submits a job if it is given an id. It
// returns the jobs; nil where the directory was refused.
func openAny(t *testing.T, disk wal.FS, submit string) map[string]string {
	e, err := recovery.Open(context.Background(), "jobs", recovery.Options{WAL: wal.Options{FS: disk, SegmentBytes: 1024}})
	if err != nil {
		require.True(t, slices.ContainsFunc(refusals, func(is error) bool { return errors.Is(err, is) }), "%v", err)
		return nil
	}
	jobs := make(map[string]string)
	for job := range e.Jobs(projection.Query{}) {
		jobs[job.ID] = described(t, e, job)
	}
	require.Equal(t, folded(t, e), jobs)
	if submit != "" {
		_, err := e.Submit(context.Background(), recovery.Submission{JobID: submit})
		require.NoError(t, err)
	}
	require.NoError(t, e.Close())
	return jobs
}

// described is all of a job, comparable.
func described(t *testing.T, e *recovery.Engine, job statemachine.Job) string {
	args, err := e.Read(context.Background(), job.Args)
	require.NoError(t, err)
	output, err := e.Read(context.Background(), job.Output)
	require.NoError(t, err)
	return inFull(job, string(args), string(output))
}

// inFull says all of a job, where its String says what people want to know.
func inFull(job statemachine.Job, args, output string) string {
	type plain statemachine.Job
	job.Args, job.Output = statemachine.Payload{}, statemachine.Payload{}
	return fmt.Sprintf("%+v %s %s", plain(job), args, output)
}

// folded is the jobs as package statemachine folds the events, one after the other. A job that the Reference would not have
// in its state is parked.
func folded(t *testing.T, e *recovery.Engine) map[string]string {
	jobs := map[string]statemachine.Job{}
	args, output := map[string]string{}, map[string]string{}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	report := e.Report()
	next, last := report.WAL.FirstSeq, report.WAL.LastSeq
	var ref crashtest.Reference
	legal := next == 1
	if next <= last {
		for event, err := range e.Follow(ctx, next) {
			require.NoError(t, err)
			require.Equal(t, next, event.Seq)
			if next++; event.JobID != "" {
				if ref.Take(event) != nil || event.Problem != "" {
					legal = false
				}
				before := jobs[event.JobID]
				job, err := before.Apply(event)
				if jobs[event.JobID] = job; err == nil && event.Type == wal.JobSubmitted {
					args[event.JobID] = string(event.Args)
				} else if err == nil && event.Type == wal.JobCompleted {
					output[event.JobID] = string(event.Output)
				}
			} else {
				legal = false // about the log itself: the Reference knows of none
			}
			if next > last {
				break
			}
		}
	}
	described := map[string]string{}
	parked := 0
	for id, job := range jobs {
		described[id] = inFull(job, args[id], output[id])
		if job.Parked != "" {
			parked++
		} else if legal {
			require.EqualValues(t, ref.State(id), job.State)
		}
	}
	require.Len(t, report.Parked, parked)
	if legal {
		require.Zero(t, parked, "the Reference takes all of it")
		require.Equal(t, ref.Interrupted(report.WAL.Epoch), idsOf(e.Interrupted()))
	}
	return described
}

func idsOf(jobs []statemachine.Job) (ids []string) {
	for _, job := range jobs {
		ids = append(ids, job.ID)
	}
	return ids
}

// Whatever bytes Fuzz is given, the property gets to its end; and different bytes lead to different ends.
func TestFuzz_bytes_are_never_too_few(t *testing.T) {
	ends := map[int]bool{}
	for n := range uint64(300) {
		in := make([]byte, n)
		for i := range in {
			in[i] = byte(rand.New(rand.NewPCG(n, uint64(i))).Uint32())
		}
		ran := false
		crashtest.OnceFuzzed(t, in, func(t *rapid.T) {
			ends[len(crashtest.LegalHistories(10, 100).Draw(t, "history"))] = true
			ran = true
		})
		require.True(t, ran)
	}
	require.Greater(t, len(ends), 5)
}
