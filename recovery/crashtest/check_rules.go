package crashtest

import (
	"fmt"
	"strings"

	"github.com/jobwal/jobwal/wal"
)

// A Rule is one of those that [Check] and [Recover] hold a log to, and [Certify] a program.
type Rule string

const (
	// RuleAcknowledged (W2): what was acknowledged before the crash is in the log, at its seq, byte for byte. An answer
	// that overlaps the crash proves nothing.
	RuleAcknowledged Rule = "acknowledged"
	// RuleAsked (W1): every event was asked for: it is of a command that succeeded, or whose outcome is unknown; it is
	// no older than the question; and if it was not there when the log was opened again after the crash that cut the
	// question short, it does not come back later.
	RuleAsked Rule = "asked for"
	// RuleRefused (W2): of what was refused, nothing is in the log.
	RuleRefused Rule = "refused"
	// RuleOnce (W1): an event belongs to exactly one command, and a command is in the log once.
	RuleOnce Rule = "once"
	// RuleWhole (W2): the events of one command stand together, all or none.
	RuleWhole Rule = "whole"
	// RuleDense (W1): seqs have no gaps, and start at 1.
	RuleDense Rule = "dense"
	// RuleOrder (W1): seqs rise.
	RuleOrder Rule = "order"
	// RuleReused (W1): a seq that was acknowledged, shown, or there at an opening is not given to another event.
	RuleReused Rule = "reused"
	// RulePrefix (W3): where a log may lose its tail ([LostTail]), what survives a crash is a prefix.
	RulePrefix Rule = "prefix"
	// RuleEpoch (W1): from event to event, epochs do not go back; no two openings have one epoch.
	RuleEpoch Rule = "epoch"
	// RulePrev (S1): an event's Prev is its job's event before.
	RulePrev Rule = "prev"
	// RuleTransition (S1): the lifecycle allows the step.
	RuleTransition Rule = "transition"
	// RuleShown (W6): what anyone was shown is still there, unchanged.
	RuleShown Rule = "shown"
	// RuleForgotten (R5): only a job that has ended, and before the cut-off, is forgotten, and of one that is not
	// forgotten every event is there, wherever the log begins.
	RuleForgotten Rule = "forgotten"
	// RuleFold (R1, R2): the state in memory is the fold of the log, the same after each opening. By [Recover] alone.
	RuleFold Rule = "fold"
	// RuleQuarantine (W3): what was cut is kept, and reported. By [Recover] alone.
	RuleQuarantine Rule = "quarantine"
)

// Promise returns the number of the promise that the rule holds the log to, as package wal's and package recovery's
// documentation have it: "W2". It is "" for the rules of [Certify] alone, which are about programs.
func (r Rule) Promise() string {
	switch r {
	case RuleAsked, RuleOnce, RuleDense, RuleOrder, RuleReused, RuleEpoch:
		return "W1"
	case RuleAcknowledged, RuleRefused, RuleWhole:
		return "W2"
	case RulePrefix, RuleQuarantine:
		return "W3"
	case RuleShown:
		return "W6"
	case RulePrev, RuleTransition:
		return "S1"
	case RuleFold:
		return "R2"
	case RuleForgotten:
		return "R5"
	}
	return ""
}

// A Violation is what a log did that no log may do.
type Violation struct {
	Rule Rule
	// Command is the one whose promise was broken, or that the event is of; nil where there is none.
	Command *Attempt
	// Event is the one in the log that should not be there, or not so; nil where there is none.
	Event  *wal.Event
	Detail string
}

func (v *Violation) Error() string {
	var s strings.Builder
	fmt.Fprintf(&s, "crashtest: %s %s: %s", v.Rule.Promise(), v.Rule, v.Detail)
	if v.Command != nil {
		fmt.Fprintf(&s, "\n\t%v", v.Command)
	}
	if e := v.Event; e != nil {
		fmt.Fprintf(&s, "\n\tevent: seq %d, prev %d, epoch %d: %v", e.Seq, e.Prev, e.Epoch, StepOf(*e))
	}
	return s.String()
}

// violated makes a Violation of an event in the log.
func violated(rule Rule, a *Attempt, e wal.Event, format string, args ...any) *Violation {
	return &Violation{Rule: rule, Command: a, Event: &e, Detail: fmt.Sprintf(format, args...)}
}

// missed makes a Violation of what is not in the log.
func missed(rule Rule, a *Attempt, format string, args ...any) *Violation {
	return &Violation{Rule: rule, Command: a, Detail: fmt.Sprintf(format, args...)}
}
