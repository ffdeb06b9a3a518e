package projection

import (
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// MaxCapabilities is how many capabilities Stats counts apart. Jobs of those that come later are counted together, so
// that a caller who makes up names can't fill the memory.
const MaxCapabilities = 1000

// Stats counts jobs and times their stages, in memory that does not grow with the jobs: some 200 KB, and 150 bytes for
// each capability. Use [NewStats]. One goroutine applies; Read may be called from any number of goroutines at any time.
type Stats struct {
	mu           sync.Mutex // guards the fields below
	events       uint64
	last         uint64
	from, to     time.Time
	all, other   tally
	capabilities map[string]*tally
	stages       [4]*hdrhistogram.Histogram // validation, waiting, running, total
}

// tally is what is counted of some jobs.
type tally struct {
	states [numStates]int
	parked int
	ever   [numStates]uint64 // how often a job came into each state
}

// NewStats returns a Stats that has counted nothing.
func NewStats() *Stats {
	s := &Stats{capabilities: make(map[string]*tally)}
	for i := range s.stages {
		s.stages[i] = hdrhistogram.New(1, longest.Microseconds(), 2)
	}
	return s
}

// longest is the longest time that is told apart; a longer one counts as this.
const longest = 365 * 24 * time.Hour

// Name implements [Projection]: "stats".
func (s *Stats) Name() string { return "stats" }

// Apply implements [Projection]. It never fails.
func (s *Stats) Apply(e wal.Event, job statemachine.Job) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = e.Seq
	if job.ID == "" {
		return nil // about the log itself, or of a job that the log has forgotten
	}
	s.events++
	s.all.count(&e, &job)
	s.tally(job.Capability).count(&e, &job)
	if job.Parked == "" {
		s.span(e.Time)
		s.time(e.Type, &job)
	}
	return nil
}

// Forget implements [Forgetter]: forgotten jobs are not counted among those that are there. What they have ever been
// counted for stays.
func (s *Stats) Forget(e wal.Event, jobs []statemachine.Job) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = e.Seq
	for i := range jobs {
		if state := stateNumber(jobs[i].State); state >= 0 {
			s.all.states[state]--
			s.tally(jobs[i].Capability).states[state]--
		}
	}
	return nil
}

func (s *Stats) tally(capability string) *tally {
	t, ok := s.capabilities[capability]
	switch {
	case ok:
		return t
	case len(s.capabilities) == MaxCapabilities:
		return &s.other
	}
	t = new(tally)
	s.capabilities[capability] = t
	return t
}

// count moves the job from the state that it had before e to the one it has. Whether it was there before, and whether
// e parked it, stands in the job, so that nothing has to be kept of any.
func (t *tally) count(e *wal.Event, job *statemachine.Job) {
	first, state, before := job.FirstSeq == e.Seq, stateNumber(job.State), stateNumber(job.Before)
	if state < 0 || before < 0 {
		return
	}
	switch {
	case job.ParkedSeq == e.Seq:
		t.parked++
		if first {
			t.states[state]++
		}
	case job.Parked == "":
		if !first {
			t.states[before]--
		}
		t.states[state]++
		if state != before {
			t.ever[state]++
		}
	}
}

// span widens the time that the events cover. Clocks jump: the newest event need not be the latest.
func (s *Stats) span(at time.Time) {
	if s.from.IsZero() || at.Before(s.from) {
		s.from = at
	}
	if at.After(s.to) {
		s.to = at
	}
}

// time records the stages that e ended.
func (s *Stats) time(on wal.EventType, job *statemachine.Job) {
	switch on {
	case wal.JobValidated:
		s.record(0, job.SubmittedAt, job.ValidatedAt)
	case wal.JobStarted:
		s.record(1, job.ValidatedAt, job.StartedAt)
	case wal.JobCompleted, wal.JobFailed:
		s.record(2, job.StartedAt, job.FinishedAt)
		s.record(3, job.SubmittedAt, job.FinishedAt)
	}
}

func (s *Stats) record(stage int, start, end time.Time) {
	if start.IsZero() {
		return // a job that failed before it started
	}
	took := min(max(0, end.Sub(start)), longest)
	_ = s.stages[stage].RecordValue(took.Microseconds()) // it can't be out of range
}

// StatsView is what Stats has counted up to one event. It is a copy and the caller's. It depends on the log alone: two
// folds of the same log are equal.
type StatsView struct {
	LastSeq uint64 `json:"last_seq"` // of the newest event that is counted
	Events  uint64 `json:"events"`   // about jobs
	// From and To are the earliest and latest time of a legal event: with Ever they make a throughput.
	From time.Time `json:"from,omitzero"`
	To   time.Time `json:"to,omitzero"`

	Tally
	// Capabilities are those that came first, [MaxCapabilities] at most; Other is all jobs of the rest.
	Capabilities map[string]Tally `json:"capabilities"`
	Other        Tally            `json:"other"`

	Validation Latency `json:"validation"` // from submitted to validated
	Waiting    Latency `json:"waiting"`    // from validated to started
	Running    Latency `json:"running"`    // from started to completed or failed
	Total      Latency `json:"total"`      // from submitted to completed or failed
}

// A Tally counts jobs.
type Tally struct {
	// States is how many jobs are in each state now; every state is there but None, in which there are only jobs that
	// were parked before they began.
	States map[statemachine.State]int `json:"states"`
	Parked int                        `json:"parked"` // of the jobs in States, and of those that never began
	// Ever is how often a job has come into each state since the log began, forgotten jobs included. (A Stats that is
	// folded anew from a log that was compacted counts what is left in it.)
	Ever map[statemachine.State]uint64 `json:"ever"`
	// FailureRate is the share of failed among all that ever completed or failed, from 0 to 1; 0 when none has. A
	// rollback changes nothing about how a job ended.
	FailureRate float64 `json:"failure_rate"`
}

// Latency is how long a stage took. Times are to the microsecond and within 1 %; one that a clock made negative counts
// as 0, and more than a year as a year.
type Latency struct {
	Count int64         `json:"count"`
	P50   time.Duration `json:"p50_ns"`
	P95   time.Duration `json:"p95_ns"`
	P99   time.Duration `json:"p99_ns"`
	Max   time.Duration `json:"max_ns"`
}

// Read returns what is counted now. It holds the applier up for no longer than a copy takes.
func (s *Stats) Read() StatsView {
	s.mu.Lock()
	v := StatsView{LastSeq: s.last, Events: s.events, From: s.from.UTC(), To: s.to.UTC()}
	all, other := s.all, s.other
	capabilities := make(map[string]tally, len(s.capabilities))
	for name, t := range s.capabilities {
		capabilities[name] = *t
	}
	stages := s.stages
	for i, h := range stages {
		stages[i] = h.Clone()
	}
	s.mu.Unlock()

	v.Tally, v.Other, v.Capabilities = all.view(), other.view(), make(map[string]Tally, len(capabilities))
	for name, t := range capabilities {
		v.Capabilities[name] = t.view()
	}
	for i, into := range []*Latency{&v.Validation, &v.Waiting, &v.Running, &v.Total} {
		*into = latency(stages[i])
	}
	return v
}

func (t *tally) view() Tally {
	v := Tally{
		States: make(map[statemachine.State]int, numStates), Parked: t.parked,
		Ever: make(map[statemachine.State]uint64, numStates),
	}
	for i, state := range states {
		if state != statemachine.None || t.states[i] > 0 {
			v.States[state] = t.states[i]
		}
		if state != statemachine.None {
			v.Ever[state] = t.ever[i]
		}
	}
	completed, failed := v.Ever[statemachine.Completed], v.Ever[statemachine.Failed]
	if failed > 0 {
		v.FailureRate = float64(failed) / float64(completed+failed)
	}
	return v
}

func latency(h *hdrhistogram.Histogram) Latency {
	at := func(percentile float64) time.Duration {
		return min(time.Duration(h.ValueAtPercentile(percentile))*time.Microsecond, longest)
	}
	return Latency{Count: h.TotalCount(), P50: at(50), P95: at(95), P99: at(99), Max: at(100)}
}
