package crashfs_test

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"testing"

	"github.com/jobwal/jobwal/wal/crashfs"
	"pgregory.net/rapid"
)

// promise is what a disk owes to those who synced, told a second time without pages, sectors, lists of changes or rules
// about their order: of every byte the values that it may have, of every file the sizes, of every name the files.
type promise struct {
	clock int
	names map[string][]since
	ops   []nameOp // not on stable storage
}

// since: what a name has stood for, nil for nothing, since an operation.
type since struct {
	at   int
	file *promised
}

type nameOp struct {
	at    int
	names []string
}

type promised struct {
	cur, base []byte
	might     map[int][]byte // values, besides that of base, that a byte has had since the last sync
	low, high int            // sizes
}

func (p *promise) now(name string) *promised {
	if list := p.names[name]; len(list) > 0 {
		return list[len(list)-1].file
	}
	return nil
}

// set: one operation after which names stand for other files.
func (p *promise) set(names map[string]*promised) {
	p.clock++
	for name, file := range names {
		if p.names[name] == nil {
			p.names[name] = []since{{0, nil}}
		}
		p.names[name] = append(p.names[name], since{p.clock, file})
	}
	p.ops = append(p.ops, nameOp{p.clock, slices.Collect(maps.Keys(names))})
}

func (p *promise) syncDir(dir string) {
	p.ops = slices.DeleteFunc(p.ops, func(op nameOp) bool {
		if !slices.ContainsFunc(op.names, func(name string) bool { return path.Dir(name) == dir }) {
			return false
		}
		for _, name := range op.names {
			p.names[name] = slices.DeleteFunc(p.names[name], func(s since) bool { return s.at < op.at })
		}
		return true
	})
}

func (f *promised) write(data string, off int) {
	for i, b := range []byte(data) {
		f.might[off+i] = append(f.might[off+i], b)
	}
	f.cur = append(f.cur, make([]byte, max(0, off+len(data)-len(f.cur)))...)
	copy(f.cur[off:], data)
	f.high = max(f.high, len(f.cur))
}

func (f *promised) truncate(size int) {
	for i := size; i < len(f.cur); i++ {
		f.might[i] = append(f.might[i], 0)
	}
	f.cur = append(f.cur[:min(size, len(f.cur)):min(size, len(f.cur))], make([]byte, max(0, size-len(f.cur)))...)
	f.low, f.high = min(f.low, size), max(f.high, size)
}

func (f *promised) sync() {
	f.base, f.might, f.low, f.high = slices.Clone(f.cur), make(map[int][]byte), len(f.cur), len(f.cur)
}

// broken says what a crash did to a file that it may not do.
func (f *promised) broken(got string, stale bool) string {
	if len(got) < f.low || len(got) > f.high {
		return fmt.Sprintf("%d bytes, not %d to %d", len(got), f.low, f.high)
	}
	for i := range len(got) {
		base := byte(0)
		if i < len(f.base) {
			base = f.base[i]
		}
		if got[i] != base && !slices.Contains(f.might[i], got[i]) && (i < len(f.base) || !stale) {
			return fmt.Sprintf("byte %d is %q, was %q, then %q", i, got[i], base, f.might[i])
		}
	}
	return ""
}

// check holds a file system after a crash against the promise.
func (p *promise) check(t *rapid.T, what string, after *crashfs.FS, stale bool) {
	for name, list := range p.names {
		got := read(after, name)
		var complaints []string
		for _, s := range list {
			switch gone := got == "open "+name+": no such file or directory"; {
			case s.file == nil && gone:
				complaints = append(complaints, "")
			case s.file == nil:
				complaints = append(complaints, "it is there")
			case gone:
				complaints = append(complaints, "it is gone")
			default:
				complaints = append(complaints, s.file.broken(got, stale))
			}
		}
		if !slices.Contains(complaints, "") {
			t.Fatalf("%s: %s: %q\n%s", what, name, complaints, after)
		}
	}
}

// world is a disk and what it promised.
type world struct {
	hand
	disk *crashfs.FS
	*promise
}

var (
	dirNames  = []string{".", "d", "e"}
	fileNames = []string{"f", "g", "d/f", "d/g", "e/f"}
)

// move is one thing to do to one name.
type move struct {
	what, name, to, dir, data string
	off                       int
}

var moves = rapid.Custom(func(t *rapid.T) move {
	kinds := []string{"create", "write", "write", "truncate", "sync", "rename", "remove", "syncdir"}
	return move{
		what: rapid.SampledFrom(kinds).Draw(t, "what"),
		name: rapid.SampledFrom(fileNames).Draw(t, "name"),
		to:   rapid.SampledFrom(fileNames).Draw(t, "to"),
		dir:  rapid.SampledFrom(dirNames).Draw(t, "dir"),
		off:  rapid.SampledFrom([]int{0, 1, 500, 511, 512, 1000, 4095, 4096, 9000}).Draw(t, "off"),
		data: rapid.StringOfN(rapid.RuneFrom([]rune("abcxyz")), 1, 700, -1).Draw(t, "data"),
	}
})

func (w *world) do(m move) {
	f := w.now(m.name)
	switch {
	case m.what == "syncdir":
		w.hand.syncDir(m.dir)
		w.promise.syncDir(m.dir)
	case f == nil:
		w.create(m.name, "")
		w.set(map[string]*promised{m.name: {might: make(map[int][]byte)}})
	case m.what == "write":
		w.write(m.name, int64(m.off), m.data)
		f.write(m.data, m.off)
	case m.what == "truncate":
		w.truncate(m.name, int64(m.off))
		f.truncate(m.off)
	case m.what == "sync":
		w.hand.sync(m.name)
		f.sync()
	case m.what == "rename":
		w.rename(m.name, m.to)
		if m.to != m.name {
			w.set(map[string]*promised{m.name: nil, m.to: f})
		}
	case m.what == "remove":
		w.remove(m.name)
		w.set(map[string]*promised{m.name: nil})
	}
}

// newWorld starts from what is on a disk, all of which is on stable storage.
func newWorld(t *rapid.T, disk *crashfs.FS) *world {
	w := &world{hand{t, disk}, disk, &promise{names: make(map[string][]since)}}
	for _, name := range fileNames {
		var f *promised
		if got := read(disk, name); got != "open "+name+": no such file or directory" {
			f = &promised{cur: []byte(got)}
			f.sync()
		}
		w.names[name] = []since{{0, f}}
	}
	return w
}

// What was synced survives, whatever else does not; and nothing comes from nowhere.
func TestSyncedSurvivesEveryCrash(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		disk := crashfs.New()
		hand{t, disk}.dirs("d", "e")
		w := newWorld(t, disk)
		for range rapid.IntRange(1, 4).Draw(t, "crashes") {
			for _, m := range rapid.SliceOfN(moves, 0, 12).Draw(t, "moves") {
				w.do(m)
			}
			policies := []crashfs.Policy{crashfs.SyncedOnly, crashfs.Everything, crashfs.Zeros}
			for i := range uint64(3) {
				policies = append(policies, crashfs.Sectors(i), crashfs.Pages(i), crashfs.Entries(i))
			}
			for _, name := range fileNames {
				n := rapid.Int64Range(0, w.disk.Unsynced(name)).Draw(t, "cut")
				policies = append(policies, crashfs.CutAt(name, n))
			}
			for _, p := range policies {
				w.check(t, p.String(), w.disk.Crash(p), false)
			}
			for i := range uint64(20) {
				w.check(t, crashfs.Seed(i).String(), w.disk.CrashSeed(i), true)
				w.check(t, crashfs.Stale(i).String(), w.disk.Crash(crashfs.Stale(i)), true)
			}
			for i, after := range w.disk.CrashStates(40).All() {
				w.check(t, fmt.Sprint("state ", i), after, true)
			}
			if rapid.Bool().Draw(t, "process only") {
				w.disk = w.disk.Crash(crashfs.Everything)
				w.hand.FS = w.disk
			} else {
				w = newWorld(t, w.disk.CrashSeed(rapid.Uint64().Draw(t, "seed")))
			}
		}
	})
}

// One seed, one result: the same operations twice, in two worlds.
func TestSeedsAreDeterministic(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := newWorld(t, crashfs.New()), newWorld(t, crashfs.New())
		for _, w := range []*world{a, b} {
			w.dirs("d", "e")
		}
		for _, m := range rapid.SliceOfN(moves, 0, 20).Draw(t, "moves") {
			a.do(m)
			b.do(m)
		}
		for seed := range uint64(30) {
			x, y := a.disk.CrashSeed(seed), b.disk.CrashSeed(seed)
			if x.Fingerprint() != y.Fingerprint() || dump(x, ".") != dump(y, ".") {
				t.Fatalf("seed %d:\n%s\n%s", seed, dump(x, "."), dump(y, "."))
			}
		}
		x, y := a.disk.CrashStates(20), b.disk.CrashStates(20)
		for i, after := range x.All() {
			if after.Fingerprint() != y.At(i).Fingerprint() {
				t.Fatalf("state %d", i)
			}
		}
	})
}

// The states that are listed are those that the policies choose from.
func TestStatesHoldWhatPoliciesChoose(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld(t, crashfs.New())
		w.dirs("d", "e")
		for _, m := range rapid.SliceOfN(moves, 0, 6).Draw(t, "moves") {
			w.do(m)
		}
		states := w.disk.CrashStates(3000)
		if left, exact := states.Left(); left > 0 || !exact {
			return
		}
		all := make(map[[32]byte]bool)
		for _, after := range states.All() {
			all[after.Fingerprint()] = true
		}
		policies := []crashfs.Policy{crashfs.SyncedOnly, crashfs.Everything, crashfs.Zeros}
		for i := range uint64(10) {
			policies = append(policies, crashfs.Sectors(i), crashfs.Pages(i), crashfs.Entries(i))
		}
		for _, p := range policies {
			if after := w.disk.Crash(p); !all[after.Fingerprint()] {
				t.Fatalf("%s is not among %d states:\n%s", p, states.Len(), dump(after, "."))
			}
		}
	})
}
