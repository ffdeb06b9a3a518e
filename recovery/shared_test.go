package recovery

import (
	"context"
	"errors"
	"fmt"
	"go/build"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// sharedLog is a log that several engines append to, in memory: the engine knows the log by its interface alone.
type sharedLog struct {
	mu      sync.Mutex
	events  []wal.Event
	heads   map[string]uint64
	epochs  uint64
	dead    map[uint64]bool
	changed chan struct{}
}

func newSharedLog() *sharedLog {
	return &sharedLog{heads: make(map[string]uint64), dead: make(map[uint64]bool), changed: make(chan struct{})}
}

// host is one engine's end of it.
type host struct {
	*sharedLog
	epoch uint64
}

func (s *sharedLog) join() *host {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.epochs++
	return &host{s, s.epochs}
}

func (h *host) ID() string       { return "shared" }
func (h *host) Epoch() uint64    { return h.epoch }
func (h *host) FirstSeq() uint64 { return 1 }

func (h *host) LastSeq() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return uint64(len(h.events))
}

func (h *host) Live(epoch uint64) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !h.dead[epoch]
}

func (h *host) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.dead[h.epoch] = true
	return nil
}

func (h *host) Append(_ context.Context, events ...wal.Event) (uint64, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	first, heads := uint64(len(h.events))+1, make(map[string]uint64)
	for i := range events {
		if head, ours := heads[events[i].JobID]; ours {
			events[i].Prev = head
		} else if events[i].Prev != h.heads[events[i].JobID] {
			return 0, fmt.Errorf("job %s moved on: %w", events[i].JobID, ErrConflict)
		}
		events[i].Seq, events[i].Epoch = first+uint64(i), h.epoch
		heads[events[i].JobID] = events[i].Seq
	}
	h.events = append(h.events, events...)
	for id, head := range heads {
		h.heads[id] = head
	}
	close(h.changed)
	h.changed = make(chan struct{})
	return first, nil
}

func (h *host) At(_ context.Context, seq uint64) (wal.Event, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.events[seq-1], nil
}

func (h *host) Events(ctx context.Context, from uint64) iter.Seq2[wal.Event, error] {
	return func(yield func(wal.Event, error) bool) {
		for seq, last := from, h.LastSeq(); seq <= last; seq++ {
			if e, err := h.At(ctx, seq); !yield(e, err) {
				return
			}
		}
	}
}

func (h *host) Follow(ctx context.Context, from uint64) iter.Seq2[wal.Event, error] {
	return func(yield func(wal.Event, error) bool) {
		for seq := from; ; {
			h.mu.Lock()
			changed, last := h.changed, uint64(len(h.events))
			h.mu.Unlock()
			for ; seq <= last; seq++ {
				if e, err := h.At(ctx, seq); !yield(e, err) {
					return
				}
			}
			select {
			case <-ctx.Done():
				yield(wal.Event{}, ctx.Err())
				return
			case <-changed:
			}
		}
	}
}

// Engines on one shared log: of two that race for a job one wins, the other gets ErrConflict, learns of it by following,
// and is then told by its own lifecycle.
func TestSharedLogConflicts(t *testing.T) {
	ctx, log := context.Background(), newSharedLog()
	engines := make([]*Engine, 2)
	for i := range engines {
		e, err := OpenLog(ctx, log.join(), Options{})
		require.NoError(t, err)
		engines[i] = e
	}
	conflicts := 0
	for i := range 300 {
		id := fmt.Sprint(i)
		_, err := engines[0].Do(ctx, Submit(Submission{JobID: id}), Validate(id), Start(id))
		require.NoError(t, err)
		for engines[1].applier.wait(uint64(log.join().LastSeq())) != nil { // the other has it, too
			t.Fatal("the applier stopped")
		}
		errs := make([]error, 2)
		var both sync.WaitGroup
		for k, e := range engines {
			both.Go(func() { _, errs[k] = e.Complete(ctx, id, k) })
		}
		both.Wait()
		require.True(t, (errs[0] == nil) != (errs[1] == nil), "%v", errs)
		lost := errors.Join(errs...)
		if errors.Is(lost, ErrConflict) {
			conflicts++
			loser := engines[0]
			if errs[1] != nil {
				loser = engines[1]
			}
			require.NoError(t, loser.applier.wait(log.join().LastSeq()))
			_, lost = loser.Complete(ctx, id, "again")
		}
		require.ErrorIs(t, lost, statemachine.ErrTransition)
	}
	t.Logf("%d conflicts in 300 races", conflicts)
	require.Equal(t, states(engines[0]), states(engines[1]))

	_, err := engines[0].Submit(ctx, Submission{JobID: "left"})
	require.NoError(t, err)
	require.NoError(t, engines[1].applier.wait(log.join().LastSeq()))
	require.Empty(t, engines[1].Interrupted(), "its engine is at work")
	require.NoError(t, engines[0].Close())
	require.Equal(t, []string{"left"}, inOrder(engines[1].Interrupted()))
	require.NoError(t, engines[1].Close())
}

// A stale engine that has not followed yet is refused by the log, not by luck.
func TestErrConflict(t *testing.T) {
	h := newSharedLog().join()
	_, err := h.Append(context.Background(), wal.Event{Type: wal.JobSubmitted, JobID: "a"})
	require.NoError(t, err)
	_, err = h.Append(context.Background(), wal.Event{Type: wal.JobValidated, JobID: "a"})
	require.ErrorIs(t, err, ErrConflict)
}

// The ancestor's logs: every event is taken over, and the jobs are what its events make of them by the reference.
func TestAncestorsJobsAreRebuilt(t *testing.T) {
	for file, want := range map[string]struct{ events, complaints int }{
		"ordinary": {1050, 0}, "torn-tail": {33, 1}, "torn-then-appended": {50, 1}, "torn-utf8": {33, 1},
		"two-writers": {142, 70}, "cleaned": {159, 0},
	} {
		t.Run(file, func(t *testing.T) {
			f, err := os.Open(filepath.Join("testdata/ancestor", file+".jsonl"))
			require.NoError(t, err)
			defer f.Close()
			dir, reference := t.TempDir(), make(map[string]statemachine.State)
			l, err := wal.Open(dir, wal.Options{Sync: wal.SyncNever})
			require.NoError(t, err)
			events, complaints := 0, 0
			for e, err := range wal.Import(f) {
				var complaint *wal.ImportError
				if errors.As(err, &complaint) {
					require.Positive(t, complaint.Line)
					require.NotEmpty(t, complaint.Reason)
					complaints++
					continue
				}
				require.NoError(t, err)
				_, err = l.Append(context.Background(), e)
				require.NoError(t, err)
				events++
				reference[e.JobID] = step(reference[e.JobID], e.Type)
			}
			require.NoError(t, l.Close())
			require.Equal(t, want, struct{ events, complaints int }{events, complaints})
			e := opened(t, dir)
			require.Empty(t, e.Report().Parked)
			for id, job := range states(e) {
				require.Equal(t, reference[id], job.State)
				require.False(t, job.Args.IsZero(), "args were kept under output")
			}
			require.Len(t, states(e), len(reference))
		})
	}
}

// Imports point one way, and the core stays light.
func TestImportsPointOneWay(t *testing.T) {
	const us = "github.com/jobwal/jobwal/"
	floors := []string{"wal", "statemachine", "projection", "recovery"}
	light := []string{"github.com/gofrs/flock", "golang.org/x/sys/unix", "github.com/looplab/fsm", "github.com/HdrHistogram/hdrhistogram-go"}
	for i, name := range floors {
		pkg, err := build.ImportDir(filepath.Join("..", name), 0)
		require.NoError(t, err)
		for _, path := range pkg.Imports {
			if ours, ok := strings.CutPrefix(path, us); ok {
				require.Contains(t, floors[:i], ours, "%s imports %s", name, path)
			} else if strings.Contains(path, ".") {
				require.Contains(t, light, path, "%s imports %s", name, path)
			}
		}
	}
}
