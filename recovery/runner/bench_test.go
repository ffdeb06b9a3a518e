package runner

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/wal"
)

type fileArgs struct {
	Path string `json:"path"`
}

type fileOut struct {
	Bytes int `json:"bytes"`
}

// BenchmarkRunner takes jobs through the runner and, in turn, through the engine alone, 64 at a time, both with all events durable
// in three appends: submitted; validated and started; completed. x-bare is the runner's share of the bare engine's jobs in the
// same run, x-single its share of those of an engine that is given each event by itself.
func BenchmarkRunner(b *testing.B) {
	const inflight = 64
	b.Run(fmt.Sprintf("inflight=%d", inflight), func(b *testing.B) {
		ctx := context.Background()
		open := func() *recovery.Engine {
			e, err := recovery.Open(ctx, b.TempDir(), recovery.Options{})
			require.NoError(b, err)
			return e
		}
		args, out := fileArgs{"/srv/data/14.txt"}, fileOut{12345}
		reg := NewRegistry()
		read := Add(reg, "FileRead", Func[fileArgs, fileOut](func(context.Context, fileArgs) (fileOut, error) { return out, nil }), Settings{})
		e, bare := open(), open()
		r, err := New(e, reg, Options{Workers: inflight})
		require.NoError(b, err)
		run := func() error {
			_, err := read.Do(ctx, r, args)
			return err
		}
		grouped := func() error {
			job, err := bare.Submit(ctx, recovery.Submission{Capability: "FileRead", Args: args})
			if err == nil {
				_, err = bare.Do(ctx, recovery.Validate(job.ID), recovery.Start(job.ID))
			}
			if err == nil {
				_, err = bare.Complete(ctx, job.ID, out)
			}
			return err
		}
		single := func() error {
			job, err := bare.Submit(ctx, recovery.Submission{Capability: "FileRead", Args: args})
			if err == nil {
				_, err = bare.Validate(ctx, job.ID)
			}
			if err == nil {
				_, err = bare.Start(ctx, job.ID)
			}
			if err == nil {
				_, err = bare.Complete(ctx, job.ID, out)
			}
			return err
		}
		var rates, shares, singles []float64
		for b.Loop() {
			mine := rate(b, inflight, run)
			rates = append(rates, mine)
			shares = append(shares, mine/rate(b, inflight, grouped))
			singles = append(singles, mine/rate(b, inflight, single))
		}
		b.ReportMetric(median(rates), "jobs/s")
		b.ReportMetric(median(shares), "x-bare")
		b.ReportMetric(median(singles), "x-single")
		require.NoError(b, r.Drain(ctx))
		require.NoError(b, e.Close())
		require.NoError(b, bare.Close())
	})
}

// BenchmarkResume is what a job of 1,000 recorded steps, which lie among those of 63 others, takes from Recover on until it does
// something new. Opening the log is not in it. An op is one recovery.
func BenchmarkResume(b *testing.B) {
	const steps, others = 1000, 63
	b.Run(fmt.Sprintf("steps=%d", steps), func(b *testing.B) {
		ctx, dir := context.Background(), b.TempDir()
		makeSteps(b, dir, steps, others)
		for b.Loop() {
			b.StopTimer()
			e, err := recovery.Open(ctx, dir, recovery.Options{})
			require.NoError(b, err)
			reached := make(chan struct{})
			reg := NewRegistry()
			Add(reg, "ask", Func[int, int](func(ctx context.Context, n int) (int, error) {
				for range n {
					if _, err := Step(ctx, "ask", is("an answer that is known, of some ninety bytes, as they come out of a tool or a model's mouth")); err != nil {
						return 0, err
					}
				}
				return Step(ctx, "new", func(ctx context.Context) (int, error) {
					close(reached)
					<-ctx.Done()
					return 0, ctx.Err()
				})
			}), Settings{Effect: recovery.Pure})
			r, err := New(e, reg, Options{Workers: 1, MaxAttempts: -1})
			require.NoError(b, err)
			b.StartTimer()
			_, err = r.Recover(ctx)
			require.NoError(b, err)
			<-reached
			b.StopTimer()
			over, cancel := context.WithCancel(ctx)
			cancel()
			require.ErrorAs(b, r.Drain(over), new(*DrainError))
			require.NoError(b, e.Close())
			b.StartTimer()
		}
	})
}

// makeSteps makes a log with one started job of so many steps, and others that have completed, all in step.
func makeSteps(b *testing.B, dir string, steps, others int) {
	ctx := context.Background()
	e, err := recovery.Open(ctx, dir, recovery.Options{WAL: wal.Options{Sync: wal.SyncNever}})
	require.NoError(b, err)
	all := func(of func(id string) []recovery.Command) {
		var commands []recovery.Command
		for i := range others + 1 {
			commands = append(commands, of(fmt.Sprint(i))...)
		}
		_, err := e.Do(ctx, commands...)
		require.NoError(b, err)
	}
	all(func(id string) []recovery.Command {
		s := recovery.Submission{JobID: id, Capability: "ask", Args: steps}
		return []recovery.Command{recovery.Submit(s), recovery.Validate(id), recovery.Start(id)}
	})
	for i := range steps {
		name := "ask"
		if i > 0 {
			name = fmt.Sprintf("ask#%d", i+1)
		}
		all(func(id string) []recovery.Command {
			return []recovery.Command{recovery.Step(id, name, "an answer that is known, of some ninety bytes, as they come out of a tool or a model's mouth")}
		})
	}
	for i := range others {
		_, err := e.Complete(ctx, fmt.Sprint(i+1), nil)
		require.NoError(b, err)
	}
	require.NoError(b, e.Close())
}

func median(all []float64) float64 {
	slices.Sort(all)
	return all[len(all)/2]
}

// rate runs do in a closed loop for half a second and returns how often it was done a second.
func rate(b *testing.B, writers int, do func() error) float64 {
	const span = 500 * time.Millisecond
	var done atomic.Int64
	var all sync.WaitGroup
	start := time.Now()
	for range writers {
		all.Go(func() {
			for time.Since(start) < span {
				if err := do(); err != nil {
					b.Error(err)
					return
				}
				done.Add(1)
			}
		})
	}
	all.Wait()
	return float64(done.Load()) / time.Since(start).Seconds()
}
