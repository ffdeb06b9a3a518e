package realdisk_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/jobwal/jobwal/recovery/crashtest/internal/realdisk"
)

var sizes = map[string]int64{"ext4": 16 << 20, "xfs": 300 << 20}

// The disk must lose what it may lose, and keep what it must keep, or it proves nothing of a log that is on it.
func TestShutdown_keeps_what_was_synced_and_loses_the_rest(t *testing.T) {
	for kind, size := range sizes {
		for _, how := range []realdisk.Flush{realdisk.FlushJournal, realdisk.FlushNothing} {
			t.Run(kind, func(t *testing.T) {
				d := realdisk.New(t, kind, size)
				want := bytes.Repeat([]byte("synced"), 1000)
				f, err := os.Create(filepath.Join(d.Dir(), "file"))
				must(t, err)
				_, err = f.Write(want)
				must(t, errors.Join(err, f.Sync()))
				_, err = f.Write(bytes.Repeat([]byte("unsynced"), 1000))
				must(t, err)
				must(t, realdisk.Shutdown(d.Dir(), how))
				if err := f.Sync(); !errors.Is(err, unix.EIO) {
					t.Errorf("a sync after the shutdown: %v", err)
				}
				_ = f.Close()
				d.Remount()
				got, err := os.ReadFile(filepath.Join(d.Dir(), "file"))
				must(t, err)
				if !bytes.HasPrefix(got, want) || bytes.Contains(got, []byte("unsynced")) {
					t.Errorf("%d bytes, %d of them synced, or not lost what was not", len(got), len(want))
				}
			})
		}
	}
}

// Nothing is left behind: neither mount nor loop device.
func TestNew_cleans_up(t *testing.T) {
	for kind, size := range sizes {
		var image string
		t.Run(kind, func(t *testing.T) {
			d := realdisk.New(t, kind, size)
			if image = backing(t); image == "" {
				t.Error("no loop device has the image")
			}
			must(t, os.Mkdir(filepath.Join(d.Dir(), "dir"), 0o755))
		})
		if left := backing(t); left != "" {
			t.Errorf("%s is still on a loop device", left)
		}
	}
}

// backing is the file behind a loop device that a test of this name has made, if any.
func backing(t *testing.T) string {
	list, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	must(t, err)
	for _, path := range list {
		name, _ := os.ReadFile(path) // a device may go at any time
		if strings.Contains(string(name), strings.Split(t.Name(), "/")[0]) {
			return string(name)
		}
	}
	return ""
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
