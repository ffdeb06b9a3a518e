package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime/metrics"
	"strings"

	"github.com/jobwal/jobwal/statemachine"
)

// A sample is how a child stands.
type sample struct {
	Jobs       int64  // in this life
	Heap       uint64 // bytes that the last garbage collection found in use
	Resident   uint64 // bytes of the whole process in memory; 0 where the system does not say
	Remembered int    // jobs
	Unfinished int    // jobs
	LastSeq    uint64
	disk
}

func (l *life) sample() (sample, error) {
	r := l.engine.Report()
	if err := errors.Join(r.Keeping, r.Stopped); err != nil {
		return sample{}, err
	}
	s := sample{Jobs: l.done.Load(), Heap: liveHeap(), Resident: resident(), LastSeq: l.engine.Stats().LastSeq}
	for state, n := range r.Jobs {
		s.Remembered += n
		if !(statemachine.Job{State: state}).Finished() {
			s.Unfinished += n
		}
	}
	var err error
	s.disk, err = look(l.s.Dir)
	return s, err
}

// disk is what anyone can see of a log from outside.
type disk struct {
	Disk       int64  // bytes of all files
	FirstSeq   uint64 // of the oldest segment
	Checkpoint uint64 // seq of the newest
}

// look reads the names and sizes in a directory; its files come and go meanwhile.
func look(dir string) (d disk, err error) {
	entries, err := os.ReadDir(dir)
	for _, entry := range entries {
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return d, err
		}
		d.add(entry.Name(), info.Size())
	}
	return d, err
}

func (d *disk) add(name string, size int64) {
	d.Disk += size
	var seq uint64
	if !strings.HasSuffix(name, ".jsonl") {
		return
	}
	if _, err := fmt.Sscanf(name, "checkpoint-%d", &seq); err == nil {
		d.Checkpoint = max(d.Checkpoint, seq)
	} else if _, err := fmt.Sscanf(name, "%d.jsonl", &seq); err == nil && (d.FirstSeq == 0 || seq < d.FirstSeq) {
		d.FirstSeq = seq
	}
}

func liveHeap() uint64 {
	of := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(of)
	return of[0].Value.Uint64()
}

// resident asks Linux; others have other ways.
func resident() uint64 {
	statm, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	var size, pages uint64
	if _, err := fmt.Sscan(string(statm), &size, &pages); err != nil {
		return 0
	}
	return pages * uint64(os.Getpagesize())
}
