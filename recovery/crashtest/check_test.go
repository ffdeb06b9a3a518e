package crashtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/wal"
)

// The steps that the tables use.
func submit(id string) Step {
	return Step{Type: wal.JobSubmitted, JobID: id, Capability: "shell", Args: json.RawMessage(`{"n":1}`)}
}
func validate(id string) Step { return Step{Type: wal.JobValidated, JobID: id} }
func start(id string) Step    { return Step{Type: wal.JobStarted, JobID: id} }
func fail(id string) Step     { return Step{Type: wal.JobFailed, JobID: id, Error: "no"} }

// logOf is a log that has these groups, each under its epoch.
func logOf(groups ...any) []wal.Event {
	var ref Reference
	epoch := uint64(1)
	for _, g := range groups {
		switch g := g.(type) {
		case int:
			epoch = uint64(g)
		case Step:
			ref.Append(epoch, g)
		}
	}
	return ref.Events()
}

// judge checks, and returns the rule that is broken, "" if none is.
func judge(t require.TestingT, h *History, log []wal.Event, relax ...Relaxation) Rule {
	err := Check(h, yields(log), relax...)
	if err == nil {
		return ""
	}
	var v *Violation
	require.ErrorAs(t, err, &v)
	require.NotEmpty(t, v.Rule.Promise())
	require.Contains(t, v.Error(), v.Rule.Promise()+" "+string(v.Rule))
	return v.Rule
}

// Every rule is broken by hand, as narrowly as it can be, and beside it stands what is legal.
func TestCheckTable(t *testing.T) {
	a, b, va, vb := submit("a"), submit("b"), validate("a"), validate("b")
	changed := a
	changed.Args = json.RawMessage(`{"n":2}`)
	spaced := a
	spaced.Args = json.RawMessage(` { "n" : 1 } `)
	tests := []struct {
		name  string
		tell  func(h *History)
		log   []wal.Event
		relax []Relaxation
		want  Rule
	}{
		{"nothing", func(*History) {}, nil, nil, ""},
		{"acknowledged and there", func(h *History) { h.Begin(a).OK(1); h.Begin(va).OK(2) }, logOf(a, va), nil, ""},
		{"white space is not kept", func(h *History) { h.Begin(spaced).OK(1) }, logOf(a), nil, ""},
		{"acknowledged and gone", func(h *History) { h.Begin(a).OK(1); h.Begin(b).OK(2) }, logOf(a), nil, RuleAcknowledged},
		{"acknowledged at another place", func(h *History) { p, q := h.Begin(a), h.Begin(b); p.OK(2); q.OK(1) }, logOf(a, b), nil, RuleAcknowledged},
		{"acknowledged with other args", func(h *History) { h.Begin(changed).OK(1) }, logOf(a), nil, RuleAcknowledged},
		{"acknowledged and lost in the middle", func(h *History) { h.Begin(a).OK(1); h.Begin(b).OK(2) }, logOf(a, b)[1:], nil, RuleAcknowledged},
		{"half of what was acknowledged", func(h *History) { h.Begin(a, b).OK(1) }, logOf(a), nil, RuleAcknowledged},
		{"acknowledged without a place", func(h *History) { h.Begin(a).OK(0) }, logOf(a), nil, ""},
		{"acknowledged without a place, and gone", func(h *History) { h.Begin(a).OK(0) }, nil, nil, RuleAcknowledged},
		{"the answer overlaps the crash", func(h *History) { p := h.Begin(a); h.Crash(); p.OK(1) }, nil, nil, ""},
		{"the answer overlaps the crash, and was true", func(h *History) { p := h.Begin(a); h.Crash(); p.OK(1) }, logOf(a), nil, ""},
		{"the answer overlaps the crash, and the event is elsewhere",
			func(h *History) { h.Begin(b); p := h.Begin(a); h.Crash(); p.OK(1) }, logOf(b, a), nil, RuleAsked},
		{"the refusal overlaps the crash", func(h *History) { p := h.Begin(a); h.Crash(); p.Failed(nil) }, logOf(a), nil, ""},
		{"asked between crash and opening", func(h *History) { h.Crash(); h.Begin(a).OK(1); h.Opened(2, 0) }, nil, nil, ""},
		{"asked after the opening", func(h *History) { h.Crash(); h.Opened(2, 0); h.Begin(a).OK(1) }, nil, nil, RuleAcknowledged},

		{"unknown and there", func(h *History) { h.Begin(a).Unknown(nil) }, logOf(a), nil, ""},
		{"unknown and not there", func(h *History) { h.Begin(a).Unknown(nil) }, nil, nil, ""},
		{"never answered", func(h *History) { h.Begin(a, va) }, logOf(a, va), nil, ""},
		{"nobody asked", func(h *History) { h.Begin(a).OK(1) }, logOf(a, b), nil, RuleAsked},
		{"asked with other args", func(h *History) { h.Begin(changed) }, logOf(a), nil, RuleAsked},
		{"there before it was asked for", func(h *History) { h.Opened(1, 1); h.Begin(a) }, logOf(a), nil, RuleAsked},
		{"shown before it was asked for", func(h *History) { h.Saw(logOf(a)[0]); h.Begin(a) }, logOf(a), nil, RuleAsked},
		{"it comes back", func(h *History) { h.Begin(a); h.Crash(); h.Opened(2, 0); h.Begin(b).OK(1) }, logOf(2, b, a), nil, RuleAsked},
		{"it was there all along", func(h *History) { h.Begin(a); h.Crash(); h.Opened(2, 1); h.Begin(b).OK(2) }, logOf(a, 2, b), nil, ""},
		{"refused and there", func(h *History) { h.Begin(a).Failed(nil) }, logOf(a), nil, RuleRefused},
		{"refused, asked again, and there", func(h *History) { h.Begin(a).Failed(nil); h.Begin(a) }, logOf(a), nil, ""},

		{"two ask for the same, one has it", func(h *History) { h.Begin(a); h.Begin(a) }, logOf(a), nil, ""},
		{"one is the beginning of the other, and each has its own",
			func(h *History) { h.Begin(a); h.Begin(a, va); h.Begin(va) }, logOf(a, va), nil, ""},
		{"one is the beginning of the other, which has both", func(h *History) { h.Begin(a); h.Begin(a, va) }, logOf(a, va), nil, ""},
		{"one is the beginning of the other, and something stands between",
			func(h *History) { h.Begin(a, va); h.Begin(b) }, logOf(a, b, va), nil, RuleWhole},
		{"the one that has to be somewhere comes first",
			func(h *History) { h.Begin(a, b).OK(0); h.Begin(a); h.Begin(b, va); h.Begin(va) }, logOf(a, b, va), nil, ""},
		{"half of what is unknown", func(h *History) { h.Begin(a, va) }, logOf(a), nil, RuleWhole},
		{"the other half of what is unknown", func(h *History) { h.Begin(a); h.Begin(b, va) }, logOf(a, va), nil, RuleWhole},
		{"a group of which another has a part", func(h *History) { h.Begin(a, va); h.Begin(va).OK(2) }, logOf(a, va), nil, RuleWhole},
		{"twice", func(h *History) { h.Begin(a).OK(1); h.Begin(b).OK(2) }, reseq(slices.Concat(logOf(a, b), logOf(a))), nil, RuleOnce},
		{"unknown, and twice", func(h *History) { h.Begin(a, va) }, reseq(slices.Concat(logOf(a, va), logOf(a, va))), nil, RuleOnce},

		{"a gap", func(h *History) { h.Begin(a); h.Begin(b) }, gapped(logOf(a, b), 1), nil, RuleDense},
		{"a gap at the beginning", func(h *History) { h.Begin(a) }, gapped(logOf(a), 0), nil, RuleDense},
		{"a gap that is allowed", func(h *History) { h.Begin(a).OK(1); h.Begin(b, va).OK(3) }, gapped(logOf(a, b, va), 1), []Relaxation{SparseSeqs}, ""},
		{"a gap that is allowed, in a group", func(h *History) { h.Begin(a, b).OK(1) }, gapped(logOf(a, b), 1), []Relaxation{SparseSeqs}, ""},
		{"a gap that hides what was acknowledged", func(h *History) { h.Begin(a).OK(1); h.Begin(b) }, gapped(logOf(b), 0), []Relaxation{SparseSeqs}, RuleAcknowledged},
		{"a gap that hides what was shown", func(h *History) { h.Saw(logOf(a)[0]); h.Begin(b) }, gapped(logOf(b), 0), []Relaxation{SparseSeqs}, RuleShown},
		{"the same seq twice", func(h *History) { h.Begin(a).OK(1) }, slices.Concat(logOf(a), logOf(a)), nil, RuleOrder},
		{"seq 0", func(h *History) { h.Begin(a) }, []wal.Event{a.Event()}, nil, RuleOrder},
		{"one seq for two", func(h *History) { h.Begin(a).OK(1); h.Begin(a).OK(1) }, logOf(a), nil, RuleReused},
		{"one seq for two at once", func(h *History) { p, q := h.Begin(a, b), h.Begin(b); p.OK(1); q.OK(2) }, logOf(a, b), nil, RuleReused},
		{"a seq that was there at the opening", func(h *History) { h.Opened(1, 1); h.Begin(a).OK(1) }, logOf(a), nil, RuleReused},

		{"wrong prev", func(h *History) { h.Begin(a).OK(1); h.Begin(b).OK(2); h.Begin(va).OK(3) }, prev(logOf(a, b, va), 2, 2), nil, RulePrev},
		{"an illegal step", func(h *History) { h.Begin(a).OK(1); h.Begin(start("a")).OK(2) },
			[]wal.Event{logOf(a)[0], {Seq: 2, Prev: 1, Epoch: 1, Type: wal.JobStarted, JobID: "a"}}, nil, RuleTransition},
		{"a type that is not known", func(h *History) { h.Begin(Step{Type: "job_paused", JobID: "a"}).OK(1) },
			[]wal.Event{{Seq: 1, Type: "job_paused", JobID: "a"}}, nil, RuleTransition},
		{"an event that cannot be read", func(h *History) { h.Begin(a).OK(1) },
			[]wal.Event{{Seq: 1, Type: a.Type, JobID: "a", Capability: "shell", Args: a.Args, Problem: "bad"}}, nil, RuleAcknowledged},

		{"shown and gone", func(h *History) { h.Begin(a); h.Saw(logOf(a)[0]) }, nil, nil, RuleShown},
		{"shown and changed", func(h *History) { h.Begin(a); e := logOf(a)[0]; e.Time = time.Unix(1, 0); h.Saw(e) }, logOf(a), nil, RuleShown},
		{"shown while the crash was made", func(h *History) { h.Begin(a); h.Crash(); h.Saw(logOf(a)[0]) }, nil, nil, ""},
		{"there at an opening, and gone", func(h *History) { h.Begin(a); h.Opened(1, 1) }, nil, nil, RuleShown},
		{"epoch goes back", func(h *History) { h.Begin(a); h.Begin(b) }, logOf(2, a, 1, b), nil, RuleEpoch},
		{"epochs of two writers", func(h *History) { h.Begin(a); h.Begin(b) }, logOf(2, a, 1, b), []Relaxation{SeveralWriters}, ""},
		{"two openings with one epoch", func(h *History) { h.Opened(1, 0); h.Opened(1, 0) }, nil, nil, RuleEpoch},
		{"an opening after a crash with an epoch of before", func(h *History) { h.Opened(5, 0); h.Crash(); h.Opened(4, 0) }, nil, nil, RuleEpoch},

		{"a tail may be lost", func(h *History) { h.Begin(a).OK(1); h.Begin(b).OK(2); h.Saw(logOf(a, b)[1]); h.Crash() }, logOf(a), []Relaxation{LostTail}, ""},
		{"a tail may be lost, and its seqs used again",
			func(h *History) {
				h.Begin(a).OK(1)
				h.Begin(b).OK(2)
				h.Saw(logOf(a, b)[1])
				h.Crash()
				h.Opened(2, 1)
				h.Begin(va).OK(2)
			}, logOf(a, 2, va), []Relaxation{LostTail}, ""},
		{"what was lost comes back", func(h *History) { h.Begin(a).OK(1); h.Crash(); h.Opened(2, 0) }, logOf(a), []Relaxation{LostTail}, RuleAsked},
		{"more than a tail is lost", func(h *History) { h.Begin(a).OK(1); h.Begin(b).OK(2) }, gapped(logOf(b), 0), []Relaxation{LostTail}, RulePrefix},
		{"more than a tail is lost, of what was shown", func(h *History) { h.Begin(a); h.Saw(logOf(a)[0]); h.Begin(b) }, gapped(logOf(b), 0), []Relaxation{LostTail}, RulePrefix},
		{"a tail in the middle of a group", func(h *History) { h.Begin(a, b).OK(1) }, logOf(a), []Relaxation{LostTail}, RuleWhole},

		{"dropped", func(h *History) {
			h.Begin(a, b).OK(1)
			h.Saw(logOf(a)[0])
			h.Begin(va).OK(3)
			h.Begin(vb).OK(4)
			h.Dropped(4)
		},
			logOf(a, b, va, vb)[2:], nil, ""},
		{"dropped without a word", func(h *History) { h.Begin(a).OK(1); h.Begin(va).OK(2) }, logOf(a, va)[1:], nil, RuleAcknowledged},
		{"dropped too much", func(h *History) { h.Begin(a).OK(1); h.Begin(va).OK(2); h.Begin(b).OK(3); h.Dropped(2) }, logOf(a, va, b)[2:], nil, RuleAcknowledged},
		{"dropped by leave", func(h *History) { h.Begin(a).OK(1); h.Begin(va).OK(2) }, logOf(a, va)[1:], []Relaxation{LateStart}, ""},
		{"dropped half a group", func(h *History) { h.Begin(a, va).OK(1); h.Dropped(2) }, logOf(a, va)[1:], nil, RuleWhole},
		{"dropped all", func(h *History) { h.Begin(a, va).OK(1); h.Dropped(3) }, nil, nil, ""},
		{"dropped, and wrong behind it", func(h *History) { h.Begin(a).OK(1); h.Begin(va).OK(2); h.Begin(start("a")).OK(3) },
			prev(logOf(a, va, start("a"))[1:], 1, 1), []Relaxation{LateStart}, RulePrev},
	}
	seen := make(map[Rule]bool)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var h History
			tt.tell(&h)
			require.Equal(t, tt.want, judge(t, &h, tt.log, tt.relax...), "%v", Check(&h, yields(tt.log), tt.relax...))
			again := reread(t, &h)
			require.Equal(t, tt.want, judge(t, again, tt.log, tt.relax...), "read from a file")
		})
		seen[tt.want] = true
	}
	for _, r := range []Rule{RuleAcknowledged, RuleAsked, RuleRefused, RuleOnce, RuleWhole, RuleDense, RuleOrder, RuleReused,
		RulePrefix, RuleEpoch, RulePrev, RuleTransition, RuleShown} {
		require.True(t, seen[r], "%s has no line in the table", r)
	}
}

// reseq gives events the seqs that they have by their order, and nothing else.
func reseq(log []wal.Event) []wal.Event {
	for i := range log {
		log[i].Seq = uint64(i + 1)
	}
	return log
}

// gapped leaves a gap of one before event i.
func gapped(log []wal.Event, i int) []wal.Event {
	moved := func(seq uint64) uint64 {
		if seq > uint64(i) {
			return seq + 1
		}
		return seq
	}
	for k := range log {
		log[k].Seq, log[k].Prev = moved(log[k].Seq), moved(log[k].Prev)
	}
	return log
}

func prev(log []wal.Event, i int, prev uint64) []wal.Event {
	log[i].Prev = prev
	return log
}

func reread(t require.TestingT, h *History) *History {
	var file bytes.Buffer
	_, err := h.WriteTo(&file)
	require.NoError(t, err)
	again, err := ReadHistory(&file)
	require.NoError(t, err)
	return again
}

// An engine gives a job's capability to all its events; one that does not is caught.
func TestCheckCapability(t *testing.T) {
	var h History
	h.begin(true, []Step{submit("a")}).OK(1)
	h.begin(true, []Step{validate("a")}).OK(2)
	log := logOf(submit("a"), validate("a"))
	require.Empty(t, judge(t, &h, log))
	log[1].Capability = ""
	require.Equal(t, RuleAcknowledged, judge(t, &h, log))

	var byHand History
	byHand.Begin(submit("a")).OK(1)
	byHand.Begin(validate("a")).OK(2)
	require.Empty(t, judge(t, &byHand, log))
	log[1].Capability = "other"
	require.Equal(t, RuleAcknowledged, judge(t, &byHand, log))
}

// A log that cannot be read is no violation, and no success.
func TestCheckLogThatCannotBeRead(t *testing.T) {
	broken := errors.New("broken")
	err := Check(new(History), func(yield func(wal.Event, error) bool) { yield(wal.Event{}, broken) })
	require.ErrorIs(t, err, broken)
	require.False(t, errors.As(err, new(*Violation)))
}

// A violation names the rule, the command and the event.
func ExampleCheck() {
	var h History
	h.Opened(1, 0)
	p := h.Begin(Step{Type: wal.JobSubmitted, JobID: "a", Capability: "shell"})
	p.OK(1)
	h.Crash()
	log := []wal.Event{{Seq: 1, Epoch: 1, Type: wal.JobSubmitted, JobID: "a", Capability: "sh"}}
	var v *Violation
	if errors.As(Check(&h, yields(log)), &v) {
		fmt.Println(v.Rule.Promise(), v.Rule)
		fmt.Println(v.Detail)
		fmt.Println(v.Command.ID, v.Command.Outcome, v.Command.Steps)
		fmt.Println(v.Event.Seq, StepOf(*v.Event))
	}
	// Output:
	// W2 acknowledged
	// its event at seq 1, job_submitted a capability=shell, is not there as it was acknowledged
	// 1 ok [job_submitted a capability=shell]
	// 1 job_submitted a capability=sh
}

// truth is a world in which nothing goes wrong that may not: callers that overlap, a log that is durable up to a point,
// readers, crashes that leave any prefix from that point on, and answers that come too late.
type truth struct {
	t       *rapid.T
	h       History
	log     []wal.Event
	ref     Reference
	durable int
	epoch   uint64
	open    []*flight
	begins  map[uint64]bool // where groups do
}

// flight is a command that was asked for.
type flight struct {
	p     *Pending
	steps []Step
	first uint64 // in the log, 0 if it is not
}

func (w *truth) life() {
	w.epoch += uint64(rapid.IntRange(1, 2).Draw(w.t, "epochs"))
	w.h.Opened(w.epoch, w.ref.Last())
	w.durable = len(w.log)
	for range rapid.IntRange(5, 30).Draw(w.t, "acts") {
		switch act := rapid.Byte().Draw(w.t, "act") % 10; { // a byte is drawn without a liking for the small ones
		case act <= 3:
			w.ask()
		case act <= 6:
			w.write()
		case act <= 8:
			w.answer()
		case w.durable > 0:
			w.h.Saw(w.log[rapid.IntRange(0, w.durable-1).Draw(w.t, "saw")])
		}
	}
}

// ask begins a group of steps, which are legal more often than not: those of one job one after the other, or of several.
func (w *truth) ask() {
	var steps []Step
	ahead := w.ref.Clone()
	for range rapid.SampledFrom([]int{1, 1, 1, 2, 3}).Draw(w.t, "steps") {
		s := w.step(ahead)
		ahead.Append(1, s)
		steps = append(steps, s)
	}
	w.open = append(w.open, &flight{p: w.h.Begin(steps...), steps: steps})
}

func (w *truth) step(ahead *Reference) Step {
	id := fmt.Sprint("j", rapid.IntRange(0, 7).Draw(w.t, "job"))
	switch rapid.IntRange(0, 9).Draw(w.t, "kind") + 10*len(ahead.History(id)) {
	case 0, 1, 2, 3, 4, 5, 6, 7, 8:
		s := submit(id)
		s.Args = rapid.SampledFrom([]json.RawMessage{nil, json.RawMessage(`1`), json.RawMessage(`{"a":"<"}`)}).Draw(w.t, "args")
		return s
	case 10, 11, 12, 13, 14, 15, 16:
		return validate(id)
	case 20, 21, 22, 23, 24, 25, 26:
		return start(id)
	case 30, 31, 32, 33, 34:
		return Step{Type: wal.JobCompleted, JobID: id, Output: json.RawMessage(`"done"`)}
	case 40, 41, 42, 43, 44:
		return Step{Type: wal.JobRolledBack, JobID: id, Error: "undone"}
	}
	return fail(id)
}

// write puts something that was asked for into the log; what is not legal is refused.
func (w *truth) write() {
	i := w.pick("write", func(f *flight) bool { return f.first == 0 })
	if i < 0 {
		return
	}
	f := w.open[i]
	f.first = w.ref.Last() + 1
	if !w.ref.Append(w.epoch, f.steps...) {
		f.p.Failed(errors.New("not legal"))
		w.open = slices.Delete(w.open, i, i+1)
		return
	}
	w.begins[f.first] = true
	for _, e := range w.ref.Events()[f.first-1:] {
		e.Time = time.Unix(int64(e.Seq), 5)
		w.log = append(w.log, e)
	}
}

func (w *truth) pick(name string, which func(*flight) bool) int {
	var all []int
	for i, f := range w.open {
		if which(f) {
			all = append(all, i)
		}
	}
	if all == nil {
		return -1
	}
	return rapid.SampledFrom(all).Draw(w.t, name)
}

// answer ends one command: what is written is acknowledged, what is not is refused, and of either it may be said that
// nobody knows. What is acknowledged is durable, and all before it.
func (w *truth) answer() {
	i := w.pick("answer", func(*flight) bool { return true })
	if i < 0 {
		return
	}
	f := w.open[i]
	how := rapid.IntRange(0, 9).Draw(w.t, "how")
	switch {
	case how == 0 && f.first != 0:
		f.p.Unknown(nil)
	case f.first != 0:
		w.durable = max(w.durable, int(f.first)+len(f.steps)-1)
		f.p.OK([]uint64{f.first, f.first, f.first, 0}[how%4])
	case how > 5:
		f.p.Failed(nil)
	default:
		return // it stays open: without an event, unknown would be one that may still be written
	}
	w.open = slices.Delete(w.open, i, i+1)
}

// crash loses what is not durable from some group on, and answers some of those who still wait.
func (w *truth) crash() {
	w.h.Crash()
	keep := len(w.log)
	for len(w.open) > 0 {
		f := w.open[0]
		w.open = w.open[1:]
		if from := int(f.first) - 1; f.first != 0 && from >= w.durable && rapid.Bool().Draw(w.t, "lose") {
			keep = min(keep, from)
		}
		switch rapid.IntRange(0, 5).Draw(w.t, "late") {
		case 0:
			f.p.OK(f.first)
		case 1:
			f.p.Failed(nil)
		case 2:
			f.p.Unknown(nil)
		}
	}
	w.log = w.log[:keep]
	maps.DeleteFunc(w.begins, func(seq uint64, _ bool) bool { return seq > uint64(keep) })
	w.ref = Reference{}
	for _, e := range w.log {
		if err := w.ref.Take(e); err != nil {
			w.t.Fatal(err)
		}
	}
}

// lives draws a true history and its log.
func lives(t *rapid.T) *truth {
	w := &truth{t: t, begins: make(map[uint64]bool)}
	for range rapid.IntRange(1, 4).Draw(t, "lives") {
		w.life()
		w.crash()
	}
	return w
}

// No false alarm over true histories, in memory or from a file.
func TestCheckTrueHistories(t *testing.T) {
	events, unknown, ambiguous := 0, 0, 0
	rapid.Check(t, func(t *rapid.T) {
		w := lives(t)
		require.NoError(t, Check(&w.h, yields(w.log)))
		require.NoError(t, Check(reread(t, &w.h), yields(w.log)))
		events += len(w.log)
		asked := make(map[string]bool)
		for _, a := range w.h.Attempts() {
			if a.judged() == OutcomeUnknown {
				unknown++
				if asked[fmt.Sprint(a.Steps)] {
					ambiguous++
				}
				asked[fmt.Sprint(a.Steps)] = true
			}
		}
	})
	t.Logf("%d events, %d commands of unknown outcome, %d of them asked for by another such, too", events, unknown, ambiguous)
	require.Positive(t, ambiguous, "the hard case does not occur")
}

// A mutation makes a true log untrue, in place; false where it does not apply to this one.
type mutation struct {
	name  string
	apply func(w *truth) bool
	want  []Rule
}

// of are the attempts, with those that have a place and are proven by seq.
func (w *truth) proven() map[uint64]Attempt {
	at := make(map[uint64]Attempt)
	for _, a := range w.h.Attempts() {
		if a.proven() && a.First != 0 {
			for i := range a.Steps {
				at[a.First+uint64(i)] = a
			}
		}
	}
	return at
}

// some draws an index of the log for which ok holds, -1 if there is none.
func (w *truth) some(ok func(i int, e wal.Event) bool) int {
	var all []int
	for i, e := range w.log {
		if ok(i, e) {
			all = append(all, i)
		}
	}
	if all == nil {
		return -1
	}
	return rapid.SampledFrom(all).Draw(w.t, "which")
}

// renumber makes seqs dense and Prevs right, as a log would that had never had anything else.
func (w *truth) renumber() {
	heads := make(map[string]uint64)
	for i := range w.log {
		w.log[i].Seq, w.log[i].Prev = uint64(i+1), heads[w.log[i].JobID]
		heads[w.log[i].JobID] = uint64(i + 1)
	}
}

// push adds steps to the log's end, with all that the log itself would see to.
func (w *truth) push(steps ...Step) {
	for _, s := range steps {
		e := s.Event()
		e.Epoch = w.epoch
		w.log = append(w.log, e)
	}
	w.renumber()
}

// askers counts the commands that might have put the step there: not those that were refused.
func (w *truth) askers(s Step) (n int) {
	for _, a := range w.h.Attempts() {
		if a.judged() != OutcomeFailed && slices.ContainsFunc(a.Steps, func(o Step) bool { return keyOf(o) == keyOf(s) }) {
			n++
		}
	}
	return n
}

// refused tells whether somebody asked for the step and was refused.
func (w *truth) refused(s Step) bool {
	return slices.ContainsFunc(w.h.Attempts(), func(a Attempt) bool {
		return a.judged() == OutcomeFailed && slices.ContainsFunc(a.Steps, func(o Step) bool { return keyOf(o) == keyOf(s) })
	})
}

// attempt draws a command for which ok holds.
func (w *truth) attempt(ok func(a Attempt) bool) (Attempt, bool) {
	all := slices.DeleteFunc(w.h.Attempts(), func(a Attempt) bool { return !ok(a) })
	if len(all) == 0 {
		return Attempt{}, false
	}
	return rapid.SampledFrom(all).Draw(w.t, "attempt"), true
}

var mutations = []mutation{
	{"lose an acknowledged event", func(w *truth) bool {
		at := w.proven()
		i := w.some(func(_ int, e wal.Event) bool { return at[e.Seq].Steps != nil })
		if i < 0 {
			return false
		}
		w.log = slices.Delete(w.log, i, i+1)
		return true
	}, []Rule{RuleAcknowledged}},
	{"lose an acknowledged event, and close the gap", func(w *truth) bool {
		at := w.proven()
		i := w.some(func(_ int, e wal.Event) bool { return at[e.Seq].Steps != nil })
		if i < 0 {
			return false
		}
		w.log = slices.Delete(w.log, i, i+1)
		w.renumber()
		return true
	}, []Rule{RuleAcknowledged}},
	{"lose the end", func(w *truth) bool {
		at := w.proven()
		i := w.some(func(_ int, e wal.Event) bool { return at[e.Seq].First == e.Seq })
		if i < 0 {
			return false
		}
		w.log = w.log[:i]
		return true
	}, []Rule{RuleAcknowledged}},
	{"have a command twice", func(w *truth) bool {
		i := w.some(func(int, wal.Event) bool { return true })
		if i < 0 {
			return false
		}
		w.push(StepOf(w.log[i]))
		return true
	}, []Rule{RuleOnce}},
	{"swap two events", func(w *truth) bool {
		at := w.proven()
		i := w.some(func(i int, e wal.Event) bool {
			return i+1 < len(w.log) && at[e.Seq].Steps != nil && e.JobID != w.log[i+1].JobID
		})
		if i < 0 {
			return false
		}
		w.log[i], w.log[i+1] = w.log[i+1], w.log[i]
		w.log[i].Epoch, w.log[i+1].Epoch = w.log[i+1].Epoch, w.log[i].Epoch
		w.renumber()
		return true
	}, []Rule{RuleAcknowledged}},
	{"split an acknowledged group", func(w *truth) bool {
		at := w.proven()
		i := w.some(func(i int, e wal.Event) bool {
			a := at[e.Seq]
			return a.Steps != nil && e.Seq < a.last() && int(a.last()) < len(w.log) && w.log[a.last()].JobID != w.log[i+1].JobID
		})
		if i < 0 {
			return false
		}
		a := at[w.log[i].Seq]
		behind := int(a.last())
		moved := w.log[behind]
		moved.Epoch = w.log[i].Epoch
		w.log = slices.Insert(slices.Delete(w.log, behind, behind+1), i+1, moved)
		w.renumber()
		return true
	}, []Rule{RuleAcknowledged}},
	{"show half a group that is unknown", func(w *truth) bool {
		a, ok := w.attempt(func(a Attempt) bool {
			return a.judged() == OutcomeUnknown && len(a.Steps) > 1 && w.askers(a.Steps[0]) == 1 && w.ref.Legal(a.Steps[0]) &&
				a.above <= w.ref.Last() && a.upTo > w.ref.Last() && a.First == 0
		})
		if ok {
			w.push(a.Steps[0])
		}
		return ok
	}, []Rule{RuleWhole}},
	{"change a byte of args", func(w *truth) bool {
		at := w.proven()
		i := w.some(func(_ int, e wal.Event) bool { return at[e.Seq].Steps != nil && e.Args != nil })
		if i < 0 {
			return false
		}
		w.log[i].Args = json.RawMessage(strings.NewReplacer("1", "2", "a", "b").Replace(string(w.log[i].Args)))
		return true
	}, []Rule{RuleAcknowledged}},
	{"show what was refused", func(w *truth) bool {
		a, ok := w.attempt(func(a Attempt) bool { return a.judged() == OutcomeFailed && w.askers(a.Steps[0]) == 0 })
		if ok {
			w.push(a.Steps[0])
		}
		return ok
	}, []Rule{RuleRefused}},
	{"show what nobody asked for", func(w *truth) bool { w.push(submit("stranger")); return true }, []Rule{RuleAsked}},
	{"bring back what was lost", func(w *truth) bool {
		a, ok := w.attempt(func(a Attempt) bool {
			return a.judged() == OutcomeUnknown && w.askers(a.Steps[0]) == 1 && w.ref.Legal(a.Steps...) && a.upTo <= w.ref.Last() &&
				!w.refused(a.Steps[0])
		})
		if ok {
			w.push(a.Steps...)
		}
		return ok
	}, []Rule{RuleAsked}},
	{"forget what a reader saw", func(w *truth) bool {
		sights := w.h.testify(nil).saw
		at := w.proven()
		i := w.some(func(i int, e wal.Event) bool {
			for _, later := range w.log[i:] {
				if at[later.Seq].Steps != nil {
					return false
				}
			}
			return slices.ContainsFunc(sights, func(s sighting) bool { return s.seq >= e.Seq }) && w.begins[e.Seq]
		})
		if i < 0 {
			return false
		}
		w.log = w.log[:i]
		return true
	}, []Rule{RuleShown}},
	{"show a reader something else", func(w *truth) bool {
		sights := w.h.testify(nil).saw
		i := w.some(func(_ int, e wal.Event) bool {
			return slices.ContainsFunc(sights, func(s sighting) bool { return s.seq == e.Seq })
		})
		if i < 0 {
			return false
		}
		w.log[i].Time = w.log[i].Time.Add(1)
		return true
	}, []Rule{RuleShown}},
	{"leave a gap", func(w *truth) bool {
		at, sights := w.proven(), w.h.testify(nil).saw
		i := w.some(func(_ int, e wal.Event) bool {
			return at[e.Seq].Steps == nil && !slices.ContainsFunc(sights, func(s sighting) bool { return s.seq == e.Seq })
		})
		if i < 0 {
			return false
		}
		gapped(w.log, i)
		return true
	}, []Rule{RuleDense}},
	{"have a seq twice", func(w *truth) bool {
		i := w.some(func(int, wal.Event) bool { return true })
		if i < 0 {
			return false
		}
		w.log = slices.Insert(w.log, i, w.log[i])
		return true
	}, []Rule{RuleOrder}},
	{"a wrong prev", func(w *truth) bool {
		i := w.some(func(int, wal.Event) bool { return true })
		if i < 0 {
			return false
		}
		w.log[i].Prev += uint64(rapid.IntRange(1, 3).Draw(w.t, "by"))
		return true
	}, []Rule{RulePrev}},
	{"epoch goes back", func(w *truth) bool {
		i := w.some(func(i int, e wal.Event) bool { return i > 0 && w.log[i-1].Epoch > 1 })
		if i < 0 {
			return false
		}
		w.log[i].Epoch = w.log[i-1].Epoch - 1
		return true
	}, []Rule{RuleEpoch}},
}

// Check has teeth: what a broken log might do to a true history is found, and called by its name.
func TestCheckMutations(t *testing.T) {
	t.Parallel()
	for _, m := range mutations {
		t.Run(m.name, func(t *testing.T) {
			applied := 0
			rapid.Check(t, func(t *rapid.T) {
				w := lives(t)
				if !m.apply(w) {
					return
				}
				applied++
				require.Contains(t, m.want, judge(t, &w.h, w.log), "%v", Check(&w.h, yields(w.log)))
			})
			t.Logf("applied %d times", applied)
			require.Positive(t, applied)
		})
	}
}

// possible finds out by trying everything whether the log from event i on can be divided among commands, each used once
// at most, such that all that have to be somewhere are.
func possible(log []wal.Event, i int, attempts []*Attempt, used int) bool {
	if i == len(log) {
		for k, a := range attempts {
			if a.Outcome == OutcomeOK && used&(1<<k) == 0 {
				return false
			}
		}
		return true
	}
	for k, a := range attempts {
		if used&(1<<k) != 0 || a.Outcome == OutcomeFailed || i+len(a.Steps) > len(log) {
			continue
		}
		fits := true
		for n, s := range a.Steps {
			fits = fits && s.Same(StepOf(log[i+n]))
		}
		if fits && possible(log, i+len(a.Steps), attempts, used|1<<k) {
			return true
		}
	}
	return false
}

// Which events are of which command: Check agrees with a search that tries everything, on logs and commands that are
// drawn to be hard to tell apart.
func TestCheckDividesAsASearchDoes(t *testing.T) {
	agreed := make(map[bool]int)
	rapid.Check(t, func(t *rapid.T) {
		var ref Reference
		all := []Step{submit("a"), submit("b"), validate("a"), validate("b"), start("a"), start("b"), fail("a"), fail("b")}
		for range rapid.IntRange(1, 6).Draw(t, "events") {
			legal := slices.DeleteFunc(slices.Clone(all), func(s Step) bool { return !ref.Legal(s) })
			if len(legal) > 0 {
				ref.Append(1, rapid.SampledFrom(legal).Draw(t, "step"))
			}
		}
		log := ref.Events()
		for i := range log {
			if log[i].Type != wal.JobSubmitted {
				log[i].Capability = "" // as those have it who append by hand
			}
		}
		var h History
		for range rapid.IntRange(1, 7).Draw(t, "commands") {
			var steps []Step
			if n := rapid.IntRange(1, 3).Draw(t, "steps"); rapid.Byte().Draw(t, "kind")%8 > 0 { // a piece of the log
				from := int(rapid.Byte().Draw(t, "from")) % len(log)
				for _, e := range log[from:min(from+n, len(log))] {
					steps = append(steps, StepOf(e))
				}
			} else {
				steps = rapid.SliceOfN(rapid.SampledFrom(all), n, n).Draw(t, "others")
			}
			p := h.Begin(steps...)
			switch rapid.Byte().Draw(t, "outcome") % 8 {
			case 0:
				p.OK(0)
			case 1:
				p.Failed(nil)
			}
		}
		want := possible(log, 0, h.testify(nil).attempts, 0)
		require.Equal(t, want, Check(&h, yields(log)) == nil, "%v", Check(&h, yields(log)))
		agreed[want]++
	})
	t.Logf("%v", agreed)
	require.Positive(t, agreed[true])
	require.Positive(t, agreed[false])
}
