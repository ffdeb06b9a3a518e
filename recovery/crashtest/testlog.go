package crashtest

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// An Opener opens one and the same log, again and again.
//
// What it may have besides, and [TestLog] then uses:
//
//	Crash()              loses what is not on stable storage, and ends every opening, as a power cut does; see [DiskOpener]
//	MaxEventBytes() int  the largest event that the log takes, in bytes; default wal.MaxLineBytes
type Opener interface {
	Open(ctx context.Context) (recovery.Log, error)
}

// OpenerFunc makes a function an Opener.
type OpenerFunc func(ctx context.Context) (recovery.Log, error)

// Open calls f.
func (f OpenerFunc) Open(ctx context.Context) (recovery.Log, error) { return f(ctx) }

// DiskOpener makes an Opener with a Crash out of a function that opens a log on a disk: the disk is a crashfs.FS that is
// empty at first, and a crash leaves what was synced and nothing else. It is of use for a log that keeps its files on a
// [wal.FS]. For what else a power cut may leave, see [CrashEveryOp].
func DiskOpener(open func(disk wal.FS) (recovery.Log, error)) Opener {
	d := &diskOpener{open: open, disk: crashfs.New()}
	d.faulty = crashfs.Inject(d.disk, nil)
	return d
}

type diskOpener struct {
	open   func(disk wal.FS) (recovery.Log, error)
	disk   *crashfs.FS
	faulty *crashfs.Faulty
}

func (d *diskOpener) Open(context.Context) (recovery.Log, error) { return d.open(d.faulty) }

// Crash stops the disk before it looks what is on it: nothing is shown any more that is not.
func (d *diskOpener) Crash() {
	d.faulty.Stop()
	d.disk = d.disk.Crash(crashfs.SyncedOnly)
	d.faulty = crashfs.Inject(d.disk, nil)
}

// TestLog tests whether a log is one that an engine can work with: all that [recovery.Log] promises, and what
// [wal.Log.Append] says of the events that are refused. open is called once for each part, with that part's own t, and
// returns the opener of a new, empty log. Each part is a subtest, named by what it proves; so a part can be run alone.
//
// What it takes for granted in an opener: Open waits for no one, and its log is closed before the next Open, unless
// SeveralWriters is relaxed. A log that has a method DropBefore(seq uint64) error, as one in a directory has, is tested
// to forget what it says it forgot; that needs an opener that makes segments small enough to be dropped. One that is a
// [recovery.Chains] is held to that, too.
func TestLog(t *testing.T, open func(t *testing.T) Opener, relax ...Relaxation) {
	t.Helper()
	for _, p := range logParts {
		t.Run(p.name, func(t *testing.T) {
			p.run(t, func() Opener { return open(t) }, relax)
		})
	}
}

// logPart is one promise, and the test for it.
type logPart struct {
	name string
	test func(t *trial)
}

var logParts = slices.Concat(appendParts, readParts, followParts, openParts, engineParts)

// run runs a part with any test handle: our own tests run it with one that only notes that it failed.
func (p logPart) run(tb rapid.TB, open func() Opener, relax []Relaxation) {
	t := &trial{TB: tb, ctx: context.Background(), Opener: open(), relaxed: relax}
	defer t.end()
	p.test(t)
}

// patience is how long something may take that ought to come at once, before the part fails.
const patience = 30 * time.Second

// A trial is one part at work on one log.
type trial struct {
	rapid.TB
	ctx context.Context
	Opener
	relaxed []Relaxation
	names   int

	mu        sync.Mutex // guards the fields below
	opened    []recovery.Log
	followers []*follower
}

// end leaves nothing behind, however the part ended: of a log that is broken, no goroutine is to go on. Only what the
// part itself closes is judged.
func (t *trial) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, f := range t.followers {
		f.cancel()
	}
	for _, log := range t.opened {
		_ = log.Close()
	}
	for _, f := range t.followers {
		t.wait("the end of Follow, when the log is closed", f.done)
	}
}

// hint says, where the part has failed by now, what the reason may be. It is deferred.
func (t *trial) hint(text string) {
	t.Helper()
	if t.Failed() {
		t.Log(text)
	}
}

func (t *trial) may(r Relaxation) bool { return slices.Contains(t.relaxed, r) }

// must fails the part.
func (t *trial) must(err error, format string, args ...any) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", fmt.Sprintf(format, args...), err)
	}
}

// check fails the part with what is wrong.
func (t *trial) check(ok bool, format string, args ...any) {
	t.Helper()
	if !ok {
		t.Fatalf(format, args...)
	}
}

// wait fails the part if what ought to come does not.
func (t *trial) wait(what string, done <-chan struct{}) {
	t.Helper()
	late := time.NewTimer(patience)
	defer late.Stop()
	select {
	case <-done:
	case <-late.C:
		t.Fatalf("after %v still waiting for %s", patience, what)
	}
}

func (t *trial) open() recovery.Log {
	t.Helper()
	log, err := t.Open(t.ctx)
	t.must(err, "Open")
	t.check(log != nil, "Open returned neither a log nor an error")
	t.mu.Lock()
	defer t.mu.Unlock()
	t.opened = append(t.opened, log)
	return log
}

func (t *trial) close(log recovery.Log) {
	t.Helper()
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		err = log.Close()
	}()
	t.wait("Close", done)
	t.must(err, "Close")
}

func (t *trial) reopen(log recovery.Log) recovery.Log {
	t.Helper()
	t.close(log)
	return t.open()
}

// append must succeed.
func (t *trial) append(log recovery.Log, events ...wal.Event) (first uint64) {
	t.Helper()
	first, err := log.Append(t.ctx, events...)
	t.must(err, "Append of %d events", len(events))
	return first
}

// refused: the append must fail with an error that one of want matches, and leave no trace.
func (t *trial) refused(log recovery.Log, what string, want []error, events ...wal.Event) {
	t.Helper()
	t.refusedWith(t.ctx, log, what, want, events...)
}

func (t *trial) refusedWith(ctx context.Context, log recovery.Log, what string, want []error, events ...wal.Event) {
	t.Helper()
	last, before := log.LastSeq(), t.all(log)
	first, err := log.Append(ctx, events...)
	if err == nil {
		t.Fatalf("%s: Append returned seq %d and no error; want one of %q", what, first, want)
	}
	t.check(first == 0, "%s: Append returned seq %d with %q", what, first, err)
	t.check(matchesAny(err, want), "%s: Append returned %q; want one of %q", what, err, want)
	t.check(log.LastSeq() == last, "%s: Append was refused, and LastSeq went from %d to %d", what, last, log.LastSeq())
	t.same(t.all(log), before, "%s: what is there after Append was refused", what)
}

// all returns what Events yields.
func (t *trial) all(log recovery.Log) []wal.Event {
	t.Helper()
	return t.from(log, 0)
}

func (t *trial) from(log recovery.Log, from uint64) (events []wal.Event) {
	t.Helper()
	for e, err := range log.Events(t.ctx, from) {
		t.must(err, "Events from seq %d, behind %d events", from, len(events))
		events = append(events, e)
	}
	return events
}

func (t *trial) at(log recovery.Log, seq uint64) wal.Event {
	t.Helper()
	e, err := log.At(t.ctx, seq)
	t.must(err, "At(%d)", seq)
	return e
}

// same compares what came out with what must, byte for byte.
func (t *trial) same(got, want []wal.Event, format string, args ...any) {
	t.Helper()
	for i := range min(len(got), len(want)) {
		if d := difference(got[i], want[i]); d != "" {
			t.Fatalf("%s: event %d of %d: %s", fmt.Sprintf(format, args...), i, len(want), d)
		}
	}
	t.check(len(got) == len(want), "%s: %d events, want %d", fmt.Sprintf(format, args...), len(got), len(want))
}

// difference says in which field two events differ; "" when in none.
func difference(got, want wal.Event) string {
	for _, f := range []struct {
		name      string
		got, want any
	}{
		{"Seq", got.Seq, want.Seq}, {"Prev", got.Prev, want.Prev}, {"Epoch", got.Epoch, want.Epoch},
		{"Type", got.Type, want.Type}, {"JobID", got.JobID, want.JobID}, {"Capability", got.Capability, want.Capability},
		{"Args", presence(got.Args), presence(want.Args)}, {"Output", presence(got.Output), presence(want.Output)},
		{"Error", got.Error, want.Error}, {"Problem", got.Problem, want.Problem},
		{"Time", got.Time.UTC().String(), want.Time.UTC().String()},
	} {
		if f.got != f.want {
			return fmt.Sprintf("%s is %.80s, want %.80s (seq %d)", f.name, fmt.Sprint(f.got), fmt.Sprint(f.want), want.Seq)
		}
	}
	return ""
}

// presence keeps no payload at all apart from an empty one.
func presence(raw json.RawMessage) string {
	if raw == nil {
		return "absent"
	}
	return "present " + string(raw)
}

// copies returns events with payloads of their own.
func copies(events []wal.Event) []wal.Event {
	own := make([]wal.Event, len(events))
	for i, e := range events {
		own[i] = copied(e)
	}
	return own
}

// name returns a job's id that was not used before in this part.
func (t *trial) name() string {
	t.names++
	return fmt.Sprintf("job-%d", t.names)
}

// submitted returns the first event of a new job.
func (t *trial) submitted() wal.Event {
	id := t.name()
	return wal.Event{Type: wal.JobSubmitted, JobID: id, Capability: "shell", Args: json.RawMessage(`{"of":"` + id + `"}`)}
}

// group returns n events: lives of jobs in turn, with nothing set that a log has to set.
func (t *trial) group(n int) (events []wal.Event) {
	life := []wal.EventType{wal.JobSubmitted, wal.JobValidated, wal.JobStarted, wal.JobCompleted, wal.JobRolledBack}
	var e wal.Event
	for i := range n {
		step := i % len(life)
		switch {
		case step == 0:
			e = t.submitted()
		case life[step] == wal.JobCompleted:
			e = wal.Event{Type: life[step], JobID: e.JobID, Capability: e.Capability, Output: json.RawMessage(`{"bytes":12}`)}
		default:
			e = wal.Event{Type: life[step], JobID: e.JobID, Capability: e.Capability}
		}
		events = append(events, e)
	}
	return events
}

// stored returns events as they must come back, given where the append put them. Time, where it was zero, is taken from
// what came back.
func stored(given []wal.Event, first, epoch uint64, back []wal.Event) []wal.Event {
	want, newest := copies(given), make(map[string]uint64)
	for i := range want {
		e := &want[i]
		e.Seq, e.Epoch = first+uint64(i), epoch
		if before, ours := newest[e.JobID]; ours && e.JobID != "" {
			e.Prev = before
		}
		newest[e.JobID] = e.Seq
		if e.Time.IsZero() && i < len(back) {
			e.Time = back[i].Time
		}
	}
	return want
}

// fill appends groups of several sizes, all told 40 events, and returns all that is there.
func (t *trial) fill(log recovery.Log) []wal.Event {
	t.Helper()
	for _, n := range []int{1, 5, 1, 17, 2, 3, 11} {
		given := t.group(n)
		first := t.append(log, given...)
		back := t.from(log, first)
		t.same(back, stored(given, first, log.Epoch(), back), "what was just appended at seq %d", first)
	}
	return t.all(log)
}
