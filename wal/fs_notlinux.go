//go:build !linux

package wal

import "os"

// syncFile: os.File.Sync is fcntl(F_FULLFSYNC) on Darwin, FlushFileBuffers on Windows, fsync elsewhere.
func syncFile(f *os.File) error { return f.Sync() }

func preallocate(*os.File, int64) error { return nil }
