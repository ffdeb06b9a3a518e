package crashtest_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/recovery/crashtest"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// Two hosts share one log. What one of them left when it died is interrupted for the other, and not before.
func ExampleMemLog() {
	ctx := context.Background()
	var shared crashtest.MemLog
	left, _ := shared.Open(ctx)
	one, _ := recovery.OpenLog(ctx, left, recovery.Options{})
	_, _ = one.Do(ctx, recovery.Submit(recovery.Submission{JobID: "a"}), recovery.Validate("a"), recovery.Start("a"))

	right, _ := shared.Open(ctx)
	two, _ := recovery.OpenLog(ctx, right, recovery.Options{})
	fmt.Println("interrupted while its host lives:", len(two.Interrupted()))
	shared.Kill(left.Epoch())
	fmt.Println("interrupted when it is dead:", two.Interrupted())
	_, err := one.Complete(ctx, "a", "too late")
	fmt.Println("the dead one is told:", errors.Is(err, wal.ErrClosed))
	job, _ := two.Fail(ctx, "a", errors.New("its host died"))
	fmt.Println(job)
	_ = two.Close()
	_ = one.Close()
	// Output:
	// interrupted while its host lives: 0
	// interrupted when it is dead: [job a started]
	// the dead one is told: true
	// job a failed: its host died
}

// A log around another one is tested like this, power cuts included. It leaves conflicts to its only writer.
func ExampleTestLog() {
	type counting struct{ recovery.Log } // with methods of its own
	open := func(disk wal.FS) (recovery.Log, error) {
		log, err := wal.Open("jobs", wal.Options{FS: disk, SegmentBytes: 4 << 10})
		if err != nil {
			return nil, err
		}
		return counting{recovery.OnDisk(log)}, nil
	}
	// In a _test.go file:
	_ = func(t *testing.T) {
		crashtest.TestLog(t, func(*testing.T) crashtest.Opener { return crashtest.DiskOpener(open) }, crashtest.NoConflicts)
	}
	// Output:
}

func TestMemLogKill(t *testing.T) {
	ctx := t.Context()
	var m crashtest.MemLog
	a, err := m.Open(ctx)
	require.NoError(t, err)
	b, err := m.Open(ctx)
	require.NoError(t, err)
	ended := make(chan error)
	go func() {
		for _, err := range a.Follow(ctx, 0) {
			ended <- err
		}
	}()
	m.Kill(a.Epoch())
	require.ErrorIs(t, <-ended, wal.ErrClosed)
	_, err = a.Append(ctx, wal.Event{Type: "note"})
	require.ErrorIs(t, err, wal.ErrClosed)
	require.False(t, b.Live(a.Epoch()))
	require.True(t, b.Live(b.Epoch()))
	require.False(t, b.Live(99), "nobody ever opened it under that epoch")
	seq, err := b.Append(ctx, wal.Event{Type: "note"})
	require.NoError(t, err)
	require.Equal(t, uint64(1), seq)
}

func TestMemLogOpenLooksAtItsContext(t *testing.T) {
	var m crashtest.MemLog
	var none context.Context
	_, err := m.Open(none)
	require.ErrorIs(t, err, wal.ErrInvalid)
	done, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = m.Open(done)
	require.ErrorIs(t, err, context.Canceled)
}

// A follower that stands in a gap has missed nothing that was dropped before it.
func TestMemLogFollowerInAGapMissesNothing(t *testing.T) {
	ctx, m := t.Context(), crashtest.MemLog{Gap: 10}
	log, err := m.Open(ctx)
	require.NoError(t, err)
	var seqs []uint64
	for range 3 {
		seq, err := log.Append(ctx, wal.Event{Type: "note"})
		require.NoError(t, err)
		seqs = append(seqs, seq)
	}
	require.Equal(t, []uint64{11, 22, 33}, seqs)
	require.NoError(t, log.(interface{ DropBefore(uint64) error }).DropBefore(30))
	require.Equal(t, uint64(33), log.FirstSeq())
	for e, err := range log.Follow(ctx, 23) {
		require.NoError(t, err)
		require.Equal(t, uint64(33), e.Seq)
		break
	}
	for _, err := range log.Follow(ctx, 22) {
		require.ErrorIs(t, err, wal.ErrDropped)
	}
}

// Whatever is appended, MemLog answers as a log on disk does, but that it also sees conflicts.
func TestMemLogAnswersAsALogOnDiskDoes(t *testing.T) {
	types := []wal.EventType{wal.JobSubmitted, wal.JobFailed, "note", "", wal.EventLost, "a\nb"}
	payloads := []json.RawMessage{
		nil, json.RawMessage(` [1, 2] `), json.RawMessage("null"), json.RawMessage("{"), json.RawMessage(`{"a":1,"a":2}`),
	}
	rapid.Check(t, func(t *rapid.T) {
		ctx, opts := context.Background(), wal.Options{Now: func() time.Time { return time.Unix(1_700_000_000, 1) }}
		memory, err := (&crashtest.MemLog{WAL: opts}).Open(ctx)
		require.NoError(t, err)
		opts.FS, opts.Sync = crashfs.New(), wal.SyncNever
		l, err := wal.Open("jobs", opts)
		require.NoError(t, err)
		disk, newest := recovery.OnDisk(l), make(map[string]uint64)
		for range rapid.IntRange(1, 10).Draw(t, "appends") {
			events := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) wal.Event {
				return wal.Event{
					Type:  rapid.SampledFrom(types).Draw(t, "type"),
					JobID: rapid.SampledFrom([]string{"a", "b", "", "\xff"}).Draw(t, "job"),
					Args:  rapid.SampledFrom(payloads).Draw(t, "args"), Output: rapid.SampledFrom(payloads[:3]).Draw(t, "output"),
					Time: time.Unix(rapid.Int64Range(0, 5).Draw(t, "time"), 0),
				}
			}), 0, 4).Draw(t, "events")
			for i := range events {
				events[i].Prev = newest[events[i].JobID]
			}
			first, err := memory.Append(ctx, events...)
			same, sameErr := disk.Append(ctx, events...)
			require.Equal(t, sameErr, err)
			require.Equal(t, same, first)
			if err == nil {
				for i, e := range events {
					if e.JobID != "" {
						newest[e.JobID] = first + uint64(i)
					}
				}
			}
		}
		require.Equal(t, all(t, disk), all(t, memory))
		require.NoError(t, disk.Close())
	})
}

func all(t rapid.TB, log recovery.Log) (events []wal.Event) {
	for e, err := range log.Events(context.Background(), 0) {
		require.NoError(t, err)
		events = append(events, e)
	}
	return events
}

// What an engine with a race to lose does, from a program's side: it tries again when it has learned more.
func TestMemLogConflictIsSettledByTryingAgain(t *testing.T) {
	ctx := t.Context()
	var m crashtest.MemLog
	open := func() *recovery.Engine {
		log, err := m.Open(ctx)
		require.NoError(t, err)
		e, err := recovery.OpenLog(ctx, log, recovery.Options{})
		require.NoError(t, err)
		return e
	}
	a, b := open(), open()
	for i := range 200 {
		id := fmt.Sprint(i)
		_, err := a.Do(ctx, recovery.Submit(recovery.Submission{JobID: id}), recovery.Validate(id), recovery.Start(id))
		require.NoError(t, err)
		errs := make(chan error)
		for _, e := range []*recovery.Engine{a, b} {
			go func() {
				_, err := e.Complete(ctx, id, nil)
				for errors.Is(err, recovery.ErrConflict) || errors.Is(err, statemachine.ErrUnknownJob) {
					_, err = e.Complete(ctx, id, nil)
				}
				errs <- err
			}()
		}
		one, two := <-errs, <-errs
		require.True(t, (one == nil) != (two == nil), "%v, %v", one, two)
		require.ErrorIs(t, errors.Join(one, two), statemachine.ErrTransition)
	}
	require.NoError(t, a.Close())
	require.NoError(t, b.Close())
}
