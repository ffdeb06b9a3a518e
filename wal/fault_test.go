package wal_test

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// start opens a log on a new disk on which things go wrong as the schedule says.
func start(t *testing.T, schedule string, opts wal.Options) *world {
	w := enter(t, crashfs.New(), schedule, opts)
	w.open()
	if w.log == nil {
		t.Fatal("not open")
	}
	return w
}

// again opens the log on the same disk, on which nothing goes wrong any more.
func (w *world) again() *wal.Log {
	opts := w.opts
	opts.FS = w.base
	return mustOpen(w.t, opts)
}

func wantError(t *testing.T, err error, are []error, areNot ...error) {
	t.Helper()
	for _, target := range are {
		if !errors.Is(err, target) {
			t.Errorf("%v is not %v", err, target)
		}
	}
	for _, target := range areNot {
		if errors.Is(err, target) {
			t.Errorf("%v is %v", err, target)
		}
	}
}

func wantEvents(t *testing.T, l *wal.Log, n int) {
	t.Helper()
	events, err := collect(l, 0)
	if err != nil || len(events) != n || l.LastSeq() != uint64(n) {
		t.Errorf("%d events (%v), last seq %d; want %d", len(events), err, l.LastSeq(), n)
	}
}

// F8: one failed sync ends it for good, whatever later ones return; reads go on; a reopen believes nothing it reads from
// the cache until it has written it anew (F9).
func TestF8_failed_sync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, "sync *.jsonl #3 error EIO lie", wal.Options{SegmentBytes: 4096})
		mustAppend(t, w.log, group(1, 1, 0)...)
		mustAppend(t, w.log, group(2, 2, 0)...)
		_, err := w.log.Append(ctx, group(3, 2, 0)...)
		wantError(t, err, []error{wal.ErrFailed, wal.ErrOutcomeUnknown, syscall.EIO})
		for range 2 {
			_, err = w.log.Append(ctx, group(4, 1, 0)...)
			wantError(t, err, []error{wal.ErrFailed, syscall.EIO}, wal.ErrOutcomeUnknown)
		}
		wantError(t, w.log.DropBefore(2), []error{wal.ErrFailed, syscall.EIO})
		wantEvents(t, w.log, 3)
		if _, err := w.log.At(3); err != nil {
			t.Error(err)
		}
		if events, err := w.log.Tail(2); err != nil || len(events) != 2 {
			t.Error(events, err)
		}
		wantError(t, w.log.Close(), []error{wal.ErrFailed, syscall.EIO})
		_, err = w.log.Append(ctx, group(5, 1, 0)...)
		wantError(t, err, []error{wal.ErrClosed})

		l := w.again() // the cache shows what the disk does not have
		shown, err := collect(l, 0)
		if err != nil || len(shown) < 3 {
			t.Fatal(len(shown), err)
		}
		for _, p := range crashes(8) {
			after := mustOpen(t, wal.Options{FS: w.base.Crash(p)})
			if events, err := collect(after, 0); err != nil || len(events) < len(shown) {
				t.Errorf("policy %v: %d events were shown, %d are there (%v)", p, len(shown), len(events), err)
			}
		}
		if l.Report().Rewritten == 0 {
			t.Error("nothing was written anew")
		}
	})
}

// F8, F9: the same when the reopen died, too, and others looked at it meanwhile.
func TestF9_shown_then_lost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, "sync *.jsonl #2 error EIO lie", wal.Options{SegmentBytes: 4096})
		w.append(1, 0)
		_, err := w.log.Append(ctx, group(2, 1, 0)...)
		wantError(t, err, []error{wal.ErrOutcomeUnknown})
		w.told = append(w.told, submission{number: 2, of: 1})
		w.fs.Stop()
		for crash := 1; ; crash++ {
			r := enter(t, w.base.Crash(crashfs.Everything), fmt.Sprint("crash ", crash), w.opts)
			r.told = w.told
			var shown seen
			if err := r.look(r.base, &shown); err != nil {
				t.Fatal(err)
			}
			r.open()
			for _, p := range crashes(8) {
				shown := shown
				if err := r.check(r.base.Crash(p), p, &shown); err != nil {
					t.Fatalf("crash at %d (%s), policy %v: %v", crash, r.last(), p, err)
				}
			}
			if !r.dead {
				return
			}
		}
	})
}

func TestF8_failed_directory_sync_at_rotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, "syncdir log #2 error EIO", wal.Options{})
		mustAppend(t, w.log, group(1, 1, 600)...)
		_, err := w.log.Append(ctx, group(2, 1, 600)...)
		wantError(t, err, []error{wal.ErrFailed, syscall.EIO}, wal.ErrOutcomeUnknown) // nothing was written of it
		_, err = w.log.Append(ctx, group(3, 1, 0)...)
		wantError(t, err, []error{wal.ErrFailed, syscall.EIO}, wal.ErrOutcomeUnknown)
		wantEvents(t, w.log, 1)
		wantError(t, w.log.Close(), []error{wal.ErrFailed})
		wantEvents(t, w.again(), 1)
	})
}

// F10: a directory sync that says ENOSPC has failed like any other: that the next one returns nil proves nothing.
func TestF10_no_space_from_a_sync_is_final(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, schedule := range []string{
			"syncdir log #2 error ENOSPC",
			"sync *1.jsonl #2 error ENOSPC",
		} {
			w := start(t, schedule, wal.Options{})
			mustAppend(t, w.log, group(1, 1, 600)...)
			_, err := w.log.Append(ctx, group(2, 1, 600)...)
			wantError(t, err, []error{wal.ErrFailed, syscall.ENOSPC}, wal.ErrNoSpace, wal.ErrOutcomeUnknown)
			_, err = w.log.Append(ctx, group(3, 1, 0)...)
			wantError(t, err, []error{wal.ErrFailed, syscall.ENOSPC}, wal.ErrNoSpace)
		}
	})
}

// F8: an error of close may be the only report of a lost write.
func TestF8_failed_close_at_rotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, "close *1.jsonl error EIO", wal.Options{})
		mustAppend(t, w.log, group(1, 1, 600)...)
		_, err := w.log.Append(ctx, group(2, 1, 600)...)
		wantError(t, err, []error{wal.ErrFailed, syscall.EIO}, wal.ErrOutcomeUnknown)
		wantEvents(t, w.log, 1)
	})
}

// F10: no room is a no for this call alone, wherever the write stopped; what it left is taken back, and what comes next
// goes to a new segment.
func TestF10_no_space(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, errno := range []string{"ENOSPC", "EDQUOT", "EFBIG"} {
			for short := 0; short < 500; short += 37 {
				w := start(t, fmt.Sprintf("write *.jsonl #3 short %d %s", short, errno), wal.Options{SegmentBytes: 8192})
				w.append(1, 0)
				w.append(2, 0)
				_, err := w.log.Append(ctx, group(9, 3, 0)...)
				var full *wal.NoSpaceError
				if !errors.As(err, &full) || full.Need < 500 || !strings.HasSuffix(full.Path, "1.jsonl") {
					t.Fatalf("%#v", err)
				}
				wantError(t, err, []error{wal.ErrNoSpace}, wal.ErrFailed, wal.ErrOutcomeUnknown)
				wantEvents(t, w.log, 3)
				w.append(2, 0)
				if n := w.told[2].first; n != 4 {
					t.Errorf("the next append got seq %d", n)
				}
				if !strings.Contains(w.base.String(), "log/00000000000000000004.jsonl ") {
					t.Errorf("went on behind what was taken back:\n%s", w.base)
				}
				for _, p := range crashes(2) {
					if err := w.check(w.base.Crash(p), p, new(seen)); err != nil {
						t.Fatalf("%s after %d bytes, policy %v: %v", errno, short, p, err)
					}
				}
			}
		}
	})
}

// F10: what cannot be taken back is a failure for good.
func TestF10_take_back_fails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, second := range []string{"truncate *.jsonl error EIO", "sync *.jsonl #3 error EIO"} {
			w := start(t, "write *.jsonl #3 short 100 ENOSPC; "+second, wal.Options{SegmentBytes: 8192})
			w.append(1, 0)
			w.append(2, 0)
			_, err := w.log.Append(ctx, group(3, 3, 0)...)
			wantError(t, err, []error{wal.ErrFailed, wal.ErrOutcomeUnknown, syscall.EIO})
			_, err = w.log.Append(ctx, group(4, 1, 0)...)
			wantError(t, err, []error{wal.ErrFailed, syscall.EIO}, wal.ErrOutcomeUnknown)
			wantEvents(t, w.log, 3)
			wantError(t, w.log.Close(), []error{wal.ErrFailed})
			wantEvents(t, w.again(), 3)
		}
	})
}

// F10: a disk that is full when the log is to rotate, or to close, and for as long as it stays full.
func TestF10_full_disk_stays_open(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for room := int64(0); room < 1200; room += 100 {
			w := start(t, "", wal.Options{})
			w.append(1, 300)
			w.fs.SetDisk(700 + room)
			for range 6 {
				w.append(1, 200)
			}
			full, err := collect(w.log, 0)
			if err != nil {
				t.Fatal(err)
			}
			w.close() // without room for its mark
			w.fs.SetDisk(-1)
			w.open()
			wantEvents(t, w.log, len(full))
			w.append(1, 200)
			w.close()
			if err := w.check(w.base.Crash(crashfs.SyncedOnly), crashfs.SyncedOnly, new(seen)); err != nil {
				t.Fatalf("room %d: %v", room, err)
			}
		}
	})
}

// F27: no room at Open, for whatever it has to write: a typed error with the bytes that are lacking, no event or torn
// byte lost, and the next Open works.
func TestF27_no_space_at_open(t *testing.T) {
	disks := map[string]func(t *testing.T) *world{
		"new": func(t *testing.T) *world { return enter(t, crashfs.New(), "", wal.Options{}) },
		"closed": func(t *testing.T) *world {
			w := start(t, "", wal.Options{})
			w.append(2, 0)
			w.close()
			return w
		},
		"killed": func(t *testing.T) *world {
			w := start(t, "", wal.Options{})
			w.append(2, 0)
			w.fs.Stop()
			return w
		},
		"torn": func(t *testing.T) *world {
			return workloads[9-1].enter(t, 0)
		},
	}
	for name, disk := range disks {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				failures := 0
				for room := int64(0); ; room += 20 {
					w := disk(t)
					r := enter(t, w.base.Crash(crashfs.CutAt("log/00000000000000000001.jsonl", 1<<20)), "", w.opts)
					r.told, r.torn = w.told, w.torn
					r.fs.SetDisk(used(r.base) + room)
					before := r.base.Fingerprint()
					l, err := wal.Open("log", r.opts)
					if err == nil {
						if failures == 0 {
							t.Error("there was always room")
						}
						mustClose(t, l)
						return
					}
					failures++
					var full *wal.NoSpaceError
					if !errors.As(err, &full) || full.Need <= 0 || full.Path == "" {
						t.Fatalf("room %d: %#v", room, err)
					}
					wantError(t, err, []error{wal.ErrNoSpace, syscall.ENOSPC}, wal.ErrCorrupt, wal.ErrFailed)
					if name == "closed" && r.base.Fingerprint() != before {
						t.Fatalf("room %d: something was changed", room)
					}
					if err := r.check(r.base.Crash(crashfs.SyncedOnly), crashfs.SyncedOnly, new(seen)); err != nil {
						t.Fatalf("room %d: %v", room, err)
					}
				}
			})
		})
	}
}

func used(disk *crashfs.FS) (bytes int64) {
	for _, dir := range []string{"log", "log/quarantine"} {
		list, _ := disk.ReadDir(dir)
		for _, e := range list {
			if info, err := e.Info(); err == nil && !e.IsDir() {
				bytes += info.Size()
			}
		}
	}
	return bytes
}

// F11: writes that take less than they are given are nobody's business.
func TestF11_short_writes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, "write * short 7", wal.Options{})
		for range 5 {
			w.append(2, 100)
		}
		w.close()
		w.open()
		w.append(1, 0)
		w.close()
		if err := w.check(w.base.Crash(crashfs.SyncedOnly), crashfs.SyncedOnly, new(seen)); err != nil {
			t.Fatal(err)
		}
	})
}

// F12: a file system that takes no writes is named to a writer, and is good enough for a reader.
func TestF12_no_permission(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			errno string
			is    error
		}{{"EROFS", syscall.EROFS}, {"EACCES", fs.ErrPermission}, {"EPERM", fs.ErrPermission}} {
			deny := ""
			for _, kind := range []string{"create", "write", "truncate", "preallocate", "mkdir", "rename", "remove"} {
				deny += fmt.Sprintf("%s * error %s;", kind, c.errno)
			}
			for _, lock := range []string{"", "lock * error " + c.errno} {
				w := start(t, "", wal.Options{})
				w.append(2, 0)
				w.append(1, 1000)
				w.fs.Stop()
				disk := w.base.Crash(crashfs.Everything)
				before := disk.Fingerprint()
				w = enter(t, disk, deny+lock, wal.Options{})
				_, err := wal.Open("log", w.opts)
				wantError(t, err, []error{c.is}, wal.ErrCorrupt, wal.ErrFailed)
				if err == nil || !strings.Contains(err.Error(), "log") {
					t.Errorf("%v names no path", err)
				}
				w.opts.ReadOnly = true
				l, err := wal.Open("log", w.opts)
				if err != nil {
					t.Fatal(err)
				}
				if n := l.LastSeq(); n < 2 {
					t.Errorf("%s: the reader sees %d", c.errno, n)
				}
				mustClose(t, l)
				if disk.Fingerprint() != before {
					t.Error("changed")
				}
			}
			w := enter(t, crashfs.New(), deny, wal.Options{})
			_, err := wal.Open("log", w.opts)
			wantError(t, err, []error{c.is})
			if err == nil || !strings.Contains(err.Error(), "log") {
				t.Errorf("%v names no path", err)
			}
		}
	})
}

// A read that fails is no damage: the error is the file system's, nothing is changed, and the next try works.
func TestF8_read_error_is_not_corruption(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := workloads[9-1].enter(t, 0).base // torn
		before := disk.Fingerprint()
		try := func(fsys wal.FS) error {
			if _, err := wal.VerifyFS(fsys, "log"); err != nil {
				return err
			}
			r, err := wal.Open("log", wal.Options{FS: fsys, ReadOnly: true})
			if err != nil {
				return err
			}
			defer r.Close()
			if _, err := collect(r, 1); err != nil {
				return err
			}
			if _, err := r.At(1); err != nil {
				return err
			}
			_, err = r.Tail(1)
			return err
		}
		for _, kind := range []string{"read", "open", "size", "readdir"} {
			for nth := 1; ; nth++ {
				err := try(crashfs.Inject(disk, crashfs.MustSchedule(fmt.Sprintf("%s * #%d error EIO", kind, nth))))
				if err == nil {
					break
				}
				wantError(t, err, []error{syscall.EIO}, wal.ErrCorrupt)
				if disk.Fingerprint() != before {
					t.Fatal("changed")
				}
			}
			for nth := 1; ; nth++ {
				disk := disk.Crash(crashfs.Everything)
				l, err := wal.Open("log", wal.Options{FS: crashfs.Inject(disk, crashfs.MustSchedule(fmt.Sprintf("%s * #%d error EIO", kind, nth)))})
				if err == nil {
					mustClose(t, l)
					break
				}
				wantError(t, err, []error{syscall.EIO}, wal.ErrCorrupt)
				l = mustOpen(t, wal.Options{FS: disk})
				wantEvents(t, l, 2)
				mustClose(t, l)
			}
		}
	})
}

// Every operation of every workload fails once, in every way, and the caller goes on as well as he can: opens again when
// the log has failed. Then the power goes. W2, W4; F8, F10, F11.
func TestFault_everywhere(t *testing.T) {
	var runs atomic.Int64
	t.Cleanup(func() { t.Logf("%d faults", runs.Load()) })
	faults := map[crashfs.Kind][]string{
		crashfs.OpCreate: {"error EIO", "error ENOSPC"}, crashfs.OpWrite: {"error EIO", "short 50 EIO", "short 50 ENOSPC"},
		crashfs.OpTruncate: {"error EIO"}, crashfs.OpSync: {"error EIO", "error EIO lie", "error ENOSPC lie"},
		crashfs.OpPreallocate: {"error ENOSPC"}, crashfs.OpMkdir: {"error EIO"}, crashfs.OpRename: {"error EIO", "error ENOSPC"},
		crashfs.OpRemove: {"error EIO"}, crashfs.OpSyncDir: {"error EIO"}, crashfs.OpClose: {"error EIO"},
	}
	for _, k := range slices.Concat(workloads, besides) {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				for kind, ways := range faults {
					for _, way := range ways {
						for nth := 1; ; nth++ {
							w := k.enter(t, 0)
							schedule := fmt.Sprintf("%s * #%d %s", kind, nth, way)
							if k.disk > 0 {
								schedule += fmt.Sprintf("; disk %d", k.disk)
							}
							w.fs = crashfs.Inject(w.base, crashfs.MustSchedule(schedule))
							w.opts.FS, w.stubborn = w.fs, true
							w.cutLied = strings.HasSuffix(way, "lie")
							k.do(w)
							w.close()
							runs.Add(1)
							for _, p := range crashes(thin(2, 0)) {
								if err := w.check(w.base.Crash(p), p, new(seen)); err != nil {
									t.Fatalf("%s, policy %v: %v\n%v", schedule, p, err, w.fs.Ops())
								}
							}
							if w.fs.Count(kind) < nth {
								break
							}
						}
					}
				}
			})
		})
	}
}

// F26: Options.Now, or an FS, panicked or ended the goroutine that was writing, as t.FailNow does in one made for a test;
// and every other caller, and Close, waited for ever, with the directory locked. The panic goes on to whose it is, the
// others are told that the log has failed. Found by asking what hostile options can do.
func TestF26_a_committer_that_does_not_come_back(t *testing.T) {
	for name, gone := range map[string]func(){"panic": func() { panic("clock") }, "Goexit": runtime.Goexit} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var armed atomic.Bool
				w := start(t, "sync *.jsonl #1 freeze", wal.Options{SegmentBytes: wal.MinSegmentBytes, Now: func() time.Time {
					if armed.Load() {
						gone()
					}
					return time.Unix(1, 0)
				}})
				var errs [3]error
				for i := range errs {
					go func() {
						defer func() { _ = recover() }()
						e := event(i, 0, 1, 600)
						e.Time = time.Unix(1, 0) // so that the clock is read at rotation alone
						_, errs[i] = w.log.Append(ctx, e)
					}()
					synctest.Wait()
				}
				armed.Store(true)
				w.fs.Release()
				synctest.Wait()
				wantError(t, errs[0], nil)
				wantError(t, errs[2], []error{wal.ErrFailed}, wal.ErrOutcomeUnknown)
				wantEvents(t, w.log, 1)
				for range 2 {
					wantError(t, w.log.Close(), []error{wal.ErrFailed})
				}
				armed.Store(false)
				l := w.again()
				wantEvents(t, l, 1)
				go func() { // at Close's own mark
					defer func() { _ = recover() }()
					armed.Store(true)
					_ = l.Close()
				}()
				synctest.Wait()
				wantError(t, l.Close(), []error{wal.ErrFailed})
				armed.Store(false)
				mustClose(t, w.again())
			})
		})
	}
}

// F11: a ReadAt that returned no bytes and no error, against io.ReaderAt's contract, was called for ever; one that
// claimed more bytes than it was asked for had Open take a log for an empty one, and cut it. One byte at a time is fine.
func TestF11_reads_that_break_their_contract(t *testing.T) {
	for name, c := range map[string]struct {
		n  func(asked int) int
		is error
	}{
		"nothing": {func(int) int { return 0 }, io.ErrNoProgress},
		"less":    {func(int) int { return -1 }, io.ErrNoProgress},
		"more":    {func(asked int) int { return asked + 5 }, io.ErrNoProgress},
		"a byte":  {func(int) int { return 1 }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			disk := crashfs.New()
			l := mustOpen(t, wal.Options{FS: disk})
			mustAppend(t, l, group(1, 2, 0)...)
			mustClose(t, l)
			l, err := wal.Open("log", wal.Options{FS: misreading{disk, c.n}})
			if !errors.Is(err, c.is) {
				t.Errorf("Open: %v", err)
			}
			if err == nil {
				wantEvents(t, l, 2)
				mustClose(t, l)
			}
			l = mustOpen(t, wal.Options{FS: disk})
			wantEvents(t, l, 2)
			mustClose(t, l)
		})
	}
}

// misreading reads as it likes, and has no error to say of it.
type misreading struct {
	wal.FS
	n func(asked int) int
}

func (m misreading) OpenFile(name string, flag int, perm fs.FileMode) (wal.File, error) {
	f, err := m.FS.OpenFile(name, flag, perm)
	return misreadingFile{f, m.n}, err
}

type misreadingFile struct {
	wal.File
	n func(asked int) int
}

func (f misreadingFile) ReadAt(b []byte, at int64) (int, error) {
	n := f.n(len(b))
	_, err := f.File.ReadAt(b[:max(0, min(n, len(b)))], at)
	return n, err
}
