package runner

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// opened is an engine in memory, which is closed with the test.
func opened(t testing.TB, disk *crashfs.FS) *recovery.Engine {
	e, err := recovery.Open(context.Background(), "jobs", recovery.Options{CheckpointEvery: -1, WAL: wal.Options{FS: disk}})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, e.Close()) })
	return e
}

// running is a runner on an engine in memory, which is drained with the test.
func running(t testing.TB, reg *Registry, opts Options) *Runner {
	return on2(t, opened(t, crashfs.New()), reg, opts)
}

func on2(t testing.TB, e *recovery.Engine, reg *Registry, opts Options) *Runner {
	r, err := New(e, reg, opts)
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		require.NoError(t, r.Drain(ctx))
	})
	return r
}
