package crashtest_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/jobwal/jobwal/recovery/crashtest/internal/realdisk"
	"github.com/jobwal/jobwal/wal"
)

// A test here starts this test binary again as a writer, on a file system of its own, and shuts that down under it.
//
//	JOBWAL_REAL_CRASHES=200 go test -v -run TestF14_real ./recovery/crashtest
//
// says how many times, on each file system.
const (
	realCrashesVariable = "JOBWAL_REAL_CRASHES"
	realWriterVariable  = "JOBWAL_TEST_REAL_WRITER" // the round, in the environment of a writer
	realSaboteur        = "JOBWAL_TEST_REAL_SABOTEUR"
	realCallers         = 4
	realRoundsOfADisk   = 20 // then a new one: a log that has grown is read more slowly, and proves nothing more
)

func init() {
	if round, err := strconv.Atoi(os.Getenv(realWriterVariable)); err == nil {
		writeUntilShutdown(realdisk.DirOf(3), round)
		os.Exit(0)
	}
}

// realSegment: some rounds rotate, which syncs whatever the setting, with every append or two, others hardly ever.
func realSegment(round int) int64 { return []int64{64 << 10, 4 << 20}[round%2] }

// realLazy: in every third round the writer leaves syncing to the kernel. Then an ack promises nothing to this test; but
// there is always something on the way to the disk, and the rest of what must be is the same.
func realLazy(round int) bool { return round%3 == 2 }

// realGroup is the append of a number: its content follows from that alone.
func realGroup(number int) []wal.Event {
	of, pad := 1+number%3, number*7919%3001
	if number%4 == 1 {
		pad *= 150 // many pages: what tears, tears somewhere in the middle
	}
	events := make([]wal.Event, of)
	for k := range events {
		events[k] = wal.Event{Type: wal.JobSubmitted, JobID: fmt.Sprintf("job-%d-%d", number, k), Capability: "shell",
			Args: fmt.Appendf(nil, `{"number":%d,"k":%d,"pad":"%s"}`, number, k, strings.Repeat("x", pad/of))}
	}
	return events
}

// A realLine is one thing that a writer says, on its standard output. Stamps number what happens in it: an ack whose
// stamp is below that of the shutdown was there before the shutdown began.
type realLine struct {
	What   string `json:"what"` // open, begin, acked, unknown, failed, seen, shutdown, over, wrong
	Stamp  int64  `json:"stamp"`
	Number int    `json:"number,omitempty"`
	Seq    uint64 `json:"seq,omitempty"` // of acked: the first
	Error  string `json:"error,omitempty"`
}

// A realWriter is the writer's side. A line is one write to a pipe, unbuffered: what was said was said.
type realWriter struct {
	stamp atomic.Int64
	wal.FS
	writing chan struct{} // told of every write that is about to be made, if it listens
}

// realFile says when it is written to, which is when a shutdown does most, and takes its time over it.
type realFile struct {
	wal.File
	writing chan<- struct{}
}

func (w *realWriter) OpenFile(name string, flag int, perm os.FileMode) (wal.File, error) {
	file, err := w.FS.OpenFile(name, flag, perm)
	return realFile{file, w.writing}, err
}

func (f realFile) WriteAt(b []byte, at int64) (n int, err error) {
	for err == nil && n < len(b) {
		select {
		case f.writing <- struct{}{}:
		default:
		}
		var m int
		m, err = f.File.WriteAt(b[n:min(n+32<<10, len(b))], at+int64(n))
		n += m
	}
	return n, err
}

func (w *realWriter) say(l realLine) {
	line, _ := json.Marshal(l) // numbers and strings
	_, _ = os.Stdout.Write(append(line, '\n'))
}

// writeUntilShutdown appends with several callers until the file system is gone, which happens when the test says so, on
// standard input: "how microseconds".
func writeUntilShutdown(root string, round int) {
	w, over := &realWriter{FS: wal.OS, writing: make(chan struct{})}, make(chan struct{})
	go func() {
		defer close(over)
		var how realdisk.Flush
		var after time.Duration
		if _, err := fmt.Fscanln(os.Stdin, &how, &after); err != nil {
			os.Exit(1) // the test is gone
		}
		<-w.writing
		for begun := time.Now(); time.Since(begun) < after; { // any instant is as good; no sleep is that short
		}
		l := realLine{What: "shutdown", Stamp: w.stamp.Add(1)}
		if err := realdisk.Shutdown(root, how); err != nil {
			l.What, l.Error = "wrong", "shutdown: "+err.Error()
		}
		w.say(l)
		w.say(realLine{What: "over", Stamp: w.stamp.Add(1)})
	}()
	if os.Getenv(realSaboteur) != "" {
		w.FS = neverSynced{wal.OS}
	}
	opts := wal.Options{FS: w, SegmentBytes: realSegment(round)}
	if realLazy(round) {
		opts.Sync = wal.SyncNever
	}
	log, err := wal.Open(filepath.Join(root, "deeper", "log"), opts)
	if err == nil {
		w.work(root, log, round)
		_ = log.Close() // it has failed
	} else if !errors.Is(err, unix.EIO) {
		w.say(realLine{What: "wrong", Error: "Open: " + err.Error()})
	}
	<-over
}

func (w *realWriter) work(root string, log *wal.Log, round int) {
	w.say(realLine{What: "open", Stamp: w.stamp.Add(1), Seq: log.LastSeq()})
	go writeBack(root, log.Report().Dir)
	var all, readers sync.WaitGroup
	readers.Go(func() {
		for e, err := range log.Follow(context.Background(), log.LastSeq()+1) {
			if err != nil {
				return
			}
			w.say(realLine{What: "seen", Stamp: w.stamp.Add(1), Seq: e.Seq})
		}
	})
	for c := range realCallers {
		all.Go(func() {
			for number := round*1_000_000 + c*100_000; w.append1(log, number); number++ {
			}
		})
	}
	all.Wait()
	_ = log.Close()
	readers.Wait()
}

// writeBack makes happen often what may happen at any time: the kernel writes some pages of the newest segment to the
// disk, and another program's sync has the journal written, with the sizes of all files in it. So the disk has later
// pages without those before them, and sizes without what they cover.
func writeBack(root, dir string) {
	neighbour, err := os.Create(filepath.Join(root, "neighbour"))
	for err == nil {
		segments, _ := filepath.Glob(filepath.Join(dir, "*.jsonl"))
		if len(segments) == 0 {
			return // the disk is gone
		}
		if f, err := os.Open(segments[len(segments)-1]); err == nil {
			for range 1 + rand.IntN(5) {
				from := rand.Int64N(256) * int64(os.Getpagesize())
				_ = unix.SyncFileRange(int(f.Fd()), from, rand.Int64N(1<<19), unix.SYNC_FILE_RANGE_WRITE)
			}
			_ = f.Close()
		}
		_, err = neighbour.WriteAt([]byte{'x'}, rand.Int64N(1<<20))
		err = errors.Join(err, neighbour.Sync())
	}
}

// append1 tells whether there is any use in going on.
func (w *realWriter) append1(log *wal.Log, number int) bool {
	l := realLine{What: "begin", Stamp: w.stamp.Add(1), Number: number}
	w.say(l)
	first, err := log.Append(context.Background(), realGroup(number)...)
	l = realLine{What: "acked", Stamp: w.stamp.Add(1), Number: number, Seq: first}
	switch {
	case errors.Is(err, wal.ErrOutcomeUnknown) && errors.Is(err, wal.ErrFailed):
		l.What, l.Error = "unknown", err.Error()
	case errors.Is(err, wal.ErrFailed):
		l.What, l.Error = "failed", err.Error()
	case err != nil:
		l.What, l.Error = "wrong", err.Error()
	}
	w.say(l)
	return err == nil
}

// neverSynced is the oldest mistake: it says that it synced.
type neverSynced struct{ wal.FS }

type neverSyncedFile struct{ wal.File }

func (f neverSynced) OpenFile(name string, flag int, perm os.FileMode) (wal.File, error) {
	file, err := f.FS.OpenFile(name, flag, perm)
	return neverSyncedFile{file}, err
}
func (neverSynced) SyncDir(string) error { return nil }
func (neverSyncedFile) Sync() error      { return nil }

// A realLedger is what is known of one log from outside of it.
type realLedger struct {
	fates map[int]*realFate // by number
	there []wal.Event       // what a recovery showed: it stays
	seen  uint64            // what a follower was shown before the last shutdown
	count realCount
}

type realFate struct {
	first           uint64
	acked, mustHave bool // acknowledged; and that before the shutdown
	failed          bool // for certain
}

// realCount is for people.
type realCount struct {
	crashes, torn, tornBytes, rewritten, acked, overlapped, unknown, lazy, kept, inOpen int
}

func (c realCount) String() string {
	return fmt.Sprintf("%d crashes (%d of them inside Open), %d torn tails (%d bytes), %d bytes written anew; %d appends "+
		"acknowledged, %d more while the disk went down, %d unknown, %d written with SyncNever; %d of these three there",
		c.crashes, c.inOpen, c.torn, c.tornBytes, c.rewritten, c.acked, c.overlapped, c.unknown, c.lazy, c.kept)
}

// realRound lets a writer work, and shuts the file system down under it after some acks, or while it opens the log.
func (r *realLedger) realRound(t *testing.T, d *realdisk.Disk, round int, env ...string) error {
	t.Helper()
	cmd, in, lines := startRealWriter(t, d, round, env...)
	how := []realdisk.Flush{realdisk.FlushJournal, realdisk.FlushNothing}[rand.IntN(2)]
	acks, after := max(0, rand.IntN(40)-10), time.Duration(rand.IntN(2000))*time.Microsecond
	said, acked, opened := []realLine{}, 0, false
	for stop := false; ; {
		if acked >= acks && !stop {
			stop = true
			fmt.Fprintln(in, how, int64(after))
		}
		if !lines.Scan() {
			break
		}
		var l realLine
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			return fmt.Errorf("the writer said %q", lines.Text())
		}
		if said = append(said, l); l.What == "acked" {
			acked++
		}
		opened = opened || l.What == "open"
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("the writer: %w", err)
	}
	r.count.crashes++
	if !opened {
		r.count.inOpen++
	}
	return r.hear(said, realLazy(round))
}

func startRealWriter(t *testing.T, d *realdisk.Disk, round int, env ...string) (*exec.Cmd, io.Writer, *bufio.Scanner) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(append(os.Environ(), realWriterVariable+"="+strconv.Itoa(round)), env...)
	cmd.ExtraFiles, cmd.Stderr = []*os.File{d.File()}, os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, in, bufio.NewScanner(out)
}

// hear takes a writer's word for what it was told. What overlaps the shutdown proves nothing; but an append that began
// when the disk was gone, and was acknowledged, is a lie.
func (r *realLedger) hear(said []realLine, lazy bool) error {
	var shutdown, over int64
	for _, l := range said {
		switch l.What {
		case "shutdown":
			shutdown = l.Stamp
		case "over":
			over = l.Stamp
		case "wrong":
			return errors.New("the writer met an error that it should not: " + l.Error)
		}
	}
	if shutdown == 0 || over == 0 {
		return errors.New("the writer was not shut down")
	}
	began := make(map[int]int64)
	for _, l := range said {
		switch l.What {
		case "begin":
			began[l.Number], r.fates[l.Number] = l.Stamp, new(realFate)
		case "seen":
			if l.Stamp < shutdown && !lazy {
				r.seen = max(r.seen, l.Seq)
			}
		case "acked":
			*r.fates[l.Number] = realFate{first: l.Seq, acked: true, mustHave: l.Stamp < shutdown && !lazy}
			if began[l.Number] > over {
				return fmt.Errorf("append %d began after the disk was gone, and was acknowledged", l.Number)
			}
			switch {
			case lazy:
				r.count.lazy++
			case l.Stamp < shutdown:
				r.count.acked++
			default:
				r.count.overlapped++
			}
		case "unknown":
			r.count.unknown++
		case "failed":
			r.fates[l.Number].failed = true
		}
	}
	return nil
}

// judge opens the log as the next writer does, and holds what is there against what is known.
func (r *realLedger) judge(root string) error {
	dir := filepath.Join(root, "deeper", "log")
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return r.check(nil) // the first Open was not that far
	}
	found, err := wal.Verify(dir)
	if err != nil {
		return fmt.Errorf("Verify: %w", err)
	}
	log, err := wal.Open(dir, wal.Options{})
	if err != nil {
		return fmt.Errorf("Open: %w", err)
	}
	defer log.Close() // after an error, which says more
	var events []wal.Event
	for e, err := range log.Events(1) {
		if err != nil {
			return err
		}
		events = append(events, e)
	}
	if err := r.check(events); err != nil {
		return err
	}
	report := log.Report()
	if report.TornBytes() != found.TornBytes() {
		return fmt.Errorf("Verify saw %d torn bytes, Open %d", found.TornBytes(), report.TornBytes())
	}
	r.count.rewritten += int(report.Rewritten)
	for _, torn := range report.Torn {
		r.count.torn, r.count.tornBytes = r.count.torn+1, r.count.tornBytes+int(torn.Bytes)
		if kept, err := os.Stat(torn.Quarantine); err != nil || kept.Size() <= torn.Bytes {
			return fmt.Errorf("%d bytes were cut, and no copy is there: %w", torn.Bytes, err)
		}
	}
	r.there = events
	return log.Close()
}

// check: the events are dense, whole groups, what was there before stays, what was acknowledged is at its seq, byte for
// byte, and nothing is there that nobody submitted, or that was refused.
func (r *realLedger) check(events []wal.Event) error {
	if uint64(len(events)) < r.seen {
		return fmt.Errorf("seq %d was shown to a follower, and the log ends at %d", r.seen, len(events))
	}
	if len(events) < len(r.there) {
		return fmt.Errorf("%d events were there after the crash before, %d are", len(r.there), len(events))
	}
	for i, e := range r.there {
		if err := same(events[i], e); err != nil {
			return err
		}
	}
	for i := len(r.there); i < len(events); {
		number, err := r.checkGroup(events[i:], uint64(i+1))
		if err != nil {
			return err
		}
		i += len(realGroup(number))
	}
	for number, fate := range r.fates {
		if fate.mustHave {
			return fmt.Errorf("append %d was acknowledged as seq %d, and is not there; the log ends at %d",
				number, fate.first, len(events))
		}
	}
	clear(r.fates) // those that are there, r.there knows; no other may come back
	return nil
}

// checkGroup holds the append that the events begin with against its fate, and ticks that off.
func (r *realLedger) checkGroup(events []wal.Event, seq uint64) (number int, err error) {
	var p struct{ Number int }
	if err := json.Unmarshal(events[0].Args, &p); err != nil {
		return 0, fmt.Errorf("seq %d: %w", seq, err)
	}
	fate := r.fates[p.Number]
	switch {
	case fate == nil:
		return 0, fmt.Errorf("seq %d is of append %d, which nobody has begun since the crash before", seq, p.Number)
	case fate.failed:
		return 0, fmt.Errorf("seq %d is of append %d, which has failed", seq, p.Number)
	case fate.acked && fate.first != seq:
		return 0, fmt.Errorf("append %d was acknowledged as seq %d, and is seq %d", p.Number, fate.first, seq)
	case !fate.mustHave:
		r.count.kept++
	}
	group := realGroup(p.Number)
	for k, want := range group {
		if k == len(events) {
			return 0, fmt.Errorf("append %d is not whole", p.Number)
		}
		want.Seq, want.Epoch, want.Time = seq+uint64(k), events[k].Epoch, events[k].Time
		if err := same(events[k], want); err != nil {
			return 0, err
		}
	}
	delete(r.fates, p.Number)
	return p.Number, nil
}

func same(got, want wal.Event) error {
	if !bytes.Equal(got.Args, want.Args) || !got.Time.Equal(want.Time) {
		return fmt.Errorf("seq %d: %.100s of %v\nis not what was written: %.100s of %v", got.Seq, got.Args, got.Time, want.Args, want.Time)
	}
	got.Args, got.Time, want.Args, want.Time = nil, time.Time{}, nil, time.Time{}
	if !reflect.DeepEqual(got, want) {
		return fmt.Errorf("%+v\nis not what was written:\n%+v", got, want)
	}
	return nil
}

// F14, F1, F2, F9, W2, W3, W6, for real: the file system goes away under a writer, at any instant, inside Open too. What
// was acknowledged before is there, and the next writer goes on.
func TestF14_real_power_cut(t *testing.T) {
	crashes := 6
	if s := os.Getenv(realCrashesVariable); s != "" {
		var err error
		if crashes, err = strconv.Atoi(s); err != nil {
			t.Fatalf("%s: %v", realCrashesVariable, err)
		}
	}
	for kind, size := range map[string]int64{"ext4": 1 << 30, "xfs": 1 << 30} {
		t.Run(kind, func(t *testing.T) {
			var total realCount
			started := time.Now()
			for round := 0; round < crashes; {
				d := realdisk.New(t, kind, size)
				r := &realLedger{fates: make(map[int]*realFate), count: total}
				for i := 0; i < realRoundsOfADisk && round < crashes; i++ {
					round++
					if err := r.realCrash(t, d, round); err != nil {
						t.Fatalf("crash %d: %v", round, err)
					}
				}
				total = r.count
			}
			t.Logf("%s: %v; %v a crash", kind, total, (time.Since(started) / time.Duration(crashes)).Round(time.Millisecond))
		})
	}
}

// realCrash is one round, power cut and recovery.
func (r *realLedger) realCrash(t *testing.T, d *realdisk.Disk, round int, env ...string) error {
	if err := r.realRound(t, d, round, env...); err != nil {
		return err
	}
	d.Remount()
	return r.judge(d.Dir())
}

// The test above has teeth: a log that does not sync is found out.
func TestF14_real_power_cut_finds_a_log_that_does_not_sync(t *testing.T) {
	for kind, size := range map[string]int64{"ext4": 1 << 30, "xfs": 1 << 30} {
		t.Run(kind, func(t *testing.T) {
			d := realdisk.New(t, kind, size)
			r := &realLedger{fates: make(map[int]*realFate)}
			for round := range 10 {
				if err := r.realCrash(t, d, round+1, realSaboteur+"=1"); err != nil {
					t.Logf("%s: found in crash %d: %v", kind, round+1, err)
					return
				}
			}
			t.Errorf("not found in 10 crashes: %v", r.count)
		})
	}
}
