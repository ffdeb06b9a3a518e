package recovery

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/wal"
)

// files are a directory's files, but for LOCK, in which a writer leaves its pid.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := make(map[string]string)
	require.NoError(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == "LOCK" {
			return err
		}
		raw, err := os.ReadFile(path)
		found[path] = string(raw)
		return err
	}))
	return found
}

// sealedAndTorn makes a log of several segments, whose last append was torn.
func sealedAndTorn(t *testing.T) (dir, oldest string) {
	t.Helper()
	ctx := context.Background()
	dir = t.TempDir()
	e, err := Open(ctx, dir, Options{WAL: wal.Options{SegmentBytes: wal.MinSegmentBytes}})
	require.NoError(t, err)
	for range 20 {
		_, err := e.Submit(ctx, Submission{Args: "some forty bytes, so that segments fill up"})
		require.NoError(t, err)
	}
	require.NoError(t, e.Close())
	segments, err := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	require.NoError(t, err)
	require.Greater(t, len(segments), 3)
	newest, err := os.OpenFile(segments[len(segments)-1], os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = newest.WriteString(`{"seq":21,"prev":`)
	require.NoError(t, err)
	require.NoError(t, newest.Close())
	return dir, segments[0]
}

// Damage in a sealed segment is met only while replaying. By then Open had cut the torn tail and begun a new epoch, and
// did so again at every try.
func TestF6_damage_met_while_replaying_changes_nothing(t *testing.T) {
	dir, oldest := sealedAndTorn(t)
	raw, err := os.ReadFile(oldest)
	require.NoError(t, err)
	raw[len(raw)/2] ^= 1
	require.NoError(t, os.WriteFile(oldest, raw, 0o600))
	before := files(t, dir)
	for range 3 {
		_, err := Open(context.Background(), dir, Options{})
		require.ErrorIs(t, err, wal.ErrCorrupt)
		var corrupt *wal.CorruptError
		require.ErrorAs(t, err, &corrupt)
		require.Equal(t, oldest, corrupt.Path)
		require.Equal(t, before, files(t, dir))
	}
}

// Nor does an Open that is given up.
func TestF26_open_given_up_while_replaying_changes_nothing(t *testing.T) {
	dir, _ := sealedAndTorn(t)
	before := files(t, dir)
	ctx, cancel := context.WithCancel(context.Background())
	_, err := Open(ctx, dir, Options{Projections: []projection.Projection{projectionFunc(cancel)}})
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, before, files(t, dir))

	e, err := Open(context.Background(), dir, Options{})
	require.NoError(t, err, "the lock is free")
	require.NotEqual(t, before, files(t, dir))
	require.Len(t, e.Report().WAL.Torn, 1)
	require.NoError(t, e.Close())
}
