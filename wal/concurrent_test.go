package wal_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// W1, W2: many callers, singles and groups; every seq is given once, groups lie together, and each caller's appends lie
// in the order in which they were acknowledged.
func TestW1_many_callers(t *testing.T) {
	const callers, each = 32, 25
	disk := crashfs.New()
	l := mustOpen(t, wal.Options{FS: disk, SegmentBytes: 16 << 10})
	type ack struct {
		first uint64
		of    int
	}
	acks := make([][]ack, callers)
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			for i := range each {
				of := 1 + (c+i)%4
				first, err := l.Append(ctx, group(c*1000+i, of, 10*i)...)
				if err != nil {
					t.Error(err)
					return
				}
				acks[c] = append(acks[c], ack{first, of})
			}
		})
	}
	wg.Wait()
	last := l.LastSeq()
	after := disk.Crash(crashfs.SyncedOnly) // not closed: what is acknowledged is there all the same
	mustClose(t, l)
	l = mustOpen(t, wal.Options{FS: after})
	defer mustClose(t, l)
	events, err := collect(l, 1)
	if err != nil || uint64(len(events)) != last {
		t.Fatalf("%d events of %d: %v", len(events), last, err)
	}
	var total uint64
	for c := range callers {
		before := uint64(0)
		for i, a := range acks[c] {
			if a.first <= before {
				t.Fatalf("caller %d: seq %d after %d", c, a.first, before)
			}
			before = a.first
			for k, want := range group(c*1000+i, a.of, 10*i) {
				if got := events[a.first+uint64(k)-1]; payload(got) != payload(want) || got.JobID != want.JobID {
					t.Fatalf("seq %d is %v, not %v", got.Seq, got, want)
				}
			}
			total += uint64(a.of)
		}
	}
	if total != last {
		t.Errorf("%d events acknowledged, %d there", total, last)
	}
}

// Callers that wait while a sync runs share the next one.
func TestW2_waiting_callers_share_one_sync(t *testing.T) {
	const waiting = 50
	synctest.Test(t, func(t *testing.T) {
		w := start(t, "sync *.jsonl #1 freeze", wal.Options{SegmentBytes: 1 << 20})
		var done atomic.Int64
		appendOne := func() {
			if _, err := w.log.Append(ctx, event(1, 0, 1, 0)); err != nil {
				t.Error(err)
			}
			done.Add(1)
		}
		go appendOne()
		synctest.Wait()
		<-w.fs.Frozen()
		for range waiting {
			go appendOne()
		}
		synctest.Wait()
		if done.Load() != 0 || w.log.LastSeq() != 0 {
			t.Errorf("%d appends done, last seq %d, before anything was synced", done.Load(), w.log.LastSeq())
		}
		before := w.fs.Count(crashfs.OpSync)
		w.fs.Release()
		synctest.Wait()
		if n := w.fs.Count(crashfs.OpSync) - before; n != 1 {
			t.Errorf("%d syncs for %d callers that waited", n, waiting)
		}
		if done.Load() != waiting+1 {
			t.Errorf("%d appends done", done.Load())
		}
		mustClose(t, w.log)
	})
}

// On one processor, too. A caller who was alone with his sync went on with the next, and the scheduler, which looks at a
// system call now and then, mostly found another one than before: the others had their turn when his time slice was over,
// and no batch had more than one event.
func TestW2_callers_share_syncs_on_one_processor(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	const callers, each = 64, 200
	w := start(t, "", wal.Options{SegmentBytes: 64 << 20})
	before := w.fs.Count(crashfs.OpSync)
	var all sync.WaitGroup
	for range callers {
		all.Go(func() {
			for range each {
				if _, err := w.log.Append(ctx, event(1, 0, 1, 0)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if n := w.fs.Count(crashfs.OpSync) - before; n > 2*each {
		t.Errorf("%d syncs for %d callers of %d appends each", n, callers, each)
	}
	mustClose(t, w.log)
}

// W6: nobody sees an event before it is on stable storage.
func TestW6_nothing_before_durable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, "sync *.jsonl #2 freeze", wal.Options{SegmentBytes: 1 << 20})
		mustAppend(t, w.log, group(1, 1, 0)...)
		follow, stop := context.WithCancel(ctx)
		var seen atomic.Uint64
		go func() {
			for e, err := range w.log.Follow(follow, 1) {
				if err == nil {
					seen.Store(e.Seq)
				}
			}
		}()
		go w.log.Append(ctx, group(2, 2, 0)...)
		synctest.Wait()
		if _, err := w.log.At(2); seen.Load() != 1 || w.log.LastSeq() != 1 || !errors.Is(err, wal.ErrInvalid) {
			t.Errorf("before the sync: followed to %d, last %d, At: %v", seen.Load(), w.log.LastSeq(), err)
		}
		wantEvents(t, w.log, 1)
		w.fs.Release()
		synctest.Wait()
		if seen.Load() != 3 || w.log.LastSeq() != 3 {
			t.Errorf("after it: followed to %d, last %d", seen.Load(), w.log.LastSeq())
		}
		stop()
		mustClose(t, w.log)
	})
}

// Followers that begin anywhere see every event once, in order, whatever is rotated meanwhile; the slow ones from disk.
func TestFollow_no_gap_no_duplicate(t *testing.T) {
	total, followers := thin(600, 200), 12
	l := mustOpen(t, wal.Options{FS: crashfs.New(), SegmentBytes: 64 << 10})
	var wg sync.WaitGroup
	for f := range followers {
		from := uint64(rand.IntN(total/2)) + 1
		wg.Go(func() {
			next := from
			for e, err := range l.Follow(ctx, from) {
				if err != nil {
					t.Error(err)
					return
				}
				if e.Seq != next || e.Seq > l.LastSeq() {
					t.Errorf("seq %d where %d belongs; the log ends at %d", e.Seq, next, l.LastSeq())
					return
				}
				if len(e.Args) > 0 {
					e.Args[0] = '!' // it is the caller's own
				}
				if next++; e.Seq == uint64(total) {
					return
				}
				for range f * 10 {
					runtime.Gosched() // some are slow
				}
			}
		})
	}
	for i := 0; l.LastSeq() < uint64(total); i++ {
		// 40 KiB each, so that those who fall behind find their events no longer in memory
		mustAppend(t, l, group(i, min(1+i%5, total-int(l.LastSeq())), 40<<10)...)
	}
	wg.Wait()
	for e, err := range l.Events(0) {
		if err != nil || len(e.Args) > 0 && e.Args[0] != '{' {
			t.Fatal("a follower's scribbling shows", err)
		}
	}
	mustClose(t, l)
}

// A follower that falls behind DropBefore is told, and by how much; no other error, and no gap, is to be seen.
func TestFollow_and_drop(t *testing.T) {
	const total = 400
	l := mustOpen(t, wal.Options{FS: crashfs.New(), SegmentBytes: 4 << 10})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			from := uint64(0)
			for from <= total {
				for e, err := range l.Follow(ctx, from) {
					var gone *wal.DroppedError
					if errors.As(err, &gone) {
						if gone.First <= from {
							t.Errorf("dropped before %d, but %d was asked for", gone.First, from)
						}
						from = gone.First
						break
					}
					if err != nil || from > 0 && e.Seq != from {
						t.Errorf("seq %d where %d belongs: %v", e.Seq, from, err)
						return
					}
					if from = e.Seq + 1; e.Seq == total {
						return
					}
				}
			}
		})
	}
	for i := 1; i <= total; i++ {
		mustAppend(t, l, event(i, 0, 1, 200))
		if i%20 == 0 {
			if err := l.DropBefore(uint64(i - rand.IntN(20))); err != nil {
				t.Error(err)
			}
		}
	}
	wg.Wait()
	mustClose(t, l)
}

// F26: Close lets the append in flight finish, and those that wait in the queue return ErrClosed with nothing written.
func TestF26_close_during_appends(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, "sync *.jsonl #1 freeze", wal.Options{SegmentBytes: 1 << 20})
		results := make([]error, 11)
		var wg sync.WaitGroup
		for i := range results {
			wg.Go(func() { _, results[i] = w.log.Append(ctx, event(i+1, 0, 1, 0)) })
			synctest.Wait() // the first one is in its sync, the others in the queue
		}
		var closing [3]error
		for i := range closing {
			wg.Go(func() { closing[i] = w.log.Close() })
		}
		synctest.Wait()
		w.fs.Release()
		wg.Wait()
		for i, err := range results {
			if i == 0 && err != nil || i > 0 && !errors.Is(err, wal.ErrClosed) {
				t.Errorf("append %d: %v", i+1, err)
			}
		}
		if closing != [3]error{} {
			t.Errorf("Close: %v", closing)
		}
		_, err := w.log.Append(ctx, event(1, 0, 1, 0))
		wantError(t, err, []error{wal.ErrClosed})
		wantError(t, w.log.DropBefore(1), []error{wal.ErrClosed})
		_, err = collect(w.log, 0)
		wantError(t, err, []error{wal.ErrClosed})
		_, err = w.log.At(1)
		wantError(t, err, []error{wal.ErrClosed})
		_, err = w.log.Tail(1)
		wantError(t, err, []error{wal.ErrClosed})
		for _, err := range w.log.Follow(ctx, 1) {
			wantError(t, err, []error{wal.ErrClosed})
		}
		l := w.again()
		wantEvents(t, l, 1)
		if !l.Report().Clean {
			t.Error("not clean")
		}
		mustClose(t, l)
	})
}

func TestF26_close_ends_followers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := mustOpen(t, wal.Options{FS: crashfs.New()})
		got := make(chan error, 1)
		go func() {
			for _, err := range l.Follow(ctx, 0) {
				got <- err
			}
		}()
		synctest.Wait()
		mustClose(t, l)
		wantError(t, <-got, []error{wal.ErrClosed})
	})
}

// huge is an event of some size that costs little to check.
func huge(job, size int) wal.Event {
	return wal.Event{Type: wal.JobFailed, JobID: fmt.Sprintf("job-%d", job), Error: strings.Repeat("x", size)}
}

// F26: a full queue is waited for no longer than the caller's context, and a caller that gave up has written nothing.
func TestF26_cancel_while_waiting_for_the_queue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, "sync *.jsonl #1 freeze", wal.Options{})
		var wg sync.WaitGroup
		large := func(ctx context.Context, i int) (err error) {
			_, err = w.log.Append(ctx, huge(i, 6<<20))
			return err
		}
		for i := range 5 { // one in its sync, and the queue full behind it
			wg.Go(func() {
				if err := large(ctx, i+1); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait()
		}
		cancelled, cancel := context.WithCancel(ctx)
		var err error
		wg.Go(func() { err = large(cancelled, 99) })
		synctest.Wait()
		cancel()
		synctest.Wait()
		wantError(t, err, []error{context.Canceled})
		w.fs.Release()
		wg.Wait()
		for e := range w.log.Events(0) {
			if e.JobID == "job-99" {
				t.Error("it was written all the same")
			}
		}
		wantEvents(t, w.log, 5)
		mustClose(t, w.log)
	})
}

// What was found: an append larger than the whole queue waited until it was empty, which it never is while others come.
func TestF26_a_large_append_does_not_starve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, "sync *.jsonl #1 freeze", wal.Options{})
		var wg sync.WaitGroup
		appendOne := func(ctx context.Context, i, size int) {
			wg.Go(func() {
				if _, err := w.log.Append(ctx, huge(i, size)); err != nil {
					t.Errorf("append %d: %v", i, err)
				}
			})
			synctest.Wait()
		}
		appendOne(ctx, 1, 0) // in its sync
		appendOne(ctx, 2, 0) // in the queue
		impatient, cancel := context.WithCancel(ctx)
		appendOne(impatient, 3, 16<<20)
		cancel() // it is queued by now, and waits for its outcome
		appendOne(ctx, 4, 0)
		w.fs.Release()
		wg.Wait()
		if e, err := w.log.At(3); err != nil || e.JobID != "job-3" {
			t.Errorf("seq 3 is %s: %v", e.JobID, err)
		}
		mustClose(t, w.log)
	})
}

func TestAppend_without_context(t *testing.T) {
	l := mustOpen(t, wal.Options{FS: crashfs.New()})
	var none context.Context
	_, err := l.Append(none, event(1, 0, 1, 0))
	wantError(t, err, []error{wal.ErrInvalid})
	for _, err := range l.Follow(none, 1) {
		wantError(t, err, []error{wal.ErrInvalid})
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	_, err = l.Append(cancelled, event(1, 0, 1, 0))
	wantError(t, err, []error{context.Canceled})
	for _, err := range l.Follow(cancelled, 1) {
		wantError(t, err, []error{context.Canceled})
	}
	wantEvents(t, l, 0)
	mustClose(t, l)
}

// An idle log says, some milliseconds after the last append, that it was durable: once, and without a sync.
func TestIdle_leaves_a_witness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, "", wal.Options{})
		mustAppend(t, w.log, event(1, 0, 1, 0))
		name, syncs := "log/00000000000000000001.jsonl", w.fs.Count(crashfs.OpSync)
		time.Sleep(4 * time.Millisecond)
		synctest.Wait()
		if strings.Contains(string(contents(w.base, name)), `"mark":"durable"`) {
			t.Error("too soon")
		}
		time.Sleep(time.Millisecond)
		synctest.Wait()
		if !strings.Contains(string(contents(w.base, name)), `{"mark":"durable","durable":1,`) {
			t.Error("no witness")
		}
		ops := w.fs.Count()
		time.Sleep(time.Hour)
		if n := w.fs.Count(crashfs.OpSync) - syncs; n != 0 || w.fs.Count() != ops {
			t.Errorf("%d syncs; %d operations in an hour of idleness", n, w.fs.Count()-ops)
		}
		mustAppend(t, w.log, event(2, 0, 1, 0)) // the timer of this one is pending
		mustClose(t, w.log)
		ops = w.fs.Count()
		time.Sleep(time.Hour)
		if w.fs.Count() != ops {
			t.Error("it wrote after Close")
		}
	})
}

func TestSyncEvery_syncs_once_in_a_while(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, "", wal.Options{Sync: wal.SyncEvery(100 * time.Millisecond), SegmentBytes: 1 << 20})
		syncs := w.fs.Count(crashfs.OpSync)
		for range 30 {
			mustAppend(t, w.log, event(1, 0, 1, 0))
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		if n := w.fs.Count(crashfs.OpSync) - syncs; n < 2 || n > 4 {
			t.Errorf("%d syncs in 0.3 s", n)
		}
		if w.base.Unsynced("log/00000000000000000001.jsonl") > 100 {
			t.Error("something is not synced long after")
		}
		syncs = w.fs.Count(crashfs.OpSync)
		time.Sleep(time.Hour)
		if n := w.fs.Count(crashfs.OpSync) - syncs; n != 0 {
			t.Errorf("%d syncs while nothing happens", n)
		}
		mustAppend(t, w.log, event(1, 0, 1, 0)) // the timer is pending
		mustClose(t, w.log)
		ops := w.fs.Count()
		time.Sleep(time.Hour)
		if w.fs.Count() != ops {
			t.Error("it did something after Close")
		}
	})
}

// A sync that fails while nobody waits is for whoever comes next.
func TestSyncEvery_failure_is_told_to_the_next(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, "sync *.jsonl #1 error EIO lie", wal.Options{Sync: wal.SyncEvery(time.Millisecond)})
		mustAppend(t, w.log, event(1, 0, 1, 0))
		time.Sleep(time.Second)
		synctest.Wait()
		_, err := w.log.Append(ctx, event(2, 0, 1, 0))
		wantError(t, err, []error{wal.ErrFailed}, wal.ErrOutcomeUnknown)
		wantEvents(t, w.log, 1)
		wantError(t, w.log.Close(), []error{wal.ErrFailed})
	})
}

// Fairness: callers are served in the order in which they came, small and large.
func TestFairness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, "sync *.jsonl freeze", wal.Options{})
		var wg sync.WaitGroup
		for i := range 60 {
			wg.Go(func() {
				if first, err := w.log.Append(ctx, event(i, 0, 1, i%7*200)); err != nil || first != uint64(i+1) {
					t.Errorf("the caller who came as number %d got seq %d: %v", i+1, first, err)
				}
			})
			synctest.Wait()
		}
		for w.log.LastSeq() < 60 {
			w.fs.Release()
			synctest.Wait()
		}
		wg.Wait()
		w.fs.Stop()
	})
}

// All at once, under the race detector: appends, reads of every kind, drops, and a Close in the middle.
func TestEverything_at_once(t *testing.T) {
	t.Parallel()
	before := runtime.NumGoroutine()
	for range thin(10, 4) {
		disk := crashfs.New()
		l := mustOpen(t, wal.Options{FS: disk, SegmentBytes: 4 << 10, Sync: []wal.Sync{wal.SyncAlways, wal.SyncNever, wal.SyncEvery(time.Millisecond)}[rand.IntN(3)]})
		var acked atomic.Uint64
		var wg sync.WaitGroup
		expected := func(err error) bool {
			if err != nil && !errors.Is(err, wal.ErrClosed) && !errors.Is(err, wal.ErrDropped) && !errors.Is(err, wal.ErrInvalid) {
				t.Error(err)
			}
			return !errors.Is(err, wal.ErrClosed)
		}
		for c := range 8 {
			wg.Go(func() {
				for i := 0; ; i++ {
					first, err := l.Append(ctx, group(c*1000+i, 1+i%3, 50)...)
					if !expected(err) {
						return
					}
					for last := first + uint64(i%3); ; {
						old := acked.Load()
						if last <= old || acked.CompareAndSwap(old, last) {
							break
						}
					}
				}
			})
		}
		for _, read := range []func() error{
			func() error { _, err := collect(l, 0); return err },
			func() error { _, err := l.At(rand.Uint64N(l.LastSeq() + 1)); return err },
			func() error { _, err := l.Tail(20); return err },
			func() error { return l.DropBefore(l.LastSeq() / 2) },
			func() error {
				short, cancel := context.WithTimeout(ctx, time.Millisecond)
				defer cancel()
				for _, err := range l.Follow(short, 0) {
					if err != nil && !errors.Is(err, context.DeadlineExceeded) {
						return err
					}
				}
				return nil
			},
			func() error { l.Report(); l.ID(); l.Epoch(); l.FirstSeq(); return nil },
		} {
			wg.Go(func() {
				for expected(read()) && l.LastSeq() < 3000 {
					if _, err := l.At(0); errors.Is(err, wal.ErrClosed) {
						return
					}
				}
			})
		}
		for acked.Load() < 300 {
			runtime.Gosched()
		}
		mustClose(t, l)
		wg.Wait()
		l = mustOpen(t, wal.Options{FS: disk})
		if l.LastSeq() < acked.Load() || !l.Report().Clean {
			t.Errorf("%d acknowledged, %d there", acked.Load(), l.LastSeq())
		}
		if _, err := collect(l, 0); err != nil {
			t.Error(err)
		}
		mustClose(t, l)
	}
	for range 1000 {
		if runtime.NumGoroutine() <= before {
			return
		}
		runtime.Gosched()
	}
	t.Errorf("%d goroutines before, %d after\n%s", before, runtime.NumGoroutine(), stacks())
}

func stacks() string {
	buf := make([]byte, 1<<16)
	return string(buf[:runtime.Stack(buf, true)])
}
