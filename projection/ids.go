package projection

import "hash/maphash"

// An idIndex finds the slot of an id, in some 14 bytes a job where a map with the strings as keys takes 50. It is many
// small hash tables, so that none ever grows at a length that a command would notice.
type idIndex struct {
	seed   maphash.Seed
	shards [256]shard
}

// A shard is a hash table with open addressing. A cell is 32 bits of the id's hash, by which a cell is found and told
// from most others without a look at the id, then the slot + 1; 0 is empty.
type shard struct {
	cells []uint64 // a power of two; at most three quarters are taken
	used  int
}

func (x *idIndex) place(id string) (s *shard, tag uint32) {
	h := maphash.String(x.seed, id)
	return &x.shards[h>>56], uint32(h)
}

// find returns the slot for which is says that it has the id.
func (s *shard) find(tag uint32, is func(slot uint32) bool) (uint32, bool) {
	mask := uint32(len(s.cells) - 1)
	for i := tag; len(s.cells) > 0; i++ {
		switch c := s.cells[i&mask]; {
		case c == 0:
			return 0, false
		case uint32(c>>32) == tag && is(uint32(c)-1):
			return uint32(c) - 1, true
		}
	}
	return 0, false
}

// add puts in a slot whose id is not there yet.
func (s *shard) add(tag, slot uint32) {
	if 4*(s.used+1) > 3*len(s.cells) {
		s.resize(max(8, 2*len(s.cells)))
	}
	s.put(uint64(tag)<<32 | uint64(slot+1))
	s.used++
}

func (s *shard) put(cell uint64) {
	mask := uint32(len(s.cells) - 1)
	i := uint32(cell >> 32)
	for s.cells[i&mask] != 0 {
		i++
	}
	s.cells[i&mask] = cell
}

// remove takes out a slot that is there. Cells behind it close up, so that none is ever searched past the next gap.
func (s *shard) remove(tag, slot uint32) {
	mask := uint32(len(s.cells) - 1)
	gap := tag & mask
	for s.cells[gap] != uint64(tag)<<32|uint64(slot+1) {
		gap = (gap + 1) & mask
	}
	for i := (gap + 1) & mask; s.cells[i] != 0; i = (i + 1) & mask {
		if home := uint32(s.cells[i] >> 32); (i-home)&mask >= (i-gap)&mask {
			s.cells[gap], gap = s.cells[i], i
		}
	}
	s.cells[gap] = 0
	s.used--
	if len(s.cells) > 8 && 8*s.used < len(s.cells) {
		s.resize(len(s.cells) / 4)
	}
}

func (s *shard) resize(n int) {
	old := s.cells
	s.cells = make([]uint64, n)
	for _, c := range old {
		if c != 0 {
			s.put(c)
		}
	}
}

// renumber gives every slot its new number.
func (x *idIndex) renumber(moved func(slot uint32) uint32) {
	for i := range x.shards {
		for k, c := range x.shards[i].cells {
			if c != 0 {
				x.shards[i].cells[k] = c>>32<<32 | uint64(moved(uint32(c)-1)+1)
			}
		}
	}
}
