package runner

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

func nothing(context.Context, any) (int, error) { return 0, nil }

// What is submitted again is the job that is there, however it stands, and nothing is written.
func TestOnce_is_the_job_that_is_there(t *testing.T) {
	reg := does(script{execute: until}, Settings{})
	Add(reg, "any", Func[any, int](nothing), Settings{})
	p := newPool(t, reg, Options{Workers: 1})
	for id, args := range map[string][]any{
		"number": {7, json.RawMessage(" 7 ")},
		"none":   {nil, json.RawMessage("null"), (*int)(nil)},
		"object": {map[string]string{"a": "<", "b": ""}, struct {
			A string `json:"a"`
			B string `json:"b"`
		}{A: "<"}, json.RawMessage(`{"a": "<", "b": ""}`)},
		"not held": {strings.Repeat("x", 4096)},
	} {
		p.submit("any", id, args[0])
		ended := p.wait(id)
		for _, same := range args {
			job, err := p.Submit(t.Context(), "any", same, Once(id))
			require.NoError(t, err)
			require.Equal(t, ended, job)
		}
		for _, other := range []any{8, json.RawMessage(`{"b":"","a":"<"}`), strings.Repeat("x", 4095) + "y"} {
			_, err := p.Submit(t.Context(), "any", other, Once(id))
			require.ErrorIs(t, err, statemachine.ErrDuplicateJob)
			require.ErrorContains(t, err, fmt.Sprintf("job %q has other args", id))
		}
		_, err := p.Submit(t.Context(), "do", args[0], Once(id))
		require.ErrorIs(t, err, statemachine.ErrDuplicateJob)
		require.ErrorContains(t, err, `of capability "any"`)
		_, err = p.Submit(t.Context(), "any", make(chan int), Once(id))
		require.ErrorIs(t, err, wal.ErrInvalid)
	}
	_, err := p.Submit(t.Context(), "any", 7, Once(""))
	require.ErrorIs(t, err, wal.ErrInvalid)
	require.Equal(t, map[statemachine.State]int{statemachine.Completed: 4}, p.engine.Report().Jobs)

	for _, id := range []string{"at work", "queued"} { // there is one worker
		first, err := p.Submit(t.Context(), "do", 1, Once(id))
		require.NoError(t, err)
		again, err := p.Submit(t.Context(), "do", 1, Once(id))
		require.NoError(t, err)
		require.Equal(t, first.FirstSeq, again.FirstSeq)
	}
	for _, id := range []string{"queued", "at work"} {
		job, err := p.Cancel(t.Context(), id, "the test is over")
		require.NoError(t, err)
		again, err := p.Submit(t.Context(), "do", 1, Once(id))
		require.NoError(t, err)
		require.Equal(t, job, again)
	}
}

// Of many that submit the same at the same time, one makes the job; all wait for it, and none takes it for a job that a process
// which died has left.
func TestOnce_by_many_at_once(t *testing.T) {
	var ran atomic.Int64
	reg := NewRegistry()
	do := Add(reg, "do", Func[int, int](func(_ context.Context, n int) (int, error) { ran.Add(1); return n, nil }), Settings{})
	p := newPool(t, reg, Options{Workers: 2})
	for i := range 100 {
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				n, err := do.Do(t.Context(), p.Runner, i, Once(fmt.Sprint(i)))
				if err != nil || n != i {
					t.Errorf("%d: %d, %v", i, n, err)
				}
			})
		}
		all.Wait()
	}
	require.Equal(t, int64(100), ran.Load())
	require.Empty(t, p.turns.taken)
}

// A program that submits its jobs again in each of its lives has each of them once.
func TestOnce_over_crashes(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		disk, made := crashfs.New(), map[string]string{}
		for range rapid.IntRange(1, 4).Draw(rt, "lives") {
			engine, err := recovery.Open(t.Context(), "jobs", recovery.Options{WAL: wal.Options{FS: disk}})
			require.NoError(rt, err)
			reg := NewRegistry()
			for _, name := range []string{"a", "b"} {
				Add(reg, name, Func[any, int](nothing), Settings{Effect: recovery.Pure})
			}
			r, err := New(engine, reg, Options{Workers: 1})
			require.NoError(rt, err)
			_, err = r.Recover(t.Context())
			require.NoError(rt, err)
			for range rapid.IntRange(0, 6).Draw(rt, "submissions") {
				id, name := rapid.SampledFrom([]string{"1", "2", "3"}).Draw(rt, "id"), rapid.SampledFrom([]string{"a", "a", "b"}).Draw(rt, "capability")
				args := rapid.IntRange(0, 1).Draw(rt, "args")
				what := fmt.Sprint(name, args)
				job, err := r.Submit(t.Context(), name, args, Once(id))
				if made[id] != "" && made[id] != what {
					require.ErrorIs(rt, err, statemachine.ErrDuplicateJob)
					continue
				}
				require.NoError(rt, err)
				require.Equal(rt, id, job.ID)
				made[id] = what
			}
			disk = disk.Crash(crashfs.SyncedOnly)
			require.NoError(rt, r.Drain(t.Context()))
			require.NoError(rt, engine.Close())
		}
		engine, err := recovery.Open(t.Context(), "jobs", recovery.Options{WAL: wal.Options{FS: disk}})
		require.NoError(rt, err)
		defer engine.Close()
		for id, what := range made {
			job, known := engine.Job(id)
			raw, _ := job.Args.JSON()
			require.True(rt, known)
			require.Equal(rt, what, job.Capability+string(raw))
		}
		require.Len(rt, made, count(engine))
	})
}

func count(e *recovery.Engine) (n int) {
	for _, jobs := range e.Report().Jobs {
		n += jobs
	}
	return n
}
