package statemachine

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/looplab/fsm"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/wal"
)

var errDisk = errors.New("disk is full")

func appended(context.Context) error { return nil }

func TestS1_MachineAgreesWithTable(t *testing.T) {
	for _, from := range append(States(), "no such state") {
		for _, on := range append(slices.Clone(knownTypes), strangeTypes...) {
			m := NewMachine(Job{ID: "j", State: from})
			if on == wal.JobReleased {
				m.Reset(Job{ID: "j", State: from, Held: "why"})
			}
			want, wantErr := Next(from, on)
			calls := 0
			require.Equal(t, wantErr == nil, m.Can(on))
			err := m.Fire(t.Context(), on, func(context.Context) error { calls++; return nil })
			require.Equal(t, want, m.State())
			if wantErr == nil {
				require.NoError(t, err)
				require.Equal(t, 1, calls)
				continue
			}
			wantErr.(*TransitionError).JobID = "j"
			if on == wal.JobReleased {
				wantErr.(*TransitionError).Allowed = Job{State: from, Held: "why"}.Allowed()
			}
			require.Equal(t, wantErr, err)
			require.Zero(t, calls)
		}
	}
}

// outcome is what an append may come to.
type outcome string

func (o outcome) append(context.Context) error {
	switch o {
	case "fails":
		return errDisk
	case "panics":
		panic(errDisk)
	}
	return nil
}

// propMachineIsTheReference fires random events, with appends that succeed, fail and panic, under contexts live and
// dead, on one machine that serves job after job.
func propMachineIsTheReference(t *rapid.T) {
	m := NewMachine(Job{ID: "j"})
	var want State
	var held bool
	dead, cancel := context.WithCancel(context.Background())
	cancel()
	t.Repeat(map[string]func(*rapid.T){
		"": func(t *rapid.T) {
			require.Equal(t, want, m.State())
			for _, on := range knownTypes {
				_, ok := reference(want, on)
				_, may := referenceHold(held, on)
				require.Equal(t, ok && may, m.Can(on))
			}
		},
		"fire": func(t *rapid.T) {
			on := likelyType(t, want, held)
			how := rapid.SampledFrom([]outcome{"succeeds", "succeeds", "succeeds", "fails", "panics"}).Draw(t, "append")
			to, ok := reference(want, on)
			holds, may := referenceHold(held, on)
			err := func() (err error) {
				defer func() {
					if recover() != nil {
						err = errDisk
					}
				}()
				return m.Fire(context.Background(), on, how.append)
			}()
			switch {
			case !ok:
				require.ErrorIs(t, err, ErrTransition)
			case !may && held:
				require.ErrorIs(t, err, ErrHeld)
			case !may:
				require.ErrorIs(t, err, ErrNotHeld)
			case how != "succeeds":
				require.Equal(t, errDisk, err)
			default:
				require.NoError(t, err)
				want, held = to, holds
			}
		},
		"fire cancelled": func(t *rapid.T) {
			require.Equal(t, context.Canceled, m.Fire(dead, likelyType(t, want, held), appended))
		},
		"reset": func(t *rapid.T) {
			want, held = rapid.SampledFrom(knownStates).Draw(t, "state"), rapid.Bool().Draw(t, "held")
			j := Job{ID: "k", State: want}
			if held = held && slices.Contains([]State{Submitted, Validated, Started}, want); held {
				j.Held = "why"
			}
			m.Reset(j)
		},
	})
}

func TestS1_MachineIsTheReference(t *testing.T) { rapid.Check(t, propMachineIsTheReference) }

func FuzzS1_MachineIsTheReference(f *testing.F) { f.Fuzz(rapid.MakeFuzz(propMachineIsTheReference)) }

func TestFireMovesOnlyIfAppended(t *testing.T) {
	m := NewMachine(Job{ID: "j", State: Validated})
	nested := fmt.Errorf("append: %w", fsm.InvalidEventError{Event: "x", State: "y"})
	for _, cause := range []error{errDisk, nested, fsm.InvalidEventError{}, fsm.NoTransitionError{}, context.Canceled} {
		err := m.Fire(t.Context(), wal.JobStarted, func(context.Context) error { return cause })
		require.Equal(t, cause, err, "append's error comes back as it was")
		require.Equal(t, Validated, m.State())
	}
	require.NoError(t, m.Fire(t.Context(), wal.JobStarted, appended))
	require.Equal(t, Started, m.State())
}

// looplab refuses every event after one whose context was cancelled between the check and the move.
func TestFireSurvivesCancelledContext(t *testing.T) {
	m := NewMachine(Job{ID: "j"})
	ctx, cancel := context.WithCancel(t.Context())
	require.NoError(t, m.Fire(ctx, wal.JobSubmitted, func(got context.Context) error {
		require.Equal(t, ctx, got, "append gets the caller's context")
		cancel()
		return nil
	}))
	require.Equal(t, Submitted, m.State(), "what was appended has happened")
	require.Equal(t, context.Canceled, m.Fire(ctx, wal.JobValidated, appended))
	require.NoError(t, m.Fire(t.Context(), wal.JobValidated, appended))
}

func TestFireSurvivesPanicAndGoexit(t *testing.T) {
	m := NewMachine(Job{ID: "j"})
	require.PanicsWithValue(t, "boom", func() {
		_ = m.Fire(t.Context(), wal.JobSubmitted, func(context.Context) error { panic("boom") })
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = m.Fire(context.Background(), wal.JobSubmitted, func(context.Context) error { runtime.Goexit(); return nil })
	}()
	<-done
	require.Equal(t, None, m.State())
	require.NoError(t, m.Fire(t.Context(), wal.JobSubmitted, appended))
	require.Equal(t, Submitted, m.State())
}

// A step that leads back to its own state: looplab makes an error of its success.
func TestFireSelfTransition(t *testing.T) {
	m := NewMachine(Job{ID: "j", State: Started})
	calls := 0
	require.NoError(t, m.Fire(t.Context(), "job_resumed", func(context.Context) error { calls++; return nil }))
	require.Equal(t, 1, calls)
	require.Equal(t, Started, m.State())

	err := m.Fire(t.Context(), "job_resumed", func(context.Context) error { return errDisk })
	require.Equal(t, errDisk, err)
	require.NoError(t, m.Fire(t.Context(), wal.JobCompleted, appended))

	var te *TransitionError
	require.ErrorAs(t, m.Fire(t.Context(), "job_resumed", appended), &te)
	require.Equal(t, &TransitionError{"j", Completed, "job_resumed", []wal.EventType{wal.JobRolledBack, wal.JobStepUndone}}, te)
}

func TestFireRefusesNil(t *testing.T) {
	m := NewMachine(Job{ID: "j"})
	var none context.Context
	require.ErrorIs(t, m.Fire(none, wal.JobSubmitted, appended), wal.ErrInvalid)
	require.ErrorIs(t, m.Fire(t.Context(), wal.JobSubmitted, nil), wal.ErrInvalid)
	require.Equal(t, None, m.State())
}

func TestR4_ParkedJobTakesNoCommands(t *testing.T) {
	m := NewMachine(Job{ID: "j", State: Submitted, Parked: "seq 5"})
	require.Equal(t, &ParkedError{"j", "seq 5"}, m.Fire(t.Context(), wal.JobValidated, appended))
	require.False(t, m.Can(wal.JobValidated))
	m.Reset(Job{ID: "k", State: Submitted})
	require.NoError(t, m.Fire(t.Context(), wal.JobValidated, appended))
}

func TestFireOneOfTwoWins(t *testing.T) {
	for range 100 {
		m := NewMachine(Job{ID: "j", State: Started})
		var wg sync.WaitGroup
		errs := make([]error, 8)
		calls := 0 // only ever one append at a time; the race detector looks on
		for i := range errs {
			wg.Go(func() {
				on := []wal.EventType{wal.JobCompleted, wal.JobFailed}[i%2]
				errs[i] = m.Fire(context.Background(), on, func(context.Context) error { calls++; return nil })
				_ = m.State()
			})
		}
		wg.Wait()
		require.Equal(t, 1, calls)
		won := slices.IndexFunc(errs, func(err error) bool { return err == nil })
		errs = slices.Delete(errs, won, won+1)
		for _, err := range errs {
			require.ErrorIs(t, err, ErrTransition)
		}
	}
}

func BenchmarkFire(b *testing.B) {
	ctx := b.Context()
	cases := []struct {
		name string
		run  func(b *testing.B, m *Machine)
	}{
		{"machine=pooled/step=legal", func(b *testing.B, m *Machine) {
			for b.Loop() {
				m.Reset(Job{ID: "j", State: Validated})
				_ = m.Fire(ctx, wal.JobStarted, appended)
			}
		}},
		{"machine=new/step=legal", func(b *testing.B, _ *Machine) {
			for b.Loop() {
				_ = NewMachine(Job{ID: "j", State: Validated}).Fire(ctx, wal.JobStarted, appended)
			}
		}},
		{"machine=pooled/step=refused", func(b *testing.B, m *Machine) {
			for b.Loop() {
				m.Reset(Job{ID: "j", State: Validated})
				_ = m.Fire(ctx, wal.JobCompleted, appended)
			}
		}},
	}
	for _, c := range cases {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			c.run(b, NewMachine(Job{ID: "j"}))
		})
	}
}
