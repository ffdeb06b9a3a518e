package runner

import (
	"context"
	"io/fs"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// faulty is a disk whose writes fail with whatever is in its place.
type faulty struct {
	wal.FS
	fails *atomic.Pointer[error]
}

func (f faulty) OpenFile(name string, flag int, perm fs.FileMode) (wal.File, error) {
	file, err := f.FS.OpenFile(name, flag, perm)
	return faultyFile{file, f.fails}, err
}

type faultyFile struct {
	wal.File
	fails *atomic.Pointer[error]
}

func (f faultyFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.fails.Load(); err != nil {
		return 0, *err
	}
	return f.File.WriteAt(p, off)
}

func (f faultyFile) Sync() error {
	if err := f.fails.Load(); err != nil && *err != syscall.ENOSPC {
		return *err
	}
	return f.File.Sync()
}

func poolOnFaulty(t testing.TB, reg *Registry, opts Options) (*pool, func(error)) {
	disk := crashfs.New()
	bad := faulty{disk, &atomic.Pointer[error]{}}
	p := poolOn(t, bad, reg, opts)
	p.disk = disk
	return p, func(err error) {
		if err == nil {
			bad.fails.Store(nil)
			return
		}
		bad.fails.Store(&err)
	}
}

// While the disk is full what was done is not forgotten: it is written when there is room.
func TestF_full_disk_is_waited_for(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fail func(error)
		reg := does(script{
			execute: func(_ context.Context, n int) (int, error) {
				fail(syscall.ENOSPC)
				if n == 0 {
					return 0, errBroken
				}
				return n, nil
			},
			undo: func(context.Context, int, Done) error { fail(syscall.ENOSPC); return nil },
		}, Settings{})
		p, f := poolOnFaulty(t, reg, Options{})
		fail = f
		for n, id := range []string{"ill", "well"} {
			p.submit("do", id, n)
			for state := statemachine.Submitted; ; {
				synctest.Wait()
				job, _ := p.engine.Job(id)
				if job.State == statemachine.Completed || job.State == statemachine.RolledBack {
					break
				}
				require.NotEqual(t, state, job.State)
				state = job.State
				_, err := p.engine.Submit(t.Context(), recovery.Submission{})
				require.ErrorIs(t, err, wal.ErrNoSpace)
				time.Sleep(time.Minute)
				fail(nil)
				time.Sleep(5 * time.Second)
			}
		}
		require.Equal(t, []string{"submitted", "validated", "started", "failed: broken", "step_undone #rollback", "rolled_back: undone after its failure"}, p.story("ill"))
		require.Contains(t, p.log.String(), "waiting for room on the disk")
	})
}

// So is a step: it was done, and is not done again for want of room. (Its job failed, though all that came of that had to wait for
// room, too.)
func TestF_full_disk_is_waited_for_by_steps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fail func(error)
		var l ledger
		p, f := poolOnFaulty(t, does(script{execute: func(ctx context.Context, n int) (int, error) {
			return Step(ctx, "charge", func(context.Context) (int, error) {
				l.note("charged")
				fail(syscall.ENOSPC)
				return n, nil
			})
		}}, Settings{Effect: recovery.Irreversible, Heartbeat: time.Hour}), Options{})
		fail = f
		p.submit("do", "a", 1)
		time.Sleep(time.Minute)
		fail(nil)
		require.Equal(t, statemachine.Completed, p.wait("a").State)
		require.Equal(t, []string{"charged"}, l.all())

		p.submit("do", "b", 1)
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.Error(t, p.Drain(ctx))
		require.Equal(t, []statemachine.State{statemachine.Started}, states(p.engine, "b"))
	})
}

// When the log has failed the jobs are as they are, whoever waits is told, and the runner can be drained.
func TestF_failed_log_leaves_jobs_as_they_are(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		goOn := make(chan struct{})
		reg := does(script{execute: func(ctx context.Context, n int) (int, error) { <-goOn; return n, nil }}, Settings{Effect: recovery.Pure, Retry: Backoff{}})
		p, fail := poolOnFaulty(t, reg, Options{Workers: 1})
		p.submit("do", "a", 1)
		told := make(chan error)
		go func() { _, err := p.Wait(t.Context(), "a"); told <- err }()
		synctest.Wait()
		fail(syscall.EIO)
		close(goOn)
		require.ErrorIs(t, <-told, wal.ErrFailed)
		_, err := p.Wait(t.Context(), "a")
		require.ErrorIs(t, err, ErrNotRunning, "who comes later is told how it stands")
		require.NoError(t, p.Drain(t.Context()))
		require.Empty(t, p.tasks)
		next := p.after(does(script{}, Settings{Effect: recovery.Pure}), Options{})
		_, err = next.Recover(t.Context())
		require.NoError(t, err)
		require.Equal(t, statemachine.Completed, next.wait("a").State)
	})
}

// A job that somebody else has begun while it waited for its turn is not begun once more.
func TestFence_of_a_job_that_waits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		goOn, ran := make(chan struct{}), 0
		p := poolOn(t, left(t), all(script{execute: func(_ context.Context, n int) (int, error) {
			if n == 7 {
				ran++
				return n, nil
			}
			<-goOn
			return n, nil
		}}), Options{Workers: 1})
		p.submit("pure", "first", 1)
		synctest.Wait()
		_, err := p.Recover(t.Context())
		require.NoError(t, err)
		_, err = p.engine.Resume(t.Context(), "pure")
		require.NoError(t, err)
		_, err = p.engine.Start(t.Context(), "submitted")
		require.Error(t, err)
		_, err = p.engine.Do(t.Context(), recovery.Validate("submitted"), recovery.Start("submitted"))
		require.NoError(t, err)
		close(goOn)
		require.Equal(t, statemachine.Completed, p.wait("first").State)
		synctest.Wait()
		require.Zero(t, ran)
		for _, id := range []string{"pure", "submitted"} {
			job, err := p.Wait(t.Context(), id)
			require.ErrorIs(t, err, ErrNotRunning)
			require.Equal(t, statemachine.Started, job.State)
		}
	})
}

// Who cancels a job whose attempt has just failed does not wait for another.
func TestCancel_while_a_retry_is_decided(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p *pool
		ended := make(chan statemachine.Job, 1)
		reg := does(script{execute: func(context.Context, int) (int, error) { return 0, errBroken }}, Settings{Effect: recovery.Pure,
			Retry: RetryFunc(func(error, int) (time.Duration, bool) {
				go func() {
					job, err := p.Cancel(context.Background(), "a", "enough")
					if err != nil {
						t.Error(err)
					}
					ended <- job
				}()
				time.Sleep(time.Second)
				return time.Hour, true
			})})
		p = newPool(t, reg, Options{})
		began := time.Now()
		p.submit("do", "a", 1)
		require.Equal(t, "cancelled: enough", (<-ended).Error)
		require.Equal(t, time.Second, time.Since(began))
	})
}
