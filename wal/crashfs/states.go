package crashfs

import (
	"crypto/sha256"
	"fmt"
	"iter"
	"maps"
	"math"
	"math/bits"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
)

// States are the states that a power cut at one instant may leave, one after another: every legal choice of directory
// entries, with every choice of sectors, sizes and stale blocks for the files that are then there. Choices that lead to
// the same tree, or to the same bytes of a file, are one.
//
// Three things are narrower than in what [Seed] may choose: a size that landed in part ends where a sector does, a
// sector shows at most one stale block (the one that looks most like the truth), and pages are not thought of, since
// their states are among those of sectors.
type States struct {
	world *FS // a copy, which nobody else changes
	trees []forest
	picks []uint64 // which ones All yields, when it is not all
	total uint64
	exact bool
}

// forest is a tree with what each of its files may hold.
type forest struct {
	*tree
	images [][]content // of each of tree.files
	count  uint64
}

// CrashStates lists the states of a crash now. Where there are more than bound, it takes so many of them, always the
// same for the same file system, and Left tells the number of the others.
func (f *FS) CrashStates(bound int) *States {
	f.mu.RLock()
	s := &States{world: f.copyLocked(), exact: true}
	f.mu.RUnlock()
	images := make(map[string][]content)
	for _, t := range s.distinctTrees(bound) {
		g := forest{tree: t, count: 1}
		for _, n := range t.files {
			free := s.world.freed.after(t, n)
			key := fmt.Sprint(n.id, s.world.freed.held(t))
			if images[key] == nil {
				images[key] = s.outcomes(n, free, bound)
			}
			g.images = append(g.images, images[key])
			g.count = times(g.count, uint64(len(images[key])))
		}
		s.trees = append(s.trees, g)
		s.total = plus(s.total, g.count)
	}
	if s.total > uint64(bound) {
		s.picks = sample(s.total, bound)
	}
	return s
}

// Len returns how many states All yields.
func (s *States) Len() int {
	if s.picks != nil {
		return len(s.picks)
	}
	return int(s.total)
}

// Left returns how many states there are besides, and whether that is exact: it is not where even the states of one
// file, or of the directories, were too many to be walked; then there are more. math.MaxUint64 means that or more.
func (s *States) Left() (states uint64, exact bool) {
	return s.total - uint64(s.Len()), s.exact && s.total < math.MaxUint64
}

// All yields the states with their numbers. The first is what SyncedOnly leaves.
func (s *States) All() iter.Seq2[int, *FS] {
	return func(yield func(int, *FS) bool) {
		for i := range s.Len() {
			if !yield(i, s.At(i)) {
				return
			}
		}
	}
}

// At returns one state by its number, of Len.
func (s *States) At(i int) *FS {
	at := uint64(i)
	if s.picks != nil {
		at = s.picks[i]
	}
	for _, t := range s.trees {
		if at >= t.count {
			at -= t.count
			continue
		}
		images := make(map[*node]content)
		for j, n := range t.files {
			size := uint64(len(t.images[j]))
			images[n] = t.images[j][at%size]
			at /= size
		}
		return s.world.buildLocked(t.tree, images)
	}
	panic(fmt.Sprintf("crashfs: no state %d of %d", i, s.Len()))
}

// distinctTrees walks the choices of directory entries.
func (s *States) distinctTrees(bound int) (trees []*tree) {
	seen := make(map[string]bool)
	s.walk(bound, func(choose func(int) int) {
		t := s.world.treeLocked(func() bool { return choose(2) == 1 })
		if shape := t.shape(s.world.root); !seen[shape] {
			seen[shape] = true
			trees = append(trees, t)
		}
	})
	return trees
}

// outcomes walks the choices of one file.
func (s *States) outcomes(n *node, free []stale, bound int) (images []content) {
	seen := make(map[[sha256.Size]byte]bool)
	add := func(img content) {
		if sum := img.sum(); !seen[sum] {
			seen[sum] = true
			images = append(images, img)
		}
	}
	whole := s.walk(bound, func(choose func(int) int) { add(n.land(choices(choose), free)) })
	for i := uint64(0); !whole && i < uint64(bound); i++ {
		add(n.land(Seed(i).dice(), free)) // the walk saw but one corner of them
	}
	return images
}

// choices are dice for a walk.
func choices(choose func(int) int) dice {
	coin := func() bool { return choose(2) == 1 }
	return dice{
		grain: SectorSize, file: func() {}, entry: coin, data: coin,
		size: func(was, from, to int64) int64 {
			ends := []int64{was}
			for at := roundUp(from + 1); at < to; at += SectorSize {
				ends = append(ends, at)
			}
			return append(ends, to)[choose(len(ends)+1)]
		},
		stale: func(int) int { return choose(2) },
	}
}

// walk runs visit once for every way to answer the questions that it asks, the first way all zeros. It gives up after a
// number of ways that grows with the bound, and returns false.
func (s *States) walk(bound int, visit func(choose func(n int) int)) bool {
	var way, radix []int
	for ways := 4*bound + 1024; ; ways-- {
		if ways == 0 {
			s.exact = false
			return false
		}
		asked := 0
		visit(func(n int) int {
			if asked == len(way) {
				way, radix = append(way, 0), append(radix, n)
			}
			asked++
			return way[asked-1]
		})
		for len(way) > 0 && way[len(way)-1] == radix[len(way)-1]-1 {
			way, radix = way[:len(way)-1], radix[:len(way)-1]
		}
		if len(way) == 0 {
			return true
		}
		way[len(way)-1]++
	}
}

// sample takes some of a number of states: the first, the last, and others at random.
func sample(total uint64, bound int) []uint64 {
	r := rand.New(rand.NewPCG(total, 0))
	picked := map[uint64]bool{0: true}
	if bound > 1 {
		picked[total-1] = true
	}
	for len(picked) < bound {
		picked[r.Uint64N(total)] = true
	}
	return slices.Sorted(maps.Keys(picked))
}

func times(a, b uint64) uint64 {
	if high, low := bits.Mul64(a, b); high == 0 {
		return low
	}
	return math.MaxUint64
}

func plus(a, b uint64) uint64 {
	if sum, carry := bits.Add64(a, b, 0); carry == 0 {
		return sum
	}
	return math.MaxUint64
}

// shape is the same for trees that have the same nodes under the same names.
func (t *tree) shape(root *node) string {
	var b strings.Builder
	t.walk(root, "", func(name string, n *node) { fmt.Fprintf(&b, "%q %d\n", name, n.id) })
	return b.String()
}

// walk visits everything under a directory, sorted by name.
func (t *tree) walk(dir *node, name string, visit func(name string, n *node)) {
	for _, base := range slices.Sorted(maps.Keys(t.entries[dir])) {
		n := t.entries[dir][base]
		visit(path.Join(name, base), n)
		t.walk(n, path.Join(name, base), visit)
	}
}

// Fingerprint is equal for file systems in which everyone sees the same names, sizes and bytes, and for no others.
func (f *FS) Fingerprint() (sum [sha256.Size]byte) {
	h := sha256.New()
	f.each(func(name string, n *node) {
		fmt.Fprintf(h, "%q %v %x\n", name, n.isDir(), n.cur.sum())
	})
	h.Sum(sum[:0])
	return sum
}

// String lists every file with its size and every directory with a slash, one a line: for the messages of failing
// tests.
func (f *FS) String() string {
	var b strings.Builder
	f.each(func(name string, n *node) {
		if n.isDir() {
			fmt.Fprintf(&b, "%s/\n", name)
		} else {
			fmt.Fprintf(&b, "%s %d\n", name, n.cur.size)
		}
	})
	return b.String()
}

func (f *FS) each(visit func(name string, n *node)) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	f.seenLocked().walk(f.root, "", visit)
}
