package crashtest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
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

// parseImage reads a directory as text, so that a corpus can be read and fuzzing can move lines about: each file is a
// line "-- name --" and what follows it, up to the next such line.
func parseImage(text []byte) crashtest.Image {
	img, name := crashtest.Image{}, ""
	for line := range bytes.Lines(text) {
		if head, ok := bytes.CutPrefix(bytes.TrimSuffix(line, []byte("\n")), []byte("-- ")); ok && bytes.HasSuffix(head, []byte(" --")) {
			name = strings.TrimSuffix(string(head), " --")
			if !fs.ValidPath(name) || name == "." || strings.Contains(name, "/") || len(img) > 20 {
				name = ""
			}
			if name != "" {
				img[name] = nil
			}
		} else if name != "" {
			img[name] = append(img[name], line...)
		}
	}
	return img
}

// printImage writes the segments as parseImage reads them.
func printImage(img crashtest.Image) []byte {
	var text bytes.Buffer
	for _, name := range img.Segments() {
		fmt.Fprintf(&text, "-- %s --\n%s", name, img[name])
	}
	return text.Bytes()
}

// resealed gives each line the checksum that its bytes, and the salt of its segment, ask for: what fuzzing changes gets past
// the checksum, as what a faulty writer wrote would.
func resealed(img crashtest.Image) crashtest.Image {
	sealed := crashtest.Image{}
	for name, content := range img {
		salt := crashtest.Salt(content)
		for line := range bytes.Lines(content) {
			if i := bytes.LastIndex(line, []byte(`,"crc":"`)); i > 0 {
				line = []byte(crashtest.Seal(salt, string(line[:i])))
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
		f.Add(printImage(lived(f, seed)), seed%2 == 0)
	}
	f.Fuzz(func(t *testing.T, text []byte, reseal bool) {
		img, disk := parseImage(text), crashfs.New()
		if reseal {
			img = resealed(img)
		}
		require.NoError(t, img.Write(disk, "jobs"))
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
func lived(t require.TestingT, seed int) crashtest.Image {
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
	img, err := crashtest.ReadImage(disk, "jobs")
	require.NoError(t, err)
	return img
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
		require.Equal(t, ref.Interrupted(report.WAL.Epoch), crashtest.IDsOf(e.Interrupted()))
	}
	return described
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
