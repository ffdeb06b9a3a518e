package wal

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// testdata/golden holds one small log of each format version. They were written once and are never written again: what
// they read as is what every later version of this package has to read. JOBWAL_WRITE_GOLDEN=1 writes those that are
// missing.

const goldenID = "6a6f6277616c2d676f6c64656e2d7631"

// goldenV1 is a log of format 1 with everything that a segment may hold.
func goldenV1() map[string]string {
	at := func(sec int64) time.Time { return time.Unix(1715800000+sec, 123456789*sec%1_000_000_000) }
	event := func(e Event, more int, durable uint64) func(uint32) []byte {
		return func(seed uint32) []byte { return canonicalLine(e, more, durable, seed) }
	}
	byHand := func(body string) func(uint32) []byte {
		return func(seed uint32) []byte { return seal([]byte(body), 0, seed) }
	}
	about := func(m mark) func(uint32) []byte { return func(seed uint32) []byte { return appendMark(nil, m, seed) } }
	segment := func(salt string, lines ...func(uint32) []byte) string {
		var b strings.Builder
		for _, line := range lines {
			b.Write(line(saltSeed(salt)))
		}
		return b.String()
	}
	const saltA, saltB = "00000000000000a1", "00000000000000b2"
	first := segment(saltA,
		about(mark{Kind: markSegment, Version: 1, Log: goldenID, Salt: saltA, First: 1, Epoch: 1, Time: at(0), Floor: 1}),
		about(mark{Kind: markOpened, Epoch: 1, Time: at(0)}),
		event(Event{Seq: 1, Epoch: 1, Time: at(1), Type: JobSubmitted, JobID: "job-a", Capability: "FileRead",
			Args: json.RawMessage(`{"path":"/srv/größe 🚀.txt","n":1234567890123456789012345,"html":"<&>` + "\u2028" + `"}`)}, 0, 0),
		event(Event{Seq: 2, Prev: 1, Epoch: 1, Time: at(2), Type: JobValidated, JobID: "job-a", Capability: "FileRead"}, 0, 1),
		event(Event{Seq: 3, Epoch: 1, Time: at(3), Type: JobSubmitted, JobID: `job "b" \`, Args: json.RawMessage("null")}, 1, 2),
		event(Event{Seq: 4, Epoch: 1, Time: at(3), Type: JobSubmitted, JobID: "job-c"}, 0, 2),
		about(mark{Kind: markDurable, Durable: 4}),
		byHand(` { "type":"job_started" , "host":{"name":"a","up":[1,2]}, "job\u005fid" : "job-a", "epoch":1,"prev":2, "ts":1715800005,`+
			"\t"+`"capability":null, "seq":5, "durable":4 `),
		event(Event{Seq: 6, Prev: 5, Epoch: 1, Time: at(6), Type: JobCompleted, JobID: "job-a", Capability: "FileRead",
			Output: json.RawMessage(`[{"bytes":12},-0,1E+2,"\u003c\/"]`)}, 0, 5),
		byHand(`{"seq":7,"prev":3,"epoch":1,"ts":1715800007,"ns":0,"type":"job_paused","job_id":"job \"b\" \\","until":{"a":1},"durable":6`),
		about(mark{Kind: "later", Epoch: 1, Durable: 7}),
		byHand(`{"mark":"later","why":{"x":[1,2]},"durable":7`),
		byHand(`{"seq":8,"prev":4,"epoch":1,"ts":1715800008,"ns":0,"type":"job_started","job_id":"job-c","type":"job_failed","durable":7`),
		event(Event{Seq: 9, Prev: 8, Epoch: 1, Time: at(9), Type: JobFailed, JobID: "job-c", Error: "exit status 1\n\tline two \"\\\" \x00\x7f"}, 0, 8),
		event(Event{Seq: 10, Prev: 6, Epoch: 1, Time: at(10), Type: JobRolledBack, JobID: "job-a", Error: "undone"}, 2, 9),
		event(Event{Seq: 11, Epoch: 1, Time: time.Unix(0, 0), Type: "jobs_forgotten"}, 1, 9),
		event(Event{Seq: 12, Epoch: 1, Time: time.Unix(maxUnix, 999_999_999), Type: JobSubmitted, JobID: "job-d"}, 0, 9),
		about(mark{Kind: markSealed, Last: 12, Durable: 12}),
	)
	second := segment(saltB,
		about(mark{Kind: markSegment, Version: 1, Log: goldenID, Salt: saltB, Prior: 1, First: 13, Epoch: 2, Time: at(20), Floor: 1, Durable: 12}),
		about(mark{Kind: markOpened, Epoch: 2, Time: at(20), Durable: 12}),
		event(Event{Seq: 13, Prev: 12, Epoch: 2, Time: at(21), Type: JobFailed, JobID: "job-d", Capability: "<shell>", Error: "interrupted"}, 0, 12),
		about(mark{Kind: markFloor, Floor: 1, Durable: 13}),
		byHand(`{"seq":14,"prev":13,"epoch":2,"ts":1715800022,"ns":0,"type":"job_rolled_back","job_id":"job-d","error":"`+"\xff\x00"+`","durable":13`),
		event(Event{Seq: 15, Epoch: 2, Time: at(23), Type: JobSubmitted, JobID: "job-e", Args: json.RawMessage("[]")}, 0, 14),
		about(mark{Kind: markClosed, Epoch: 2, Time: at(24), Last: 15, Durable: 15}),
	)
	return map[string]string{segmentName(1): first, segmentName(13): second + strings.Repeat("\n", 100)}
}

// goldenV2 is as much of a later format as this version can know: a header that says so.
func goldenV2() map[string]string {
	const salt = "00000000000000c3"
	header := `{"mark":"segment","version":2,"log":"` + goldenID + `","salt":"` + salt + `","prior":0,"first":1,"epoch":1,"ts":1715800000,"ns":0,` +
		`"floor":1,"durable":0,"packed":true`
	return map[string]string{segmentName(1): string(seal([]byte(header), 0, saltSeed(salt))) + "what format 2 may hold\n"}
}

// goldenText is what a log reads as, one event a line. Why an event cannot be read is not part of it: words may get
// better.
func goldenText(t testing.TB, log *Log) string {
	var b strings.Builder
	for e, err := range log.Events(0) {
		require.NoError(t, err)
		fmt.Fprintf(&b, "%d prev=%d epoch=%d time=%s type=%q job=%q capability=%q args=%q output=%q error=%q problem=%v\n", e.Seq, e.Prev, e.Epoch,
			e.Time.Format(time.RFC3339Nano), e.Type, e.JobID, e.Capability, e.Args, e.Output, e.Error, e.Problem != "")
	}
	return b.String()
}

func goldenDir(version string) string { return filepath.Join("testdata", "golden", version) }

// writeGolden refuses to write over what is there.
func writeGolden(t *testing.T, version string, files map[string]string) {
	require.NoError(t, os.Mkdir(goldenDir(version), 0o755))
	for name, content := range files {
		require.NoError(t, os.WriteFile(filepath.Join(goldenDir(version), name), []byte(content), 0o644))
	}
}

func TestGolden_v1_is_what_the_writer_writes(t *testing.T) {
	for version, files := range map[string]map[string]string{"v1": goldenV1(), "v2": goldenV2(), "v1-retained": goldenRetained(t)} {
		entries, err := os.ReadDir(goldenDir(version))
		if os.IsNotExist(err) && os.Getenv("JOBWAL_WRITE_GOLDEN") != "" {
			writeGolden(t, version, files)
			continue
		}
		require.NoError(t, err)
		require.Len(t, entries, len(files))
		for name, content := range files {
			file, err := os.ReadFile(filepath.Join(goldenDir(version), name))
			require.NoError(t, err)
			require.Equal(t, content, string(file))
		}
	}
}

func TestGolden_v1_reads_as_it_always_did(t *testing.T) {
	want, err := os.ReadFile(goldenDir("v1.txt"))
	require.NoError(t, err)

	log, err := Open(goldenDir("v1"), Options{ReadOnly: true})
	require.NoError(t, err)
	defer log.Close()
	require.Equal(t, string(want), goldenText(t, log))
	require.Equal(t, goldenID, log.ID())
	require.Equal(t, uint64(1), log.FirstSeq())
	require.Equal(t, uint64(15), log.LastSeq())
	require.Equal(t, uint64(2), log.Epoch())
	report := log.Report()
	require.True(t, report.Clean)
	require.Empty(t, report.Torn)
	all, err := log.Tail(100)
	require.NoError(t, err)
	require.Len(t, all, 15)
	for _, e := range all {
		one, err := log.At(e.Seq)
		require.NoError(t, err)
		require.Equal(t, e, one)
	}
}

func TestGolden_v1_is_found_in_order(t *testing.T) {
	report, err := Verify(goldenDir("v1"))
	require.NoError(t, err)
	report.Took = 0
	require.Equal(t, Report{Dir: goldenDir("v1"), LogID: goldenID, Epoch: 2, FirstSeq: 1, LastSeq: 15, Segments: 2,
		Bytes: int64(len(goldenV1()[segmentName(1)]) + len(goldenV1()[segmentName(13)])), Events: 15, Clean: true}, report)
}

// A writer of today goes on where that of format 1 stopped, and a salvaged copy holds the same.
func TestGolden_v1_goes_on(t *testing.T) {
	want, err := os.ReadFile(goldenDir("v1.txt"))
	require.NoError(t, err)
	dir, copied := t.TempDir(), filepath.Join(t.TempDir(), "copy")
	require.NoError(t, os.CopyFS(dir, os.DirFS(goldenDir("v1"))))

	report, err := Salvage(dir, copied)
	require.NoError(t, err)
	require.Zero(t, report.Damages)
	require.Zero(t, report.Lost)
	saved, err := Open(copied, Options{ReadOnly: true})
	require.NoError(t, err)
	defer saved.Close()
	require.Equal(t, string(want), goldenText(t, saved))

	for epoch := uint64(3); epoch < 5; epoch++ {
		log, err := Open(dir, Options{})
		require.NoError(t, err)
		require.True(t, log.Report().Clean)
		require.Equal(t, epoch, log.Epoch())
		seq, err := log.Append(context.Background(), Event{Type: JobStarted, JobID: "job-e", Prev: 15})
		require.NoError(t, err)
		require.Equal(t, 13+epoch, seq)
		require.True(t, strings.HasPrefix(goldenText(t, log), string(want)))
		require.NoError(t, log.Close())
	}
	_, err = Verify(dir)
	require.NoError(t, err)
}

// F22: a newer format is no damage, and nothing is touched.
func TestF22_golden_v2_is_a_newer_version(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.CopyFS(dir, os.DirFS(goldenDir("v2"))))
	_, writer := Open(dir, Options{})
	_, reader := Open(dir, Options{ReadOnly: true})
	_, verified := Verify(dir)
	_, salvaged := Salvage(dir, filepath.Join(t.TempDir(), "copy"))
	for name, err := range map[string]error{"Open": writer, "ReadOnly": reader, "Verify": verified, "Salvage": salvaged} {
		require.ErrorIs(t, err, ErrVersion, name)
		require.NotErrorIs(t, err, ErrCorrupt, name)
		var version *VersionError
		require.ErrorAs(t, err, &version, name)
		require.Equal(t, VersionError{Path: filepath.Join(dir, segmentName(1)), Found: 2, Known: 1}, *version)
	}
	file, err := os.ReadFile(filepath.Join(dir, segmentName(1)))
	require.NoError(t, err)
	require.Equal(t, goldenV2()[segmentName(1)], string(file))
}

// F24, on a whole file: whichever bit is flipped, every event that is still delivered is one that was written.
func TestF24_no_bit_flip_in_a_segment_changes_an_event(t *testing.T) {
	file := []byte(goldenV1()[segmentName(1)])
	headerEnd := strings.IndexByte(string(file), '\n') + 1
	eventsOf := func() map[uint64]string {
		events := make(map[uint64]string)
		var d decoder
		var r record
		for _, l := range splitLines(file, int64(headerEnd), int64(len(file))) {
			if d.decode([]byte(l.text), saltSeed("00000000000000a1"), &r) == nil && r.mark == nil {
				events[r.seq] = fmt.Sprintf("%+v %d %d", d.event(&r), r.more, r.durable)
			}
		}
		return events
	}
	whole := eventsOf()
	require.Len(t, whole, 12)
	for bit := 8 * headerEnd; bit < 8*len(file); bit++ {
		if bit%11 != 0 && file[bit/8] != '\n' {
			continue // every bit of a line has its turn in TestF24_every_single_bit_flip_is_detected
		}
		file[bit/8] ^= 1 << (bit % 8)
		damaged := eventsOf()
		for seq, e := range damaged {
			require.Equal(t, whole[seq], e, "bit %d", bit)
		}
		require.GreaterOrEqual(t, len(damaged), len(whole)-2, "a newline that is gone takes two lines")
		file[bit/8] ^= 1 << (bit % 8)
	}
}
