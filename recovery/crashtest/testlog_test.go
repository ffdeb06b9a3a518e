package crashtest

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/wal"
)

// limited is a log in a directory of a disk that can lose power, and how large its events may be.
type limited struct {
	*diskOpener
	max int
}

func (d limited) MaxEventBytes() int { return d.max }

func newOnDisk(opts wal.Options) limited {
	open := func(disk wal.FS) (recovery.Log, error) {
		opts.FS = disk
		return openDisk("jobs", opts)
	}
	return limited{DiskOpener(open).(*diskOpener), opts.MaxEventBytes}
}

func openDisk(dir string, opts wal.Options) (recovery.Log, error) {
	log, err := wal.Open(dir, opts)
	if err != nil {
		return nil, err
	}
	return recovery.OnDisk(log), nil
}

func TestTestLogOnCrashfs(t *testing.T) {
	t.Parallel()
	for name, segment := range map[string]int64{"large": wal.DefaultSegmentBytes, "small": wal.MinSegmentBytes} {
		t.Run(name+" segments", func(t *testing.T) {
			TestLog(t, func(*testing.T) Opener {
				return newOnDisk(wal.Options{SegmentBytes: segment, MaxEventBytes: 1 << 20})
			}, NoConflicts)
		})
	}
}

// inDir opens a log in a real directory.
type inDir struct {
	dir  string
	opts wal.Options
}

func (d inDir) Open(context.Context) (recovery.Log, error) { return openDisk(d.dir, d.opts) }
func (d inDir) MaxEventBytes() int                         { return d.opts.MaxEventBytes }

func TestTestLogOnTheRealFileSystem(t *testing.T) {
	t.Parallel()
	TestLog(t, func(t *testing.T) Opener {
		return inDir{filepath.Join(t.TempDir(), "jobs"), wal.Options{SegmentBytes: 4 << 10, MaxEventBytes: 1 << 20}}
	}, NoConflicts)
}

func newMemLog() *MemLog { return &MemLog{WAL: wal.Options{MaxEventBytes: 1 << 20}} }

func TestTestLogOnMemLog(t *testing.T) {
	TestLog(t, func(*testing.T) Opener { return newMemLog() }, SeveralWriters)
}

func TestTestLogOnSparseMemLog(t *testing.T) {
	TestLog(t, func(*testing.T) Opener {
		m := newMemLog()
		m.Gap = 2
		return m
	}, SeveralWriters, SparseSeqs)
}
