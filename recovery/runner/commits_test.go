package runner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
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

// Commands that go into one append are each answered with its own job, or its own error: one that is refused hurts no other.
func TestCommits_answer_each_by_itself(t *testing.T) {
	e := engineOn(t, crashfs.New())
	c := &commits{engine: e}
	var all sync.WaitGroup
	for g := range 40 {
		all.Go(func() {
			for i := range 20 {
				id := fmt.Sprint(g, "-", i)
				jobs, err := c.Do(t.Context(), recovery.Submit(recovery.Submission{JobID: id}), recovery.Validate(id), recovery.Start(id))
				if err != nil || len(jobs) != 3 || jobs[0].ID != id || jobs[2].State != statemachine.Started {
					t.Error(jobs, err)
					return
				}
				switch (g + i) % 10 {
				case 0:
					if _, err = c.Do(t.Context(), recovery.Complete(id, json.RawMessage(`{"a":1,"a":2}`))); !errors.Is(err, wal.ErrInvalid) {
						t.Error(err)
					}
				case 1:
					if _, err = c.Do(t.Context(), recovery.Complete(id, nil).IfSeq(1<<40)); !errors.Is(err, recovery.ErrChanged) {
						t.Error(err)
					}
				}
				jobs, err = c.Do(t.Context(), recovery.Complete(id, id))
				if err != nil || jobs[0].ID != id || jobs[0].State != statemachine.Completed {
					t.Error(jobs, err)
				}
			}
		})
	}
	all.Wait()
	require.Equal(t, map[statemachine.State]int{statemachine.Completed: 800}, e.Report().Jobs)
}

// Those who come at the same time share an append, and more than fit begin another one.
func TestCommits_go_together(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := engineOn(t, crashfs.New())
		c := &commits{engine: e}
		lead, _, leads := c.join([]recovery.Command{recovery.Submit(recovery.Submission{JobID: "leader"})})
		require.True(t, leads)
		var all sync.WaitGroup
		for i := range 100 {
			all.Go(func() {
				id := fmt.Sprint(i)
				jobs, err := c.Do(t.Context(), recovery.Submit(recovery.Submission{JobID: id}), recovery.Validate(id), recovery.Start(id))
				if err != nil || jobs[0].ID != id {
					t.Error(jobs, err)
				}
			})
		}
		synctest.Wait()
		require.Equal(t, 1+85*3, len(lead.commands), "all that fit")
		require.Equal(t, map[statemachine.State]int{statemachine.Started: 15}, e.Report().Jobs)
		c.part(lead)
		lead.jobs, lead.err = e.Do(t.Context(), lead.commands...)
		close(lead.done)
		all.Wait()
		require.Equal(t, map[statemachine.State]int{statemachine.Started: 100, statemachine.Submitted: 1}, e.Report().Jobs)
	})
}

// Whoever waits for an append is told when the code that the engine was given panics in it.
func TestCommits_tell_when_the_clock_panics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		panics := false
		e, err := recovery.Open(t.Context(), "jobs", recovery.Options{WAL: wal.Options{FS: crashfs.New(), Now: func() time.Time {
			if panics {
				panic("no time")
			}
			return time.Now()
		}}})
		require.NoError(t, err)
		c := &commits{engine: e}
		lead, _, _ := c.join([]recovery.Command{recovery.Submit(recovery.Submission{JobID: "leader"})})
		told := make(chan error)
		go func() {
			_, err := c.Do(context.Background(), recovery.Submit(recovery.Submission{JobID: "a"}))
			told <- err
		}()
		synctest.Wait()
		panics = true
		c.part(lead)
		require.Panics(t, func() { c.carryOut(t.Context(), lead) })
		require.ErrorIs(t, <-told, wal.ErrOutcomeUnknown)
		panics = false
		require.NoError(t, e.Close())
	})
}

// Where it is not known whether an append is there, it is so for all that were in it, and none of them is tried again.
func TestCommits_share_what_is_unknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := faulty{crashfs.New(), &atomic.Pointer[error]{}}
		e, err := recovery.Open(context.Background(), "jobs", recovery.Options{WAL: wal.Options{FS: disk}})
		require.NoError(t, err)
		defer e.Close()
		c := &commits{engine: e}
		lead, _, _ := c.join([]recovery.Command{recovery.Submit(recovery.Submission{JobID: "leader"})})
		told := make(chan error)
		go func() {
			_, err := c.Do(context.Background(), recovery.Submit(recovery.Submission{JobID: "a"}))
			told <- err
		}()
		synctest.Wait()
		broken := error(syscall.EIO)
		disk.fails.Store(&broken)
		c.part(lead)
		lead.jobs, lead.err = e.Do(t.Context(), lead.commands...)
		close(lead.done)
		require.ErrorIs(t, <-told, wal.ErrOutcomeUnknown)
	})
}
