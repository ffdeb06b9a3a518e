package wal

import (
	"context"
	"errors"
	"io/fs"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// fullOnce is a disk without room for one write: the nth to files that were opened through it.
type fullOnce struct {
	FS
	nth *int
}

type fullFile struct {
	File
	nth *int
}

func (f fullOnce) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	file, err := f.FS.OpenFile(name, flag, perm)
	return fullFile{file, f.nth}, err
}

func (f fullFile) WriteAt(p []byte, off int64) (int, error) {
	if *f.nth--; *f.nth == 0 {
		return 0, syscall.ENOSPC
	}
	return f.File.WriteAt(p, off)
}

// What was found: once something had been taken back, the log woke every 5 ms for ever, to find that no mark may go
// behind what is final.
func TestIdle_sleeps_after_a_take_back(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nth := 3 // the header, one event, and then the disk is full
		l, err := Open(t.TempDir(), Options{FS: fullOnce{OS, &nth}})
		if err != nil {
			t.Fatal(err)
		}
		e := Event{Type: JobStarted, JobID: "a"}
		if _, err := l.Append(context.Background(), e); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Append(context.Background(), e); !errors.Is(err, ErrNoSpace) {
			t.Fatal(err)
		}
		time.Sleep(10 * idleAfter)
		synctest.Wait()
		if l.idle.Stop() {
			t.Error("the timer is running again")
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
}
