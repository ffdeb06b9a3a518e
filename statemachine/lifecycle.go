package statemachine

import (
	"fmt"
	"slices"

	"github.com/looplab/fsm"

	"github.com/jobwal/jobwal/wal"
)

// A State is where a job stands in its life.
type State string

// The states of a job. None is that of a job which was never submitted.
const (
	None       State = ""
	Submitted  State = "submitted"
	Validated  State = "validated"
	Started    State = "started"
	Completed  State = "completed"
	Failed     State = "failed"
	RolledBack State = "rolled_back"
)

// lifecycle is the one declaration of what may happen to a job. Its order is that of [States] and [Allowed]. All else
// in this package that knows about transitions is made from it. The last six events leave a job in the state that it is
// in. Whether it is held is no state: it would double three of them, and go before the state that it is held in. See
// permits.
var lifecycle = fsm.Events{
	{Name: string(wal.JobSubmitted), Src: from(None), Dst: string(Submitted)},
	{Name: string(wal.JobValidated), Src: from(Submitted), Dst: string(Validated)},
	{Name: string(wal.JobStarted), Src: from(Validated), Dst: string(Started)},
	{Name: string(wal.JobCompleted), Src: from(Started), Dst: string(Completed)},
	{Name: string(wal.JobFailed), Src: from(Submitted, Validated, Started), Dst: string(Failed)},
	{Name: string(wal.JobRolledBack), Src: from(Completed, Failed), Dst: string(RolledBack)},

	{Name: string(wal.JobResumed), Src: from(Started), Dst: string(Started)},
	{Name: string(wal.JobStep), Src: from(Started), Dst: string(Started)},
	{Name: string(wal.JobProgress), Src: from(Started), Dst: string(Started)},
	{Name: string(wal.JobStepUndone), Src: from(Completed), Dst: string(Completed)},
	{Name: string(wal.JobStepUndone), Src: from(Failed), Dst: string(Failed)},
	{Name: string(wal.JobHeld), Src: from(Submitted), Dst: string(Submitted)},
	{Name: string(wal.JobHeld), Src: from(Validated), Dst: string(Validated)},
	{Name: string(wal.JobHeld), Src: from(Started), Dst: string(Started)},
	{Name: string(wal.JobReleased), Src: from(Submitted), Dst: string(Submitted)},
	{Name: string(wal.JobReleased), Src: from(Validated), Dst: string(Validated)},
	{Name: string(wal.JobReleased), Src: from(Started), Dst: string(Started)},
}

// permits tells whether a job that is held, or is not, may take an event that its state allows: until somebody decides,
// nothing goes on but to an end.
func permits(held bool, on wal.EventType) bool {
	switch on {
	case wal.JobReleased:
		return held
	case wal.JobFailed, wal.JobCompleted:
		return true
	}
	return !held
}

func from(states ...State) []string {
	src := make([]string, len(states))
	for i, s := range states {
		src[i] = string(s)
	}
	return src
}

// rules is lifecycle, compiled.
var rules = compile(lifecycle)

// Next returns the state that a job in state from has after the event on; whether the job is held or not. Where the lifecycle has no such step it
// returns from and a *[TransitionError], with no JobID.
func Next(from State, on wal.EventType) (State, error) {
	if to, ok := rules.next(from, on); ok {
		return to, nil
	}
	return from, rules.refuse("", from, false, on)
}

// Allowed returns the events that a job in state from may take, if it is not held, in the order of the lifecycle; none for
// [RolledBack] and for what is no state at all. The slice is the caller's. [Job.Allowed] knows whether a job is held.
func Allowed(from State) []wal.EventType { return rules.allowed(from, false) }

// States returns every state in the order of the lifecycle, [None] first. The slice is the caller's.
func States() []State {
	states := make([]State, len(rules.states.names))
	for i, name := range rules.states.names {
		states[i] = State(name)
	}
	return states
}

// Lifecycle returns the declaration in looplab's own terms. It is a copy and the caller's. State [None] is the empty
// string there, which looplab takes for "any state" in the names of its callbacks.
func Lifecycle() fsm.Events {
	events := slices.Clone(lifecycle)
	for i := range events {
		events[i].Src = slices.Clone(events[i].Src)
	}
	return events
}

// Diagram draws the lifecycle by looplab's visualizers: "mermaid" is a state diagram as GitHub renders it, "dot" is
// for Graphviz. The text is the same at every call. State [None], whose name is empty, stands there as "none".
func Diagram(format string) (string, error) {
	kinds := map[string]fsm.VisualizeType{"mermaid": fsm.MermaidStateDiagram, "dot": fsm.GRAPHVIZ}
	kind, ok := kinds[format]
	if !ok {
		return "", invalidf("diagram format %q; use \"mermaid\" or \"dot\"", format)
	}
	events := Lifecycle()
	for _, e := range events {
		for i, src := range e.Src {
			e.Src[i] = State(src).name()
		}
	}
	return fsm.VisualizeWithType(fsm.NewFSM(None.name(), events, nil), kind)
}

// name is s for people, who can't read an empty string.
func (s State) name() string {
	if s == None {
		return "none"
	}
	return string(s)
}

// A table is a declaration compiled for replay, where a step may cost a few nanoseconds and must not allocate.
type table struct {
	states, events index
	cells          []int8 // number of the next state, by state × event; -1 where there is none
}

// compile panics on a declaration that contradicts itself, where looplab would let the last line win.
func compile(events fsm.Events) *table {
	var states, names []string
	for _, e := range events {
		names = appendNew(names, e.Name)
		for _, src := range append(slices.Clone(e.Src), e.Dst) {
			states = appendNew(states, src)
		}
	}
	t := &table{states: newIndex(states), events: newIndex(names)}
	t.cells = slices.Repeat([]int8{-1}, len(states)*len(names))
	for _, e := range events {
		for _, src := range e.Src {
			t.declare(src, e.Name, e.Dst)
		}
	}
	return t
}

func (t *table) declare(src, event, dst string) {
	cell := &t.cells[t.states.of(src)*len(t.events.names)+t.events.of(event)]
	if *cell >= 0 {
		panic(fmt.Sprintf("statemachine: %s from %q is declared twice", event, src))
	}
	*cell = int8(t.states.of(dst))
}

func (t *table) next(from State, on wal.EventType) (State, bool) {
	s, e := t.states.of(string(from)), t.events.of(string(on))
	if s < 0 || e < 0 {
		return from, false
	}
	to := t.cells[s*len(t.events.names)+e]
	if to < 0 {
		return from, false
	}
	return State(t.states.names[to]), true
}

func (t *table) allowed(from State, held bool) []wal.EventType {
	var events []wal.EventType
	for _, name := range t.events.names {
		if _, ok := t.next(from, wal.EventType(name)); ok && permits(held, wal.EventType(name)) {
			events = append(events, wal.EventType(name))
		}
	}
	return events
}

func (t *table) knows(on wal.EventType) bool { return t.events.of(string(on)) >= 0 }

func (t *table) refuse(jobID string, from State, held bool, on wal.EventType) *TransitionError {
	return &TransitionError{JobID: jobID, From: from, Event: on, Allowed: t.allowed(from, held)}
}

func appendNew(names []string, name string) []string {
	if slices.Contains(names, name) {
		return names
	}
	return append(names, name)
}

// An index numbers a few names that are known beforehand, by a hash that never collides among them: a number is found
// by one look and one comparison.
type index struct {
	names []string
	mul   uint32
	slots [64]int8 // by hash; -1 where no name is
}

func newIndex(names []string) index {
	for mul := uint32(1); mul < 1<<20; mul += 2 {
		x := index{names: names, mul: mul * 0x9e3779b1}
		if x.fill() {
			return x
		}
	}
	panic(fmt.Sprintf("statemachine: no perfect hash for %q; let hash look at more of a name", names))
}

func (x *index) fill() bool {
	for i := range x.slots {
		x.slots[i] = -1
	}
	for i, name := range x.names {
		slot := &x.slots[x.hash(name)]
		if *slot >= 0 {
			return false
		}
		*slot = int8(i)
	}
	return true
}

// hash looks at a name's length and two of its bytes, which is enough to tell ours apart.
func (x *index) hash(name string) uint32 {
	n := len(name)
	if n == 0 {
		return 0
	}
	return (uint32(n) | uint32(name[n/2])<<8 | uint32(name[n/3])<<16) * x.mul >> 26
}

// of returns the number of name, or -1.
func (x *index) of(name string) int {
	i := x.slots[x.hash(name)&63]
	if i < 0 || x.names[i] != name {
		return -1
	}
	return int(i)
}
