package crashtest

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/recovery/crashtest/subject"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// ledgerOf makes lines of (life, mark) of one irreversible effect of job a.
func ledgerOf(lines ...any) (entries []subject.Entry) {
	for i := 0; i < len(lines); i += 2 {
		entries = append(entries, subject.Entry{Mark: lines[i+1].(subject.Mark), Life: lines[i].(int),
			Effect: subject.Effect{Job: "a", Capability: "pay", Irreversible: true}})
	}
	return entries
}

// jobLog makes a log of one job, a, from seq first on.
func jobLog(first uint64, types ...wal.EventType) (events []wal.Event) {
	for i, on := range types {
		events = append(events, wal.Event{Seq: first + uint64(i), Epoch: 1, Time: time.Unix(1, 0), Type: on, JobID: "a", Capability: "pay"})
	}
	return events
}

// What a ledger and a log amount to, when both are taken as they stand after two lives.
func TestAccount(t *testing.T) {
	const began, done, undone = subject.Began, subject.Performed, subject.Undid
	submitted, validated, started := wal.JobSubmitted, wal.JobValidated, wal.JobStarted
	begun := jobLog(1, submitted, validated, started)
	ended := func(types ...wal.EventType) []wal.Event {
		return append(begun[:3:3], jobLog(4, types...)...)
	}
	for name, c := range map[string]struct {
		ledger []subject.Entry
		log    []wal.Event
		state  statemachine.State
		rules  []Rule
	}{
		"as it should be":                  {ledgerOf(1, began, 1, done), ended(wal.JobCompleted), statemachine.Completed, nil},
		"interrupted, given up":            {ledgerOf(1, began), ended(wal.JobFailed), statemachine.Failed, nil},
		"interrupted, again":               {ledgerOf(1, began, 2, began, 2, done), ended(wal.JobCompleted), statemachine.Completed, []Rule{RuleTwice}},
		"interrupted, found not done":      {ledgerOf(1, began, 2, undone, 2, began, 2, done), ended(wal.JobCompleted), statemachine.Completed, nil},
		"interrupted, found done":          {ledgerOf(1, began, 2, done), ended(wal.JobCompleted), statemachine.Completed, nil},
		"done, and found done":             {ledgerOf(1, began, 1, done, 2, done), ended(wal.JobCompleted), statemachine.Completed, nil},
		"done, and again":                  {ledgerOf(1, began, 1, done, 2, began), ended(wal.JobFailed), statemachine.Failed, []Rule{RuleTwice}},
		"without begin":                    {ledgerOf(1, done), ended(wal.JobCompleted), statemachine.Completed, nil},
		"without begin, twice":             {ledgerOf(1, done, 2, done), ended(wal.JobCompleted), statemachine.Completed, []Rule{RuleTwice}},
		"completed on the strength of old": {ledgerOf(1, began, 1, done, 1, undone, 2, began), ended(wal.JobCompleted), statemachine.Completed, []Rule{RuleMissing}},
		"nothing on the ledger":            {nil, ended(wal.JobCompleted), statemachine.Completed, []Rule{RuleMissing}},
		"rolled back":                      {ledgerOf(1, began, 1, done, 2, undone), ended(wal.JobCompleted, wal.JobRolledBack), statemachine.RolledBack, nil},
		"rolled back, and stands":          {ledgerOf(1, began, 1, done), ended(wal.JobCompleted, wal.JobRolledBack), statemachine.RolledBack, []Rule{RuleRolledBack}},
		"rolled back, and may stand":       {ledgerOf(1, began), ended(wal.JobFailed, wal.JobRolledBack), statemachine.RolledBack, []Rule{RuleRolledBack}},
		"undone, and not rolled back":      {ledgerOf(1, began, 1, done, 2, undone), ended(wal.JobCompleted), statemachine.Completed, []Rule{RuleRolledBack}},
		"no start":                         {ledgerOf(1, began), jobLog(1, submitted, validated), statemachine.Validated, []Rule{RuleUnknown, RuleUnfinished}},
		"no job":                           {ledgerOf(1, began), nil, statemachine.None, []Rule{RuleUnknown}},
		"dropped":                          {ledgerOf(1, began, 1, done), jobLog(4, wal.JobCompleted), statemachine.Completed, nil},
		"still started":                    {ledgerOf(1, began), begun, statemachine.Started, []Rule{RuleUnfinished}},
	} {
		a := newAccount(programRules{func(string) bool { return true }, func(string) bool { return false }, false})
		a.after(2, c.ledger, c.log)
		if c.state != statemachine.None {
			a.atEnd([]statemachine.Job{{ID: "a", State: c.state}})
		}
		require.Equal(t, c.rules, rulesOf(a), "%s: %v", name, a.breaches)
	}
}

func rulesOf(a *account) (rules []Rule) {
	for _, b := range a.breaches {
		rules = append(rules, b.Rule)
	}
	return rules
}

// A parked job needs nothing more, nor does one that waits for somebody's decision, which no program takes; what is done by another job under the same key is done twice; what is not declared
// irreversible may be repeated; what the program says of capabilities counts as much as its ledger.
func TestAccountOfOtherThings(t *testing.T) {
	never, always := func(string) bool { return false }, func(string) bool { return true }
	a := newAccount(programRules{never, never, false})
	a.atEnd([]statemachine.Job{{ID: "a", State: statemachine.Started, Parked: "a hole in its history"}})
	a.atEnd([]statemachine.Job{{ID: "b", State: statemachine.Started, Held: "whether it happened is unknown"}})
	require.Empty(t, a.breaches)

	two := []subject.Entry{{Mark: subject.Began, Life: 1, Effect: subject.Effect{Job: "a", Key: "order 7"}},
		{Mark: subject.Began, Life: 2, Effect: subject.Effect{Job: "b", Key: "order 7"}}}
	log := append(jobLog(1, wal.JobStarted), wal.Event{Seq: 2, Type: wal.JobStarted, JobID: "b"})
	a.after(2, two, log)
	require.Empty(t, a.breaches)
	b := newAccount(programRules{never, always, false})
	b.after(2, two, log)
	require.Equal(t, []Breach{{Rule: RuleTwice, Job: "b", Lives: []int{1, 2}, Detail: "it is irreversible; begin came after begin"}}, b.breaches)
}

// The log may grow, and lose its beginning to the program, and nothing else.
func TestAccountOfWhatWasThere(t *testing.T) {
	no := func(string) bool { return false }
	before := jobLog(1, wal.JobSubmitted, wal.JobValidated, wal.JobStarted)
	other := jobLog(1, wal.JobSubmitted, wal.JobValidated, wal.JobStarted)
	other[2].Time = time.Unix(2, 0)
	for name, c := range map[string]struct {
		log  []wal.Event
		lost bool
	}{
		"the same":   {before, false},
		"more":       {append(before[:3:3], jobLog(4, wal.JobCompleted)...), false},
		"dropped":    {before[1:], false},
		"cut":        {before[:2], true},
		"nothing":    {nil, true},
		"made again": {other, true},
	} {
		a := newAccount(programRules{no, no, false})
		a.after(1, nil, before)
		a.after(2, nil, c.log)
		require.Equal(t, c.lost, len(a.breaches) > 0, name)
		for _, b := range a.breaches {
			require.Equal(t, RuleLost, b.Rule)
			require.Equal(t, []int{1, 2}, b.Lives)
		}
	}
}

// An acknowledgement is held to the event at its seq.
func TestAccountOfAcknowledgements(t *testing.T) {
	no := func(string) bool { return false }
	log := jobLog(1, wal.JobSubmitted, wal.JobValidated)
	for _, c := range []struct {
		e    subject.Entry
		rule Rule
	}{
		{subject.Entry{Seq: 2, Event: wal.JobValidated}, ""},
		{subject.Entry{Seq: 1, Event: wal.JobValidated}, RuleAcknowledged},
		{subject.Entry{Seq: 3, Event: wal.JobStarted}, RuleAcknowledged},
		{subject.Entry{Seq: 2, Event: wal.JobValidated, Unsynced: true}, RuleUnsynced},
	} {
		c.e.Mark, c.e.Job, c.e.Life = subject.Told, "a", 1
		a := newAccount(programRules{no, no, false})
		a.after(1, []subject.Entry{c.e}, log)
		if c.rule == "" {
			require.Empty(t, a.breaches)
			continue
		}
		require.Equal(t, []Rule{c.rule}, rulesOf(a))
	}
}
