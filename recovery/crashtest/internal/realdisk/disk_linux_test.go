package realdisk_test

import (
	"bytes"
	"errors"
	"fmt"
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

// Nothing is left behind: no loop device holds the image when the test that had it is over.
func TestNew_cleans_up(t *testing.T) {
	for kind, size := range sizes {
		t.Run(kind, func(t *testing.T) {
			d := realdisk.New(t, kind, size)
			must(t, os.Mkdir(filepath.Join(d.Dir(), "dir"), 0o755))
			if n := images(t); n != 1 {
				t.Errorf("%d images of this process's are on loop devices, want 1", n)
			}
		})
		if n := images(t); n != 0 {
			t.Errorf("%d images of this process's are still on loop devices", n)
		}
	}
}

// images counts the loop devices with images that New made in this process.
func images(t *testing.T) (n int) {
	list, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	must(t, err)
	for _, path := range list {
		name, _ := os.ReadFile(path) // a device may go at any time
		if strings.Contains(string(name), fmt.Sprintf("memfd:realdisk-of-%d ", os.Getpid())) {
			n++
		}
	}
	return n
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
