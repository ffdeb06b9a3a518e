package projection

import (
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// A Projection is a read model that is kept up to date, event by event.
type Projection interface {
	// Name tells it from others in reports. It never changes.
	Name() string
	// Apply folds one event into the model. The job is as it stands after e. It is the zero Job for events about the
	// log itself, whose JobID is empty; types that a projection has no use for are not an error.
	//
	// One goroutine calls Apply, in the order of seqs; a projection that is read meanwhile needs a lock of its own. e
	// and job are read-only and shared. A projection whose Apply returns an error, or panics, gets no further events:
	// what it shows from then on is old, but the log, the command that met it and all other projections go on.
	Apply(e wal.Event, job statemachine.Job) error
}
