package recovery

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"sync"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// An Engine is the jobs of one log, and the only way to change them. Its methods are safe for concurrent use.
type Engine struct {
	log     Log
	jobs    *projection.Jobs
	stats   *projection.Stats
	locks   *jobLocks
	applier *applier
	cancel  context.CancelFunc // ends the applier
	done    chan struct{}      // closed when it has ended
	opened  Report             // what Open found
	begun   wal.Checkpoint     // what it began with; zero: with nothing
	opts    Options

	life    context.Context // ends when Close begins
	end     context.CancelFunc
	keeper  sync.WaitGroup // what goes on in the background
	keeping chan struct{}  // holds a value while a checkpoint is written or the log is compacted; it guards:
	kept    uint64         // seq of the newest checkpoint
	lacking []string       // projections that are not in it
	stale   bool           // there are some that were built from the log since, or that failed to be saved

	no refusedCommands // the newest ones

	gate     sync.RWMutex // held for reading by a command from its first look at a job until its event is applied
	closed   bool         // guarded by gate
	closeErr error
}

// Submit makes a new job. statemachine.ErrDuplicateJob: the id is taken.
func (e *Engine) Submit(ctx context.Context, s Submission) (statemachine.Job, error) {
	return e.one(ctx, Submit(s))
}

// Validate says that a submitted job may be started.
func (e *Engine) Validate(ctx context.Context, id string) (statemachine.Job, error) {
	return e.one(ctx, Validate(id))
}

// Start says that a validated job's work begins. Call it before the work: after a crash, a started job is one whose
// work may have been done in part.
func (e *Engine) Start(ctx context.Context, id string) (statemachine.Job, error) {
	return e.one(ctx, Start(id))
}

// Complete ends a started job well.
func (e *Engine) Complete(ctx context.Context, id string, output any) (statemachine.Job, error) {
	return e.one(ctx, Complete(id, output))
}

// Fail ends a submitted, validated or started job badly.
func (e *Engine) Fail(ctx context.Context, id string, cause error) (statemachine.Job, error) {
	return e.one(ctx, Fail(id, cause))
}

// RollBack says that the effects of a completed or failed job were undone. Call it when they are.
func (e *Engine) RollBack(ctx context.Context, id string, reason string) (statemachine.Job, error) {
	return e.one(ctx, RollBack(id, reason))
}

func (e *Engine) one(ctx context.Context, c Command) (statemachine.Job, error) {
	var job [1]statemachine.Job
	err := e.carryOut(ctx, []Command{c}, job[:])
	return job[0], err
}

// Do carries out commands in order, in one durable append, all or none: one job through several steps, or many jobs at
// once. It returns when they are durable and applied, with the job of each command as it stands after all of them.
//
// Nothing is written when it returns one of: a *[statemachine.TransitionError] (it says what would have been allowed;
// ErrUnknownJob or ErrDuplicateJob where that is the reason), a *[statemachine.ParkedError], a *[statemachine.HeldError],
// a *[ForgottenError], a *[ChangedError], [ErrConflict],
// wal.ErrInvalid, wal.ErrTooLarge, wal.ErrNoSpace, wal.ErrReadOnly, wal.ErrClosed, or ctx's error, without
// wal.ErrOutcomeUnknown. wal.ErrFailed is for good. Together with wal.ErrOutcomeUnknown, whichever it is, the events may
// be there at the next Open. With several commands, the error of one of them says which.
//
// Commands on one job wait for each other, those on different jobs share a sync. ctx ends the wait for the job, or for a
// place in the log's queue; once queued, the call waits for the outcome.
func (e *Engine) Do(ctx context.Context, commands ...Command) ([]statemachine.Job, error) {
	jobs := make([]statemachine.Job, len(commands))
	if err := e.carryOut(ctx, commands, jobs); err != nil {
		return nil, err
	}
	return jobs, nil
}

// carryOut is Do into a slice that is there.
func (e *Engine) carryOut(ctx context.Context, commands []Command, jobs []statemachine.Job) error {
	err := e.do(ctx, commands, jobs)
	if err != nil {
		e.no.note(commands, e.opts.WAL.Now(), err)
	}
	return err
}

func (e *Engine) do(ctx context.Context, commands []Command, jobs []statemachine.Job) error {
	if ctx == nil {
		return &wal.InvalidError{Field: "context", Reason: "nil"}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	events, err := encode(commands)
	if err != nil {
		return err
	}
	if !e.gate.TryRLock() { // Close has it or waits for it: nobody waits behind Close, which waits for a sync
		return wal.ErrClosed
	}
	defer e.gate.RUnlock()
	if err := e.refused(); err != nil {
		return err
	}
	var one [1]string // on the stack
	ids, err := e.locks.lock(ctx, appendIDs(one[:0], commands))
	if err != nil {
		return err
	}
	defer e.locks.unlock(ids)
	// Again: whoever had a job until now may have gone because nothing is applied any more, and left it as it was before
	// his event.
	if err := e.refused(); err != nil {
		return err
	}
	if err := e.expected(commands); err != nil {
		return err
	}
	if err := e.fire(ctx, events); err != nil {
		return err
	}
	first, err := e.log.Append(ctx, events...)
	if err != nil {
		return err
	}
	if err := e.applier.wait(first + uint64(len(events)) - 1); err != nil {
		return &unappliedError{err}
	}
	for i := range commands { // while nobody else has its turn: whoever began an attempt must not be told of the next one
		jobs[i], _ = e.jobs.Get(commands[i].id)
	}
	return nil
}

// unappliedError: the events are durable, and the applier is gone before it came to them. What ended it may well be one
// of the errors that mean that nothing was written (wal.ErrClosed, of a log that was closed beneath the engine), and here
// they do not mean that; so it is wal.ErrOutcomeUnknown, too, which says that the next Open will tell.
type unappliedError struct{ cause error }

func (e *unappliedError) Error() string { return e.cause.Error() + " (the command itself is durable)" }

func (e *unappliedError) Is(target error) bool { return target == wal.ErrOutcomeUnknown }

func (e *unappliedError) Unwrap() error { return e.cause }

// refused: gate must be held.
func (e *Engine) refused() error {
	if e.closed {
		return wal.ErrClosed
	}
	return e.applier.err()
}

func encode(commands []Command) ([]wal.Event, error) {
	if len(commands) == 0 {
		return nil, &wal.InvalidError{Field: "commands", Reason: "none"}
	}
	events := make([]wal.Event, len(commands))
	for i := range commands {
		var err error
		if events[i], err = commands[i].encode(); err != nil {
			return nil, which(err, i, len(commands))
		}
	}
	return events, nil
}

// which says which command of several was refused.
func which(err error, i, n int) error {
	if n == 1 {
		return err
	}
	return &oneOfError{i, n, err}
}

// oneOfError is about the i-th of n commands.
type oneOfError struct {
	i, n  int
	cause error
}

func (e *oneOfError) Error() string {
	return fmt.Sprintf("recovery: command %d of %d: %v", e.i+1, e.n, e.cause)
}

func (e *oneOfError) Unwrap() error { return e.cause }

func appendIDs(ids []string, commands []Command) []string {
	for i := range commands {
		ids = append(ids, commands[i].id)
	}
	return ids
}

var machines = sync.Pool{New: func() any { return statemachine.NewMachine(statemachine.Job{}) }}

// fire takes each event through its job's machine, and gives it what depends on the job. The machines are those of the
// group alone, and gone with it: what a job's next event sees is what this one would leave, the job itself moves when
// the append has succeeded and the applier has read it.
func (e *Engine) fire(ctx context.Context, events []wal.Event) error {
	if len(events) == 1 {
		t, err := e.begin(&events[0])
		if err != nil {
			return err
		}
		defer machines.Put(t.machine)
		return t.fire(ctx, &events[0])
	}
	used := make(map[string]*turn, len(events))
	defer func() {
		for _, t := range used {
			machines.Put(t.machine)
		}
	}()
	for i := range events {
		event := &events[i]
		t := used[event.JobID]
		if t == nil {
			begun, err := e.begin(event)
			if err != nil {
				return which(err, i, len(events))
			}
			t = &begun
			used[event.JobID] = t
		}
		if err := t.fire(ctx, event); err != nil {
			return which(err, i, len(events))
		}
	}
	return nil
}

// turn is one job's in a group: its machine, and the capability of the event before.
type turn struct {
	machine    *statemachine.Machine
	capability string
}

// begin takes a job's first event of a group.
func (e *Engine) begin(event *wal.Event) (turn, error) {
	job, known := e.jobs.Get(event.JobID)
	if !known && e.opts.RefuseIDs >= 0 && e.jobs.Refuses(event.JobID) {
		return turn{}, &ForgottenError{JobID: event.JobID, Event: event.Type}
	}
	job.ID = event.JobID
	event.Prev = job.Seq
	t := turn{machines.Get().(*statemachine.Machine), job.Capability}
	t.machine.Reset(job)
	return t, nil
}

func (t *turn) fire(ctx context.Context, event *wal.Event) error {
	event.Capability = cmp.Or(event.Capability, t.capability)
	t.capability = event.Capability
	return t.machine.Fire(ctx, event.Type, accept)
}

func accept(context.Context) error { return nil }

// Job returns the job as it stands. It never waits for a sync.
func (e *Engine) Job(id string) (statemachine.Job, bool) { return e.jobs.Get(id) }

// Jobs lists jobs. It never waits for a sync, and holds no lock while yielding. A query that comes from outside should
// go through [projection.Query.Validate] first: a query that is not valid panics.
func (e *Engine) Jobs(q projection.Query) iter.Seq[statemachine.Job] { return e.jobs.List(q) }

// Page lists jobs a page at a time, and returns where the next one starts.
func (e *Engine) Page(q projection.Query) ([]statemachine.Job, projection.Cursor, error) {
	return e.jobs.Page(q)
}

// Stats returns counts and latencies over all events so far.
func (e *Engine) Stats() projection.StatsView { return e.stats.Read() }

// Read returns a payload's JSON, from memory or from the log. The slice is the caller's; nil for the zero Payload.
func (e *Engine) Read(ctx context.Context, p statemachine.Payload) (json.RawMessage, error) {
	if ctx == nil {
		return nil, &wal.InvalidError{Field: "context", Reason: "nil"}
	}
	if raw, held := p.JSON(); held || p.IsZero() {
		return raw, nil
	}
	event, err := e.log.At(ctx, p.Seq())
	if err != nil {
		return nil, err
	}
	if event.Type == wal.JobSubmitted {
		return event.Args, nil
	}
	return event.Output, nil
}

// Interrupted returns the jobs that are not finished and whose newest event was written under an epoch that no longer
// lives: whoever was at work on them is gone. In order of submission. Parked jobs are not among them, since they take no
// commands, nor held ones, which wait for somebody's decision and for nothing else; [Report] lists both.
func (e *Engine) Interrupted() []statemachine.Job {
	q := projection.Query{Parked: new(false), Held: new(false),
		States: []statemachine.State{statemachine.Submitted, statemachine.Validated, statemachine.Started}}
	var jobs []statemachine.Job
	for job := range e.jobs.List(q) {
		if !e.log.Live(job.Epoch) {
			jobs = append(jobs, job)
		}
	}
	return jobs
}

// Live tells whether whoever writes under an epoch is still at work, or may be. What was left unfinished under one that does not
// live is interrupted.
func (e *Engine) Live(epoch uint64) bool { return e.log.Live(epoch) }

// History yields the events of one job, oldest first. It goes from event to event by Prev and never scans the log; events
// that lie near each other share a read ([wal.Log.Chain]). It holds one job's events in memory. statemachine.ErrUnknownJob: there is no such job; a
// [ForgottenError], which is wal.ErrDropped: there was one. Where the way back is broken (the
// event was dropped, is damaged, or is of another job), the error comes first, and then what lies on this side of it.
func (e *Engine) History(ctx context.Context, id string) iter.Seq2[wal.Event, error] {
	return func(yield func(wal.Event, error) bool) {
		job, known := e.jobs.Get(id)
		if !known {
			yield(wal.Event{}, e.unknown(id))
			return
		}
		events, err := e.walk(ctx, id, job.Seq)
		if err == nil && job.Parked != "" && !foldsTo(job, events) {
			err = fmt.Errorf("recovery: history of job %q: broken, it passes over events: parked by %s", id, job.Parked)
		}
		if err != nil && !yield(wal.Event{}, err) {
			return
		}
		for _, event := range slices.Backward(events) {
			if !yield(event, nil) {
				return
			}
		}
	}
}

// Backward yields the events of one job, newest first, and holds none of them in memory: what stands near the end of a long story
// is found without the rest. The errors are those of [Engine.History], and nothing comes behind one. Of a parked job it does not
// notice that its past passes over events.
func (e *Engine) Backward(ctx context.Context, id string) iter.Seq2[wal.Event, error] {
	return func(yield func(wal.Event, error) bool) {
		job, known := e.jobs.Get(id)
		if !known {
			yield(wal.Event{}, e.unknown(id))
			return
		}
		for event, err := range e.past(ctx, id, job.Seq) {
			if err != nil {
				err = fmt.Errorf("recovery: history of job %q: %w", id, err)
			}
			if !yield(event, err) {
				return
			}
		}
	}
}

// unknown says why there is no such job.
func (e *Engine) unknown(id string) error {
	if e.jobs.Refuses(id) {
		return &ForgottenError{JobID: id}
	}
	return fmt.Errorf("recovery: job %q: %w", id, statemachine.ErrUnknownJob)
}

// foldsTo tells whether events, newest first, are all that made job what it is. Of a healthy job they are. A parked one
// may have a Prev that passes over events.
func foldsTo(job statemachine.Job, events []wal.Event) bool {
	var again statemachine.Job
	for _, event := range slices.Backward(events) {
		again, _ = again.Apply(event) // the error is why it is parked
	}
	return again.FirstSeq == job.FirstSeq && again.ParkedSeq == job.ParkedSeq
}

// Follow yields the log's events from seq from on, and then each new one when it is durable, until ctx is done or the
// engine is closed, as [wal.Log.Follow] does. It may run ahead of [Engine.Job] by what is not applied yet.
func (e *Engine) Follow(ctx context.Context, from uint64) iter.Seq2[wal.Event, error] {
	return e.log.Follow(ctx, from)
}

// Close waits for the commands in flight, breaks off a checkpoint or a compaction, stops the applier, and closes the log. Commands return wal.ErrClosed from
// then on; jobs can still be read. Closing again returns the same.
func (e *Engine) Close() error {
	e.end()
	e.gate.Lock()
	defer e.gate.Unlock()
	if e.closed {
		return e.closeErr
	}
	e.closed = true
	e.keeper.Wait()
	e.keeping <- struct{}{} // for good; whoever had it ends with life
	if e.cancel != nil {
		e.cancel()
		<-e.done
	}
	e.closeErr = e.log.Close()
	return e.closeErr
}
