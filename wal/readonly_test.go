package wal_test

import (
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// readOnly opens a log through a file system on which every change, and the lock, fails.
func readOnly(t *testing.T, disk wal.FS) *wal.Log {
	t.Helper()
	guard := crashfs.Inject(disk, crashfs.MustSchedule(`create * error EROFS; write * error EROFS; truncate * error EROFS;
		sync * error EROFS; preallocate * error EROFS; mkdir * error EROFS; rename * error EROFS; remove * error EROFS;
		syncdir * error EROFS; lock * error EROFS`))
	l := mustOpen(t, wal.Options{FS: guard, ReadOnly: true})
	t.Cleanup(func() {
		if n := guard.Count(); n != 0 {
			t.Errorf("ReadOnly tried to change something: %v", guard.Ops())
		}
	})
	return l
}

// W5, W6: a reader shows what some line says is durable: of a busy writer all but the last group, of an idle one all.
func TestReadOnly_shows_what_has_a_witness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, "", wal.Options{})
		r := readOnly(t, w.base)
		wantEvents(t, r, 0)
		mustAppend(t, w.log, group(1, 2, 0)...)
		wantEvents(t, r, 0)
		mustAppend(t, w.log, group(2, 1, 0)...)
		wantEvents(t, r, 2)
		if _, err := r.At(3); !errors.Is(err, wal.ErrInvalid) {
			t.Error(err)
		}
		time.Sleep(time.Second)
		wantEvents(t, r, 3)
		if tail, err := r.Tail(2); err != nil || len(tail) != 2 || tail[1].Seq != 3 {
			t.Error(tail, err)
		}
		mustAppend(t, w.log, group(3, 3, 900)...) // rotates: the next header is a witness
		wantEvents(t, r, 3)
		mustClose(t, w.log)
		wantEvents(t, r, 6)
		if r.ID() != w.log.ID() || r.Epoch() != 1 {
			t.Error(r.ID(), r.Epoch())
		}
		_, err := r.Append(ctx, event(1, 0, 1, 0))
		wantError(t, err, []error{wal.ErrReadOnly})
		wantError(t, r.DropBefore(1), []error{wal.ErrReadOnly})
		mustClose(t, r)
		_, err = collect(r, 0)
		wantError(t, err, []error{wal.ErrClosed})
	})
}

// A log that is not there yet is followed from its first event on.
func TestReadOnly_empty_directory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := crashfs.New()
		if err := disk.Mkdir("log", 0o755); err != nil {
			t.Fatal(err)
		}
		r := readOnly(t, disk)
		if r.ID() != "" || r.FirstSeq() != 1 || r.LastSeq() != 0 {
			t.Error(r.ID(), r.FirstSeq(), r.LastSeq())
		}
		for _, from := range []uint64{0, 1, 2} {
			if events, err := collect(r, from); err != nil || len(events) > 0 {
				t.Errorf("Events(%d): %v %v", from, events, err)
			}
		}
		if tail, err := r.Tail(3); err != nil || len(tail) > 0 {
			t.Error(tail, err)
		}
		got := make(chan wal.Event)
		follow, stop := context.WithCancel(ctx)
		go func() {
			defer close(got)
			for e, err := range r.Follow(follow, 0) {
				if err == nil {
					got <- e
				}
			}
		}()
		l := mustOpen(t, wal.Options{FS: disk})
		mustAppend(t, l, group(1, 2, 0)...)
		if a, b := <-got, <-got; a.Seq != 1 || b.Seq != 2 {
			t.Error(a, b)
		}
		stop()
		<-got
		mustClose(t, l)
		mustClose(t, r)
	})
}

func TestReadOnly_wrong_directories(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, readOnly := range []bool{true, false} {
		_, err := wal.Open(dir, wal.Options{ReadOnly: readOnly})
		wantError(t, err, []error{wal.ErrInvalid})
		_, err = wal.Open(file, wal.Options{ReadOnly: readOnly})
		if err == nil || errors.Is(err, wal.ErrCorrupt) {
			t.Error(err)
		}
		_, err = wal.Open(filepath.Join(file, "log"), wal.Options{ReadOnly: readOnly})
		if err == nil || errors.Is(err, wal.ErrCorrupt) {
			t.Error(err)
		}
		_, err = wal.Open("", wal.Options{ReadOnly: readOnly})
		wantError(t, err, []error{wal.ErrInvalid})
	}
	_, err := wal.Open(filepath.Join(dir, "none"), wal.Options{ReadOnly: true})
	wantError(t, err, []error{fs.ErrNotExist})
	for _, check := range []func(string) (wal.Report, error){wal.Verify, func(dir string) (wal.Report, error) {
		return wal.Salvage(dir, filepath.Join(t.TempDir(), "into"))
	}} {
		_, err := check(dir)
		wantError(t, err, []error{wal.ErrInvalid})
		_, err = check(filepath.Join(dir, "none"))
		wantError(t, err, []error{fs.ErrNotExist})
		if _, err = check(file); err == nil {
			t.Error("a file was taken for a log")
		}
	}
	if list, _ := os.ReadDir(dir); len(list) != 1 {
		t.Errorf("something was made: %v", list)
	}
}

// A reader beside a writer that has a hard life: rotations, drops, a disk that fills up, crashes of the process. It sees
// every event that stayed, once and in order, or is told what was dropped.
func TestReadOnly_beside_a_hard_life(t *testing.T) {
	t.Parallel()
	lives := thin(12, 6)
	synctest.Test(t, func(t *testing.T) {
		disk := crashfs.New()
		if err := disk.Mkdir("log", 0o755); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		follow, stop := context.WithCancel(ctx)
		seen := make([][]wal.Event, 4)
		for i := range seen {
			r := readOnly(t, disk)
			wg.Go(func() {
				defer r.Close()
				for from := uint64(1); ; {
					var last error
					for e, err := range r.Follow(follow, from) {
						if last = err; err != nil {
							break
						}
						if e.Seq != from {
							t.Errorf("reader %d: seq %d where %d belongs", i, e.Seq, from)
						}
						seen[i], from = append(seen[i], e), e.Seq+1
						if i == 0 {
							time.Sleep(time.Millisecond) // it falls behind
						}
					}
					var gone *wal.DroppedError
					switch {
					case errors.As(last, &gone) && gone.First > from:
						from = gone.First
					case errors.Is(last, context.Canceled):
						return
					default:
						t.Errorf("reader %d at %d: %v", i, from, last)
						return
					}
				}
			})
		}
		truth := make(map[uint64]wal.Event)
		for life := range lives {
			w := enter(t, disk, "", wal.Options{})
			w.open()
			for e, err := range w.log.Events(0) {
				if err != nil {
					t.Fatal(err)
				}
				truth[e.Seq] = e
			}
			for i := range 30 {
				if i%10 == 5 {
					w.fs.SetDisk(used(disk) + rand.Int64N(1500))
				}
				first, err := w.log.Append(ctx, group(life*100+i, 1+i%4, 50*(i%5))...)
				if err != nil && !errors.Is(err, wal.ErrNoSpace) {
					t.Fatal(err)
				}
				for err == nil && first <= w.log.LastSeq() {
					e, err := w.log.At(first)
					if err != nil {
						t.Fatal(err)
					}
					truth[first] = e
					first++
				}
				w.fs.SetDisk(-1)
				if i%12 == 11 {
					if err := w.log.DropBefore(w.log.LastSeq() - 15); err != nil {
						t.Fatal(err)
					}
				}
				time.Sleep(time.Duration(rand.IntN(15)) * time.Millisecond)
			}
			switch life % 3 {
			case 0:
				mustClose(t, w.log)
			case 1: // the process dies in the middle of an append
				w.fs.Stop()
				tear(t, disk)
			default:
				w.fs.Stop()
			}
		}
		l := mustOpen(t, wal.Options{FS: disk})
		time.Sleep(10 * time.Second)
		stop()
		wg.Wait()
		for i, events := range seen {
			if len(events) == 0 || events[len(events)-1].Seq != l.LastSeq() {
				t.Errorf("reader %d saw %d events, the log ends at %d", i, len(events), l.LastSeq())
			}
			for _, e := range events {
				if !sameEvent(e, truth[e.Seq]) {
					t.Fatalf("reader %d saw %v, the truth is %v", i, e, truth[e.Seq])
				}
			}
		}
		mustClose(t, l)
	})
}

// tear leaves half a line at the end of the newest segment.
func tear(t *testing.T, disk *crashfs.FS) {
	list, err := disk.ReadDir("log")
	if err != nil {
		t.Fatal(err)
	}
	newest := ""
	for _, e := range list {
		if filepath.Ext(e.Name()) == ".jsonl" {
			newest = "log/" + e.Name()
		}
	}
	f, err := disk.OpenFile(newest, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	size, _ := f.Size()
	if _, err := f.WriteAt([]byte(`{"seq":99,"prev":0,"epo`), size); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
}

// A reader that was asked before the writer dropped what it asked for gets ErrDropped, and is not told of corruption.
func TestReadOnly_dropped_while_reading(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, "", wal.Options{})
		for i := range 6 {
			mustAppend(t, w.log, event(i, 0, 1, 600))
		}
		time.Sleep(time.Second)
		r := readOnly(t, w.base)
		var last error
		for e, err := range r.Events(1) {
			last = err
			if e.Seq == 1 {
				if err := w.log.DropBefore(5); err != nil {
					t.Fatal(err)
				}
			}
		}
		var gone *wal.DroppedError
		if !errors.As(last, &gone) || gone.Seq != 2 || gone.First != 5 {
			t.Errorf("%#v", last)
		}
		if r.FirstSeq() != 5 {
			t.Error(r.FirstSeq())
		}
		_, err := r.At(1)
		wantError(t, err, []error{wal.ErrDropped})
		mustClose(t, r)
		mustClose(t, w.log)
	})
}

// The file system's errors are the reader's, too.
func TestReadOnly_errors_are_not_corruption(t *testing.T) {
	w := start(t, "", wal.Options{})
	w.append(3, 0)
	w.close()
	x := crashfs.Inject(w.base, crashfs.MustSchedule("readdir * #3 error EIO"))
	r := mustOpen(t, wal.Options{FS: x, ReadOnly: true})
	_, err := collect(r, 1)
	wantError(t, err, []error{syscall.EIO}, wal.ErrCorrupt)
	wantEvents(t, r, 3)
	mustClose(t, r)
}

// What was found: Verify took what a live writer beside it dropped, or had just made, for missing. What is in flight is at
// worst a torn tail.
func TestVerify_beside_a_live_writer(t *testing.T) {
	t.Parallel()
	disk := crashfs.New()
	l := mustOpen(t, wal.Options{FS: disk, SegmentBytes: wal.MinSegmentBytes})
	var wg sync.WaitGroup
	over := make(chan struct{})
	var round, dropped atomic.Int64
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-over:
				return
			default:
			}
			if l.LastSeq() > l.FirstSeq()+200 && dropped.Load() == round.Load() {
				runtime.Gosched()
				continue
			}
			if _, err := l.Append(ctx, group(i, 1+i%3, i%4*100)...); err != nil {
				t.Error(err)
				return
			}
			if dropped.Swap(round.Load()) < round.Load() {
				if err := l.DropBefore(l.LastSeq() - 20); err != nil {
					t.Error(err)
				}
			}
		}
	})
	for range thin(100, 30) {
		round.Add(1)
		before := l.LastSeq()
		report, err := wal.VerifyFS(disk, "log")
		if err != nil || report.LastSeq+3 < before {
			t.Errorf("to %d, the log ended at %d: %v", report.LastSeq, before, err)
			break
		}
	}
	close(over)
	wg.Wait()
	mustClose(t, l)
}

// F27, W6: a log that is removed under a reader, and what takes its place: another log, or an older copy of this one.
// What was shown stays: the reader went back to an empty log, or went on in the middle of the other, in silence.
func TestF27_W6_another_log_in_place_of_the_one_that_is_read(t *testing.T) {
	for place, fill := range map[string]func(t *testing.T, dir, older string){
		"nothing":       func(t *testing.T, dir, _ string) { must(t, os.Mkdir(dir, 0o755)) },
		"an older copy": func(t *testing.T, dir, older string) { must(t, os.CopyFS(dir, os.DirFS(older))) },
		"another log": func(t *testing.T, dir, _ string) {
			l := dirOpen(t, dir, wal.Options{})
			mustAppend(t, l, group(9, 6, 600)...)
			mustAppend(t, l, group(10, 6, 600)...)
			mustClose(t, l)
		},
	} {
		t.Run(place, func(t *testing.T) {
			dir, older := filepath.Join(t.TempDir(), "log"), filepath.Join(t.TempDir(), "older")
			small := wal.Options{SegmentBytes: wal.MinSegmentBytes}
			for i := range 3 {
				l := dirOpen(t, dir, small)
				mustAppend(t, l, group(i, 2, 600)...)
				mustClose(t, l)
				if i == 1 {
					must(t, os.CopyFS(older, os.DirFS(dir)))
				}
			}
			r := dirOpen(t, dir, wal.Options{ReadOnly: true})
			wantEvents(t, r, 6)
			id := r.ID()
			must(t, os.RemoveAll(dir))
			fill(t, dir, older)
			for _, err := range r.Follow(ctx, 7) {
				wantError(t, err, []error{wal.ErrCorrupt})
			}
			if r.LastSeq() != 6 || r.ID() != id {
				t.Errorf("the reader is at seq %d of log %s, and was at 6 of %s", r.LastSeq(), r.ID(), id)
			}
			mustClose(t, r)
		})
	}
}
