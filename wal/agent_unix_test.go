//go:build unix && !aix && !solaris

package wal_test

import "golang.org/x/sys/unix"

func init() {
	leakDescriptors = func() {
		for fd := 3; fd < 64; fd++ {
			_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETFD, 0) // most of them are not open
		}
	}
}
