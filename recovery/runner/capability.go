package runner

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"sync"
	"time"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/statemachine"
)

// An Executor does a capability's work. A is what it is given, R what comes of it, both as encoding/json has them. The args are
// those that were submitted, decoded anew: what Validate or an attempt before has changed in them is not seen. ctx ends
// when the job is cancelled, when its time is over, or when the runner has to stop; [context.Cause] says which. It is called by
// several goroutines at once, for different jobs. What it may implement besides: [Validator], [Undoer], [Reconciler].
//
// That the work begins is durable before Execute is called. An error, or a panic, is that job's: it fails, or is tried again
// ([RetryPolicy]). One that does not return when its ctx ends keeps its worker: nothing can stop it.
type Executor[A, R any] interface {
	Execute(ctx context.Context, args A) (R, error)
}

// Func makes a function an [Executor].
type Func[A, R any] func(ctx context.Context, args A) (R, error)

// Execute calls the function.
func (f Func[A, R]) Execute(ctx context.Context, args A) (R, error) { return f(ctx, args) }

// A Validator looks at a job's args before it is started. An error fails the job, and nothing was done.
type Validator[A any] interface {
	Validate(ctx context.Context, args A) error
}

// An Undoer takes back what Execute did: of a job that fails after it has started, unless Settings.KeepFailed; and of any job
// by [Runner.RollBack], or by a plan. It is called once for each step that was recorded, newest first, and then once with a Done
// without a Step, for what was done outside of recorded steps: all of it, a part, or nothing at all. A step that was under way
// when the job failed, or the process died, is among that. Each time that it returns nil for a step is durable. It must be
// idempotent: the process may die when it is done and not recorded yet.
//
// After an error the job stays failed, and the rollback is still to be done: [Runner.RollBack] goes on with it, and so does the
// plan of the next opening.
type Undoer[A any] interface {
	Undo(ctx context.Context, args A, done Done) error
}

// Done is what is to be undone.
type Done struct {
	// Step is the step's full name, as it is recorded: "fetch", "fetch#2" the second time, "branch/fetch" in a [Branch]. "": the
	// end, whatever was done outside of recorded steps.
	Step   string
	Output json.RawMessage // as recorded; nil: none
	// Undone are the full names of the steps that were recorded, in their order. They are undone by now, so that what is left at the
	// end is what a step did that is not among them. Only at the end.
	Undone []string
}

// Decode puts the step's output into v, as json.Unmarshal does.
func (d Done) Decode(v any) error { return json.Unmarshal(d.Output, v) }

// A Reconciler finds out whether the work of a job that was started in a process which died, or whose attempt failed in a way
// that leaves it open, has happened. It must not do it. Settings.Effect Reconcilable needs one.
type Reconciler[A, R any] interface {
	Reconcile(ctx context.Context, args A) (Found[R], error)
}

// Found is what a [Reconciler] found out: [Happened], [DidNotHappen] or [CantTell]. The zero value is the last.
type Found[R any] struct {
	out   R
	found uint8
	why   string
}

const (
	foundNothing uint8 = iota
	foundDone
	foundNotDone
)

// Happened: the work was done, and this came of it. The job completes.
func Happened[R any](out R) Found[R] { return Found[R]{out: out, found: foundDone} }

// DidNotHappen: nothing was done, and nothing is under way that still might do it. The job is tried again.
func DidNotHappen[R any]() Found[R] { return Found[R]{found: foundNotDone} }

// CantTell: and why, for the person who is to decide. The job is held.
func CantTell[R any](why string) Found[R] { return Found[R]{why: why} }

// Settings are those of one capability. The zero value is the safest.
type Settings struct {
	// Effect is what running the capability twice means. Default Unknown, which is taken for Irreversible: a job that was
	// started when the process died is held until somebody decides.
	Effect recovery.Effect
	// Timeout is how long an attempt may take, and each call of Validate, Undo and Reconcile. An attempt whose time is over has
	// failed, whatever it may have done: where that matters, be an [Undoer] or a [Reconciler]. Default: no limit.
	Timeout time.Duration
	// Heartbeat: an attempt that does not call [Progress] for so long is ended. Default: it need not.
	Heartbeat time.Duration
	// Retry decides whether an attempt that failed is followed by another. Default [DefaultRetry].
	Retry RetryPolicy
	// KeepFailed: a job that fails stays as it is, though the capability has an [Undoer].
	KeepFailed bool
}

// A Registry holds capabilities by name. Its methods, and [Add], may be called from several goroutines.
type Registry struct {
	mu    sync.RWMutex // guards the field below
	named map[string]*capability
}

// NewRegistry returns an empty one.
func NewRegistry() *Registry { return &Registry{named: make(map[string]*capability)} }

func (reg *Registry) find(name string) *capability {
	reg.mu.RLock()
	defer reg.mu.RUnlock()
	return reg.named[name]
}

// Effects are those of all capabilities, by name. The map is the caller's.
func (reg *Registry) Effects() recovery.Effects {
	reg.mu.RLock()
	defer reg.mu.RUnlock()
	effects := make(recovery.Effects, len(reg.named))
	for name, c := range maps.All(reg.named) {
		effects[name] = c.Effect
	}
	return effects
}

// Undoes tells whether jobs of that capability can be rolled back, because it is an [Undoer]: a plan that rolls back others is refused
// by [Runner.Apply]. False for a name that is not registered.
func (reg *Registry) Undoes(name string) bool {
	c := reg.find(name)
	return c != nil && c.undoes
}

// capability is one without its types.
type capability struct {
	Settings
	name      string
	validates bool
	undoes    bool
	bind      func(raw json.RawMessage) (work, error)
}

// twice tells whether the work may be done again when nobody knows whether it was done, or somebody can be asked.
func (c *capability) twice() bool {
	return c.Effect == recovery.Pure || c.Effect == recovery.Idempotent || c.Effect == recovery.Reconcilable
}

// rollsBack tells whether a job that fails after its start is rolled back.
func (c *capability) rollsBack() bool { return c.undoes && !c.KeepFailed }

// work is what there is to do for one job: a capability with args.
type work interface {
	validate(ctx context.Context) error
	execute(ctx context.Context) (json.RawMessage, error)
	undo(ctx context.Context, done Done) error
	reconcile(ctx context.Context) (Found[json.RawMessage], error)
}

// Add registers an executor, and what else it implements, under a name, and returns the typed way to it. It panics where the
// program is wrong: an empty name or one that is taken, a nil executor, an Effect Reconcilable without a [Reconciler], a
// method Validate, Undo or Reconcile that is not the one of the interface, or is the pointer's only.
func Add[A, R any](reg *Registry, name string, x Executor[A, R], s Settings) Capability[A, R] {
	impl := &typed[A, R]{x: x}
	impl.v, _ = x.(Validator[A])
	impl.u, _ = x.(Undoer[A])
	impl.r, _ = x.(Reconciler[A, R])
	c := &capability{Settings: s, name: name, validates: impl.v != nil, undoes: impl.u != nil, bind: impl.bind}
	if c.Retry == nil {
		c.Retry = DefaultRetry
	}
	if reason := impl.mistake(name, s); reason != "" {
		panic(fmt.Sprintf("runner: capability %q: %s", name, reason))
	}
	reg.mu.Lock()
	defer reg.mu.Unlock()
	if reg.named[name] != nil {
		panic(fmt.Sprintf("runner: capability %q: the name is taken", name))
	}
	reg.named[name] = c
	return Capability[A, R]{c}
}

// typed is an executor with its types.
type typed[A, R any] struct {
	x Executor[A, R]
	v Validator[A]
	u Undoer[A]
	r Reconciler[A, R]
}

// mistake says what is wrong with a capability; "": nothing. A method that nothing would ever call is a mistake, too.
func (t *typed[A, R]) mistake(name string, s Settings) string {
	switch {
	case name == "":
		return "no name"
	case t.x == nil:
		return "no executor"
	case s.Effect == recovery.Reconcilable && t.r == nil:
		return "its effect is reconcilable, and it has no Reconcile"
	}
	kind := reflect.TypeOf(t.x)
	if kind.Kind() != reflect.Pointer {
		kind = reflect.PointerTo(kind)
	}
	for method, is := range map[string]bool{"Validate": t.v != nil, "Undo": t.u != nil, "Reconcile": t.r != nil} {
		if found, has := kind.MethodByName(method); has && !is {
			return fmt.Sprintf("its method %s is not that of runner's interface: %s", method, found.Type)
		}
	}
	return ""
}

func (t *typed[A, R]) bind(raw json.RawMessage) (work, error) {
	c := &bound[A, R]{typed: t}
	if len(raw) == 0 {
		return c, nil
	}
	if err := decode(raw, &c.args); err != nil {
		return nil, fmt.Errorf("its args do not fit: %w", err)
	}
	return c, nil
}

// decoders are json.Decoders that refuse unknown fields. json.Unmarshal can't, and a decoder costs more than small args do.
var decoders = sync.Pool{New: func() any {
	d := &decoder{}
	d.dec = json.NewDecoder(&d.in)
	d.dec.DisallowUnknownFields()
	return d
}}

type decoder struct {
	in  bytes.Reader
	dec *json.Decoder
}

// decode puts one JSON value, with nothing behind it, into v.
func decode(raw json.RawMessage, v any) error {
	d := decoders.Get().(*decoder)
	d.in.Reset(raw)
	err := d.dec.Decode(v)
	if err == nil && len(raw) < 64<<10 { // one that has failed goes on failing, and one that has grown stays so
		d.in.Reset(nil)
		decoders.Put(d)
	}
	return err
}

// bound is a [work].
type bound[A, R any] struct {
	*typed[A, R]
	args A
}

func (c *bound[A, R]) validate(ctx context.Context) error {
	if c.v == nil {
		return nil
	}
	return c.v.Validate(ctx, c.args)
}

func (c *bound[A, R]) execute(ctx context.Context) (json.RawMessage, error) {
	out, err := c.x.Execute(ctx, c.args)
	if err != nil {
		return nil, err
	}
	return encoded(out)
}

func (c *bound[A, R]) undo(ctx context.Context, done Done) error {
	if c.u == nil {
		return ErrNoUndo
	}
	return c.u.Undo(ctx, c.args, done)
}

func (c *bound[A, R]) reconcile(ctx context.Context) (Found[json.RawMessage], error) {
	if c.r == nil {
		return CantTell[json.RawMessage]("the capability has no Reconcile"), nil
	}
	found, err := c.r.Reconcile(ctx, c.args)
	if err != nil || found.found != foundDone {
		return Found[json.RawMessage]{found: found.found, why: found.why}, err
	}
	raw, err := encoded(found.out)
	return Happened(raw), err
}

// encoded is an output as it is recorded. It is made beside the caller's own code, since that may be part of it, and panic.
func encoded(out any) (json.RawMessage, error) {
	raw, err := marshal(out)
	if err != nil {
		return nil, Permanent(fmt.Errorf("its output: %w", err))
	}
	return raw, nil
}

// A Capability is the typed way to one that was registered with [Add]. Its methods may be called from several goroutines.
type Capability[A, R any] struct{ does *capability }

// Name is the one it was registered under.
func (c Capability[A, R]) Name() string { return c.does.name }

// Submit is [Runner.Submit].
func (c Capability[A, R]) Submit(ctx context.Context, r *Runner, args A, opts ...SubmitOption) (statemachine.Job, error) {
	return r.Submit(ctx, c.does.name, args, opts...)
}

// Do submits a job, waits for it as [Runner.Wait] does, and returns its output. When ctx ends the job goes on all the same.
// A *[JobError]: it did not complete, or, submitted before ([Once]), was rolled back, wholly or in part.
func (c Capability[A, R]) Do(ctx context.Context, r *Runner, args A, opts ...SubmitOption) (R, error) {
	t, job, err := r.submit(ctx, c.does.name, args, opts)
	if err != nil {
		var none R
		return none, err
	}
	return c.output(ctx, r)(r.await(ctx, t, job))
}

// Result waits for a job of this capability, as [Runner.Wait] does, and returns its output. A *[JobError]: it did not complete,
// or was rolled back, wholly or in part.
func (c Capability[A, R]) Result(ctx context.Context, r *Runner, id string) (R, error) {
	return c.output(ctx, r)(r.Wait(ctx, id))
}

// output decodes what came of a job.
func (c Capability[A, R]) output(ctx context.Context, r *Runner) func(statemachine.Job, error) (R, error) {
	return func(job statemachine.Job, err error) (out R, _ error) {
		switch {
		case err != nil:
			return out, err
		case job.State != statemachine.Completed || job.RollingBack:
			return out, &JobError{job} // crash: in a rollback: what is half undone is no result
		case job.Capability != c.does.name:
			return out, fmt.Errorf("runner: job %q is of capability %q, not %q", job.ID, job.Capability, c.does.name)
		}
		raw, err := r.engine.Read(ctx, job.Output)
		if err != nil || len(raw) == 0 {
			return out, err
		}
		return out, json.Unmarshal(raw, &out)
	}
}
