package recovery

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// slow is an end of the shared log whose engine learns of others' events only when it is let.
type slow struct {
	*host
	gate chan struct{}
}

func (s slow) Follow(ctx context.Context, from uint64) iter.Seq2[wal.Event, error] {
	return func(yield func(wal.Event, error) bool) {
		for e, err := range s.host.Follow(ctx, from) {
			if err == nil && e.Epoch != s.epoch {
				select {
				case <-s.gate:
				case <-ctx.Done():
				}
			}
			if !yield(e, err) {
				return
			}
		}
	}
}

// An engine that is behind loses its race with ErrConflict, and nothing is written. Once it has learned of the other's
// event, the same command succeeds where it is still legal, and is refused by the lifecycle where it is not.
func TestErrConflictThenLearnThenRetry(t *testing.T) {
	ctx, log := context.Background(), newSharedLog()
	gate := make(chan struct{})
	fast, err := OpenLog(ctx, log.join(), Options{})
	require.NoError(t, err)
	behind, err := OpenLog(ctx, slow{log.join(), gate}, Options{})
	require.NoError(t, err)
	learn := func(events int) {
		for range events {
			gate <- struct{}{}
		}
		for job, _ := behind.Job("a"); job.Seq != log.heads["a"]; job, _ = behind.Job("a") {
			runtime.Gosched()
		}
	}
	_, err = fast.Submit(ctx, Submission{JobID: "a"})
	require.NoError(t, err)
	_, err = behind.Submit(ctx, Submission{JobID: "a"})
	require.ErrorIs(t, err, ErrConflict, "it does not know yet that the id is taken")
	learn(1)
	_, err = behind.Submit(ctx, Submission{JobID: "a"})
	require.ErrorIs(t, err, statemachine.ErrDuplicateJob)

	_, err = fast.Validate(ctx, "a")
	require.NoError(t, err)
	_, err = behind.Do(ctx, Submit(Submission{JobID: "with it"}), Fail("a", errBroken))
	require.ErrorIs(t, err, ErrConflict)
	require.EqualValues(t, 2, behind.log.LastSeq(), "nothing of the group was written")
	_, known := behind.Job("with it")
	require.False(t, known)
	learn(1)
	job, err := behind.Fail(ctx, "a", errBroken)
	require.NoError(t, err, "still legal")
	require.Equal(t, []any{statemachine.Failed, statemachine.Validated, uint64(3)}, []any{job.State, job.Before, job.Seq})
	for {
		_, err = fast.Start(ctx, "a")
		if !errors.Is(err, ErrConflict) { // it may not have followed yet
			break
		}
		runtime.Gosched()
	}
	require.ErrorIs(t, err, statemachine.ErrTransition)
	require.NoError(t, fast.Close())
	require.NoError(t, behind.Close())
}

// S1, R1: several engines on one log, random commands on few jobs. Whoever loses a race tries again. The log is a legal
// history, every success is in it once, and all engines end in the same state, equal to that of one that opens it anew.
func TestS1_R1_engines_that_share_a_log_agree(t *testing.T) {
	ctx, log := context.Background(), newSharedLog()
	engines := make([]*Engine, 3)
	for i := range engines {
		e, err := OpenLog(ctx, log.join(), Options{})
		require.NoError(t, err)
		engines[i] = e
	}
	var all sync.WaitGroup
	var won, lost atomic.Int64
	for g := range 9 {
		all.Go(func() {
			e, r := engines[g%len(engines)], rand.New(rand.NewPCG(7, uint64(g)))
			for range 300 {
				c := commandOf(kinds[r.IntN(len(kinds))], fmt.Sprint("job-", r.IntN(40)))
				jobs, err := e.Do(ctx, c)
				for errors.Is(err, ErrConflict) {
					lost.Add(1)
					runtime.Gosched()
					jobs, err = e.Do(ctx, c)
				}
				switch {
				case err == nil && len(jobs) == 1:
					won.Add(1)
				case !errors.Is(err, statemachine.ErrTransition) && !errors.Is(err, statemachine.ErrHeld) && !errors.Is(err, statemachine.ErrNotHeld):
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	require.EqualValues(t, won.Load(), len(log.events))
	reference, held := make(map[string]statemachine.State), make(map[string]bool)
	for _, e := range log.events {
		reference[e.JobID] = step(reference[e.JobID], e.Type)
		require.NotEmpty(t, reference[e.JobID], "seq %d", e.Seq)
		held[e.JobID], _ = holdStep(held[e.JobID], e.Type)
	}
	anew, err := OpenLog(ctx, log.join(), Options{})
	require.NoError(t, err)
	want := states(anew)
	require.Len(t, want, len(reference))
	for id, job := range want {
		require.Equal(t, reference[id], job.State)
	}
	for _, e := range engines {
		for e.Stats().LastSeq < uint64(len(log.events)) {
			runtime.Gosched()
		}
		require.Equal(t, want, states(e))
		require.Empty(t, e.Interrupted(), "all are at work")
	}
	for _, e := range engines {
		require.NoError(t, e.Close())
	}
	interrupted := 0
	for id, state := range reference {
		if !held[id] && (state == "submitted" || state == "validated" || state == "started") {
			interrupted++
		}
	}
	require.Len(t, anew.Interrupted(), interrupted)
	require.Zero(t, anew.Report().WAL, "it is not on disk")
	require.NoError(t, anew.Close())
	t.Logf("%d commands succeeded, %d races lost", won.Load(), lost.Load())
}

// broken is a log that cannot be read beyond one event.
type broken struct {
	*host
	at uint64
}

func (b broken) Follow(ctx context.Context, from uint64) iter.Seq2[wal.Event, error] {
	return b.breaking(b.host.Follow(ctx, from))
}

func (b broken) Events(ctx context.Context, from uint64) iter.Seq2[wal.Event, error] {
	return b.breaking(b.host.Events(ctx, from))
}

func (b broken) breaking(events iter.Seq2[wal.Event, error]) iter.Seq2[wal.Event, error] {
	return func(yield func(wal.Event, error) bool) {
		for e, err := range events {
			if err == nil && e.Seq == b.at {
				e, err = wal.Event{}, errBroken
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// A log that can't be read on is said so by Open, or by the command that met it; nobody waits for ever.
func TestALogThatBreaksWhileFollowed(t *testing.T) {
	ctx := context.Background()
	e, err := OpenLog(ctx, broken{newSharedLog().join(), 2}, Options{})
	require.NoError(t, err)
	_, err = e.Submit(ctx, Submission{JobID: "a"})
	require.NoError(t, err)
	_, err = e.Validate(ctx, "a")
	require.ErrorIs(t, err, errBroken)
	require.ErrorContains(t, err, "the command itself is durable")
	_, err = e.Start(ctx, "a")
	require.ErrorIs(t, err, errBroken)
	require.NotContains(t, err.Error(), "the command itself")
	log := e.log.(broken)
	require.NoError(t, e.Close())
	_, err = OpenLog(ctx, log, Options{})
	require.ErrorIs(t, err, errBroken)
	require.EqualValues(t, 2, log.LastSeq())
}
