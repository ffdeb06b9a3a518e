package crashfs

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
)

// A Policy chooses one of the states that a crash may leave. It prints, and [ParsePolicy] reads what it printed, so
// that a failing test can name the crash it saw. The zero value is SyncedOnly.
type Policy struct {
	kind policyKind
	name string
	n    int64
}

type policyKind int

const (
	syncedOnly policyKind = iota
	everything
	zeros
	cutAt
	sectors
	pages
	staleBlocks
	entries
	seed
)

var policyNames = [...]string{"synced", "everything", "zeros", "cut", "sectors", "pages", "stale", "entries", "seed"}

// The policies that need no choice.
var (
	// SyncedOnly: nothing but what was synced.
	SyncedOnly = Policy{kind: syncedOnly}
	// Everything: only the process is dead. All that it wrote is there, and what was not synced may still be lost by the
	// next crash.
	Everything = Policy{kind: everything}
	// Zeros: all directory entries and sizes landed, and no byte of data: where files grew, they are zeros.
	Zeros = Policy{kind: zeros}
)

// CutAt: all landed, but for one file, of which only the first n bytes of what is unsynced did, in the order in which
// they were written; see FS.Unsynced. Truncates before the last of those bytes landed; those behind it only if no write
// is behind it.
func CutAt(name string, n int64) Policy { return Policy{cutAt, name, n} }

// Sectors: directory entries and sizes landed, and some sectors of the data.
func Sectors(seed uint64) Policy { return Policy{kind: sectors, n: int64(seed)} }

// Pages: directory entries and sizes landed, and some pages of the data.
func Pages(seed uint64) Policy { return Policy{kind: pages, n: int64(seed)} }

// Stale: directory entries and sizes landed, and some sectors of the data; the others show what was in the blocks
// before they were free, where there is any such thing.
func Stale(seed uint64) Policy { return Policy{kind: staleBlocks, n: int64(seed)} }

// Entries: all data landed, and some of the changes of directories.
func Entries(seed uint64) Policy { return Policy{kind: entries, n: int64(seed)} }

// Seed: anything at all. One seed gives one result.
func Seed(n uint64) Policy { return Policy{kind: seed, n: int64(n)} }

// String prints the policy as ParsePolicy reads it: "synced", "seed 17", "cut a.jsonl 120".
func (p Policy) String() string {
	switch p.kind {
	case syncedOnly, everything, zeros:
		return policyNames[p.kind]
	case cutAt:
		return fmt.Sprintf("%s %s %d", policyNames[p.kind], p.name, p.n)
	}
	return fmt.Sprintf("%s %d", policyNames[p.kind], uint64(p.n))
}

// ParsePolicy reads what Policy.String printed.
func ParsePolicy(s string) (Policy, error) {
	word, rest, _ := strings.Cut(s, " ")
	for kind, name := range policyNames {
		if name != word {
			continue
		}
		p := Policy{kind: policyKind(kind)}
		var err error
		switch p.kind {
		case syncedOnly, everything, zeros:
		case cutAt:
			i := max(0, strings.LastIndexByte(rest, ' '))
			p.name = rest[:i]
			p.n, err = strconv.ParseInt(strings.TrimPrefix(rest[i:], " "), 10, 64)
		default:
			var n uint64
			n, err = strconv.ParseUint(rest, 10, 64)
			p.n = int64(n)
		}
		if err != nil || p.String() != s {
			break
		}
		return p, nil
	}
	return Policy{}, fmt.Errorf("crashfs: no policy: %q; they look like \"synced\", \"seed 17\" or \"cut a.jsonl 120\"", s)
}

// dice answers what a crash leaves open. The order of the questions is fixed, so the answers make the state.
type dice struct {
	grain int64                           // what a write lands in pieces of
	file  func()                          // the next questions are about another file
	entry func() bool                     // did this change of a directory land?
	data  func() bool                     // did this part of a change?
	size  func(was, from, to int64) int64 // did it change, and how far on its way did it get?
	stale func(candidates int) int        // what lies here: 0 for zeros, or one of so many
}

func (p Policy) dice() dice {
	yes, no := func() bool { return true }, func() bool { return false }
	d := dice{SectorSize, func() {}, yes, yes, func(_, _, to int64) int64 { return to }, func(int) int { return 0 }}
	r := &roller{Rand: rand.New(rand.NewPCG(uint64(p.n), uint64(p.kind)))}
	r.odds.data, r.odds.entry = 0.5, 0.5
	switch p.kind {
	case syncedOnly:
		d.entry, d.data, d.size = no, no, func(was, _, _ int64) int64 { return was }
	case zeros:
		d.data = no
	case sectors:
		d.data = r.data
	case pages:
		d.grain, d.data = PageSize, r.data
	case staleBlocks:
		r.odds.stale = 1
		d.data, d.stale = r.data, r.stale
	case entries:
		d.entry = r.entry
	case seed:
		if r.Float64() < 0.25 {
			d.grain = PageSize
		}
		r.odds.entry = r.oneOf()
		d.file, d.entry, d.data, d.size, d.stale = r.file, r.entry, r.data, r.size, r.stale
	}
	return d
}

// roller rolls dice whose odds differ from file to file, or no file would ever be lost whole beside one that is not.
type roller struct {
	*rand.Rand
	odds struct{ entry, data, size, stale float64 }
}

func (r *roller) oneOf() float64 { return [...]float64{0, 0.1, 0.5, 0.9, 1}[r.IntN(5)] }
func (r *roller) entry() bool    { return r.Float64() < r.odds.entry }
func (r *roller) data() bool     { return r.Float64() < r.odds.data }

func (r *roller) file() { r.odds.data, r.odds.size, r.odds.stale = r.oneOf(), r.oneOf(), r.oneOf() }

func (r *roller) size(was, from, to int64) int64 {
	if r.Float64() < r.odds.size {
		return to
	}
	switch at := from + r.Int64N(to-from+1); r.IntN(3) {
	case 0:
		return at
	case 1:
		return max(from, at/SectorSize*SectorSize)
	}
	return was
}

func (r *roller) stale(candidates int) int {
	switch {
	case r.Float64() >= r.odds.stale:
		return 0
	case r.IntN(2) == 0:
		return 1
	}
	return 1 + r.IntN(candidates)
}
