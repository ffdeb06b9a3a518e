package wal

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
)

// heapFS samples the live heap now and then, while files are being read by one goroutine.
type heapFS struct {
	FS
	read int // bytes since the last sample
	peak uint64
}

type heapFile struct {
	File
	fs *heapFS
}

func (h *heapFS) OpenFile(name string, flag int, perm fs.FileMode) (File, error) {
	f, err := h.FS.OpenFile(name, flag, perm)
	return heapFile{f, h}, err
}

func (f heapFile) ReadAt(p []byte, at int64) (int, error) {
	n, err := f.File.ReadAt(p, at)
	if f.fs.read += n; f.fs.read >= 512<<10 {
		f.fs.read = 0
		f.fs.peak = max(f.fs.peak, liveHeap())
	}
	return n, err
}

func liveHeap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// peakHeap is the most that was live while run read, beyond what was before. The log is given the FS that samples.
func peakHeap(t *testing.T, run func(fsys FS) error) uint64 {
	before := liveHeap()
	h := &heapFS{FS: OS}
	require.NoError(t, run(h))
	h.peak = max(h.peak, liveHeap())
	return h.peak - min(before, h.peak)
}

// Memory does not grow with the log: a log of ten times as many events takes no more to open, read and verify.
func TestMemory_does_not_grow_with_the_log(t *testing.T) {
	const small = 6_000 // events; more than 1 MB
	dirs := map[int]string{1: t.TempDir(), 10: t.TempDir()}
	for times, dir := range dirs {
		makeLog(t, dir, small*times, Options{SegmentBytes: 512 << 10})
		segments, err := filepath.Glob(filepath.Join(dir, "*"+segmentSuffix))
		require.NoError(t, err)
		require.Greater(t, len(segments), times)
	}
	reading := func(opts Options, use func(log *Log) error) func(dir string) func(FS) error {
		return func(dir string) func(FS) error {
			return func(fsys FS) error {
				opts.FS = fsys
				log, err := Open(dir, opts)
				if err != nil {
					return err
				}
				defer log.Close()
				return use(log)
			}
		}
	}
	for name, run := range map[string]func(dir string) func(FS) error{
		"Open":          reading(Options{}, func(*Log) error { return nil }),
		"Open ReadOnly": reading(Options{ReadOnly: true}, func(*Log) error { return nil }),
		"Events": reading(Options{}, func(log *Log) error {
			n := uint64(0)
			for _, err := range log.Events(1) {
				if err != nil {
					return err
				}
				n++
			}
			if n != log.LastSeq() {
				return fmt.Errorf("%d events of %d", n, log.LastSeq())
			}
			return nil
		}),
		"Tail": reading(Options{}, func(log *Log) error { _, err := log.Tail(100); return err }),
		"At":   reading(Options{}, func(log *Log) error { _, err := log.At(log.LastSeq() / 2); return err }),
		"Tail of a path": func(dir string) func(FS) error {
			return func(fsys FS) error { _, err := lastEvents(fsys, dir, 100, firstStretch); return err }
		},
		"Verify": func(dir string) func(FS) error {
			return func(fsys FS) error { _, err := verify(fsys, dir); return err }
		},
	} {
		t.Run(name, func(t *testing.T) {
			one, ten := peakHeap(t, run(dirs[1])), peakHeap(t, run(dirs[10]))
			for range 2 { // a pool may hold a buffer or two more on a busy machine; what grows with the log is there each time
				if ten >= one+512<<10 {
					ten = min(ten, peakHeap(t, run(dirs[10])))
				}
			}
			t.Logf("live at most: %d KiB, with ten times the log %d KiB", one>>10, ten>>10)
			require.Less(t, ten, one+512<<10, "of a log that is 10 MB larger")
		})
	}
}

// Nor does a checkpoint's size tell in memory, while it is saved, while it is loaded, and while what it lies beside is
// compacted.
func TestMemory_does_not_grow_with_a_checkpoint(t *testing.T) {
	peaks := map[string][]uint64{}
	for _, blocks := range []int{2, 24} { // of 1 MiB
		dir := t.TempDir()
		makeLog(t, dir, 3_000*blocks, Options{SegmentBytes: 256 << 10})
		log, err := Open(dir, Options{SegmentBytes: 256 << 10})
		require.NoError(t, err)
		before := liveHeap()
		sample := func(of string) {
			for len(peaks[of]) < len(peaks["blocks"])+1 {
				peaks[of] = append(peaks[of], 0)
			}
			last := &peaks[of][len(peaks[of])-1]
			now := liveHeap()
			*last = max(*last, now-min(before, now))
		}
		block := make([]byte, 1<<20)
		c, err := log.SaveCheckpoint(context.Background(), 1, []Section{{Name: "large", Save: func(w io.Writer) error {
			for range blocks {
				if _, err := w.Write(block); err != nil {
					return err
				}
				sample("save")
			}
			return nil
		}}})
		require.NoError(t, err)
		require.NoError(t, log.LoadCheckpoint(context.Background(), c, func(_ Section, r io.Reader) error {
			for range blocks {
				if _, err := io.ReadFull(r, block); err != nil {
					return err
				}
				sample("load")
			}
			return nil
		}))
		done, err := log.Compact(context.Background(), log.LastSeq(), CompactOptions{Keep: func(e Event) bool {
			if e.Seq%1000 == 0 {
				sample("compact")
			}
			return true
		}})
		require.NoError(t, err)
		require.Greater(t, done.Carried, uint64(2_000*blocks))
		for _, err := range log.Carried() {
			require.NoError(t, err)
		}
		sample("carried")
		peaks["blocks"] = append(peaks["blocks"], uint64(blocks))
		require.NoError(t, log.Close())
	}
	for of, peak := range peaks {
		if of != "blocks" {
			t.Logf("%s: live at most %d KiB, and %d KiB", of, peak[0]>>10, peak[1]>>10)
			require.Less(t, peak[1], uint64(2<<20), of) // of 24 MiB
		}
	}
}
