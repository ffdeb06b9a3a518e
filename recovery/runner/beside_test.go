package runner

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/recovery/crashtest"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// a witness sees what is done about jobs, and says what must never be.
type witness struct {
	mu     sync.Mutex
	engine *recovery.Engine
	busy   map[string]string
	done   map[string]int // effects
	wrong  []string
}

func (w *witness) enter(ctx context.Context, what string) (leave func()) {
	job, _ := JobOf(ctx)
	now, _ := w.engine.Job(job.ID)
	w.mu.Lock()
	defer w.mu.Unlock()
	if other := w.busy[job.ID]; other != "" {
		w.wrong = append(w.wrong, fmt.Sprintf("%s: %s beside %s", job.ID, what, other))
	}
	if now.State == statemachine.RolledBack {
		w.wrong = append(w.wrong, fmt.Sprintf("%s: %s when it was rolled back", job.ID, what))
	}
	w.busy[job.ID] = what
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.busy[job.ID] = ""
	}
}

func (w *witness) expect(right bool, format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !right {
		w.wrong = append(w.wrong, fmt.Sprintf(format, args...))
	}
}

func (w *witness) effect(ctx context.Context) {
	job, _ := JobOf(ctx)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.done[job.ID]++
}

func pause() {
	for range rand.N(50) {
		runtime.Gosched()
	}
}

func (w *witness) script() script {
	return script{
		execute: func(ctx context.Context, n int) (int, error) {
			defer w.enter(ctx, "Execute")()
			pause()
			if rand.N(8) == 0 {
				return 0, Transient(errBroken)
			}
			w.effect(ctx)
			if _, err := Step(ctx, "one", is(1)); err != nil {
				return 0, err
			}
			pause()
			switch rand.N(8) {
			case 0:
				return 0, errBroken
			case 1:
				panic("no")
			case 2:
				runtime.Goexit()
			case 3:
				<-ctx.Done()
				return 0, ctx.Err()
			}
			return n, nil
		},
		undo: func(ctx context.Context, _ int, _ Done) error {
			defer w.enter(ctx, "Undo")()
			pause()
			if rand.N(8) == 0 {
				return errBroken
			}
			return nil
		},
		reconcile: func(ctx context.Context, n int) (Found[int], error) {
			defer w.enter(ctx, "Reconcile")()
			pause()
			return []Found[int]{Happened(n), DidNotHappen[int](), CantTell[int]("")}[rand.N(3)], nil
		},
	}
}

// lazyLog lets others go first.
type lazyLog struct{ recovery.Log }

func (l lazyLog) Append(ctx context.Context, events ...wal.Event) (uint64, error) {
	pause()
	defer pause()
	return l.Log.Append(ctx, events...)
}

// Whatever is asked of a runner at once: nothing is done beside itself, nothing irreversible twice unless somebody said so, nothing
// is undone that was rolled back, and in the end no job is nobody's.
func TestRunner_beside_itself(t *testing.T) {
	for i := range 50 {
		t.Run(fmt.Sprint(i), besideItself)
	}
}

func besideItself(t *testing.T) {
	mem, effects := &crashtest.MemLog{}, []string{"pure", "reconcilable", "irreversible"}
	old := engineOnMem(t, mem, nil)
	const jobs = 9
	var ids []string
	for i := range jobs {
		id, capability := fmt.Sprint("job-", i), effects[i%3]
		commands := []recovery.Command{recovery.Submit(recovery.Submission{JobID: id, Capability: capability, Args: i}), recovery.Validate(id), recovery.Start(id)}
		if i < 2*jobs/3 {
			_, err := old.Do(t.Context(), commands[:1+2*rand.N(2)]...)
			require.NoError(t, err)
		}
		ids = append(ids, id)
	}
	w := &witness{busy: make(map[string]string), done: make(map[string]int)}
	reg := NewRegistry()
	for i, x := range []recovery.Effect{recovery.Pure, recovery.Reconcilable, recovery.Irreversible} {
		Add(reg, effects[i], w.script(), Settings{Effect: x, Timeout: 5 * time.Millisecond, Retry: Backoff{First: 1, Most: time.Microsecond, Attempts: 20}})
	}
	_ = old.Close()
	end, err := mem.Open(t.Context())
	require.NoError(t, err)
	w.engine, err = recovery.OpenLog(t.Context(), lazyLog{end}, recovery.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { _ = w.engine.Close() })
	p := poolOf(t, w.engine, reg, Options{Workers: 4, Queue: 3, MaxAttempts: 20})
	var all sync.WaitGroup
	for range 6 {
		all.Go(func() {
			for i := range 60 {
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rand.N(3000))*time.Microsecond)
				id := ids[rand.N(len(ids))]
				switch rand.N(12) {
				case 0:
					job, err := p.Cancel(ctx, id, "enough")
					w.expect(err != nil || job.Finished(), "%s: cancelled, and goes on", id)
				case 1, 2:
					_, _ = p.engine.Hold(ctx, id, "why")
				case 3, 4, 5:
					_, _ = p.Release(ctx, id, "so")
				case 6:
					job, err := p.RollBack(ctx, id, "why")
					w.expect(err != nil || job.State == statemachine.RolledBack, "%s: rolled back, and is not", id)
				case 7:
					_, _ = p.Recover(ctx)
				case 8:
					_, _ = p.Wait(ctx, id)
				case 9:
					n := 2*jobs/3 + i%(jobs/3)
					_, _ = p.Submit(ctx, effects[n%3], n, ID(ids[n]))
				default: // a plan that somebody has edited
					plan, _ := p.Plan(ctx)
					job, _ := p.engine.Job(id)
					action := []recovery.Action{recovery.ActionHold, recovery.ActionFail, recovery.ActionRollBack, recovery.ActionReconcile}[rand.N(4)]
					plan.Decisions = []recovery.Decision{{JobID: id, Seq: job.Seq, Action: action, Reason: "edited"}}
					for range 2 {
						_, _ = p.Apply(ctx, plan)
					}
				}
				cancel()
			}
		})
	}
	all.Wait()
	_, err = p.Recover(t.Context()) // what nobody had the time for
	require.NoError(t, err)
	for _, id := range ids {
		job, err := p.Wait(t.Context(), id)
		if !errors.Is(err, statemachine.ErrUnknownJob) {
			require.NoError(t, err, "%s\n%v\n%s", job, p.story(id), p.log)
		}
		for p.task(id) != nil { // one that came behind, and finds nothing to do
			_, _ = p.Wait(t.Context(), id)
		}
	}
	require.Empty(t, w.wrong)
	for id, n := range w.done {
		job, _ := p.engine.Job(id)
		released := 0
		for e := range p.engine.History(t.Context(), id) {
			if e.Type == wal.JobReleased {
				released++
			}
		}
		if job.Capability == "irreversible" {
			require.LessOrEqual(t, n, 1+released, "%v", p.story(id))
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	require.Zero(t, p.waiting)
	require.Empty(t, p.tasks)
	require.Empty(t, slices.DeleteFunc(p.ready.tasks, func(t *task) bool { return t == nil }))
}
