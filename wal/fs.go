package wal

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/gofrs/flock"
)

// FS is every operation of the log that touches the disk. The default is the operating system's; tests put another in
// its place to see what the log does when an operation fails, or when power is lost between two of them.
//
// Names are paths as package filepath makes them, under the directory that was given to [Open]. Errors carry the
// operating system's own (errors.Is with fs.ErrNotExist, syscall.ENOSPC and the like works). An FS is used by several
// goroutines at once.
type FS interface {
	// OpenFile opens a file as os.OpenFile does. The log uses os.O_RDONLY, os.O_RDWR, os.O_CREATE and os.O_TRUNC.
	OpenFile(name string, flag int, perm fs.FileMode) (File, error)
	// ReadDir lists a directory, sorted by name.
	ReadDir(name string) ([]fs.DirEntry, error)
	// Mkdir makes one directory. It is on stable storage after SyncDir of its parent.
	Mkdir(name string, perm fs.FileMode) error
	// Rename replaces newname, if it is there, in one step: after a crash either the old or the new file has the name.
	// It is on stable storage after SyncDir.
	Rename(oldname, newname string) error
	// Remove removes a file. It is on stable storage after SyncDir.
	Remove(name string) error
	// SyncDir puts the entries of a directory (creates, renames, removes) on stable storage.
	SyncDir(name string) error
	// Lock takes the one writer's lock of a directory and holds it until the Closer is closed or the process is dead,
	// whichever comes first. Where another holds it, the error is a *LockedError, without waiting; a process that is dead
	// and has not let go of it yet is waited for.
	//
	// If the Closer has a method Held() error, the log calls it before and after it makes a segment, before it drops any,
	// and before it makes a checkpoint or gives it its name. An error means that the directory's name has come to mean
	// another directory: nothing is dropped, and a log that needs another segment has failed.
	Lock(dir string) (io.Closer, error)
}

// File is one open file. WriteAt and Truncate come from one goroutine at a time; ReadAt may run beside them.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Size() (int64, error)
	Truncate(size int64) error
	// Sync puts the file's bytes, and its size, on stable storage. When it fails, nothing is known of any byte written
	// since the last Sync that succeeded, and another Sync that succeeds proves nothing.
	Sync() error
	// Preallocate asks that the file be given room for size bytes without changing its size or its content, so that a
	// full disk shows before the first byte is written. It may do nothing.
	Preallocate(size int64) error
}

// OS is the operating system's file system. Sync means fdatasync on Linux, fcntl(F_FULLFSYNC) on Darwin,
// FlushFileBuffers on Windows and fsync elsewhere. SyncDir does nothing on Windows, which has no such call and
// journals its directories.
var OS FS = osFS{}

// lockName is the advisory lock's file. It holds the pid of whoever took it last.
const lockName = "LOCK"

type osFS struct{}

type osFile struct{ *os.File }

func (osFS) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	if err := regular(name, flag&os.O_CREATE != 0); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

// regular refuses what is there and is neither file nor directory: opening a FIFO would wait for its other end, for ever,
// and a device has no size. What is to be made must not be a link either, which would have another file, anywhere,
// written over.
func regular(name string, create bool) error {
	stat := os.Stat
	if create {
		stat = os.Lstat
	}
	if info, err := stat(name); err == nil && !info.Mode().IsRegular() && !info.IsDir() {
		return &os.PathError{Op: "open", Path: name, Err: errNotRegular}
	}
	return nil // what is not there, or cannot be looked at, opening it will tell
}

var errNotRegular = errors.New("not a regular file")

func (osFS) ReadDir(name string) ([]fs.DirEntry, error) { return os.ReadDir(name) }
func (osFS) Mkdir(name string, perm fs.FileMode) error  { return os.Mkdir(name, perm) }
func (osFS) Rename(oldname, newname string) error       { return os.Rename(oldname, newname) }
func (osFS) Remove(name string) error                   { return os.Remove(name) }
func (osFS) SyncDir(name string) error                  { return syncDir(name) }
func (f osFile) Sync() error                            { return syncFile(f.File) }
func (f osFile) Preallocate(size int64) error           { return preallocate(f.File, size) }
func (f osFile) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// lockPatience is how long Lock waits for the lock of a process that is dead.
const lockPatience = 2 * time.Second

// Lock is tried again while the one that LOCK names is dead. crash: a process that is killed while it starts a command leaves
// a child between fork and exec, and what it had open, locks too, is open there until exec. With many commands and a busy
// machine that is one kill in four.
func (osFS) Lock(dir string) (io.Closer, error) {
	held, err := lock(dir)
	for end := time.Now().Add(lockPatience); ofTheDead(err) && time.Now().Before(end); held, err = lock(dir) {
		time.Sleep(time.Millisecond)
	}
	if err != nil {
		return nil, err
	}
	return held, nil
}

func ofTheDead(err error) bool {
	var locked *LockedError
	return errors.As(err, &locked) && locked.PID != 0 && !alive(locked.PID)
}

// lock locks the directory itself where the system can (on Unix), so that deleting LOCK under a running writer lets no
// second one in, and the file LOCK everywhere, which says who holds it.
func lock(dir string) (*locks, error) {
	path := filepath.Join(dir, lockName)
	held := locks{dir: dir}
	if canLockDirs {
		if err := held.take(flock.New(dir, flock.SetFlag(os.O_RDONLY))); err != nil {
			return nil, err
		}
	}
	err := regular(path, true)
	if err == nil {
		err = held.take(flock.New(path, flock.SetPermissions(0o644)))
	}
	if err != nil {
		return nil, errors.Join(err, held.Close())
	}
	// The pid is for people; a LOCK that cannot be written locks all the same.
	_ = os.WriteFile(path, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o644)
	return &held, nil
}

// locks is what Lock took, in order; where directories can be locked, the directory first.
type locks struct {
	dir   string
	taken []*flock.Flock
}

func (l *locks) take(f *flock.Flock) error {
	ok, err := f.TryLock()
	if err != nil {
		return fmt.Errorf("lock %s: %w", f.Path(), err)
	}
	if !ok {
		return &LockedError{Dir: l.dir, PID: lockHolder(l.dir)}
	}
	l.taken = append(l.taken, f)
	return nil
}

// Held tells whether the name still means the directory that is locked. One that was moved away, with another in its
// place, has two names to it: the open segment is here, what is made next would be there, in what may be another's log.
func (l *locks) Held() error {
	if !canLockDirs {
		return nil // nor can a directory with open files be moved, on Windows
	}
	locked, err := l.taken[0].Stat()
	if err != nil {
		return err
	}
	named, err := os.Stat(l.dir)
	if err != nil {
		return err
	}
	if !os.SameFile(locked, named) {
		return fmt.Errorf("wal: %s is not the directory that was opened: that one was moved or removed", l.dir)
	}
	return nil
}

func (l *locks) Close() error {
	var errs []error
	for i := len(l.taken) - 1; i >= 0; i-- {
		errs = append(errs, l.taken[i].Unlock())
	}
	l.taken = nil
	return errors.Join(errs...)
}

// lockHolder reads the pid in LOCK; 0 when it cannot be had.
func lockHolder(dir string) int {
	f, err := OS.OpenFile(filepath.Join(dir, lockName), os.O_RDONLY, 0)
	if err != nil {
		return 0
	}
	defer f.Close() // only read
	var digits [32]byte
	n, _ := f.ReadAt(digits[:], 0)
	pid, err := strconv.Atoi(strings.TrimSpace(string(digits[:n])))
	if err != nil || pid < 0 {
		return 0
	}
	return pid
}
