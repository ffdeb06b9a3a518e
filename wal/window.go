package wal

// window is the newest events, for followers that keep up: a ring, by their seqs. It is bounded by bytes; whoever falls
// behind it reads from disk. The payloads that it holds are never changed.
type window struct {
	ring        []Event // as many as a power of two
	first, next uint64  // the seqs from first up to next are there
	bytes       int64
}

const (
	windowBytes = 4 << 20
	eventBytes  = 256 // what an event takes without what it points to, and a little more
)

func weight(e *Event) int64 {
	return eventBytes + int64(len(e.JobID)+len(e.Capability)+len(e.Args)+len(e.Output)+len(e.Error))
}

func (w *window) at(seq uint64) *Event { return &w.ring[seq&uint64(len(w.ring)-1)] }

// add adds events whose seqs follow on those that were added before. It copies them.
func (w *window) add(events []Event) {
	for i := range events {
		e := &events[i]
		if w.first == w.next {
			w.first, w.next = e.Seq, e.Seq
		}
		if w.next-w.first == uint64(len(w.ring)) {
			w.grow()
		}
		*w.at(e.Seq) = *e
		w.next++
		for w.bytes += weight(e); w.bytes > windowBytes; w.first++ {
			oldest := w.at(w.first)
			w.bytes -= weight(oldest)
			*oldest = Event{}
		}
	}
}

// grow doubles the ring, which its bytes set an end to.
func (w *window) grow() {
	wider := window{ring: make([]Event, max(64, 2*len(w.ring)))}
	for seq := w.first; seq < w.next; seq++ {
		*wider.at(seq) = *w.at(seq)
	}
	w.ring = wider.ring
}

// from puts the events from seq on, in order, into room, as many as it takes; none if seq is not there.
func (w *window) from(seq uint64, room []Event) []Event {
	room = room[:0]
	if seq < w.first {
		return room
	}
	for ; seq < w.next && len(room) < cap(room); seq++ {
		room = append(room, *w.at(seq))
	}
	return room
}
