package crashtest

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// testimony is what a history says, put in the order in which a log can be held against it.
type testimony struct {
	attempts []*Attempt // as they were begun
	placed   []*Attempt // acknowledged at a known seq, by seq
	saw      []sighting // by seq
	reached  uint64     // an opening found a log that goes so far
	start    uint64     // the log may start as late as this, 1 if it may not
	compacts bool       // jobs may be forgotten
	broken   *Violation // the history contradicts the promises by itself
}

// sighting is what somebody was shown.
type sighting struct {
	seq    uint64
	digest string
}

// listener hears a history, record by record.
type listener struct {
	testimony
	relaxed map[Relaxation]bool
	runs    map[string]*hearing
	life    int  // how many crashes there were
	dead    bool // after a crash, before the next opening
	settled int  // the attempts before this one are those of lives that ended, and the log was opened since
	atCrash int  // how many attempts there were at the crash
	epochs  map[uint64]bool
	highest uint64 // epoch before the crash
}

// hearing is one run's part. What one process knows of the order of things, another need not.
type hearing struct {
	attempts map[uint64]*Attempt
	known    uint64 // seqs up to here are taken
}

// testify goes through the history once.
func (h *History) testify(relaxed map[Relaxation]bool) *testimony {
	h.mu.Lock()
	records := h.records[:len(h.records):len(h.records)] // what is there is never changed
	h.mu.Unlock()
	l := listener{relaxed: relaxed, runs: make(map[string]*hearing), epochs: make(map[uint64]bool)}
	l.start = 1
	for i := range records {
		l.hear(&records[i])
	}
	l.arrange()
	return &l.testimony
}

func (l *listener) hear(r *record) {
	run := l.runs[r.Run]
	if run == nil {
		run = &hearing{attempts: make(map[uint64]*Attempt)}
		l.runs[r.Run] = run
	}
	switch r.Kind {
	case kindBegin:
		a := &Attempt{Run: r.Run, ID: r.Command, Steps: r.Steps, Outcome: OutcomeUnknown, Begin: r.moment(),
			engine: r.Engine, above: run.known, upTo: math.MaxUint64, life: l.life, Late: l.dead}
		run.attempts[r.Command] = a
		l.attempts = append(l.attempts, a)
	case kindEnd:
		l.answer(run, run.attempts[r.Command], r)
	case kindCrash:
		l.life, l.dead, l.atCrash = l.life+1, true, len(l.attempts)
	case kindOpened:
		l.open(run, r)
	case kindSaw:
		if !l.dead {
			l.saw = append(l.saw, sighting{r.Seq, r.Digest})
			run.known = max(run.known, r.Seq)
		}
	case kindDropped:
		l.start = max(l.start, r.Seq)
	case kindCompacts:
		l.compacts = true
	}
}

func (r *record) moment() Moment { return Moment{Order: r.N, At: time.Duration(r.NS)} }

func (l *listener) answer(run *hearing, a *Attempt, r *record) {
	a.Outcome, a.Err, a.End = r.Outcome, r.Error, r.moment()
	a.Late = a.Late || l.dead || a.life != l.life
	if r.Outcome != OutcomeOK || r.Seq == 0 {
		return
	}
	if l.relaxed[SparseSeqs] && r.Step > 0 {
		return // nobody knows how far before it the first event is
	}
	a.First, a.step = r.Seq-uint64(r.Step), r.Step
	if !a.Late {
		run.known = max(run.known, a.last())
	}
}

// last is the seq of the last event, or, where seqs have gaps, one that is not above it.
func (a *Attempt) last() uint64 { return a.First + uint64(max(len(a.Steps), 1)) - 1 }

// open begins a life. What was in doubt before the crash is settled: it was there then, or never will be.
func (l *listener) open(run *hearing, r *record) {
	if l.broken == nil && (l.epochs[r.Epoch] || l.dead && r.Epoch <= l.highest) {
		l.broken = missed(RuleEpoch, nil, "the log was opened with epoch %d, which it had before, or is past", r.Epoch)
	}
	l.epochs[r.Epoch] = true
	l.highest = max(l.highest, r.Epoch)
	if l.dead {
		l.dead = false
		l.settle(r.Last)
	}
	run.known = max(run.known, r.Last)
	l.reached = max(l.reached, r.Last)
}

func (l *listener) settle(last uint64) {
	for _, a := range l.attempts[l.settled:l.atCrash] {
		a.upTo = last
	}
	l.settled = l.atCrash
	if !l.relaxed[LostTail] {
		return
	}
	for _, a := range l.attempts[:l.atCrash] {
		a.lost = a.lost || a.First != 0 && a.last() > last || a.First == 0 && a.upTo != math.MaxUint64
	}
	l.saw = slices.DeleteFunc(l.saw, func(s sighting) bool { return s.seq > last })
	for _, run := range l.runs {
		run.known = min(run.known, last)
	}
	l.reached = min(l.reached, last)
}

func (l *listener) arrange() {
	for _, a := range l.attempts {
		if a.proven() && a.First != 0 {
			l.placed = append(l.placed, a)
		}
	}
	slices.SortStableFunc(l.placed, func(a, b *Attempt) int { return cmp.Compare(a.First, b.First) })
	slices.SortStableFunc(l.saw, func(a, b sighting) int { return cmp.Compare(a.seq, b.seq) })
}

// proven: its events have to be in the log.
func (a *Attempt) proven() bool { return a.judged() == OutcomeOK && !a.lost && len(a.Steps) > 0 }
