package crashtest_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/recovery/crashtest"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

var ctx = context.Background()

// notes is the ledger of a caller who appends: what was asked for, and what of it was acknowledged. The check writes
// into it, too, so it has a Clone.
type notes struct {
	asked   []asked
	dropped uint64 // DropBefore was called with it
	torn    []byte // bytes that nobody acknowledged, and that must be kept all the same
	opts    wal.Options
}

type asked struct {
	group []wal.Event
	acked bool
}

func (n *notes) Clone() *notes {
	c := *n
	c.asked = slices.Clone(n.asked)
	return &c
}

func (n *notes) open(disk wal.FS) (*wal.Log, error) {
	opts := n.opts
	opts.FS, opts.SegmentBytes = disk, max(opts.SegmentBytes, wal.MinSegmentBytes)
	return wal.Open("log", opts)
}

func (n *notes) append(log *wal.Log, group ...wal.Event) error {
	_, err := log.Append(ctx, group...)
	if errors.Is(err, wal.ErrNoSpace) {
		return nil // a definite no
	}
	n.asked = append(n.asked, asked{group, err == nil})
	return err
}

// check is the usual one: what was acknowledged is there, in place and as it was asked for; besides it at most whole
// groups that were asked for; and the log takes more, which is there at the next opening.
func (n *notes) check(disk wal.FS) error {
	for range 2 {
		if err := n.checkOnce(disk); err != nil {
			return err
		}
	}
	return n.leftovers(disk)
}

// leftovers: of what Open makes and cuts, nothing is lost and nothing lies about.
func (n *notes) leftovers(disk wal.FS) error {
	saved := len(n.torn) == 0
	for _, dir := range []string{"log", "log/quarantine"} {
		list, err := disk.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		for _, e := range list {
			if strings.HasSuffix(e.Name(), ".tmp") {
				return fmt.Errorf("%s/%s was not swept", dir, e.Name())
			}
			saved = saved || !e.IsDir() && bytes.Contains(contents(disk, dir+"/"+e.Name()), n.torn)
		}
	}
	if !saved {
		return errors.New("torn bytes are neither in place nor in quarantine")
	}
	return nil
}

func (n *notes) checkOnce(disk wal.FS) error {
	log, err := n.open(disk)
	if err != nil {
		return err
	}
	err = n.compare(log)
	if err == nil {
		err = n.append(log, job(fmt.Sprint("check", len(n.asked)), 10))
	}
	return errors.Join(err, log.Close())
}

// compare leaves of what was asked for only what is there: the rest will not come any more.
func (n *notes) compare(log *wal.Log) error {
	first, next := log.FirstSeq(), uint64(1)
	if first > max(1, n.dropped) {
		return fmt.Errorf("the log starts at %d, and only what lies before %d was dropped", first, n.dropped)
	}
	var steps []crashtest.Step
	for e, err := range log.Events(first) {
		if err != nil {
			return err
		}
		if e.Seq != first+uint64(len(steps)) {
			return fmt.Errorf("seq %d where %d belongs", e.Seq, first+uint64(len(steps)))
		}
		steps = append(steps, crashtest.StepOf(e))
	}
	var there []asked
	for i, a := range n.asked {
		end := next + uint64(len(a.group))
		if end > first && !same(steps[next-first:], a.group) {
			if a.acked {
				return fmt.Errorf("group %d was acknowledged, and is not at seq %d, of %d", i+1, next, log.LastSeq())
			}
			continue
		}
		there, next = append(there, asked{a.group, true}), end
	}
	if next != log.LastSeq()+1 {
		return fmt.Errorf("the log ends at %d, and what was asked for at %d", log.LastSeq(), next-1)
	}
	n.asked = there
	return nil
}

// same tells whether the steps begin with this group.
func same(steps []crashtest.Step, group []wal.Event) bool {
	equal := func(s crashtest.Step, e wal.Event) bool { return s.Same(crashtest.StepOf(e)) }
	return len(steps) >= len(group) && slices.EqualFunc(steps[:len(group)], group, equal)
}

func job(id string, padding int) wal.Event {
	args := fmt.Appendf(nil, `{"n":%q}`, strings.Repeat("x", padding))
	return wal.Event{Type: wal.JobSubmitted, JobID: id, Capability: "test", Args: args}
}

func group(id string, n, padding int) (events []wal.Event) {
	for i := range n {
		events = append(events, job(fmt.Sprint(id, "/", i), padding))
	}
	return events
}

// contents are nil where there is no such file.
func contents(disk wal.FS, name string) []byte {
	b, _ := crashtest.ReadFile(disk, name)
	return b
}

// session opens the log, does what is asked until something fails, and closes it.
func (n *notes) session(disk wal.FS, do ...func(*wal.Log) error) error {
	log, err := n.open(disk)
	if err != nil {
		return err
	}
	for _, f := range do {
		if err := f(log); err != nil {
			return errors.Join(err, log.Close())
		}
	}
	return log.Close()
}

func (n *notes) groups(size, padding, times int) func(*wal.Log) error {
	return func(log *wal.Log) error {
		for range times {
			if err := n.append(log, group(fmt.Sprint("job", len(n.asked)), size, padding)...); err != nil {
				return err
			}
		}
		return nil
	}
}

var allCrashes = flag.Bool("all-crashes", false, "crash every recovery at every operation: a minute or two")

// budget is what an ordinary test has time for: each operation of the recovery about once for each crash of the workload.
func budget() int {
	if *allCrashes {
		return 1_000_000
	}
	return crashtest.Thin(1500, 120)
}

// every runs a workload over the log through all of its crashes. Those whose recovery does something of its own are here;
// TestF14_F1_F2_F7_F9_F10_crash_everywhere in package wal has more workloads, and a recovery that appends nothing.
func every(t *testing.T, c crashtest.Crashes[notes]) {
	t.Helper()
	t.Parallel()
	c.Check = func(disk wal.FS, n *notes) error { return n.check(disk) }
	c.Budget = budget()
	synctest.Test(t, func(t *testing.T) {
		got := c.Run(t)
		require.NotZero(t, got.SecondDistinct)
	})
}

func TestF14_CrashEveryOp_reopen(t *testing.T) {
	every(t, crashtest.Crashes[notes]{Workload: func(disk wal.FS, n *notes) error {
		if err := n.session(disk, n.groups(2, 0, 1)); err != nil {
			return err
		}
		if err := n.session(disk); err != nil {
			return err
		}
		return n.session(disk, n.groups(1, 50, 1))
	}})
}

func TestF14_CrashEveryOp_drop(t *testing.T) {
	every(t, crashtest.Crashes[notes]{Workload: func(disk wal.FS, n *notes) error {
		return n.session(disk, n.groups(1, 500, 3), func(log *wal.Log) error {
			n.dropped = 3
			return log.DropBefore(3)
		}, n.groups(1, 0, 1))
	}})
}

// Open copies the torn tail to quarantine and cuts it, with every crash on the way.
func TestF14_F1_CrashEveryOp_quarantine(t *testing.T) {
	var base *crashfs.FS
	var left notes
	synctest.Test(t, func(t *testing.T) { base, left = tornDisk(t) })
	every(t, crashtest.Crashes[notes]{Base: base, Workload: func(disk wal.FS, n *notes) error {
		*n = *left.Clone()
		return n.session(disk, n.groups(1, 10, 1))
	}})
}

// tornDisk is what a power cut in the middle of a group left behind two that were acknowledged.
func tornDisk(t *testing.T) (*crashfs.FS, notes) {
	base := crashfs.New()
	faulty := crashfs.Inject(base, crashfs.MustSchedule("write * #4 short 600 EIO"))
	left := notes{opts: wal.Options{SegmentBytes: 4096}}
	err := left.session(faulty, left.groups(1, 10, 2), left.groups(2, 300, 1))
	require.ErrorIs(t, err, wal.ErrOutcomeUnknown)
	base = base.Crash(crashfs.CutAt("log/00000000000000000001.jsonl", 1<<20)) // all of it, on stable storage
	log, err := wal.Open("log", wal.Options{FS: base, ReadOnly: true})
	require.NoError(t, err)
	defer log.Close()
	require.Len(t, log.Report().Torn, 1)
	torn := log.Report().Torn[0]
	left.torn = contents(base, torn.Path)[torn.Offset:][:torn.Bytes]
	require.Greater(t, len(left.torn), 100)
	return base, left
}

// A short log of the ancestor's, taken over in one go, and gone on with.
func TestF14_CrashEveryOp_import(t *testing.T) {
	plain, err := os.ReadFile("../testdata/ancestor/ordinary.jsonl")
	require.NoError(t, err)
	plain = bytes.Join(bytes.SplitAfterN(plain, []byte("\n"), 13)[:12], nil)
	every(t, crashtest.Crashes[notes]{Workload: func(disk wal.FS, n *notes) error {
		n.opts.SegmentBytes = 2048
		return n.session(disk, func(log *wal.Log) error {
			var events []wal.Event
			for e, err := range wal.Import(bytes.NewReader(plain)) {
				if err != nil {
					return err
				}
				events = append(events, e)
			}
			for group := range slices.Chunk(events, 5) {
				if err := n.append(log, group...); err != nil {
					return err
				}
			}
			return nil
		}, n.groups(1, 0, 1))
	}})
}

// The disk is full in the middle of a group, which is taken back; then there is room.
func TestF14_F10_CrashEveryOp_full_disk(t *testing.T) {
	every(t, crashtest.Crashes[notes]{
		Schedule: crashfs.MustSchedule("write *1.jsonl #2 short 300 ENOSPC"),
		Workload: func(disk wal.FS, n *notes) error {
			n.opts.SegmentBytes = 4096
			err := n.session(disk, n.groups(1, 0, 1), n.groups(2, 300, 1), n.groups(1, 50, 1))
			if err == nil && len(n.asked) != 2 {
				return fmt.Errorf("%d groups were acknowledged", len(n.asked))
			}
			return err
		},
	})
}

// Every state that a crash may leave, not only those that the policies choose.
func TestF14_CrashEveryOp_every_state(t *testing.T) {
	every(t, crashtest.Crashes[notes]{States: 200, Workload: func(disk wal.FS, n *notes) error {
		return n.session(disk, n.groups(2, 150, 2))
	}})
}
