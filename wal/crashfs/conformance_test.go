package crashfs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
	"pgregory.net/rapid"
)

// twin does everything twice and compares what can be seen: here, and on the file system of this machine.
type twin struct {
	*rapid.T
	mine, real twinSide
}

type twinSide struct {
	wal.FS
	dir     string
	handles []wal.File
}

// same fails unless both sides say the same.
func (w *twin) same(what string, do func(s *twinSide) string) {
	mine, real := do(&w.mine), do(&w.real)
	if mine != real {
		w.Fatalf("%s: %s here, %s on the real one", what, mine, real)
	}
}

// errText is an error without paths and operations.
func errText(err error) string {
	var errno syscall.Errno
	switch {
	case errors.As(err, &errno):
		return errno.Error()
	case errors.Is(err, io.EOF):
		return "EOF"
	case err != nil:
		return "error" // closed, negative offset: the real one has several for each
	}
	return "ok"
}

func (s *twinSide) path(name string) string { return filepath.Join(s.dir, name) }

// onHandle does something to one open file, or to one that was closed.
func (w *twin) onHandle(what string, do func(f wal.File) string) {
	if n := len(w.mine.handles); n > 0 {
		i := rapid.IntRange(0, n-1).Draw(w.T, "handle")
		w.same(fmt.Sprint(what, " handle ", i), func(s *twinSide) string { return do(s.handles[i]) })
	}
}

var twinNames = rapid.SampledFrom([]string{"f", "g", "d", "e", "d/f", "d/g", "d/e", "d/e/f", "f/g", "no/f"})

func (w *twin) actions() map[string]func(*rapid.T) {
	name := func() string { return twinNames.Draw(w.T, "name") }
	offset := func() int64 {
		return rapid.SampledFrom([]int64{0, 1, 511, 512, 4095, 4096, 5000, 12289, -1}).Draw(w.T, "offset")
	}
	return map[string]func(*rapid.T){
		"open": func(t *rapid.T) {
			name, flag := name(), rapid.SampledFrom([]int{os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR}).Draw(t, "mode")
			for _, more := range []int{os.O_CREATE, os.O_CREATE, os.O_EXCL, os.O_TRUNC} {
				if rapid.IntRange(0, 2).Draw(t, "flag") == 0 {
					flag |= more
				}
			}
			if flag&os.O_CREATE == 0 {
				flag &^= os.O_EXCL // means nothing then
				if info, err := os.Stat(w.real.path(name)); err == nil && info.IsDir() {
					flag |= os.O_RDWR // the real one opens a directory for reading; this one never
				}
			}
			w.same(fmt.Sprintf("open %s %x", name, flag), func(s *twinSide) string {
				f, err := s.OpenFile(s.path(name), flag, 0o644)
				if err == nil {
					s.handles = append(s.handles, f)
				}
				return errText(err)
			})
		},
		"mkdir": func(*rapid.T) {
			name := name()
			w.same("mkdir "+name, func(s *twinSide) string { return errText(s.Mkdir(s.path(name), 0o755)) })
		},
		"remove": func(*rapid.T) {
			name := name()
			w.same("remove "+name, func(s *twinSide) string { return errText(s.Remove(s.path(name))) })
		},
		"rename": func(*rapid.T) {
			from, to := name(), name()
			w.same("rename "+from+" "+to, func(s *twinSide) string { return errText(s.Rename(s.path(from), s.path(to))) })
		},
		"syncdir": func(*rapid.T) {
			name := name()
			if strings.HasSuffix(name, "f") || strings.HasSuffix(name, "g") {
				return // a file can be opened and synced as if it were a directory
			}
			w.same("syncdir "+name, func(s *twinSide) string {
				list, err := s.ReadDir(s.path(name))
				if err == nil {
					err = s.SyncDir(s.path(name))
				}
				return fmt.Sprint(len(list), errText(err))
			})
		},
		"write": func(t *rapid.T) {
			off := offset()
			data := bytes.Repeat([]byte{rapid.Byte().Draw(t, "data")}, rapid.IntRange(1, 5000).Draw(t, "len"))
			w.onHandle("write", func(f wal.File) string {
				n, err := f.WriteAt(data, off)
				return fmt.Sprint(n, errText(err))
			})
		},
		"read": func(t *rapid.T) {
			off, n := offset(), rapid.IntRange(1, 5000).Draw(t, "len")
			w.onHandle("read", func(f wal.File) string {
				p := make([]byte, n)
				n, err := f.ReadAt(p, off)
				return fmt.Sprint(n, errText(err), short(string(p)))
			})
		},
		"truncate": func(*rapid.T) {
			size := offset()
			w.onHandle("truncate", func(f wal.File) string { return errText(f.Truncate(size)) })
		},
		"size": func(*rapid.T) {
			w.onHandle("size", func(f wal.File) string {
				n, err := f.Size()
				return fmt.Sprint(n, errText(err))
			})
		},
		"sync":  func(*rapid.T) { w.onHandle("sync", func(f wal.File) string { return errText(f.Sync()) }) },
		"close": func(*rapid.T) { w.onHandle("close", func(f wal.File) string { return errText(f.Close()) }) },
		"": func(*rapid.T) {
			w.same("dump", func(s *twinSide) string { return dump(s, s.dir) })
		},
	}
}

// What a program sees here is what it sees on a real file system, as long as nothing goes wrong.
func TestLikeTheRealFileSystem(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("open files cannot be removed there")
	}
	dir, runs := t.TempDir(), 0
	for _, test := range []struct {
		name string
		make func() wal.FS
	}{
		{"bare", func() wal.FS { return crashfs.New() }},
		{"injected", func() wal.FS { return crashfs.Inject(crashfs.New(), nil) }},
	} {
		t.Run(test.name, rapid.MakeCheck(func(t *rapid.T) {
			runs++
			w := &twin{T: t, mine: twinSide{FS: test.make(), dir: "."},
				real: twinSide{FS: wal.OS, dir: filepath.Join(dir, fmt.Sprint(runs))}}
			if err := w.real.Mkdir(w.real.dir, 0o755); err != nil {
				t.Fatal(err)
			}
			defer func() {
				for _, f := range w.real.handles {
					_ = f.Close()
				}
			}()
			t.Repeat(w.actions())
		}))
	}
}
