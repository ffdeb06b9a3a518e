package recovery

import (
	"context"
	"fmt"
	"io/fs"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// finishJobs takes so many jobs through their lives, some thousand events to a sync, by several callers.
func finishJobs(tb testing.TB, e *Engine, from, to int, output any) {
	const callers, together = 8, 256
	var all sync.WaitGroup
	next := atomic.Int64{}
	next.Store(int64(from))
	for range callers {
		all.Go(func() {
			for {
				end := int(next.Add(together))
				begin := end - together
				if begin >= to {
					return
				}
				var commands []Command
				for i := begin; i < min(end, to); i++ {
					id := fmt.Sprintf("%032x", i)
					commands = append(commands, Submit(Submission{JobID: id, Capability: "FileRead", Args: map[string]string{"path": "notes.txt"}}),
						Validate(id), Start(id), Complete(id, output))
				}
				if _, err := e.Do(context.Background(), commands...); err != nil {
					tb.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
}

// heap is the bytes of live objects.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkCheckpoint writes a checkpoint of so many finished jobs, while others go on: peak-MB is by how much the heap
// in use grew meanwhile, before garbage is collected.
func BenchmarkCheckpoint(b *testing.B) {
	for _, jobs := range []int{100_000, 1_000_000} {
		b.Run(fmt.Sprintf("jobs=%d", jobs), func(b *testing.B) {
			ctx := context.Background()
			e, err := Open(ctx, b.TempDir(), Options{CheckpointEvery: -1})
			require.NoError(b, err)
			finishJobs(b, e, 0, jobs, "done")
			next := jobs
			var peak uint64
			for b.Loop() {
				b.StopTimer()
				finishJobs(b, e, next, next+1, "done")
				next++
				before := heap()
				stop, over := make(chan struct{}), make(chan struct{})
				go func() {
					defer close(over)
					var m runtime.MemStats
					for {
						runtime.ReadMemStats(&m)
						peak = max(peak, m.HeapAlloc-min(before, m.HeapAlloc))
						select {
						case <-stop:
							return
						case <-time.After(20 * time.Millisecond):
						}
					}
				}()
				b.StartTimer()
				require.NoError(b, e.Checkpoint(ctx))
				close(stop)
				<-over
			}
			found, err := e.log.(Files).Checkpoints()
			require.NoError(b, err)
			b.ReportMetric(float64(peak)/1e6, "peak-MB")
			b.ReportMetric(float64(found[0].Bytes)/float64(jobs), "B/job")
			require.NoError(b, e.Close())
		})
	}
}

// BenchmarkKeep measures the latency of single commands by four callers, without anything beside them, while checkpoints
// of 1,000,000 jobs are written one after the other, and while the log is compacted: x-quiet is the ratio of the p99s.
func BenchmarkKeep(b *testing.B) {
	for _, beside := range []string{"checkpoint", "compaction"} {
		b.Run("beside="+beside, func(b *testing.B) {
			ctx := context.Background()
			e, err := Open(ctx, b.TempDir(), Options{CheckpointEvery: -1, WAL: wal.Options{SegmentBytes: 4 << 20}})
			require.NoError(b, err)
			finishJobs(b, e, 0, 1_000_000, "done")
			next := 1_000_000
			var quiet, busy []time.Duration
			for b.Loop() {
				quiet = append(quiet, latencies(b, e, next, 500*time.Millisecond)...)
				next += 1_000_000
				stop, over := make(chan struct{}), make(chan struct{})
				go func() {
					defer close(over)
					for {
						if beside == "checkpoint" {
							_ = e.Checkpoint(ctx)
						} else {
							_, _ = e.Compact(ctx, 300*time.Millisecond)
						}
						select {
						case <-stop:
							return
						default:
						}
					}
				}()
				busy = append(busy, latencies(b, e, next, 500*time.Millisecond)...)
				next += 1_000_000
				close(stop)
				<-over
			}
			p99 := func(of []time.Duration) time.Duration {
				slices.Sort(of)
				return of[len(of)*99/100]
			}
			p50 := func(of []time.Duration) time.Duration { return of[len(of)/2] }
			q, w := p99(quiet), p99(busy)
			b.ReportMetric(float64(q), "quiet-p99-ns")
			b.ReportMetric(float64(w), "p99-ns")
			b.ReportMetric(float64(w)/float64(q), "x-quiet")
			b.ReportMetric(float64(p50(busy))/float64(p50(quiet)), "x-quiet-p50")
			require.NoError(b, e.Close())
		})
	}
}

// latencies runs whole jobs by four callers for a while.
func latencies(b *testing.B, e *Engine, from int, span time.Duration) []time.Duration {
	var mu sync.Mutex
	var all []time.Duration
	var callers sync.WaitGroup
	next := atomic.Int64{}
	next.Store(int64(from))
	start := time.Now()
	for range 4 {
		callers.Go(func() {
			var mine []time.Duration
			for time.Since(start) < span {
				id := fmt.Sprintf("%032x", next.Add(1))
				for _, c := range []Command{Submit(Submission{JobID: id, Capability: "FileRead"}), Validate(id), Start(id), Complete(id, "done")} {
					at := time.Now()
					if _, err := e.Do(context.Background(), c); err != nil {
						b.Error(err)
						return
					}
					mine = append(mine, time.Since(at))
				}
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, mine...)
		})
	}
	callers.Wait()
	return all
}

// BenchmarkOpenForgotten opens a log of which only 1,000 unfinished jobs are remembered, of so many past events, and, in
// turn, one that never had any others: x-fresh is the ratio.
func BenchmarkOpenForgotten(b *testing.B) {
	for _, events := range []int{400_000, 10_000_000} {
		b.Run(fmt.Sprintf("past=%d", events), func(b *testing.B) {
			ctx := context.Background()
			opts := Options{CheckpointEvery: -1}
			build := func(past int) string {
				dir := b.TempDir()
				e, err := Open(ctx, dir, opts)
				require.NoError(b, err)
				for i := range 1000 {
					_, err := e.Do(ctx, Submit(Submission{JobID: fmt.Sprintf("open-%d", i), Capability: "FileRead"}))
					require.NoError(b, err)
				}
				finishJobs(b, e, 0, past/4, "done")
				if past > 0 {
					for range 2 { // the second time, the ids that the first refuses are free again
						_, err = e.Compact(ctx, 0)
						require.NoError(b, err)
					}
				}
				require.NoError(b, e.Checkpoint(ctx))
				require.NoError(b, e.Close())
				return dir
			}
			old, fresh := build(events), build(0)
			var ours, theirs []time.Duration
			open := func(dir string) time.Duration {
				start := time.Now()
				e, err := Open(ctx, dir, Options{CheckpointEvery: -1, WAL: wal.Options{ReadOnly: true}})
				took := time.Since(start)
				require.NoError(b, err)
				require.Equal(b, 1000, e.Report().Jobs[statemachine.Submitted])
				require.Equal(b, 1000, e.jobs.Len())
				require.NoError(b, e.Close())
				return took
			}
			for b.Loop() {
				ours, theirs = append(ours, open(old)), append(theirs, open(fresh))
			}
			slices.Sort(ours)
			slices.Sort(theirs)
			b.ReportMetric(float64(ours[len(ours)/2]), "p50-ns")
			b.ReportMetric(float64(ours[len(ours)/2])/float64(theirs[len(theirs)/2]), "x-fresh")
			b.ReportMetric(float64(size(b, old))/1e6, "disk-MB")
		})
	}
}

// size is the bytes of all files in dir.
func size(tb testing.TB, dir string) (n int64) {
	require.NoError(tb, filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		n += info.Size()
		return err
	}))
	return n
}

// A hundred thousand jobs with outputs of 8 KiB open in less than 150 MB of heap: the outputs stay on disk. (A
// tenth of both is what is tested.)
func TestPayloads_stay_on_disk(t *testing.T) {
	const jobs, each = 10_000, 8 << 10
	ctx, dir := t.Context(), t.TempDir()
	opts := Options{WAL: wal.Options{Sync: wal.SyncNever}, CheckpointEvery: -1}
	e, err := Open(ctx, dir, opts)
	require.NoError(t, err)
	output := strings.Repeat("x", each)
	finishJobs(t, e, 0, jobs, output)
	require.NoError(t, e.Close())
	for _, checkpointed := range []bool{false, true} {
		before := heap()
		e, err = Open(ctx, dir, opts)
		require.NoError(t, err)
		require.Equal(t, checkpointed, e.Report().Checkpoint > 0)
		grown := int64(heap()) - int64(before)
		require.Less(t, grown, int64(15<<20), "bytes of heap for %d jobs with outputs of %d", jobs, each)
		job, _ := e.Job(fmt.Sprintf("%032x", jobs/2))
		require.Greater(t, job.Output.Size(), each)
		raw, err := e.Read(ctx, job.Output)
		require.NoError(t, err)
		require.Equal(t, `"`+output+`"`, string(raw))
		require.NoError(t, e.Checkpoint(ctx))
		require.NoError(t, e.Close())
	}
}
