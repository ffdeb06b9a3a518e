package projection

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"time"
)

// refusals are the ids that forgotten jobs have left behind: each event's, in the log's order, and a set of them all.
type refusals struct {
	events []refusal // never changed in place: a snapshot reads them while others are added
	oldest time.Time // none of the events is older
	set    printSet
}

// A refusal is what one jobs_forgotten event refuses. It never changes.
type refusal struct {
	seq    uint64
	at     time.Time
	prints []uint64
}

func (x *refusals) add(r refusal) {
	if len(r.prints) == 0 {
		return
	}
	if len(x.events) == 0 || r.at.Before(x.oldest) {
		x.oldest = r.at
	}
	x.events = append(x.events, r)
	for _, print := range r.prints {
		x.set.add(print)
	}
}

// release lets go of what events before this time refuse. Clocks jump: those may lie anywhere.
func (x *refusals) release(before time.Time) {
	if !x.oldest.Before(before) {
		return
	}
	all := x.events
	x.events, x.oldest = nil, time.Time{}
	kept := make([]refusal, 0, len(all))
	for _, r := range all {
		if !r.at.Before(before) {
			if len(kept) == 0 || r.at.Before(x.oldest) {
				x.oldest = r.at
			}
			kept = append(kept, r)
			continue
		}
		for _, print := range r.prints {
			x.set.remove(print)
		}
	}
	x.events = kept
}

func (x *refusals) has(print uint64) bool { return x.set.has(print) }

// since tells whether ids that the event at seq has named are refused still.
func (x *refusals) since(seq uint64) bool {
	_, found := slices.BinarySearchFunc(x.events, seq, func(r refusal, seq uint64) int { return cmp.Compare(r.seq, seq) })
	return found
}

// fingerprint stands for an id, in 64 bits of SHA-256, never 0.
func fingerprint(id string) uint64 {
	sum := sha256.Sum256([]byte(id))
	return max(1, binary.BigEndian.Uint64(sum[:]))
}

func fingerprints(ids []string) []uint64 {
	prints := make([]uint64, len(ids))
	for i, id := range ids {
		prints[i] = fingerprint(id)
	}
	return prints
}

// A printSet holds fingerprints, each as often as it was added. It is many small hash tables with open addressing, as
// an [idIndex] is; a fingerprint is its own hash.
type printSet struct{ shards [256]printShard }

type printShard struct {
	cells []uint64 // a power of two; 0 is empty; at most three quarters are taken
	used  int
}

func (x *printSet) add(print uint64) {
	s := &x.shards[print>>56]
	if 4*(s.used+1) > 3*len(s.cells) {
		s.resize(max(8, 2*len(s.cells)))
	}
	s.put(print)
	s.used++
}

// find returns the cell of print, or the empty one where the search for it ends.
func (s *printShard) find(print uint64) uint64 {
	mask := uint64(len(s.cells) - 1)
	i := print & mask
	for s.cells[i] != 0 && s.cells[i] != print {
		i = (i + 1) & mask
	}
	return i
}

func (x *printSet) has(print uint64) bool {
	s := &x.shards[print>>56]
	return len(s.cells) > 0 && s.cells[s.find(print)] == print
}

// remove takes out one that is there. Cells behind it close up.
func (x *printSet) remove(print uint64) {
	s := &x.shards[print>>56]
	mask := uint64(len(s.cells) - 1)
	gap := s.find(print)
	for i := (gap + 1) & mask; s.cells[i] != 0; i = (i + 1) & mask {
		if (i-s.cells[i])&mask >= (i-gap)&mask {
			s.cells[gap], gap = s.cells[i], i
		}
	}
	s.cells[gap] = 0
	s.used--
	if len(s.cells) > 8 && 8*s.used < len(s.cells) {
		s.resize(len(s.cells) / 4)
	}
}

func (s *printShard) put(print uint64) {
	mask := uint64(len(s.cells) - 1)
	i := print & mask
	for s.cells[i] != 0 {
		i = (i + 1) & mask
	}
	s.cells[i] = print
}

func (s *printShard) resize(n int) {
	old := s.cells
	s.cells = make([]uint64, n)
	for _, print := range old {
		if print != 0 {
			s.put(print)
		}
	}
}
