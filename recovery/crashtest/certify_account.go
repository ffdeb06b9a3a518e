package crashtest

import (
	"fmt"
	"slices"
	"strings"

	"github.com/jobwal/jobwal/recovery/crashtest/subject"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// The rules that [Certify] holds a program to, as a [Breach] names them, besides [RuleAcknowledged]: what the program told
// somebody of is in the log.
const (
	RuleExit       Rule = "exit"       // a life that was not killed ends by itself, with status 0
	RuleTimeout    Rule = "timeout"    // and within [Program.Timeout]
	RuleLog        Rule = "log"        // after a kill the log passes wal.Verify and opens
	RuleLost       Rule = "lost"       // what the log held after a life, it holds after every later one
	RuleUnsynced   Rule = "unsynced"   // what was acknowledged was on stable storage before; so was a job's start before its effect began
	RuleUnknown    Rule = "unknown"    // an effect is that of a job which the log says was started
	RuleMissing    Rule = "missing"    // a job that the log says was completed has had its effect
	RuleTwice      Rule = "twice"      // what is irreversible is not begun again where it may have happened
	RuleRolledBack Rule = "rolledback" // of a job that was rolled back no effect stands; one whose effect was undone was
	RuleUnfinished Rule = "unfinished" // when the program says that all is done, each job is finished, held for somebody's decision, or parked
)

// A Breach is one rule broken by a program that was to be certified.
type Breach struct {
	Rule   Rule
	Job    string // "" where no job is to blame
	Effect string // "" where none is, or where the effect has no name
	Lives  []int  // the starts of the program that took part, from 1
	Detail string
}

func (b Breach) String() string {
	text := string(b.Rule) + ": "
	if b.Job != "" {
		text += "job " + b.Job + ": "
	}
	if b.Effect != "" {
		text += fmt.Sprintf("effect %q: ", b.Effect)
	}
	lives := make([]string, len(b.Lives))
	for i, life := range b.Lives {
		lives[i] = fmt.Sprint(life)
	}
	return fmt.Sprintf("%s%s (life %s)", text, b.Detail, strings.Join(lives, ", "))
}

// programRules are what of the judgement depends on the program.
type programRules struct {
	effectful    func(capability string) bool // its completed jobs must have had an effect
	irreversible func(capability string) bool
	lax          bool // the log is not synced at once, by choice
}

// account holds the ledger of one trial against its log, life after life.
type account struct {
	programRules
	life    int
	entries []subject.Entry
	events  []wal.Event // as the log stood after the last life
	jobs    map[string]jobAccount

	breaches []Breach
	seen     map[string]bool // breaches that were told, since what is wrong after a life is mostly wrong after the next
}

// jobAccount is what the log says of a job.
type jobAccount struct {
	capability string
	at         map[wal.EventType]bool
}

func newAccount(r programRules) *account {
	return &account{programRules: r, seen: make(map[string]bool)}
}

func (a *account) breach(rule Rule, job, effect string, lives []int, format string, args ...any) {
	b := Breach{rule, job, effect, slices.Compact(lives), fmt.Sprintf(format, args...)}
	if key := string(rule) + "\x00" + job + "\x00" + effect; !a.seen[key] {
		a.seen[key] = true
		a.breaches = append(a.breaches, b)
	}
}

// after takes the whole ledger and the whole log as they stand after a life.
func (a *account) after(life int, entries []subject.Entry, events []wal.Event) {
	a.life = life
	a.compare(events)
	a.entries, a.events = entries, events
	a.jobs = make(map[string]jobAccount)
	for _, e := range events {
		job, known := a.jobs[e.JobID]
		if !known {
			job = jobAccount{e.Capability, make(map[wal.EventType]bool)}
		}
		job.at[e.Type] = true
		a.jobs[e.JobID] = job
	}
	a.checkLines()
	a.checkJobs()
	a.checkTwice()
}

// compare finds what the log lost since the life before. What lies below its first event was dropped by the program.
func (a *account) compare(events []wal.Event) {
	for _, was := range a.events {
		now, dropped := eventAt(events, was.Seq)
		if !dropped && (now == nil || !sameEvent(*now, was)) {
			a.breach(RuleLost, was.JobID, "", []int{a.life - 1, a.life}, "the log held seq %d, %s, and does not any more", was.Seq, was.Type)
		}
	}
}

// eventAt returns nil where there is none, and tells whether that is because the log begins later.
func eventAt(events []wal.Event, seq uint64) (e *wal.Event, dropped bool) {
	if len(events) == 0 || seq < events[0].Seq {
		return nil, len(events) > 0
	}
	if i := seq - events[0].Seq; i < uint64(len(events)) {
		return &events[i], false
	}
	return nil, false
}

// dropped tells that the log no longer has all that ever was in it.
func (a *account) dropped() bool { return len(a.events) > 0 && a.events[0].Seq > 1 }

// checkLines looks at each line of the ledger by itself.
func (a *account) checkLines() {
	for _, e := range a.entries {
		job, known := a.jobs[e.Job]
		switch {
		case e.Unsynced && !a.lax:
			a.breach(RuleUnsynced, e.Job, e.Name, []int{e.Life}, "%s was written when %s was not yet on stable storage",
				e.Mark, or(string(e.Event), string(wal.JobStarted)))
		case e.Mark == subject.Told:
			a.checkAcked(e)
		case e.Mark == subject.Undid || a.dropped():
		case !known:
			a.breach(RuleUnknown, e.Job, e.Name, []int{e.Life, a.life}, "%s is on the ledger, and the log has no such job", e.Mark)
		case !job.at[wal.JobStarted]:
			a.breach(RuleUnknown, e.Job, e.Name, []int{e.Life, a.life}, "%s is on the ledger, and the log has no start of the job", e.Mark)
		}
	}
}

func (a *account) checkAcked(e subject.Entry) {
	now, dropped := eventAt(a.events, e.Seq)
	if !dropped && (now == nil || now.JobID != e.Job || now.Type != e.Event) {
		a.breach(RuleAcknowledged, e.Job, "", []int{e.Life, a.life}, "seq %d, %s, was acknowledged and is not in the log", e.Seq, e.Event)
	}
}

// checkJobs looks at what must be on the ledger because the log says so.
func (a *account) checkJobs() {
	for _, e := range a.events {
		job := a.jobs[e.JobID]
		switch {
		case e.Type == wal.JobCompleted && a.effectful(job.capability) && !a.performed(e.JobID):
			a.breach(RuleMissing, e.JobID, "", []int{a.life}, "the log says that the job was completed, and the ledger has no effect of it that was done")
		case e.Type == wal.JobRolledBack:
			a.checkStanding(e.JobID)
		}
	}
}

// performed tells whether an effect of the job was done, and not begun once more since. One that was undone since counts:
// the job's rollback may be about to come.
func (a *account) performed(job string) bool {
	done := make(map[string]bool)
	for _, e := range a.entries {
		switch {
		case e.Job != job:
		case e.Mark == subject.Performed:
			done[effectKey(e)] = true
		case e.Mark == subject.Began:
			delete(done, effectKey(e))
		}
	}
	return len(done) > 0
}

// checkStanding finds effects of a job that was rolled back.
func (a *account) checkStanding(job string) {
	for key, e := range a.last() {
		if e.Job == job && e.Mark != subject.Undid {
			a.breach(RuleRolledBack, job, e.Name, []int{e.Life, a.life}, "the job was rolled back, and the last that the ledger has of %q is %s", key, e.Mark)
		}
	}
}

// last returns the newest line of each effect.
func (a *account) last() map[string]subject.Entry {
	last := make(map[string]subject.Entry)
	for _, e := range a.entries {
		if e.Mark != subject.Told {
			last[effectKey(e)] = e
		}
	}
	return last
}

func effectKey(e subject.Entry) string {
	switch {
	case e.Key != "":
		return e.Key
	case e.Name != "":
		return e.Job + " " + e.Name
	}
	return e.Job
}

// checkTwice finds what was done again although it may have been done. Whoever began and was killed may have acted: only
// undone settles that, or done, which says that it was found to have happened.
func (a *account) checkTwice() {
	open := make(map[string]subject.Entry) // effects that stand, or may
	begins := make(map[string]bool)        // effects of which the program says when they begin
	for _, e := range a.entries {
		key := effectKey(e)
		before, stands := open[key]
		switch e.Mark {
		case subject.Began:
			begins[key] = true
		case subject.Performed:
			stands = stands && !begins[key] // the end of what began, or of what is known to stand
		case subject.Undid:
			delete(open, key)
			continue
		default:
			continue
		}
		if stands && a.isIrreversible(e) {
			a.breach(RuleTwice, e.Job, e.Name, []int{before.Life, e.Life}, "it is irreversible; %s came after %s", e.Mark, before.Mark)
		}
		open[key] = e
	}
}

func (a *account) isIrreversible(e subject.Entry) bool {
	return e.Irreversible || a.irreversible(or(e.Capability, a.jobs[e.Job].capability))
}

// atEnd takes the jobs as they stand when the program has said that all is done.
func (a *account) atEnd(jobs []statemachine.Job) {
	states := make(map[string]statemachine.State)
	for _, job := range jobs {
		states[job.ID] = job.State
		if !job.Finished() && job.Held == "" && job.Parked == "" {
			a.breach(RuleUnfinished, job.ID, "", []int{a.life}, "the program ended as if all were done, and the job is %s", job.State)
		}
	}
	for _, e := range a.last() {
		if e.Mark == subject.Undid && states[e.Job] == statemachine.Completed {
			a.breach(RuleRolledBack, e.Job, e.Name, []int{e.Life, a.life}, "the effect was undone, and the log says that the job was completed")
		}
	}
}
