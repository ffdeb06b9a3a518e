package recovery

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/wal"
)

// BenchmarkJobs takes whole jobs through their lives, four events and four syncs each, and, in turn, appends the same
// events to the log alone: x-log is the engine's share of what the log does in the same run.
func BenchmarkJobs(b *testing.B) {
	for _, writers := range []int{1, 64} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			ctx := context.Background()
			disk := &counting{FS: wal.OS}
			e, err := Open(ctx, b.TempDir(), Options{WAL: wal.Options{FS: disk}})
			require.NoError(b, err)
			l, err := wal.Open(b.TempDir(), wal.Options{})
			require.NoError(b, err)
			var next atomic.Int64
			engine := func() error { return wholeJob(e, fmt.Sprintf("%032x", next.Add(1))) }
			alone := func() error { return fourAppends(l, fmt.Sprintf("%032x", next.Add(1))) }
			var shares, rates []float64
			for b.Loop() {
				r := rate(b, writers, engine)
				rates, shares = append(rates, 4*r), append(shares, r/rate(b, writers, alone))
			}
			slices.Sort(shares)
			slices.Sort(rates)
			b.ReportMetric(rates[len(rates)/2], "events/s")
			b.ReportMetric(shares[len(shares)/2], "x-log")
			b.ReportMetric(float64(e.Stats().Events)/float64(disk.syncs.Load()), "events/sync")
			require.NoError(b, e.Close())
			require.NoError(b, l.Close())
		})
	}
}

func wholeJob(e *Engine, id string) error {
	events := jobEvents(id)
	for _, c := range []Command{
		Submit(Submission{JobID: id, Capability: events[0].Capability, Args: events[0].Args}),
		Validate(id), Start(id), Complete(id, events[3].Output),
	} {
		if _, err := e.Do(context.Background(), c); err != nil {
			return err
		}
	}
	return nil
}

func fourAppends(l *wal.Log, id string) (err error) {
	prev := uint64(0)
	for _, event := range jobEvents(id) {
		event.Prev = prev
		if prev, err = l.Append(context.Background(), event); err != nil {
			return err
		}
	}
	return nil
}

// BenchmarkSubmit: one caller, one job, one sync; in=do, a hundred jobs in one append.
func BenchmarkSubmit(b *testing.B) {
	for _, sync := range []wal.Sync{wal.SyncAlways, wal.SyncNever} {
		b.Run(map[wal.Sync]string{wal.SyncAlways: "sync=always", wal.SyncNever: "sync=never"}[sync], func(b *testing.B) {
			ctx := context.Background()
			e, err := Open(ctx, b.TempDir(), Options{WAL: wal.Options{Sync: sync}})
			require.NoError(b, err)
			args := jobEvents("")[0].Args
			b.Run("one", func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					_, err := e.Submit(ctx, Submission{Capability: "FileRead", Args: args})
					require.NoError(b, err)
				}
			})
			b.Run("of=100", func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					commands := make([]Command, 100)
					for i := range commands {
						commands[i] = Submit(Submission{Capability: "FileRead", Args: args})
					}
					_, err := e.Do(ctx, commands...)
					require.NoError(b, err)
				}
			})
			require.NoError(b, e.Close())
		})
	}
}

// BenchmarkHistory walks the four events of one job of many, each far from the next. JOBWAL_BENCH_EVENTS adds a log of so
// many events.
func BenchmarkHistory(b *testing.B) {
	sizes := []int{100, 25_000}
	if n, err := strconv.Atoi(os.Getenv("JOBWAL_BENCH_EVENTS")); err == nil && n >= 400 {
		sizes = append(sizes, n/400*100)
	}
	for _, jobs := range sizes {
		b.Run(fmt.Sprintf("jobs=%d", jobs), func(b *testing.B) {
			ctx, dir := context.Background(), b.TempDir()
			l, err := wal.Open(dir, wal.Options{Sync: wal.SyncNever})
			require.NoError(b, err)
			for step := range 4 { // every job's first event, then every job's second
				for i := 0; i < jobs; i += 100 {
					var events []wal.Event
					for k := i; k < i+100; k++ {
						event := jobEvents(fmt.Sprintf("%032x", k))[step]
						if step > 0 {
							event.Prev = uint64((step-1)*jobs + k + 1)
						}
						events = append(events, event)
					}
					_, err := l.Append(ctx, events...)
					require.NoError(b, err)
				}
			}
			require.NoError(b, l.Close())
			e, err := Open(ctx, dir, Options{})
			require.NoError(b, err)
			n, id := 0, fmt.Sprintf("%032x", jobs/2)
			b.ReportAllocs()
			for b.Loop() {
				n = 0
				for _, err := range e.History(ctx, id) {
					require.NoError(b, err)
					n++
				}
			}
			require.Equal(b, 4, n)
			require.NoError(b, e.Close())
		})
	}
}

// BenchmarkSteps reads the recorded steps of one job, which lie among those of 63 others.
func BenchmarkSteps(b *testing.B) {
	for _, steps := range []int{10, 1000} {
		b.Run(fmt.Sprintf("steps=%d", steps), func(b *testing.B) {
			ctx := context.Background()
			e, err := Open(ctx, b.TempDir(), Options{WAL: wal.Options{Sync: wal.SyncNever}})
			require.NoError(b, err)
			recordSteps(b, e, 64, steps)
			var got []StepRecord
			b.ReportAllocs()
			for b.Loop() {
				got, err = e.Steps(ctx, "job-31")
				require.NoError(b, err)
			}
			require.Len(b, got, steps)
			require.NoError(b, e.Close())
		})
	}
}

// recordSteps starts job-0, job-1, …, and records so many steps of each, one of every job in turn.
func recordSteps(tb testing.TB, e *Engine, jobs, steps int) {
	for n := -1; n < steps; n++ {
		var commands []Command
		for i := range jobs {
			id := fmt.Sprintf("job-%d", i)
			if n < 0 {
				commands = append(commands, Submit(Submission{JobID: id, Capability: "FileRead"}), Validate(id), Start(id))
			} else {
				commands = append(commands, Step(id, fmt.Sprintf("fetch#%d", n+1), map[string]int{"bytes": n}))
			}
		}
		_, err := e.Do(context.Background(), commands...)
		require.NoError(tb, err)
	}
}
