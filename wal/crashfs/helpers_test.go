package crashfs_test

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"testing"

	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
	"github.com/stretchr/testify/require"
)

// hand does what a test says and fails it when the file system does not.
type hand struct {
	tester
	wal.FS
}

// tester is a *testing.T or a *rapid.T.
type tester interface {
	require.TestingT
	Helper()
}

func (h hand) create(name, data string) {
	h.Helper()
	f := h.open(name, os.O_RDWR|os.O_CREATE)
	_, err := f.WriteAt([]byte(data), 0)
	require.NoError(h, err)
	require.NoError(h, f.Close())
}

// durable creates a file, or overwrites it, and leaves nothing to chance.
func (h hand) durable(name, data string) {
	h.Helper()
	h.create(name, data)
	h.sync(name)
	h.syncDir(path.Dir(name))
}

func (h hand) open(name string, flag int) wal.File {
	h.Helper()
	f, err := h.OpenFile(name, flag, 0o644)
	require.NoError(h, err)
	return f
}

// on opens a file for one operation.
func (h hand) on(name string, do func(f wal.File) error) {
	h.Helper()
	f := h.open(name, os.O_RDWR)
	require.NoError(h, do(f))
	require.NoError(h, f.Close())
}

func (h hand) write(name string, off int64, data string) {
	h.Helper()
	h.on(name, func(f wal.File) error {
		_, err := f.WriteAt([]byte(data), off)
		return err
	})
}

func (h hand) truncate(name string, size int64) {
	h.Helper()
	h.on(name, func(f wal.File) error { return f.Truncate(size) })
}

func (h hand) sync(name string)       { h.Helper(); h.on(name, wal.File.Sync) }
func (h hand) syncDir(name string)    { h.Helper(); require.NoError(h, h.SyncDir(name)) }
func (h hand) mkdir(name string)      { h.Helper(); require.NoError(h, h.Mkdir(name, 0o755)) }
func (h hand) rename(from, to string) { h.Helper(); require.NoError(h, h.Rename(from, to)) }
func (h hand) remove(name string)     { h.Helper(); require.NoError(h, h.Remove(name)) }

// dump is all that can be seen of a file system, on one line: `a="one" d/ d/b=""`. It goes through wal.FS alone.
func dump(disk wal.FS, dir string) string {
	var all []string
	var walk func(name string)
	walk = func(name string) {
		list, err := disk.ReadDir(path.Join(dir, name))
		if err != nil {
			all = append(all, fmt.Sprint(name, " ", err))
		}
		for _, entry := range list {
			child := path.Join(name, entry.Name())
			if entry.IsDir() {
				all = append(all, child+"/")
				walk(child)
			} else {
				all = append(all, fmt.Sprintf("%s=%s", child, short(read(disk, path.Join(dir, child)))))
			}
		}
	}
	walk(".")
	return strings.Join(all, " ")
}

// read is what everyone sees in a file.
func read(disk wal.FS, name string) string {
	f, err := disk.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return err.Error()
	}
	size, err := f.Size()
	p := make([]byte, size)
	n, readErr := f.ReadAt(p, 0)
	if err := errors.Join(err, readErr, f.Close()); err != nil || int64(n) != size {
		return fmt.Sprint(n, " bytes of ", size, ": ", err)
	}
	return string(p)
}

// short prints long runs of one byte as such: "ab", or "a"*510+"bb".
func short(s string) string {
	var words []string
	plain := ""
	flush := func() {
		if plain != "" || len(words) == 0 && s == "" {
			words, plain = append(words, fmt.Sprintf("%q", plain)), ""
		}
	}
	for len(s) > 0 {
		n := 1
		for n < len(s) && s[n] == s[0] {
			n++
		}
		if n >= 100 {
			flush()
			words = append(words, fmt.Sprintf("%q*%d", s[:1], n))
		} else {
			plain += s[:n]
		}
		s = s[n:]
	}
	flush()
	return strings.Join(words, "+")
}

// statesOf lists every state that a crash may leave, as dump has them.
func statesOf(t testing.TB, disk *crashfs.FS) []string {
	t.Helper()
	states := disk.CrashStates(100_000)
	left, exact := states.Left()
	require.Zero(t, left)
	require.True(t, exact)
	var all []string
	for _, after := range states.All() {
		all = append(all, dump(after, "."))
	}
	return all
}
