//go:build !unix

package wal

import (
	"errors"
	"syscall"
)

// isNoSpace: the errors of a write that mean "no room", not "broken". The two numbers are Windows' own,
// ERROR_DISK_FULL and ERROR_HANDLE_DISK_FULL.
func isNoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.Errno(112)) || errors.Is(err, syscall.Errno(39))
}
