package wal

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// syncFile leaves out of fsync what reading the data back does not need: the file's times.
func syncFile(f *os.File) error {
	return onFile(f, "fdatasync", unix.Fdatasync)
}

// preallocate reserves blocks; file systems that cannot are left alone.
func preallocate(f *os.File, size int64) error {
	if size <= 0 {
		return nil
	}
	err := onFile(f, "fallocate", func(fd int) error {
		return unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, 0, size)
	})
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return nil
	}
	return err
}

// onFile runs a system call that may be interrupted.
func onFile(f *os.File, op string, call func(fd int) error) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	err = conn.Control(func(fd uintptr) {
		for {
			if result = call(int(fd)); !errors.Is(result, unix.EINTR) {
				return
			}
		}
	})
	if err == nil {
		err = result
	}
	if err != nil {
		return &os.PathError{Op: op, Path: f.Name(), Err: err}
	}
	return nil
}
