package main

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// smallestLog is the number of events of the smallest log that is replayed.
const smallestLog = 1000

// A replayPoint is what it took to read a log of so many events, from the page cache, in milliseconds.
type replayPoint struct {
	events  int
	logSize float64 // bytes on disk
	bare    figure  // read the files, sum up their bytes
	log     figure  // hand out every event, checked
	engine  figure  // open the engine: locked, folded, ready for commands
	heap    figure  // bytes that the engine holds then
}

// measureReplay goes from log to log, each ten times as large as the one before, and prints as it goes.
func measureReplay(ctx context.Context, s settings, w io.Writer) ([]replayPoint, error) {
	var points []replayPoint
	out := table(w)
	for events := smallestLog; events <= s.max; events *= 10 {
		p, err := replayOf(ctx, s, events)
		if err != nil {
			return nil, fmt.Errorf("%d events: %w", events, err)
		}
		p.show(out)
		if err := out.Flush(); err != nil {
			return nil, err
		}
		points = append(points, p)
	}
	return points, nil
}

func (p replayPoint) show(w io.Writer) {
	line := func(of string, ms figure) {
		fmt.Fprintf(w, "replay\tevents=%d\tof=%s\tms=%.1f\tms-range=%.1f..%.1f\tevents/s=%.0f\tx-bare=%.2f",
			p.events, of, ms.median, ms.low, ms.high, float64(p.events)/ms.median*1000, ms.median/p.bare.median)
	}
	line("bare", p.bare)
	fmt.Fprintf(w, "\tlog-bytes=%.0f\n", p.logSize)
	line("log", p.log)
	fmt.Fprintln(w)
	line("engine", p.engine)
	fmt.Fprintf(w, "\t%s\theap-bytes/job=%.0f\n", p.heap.show("heap-bytes"), p.heap.median/float64(p.events/eventsPerJob))
}

func replayOf(ctx context.Context, s settings, events int) (p replayPoint, err error) {
	dir := filepath.Join(s.dir, fmt.Sprintf("replay-%d", events))
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := writeLog(ctx, dir, events); err != nil {
		return p, err
	}
	var bytes int64
	read := func() (err error) { bytes, err = readBare(dir); return err }
	replay := func() error { return readLog(ctx, dir, events) }
	var bare, log, engine, heap []float64
	for range s.rounds {
		b, err1 := timed(read)
		l, err2 := timed(replay)
		e, held, err3 := openEngine(ctx, dir, events)
		if err := errors.Join(err1, err2, err3); err != nil {
			return p, err
		}
		bare, log, engine, heap = append(bare, b), append(log, l), append(engine, e), append(heap, held)
	}
	return replayPoint{events, float64(bytes), figureOf(bare), figureOf(log), figureOf(engine), figureOf(heap)}, nil
}

// writeLog writes whole jobs, a thousand events in an append. Nobody relies on them, so nothing is synced.
func writeLog(ctx context.Context, dir string, events int) (err error) {
	log, err := wal.Open(dir, wal.Options{Sync: wal.SyncNever})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	const group = 1000
	for job := 0; job < events/eventsPerJob; {
		var batch []wal.Event
		for ; len(batch) < group && job < events/eventsPerJob; job++ {
			jobEvents := jobEvents(jobID(int64(job)))
			batch = append(batch, jobEvents[:]...)
		}
		if _, err := log.Append(ctx, batch...); err != nil {
			return err
		}
	}
	return nil
}

// timed returns milliseconds. Memory of earlier rounds goes back to the system first: to touch memory for the first time
// is a good part of the cost of a replay, and a process that recovers has just begun.
func timed(f func() error) (ms float64, err error) {
	debug.FreeOSMemory()
	start := time.Now()
	err = f()
	return micros(time.Since(start)) / 1000, err
}

func readBare(dir string) (bytes int64, err error) {
	segments, err := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	if err != nil {
		return 0, err
	}
	buffer, sum := make([]byte, 256<<10), crc32.New(crc32.MakeTable(crc32.Castagnoli))
	for _, name := range segments {
		f, err := os.Open(name)
		if err != nil {
			return 0, err
		}
		n, err := io.CopyBuffer(struct{ io.Writer }{sum}, struct{ io.Reader }{f}, buffer)
		if err := errors.Join(err, f.Close()); err != nil {
			return 0, err
		}
		bytes += n
	}
	return bytes, nil
}

func readLog(ctx context.Context, dir string, events int) (err error) {
	log, err := wal.Open(dir, wal.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	read := 0
	for _, err := range log.Events(1) {
		if err != nil {
			return err
		}
		read++
	}
	if read != events {
		return fmt.Errorf("the log handed out %d events", read)
	}
	return ctx.Err()
}

func openEngine(ctx context.Context, dir string, events int) (ms, heap float64, err error) {
	var engine *recovery.Engine
	before := heapBytes()
	ms, err = timed(func() (err error) { engine, err = recovery.Open(ctx, dir, recovery.Options{}); return err })
	if err != nil {
		return 0, 0, err
	}
	heap = heapBytes() - before
	if n := engine.Report().Jobs[statemachine.Completed]; n != events/eventsPerJob {
		err = fmt.Errorf("the engine has %d completed jobs", n)
	}
	return ms, heap, errors.Join(err, engine.Close())
}

// heapBytes is what is alive on the heap, without what lies in pools: that goes with the second collection.
func heapBytes() float64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}
