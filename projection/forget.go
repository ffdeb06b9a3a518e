package projection

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// Forget folds a jobs_forgotten event, see [Forgotten], and returns the jobs that it took, as they stood, in the order
// in which it names them. Those that it names and that are not there are refused from now on as those that were.
//
// The error of an event that can't be read says so; it was applied, and forgets nothing. That of an event which was
// applied already, or is none of this type, matches [statemachine.ErrMisdirected], and nothing has changed.
func (j *Jobs) Forget(e wal.Event) ([]statemachine.Job, error) {
	if err := j.isNext(e); err != nil {
		return nil, err
	}
	if e.Type != wal.JobsForgotten || e.JobID != "" {
		return nil, fmt.Errorf("projection: jobs: seq %d: %w: %.64s of job %q is no %s",
			e.Seq, statemachine.ErrMisdirected, e.Type, e.JobID, wal.JobsForgotten)
	}
	f, err := ParseForgotten(e)
	prints := fingerprints(f.Jobs) // not under the lock: it takes longer than all the rest
	j.mu.Lock()
	defer j.mu.Unlock()
	j.last = e.Seq
	if err != nil {
		return nil, err
	}
	var gone []statemachine.Job
	refused := prints[:0]
	for i, id := range f.Jobs {
		at := j.locate(id)
		if at.slot != none {
			r := j.record(at.slot)
			switch {
			case r.forgettable():
				gone = append(gone, j.job(r))
			case !j.opts.Lost[id] || states[r.state] != statemachine.None:
				continue
			}
			j.putAside(at.slot)
			j.remove(at)
		}
		delete(j.strays, id)
		refused = append(refused, prints[i])
	}
	j.refused.release(f.IDsBefore)
	j.refused.add(refusal{seq: e.Seq, at: e.Time.Round(0).UTC(), prints: refused})
	j.closeUp()
	return gone, nil
}

// closeUp renumbers the table when its holes have come to cost too much. A snapshot that is being saved goes by slots:
// it is waited for, unless numbers run out: then it is given up.
func (j *Jobs) closeUp() {
	switch {
	case j.n >= j.limits.slots:
		j.frozen = nil
	case len(j.frozen) > 0 || !j.hollow(j.limits):
		return
	}
	j.renumber()
}

func (r *record) forgettable() bool { return finished[r.state] && !r.parked() }

// finished has the states, by number, in which a job's work is over.
var finished = func() (finished [numStates]bool) {
	for i, state := range states {
		finished[i] = statemachine.Job{State: state}.Finished()
	}
	return finished
}()

// ended is when the job came into the state that it is in, if that is one of those at the end.
func (r *record) ended() time.Time {
	if states[r.state] == statemachine.RolledBack {
		return r.time(4)
	}
	return r.time(3)
}

// Forgettable returns the ids of jobs that have finished before this time and are not parked, those that were submitted
// first at first, max of them at most. A job that was rolled back has finished with that, and one that is being rolled back
// has not. It looks at all that have finished, from the first on, until it has found so many.
func (j *Jobs) Forgettable(before time.Time, max int) []string {
	q := Query{Parked: new(false), RollingBack: new(false)}
	for i, state := range states {
		if finished[i] {
			q.States = append(q.States, state)
		}
	}
	var ids []string
	w := walk{q: &q, until: j.applied()}
	for !w.done && len(ids) < max {
		j.stretch(&w, math.MaxInt, func(r *record) {
			if len(ids) < max && r.ended().Before(before) {
				ids = append(ids, r.id)
			}
		})
	}
	return ids
}

// Refuses tells whether an event has forgotten, or would have forgotten, a job with this id, and none has let go of the
// id since: see [Forgotten]. Whether there is a job with this id now is another matter: folding takes what the log says.
//
// An id is known by 64 bits of its SHA-256 hash and by the event that named it, in some 24 bytes. So an id that was never
// used may be refused too, but hardly ever: with 10 million ids kept, one in 1.8 million million.
func (j *Jobs) Refuses(id string) bool {
	j.mu.RLock()
	none := len(j.refused.events) == 0
	j.mu.RUnlock()
	if none {
		return false // as where nothing was ever forgotten: a hash takes longer than all the rest
	}
	print := fingerprint(id)
	j.mu.RLock()
	defer j.mu.RUnlock()
	return j.refused.has(print)
}

// Releasable tells whether a jobs_forgotten event with this IDsBefore would let go of any id that is refused.
func (j *Jobs) Releasable(idsBefore time.Time) bool {
	j.mu.RLock()
	defer j.mu.RUnlock()
	return len(j.refused.events) > 0 && j.refused.oldest.Before(idsBefore)
}

// RefusesFrom tells whether ids are still refused because the jobs_forgotten event at seq has named them: until then it
// is needed.
func (j *Jobs) RefusesFrom(seq uint64) bool {
	j.mu.RLock()
	defer j.mu.RUnlock()
	return j.refused.since(seq)
}

// A Stray is a job of which Jobs has passed over what was left.
type Stray struct {
	JobID string
	Seq   uint64 // of the newest event that was passed over
}

// Strays returns the jobs whose events were passed over, and that no jobs_forgotten event has named yet, by seq.
//
// With a [JobsOptions] Floor, an event of a job that is not there, but had earlier events below the floor, can only be of
// a job that an event further on forgets: those of all others have been kept. So the event is passed over, and so are
// those of the same job that follow on it. When the log has been read and strays are left, it lacks events that it should
// have.
func (j *Jobs) Strays() []Stray {
	j.mu.RLock()
	defer j.mu.RUnlock()
	return j.strayList()
}

func (t *table) strayList() []Stray {
	strays := make([]Stray, 0, len(t.strays))
	for id, seq := range t.strays {
		strays = append(strays, Stray{id, seq})
	}
	slices.SortFunc(strays, func(a, b Stray) int { return cmp.Compare(a.Seq, b.Seq) })
	return strays
}

// EndFloor lets Jobs pass over nothing any more, as if it had no Floor: all is applied that the log had when its floor was
// read, so that whatever forgets jobs of which events are missing is among it, and an event that comes now of a job that is
// not there is of one that is lost. It parks its job. EndFloor is for who applies, when no [Jobs.Strays] are left.
func (j *Jobs) EndFloor() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.opts.Floor = 0
}

// isStray tells whether e, of a job that is not there, is to be passed over.
func (j *Jobs) isStray(e *wal.Event) bool {
	return e.Prev != 0 && (e.Prev < j.opts.Floor || e.Prev == j.strays[e.JobID]) && !j.opts.Lost[e.JobID]
}

func (j *Jobs) passStray(e *wal.Event) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.strays == nil {
		j.strays = make(map[string]uint64)
	}
	j.strays[e.JobID] = e.Seq
	j.last = e.Seq
}
