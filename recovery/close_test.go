package recovery

import (
	"context"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// While Close waited for a command whose sync hung, every new command waited behind Close, deaf to its context. It is
// told at once that the engine is closed; what was in flight ends well.
func TestF26_a_command_does_not_wait_behind_close(t *testing.T) {
	ctx, disk := context.Background(), crashfs.Inject(crashfs.New(), crashfs.MustSchedule("sync *.jsonl #1 freeze"))
	e, err := Open(ctx, "jobs", Options{WAL: wal.Options{FS: disk}})
	require.NoError(t, err)
	first, second, closed := make(chan error, 1), make(chan error, 1), make(chan error, 2)
	go func() { _, err := e.Submit(ctx, Submission{JobID: "a"}); first <- err }()
	<-disk.Frozen()
	for range cap(closed) {
		go func() { closed <- e.Close() }()
	}
	for e.gate.TryRLock() { // until Close waits
		e.gate.RUnlock()
		runtime.Gosched()
	}
	go func() { _, err := e.Submit(ctx, Submission{JobID: "b"}); second <- err }()
	require.ErrorIs(t, <-second, wal.ErrClosed)
	disk.Release()
	require.NoError(t, <-first)
	require.NoError(t, <-closed)
	require.NoError(t, <-closed)
	job, _ := e.Job("a")
	require.Equal(t, statemachine.Submitted, job.State)
	_, known := e.Job("b")
	require.False(t, known)
}
