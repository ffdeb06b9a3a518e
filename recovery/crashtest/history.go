package crashtest

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// An Outcome is what a caller knows of what it asked for.
type Outcome string

const (
	// OutcomeOK: acknowledged. All its events are in the log, for good.
	OutcomeOK Outcome = "ok"
	// OutcomeFailed: a definite no. None of its events is in the log, ever.
	OutcomeFailed Outcome = "failed"
	// OutcomeUnknown: nobody knows before the log is opened again. All its events are there then, or none.
	OutcomeUnknown Outcome = "unknown"
)

// OutcomeOf tells what an error of [recovery.Engine.Do] or [wal.Log.Append] says of what was asked for.
//
// wal.ErrOutcomeUnknown, wherever it stands in the chain, is the last word: a disk that filled up and then could not
// take back what it had is wal.ErrNoSpace and unknown at once. wal.ErrFailed without it is a definite no, since that is
// what the engine promises ("only together with wal.ErrOutcomeUnknown the events may be there at the next Open"); to
// take it for unknown would excuse a log that writes after it has refused. Of all others, those are a no that
// [recovery.Engine.Do] lists as such; an error that nobody has promised anything of promises nothing.
//
// A Doer that is not an engine in this process (a client whose request may have arrived all the same) has errors of its
// own: use [History.Begin], and say what they mean.
func OutcomeOf(err error) Outcome {
	switch {
	case err == nil:
		return OutcomeOK
	case errors.Is(err, wal.ErrOutcomeUnknown):
		return OutcomeUnknown
	case slices.ContainsFunc(definite, func(no error) bool { return errors.Is(err, no) }):
		return OutcomeFailed
	}
	return OutcomeUnknown
}

// definite are the errors with which nothing is written.
var definite = []error{
	statemachine.ErrTransition, statemachine.ErrDuplicateJob, statemachine.ErrUnknownJob, statemachine.ErrParked,
	recovery.ErrConflict,
	wal.ErrInvalid, wal.ErrTooLarge, wal.ErrNoSpace, wal.ErrReadOnly, wal.ErrClosed, wal.ErrFailed,
	context.Canceled, context.DeadlineExceeded,
}

// A Doer carries out commands, all or none. *[recovery.Engine] is one.
type Doer interface {
	Do(ctx context.Context, commands ...recovery.Command) ([]statemachine.Job, error)
}

// A History is what was asked of a log and what was answered, by all its callers, over as many of its lives as there
// are; [Check] holds it against the log. The zero value is ready. Its methods are safe for concurrent use.
//
// It is kept in memory, and written as it happens where [History.Stream] says: one record a line, a command's beginning
// before it is carried out and its end after that, so that a process that is killed leaves all that it knew. A
// beginning without an end is an unknown outcome.
//
// # Crashes and lives
//
// What is answered while a picture of the disk is taken proves nothing of the picture. So say [History.Crash] before
// the crash is made (before crashfs.FS.Crash on a disk that is in use; after a program whose disk stopped at a crash
// point has come to its end, at any time before the next life). Answers and sightings from there to the next
// [History.Opened] count for nothing, and neither does, ever, the answer to what was asked before the crash and
// answered after it. Say Opened when the log is open again, before anything is asked of it, and not before everyone
// from the old life has stopped asking; of an engine, Report().WAL has both numbers. A process that is killed, on a
// machine that goes on, is no crash in this sense: nothing that it wrote is lost, and nothing has to be said.
type History struct {
	mu      sync.Mutex // guards the fields below
	run     string     // of the records that are made here, "" before the first
	start   time.Time
	order   uint64 // of the newest record of this run
	command uint64 // the newest command's number in this run
	records []record
	torn    int
	out     io.Writer
	err     error
}

// A record is one line of a history.
type record struct {
	Kind string `json:"kind"`
	Run  string `json:"run"` // whose: one History in one process
	N    uint64 `json:"n"`   // its place among those of its run, from 1, dense
	NS   int64  `json:"ns"`  // since the run began; never less than that of the record before

	Version int        `json:"version,omitempty"` // of kindRun
	Start   *time.Time `json:"start,omitempty"`   // of kindRun

	Command uint64  `json:"command,omitempty"` // of kindBegin and kindEnd
	Engine  bool    `json:"engine,omitempty"`  // of kindBegin: asked of an engine, which knows a job's capability
	Steps   []Step  `json:"-"`                 // of kindBegin
	Outcome Outcome `json:"outcome,omitempty"` // of kindEnd
	Step    int     `json:"step,omitempty"`    // of kindEnd: the step whose event is at Seq
	Error   string  `json:"error,omitempty"`   // of kindEnd

	Seq    uint64 `json:"seq,omitempty"`    // of kindEnd, 0 where it is not known; of kindSaw; of kindDropped
	Digest string `json:"digest,omitempty"` // of kindSaw
	Epoch  uint64 `json:"epoch,omitempty"`  // of kindOpened
	Last   uint64 `json:"last,omitempty"`   // of kindOpened
}

const (
	kindRun      = "run"
	kindBegin    = "begin"
	kindEnd      = "end"
	kindOpened   = "opened"
	kindCrash    = "crash"
	kindSaw      = "saw"
	kindDropped  = "dropped"
	kindCompacts = "compacts"
)

// add makes the record the next one of this run.
func (h *History) add(r record) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.addLocked(r)
}

func (h *History) addLocked(r record) {
	if h.run == "" {
		h.run, h.start = randomHex(), time.Now()
		h.putLocked(record{Kind: kindRun, Version: historyVersion, Start: new(h.start.UTC().Round(0))})
	}
	h.putLocked(r)
}

func (h *History) putLocked(r record) {
	h.order++
	r.Run, r.N, r.NS = h.run, h.order, int64(time.Since(h.start))
	h.records = append(h.records, r)
	if h.out != nil && h.err == nil {
		_, h.err = h.out.Write(encodeRecord(&r))
	}
}

// randomHex is 16 hex digits that nobody else has.
func randomHex() string {
	var b [8]byte
	rand.Read(b[:]) // never fails, by its contract
	return hex.EncodeToString(b[:])
}

// Do records the steps, has the engine carry them out as one group, and records how that ended, as [OutcomeOf] says. A
// submission without a job id is given one, since a command that nobody heard of again could not be found otherwise.
func (h *History) Do(ctx context.Context, engine Doer, steps ...Step) ([]statemachine.Job, error) {
	asked := make([]Step, len(steps))
	for i, s := range steps {
		asked[i] = s.asked()
	}
	p := h.begin(true, asked)
	jobs, err := engine.Do(ctx, Commands(asked...)...)
	if err != nil {
		p.Done(0, err)
		return jobs, err
	}
	p.end(record{Outcome: OutcomeOK}.at(placeOf(asked, jobs)))
	return jobs, nil
}

// asked is the step as an engine is asked for it: without what its command has no place for.
func (s Step) asked() Step {
	kept := Step{Type: s.Type, JobID: s.JobID}
	switch s.Type {
	case wal.JobSubmitted:
		kept.Capability, kept.Args = s.Capability, s.Args
		if s.JobID == "" {
			kept.JobID = randomHex() + randomHex()
		}
	case wal.JobStep:
		kept.Args, kept.Output = s.Args, s.Output
	case wal.JobStepUndone:
		kept.Args = s.Args
	case wal.JobCompleted, wal.JobProgress:
		kept.Output = s.Output
	case wal.JobFailed, wal.JobRolledBack, wal.JobHeld, wal.JobReleased:
		kept.Error = strings.ToValidUTF8(s.Error, "\uFFFD")
	}
	return kept
}

// placeOf finds one step's event. A job stands where its newest event left it: it is that of the job's last step if this
// led to its state, since no such step leads back to where a job was. On a log that others append to, too, a job may have
// moved on; where all have, the place is not known. (What others say of a job that stays in its state is not told from
// that: on such a log, give steps that do so to Begin.)
func placeOf(steps []Step, jobs []statemachine.Job) (step int, seq uint64) {
	if len(jobs) != len(steps) {
		return 0, 0
	}
	for i, s := range steps {
		if slices.ContainsFunc(steps[i+1:], func(later Step) bool { return later.JobID == s.JobID }) {
			continue
		}
		state, job := leadsTo(s.Type), jobs[i]
		if job.ID == s.JobID && (state == "" || string(job.State) == state) && job.Parked == "" && job.Seq > uint64(i) {
			return i, job.Seq
		}
	}
	return 0, 0
}

// leadsTo is the state that a step leads to, "" for one that leads back to where it is from.
func leadsTo(on wal.EventType) string {
	for _, from := range []string{"", "submitted", "validated", "started", "completed", "failed"} {
		if to, legal := after(from, on); legal && unheld(to) != from {
			return to
		}
	}
	return ""
}

func (r record) at(step int, seq uint64) record {
	r.Step, r.Seq = step, seq
	return r
}

// A Pending is a command that was begun. Its end is what the first of its methods to be called says; the others do
// nothing then. A Pending that is left alone has an unknown outcome.
type Pending struct {
	h       *History
	command uint64
	over    bool // guarded by h.mu
}

// Begin records that the steps are asked for, as one group, all or none. Call it before they are. The steps, and what
// they point to, must not be changed afterwards.
func (h *History) Begin(steps ...Step) *Pending { return h.begin(false, slices.Clone(steps)) }

func (h *History) begin(engine bool, steps []Step) *Pending {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.command++
	p := &Pending{h: h, command: h.command}
	h.addLocked(record{Kind: kindBegin, Command: p.command, Engine: engine, Steps: steps})
	return p
}

// OK records an acknowledgement: the events are in the log, the first at this seq; 0 where the caller was not told.
func (p *Pending) OK(first uint64) { p.end(record{Outcome: OutcomeOK, Seq: first}) }

// Failed records a definite no. err says why, for people; it may be nil.
func (p *Pending) Failed(err error) { p.end(record{Outcome: OutcomeFailed, Error: text(err)}) }

// Unknown records that nobody knows. err says why, for people; it may be nil.
func (p *Pending) Unknown(err error) { p.end(record{Outcome: OutcomeUnknown, Error: text(err)}) }

// Done records whichever of the three err means, by [OutcomeOf]. It takes what [wal.Log.Append] returns.
func (p *Pending) Done(first uint64, err error) {
	switch OutcomeOf(err) {
	case OutcomeOK:
		p.OK(first)
	case OutcomeFailed:
		p.Failed(err)
	default:
		p.Unknown(err)
	}
}

func (p *Pending) end(r record) {
	p.h.mu.Lock()
	defer p.h.mu.Unlock()
	if p.over {
		return
	}
	p.over = true
	r.Kind, r.Command = kindEnd, p.command
	p.h.addLocked(r)
}

// text is for people, who do not read an error of megabytes.
func text(err error) string {
	const most = 1000
	if err == nil {
		return ""
	}
	s := strings.ToValidUTF8(err.Error(), "\uFFFD")
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// Opened records that the log was opened: the new life's epoch, and the seq of the last event that was there. Readers,
// who have no epoch of their own, leave it alone.
func (h *History) Opened(epoch, last uint64) {
	h.add(record{Kind: kindOpened, Epoch: epoch, Last: last})
}

// Crash records that a crash is about to be made; see [History].
func (h *History) Crash() { h.add(record{Kind: kindCrash}) }

// Saw records that someone was shown an event: by Follow, Events, At, or in another process. What was shown stays.
func (h *History) Saw(e wal.Event) { h.add(record{Kind: kindSaw, Seq: e.Seq, Digest: digest(e)}) }

// Dropped records that [wal.Log.DropBefore] is about to be called: the log may start as late as with this seq from now
// on, and need not.
func (h *History) Dropped(before uint64) { h.add(record{Kind: kindDropped, Seq: before}) }

// Compacts records that [recovery.Engine.Compact] is about to be called, or an engine to be opened that forgets by itself
// (recovery.Options.Retain): from now on jobs that have ended may be forgotten, by jobs_forgotten events, which are the
// engine's own and no command's, and the log may start as late as that allows.
func (h *History) Compacts() { h.add(record{Kind: kindCompacts}) }

// Err returns the first error of writing to where [History.Stream] said. What is in memory is whole all the same.
func (h *History) Err() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.err
}

// Torn returns how many lines [ReadHistory] dropped because a process died while it wrote them.
func (h *History) Torn() int { return h.torn }

// digest tells events apart, in all that they say.
func digest(e wal.Event) string {
	sum := sha256.New()
	number := func(n uint64) { sum.Write(binary.BigEndian.AppendUint64(nil, n)) }
	number(e.Seq)
	number(e.Prev)
	number(e.Epoch)
	number(uint64(e.Time.Unix()))
	number(uint64(e.Time.Nanosecond()))
	said := []string{string(e.Type), e.JobID, e.Capability, string(e.Args), string(e.Output), e.Error, e.Problem}
	for _, s := range said {
		number(uint64(len(s)))
		io.WriteString(sum, s)
	}
	return hex.EncodeToString(sum.Sum(nil)[:digestBytes])
}

const digestBytes = 12

// A Moment is a point in a history.
type Moment struct {
	Order uint64        // among the records of its run, from 1
	At    time.Duration // since the run began
}

func (m Moment) String() string { return fmt.Sprintf("%v (record %d)", m.At, m.Order) }

// An Attempt is one command as a history has it.
type Attempt struct {
	Run     string // names the History, in one process, that made it
	ID      uint64 // its number in the run, from 1
	Steps   []Step // shared with the History: not to be changed
	Outcome Outcome
	// Late: the answer came after a crash that came after the question. It is as good as none.
	Late bool
	// First is the seq of the first event of what was acknowledged, 0 where it is not known.
	First uint64
	Err   string
	Begin Moment
	End   Moment // zero when there was no answer

	engine bool
	step   int    // First was reckoned back from the event of this step
	above  uint64 // seqs up to here were taken when it was asked for
	upTo   uint64 // its events, if they were ever written, were there up to here when the log was next opened
	lost   bool   // an acknowledgement that a weak log was allowed to lose
	used   bool   // its events are in the log
	life   int
}

// judged is the outcome as far as it proves anything.
func (a *Attempt) judged() Outcome {
	if a.Late {
		return OutcomeUnknown
	}
	return a.Outcome
}

// Attempts returns the commands in the order in which they were begun.
func (h *History) Attempts() []Attempt {
	attempts := h.testify(nil).attempts
	list := make([]Attempt, len(attempts))
	for i, a := range attempts {
		list[i] = *a
	}
	return list
}

func (a *Attempt) String() string {
	var s strings.Builder
	fmt.Fprintf(&s, "command %d of run %.6s, asked for at %v", a.ID, a.Run, a.Begin)
	switch {
	case a.End == Moment{}:
		s.WriteString(", never answered")
	case a.Outcome == OutcomeOK && a.First != 0:
		fmt.Fprintf(&s, ", ok at seq %d at %v", a.First, a.End)
	default:
		fmt.Fprintf(&s, ", %s at %v", a.Outcome, a.End)
	}
	if a.Late {
		s.WriteString(", after a crash")
	}
	if a.Err != "" {
		fmt.Fprintf(&s, " (%.200s)", a.Err)
	}
	s.WriteString(": ")
	for i, step := range a.Steps {
		if i > 0 {
			s.WriteString("; ")
		}
		if i == 8 {
			fmt.Fprintf(&s, "%d more", len(a.Steps)-i)
			break
		}
		s.WriteString(step.String())
	}
	return s.String()
}
