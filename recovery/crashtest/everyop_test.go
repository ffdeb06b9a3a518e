package crashtest_test

import (
	"bytes"
	"context"
	"errors"
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

// notes is the ledger of a caller who appends: what was asked for, group by group, and how many groups were
// acknowledged. The check writes into it, too, so it has a Clone.
type notes struct {
	asked   [][]wal.Event
	acked   int
	dropped uint64 // DropBefore was called with it
	torn    []byte // bytes that nobody acknowledged, and that must be kept all the same
	opts    wal.Options
}

func (n *notes) Clone() *notes {
	c := *n
	c.asked = slices.Clip(n.asked)
	return &c
}

func (n *notes) open(disk wal.FS) (*wal.Log, error) {
	opts := n.opts
	opts.FS, opts.SegmentBytes = disk, max(opts.SegmentBytes, wal.MinSegmentBytes)
	return wal.Open("log", opts)
}

func (n *notes) append(log *wal.Log, group ...wal.Event) error {
	n.asked = append(n.asked, group)
	_, err := log.Append(ctx, group...)
	if err == nil {
		n.acked = len(n.asked)
	}
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
	if !holds(disk, n.torn) {
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
	var there [][]wal.Event
	for i, group := range n.asked {
		end := next + uint64(len(group))
		if end > first && !same(steps[next-first:], group) {
			if i < n.acked {
				return fmt.Errorf("group %d was acknowledged, and is not at seq %d, of %d", i+1, next, log.LastSeq())
			}
			continue
		}
		there, next = append(there, group), end
	}
	if next != log.LastSeq()+1 {
		return fmt.Errorf("the log ends at %d, and what was asked for at %d", log.LastSeq(), next-1)
	}
	n.asked, n.acked = there, len(there)
	return nil
}

// same tells whether the steps begin with this group.
func same(steps []crashtest.Step, group []wal.Event) bool {
	return len(steps) >= len(group) && slices.EqualFunc(steps[:len(group)], group, func(s crashtest.Step, e wal.Event) bool {
		return s.Same(crashtest.StepOf(e))
	})
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

// holds tells whether some file of the log, or its quarantine, holds these bytes.
func holds(disk wal.FS, torn []byte) bool {
	for _, dir := range []string{"log", "log/quarantine"} {
		list, _ := disk.ReadDir(dir)
		for _, e := range list {
			if !e.IsDir() && bytes.Contains(contents(disk, dir+"/"+e.Name()), torn) {
				return true
			}
		}
	}
	return len(torn) == 0
}

func contents(disk wal.FS, name string) []byte {
	f, err := disk.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	size, _ := f.Size()
	b := make([]byte, size)
	n, _ := f.ReadAt(b, 0)
	return b[:n]
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

// every runs a workload over the log through all of its crashes.
func every(t *testing.T, c crashtest.Crashes[notes]) {
	t.Helper()
	c.Check = func(disk wal.FS, n *notes) error { return n.check(disk) }
	if c.Budget == 0 {
		c.Budget = 1000
	}
	synctest.Test(t, func(t *testing.T) {
		got := c.Run(t)
		require.Greater(t, got.SecondCrashes, got.Operations)
	})
}

func TestF14_CrashEveryOp_append(t *testing.T) {
	every(t, crashtest.Crashes[notes]{Workload: func(disk wal.FS, n *notes) error {
		return n.session(disk, n.groups(1, 0, 2), n.groups(1, 700, 1))
	}})
}

func TestF14_CrashEveryOp_group_append(t *testing.T) {
	every(t, crashtest.Crashes[notes]{Workload: func(disk wal.FS, n *notes) error {
		return n.session(disk, n.groups(3, 100, 1), n.groups(2, 5, 1))
	}})
}

func TestF14_CrashEveryOp_rotation(t *testing.T) {
	every(t, crashtest.Crashes[notes]{Workload: func(disk wal.FS, n *notes) error {
		return n.session(disk, n.groups(2, 200, 3))
	}})
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

func TestF14_CrashEveryOp_close(t *testing.T) {
	every(t, crashtest.Crashes[notes]{Workload: func(disk wal.FS, n *notes) error {
		for range 3 {
			if err := n.session(disk); err != nil {
				return err
			}
		}
		return nil
	}})
}

// A liar is a file system in which Sync, or SyncDir, does nothing.
type liar struct {
	wal.FS
	files, dirs bool
}

type lyingFile struct{ wal.File }

func (lyingFile) Sync() error { return nil }

func (l liar) OpenFile(name string, flag int, perm os.FileMode) (wal.File, error) {
	f, err := l.FS.OpenFile(name, flag, perm)
	if err == nil && l.files {
		f = lyingFile{f}
	}
	return f, err
}

func (l liar) SyncDir(name string) error {
	if l.dirs {
		return nil
	}
	return l.FS.SyncDir(name)
}

var _ = crashfs.New
