package wal_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

var update = flag.Bool("update", false, "write what the stories print now into testdata/stories")

// TestStories runs the scripts in testdata/stories. A script is blocks of commands, each followed by a line of dashes and
// by what the commands print: every operation that changes the disk, or puts a change on stable storage, in order, so
// that a sync that goes missing shows as a changed line; then what the caller is told. Lines with # say why.
//
//	open [segment=BYTES] [readonly]      close
//	append EVENTS [PADDING]              idle             a second passes
//	drop SEQ                             events           what is shown
//	crash POLICY                         as crashfs.ParsePolicy reads it; the log is gone, the disk is what it left
//	fault SCHEDULE                       as crashfs.ParseSchedule reads it; from the next open on
//	flip FILE BIT                        verify
//	checkpoint SEQ                       compact BEFORE DIVISOR    what appends with numbers it divides had is kept
func TestStories(t *testing.T) {
	files, err := filepath.Glob("testdata/stories/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no stories", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			script, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var told []byte
			synctest.Test(t, func(t *testing.T) { told = tell(t, string(script)) })
			if *update {
				err = os.WriteFile(file, told, 0o644)
			}
			if err != nil || !*update && !bytes.Equal(told, script) {
				t.Errorf("%s tells another story now (-update accepts it): %v\n%s", file, err, told)
			}
		})
	}
}

// tell runs a script and returns it with what it prints now.
func tell(t *testing.T, script string) []byte {
	var out bytes.Buffer
	s := &story{disk: crashfs.New()}
	answers := false
	for line := range strings.Lines(script) {
		line = strings.TrimRight(line, "\n")
		switch {
		case line == "----":
			fmt.Fprintf(&out, "----\n%s", s.printed.String())
			s.printed.Reset()
			answers = true
		case line == "":
			answers = false
			out.WriteString("\n")
		case answers: // the old ones
		case strings.HasPrefix(line, "#"):
			out.WriteString(line + "\n")
		default:
			out.WriteString(line + "\n")
			s.run(t, strings.Fields(line))
		}
	}
	if s.log != nil {
		_ = s.log.Close()
	}
	return out.Bytes()
}

type story struct {
	disk    *crashfs.FS
	faulty  *crashfs.Faulty
	faults  string
	log     *wal.Log
	number  int
	shown   int // operations that were printed
	printed bytes.Buffer
}

func (s *story) run(t *testing.T, words []string) {
	arg := func(i, otherwise int) int {
		if i >= len(words) {
			return otherwise
		}
		n, err := strconv.Atoi(words[i])
		if err != nil {
			t.Fatalf("%v: %v", words, err)
		}
		return n
	}
	rest := strings.Join(words[1:], " ")
	if s.log == nil && strings.Contains("append close drop events", words[0]) {
		t.Fatalf("%v: the log is not open\n%s", words, &s.printed)
	}
	switch words[0] {
	case "open":
		s.open(t, words[1:])
	case "append":
		s.number++
		first, err := s.log.Append(ctx, group(s.number, arg(1, 1), arg(2, 0))...)
		s.say(err, "seq %d", first)
	case "close":
		s.say(s.log.Close(), "closed")
		s.log = nil
	case "drop":
		err := s.log.DropBefore(uint64(arg(1, 0)))
		s.say(err, "%d..%d", s.log.FirstSeq(), s.log.LastSeq())
	case "checkpoint":
		_, err := s.log.SaveCheckpoint(ctx, uint64(arg(1, 0)), sectionsOf(uint64(arg(1, 0))))
		s.say(err, "saved")
	case "compact":
		c, err := s.log.Compact(ctx, uint64(arg(1, 0)), wal.CompactOptions{
			Keep: func(e wal.Event) bool { return numberOf(e)%arg(2, 1) == 0 }})
		s.say(err, "%+v", c)
	case "idle":
		time.Sleep(time.Second)
		synctest.Wait()
		s.say(nil, "")
	case "events":
		events, err := collect(s.log, 0)
		s.say(err, "%d events, %d..%d", len(events), s.log.FirstSeq(), s.log.LastSeq())
	case "verify":
		report, err := wal.VerifyFS(s.disk, "log")
		s.say(err, "%d segments, %d events, %d torn bytes, %d damages", report.Segments, report.Events, report.TornBytes(), report.Damages)
	case "fault":
		s.faults = rest
	case "flip":
		f, err := s.disk.OpenFile("log/"+fmt.Sprintf("%020s.jsonl", words[1]), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		b := contents(s.disk, "log/"+fmt.Sprintf("%020s.jsonl", words[1]))
		b[arg(2, 0)/8] ^= 1 << (arg(2, 0) % 8)
		if _, err := f.WriteAt(b, 0); err != nil {
			t.Fatal(err)
		}
	case "crash":
		policy, err := crashfs.ParsePolicy(rest)
		if err != nil {
			t.Fatal(err)
		}
		s.faulty.Stop()
		s.disk, s.log = s.disk.Crash(policy), nil
		s.printed.WriteString(short(s.disk.String()))
	default:
		t.Fatalf("no command %q", words[0])
	}
}

func (s *story) open(t *testing.T, words []string) {
	s.faulty, s.shown = crashfs.Inject(s.disk, crashfs.MustSchedule(s.faults)), 0
	s.faults = ""
	opts := wal.Options{FS: s.faulty}
	for _, word := range words {
		if word == "prefill" {
			opts.Prefill = wal.PrefillOn
		}
		if n, ok := strings.CutPrefix(word, "segment="); ok {
			opts.SegmentBytes, _ = strconv.ParseInt(n, 10, 64)
		}
		opts.ReadOnly = opts.ReadOnly || word == "readonly"
	}
	l, err := wal.Open("log", opts)
	if err != nil {
		s.say(err, "")
		return
	}
	s.log = l
	r := l.Report()
	for _, torn := range r.Torn {
		fmt.Fprintf(&s.printed, "torn %s:%d %d bytes (seq %d): %s\n", short(torn.Path), torn.Offset, torn.Bytes, torn.Seq, torn.Reason)
	}
	s.say(nil, "epoch %d, %d..%d, clean %v, rewritten %d, torn %d, swept %d",
		l.Epoch(), l.FirstSeq(), l.LastSeq(), r.Clean, r.Rewritten, r.TornBytes(), len(r.Swept))
}

// say prints the operations since the last time, and then the answer.
func (s *story) say(err error, format string, args ...any) {
	ops := s.faulty.Ops()
	for _, op := range ops[s.shown:] {
		fmt.Fprintf(&s.printed, "  %s\n", short(op.String()))
	}
	s.shown = len(ops)
	for _, sentinel := range []error{wal.ErrFailed, wal.ErrOutcomeUnknown, wal.ErrNoSpace, wal.ErrCorrupt, wal.ErrDropped, wal.ErrLocked} {
		if errors.Is(err, sentinel) {
			fmt.Fprintf(&s.printed, "%v\n", sentinel)
		}
	}
	switch {
	case errors.Is(err, wal.ErrCorrupt):
		fmt.Fprintf(&s.printed, "%s\n", short(err.Error()))
	case err == nil && format != "":
		fmt.Fprintf(&s.printed, format+"\n", args...)
	}
}

var zeros = regexp.MustCompile(`(log/)?0{15,}`)

// short leaves the zeros out of the segments' names.
func short(s string) string { return zeros.ReplaceAllString(s, "") }
