package projection

import (
	"io"

	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// A Projection is a read model that is kept up to date, event by event.
type Projection interface {
	// Name tells it from others in reports and in checkpoints. It never changes.
	Name() string
	// Apply folds one event into the model. The job is as it stands after e. It is the zero Job for events about the
	// log itself, whose JobID is empty, and for those that [Jobs.Fold] passes over because the log forgets their job
	// later on; types that a projection has no use for are not an error.
	//
	// One goroutine calls Apply, in the order of seqs; a projection that is read meanwhile needs a lock of its own. e
	// and job are read-only and shared. A projection whose Apply returns an error, or panics, gets no further events:
	// what it shows from then on is old, but the log, the command that met it and all other projections go on.
	Apply(e wal.Event, job statemachine.Job) error
}

// A Forgetter is a [Projection] that wants to know which jobs a jobs_forgotten event took.
type Forgetter interface {
	// Forget is called in place of Apply for such an event, as Apply is: jobs are those that were forgotten, as they
	// stood, read-only and shared. What has been counted of them for good (a total since the log began) may stay; of
	// what is kept by job nothing should, or memory grows with all jobs that ever were.
	Forget(e wal.Event, jobs []statemachine.Job) error
}

// A Snapshotter is a [Projection] that can be written into a checkpoint and read back from it, so that opening the log
// costs no more than the events behind the checkpoint. One that is none is folded from the log's beginning.
type Snapshotter interface {
	// Version is that of the bytes that Snapshot writes and Load reads, and of what Apply makes of events: a snapshot of
	// another version is not loaded.
	Version() int
	// Snapshot freezes the model as it stands after the newest event. The applier waits for it, so it should take no
	// longer than an event or two do. save then writes what was frozen, on another goroutine, while events go on being
	// applied; it is called at most once, and may never be. The freeze ends when save returns, whatever it returns, or by
	// later calls of Snapshot, so that one which is never saved costs nothing for ever; save then returns an error. The
	// newest can always be saved.
	Snapshot() (save func(io.Writer) error, err error)
	// Load brings a new model to where it was when the snapshot was taken, before any event is applied to it. r may hold
	// anything: Load bounds its memory by what it reads. After an error the model is as it was: empty.
	Load(r io.Reader) error
}
