package crashtest_test

import (
	"cmp"

	"encoding/json"
	"errors"
	"fmt"
	"io"

	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/recovery/crashtest"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// clock is one that a test sets. Its own engine asks it from several goroutines, but never while it is set.
type clock struct{ now time.Time }

func newClock() *clock { return &clock{time.Unix(1_700_000_000, 0)} }

func (c *clock) Now() time.Time { return c.now }

// retain are actions with all that bounds a log on, and a clock that jumps: 1 KiB segments, payloads on disk.
func retain(t *rapid.T) {
	c := newClock()
	a := &crashtest.Actions{
		Idle: time.Second, Compact: 2 * time.Minute, Checkpoint: (*recovery.Engine).Checkpoint,
		Options: recovery.Options{
			WAL: wal.Options{SegmentBytes: wal.MinSegmentBytes, Now: c.Now}, HoldBytes: 16, CheckpointEvery: -1,
			RefuseIDs: rapid.SampledFrom([]time.Duration{-1, time.Minute, 0}).Draw(t, "refuse ids"),
		},
	}
	a.Open(t)
	actions := a.Map()
	actions["clock"] = func(t *rapid.T) {
		c.now = c.now.Add(time.Duration(rapid.IntRange(-60, 120).Draw(t, "seconds")) * time.Second)
	}
	actions["through a life"] = func(t *rapid.T) {
		id := crashtest.JobIDs().Draw(t, "id")
		for _, on := range []wal.EventType{wal.JobSubmitted, wal.JobValidated, wal.JobStarted, wal.JobCompleted} {
			a.Do(t, a.Step(t, id, on))
			c.now = c.now.Add(time.Second)
		}
	}
	actions["compact again"] = actions["compact"]
	t.Repeat(actions)
}

// F14, F19, R1, R2, R3, R5, S1: whatever is saved, forgotten and carried in between, and wherever the power goes in it: all
// that was acknowledged is there, or was forgotten by right; nothing unfinished ever is; what is remembered has its whole
// history and its payloads.
func TestF14_F19_R2_R5_actions_with_retention(t *testing.T) {
	t.Parallel()
	rapid.Check(t, bubbled(retain))
}

// tight are options with which little is enough to fill a segment.
func tight(disk wal.FS) recovery.Options {
	return recovery.Options{
		WAL: wal.Options{FS: disk, SegmentBytes: wal.MinSegmentBytes}, HoldBytes: 64, CheckpointEvery: -1,
	}
}

// totals is a projection of somebody's own, which checkpoints have a part of.
type totals struct{ Steps map[wal.EventType]int }

func newTotals() *totals { return &totals{make(map[wal.EventType]int)} }

func (p *totals) Name() string { return "totals" }
func (p *totals) Version() int { return 1 }

func (p *totals) Apply(e wal.Event, _ statemachine.Job) error {
	p.Steps[e.Type]++
	return nil
}

func (p *totals) Snapshot() (func(io.Writer) error, error) {
	raw, err := json.Marshal(p)
	return func(w io.Writer) error { _, err := w.Write(raw); return err }, err
}

func (p *totals) Load(r io.Reader) error { return json.NewDecoder(r).Decode(p) }

// check: it saw all events that there ever were.
func (p *totals) check(e *recovery.Engine) error {
	ever := e.Stats().Ever
	for on, state := range map[wal.EventType]statemachine.State{
		wal.JobSubmitted: statemachine.Submitted, wal.JobStarted: statemachine.Started, wal.JobCompleted: statemachine.Completed,
	} {
		if uint64(p.Steps[on]) != ever[state] {
			return fmt.Errorf("totals has %d %s, stats %d", p.Steps[on], on, ever[state])
		}
	}
	return nil
}

// doing is one thing that a program does with its engine.
type doing = func(e *recovery.Engine, h *crashtest.History) error

// lives opens the engine, does what is asked until something fails, and closes it. Jobs may be forgotten.
func lives(disk wal.FS, h *crashtest.History, opts recovery.Options, all ...doing) error {
	opts.WAL.FS = disk
	opts.Projections = []projection.Projection{newTotals()}
	h.Compacts()
	e, err := recovery.Open(ctx, "jobs", opts)
	if err != nil {
		return err
	}
	h.Opened(e.Report().WAL.Epoch, e.Report().WAL.LastSeq)
	for _, do := range all {
		if err = do(e, h); err != nil {
			break
		}
	}
	return errors.Join(err, e.Close())
}

func steps(id string, types ...wal.EventType) doing {
	return func(e *recovery.Engine, h *crashtest.History) error {
		var group []crashtest.Step
		for _, on := range types {
			s := crashtest.Step{Type: on, JobID: id}
			switch on {
			case wal.JobSubmitted:
				s.Capability, s.Args = "c", fmt.Appendf(nil, `{"for":%q,"pad":%q}`, id, strings.Repeat("x", 150))
			case wal.JobCompleted:
				s.Output = fmt.Appendf(nil, `[%q]`, strings.Repeat("y", 150))
			}
			group = append(group, s)
		}
		_, err := h.Do(ctx, e, group...)
		return err
	}
}

// begun is a job that stays open, finished one that does not.
func begun(id string) doing { return steps(id, wal.JobSubmitted, wal.JobValidated) }

func finished(id string) doing {
	return steps(id, wal.JobSubmitted, wal.JobValidated, wal.JobStarted, wal.JobCompleted)
}

func checkpoint(e *recovery.Engine, _ *crashtest.History) error { return e.Checkpoint(ctx) }

// compactAll forgets whatever has ended.
func compactAll(e *recovery.Engine, _ *crashtest.History) error {
	time.Sleep(time.Second) // of the bubble's clock: it ended before now
	_, err := e.Compact(ctx, 0)
	return err
}

// settled waits for what the engine does by itself.
func settled(*recovery.Engine, *crashtest.History) error {
	synctest.Wait()
	return nil
}

// recovers is the check of all these: what the crash left is what it should be, it can be gone on with where the crash
// was, and then it still is.
func recovers(disk wal.FS, h *crashtest.History, opts recovery.Options) error {
	opts.Projections = nil // Recover opens twice; a projection is for once
	if err := crashtest.Recover(disk, "jobs", h, opts); err != nil {
		return err
	}
	counted := newTotals()
	again := opts
	again.WAL.FS, again.Projections = disk, []projection.Projection{counted}
	e, err := recovery.Open(ctx, "jobs", again)
	if err != nil {
		return err
	}
	if err := errors.Join(counted.check(e), compactAll(e, nil), e.Close()); err != nil {
		return err
	}
	return errors.Join(crashtest.Recover(disk, "jobs", h, opts), swept(disk))
}

// swept: at most three checkpoints, one carried file, and no temporary one are left.
func swept(disk wal.FS) error {
	img, err := crashtest.ReadImage(disk, "jobs")
	if err != nil {
		return err
	}
	var checkpoints, carried int
	for name := range img {
		switch {
		case strings.HasSuffix(name, ".tmp"):
			return fmt.Errorf("%s is left", name)
		case strings.HasPrefix(name, "checkpoint-"):
			checkpoints++
		case strings.HasPrefix(name, "carried-"):
			carried++
		}
	}
	if checkpoints > 3 || carried > 1 { // crash C14 of package wal leaves one too many, until the next is written
		return fmt.Errorf("%d checkpoints, %d carried files", checkpoints, carried)
	}
	return nil
}

// The workloads of retention.
var retention = map[string][]doing{
	"checkpoint": {begun("a"), checkpoint},
	"third checkpoint": {
		begun("a"), checkpoint, finished("b"), checkpoint, steps("a", wal.JobStarted), checkpoint, begun("c"),
	},
	"compaction": {begun("a"), finished("b"), finished("c"), compactAll, steps("a", wal.JobStarted)},
	"second compaction": {
		begun("a"), finished("b"), begun("c"), compactAll, finished("d"), finished("e"), steps("c", wal.JobFailed), compactAll, begun("f"),
	},
}

// everyRetention crashes a workload everywhere, and what recovers from it.
func everyRetention(t *testing.T, opts recovery.Options, c crashtest.Crashes[crashtest.History], all ...doing) crashtest.Coverage {
	t.Helper()
	if c.Workload == nil {
		c.Workload = func(disk wal.FS, h *crashtest.History) error { return lives(disk, h, opts, all...) }
	}
	if c.Check == nil {
		opts.Retain = 0
		c.Check = func(disk wal.FS, h *crashtest.History) error { return recovers(disk, h, opts) }
	}
	c.Budget = cmp.Or(c.Budget, budget()/5)
	var got crashtest.Coverage
	synctest.Test(t, func(t *testing.T) { got = c.Run(t) })
	return got
}

// R3, R5, F14: the power goes at any operation of a checkpoint, of the third, which takes the place of the first, of a
// compaction, of the next, which takes over what the first carried, and of the recovery from each.
func TestF14_R3_R5_CrashEveryOp_retention(t *testing.T) {
	t.Parallel()
	for name, all := range retention {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			require.NotZero(t, everyRetention(t, tight(nil), crashtest.Crashes[crashtest.History]{}, all...).SecondDistinct)
		})
	}
}

// The same while the engine does it by itself.
func TestF14_R5_CrashEveryOp_retention_by_itself(t *testing.T) {
	t.Parallel()
	opts := tight(nil)
	opts.CheckpointEvery, opts.Retain = 6, time.Second
	wait := func(e *recovery.Engine, h *crashtest.History) error {
		err := settled(e, h)
		time.Sleep(time.Minute)
		return err
	}
	everyRetention(t, opts, crashtest.Crashes[crashtest.History]{}, begun("a"), finished("b"), wait, finished("c"), wait, finished("d"), wait)
}

var _ = crashfs.SyncedOnly
