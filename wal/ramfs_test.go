package wal_test

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

// ramFS is the plainest file system there can be: names and bytes. It knows nothing of syncs and crashes (crashfs does);
// it is for tests that put damage into files and open them some ten thousand times. The directory "log" is always there.
type ramFS struct {
	mu      sync.Mutex // guards the fields below
	files   map[string]*ramNode
	dirs    map[string]bool
	changes int // operations that changed something, or would have
	locked  bool
}

type ramNode struct{ bytes []byte }

// ram returns a file system whose directory "log" holds the image. The bytes are shared until they are written.
func ram(img image) *ramFS {
	r := &ramFS{files: make(map[string]*ramNode, len(img)), dirs: map[string]bool{"log": true}}
	for name, b := range img {
		r.files[path.Join("log", name)] = &ramNode{b}
		r.dirs[path.Dir(path.Join("log", name))] = true
	}
	return r
}

// image returns a copy of what the directory "log" holds.
func (r *ramFS) image() image {
	r.mu.Lock()
	defer r.mu.Unlock()
	img := make(image)
	for name, n := range r.files {
		if rel, ok := strings.CutPrefix(name, "log/"); ok {
			img[rel] = slices.Clone(n.bytes)
		}
	}
	return img
}

func (r *ramFS) changed() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.changes
}

func (r *ramFS) OpenFile(name string, flag int, _ fs.FileMode) (wal.File, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	name = filepath.ToSlash(filepath.Clean(name))
	n, ok := r.files[name]
	switch {
	case !ok && flag&os.O_CREATE == 0:
		return nil, &fs.PathError{Op: "open", Path: name, Err: syscall.ENOENT}
	case !ok || flag&os.O_TRUNC != 0:
		r.changes++
		if !ok {
			n = new(ramNode)
			r.files[name] = n
		}
		n.bytes = nil
	}
	return &ramFile{r, n}, nil
}

func (r *ramFS) ReadDir(name string) ([]fs.DirEntry, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	name = filepath.ToSlash(filepath.Clean(name))
	if !r.dirs[name] {
		return nil, &fs.PathError{Op: "open", Path: name, Err: syscall.ENOENT}
	}
	var list []fs.DirEntry
	for _, full := range slices.Sorted(maps.Keys(r.files)) {
		if path.Dir(full) == name {
			list = append(list, ramEntry{path.Base(full), false})
		}
	}
	for full := range r.dirs {
		if path.Dir(full) == name && full != name {
			list = append(list, ramEntry{path.Base(full), true})
		}
	}
	slices.SortFunc(list, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return list, nil
}

func (r *ramFS) Mkdir(name string, _ fs.FileMode) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.dirs[name] {
		return &fs.PathError{Op: "mkdir", Path: name, Err: syscall.EEXIST}
	}
	r.changes++
	r.dirs[name] = true
	return nil
}

func (r *ramFS) Rename(from, to string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.changes++
	b, ok := r.files[from]
	if !ok {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: syscall.ENOENT}
	}
	delete(r.files, from)
	r.files[to] = b
	return nil
}

func (r *ramFS) Remove(name string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.changes++
	if _, ok := r.files[name]; !ok {
		return &fs.PathError{Op: "remove", Path: name, Err: syscall.ENOENT}
	}
	delete(r.files, name)
	return nil
}

func (r *ramFS) SyncDir(string) error { return nil }

func (r *ramFS) Lock(dir string) (io.Closer, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.locked {
		return nil, &wal.LockedError{Dir: dir}
	}
	r.locked = true
	return ramLock{r}, nil
}

type ramLock struct{ r *ramFS }

func (l ramLock) Close() error {
	l.r.mu.Lock()
	defer l.r.mu.Unlock()
	l.r.locked = false
	return nil
}

type ramFile struct {
	r *ramFS
	n *ramNode
}

func (f *ramFile) ReadAt(p []byte, off int64) (int, error) {
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	if off >= int64(len(f.n.bytes)) {
		return 0, io.EOF
	}
	n := copy(p, f.n.bytes[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *ramFile) WriteAt(p []byte, off int64) (int, error) {
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	f.r.changes++
	end := max(int64(len(f.n.bytes)), off+int64(len(p)))
	b := make([]byte, end) // never in place: an image may share the old ones
	copy(b, f.n.bytes)
	copy(b[off:], p)
	f.n.bytes = b
	return len(p), nil
}

func (f *ramFile) Truncate(size int64) error {
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	f.r.changes++
	f.n.bytes = f.n.bytes[:size:size]
	return nil
}

func (f *ramFile) Size() (int64, error) {
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	return int64(len(f.n.bytes)), nil
}

func (f *ramFile) Sync() error             { return nil }
func (f *ramFile) Preallocate(int64) error { return nil }
func (f *ramFile) Close() error            { return nil }

type ramEntry struct {
	name string
	dir  bool
}

func (e ramEntry) Name() string               { return e.name }
func (e ramEntry) IsDir() bool                { return e.dir }
func (e ramEntry) Info() (fs.FileInfo, error) { return e, nil }
func (e ramEntry) Size() int64                { return 0 }
func (e ramEntry) ModTime() time.Time         { return time.Time{} }
func (e ramEntry) Sys() any                   { return nil }
func (e ramEntry) Type() fs.FileMode          { return e.Mode().Type() }
func (e ramEntry) Mode() fs.FileMode {
	if e.dir {
		return fs.ModeDir | 0o755
	}
	return 0o644
}
