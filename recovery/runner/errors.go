package runner

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// The sentinels, for errors.Is. Where more is known than the kind, a struct carries it, for errors.As. Those of the engine
// come through as they are.
var (
	// ErrUnknownCapability: nothing of that name is in the registry. Nothing was written.
	ErrUnknownCapability = errors.New("runner: no such capability")
	// ErrDraining: the runner takes no more; as the cause of a context, its time for what runs is over.
	ErrDraining = errors.New("runner: draining")
	// ErrNotRunning: the job has not ended, and waits for nobody's decision, but this runner does not have it: it was left
	// by a process that died, or is somebody else's. [Runner.Recover] takes what was left.
	ErrNotRunning = errors.New("runner: job is not in this runner")
	// ErrBusy: the runner has the job already.
	ErrBusy = errors.New("runner: job is being worked on")
	// ErrNotCompleted: the job has ended, or waits for a decision, without an output. See [JobError].
	ErrNotCompleted = errors.New("runner: job did not complete")
	// ErrCancelled is the cause of a context that [Runner.Cancel] ended. See [CancelledError].
	ErrCancelled = errors.New("runner: cancelled")
	// ErrTimeout is the cause of a context whose time, Settings.Timeout, was over. See [TimeoutError].
	ErrTimeout = errors.New("runner: timed out")
	// ErrNoUndo: the capability has no [Undoer].
	ErrNoUndo = errors.New("runner: capability has no Undo")
)

// A JobError says how a job that did not complete stands. It matches [ErrNotCompleted].
type JobError struct{ Job statemachine.Job }

func (e *JobError) Error() string { return "runner: " + e.Job.String() }

// Is makes errors.Is(err, ErrNotCompleted) true.
func (e *JobError) Is(target error) bool { return target == ErrNotCompleted }

// A CancelledError is why a job was cancelled. It matches [ErrCancelled].
type CancelledError struct{ Reason string }

func (e *CancelledError) Error() string { return "cancelled: " + e.Reason }

// Is makes errors.Is(err, ErrCancelled) true.
func (e *CancelledError) Is(target error) bool { return target == ErrCancelled }

// A TimeoutError says how much time an attempt was given. It matches [ErrTimeout].
type TimeoutError struct{ After time.Duration }

func (e *TimeoutError) Error() string { return "timed out after " + e.After.String() }

// Is makes errors.Is(err, ErrTimeout) true.
func (e *TimeoutError) Is(target error) bool { return target == ErrTimeout }

// A PanicError is a panic of a capability's function.
type PanicError struct {
	Value any
	Stack []byte
}

func (e *PanicError) Error() string { return fmt.Sprintf("panic: %v", e.Value) }

// Unwrap returns the value if it is an error.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

// errGone is how a job fails whose function has ended its goroutine, by runtime.Goexit.
var errGone = errors.New("its function ended its goroutine")

// A DrainError says what was at work when [Runner.Drain] began, and did not come to its end. None of these jobs has failed: in
// the log they are as they were, and the next opening's plan has them.
type DrainError struct {
	// Interrupted are the jobs whose work, or rollback, came back when its context ended, or with ErrDraining before.
	Interrupted []string
	// Running are those whose work had not come back when Drain returned. It can't be stopped. What it still wants to write
	// goes through the engine while that is open.
	Running []string
	cause   error // of Drain's context, or ErrDraining
}

func (e *DrainError) Error() string {
	return fmt.Sprintf("runner: drained in part: %v; interrupted:%s; still running:%s", e.cause, listed(e.Interrupted), listed(e.Running))
}

func listed(ids []string) string {
	const most = 10
	switch {
	case len(ids) == 0:
		return " none"
	case len(ids) > most:
		return fmt.Sprintf(" %s and %d more", strings.Join(ids[:most], " "), len(ids)-most)
	}
	return " " + strings.Join(ids, " ")
}

// Unwrap returns the error of Drain's context, or ErrDraining if there was time enough.
func (e *DrainError) Unwrap() error { return e.cause }

// errsMoved are those of a command that came after somebody else's.
var errsMoved = []error{recovery.ErrChanged, recovery.ErrConflict, statemachine.ErrTransition, statemachine.ErrHeld,
	statemachine.ErrNotHeld, statemachine.ErrParked, ErrFenced, wal.ErrDropped}

// A refusal is what the engine's error on a command means for the runner.
type refusal uint8

const (
	// broken: of this engine, nothing can be expected any more; or what was written is unknown. The next opening will tell.
	broken refusal = iota
	// moved: somebody else has done something to the job since it was looked at, and has it now.
	moved
	// unfit: what was to be written can't be.
	unfit
	// full: nothing was written, and it may be tried again when there is room on the disk.
	full
)

func refusalOf(err error) refusal {
	is := func(targets ...error) bool {
		for _, target := range targets {
			if errors.Is(err, target) {
				return true
			}
		}
		return false
	}
	switch {
	case is(wal.ErrOutcomeUnknown, wal.ErrFailed):
		return broken
	case is(wal.ErrNoSpace):
		return full
	case is(errsMoved...):
		return moved
	case is(wal.ErrInvalid, wal.ErrTooLarge):
		return unfit
	}
	return broken
}
