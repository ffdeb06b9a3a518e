package crashfs_test

import (
	"errors"
	"io/fs"
	"math"
	"os"
	"path"
	"runtime"
	"sync"
	"syscall"
	"testing"

	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestErrorsAreThoseOfPackageOS(t *testing.T) {
	disk := crashfs.New()
	h := hand{t, disk}
	h.mkdir("d")
	h.create("d/f", "x")
	reader := h.open("d/f", os.O_RDONLY)
	open := func(name string, flag int) error {
		_, err := disk.OpenFile(name, flag, 0o644)
		return err
	}
	for _, test := range []struct {
		what string
		err  error
		want error
	}{
		{"no file", open("no", os.O_RDONLY), fs.ErrNotExist},
		{"no parent", open("no/f", os.O_CREATE|os.O_RDWR), fs.ErrNotExist},
		{"parent is a file", open("d/f/g", os.O_CREATE|os.O_RDWR), syscall.ENOTDIR},
		{"there already", open("d/f", os.O_CREATE|os.O_EXCL|os.O_RDWR), fs.ErrExist},
		{"a directory", open("d", os.O_RDWR), syscall.EISDIR},
		{"the root", open("/", os.O_RDWR), syscall.EISDIR},
		{"append", open("d/f", os.O_RDWR|os.O_APPEND), syscall.EINVAL},
		{"mkdir twice", disk.Mkdir("d", 0o755), fs.ErrExist},
		{"mkdir of the root", disk.Mkdir(".", 0o755), fs.ErrExist},
		{"remove nothing", disk.Remove("no"), fs.ErrNotExist},
		{"remove what is not empty", disk.Remove("d"), syscall.ENOTEMPTY},
		{"remove the root", disk.Remove("/"), syscall.EBUSY},
		{"rename nothing", disk.Rename("no", "f"), fs.ErrNotExist},
		{"rename over a directory", disk.Rename("d/f", "d"), fs.ErrExist},
		{"rename into itself", disk.Rename("d", "d/d"), syscall.EINVAL},
		{"syncdir of nothing", disk.SyncDir("no"), fs.ErrNotExist},
		{"syncdir of a file", disk.SyncDir("d/f"), syscall.ENOTDIR},
		{"write through a reader", second(reader.WriteAt([]byte("x"), 0)), syscall.EBADF},
		{"truncate through a reader", reader.Truncate(0), syscall.EINVAL},
		{"close", reader.Close(), nil},
		{"close twice", reader.Close(), fs.ErrClosed},
		{"read after close", second(reader.ReadAt(nil, 0)), fs.ErrClosed},
		{"size after close", second(reader.Size()), fs.ErrClosed},
		{"sync after close", reader.Sync(), fs.ErrClosed},
	} {
		assert.ErrorIs(t, test.err, test.want, test.what)
		var path *fs.PathError
		var link *os.LinkError
		assert.Equal(t, test.want != nil, errors.As(test.err, &path) || errors.As(test.err, &link), test.what)
	}
}

func second[T any](_ T, err error) error { return err }

func TestNamesAreUnderOneRoot(t *testing.T) {
	disk := crashfs.New()
	hand{t, disk}.create("/f", "x")
	for _, name := range []string{"f", "./f", "/f", "//f", "../f", "no/../f"} {
		assert.Equal(t, "x", read(disk, name), name)
	}
	for _, root := range []string{"", ".", "/"} {
		assert.Equal(t, `f="x"`, dump(disk, root), root)
		assert.NoError(t, disk.SyncDir(root))
	}
}

// A file without a name lives until its handle is closed, and its bytes are nobody else's.
func TestRemovedFilesGoOn(t *testing.T) {
	disk := crashfs.New()
	h := hand{t, disk}
	h.create("f", "old")
	f := h.open("f", os.O_RDWR)
	h.remove("f")
	h.create("f", "new")
	_, err := f.WriteAt([]byte("X"), 0)
	require.NoError(t, err)
	p := make([]byte, 3)
	_, err = f.ReadAt(p, 0)
	require.NoError(t, err)
	assert.Equal(t, "Xld", string(p))
	require.NoError(t, f.Sync())
	assert.Equal(t, "new", read(disk, "f"))
}

func TestDirEntries(t *testing.T) {
	disk := crashfs.New()
	h := hand{t, disk}
	h.mkdir("b")
	h.create("c", "xyz")
	h.create("a", "")
	list, err := disk.ReadDir(".")
	require.NoError(t, err)
	require.Len(t, list, 3)
	assert.Equal(t, "a", list[0].Name())
	assert.True(t, list[1].IsDir())
	info, err := list[2].Info()
	require.NoError(t, err)
	assert.EqualValues(t, 3, info.Size())
	assert.Equal(t, fs.FileMode(0o644), info.Mode())
}

// A hole costs nothing, wherever it ends, and a file cannot be larger than one on ext4.
func TestHugeOffsets(t *testing.T) {
	disk := crashfs.New()
	h := hand{t, disk}
	h.durable("f", "start")
	f := h.open("f", os.O_RDWR)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	_, err := f.WriteAt([]byte("end"), crashfs.MaxFileSize-3)
	require.NoError(t, err)
	for seed := range uint64(50) {
		disk.CrashSeed(seed)
	}
	states := disk.CrashStates(1000)
	assert.Equal(t, 3, states.Len(), "lost, kept, and the size without the bytes")
	require.NoError(t, f.Sync())
	require.NoError(t, f.Truncate(10))
	require.NoError(t, f.Truncate(crashfs.MaxFileSize))
	assert.Equal(t, 3, disk.CrashStates(1000).Len())
	require.NoError(t, f.Sync())
	p := make([]byte, 4)
	n, err := f.ReadAt(p, crashfs.MaxFileSize-4)
	require.NoError(t, err)
	assert.Equal(t, "\x00\x00\x00\x00", string(p[:n]))
	runtime.ReadMemStats(&after)
	assert.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(32<<20))

	for _, off := range []int64{crashfs.MaxFileSize, crashfs.MaxFileSize - 3, math.MaxInt64 - 1, math.MaxInt64} {
		_, err := f.WriteAt([]byte("over"), off)
		assert.ErrorIs(t, err, syscall.EFBIG)
	}
	assert.ErrorIs(t, f.Truncate(crashfs.MaxFileSize+1), syscall.EFBIG)
	_, err = f.WriteAt([]byte("x"), -1)
	assert.Error(t, err)
}

func TestLock(t *testing.T) {
	disk := crashfs.New()
	h := hand{t, disk}
	h.dirs("d", "e")
	held, err := disk.Lock("d")
	require.NoError(t, err)
	_, err = disk.Lock("/d")
	var locked *wal.LockedError
	require.ErrorAs(t, err, &locked)
	require.ErrorIs(t, err, wal.ErrLocked)
	assert.Equal(t, "/d", locked.Dir)
	assert.Equal(t, os.Getpid(), locked.PID)
	other, err := disk.Lock("e")
	require.NoError(t, err, "another directory")
	_, err = disk.Lock("no")
	assert.ErrorIs(t, err, fs.ErrNotExist)

	for _, policy := range []crashfs.Policy{crashfs.SyncedOnly, crashfs.Everything, crashfs.Seed(1)} {
		again, err := disk.Crash(policy).Lock("d")
		require.NoError(t, err, "a crash frees it")
		require.NoError(t, again.Close())
	}
	_, err = disk.Lock("d")
	assert.ErrorIs(t, err, wal.ErrLocked, "not in the old world")
	require.NoError(t, held.Close())
	again, err := disk.Lock("d")
	require.NoError(t, err)
	require.NoError(t, held.Close(), "closed twice")
	_, err = disk.Lock("d")
	assert.ErrorIs(t, err, wal.ErrLocked, "the second Close freed nothing of anyone else's")
	require.NoError(t, errors.Join(again.Close(), other.Close()))
	assert.Empty(t, dump(disk, "d"), "no file stands for it")
}

func TestOps(t *testing.T) {
	disk := crashfs.New()
	h := hand{t, disk}
	h.mkdir("/d")
	f := h.open("/d/f", os.O_RDWR|os.O_CREATE|os.O_TRUNC)
	_, err := f.WriteAt([]byte("abc"), 7)
	require.NoError(t, err)
	require.NoError(t, f.Preallocate(100))
	require.NoError(t, f.Truncate(4))
	require.NoError(t, f.Sync())
	require.NoError(t, f.Close())
	h.open("d/f", os.O_RDWR|os.O_TRUNC)
	h.open("d/f", os.O_RDONLY)
	h.rename("d/f", "d/g")
	h.syncDir("d")
	h.syncDir(".")
	h.remove("d/g")
	require.Error(t, disk.Remove("d/g"))
	_, err = disk.OpenFile("x/y", os.O_CREATE, 0)
	require.Error(t, err)
	var got []string
	for _, op := range disk.Ops() {
		got = append(got, op.String())
	}
	assert.Equal(t, []string{
		"mkdir d", "create d/f", "write d/f 7+3", "preallocate d/f 100", "truncate d/f 4", "sync d/f", "truncate d/f 0",
		"rename d/f d/g", "syncdir d", "syncdir .", "remove d/g", "remove d/g: ENOENT", "create x/y: ENOENT",
	}, got)
	assert.Equal(t, len(got), disk.Count())
	assert.Equal(t, 2, disk.Count(crashfs.OpRemove))
	assert.Equal(t, 2, disk.Count(crashfs.OpOpen, crashfs.OpClose), "counted, not listed")
	assert.Empty(t, disk.Crash(crashfs.Everything).Ops())
}

// Whoever looks at the disk while others use it sees one instant of it.
func TestConcurrent(t *testing.T) {
	disk := crashfs.New()
	faulty := crashfs.Inject(disk, crashfs.MustSchedule("sync * #7 error EIO lie; write * #20+ short 3; disk 100000"))
	hand{t, disk}.dirs("d")
	var group sync.WaitGroup
	for _, name := range []string{"f", "g", "d/f", "d/g"} {
		group.Go(func() {
			for i := range int64(100) {
				f, err := faulty.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o644)
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = f.WriteAt([]byte("0123456789"), i*100)
				_, _ = f.ReadAt(make([]byte, 10), i*50)
				_ = errors.Join(f.Sync(), f.Truncate(i*40), f.Close(), faulty.SyncDir(path.Dir(name)))
				_ = errors.Join(faulty.Rename(name, name+"2"), faulty.Remove(name+"2"))
			}
		})
	}
	group.Go(func() {
		for i := range uint64(20) {
			after := disk.CrashSeed(i)
			assert.Equal(t, after.Fingerprint(), after.Crash(crashfs.SyncedOnly).Fingerprint())
			for _, state := range disk.CrashStates(5).All() {
				_ = state.String()
			}
			_, _ = disk.Crash(crashfs.Everything).Ops(), disk.Ops()
			faulty.SetDisk(int64(100_000 + i))
			_ = faulty.Count()
		}
	})
	group.Wait()
}
