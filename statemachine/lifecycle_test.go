package statemachine

import (
	"errors"
	"os"
	"testing"

	"github.com/looplab/fsm"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/wal"
)

func TestS1_TableIsTheReference(t *testing.T) {
	require.Equal(t, knownStates, States())
	for _, from := range append(States(), "no such state") {
		var allowed []wal.EventType
		for _, on := range append(append([]wal.EventType{}, knownTypes...), strangeTypes...) {
			want, ok := reference(from, on)
			to, err := Next(from, on)
			if ok {
				require.NoError(t, err)
				require.Equal(t, want, to)
				if on != "job_released" {
					allowed = append(allowed, on)
				}
				continue
			}
			require.ErrorIs(t, err, ErrTransition)
			require.Equal(t, from, to)
		}
		require.Equal(t, allowed, Allowed(from), "allowed from %q", from)
	}
}

func TestS1_TableTakesNothingElse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		from := State(rapid.OneOf(rapid.String(), rapid.Map(rapid.SampledFrom(knownStates), func(s State) string {
			return string(s)
		})).Draw(t, "from"))
		on := anyType().Draw(t, "on")
		want, ok := reference(from, on)
		to, err := Next(from, on)
		require.Equal(t, ok, err == nil)
		if ok {
			require.Equal(t, want, to)
		}
	})
}

func TestTransitionError(t *testing.T) {
	for _, c := range []struct {
		from State
		on   wal.EventType
		is   []error
		text string
	}{
		{Started, wal.JobRolledBack, nil, "job_rolled_back not allowed from started; allowed: job_completed, job_failed, job_resumed, job_step, job_progress, job_held"},
		{RolledBack, wal.JobStarted, nil, "job_started not allowed from rolled_back; nothing is allowed from rolled_back"},
		{Failed, wal.JobSubmitted, []error{ErrDuplicateJob},
			"job_submitted for a job that exists already, in state failed; allowed: job_rolled_back, job_step_undone"},
		{None, wal.JobStarted, []error{ErrUnknownJob}, "job_started for a job that was never submitted; allowed: job_submitted"},
		{None, "job_paused", []error{ErrUnknownEvent},
			`event type "job_paused" is not known to this version; allowed: job_submitted`},
		{Submitted, "", []error{ErrUnknownEvent},
			`event type "" is not known to this version; allowed: job_validated, job_failed, job_held`},
	} {
		_, err := Next(c.from, c.on)
		require.EqualError(t, err, "statemachine: "+c.text)
		for _, sentinel := range []error{ErrDuplicateJob, ErrUnknownJob, ErrUnknownEvent, ErrParked} {
			require.Equal(t, contains(c.is, sentinel), errors.Is(err, sentinel), "%v: %v", err, sentinel)
		}
		var te *TransitionError
		require.ErrorAs(t, err, &te)
		require.Equal(t, Allowed(c.from), te.Allowed)
	}
}

func contains(errs []error, err error) bool {
	for _, e := range errs {
		if e == err {
			return true
		}
	}
	return false
}

func TestCopiesBelongToTheCaller(t *testing.T) {
	events := Lifecycle()
	events[0].Name, events[4].Src[0] = "changed", "changed"
	Allowed(Submitted)[0] = "changed"
	States()[1] = "changed"
	require.Equal(t, lifecycle, Lifecycle())
	TestS1_TableIsTheReference(t)
}

func TestCompileRefusesContradiction(t *testing.T) {
	require.Panics(t, func() {
		compile(fsm.Events{{Name: "a", Src: []string{"x"}, Dst: "y"}, {Name: "a", Src: []string{"x"}, Dst: "z"}})
	})
}

func TestDiagram(t *testing.T) {
	for _, format := range []string{"mermaid", "dot"} {
		golden, err := os.ReadFile("testdata/lifecycle." + format)
		require.NoError(t, err)
		for range 20 { // map order must not show
			drawn, err := Diagram(format)
			require.NoError(t, err)
			require.Equal(t, string(golden), drawn)
		}
	}
	_, err := Diagram("svg")
	require.ErrorIs(t, err, wal.ErrInvalid)
	require.EqualError(t, err, `statemachine: invalid diagram format "svg"; use "mermaid" or "dot"`)
}

func BenchmarkNext(b *testing.B) {
	for _, c := range []struct {
		name string
		from State
		on   wal.EventType
	}{{"legal", Started, wal.JobCompleted}, {"refused", Started, wal.JobStarted}} {
		b.Run("step="+c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, _ = Next(c.from, c.on)
			}
		})
	}
}
