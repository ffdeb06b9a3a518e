package recovery

import (
	"context"
	"fmt"
	"io/fs"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/wal"
)

// jobEvents are one finished job's, of some 190 bytes a line.
func jobEvents(id string) []wal.Event {
	event := func(t wal.EventType) wal.Event { return wal.Event{Type: t, JobID: id, Capability: "FileRead"} }
	submitted, completed := event(wal.JobSubmitted), event(wal.JobCompleted)
	submitted.Args, completed.Output = []byte(`{"path":"/srv/data/14.txt"}`), []byte(`{"bytes":12345}`)
	return []wal.Event{submitted, event(wal.JobValidated), event(wal.JobStarted), completed}
}

const payloadBytes = len(`{"path":"/srv/data/14.txt"}`) + len(`{"bytes":12345}`)

// BenchmarkReplay opens a log of a million events, 250,000 finished jobs, from the page cache.
func BenchmarkReplay(b *testing.B) {
	const jobs = 250_000
	b.Run(fmt.Sprintf("events=%d", 4*jobs), func(b *testing.B) {
		dir, ctx := b.TempDir(), context.Background()
		l, err := wal.Open(dir, wal.Options{Sync: wal.SyncNever})
		require.NoError(b, err)
		for i := 0; i < jobs; {
			var events []wal.Event
			for range 100 {
				events = append(events, jobEvents(fmt.Sprintf("%032x", i))...)
				i++
			}
			_, err := l.Append(ctx, events...)
			require.NoError(b, err)
		}
		require.NoError(b, l.Close())
		var before, after runtime.MemStats
		for b.Loop() {
			b.StopTimer()
			runtime.GC()
			runtime.ReadMemStats(&before)
			b.StartTimer()
			e, err := Open(ctx, dir, Options{})
			require.NoError(b, err)
			b.StopTimer()
			runtime.GC()
			runtime.ReadMemStats(&after)
			require.EqualValues(b, 4*jobs, e.Report().Replayed)
			require.NoError(b, e.Close())
			b.StartTimer()
		}
		b.ReportMetric(4*jobs*float64(b.N)/b.Elapsed().Seconds(), "events/s")
		b.ReportMetric(float64(after.Mallocs-before.Mallocs)/(4*jobs), "allocs/event")
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/jobs-float64(payloadBytes), "B/job")
	})
}

// BenchmarkEngine appends through the engine and, in turn, through the log alone: x-log is the engine's share of what
// the log does in the same run.
func BenchmarkEngine(b *testing.B) {
	for _, writers := range []int{1, 64} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			ctx := context.Background()
			e, err := Open(ctx, b.TempDir(), Options{})
			require.NoError(b, err)
			l, err := wal.Open(b.TempDir(), wal.Options{})
			require.NoError(b, err)
			var next atomic.Int64
			engine := func() error {
				_, err := e.Submit(ctx, Submission{JobID: fmt.Sprintf("%032x", next.Add(1)), Capability: "FileRead"})
				return err
			}
			alone := func() error {
				_, err := l.Append(ctx, wal.Event{Type: wal.JobSubmitted, JobID: fmt.Sprintf("%032x", next.Add(1)), Capability: "FileRead"})
				return err
			}
			var shares, rates []float64
			for b.Loop() {
				r := rate(b, writers, engine)
				rates, shares = append(rates, r), append(shares, r/rate(b, writers, alone))
			}
			slices.Sort(shares)
			slices.Sort(rates)
			b.ReportMetric(rates[len(rates)/2], "events/s")
			b.ReportMetric(shares[len(shares)/2], "x-log")
			require.NoError(b, e.Close())
			require.NoError(b, l.Close())
		})
	}
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

// counting counts the syncs of files.
type counting struct {
	wal.FS
	syncs atomic.Int64
}

func (c *counting) OpenFile(name string, flag int, perm fs.FileMode) (wal.File, error) {
	f, err := c.FS.OpenFile(name, flag, perm)
	return countingFile{f, c}, err
}

// RewritesAreCheaper: what is counted is what runs by default.
func (c *counting) RewritesAreCheaper(dir string) bool {
	r, ok := c.FS.(wal.Rewriter)
	return ok && r.RewritesAreCheaper(dir)
}

type countingFile struct {
	wal.File
	of *counting
}

func (f countingFile) Sync() error {
	f.of.syncs.Add(1)
	return f.File.Sync()
}
