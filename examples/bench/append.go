package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/wal"
)

// An appendPoint is how one contender fared with so many callers. A latency is that of one event: from the call until the
// event is durable, and, with the engine, applied.
type appendPoint struct {
	contender string
	callers   int
	rate      figure // durable events a second
	p50, p99  figure // microseconds
}

// A contender is one way to make events durable, with every caller ready to go on.
type contender struct {
	name    string
	callers []step
	events  int // that one step makes durable
	close   func() error
}

// measureAppend lets the contenders take turns, for 1, 2, 4, … callers, and prints as it goes.
func measureAppend(ctx context.Context, s settings, w io.Writer) ([]appendPoint, error) {
	var points []appendPoint
	out := table(w)
	for callers := 1; callers <= s.callers; callers *= 2 {
		measured, err := appendWith(ctx, s, callers)
		if err != nil {
			return nil, err
		}
		bare := measured[0].rate.median
		for _, p := range measured {
			fmt.Fprintf(out, "append\tcallers=%d\tof=%s\t%s\t%s\t%s\tx-bare=%.2f\n", callers, p.contender,
				p.rate.show("events/s"), p.p50.show("p50-us"), p.p99.show("p99-us"), p.rate.median/bare)
		}
		if err := out.Flush(); err != nil {
			return nil, err
		}
		points = append(points, measured...)
	}
	return points, nil
}

// appendWith starts every contender on a directory of its own, so that neither a large log nor many jobs in memory are
// handed on from one number of callers to the next.
func appendWith(ctx context.Context, s settings, callers int) (_ []appendPoint, err error) {
	dir, err := os.MkdirTemp(s.dir, "append-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	var all []*contender
	for _, start := range []func(context.Context, string, int) (*contender, error){startBare, startLog, startEngine, startBolt} {
		c, failed := start(ctx, dir, callers)
		if failed != nil {
			return nil, failed
		}
		defer func() { err = errors.Join(err, c.close()) }()
		all = append(all, c)
	}
	return takeTurns(ctx, s, all, callers)
}

func takeTurns(ctx context.Context, s settings, all []*contender, callers int) ([]appendPoint, error) {
	rates, p50s, p99s := make([][]float64, len(all)), make([][]float64, len(all)), make([][]float64, len(all))
	for round := range s.rounds + 1 {
		for i, c := range all {
			rate, latencies, err := c.run(ctx, s.round)
			if err != nil {
				return nil, fmt.Errorf("%s, %d callers: %w", c.name, callers, err)
			}
			if round == 0 {
				continue // the first is for warming up: a log fills ahead only as far as it has grown
			}
			rates[i] = append(rates[i], rate)
			p50s[i] = append(p50s[i], micros(percentile(latencies, 50)))
			p99s[i] = append(p99s[i], micros(percentile(latencies, 99)))
		}
	}
	points := make([]appendPoint, len(all))
	for i, c := range all {
		points[i] = appendPoint{c.name, callers, figureOf(rates[i]), figureOf(p50s[i]), figureOf(p99s[i])}
	}
	return points, nil
}

// run has every caller do step after step for so long, and returns events a second and the sorted latencies. The last
// step of each is finished, and counts: in events as in time.
func (c *contender) run(ctx context.Context, long time.Duration) (rate float64, latencies []time.Duration, err error) {
	runtime.GC() // nobody collects what another has left
	took, errs := make([][]time.Duration, len(c.callers)), make([]error, len(c.callers))
	start := time.Now()
	var callers sync.WaitGroup
	for i, call := range c.callers {
		callers.Go(func() { took[i], errs[i] = callUntil(ctx, call, start.Add(long)) })
	}
	callers.Wait()
	elapsed := time.Since(start)
	latencies = slices.Sorted(slices.Values(slices.Concat(took...)))
	return float64(len(latencies)*c.events) / elapsed.Seconds(), latencies, cmp.Or(errs...)
}

func callUntil(ctx context.Context, call step, end time.Time) (took []time.Duration, err error) {
	for before := time.Now(); len(took) == 0 || before.Before(end); {
		if err := call(ctx); err != nil {
			return took, err
		}
		after := time.Now()
		took = append(took, after.Sub(before))
		before = after
	}
	return took, nil
}

// bareBytes is how far the bare loop writes before it begins again at the front.
const bareBytes = 16 << 20

// startBare is what the disk allows: one loop that writes the lines of all callers at once and syncs, into a file whose
// blocks exist, by the same system calls as the log's. (Where a file grows, a sync takes up to twice as long.)
func startBare(ctx context.Context, dir string, callers int) (*contender, error) {
	f, err := wal.OS.OpenFile(filepath.Join(dir, "bare"), os.O_RDWR|os.O_CREATE, 0o666)
	if err != nil {
		return nil, err
	}
	if _, err := f.WriteAt(bytes.Repeat([]byte("\n"), bareBytes), 0); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if err := f.Sync(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	line := append(bytes.Repeat([]byte("x"), lineBytes-1), '\n')
	lines, at := bytes.Repeat(line, callers), int64(0)
	write := func(ctx context.Context) error {
		if at+int64(len(lines)) > bareBytes {
			at = 0
		}
		if _, err := f.WriteAt(lines, at); err != nil {
			return err
		}
		at += int64(len(lines))
		return errors.Join(f.Sync(), ctx.Err())
	}
	return &contender{"bare", []step{write}, callers, f.Close}, nil
}

func startLog(_ context.Context, dir string, callers int) (*contender, error) {
	log, err := wal.Open(filepath.Join(dir, "log"), wal.Options{})
	if err != nil {
		return nil, err
	}
	c := &contender{name: "log", events: 1, close: log.Close}
	ids := new(atomic.Int64)
	for range callers {
		c.callers = append(c.callers, logCaller(log, ids))
	}
	return c, nil
}

func startEngine(ctx context.Context, dir string, callers int) (*contender, error) {
	engine, err := recovery.Open(ctx, filepath.Join(dir, "engine"), recovery.Options{})
	if err != nil {
		return nil, err
	}
	c := &contender{name: "engine", events: 1, close: engine.Close}
	ids := new(atomic.Int64)
	for range callers {
		c.callers = append(c.callers, engineCaller(engine, ids))
	}
	return c, nil
}

// startBolt is a peer to compare with: bbolt, which with many callers was the fastest of the durable stores in Go that we
// measured. It is given a value of as many bytes, made beforehand, under a key that grows. Many callers share a
// transaction (DB.Batch), which begins as soon as all of them are there; one has its own.
func startBolt(_ context.Context, dir string, callers int) (*contender, error) {
	db, err := bbolt.Open(filepath.Join(dir, "bolt"), 0o666, nil)
	if err != nil {
		return nil, err
	}
	events := []byte("events")
	err = db.Update(func(tx *bbolt.Tx) error { _, err := tx.CreateBucket(events); return err })
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	transact := db.Update
	if db.MaxBatchSize = callers; callers > 1 {
		transact = db.Batch
	}
	value := bytes.Repeat([]byte("x"), lineBytes)
	put := func(tx *bbolt.Tx) error {
		b := tx.Bucket(events)
		seq, err := b.NextSequence()
		if err != nil {
			return err
		}
		return b.Put(binary.BigEndian.AppendUint64(nil, seq), value)
	}
	c := &contender{name: "bbolt", events: 1, close: db.Close}
	for range callers {
		c.callers = append(c.callers, func(ctx context.Context) error { return cmp.Or(transact(put), ctx.Err()) })
	}
	return c, nil
}
