package runner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jobwal/jobwal/recovery"
)

// Step runs fn once in a job's life, and makes what it returns durable (job_step) before it returns it. When the work begins
// again, after a crash or for a retry, Step returns the recorded output, and fn is not run. ctx is the one that Execute was
// given, or derived from it.
//
//	page, err := runner.Step(ctx, "fetch", func(ctx context.Context) (Page, error) { return fetch(ctx, args.URL) })
//	if err != nil {
//		return Report{}, err
//	}
//
// Once means: once it is recorded. A crash between the effect of fn and the record lets fn run again, so a step's effect had
// better be idempotent, or the capability be declared as what it is ([recovery.Effect]).
//
// The output goes through encoding/json, the first time as later: what Step returns is what was recorded, read again. So a
// T that loses something on the way loses it at once, and not only after the first crash. It has to be strict JSON, as an
// output of [recovery.Engine.Complete], and it is kept in memory while the work goes on.
//
// # Errors of fn
//
// An error of fn is returned as it is, and not recorded: such a step was not done, and the work should end with the error.
// It may also call the step again; that is the same step. But work that goes on with other steps, after a step that failed,
// may find that the step succeeds the next time, and then it meets other steps than those that were recorded. Where a failure
// is a result, let it be one: make it part of T.
//
// # Names and order
//
// A name is anything but empty, without '/', '#' and control characters. Steps of the same name, as in a loop, are told apart by
// how often they were done: "fetch", "fetch#2", "fetch#3". Work that begins again must meet the steps that are recorded in the
// order in which they are, and only then others; what it does between them must therefore depend on nothing but its
// arguments and the outputs of steps (no clock, no random numbers, no order of a map, unless inside a step). Otherwise Step
// returns an *[OrderError], fn is not run, and the job fails, whatever Execute returns. New steps may be added behind those
// that a job has done, by a new version of the program, and nowhere else.
//
// Steps beside each other each need a [Branch] of their own; then their order does not matter, and what finishes together
// shares a sync. Wait for all of them before Execute returns: a step that is still running by then fails the job. Inside a
// step's function there are no steps.
//
// # Errors
//
// While there is no room on the disk for an output, Step waits. ErrNoJob; the cause with which ctx has ended, before fn is run (once fn has succeeded, its output is recorded even if ctx
// has ended); *OrderError; *[StepError] for a name, an output, or steps where there may be none; ErrFenced when the job is
// held, or no more this attempt's, before fn is run if it is known by then. Whatever keeps an output from being recorded
// comes wrapped in a *StepError: the step was done, and will be done again if the work is.
func Step[T any](ctx context.Context, name string, fn func(context.Context) (T, error)) (T, error) {
	var out, none T
	run := func(ctx context.Context) (any, error) { return fn(ctx) }
	if err := step(ctx, name, run, func(raw json.RawMessage) error { return unmarshal(raw, &out) }); err != nil {
		return none, err
	}
	return out, nil
}

// Branch returns a context for work that goes on beside other work of the same job: a scope in which the steps have an order
// and a numbering of their own. Its steps are recorded as "name/step", and branches of branches as "name/name/step". Of the
// name the rules are those for a step's; it must be the same each time the work is done, so name a branch after what it is
// about, and not after who comes first. Branches of the same name in one scope are the same scope.
//
//	for _, city := range args.Cities {
//		group.Go(func() error {
//			_, err := runner.Step(runner.Branch(ctx, city), "forecast", …)
//			return err
//		})
//	}
//
// Branch writes nothing. A name that can't be one, or a ctx that is of no job, shows at the first Step.
func Branch(ctx context.Context, name string) context.Context {
	p, ok := placeOf(ctx)
	if !ok {
		return ctx
	}
	if reason := refusedName(name); reason != "" && p.bad == nil {
		p.bad = &StepError{JobID: p.attempt.job.ID, Step: join(p.scope, name), Reason: "the branch's name is " + reason}
	}
	p.scope = join(p.scope, name)
	return context.WithValue(ctx, placeKey{}, p)
}

// ErrStepOrder: the work does not meet the steps that are recorded of it. See [OrderError].
var ErrStepOrder = errors.New("runner: steps in another order than recorded")

// An OrderError says where work that began again went another way than the one that is recorded. It matches ErrStepOrder. The
// step that was called was not run. The job fails with it, and trying again is of no use: either the program has changed, or
// it does something between its steps that comes out differently each time.
type OrderError struct {
	JobID    string
	Scope    string // as in "branch" or "branch/branch"; "": the job's own
	Position int    // of the recorded step in its scope, from 1
	Recorded string // the step that is recorded there, as in "fetch" or "fetch#2"
	Called   string // the step that was called in its place; "": none was, and the work said that it was done
}

func (e *OrderError) Error() string {
	where := ""
	if e.Scope != "" {
		where = fmt.Sprintf(" of branch %q", e.Scope)
	}
	if e.Called == "" {
		return fmt.Sprintf("runner: job %q: step %d%s, %q, is recorded and was never reached", e.JobID, e.Position, where, e.Recorded)
	}
	return fmt.Sprintf("runner: job %q: step %d%s is recorded as %q, and %q was called in its place",
		e.JobID, e.Position, where, e.Recorded, e.Called)
}

// Is makes errors.Is(err, ErrStepOrder) true.
func (e *OrderError) Is(target error) bool { return target == ErrStepOrder }

// A StepError says why there is no such step, or why what it returned is not recorded, or can't be had again.
type StepError struct {
	JobID  string
	Step   string // its full name, as in "branch/fetch#2"
	Reason string
	Err    error // what went wrong, if it was more than that
}

func (e *StepError) Error() string {
	text := fmt.Sprintf("runner: job %q: step %q: %s", e.JobID, e.Step, e.Reason)
	if e.Err != nil {
		text += ": " + e.Err.Error()
	}
	return text
}

func (e *StepError) Unwrap() error { return e.Err }

// step is Step for an output of any type: into takes it, from the record or on its way there.
func step(ctx context.Context, name string, run func(context.Context) (any, error), into func(json.RawMessage) error) error {
	p, ok := placeOf(ctx)
	if !ok {
		return ErrNoJob
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	c, err := p.attempt.begin(p, name)
	if err != nil {
		return err
	}
	met := false
	defer func() { p.attempt.leave(c, met) }() // also when run panics, or ends the goroutine
	if c.replayed {
		err = c.again(into)
	} else {
		err = p.attempt.perform(ctx, p, c, run, into)
	}
	met = err == nil
	return err
}

// again hands out what is recorded.
func (c *call) again(into func(json.RawMessage) error) error {
	if err := into(c.record.Output); err != nil {
		return c.failed("what is recorded of it does not fit any more", err)
	}
	return nil
}

// perform runs a step that is not recorded yet, and records it.
func (a *attempt) perform(ctx context.Context, p place, c *call, run func(context.Context) (any, error), into func(json.RawMessage) error) error {
	if _, err := a.fence.look(false); err != nil {
		return err // before anything is done
	}
	p.inside = c.record.Name
	a.alive()
	v, err := run(context.WithValue(ctx, placeKey{}, p))
	a.alive()
	if err != nil {
		return err
	}
	raw, err := marshal(v)
	if err != nil {
		return c.failed("it was done, and its output can't be recorded", err)
	}
	if err := into(raw); err != nil {
		return c.failed("it was done, and its output could not be read again once recorded", err)
	}
	c.record.Output = raw
	err = a.record(ctx, c)
	for n := 0; refusalOf(err) == full && a.settings.rest != nil && a.settings.rest(n, err); n++ {
		a.alive()
		err = a.record(ctx, c)
	}
	if err != nil {
		return c.failed("it was done, and is not recorded", err)
	}
	return nil
}

// record makes a step that was done durable.
func (a *attempt) record(ctx context.Context, c *call) error {
	e := &entry{command: recovery.Step(a.job.ID, c.record.Name, c.record.Output), step: &c.record}
	a.mu.Lock()
	a.waiting = append(a.waiting, e)
	a.mu.Unlock()
	return a.write(ctx, e)
}

// begin finds out whether a step may be called in a place, and whether it is recorded. leave must follow.
func (a *attempt) begin(p place, name string) (*call, error) {
	if err := p.refuses(name); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.over != nil {
		return nil, a.over
	}
	if a.bad != nil { // it fails anyway: nothing more is done for it
		return nil, a.bad
	}
	if a.scopes == nil {
		a.scopes = make(scopes)
	}
	s := a.scopes.at(p.scope)
	c := s.next(a.job.ID, name)
	if len(c.record.Name) > maxName {
		return nil, c.failed(fmt.Sprintf("its full name has %d bytes, the most is %d", len(c.record.Name), maxName), nil)
	}
	if a.bad = s.refuses(c); a.bad != nil {
		return nil, a.bad
	}
	s.running = c
	return c, nil
}

// leave ends a call. met: the step is recorded. One that is not was not called, so it has the same name the next time.
func (a *attempt) leave(c *call, met bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c.scope.running = nil
	if met {
		c.scope.meet(c)
	}
}

// unmet is why work that says that it is done is not: a step that is recorded was never called.
func (a *attempt) unmet() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	var first *OrderError
	var seq uint64
	for _, s := range a.scopes {
		if s.met < len(s.recorded) && (first == nil || s.recorded[s.met].Seq < seq) {
			seq, first = s.recorded[s.met].Seq, s.orderError(a.job.ID, "")
		}
	}
	if first != nil {
		return first
	}
	return nil
}
