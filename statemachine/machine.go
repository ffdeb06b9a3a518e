package statemachine

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/looplab/fsm"

	"github.com/jobwal/jobwal/wal"
)

// A Machine takes one job through its life: it checks an event, calls the append that it was given, and moves only if
// that succeeded. Behind it is a looplab FSM, which takes some 5 KB and 10 µs to make; [Machine.Reset] lets
// one serve many jobs, one after the other.
//
// Fire, Can and State may be called from several goroutines: of two events that exclude each other one is appended,
// and the other is refused in the state that the first led to. Reset must have the Machine to itself.
type Machine struct {
	fsm        *fsm.FSM
	id, parked string                 // changed by Reset alone
	held       atomic.Pointer[string] // why the job is held; nil when it is not
}

// NewMachine returns a Machine for j as it stands; for a new job, Job{ID: id}.
func NewMachine(j Job) *Machine {
	// looplab drops a callback with a name that it does not know in silence; this one is known to it for every event.
	// Of its callbacks, only those before the event may still refuse it and leave nothing behind if they panic: once
	// looplab leaves a state, a panic leaves it in transition for ever.
	m := new(Machine)
	m.fsm = fsm.NewFSM(string(j.State), lifecycle, fsm.Callbacks{"before_event": m.appendFirst})
	m.Reset(j)
	return m
}

// appendFirst is called with one event at a time, which the job's state allows.
func (m *Machine) appendFirst(_ context.Context, e *fsm.Event) {
	fire := e.Args[0].(*firing)
	if held := m.held.Load(); !permits(held != nil, fire.event) {
		err := &HeldError{JobID: m.id, Event: fire.event}
		if held != nil {
			err.Reason = *held
		}
		e.Cancel(err)
		return
	}
	if err := fire.append(); err != nil {
		e.Cancel(err)
		return
	}
	switch fire.event {
	case wal.JobHeld:
		m.held.Store(&heldBefore)
	case wal.JobReleased, wal.JobCompleted, wal.JobFailed:
		m.held.Store(nil)
	}
}

// A firing is one attempt at an event.
type firing struct {
	event  wal.EventType
	append func() error
}

// heldBefore is the reason of a job that this machine itself has held: the event that says it is not the machine's.
var heldBefore = "by an event before this one"

// Reset makes the Machine serve j, as it stands.
func (m *Machine) Reset(j Job) {
	m.id, m.parked = j.ID, j.Parked
	m.held.Store(nil)
	if held := j.Held; held != "" {
		m.held.Store(&held)
	}
	m.fsm.SetState(string(j.State))
}

// State is where the job stands now. It does not wait for an append in flight.
func (m *Machine) State() State { return State(m.fsm.Current()) }

// Can tells whether the job may take the event t now. It waits for an append in flight.
func (m *Machine) Can(t wal.EventType) bool {
	return m.parked == "" && m.fsm.Can(string(t)) && permits(m.held.Load() != nil, t)
}

// Fire attempts the event t. It calls appendFn once, with ctx, if the job may take the event, and the job moves if
// appendFn returns nil, whatever has become of ctx meanwhile. If appendFn returns an error the job stays, and Fire
// returns that very error; if it panics the job stays too, and the panic goes on. appendFn must not call the Machine.
//
// Without calling appendFn, Fire returns ctx.Err() for a ctx that is done, a *[ParkedError] for a parked job, a
// *[TransitionError] for an event that may not follow, a *[HeldError] for one that would, were the job not held (or, of
// job_released, were it held), and an error that matches [wal.ErrInvalid] for a nil argument.
func (m *Machine) Fire(ctx context.Context, t wal.EventType, appendFn func(context.Context) error) error {
	switch {
	case ctx == nil:
		return invalidf("context: nil")
	case appendFn == nil:
		return invalidf("append function: nil")
	case ctx.Err() != nil:
		return ctx.Err()
	case m.parked != "":
		return &ParkedError{JobID: m.id, Reason: m.parked}
	}
	// A context that is cancelled while looplab has it leaves its FSM refusing every later event. So it gets one that
	// can't be, and appendFn alone the caller's.
	err := m.fsm.Event(context.WithoutCancel(ctx), string(t), &firing{t, func() error { return appendFn(ctx) }})
	return m.translate(t, err)
}

// translate looks at the outermost error only: what lies within is appendFn's own, of whatever type.
func (m *Machine) translate(t wal.EventType, err error) error {
	switch err := err.(type) {
	case nil:
		return nil
	case fsm.NoTransitionError: // an event that leads back to its own state: it happened
		return err.Err
	case fsm.CanceledError:
		return err.Err
	case fsm.InvalidEventError:
		return rules.refuse(m.id, State(err.State), m.held.Load() != nil, t)
	case fsm.UnknownEventError:
		return rules.refuse(m.id, m.State(), m.held.Load() != nil, t)
	}
	return fmt.Errorf("statemachine: job %q: %w", m.id, err)
}
