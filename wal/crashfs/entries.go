package crashfs

import (
	"cmp"
	"maps"
	"slices"
)

// entryOp is one change of a directory: a create or mkdir (add alone), a remove (gone), or a rename (add, with toDir),
// which is both of its halves or neither.
type entryOp struct {
	dir, toDir   *node
	name, toName string
	add, gone    *node

	needs   []*entryOp // what had to be there first: to make this durable is to make those durable
	inside  []*entryOp // the mkdirs of its directories, which it does not make durable, and without which it is nothing
	fate    fate
	settled bool // it is on stable storage, in synced
}

func (o *entryOp) in(dir *node) bool { return o.dir == dir || o.toDir == dir }

func (o *entryOp) on(dir *node, name string) bool {
	return o.dir == dir && o.name == name || o.toDir == dir && o.toName == name && dir != nil
}

func (o *entryOp) movesDir() bool { return o.toDir != nil && o.add.isDir() }

// apply makes the change in the entries that it is given.
func (o *entryOp) apply(entries func(dir *node) map[string]*node) {
	if o.gone != nil || o.toDir != nil {
		delete(entries(o.dir), o.name)
	}
	if o.add != nil {
		entries(cmp.Or(o.toDir, o.dir))[cmp.Or(o.toName, o.name)] = o.add
	}
}

// addLocked notes a change that everyone sees and no disk has. It makes no sense without the last one of the same
// name, and so without any before that; nor, if it removes a directory, without those that emptied it. Directories
// are moved in order, or two moves could make a circle.
func (f *FS) addLocked(op *entryOp) {
	var first, second, moved bool
	for _, before := range slices.Backward(f.ops) {
		sameFirst := !first && before.on(op.dir, op.name)
		sameSecond := !second && op.toDir != nil && before.on(op.toDir, op.toName)
		move := !moved && op.movesDir() && before.movesDir()
		if sameFirst || sameSecond || move || op.gone != nil && before.in(op.gone) {
			op.needs = append(op.needs, before)
		}
		first, second, moved = first || sameFirst, second || sameSecond, moved || move
	}
	for _, dir := range []*node{op.dir, op.toDir} {
		if dir != nil && dir.made != nil {
			op.inside = append(op.inside, dir.made)
		}
	}
	f.ops = append(f.ops, op)
}

// commitLocked is a SyncDir. What it commits in a directory whose own entry is not durable comes and goes with that
// entry.
func (f *FS) commitLocked(dir *node) {
	for _, op := range f.ops {
		if op.in(dir) {
			op.force()
		}
	}
	isSettled := func(op *entryOp) bool { return op.settled }
	f.ops = slices.DeleteFunc(f.ops, func(op *entryOp) bool {
		op.settled = op.fate == forced && all(op.needs, isSettled) && all(op.inside, isSettled)
		if op.settled {
			op.apply(func(dir *node) map[string]*node { return dir.synced })
			op.needs, op.inside = nil, nil
			if op.add != nil && op.add.made == op {
				op.add.made = nil
			}
		}
		return op.settled
	})
}

// force decides that a change is on stable storage, unless a failed sync has already lied about it.
func (o *entryOp) force() {
	if o.fate != open || o.settled {
		return
	}
	o.fate = forced
	for _, op := range o.needs {
		op.force()
	}
}

func all[T any](list []T, ok func(T) bool) bool {
	return !slices.ContainsFunc(list, func(v T) bool { return !ok(v) })
}

// loseUnsyncedDir is a failed SyncDir that lies: no later one puts these changes on stable storage.
func (f *FS) loseUnsyncedDir(name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	dir, err := f.dirLocked(name)
	for _, op := range f.ops {
		if err == nil && op.in(dir) && op.fate == open {
			op.fate = doomed
		}
	}
}

// tree is what directories may hold after a crash: nodes of the world before it, in new places.
type tree struct {
	entries map[*node]map[string]*node // of every directory in it
	files   []*node                    // in order of creation
	holds   map[*node]bool             // everything in it
}

// treeLocked asks keep about every change that is not durable. One that is kept needs those it follows.
func (f *FS) treeLocked(keep func() bool) *tree {
	dirs := make(map[*node]map[string]*node)
	entries := func(dir *node) map[string]*node {
		if dirs[dir] == nil {
			dirs[dir] = maps.Clone(dir.synced)
		}
		return dirs[dir]
	}
	there := make(map[*entryOp]bool)
	isThere := func(op *entryOp) bool { return op.settled || there[op] }
	for _, op := range f.ops {
		if all(op.needs, isThere) && all(op.inside, isThere) && (op.fate == forced || keep()) {
			there[op] = true
			op.apply(entries)
		}
	}
	return newTree(f.root, entries)
}

// newTree walks from the root, so that what is in no directory is left out.
func newTree(root *node, entries func(dir *node) map[string]*node) *tree {
	t := &tree{entries: make(map[*node]map[string]*node), holds: make(map[*node]bool)}
	var walk func(n *node)
	walk = func(n *node) {
		t.holds[n] = true
		if !n.isDir() {
			t.files = append(t.files, n)
			return
		}
		t.entries[n] = entries(n)
		for _, child := range t.entries[n] {
			walk(child)
		}
	}
	walk(root)
	slices.SortFunc(t.files, func(a, b *node) int { return cmp.Compare(a.id, b.id) })
	return t
}

// seenLocked is the tree as everyone sees it.
func (f *FS) seenLocked() *tree {
	return newTree(f.root, func(dir *node) map[string]*node { return dir.entries })
}
