package crashtest_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"testing"
	"time"

	"github.com/jobwal/jobwal/recovery/crashtest"
	"github.com/jobwal/jobwal/recovery/crashtest/internal/realdisk"
	"github.com/jobwal/jobwal/wal"
)

// realCrashesVariable says how often each file system is shut down:
//
//	JOBWAL_REAL_CRASHES=200 go test -v -run real_power_cut ./recovery/crashtest
const realCrashesVariable = "JOBWAL_REAL_CRASHES"

// realDir is the log, seen from the root of its file system: Open makes both directories.
const realDir = "deeper/log"

// realKinds are the file systems, sparse files of some size.
var realKinds = []struct {
	name  string
	bytes int64
}{{"ext4", 1 << 30}, {"xfs", 1 << 30}}

// F14, F1, F2, F9, W2, W3, W6, for real: the file system goes away under a writer, at any instant, inside Open and inside
// a repair too. What was acknowledged before is there, and the next writer goes on.
func TestF1_F2_F9_F14_real_power_cut(t *testing.T) {
	crashes := crashtest.Thin(20, 3)
	if s := os.Getenv(realCrashesVariable); s != "" {
		var err error
		if crashes, err = strconv.Atoi(s); err != nil {
			t.Fatalf("%s: %v", realCrashesVariable, err)
		}
	}
	for _, kind := range realKinds {
		t.Run(kind.name, func(t *testing.T) {
			var count realCount
			started := time.Now()
			for count.crashes < crashes {
				d := realdisk.New(t, kind.name, kind.bytes)
				r := &realLedger{fates: make(map[int]*realFate), count: count}
				// A log that has grown is read more slowly, and proves nothing more.
				for of := min(crashes, count.crashes+20); r.count.crashes < of; {
					if err := r.crash(t, d); err != nil {
						t.Fatalf("crash %d: %v", r.count.crashes, err)
					}
				}
				count = r.count
				d.Discard()
			}
			each := time.Since(started) / time.Duration(count.crashes)
			t.Logf("%s: %v; %v each", kind.name, count, each.Round(time.Millisecond))
		})
	}
}

// The test above has teeth: a log that does not sync is found out.
func TestF1_F2_F9_F14_real_power_cut_finds_a_log_that_does_not_sync(t *testing.T) {
	for _, kind := range realKinds {
		for saboteur := range realSaboteurs {
			t.Run(kind.name+"/"+saboteur, func(t *testing.T) {
				d := realdisk.New(t, kind.name, kind.bytes)
				r := &realLedger{fates: make(map[int]*realFate)}
				for range 20 {
					if err := r.crash(t, d, realSabotageVariable+"="+saboteur); err != nil {
						t.Logf("found in crash %d: %v", r.count.crashes, err)
						return
					}
				}
				t.Errorf("not found: %v", r.count)
			})
		}
	}
}

// A realLedger is what is known of one log from outside of it.
type realLedger struct {
	fates map[int]*realFate // by number; of all appends since the last recovery that was looked at
	there []wal.Event       // what that recovery showed: it stays
	shown uint64            // to a follower, or by Open, before a shutdown: it stays, too
	count realCount
}

type realFate struct {
	first  uint64
	acked  bool
	before bool // acknowledged before the shutdown: it must be there
	failed bool // it must not be there
}

// realCount is for people.
type realCount struct {
	crashes, inOpen, torn, tornBytes, rewritten, acked, overlapped, unknown, lazy, kept int
}

func (c realCount) String() string {
	return fmt.Sprintf("%d crashes (%d of them inside Open), %d torn tails (%d bytes), %d bytes written anew; "+
		"%d appends acknowledged and all there, %d acknowledged while the disk went down, %d unknown, "+
		"%d written with SyncNever, %d of these three there",
		c.crashes, c.inOpen, c.torn, c.tornBytes, c.rewritten, c.acked, c.overlapped, c.unknown, c.lazy, c.kept)
}

// crash is one power cut and what comes after it; every other recovery meets a power cut of its own first.
func (r *realLedger) crash(t *testing.T, d *realdisk.Disk, env ...string) error {
	t.Helper()
	err := r.cut(t, d, 1+rand.IntN(40), env...)
	for err == nil && rand.IntN(2) == 0 {
		err = r.cut(t, d, 0, env...)
	}
	if err != nil {
		return err
	}
	return r.judge(filepath.Join(d.Dir(), realDir))
}

// cut lets a writer work, and shuts the file system down under it after so many acks; after none, while it opens the log.
func (r *realLedger) cut(t *testing.T, d *realdisk.Disk, acks int, env ...string) error {
	t.Helper()
	r.count.crashes++
	round := r.count.crashes
	cmd, lines := realWriterProcess(t, d, round, env...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := r.listen(t, lines, acks, func() {
		how := []realdisk.Flush{realdisk.FlushJournal, realdisk.FlushNothing}[rand.IntN(2)]
		after := rand.IntN(2_000_000)
		if acks == 0 {
			after /= 4 // Open is done soon
		}
		fmt.Fprintln(in, how, after) // a writer that cannot be told is heard of by its exit
	})
	if err := cmd.Wait(); err != nil {
		t.Fatalf("the writer: %v", err)
	}
	d.Remount()
	return r.hear(t, said, realLazy(round))
}

func realWriterProcess(t *testing.T, d *realdisk.Disk, round int, env ...string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	// A program with the race detector in it sleeps for a second before it ends, if it is not told otherwise.
	cmd.Env = append(append(os.Environ(), realWriterVariable+"="+strconv.Itoa(round), "GORACE=atexit_sleep_ms=0"), env...)
	cmd.ExtraFiles, cmd.Stderr = []*os.File{d.File()}, os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	return cmd, bufio.NewScanner(out)
}

// listen hears a writer to its end, and calls stop after so many acks.
func (r *realLedger) listen(t *testing.T, lines *bufio.Scanner, acks int, stop func()) (said []realLine) {
	t.Helper()
	for acked := 0; ; {
		if acked == acks {
			stop()
			acked++ // once
		}
		if !lines.Scan() {
			return said
		}
		var l realLine
		if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
			t.Fatalf("the writer said %q", lines.Text())
		}
		if said = append(said, l); l.What == "acked" {
			acked++
		}
	}
}

// hear takes a writer's word for what it was told. What overlaps the shutdown proves nothing; but an append that began
// when the disk was gone, and was acknowledged, is a lie.
func (r *realLedger) hear(t *testing.T, said []realLine, lazy bool) error {
	t.Helper()
	shutdown, over, opened := false, false, false
	late := make(map[int]bool) // appends that began when the disk was gone
	for _, l := range said {
		fate := r.fates[l.Number]
		switch l.What {
		case "wrong":
			return errors.New(l.Error)
		case "shutdown":
			shutdown = true
		case "over":
			over = true
		case "open":
			if opened = true; !shutdown {
				r.shown = max(r.shown, l.Seq)
			}
		case "seen":
			if !shutdown && !lazy {
				r.shown = max(r.shown, l.Seq)
			}
		case "begin":
			r.fates[l.Number], late[l.Number] = new(realFate), over
		case "acked":
			if late[l.Number] {
				return fmt.Errorf("append %d began after the disk was gone, and was acknowledged", l.Number)
			}
			*fate = realFate{first: l.Seq, acked: true, before: !shutdown && !lazy}
			r.count.ack(shutdown, lazy)
		case "unknown":
			r.count.unknown++
		case "failed":
			fate.failed = true
		}
	}
	if !over {
		t.Fatal("the writer ended by itself")
	}
	if !opened {
		r.count.inOpen++
	}
	return nil
}

func (c *realCount) ack(shutdown, lazy bool) {
	switch {
	case lazy:
		c.lazy++
	case shutdown:
		c.overlapped++
	default:
		c.acked++
	}
}

// judge opens the log as the next writer does, and holds what is there against what is known.
func (r *realLedger) judge(dir string) error {
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
	defer log.Close() // the first Close is below
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
	r.there = events
	return errors.Join(r.checkReport(log.Report(), found), log.Close())
}

func (r *realLedger) checkReport(report, verified wal.Report) error {
	if report.TornBytes() != verified.TornBytes() {
		return fmt.Errorf("Verify saw %d torn bytes, Open %d", verified.TornBytes(), report.TornBytes())
	}
	r.count.rewritten += int(report.Rewritten)
	r.count.tornBytes += int(report.TornBytes())
	r.count.torn += len(report.Torn)
	for _, torn := range report.Torn {
		info, err := os.Stat(torn.Quarantine)
		if err != nil {
			return fmt.Errorf("%d bytes were cut: %w", torn.Bytes, err)
		}
		if info.Size() <= torn.Bytes {
			return fmt.Errorf("%d bytes were cut, the copy has %d", torn.Bytes, info.Size())
		}
	}
	return nil
}

// check: what was there stays, and behind it are whole groups, in any order, each once, with nothing between them; what
// was acknowledged is at its seq, byte for byte, and nothing is there that nobody submitted, or that failed.
func (r *realLedger) check(events []wal.Event) error {
	if n := uint64(len(events)); n < r.shown {
		return fmt.Errorf("seq %d was shown, and the log ends at %d", r.shown, n)
	}
	if len(events) < len(r.there) {
		return fmt.Errorf("%d events were there after the crash before, %d are", len(r.there), len(events))
	}
	for i, e := range r.there {
		if err := sameEvent(events[i], e); err != nil {
			return err
		}
	}
	for i := len(r.there); i < len(events); {
		of, err := r.checkGroup(events[i:], uint64(i+1))
		if err != nil {
			return err
		}
		i += of
	}
	for number, fate := range r.fates {
		if fate.before {
			return fmt.Errorf("append %d was acknowledged as seq %d, and is not there; the log ends at %d",
				number, fate.first, len(events))
		}
	}
	clear(r.fates) // what is there, r.there knows, and nothing else may come back
	return nil
}

// checkGroup holds the append that the events begin with against its fate, ticks that off, and returns its length.
func (r *realLedger) checkGroup(events []wal.Event, seq uint64) (of int, err error) {
	var p struct{ Number int }
	if err := json.Unmarshal(events[0].Args, &p); err != nil {
		return 0, fmt.Errorf("seq %d: %w", seq, err)
	}
	group, fate := realGroup(p.Number), r.fates[p.Number]
	switch {
	case fate == nil:
		return 0, fmt.Errorf("seq %d is of append %d, which nobody has begun since the crash before", seq, p.Number)
	case fate.failed:
		return 0, fmt.Errorf("seq %d is of append %d, which has failed", seq, p.Number)
	case fate.before && fate.first != seq:
		return 0, fmt.Errorf("append %d was acknowledged as seq %d, and is seq %d", p.Number, fate.first, seq)
	case len(events) < len(group):
		return 0, fmt.Errorf("append %d, at seq %d, is not whole", p.Number, seq)
	case !fate.before:
		r.count.kept++
	}
	for k, want := range group {
		want.Seq, want.Epoch, want.Time = seq+uint64(k), events[k].Epoch, events[k].Time
		if err := sameEvent(events[k], want); err != nil {
			return 0, err
		}
	}
	delete(r.fates, p.Number)
	return len(group), nil
}

// sameEvent leaves the payload, which may be large, to package bytes.
func sameEvent(got, want wal.Event) error {
	if !bytes.Equal(got.Args, want.Args) {
		return fmt.Errorf("seq %d: %d bytes of args are not the %d that were written", got.Seq, len(got.Args), len(want.Args))
	}
	got.Args, want.Args = nil, nil
	if !reflect.DeepEqual(got, want) {
		return fmt.Errorf("%+v\nis not what was written:\n%+v", got, want)
	}
	return nil
}
