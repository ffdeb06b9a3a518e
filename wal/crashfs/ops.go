package crashfs

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
)

// A Kind is one of the operations of wal.FS and wal.File.
type Kind string

// The kinds. Those up to OpSyncDir change the disk, or say when a change is durable: they are the ones that are logged
// and numbered, and the places where a crash makes a difference.
const (
	OpCreate      Kind = "create" // OpenFile with os.O_CREATE, whether the file was there or not
	OpWrite       Kind = "write"
	OpTruncate    Kind = "truncate" // also OpenFile with os.O_TRUNC and without os.O_CREATE
	OpSync        Kind = "sync"
	OpPreallocate Kind = "preallocate"
	OpMkdir       Kind = "mkdir"
	OpRename      Kind = "rename"
	OpRemove      Kind = "remove"
	OpSyncDir     Kind = "syncdir"

	OpOpen    Kind = "open" // any other OpenFile
	OpRead    Kind = "read"
	OpSize    Kind = "size"
	OpClose   Kind = "close"
	OpReadDir Kind = "readdir"
	OpLock    Kind = "lock"
)

var (
	changing = []Kind{OpCreate, OpWrite, OpTruncate, OpSync, OpPreallocate, OpMkdir, OpRename, OpRemove, OpSyncDir}
	asking   = []Kind{OpOpen, OpRead, OpSize, OpClose, OpReadDir, OpLock}
)

// Changes reports whether operations of this kind are logged and numbered.
func (k Kind) Changes() bool { return slices.Contains(changing, k) }

// An Op is one operation as it was called, and what came of it.
type Op struct {
	Kind Kind
	Path string // slashes, cleaned; relative to the root on an FS, as given on a Faulty. Of an open file: its name by now
	To   string // of a rename
	Off  int64  // of a write or read
	Size int64  // bytes of a write or read, new size of a truncate, room of a preallocate
	Err  error
}

// String is made for story scripts: "write a.jsonl 0+190", "truncate a.jsonl 120", "rename a b", "syncdir .", and
// "sync a.jsonl: EIO" for what failed.
func (o Op) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", o.Kind, o.Path)
	switch o.Kind {
	case OpRename:
		b.WriteString(" " + o.To)
	case OpWrite, OpRead:
		fmt.Fprintf(&b, " %d+%d", o.Off, o.Size)
	case OpTruncate, OpPreallocate:
		fmt.Fprintf(&b, " %d", o.Size)
	}
	if o.Err != nil {
		b.WriteString(": " + errorName(o.Err))
	}
	return b.String()
}

// touches reports whether a pattern of path.Match fits the last element of the path, or of either path of a rename.
func (o Op) touches(pattern string) bool {
	ok, _ := path.Match(pattern, path.Base(o.Path))
	if !ok && o.Kind == OpRename {
		ok, _ = path.Match(pattern, path.Base(o.To))
	}
	return ok
}

func openKind(flag int) Kind {
	switch {
	case flag&os.O_CREATE != 0:
		return OpCreate
	case flag&os.O_TRUNC != 0:
		return OpTruncate
	}
	return OpOpen
}

// pathError is what package os returns for an operation on one path.
func pathError(kind Kind, name string, err error) error {
	if err == nil {
		return nil
	}
	return &fs.PathError{Op: string(kind), Path: name, Err: err}
}

// errnos are the errors that a schedule can name, and that a log of operations prints by name.
var errnos = map[string]syscall.Errno{
	"EACCES": syscall.EACCES, "EAGAIN": syscall.EAGAIN, "EBADF": syscall.EBADF, "EBUSY": syscall.EBUSY,
	"EDQUOT": syscall.EDQUOT, "EEXIST": syscall.EEXIST, "EFBIG": syscall.EFBIG, "EINTR": syscall.EINTR,
	"EINVAL": syscall.EINVAL, "EIO": syscall.EIO, "EISDIR": syscall.EISDIR, "EMFILE": syscall.EMFILE,
	"ENFILE": syscall.ENFILE, "ENODEV": syscall.ENODEV, "ENOENT": syscall.ENOENT, "ENOMEM": syscall.ENOMEM,
	"ENOSPC": syscall.ENOSPC, "ENOSYS": syscall.ENOSYS, "ENOTDIR": syscall.ENOTDIR, "ENOTEMPTY": syscall.ENOTEMPTY,
	"EOPNOTSUPP": syscall.EOPNOTSUPP, "EPERM": syscall.EPERM, "EROFS": syscall.EROFS, "ETIMEDOUT": syscall.ETIMEDOUT,
}

func errorName(err error) string {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		for name, e := range errnos {
			if e == errno {
				return name
			}
		}
	}
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err.Error()
	}
	return err.Error()
}

// recorder counts every operation and keeps those that change the disk.
type recorder struct {
	mu     sync.Mutex // guards the fields below
	ops    []Op
	counts map[Kind]int
}

// add returns the operation's place in the log, or -1 when it is only counted.
func (r *recorder) add(op Op) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.counts == nil {
		r.counts = make(map[Kind]int)
	}
	r.counts[op.Kind]++
	if !op.Kind.Changes() {
		return -1
	}
	r.ops = append(r.ops, op)
	return len(r.ops) - 1
}

// result notes what came of the operation at place i.
func (r *recorder) result(i int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if i >= 0 && i < len(r.ops) {
		r.ops[i].Err = err
	}
}

func (r *recorder) list() []Op {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.ops)
}

func (r *recorder) count(kinds []Kind) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(kinds) == 0 {
		kinds = changing
	}
	for _, k := range kinds {
		n += r.counts[k]
	}
	return n
}

// slashed is a name as the log of operations shows it.
func slashed(name string) string { return path.Clean(filepath.ToSlash(cmp.Or(name, "."))) }
