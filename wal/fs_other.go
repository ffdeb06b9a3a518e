//go:build !unix

package wal

const canLockDirs = false

func syncDir(string) error { return nil }

// alive: no command inherits a lock there, so whoever has it lives.
func alive(int) bool { return true }
