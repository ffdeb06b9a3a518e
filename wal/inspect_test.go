package wal_test

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// W6: Inspect sees what a witness speaks of, and no more; it can't write; its error leaves the disk as it was.
func TestW6_inspect(t *testing.T) {
	disk := crashfs.New()
	called := 0
	opts := wal.Options{FS: disk, Inspect: func(*wal.Log) error { called++; return nil }}
	l, err := wal.Open("log", opts)
	require.NoError(t, err)
	require.Zero(t, called, "a new log has nothing to show")
	for range 2 {
		_, err = l.Append(context.Background(), wal.Event{Type: wal.JobSubmitted, JobID: "j"})
		require.NoError(t, err)
	}
	disk = disk.Crash(crashfs.Everything) // the second append has no witness
	before := disk.Fingerprint()

	var kept *wal.Log
	refused := errors.New("no")
	opts.FS = disk
	opts.Inspect = func(l *wal.Log) error {
		kept = l
		require.EqualValues(t, 1, l.LastSeq())
		require.EqualValues(t, 1, l.Epoch(), "the epoch is that of the writer before")
		var seen []uint64
		for e, err := range l.Events(0) {
			require.NoError(t, err)
			seen = append(seen, e.Seq)
		}
		require.Equal(t, []uint64{1}, seen)
		_, err := l.Append(context.Background(), wal.Event{Type: wal.JobSubmitted, JobID: "j"})
		require.ErrorIs(t, err, wal.ErrReadOnly)
		_, err = wal.Open("log", wal.Options{FS: disk})
		require.ErrorIs(t, err, wal.ErrLocked)
		return refused
	}
	_, err = wal.Open("log", opts)
	require.ErrorIs(t, err, refused)
	require.Equal(t, before, disk.Fingerprint())
	_, err = kept.At(1)
	require.ErrorIs(t, err, wal.ErrClosed)

	opts.Inspect = func(*wal.Log) error { panic(refused) }
	require.PanicsWithValue(t, refused, func() { _, _ = wal.Open("log", opts) })
	opts.Inspect = func(*wal.Log) error { return nil }
	l, err = wal.Open("log", opts)
	require.NoError(t, err, "neither left the lock behind")
	require.EqualValues(t, 2, l.LastSeq())
	require.EqualValues(t, 2, l.Epoch())
	require.NoError(t, l.Close())
	require.ErrorIs(t, kept.Close(), nil)
}
