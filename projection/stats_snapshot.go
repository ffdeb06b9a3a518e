package projection

import (
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// A snapshot of Stats is last, events, from, to, the tallies of all and of other jobs, how many capabilities and of each
// its name and tally, and of each stage how many counts are not 0 and of each its distance from the one before and the
// count.

// statsVersion is that of the layout above.
const statsVersion = 1

// Version implements [Snapshotter]: 1.
func (s *Stats) Version() int { return statsVersion }

// Snapshot implements [Snapshotter]. It makes a copy of it all, some 200 KB.
func (s *Stats) Snapshot() (save func(io.Writer) error, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := binary.AppendUvarint(binary.AppendUvarint(nil, s.last), s.events)
	b = appendTime(appendTime(b, s.from), s.to)
	b = s.other.append(s.all.append(b))
	b = binary.AppendUvarint(b, uint64(len(s.capabilities)))
	for _, name := range slices.Sorted(maps.Keys(s.capabilities)) {
		b = s.capabilities[name].append(appendText(b, name))
	}
	for _, h := range s.stages {
		b = appendCounts(b, h.Export().Counts)
	}
	return func(w io.Writer) error {
		if _, err := w.Write(b); err != nil {
			return fmt.Errorf("projection: stats: snapshot: %w", err)
		}
		return nil
	}, nil
}

func (t *tally) append(b []byte) []byte {
	b = binary.AppendVarint(b, int64(t.parked))
	for i := range t.states {
		b = binary.AppendUvarint(binary.AppendVarint(b, int64(t.states[i])), t.ever[i])
	}
	return b
}

func appendCounts(b []byte, counts []int64) []byte {
	n, last := 0, 0
	for _, count := range counts {
		if count != 0 {
			n++
		}
	}
	b = binary.AppendUvarint(b, uint64(n))
	for i, count := range counts {
		if count != 0 {
			b = binary.AppendUvarint(binary.AppendUvarint(b, uint64(i-last)), uint64(count))
			last = i
		}
	}
	return b
}

// Load implements [Snapshotter].
func (s *Stats) Load(r io.Reader) error {
	fresh, src := NewStats(), newSource(r)
	fresh.load(src)
	if src.err != nil {
		return fmt.Errorf("projection: stats: not a snapshot, or damaged: %w", src.err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last != 0 {
		return fmt.Errorf("projection: stats: a snapshot is loaded into a new Stats only")
	}
	s.events, s.last, s.from, s.to = fresh.events, fresh.last, fresh.from, fresh.to
	s.all, s.other, s.capabilities, s.stages = fresh.all, fresh.other, fresh.capabilities, fresh.stages
	return nil
}

func (s *Stats) load(src *source) {
	s.last, s.events = src.uint(), src.uint()
	s.from, s.to = src.time(), src.time()
	s.all.load(src)
	s.other.load(src)
	for n := src.uintTo(MaxCapabilities, "number of capabilities"); n > 0 && src.err == nil; n-- {
		t := new(tally)
		s.capabilities[src.text()] = t
		t.load(src)
	}
	for i, h := range s.stages {
		snapshot := h.Export()
		loadCounts(src, snapshot.Counts)
		if err := snapshot.Validate(); err != nil {
			src.fail(err)
			return
		}
		s.stages[i] = hdrhistogram.Import(snapshot)
	}
	src.end()
}

func (t *tally) load(src *source) {
	t.parked = int(src.int())
	for i := range t.states {
		t.states[i], t.ever[i] = int(src.int()), src.uint()
	}
}

func loadCounts(src *source, counts []int64) {
	at := uint64(0)
	for n := src.uintTo(uint64(len(counts)), "number of counts"); n > 0 && src.err == nil; n-- {
		at += src.uintTo(uint64(len(counts))-1-at, "distance")
		counts[at] = int64(src.uintTo(math.MaxInt64, "count"))
	}
}
