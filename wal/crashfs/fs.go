package crashfs

import (
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jobwal/jobwal/wal"
)

var _ wal.FS = (*FS)(nil)

// FS is a file system in memory that keeps apart what was written and what was synced. It is safe for concurrent use.
//
// Names are paths; "", "." and "/" are the root, which always exists, and a leading slash makes no difference. Modes
// are kept and not enforced.
type FS struct {
	record recorder

	mu     sync.RWMutex // guards the fields below and all of every node; no other lock but record's is taken under it
	root   *node
	ops    []*entryOp // changes of directories that are not on stable storage, in order
	freed  freeList   // what blocks that are free again still hold
	locks  map[*node]bool
	lastID int
}

// node is a file or a directory. Its name is in the directory.
type node struct {
	id   int // in order of creation, so that one seed gives one result
	perm fs.FileMode
	path string // for the log of operations: its name, or the last one that it had

	// Of a directory; entries is nil for a file.
	entries map[string]*node // as everyone sees them
	synced  map[string]*node // as they are on stable storage
	made    *entryOp         // the mkdir, while it is not on stable storage

	// Of a file.
	cur     content  // as everyone sees it
	base    content  // as the last successful Sync left it
	pending []change // from base to cur, in order
	ghost   []byte   // what the disk holds behind the end of base, in its last sector; nothing that anyone may rely on
}

func (n *node) isDir() bool { return n.entries != nil }

// New returns an empty file system.
func New() *FS {
	f := &FS{locks: make(map[*node]bool)}
	f.root = f.newNode(fs.ModeDir | 0o755)
	return f
}

func (f *FS) newNode(perm fs.FileMode) *node {
	f.lastID++
	n := &node{id: f.lastID, perm: perm}
	if perm.IsDir() {
		n.entries, n.synced = make(map[string]*node), make(map[string]*node)
	}
	return n
}

// Ops returns the operations so far that change the disk or put a change on stable storage, those that failed too.
func (f *FS) Ops() []Op { return f.record.list() }

// Count returns how many operations of the given kinds there were; of all that Ops lists, when no kind is given.
func (f *FS) Count(kinds ...Kind) int { return f.record.count(kinds) }

// OpenFile opens a file. O_RDONLY, O_WRONLY, O_RDWR, O_CREATE, O_EXCL and O_TRUNC are known; O_APPEND is refused, since
// WriteAt does not go with it.
func (f *FS) OpenFile(name string, flag int, perm fs.FileMode) (wal.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, err := f.openLocked(name, flag, perm)
	f.record.add(Op{Kind: openKind(flag), Path: clean(name), Err: err})
	if err != nil {
		return nil, pathError(OpOpen, name, err)
	}
	return &file{fs: f, node: n, name: name, flag: flag}, nil
}

func (f *FS) openLocked(name string, flag int, perm fs.FileMode) (*node, error) {
	if flag&os.O_APPEND != 0 {
		return nil, syscall.EINVAL
	}
	dir, base, err := f.parentLocked(name)
	if err != nil {
		return nil, err
	}
	n := dir.entries[base]
	switch {
	case n == nil && base != "." && flag&os.O_CREATE != 0:
		n = f.newNode(perm.Perm())
		dir.entries[base] = n
		f.addLocked(&entryOp{dir: dir, name: base, add: n})
	case n == nil && base != ".":
		return nil, syscall.ENOENT
	case flag&os.O_CREATE != 0 && flag&os.O_EXCL != 0:
		return nil, syscall.EEXIST
	case n == nil || n.isDir():
		return nil, syscall.EISDIR
	case flag&os.O_TRUNC != 0:
		f.truncateLocked(n, 0)
	}
	n.path = clean(name)
	return n, nil
}

// ReadDir lists a directory, sorted by name.
func (f *FS) ReadDir(name string) ([]fs.DirEntry, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	f.record.add(Op{Kind: OpReadDir, Path: clean(name)})
	dir, err := f.dirLocked(name)
	if err != nil {
		return nil, pathError(OpOpen, name, err)
	}
	var list []fs.DirEntry
	for _, base := range slices.Sorted(maps.Keys(dir.entries)) {
		n := dir.entries[base]
		list = append(list, fs.FileInfoToDirEntry(info{base, n.cur.size, n.perm}))
	}
	return list, nil
}

// Mkdir makes one directory.
func (f *FS) Mkdir(name string, perm fs.FileMode) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := f.mkdirLocked(name, perm)
	f.record.add(Op{Kind: OpMkdir, Path: clean(name), Err: err})
	return pathError(OpMkdir, name, err)
}

func (f *FS) mkdirLocked(name string, perm fs.FileMode) error {
	dir, base, err := f.parentLocked(name)
	if err != nil {
		return err
	}
	if base == "." || dir.entries[base] != nil {
		return syscall.EEXIST
	}
	n := f.newNode(fs.ModeDir | perm.Perm())
	dir.entries[base] = n
	n.made = &entryOp{dir: dir, name: base, add: n}
	f.addLocked(n.made)
	return nil
}

// Rename gives a file or directory another name. A file of that name is replaced, a directory is not, as with package
// os.
func (f *FS) Rename(oldname, newname string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := f.renameLocked(oldname, newname)
	f.record.add(Op{Kind: OpRename, Path: clean(oldname), To: clean(newname), Err: err})
	if err != nil {
		return &os.LinkError{Op: string(OpRename), Old: oldname, New: newname, Err: err}
	}
	return nil
}

func (f *FS) renameLocked(oldname, newname string) error {
	from, old, err := f.parentLocked(oldname)
	if err != nil {
		return err
	}
	to, name, err := f.parentLocked(newname)
	if err != nil {
		return err
	}
	n, target := from.entries[old], to.entries[name]
	switch {
	case old == "." || name == ".":
		return syscall.EBUSY
	case n == nil:
		return syscall.ENOENT
	case target != nil && target.isDir():
		return syscall.EEXIST
	case n == target:
		return nil
	case n.isDir() && strings.HasPrefix(clean(newname)+"/", clean(oldname)+"/"):
		return syscall.EINVAL
	case n.isDir() && target != nil:
		return syscall.ENOTDIR
	}
	if target != nil {
		f.freed.add(target, true, &target.cur, 0)
	}
	delete(from.entries, old)
	to.entries[name] = n
	n.moved(clean(newname))
	f.addLocked(&entryOp{dir: from, name: old, toDir: to, toName: name, add: n})
	return nil
}

// moved: handles that are open below follow the rename.
func (n *node) moved(to string) {
	n.path = to
	for base, child := range n.entries {
		child.moved(path.Join(to, base))
	}
}

// Remove removes a file or an empty directory. Handles that are open on it go on working.
func (f *FS) Remove(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	err := f.removeLocked(name)
	f.record.add(Op{Kind: OpRemove, Path: clean(name), Err: err})
	return pathError(OpRemove, name, err)
}

func (f *FS) removeLocked(name string) error {
	dir, base, err := f.parentLocked(name)
	if err != nil {
		return err
	}
	n := dir.entries[base]
	switch {
	case base == ".":
		return syscall.EBUSY
	case n == nil:
		return syscall.ENOENT
	case len(n.entries) > 0:
		return syscall.ENOTEMPTY
	}
	f.freed.add(n, true, &n.cur, 0)
	delete(dir.entries, base)
	f.addLocked(&entryOp{dir: dir, name: base, gone: n})
	return nil
}

// SyncDir puts the entries of a directory on stable storage. It does so for those entries alone: not for the
// directory's own entry in its parent, and not for a byte of any file.
func (f *FS) SyncDir(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	dir, err := f.dirLocked(name)
	if err == nil {
		f.commitLocked(dir)
	}
	f.record.add(Op{Kind: OpSyncDir, Path: clean(name), Err: err})
	return pathError(OpSyncDir, name, err)
}

// Lock takes the one lock of a directory. No file stands for it, and no crash leaves it behind.
func (f *FS) Lock(name string) (io.Closer, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.record.add(Op{Kind: OpLock, Path: clean(name)})
	dir, err := f.dirLocked(name)
	if err != nil {
		return nil, pathError(OpLock, name, err)
	}
	if f.locks[dir] {
		return nil, &wal.LockedError{Dir: name, PID: os.Getpid()}
	}
	f.locks[dir] = true
	return &unlock{fs: f, dir: dir}, nil
}

type unlock struct {
	fs   *FS
	dir  *node
	once sync.Once
}

func (u *unlock) Close() error {
	u.once.Do(func() {
		u.fs.mu.Lock()
		defer u.fs.mu.Unlock()
		delete(u.fs.locks, u.dir)
	})
	return nil
}

// clean is a name without its leading slash; "." is the root.
func clean(name string) string {
	if name = path.Clean("/" + filepath.ToSlash(name)); name == "/" {
		return "."
	}
	return name[1:]
}

// parentLocked finds the directory that a name is in, and its last element: "." for the root, which is in itself.
func (f *FS) parentLocked(name string) (*node, string, error) {
	dir, base := path.Split(clean(name))
	n, err := f.dirLocked(dir)
	return n, base, err
}

func (f *FS) dirLocked(name string) (*node, error) {
	n := f.root
	for element := range strings.SplitSeq(clean(name), "/") {
		if element == "." {
			continue
		}
		if n = n.entries[element]; n == nil {
			return nil, syscall.ENOENT
		}
		if !n.isDir() {
			return nil, syscall.ENOTDIR
		}
	}
	return n, nil
}

// info is what Info of a directory entry returns. Files have no times here.
type info struct {
	name string
	size int64
	mode fs.FileMode
}

func (i info) Name() string       { return i.name }
func (i info) Size() int64        { return i.size }
func (i info) Mode() fs.FileMode  { return i.mode }
func (i info) ModTime() time.Time { return time.Time{} }
func (i info) IsDir() bool        { return i.mode.IsDir() }
func (i info) Sys() any           { return nil }
