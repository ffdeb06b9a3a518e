package runnertest

import (
	"fmt"
	"slices"
	"sync"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// outside is a directory that nothing is ever in. To sync it is an operation that does nothing and before which the power may go.
const outside = "outside"

// A Ledger is what was done to the world: lines, in the order in which it was done. It is no part of the disk, and no crash takes
// anything from it; but a process that is dead can't write to it any more. The zero value is empty. It may be used by several
// goroutines.
type Ledger[L any] struct {
	mu    sync.Mutex // guards the fields below
	lines []L
	disk  wal.FS                      // of the process that lives; nil: none
	shown map[string]statemachine.Job // what an engine showed before it ended, which the next one must show, too
	plans []recovery.Plan             // those that were applied, perhaps in part
}

// Do is something that the program does to the world, and that nothing takes back: a line. The process may die right before it,
// as it may before each operation on a file: then nothing is done, and the error, which wraps crashfs.ErrCrashed, is to be returned
// as it would be if the world had not answered.
func (l *Ledger[L]) Do(line L) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.disk == nil {
		return fmt.Errorf("runnertest: no process lives: %w", crashfs.ErrCrashed)
	}
	if err := l.disk.SyncDir(outside); err != nil {
		return fmt.Errorf("runnertest: the process died before %v: %w", line, err)
	}
	l.lines = append(l.lines, line)
	return nil
}

// Note adds a line about something that is no effect: that somebody was told how a job has ended, say. No process dies of it.
// A dead one notes nothing.
func (l *Ledger[L]) Note(line L) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.disk != nil && !isDead(l.disk) {
		l.lines = append(l.lines, line)
	}
}

// Lines returns all lines, oldest first, of all processes.
func (l *Ledger[L]) Lines() []L {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.lines)
}

// Clone is for crashtest: a copy to which no process writes.
func (l *Ledger[L]) Clone() *Ledger[L] {
	l.mu.Lock()
	defer l.mu.Unlock()
	return &Ledger[L]{lines: slices.Clone(l.lines), shown: l.shown, plans: slices.Clone(l.plans)}
}

func isDead(disk wal.FS) bool {
	d, ok := disk.(interface{ Crashed() bool })
	return ok && d.Crashed()
}

// begin lets the process on this disk write; nil: none does any more.
func (l *Ledger[L]) begin(disk wal.FS) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.disk = disk
}

// show remembers what an engine knows at its end. Whatever anybody was told of its jobs, it knew before.
func (l *Ledger[L]) show(e *recovery.Engine) {
	jobs := make(map[string]statemachine.Job)
	for job := range e.Jobs(projection.Query{}) {
		jobs[job.ID] = job
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.shown = jobs // never changed
}

// applies remembers a plan, and returns those that were applied before it.
func (l *Ledger[L]) applies(plan recovery.Plan) (before []recovery.Plan) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before = slices.Clone(l.plans)
	l.plans = append(l.plans, plan)
	return before
}

// lost says what was shown and is not there; nil: nothing.
func (l *Ledger[L]) lost(e *recovery.Engine) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, was := range l.shown {
		switch job, known := e.Job(id); {
		case !known:
			return fmt.Errorf("runnertest: lost: %s", was)
		case job.Seq < was.Seq:
			return fmt.Errorf("runnertest: lost: %s (seq %d), and now %s (seq %d)", was, was.Seq, job, job.Seq)
		case was.Finished() && job.State != was.State && job.State != statemachine.RolledBack:
			return fmt.Errorf("runnertest: %s, and now %s", was, job)
		}
	}
	return nil
}
