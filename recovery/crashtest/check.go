package crashtest

import (
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/jobwal/jobwal/wal"
)

// Check holds a log against what its callers know, in one pass, and returns a *[Violation] of the first rule that is
// broken, nil when there is none, or the log's own error. The rules are those of the constants of [Rule], but for
// RuleFold and RuleQuarantine.
//
// The log is the sequence of all its events from the first on, as [wal.Log.Events] or [Events] yields it. Nothing may
// be acknowledged or shown between the moment up to which it goes and the call of Check, or that would be missing. A
// log may start later than at 1 as far as [History.Dropped] says, or with [LateStart]: of a job that began before, the
// first event that is there is believed.
//
// With [History.Compacts], jobs may be forgotten. The log is then what [Events] yields: behind its last gap it is whole,
// and of what lies before that, events may be missing, but only of jobs that are forgotten (RuleForgotten). All of such a
// log is held in memory.
//
// Which events are of which command follows from their seqs where they were acknowledged, and else from what they say.
// A legal log has each step of each job once, so no two commands of unknown outcome can both be in it if they have a
// step in common; but one may be the beginning of another, and then all ways of dividing the events among them are
// thought of. (What leaves a job in its state may be there any number of times: let what such commands say differ, or, of
// those without a place, one may pass for another.)
//
// Memory: some 100 bytes for each job and each command, besides the history's own.
func Check(h *History, log iter.Seq2[wal.Event, error], relax ...Relaxation) error {
	relaxed := make(map[Relaxation]bool)
	for _, r := range relax {
		relaxed[r] = true
	}
	c := newChecker(h.testify(relaxed), relaxed)
	if c.broken != nil {
		return c.broken
	}
	if c.compacts {
		events, err := collect(log)
		if err != nil {
			return err
		}
		return c.compacted(events, floorOf(events))
	}
	for e, err := range log {
		if err != nil {
			return fmt.Errorf("crashtest: the log cannot be read behind seq %d: %w", c.last, err)
		}
		if v := c.take(e); v != nil {
			return v
		}
	}
	if v := c.end(); v != nil {
		return v
	}
	return nil
}

// checkFrom is Check for who knows the log's first event.
func checkFrom(h *History, events []wal.Event, floor uint64, relax ...Relaxation) error {
	if t := h.testify(nil); !t.compacts || t.broken != nil || floor <= 1 {
		return Check(h, yields(events), relax...)
	}
	relaxed := make(map[Relaxation]bool)
	for _, r := range relax {
		relaxed[r] = true
	}
	return newChecker(h.testify(relaxed), relaxed).compacted(events, floor)
}

func collect(log iter.Seq2[wal.Event, error]) (events []wal.Event, err error) {
	for e, err := range log {
		if err != nil {
			return nil, fmt.Errorf("crashtest: the log cannot be read behind %d events: %w", len(events), err)
		}
		events = append(events, e)
	}
	return events, nil
}

// compacted checks a log of which only what lies from floor on is whole.
func (c *checker) compacted(events []wal.Event, floor uint64) error {
	below := slices.IndexFunc(events, func(e wal.Event) bool { return e.Seq >= floor })
	if below < 0 {
		below = len(events)
	}
	if floor > 1 {
		if v := c.carry(events[:below], floor); v != nil {
			return v
		}
		events = events[below:]
	}
	for _, e := range events {
		if v := c.take(e); v != nil {
			return v
		}
	}
	if v := c.end(); v != nil {
		return v
	}
	if v := c.endCarried(); v != nil {
		return v
	}
	return nil
}

// checker walks the log beside the testimony.
type checker struct {
	*testimony
	relaxed map[Relaxation]bool
	jobs    map[string]*standing
	cover   *cover
	first   uint64 // what lies before it is gone by right
	last    uint64 // the seq of the event before, 0 before the first
	epoch   uint64
	acked   *Attempt           // its events are being read
	at      int                // which of them is next
	missed  map[string]missing // by job: what was acknowledged and lies below a log that was compacted
}

// standing is how a job stands, by the naive rules of [Reference].
type standing struct {
	seq        uint64
	state      string
	capability string
	first      uint64    // its first event that is there
	touched    time.Time // by its newest
	stray      bool      // its beginning is gone
}

func newChecker(t *testimony, relaxed map[Relaxation]bool) *checker {
	c := &checker{testimony: t, relaxed: relaxed, jobs: make(map[string]*standing)}
	c.cover = newCover(t.attempts, c.asks)
	return c
}

// take takes the next event. What a caller was promised comes before what the log itself promises, so that a violation
// names the command where there is one.
func (c *checker) take(e wal.Event) *Violation {
	if v := c.place(e); v != nil {
		return v
	}
	owed, v := c.owed(e)
	if v != nil {
		return v
	}
	if v := c.legal(e); v != nil {
		return v
	}
	if v := c.unchanged(e); v != nil {
		return v
	}
	switch {
	case !owed && forgets(e):
		return c.cover.close() // it is the engine's own
	case !owed:
		return c.cover.add(e)
	}
	if c.at++; c.at == len(c.acked.Steps) {
		c.acked.used, c.acked = true, nil
	}
	return nil
}

// place: seqs rise, have no gaps, and none in which something is lost.
func (c *checker) place(e wal.Event) *Violation {
	if e.Seq <= c.last {
		return violated(RuleOrder, c.owner(e), e, "seq %d behind seq %d", e.Seq, c.last)
	}
	if c.last == 0 {
		if v := c.begin(e); v != nil {
			return v
		}
	}
	before := c.last
	c.last = e.Seq
	if before+1 == e.Seq {
		return nil
	}
	return c.gap(before+1, e)
}

// begin finds out where the log starts.
func (c *checker) begin(e wal.Event) *Violation {
	c.first = max(c.first, 1)
	if !c.relaxed[LateStart] && (c.start == 1 || e.Seq > c.start) {
		return nil
	}
	c.first, c.last = e.Seq, e.Seq-1
	return c.skip(e.Seq)
}

// skip leaves out what lies before the log's start.
func (c *checker) skip(start uint64) *Violation {
	for len(c.placed) > 0 && c.placed[0].First < start {
		if a := c.placed[0]; a.last() >= start {
			return missed(RuleWhole, a, "the log starts at seq %d, in the middle of it", start)
		}
		c.placed[0].used = true
		c.placed = c.placed[1:]
	}
	for len(c.saw) > 0 && c.saw[0].seq < start {
		c.saw = c.saw[1:]
	}
	return nil
}

// gap: from is missing, and e comes next.
func (c *checker) gap(from uint64, e wal.Event) *Violation {
	rule, lost := RuleAcknowledged, c.acked
	if c.relaxed[LostTail] {
		rule = RulePrefix
	}
	if c.relaxed[SparseSeqs] {
		lost = nil
	}
	if lost == nil && len(c.placed) > 0 && c.placed[0].First < e.Seq {
		lost = c.placed[0]
	}
	switch {
	case lost != nil:
		return violated(rule, lost, e, "seqs %d to %d are missing: it was acknowledged there, and events behind it survived",
			from, e.Seq-1)
	case len(c.saw) > 0 && c.saw[0].seq < e.Seq:
		if rule != RulePrefix {
			rule = RuleShown
		}
		return violated(rule, nil, e, "seq %d is missing: it was shown, and events behind it survived", c.saw[0].seq)
	case !c.relaxed[SparseSeqs]:
		return violated(RuleDense, nil, e, "seqs %d to %d are missing", from, e.Seq-1)
	}
	return nil
}

// owed tells whether the event is at a place where something was acknowledged, and holds it against that.
func (c *checker) owed(e wal.Event) (bool, *Violation) {
	for len(c.placed) > 0 && c.placed[0].First == e.Seq {
		if c.acked != nil {
			return true, violated(RuleReused, c.placed[0], e, "its seq was acknowledged to another, too: %v", c.acked)
		}
		if v := c.cover.close(); v != nil {
			return true, v
		}
		c.acked, c.at, c.placed = c.placed[0], 0, c.placed[1:]
		if c.acked.First <= c.acked.above {
			return true, violated(RuleReused, c.acked, e, "seqs up to %d were taken when it was asked for", c.acked.above)
		}
	}
	if c.acked == nil {
		return false, nil
	}
	a, step := c.acked, c.acked.Steps[c.at]
	if !c.asks(a, step, e) {
		return true, violated(RuleAcknowledged, a, e,
			"its event at seq %d, %v, is not there as it was acknowledged", e.Seq, step)
	}
	return true, nil
}

// asks tells whether a's step is what the event says, byte for byte.
func (c *checker) asks(a *Attempt, step Step, e wal.Event) bool {
	if e.Problem != "" {
		return false
	}
	if step.Type != wal.JobSubmitted && (a.engine || step.Capability == "" && e.Capability != "") {
		step.Capability = c.capability(e)
	}
	return step.Same(StepOf(e))
}

// capability is what an engine gives to all events of the job. Who appends by hand may do so, or not.
func (c *checker) capability(e wal.Event) string {
	switch job := c.jobs[e.JobID]; {
	case job != nil:
		return job.capability
	case c.begunBefore(e):
		return e.Capability
	}
	return ""
}

// begunBefore: the job's beginning lies before the start of the log.
func (c *checker) begunBefore(e wal.Event) bool { return e.Prev != 0 && e.Prev < c.first }

// legal: epoch, Prev and lifecycle, by the rules of [Reference], which takes no log with gaps or a late start.
func (c *checker) legal(e wal.Event) *Violation {
	if e.Epoch < c.epoch && !c.relaxed[SeveralWriters] {
		return violated(RuleEpoch, c.owner(e), e, "epoch %d behind epoch %d", e.Epoch, c.epoch)
	}
	c.epoch = e.Epoch
	if forgets(e) {
		return c.forget(e)
	}
	job := c.jobs[e.JobID]
	if job == nil {
		job = &standing{capability: e.Capability, first: e.Seq}
		if c.begunBefore(e) {
			job.believe(e)
			job.stray = true
		}
		c.jobs[e.JobID] = job
	}
	next, legal := after(job.state, e.Type)
	if e.Prev != job.seq || !legal {
		return c.illegal(e, job)
	}
	job.seq, job.state, job.touched = e.Seq, next, e.Time
	return nil
}

// believe makes the job stand as the event needs it.
func (s *standing) believe(e wal.Event) {
	for _, state := range []string{"submitted", "validated", "started", "completed", "started" + held} {
		if _, legal := after(state, e.Type); legal {
			s.seq, s.state = e.Prev, state
			return
		}
	}
}

// illegal names the reason that says most: a log that has something twice, or shows what was refused, has a step too
// many, and that step is hardly ever legal.
func (c *checker) illegal(e wal.Event, job *standing) *Violation {
	a, rule := c.cover.blame(e)
	switch {
	case rule == RuleOnce, c.cover.holds(e):
		return violated(RuleOnce, a, e, "it is in the log already")
	case rule == RuleRefused:
		return violated(RuleRefused, a, e, "it was refused, and is there")
	case e.Prev != job.seq:
		return violated(RulePrev, a, e, "prev %d; the newest event of job %q is %d", e.Prev, e.JobID, job.seq)
	}
	return violated(RuleTransition, a, e, "%s of job %q, which is %s", e.Type, e.JobID, or(job.state, "unknown"))
}

// owner is the command that asked for the event, as far as one can tell; nil where one cannot.
func (c *checker) owner(e wal.Event) *Attempt {
	a, _ := c.cover.blame(e)
	return a
}

// unchanged: it is what others were shown.
func (c *checker) unchanged(e wal.Event) *Violation {
	for len(c.saw) > 0 && c.saw[0].seq == e.Seq {
		if c.saw[0].digest != digest(e) {
			return violated(RuleShown, nil, e, "somebody was shown another event with this seq")
		}
		c.saw = c.saw[1:]
	}
	return nil
}

// end: nothing is missing behind the last event.
func (c *checker) end() *Violation {
	switch {
	case c.acked != nil && c.relaxed[LostTail]:
		return missed(RuleWhole, c.acked, "the log ends at seq %d, in the middle of it", c.last)
	case c.acked != nil:
		return missed(RuleAcknowledged, c.acked, "the log ends at seq %d, in the middle of it", c.last)
	}
	if v := c.cover.close(); v != nil {
		return v
	}
	if c.last == 0 && c.start > 1 {
		if v := c.skip(c.start); v != nil {
			return v
		}
		c.last, c.first = c.start-1, c.start
	}
	if c.relaxed[LostTail] {
		return nil
	}
	switch {
	case len(c.placed) > 0:
		return missed(RuleAcknowledged, c.placed[0], "the log ends at seq %d, before it", c.last)
	case len(c.saw) > 0:
		return missed(RuleShown, nil, "the log ends at seq %d, and somebody was shown seq %d", c.last, c.saw[0].seq)
	case c.reached > c.last:
		return missed(RuleShown, nil, "the log ends at seq %d, and was opened when it went to seq %d", c.last, c.reached)
	case c.first > 1:
		return nil // what has no known place may have been dropped
	}
	return c.cover.missing()
}
