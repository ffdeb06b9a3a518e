package wal_test

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/jobwal/jobwal/wal"
)

func wantLocked(t *testing.T, dir string, pid int) {
	t.Helper()
	_, err := wal.Open(dir, wal.Options{})
	var locked *wal.LockedError
	if !errors.As(err, &locked) || !errors.Is(err, wal.ErrLocked) || locked.PID != pid || locked.Dir != dir {
		t.Errorf("%#v, want locked by %d", err, pid)
	}
}

func dirOpen(t *testing.T, dir string, opts wal.Options) *wal.Log {
	t.Helper()
	l, err := wal.Open(dir, opts)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// F13, W5: one writer per directory.
func TestF13_lock_in_one_process(t *testing.T) {
	dir := t.TempDir()
	l := dirOpen(t, dir, wal.Options{})
	mustAppend(t, l, event(1, 0, 1, 0))
	before := files(t, dir)
	wantLocked(t, dir, os.Getpid())
	if files(t, dir) != before {
		t.Error("the second opener changed something")
	}
	mustAppend(t, l, event(1, 0, 1, 0))
	r := dirOpen(t, dir, wal.Options{ReadOnly: true})
	mustClose(t, r)
	wantLocked(t, dir, os.Getpid()) // a reader neither takes the lock nor frees it
	mustClose(t, l)
	l = dirOpen(t, dir, wal.Options{})
	if l.LastSeq() != 2 {
		t.Error(l.LastSeq())
	}
	mustClose(t, l)
	mustClose(t, l)
}

func TestF13_lock_in_another_process(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := startChild(t, "hold", dir)
	wantLocked(t, dir, p.cmd.Process.Pid)
	r := dirOpen(t, dir, wal.Options{ReadOnly: true})
	mustClose(t, r)
	p.kill()
	l := dirOpen(t, dir, wal.Options{}) // its LOCK is still there, and harmless
	if l.Epoch() != 2 {
		t.Error(l.Epoch())
	}
	mustClose(t, l)
	p = startChild(t, "hold", dir)
	p.finish(t)
	l = dirOpen(t, dir, wal.Options{})
	if !l.Report().Clean || l.Epoch() != 4 {
		t.Errorf("%+v", l.Report())
	}
	mustClose(t, l)
}

func TestF13_stale_lock_file(t *testing.T) {
	for _, content := range []string{"", "1\n", "-5", "no pid", strings.Repeat("9", 1000)} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "LOCK"), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		l := dirOpen(t, dir, wal.Options{})
		wantLocked(t, dir, os.Getpid())
		mustClose(t, l)
	}
}

// F27: LOCK deleted under a running writer.
func TestF27_deleted_lock_file(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("a file that is open cannot be removed there")
	}
	dir := t.TempDir()
	p := startChild(t, "hold", dir)
	if err := os.Remove(filepath.Join(dir, "LOCK")); err != nil {
		t.Fatal(err)
	}
	wantLocked(t, dir, 0)
	if err := os.WriteFile(filepath.Join(dir, "LOCK"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	wantLocked(t, dir, 0)
	p.finish(t)
	mustClose(t, dirOpen(t, dir, wal.Options{}))
}

// A refused Open gives the lock back.
func TestF13_refused_open_holds_no_lock(t *testing.T) {
	dir := t.TempDir()
	l := dirOpen(t, dir, wal.Options{})
	mustAppend(t, l, event(1, 0, 1, 0))
	mustClose(t, l)
	for range 2 {
		_, err := wal.Open(dir, wal.Options{MinSeq: 2})
		wantError(t, err, []error{wal.ErrCorrupt})
	}
	mustClose(t, dirOpen(t, dir, wal.Options{MinSeq: 1}))
}

// files lists a directory with its sizes.
func files(t *testing.T, dir string) string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && !d.IsDir() {
			b, readErr := os.ReadFile(path)
			list, err = append(list, path+" "+info.ModTime().String()+" "+string(b)), readErr
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(list, "\n")
}
