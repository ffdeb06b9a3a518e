package crashfs

import (
	"errors"
	"io"
	"io/fs"
	"iter"
	"os"
	"slices"
	"syscall"
)

// fate is what is already decided about a change that is not part of its file's base.
type fate int

const (
	open   fate = iota // it may be lost, in part or as a whole
	forced             // a Sync put it on stable storage, but something before it in the list is doomed
	doomed             // the Sync that was to write it failed and lied: its bytes never reach the disk
)

// change is a write, or a truncate when data is nil.
type change struct {
	off  int64 // where the write begins; the truncate's new size
	data []byte
	dead []int64 // of a truncate: the sectors that it cuts bytes from
	fate fate
}

// end is where the file ends after a change, if it was not longer.
func (c change) end() int64 { return c.off + int64(len(c.data)) }

// parts yields the ranges of a change that land or are lost by themselves. The grain is SectorSize or PageSize.
func (c change) parts(grain int64) iter.Seq2[int64, int64] {
	return func(yield func(from, to int64) bool) {
		if c.data != nil {
			for from := c.off; from < c.end(); {
				to := min(c.end(), (from/grain+1)*grain)
				if !yield(from, to) {
					return
				}
				from = to
			}
			return
		}
		for i := 0; i < len(c.dead); {
			from := max(c.off, c.dead[i]*SectorSize)
			unit := c.dead[i] * SectorSize / grain
			for i++; i < len(c.dead) && c.dead[i]*SectorSize/grain == unit; i++ {
			}
			if !yield(from, (c.dead[i-1]+1)*SectorSize) {
				return
			}
		}
	}
}

// writeLocked is a write that everyone sees and no disk has.
func (f *FS) writeLocked(n *node, p []byte, off int64) {
	if len(p) == 0 {
		return
	}
	p = slices.Clone(p)
	n.cur.put(p, off)
	n.cur.size = max(n.cur.size, off+int64(len(p)))
	n.pending = append(n.pending, change{off: off, data: p})
}

func (f *FS) truncateLocked(n *node, size int64) {
	if size == n.cur.size {
		return
	}
	dead := n.cur.sectors(size)
	f.freed.add(n, false, &n.cur, roundUp(size))
	n.cur.resize(size)
	n.pending = append(n.pending, change{off: size, dead: dead})
}

// syncLocked makes base what everyone sees. Where a failed sync has lied, it cannot: the kernel took the bytes for
// written, so what is missing stays missing, and only what was written since is put on stable storage.
func (f *FS) syncLocked(n *node) {
	lied := slices.ContainsFunc(n.pending, func(c change) bool { return c.fate == doomed })
	f.freed.settle(n)
	if lied {
		decide(n.pending, forced)
		return
	}
	last := n.base.size / SectorSize * SectorSize
	if slices.ContainsFunc(n.pending, func(c change) bool { return c.data == nil }) {
		n.base = n.cur.clone()
	}
	for _, c := range n.pending {
		n.base.take(&n.cur, c.off, c.end())
	}
	if slices.ContainsFunc(n.pending, func(c change) bool { return c.data == nil || c.end() > last }) {
		n.ghost = nil // the sector was written anew, with zeros behind the end
	}
	n.pending = nil
}

// decide gives all open changes one fate.
func decide(changes []change, to fate) {
	for i := range changes {
		if changes[i].fate == open {
			changes[i].fate = to
		}
	}
}

// file is an open file.
type file struct {
	fs     *FS
	node   *node
	name   string
	flag   int
	closed bool // guarded by fs.mu
}

var errNegative = errors.New("negative offset")

const accessMode = os.O_RDONLY | os.O_WRONLY | os.O_RDWR

// check says what stands against an operation; forbidden is the access mode that does not allow it, or -1.
func (f *file) check(off int64, forbidden int) error {
	switch {
	case f.closed:
		return fs.ErrClosed
	case off < 0:
		return errNegative
	case f.flag&accessMode == forbidden:
		return syscall.EBADF
	}
	return nil
}

// ReadAt: see io.ReaderAt.
func (f *file) ReadAt(p []byte, off int64) (int, error) {
	f.fs.mu.RLock()
	defer f.fs.mu.RUnlock()
	f.fs.record.add(Op{Kind: OpRead, Path: f.node.path})
	if err := f.check(off, os.O_WRONLY); err != nil {
		return 0, pathError(OpRead, f.name, err)
	}
	n := int(max(0, min(int64(len(p)), f.node.cur.size-off)))
	f.node.cur.read(p[:n], off)
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt: see io.WriterAt.
func (f *file) WriteAt(p []byte, off int64) (int, error) {
	err := f.do(Op{Kind: OpWrite, Off: off, Size: int64(len(p))}, os.O_RDONLY, func() error {
		if off > MaxFileSize-int64(len(p)) {
			return syscall.EFBIG
		}
		f.fs.writeLocked(f.node, p, off)
		return nil
	})
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// Truncate sets the size.
func (f *file) Truncate(size int64) error {
	return f.do(Op{Kind: OpTruncate, Size: size}, -1, func() error {
		switch {
		case size < 0 || f.flag&accessMode == os.O_RDONLY:
			return syscall.EINVAL
		case size > MaxFileSize:
			return syscall.EFBIG
		}
		f.fs.truncateLocked(f.node, size)
		return nil
	})
}

// Sync puts the file's bytes and size on stable storage, and no directory entry.
func (f *file) Sync() error {
	return f.do(Op{Kind: OpSync}, -1, func() error {
		f.fs.syncLocked(f.node)
		return nil
	})
}

// Preallocate does nothing but note the call: room is made and taken by Faulty.
func (f *file) Preallocate(size int64) error {
	return f.do(Op{Kind: OpPreallocate, Size: size}, os.O_RDONLY, func() error { return nil })
}

// Size: see wal.File.
func (f *file) Size() (int64, error) {
	f.fs.mu.RLock()
	defer f.fs.mu.RUnlock()
	f.fs.record.add(Op{Kind: OpSize, Path: f.node.path})
	if err := f.check(0, -1); err != nil {
		return 0, pathError(OpSize, f.name, err)
	}
	return f.node.cur.size, nil
}

// Close closes the handle. It syncs nothing.
func (f *file) Close() error {
	return f.do(Op{Kind: OpClose}, -1, func() error {
		f.closed = true
		return nil
	})
}

// loseUnsynced is a failed sync that lies: Faulty calls it.
func (f *file) loseUnsynced() {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	decide(f.node.pending, doomed)
}

// do runs an operation under the lock and logs it.
func (f *file) do(op Op, forbidden int, run func() error) error {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	err := f.check(op.Off, forbidden)
	if err == nil {
		err = run()
	}
	op.Path, op.Err = f.node.path, err
	f.fs.record.add(op)
	return pathError(op.Kind, f.name, err)
}
