package crashfs

import (
	"maps"
	"slices"
)

// Crash returns a new file system as the policy says that a power cut at this instant leaves it. The old one goes on as
// if nothing had happened, handles and locks with it, and shares nothing with the new: Crash is a picture, and any
// number may be taken of one instant. To end the old world too, see Faulty.Stop.
//
// What the new file system holds is all on stable storage, nothing is open and no lock is held. After [Everything]
// alone, which is the death of the process and not of the machine, what was not synced is still not.
func (f *FS) Crash(p Policy) *FS {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if p == Everything {
		return f.copyLocked()
	}
	d := p.dice()
	t := f.treeLocked(d.entry)
	cut := f.findLocked(p)
	images := make(map[*node]content)
	for _, n := range t.files {
		switch {
		case n == cut:
			images[n] = n.cutAt(p.n)
		case len(n.pending) == 0:
			images[n] = n.base
		default:
			images[n] = n.land(d, f.freed.after(t, n))
		}
	}
	return f.buildLocked(t, images)
}

// CrashSeed is Crash(Seed(seed)).
func (f *FS) CrashSeed(seed uint64) *FS { return f.Crash(Seed(seed)) }

// Unsynced returns how many bytes were written to a file that are not on stable storage: those that [CutAt] counts.
func (f *FS) Unsynced(name string) (bytes int64) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if n := f.findLocked(CutAt(name, 0)); n != nil {
		for _, c := range n.pending {
			bytes += int64(len(c.data))
		}
	}
	return bytes
}

func (f *FS) findLocked(p Policy) *node {
	if p.kind != cutAt {
		return nil
	}
	dir, base, err := f.parentLocked(p.name)
	if err != nil || dir.entries[base] == nil || dir.entries[base].isDir() {
		return nil
	}
	return dir.entries[base]
}

// land is one way for a file's changes to have reached the disk. Three things are asked about apart: which parts of a
// change landed, how far the size followed, and what lies in sectors that the size covers and no write reached.
func (n *node) land(d dice, free []stale) content {
	img, size := n.base.clone(), n.base.size
	written := make(map[int64]bool) // the sectors that writes meant to reach; true for those that one did
	d.file()
	for _, c := range n.pending {
		for from, to := range c.parts(d.grain) {
			landed := c.fate == forced || c.fate == open && d.data()
			if landed {
				c.apply(&img, from, to)
			}
			for s := from / SectorSize; s*SectorSize < to && c.data != nil; s++ {
				written[s] = written[s] || landed
			}
		}
		size = c.resize(size, d)
	}
	n.haunt(&img, size, written, d, free)
	img.resize(size)
	return img
}

// apply puts the part of a change between two offsets into a file: a write's bytes, or a truncate's zeros, which are
// what the kernel leaves of a page that is cut, and may land before the size does.
func (c change) apply(img *content, from, to int64) {
	if c.data != nil {
		img.put(c.data[from-c.off:to-c.off], from)
		return
	}
	for from < to {
		end := min(to, (from/PageSize+1)*PageSize)
		img.zero(from, end)
		from = end
	}
}

// resize is the size after a change. A truncate's lands or not; a write's may also land in part.
func (c change) resize(size int64, d dice) int64 {
	switch {
	case c.data == nil && c.off == size || c.data != nil && c.end() <= size:
		return size
	case c.fate == forced:
		return c.end()
	case c.data != nil:
		return d.size(size, max(size, c.off), c.end())
	default:
		return d.size(size, c.off, c.off)
	}
}

// haunt fills sectors that no write reached with what they held before they belonged to this file, where the size
// covers them: those that a write meant to reach, and the rest of the sector in which the file ended.
func (n *node) haunt(img *content, size int64, written map[int64]bool, d dice, free []stale) {
	last := n.base.size / SectorSize
	if n.ghost != nil && !written[last] && size > n.base.size && d.stale(1) > 0 {
		img.put(n.ghost, n.base.size)
	}
	for _, s := range slices.Sorted(maps.Keys(written)) {
		if written[s] || s*SectorSize < n.base.size || s*SectorSize >= size || len(free) == 0 {
			continue
		}
		if i := d.stale(len(free)); i > 0 {
			img.put(pick(free, i, s), s*SectorSize)
		}
	}
}

// cutAt lets the file's changes land in order, as far as the first so many bytes of what was written.
func (n *node) cutAt(bytes int64) content {
	img := n.base.clone()
	for i, c := range n.pending {
		if bytes <= 0 && slices.ContainsFunc(n.pending[i:], func(c change) bool { return c.data != nil }) {
			break
		}
		end := min(c.end(), c.off+bytes)
		if c.data == nil {
			img.resize(c.off)
			continue
		}
		if c.fate != doomed {
			img.put(c.data[:end-c.off], c.off)
		}
		img.size = max(img.size, end)
		bytes -= end - c.off
	}
	return img
}

func roundUp(off int64) int64 { return (off + SectorSize - 1) / SectorSize * SectorSize }

// buildLocked makes a file system in which all this is on stable storage.
func (f *FS) buildLocked(t *tree, images map[*node]content) *FS {
	after := New()
	after.lastID = f.lastID
	var build func(n *node) *node
	build = func(n *node) *node {
		if n.isDir() {
			to := &node{id: n.id, perm: n.perm, entries: make(map[string]*node)}
			for name, child := range t.entries[n] {
				to.entries[name] = build(child)
			}
			to.synced = maps.Clone(to.entries)
			return to
		}
		img := images[n]
		return &node{id: n.id, perm: n.perm, cur: img.clone(), base: img.clone(), ghost: n.ghostAfter(&img)}
	}
	after.root = build(f.root)
	after.freed = f.freedLocked(t, images)
	return after
}

// ghostAfter is what may lie behind the new end of a file, in its last sector: bytes that landed while the size did
// not.
func (n *node) ghostAfter(img *content) []byte {
	behind := make([]byte, roundUp(img.size)-img.size)
	n.cur.read(behind, img.size)
	if img.size == n.base.size && len(n.pending) == 0 {
		return n.ghost
	}
	if !slices.ContainsFunc(behind, func(b byte) bool { return b != 0 }) {
		return nil
	}
	return behind
}

// freedLocked is what free blocks hold after a crash: what they held before it, and what was written to files, or parts
// of files, that are not there any more.
func (f *FS) freedLocked(t *tree, images map[*node]content) (free freeList) {
	for _, s := range f.freed {
		img, there := images[s.owner]
		if !there || !s.unlinked && img.size <= s.at*SectorSize {
			free = append(free, stale{at: s.at, bytes: s.bytes})
		}
	}
	for _, n := range f.seenLocked().files {
		if img, there := images[n]; !there {
			free.add(nil, false, &n.cur, 0)
		} else if img.size < n.cur.size {
			free.add(nil, false, &n.cur, roundUp(img.size))
		}
	}
	return free
}

// copyLocked is the same world again, unsynced changes and all, without handles and locks.
func (f *FS) copyLocked() *FS {
	c := copier{nodes: make(map[*node]*node), ops: make(map[*entryOp]*entryOp)}
	after := New()
	after.lastID = f.lastID
	after.root = c.node(f.root)
	for _, op := range f.ops {
		after.ops = append(after.ops, c.op(op))
	}
	for _, s := range f.freed {
		s.owner = c.node(s.owner)
		after.freed = append(after.freed, s)
	}
	return after
}

// copier keeps one copy of everything, since nodes and changes refer to each other.
type copier struct {
	nodes map[*node]*node
	ops   map[*entryOp]*entryOp
}

func (c copier) node(n *node) *node {
	if n == nil || c.nodes[n] != nil {
		return c.nodes[n]
	}
	to := &node{id: n.id, perm: n.perm, path: n.path, cur: n.cur.clone(), base: n.base.clone(),
		pending: slices.Clone(n.pending), ghost: n.ghost}
	c.nodes[n] = to
	to.made = c.op(n.made)
	if n.isDir() {
		to.entries, to.synced = c.entries(n.entries), c.entries(n.synced)
	}
	return to
}

func (c copier) entries(from map[string]*node) map[string]*node {
	to := make(map[string]*node)
	for name, n := range from {
		to[name] = c.node(n)
	}
	return to
}

func (c copier) op(o *entryOp) *entryOp {
	if o == nil || c.ops[o] != nil {
		return c.ops[o]
	}
	to := &entryOp{name: o.name, toName: o.toName, fate: o.fate, settled: o.settled}
	c.ops[o] = to
	to.dir, to.toDir, to.add, to.gone = c.node(o.dir), c.node(o.toDir), c.node(o.add), c.node(o.gone)
	for _, need := range o.needs {
		to.needs = append(to.needs, c.op(need))
	}
	for _, mkdir := range o.inside {
		to.inside = append(to.inside, c.op(mkdir))
	}
	return to
}
