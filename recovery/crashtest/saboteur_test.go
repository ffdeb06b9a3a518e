package crashtest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"

	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/recovery/crashtest"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// logOpener opens a log, broken or not, on a disk.
type logOpener func(disk wal.FS) (recovery.Log, error)

func openWAL(around func(wal.FS) wal.FS) logOpener {
	return func(disk wal.FS) (recovery.Log, error) {
		l, err := wal.Open("log", wal.Options{FS: around(disk), SegmentBytes: wal.MinSegmentBytes})
		if err != nil {
			return nil, err
		}
		return recovery.OnDisk(l), nil
	}
}

func openSimple(disk wal.FS) (recovery.Log, error) {
	l, err := crashtest.OpenSimple(disk, "log")
	if err != nil {
		return nil, err
	}
	return l, nil
}

// The logs as they are, that have to pass every suite.
var healthy = map[string]logOpener{
	"wal": openWAL(func(disk wal.FS) wal.FS { return disk }), "simple": openSimple,
}

// flawed is a disk below package wal with a flaw.
func flawed(disk wal.FS, flaw crashtest.Flaw) wal.FS {
	all := crashtest.Saboteurs()
	return all[slices.IndexFunc(all, func(s crashtest.Saboteur) bool { return s.Name == flaw })].FS(disk)
}

// diary is what a log's only caller remembers.
type diary struct {
	appends []noted
	mu      sync.Mutex           // guards seen
	seen    map[uint64]wal.Event // by anyone
	dropped uint64
	last    uint64 // the highest seq that was acknowledged
}

type noted struct {
	events  int
	first   uint64 // of an acknowledged one
	outcome string // "acked", "denied", or "" for unknown
}

// Clone gives each recovery a diary of its own.
func (d *diary) Clone() *diary {
	d.mu.Lock()
	defer d.mu.Unlock()
	return &diary{appends: slices.Clone(d.appends), seen: maps.Clone(d.seen), dropped: d.dropped, last: d.last}
}

func (d *diary) saw(e wal.Event) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.seen == nil {
		d.seen = make(map[uint64]wal.Event)
	}
	if _, known := d.seen[e.Seq]; !known {
		d.seen[e.Seq] = e
	}
}

// newest is the highest seq that anyone was told or shown.
func (d *diary) newest() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	newest := d.last
	for seq := range d.seen {
		newest = max(newest, seq)
	}
	return newest
}

// lost says what it means that nothing can be had from a seq on.
func (d *diary) lost(from uint64, err error) error {
	switch {
	case d.last >= from:
		return fmt.Errorf("acknowledged event lost: seq %d: %w", d.last, err)
	case d.newest() >= from:
		return fmt.Errorf("event lost that was shown: seq %d: %w", d.newest(), err)
	}
	return err
}

// diaryEvent is the kth event of the nth append of so many.
func diaryEvent(n, k, of int) wal.Event {
	id := fmt.Sprintf("%d.%d.%d", n, k, of)
	return wal.Event{Type: wal.JobSubmitted, JobID: id, Args: json.RawMessage(fmt.Sprintf(`{"job":%q,"pad":%q}`, id,
		strings.Repeat("xyz", 10)))}
}

// append appends a group, and takes down what came of it. Its error is the log's, or that of a seq given twice.
func (d *diary) append(log recovery.Log, of int) error {
	number, events := len(d.appends), []wal.Event(nil)
	for k := range of {
		events = append(events, diaryEvent(number, k, of))
	}
	newest := d.newest()
	first, err := log.Append(context.Background(), events...)
	note := noted{events: of}
	switch {
	case err == nil:
		if note.first, note.outcome = first, "acked"; first <= newest {
			err = fmt.Errorf("seq %d was given twice", first)
		}
		d.last = first + uint64(of) - 1
	case !errors.Is(err, wal.ErrOutcomeUnknown):
		note.outcome = "denied"
	}
	d.appends = append(d.appends, note)
	synctest.Wait() // those who follow have seen it, too
	return err
}

// check holds a log against the diary: acknowledged ⊑ log ⊑ appended, groups whole, what was shown still there.
func (d *diary) check(log recovery.Log) error {
	have, events := make(map[int]uint64), make(map[uint64]wal.Event)
	want, group, left := log.FirstSeq(), 0, 0
	if want > max(1, d.dropped) {
		return fmt.Errorf("the log starts at seq %d, and only what lies before %d was dropped", want, d.dropped)
	}
	for e, err := range log.Events(context.Background(), 0) {
		if err != nil {
			return d.lost(want, fmt.Errorf("reading: %w", err))
		}
		var number, k, of int
		if _, err := fmt.Sscanf(e.JobID, "%d.%d.%d", &number, &k, &of); err != nil || e.Seq != want ||
			!crashtest.StepOf(e).Same(crashtest.StepOf(diaryEvent(number, k, of))) {
			return fmt.Errorf("wrong data at seq %d: %+v", want, e)
		}
		if left == 0 {
			group, left, have[number] = number, of, e.Seq
		}
		if number != group || k != of-left {
			return fmt.Errorf("group of append %d is torn at seq %d", group, e.Seq)
		}
		events[e.Seq], left, want = e, left-1, want+1
	}
	if left > 0 {
		return fmt.Errorf("group at the log's end is torn: %d events are missing", left)
	}
	return errors.Join(d.checkAppends(have, log.FirstSeq()), d.checkSeen(events, log.FirstSeq()))
}

func (d *diary) checkAppends(have map[int]uint64, start uint64) error {
	for number, note := range d.appends {
		at, there := have[number]
		if note.outcome == "denied" && there {
			return fmt.Errorf("append %d was denied, and is there as seq %d", number, at)
		}
		if note.outcome == "acked" && note.first >= start && (!there || at != note.first) {
			return fmt.Errorf("acknowledged event lost: seq %d, append %d", note.first, number)
		}
	}
	return nil
}

func (d *diary) checkSeen(events map[uint64]wal.Event, start uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for seq, e := range d.seen {
		if now, there := events[seq]; seq >= start && (!there || now.JobID != e.JobID) {
			return fmt.Errorf("event lost that was shown: seq %d", seq)
		}
	}
	return nil
}

// An opening is one opening of the log, with a reader who follows it.
type opening struct {
	recovery.Log
	reader sync.WaitGroup
}

func (d *diary) live(disk wal.FS, open logOpener) (*opening, error) {
	log, err := open(disk)
	if err != nil {
		return nil, err
	}
	l := &opening{Log: log}
	l.reader.Go(func() {
		for e, err := range log.Follow(context.Background(), log.FirstSeq()) {
			if err != nil {
				return
			}
			d.saw(e)
		}
	})
	synctest.Wait()
	return l, nil
}

func (l *opening) Close() error {
	err := l.Log.Close()
	l.reader.Wait()
	return err
}

// work is a small life, a clean end, and another life.
func (d *diary) work(disk wal.FS, open logOpener) error {
	for _, groups := range [][]int{{1, 3}, {2}} {
		l, err := d.live(disk, open)
		if err != nil {
			return err
		}
		for _, of := range groups {
			if err == nil {
				err = d.append(l, of)
			}
		}
		if err := errors.Join(err, l.Close()); err != nil {
			return err
		}
	}
	return nil
}

// recover opens what a crash left, appends once more, and opens it again.
func (d *diary) recover(disk wal.FS, open logOpener) error {
	l, err := d.live(disk, open)
	if err != nil {
		return d.lost(1, fmt.Errorf("does not open: %w", err))
	}
	if err = d.check(l); err == nil {
		err = d.append(l, 2)
	}
	if err == nil {
		err = d.check(l)
	}
	if err := errors.Join(err, l.Close()); err != nil {
		return err
	}
	return d.reopens(disk, open)
}

func (d *diary) reopens(disk wal.FS, open logOpener) error {
	l, err := open(disk)
	if err != nil {
		return d.lost(1, fmt.Errorf("does not open: %w", err))
	}
	return errors.Join(d.check(l), l.Close())
}

// The suites that ours are made of, small. Each has to notice some of the saboteurs.
var suites = map[string]func(t rapid.TB, open logOpener, budget int){
	"crash": crashSuite, "lie": lieSuite, "full": fullSuite, "flip": flipSuite, "lock": lockSuite, "drop": dropSuite,
	"checkpoint": checkpointSuite,
}

const enough = 800 // recoveries, to notice every saboteur

// crashes are those of a workload and of what recovers from it.
func crashes(open logOpener, budget int, work func(disk wal.FS, d *diary) error) crashtest.Crashes[diary] {
	return crashtest.Crashes[diary]{
		Workload: work, Check: func(disk wal.FS, d *diary) error { return d.recover(disk, open) },
		Policies: []crashfs.Policy{crashfs.SyncedOnly, crashfs.Everything, crashfs.Zeros, crashfs.Seed(1)},
		Budget:   budget,
	}
}

func crashSuite(t rapid.TB, open logOpener, budget int) {
	crashes(open, budget, func(disk wal.FS, d *diary) error { return d.work(disk, open) }).Run(t)
}

// dropSuite is for logs that can forget. Five events fill a segment. It is what a first crash leaves that matters.
func dropSuite(t rapid.TB, open logOpener, budget int) {
	crashes(open, budget/4, func(disk wal.FS, d *diary) error {
		l, err := d.live(disk, open)
		if err != nil {
			return err
		}
		for range 3 {
			err = errors.Join(err, d.append(l, 5))
		}
		forgetful, can := l.Log.(interface{ DropBefore(seq uint64) error })
		if err == nil && can {
			d.dropped = 11
			err = forgetful.DropBefore(d.dropped)
		}
		return errors.Join(err, l.Close())
	}).Run(t)
}

// checkpointSuite is for logs that keep checkpoints: those that a crash leaves can be loaded.
func checkpointSuite(t rapid.TB, open logOpener, budget int) {
	c := crashes(open, budget/4, func(disk wal.FS, d *diary) error {
		l, err := d.live(disk, open)
		if err != nil {
			return err
		}
		files, can := l.Log.(recovery.Files)
		for range 2 {
			if err == nil {
				err = d.append(l, 1)
			}
			if err == nil && can {
				_, err = files.SaveCheckpoint(context.Background(), l.LastSeq(), []wal.Section{{Name: "s", Version: 1,
					Save: func(w io.Writer) error { _, err := w.Write([]byte("state")); return err }}})
			}
		}
		return errors.Join(err, l.Close())
	})
	c.Check = func(disk wal.FS, d *diary) error {
		return errors.Join(loadAll(disk, open), d.recover(disk, open))
	}
	c.Run(t)
}

func loadAll(disk wal.FS, open logOpener) error {
	log, err := open(disk)
	if err != nil {
		return err
	}
	defer log.Close()
	files, can := log.(recovery.Files)
	if !can {
		return nil
	}
	found, err := files.Checkpoints()
	for _, c := range found {
		if bad := files.LoadCheckpoint(context.Background(), c, func(wal.Section, io.Reader) error { return nil }); bad != nil {
			err = errors.Join(err, fmt.Errorf("a crash left a checkpoint that is not whole: %v", bad))
		}
	}
	return err
}

// lieSuite: each sync in turn fails, and what it was to write is lost, whatever a second one says.
func lieSuite(t rapid.TB, open logOpener, _ int) {
	faultSuite(t, open, "sync *.jsonl #%d error EIO lie")
}

// fullSuite: each write in turn lands, and the disk is full all the same.
func fullSuite(t rapid.TB, open logOpener, _ int) {
	faultSuite(t, open, "write *.jsonl #%d short 100000 ENOSPC")
}

// faultSuite runs the workload as far as the fault, and once more on the same disk, and loses power after each.
func faultSuite(t rapid.TB, open logOpener, fault string) {
	for nth, came := 1, true; came; nth++ {
		base, d := crashfs.New(), new(diary)
		disk := crashfs.Inject(base, crashfs.MustSchedule(fmt.Sprintf(fault, nth)))
		for lives := 1; lives <= 2; lives++ {
			err := d.work(disk, open)
			if lives == 1 {
				came = slices.ContainsFunc(disk.Ops(), func(op crashfs.Op) bool { return injected(op.Err) })
			}
			if err != nil && (lives == 2 || !injected(err)) {
				t.Fatalf("%v\nreproduce with: %v, %d lives", err, disk.Schedule(), lives)
			}
			for _, p := range []crashfs.Policy{crashfs.SyncedOnly, crashfs.Everything, crashfs.Zeros} {
				if err := d.Clone().recover(base.Crash(p), open); err != nil {
					t.Fatalf("%v\nreproduce with: %v, %d lives, policy %v", err, disk.Schedule(), lives, p)
				}
			}
			if !came {
				t.Logf("%d faults", nth-1)
				return
			}
		}
	}
}

func injected(err error) bool { return errors.Is(err, syscall.EIO) || errors.Is(err, syscall.ENOSPC) }

// flipSuite: after a clean close, no bit of a line that holds events can turn without being noticed.
func flipSuite(t rapid.TB, open logOpener, _ int) {
	disk, d := crashfs.New(), new(diary)
	if err := d.work(disk, open); err != nil {
		t.Fatal(err)
	}
	img, err := crashtest.ReadImage(disk, "log")
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range img {
		for at, c := range content {
			bit := at % 8
			if 'a' <= c && c <= 'f' {
				bit = 5 // the letter's case
			} else if at%3 > 0 {
				continue
			}
			flipped, other := crashfs.New(), img.Clone()
			other[name][at] = c ^ 1<<bit
			if err := other.Write(flipped, "log"); err != nil {
				t.Fatal(err)
			}
			if err := d.notices(flipped, open, holdsEvent(content, at)); err != nil {
				t.Fatalf("%v\nreproduce with: bit %d of byte %d of %s", err, bit, at, name)
			}
		}
	}
}

// notices: a damaged log is refused, when it is opened or when it is read; or else it is as it was.
func (d *diary) notices(disk wal.FS, open logOpener, must bool) error {
	err := d.reopens(disk, open)
	switch {
	case errors.Is(err, wal.ErrCorrupt):
		return nil
	case err == nil && must:
		return errors.New("a flipped bit in an event was not noticed")
	}
	return err
}

// holdsEvent tells whether the line around a byte is one of events.
func holdsEvent(content []byte, at int) bool {
	from := bytes.LastIndexByte(content[:at], '\n') + 1
	line, _, _ := bytes.Cut(content[from:], []byte("\n"))
	return bytes.Contains(line, []byte(wal.JobSubmitted))
}

// lockSuite: a directory has one writer.
func lockSuite(t rapid.TB, open logOpener, _ int) {
	disk := crashfs.New()
	first, err := open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	second, err := open(disk)
	if err == nil {
		_ = second.Close()
	}
	if !errors.Is(err, wal.ErrLocked) {
		t.Fatalf("a second writer was let in (%v)", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if second, err = open(disk); err != nil {
		t.Fatalf("the lock outlived its holder: %v", err)
	}
	_ = second.Close()
}

// What notices each saboteur, and what it then says: a suite that fails for another reason has not noticed anything.
var noticed = map[crashtest.Flaw]struct{ walSuite, walSays, simpleSuite, simpleSays string }{
	crashtest.NoFsync:             {"crash", saysLost, "crash", saysNoHeader},
	crashtest.NoDirectoryFsync:    {"crash", saysLost, "crash", saysLost},
	crashtest.AckFirst:            {"crash", saysLost, "crash", saysLost},
	crashtest.RetryFsync:          {"lie", saysLost, "lie", saysLost},
	crashtest.AppendAfterTornTail: {"", "", "crash", "does not open: .* bad line, and an intact one behind it"},
	crashtest.RemoveFirst:         {"drop", "only what lies below seq 1 was dropped", "crash", saysLost},
	crashtest.RenameFirst:         {"checkpoint", "a checkpoint that is not whole", "", ""},
	crashtest.LooseChecksum:       {"flip", saysUnseen, "flip", saysUnseen},
	crashtest.NoChecksum:          {"flip", "wrong data", "flip", saysUnseen},
	crashtest.ReuseSeqs:           {"", "", "crash", "given twice"},
	crashtest.SplitGroups:         {"", "", "crash", "group .* is torn"},
	crashtest.ShowFirst:           {"", "", "crash", saysShown},
	// What package wal says is durable is witnessed by the next segment, so a log that is not hardened refuses itself.
	crashtest.TrustTheCache:   {"crash", saysShown + "|reading: .* incomplete", "crash", saysShown + "|" + saysLost},
	crashtest.WriteInPlace:    {"", "", "crash", saysNoHeader},
	crashtest.TakeNothingBack: {"full", "was denied, and is there", "", ""},
	crashtest.NoLock:          {"lock", "second writer was let in", "lock", "second writer was let in"},
}

const (
	saysLost     = "acknowledged event lost"
	saysShown    = "event lost that was shown"
	saysUnseen   = "a flipped bit in an event was not noticed"
	saysNoHeader = "does not open: .* no header" // R3: the crash left what stops the next open
)

func TestSaboteurs(t *testing.T) {
	t.Parallel()
	if all := len(crashtest.Saboteurs()); all != len(noticed) {
		t.Errorf("%d saboteurs, %d in the table", all, len(noticed))
	}
	for _, s := range crashtest.Saboteurs() {
		want, known := noticed[s.Name]
		if !known || (s.FS == nil) != (want.walSuite == "") || (s.Log == nil) != (want.simpleSuite == "") {
			t.Errorf("%s: not in the table, or not as it is", s.Name)
		}
		if !regexp.MustCompile(`^F\d+$`).MatchString(s.Row) || s.Doc == "" {
			t.Errorf("%s: row %q: %q", s.Name, s.Row, s.Doc)
		}
		name := string(s.Name)
		if s.FS != nil {
			t.Run(name+"/wal", func(t *testing.T) { mustNotice(t, want.walSuite, openWAL(s.FS), want.walSays) })
		}
		if s.Log != nil {
			open := func(disk wal.FS) (recovery.Log, error) { return s.Log(disk, "log") }
			t.Run(name+"/simple", func(t *testing.T) { mustNotice(t, want.simpleSuite, open, want.simpleSays) })
		}
	}
}

// again is how a report says how its failure can be seen again; some need no more than to run the suite.
var again = regexp.MustCompile("To run this again, alone: Replay|reproduce with: |without a crash|second writer")

// mustNotice holds a suite to fail, for the right reason, and to say how that can be seen again.
func mustNotice(t *testing.T, suite string, open logOpener, want string) {
	synctest.Test(t, func(t *testing.T) {
		report, failed := crashtest.Fails(func(t rapid.TB) { suites[suite](t, open, enough) })
		switch {
		case !failed:
			t.Fatal("nobody noticed")
		case !regexp.MustCompile(want).MatchString(report):
			t.Fatalf("noticed for another reason than %q: %s", want, report)
		case !again.MatchString(report):
			t.Fatalf("no reproducer: %s", report)
		}
		t.Log(report)
	})
}

// What a test of one's own looks like that loses power once, and what it can't know.
func ExampleSaboteurs() {
	suite := func(t rapid.TB, open func(wal.FS, string) (recovery.Log, error)) {
		disk := crashfs.New()
		log, err := open(disk, "jobs")
		if err != nil {
			t.Fatal(err)
		}
		seq, err := log.Append(context.Background(), wal.Event{Type: wal.JobSubmitted, JobID: "job-1"})
		if err != nil {
			t.Fatal(err)
		}
		log, err = open(disk.Crash(crashfs.SyncedOnly), "jobs")
		if err != nil {
			t.Fatal(err)
		}
		if log.LastSeq() < seq {
			t.Error("an acknowledged event is gone")
		}
	}
	for _, s := range crashtest.Saboteurs()[:5] {
		if _, failed := crashtest.Fails(func(t rapid.TB) { suite(t, s.Log) }); failed {
			fmt.Println("noticed:", s.Name)
		} else {
			fmt.Println("missed: ", s.Name)
		}
	}
	// Output:
	// noticed: no fsync
	// noticed: no directory fsync
	// noticed: ack first
	// missed:  retry after failed fsync
	// missed:  append after a torn tail
}

// A program whose jobs are an engine's has package wal broken from below.
func ExampleSaboteur() {
	ctx := context.Background()
	suite := func(t rapid.TB, around func(wal.FS) wal.FS) {
		open := func(disk wal.FS) *recovery.Engine {
			engine, err := recovery.Open(ctx, "jobs", recovery.Options{WAL: wal.Options{FS: around(disk)}})
			if err != nil {
				t.Fatal(err)
			}
			return engine
		}
		disk := crashfs.New()
		before := open(disk)
		defer before.Close()
		if _, err := before.Submit(ctx, recovery.Submission{JobID: "job-1"}); err != nil {
			t.Fatal(err)
		}
		after := open(disk.Crash(crashfs.SyncedOnly))
		defer after.Close()
		if _, there := after.Job("job-1"); !there {
			t.Error("job-1 was submitted, and is gone")
		}
	}
	for _, s := range crashtest.Saboteurs() {
		switch s.Name {
		case crashtest.NoFsync, crashtest.RetryFsync: // the latter needs an fsync that fails
			report, failed := crashtest.Fails(func(t rapid.TB) { suite(t, s.FS) })
			fmt.Println(s.Name, failed, report)
		}
	}
	// Output:
	// no fsync true job-1 was submitted, and is gone
	//
	// retry after failed fsync false
}

func TestFails(t *testing.T) {
	for name, c := range map[string]struct {
		suite  func(t rapid.TB)
		report string
		failed bool
	}{
		"passes":  {func(t rapid.TB) { t.Helper(); t.Logf("%d of %s", 1, t.Name()) }, "1 of crashtest.Fails\n", false},
		"skips":   {func(t rapid.TB) { t.Skip("no", "disk"); t.Fatal("here") }, "no disk\n", false},
		"errors":  {func(t rapid.TB) { t.Error("one"); t.Errorf("%s", "two") }, "one\ntwo\n", true},
		"ends":    {func(t rapid.TB) { t.Fatalf("end of %v", t.Failed()); t.Log("here") }, "end of false\n", true},
		"panics":  {func(rapid.TB) { panic("oh") }, "panic: oh\n", true},
		"by hand": {func(t rapid.TB) { t.FailNow(); t.Log("here") }, "", true},
	} {
		report, failed := crashtest.Fails(c.suite)
		if report != c.report || failed != c.failed {
			t.Errorf("%s: %q, %v", name, report, failed)
		}
	}
	if err := flag.Set("rapid.nofailfile", "true"); err != nil {
		t.Fatal(err)
	}
	defer flag.Set("rapid.nofailfile", "false")
	if report, failed := crashtest.Fails(func(t rapid.TB) {
		rapid.Check(t, func(t *rapid.T) {
			if rapid.IntRange(0, 100).Draw(t, "n") > 50 {
				t.Fatal("large")
			}
		})
	}); !failed || !strings.Contains(report, "n: 51") {
		t.Errorf("a property: %v, %q", failed, report)
	}
}

// Without a saboteur, every suite passes: it is the flaw that was noticed, and nothing else.
func TestSaboteurs_away(t *testing.T) {
	t.Parallel()
	for form, open := range healthy {
		for name, suite := range suites {
			t.Run(form+"/"+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { suite(struct{ rapid.TB }{t}, open, crashtest.Thin(enough, 100)) })
			})
		}
	}
}
