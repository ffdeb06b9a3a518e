//go:build unix && !aix && !solaris

package wal

const canFlock = true
