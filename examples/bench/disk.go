package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/jobwal/jobwal/wal"
)

// What the disk itself does: writes behind each other into a file whose blocks exist, each synced, so many of them under way
// at a time, each through a handle of its own. One at a time is what a log has; how much more the others give is what a log
// could gain that syncs beside itself.

var (
	diskSyncs = []int{1, 2, 4, 8}      // under way at a time
	diskLines = []int{16, 32, 64, 256} // a write
)

func measureDisk(ctx context.Context, s settings, stdout io.Writer) error {
	out := table(stdout)
	for _, lines := range diskLines {
		rates := make([][]float64, len(diskSyncs))
		for range s.rounds { // what is compared takes turns
			for i, n := range diskSyncs {
				rate, err := diskRound(ctx, s, n, lines)
				if err != nil {
					return err
				}
				rates[i] = append(rates[i], rate)
			}
		}
		for i, n := range diskSyncs {
			rate := figureOf(rates[i])
			fmt.Fprintf(out, "disk\tlines=%d\tat-a-time=%d\t%s\tevents/s=%.0f\tx-one=%.2f\n", lines, n,
				rate.show("syncs/s"), rate.median*float64(lines), rate.median/figureOf(rates[0]).median)
		}
	}
	return out.Flush()
}

// diskRound returns how many writes of so many lines are synced in a second.
func diskRound(ctx context.Context, s settings, syncs, lines int) (rate float64, err error) {
	d, err := openDisk(filepath.Join(s.dir, "disk"), lines)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, d.close()) }()
	c := &contender{events: 1}
	for range syncs {
		f, err := wal.OS.OpenFile(d.path, os.O_RDWR, 0)
		if err != nil {
			return 0, err
		}
		d.files = append(d.files, f)
		c.callers = append(c.callers, func(ctx context.Context) error { return errors.Join(d.write(f), f.Sync(), ctx.Err()) })
	}
	rate, _, err = c.run(ctx, s.round)
	return rate, err
}

type disk struct {
	path  string
	lines []byte
	files []wal.File

	mu sync.Mutex // held for a write, so that they lie behind each other; guards at
	at int64
}

func openDisk(path string, lines int) (*disk, error) {
	f, err := wal.OS.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o666)
	if err != nil {
		return nil, err
	}
	_, err = f.WriteAt(bytes.Repeat([]byte("\n"), bareBytes), 0)
	if err := errors.Join(err, f.Sync()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	line := append(bytes.Repeat([]byte("x"), lineBytes-1), '\n')
	return &disk{path: path, lines: bytes.Repeat(line, lines), files: []wal.File{f}}, nil
}

func (d *disk) write(f wal.File) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.at+int64(len(d.lines)) > bareBytes {
		d.at = 0
	}
	_, err := f.WriteAt(d.lines, d.at)
	d.at += int64(len(d.lines))
	return err
}

func (d *disk) close() (err error) {
	for _, f := range d.files {
		err = errors.Join(err, f.Close())
	}
	return err
}
