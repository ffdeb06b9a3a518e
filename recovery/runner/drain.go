package runner

import (
	"context"
	"slices"
	"time"

	"github.com/jobwal/jobwal/wal"
)

// Drain ends the runner: it takes no more, lets what is worked on come to its end, rollbacks included, and returns then. What
// waits, for a worker or for another attempt, stays in the log as it is, for the next opening. When ctx ends first, so do the
// contexts of what is worked on, with [ErrDraining] as their cause; none of it fails: it stays started in the log, and the next
// opening's plan has it. Then Drain waits for Options.Grace, and a *[DrainError] lists what did not come to its end. It may be called
// again. The engine is not closed; do that next.
//
// Work that asks for more (Submit, say) while the runner drains is told ErrDraining. If it ends with that error it does not fail: it
// is left as it is, too, and listed as interrupted.
func (r *Runner) Drain(ctx context.Context) error {
	if ctx == nil {
		return &wal.InvalidError{Field: "context", Reason: "nil"}
	}
	r.close()
	atWork := r.present()
	done := make(chan struct{})
	go func() { r.hands.Wait(); close(done) }()
	select {
	case <-done:
		return r.drained(atWork, ErrDraining)
	case <-ctx.Done():
	}
	r.end(ErrDraining)
	timer := time.NewTimer(r.opts.Grace)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
	return r.drained(atWork, ctx.Err())
}

// close takes no more, and leaves what waits.
func (r *Runner) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.draining {
		return
	}
	r.draining = true
	close(r.stop)
	for _, t := range r.tasks {
		if t.phase == queued || t.phase == retries {
			if t.timer != nil {
				t.timer.Stop()
			}
			t.err = ErrDraining
			r.goneLocked(t)
		}
	}
	r.ready = fifo{}
	r.work.Broadcast()
}

// present are the tasks that are worked on, now that nothing waits any more.
func (r *Runner) present() (all []*task) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range r.tasks {
		all = append(all, t)
	}
	return all
}

// drained says which of these did not come to their end. What others have done something about since is theirs.
func (r *Runner) drained(atWork []*task, cause error) error {
	e := &DrainError{cause: cause}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, t := range atWork {
		switch {
		case !t.gone:
			e.Running = append(e.Running, t.id)
		case t.err != nil && refusalOf(t.err) != moved:
			e.Interrupted = append(e.Interrupted, t.id)
		}
	}
	if len(e.Running)+len(e.Interrupted) == 0 {
		return nil
	}
	slices.Sort(e.Running)
	slices.Sort(e.Interrupted)
	return e
}
