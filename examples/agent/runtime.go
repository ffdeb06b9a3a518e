package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/recovery/crashtest/subject"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// agent takes the steps of a plan through the lifecycle of a job.
type agent struct {
	engine *recovery.Engine
	ledger *subject.Ledger // nil, unless a test certifies the agent
	plan   plan
	root   *os.Root
	s      settings
	out    *json.Encoder
	resume map[string]decision // of interrupted jobs whose work had begun
}

// message is one line that the agent writes for whoever watches it. An event is acknowledged: it is written only after
// the engine said that it is durable.
type message struct {
	Seq  uint64        `json:"seq,omitempty"`
	Job  string        `json:"job,omitempty"`
	Type wal.EventType `json:"type,omitempty"`
	Note string        `json:"note,omitempty"`
}

// runChild is the agent itself: open, look at what was interrupted, carry on.
func runChild(ctx context.Context, p plan, s settings) (err error) {
	a := &agent{plan: p, s: s, out: json.NewEncoder(os.Stdout), resume: make(map[string]decision)}
	if err := os.MkdirAll(filesDir(s.workdir), 0o755); err != nil {
		return err
	}
	if a.root, err = os.OpenRoot(filesDir(s.workdir)); err != nil {
		return err
	}
	defer a.root.Close() // nothing is written through it
	if a.ledger, err = subject.OpenLedger(""); err != nil {
		return err
	}
	opts := recovery.Options{WAL: wal.Options{FS: subject.KillFS(wal.OS)}} // wal.OS, unless a test certifies the agent
	if a.engine, err = recovery.Open(ctx, jobsDir(s.workdir), opts); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.engine.Close()) }()
	if err := a.takeStock(); err != nil {
		return err
	}
	for _, step := range p.Steps {
		if err := a.carryOut(ctx, step); err != nil {
			return fmt.Errorf("step %s: %w", step.ID, err)
		}
	}
	return nil
}

func (a *agent) note(format string, args ...any) error {
	return a.out.Encode(message{Note: fmt.Sprintf(format, args...)})
}

// takeStock says what recovery found, and decides what to do about each interrupted job.
func (a *agent) takeStock() error {
	r := a.engine.Report()
	err := a.note("opened the log, epoch %d: %d events replayed in %s", r.WAL.Epoch, r.Replayed, r.Took.Round(100_000))
	for _, torn := range r.WAL.Torn {
		err = errors.Join(err, a.note("torn tail cut: %d bytes (%s), copied to %s", torn.Bytes, torn.Reason, within(a.s.workdir, torn.Quarantine)))
	}
	for _, job := range a.engine.Interrupted() {
		step, known := a.plan.step(job.ID)
		d := decide(job, step, known)
		a.resume[job.ID] = d
		err = errors.Join(err, a.note("interrupted: %s, %s in epoch %d → %s: %s", job.ID, job.State, job.Epoch, d.action, d.why))
	}
	for _, job := range r.Parked {
		err = errors.Join(err, a.note("parked: %s: %s", job.ID, job.Parked))
	}
	return err
}

// decision is what to do about an interrupted job, and why.
type decision struct {
	action action
	why    string
}

type action string

const (
	carryOn   action = "carry on"
	runAgain  action = "run again"
	undoFirst action = "undo, run again"
	giveUp    action = "fail"
)

// decide is the agent's whole policy after a crash. It looks at what the log says and at nothing else.
func decide(job statemachine.Job, s step, known bool) decision {
	switch {
	case !known:
		return decision{giveUp, "the plan has no such step any more"}
	case job.State != statemachine.Started:
		return decision{carryOn, "its work had not begun"}
	case job.Capability == "file_read":
		return decision{runAgain, "reading twice does no harm"}
	case job.Capability == "file_write":
		return decision{undoFirst, "its backup tells what was there before"}
	case s.Idempotent:
		return decision{runAgain, "the plan says that it may be run twice"}
	}
	return decision{giveUp, "nobody knows how far the command came, and it must not run twice"}
}

// carryOut takes one step as far as it goes, from wherever its job stands.
func (a *agent) carryOut(ctx context.Context, s step) error {
	for {
		job, _ := a.engine.Job(s.ID)
		if job.Parked != "" {
			return nil // it was reported; someone has to look at it
		}
		var err error
		switch job.State {
		case statemachine.None:
			job, err = a.engine.Submit(ctx, recovery.Submission{JobID: s.ID, Capability: s.Capability, Args: s.Args})
		case statemachine.Submitted:
			job, err = a.validate(ctx, job)
		case statemachine.Validated:
			job, err = a.engine.Start(ctx, job.ID)
		case statemachine.Started:
			job, err = a.work(ctx, job)
		case statemachine.Completed, statemachine.Failed:
			if !s.RollBack || job.StartedAt.IsZero() {
				return nil
			}
			job, err = a.rollBack(ctx, job)
		default:
			return nil
		}
		if err != nil {
			return err
		}
		if err := a.acknowledge(job); err != nil {
			return err
		}
	}
}

// eventOf is the event that leads to a state.
var eventOf = map[statemachine.State]wal.EventType{
	statemachine.Submitted: wal.JobSubmitted, statemachine.Validated: wal.JobValidated, statemachine.Started: wal.JobStarted,
	statemachine.Completed: wal.JobCompleted, statemachine.Failed: wal.JobFailed, statemachine.RolledBack: wal.JobRolledBack,
}

func (a *agent) acknowledge(job statemachine.Job) error {
	m := message{Seq: job.Seq, Job: job.ID, Type: eventOf[job.State]}
	return errors.Join(a.out.Encode(m), a.ledger.Acked(m.Job, m.Type, m.Seq))
}

// effect is what a job does to the world: what decide will not run twice is irreversible.
func (a *agent) effect(job statemachine.Job) subject.Effect {
	step, known := a.plan.step(job.ID)
	return subject.Effect{Job: job.ID, Capability: job.Capability, Irreversible: decide(job, step, known).action == giveUp}
}

func (a *agent) workshop(job statemachine.Job) workshop {
	return workshop{root: a.root, job: job.ID, pace: a.s.pace}
}

func (a *agent) validate(ctx context.Context, job statemachine.Job) (statemachine.Job, error) {
	args, err := a.engine.Read(ctx, job.Args)
	if err != nil {
		return job, err
	}
	if err := capabilities[job.Capability].validate(args); err != nil {
		return a.engine.Fail(ctx, job.ID, err)
	}
	return a.engine.Validate(ctx, job.ID)
}

// work runs a started job. Its start is durable by now: should the agent die in here, the next one will know.
func (a *agent) work(ctx context.Context, job statemachine.Job) (statemachine.Job, error) {
	args, err := a.engine.Read(ctx, job.Args)
	if err != nil {
		return job, err
	}
	does, w := capabilities[job.Capability], a.workshop(job)
	d, interrupted := a.resume[job.ID]
	delete(a.resume, job.ID)
	if interrupted && d.action == giveUp {
		return a.engine.Fail(ctx, job.ID, errors.New("interrupted: "+d.why))
	}
	if interrupted && d.action == undoFirst {
		if err := does.undo(ctx, w, args); err != nil {
			return a.engine.Fail(ctx, job.ID, fmt.Errorf("undoing an interrupted run: %w", err))
		}
		if err := a.ledger.Undone(a.effect(job)); err != nil {
			return job, err
		}
	}
	if err := a.ledger.Begin(a.effect(job)); err != nil {
		return job, err
	}
	output, err := does.run(ctx, w, args)
	if err != nil {
		return a.engine.Fail(ctx, job.ID, err)
	}
	if err := a.ledger.Done(a.effect(job)); err != nil {
		return job, err
	}
	return a.engine.Complete(ctx, job.ID, output)
}

// rollBack undoes first and says so then: killed in between, it is done once more, which does no harm.
func (a *agent) rollBack(ctx context.Context, job statemachine.Job) (statemachine.Job, error) {
	args, err := a.engine.Read(ctx, job.Args)
	if err != nil {
		return job, err
	}
	if err := capabilities[job.Capability].undo(ctx, a.workshop(job), args); err != nil {
		return job, fmt.Errorf("undo: %w", err)
	}
	if err := a.ledger.Undone(a.effect(job)); err != nil {
		return job, err
	}
	return a.engine.RollBack(ctx, job.ID, "the plan says so")
}

// readMessages hands on the whole lines that r yields; the last one may have been cut by a kill.
func readMessages(r io.Reader, take func(message)) error {
	dec := json.NewDecoder(r)
	for {
		var m message
		err := dec.Decode(&m)
		switch {
		case err == nil:
			take(m)
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil
		default:
			return err
		}
	}
}
