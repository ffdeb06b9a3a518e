package wal_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/wal"
)

// Viewpoint: the last events of a log that nobody has opened.

// openedTail is what Tail is held against.
func openedTail(fsys wal.FS, n int) (events []wal.Event, opened bool, err error) {
	l, err := wal.Open("log", wal.Options{FS: fsys, ReadOnly: true})
	if err != nil {
		return nil, false, err
	}
	defer l.Close()
	events, err = l.Tail(n)
	return events, true, err
}

// examineTail: what an opened log's Tail returns, or refuses, Tail does, too; where Open refuses, it does, too, or returns events
// that were written, without a gap. It changes nothing. first is how many bytes it reads at first.
func examineTail(r *ramFS, events []wal.Event, first int64) error {
	changes, known := r.changed(), oneLog(r.image())
	for _, n := range []int{3, 1000} {
		want, opened, refused := openedTail(r, n)
		got, err := wal.TailFS(r, "log", n, first)
		switch {
		case refused == nil && err != nil:
			return fmt.Errorf("last %d: %w", n, err)
		case refused == nil && !slices.EqualFunc(got, want, sameEvent):
			return fmt.Errorf("last %d: %v, not %v", n, seqs(got), seqs(want))
		case err != nil && !errors.Is(err, wal.ErrCorrupt):
			return fmt.Errorf("last %d: %w", n, err)
		case opened && refused != nil && err == nil:
			return fmt.Errorf("last %d: %v, not %w", n, seqs(got), refused)
		}
		for i, e := range got {
			if e.Seq != got[0].Seq+uint64(i) || known && e.Seq <= uint64(len(events)) && !sameEvent(e, find(events, e.Seq)) {
				return fmt.Errorf("last %d: event %d is %v", n, i, e)
			}
		}
	}
	if r.changed() != changes {
		return errors.New("changed something")
	}
	return nil
}

func seqs(events []wal.Event) (list []uint64) {
	for _, e := range events {
		list = append(list, e.Seq)
	}
	return list
}

// oneLog tells whether all segments are of one log; what is in another's may have any seq.
func oneLog(img image) bool {
	ids := make(map[string]bool)
	for _, name := range img.Segments() {
		ids[logIn(img[name])] = true
	}
	return len(ids) == 1
}

// Any life, any end, torn or filled ahead or flipped, and whatever little is read at first: the same events.
func TestTail_is_that_of_an_opened_log(t *testing.T) {
	t.Parallel()
	kinds := []string{"none", "cut", "cut", "tail", "flip", "hole", "more", "line blank", "two bytes"}
	counts := make(map[bool]int)
	synctest.Test(t, func(t *testing.T) {
		rapid.Check(bubbleTB{t}, func(t *rapid.T) {
			img, events := history(t)
			for range rapid.IntRange(1, 10).Draw(t, "ends") {
				damaged := img.Clone()
				kind := rapid.SampledFrom(kinds).Draw(t, "end")
				if damage := damages[kind]; damage != nil {
					damage(t, damaged)
				}
				if ahead := rapid.SampledFrom([]int{0, 0, 1, 5000}).Draw(t, "ahead"); ahead > 0 {
					name := damaged.Newest()
					damaged[name] = append(damaged[name], bytes.Repeat([]byte("\n"), ahead)...)
				}
				first := rapid.SampledFrom([]int64{1, 100, 300, 2000, 32 << 10}).Draw(t, "first")
				if err := examineTail(ram(damaged), events, first); err != nil {
					t.Fatalf("%s: %v", kind, err)
				}
				counts[judge(damaged).refused()]++
			}
		})
	})
	t.Logf("%d opened, %d refused", counts[false], counts[true])
	require.NotZero(t, counts[true])
}

// F1, F3: a log of a hundred events, the newest segment cut at every byte and with every ninth bit turned (9, so that each bit of
// a byte has its turn), read from its end.
func TestF1_F3_tail_of_a_hundred_events(t *testing.T) {
	t.Parallel()
	img, events := hundred(t)
	name := img.Newest()
	check := func(changed image, at int) error {
		return examineTail(ram(changed), events, []int64{200, 32 << 10}[at%2])
	}
	ninth := func(changed image, at int) error {
		if at%9 > 0 {
			return nil
		}
		return check(changed, at/9)
	}
	t.Logf("%d cuts, %d flips", everyCut(t, img, name, check), everyFlip(t, img, name, ninth)/9)
}

// What is damaged before the last events that are asked for is none of its business; what is damaged among them is.
func TestTail_judges_what_it_reads(t *testing.T) {
	img, events := hundred(t)
	name := img.Newest()
	starts := lineStarts(img[name])
	flip := func(line int) *ramFS {
		damaged := img.Clone()
		damaged[name][starts[line]+30] ^= 1
		return ram(damaged)
	}
	got, err := wal.TailFS(flip(1), "log", 3, 1)
	require.NoError(t, err)
	require.True(t, slices.EqualFunc(got, events[97:], sameEvent))
	_, err = wal.TailFS(flip(1), "log", 90, 1)
	require.ErrorIs(t, err, wal.ErrCorrupt)
	_, err = wal.TailFS(flip(len(starts)-3), "log", 3, 1)
	require.ErrorIs(t, err, wal.ErrCorrupt)
}

// F24: a file that is one endless line, or blank without end, or full of lines that say nothing, takes time and no memory.
func TestF24_tail_of_hostile_files(t *testing.T) {
	img, events := hundred(t)
	name := img.Newest()
	for what, end := range map[string][]byte{
		"a line without end":   bytes.Repeat([]byte("x"), 2*wal.MaxLineBytes),
		"newlines without end": bytes.Repeat([]byte("\n"), 2*wal.MaxLineBytes),
		"lines of one byte":    bytes.Repeat([]byte("x\n"), 1<<20),
		"lines of zeros":       bytes.Repeat([]byte{0}, 1<<20),
	} {
		damaged := img.Clone()
		damaged[name] = slices.Concat(damaged[name], end)
		got, err := wal.TailFS(ram(damaged), "log", 5, 32<<10)
		require.NoError(t, err, what)
		require.True(t, slices.EqualFunc(got, events[95:], sameEvent), what)
	}
}

func TestTail_of_no_log(t *testing.T) {
	dir := t.TempDir()
	got, err := wal.Tail(dir, 5)
	require.NoError(t, err)
	require.Empty(t, got)
	_, err = wal.Tail(filepath.Join(dir, "none"), 5)
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = wal.Tail("", 5)
	require.ErrorIs(t, err, wal.ErrInvalid)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "letter.txt"), nil, 0o644))
	_, err = wal.Tail(dir, 5)
	require.ErrorIs(t, err, wal.ErrInvalid)
	got, err = wal.Tail(dir, 0)
	require.NoError(t, err)
	require.Empty(t, got)
}

// Beside a live writer that rotates, drops and fills ahead: without a gap, never behind what was durable before it was
// asked, as far as a line says so.
func TestTail_beside_a_live_writer(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l, err := wal.Open(dir, wal.Options{SegmentBytes: 8 << 10, Prefill: wal.PrefillOn, Sync: wal.SyncNever})
	require.NoError(t, err)
	stop, cancel := context.WithCancel(ctx)
	var readers sync.WaitGroup
	for _, n := range []int{1, 10, 200} {
		readers.Go(func() {
			newest := uint64(0)
			for stop.Err() == nil {
				events, err := wal.Tail(dir, n)
				if err != nil {
					t.Errorf("last %d: %v", n, err)
					return
				}
				for i, e := range events {
					if e.Seq != events[0].Seq+uint64(i) || e.JobID != fmt.Sprint("job-", (e.Seq+2)/3) {
						t.Errorf("last %d: event %d of %d is %v", n, i, len(events), e)
						return
					}
				}
				if k := len(events); k > 0 {
					if events[k-1].Seq < newest || k > n {
						t.Errorf("last %d: %d events to %d, after %d", n, k, events[k-1].Seq, newest)
						return
					}
					newest = events[k-1].Seq
				}
			}
		})
	}
	for i := range thin(3000, 500) {
		mustAppend(t, l, group(i+1, 3, i%200)...)
		if i%100 == 99 {
			require.NoError(t, l.DropBefore(l.LastSeq()-300))
		}
	}
	mustClose(t, l)
	cancel()
	readers.Wait()
	last := l.LastSeq()
	events, err := wal.Tail(dir, 2)
	require.NoError(t, err)
	require.Equal(t, []uint64{last - 1, last}, seqs(events))
}

// A log in which a writer of a hard life fails and dies is read from outside as from inside.
func TestTail_of_every_crash(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := start(t, "", wal.Options{Prefill: wal.PrefillOn, SegmentBytes: 2000})
		for i := range 30 {
			w.append(1+i%3, 100)
			for seed := range uint64(5) {
				disk := w.base.CrashSeed(seed)
				for _, n := range []int{1, 4, 100} {
					want, _, refused := openedTail(disk, n)
					got, err := wal.TailFS(disk, "log", n, 300)
					if refused != nil || err != nil || !slices.EqualFunc(got, want, sameEvent) {
						t.Fatalf("%v %v, not %v %v", seqs(got), err, seqs(want), refused)
					}
				}
			}
		}
		mustClose(t, w.log)
	})
}
