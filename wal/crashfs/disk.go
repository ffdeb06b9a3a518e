package crashfs

import (
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"
	"syscall"

	"github.com/jobwal/jobwal/wal"
)

// disk is the byte budget. A file takes its size, or what was preallocated for it; directories and names take nothing.
// What was there before counts as soon as an operation comes near it: all files of a directory, at the first of them.
type disk struct {
	base wal.FS

	mu    sync.Mutex // guards the fields below and every room; never held over an operation of base
	limit int64      // below 0: none
	used  int64
	rooms map[string]*room
	dirs  map[string]bool // those whose files were counted
}

// room is one file, and what it takes.
type room struct {
	path  string // its name, or the last one that it had
	bytes int64
	gone  bool // removed: what an open handle still does to it costs nothing
}

func (d *disk) init(base wal.FS) {
	d.base, d.limit = base, -1
	d.rooms, d.dirs = make(map[string]*room), make(map[string]bool)
}

func (d *disk) set(limit int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.limit = limit
}

// meet counts the files of the directory that name is in.
func (d *disk) meet(name string) {
	dir := path.Dir(slashed(name))
	d.mu.Lock()
	met := d.dirs[dir]
	d.dirs[dir] = true
	d.mu.Unlock()
	if met {
		return
	}
	list, err := d.base.ReadDir(dir)
	if err != nil {
		return // nothing is in a directory that cannot be read; what is opened there is counted then
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, entry := range list {
		at := path.Join(dir, entry.Name())
		if info, err := entry.Info(); err == nil && !entry.IsDir() && d.rooms[at] == nil {
			d.rooms[at] = &room{path: at, bytes: info.Size()}
			d.used += info.Size()
		}
	}
}

// open opens a file of base and finds its room.
func (d *disk) open(name string, flag int, perm fs.FileMode) (wal.File, *room, error) {
	d.meet(name)
	f, err := d.base.OpenFile(name, flag, perm)
	if err != nil {
		return nil, nil, err
	}
	size, err := f.Size()
	if err != nil {
		return nil, nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	at := slashed(name)
	if d.rooms[at] == nil {
		d.rooms[at] = &room{path: at}
	}
	if r := d.rooms[at]; flag&os.O_TRUNC != 0 || r.bytes < size {
		d.setLocked(r, size)
	}
	return f, d.rooms[at], nil
}

// name is what a file is called, after renames.
func (d *disk) name(r *room) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return r.path
}

func (d *disk) setLocked(r *room, bytes int64) {
	if !r.gone {
		d.used += bytes - r.bytes
	}
	r.bytes = bytes
}

// grow makes room up to an offset, or as far as there is any, and returns how far, and what was before.
func (d *disk) grow(r *room, to int64) (end, before int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	before, end = r.bytes, to
	if d.limit >= 0 && !r.gone {
		end = min(to, before+max(0, d.limit-d.used))
	}
	d.setLocked(r, max(before, end))
	return end, before
}

func (d *disk) resize(r *room, bytes int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.setLocked(r, bytes)
}

// whole makes room up to an offset for a call, or refuses it.
func (d *disk) whole(r *room, to int64, call func() error) error {
	end, before := d.grow(r, to)
	err := error(syscall.ENOSPC)
	if end == to {
		err = call()
	}
	if err != nil {
		d.resize(r, before)
	}
	return err
}

// write makes room for as much of p as there is, and writes that. A disk that is full takes what it can.
func (d *disk) write(f wal.File, r *room, p []byte, off int64) (int, error) {
	if len(p) == 0 || off < 0 {
		return f.WriteAt(p, off)
	}
	end, before := d.grow(r, off+int64(len(p)))
	if end <= off {
		d.resize(r, before)
		return 0, syscall.ENOSPC
	}
	n, err := f.WriteAt(p[:end-off], off)
	if n < len(p) {
		d.resize(r, max(before, off+int64(n)))
	}
	if err == nil && n < len(p) {
		err = syscall.ENOSPC
	}
	return n, err
}

// drop does a remove, or a rename over a file, and gives back the room of what was there.
func (d *disk) drop(name string, call func() error) error {
	d.meet(name)
	if err := call(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if r := d.rooms[slashed(name)]; r != nil {
		d.setLocked(r, 0)
		r.gone = true
		delete(d.rooms, slashed(name))
	}
	return nil
}

// rename moves rooms to their new names: that of a file, or those of all files in a directory.
func (d *disk) rename(oldname, newname string) error {
	d.meet(oldname)
	if err := d.drop(newname, func() error { return d.base.Rename(oldname, newname) }); err != nil {
		return err
	}
	oldname, newname = slashed(oldname), slashed(newname)
	d.mu.Lock()
	defer d.mu.Unlock()
	for at, r := range d.rooms {
		if at == oldname || strings.HasPrefix(at, oldname+"/") {
			delete(d.rooms, at)
			r.path = newname + at[len(oldname):]
			d.rooms[r.path] = r
		}
	}
	return nil
}
