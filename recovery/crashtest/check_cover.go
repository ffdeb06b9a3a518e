package crashtest

import (
	"slices"

	"github.com/jobwal/jobwal/wal"
)

// A cover divides those events that nobody was told the place of among the commands that may have made them, such that
// each command has all of its events, together, or none. It knows of a division of the first n events for each n for
// which there is one, and forgets events as soon as no command could stand across their end. That is nearly always at
// once: only the inner events of unknown groups wait.
//
// A command is in one place at most, without that being looked after: its steps, as all steps, occur once in a legal
// log, which the checker sees to first. The one choice that matters is between a command that has to be somewhere and
// one that need not be, so of several divisions the one with most of the former is kept.
type cover struct {
	asks   func(a *Attempt, step Step, e wal.Event) bool
	byStep map[stepKey][]*Attempt // all commands, by each of their steps
	ends   map[stepKey][]*Attempt // those without a place, by their last step
	inner  map[stepKey]bool       // the other steps of those
	sought []*Attempt             // acknowledged without a place

	events []wal.Event
	ways   []way // ways[n]: the best division of the first n events
}

// stepKey is what no legal log has twice.
type stepKey struct {
	kind wal.EventType
	job  string
}

func keyOf(s Step) stepKey { return stepKey{s.Type, s.JobID} }

// way is the end of a division.
type way struct {
	possible bool
	by       *Attempt // whose events the last ones are
	owed     int      // how many commands in it have to be somewhere
}

func newCover(attempts []*Attempt, asks func(*Attempt, Step, wal.Event) bool) *cover {
	c := &cover{asks: asks, inner: make(map[stepKey]bool)}
	c.byStep, c.ends = make(map[stepKey][]*Attempt), make(map[stepKey][]*Attempt)
	c.forget()
	for _, a := range attempts {
		for _, s := range a.Steps {
			c.byStep[keyOf(s)] = append(c.byStep[keyOf(s)], a)
		}
		c.seek(a)
	}
	return c
}

// seek notes a command that may be anywhere.
func (c *cover) seek(a *Attempt) {
	n := len(a.Steps)
	if n == 0 || a.judged() == OutcomeFailed || a.judged() == OutcomeOK && a.First != 0 {
		return
	}
	c.ends[keyOf(a.Steps[n-1])] = append(c.ends[keyOf(a.Steps[n-1])], a)
	for _, s := range a.Steps[:n-1] {
		c.inner[keyOf(s)] = true
	}
	if a.proven() {
		c.sought = append(c.sought, a)
	}
}

func (c *cover) forget() {
	c.events, c.ways = c.events[:0], append(c.ways[:0], way{possible: true})
}

// add takes the next event.
func (c *cover) add(e wal.Event) *Violation {
	c.events = append(c.events, e)
	n := len(c.events)
	var best way
	for _, a := range c.ends[keyOf(StepOf(e))] {
		if before := n - len(a.Steps); before >= 0 && c.ways[before].possible && c.fits(a, c.events[before:]) {
			owed := c.ways[before].owed
			if a.proven() {
				owed++
			}
			if !best.possible || owed > best.owed {
				best = way{true, a, owed}
			}
		}
	}
	c.ways = append(c.ways, best)
	if c.inner[keyOf(StepOf(e))] {
		return nil // a command may go on
	}
	return c.close()
}

// fits tells whether the events are all of the command's.
func (c *cover) fits(a *Attempt, events []wal.Event) bool {
	if a.used || !a.window(events[0].Seq, events[len(events)-1].Seq) {
		return false
	}
	for i, e := range events {
		if !c.asks(a, a.Steps[i], e) {
			return false
		}
	}
	return true
}

// window tells whether the command, if it is in the log, can be at these seqs.
func (a *Attempt) window(first, last uint64) bool {
	return first > a.above && last <= a.upTo && (a.First == 0 || a.First == first)
}

// close: no command stands across the end of the events so far.
func (c *cover) close() *Violation {
	if n := len(c.events); !c.ways[n].possible {
		return c.explain()
	}
	for n := len(c.events); n > 0; n -= len(c.ways[n].by.Steps) {
		c.ways[n].by.used = true
	}
	c.forget()
	return nil
}

// holds tells whether the step is among those that are not divided yet.
func (c *cover) holds(e wal.Event) bool {
	return slices.ContainsFunc(c.events, func(had wal.Event) bool { return StepOf(had).Same(StepOf(e)) })
}

// missing: what was acknowledged is somewhere.
func (c *cover) missing() *Violation {
	for _, a := range c.sought {
		if !a.used {
			return missed(RuleAcknowledged, a, "it was acknowledged, and is nowhere in the log")
		}
	}
	return nil
}

// explain says what is wrong with the first event that cannot be given to anyone.
func (c *cover) explain() *Violation {
	n := len(c.events) - 1
	for !c.ways[n].possible {
		n--
	}
	e := c.events[n]
	a, rule := c.blame(e)
	switch {
	case rule == RuleOnce:
		return violated(rule, a, e, "it is in the log already")
	case rule == RuleRefused:
		return violated(rule, a, e, "it was refused, and is there")
	case rule == RuleWhole:
		return violated(rule, a, e, "only a part of it is there, or its parts are not together")
	case a != nil && a.First != 0 && a.First != e.Seq:
		return violated(rule, a, e, "it was acknowledged at another place")
	case a != nil && e.Seq <= a.above:
		return violated(RuleAsked, a, e, "seqs up to %d were taken when it was asked for", a.above)
	case a != nil && e.Seq > a.upTo:
		return violated(RuleAsked, a, e, "it comes back: the log was opened without it, ending at seq %d", a.upTo)
	case a != nil:
		return violated(RuleAsked, a, e, "it was asked for otherwise")
	}
	return violated(RuleAsked, nil, e, "nobody asked for it")
}

// blame finds the command that has most to do with an event, and the rule that is broken by its being there; no rule
// where it may be.
func (c *cover) blame(e wal.Event) (found *Attempt, rule Rule) {
	for _, a := range c.byStep[keyOf(StepOf(e))] {
		if r := c.charge(a, e); found == nil || weight(r) < weight(rule) {
			found, rule = a, r
		}
	}
	return found, rule
}

// charge says which rule is broken if the event is the command's, "" if none is.
func (c *cover) charge(a *Attempt, e wal.Event) Rule {
	at := slices.IndexFunc(a.Steps, func(s Step) bool { return keyOf(s) == keyOf(StepOf(e)) && c.asks(a, s, e) })
	switch {
	case at < 0:
		return RuleAsked
	case a.used:
		return RuleOnce
	case a.judged() == OutcomeFailed:
		return RuleRefused
	case a.First != 0 && e.Seq != a.First+uint64(at) && !a.Late:
		return RuleAcknowledged
	case e.Seq <= a.above || e.Seq > a.upTo || a.First != 0 && e.Seq != a.First+uint64(at):
		return RuleAsked
	case a.First == 0 && len(a.Steps) > 1:
		return RuleWhole
	}
	return ""
}

// weight orders the rules by how much they explain.
func weight(r Rule) int {
	return slices.Index([]Rule{RuleOnce, "", RuleWhole, RuleAcknowledged, RuleRefused, RuleAsked}, r)
}
