package crashtest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/recovery/crashtest/subject"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// childVariable is, in the environment, how the program behaves that a test binary is to be in place of running tests.
const childVariable = "JOBWAL_TEST_SHOP"

// It stands here and not in a TestMain so that the other tests of the package have nothing to do with it.
func init() {
	behaviour := os.Getenv(childVariable)
	if behaviour == "" {
		return
	}
	if err := shop(behaviour, os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// order is the work that the shop has to do. It is small, and has one job of each kind.
type order struct {
	id, capability string
	undo           bool
}

var orders = []order{
	{id: "pay", capability: "charge"},             // appends to a file: it can't be told whose line is whose, nor taken back
	{id: "ship", capability: "label"},             // makes a file, which is there or not
	{id: "gift", capability: "label", undo: true}, // and takes it away again
}

// seller is a program as it should be, and as it should not: behaviour "right" does everything in order.
type seller struct {
	behaviour string
	dir       string
	engine    *recovery.Engine
	ledger    *subject.Ledger
}

func shop(behaviour, dir string) (err error) {
	ctx := context.Background()
	s := &seller{behaviour: behaviour, dir: dir}
	if s.ledger, err = subject.OpenLedger(""); err != nil {
		return err
	}
	if err := s.sabotage(); err != nil {
		return err
	}
	opts := recovery.Options{WAL: wal.Options{FS: subject.KillFS(wal.OS)}}
	switch behaviour {
	case "outside", "outside, again", "stops at the gift":
		opts.WAL.FS = wal.OS
	case "never syncs", "never syncs, by choice":
		opts.WAL.Sync = wal.SyncNever
	}
	if s.engine, err = recovery.Open(ctx, filepath.Join(dir, "jobs"), opts); err != nil {
		return err
	}
	if err := s.sell(ctx); err != nil {
		return err
	}
	if behaviour == "hangs" {
		return forEver()
	}
	return s.engine.Close()
}

// forEver waits for what never comes.
func forEver() error {
	nothing, _, err := os.Pipe()
	if err == nil {
		_, err = io.Copy(io.Discard, nothing)
	}
	return err
}

// sabotage is what a program does that loses, or breaks, what the life before had acknowledged.
func (s *seller) sabotage() error {
	jobs := filepath.Join(s.dir, "jobs")
	switch s.behaviour {
	case "starts afresh":
		return os.RemoveAll(jobs)
	case "scribbles":
		return scribble(jobs)
	case "gives up":
		if _, err := os.Stat(jobs); err == nil {
			return errors.New("there was somebody here before")
		}
	}
	return nil
}

// scribble flips a bit of the first event, if later ones speak for it.
func scribble(jobs string) error {
	name := filepath.Join(jobs, "00000000000000000001.jsonl")
	data, err := os.ReadFile(name)
	if err != nil {
		return nil // no log yet
	}
	i := bytes.Index(data, []byte(`"job_submitted"`))
	if i < 0 || !bytes.Contains(data, []byte(`"job_started"`)) {
		return nil
	}
	data[i+1] ^= 1
	return os.WriteFile(name, data, 0o644)
}

// tear leaves half a record behind the log's end. The engine writes over it; killed before, it leaves a torn end.
func (s *seller) tear() error {
	names, err := filepath.Glob(filepath.Join(s.dir, "jobs", "*.jsonl"))
	if err != nil || len(names) == 0 {
		return errors.Join(err, errors.New("nothing to tear"))
	}
	f, err := os.OpenFile(slices.Max(names), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(`{"seq":99,"pr`)
	return errors.Join(err, f.Close())
}

func (s *seller) sell(ctx context.Context) error {
	if s.behaviour != "all at once" {
		for _, o := range orders {
			if err := s.serve(ctx, o); err != nil {
				return fmt.Errorf("%s: %w", o.id, err)
			}
		}
		return nil
	}
	var all sync.WaitGroup
	errs := make([]error, len(orders))
	for i, o := range orders {
		all.Go(func() { errs[i] = s.serve(ctx, o) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// serve takes an order from where its job stands to its end.
func (s *seller) serve(ctx context.Context, o order) error {
	interrupted := false
	if job, _ := s.engine.Job(o.id); job.State == statemachine.Started {
		interrupted = true
	}
	if s.behaviour == "logs afterwards" {
		return s.actThenLog(ctx, o)
	}
	for {
		job, _ := s.engine.Job(o.id)
		var err error
		switch job.State {
		case statemachine.None:
			if s.behaviour == "stops at the gift" && o.id == "gift" {
				return forEver()
			}
			err = s.do(ctx, wal.JobValidated, recovery.Submit(recovery.Submission{JobID: o.id, Capability: o.capability}),
				recovery.Validate(o.id))
		case statemachine.Validated:
			err = s.start(ctx, o)
		case statemachine.Started:
			if s.behaviour == "leaves it" && interrupted {
				return nil
			}
			err = s.finish(ctx, o, interrupted)
		case statemachine.Completed:
			if !o.undo {
				return nil
			}
			if err = s.undo(ctx, o); s.behaviour == "undoes only the world" {
				return err
			}
		default:
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// do has commands on one job carried out, and tells the world.
func (s *seller) do(ctx context.Context, last wal.EventType, commands ...recovery.Command) error {
	if s.behaviour == "tells first" && last == wal.JobValidated {
		if err := s.ledger.Acked("pay", last, 2); err != nil {
			return err
		}
	}
	if s.behaviour == "tears" {
		if err := s.tear(); err != nil {
			return err
		}
	}
	jobs, err := s.engine.Do(ctx, commands...)
	if err != nil {
		return err
	}
	job := jobs[len(jobs)-1]
	return s.ledger.Acked(job.ID, last, job.Seq)
}

func (s *seller) start(ctx context.Context, o order) error {
	if s.behaviour == "acts first" {
		if err := s.act(o); err != nil {
			return err
		}
	}
	return s.do(ctx, wal.JobStarted, recovery.Start(o.id))
}

// actThenLog keeps no log but of what is over.
func (s *seller) actThenLog(ctx context.Context, o order) error {
	if _, known := s.engine.Job(o.id); known {
		return nil
	}
	if err := s.act(o); err != nil {
		return err
	}
	return s.do(ctx, wal.JobCompleted, recovery.Submit(recovery.Submission{JobID: o.id, Capability: o.capability}),
		recovery.Validate(o.id), recovery.Start(o.id), recovery.Complete(o.id, nil))
}

// finish acts and completes. Of a job that was interrupted it is not known whether it acted: a label can be looked for;
// a charge must not be made twice, so the job fails, and somebody has to look into it.
func (s *seller) finish(ctx context.Context, o order, interrupted bool) error {
	switch {
	case s.behaviour == "acts first":
	case s.behaviour == "completes first":
		if err := s.do(ctx, wal.JobCompleted, recovery.Complete(o.id, nil)); err != nil {
			return err
		}
		return s.act(o)
	case interrupted && o.capability == "charge" && s.behaviour != "again" && s.behaviour != "outside, again":
		return s.do(ctx, wal.JobFailed, recovery.Fail(o.id, errors.New("interrupted")))
	case interrupted && s.hasLabel(o):
		if err := s.ledger.Done(effect(o)); err != nil {
			return err
		}
	default:
		if err := s.act(o); err != nil {
			return err
		}
	}
	return s.do(ctx, wal.JobCompleted, recovery.Complete(o.id, nil))
}

func effect(o order) subject.Effect {
	return subject.Effect{Job: o.id, Capability: o.capability, Irreversible: o.capability == "charge"}
}

func (s *seller) label(o order) string { return filepath.Join(s.dir, o.id+".label") }

func (s *seller) hasLabel(o order) bool {
	_, err := os.Stat(s.label(o))
	return o.capability == "label" && err == nil
}

// act is the effect itself, in between its two lines.
func (s *seller) act(o order) error {
	if err := s.ledger.Begin(effect(o)); err != nil {
		return err
	}
	if err := s.actUponWorld(o); err != nil {
		return err
	}
	return s.ledger.Done(effect(o))
}

func (s *seller) actUponWorld(o order) error {
	if o.capability == "label" {
		return os.WriteFile(s.label(o), nil, 0o644)
	}
	f, err := os.OpenFile(filepath.Join(s.dir, "charges"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteString("one\n")
	return errors.Join(err, f.Close())
}

// undo takes the effect back, however often, and then says so.
func (s *seller) undo(ctx context.Context, o order) error {
	if s.behaviour != "rolls back only the log" {
		if err := os.Remove(s.label(o)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if err := s.ledger.Undone(effect(o)); err != nil {
			return err
		}
	}
	if s.behaviour == "undoes only the world" {
		return nil
	}
	return s.do(ctx, wal.JobRolledBack, recovery.RollBack(o.id, "a gift is given back"))
}
