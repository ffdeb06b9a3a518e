package runner

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// A world is what is outside, which no crash takes back.
type world struct {
	times map[string]int                // how often something was done, by "job/what"
	there map[string]bool               // what was done and is not undone
	acked map[string]statemachine.State // what a caller was told
}

func (w *world) copy() *world {
	return &world{maps.Clone(w.times), maps.Clone(w.there), maps.Clone(w.acked)}
}

// A life is one process: a runner that dies at its deadline, counted in points. It goes on then, as a process that is gone does
// in no real world, but what it does is in no picture.
type life struct {
	mu    sync.Mutex // guards the fields below
	disk  *crashfs.FS
	world *world
	left  int   // points until its end
	after *life // what it leaves: disk and world, of one instant
	lives crashfs.Policy
}

// point is an instant at which the process may die; do is what happens to the world then, if it does not.
func (l *life) point(do func(*world)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.left--; l.left == 0 && l.after == nil {
		l.after = &life{disk: l.disk.Crash(l.lives), world: l.world.copy()}
	}
	if do != nil {
		do(l.world)
	}
}

// A deed is the args.
type deed struct {
	Steps int    `json:"steps"`
	End   string `json:"end"` // how it ends: "", "fails", "transient"
	Back  bool   `json:"-"`   // somebody wants it back when it has completed
}

// doer does deeds, each step of which is something in the world, and so is the rest.
type doer struct{ *life }

func (d doer) Validate(context.Context, deed) error { d.point(nil); return nil }

func (d doer) Execute(ctx context.Context, args deed) (int, error) {
	job, _ := JobOf(ctx)
	d.point(nil)
	if args.End == "transient" && job.Attempts == 1 {
		return 0, Transient(errBroken)
	}
	for i := range args.Steps {
		if _, err := Step(ctx, "step", func(context.Context) (int, error) {
			d.happen(job.ID, numbered("step", i+1))
			return i, nil
		}); err != nil {
			return 0, err
		}
	}
	d.happen(job.ID, "")
	if args.End == "fails" {
		return 0, errBroken
	}
	return args.Steps, nil
}

func (d doer) happen(job, what string) {
	d.point(nil)
	d.point(func(w *world) { w.times[job+"/"+what]++; w.there[job+"/"+what] = true })
	d.point(nil)
}

func (d doer) Undo(ctx context.Context, _ deed, done Done) error {
	job, _ := JobOf(ctx)
	d.point(nil)
	d.point(func(w *world) { delete(w.there, job.ID+"/"+done.Step) })
	d.point(nil)
	return nil
}

func (d doer) Reconcile(ctx context.Context, args deed) (found Found[int], _ error) {
	job, _ := JobOf(ctx)
	d.point(func(w *world) {
		switch {
		case w.there[job.ID+"/"]:
			found = Happened(args.Steps)
		case w.there[job.ID+"/step"]: // recorded or not
			found = CantTell[int]("in part")
		default:
			found = DidNotHappen[int]()
		}
	})
	return found, nil
}

var effectsOf = map[string]recovery.Effect{"pure": recovery.Pure, "reconcilable": recovery.Reconcilable, "irreversible": recovery.Irreversible}

func (l *life) registry() *Registry {
	reg := NewRegistry()
	for name, effect := range effectsOf {
		Add(reg, name, doer{l}, Settings{Effect: effect, Retry: OnIs(ErrTransient, Backoff{First: 1, Most: 1000})})
	}
	return reg
}

// live opens, recovers, submits what is not there yet and works until all is at rest or it is dead. In the last one nobody wants
// anything back.
func (l *life) live(t *rapid.T, deeds map[string]deed, capability map[string]string, last bool) *recovery.Engine {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	e, err := recovery.Open(ctx, "jobs", recovery.Options{CheckpointEvery: -1, WAL: wal.Options{FS: l.disk}})
	require.NoError(t, err)
	r, err := New(e, l.registry(), Options{Workers: 3, MaxAttempts: -1})
	require.NoError(t, err)
	for id, state := range l.world.acked {
		job, _ := e.Job(id)
		require.Equal(t, state, job.State, "what was told is so: %s", job)
	}
	applied, err := r.Recover(ctx)
	require.NoError(t, errors.Join(err, applied.Err()))
	var all sync.WaitGroup
	for id, d := range deeds {
		all.Go(func() {
			_, err := r.Submit(ctx, capability[id], d, ID(id))
			if err != nil && !errors.Is(err, statemachine.ErrDuplicateJob) {
				t.Error(err)
				return
			}
			job, err := r.Wait(ctx, id)
			if err == nil && d.Back && job.State == statemachine.Completed && !last {
				job, err = r.RollBack(ctx, id, "no longer wanted")
			}
			if err != nil || !job.Finished() || job.State == statemachine.Failed {
				return
			}
			l.point(func(w *world) { w.acked[id] = job.State })
		})
	}
	all.Wait()
	require.NoError(t, r.Drain(ctx))
	return e
}

// Processes that die at any instant, one after the other, each with whatever steps, retries, rollbacks and reconciliations it is
// in. What is irreversible, or can be asked about, happens once at most; what was acknowledged stays; in the end every job has
// ended or waits for a person, with a reason; what is rolled back is undone, and what completed is done.
func TestR1_R4_S1_runners_that_die(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		deeds, capability := make(map[string]deed), make(map[string]string)
		for i := range rapid.IntRange(1, 5).Draw(t, "jobs") {
			id := fmt.Sprint("job-", i)
			capability[id] = rapid.SampledFrom([]string{"pure", "reconcilable", "irreversible"}).Draw(t, "capability")
			deeds[id] = deed{rapid.IntRange(0, 3).Draw(t, "steps"), rapid.SampledFrom([]string{"", "fails", "transient"}).Draw(t, "end"), rapid.Bool().Draw(t, "back")}
		}
		l := &life{disk: crashfs.New(), world: &world{map[string]int{}, map[string]bool{}, map[string]statemachine.State{}}}
		for range rapid.IntRange(0, 6).Draw(t, "deaths") {
			l.left = rapid.IntRange(1, 60).Draw(t, "points")
			l.lives = rapid.SampledFrom([]crashfs.Policy{crashfs.SyncedOnly, crashfs.Everything}).Draw(t, "what is left")
			e := l.live(t, deeds, capability, false)
			require.NoError(t, e.Close())
			if l.after != nil {
				l = l.after
			}
		}
		l.left, l.after = 0, nil
		e := l.live(t, deeds, capability, true)
		defer func() { require.NoError(t, e.Close()) }()
		n := 0
		for job := range e.Jobs(projection.Query{}) {
			n++
			require.Empty(t, job.Parked)
			require.False(t, job.RollingBack, "%s", job)
			require.True(t, job.State == statemachine.Completed || job.State == statemachine.RolledBack || job.Held != "", "%s", job)
			for key, times := range l.world.times {
				if key[:len(job.ID)] != job.ID {
					continue
				}
				if job.Capability != "pure" {
					require.Equal(t, 1, times, "%s: %s", job, key)
				}
				require.False(t, job.State == statemachine.RolledBack && l.world.there[key], "%s: %s is still there", job, key)
			}
			if job.State == statemachine.Completed {
				require.True(t, l.world.there[job.ID+"/"], "%s", job)
				for i := range deeds[job.ID].Steps {
					require.True(t, l.world.there[job.ID+"/"+numbered("step", i+1)], "%s: step %d", job, i)
				}
			}
		}
		require.Equal(t, len(deeds), n)
	})
}
