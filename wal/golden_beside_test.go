package wal

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	saltCarried    = "00000000000000d4"
	saltCheckpoint = "00000000000000e5"
	saltRetained   = "00000000000000f6"
)

// goldenRetained is a log of format 1 that was compacted, with a checkpoint: what the writer writes, but for the salts,
// which are random elsewhere.
func goldenRetained(t testing.TB) map[string]string {
	at := func(sec int64) time.Time { return time.Unix(1715800000+sec, 0) }
	line := func(e Event, durable uint64) []byte { return canonicalLine(e, 0, durable, saltSeed(saltRetained)) }
	body := func(e Event) []byte { b := line(e, e.Seq-1); return b[:len(b)-crcLength-1] }
	about := func(m mark) []byte { return appendMark(nil, m, saltSeed(saltRetained)) }

	dir := t.TempDir()
	c, err := newCarried(OS, dir, goldenID, 13, false)
	require.NoError(t, err)
	require.NoError(t, c.add(2, body(Event{Seq: 2, Epoch: 1, Time: at(2), Type: JobSubmitted, JobID: "job-a", Args: []byte(`{"n":1}`)})))
	require.NoError(t, c.add(5, body(Event{Seq: 5, Prev: 2, Epoch: 1, Time: at(5), Type: JobValidated, JobID: "job-a"})))
	require.NoError(t, c.add(9, []byte(`{"seq":9,"prev":5,"epoch":1,"ts":1715800009,"ns":0,"type":"job_paused","job_id":"job-a","until":[1],"more":1,"durable":8`)))
	require.NoError(t, c.finish())
	require.NoError(t, c.rename())

	checkpointed := line(Event{Seq: 14, Prev: 13, Epoch: 2, Time: at(14), Type: JobValidated, JobID: "job-b"}, 13)
	w, err := newSideWriter(OS, dir, checkpointPrefix, sideHead{log: goldenID, seq: 14}, func(dst []byte) []byte {
		return appendCheckpointHead(dst, 14, string(checkpointed[len(checkpointed)-11:len(checkpointed)-3]), 2, at(15))
	}, false)
	require.NoError(t, err)
	require.NoError(t, writeSections(context.Background(), w, goldenSections()))
	require.NoError(t, w.rename())

	segment := bytes.Join([][]byte{
		about(mark{Kind: markSegment, Version: 1, Log: goldenID, Salt: saltRetained, Prior: 7, First: 13, Epoch: 2, Time: at(10), Floor: 7, Carried: 1, Durable: 12}),
		about(mark{Kind: markOpened, Epoch: 2, Time: at(10), Durable: 12}),
		line(Event{Seq: 13, Epoch: 2, Time: at(13), Type: JobSubmitted, JobID: "job-b"}, 12),
		about(mark{Kind: markFloor, Floor: 13, Carried: 3, Durable: 13}),
		checkpointed,
		line(Event{Seq: 15, Epoch: 2, Time: at(15), Type: JobsForgotten, Args: []byte(`{"before":4}`)}, 14),
		about(mark{Kind: markClosed, Epoch: 2, Time: at(16), Last: 15, Durable: 15}),
	}, nil)
	return map[string]string{
		segmentName(13):                string(segment),
		sideName(carriedPrefix, 13):    resalted(t, filepath.Join(dir, sideName(carriedPrefix, 13)), saltCarried),
		sideName(checkpointPrefix, 14): resalted(t, filepath.Join(dir, sideName(checkpointPrefix, 14)), saltCheckpoint),
	}
}

func goldenSections() []Section {
	return []Section{
		{Name: "jobs", Version: 3, Save: func(w io.Writer) error {
			_, err := io.WriteString(w, "whatever a \x00 projection\nwrites\xff")
			return err
		}},
		{Name: "größe", Save: func(w io.Writer) error {
			_, err := w.Write(bytes.Repeat([]byte("7 bytes"), 20))
			return err
		}},
		{Name: "none", Version: 1, Save: func(io.Writer) error { return nil }},
	}
}

// resalted gives a file beside the segments another salt, and its lines the checksums for it.
func resalted(t testing.TB, path, salt string) string {
	file, err := os.ReadFile(path)
	require.NoError(t, err)
	head, err := parseSideHead(bytes.SplitN(file, []byte("\n"), 2)[0], kindOf(strings.SplitAfter(filepath.Base(path), "-")[0]))
	require.NoError(t, err)
	var out []byte
	for line := range bytes.Lines(bytes.Replace(file, []byte(head.salt), []byte(salt), 1)) {
		from := len(out)
		out = seal(append(out, line[:len(line)-crcLength-1]...), from, saltSeed(salt))
	}
	return string(out)
}

func TestGolden_retained_reads_as_it_always_did(t *testing.T) {
	want, err := os.ReadFile(goldenDir("v1-retained.txt"))
	require.NoError(t, err)
	dir := t.TempDir()
	require.NoError(t, os.CopyFS(dir, os.DirFS(goldenDir("v1-retained"))))
	for _, opts := range []Options{{ReadOnly: true}, {}, {}} {
		log, err := Open(dir, opts)
		require.NoError(t, err)
		var b strings.Builder
		for e, err := range log.Carried() {
			require.NoError(t, err)
			fmt.Fprintf(&b, "%d prev=%d %s job=%q args=%q\n", e.Seq, e.Prev, e.Type, e.JobID, e.Args)
			one, err := log.At(e.Seq)
			require.NoError(t, err)
			require.Equal(t, e, one)
		}
		points, err := log.Checkpoints()
		require.NoError(t, err)
		require.Len(t, points, 1)
		require.NoError(t, log.LoadCheckpoint(context.Background(), points[0], func(s Section, r io.Reader) error {
			content, err := io.ReadAll(r)
			fmt.Fprintf(&b, "section %q version %d: %d bytes, %.40q\n", s.Name, s.Version, len(content), content)
			return err
		}))
		require.Equal(t, string(want), b.String()+goldenText(t, log))
		require.Equal(t, uint64(3), log.Report().Carried)
		require.NoError(t, log.Close())
	}
	report, err := Verify(dir)
	require.NoError(t, err)
	require.Equal(t, uint64(3), report.Carried)
	require.Equal(t, 1, report.Checkpoints)
}

// No line of a checkpoint is an event to the ancestor's reader, and of a carried file only the events are.
func TestGolden_retained_read_by_the_ancestor(t *testing.T) {
	files := goldenRetained(t)
	events, err := ancestorLoad([]byte(files[sideName(checkpointPrefix, 14)]))
	require.NoError(t, err)
	require.Empty(t, events)
	events, err = ancestorLoad([]byte(files[sideName(carriedPrefix, 13)]))
	require.NoError(t, err)
	require.Len(t, events, 2, "one has a type that it does not know")
}

// memFile is a file for reading.
type memFile struct {
	File
	*bytes.Reader
}

func (f memFile) ReadAt(p []byte, at int64) (int, error) { return f.Reader.ReadAt(p, at) }
func (f memFile) Size() (int64, error)                   { return f.Reader.Size(), nil }
func (f memFile) Close() error                           { return nil }

func sideOf(b []byte, kind string, seq uint64) (*sideFile, error) {
	s := &sideFile{File: memFile{Reader: bytes.NewReader(b)}, path: kind}
	return s, s.readHead(kind, seq)
}

// resealed gives every line a right checksum.
func resealed(b []byte, salt string) (out []byte) {
	for line := range bytes.Lines(b) {
		from := len(out)
		out = seal(append(out, bytes.TrimSuffix(line, []byte("\n"))...), from, saltSeed(salt))
	}
	return out
}

func bodiesOf(file string) (out []byte) {
	for line := range strings.Lines(file) {
		out = append(append(out, line[:len(line)-crcLength-1]...), '\n')
	}
	return out
}

// FuzzCheckpointFile: no bytes make reading a checkpoint panic, and none but those that were written are accepted under its
// salt. With right checksums, whatever is accepted adds up.
func FuzzCheckpointFile(f *testing.F) {
	golden := goldenRetained(f)[sideName(checkpointPrefix, 14)]
	f.Add([]byte(golden), false)
	f.Add(bodiesOf(golden), true)
	f.Add([]byte(strings.Replace(golden, `"n":2`, `"n":3`, 1)), false)
	f.Fuzz(func(t *testing.T, b []byte, sealed bool) {
		if sealed {
			b = resealed(b, saltCheckpoint)
		}
		side, err := sideOf(b, markCheckpoint, 14)
		if err != nil {
			return
		}
		read := 0
		err = side.sections(context.Background(), func(s Section, r io.Reader) error {
			n, err := io.Copy(io.Discard, r)
			read += int(n)
			return err
		})
		if err != nil {
			require.ErrorIs(t, err, ErrCorrupt)
			return
		}
		require.Contains(t, string(b), fmt.Sprintf(`"bytes":%d,"crc"`, read))
		if !sealed && side.head.salt == saltCheckpoint {
			require.Equal(t, golden, string(b))
		}
	})
}

// FuzzCarriedFile: the same of a carried file; and what is found by its seq is what is read in order.
func FuzzCarriedFile(f *testing.F) {
	golden := goldenRetained(f)[sideName(carriedPrefix, 13)]
	f.Add([]byte(golden), false)
	f.Add(bodiesOf(golden), true)
	f.Fuzz(func(t *testing.T, b []byte, sealed bool) {
		if sealed {
			b = resealed(b, saltCarried)
		}
		side, err := sideOf(b, markCarried, 13)
		if err != nil {
			return
		}
		r := newCarriedReader(side)
		defer r.lines.close()
		read := make(map[uint64]Event)
		for {
			line, err := r.next()
			if err != nil {
				require.ErrorIs(t, err, ErrCorrupt)
				_, _, _ = side.find(7) // does not panic
				return
			}
			if line == nil {
				break
			}
			read[r.rec.seq] = r.event(&r.rec)
		}
		if !sealed && side.head.salt == saltCarried {
			require.Equal(t, golden, string(b))
		}
		for seq := uint64(1); seq < 13; seq++ {
			got, found, err := side.find(seq)
			require.NoError(t, err)
			want, there := read[seq]
			require.Equal(t, there, found)
			require.Equal(t, want, got.event)
		}
	})
}
