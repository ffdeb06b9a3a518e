package wal

import (
	"context"
	"encoding/json"
	"io/fs"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// Viewpoint: how many reads it takes to find an event, and that nothing depends on what is known of places.

// readsFS counts reads of files.
type readsFS struct {
	FS
	reads, bytes atomic.Int64
}

type readsFile struct {
	File
	fs *readsFS
}

func (r *readsFS) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	f, err := r.FS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return readsFile{f, r}, nil
}

func (f readsFile) ReadAt(p []byte, at int64) (int, error) {
	f.fs.reads.Add(1)
	n, err := f.File.ReadAt(p, at)
	f.fs.bytes.Add(int64(n))
	return n, err
}

// unevenLog is a log of n events, of lines between 170 and 1,400 bytes.
func unevenLog(t testing.TB, dir string, n int, opts Options) {
	random := rand.New(rand.NewPCG(1, 2))
	opts.Sync = SyncNever
	log, err := Open(dir, opts)
	require.NoError(t, err)
	var group []Event
	for i := range n {
		e := benchEvent(190)
		size := random.IntN(200)
		if i/1000%3 == 0 { // stretches of larger ones, so that no guess is right at once
			size *= 6
		}
		e.Output = json.RawMessage(`"` + strings.Repeat("x", size) + `"`)
		if group = append(group, e); len(group) == 500 || i == n-1 {
			_, err := log.Append(context.Background(), group...)
			require.NoError(t, err)
			group = group[:0]
		}
	}
	require.NoError(t, log.Close())
}

// forget takes from a log all that it knows of places.
func (l *Log) forget() {
	for _, seg := range l.segments {
		seg.places.list = nil
	}
}

// A look-up of one event costs one read, or two, in what was read or written before, and a few where nothing is known.
func TestAt_costs_few_reads(t *testing.T) {
	const n = 100_000
	dir := t.TempDir()
	unevenLog(t, dir, n, Options{SegmentBytes: 16 << 20})
	counting := &readsFS{FS: OS}
	log, err := Open(dir, Options{FS: counting, ReadOnly: true})
	require.NoError(t, err)
	defer log.Close()
	require.Greater(t, len(log.segments), 2)
	cost := func(name string, known bool, mean, most float64) {
		random := rand.New(rand.NewPCG(3, 4))
		total, worst := 0.0, 0.0
		const lookups = 500
		for range lookups {
			if !known {
				log.forget()
			}
			seq := random.Uint64N(n) + 1
			before := counting.reads.Load()
			e, err := log.At(seq)
			require.NoError(t, err)
			require.Equal(t, seq, e.Seq)
			reads := float64(counting.reads.Load() - before)
			total, worst = total+reads, max(worst, reads)
		}
		t.Logf("%s: %.2f reads a look-up, %.0f at most", name, total/lookups, worst)
		require.LessOrEqual(t, total/lookups, mean, name)
		require.LessOrEqual(t, worst, most, name)
	}
	cost("nothing known", false, 5, 12)
	for range log.Events(1) { // fills it
	}
	cost("read before", true, 1.1, 2)
	size, entries := int64(0), 0
	for _, seg := range log.segments {
		size, entries = size+seg.size, entries+len(seg.places.list)
	}
	require.Greater(t, entries, int(size/placeEvery)/2)
	require.LessOrEqual(t, entries, int(size/placeEvery)+len(log.segments))
}

// The committer notes what it writes, Open what it scans, and what Options.Inspect reads the log knows afterwards.
func TestPlaces_are_noted_on_the_way(t *testing.T) {
	dir := t.TempDir()
	one := func(log *Log, counting *readsFS, seq uint64) {
		t.Helper()
		before := counting.reads.Load()
		e, err := log.At(seq)
		require.NoError(t, err)
		require.Equal(t, seq, e.Seq)
		require.LessOrEqual(t, counting.reads.Load()-before, int64(1), "seq %d", seq)
	}
	counting := &readsFS{FS: OS}
	opts := Options{FS: counting, Sync: SyncNever, SegmentBytes: 1 << 20}
	log, err := Open(dir, opts)
	require.NoError(t, err)
	for range 40 {
		_, err := log.Append(context.Background(), slices.Repeat([]Event{benchEvent(400)}, 100)...)
		require.NoError(t, err)
	}
	for seq := uint64(1); seq <= 4000; seq += 37 {
		one(log, counting, seq)
	}
	require.NoError(t, log.Close())

	log, err = Open(dir, opts)
	require.NoError(t, err)
	for seq := log.segments[len(log.segments)-1].first; seq <= 4000; seq += 37 {
		one(log, counting, seq)
	}
	require.NoError(t, log.Close())

	opts.Inspect = func(view *Log) error {
		for _, err := range view.Events(1) {
			require.NoError(t, err)
		}
		return nil
	}
	log, err = Open(dir, opts)
	require.NoError(t, err)
	for seq := uint64(1); seq <= 4000; seq += 37 {
		one(log, counting, seq)
	}
	require.NoError(t, log.Close())
}

// A reader beside a writer keeps what it knows when the writer goes on to another segment.
func TestPlaces_stay_when_the_log_rotates(t *testing.T) {
	dir := t.TempDir()
	unevenLog(t, dir, 1000, Options{SegmentBytes: 1 << 20})
	reader, err := Open(dir, Options{ReadOnly: true})
	require.NoError(t, err)
	defer reader.Close()
	for range reader.Events(1) {
	}
	known := len(reader.segments[0].places.list)
	require.Greater(t, known, 5)
	unevenLog(t, dir, 3000, Options{SegmentBytes: 1 << 20})
	_, err = reader.At(4000)
	require.NoError(t, err)
	require.Greater(t, len(reader.segments), 1)
	require.Len(t, reader.segments[0].places.list, known)
}

// A large payload is read once, wherever it stands.
func TestAt_reads_a_large_event_once(t *testing.T) {
	dir := t.TempDir()
	counting := &readsFS{FS: OS}
	log, err := Open(dir, Options{FS: counting, Sync: SyncNever})
	require.NoError(t, err)
	defer log.Close()
	sizes := []int{190, 200, 200 << 10, 190, 40 << 10, 100 << 10, 190, 190}
	for _, size := range sizes {
		_, err := log.Append(context.Background(), benchEvent(size))
		require.NoError(t, err)
	}
	for i, size := range sizes {
		reads, bytes := counting.reads.Load(), counting.bytes.Load()
		_, err := log.At(uint64(i + 1))
		require.NoError(t, err)
		require.Equal(t, int64(1), counting.reads.Load()-reads, "event of %d bytes", size)
		require.LessOrEqual(t, counting.bytes.Load()-bytes, int64(size+glanceBytes))
	}
}

// A job's past costs one read of 256 KiB for all of its events that lie in it, whether places are known or not; two events
// far from each other cost a small read each; and so it is in what a compaction kept.
func TestChain_costs_few_reads(t *testing.T) {
	const jobs, steps = 64, 500
	ctx, counting := context.Background(), &readsFS{FS: OS}
	log, err := Open(t.TempDir(), Options{FS: counting, Sync: SyncNever, SegmentBytes: 2 << 20})
	require.NoError(t, err)
	defer log.Close()
	heads := make([]uint64, jobs)
	add := func(job int) {
		e := benchEvent(190)
		e.JobID, e.Prev = strconv.Itoa(job), heads[job]
		heads[job], err = log.Append(ctx, e)
		require.NoError(t, err)
	}
	for range steps {
		for job := range jobs {
			add(job)
		}
	}
	cost := func(seq uint64, want int) (reads, bytes int64) {
		t.Helper()
		reads, bytes = counting.reads.Load(), counting.bytes.Load()
		n := 0
		for _, err := range log.Chain(seq) {
			require.NoError(t, err)
			n++
		}
		require.Equal(t, want, n)
		return counting.reads.Load() - reads, counting.bytes.Load() - bytes
	}
	size := int64(0)
	for _, seg := range log.segments {
		size += seg.size
	}
	require.Greater(t, len(log.segments), 2)
	for _, known := range []bool{true, false} {
		if !known {
			log.forget()
		}
		reads, bytes := cost(heads[31], steps)
		require.Less(t, reads, size/readBuffer+int64(10*len(log.segments)), "places known: %v", known)
		require.Less(t, bytes, size+size/10, "places known: %v", known)
	}

	e := benchEvent(190)
	e.Prev, err = log.Append(ctx, e)
	require.NoError(t, err)
	for range 40 * jobs {
		add(0)
	}
	next, err := log.Append(ctx, e)
	require.NoError(t, err)
	reads, bytes := cost(next, 2)
	require.LessOrEqual(t, reads, int64(2))
	require.LessOrEqual(t, bytes, int64(2*glanceBytes))

	kept, err := log.Compact(ctx, log.LastSeq(), CompactOptions{Keep: func(e Event) bool { return e.JobID <= "3" }})
	require.NoError(t, err)
	require.Positive(t, kept.Carried)
	reads, bytes = cost(heads[3], steps)
	require.Less(t, reads, size/readBuffer)
	require.Less(t, bytes, size)
}

// The last events of a log cost a few reads of their own size, in one that is closed as in one that is being written, with
// newlines behind its lines.
func TestTail_costs_few_reads(t *testing.T) {
	dir := t.TempDir()
	makeLog(t, dir, 20_000, Options{SegmentBytes: 1 << 20})
	log, err := Open(dir, Options{Prefill: PrefillOn, SegmentBytes: 1 << 20})
	require.NoError(t, err)
	defer log.Close()
	tail := func(most int64) {
		t.Helper()
		counting := &readsFS{FS: OS}
		events, err := lastEvents(counting, dir, 100, firstStretch)
		require.NoError(t, err)
		require.Len(t, events, 100)
		require.LessOrEqual(t, counting.bytes.Load(), most)
		require.LessOrEqual(t, counting.reads.Load(), int64(20))
	}
	tail(120 << 10)
	for range 100 {
		_, err := log.Append(context.Background(), benchEvent(190))
		require.NoError(t, err)
	}
	tail(120<<10 + maxAhead)
}

// Whatever stands in the list of places, the log answers the same.
func TestPlaces_are_not_believed(t *testing.T) {
	const n = 3000
	dir := t.TempDir()
	unevenLog(t, dir, n, Options{SegmentBytes: 256 << 10})
	log, err := Open(dir, Options{ReadOnly: true})
	require.NoError(t, err)
	defer log.Close()
	var want []Event
	for e, err := range log.Events(1) {
		require.NoError(t, err)
		want = append(want, e)
	}
	rapid.Check(t, func(t *rapid.T) {
		for _, seg := range log.segments {
			list := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) placed {
				return placed{rapid.Uint64Range(0, n+10).Draw(t, "seq"), rapid.Int64Range(-5, seg.size+100).Draw(t, "at")}
			}), 0, 20).Draw(t, "places")
			if rapid.Bool().Draw(t, "sorted") {
				slices.SortFunc(list, func(a, b placed) int { return int(a.at - b.at) })
			}
			seg.places.list = list
		}
		seq := rapid.Uint64Range(1, n).Draw(t, "seq")
		e, err := log.At(seq)
		require.NoError(t, err)
		require.Equal(t, want[seq-1], e)
		tail, err := log.Tail(int(n - seq + 1))
		require.NoError(t, err)
		require.Equal(t, want[seq-1:], tail)
	})
}

// What is noted is bounded by the size of the segment, in whatever order it is told.
func TestPlaces_are_bounded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var p places
		const size = 4 << 20
		for range rapid.IntRange(0, 2000).Draw(t, "n") {
			at := rapid.Int64Range(0, size).Draw(t, "at")
			p.add(uint64(at), at, at+rapid.Int64Range(1, 200).Draw(t, "length"))
		}
		require.LessOrEqual(t, len(p.list), size/placeEvery+1)
		require.True(t, slices.IsSortedFunc(p.list, func(a, b placed) int { return int(a.at - b.at) }))
	})
}

// Damage is found with places as without, and by the same name.
func TestPlaces_and_damage(t *testing.T) {
	dir := t.TempDir()
	makeLog(t, dir, 3000, Options{SegmentBytes: 128 << 10})
	log, err := Open(dir, Options{ReadOnly: true})
	require.NoError(t, err)
	defer log.Close()
	for range log.Events(1) {
	}
	seq := uint64(100)
	seg := log.segments[0]
	f, err := OS.OpenFile(seg.path, os.O_RDWR, 0)
	require.NoError(t, err)
	got, err := findLine(f, seg, seq, log.segments[1].first-1)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte{0}, got.at+60)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	_, known := log.At(seq)
	require.ErrorIs(t, known, ErrCorrupt)
	log.forget()
	_, unknown := log.At(seq)
	require.Equal(t, unknown, known)
	_, err = log.At(seq + 1)
	require.NoError(t, err)
}
