package crashfs

import (
	"syscall"

	"github.com/jobwal/jobwal/wal"
)

// faultyFile is an open file of a Faulty.
type faultyFile struct {
	fs   *Faulty
	base wal.File
	room *room
}

func (f *faultyFile) op(kind Kind) Op { return Op{Kind: kind, Path: f.fs.disk.name(f.room)} }

// ReadAt reads, and turns a bit if that is the fault.
func (f *faultyFile) ReadAt(p []byte, off int64) (n int, err error) {
	op := f.op(OpRead)
	op.Off, op.Size = off, int64(len(p))
	err = f.fs.do(op, func(fault Fault) error {
		n, err = f.base.ReadAt(p, off)
		if at := fault.N/8 - off; fault.Do == Flip && at >= 0 && at < int64(n) {
			p[at] ^= 1 << (fault.N % 8)
		}
		return err
	})
	return n, err
}

// WriteAt writes as much as the fault and the disk allow.
func (f *faultyFile) WriteAt(p []byte, off int64) (n int, err error) {
	op := f.op(OpWrite)
	op.Off, op.Size = off, int64(len(p))
	err = f.fs.do(op, func(fault Fault) error {
		if fault.Do == Short {
			p = p[:min(fault.N, int64(len(p)))]
		}
		n, err = f.fs.disk.write(f.base, f.room, p, off)
		if fault.Do == Short && fault.Err != 0 && err == nil {
			err = fault.Err
		}
		return wrapped(op, err)
	})
	return n, err
}

// Truncate sets the size, within the disk.
func (f *faultyFile) Truncate(size int64) error {
	op := f.op(OpTruncate)
	op.Size = size
	return f.fs.do(op, func(Fault) error {
		call := func() error { return f.base.Truncate(size) }
		if err := f.fs.disk.whole(f.room, size, call); err != nil {
			return wrapped(op, err)
		}
		f.fs.disk.resize(f.room, size)
		return nil
	})
}

// Preallocate takes room on the disk.
func (f *faultyFile) Preallocate(size int64) error {
	op := f.op(OpPreallocate)
	op.Size = size
	return f.fs.do(op, func(Fault) error {
		return wrapped(op, f.fs.disk.whole(f.room, size, func() error { return f.base.Preallocate(size) }))
	})
}

// Sync syncs, or fails, with or without a lie.
func (f *faultyFile) Sync() error {
	op := f.op(OpSync)
	return f.fs.do(op, func(fault Fault) error {
		if fault.Do != Error {
			return f.base.Sync()
		}
		if fault.Lie {
			f.loseUnsynced()
		}
		return pathError(OpSync, op.Path, fault.Err)
	})
}

// A file that can lie about a failed sync is one of FS, or of a Faulty around one. With others the sync just fails.
func (f *faultyFile) loseUnsynced() {
	if l, ok := f.base.(interface{ loseUnsynced() }); ok {
		l.loseUnsynced()
	}
}

// Size: see wal.File.
func (f *faultyFile) Size() (size int64, err error) {
	err = f.fs.do(f.op(OpSize), func(Fault) error {
		size, err = f.base.Size()
		return err
	})
	return size, err
}

// Close closes the handle, also when it returns the error of a fault or of the crash: nothing is left open behind.
func (f *faultyFile) Close() error {
	ran, op := false, f.op(OpClose)
	err := f.fs.do(op, func(fault Fault) error {
		ran = true
		err := f.base.Close()
		if fault.Do == Error {
			err = pathError(OpClose, op.Path, fault.Err)
		}
		return err
	})
	if !ran {
		_ = f.base.Close()
	}
	return err
}

// wrapped makes a bare error number, which is a fault of ours, what package os returns.
func wrapped(op Op, err error) error {
	if errno, ok := err.(syscall.Errno); ok {
		return pathError(op.Kind, op.Path, errno)
	}
	return err
}
