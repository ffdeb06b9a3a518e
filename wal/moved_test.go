package wal_test

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/jobwal/jobwal/wal"
)

// F27, W5: a directory that is moved away under a running writer, or removed, while another takes its name. The lock is on
// the directory, and the writer must not go on in one that it has no lock on: it would be a second writer in another's
// log, and what it acknowledged would be missing in its own. Found by asking what "rm -r, then start again" does.
func TestF27_moved_directory(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("a directory with open files cannot be moved there")
	}
	for _, inItsPlace := range []string{"nothing", "an empty directory", "another log"} {
		t.Run(inItsPlace, func(t *testing.T) {
			dir, moved := filepath.Join(t.TempDir(), "log"), filepath.Join(t.TempDir(), "moved")
			l := dirOpen(t, dir, wal.Options{SegmentBytes: wal.MinSegmentBytes})
			mustAppend(t, l, group(1, 1, 600)...)
			mustAppend(t, l, group(2, 1, 600)...)
			must(t, os.Rename(dir, moved))
			wantLocked(t, moved, os.Getpid())
			var there string
			switch inItsPlace {
			case "an empty directory":
				must(t, os.Mkdir(dir, 0o755))
			case "another log":
				other := dirOpen(t, dir, wal.Options{})
				mustAppend(t, other, group(9, 1, 0)...)
				mustClose(t, other)
			}
			if inItsPlace != "nothing" {
				there = files(t, dir)
			}
			if err := l.DropBefore(2); err == nil || errors.Is(err, wal.ErrFailed) {
				t.Errorf("DropBefore: %v", err)
			}
			_, err := l.Append(ctx, group(3, 1, 600)...) // rotates
			wantError(t, err, []error{wal.ErrFailed}, wal.ErrOutcomeUnknown)
			wantError(t, l.Close(), []error{wal.ErrFailed})
			if inItsPlace != "nothing" && files(t, dir) != there {
				t.Errorf("the writer went on in another directory:\n%s", files(t, dir))
			}
			l = dirOpen(t, moved, wal.Options{})
			wantEvents(t, l, 2)
			mustClose(t, l)
		})
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
