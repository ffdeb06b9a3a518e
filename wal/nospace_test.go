package wal_test

import (
	"errors"
	"syscall"
	"testing"
	"testing/synctest"

	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// F27: a directory takes room, too, and so does the file LOCK. Found on a full ext4, which said ENOSPC and no more.
func TestF27_no_space_for_a_directory_or_the_lock(t *testing.T) {
	disks := map[string]func(t *testing.T) *crashfs.FS{
		"mkdir log error ENOSPC":        func(*testing.T) *crashfs.FS { return crashfs.New() },
		"lock log error ENOSPC":         func(*testing.T) *crashfs.FS { return crashfs.New() },
		"mkdir quarantine error ENOSPC": func(t *testing.T) *crashfs.FS { return workloads[9-1].enter(t, 0).base },
	}
	for schedule, disk := range disks {
		t.Run(schedule, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := enter(t, disk(t), schedule, wal.Options{})
				_, err := wal.Open("log", w.opts)
				wantError(t, err, []error{wal.ErrNoSpace, syscall.ENOSPC}, wal.ErrCorrupt, wal.ErrFailed)
				var full *wal.NoSpaceError
				if !errors.As(err, &full) || full.Need <= 0 || full.Path == "" {
					t.Errorf("%#v", err)
				}
				mustClose(t, enter(t, w.base, "", wal.Options{}).again())
			})
		})
	}
}
