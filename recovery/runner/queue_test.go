package runner

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/statemachine"
)

// Work may submit more work, though the queue is full and all workers do the same. (They waited for each other, for ever.)
func TestSubmit_by_work_does_not_wait_for_itself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p *pool
		p = newPool(t, does(script{execute: func(ctx context.Context, n int) (int, error) {
			for range n {
				if _, err := p.Submit(ctx, "do", 0); err != nil {
					return 0, err
				}
			}
			return n, nil
		}}, Settings{Timeout: time.Minute}), Options{Workers: 2, Queue: 1})
		p.submit("do", "a", 3)
		p.submit("do", "b", 3)
		for _, id := range []string{"a", "b"} {
			require.Equal(t, statemachine.Completed, p.wait(id).State)
		}
		synctest.Wait()
		require.Zero(t, p.waiting)
		done := 0
		for job := range p.engine.Jobs(projection.Query{}) {
			require.Equal(t, statemachine.Completed, job.State)
			done++
		}
		require.Equal(t, 8, done)
	})
}

// Nor does it wait for somebody outside who submits the same job, and waits for a place. (It did, and he waited for its worker.)
func TestSubmit_once_by_work_while_somebody_waits_to_do_it(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var p *pool
		p = newPool(t, does(script{execute: func(ctx context.Context, n int) (int, error) {
			if n == 1 {
				time.Sleep(time.Second)
				_, err := p.Submit(ctx, "do", 0, Once("child"))
				return n, err
			}
			return n, nil
		}}, Settings{Timeout: time.Minute}), Options{Workers: 1, Queue: 1})
		p.submit("do", "a", 1)
		synctest.Wait()
		p.submit("do", "b", 0)
		outside := make(chan error)
		go func() { _, err := p.Submit(context.Background(), "do", 0, Once("child")); outside <- err }()
		require.Equal(t, statemachine.Completed, p.wait("a").State)
		require.NoError(t, <-outside)
		for _, id := range []string{"b", "child"} {
			require.Equal(t, statemachine.Completed, p.wait(id).State)
		}
		require.Zero(t, p.waiting)
		require.Empty(t, p.turns.taken)
	})
}

// A place that becomes free is of whoever waits longest. (Whoever came just then took it, and the one who was told of it went to
// the end of those who wait.)
func TestQueue_is_fair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, does(script{}, Settings{}), Options{Queue: 1})
		require.NoError(t, p.place(t.Context()))
		first := make(chan error)
		go func() { first <- p.place(t.Context()) }()
		synctest.Wait()
		p.giveBack()
		now, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, p.place(now), context.Canceled)
		require.NoError(t, <-first)

		second := make(chan error)
		ctx, leave := context.WithCancel(t.Context())
		go func() { second <- p.place(ctx) }()
		go func() { first <- p.place(t.Context()) }()
		synctest.Wait()
		leave()
		require.Error(t, <-second)
		p.giveBack()
		require.NoError(t, <-first)
		p.giveBack()
		require.Zero(t, p.waiting)
		require.Empty(t, p.room)
	})
}

// A job is in the log before its Submit has put it into the queue. Whoever has it in between, and leaves it as it is, leaves it
// to Submit; who ends it, leaves nothing to do; and whoever waits for it by Submit is told either way. (It was nobody's then.)
func TestSubmit_beside_somebody_who_was_faster(t *testing.T) {
	for _, ends := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			p := newPool(t, does(script{}, Settings{}), Options{Workers: 1})
			job, err := p.engine.Submit(t.Context(), recovery.Submission{JobID: "a", Capability: "do", Args: 1})
			require.NoError(t, err)
			faster, err := p.claim("a")
			require.NoError(t, err)
			require.NoError(t, p.place(t.Context()))
			own := &task{id: "a", job: job, does: faster.does}
			require.True(t, p.enqueue(own, true))
			synctest.Wait()
			want := statemachine.Completed
			if ends {
				want = statemachine.Failed
				_, err := p.engine.Fail(t.Context(), "a", errBroken)
				require.NoError(t, err)
			}
			p.leave(faster, nil)
			p.hands.Done()
			job, err = p.await(t.Context(), own, job)
			require.NoError(t, err)
			require.Equal(t, want, job.State)
			require.Zero(t, p.waiting)
			require.Empty(t, p.tasks)
		})
	}
}
