package crashtest_test

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"iter"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/recovery/crashtest"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// bubbled runs a property in a bubble of its own at each check.
func bubbled(property func(*rapid.T)) func(*rapid.T) {
	return func(t *rapid.T) { rapid.SyncTest(t, property) }
}

// R1, R2, R3, R4, S1: the power goes at any operation of a command, of Close, of Open, or between them. Everything that was
// acknowledged is there afterwards, nothing that was not submitted, a group as a whole, and all that the engine says is the
// fold of it.
func TestR1_R2_R3_S1_actions(t *testing.T) {
	thinned(t, 1)
	rapid.Check(t, bubbled(act))
}

// thinned has rapid make one check in so many in this test, and fewer yet under the race detector.
func thinned(t *testing.T, part int) {
	checks := flag.Lookup("rapid.checks")
	before := checks.Value.String()
	n, err := strconv.Atoi(before)
	require.NoError(t, err)
	require.NoError(t, checks.Value.Set(fmt.Sprint(max(crashtest.Thin(n, n/6)/part, 1))))
	t.Cleanup(func() { require.NoError(t, checks.Value.Set(before)) })
}

func act(t *rapid.T) {
	a := &crashtest.Actions{Idle: time.Second}
	a.Open(t)
	t.Repeat(a.Map())
}

// lyingLog is a log with a fault.
type lyingLog struct {
	recovery.Log
	split  bool // groups are appended event by event
	living bool // nobody who ever wrote is dead
	follow func(e *wal.Event) (pass bool)
	at     func(e *wal.Event)
}

func (l *lyingLog) Append(ctx context.Context, events ...wal.Event) (first uint64, err error) {
	if !l.split {
		return l.Log.Append(ctx, events...)
	}
	last := map[string]uint64{}
	for i, e := range events {
		if seq, again := last[e.JobID]; again {
			e.Prev = seq
		}
		seq, err := l.Log.Append(ctx, e)
		if err != nil {
			return 0, err
		}
		if last[e.JobID] = seq; i == 0 {
			first = seq
		}
	}
	return first, nil
}

func (l *lyingLog) Live(epoch uint64) bool { return l.living || l.Log.Live(epoch) }

func (l *lyingLog) Follow(ctx context.Context, from uint64) iter.Seq2[wal.Event, error] {
	return func(yield func(wal.Event, error) bool) {
		for e, err := range l.Log.Follow(ctx, from) {
			if err == nil && l.follow != nil && !l.follow(&e) {
				continue
			}
			if !yield(e, err) {
				return
			}
		}
	}
}

func (l *lyingLog) At(ctx context.Context, seq uint64) (wal.Event, error) {
	e, err := l.Log.At(ctx, seq)
	if err == nil && l.at != nil {
		l.at(&e)
	}
	return e, err
}

func lying(how lyingLog) func(ctx context.Context, dir string, opts recovery.Options) (*recovery.Engine, error) {
	return func(ctx context.Context, dir string, opts recovery.Options) (*recovery.Engine, error) {
		log, err := wal.Open(dir, opts.WAL)
		if err != nil {
			return nil, err
		}
		l := how
		l.Log = recovery.OnDisk(log)
		return recovery.OpenLog(ctx, &l, opts)
	}
}

// Who forgets Open is told so.
func TestActionsWantOpen(t *testing.T) {
	require.NoError(t, flag.Set("rapid.nofailfile", "true"))
	defer flag.Set("rapid.nofailfile", "false")
	report, failed := crashtest.Fails(func(t rapid.TB) {
		rapid.Check(t, func(t *rapid.T) { t.Repeat(new(crashtest.Actions).Map()) })
	})
	require.True(t, failed)
	require.Contains(t, report, "call Actions.Open first")
}

// Actions have teeth: whatever the engine stands on, if it breaks a promise, they find out; and an engine on a log that
// keeps them passes by the same way.
func TestActionsCatch(t *testing.T) {
	for _, test := range []struct {
		name string
		make func() *crashtest.Actions
		says string // part of what is said
	}{
		{"no sync", func() *crashtest.Actions {
			return &crashtest.Actions{Wrap: func(disk wal.FS) wal.FS { return flawed(disk, crashtest.NoFsync) }}
		}, "acknowledged: "},
		{"no sync of directories", func() *crashtest.Actions {
			return &crashtest.Actions{Wrap: func(disk wal.FS) wal.FS { return flawed(disk, crashtest.NoDirectoryFsync) }}
		}, "acknowledged: "},
		{"groups in parts", func() *crashtest.Actions { return &crashtest.Actions{OpenEngine: lying(lyingLog{split: true})} }, ""},
		{"nobody is ever dead", func() *crashtest.Actions { return &crashtest.Actions{OpenEngine: lying(lyingLog{living: true})} }, "interrupted are"},
		{"payloads in another spelling", func() *crashtest.Actions {
			return &crashtest.Actions{OpenEngine: lying(lyingLog{follow: func(e *wal.Event) bool { e.Output = spelled(e.Output); return true }})}
		}, ""},
		{"a history in other words", func() *crashtest.Actions {
			return &crashtest.Actions{OpenEngine: lying(lyingLog{at: func(e *wal.Event) { e.Error = strings.ToUpper(e.Error) }})}
		}, "history of job"},
		{"times that go", func() *crashtest.Actions {
			return &crashtest.Actions{OpenEngine: lying(lyingLog{at: func(e *wal.Event) { e.Time = e.Time.Add(1) }})}
		}, "time"},
		{"a projection that fails", func() *crashtest.Actions {
			return &crashtest.Actions{Projections: func() []projection.Projection { return []projection.Projection{failing{}} }}
		}, "failing"},
	} {
		said := falsified(t, 1, 0, func(t *rapid.T) {
			a := test.make()
			a.Open(t)
			t.Repeat(a.Map())
		})
		require.Contains(t, said, test.says, test.name)
	}
	thinned(t, 2)
	rapid.Check(t, func(t *rapid.T) { // no fault, and no bubble either
		a := &crashtest.Actions{OpenEngine: lying(lyingLog{})}
		a.Open(t)
		for range 5 {
			a.Do(t, crashtest.NextStep(a.Reference()).Draw(t, "step"))
			a.Crash(t)
		}
		a.Reopen(t)
		a.Invariant(t)
	})
}

// spelled makes "a" of "A".
func spelled(raw json.RawMessage) json.RawMessage {
	return json.RawMessage(strings.ToUpper(string(raw)))
}

type failing struct{}

func (failing) Name() string { return "failing" }
func (failing) Apply(e wal.Event, job statemachine.Job) error {
	if e.Type == wal.JobStarted {
		return fmt.Errorf("failing at %v", job)
	}
	return nil
}

// All hooks are called, with what they were promised.
func TestActionsHooks(t *testing.T) {
	var opened, checked, checkpoints, stepped, wrapped int
	var own *seqs
	rapid.Check(t, func(t *rapid.T) {
		var a *crashtest.Actions
		a = &crashtest.Actions{
			Dir: "a/b", Disk: crashfs.New(), Idle: time.Second,
			Projections: func() []projection.Projection { own = new(seqs); return []projection.Projection{own} },
			Wrap:        func(disk wal.FS) wal.FS { wrapped++; return disk },
			OnOpen:      func(e *recovery.Engine) { opened++; require.Same(t, a.Engine(), e) },
			Check: func(t *rapid.T, e *recovery.Engine, ref *crashtest.Reference) {
				checked++
				require.Same(t, a.Engine(), e)
				require.EqualValues(t, ref.Last(), *own)
			},
			Checkpoint: func(e *recovery.Engine, ctx context.Context) error { checkpoints++; return ctx.Err() },
			Step: func(t *rapid.T, id string, on wal.EventType) crashtest.Step {
				stepped++
				return crashtest.Step{JobID: id, Type: on, Error: rapid.StringN(0, 3, -1).Draw(t, "error")}
			},
		}
		require.NoError(t, a.Disk.Mkdir("a", 0o755))
		require.NoError(t, a.Disk.SyncDir("."))
		rapid.SyncTest(t, func(t *rapid.T) {
			a.Open(t)
			actions := a.Map()
			require.Contains(t, actions, "idle")
			for _, name := range []string{"submit", "checkpoint", "batch", "crash soon", "idle", ""} {
				actions[name](t)
			}
		})
	})
	for name, n := range map[string]int{
		"OnOpen": opened, "Check": checked, "Checkpoint": checkpoints, "Step": stepped, "Wrap": wrapped,
	} {
		require.GreaterOrEqual(t, n, 20, name)
	}
	require.NotContains(t, (&crashtest.Actions{}).Map(), "idle")
	require.NotContains(t, (&crashtest.Actions{}).Map(), "checkpoint")
}

// seqs counts events.
type seqs int

func (s *seqs) Name() string                            { return "seqs" }
func (s *seqs) Apply(wal.Event, statemachine.Job) error { *s++; return nil }
