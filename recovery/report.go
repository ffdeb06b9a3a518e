package recovery

import (
	"time"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// maxListed bounds the lists of a Report; the jobs behind them can all be had with [Engine.Jobs].
const maxListed = 1000

// A Report says what Open found and did, and how the jobs stand now.
type Report struct {
	// WAL is the log's own report: torn bytes and where their copy is, epoch, segments. It is zero for a log that is
	// not on disk.
	WAL wal.Report
	// Replayed is the number of events folded by Open, and Took how long Open took, the log's part included.
	Replayed uint64
	Took     time.Duration
	// Checkpoint is the seq of the checkpoint that Open began with; 0: none.
	Checkpoint uint64
	// PassedOver says which checkpoints, or projections' parts of one, could not be used, and why.
	PassedOver []error
	// Incomplete are projections that no checkpoint had, while the log's beginning was compacted away: they know only
	// the jobs that were remembered. "stats" may be among them; others are only if Options.AllowIncomplete names them.
	Incomplete []string

	// The rest is as of the call of Report.

	Jobs        map[statemachine.State]int
	Interrupted int // see [Engine.Interrupted]
	// Parked are jobs that take no more commands, and why ([statemachine.Job].Parked); the first 1,000.
	Parked []statemachine.Job
	// Held are jobs that wait for somebody's decision, and why ([statemachine.Job].Held), unless they are parked; the
	// first 1,000.
	Held []statemachine.Job
	// Unreadable are events of which not even the job can be made out; the first 1,000 that were met since Open began: a
	// checkpoint does not have them.
	Unreadable []Unreadable
	// Failed are projections that stopped.
	Failed []*ProjectionError
	// Stopped is why the engine follows its log no more: an error of reading it, a log that was closed beneath. Jobs and
	// projections stay as they are, and no command is taken; open the log again. nil while all is well, and after Close.
	// An engine on a read-only log has no commands that would tell.
	Stopped error
	// Keeping is why the newest checkpoint or compaction in the background failed; nil when it did not. It will be tried
	// again.
	Keeping error
}

// Unreadable is an event of no known job that this version can't read.
type Unreadable struct {
	Seq     uint64
	Problem string
}

// Progress is how far Open is.
type Progress struct {
	Applied uint64 // the seq of the event that was folded last
	Last    uint64 // where the log ended when replay began
	Took    time.Duration
}

// Report says what Open found and did, and how the jobs stand now.
func (e *Engine) Report() Report {
	r := e.opened
	r.Jobs = make(map[statemachine.State]int)
	for _, s := range statemachine.States() {
		if n, _ := e.jobs.Count(projection.Query{States: []statemachine.State{s}}); n > 0 { // the query is valid
			r.Jobs[s] = n
		}
	}
	r.Interrupted = len(e.Interrupted())
	for job := range e.jobs.List(projection.Query{Parked: new(true), Limit: maxListed}) {
		r.Parked = append(r.Parked, job)
	}
	for job := range e.jobs.List(projection.Query{Held: new(true), Parked: new(false), Limit: maxListed}) {
		r.Held = append(r.Held, job)
	}
	r.Stopped = e.applier.broken()
	e.applier.mu.Lock()
	defer e.applier.mu.Unlock()
	r.Unreadable = append(r.Unreadable, e.applier.unreadable...)
	r.Failed = append(r.Failed, e.applier.failed...)
	r.Keeping = e.applier.keepErr
	return r
}
