package wal

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

// What a file may hold is anything. Seeds come from the writer, the golden logs and the tables of this package's tests;
// inputs that once failed are kept in testdata/fuzz.

// seedLines adds lines, without their newlines: the writer's own, and the hostile ones of the tables.
func seedLines(f *testing.F) {
	for _, line := range flipLines() {
		f.Add(bytes.TrimSuffix(line, []byte("\n")))
	}
	for _, c := range problems {
		if len(c.middle) < 1000 {
			f.Add(sealed(`{"seq":7,"prev":5,"epoch":3`+c.middle+`,"more":2,"durable":4`, testSeed))
		}
	}
	for _, file := range goldenV1() {
		for _, l := range splitLines([]byte(file), 0, int64(len(file))) {
			f.Add([]byte(l.text))
		}
	}
}

// bodyOf is a line without its checksum.
func bodyOf(line []byte) []byte { return line[:max(0, len(line)-crcLength)] }

// FuzzDecodePathsAgree: what the fast path takes, the ordinary one takes to the same result, whatever the bytes are.
func FuzzDecodePathsAgree(f *testing.F) {
	seedLines(f)
	f.Fuzz(func(t *testing.T, line []byte) {
		body := bodyOf(line)
		if len(body) == 0 {
			return
		}
		line = sealed(string(body), testSeed)
		var d decoder
		var fast, slow record
		if !d.canonical(body, &fast) {
			return
		}
		require.NoError(t, d.ordinary(line, &slow), "%q", body)
		require.Equal(t, readingOf(&d, &fast), readingOf(&d, &slow), "%q", body)
		got, err := read(line, testSeed)
		require.NoError(t, err)
		require.Equal(t, readingOf(&d, &fast), got)
	})
}

// FuzzDecode: no bytes make decode panic or deliver nonsense, and nothing without the right checksum is taken.
func FuzzDecode(f *testing.F) {
	seedLines(f)
	f.Fuzz(func(t *testing.T, line []byte) {
		if _, err := read(line, testSeed); err == nil {
			require.Equal(t, sealed(string(bodyOf(line)), testSeed), line, "taken, so its end is as the writer writes it")
		} else if !bytes.Equal(sealed(string(bodyOf(line)), testSeed), line) {
			require.ErrorIs(t, err, errChecksum)
		}
		line = sealed(string(bodyOf(line)), testSeed)
		got, err := read(line, testSeed)
		e := got.Event
		switch {
		case err != nil, got.Mark.Kind != "":
			require.Zero(t, e)
			return
		case e.Seq == 0:
			require.Empty(t, e, "a mark without a kind")
			return
		}
		require.LessOrEqual(t, got.More, maxGroup)
		if e.Problem != "" {
			require.Equal(t, Event{Seq: e.Seq, Prev: e.Prev, JobID: e.JobID, Problem: e.Problem}, e)
			return
		}
		require.NotEmpty(t, e.Type)
		require.True(t, e.Time.Unix() >= 0 && e.Time.Unix() <= maxUnix)
		require.True(t, utf8.ValidString(e.JobID+e.Capability+e.Error+string(e.Type)))
		_, err = e.Time.MarshalJSON()
		require.NoError(t, err)
		// It can be written anew, and reads the same again.
		again := canonicalLine(e, got.More, got.Durable, testSeed)
		reread, err := read(again[:len(again)-1], testSeed)
		require.NoError(t, err)
		require.Equal(t, got, reread)
		// encoding/json finds nothing else in it: of two names that differ in case it takes the last, so they are passed over.
		var theirs map[string]json.RawMessage
		require.NoError(t, json.Unmarshal(line, &theirs))
		var job string
		require.NoError(t, json.Unmarshal(theirs["job_id"], &job))
		require.Equal(t, job, e.JobID)
	})
}

// FuzzEncode: what passes the door stands in the log, in one line that takes the fast path, and reads the same.
func FuzzEncode(f *testing.F) {
	f.Add("job_completed", "abc123", "FileRead", []byte(nil), []byte(`{"bytes":12}`), "", int64(1715800000), int64(123456789))
	f.Add("job_failed", "größe 🚀", `"\`, []byte("\t[1 ]"), []byte("null"), "a\nb\x00", int64(0), int64(0))
	f.Add("x", "", "", []byte(`"\ud83d\ude80"`), []byte("{}"), "<&>\u2028", int64(maxUnix), int64(999_999_999))
	f.Fuzz(func(t *testing.T, typ, job, capability string, args, output []byte, errText string, sec, ns int64) {
		given := Event{Seq: 1, Type: EventType(typ), JobID: job, Capability: capability, Args: args, Output: output, Error: errText, Time: time.Unix(sec, ns)}
		e, err := newDoor().check(given, func() time.Time { return time.Unix(1, 0) })
		if err != nil {
			require.ErrorIs(t, err, ErrInvalid)
			return
		}
		if given.Time.IsZero() {
			given.Time = time.Unix(1, 0)
		}
		given = stands(t, given)
		for _, raw := range []*json.RawMessage{&given.Args, &given.Output} {
			if len(*raw) == 0 {
				*raw = nil
			}
		}
		line := canonicalLine(e, 0, 0, testSeed)
		require.Equal(t, len(line)-1, bytes.IndexByte(line, '\n'))
		var d decoder
		var r record
		require.True(t, d.canonical(bodyOf(line[:len(line)-1]), &r), "%s", line)
		require.Equal(t, given, d.event(&r))
	})
}

// FuzzStrictJSON: what is taken, encoding/json takes and understands the same way; and dropping white space is what
// json.Compact does.
func FuzzStrictJSON(f *testing.F) {
	for _, c := range strictJSON {
		f.Add([]byte(c.in))
	}
	for _, c := range notStrictJSON {
		if len(c.in) < 10_000 {
			f.Add([]byte(c.in))
		}
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		var s jsonScanner
		compact, err := s.check(in)
		if err != nil {
			return
		}
		require.True(t, json.Valid(in))
		require.True(t, utf8.Valid(in))
		dense := appendCompact(nil, in)
		require.Equal(t, string(compactByStdlib(t, string(in))), string(dense))
		require.Equal(t, bytes.Equal(dense, in), compact)
		again, err := s.check(dense)
		require.NoError(t, err)
		require.True(t, again)
		require.Equal(t, decodeNumbers(t, in), decodeNumbers(t, dense))
		var floats any
		require.NoError(t, json.Unmarshal(in, &floats), "every number fits a double")
		if text, ok := floats.(string); ok {
			require.Equal(t, text, string(appendUnquoted(nil, dense[1:len(dense)-1])))
			require.Equal(t, text, unquote(t, appendQuoted(nil, text)))
		}
	})
}

func decodeNumbers(t *testing.T, in []byte) (v any) {
	d := json.NewDecoder(bytes.NewReader(in))
	d.UseNumber()
	require.NoError(t, d.Decode(&v))
	return v
}

func unquote(t *testing.T, in []byte) (s string) {
	require.NoError(t, json.Unmarshal(in, &s))
	return s
}

// FuzzImport: no file makes Import panic or stop before its end, and of every line that is not blank something is told.
func FuzzImport(f *testing.F) {
	for _, c := range ancestorFiles {
		file := ancestorFile(f, c.name)
		f.Add(file[:min(len(file), 2000)])
		f.Add(file[max(0, len(file)-500):])
	}
	f.Add([]byte("\ufeff" + importHead + "\r\n\x00\n" + importNext + importNext[:20] + importHead))
	f.Add([]byte(goldenV1()[segmentName(1)]))
	f.Fuzz(func(t *testing.T, in []byte) {
		got := importAll(t, bytes.NewReader(in))
		require.NoError(t, got.err)
		lines := 0
		for _, line := range bytes.Split(bytes.TrimPrefix(in, []byte("\ufeff")), []byte("\n")) {
			if len(bytes.TrimSpace(line)) > 0 {
				lines++
			}
		}
		told := len(got.events)
		for _, complaint := range got.complaints {
			if !complaint.Kept {
				told++
			}
		}
		require.Equal(t, lines, told)
		last := make(map[string]uint64)
		for i, e := range got.events {
			require.Equal(t, uint64(i+1), e.Seq)
			require.Equal(t, last[e.JobID], e.Prev)
			if e.JobID != "" {
				last[e.JobID] = e.Seq
			}
			checked, err := newDoor().check(e, time.Now)
			require.NoError(t, err, "Append takes it")
			require.Equal(t, e, checked)
		}
	})
}

// FuzzLines: a lineReader and bytes.Split agree, whatever part of whatever file is read in whatever steps.
func FuzzLines(f *testing.F) {
	f.Add([]byte("one\n\n\ntwo\nthree"), uint(0), uint(100), uint(1))
	f.Add(bytes.Repeat([]byte("x"), probeBytes+1), uint(1), uint(probeBytes), uint(7))
	f.Fuzz(func(t *testing.T, content []byte, from, to, most uint) {
		to = min(to, uint(len(content)))
		from = min(from, to)
		r := shortReads{content, int(min(max(most, 1), 1<<20))}
		require.Equal(t, splitLines(content, int64(from), int64(to)), takeLines(t, smallLineReader(r, int64(from), int64(to))))
	})
}

// FuzzSegment: no file that stands where the newest segment should makes Open, Verify or Salvage panic, and what they
// deliver is in order.
func FuzzSegment(f *testing.F) {
	for _, file := range goldenV1() {
		f.Add([]byte(file))
	}
	f.Add([]byte(goldenV2()[segmentName(1)]))
	f.Add([]byte(nil))
	f.Add(make([]byte, 512))
	f.Fuzz(func(t *testing.T, file []byte) {
		dir := t.TempDir()
		path := filepath.Join(dir, segmentName(1))
		require.NoError(t, os.WriteFile(path, file, 0o644))
		report, verifyErr := Verify(dir)
		_, salvageErr := Salvage(dir, filepath.Join(dir, "copy"))
		if salvageErr == nil {
			_, err := Verify(filepath.Join(dir, "copy"))
			require.NoError(t, err, "a copy is whole")
		}
		log, err := Open(dir, Options{ReadOnly: true})
		require.Equal(t, verifyErr == nil, err == nil, "Verify: %v; Open: %v", verifyErr, err)
		if err != nil {
			return
		}
		defer log.Close()
		next := log.FirstSeq()
		for e, err := range log.Events(next) {
			require.NoError(t, err)
			require.Equal(t, next, e.Seq)
			next++
		}
		require.LessOrEqual(t, next-1, report.LastSeq)
		same, err := os.Open(path)
		require.NoError(t, err)
		defer same.Close()
		now, err := io.ReadAll(same)
		require.NoError(t, err)
		require.True(t, bytes.Equal(file, now), "nothing was changed")
	})
}
