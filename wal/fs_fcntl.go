//go:build aix || solaris

package wal

const canFlock = false
