package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/recovery/crashtest/subject"
	"github.com/jobwal/jobwal/recovery/runner"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// runChild is the agent itself: open, do what is to be done about the jobs that an earlier one has left, carry on.
func runChild(ctx context.Context, p plan, s settings) (err error) {
	w, err := openWorkshop(s)
	if err != nil {
		return err
	}
	defer w.root.Close() // nothing is written through it
	acks := &acks{ledger: w.ledger}
	engine, err := recovery.Open(ctx, jobsDir(s.workdir), recovery.Options{
		WAL:         wal.Options{FS: subject.KillFS(wal.OS)}, // wal.OS, unless a test certifies the agent
		Projections: []projection.Projection{acks},
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, engine.Close()) }()
	acks.live = true
	r, err := runner.New(engine, capabilities(w), runner.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Drain(ctx)) }()
	if err := takeStock(ctx, r, p, s, engine.Report()); err != nil {
		return err
	}
	for _, step := range p.Steps {
		if err := carryOut(ctx, r, step); err != nil {
			return fmt.Errorf("step %s: %w", step.ID, err)
		}
	}
	return nil
}

func openWorkshop(s settings) (w workshop, err error) {
	w.pace = s.pace
	if err := os.MkdirAll(filesDir(s.workdir), 0o755); err != nil {
		return w, err
	}
	if w.ledger, err = subject.OpenLedger(""); err != nil {
		return w, err
	}
	w.root, err = os.OpenRoot(filesDir(s.workdir))
	return w, err
}

// takeStock says what was found, and what is to be done about it, and does it.
func takeStock(ctx context.Context, r *runner.Runner, p plan, s settings, found recovery.Report) error {
	note("opened the log, epoch %d: %d events replayed in %s", found.WAL.Epoch, found.Replayed, found.Took.Round(100_000))
	for _, torn := range found.WAL.Torn {
		note("torn tail cut: %d bytes (%s), copied to %s", torn.Bytes, torn.Reason, within(s.workdir, torn.Quarantine))
	}
	for _, job := range found.Parked {
		note("parked: %s: %s", job.ID, job.Parked)
	}
	after, err := r.Plan(ctx, p.policy())
	if err != nil || len(after.Decisions) == 0 {
		return err
	}
	note("%s", after)
	applied, err := r.Apply(ctx, after)
	return errors.Join(err, applied.Err())
}

// carryOut takes one step as far as it goes, from wherever its job stands.
func carryOut(ctx context.Context, r *runner.Runner, s step) error {
	if _, err := r.Submit(ctx, s.Capability, s.Args, runner.Once(s.ID)); err != nil { // an earlier agent may have submitted it
		return err
	}
	job, err := r.Wait(ctx, s.ID)
	if err == nil && s.RollBack && job.State == statemachine.Completed { // one that fails is rolled back anyway
		_, err = r.RollBack(ctx, s.ID, "the plan says so")
	}
	return err
}

// message is one line that the agent writes for whoever watches it. An event is acknowledged: it is durable by then.
type message struct {
	Seq  uint64        `json:"seq,omitempty"`
	Job  string        `json:"job,omitempty"`
	Type wal.EventType `json:"type,omitempty"`
	Step string        `json:"step,omitempty"`
	Note string        `json:"note,omitempty"`
}

func ackOf(e wal.Event) message {
	return message{Seq: e.Seq, Job: e.JobID, Type: e.Type, Step: recovery.StepName(e)}
}

// tell writes one line at once, and may be called by several goroutines.
func tell(m message) error {
	line, err := json.Marshal(m)
	if err == nil {
		_, err = os.Stdout.Write(append(line, '\n'))
	}
	return err
}

func note(format string, args ...any) { _ = tell(message{Note: fmt.Sprintf(format, args...)}) } // nobody listens any more

// acks acknowledges each event of this agent: as a projection, it sees them when they are durable, and before the command that
// made them returns.
type acks struct {
	ledger *subject.Ledger
	live   bool // what is replayed was acknowledged by those before
}

func (*acks) Name() string { return "acks" }

func (a *acks) Apply(e wal.Event, _ statemachine.Job) error {
	if !a.live || e.JobID == "" {
		return nil
	}
	return errors.Join(tell(ackOf(e)), a.ledger.Acked(e.JobID, e.Type, e.Seq))
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
