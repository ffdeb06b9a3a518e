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
