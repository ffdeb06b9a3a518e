package runner

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"hash/fnv"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/recovery/crashtest"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// A line is one line of a program of steps.
type line struct {
	does  string
	name  string
	times int
	body  []line
	other []line
}

const (
	aStep     = "step"
	flakyStep = "step that fails some times before it succeeds"
	aReport   = "progress"
	aLoop     = "loop"
	aChoice   = "one body or the other, by what the step before returned"
	branches  = "branches beside each other"
)

// aProgram draws a program whose bodies are so deep in each other at most.
func aProgram(deep int) *rapid.Generator[[]line] {
	does := []string{aStep, aStep, flakyStep, aReport}
	if deep > 0 {
		does = append(does, aLoop, aChoice, branches)
	}
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) line {
		l := line{does: rapid.SampledFrom(does).Draw(t, "does"), name: rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "name")}
		switch l.does {
		case flakyStep, aLoop:
			l.times = rapid.IntRange(1, 3).Draw(t, "times")
		}
		switch l.does {
		case aChoice, branches:
			l.other = aProgram(deep-1).Draw(t, "other")
			fallthrough
		case aLoop:
			l.body = aProgram(deep-1).Draw(t, "body")
		}
		return l
	}), 1, 4)
}

// programRun is one attempt at a program.
type programRun struct {
	worked *workedJob
	job    statemachine.Job
	stop   int // after so many steps that were run

	mu  sync.Mutex // guards the fields below
	ran int
	met map[string]int // by scope
}

// workedJob is a job over all its attempts.
type workedJob struct {
	mu       sync.Mutex        // guards the two fields below
	returned map[string]string // what a step returned to the work first, by scope and position
	wrong    error
	unknown  bool // whether it has completed
}

var (
	errStopped = errors.New("stopped")
	errFlaky   = errors.New("flaky")
)

// lines does what the program says, in a scope. last is what the newest step returned.
func (r *programRun) lines(ctx context.Context, scope string, program []line, last *string) error {
	for _, l := range program {
		if err := r.line(ctx, scope, l, last); err != nil {
			return err
		}
	}
	return nil
}

func (r *programRun) line(ctx context.Context, scope string, l line, last *string) error {
	switch l.does {
	case aReport:
		return Progress(ctx, l.name)
	case aLoop:
		for range l.times {
			if err := r.lines(ctx, scope, l.body, last); err != nil {
				return err
			}
		}
		return nil
	case aChoice:
		h := fnv.New32()
		h.Write([]byte(*last))
		if h.Sum32()%2 == 0 {
			return r.lines(ctx, scope, l.body, last)
		}
		return r.lines(ctx, scope, l.other, last)
	case branches:
		return r.branches(ctx, scope, l, *last)
	}
	return r.step(ctx, scope, l, last)
}

func (r *programRun) branches(ctx context.Context, scope string, l line, last string) error {
	var errs [2]error
	var all sync.WaitGroup
	for i, body := range [][]line{l.body, l.other} {
		name := fmt.Sprint(l.name, i)
		all.Go(func() {
			last := last
			errs[i] = r.lines(Branch(ctx, name), scope+name+"/", body, &last)
		})
	}
	all.Wait()
	return errors.Join(errs[:]...)
}

func (r *programRun) step(ctx context.Context, scope string, l line, last *string) error {
	fails := l.times
	fn := func(context.Context) (string, error) {
		if fails > 0 {
			fails--
			return "", errFlaky
		}
		return r.does(scope)
	}
	got, err := Step(ctx, l.name, fn)
	for err == errFlaky { // as it is: it would not be equal otherwise
		got, err = Step(ctx, l.name, fn)
	}
	if err == nil {
		*last = got
		r.returned(scope, got)
	}
	return err
}

// does is what a step does: something else in each attempt.
func (r *programRun) does(scope string) (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ran == r.stop {
		return "", errStopped
	}
	r.ran++
	return fmt.Sprintf("%s%d in attempt %d", scope, r.met[scope], r.job.Attempts), nil
}

// returned checks that a step that has once returned something to the work returns that for ever.
func (r *programRun) returned(scope, got string) {
	r.mu.Lock()
	at := fmt.Sprint(scope, r.met[scope])
	r.met[scope]++
	r.mu.Unlock()
	r.worked.mu.Lock()
	defer r.worked.mu.Unlock()
	if was, ok := r.worked.returned[at]; !ok {
		r.worked.returned[at] = got
	} else if was != got {
		r.worked.wrong = fmt.Errorf("step %s returned %q, and then %q", at, was, got)
	}
}

// Any program of steps, stopped and crashed at any point, any number of times, inside Open too: what a step has once returned
// it returns for ever, its function is not run again, and in the end the job completes with what was recorded.
func TestSteps_resumed_at_any_point(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) { stepsResumed(t, false) })
}

func FuzzStepsResumed(f *testing.F) {
	f.Fuzz(rapid.MakeFuzz(func(t *rapid.T) { stepsResumed(t, false) }))
}

// An attempt that knows nothing of the one before is caught.
func TestSteps_that_are_forgotten_are_caught(t *testing.T) {
	for name, value := range map[string]string{"rapid.nofailfile": "true", "rapid.shrinktime": "1s"} {
		before := flag.Lookup(name).Value.String()
		require.NoError(t, flag.Set(name, value))
		defer func() { require.NoError(t, flag.Set(name, before)) }()
	}
	said, failed := crashtest.Fails(func(t rapid.TB) {
		rapid.Check(t, func(t *rapid.T) { stepsResumed(t, true) })
	})
	require.True(t, failed)
	require.Contains(t, said, "and then")
}

func stepsResumed(t *rapid.T, forgets bool) {
	ctx := context.Background()
	program := aProgram(2).Draw(t, "program")
	w := &workedJob{returned: map[string]string{}}
	disk := crashfs.New()
	var e *recovery.Engine
	var faulty *crashfs.Faulty
	defer func() {
		if e != nil {
			_ = e.Close()
		}
	}()
	for lives, over := rapid.IntRange(0, 4).Draw(t, "lives"), false; !over; lives-- {
		last := lives <= 0
		if e == nil {
			faulty = crashfs.Inject(disk, nil)
			if !last && rapid.Bool().Draw(t, "power goes") {
				faulty.CrashAfter(rapid.IntRange(0, 40).Draw(t, "operations"))
			}
			e, _ = recovery.Open(ctx, "jobs", recovery.Options{WAL: wal.Options{FS: faulty}})
		}
		if e != nil {
			stop := -1
			if !last {
				stop = rapid.IntRange(0, 8).Draw(t, "stops after")
			}
			over = w.attempt(t, e, faulty, program, stop, forgets)
		}
		if over || e != nil && rapid.Bool().Draw(t, "goes on in this process") && !faulty.Crashed() {
			continue
		}
		faulty.Stop()
		if e != nil {
			_ = e.Close()
			e = nil
		}
		disk = disk.Crash(rapid.SampledFrom([]crashfs.Policy{crashfs.SyncedOnly, crashfs.Everything, crashfs.Seed(7)}).Draw(t, "power cut"))
	}
}

// attempt begins the job's work, or begins it again, and tells whether it has completed.
func (w *workedJob) attempt(t *rapid.T, e *recovery.Engine, faulty *crashfs.Faulty, program []line, stop int, forgets bool) (over bool) {
	ctx := context.Background()
	commands := []recovery.Command{recovery.Resume("job")}
	job, known := e.Job("job")
	if w.unknown && job.State == statemachine.Completed {
		return true // the power went when it was durable, and before that was known
	}
	if !known {
		commands = []recovery.Command{recovery.Submit(recovery.Submission{JobID: "job"}), recovery.Validate("job"), recovery.Start("job")}
	}
	jobs, err := e.Do(ctx, commands...)
	if err != nil {
		require.True(t, faulty.Crashed(), "%v", err)
		return false
	}
	done, err := e.Steps(ctx, "job")
	if err != nil {
		require.True(t, faulty.Crashed(), "%v", err)
		return false
	}
	if forgets {
		done = nil
	}
	a, work := under(e, jobs[0], done, attemptSettings{})
	defer a.close()
	r := &programRun{worked: w, job: jobs[0], stop: stop, met: map[string]int{}}
	var newest string
	err = r.lines(work, "", program, &newest)
	require.NoError(t, w.wrong)
	require.NoError(t, a.broken())
	if err != nil {
		require.True(t, errors.Is(err, errStopped) || faulty.Crashed(), "%v", err)
		return false
	}
	job, err = a.complete(ctx, newest)
	if err != nil {
		require.True(t, faulty.Crashed(), "%v", err)
		w.unknown = errors.Is(err, wal.ErrOutcomeUnknown)
		return false
	}
	require.Equal(t, statemachine.Completed, job.State)
	w.recorded(t, e, a, r)
	return true
}

// recorded: what the log says was recorded is what the work has met, each once, and no more.
func (w *workedJob) recorded(t *rapid.T, e *recovery.Engine, a *attempt, r *programRun) {
	done, err := e.Steps(context.Background(), "job")
	if err != nil { // the power went behind the end
		return
	}
	require.Len(t, a.steps(), len(done))
	names, total := map[string]bool{}, 0
	for i, s := range done {
		require.False(t, names[s.Name], "%s is there twice", s.Name)
		names[s.Name] = true
		require.Equal(t, s.Name, a.steps()[i].Name)
		require.Equal(t, s.Seq, a.steps()[i].Seq)
		require.Equal(t, string(s.Output), string(a.steps()[i].Output))
	}
	for _, n := range r.met {
		total += n
	}
	require.Equal(t, total, len(done))
}

// Any change of the order of steps that are recorded is named, where it is, and nothing is run.
func TestSteps_any_change_of_order_is_named(t *testing.T) {
	e := engineOnMem(t, &crashtest.MemLog{}, nil)
	defer e.Close()
	n := 0
	names := rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c"}), 0, 6)
	rapid.Check(t, func(t *rapid.T) {
		n++
		id := fmt.Sprint("job-", n)
		before, after := names.Draw(t, "before"), names.Draw(t, "after")
		if rapid.Bool().Draw(t, "the same to begin with") {
			after = append(before[:len(before):len(before)], after...)
		}
		branch := rapid.SampledFrom([]string{"", "br"}).Draw(t, "branch")
		_, ctx := started(t, e, id, attemptSettings{})
		for _, name := range before {
			_, err := Step(in(ctx, branch), name, is(1))
			require.NoError(t, err)
		}
		a, ctx := resumed(t, e, id)
		want, ran := differs(id, branch, before, after), 0
		for _, name := range after {
			_, _ = Step(in(ctx, branch), name, func(context.Context) (int, error) { ran++; return 1, nil })
		}
		_, err := a.complete(ctx, nil)
		if want == nil {
			require.NoError(t, err)
			require.Equal(t, len(after)-len(before), ran)
			return
		}
		require.Equal(t, want, err)
		require.Zero(t, ran)
		require.Len(t, recordedNames(t, e, id), len(before))
	})
}

func in(ctx context.Context, branch string) context.Context {
	if branch == "" {
		return ctx
	}
	return Branch(ctx, branch)
}

// differs is the error that is due, by a plain comparison.
func differs(id, branch string, before, after []string) *OrderError {
	before, after = counted(before), counted(after)
	for i, name := range before {
		if i == len(after) || after[i] != name {
			e := &OrderError{JobID: id, Scope: branch, Position: i + 1, Recorded: name}
			if i < len(after) {
				e.Called = after[i]
			}
			return e
		}
	}
	return nil
}

func counted(names []string) (all []string) {
	counts := map[string]int{}
	for _, name := range names {
		counts[name]++
		if n := counts[name]; n > 1 {
			name = fmt.Sprint(name, "#", n)
		}
		all = append(all, name)
	}
	return all
}
