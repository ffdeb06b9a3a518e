package recovery

import (
	"fmt"
	"slices"
	"time"

	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// An Effect says what running a capability twice means, when nobody knows whether it ran once.
type Effect uint8

const (
	// Unknown, the zero Effect, is taken for Irreversible.
	Unknown Effect = iota
	// Pure: it changes nothing outside.
	Pure
	// Idempotent: twice has the effect of once.
	Idempotent
	// Reconcilable: it can be found out whether it happened.
	Reconcilable
	// Irreversible: it must not happen twice, and there is nobody to ask but a person.
	Irreversible
)

var effectNames = []string{"unknown", "pure", "idempotent", "reconcilable", "irreversible"}

func (x Effect) String() string {
	if int(x) < len(effectNames) {
		return effectNames[x]
	}
	return fmt.Sprintf("effect %d", uint8(x))
}

// MarshalText implements encoding.TextMarshaler: "pure", "unknown" and so on.
func (x Effect) MarshalText() ([]byte, error) {
	if int(x) >= len(effectNames) {
		return nil, &wal.InvalidError{Field: "Effect", Reason: x.String()}
	}
	return []byte(x.String()), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (x *Effect) UnmarshalText(text []byte) error {
	i := slices.Index(effectNames, string(text))
	if i < 0 {
		return &wal.InvalidError{Field: "Effect", Reason: fmt.Sprintf("%.64q", text)}
	}
	*x = Effect(i)
	return nil
}

// Effects are those of capabilities, by name. One that is not there is Unknown.
type Effects map[string]Effect

// An Action is what is to be done with an interrupted job.
type Action string

const (
	// ActionResume: its work goes on, or begins. Of a started job, that is another attempt.
	ActionResume Action = "resume"
	// ActionFail: it ends as failed.
	ActionFail Action = "fail"
	// ActionRollBack: it ends as failed, if it has not ended yet, what it did is undone, and it is rolled back.
	ActionRollBack Action = "roll_back"
	// ActionReconcile: it is found out whether its work happened; that decides.
	ActionReconcile Action = "reconcile"
	// ActionHold: it waits for somebody's decision.
	ActionHold Action = "hold"
)

var actions = []Action{ActionResume, ActionFail, ActionRollBack, ActionReconcile, ActionHold}

// Evidence is all that a [Policy] goes by: what the log says of one job. It depends on the log alone, and on the effects
// that the policy knows.
type Evidence struct {
	JobID      string             `json:"job_id"`
	Capability string             `json:"capability,omitempty"`
	Effect     Effect             `json:"effect"`
	State      statemachine.State `json:"state"`
	Epoch      uint64             `json:"epoch"`              // in which its newest event was written
	Attempts   int                `json:"attempts,omitempty"` // how often its work has begun
	Steps      int                `json:"steps,omitempty"`    // recorded as done
	LastStep   string             `json:"last_step,omitempty"`
	LastEvent  wal.EventType      `json:"last_event,omitempty"`
	LastSeq    uint64             `json:"last_seq"`
	LastTime   time.Time          `json:"last_time,omitzero"`
	// Released: somebody has released it, when the process in which its work last began was over. So nothing was
	// done since. A release of a job while its work goes on is no such thing: what that does afterwards is as unknown as before.
	Released bool `json:"released,omitempty"`
	// Problem is why the job's events could not be read, as far as LastStep, LastEvent and LastTime want them; "" mostly.
	// A job with a Problem is not given to a policy: it is held.
	Problem string `json:"problem,omitempty"`
}

// A Policy decides what is to be done with an interrupted job, and says why, for people; false: it has no opinion. It may
// be called from any number of goroutines. One that also has a method EffectOf(capability string) Effect is asked for the
// Effect that stands in the Evidence, its own and others'.
type Policy interface {
	Decide(Evidence) (action Action, reason string, decided bool)
}

// PolicyFunc makes a function a [Policy].
type PolicyFunc func(Evidence) (Action, string, bool)

// Decide calls the function.
func (f PolicyFunc) Decide(ev Evidence) (Action, string, bool) { return f(ev) }

// effector is a policy that knows effects.
type effector interface {
	EffectOf(capability string) Effect
}

// effectOf is Unknown where the policy does not know.
func effectOf(p Policy, capability string) Effect {
	if known, ok := p.(effector); ok {
		return known.EffectOf(capability)
	}
	return Unknown
}

// First is the policy of the first of these that has an opinion.
func First(policies ...Policy) Policy { return first(slices.Clone(policies)) }

type first []Policy

func (all first) Decide(ev Evidence) (Action, string, bool) {
	for _, p := range all {
		if action, reason, ok := p.Decide(ev); ok {
			return action, reason, true
		}
	}
	return "", "", false
}

func (all first) EffectOf(capability string) Effect {
	for _, p := range all {
		if x := effectOf(p, capability); x != Unknown {
			return x
		}
	}
	return Unknown
}

// ByCapability has a policy for each of some capabilities, and no opinion about others. The map must not be changed
// afterwards.
func ByCapability(policies map[string]Policy) Policy { return byCapability(policies) }

type byCapability map[string]Policy

func (by byCapability) Decide(ev Evidence) (Action, string, bool) {
	if p := by[ev.Capability]; p != nil {
		return p.Decide(ev)
	}
	return "", "", false
}

func (by byCapability) EffectOf(capability string) Effect {
	if p := by[capability]; p != nil {
		return effectOf(p, capability)
	}
	return Unknown
}

// MaxAttempts is for jobs whose work has begun n times or more: then is done with them, [ActionFail] or [ActionHold]. About
// others it has no opinion, nor about one that is Released, so it stands first among others:
// First(MaxAttempts(5, ActionFail), DefaultPolicy(effects)).
func MaxAttempts(n int, then Action) Policy {
	return PolicyFunc(func(ev Evidence) (Action, string, bool) {
		if ev.State != statemachine.Started || ev.Attempts < n || ev.Released {
			return "", "", false
		}
		return then, fmt.Sprintf("it was tried %s, the most is %d", times(ev.Attempts), n), true
	})
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

// DefaultMaxAttempts is how often a job's work may begin, where nothing else is said.
const DefaultMaxAttempts = 3

// DefaultPolicy does no more than is safe with what is known of the capabilities' effects; the map must not be changed
// afterwards. A job that has not started is resumed, and so is one that is Released: nothing was done since. One
// that has started is, by the effect of its capability,
//
//	pure, idempotent         resumed, until it was tried [DefaultMaxAttempts] times; then held
//	reconcilable             reconciled
//	irreversible, unknown    held: it was started, and whether it happened nobody knows
func DefaultPolicy(effects Effects) Policy { return defaultPolicy(effects) }

type defaultPolicy Effects

func (d defaultPolicy) EffectOf(capability string) Effect { return d[capability] }

func (d defaultPolicy) Decide(ev Evidence) (Action, string, bool) {
	switch {
	case ev.State != statemachine.Started:
		return ActionResume, fmt.Sprintf("%s, and not started: nothing was done yet", ev.State), true
	case ev.Released:
		return ActionResume, "somebody released it, and nothing was done since", true
	case ev.Effect == Reconcilable:
		return ActionReconcile, unknownSince(ev), true
	case ev.Effect != Pure && ev.Effect != Idempotent:
		return ActionHold, unknownSince(ev), true
	}
	if action, reason, over := MaxAttempts(DefaultMaxAttempts, ActionHold).Decide(ev); over {
		return action, reason, true
	}
	return ActionResume, fmt.Sprintf("%s: it may be done again; it was tried %s", ev.Effect, times(ev.Attempts)), true
}

func unknownSince(ev Evidence) string {
	return fmt.Sprintf("started in epoch %d without a result: whether it happened is unknown", ev.Epoch)
}
