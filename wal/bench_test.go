package wal

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Absolute figures of a shared machine drift by a factor of two within minutes. So what depends on the disk runs in
// short rounds, taking turns with a bare loop that does the same work without a log, and x-bare is the ratio of the two
// medians: for latencies ours/bare (1 is as good as bare), for throughput ours/bare, too (1 is as good as bare).
//
// JOBWAL_BENCH_EVENTS sets the size of the large log, 1,000,000 by default.

func benchEvents() int {
	if n, err := strconv.Atoi(os.Getenv("JOBWAL_BENCH_EVENTS")); err == nil && n > 0 {
		return n
	}
	return 1_000_000
}

// benchEvent is an event whose line takes size bytes, newline included, at seqs of six digits.
func benchEvent(size int) Event {
	e := Event{Type: JobCompleted, JobID: "0123456789abcdef0123456789abcdef", Capability: "FileRead", Time: time.Unix(1715800000, 123456789)}
	e.Output = json.RawMessage(`{"p":""}`)
	at := place{seq: 100_000, prev: 99_999, epoch: 1, durable: 99_998}
	pad := size - len(appendLine(nil, at, appendBody(nil, &e), 0))
	e.Output = json.RawMessage(`{"p":"` + strings.Repeat("x", max(pad, 0)) + `"}`)
	return e
}

// bareLoop writes lines into a file whose blocks exist, and syncs: what any log has to do at least, with prefill. (Where
// the file grows, the same takes about twice as long.)
type bareLoop struct {
	f    File
	at   int64
	line []byte
	took []time.Duration // each step of rate
}

const barePrefilled = 16 << 20

func newBareLoop(b *testing.B, size, lines int) *bareLoop {
	f, err := OS.OpenFile(filepath.Join(b.TempDir(), "bare"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.Close() })
	line := append(bytes.Repeat([]byte("x"), size-1), '\n')
	if err := errors.Join(writeAll(f, bytes.Repeat([]byte("\n"), barePrefilled), 0), f.Sync()); err != nil {
		b.Fatal(err)
	}
	return &bareLoop{f: f, line: bytes.Repeat(line, lines)}
}

func (l *bareLoop) step(b *testing.B) { l.put(b, l.line) }

// rate is how many lines a second it writes, in n steps of so many.
func (l *bareLoop) rate(b *testing.B, n, lines int) float64 {
	some := l.line[:lines*(bytes.IndexByte(l.line, '\n')+1)]
	start := time.Now()
	for range n {
		before := time.Now()
		l.put(b, some)
		l.took = append(l.took, time.Since(before))
	}
	return float64(n*lines) / time.Since(start).Seconds()
}

func (l *bareLoop) put(b *testing.B, lines []byte) {
	if err := writeAll(l.f, lines, l.at); err != nil {
		b.Fatal(err)
	}
	if l.at += int64(len(lines)); l.at+int64(len(l.line)) > barePrefilled {
		l.at = 0
	}
	if err := l.f.Sync(); err != nil {
		b.Fatal(err)
	}
}

// bareGroup is the least that callers can do who share syncs: each waits until its line, which is ready, is in the file, and
// one of them at a time writes those of all who wait. It is what is left of a pipeline when somebody has to be woken, and
// to come back with the next line, before there is something to write.
type bareGroup struct {
	*bareLoop
	mu      sync.Mutex
	queue   []*bareCaller
	leading bool
	crowd   int
}

type bareCaller struct {
	gate  sync.WaitGroup
	leads bool
}

// rate is how many lines a second so many callers write, each n of them.
func (g *bareGroup) rate(b *testing.B, n, callers int) float64 {
	var all sync.WaitGroup
	start := time.Now()
	for range callers {
		all.Go(func() {
			c := new(bareCaller)
			for range n {
				g.write(b, c)
			}
		})
	}
	all.Wait()
	return float64(n*callers) / time.Since(start).Seconds()
}

func (g *bareGroup) write(b *testing.B, c *bareCaller) {
	g.mu.Lock()
	g.queue = append(g.queue, c)
	lead := !g.leading
	if g.leading = true; !lead {
		c.gate.Add(1)
	}
	g.mu.Unlock()
	if !lead {
		if c.gate.Wait(); !c.leads {
			return
		}
	}
	waiting := func() int {
		g.mu.Lock()
		defer g.mu.Unlock()
		return len(g.queue)
	}
	for queued, idle := waiting(), 0; queued < g.crowd && idle < 10; idle++ {
		runtime.Gosched()
		if n := waiting(); n > queued {
			queued, idle = n, 0
		}
	}
	g.mu.Lock()
	batch := slices.Clone(g.queue)
	g.queue = g.queue[:0]
	g.mu.Unlock()
	g.put(b, g.line[:len(batch)*(bytes.IndexByte(g.line, '\n')+1)])
	for _, other := range batch {
		if other != c {
			other.leads = false
			other.gate.Done()
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.crowd = len(batch) + len(g.queue)
	if g.leading = len(g.queue) > 0; g.leading {
		g.queue[0].leads = true
		g.queue[0].gate.Done()
	}
}

// countingFS counts syncs.
type countingFS struct {
	FS
	syncs atomic.Int64
}

type countingFile struct {
	File
	syncs *atomic.Int64
}

func (c *countingFS) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	f, err := c.FS.OpenFile(name, flag, perm)
	return countingFile{f, &c.syncs}, err
}

func (f countingFile) Sync() error {
	f.syncs.Add(1)
	return f.File.Sync()
}

func openBench(b *testing.B, opts Options) (*Log, *countingFS) {
	counting := &countingFS{FS: OS}
	opts.FS = counting
	log, err := Open(b.TempDir(), opts)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := log.Close(); err != nil {
			b.Error(err)
		}
	})
	counting.syncs.Store(0)
	return log, counting
}

// reportSize reports what an event takes in the log's files, with what is filled ahead.
func reportSize(b *testing.B, log *Log) {
	entries, err := os.ReadDir(log.dir)
	if err != nil {
		b.Fatal(err)
	}
	size := int64(0)
	for _, e := range entries {
		if info, err := e.Info(); err == nil {
			size += info.Size()
		}
	}
	b.ReportMetric(float64(size)/float64(log.LastSeq()), "B/event")
}

func median[T int64 | float64 | time.Duration](of []T) T {
	slices.Sort(of)
	return of[len(of)/2]
}

func BenchmarkAppend(b *testing.B) {
	for _, size := range []int{190, 4096} {
		for _, batch := range []int{1, 100} {
			b.Run(fmt.Sprintf("size=%d/writers=1/batch=%d", size, batch), func(b *testing.B) { benchOneWriter(b, size, batch) })
		}
		b.Run(fmt.Sprintf("size=%d/writers=64", size), func(b *testing.B) { benchManyWriters(b, size, 64) })
	}
}

// benchOneWriter compares latencies. An op is one Append of batch events.
func benchOneWriter(b *testing.B, size, batch int) {
	log, counting := openBench(b, Options{Prefill: PrefillOn})
	bare := newBareLoop(b, size, batch)
	events := slices.Repeat([]Event{benchEvent(size)}, batch)
	ctx := context.Background()
	var ours, theirs []time.Duration
	const round = 50
	b.ReportAllocs()
	b.ResetTimer()
	for done := 0; done < b.N; done += round {
		n := min(round, b.N-done)
		b.StopTimer()
		for range n {
			start := time.Now()
			bare.step(b)
			theirs = append(theirs, time.Since(start))
		}
		ours = slices.Grow(ours, n)
		b.StartTimer()
		for range n {
			start := time.Now()
			if _, err := log.Append(ctx, events...); err != nil {
				b.Fatal(err)
			}
			ours = append(ours, time.Since(start))
		}
	}
	b.StopTimer()
	p50, barely := median(ours), median(theirs)
	reportSize(b, log)
	b.ReportMetric(float64(p50), "p50-ns")
	b.ReportMetric(float64(barely), "bare-p50-ns")
	b.ReportMetric(float64(p50)/float64(barely), "x-bare")
	b.ReportMetric(float64(counting.syncs.Load())/float64(b.N), "syncs/op")
}

// benchManyWriters compares throughput: writers in a closed loop of one event each, against a loop that writes as many
// lines per sync as there are writers. An op is one event. x-bare compares with that; x-pipeline with a loop whose batches
// have as many lines as the log's own had on average, which leaves out how many callers came in time. p99/p50 is of single
// appends, in all rounds: how even callers are served; bare-p99/p50, of the syncs of the bare loop, is what the disk did.
func benchManyWriters(b *testing.B, size, writers int) {
	log, counting := openBench(b, Options{Prefill: PrefillOn})
	bare, pipeline := newBareLoop(b, size, writers), newBareLoop(b, size, writers)
	group := &bareGroup{bareLoop: newBareLoop(b, size, writers)}
	ctx := context.Background()
	event := benchEvent(size)
	var ours, theirs, batched, grouped []float64 // events a second, per round
	const each = 100
	took := make([][]time.Duration, writers)
	appended := 0
	lines := func() int { return max(1, min(writers, appended/int(max(counting.syncs.Load(), 1)))) } // a sync, so far
	b.ReportAllocs()
	b.ResetTimer()
	for appended < b.N {
		n := min(each, (b.N-appended+writers-1)/writers)
		b.StopTimer()
		theirs = append(theirs, bare.rate(b, n, writers))
		grouped = append(grouped, group.rate(b, n, writers))
		if appended > 0 {
			batched = append(batched, pipeline.rate(b, n, lines()))
		}
		for i := range took {
			took[i] = slices.Grow(took[i], n)
		}
		b.StartTimer()
		start := time.Now()
		var all sync.WaitGroup
		for i := range writers {
			all.Go(func() {
				mine := took[i]
				for range n {
					before := time.Now()
					if _, err := log.Append(ctx, event); err != nil {
						b.Error(err)
						return
					}
					mine = append(mine, time.Since(before))
				}
				took[i] = mine
			})
		}
		all.Wait()
		ours = append(ours, float64(n*writers)/time.Since(start).Seconds())
		appended += n * writers
	}
	b.StopTimer()
	if len(batched) == 0 {
		batched = append(batched, pipeline.rate(b, each, lines()))
	}
	rate, barely := median(ours), median(theirs)
	reportSize(b, log)
	single := slices.Concat(took...)
	slices.Sort(single)
	p50, p99 := single[len(single)/2], single[len(single)*99/100]
	b.ReportMetric(rate, "events/s")
	b.ReportMetric(barely, "bare-events/s")
	b.ReportMetric(rate/barely, "x-bare")
	b.ReportMetric(rate/median(batched), "x-pipeline")
	b.ReportMetric(rate/median(grouped), "x-group")
	b.ReportMetric(median(grouped)/median(batched), "group-x-pipeline")
	b.ReportMetric(float64(appended)/float64(max(counting.syncs.Load(), 1)), "events/sync")
	b.ReportMetric(float64(counting.syncs.Load())/float64(appended), "syncs/op")
	b.ReportMetric(float64(p50), "p50-ns")
	b.ReportMetric(float64(p99), "p99-ns")
	b.ReportMetric(float64(p99)/float64(p50), "p99/p50")
	slices.Sort(bare.took)
	b.ReportMetric(float64(bare.took[len(bare.took)*99/100])/float64(bare.took[len(bare.took)/2]), "bare-p99/p50")
}

// makeLog writes a log of n events, four to a job, 190 bytes each.
func makeLog(tb testing.TB, dir string, n int, opts Options) {
	tb.Helper()
	opts.Sync = SyncNever
	log, err := Open(dir, opts)
	if err != nil {
		tb.Fatal(err)
	}
	types := []EventType{JobSubmitted, JobValidated, JobStarted, JobCompleted}
	group := make([]Event, 0, 1000)
	for i := range n {
		e := benchEvent(190)
		e.Type, e.JobID = types[i%4], fmt.Sprintf("%032x", i/4)
		if group = append(group, e); len(group) == cap(group) || i == n-1 {
			if _, err := log.Append(context.Background(), group...); err != nil {
				tb.Fatal(err)
			}
			group = group[:0]
		}
	}
	if err := log.Close(); err != nil {
		tb.Fatal(err)
	}
}

func benchSizes() []int {
	sizes := []int{1000, 100_000}
	if large := benchEvents(); large > 100_000 {
		sizes = append(sizes, large)
	}
	return sizes
}

// BenchmarkReplay reads a whole log from the page cache. The bare loop reads the same bytes, finds the newlines and
// sums the lines up.
func BenchmarkReplay(b *testing.B) {
	n := benchEvents()
	dir := b.TempDir()
	makeLog(b, dir, n, Options{})
	b.Run(fmt.Sprintf("events=%d", n), func(b *testing.B) {
		log, err := Open(dir, Options{ReadOnly: true})
		if err != nil {
			b.Fatal(err)
		}
		defer log.Close()
		b.ReportAllocs()
		var ours, theirs []time.Duration
		for b.Loop() {
			b.StopTimer()
			start := time.Now()
			bareReplay(b, dir)
			theirs = append(theirs, time.Since(start))
			b.StartTimer()
			start = time.Now()
			read := 0
			for _, err := range log.Events(1) {
				if err != nil {
					b.Fatal(err)
				}
				read++
			}
			ours = append(ours, time.Since(start))
			if read != n {
				b.Fatalf("%d events of %d", read, n)
			}
		}
		took := median(ours)
		b.ReportMetric(float64(n)/took.Seconds(), "events/s")
		b.ReportMetric(float64(took)/float64(n), "ns/event")
		b.ReportMetric(float64(took)/float64(median(theirs)), "x-bare")
	})
}

func bareReplay(b *testing.B, dir string) {
	paths, err := filepath.Glob(filepath.Join(dir, "*"+segmentSuffix))
	if err != nil {
		b.Fatal(err)
	}
	for _, path := range paths {
		f, err := OS.OpenFile(path, os.O_RDONLY, 0)
		if err != nil {
			b.Fatal(err)
		}
		size, err := f.Size()
		if err != nil {
			b.Fatal(err)
		}
		sum := uint32(0)
		lines := newLineReader(f, 0, size)
		for l, err := lines.next(); err == nil; l, err = lines.next() {
			sum ^= crc32.Update(0, castagnoli, l.bytes)
		}
		lines.close()
		f.Close()
	}
}

// BenchmarkTail: cold has all from the path of a closed log to its last events, by Tail; opened, the same by Open with ReadOnly
// and Log.Tail; open, Log.Tail of a log that is open.
func BenchmarkTail(b *testing.B) {
	const n = 100
	fetch := func(b *testing.B, tail func(n int) ([]Event, error)) {
		b.ReportAllocs()
		for b.Loop() {
			if got, err := tail(n); err != nil || len(got) != n {
				b.Fatal(len(got), err)
			}
		}
	}
	for _, events := range benchSizes() {
		dir := b.TempDir()
		makeLog(b, dir, events, Options{})
		name := fmt.Sprintf("n=%d/events=%d", n, events)
		b.Run("cold/"+name, func(b *testing.B) {
			fetch(b, func(n int) ([]Event, error) { return Tail(dir, n) })
		})
		b.Run("opened/"+name, func(b *testing.B) {
			fetch(b, func(n int) ([]Event, error) { return openedTail(OS, dir, n) })
		})
		b.Run("open/"+name, func(b *testing.B) {
			log, err := Open(dir, Options{ReadOnly: true})
			if err != nil {
				b.Fatal(err)
			}
			defer log.Close()
			fetch(b, log.Tail)
		})
	}
}

// BenchmarkAt looks up single events anywhere in an open log: known=all, after all of it was read once; known=none, each as if
// it was the first.
func BenchmarkAt(b *testing.B) {
	for _, events := range benchSizes() {
		dir := b.TempDir()
		makeLog(b, dir, events, Options{})
		for _, known := range []string{"none", "all"} {
			b.Run(fmt.Sprintf("events=%d/known=%s", events, known), func(b *testing.B) { benchAt(b, dir, known == "all") })
		}
	}
}

func benchAt(b *testing.B, dir string, known bool) {
	counting := &readsFS{FS: OS}
	log, err := Open(dir, Options{ReadOnly: true, FS: counting})
	if err != nil {
		b.Fatal(err)
	}
	defer log.Close()
	if known {
		for range log.Events(1) {
		}
	}
	counting.reads.Store(0)
	seq, last := uint64(0), log.LastSeq()
	b.ReportAllocs()
	for b.Loop() {
		if !known {
			log.forget()
		}
		seq = (seq*6364136223846793005 + 1442695040888963407) % last
		if _, err := log.At(seq + 1); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(counting.reads.Load())/float64(b.N), "reads/op")
}

// BenchmarkOpen reads headers and the newest segment, so its cost ends to grow at one segment. The log was closed
// cleanly. role=writer opens and closes, which takes two syncs.
func BenchmarkOpen(b *testing.B) {
	for _, n := range benchSizes() {
		dir := b.TempDir()
		makeLog(b, dir, n, Options{})
		for _, role := range []string{"reader", "writer"} {
			b.Run(fmt.Sprintf("events=%d/role=%s", n, role), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					log, err := Open(dir, Options{ReadOnly: role == "reader"})
					if err != nil {
						b.Fatal(err)
					}
					if err := log.Close(); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkVerify(b *testing.B) {
	n := min(benchEvents(), 100_000)
	dir := b.TempDir()
	makeLog(b, dir, n, Options{})
	b.Run(fmt.Sprintf("events=%d", n), func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := Verify(dir); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "events/s")
	})
}

// BenchmarkDecode takes one 190-byte line apart, to an Event that owns its memory. The bare loop is the checksum alone.
func BenchmarkDecode(b *testing.B) {
	e := benchEvent(190)
	e.Seq, e.Prev, e.Epoch = 100_000, 99_999, 1
	canonical := canonicalLine(e, 0, 99_998, testSeed)
	canonical = canonical[:len(canonical)-1]
	spaced := sealed(strings.Replace(string(bodyOf(canonical)), `"epoch":1`, `"epoch" : 1`, 1), testSeed)
	for _, c := range []struct {
		path string
		line []byte
	}{{"bare", nil}, {"canonical", canonical}, {"ordinary", spaced}} {
		b.Run("path="+c.path, func(b *testing.B) {
			b.SetBytes(int64(len(canonical) + 1))
			b.ReportAllocs()
			var d decoder
			var r record
			for b.Loop() {
				if c.line == nil {
					if _, ok := unseal(canonical, testSeed); !ok {
						b.Fatal()
					}
					continue
				}
				if err := d.decode(c.line, testSeed, &r); err != nil || r.problem != "" {
					b.Fatal(err, r.problem)
				}
				_ = d.event(&r)
			}
		})
	}
}

// BenchmarkEncode makes one 190-byte line; path=checked has what Append checks before it, too.
func BenchmarkEncode(b *testing.B) {
	e := benchEvent(190)
	at := place{seq: 100_000, prev: 99_999, epoch: 1, durable: 99_998}
	d := *newDoor()
	for _, path := range []string{"line", "checked"} {
		b.Run("path="+path, func(b *testing.B) {
			b.SetBytes(190)
			b.ReportAllocs()
			var body, line []byte
			for b.Loop() {
				if path == "checked" {
					if _, err := d.check(e, time.Now); err != nil {
						b.Fatal(err)
					}
				}
				body = appendBody(body[:0], &e)
				line = appendLine(line[:0], at, body, testSeed)
			}
		})
	}
}

func BenchmarkImport(b *testing.B) {
	file := bytes.Repeat(ancestorFile(b, "ordinary"), 10)
	b.SetBytes(int64(len(file)))
	b.ReportAllocs()
	for b.Loop() {
		for range Import(bytes.NewReader(file)) {
		}
	}
}
