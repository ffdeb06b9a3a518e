package crashtest

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"slices"
	"sync"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/wal"
)

// A MemLog is a log in memory that several engines may share, as several hosts share a replicated one: each [MemLog.Open]
// is an end of its own, with an epoch of its own, on which an engine may stand beside the others. Of two that race for a
// job one gets [recovery.ErrConflict]. It takes and refuses what a log on disk does, so it is also the fastest log there
// is for tests that need no disk.
//
// The zero value is an empty log, ready for use; its fields are not to be changed after the first Open. It is safe for
// concurrent use. Nothing is on a disk: what was appended is there as long as the MemLog.
type MemLog struct {
	// Gap: so many seqs are left out before each append, as some replicated logs do; a group's own are always contiguous.
	// Default 0, dense.
	Gap uint64
	// WAL: MaxEventBytes and Now are used. Default: those of wal.Options{}.
	WAL wal.Options

	mu      sync.Mutex  // guards the fields below
	events  []wal.Event // by seq; never changed once there, and copied before they are shown
	gone    uint64      // the newest event that was dropped
	last    uint64      // the newest seq ever, dropped or not
	heads   map[string]uint64
	epochs  uint64
	live    map[uint64]bool
	changed chan struct{} // closed when there is a new event, or an end is closed
}

// Open returns a new end of the log. It implements [Opener]. The only error is ctx's.
func (m *MemLog) Open(ctx context.Context) (recovery.Log, error) {
	if err := usable(ctx); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.heads == nil {
		m.heads, m.live = make(map[string]uint64), make(map[uint64]bool)
	}
	m.epochs++
	m.live[m.epochs] = true
	return &memEnd{log: m, epoch: m.epochs}, nil
}

// MaxEventBytes is the largest event that the log takes, for [TestLog].
func (m *MemLog) MaxEventBytes() int { return cmp.Or(m.WAL.MaxEventBytes, wal.DefaultMaxEventBytes) }

// Kill ends whoever appends under an epoch, as if its host had died and the others had agreed that it is gone: it lives
// no longer, and its end is closed.
func (m *MemLog) Kill(epoch uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.live, epoch)
	m.wakeLocked()
}

// usable returns what is wrong with a caller's context, if anything.
func usable(ctx context.Context) error {
	if ctx == nil {
		return &wal.InvalidError{Field: "context", Reason: "nil"}
	}
	return ctx.Err()
}

func (m *MemLog) wakeLocked() {
	if m.changed != nil {
		close(m.changed)
		m.changed = nil
	}
}

// memEnd is one opening of a MemLog.
type memEnd struct {
	log   *MemLog
	epoch uint64
}

func (d *memEnd) ID() string    { return "memlog" }
func (d *memEnd) Epoch() uint64 { return d.epoch }

func (d *memEnd) FirstSeq() uint64 {
	d.log.mu.Lock()
	defer d.log.mu.Unlock()
	return d.log.firstLocked()
}

func (m *MemLog) firstLocked() uint64 {
	if len(m.events) == 0 {
		return m.last + 1
	}
	return m.events[0].Seq
}

func (d *memEnd) LastSeq() uint64 {
	d.log.mu.Lock()
	defer d.log.mu.Unlock()
	return d.log.last
}

func (d *memEnd) Live(epoch uint64) bool {
	d.log.mu.Lock()
	defer d.log.mu.Unlock()
	return d.log.live[epoch]
}

func (d *memEnd) Close() error {
	d.log.Kill(d.epoch)
	return nil
}

func (d *memEnd) Append(ctx context.Context, events ...wal.Event) (first uint64, err error) {
	if err := usable(ctx); err != nil {
		return 0, err
	}
	events, err = wal.Prepare(d.log.WAL, events...)
	if err != nil {
		return 0, err
	}
	return d.log.append(d.epoch, events)
}

// append takes events over.
func (m *MemLog) append(epoch uint64, events []wal.Event) (first uint64, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.live[epoch] {
		return 0, wal.ErrClosed
	}
	first = m.last + 1 + m.Gap
	heads := make(map[string]uint64)
	for i := range events {
		e := &events[i]
		e.Seq, e.Epoch = first+uint64(i), epoch
		if e.JobID == "" {
			continue
		}
		if before, ours := heads[e.JobID]; ours {
			e.Prev = before
		} else if newest := m.heads[e.JobID]; e.Prev != newest {
			return 0, fmt.Errorf("%w %q: its newest event is %d, not %d", recovery.ErrConflict, e.JobID, newest, e.Prev)
		}
		heads[e.JobID] = e.Seq
	}
	for id, seq := range heads {
		m.heads[id] = seq
	}
	m.events = append(m.events, events...)
	m.last = events[len(events)-1].Seq
	m.wakeLocked()
	return first, nil
}

// DropBefore forgets the events below seq, for all ends.
func (d *memEnd) DropBefore(seq uint64) error {
	m := d.log
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.live[d.epoch] {
		return wal.ErrClosed
	}
	if n, _ := m.findLocked(seq); n > 0 {
		m.gone = m.events[n-1].Seq
		m.events = slices.Clone(m.events[n:])
	}
	return nil
}

// findLocked returns the index of the event at seq, or of the first one behind.
func (m *MemLog) findLocked(seq uint64) (int, bool) {
	return slices.BinarySearchFunc(m.events, seq, func(e wal.Event, seq uint64) int {
		switch {
		case e.Seq < seq:
			return -1
		case e.Seq > seq:
			return 1
		}
		return 0
	})
}

func (d *memEnd) At(ctx context.Context, seq uint64) (wal.Event, error) {
	if err := usable(ctx); err != nil {
		return wal.Event{}, err
	}
	m := d.log
	m.mu.Lock()
	defer m.mu.Unlock()
	i, there := m.findLocked(seq)
	switch {
	case !m.live[d.epoch]:
		return wal.Event{}, wal.ErrClosed
	case there:
		return copied(m.events[i]), nil
	case seq != 0 && seq <= m.gone:
		return wal.Event{}, &wal.DroppedError{Seq: seq, First: m.firstLocked()}
	}
	return wal.Event{}, &wal.InvalidError{Field: "seq", Reason: fmt.Sprintf("%d; there is no such event", seq)}
}

// copied returns e with payloads of its own.
func copied(e wal.Event) wal.Event {
	e.Args, e.Output = slices.Clone(e.Args), slices.Clone(e.Output)
	return e
}

// next returns the first event at seq or behind it; or else a channel that is closed when there may be one. seq 0 is the
// first that is there.
func (d *memEnd) next(seq uint64) (wal.Event, <-chan struct{}, error) {
	m := d.log
	m.mu.Lock()
	defer m.mu.Unlock()
	i, _ := m.findLocked(seq)
	switch {
	case !m.live[d.epoch]:
		return wal.Event{}, nil, wal.ErrClosed
	case seq != 0 && seq <= m.gone:
		return wal.Event{}, nil, &wal.DroppedError{Seq: seq, First: m.firstLocked()}
	case i < len(m.events):
		return copied(m.events[i]), nil, nil
	}
	if m.changed == nil {
		m.changed = make(chan struct{})
	}
	return wal.Event{}, m.changed, nil
}

func (d *memEnd) Events(ctx context.Context, from uint64) iter.Seq2[wal.Event, error] {
	last := d.LastSeq()
	return func(yield func(wal.Event, error) bool) {
		for seq := from; ; {
			err := usable(ctx)
			var e wal.Event
			var wait <-chan struct{}
			if err == nil {
				e, wait, err = d.next(seq)
			}
			if err != nil {
				yield(wal.Event{}, err)
				return
			}
			if wait != nil || e.Seq > last || !yield(e, nil) {
				return
			}
			seq = e.Seq + 1
		}
	}
}

func (d *memEnd) Follow(ctx context.Context, from uint64) iter.Seq2[wal.Event, error] {
	return func(yield func(wal.Event, error) bool) {
		for seq := from; ; {
			e, err := d.await(ctx, seq)
			if !yield(e, err) || err != nil {
				return
			}
			seq = e.Seq + 1
		}
	}
}

// await returns the first event at seq or behind it, when there is one.
func (d *memEnd) await(ctx context.Context, seq uint64) (wal.Event, error) {
	for {
		if err := usable(ctx); err != nil {
			return wal.Event{}, err
		}
		e, wait, err := d.next(seq)
		if err != nil || wait == nil {
			return e, err
		}
		select {
		case <-ctx.Done():
		case <-wait:
		}
	}
}
