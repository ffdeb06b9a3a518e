package crashfs

import "slices"

// What is kept of blocks that are free again: the newest of all, and so many of one file that was cut or removed.
const (
	maxFreed     = 2048
	maxFreedOnce = 512
)

// stale is what a sector held before it was free.
type stale struct {
	owner    *node // whose it may still be after a crash; nil when it is free for good
	unlinked bool  // freed by a remove, or a rename over it; otherwise by a truncate
	at       int64 // which sector of its file it was
	bytes    *sector
}

// freeList remembers the last bytes of free sectors, since a crash may show them in a file that grew into them.
type freeList []stale

func (l *freeList) add(owner *node, unlinked bool, c *content, from int64) {
	for i, at := range c.sectors(from) {
		if i == maxFreedOnce {
			break
		}
		bytes := c.sector(at)
		*l = append(*l, stale{owner, unlinked, at, &bytes})
	}
	if len(*l) > 2*maxFreed {
		*l = slices.Clone((*l)[len(*l)-maxFreed:])
	}
}

// settle: the truncates of a file are on stable storage.
func (l freeList) settle(n *node) {
	for i := range l {
		if l[i].owner == n && !l[i].unlinked {
			l[i].owner = nil
		}
	}
}

// after is what is free in a tree: a sector of a file that came back with its remove lost is not. The file n may also
// find its own, since it is cut and grows again at one blow.
func (l freeList) after(t *tree, n *node) []stale {
	var free []stale
	for _, s := range l {
		if s.owner == nil || s.owner == n && !s.unlinked || !t.holds[s.owner] {
			free = append(free, s)
		}
	}
	return free
}

// held tells trees apart in which not the same sectors are free.
func (l freeList) held(t *tree) string {
	held := make([]byte, len(l))
	for i, s := range l {
		held[i] = '0'
		if t.holds[s.owner] {
			held[i] = '1'
		}
	}
	return string(held)
}

// pick returns one of so many free sectors, from 1, for a place in a file. The first is the newest that stood at the
// same place of its file: that is what looks most like the truth.
func pick(free []stale, i int, at int64) []byte {
	if i == 1 {
		for _, s := range slices.Backward(free) {
			if s.at == at {
				return s.bytes[:]
			}
		}
	}
	return free[len(free)-i].bytes[:]
}
