package recovery

import (
	"iter"
	"runtime"

	"github.com/jobwal/jobwal/wal"
)

// What is read ahead at most: batches, each of so many events, or, where they are large, of no more than one event
// beyond so many bytes.
const (
	batchesAhead = 4
	batchEvents  = 256
	batchBytes   = 256 << 10
)

// A batch is a stretch of a log, and the error that ended it.
type batch struct {
	events []wal.Event
	err    error
}

// readAhead yields what events does, while another goroutine goes on reading: decoding takes as long as folding. The
// order is the same. When it returns, the other goroutine has ended.
func readAhead(events iter.Seq2[wal.Event, error]) iter.Seq2[wal.Event, error] {
	if runtime.GOMAXPROCS(0) == 1 {
		return events
	}
	return func(yield func(wal.Event, error) bool) {
		r := reader{
			full:  make(chan batch, batchesAhead),
			empty: make(chan []wal.Event, batchesAhead+2),
			stop:  make(chan struct{}),
		}
		go r.run(events)
		defer func() {
			close(r.stop)
			for range r.full { // until run has closed it: the log may be closed next
			}
		}()
		for b := range r.full {
			for i := range b.events {
				if !yield(b.events[i], nil) {
					return
				}
			}
			if b.err != nil {
				yield(wal.Event{}, b.err)
				return
			}
			clear(b.events)
			r.empty <- b.events[:0]
		}
	}
}

type reader struct {
	full  chan batch
	empty chan []wal.Event // batches to be filled again; never full
	stop  chan struct{}    // closed when nobody takes batches any more
}

func (r *reader) run(events iter.Seq2[wal.Event, error]) {
	defer close(r.full)
	b, size := batch{events: make([]wal.Event, 0, batchEvents)}, 0
	for e, err := range events {
		if err != nil {
			b.err = err
			break
		}
		b.events = append(b.events, e)
		size += len(e.Args) + len(e.Output) + len(e.Error)
		if len(b.events) < batchEvents && size < batchBytes {
			continue
		}
		if !r.send(b) {
			return
		}
		b, size = batch{events: r.another()}, 0
	}
	r.send(b)
}

func (r *reader) send(b batch) (wanted bool) {
	select {
	case r.full <- b:
		return true
	case <-r.stop:
		return false
	}
}

func (r *reader) another() []wal.Event {
	select {
	case events := <-r.empty:
		return events
	default:
		return make([]wal.Event, 0, batchEvents)
	}
}
