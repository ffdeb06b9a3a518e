package runner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

type greeting struct {
	Name string `json:"name"`
}

func TestRunner_takes_a_job_through_its_life(t *testing.T) {
	reg := NewRegistry()
	greet := Add(reg, "greet", Func[greeting, string](func(ctx context.Context, args greeting) (string, error) {
		job, ok := JobOf(ctx)
		if !ok || job.State != statemachine.Started || job.Attempts != 1 {
			return "", fmt.Errorf("not durable before it begins: %v", job)
		}
		return "<" + args.Name + ">", nil
	}), Settings{})
	p := newPool(t, reg, Options{})
	out, err := greet.Do(t.Context(), p.Runner, greeting{"Ada"}, ID("a"))
	require.NoError(t, err)
	require.Equal(t, "<Ada>", out)
	require.Equal(t, []string{"submitted", "validated", "started", "completed"}, p.story("a"))
	out, err = greet.Result(t.Context(), p.Runner, "a")
	require.NoError(t, err)
	require.Equal(t, "<Ada>", out)
	require.Equal(t, "greet", greet.Name())
	job := p.run("greet", "b", json.RawMessage(`{"name":"Bea"}`))
	raw, _ := job.Output.JSON()
	require.Equal(t, `"<Bea>"`, string(raw), "as it is, without rewriting")
	require.Equal(t, statemachine.Completed, job.State)
	job = p.run("greet", "c", nil)
	raw, _ = job.Output.JSON()
	require.Equal(t, `"<>"`, string(raw), "no args are the zero value")

	_, err = greet.Do(t.Context(), p.Runner, greeting{"Ada"}, ID("a"))
	require.ErrorIs(t, err, statemachine.ErrDuplicateJob)
	Add(reg, "later", Func[greeting, int](func(context.Context, greeting) (int, error) { return 1, nil }), Settings{})
	require.Equal(t, statemachine.Completed, p.run("later", "d", greeting{}).State, "a registry may grow")
	_, err = greet.Result(t.Context(), p.Runner, "d")
	require.ErrorContains(t, err, "capability")
}

// What does not fit is told before anything is done.
func TestRunner_refuses_before_the_start(t *testing.T) {
	executed := false
	reg := does(script{
		execute:  func(context.Context, int) (int, error) { executed = true; return 0, nil },
		validate: func(_ context.Context, n int) error { return fmt.Errorf("%d is too many", n) },
		undo:     func(context.Context, int, Done) error { executed = true; return nil },
	}, Settings{})
	Add(reg, "greet", Func[greeting, bool](func(context.Context, greeting) (bool, error) { executed = true; return true, nil }), Settings{})
	p := newPool(t, reg, Options{})
	require.Equal(t, "7 is too many", p.run("do", "validator", 7).Error)
	require.Equal(t, "its args do not fit: json: cannot unmarshal string into Go value of type int", p.run("do", "type", "seven").Error)
	require.Equal(t, `its args do not fit: json: unknown field "nmae"`, p.run("greet", "field", json.RawMessage(`{"nmae":"Ada"}`)).Error)
	for _, id := range []string{"validator", "type", "field"} {
		job, _ := p.engine.Job(id)
		require.Equal(t, []any{statemachine.Failed, statemachine.Submitted, 0}, []any{job.State, job.Before, job.Attempts})
	}
	require.False(t, executed)

	last := p.engine.Report().Jobs
	_, err := p.Submit(t.Context(), "dig", 7)
	require.ErrorIs(t, err, ErrUnknownCapability)
	_, err = p.Submit(t.Context(), "do", make(chan int))
	require.ErrorIs(t, err, wal.ErrInvalid)
	require.Equal(t, last, p.engine.Report().Jobs, "nothing was written")
	require.Zero(t, p.waiting)
}

// One job's panic, whoever's it is, fails that job and no other; the runner has as many workers as before.
func TestRunner_survives_panics_and_goroutines_that_end(t *testing.T) {
	for _, where := range []string{"validate", "execute", "undo", "marshal", "decode", "retry"} {
		for _, end := range []func(){func() { panic(errBroken) }, runtime.Goexit} {
			at := func(place string) {
				if place == where {
					end()
				}
			}
			reg := NewRegistry()
			Add(reg, "do", wild{at}, Settings{Effect: recovery.Pure, Retry: RetryFunc(func(error, int) (time.Duration, bool) {
				at("retry")
				return 0, false
			})})
			Add(reg, "well", Func[int, int](func(_ context.Context, n int) (int, error) { return n, nil }), Settings{})
			p := newPool(t, reg, Options{Workers: 2})
			for i := range 5 {
				job, err := p.Submit(t.Context(), "do", 1)
				require.NoError(t, err)
				job, err = p.Wait(t.Context(), job.ID)
				if err == nil {
					require.Contains(t, []statemachine.State{statemachine.Failed, statemachine.RolledBack}, job.State, "%s", where)
					require.NotEmpty(t, job.Error)
				} else {
					require.ErrorIs(t, err, errGone)
				}
				require.Equal(t, statemachine.Completed, p.run("well", fmt.Sprint(i), i).State)
			}
		}
	}
}

// wild is a capability that fails, and in which something else may happen before.
type wild struct{ at func(string) }

func (w wild) Validate(context.Context, wildArgs) error { w.at("validate"); return nil }
func (w wild) Execute(context.Context, wildArgs) (wildOut, error) {
	w.at("execute")
	return wildOut{w}, nil
}
func (w wild) Undo(context.Context, wildArgs, Done) error { w.at("undo"); return nil }

type wildArgs struct{}

func (*wildArgs) UnmarshalJSON([]byte) error { return nil }

type wildOut struct{ w wild }

func (o wildOut) MarshalJSON() ([]byte, error) { o.w.at("marshal"); return nil, errBroken }

// Capabilities that are wrong are wrong at once.
func TestAdd_panics_where_the_program_is_wrong(t *testing.T) {
	reg := NewRegistry()
	ok := Func[int, int](func(context.Context, int) (int, error) { return 0, nil })
	Add(reg, "taken", ok, Settings{})
	for reason, add := range map[string]func(){
		"no name":           func() { Add(reg, "", ok, Settings{}) },
		"the name is taken": func() { Add(reg, "taken", ok, Settings{}) },
		"no executor":       func() { Add[int, int](reg, "none", nil, Settings{}) },
		"no Reconcile":      func() { Add(reg, "asked", ok, Settings{Effect: recovery.Reconcilable}) },
		"method Undo":       func() { Add(reg, "misspelt", wrongUndo{}, Settings{}) },
		"method Validate":   func() { Add(reg, "pointer", pointers{}, Settings{}) },
	} {
		require.Panics(t, func() {
			defer func() {
				v := recover()
				require.Contains(t, fmt.Sprint(v), reason)
				panic(v)
			}()
			add()
		}, reason)
	}
	require.Equal(t, recovery.Effects{"taken": recovery.Unknown}, reg.Effects())
	Add(reg, "right", &pointers{}, Settings{Effect: recovery.Pure})
	require.Equal(t, recovery.Effects{"taken": recovery.Unknown, "right": recovery.Pure}, reg.Effects())
	Add(reg, "undoes", script{}, Settings{KeepFailed: true})
	require.Equal(t, []bool{true, false, false}, []bool{reg.Undoes("undoes"), reg.Undoes("right"), reg.Undoes("unknown")})
}

type wrongUndo struct{}

func (wrongUndo) Execute(context.Context, int) (int, error) { return 0, nil }
func (wrongUndo) Undo(context.Context, string, Done) error  { return nil }

type pointers struct{}

func (pointers) Execute(context.Context, int) (int, error) { return 0, nil }
func (*pointers) Validate(context.Context, int) error      { return nil }

func TestNew_refuses(t *testing.T) {
	e := engineOn(t, crashfs.New())
	for _, opts := range []Options{{Workers: -1}, {Queue: -1}, {Progress: -1}, {Grace: -1}} {
		_, err := New(e, NewRegistry(), opts)
		require.ErrorIs(t, err, wal.ErrInvalid)
	}
	_, err := New(nil, NewRegistry(), Options{})
	require.ErrorIs(t, err, wal.ErrInvalid)
	_, err = New(e, nil, Options{})
	require.ErrorIs(t, err, wal.ErrInvalid)
}

// While the queue is full nothing is written, and no more than Workers are at work.
func TestRunner_bounds_what_is_at_work_and_what_waits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		goOn := make(chan struct{})
		p := newPool(t, does(script{execute: func(context.Context, int) (int, error) { <-goOn; return 0, nil }}, Settings{}), Options{Workers: 2, Queue: 3})
		submitted := func() int {
			synctest.Wait()
			n := 0
			for _, k := range p.engine.Report().Jobs {
				n += k
			}
			return n
		}
		for range 10 {
			go p.Submit(t.Context(), "do", 1)
		}
		require.Equal(t, 2+3, submitted())
		require.Equal(t, map[statemachine.State]int{statemachine.Submitted: 3, statemachine.Started: 2}, p.engine.Report().Jobs)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := p.Submit(ctx, "do", 1)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		for i := range 5 {
			goOn <- struct{}{}
			require.Equal(t, 5+i+1, submitted())
		}
		close(goOn)
		synctest.Wait()
		require.Equal(t, map[statemachine.State]int{statemachine.Completed: 10}, p.engine.Report().Jobs)
		require.Zero(t, p.waiting)
		require.Empty(t, p.tasks)
	})
}

// Many callers, workers, cancellations and a drain at once: each job that was acknowledged is in the log, has ended as its
// caller was told, or is left as it was; and nothing is left behind in the runner.
func TestRunner_with_everything_at_once(t *testing.T) {
	reg := does(script{execute: func(_ context.Context, n int) (int, error) {
		switch n % 4 {
		case 1:
			return 0, errBroken
		case 2:
			return 0, Transient(errBroken)
		}
		return n, nil
	}}, Settings{Retry: FirstRetry(OnIs(ErrTransient, Backoff{First: 1, Most: 1000, Attempts: 3}))})
	p := newPool(t, reg, Options{Workers: 7, Queue: 5})
	var all sync.WaitGroup
	var left atomic.Int64
	for g := range 20 {
		all.Go(func() {
			for i := range 50 {
				job, err := p.Submit(t.Context(), "do", g+i)
				if errors.Is(err, ErrDraining) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				if i%7 == 0 {
					_, err = p.Cancel(t.Context(), job.ID, "why not")
				} else {
					_, err = p.Wait(t.Context(), job.ID)
				}
				now, known := p.engine.Job(job.ID)
				switch {
				case !known:
					t.Error("not there: ", job)
				case errors.Is(err, ErrDraining) || errors.Is(err, ErrNotRunning):
					left.Add(1)
				case err != nil && !errors.Is(err, statemachine.ErrTransition):
					t.Error(err)
				case !now.Finished():
					t.Error("not over: ", now)
				}
				if g == 0 && i == 40 {
					go p.Drain(t.Context())
				}
			}
		})
	}
	all.Wait()
	require.NoError(t, p.Drain(t.Context()))
	require.Empty(t, p.tasks)
	r := p.engine.Report()
	require.Equal(t, left.Load(), int64(r.Jobs[statemachine.Submitted]+r.Jobs[statemachine.Validated]+r.Jobs[statemachine.Started]))
	require.Empty(t, r.Parked)
}

// A job that ends is what its caller is told, at once where it has ended before.
func TestWait(t *testing.T) {
	p := newPool(t, does(script{execute: until}, Settings{}), Options{})
	_, err := p.Wait(t.Context(), "nobody")
	require.ErrorIs(t, err, statemachine.ErrUnknownJob)
	_, err = p.engine.Submit(t.Context(), recovery.Submission{JobID: "of others", Capability: "do"})
	require.NoError(t, err)
	job, err := p.Wait(t.Context(), "of others")
	require.ErrorIs(t, err, ErrNotRunning)
	require.Equal(t, statemachine.Submitted, job.State)
	_, err = p.engine.Hold(t.Context(), "of others", "why")
	require.NoError(t, err)
	require.Equal(t, "why", p.wait("of others").Held)
	p.submit("do", "long", 1)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	job, err = p.Wait(ctx, "long")
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, "long", job.ID)
	job, err = p.Cancel(t.Context(), "long", "enough")
	require.NoError(t, err)
	require.Equal(t, statemachine.Failed, job.State)
	require.Equal(t, "cancelled: enough", p.wait("long").Error)
}

// What waits in the queue and what was done to it by others meanwhile.
func TestRunner_leaves_jobs_that_others_have_taken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		goOn := make(chan struct{})
		p := newPool(t, does(script{execute: func(_ context.Context, n int) (int, error) { <-goOn; return n, nil }}, Settings{}), Options{Workers: 1})
		for _, id := range []string{"first", "validated", "started", "failed", "held", "last"} {
			p.submit("do", id, 1)
		}
		synctest.Wait()
		failed := make(chan statemachine.Job, 1)
		go func() { failed <- p.wait("failed") }()
		synctest.Wait()
		_, err := p.engine.Validate(t.Context(), "validated")
		require.NoError(t, err)
		_, err = p.engine.Do(t.Context(), recovery.Validate("started"), recovery.Start("started"), recovery.Fail("failed", errBroken), recovery.Hold("held", "why"))
		require.NoError(t, err)
		close(goOn)
		require.Equal(t, statemachine.Completed, p.wait("last").State)
		require.Equal(t, statemachine.Completed, p.wait("validated").State, "there was nothing in the way")
		require.Equal(t, []string{"submitted", "validated", "started"}, p.story("started"))
		require.Equal(t, []string{"submitted", "failed: broken"}, p.story("failed"))
		require.Equal(t, "broken", (<-failed).Error, "who waited is told what became of it")
		_, err = p.Wait(t.Context(), "started")
		require.ErrorIs(t, err, ErrNotRunning)
		require.Equal(t, "why", p.wait("held").Held)
		job, err := p.Release(t.Context(), "held", "go on")
		require.NoError(t, err)
		require.Equal(t, "held", job.ID)
		require.Equal(t, statemachine.Completed, p.wait("held").State)
		_, err = p.Release(t.Context(), "held", "go on")
		require.Error(t, err)
		require.Zero(t, p.waiting)
	})
}

// An output that can't be written fails the job: it must not stay started for ever.
func TestRunner_fails_what_cannot_be_written(t *testing.T) {
	reg := NewRegistry()
	Add(reg, "twice", Func[int, json.RawMessage](func(context.Context, int) (json.RawMessage, error) { return json.RawMessage(`{"a":1,"a":2}`), nil }), Settings{Retry: Backoff{}, Effect: recovery.Pure})
	Add(reg, "chan", Func[int, chan int](func(context.Context, int) (chan int, error) { return nil, nil }), Settings{Retry: Backoff{}, Effect: recovery.Pure})
	Add(reg, "much", Func[int, int](func(context.Context, int) (int, error) { return 0, errors.New(strings.Repeat("é", 20<<20)) }), Settings{})
	p := newPool(t, reg, Options{})
	require.Contains(t, p.run("twice", "twice", 1).Error, "its output: ")
	require.Contains(t, p.run("chan", "chan", 1).Error, "its output: ")
	job := p.run("much", "much", 1)
	require.Equal(t, statemachine.Failed, job.State)
	require.Less(t, len(job.Error), 33<<10)
}

// A decoder that was used before decodes as a new one does, whatever came before.
func TestDecode_as_a_new_decoder_does(t *testing.T) {
	values := []string{`7`, `-1.5e3`, `"x"`, `null`, `true`, `[1,2]`, `{"name":"Ada"}`, `{"nmae":"Ada"}`, `{"name":7}`, `[`, ``, `"` + strings.Repeat("x", 100<<10) + `"`, ` 7 `}
	targets := []func() any{func() any { return new(int) }, func() any { return new(any) }, func() any { return new(greeting) },
		func() any { return new(json.RawMessage) }, func() any { return new(string) }}
	rapid.Check(t, func(t *rapid.T) {
		for range rapid.IntRange(1, 20).Draw(t, "values") {
			raw := json.RawMessage(rapid.SampledFrom(values).Draw(t, "value"))
			target := rapid.SampledFrom(targets).Draw(t, "target")
			got, want := target(), target()
			dec := json.NewDecoder(strings.NewReader(string(raw)))
			dec.DisallowUnknownFields()
			wantErr, err := dec.Decode(want), decode(raw, got)
			require.Equal(t, fmt.Sprint(wantErr), fmt.Sprint(err))
			require.Equal(t, want, got)
		}
	})
}

// The queue hands out what was put into it, in order.
func TestFifo(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var q fifo
		var model []*task
		t.Repeat(map[string]func(*rapid.T){
			"push": func(*rapid.T) { x := &task{}; q.push(x); model = append(model, x) },
			"pop": func(t *rapid.T) {
				got := q.pop()
				if len(model) == 0 {
					require.Nil(t, got)
					return
				}
				require.Same(t, model[0], got)
				model = model[1:]
			},
			"": func(t *rapid.T) { require.LessOrEqual(t, len(q.tasks), max(2*len(model), len(model)+1)+1) },
		})
	})
}
