//go:build unix

package wal

import (
	"errors"
	"os"
	"syscall"
)

// flock(2) takes directories. Solaris and AIX lock with fcntl, which wants a file open for writing.
const canLockDirs = canFlock

func syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// alive tells whether there is a process of that number; where it can't be told: true.
func alive(pid int) bool { return !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) }
