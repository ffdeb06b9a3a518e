package recovery

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"unicode"

	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// A Plan says what is to be done with the jobs that were interrupted. Nothing has been done yet: it can be printed, kept as
// JSON, compared, edited (change the Action and the Reason of a decision, or take one out), and then applied, by
// [Plan.Apply], also by another process.
type Plan struct {
	LogID     string     `json:"log"`
	Epoch     uint64     `json:"epoch"` // in which it was made
	Seq       uint64     `json:"seq"`   // every event up to this one was looked at
	Decisions []Decision `json:"decisions"`
}

// A Decision is what is to be done with one job.
type Decision struct {
	JobID string `json:"job_id"`
	// Seq is the job's newest event when it was looked at. A job that has changed since is left alone.
	Seq    uint64 `json:"seq"`
	Action Action `json:"action"`
	// Reason is for people, and goes into the log with what is done.
	Reason   string   `json:"reason"`
	Evidence Evidence `json:"evidence"`
}

// Plan looks at every interrupted job ([Engine.Interrupted]), in order of submission, and decides by the policy what is to
// be done with it; nil: DefaultPolicy(nil). It changes nothing. A job about which the policy has no opinion, or on which it
// panics, or whose events can't be read, is to be held; none of them stops the plan. The error is ctx's, or
// wal.ErrInvalid's for a nil one.
func (e *Engine) Plan(ctx context.Context, policy Policy) (Plan, error) {
	if ctx == nil {
		return Plan{}, &wal.InvalidError{Field: "context", Reason: "nil"}
	}
	p := Plan{LogID: e.log.ID(), Epoch: e.log.Epoch(), Seq: e.applier.applied.Load()}
	for _, job := range e.Interrupted() {
		d, err := e.decide(ctx, job, policy)
		if err != nil {
			return Plan{}, err
		}
		p.Decisions = append(p.Decisions, d)
	}
	return p, nil
}

// decide says what would be done with one job. The error is ctx's.
func (e *Engine) decide(ctx context.Context, job statemachine.Job, policy Policy) (Decision, error) {
	if policy == nil {
		policy = DefaultPolicy(nil)
	}
	ev := e.evidence(ctx, job)
	ev.Released = ev.LastEvent == wal.JobReleased && e.idleAtRelease(ctx, job)
	if err := ctx.Err(); err != nil {
		return Decision{}, err
	}
	d := Decision{JobID: job.ID, Seq: job.Seq, Action: ActionHold}
	err := guarded(func() error {
		ev.Effect = effectOf(policy, job.Capability)
		if ev.Problem != "" {
			return fmt.Errorf("its events can't be read: %s", ev.Problem)
		}
		action, reason, ok := policy.Decide(ev)
		if !ok {
			return fmt.Errorf("the policy has no opinion about it")
		}
		d.Action, d.Reason = action, reason
		return nil
	})
	if err != nil {
		d.Reason = err.Error()
	}
	d.Evidence = ev
	return d, nil
}

// maxLookback is how many events of a job are read to find its last step.
const maxLookback = 1000

// evidence reads what of a job is not in memory.
func (e *Engine) evidence(ctx context.Context, job statemachine.Job) Evidence {
	ev := Evidence{
		JobID: job.ID, Capability: job.Capability, State: job.State, Epoch: job.Epoch, Attempts: job.Attempts,
		Steps: job.Steps, LastSeq: job.Seq,
	}
	n := 0
	for event, err := range e.past(ctx, job.ID, job.Seq) {
		if err != nil {
			ev.Problem = err.Error()
			return ev
		}
		if event.Seq == job.Seq {
			ev.LastEvent, ev.LastTime = event.Type, event.Time
		}
		if name := StepName(event); !isMark(name) {
			ev.LastStep = name
		}
		if n++; job.Steps == 0 || ev.LastStep != "" || n == maxLookback {
			return ev
		}
	}
	return ev
}

// idleAtRelease tells whether the process in which a started job's work last began was over when the job was released, which is
// its newest event. crash: work that was under way then may have gone on and acted, and died before it could record it.
func (e *Engine) idleAtRelease(ctx context.Context, job statemachine.Job) bool {
	n := 0
	for event, err := range e.past(ctx, job.ID, job.Seq) {
		switch {
		case err != nil || n == maxLookback:
			return false
		case event.Type == wal.JobStarted || event.Type == wal.JobResumed:
			return event.Epoch < job.Epoch
		}
		n++
	}
	return true
}

// Decision returns the decision about a job, to be looked at or changed; nil when there is none.
func (p *Plan) Decision(jobID string) *Decision {
	for i := range p.Decisions {
		if p.Decisions[i].JobID == jobID {
			return &p.Decisions[i]
		}
	}
	return nil
}

// A Difference is what two plans say of one job. Either is nil where that plan says nothing.
type Difference struct {
	JobID         string
	Before, After *Decision
}

func (d Difference) String() string {
	return fmt.Sprintf("job %s: %s, then %s", d.JobID, d.Before.brief(), d.After.brief())
}

func (d *Decision) brief() string {
	if d == nil {
		return "not in the plan"
	}
	return fmt.Sprintf("%s at seq %d (%s)", d.Action, d.Seq, d.Reason)
}

// Diff returns where the other, later plan says something else about a job, in p's order, and then what only the other has.
// When plans were made does not matter. Of one made again at once of the same log there is no difference.
func (p Plan) Diff(other Plan) (all []Difference) {
	for i := range p.Decisions {
		d := &p.Decisions[i]
		if after := other.Decision(d.JobID); after == nil || d.inUTC() != after.inUTC() {
			all = append(all, Difference{d.JobID, d, after})
		}
	}
	for i := range other.Decisions {
		if d := &other.Decisions[i]; p.Decision(d.JobID) == nil {
			all = append(all, Difference{d.JobID, nil, d})
		}
	}
	return all
}

// inUTC is comparable.
func (d *Decision) inUTC() Decision {
	c := *d
	c.Evidence.LastTime = c.Evidence.LastTime.UTC()
	return c
}

// String is the plan as a table, for people.
func (p Plan) String() string {
	var s strings.Builder
	fmt.Fprintf(&s, "log %s, epoch %d, up to seq %d: %d interrupted\n", p.LogID, p.Epoch, p.Seq, len(p.Decisions))
	if len(p.Decisions) == 0 {
		return s.String()
	}
	w := tabwriter.NewWriter(&s, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "JOB\tCAPABILITY\tEFFECT\tSTATE\tEPOCH\tATTEMPTS\tLAST STEP\tACTION\tREASON")
	for _, d := range p.Decisions {
		ev := d.Evidence
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%d\t%s\t%s\t%s\n", cell(d.JobID), cell(ev.Capability), ev.Effect, ev.State, ev.Epoch,
			ev.Attempts, cell(ev.LastStep), d.Action, cell(d.Reason))
	}
	w.Flush() // into memory
	return s.String()
}

// cell is text as it may stand in a table: in one line, and not too long.
func cell(text string) string {
	const most = 120
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, text)
	if runes := []rune(text); len(runes) > most {
		return string(runes[:most]) + "…"
	}
	if text == "" {
		return "-"
	}
	return text
}

// check refuses a plan that can't be applied to this log, before any of it is.
func (p Plan) check(logID string, opts ApplyOptions) error {
	if p.LogID != logID {
		return &wal.InvalidError{Field: "Plan.LogID", Reason: fmt.Sprintf("%.64q; this log is %s", p.LogID, logID)}
	}
	seen := make(map[string]bool, len(p.Decisions))
	for i, d := range p.Decisions {
		reason := ""
		switch {
		case d.JobID == "" || d.Seq == 0:
			reason = "no job, or no seq"
		case seen[d.JobID]:
			reason = "the job is there twice"
		case !slices.Contains(actions, d.Action):
			reason = fmt.Sprintf("unknown action %.64q", string(d.Action))
		case d.Action == ActionReconcile && opts.Reconcile == nil:
			reason = "ApplyOptions.Reconcile is nil"
		case (d.Action == ActionReconcile || d.Action == ActionResume) && opts.Resume == nil:
			reason = "ApplyOptions.Resume is nil"
		case d.Action == ActionRollBack && opts.RollBack == nil:
			reason = "ApplyOptions.RollBack is nil"
		}
		if reason != "" {
			return &wal.InvalidError{Field: fmt.Sprintf("Plan.Decisions[%d]", i),
				Reason: fmt.Sprintf("%s job %.64q: %s", d.Action, d.JobID, reason)}
		}
		seen[d.JobID] = true
	}
	return nil
}
