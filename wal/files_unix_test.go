//go:build unix && !aix && !solaris

package wal_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/jobwal/jobwal/wal"
)

// Opening a FIFO waits for its other end: whoever could put one into the directory would stop all who open the log, and
// all who look at why.
func TestF6_a_fifo_in_place_of_a_segment(t *testing.T) {
	dir := t.TempDir()
	l := dirOpen(t, dir, wal.Options{})
	mustAppend(t, l, event(1, 0, 1, 0))
	mustClose(t, l)
	path := filepath.Join(dir, "00000000000000000002.jsonl")
	require.NoError(t, unix.Mkfifo(path, 0o600))
	_, salvaged := wal.Salvage(dir, filepath.Join(t.TempDir(), "into"))
	_, verified := wal.Verify(dir)
	_, shown := wal.Open(dir, wal.Options{ReadOnly: true})
	_, opened := wal.Open(dir, wal.Options{})
	for _, err := range []error{salvaged, verified, shown, opened} {
		require.ErrorContains(t, err, path+": not a regular file")
	}
	require.NoError(t, os.Remove(path))
	mustClose(t, dirOpen(t, dir, wal.Options{}))
}

// LOCK is written to: a link there would have the pid written over whatever it names.
func TestF13_a_lock_that_is_no_file(t *testing.T) {
	precious := filepath.Join(t.TempDir(), "precious")
	require.NoError(t, os.WriteFile(precious, []byte("content"), 0o600))
	for name, put := range map[string]func(path string) error{
		"fifo":   func(path string) error { return unix.Mkfifo(path, 0o600) },
		"link":   func(path string) error { return os.Symlink(precious, path) },
		"device": func(path string) error { return os.Symlink(os.DevNull, path) },
	} {
		dir := t.TempDir()
		require.NoError(t, put(filepath.Join(dir, "LOCK")))
		_, err := wal.Open(dir, wal.Options{})
		require.ErrorContains(t, err, "not a regular file", name)
		require.NoError(t, os.Remove(filepath.Join(dir, "LOCK")))
		l := dirOpen(t, dir, wal.Options{})

		require.NoError(t, os.Remove(filepath.Join(dir, "LOCK"))) // nor is one read, for the pid of whoever holds it
		require.NoError(t, put(filepath.Join(dir, "LOCK")))
		if name == "fifo" {
			wantLocked(t, dir, 0)
		}
		require.NoError(t, os.Remove(filepath.Join(dir, "LOCK")))
		mustClose(t, l)
	}
	content, err := os.ReadFile(precious)
	require.NoError(t, err)
	require.Equal(t, "content", string(content))
}

// What is written under a temporary name does not go where a link of that name leads.
func TestF14_a_link_in_place_of_a_temporary_file(t *testing.T) {
	dir := t.TempDir()
	precious := filepath.Join(t.TempDir(), "precious")
	require.NoError(t, os.WriteFile(precious, []byte("content"), 0o600))
	l := dirOpen(t, dir, wal.Options{SegmentBytes: wal.MinSegmentBytes})
	mustAppend(t, l, event(1, 0, 1, 500))
	require.NoError(t, os.Symlink(precious, filepath.Join(dir, "00000000000000000002.jsonl.tmp")))
	_, err := l.Append(ctx, event(2, 0, 1, 500))
	require.ErrorIs(t, err, wal.ErrFailed)
	require.ErrorContains(t, err, "not a regular file")
	_ = l.Close() // the log has failed
	content, err := os.ReadFile(precious)
	require.NoError(t, err)
	require.Equal(t, "content", string(content))

	_, err = wal.Open(dir, wal.Options{})
	require.ErrorContains(t, err, "not a regular file")
	require.NoError(t, os.Remove(filepath.Join(dir, "00000000000000000002.jsonl.tmp")))
	mustClose(t, dirOpen(t, dir, wal.Options{}))
}
