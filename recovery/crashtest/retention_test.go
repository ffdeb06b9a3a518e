package crashtest_test

import (
	"context"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/recovery/crashtest"
	"github.com/jobwal/jobwal/wal"
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

var _ = context.Background
