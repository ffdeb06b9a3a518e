package crashfs_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// injected is a disk with a durable file f, and the same behind a schedule.
func injected(t *testing.T, schedule string) (hand, *crashfs.FS, *crashfs.Faulty) {
	disk := crashfs.New()
	hand{t, disk}.durable("f", "old")
	faulty := crashfs.Inject(disk, crashfs.MustSchedule(schedule))
	return hand{t, faulty}, disk, faulty
}

func bothDisks(t *testing.T, run func(t *testing.T, base wal.FS, dir string)) {
	t.Run("memory", func(t *testing.T) { run(t, crashfs.New(), ".") })
	t.Run("real", func(t *testing.T) { run(t, wal.OS, t.TempDir()) })
}

// Every kind of operation fails when it is told to, at its time, at its place, and nothing has happened then.
func TestErrorOfEveryKind(t *testing.T) {
	bothDisks(t, func(t *testing.T, base wal.FS, dir string) {
		at := func(name string) string { return filepath.Join(dir, name) }
		hand{t, base}.create(at("f"), "old")
		var f wal.File
		for _, test := range []struct {
			kind    crashfs.Kind
			pattern string
			do      func(faulty wal.FS) error
		}{
			{crashfs.OpCreate, "new", func(x wal.FS) error { return second(x.OpenFile(at("new"), os.O_CREATE, 0o644)) }},
			{crashfs.OpOpen, "f", func(x wal.FS) error { return second(x.OpenFile(at("f"), os.O_RDWR, 0)) }},
			{crashfs.OpMkdir, "d", func(x wal.FS) error { return x.Mkdir(at("d"), 0o755) }},
			{crashfs.OpRename, "f", func(x wal.FS) error { return x.Rename(at("f"), at("g")) }},
			{crashfs.OpRename, "g", func(x wal.FS) error { return x.Rename(at("f"), at("g")) }},
			{crashfs.OpRemove, "f", func(x wal.FS) error { return x.Remove(at("f")) }},
			{crashfs.OpSyncDir, "*", func(x wal.FS) error { return x.SyncDir(dir) }},
			{crashfs.OpReadDir, "*", func(x wal.FS) error { return second(x.ReadDir(dir)) }},
			{crashfs.OpLock, "*", func(x wal.FS) error { return second(x.Lock(dir)) }},
			{crashfs.OpWrite, "f", func(wal.FS) error { return second(f.WriteAt([]byte("new"), 0)) }},
			{crashfs.OpTruncate, "f", func(wal.FS) error { return f.Truncate(1) }},
			{crashfs.OpSync, "f", func(wal.FS) error { return f.Sync() }},
			{crashfs.OpPreallocate, "f", func(wal.FS) error { return f.Preallocate(1) }},
			{crashfs.OpRead, "f", func(wal.FS) error { return second(f.ReadAt(make([]byte, 1), 0)) }},
			{crashfs.OpSize, "f", func(wal.FS) error { return second(f.Size()) }},
			{crashfs.OpClose, "f", func(wal.FS) error { return f.Close() }},
		} {
			schedule := fmt.Sprintf("%s %s error EIO", test.kind, test.pattern)
			faulty := crashfs.Inject(base, crashfs.MustSchedule(schedule))
			var err error
			if f, err = faulty.OpenFile(at("f"), os.O_RDWR, 0); err == nil {
				err = test.do(faulty)
				_ = f.Close()
			}
			assert.ErrorIs(t, err, syscall.EIO, schedule)
			var path *fs.PathError
			assert.ErrorAs(t, err, &path, schedule)
			assert.Equal(t, `f="old"`, dump(base, dir), schedule)
			if ops := faulty.Ops(); test.kind.Changes() && assert.Len(t, ops, 1) {
				assert.ErrorIs(t, ops[0].Err, syscall.EIO, schedule)
			}
		}
	})
}

func TestWhichOperationsAFaultFallsOn(t *testing.T) {
	for _, test := range []struct{ schedule, fails string }{
		{"sync f #2 error EIO", ".x...."},
		{"sync f #2+ error EIO", ".xxxxx"},
		{"sync f error EIO", "xxxxxx"},
		{"sync g error EIO", "......"},
		{"sync f #2 error EIO; sync * #2 error EIO", ".x...."},
		{"sync f #2 error EIO; sync * #5 error EIO", ".x..x."},
		{"write f error EIO", "......"},
		{"any f #3 error EIO", ".x...."},
	} {
		h, _, _ := injected(t, test.schedule)
		f := h.open("f", os.O_RDWR)
		got := ""
		for range 6 {
			if f.Sync() != nil {
				got += "x"
			} else {
				got += "."
			}
		}
		assert.Equal(t, test.fails, got, test.schedule)
	}
}

func TestShortWrites(t *testing.T) {
	bothDisks(t, func(t *testing.T, base wal.FS, dir string) {
		name := filepath.Join(dir, "f")
		schedule := crashfs.MustSchedule("write f #1 short 2; write f #2 short 3 ENOSPC; write * #3 short 99")
		h := hand{t, crashfs.Inject(base, schedule)}
		f := h.open(name, os.O_RDWR|os.O_CREATE)
		n, err := f.WriteAt([]byte("abcdef"), 0)
		assert.Equal(t, 2, n)
		assert.NoError(t, err)
		n, err = f.WriteAt([]byte("ABCDEF"), 2)
		assert.Equal(t, 3, n)
		assert.ErrorIs(t, err, syscall.ENOSPC)
		n, err = f.WriteAt([]byte("xyz"), 5)
		assert.Equal(t, 3, n)
		assert.NoError(t, err)
		require.NoError(t, f.Close())
		assert.Equal(t, "abABCxyz", read(base, name))
	})
}

func TestFlippedBits(t *testing.T) {
	h, disk, _ := injected(t, "read f #2 flip 12")
	f := h.open("f", os.O_RDONLY)
	get := func(off int64, n int) string {
		p := make([]byte, n)
		_, err := f.ReadAt(p, off)
		require.NoError(t, err)
		return string(p)
	}
	assert.Equal(t, "old", get(0, 3))
	assert.Equal(t, "|d", get(1, 2), "byte 1, bit 4: the place is one in the file, not in the read")
	assert.Equal(t, "old", get(0, 3))
	assert.Equal(t, "old", read(disk, "f"))
}

// F8: the first sync fails, the second returns nil, all can be read, and after the crash it is gone.
func TestSyncThatLies(t *testing.T) {
	h, disk, _ := injected(t, "sync f #1 error EIO lie")
	f := h.open("f", os.O_RDWR)
	write := func(off int64, data string) {
		_, err := f.WriteAt([]byte(data), off)
		require.NoError(t, err)
	}
	write(3, "-lost")
	require.ErrorIs(t, f.Sync(), syscall.EIO)
	require.NoError(t, f.Sync())
	assert.Equal(t, "old-lost", read(disk, "f"))
	assert.Equal(t, `f="old"`, dump(disk.Crash(crashfs.SyncedOnly), "."))
	assert.ElementsMatch(t, []string{`f="old"`, `f="old\x00\x00\x00\x00\x00"`}, statesOf(t, disk), "never a byte of it")

	restarted := disk.Crash(crashfs.Everything)
	assert.Equal(t, "old-lost", read(restarted, "f"), "the cache has it, whoever looks")
	hand{t, restarted}.sync("f")
	assert.Equal(t, `f="old"`, dump(restarted.Crash(crashfs.SyncedOnly), "."), "to sync it again proves nothing")

	write(8, "-kept")
	require.NoError(t, f.Sync())
	assert.Equal(t, []string{`f="old\x00\x00\x00\x00\x00-kept"`}, statesOf(t, disk), "what was written later is safe")
	hand{t, restarted}.write("f", 3, "-lost")
	hand{t, restarted}.sync("f")
	assert.Equal(t, []string{`f="old-lost"`}, statesOf(t, restarted), "to write it again is the cure")
}

func TestSyncThatFailsAndDoesNotLie(t *testing.T) {
	h, disk, _ := injected(t, "sync f #1 error EIO; syncdir . #1 error EIO")
	h.write("f", 0, "new")
	h.create("g", "")
	f := h.open("f", os.O_RDWR)
	require.ErrorIs(t, f.Sync(), syscall.EIO)
	require.ErrorIs(t, h.SyncDir("."), syscall.EIO)
	assert.Len(t, statesOf(t, disk), 4)
	require.NoError(t, f.Sync())
	h.syncDir(".")
	assert.Equal(t, []string{`f="new" g=""`}, statesOf(t, disk))
}

func TestSyncDirThatLies(t *testing.T) {
	h, disk, _ := injected(t, "syncdir . #1 error EIO lie")
	h.create("g", "")
	require.ErrorIs(t, h.SyncDir("."), syscall.EIO)
	h.syncDir(".")
	h.create("h", "")
	h.syncDir(".")
	h.rename("g", "i")
	h.syncDir(".")
	assert.Equal(t, `f="old" h="" i=""`, dump(disk, "."))
	assert.ElementsMatch(t, []string{`f="old" h=""`, `f="old" h="" i=""`}, statesOf(t, disk),
		"what follows it hangs on it; what does not is safe")
}

func TestDisk(t *testing.T) {
	bothDisks(t, func(t *testing.T, base wal.FS, dir string) {
		at := func(name string) string { return filepath.Join(dir, name) }
		hand{t, base}.create(at("old"), strings.Repeat("x", 40))
		faulty := crashfs.Inject(base, crashfs.MustSchedule("disk 100"))
		h := hand{t, faulty}
		f := h.open(at("f"), os.O_RDWR|os.O_CREATE)
		write := func(off int64, size int) string {
			n, err := f.WriteAt(make([]byte, size), off)
			if !errors.Is(err, syscall.ENOSPC) {
				require.NoError(t, err)
				return fmt.Sprint(n)
			}
			return fmt.Sprint(n, " ENOSPC")
		}
		assert.Equal(t, "50", write(0, 50), "40 were there")
		assert.Equal(t, "10 ENOSPC", write(50, 20), "what there is room for is written")
		assert.Equal(t, "0 ENOSPC", write(60, 1))
		assert.Equal(t, "60", write(0, 60), "to overwrite takes none")
		require.NoError(t, f.Truncate(50))
		assert.Equal(t, "10", write(50, 10), "a truncate gives back")
		h.remove(at("old"))
		assert.Equal(t, "40", write(60, 40), "so does a remove")
		assert.ErrorIs(t, f.Preallocate(101), syscall.ENOSPC)
		assert.ErrorIs(t, f.Truncate(101), syscall.ENOSPC)
		faulty.SetDisk(120)
		require.NoError(t, f.Preallocate(110))
		assert.Equal(t, "10", write(100, 10))
		h.create(at("g"), strings.Repeat("x", 10))
		assert.Equal(t, "0 ENOSPC", write(110, 1))
		h.rename(at("g"), at("f"))
		assert.Equal(t, "50", write(110, 50), "without a name it takes nothing of this disk")
		h.create(at("h"), strings.Repeat("x", 110))
		h.truncate(at("f"), 0)
		h.create(at("i"), strings.Repeat("x", 10))
		faulty.SetDisk(-1)
		h.create(at("j"), strings.Repeat("x", 1000))
		require.NoError(t, f.Close())
	})
}

func TestFreeze(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, disk, faulty := injected(t, "sync f #1+ freeze")
		h.write("f", 0, "new")
		f := h.open("f", os.O_RDWR)
		done := make(chan error, 3)
		for range 2 {
			go func() { done <- f.Sync() }()
		}
		synctest.Wait()
		assert.Empty(t, done)
		assert.Equal(t, "sync f", (<-faulty.Frozen()).String())
		h.write("f", 0, "New")
		assert.Equal(t, `f="old"`, dump(disk.Crash(crashfs.SyncedOnly), "."), "others go on, and it has done nothing")
		faulty.Release()
		assert.NoError(t, errors.Join(<-done, <-done))
		assert.Equal(t, `f="New"`, dump(disk.Crash(crashfs.SyncedOnly), "."))

		go func() { done <- f.Sync() }()
		synctest.Wait()
		assert.Empty(t, done, "the next one freezes too")
		faulty.Stop()
		assert.ErrorIs(t, <-done, crashfs.ErrCrashed)
	})
}

// A workload crashed before each of its operations has done those before, and none after.
func TestCrashAtEveryOperation(t *testing.T) {
	workload := func(disk wal.FS) (err error) {
		for _, name := range []string{"a", "b"} {
			f, openErr := disk.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o644)
			if openErr != nil {
				return openErr
			}
			_, writeErr := f.WriteAt([]byte(name), 0)
			err = errors.Join(err, writeErr, f.Sync(), f.Close(), disk.SyncDir("."))
		}
		return errors.Join(err, disk.Rename("a", "c"), disk.Remove("b"), disk.SyncDir("."))
	}
	whole := crashfs.New()
	counter := crashfs.Inject(whole, nil)
	require.NoError(t, workload(counter))
	require.Equal(t, 11, counter.Count())
	assert.Equal(t, whole.Ops(), counter.Ops(), "it is one log, whoever keeps it")

	for n := 1; n <= counter.Count()+1; n++ {
		disk := crashfs.New()
		faulty := crashfs.Inject(disk, crashfs.MustSchedule(fmt.Sprintf("crash %d", n)))
		err := workload(faulty)
		assert.Equal(t, n <= 11, errors.Is(err, crashfs.ErrCrashed), n)
		assert.Equal(t, n <= 11, faulty.Crashed())
		assert.Equal(t, fmt.Sprint(counter.Ops()[:n-1]), fmt.Sprint(disk.Ops()), "only what came before")
		if n <= 11 {
			assert.Equal(t, n, faulty.Count())
			_, err = faulty.ReadDir(".")
			assert.ErrorIs(t, err, crashfs.ErrCrashed, "no operation works, not even one that only looks")
			_, err = faulty.Lock(".")
			assert.ErrorIs(t, err, crashfs.ErrCrashed)
		}
	}
}

// CrashAfter counts what changes the disk, from the call on; looking is free until the crash.
func TestCrashAfter(t *testing.T) {
	for _, test := range []struct {
		name, schedule string
		set            func(x *crashfs.Faulty)
		want           string
	}{
		{"at once", "", func(x *crashfs.Faulty) { x.CrashAfter(0) }, "xxxx"},
		{"after two", "", func(x *crashfs.Faulty) { x.CrashAfter(2) }, "..xx"},
		{"a second call", "", func(x *crashfs.Faulty) { x.CrashAfter(0); x.CrashAfter(3) }, "...x"},
		{"taken back", "", func(x *crashfs.Faulty) { x.CrashAfter(0); x.CrashAfter(-1) }, "...."},
		{"behind that of the schedule", "crash 3", func(x *crashfs.Faulty) { x.CrashAfter(2) }, ".xxx"},
	} {
		h, disk, faulty := injected(t, test.schedule)
		h.write("f", 0, "new")
		before := disk.Count()
		test.set(faulty)
		got := ""
		for range 4 {
			_, err := faulty.ReadDir(".")
			require.Equal(t, strings.Contains(got, "x"), err != nil, test.name)
			if err := faulty.SyncDir("."); err == nil {
				got += "."
			} else {
				require.ErrorIs(t, err, crashfs.ErrCrashed)
				got += "x"
			}
		}
		assert.Equal(t, test.want, got, test.name)
		assert.Equal(t, strings.Contains(got, "x"), faulty.Crashed(), test.name)
		assert.Equal(t, strings.Count(got, "."), disk.Count()-before, test.name)
	}
}

func TestTheCrashFreesLocks(t *testing.T) {
	bothDisks(t, func(t *testing.T, base wal.FS, dir string) {
		faulty := crashfs.Inject(base, nil)
		first, err := faulty.Lock(dir)
		require.NoError(t, err)
		_, err = faulty.Lock(dir)
		require.ErrorIs(t, err, wal.ErrLocked)
		require.NoError(t, first.Close())
		held, err := faulty.Lock(dir)
		require.NoError(t, err)
		_, err = base.Lock(dir)
		require.ErrorIs(t, err, wal.ErrLocked)
		faulty.Stop()
		again, err := base.Lock(dir)
		require.NoError(t, err)
		assert.ErrorIs(t, held.Close(), crashfs.ErrCrashed)
		_, err = base.Lock(dir)
		assert.ErrorIs(t, err, wal.ErrLocked, "the dead one's Close freed nothing of anyone else's")
		require.NoError(t, again.Close())
	})
}

// A file that was renamed goes by its new name, in the log and for the schedule, through handles that were open before.
func TestHandlesFollowRenames(t *testing.T) {
	bothDisks(t, func(t *testing.T, base wal.FS, dir string) {
		at := func(name string) string { return filepath.Join(dir, name) }
		faulty := crashfs.Inject(base, crashfs.MustSchedule("sync f #2 error EIO"))
		h := hand{t, faulty}
		h.mkdir(at("d"))
		f := h.open(at("d/t"), os.O_RDWR|os.O_CREATE)
		require.NoError(t, f.Sync())
		h.rename(at("d/t"), at("d/f"))
		require.NoError(t, f.Sync())
		h.rename(at("d"), at("e"))
		require.ErrorIs(t, f.Sync(), syscall.EIO)
		h.remove(at("e/f"))
		require.NoError(t, f.Sync())
		require.NoError(t, f.Close())
		want := "[mkdir d create d/t sync d/t rename d/t d/f sync d/f rename d e sync e/f: EIO remove e/f sync e/f]"
		got := fmt.Sprint(faulty.Ops())
		assert.Equal(t, want, strings.ReplaceAll(got, filepath.ToSlash(dir)+"/", ""))
		if disk, ok := base.(*crashfs.FS); ok {
			assert.Equal(t, strings.ReplaceAll(want, "sync e/f: EIO ", ""), fmt.Sprint(disk.Ops()))
		}
	})
}

// Two schedules, one around the other, and the lie goes through to the disk.
func TestInjectTwice(t *testing.T) {
	disk := crashfs.New()
	hand{t, disk}.durable("f", "old")
	h := hand{t, crashfs.Inject(crashfs.Inject(disk, nil), crashfs.MustSchedule("sync f #1 error EIO lie"))}
	f := h.open("f", os.O_RDWR)
	_, err := f.WriteAt([]byte("new"), 0)
	require.NoError(t, err)
	require.Error(t, f.Sync())
	require.NoError(t, f.Sync())
	assert.Equal(t, []string{`f="old"`}, statesOf(t, disk))
}
