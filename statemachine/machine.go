package statemachine

import (
	"context"
	"fmt"
	"sync"
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
	firing     sync.Mutex             // held by the one event at a time: from the look at the state to the move
	held       atomic.Pointer[string] // why the job is held; nil when it is not
}

// NewMachine returns a Machine for j as it stands; for a new job, Job{ID: id}.
func NewMachine(j Job) *Machine {
	// Without callbacks: the append comes between looplab's word that the event may follow, and its move. In a callback, a
	// panic once looplab leaves a state would leave it in transition for ever.
	m := &Machine{fsm: fsm.NewFSM(string(j.State), lifecycle, nil)}
	m.Reset(j)
	return m
}

// heldBefore is the reason of a job that this machine itself has held: the event that says it is not the machine's.
var heldBefore = "by an event before this one"

// Reset makes the Machine serve j, as it stands.
func (m *Machine) Reset(j Job) {
	m.id, m.parked = j.ID, j.Parked
	m.held.Store(nil)
	if j.Held != "" {
		held := j.Held
		m.held.Store(&held)
	}
	m.fsm.SetState(string(j.State))
}

// State is where the job stands now. It does not wait for an append in flight.
func (m *Machine) State() State { return State(m.fsm.Current()) }

// Can tells whether the job may take the event t now. It waits for an append in flight.
func (m *Machine) Can(t wal.EventType) bool {
	m.firing.Lock()
	defer m.firing.Unlock()
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
	m.firing.Lock()
	defer m.firing.Unlock() // also when appendFn panics
	if err := m.refuses(t); err != nil {
		return err
	}
	if err := appendFn(ctx); err != nil {
		return err
	}
	return m.move(t)
}

// refuses is why the job can't take the event; nil when it can. firing must be held.
func (m *Machine) refuses(t wal.EventType) error {
	held := m.held.Load()
	if !m.fsm.Can(string(t)) {
		return rules.refuse(m.id, m.State(), held != nil, t)
	}
	if permits(held != nil, t) {
		return nil
	}
	err := &HeldError{JobID: m.id, Event: t}
	if held != nil {
		err.Reason = *held
	}
	return err
}

// move takes the job to where the event leads. firing must be held, and the event be one that may follow.
func (m *Machine) move(t wal.EventType) error {
	// Not the caller's context: one that is cancelled while looplab has it leaves its FSM refusing every later event.
	err := m.fsm.Event(context.Background(), string(t))
	if _, stays := err.(fsm.NoTransitionError); err != nil && !stays {
		return fmt.Errorf("statemachine: job %q: %w", m.id, err)
	}
	switch t {
	case wal.JobHeld:
		m.held.Store(&heldBefore)
	case wal.JobReleased, wal.JobCompleted, wal.JobFailed:
		m.held.Store(nil)
	}
	return nil
}
