package crashtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// session is a small program: two lives, groups, refusals, a rotation, an idle time, and a reader.
func session(disk wal.FS, h *History, sync wal.Sync) error {
	for life := range 2 {
		e, err := recovery.Open(context.Background(), "jobs", recovery.Options{WAL: wal.Options{FS: disk, SegmentBytes: 1500, Sync: sync}})
		if err != nil {
			return err
		}
		h.Opened(e.Report().WAL.Epoch, e.Report().WAL.LastSeq)
		if err := errors.Join(work(e, h, life), e.Close()); err != nil {
			return err
		}
	}
	return nil
}

func work(e *recovery.Engine, h *History, life int) error {
	for i := range 4 {
		id := fmt.Sprint(life, "-", i)
		for _, steps := range [][]Step{{submit(id), validate(id)}, {validate(id)}, {start(id)}, {fail(id), {Type: wal.JobRolledBack, JobID: id}}} {
			if _, err := h.Do(context.Background(), e, steps...); OutcomeOf(err) == OutcomeUnknown {
				return err
			}
		}
		for event, err := range Events(e) {
			if err == nil {
				h.Saw(event)
			}
		}
		time.Sleep(10 * time.Millisecond) // in a bubble, where that is a known number of operations
	}
	return nil
}

// R2, R3, F14: a program that crashes at any of its operations is held against its history by Recover, whatever the
// disk makes of the crash; where a tail is torn, its copy is found.
func TestR2_R3_F14_recover_after_a_crash_at_every_operation(t *testing.T) {
	t.Parallel()
	for name, sync := range map[string]wal.Sync{"SyncAlways": wal.SyncAlways, "SyncNever": wal.SyncNever} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				states, torn := 0, 0
				for at := 1; ; at += thin(1, 6) {
					base, h := crashfs.New(), new(History)
					disk := crashfs.Inject(base, crashfs.MustSchedule(fmt.Sprint("crash ", at)))
					err := session(disk, h, sync)
					policies := []crashfs.Policy{crashfs.SyncedOnly, crashfs.Everything, crashfs.Zeros, crashfs.Seed(uint64(at)), crashfs.Sectors(uint64(at))}
					for _, policy := range policies {
						if look, err := wal.Open("jobs", wal.Options{FS: base.Crash(policy), ReadOnly: true}); err == nil {
							torn += len(look.Report().Torn)
							require.NoError(t, look.Close())
						}
						err := Recover(base.Crash(policy), "jobs", h, recovery.Options{WAL: wal.Options{SegmentBytes: 1500, Sync: sync}})
						require.NoError(t, err, "crash %d, %s", at, policy)
						states++
					}
					if !disk.Crashed() {
						require.NoError(t, err)
						break
					}
				}
				t.Logf("%d states, %d torn tails", states, torn)
				require.Positive(t, torn)
			})
		})
	}
}

// R2, R3, F14: what the two are made for: a History is the ledger of crashes, and Recover their check, crashed itself at
// each operation in its turn.
func TestF14_R2_R3_CrashEveryOp_engine(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		Crashes[History]{Budget: thin(2000, 120), Workload: func(disk wal.FS, h *History) error {
			e, err := recovery.Open(context.Background(), "jobs", recovery.Options{WAL: wal.Options{FS: disk, SegmentBytes: wal.MinSegmentBytes}})
			if err != nil {
				return err
			}
			h.Opened(e.Report().WAL.Epoch, e.Report().WAL.LastSeq)
			for _, group := range [][]Step{{submit("a"), validate("a"), start("a")}, {submit("b")}, {fail("a"), validate("b")}} {
				if _, err := h.Do(context.Background(), e, group...); err != nil {
					return errors.Join(err, e.Close())
				}
			}
			return e.Close()
		}, Check: func(disk wal.FS, h *History) error { return Recover(disk, "jobs", h, recovery.Options{}) }}.Run(t)
	})
}

// The engine is held against the events field by field: whatever of them is not what it folded is noticed.
func TestRecoverHoldsMemoryAgainstTheLog(t *testing.T) {
	h, disk := new(History), crashfs.New()
	require.NoError(t, session(disk, h, wal.SyncAlways))
	e, err := recovery.Open(t.Context(), "jobs", recovery.Options{WAL: wal.Options{FS: disk}})
	require.NoError(t, err)
	defer e.Close()
	var events []wal.Event
	for event, err := range Events(e) {
		require.NoError(t, err)
		events = append(events, event)
	}
	require.NoError(t, checkFold(e, events, recovery.Options{}))
	for name, damage := range map[string]func(log []wal.Event) []wal.Event{
		"an event less":   func(log []wal.Event) []wal.Event { return log[:len(log)-1] },
		"a job less":      func(log []wal.Event) []wal.Event { return log[:len(log)-5] },
		"an event more":   func(log []wal.Event) []wal.Event { return push(log, submit("more")) },
		"another time":    func(log []wal.Event) []wal.Event { log[2].Time = log[2].Time.Add(1); return log },
		"another epoch":   func(log []wal.Event) []wal.Event { log[len(log)-1].Epoch++; return log },
		"other args":      func(log []wal.Event) []wal.Event { log[0].Args = json.RawMessage(`{"n":3}`); return log },
		"another error":   func(log []wal.Event) []wal.Event { log[3].Error += "!"; return log },
		"other first one": func(log []wal.Event) []wal.Event { log[0].Capability = "x"; return log },
	} {
		var v *Violation
		require.ErrorAs(t, checkFold(e, damage(slices.Clone(events)), recovery.Options{}), &v, name)
		require.Equal(t, RuleFold, v.Rule, name)
	}
	require.Nil(t, sameLog(events, events))
	require.ErrorContains(t, sameLog(events, events[1:]), "R2 fold")
	require.ErrorContains(t, sameLog(events, events[:3]), "R2 fold")
}

func push(log []wal.Event, s Step) []wal.Event {
	e := s.Event()
	e.Seq, e.Epoch = uint64(len(log)+1), log[len(log)-1].Epoch
	return append(log, e)
}

// W3: a cut is reported, and its copy is whole; a copy that is missing, or of other bytes, is noticed.
func TestW3_recover_wants_what_was_cut(t *testing.T) {
	disk, h := crashfs.New(), new(History)
	require.NoError(t, session(disk, h, wal.SyncAlways))
	healthy, err := ReadImage(disk, "jobs")
	require.NoError(t, err)
	name := healthy.Newest()
	f, err := disk.OpenFile("jobs/"+name, os.O_RDWR, 0)
	require.NoError(t, err)
	size, err := f.Size()
	require.NoError(t, err)
	_, err = f.WriteAt([]byte(`{"seq":`), size)
	require.NoError(t, err)
	files, err := before(disk, "jobs")
	require.NoError(t, err)
	require.NoError(t, Recover(disk.Crash(crashfs.Everything), "jobs", h, recovery.Options{}))

	log, err := wal.Open("jobs", wal.Options{FS: disk})
	require.NoError(t, err)
	defer log.Close()
	report := log.Report()
	require.Len(t, report.Torn, 1)
	require.NoError(t, checkQuarantine(report, disk, files))
	files[name][size] = 'x'
	require.ErrorContains(t, checkQuarantine(report, disk, files), "W3 quarantine")
	require.NoError(t, disk.Remove(report.Torn[0].Quarantine))
	require.ErrorContains(t, checkQuarantine(report, disk, files), "W3 quarantine")
}

// A directory that cannot be opened is no violation, and no success.
func TestRecoverCannotOpen(t *testing.T) {
	disk := crashfs.Inject(crashfs.New(), crashfs.MustSchedule("mkdir * error EROFS"))
	require.Error(t, Recover(disk, "jobs", new(History), recovery.Options{}))
}

// A program records what it asks and what it is answered; then the power goes, and what is left is held against that.
func ExampleRecover() {
	disk, h := crashfs.New(), new(History)
	engine, err := recovery.Open(context.Background(), "jobs", recovery.Options{WAL: wal.Options{FS: disk}})
	if err != nil {
		fmt.Println(err)
		return
	}
	h.Opened(engine.Report().WAL.Epoch, engine.Report().WAL.LastSeq)
	_, _ = h.Do(context.Background(), engine, Step{Type: wal.JobSubmitted, JobID: "a"}, Step{Type: wal.JobValidated, JobID: "a"})

	h.Crash()
	left := disk.Crash(crashfs.SyncedOnly)
	fmt.Println(Recover(left, "jobs", h, recovery.Options{}))
	fmt.Println(Recover(crashfs.New(), "jobs", h, recovery.Options{}) != nil) // a disk that has nothing
	_ = engine.Close()
	// Output:
	// <nil>
	// true
}
