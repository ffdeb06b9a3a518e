package crashtest

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// What Actions hold against the Reference.

// Invariant holds all that the engine says against the Reference, and calls Check. If the power has gone meanwhile, the
// engine recovers before. It is the action without a name.
func (a *Actions) Invariant(t *rapid.T) {
	t.Helper()
	a.wantOpen(t)
	a.holdAlive(t, "between actions", a.all)
	if a.Check != nil {
		a.Check(t, a.engine, a.ref)
	}
}

// hold fails the test if a check does.
func (a *Actions) hold(t *rapid.T, what string, check func() error) {
	t.Helper()
	if err := check(); err != nil {
		t.Fatalf("%s: acknowledged: %d events; engine has %d: %v", what, a.ref.Last(), a.recovered(), err)
	}
}

// holdAlive is hold for an engine that may have lost its disk, or loses it while it reads.
func (a *Actions) holdAlive(t *rapid.T, what string, check func() error) {
	t.Helper()
	if a.faulty.Crashed() || check() != nil && a.faulty.Crashed() {
		a.lose(t)
	}
	a.hold(t, what, check)
}

// all is everything that is true of a living engine. What was read from this opening's log before is not read again, but
// for the jobs that went on since: see read.
func (a *Actions) all() error {
	if err := a.shown(); err != nil {
		return err
	}
	if err := a.events(a.checked + 1); err != nil {
		return err
	}
	if err := a.forgotten(); err != nil {
		return err
	}
	touched := make(map[string]bool)
	for _, e := range a.ref.events[a.checked:] {
		touched[e.JobID] = true
	}
	for _, id := range slices.DeleteFunc(a.ref.Jobs(), func(id string) bool { return !touched[id] }) {
		if err := cmp.Or(a.payloads(id), a.history(id)); err != nil {
			return err
		}
	}
	a.checked = a.ref.Last()
	return nil
}

// glance is what of a job is in memory, comparable.
type glance struct {
	ID, Capability, Error, RollbackReason, Parked string
	Held                                          string
	Attempts, Steps                               int
	State, Before                                 statemachine.State
	FirstSeq, Seq, Epoch                          uint64
	RollingBack                                   bool
}

func glanceAt(j statemachine.Job) glance {
	return glance{j.ID, j.Capability, j.Error, j.RollbackReason, j.Parked, j.Held, j.Attempts, j.Steps, j.State, j.Before, j.FirstSeq, j.Seq, j.Epoch, j.RollingBack}
}

// view is a job as its events have it.
type view struct {
	glance
	args, output json.RawMessage
}

// viewOf folds a job's events, which are legal, by means that package statemachine has no part in.
func viewOf(history []wal.Event) (v view) {
	var standing string
	for _, e := range history {
		if v.FirstSeq == 0 {
			v.ID, v.Capability, v.FirstSeq = e.JobID, e.Capability, e.Seq
		}
		standing, _ = after(standing, e.Type)
		v.Before, v.State, v.Seq, v.Epoch = v.State, statemachine.State(unheld(standing)), e.Seq, e.Epoch
		switch e.Type {
		case wal.JobSubmitted:
			v.args = e.Args
		case wal.JobCompleted:
			v.output = e.Output
		case wal.JobFailed:
			v.Error = e.Error
		case wal.JobHeld:
			v.Held = e.Error
		case wal.JobStarted, wal.JobResumed:
			v.Attempts++
		case wal.JobRolledBack:
			v.RollbackReason = e.Error
		}
		v.RollingBack = e.Type == wal.JobStepUndone // behind one there is another, or the rollback
		switch mark := strings.HasPrefix(recovery.StepName(e), "#"); {
		case e.Type == wal.JobStep && !mark:
			v.Steps++
		case e.Type == wal.JobStepUndone && !mark:
			v.Steps = max(0, v.Steps-1)
		}
		if unheld(standing) == standing {
			v.Held = ""
		}
	}
	return v
}

// shown is what the engine says without a look at the disk.
func (a *Actions) shown() error {
	want, counts := make(map[string]glance), make(map[statemachine.State]int)
	for _, id := range a.ref.Jobs() {
		v := viewOf(a.ref.History(id))
		want[id] = v.glance
		counts[v.State]++
		if job, known := a.engine.Job(id); !known || glanceAt(job) != v.glance {
			return fmt.Errorf("job %q is %+v, not %+v", id, glanceAt(job), v.glance)
		}
	}
	if got := idsOf(slices.Collect(a.engine.Jobs(projection.Query{}))); !slices.Equal(got, a.ref.Jobs()) {
		return fmt.Errorf("jobs are %q, not %q", got, a.ref.Jobs())
	}
	if err := a.told.check(a.ref.Last(), want); err != nil {
		return err
	}
	return cmp.Or(a.reported(counts), a.counted(counts))
}

func (a *Actions) reported(counts map[statemachine.State]int) error {
	interrupted := a.ref.Interrupted(a.epoch)
	if got := idsOf(a.engine.Interrupted()); !slices.Equal(got, interrupted) {
		return fmt.Errorf("interrupted are %q, not %q", got, interrupted)
	}
	r := a.engine.Report()
	if !maps.Equal(r.Jobs, counts) || r.Interrupted != len(interrupted) {
		return fmt.Errorf("report: %v, %d interrupted; not %v, %d", r.Jobs, r.Interrupted, counts, len(interrupted))
	}
	if len(r.Parked)+len(r.Unreadable)+len(r.Failed) > 0 {
		return fmt.Errorf("report: parked %v, unreadable %v, failed %v", r.Parked, r.Unreadable, r.Failed)
	}
	if len(r.PassedOver) > 0 || slices.Contains(r.Incomplete, "stats") {
		return fmt.Errorf("report: passed over %v, incomplete %v", r.PassedOver, r.Incomplete)
	}
	return nil
}

func (a *Actions) counted(counts map[statemachine.State]int) error {
	s, ever := a.engine.Stats(), make(map[statemachine.State]uint64)
	states := make(map[string]string)
	events := uint64(0)
	for _, e := range a.ref.events {
		if forgets(e) {
			f, _ := readForgetting(e) // the reference took it
			for _, id := range f.Jobs {
				delete(states, id)
			}
			continue
		}
		events++
		before := states[e.JobID]
		states[e.JobID], _ = after(before, e.Type)
		if to := unheld(states[e.JobID]); to != unheld(before) {
			ever[statemachine.State(to)]++
		}
	}
	if s.Events != events || s.LastSeq != a.ref.Last() {
		return fmt.Errorf("stats: %d events, the last %d; not %d, the last %d", s.Events, s.LastSeq, events, a.ref.Last())
	}
	for _, stage := range []projection.Latency{s.Validation, s.Waiting, s.Running, s.Total} {
		if min(stage.P50, stage.P95, stage.P99, stage.Max) < 0 {
			return fmt.Errorf("stats: a negative duration: %+v", stage)
		}
	}
	for _, state := range statemachine.States()[1:] {
		if s.States[state] != counts[state] || s.Ever[state] != ever[state] {
			return fmt.Errorf("stats: %d %s, %d ever; not %d, %d", s.States[state], state, s.Ever[state], counts[state], ever[state])
		}
	}
	return nil
}

// payloads reads a job's, from memory or from the log.
func (a *Actions) payloads(id string) error {
	job, _ := a.engine.Job(id)
	want := viewOf(a.ref.History(id))
	args, err := a.engine.Read(context.Background(), job.Args)
	output, err2 := a.engine.Read(context.Background(), job.Output)
	if err := cmp.Or(err, err2); err != nil {
		return fmt.Errorf("payloads of job %q: %w", id, err)
	}
	if !bytes.Equal(args, want.args) || !bytes.Equal(output, want.output) {
		return fmt.Errorf("job %q: args %.100q, output %.100q; not %.100q, %.100q", id, args, output, want.args, want.output)
	}
	return nil
}

// forgotten: of jobs that are forgotten nothing is left but that they were.
func (a *Actions) forgotten() error {
	for _, id := range a.gone() {
		if job, known := a.engine.Job(id); known || !isForgotten(a.engine, id) {
			return fmt.Errorf("job %q is forgotten, and is there (%v), or as if it had never been", id, job)
		}
	}
	return nil
}

// events follows the log from a seq to its last.
func (a *Actions) events(from uint64) error {
	got, err := a.follow(max(from, a.first), a.ref.Last())
	if err != nil {
		return err
	}
	for _, e := range got {
		if err := a.same(e, a.ref.events[e.Seq-1]); err != nil {
			return err
		}
	}
	return nil
}

// same compares an event of the log with one of the Reference. Its time is whatever it was when it was first seen.
func (a *Actions) same(got, want wal.Event) error {
	a.see(got)
	if got.Seq != want.Seq || got.Prev != want.Prev || got.Epoch != want.Epoch || got.Type != want.Type || got.JobID != want.JobID ||
		got.Capability != want.Capability || got.Error != want.Error || got.Problem != "" ||
		!bytes.Equal(got.Args, want.Args) || !bytes.Equal(got.Output, want.Output) {
		return fmt.Errorf("seq %d is prev %d, epoch %d, capability %q, %v; not prev %d, epoch %d, capability %q, %v", got.Seq, got.Prev,
			got.Epoch, got.Capability, StepOf(got), want.Prev, want.Epoch, want.Capability, StepOf(want))
	}
	if !got.Time.Equal(a.times[got.Seq]) {
		return fmt.Errorf("seq %d: time %v, it was %v", got.Seq, got.Time, a.times[got.Seq])
	}
	return nil
}

func (a *Actions) see(e wal.Event) {
	if a.times == nil {
		a.times = make(map[uint64]time.Time)
	}
	if _, seen := a.times[e.Seq]; !seen {
		a.times[e.Seq] = e.Time
	}
}

// follow returns the events from one seq to another, both of which are there.
func (a *Actions) follow(from, to uint64) (events []wal.Event, err error) {
	if from > to {
		return nil, nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for e, err := range a.engine.Follow(ctx, from) {
		if err != nil {
			return events, fmt.Errorf("following from %d: %w", from, err)
		}
		if want := from + uint64(len(events)); e.Seq != want {
			return events, fmt.Errorf("following from %d: seq %d in place of %d", from, e.Seq, want)
		}
		if events = append(events, e); e.Seq >= to {
			break
		}
	}
	return events, nil
}

// history walks a job's events, and folds them: the job is what its events say, by package statemachine, too.
func (a *Actions) history(id string) error {
	want := a.ref.History(id)
	var folded statemachine.Job
	n := 0
	for e, err := range a.engine.History(context.Background(), id) {
		if err == nil && n == len(want) {
			err = fmt.Errorf("more than its %d events", n)
		}
		if err == nil {
			err = a.same(e, want[n])
		}
		if err != nil {
			return fmt.Errorf("history of job %q: %w", id, err)
		}
		folded, n = fold(folded, e), n+1
	}
	job, _ := a.engine.Job(id)
	if n != len(want) || glanceAt(job) != glanceAt(folded) || timesOf(job) != timesOf(folded) {
		return fmt.Errorf("job %q is %+v, its history of %d events folds to %+v", id, job, n, folded)
	}
	return nil
}

// noneOf: a job that was never submitted has nothing.
func (a *Actions) noneOf(id string) error {
	if job, known := a.engine.Job(id); known {
		return fmt.Errorf("a job is known that was never submitted: %v", job)
	}
	for _, err := range a.engine.History(context.Background(), id) {
		if !errors.Is(err, statemachine.ErrUnknownJob) {
			return fmt.Errorf("history of a job that was never submitted: %v", err)
		}
	}
	return nil
}

// fold leaves payloads out; they are compared by themselves. The args of a step are its name, and stay.
func fold(job statemachine.Job, e wal.Event) statemachine.Job {
	if e.Output = nil; e.Type == wal.JobSubmitted {
		e.Args = nil
	}
	job, _ = job.Apply(e) // an error is in the job: it is parked
	return job
}

func timesOf(j statemachine.Job) [5]time.Time {
	return [...]time.Time{j.SubmittedAt, j.ValidatedAt, j.StartedAt, j.FinishedAt, j.RolledBackAt}
}

// witness is a projection that remembers what it was told. Its snapshot is that.
type witness struct {
	mu    sync.Mutex // guards the fields below
	last  uint64
	jobs  map[string]glance
	gone  []wal.Event // those that forgot jobs: the log lets go of them
	wrong error
}

func (p *witness) Name() string { return "crashtest" }

func (p *witness) Apply(e wal.Event, job statemachine.Job) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.jobs == nil {
		p.jobs = make(map[string]glance)
	}
	if job.Seq != e.Seq || job.ID != e.JobID {
		p.wrong = cmp.Or(p.wrong, fmt.Errorf("a projection was told of seq %d with job %v", e.Seq, job))
	}
	p.follow(e)
	p.jobs[e.JobID] = glanceAt(job)
	return nil
}

func (p *witness) follow(e wal.Event) {
	if e.Seq != p.last+1 {
		p.wrong = cmp.Or(p.wrong, fmt.Errorf("a projection was told of seq %d behind %d", e.Seq, p.last))
	}
	p.last = e.Seq
}

// Forget implements projection.Forgetter.
func (p *witness) Forget(e wal.Event, jobs []statemachine.Job) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.follow(e)
	e.Args = bytes.Clone(e.Args)
	p.gone = append(p.gone, e)
	for _, job := range jobs {
		if had := p.jobs[job.ID]; had != glanceAt(job) {
			p.wrong = cmp.Or(p.wrong, fmt.Errorf("seq %d forgets %v; a projection had it as %+v", e.Seq, job, had))
		}
		delete(p.jobs, job.ID)
	}
	return nil
}

func (p *witness) Version() int { return 1 }

// testified is what a witness saves.
type testified struct {
	Last uint64
	Jobs map[string]glance
	Gone []wal.Event
}

func (p *witness) Snapshot() (func(io.Writer) error, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := testified{p.last, maps.Clone(p.jobs), slices.Clone(p.gone)}
	return func(w io.Writer) error { return json.NewEncoder(w).Encode(s) }, p.wrong
}

func (p *witness) Load(r io.Reader) error {
	var s testified
	if err := json.NewDecoder(r).Decode(&s); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last, p.jobs, p.gone = s.Last, s.Jobs, s.Gone
	return nil
}

// forgotAt returns the event with this seq, if it forgot jobs.
func (p *witness) forgotAt(seq uint64) (wal.Event, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.IndexFunc(p.gone, func(e wal.Event) bool { return e.Seq == seq })
	if i < 0 {
		return wal.Event{}, false
	}
	return p.gone[i], true
}

// check: every event once, in order, with its job as it stood after it. R1.
func (p *witness) check(last uint64, jobs map[string]glance) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.wrong == nil && (p.last != last || !maps.Equal(p.jobs, jobs)) {
		return fmt.Errorf("a projection was told of %d events, not %d, and the jobs %+v, not %+v", p.last, last, p.jobs, jobs)
	}
	return p.wrong
}

// read looks at all that there is once more, and at parts of it.
func (a *Actions) read(t *rapid.T) {
	a.checked = 0
	a.holdAlive(t, "read again", a.all)
	if last := a.ref.Last(); last > 0 {
		from := rapid.Uint64Range(1, last).Draw(t, "from")
		a.holdAlive(t, "following", func() error { return a.events(from) })
		if from < a.first {
			a.holdAlive(t, "following from before the log's start", func() error { return a.dropped(from) })
		}
	}
	stranger := drawNew(t, "stranger", a.ref)
	a.hold(t, "a stranger", func() error { return a.noneOf(stranger) })
	q := projection.Query{
		States: rapid.SliceOfN(rapid.SampledFrom(statemachine.States()[1:]), 0, 3).Draw(t, "states"),
		Order:  rapid.SampledFrom([]projection.Order{projection.BySubmission, projection.ByUpdate}).Draw(t, "order"),
		Limit:  rapid.IntRange(0, 5).Draw(t, "limit"), Descending: rapid.Bool().Draw(t, "descending"),
	}
	a.hold(t, fmt.Sprintf("listing by %+v", q), func() error { return a.listed(q) })
}

// dropped: who follows from a seq that was compacted away is told so, and where the log starts now.
func (a *Actions) dropped(from uint64) error {
	_, err := a.follow(from, from)
	var gone *wal.DroppedError
	if !errors.As(err, &gone) || gone.First != a.first {
		return fmt.Errorf("following from %d, in a log that starts at %d: %v", from, a.first, err)
	}
	return nil
}

// listed holds a query, and its pages one after the other, against a list made by hand.
func (a *Actions) listed(q projection.Query) error {
	views := make(map[string]view)
	for _, id := range a.ref.Jobs() {
		views[id] = viewOf(a.ref.History(id))
	}
	want := slices.DeleteFunc(a.ref.Jobs(), func(id string) bool { return len(q.States) > 0 && !slices.Contains(q.States, views[id].State) })
	if q.Order == projection.ByUpdate {
		slices.SortFunc(want, func(x, y string) int { return cmp.Compare(views[x].Seq, views[y].Seq) })
	}
	if q.Descending {
		slices.Reverse(want)
	}
	var paged []string
	for page := q; ; {
		jobs, next, err := a.engine.Page(page)
		if paged = append(paged, idsOf(jobs)...); err != nil || next.IsZero() || len(paged) > len(want) {
			if err != nil || !slices.Equal(paged, want) {
				return fmt.Errorf("pages: %q, not %q: %v", paged, want, err)
			}
			break
		}
		page.After = next
	}
	if q.Limit > 0 {
		want = want[:min(q.Limit, len(want))]
	}
	if got := idsOf(slices.Collect(a.engine.Jobs(q))); !slices.Equal(got, want) {
		return fmt.Errorf("%q, not %q", got, want)
	}
	return nil
}
