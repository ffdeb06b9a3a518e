//go:build unix

package wal

import (
	"errors"
	"syscall"
)

// isNoSpace: the errors of a write that mean "no room", not "broken".
func isNoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG)
}
