//go:build unix

package wal

import (
	"errors"
	"os"
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
