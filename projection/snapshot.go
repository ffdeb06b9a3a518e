package projection

import (
	"errors"
	"io"
)

type freeze struct{}

func (j *Jobs) putAside(uint32) {}

// Version implements [Snapshotter].
func (j *Jobs) Version() int { return 1 }

// Snapshot implements [Snapshotter].
func (j *Jobs) Snapshot() (save func(io.Writer) error, err error) {
	return nil, errors.New("projection: jobs: no snapshots yet")
}

// Load implements [Snapshotter].
func (j *Jobs) Load(io.Reader) error { return errors.New("projection: jobs: no snapshots yet") }
