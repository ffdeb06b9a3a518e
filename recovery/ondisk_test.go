package recovery

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// A nil ctx made Events and At panic where Append and Follow refuse it.
func TestOnDiskRefusesANilContext(t *testing.T) {
	l, err := wal.Open("jobs", wal.Options{FS: crashfs.New()})
	require.NoError(t, err)
	log := OnDisk(l)
	_, err = log.Append(t.Context(), wal.Event{Type: wal.JobSubmitted, JobID: "a"})
	require.NoError(t, err)
	var none context.Context
	_, err = log.At(none, 1)
	require.ErrorIs(t, err, wal.ErrInvalid)
	for _, err := range log.Events(none, 1) {
		require.ErrorIs(t, err, wal.ErrInvalid)
	}
	require.NoError(t, log.Close())
}
