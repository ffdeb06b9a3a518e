package wal

import (
	"slices"
	"sort"
	"sync"
)

// places is where some events of a segment lie: about one in 16 KiB, and each that is larger, noted by whoever passes over
// their lines anyway. It makes a search shorter and decides nothing: what is found in its light is checked like any line,
// and what is not found is looked for without it. So it is neither kept on disk nor rebuilt, and a wrong entry costs time
// alone.
//
// It takes 16 bytes for 16 KiB of a segment, a thousandth, or twice that where events are large, and is gone with its
// segment. Safe for concurrent use; the nil places know nothing, and are told nothing.
type places struct {
	mu   sync.Mutex // guards the field below; never held during I/O
	list []placed   // by offset
}

// placed is an event and the offset of its line.
type placed struct {
	seq uint64
	at  int64
}

const placeEvery = 16 << 10

// add notes where a line lies, unless it is small and one nearby is known.
func (p *places) add(seq uint64, at, end int64) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	i := sort.Search(len(p.list), func(i int) bool { return p.list[i].at >= at })
	behind := i == 0 || at-p.list[i-1].at >= placeEvery || end-at >= placeEvery
	before := i == len(p.list) || p.list[i].at-at >= placeEvery
	if behind && before {
		p.list = slices.Insert(p.list, i, placed{seq, at})
	}
}

// around makes [lo, hi), where the line of seq begins, as short as it can.
func (p *places) around(seq uint64, lo, hi placed) (placed, placed) {
	if p == nil {
		return lo, hi
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	i := sort.Search(len(p.list), func(i int) bool { return p.list[i].seq > seq })
	if i > 0 && p.list[i-1].at > lo.at && p.list[i-1].at < hi.at {
		lo = p.list[i-1]
	}
	if i < len(p.list) && p.list[i].at > lo.at && p.list[i].at < hi.at {
		hi = p.list[i]
	}
	return lo, hi
}

// noting tells places of some of the lines that are passed over in order.
type noting struct {
	to   *places
	next int64 // the offset from which on the next one is told
}

func (n *noting) line(seq uint64, at, end int64) {
	if at >= n.next || end-at >= placeEvery {
		n.to.add(seq, at, end)
		n.next = at + placeEvery
	}
}
