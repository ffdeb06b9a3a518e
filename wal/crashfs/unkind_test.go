package crashfs_test

import (
	"strings"
	"testing"

	"github.com/jobwal/jobwal/wal/crashfs"
	"github.com/stretchr/testify/assert"
)

// A crash file system that is too kind is worse than none, and one that is too cruel makes people stop believing it. So
// here is, for every unkindness, the smallest case, with all states that it may lead to, counted by hand.
func TestUnkind(t *testing.T) {
	sector := strings.Repeat("a", 512)
	for _, test := range []struct {
		name string
		do   func(h hand)
		want []string
	}{
		{"nothing happened", func(hand) {}, []string{``}},
		{"a create may be lost", func(h hand) { h.create("f", "") }, []string{``, `f=""`}},
		{"a create stays after syncdir", func(h hand) { h.create("f", ""); h.syncDir(".") }, []string{`f=""`}},
		{"a file's sync does not save its name", func(h hand) { h.create("f", "x"); h.sync("f") },
			[]string{``, `f="x"`}},
		{"syncdir saves no bytes: size before data gives zeros", func(h hand) { h.create("f", "x"); h.syncDir(".") },
			[]string{`f=""`, `f="\x00"`, `f="x"`}},
		{"both syncs save both", func(h hand) { h.durable("f", "x") }, []string{`f="x"`}},
		{"two creates are independent", func(h hand) { h.create("f", ""); h.create("g", "") },
			[]string{``, `f=""`, `g=""`, `f="" g=""`}},

		{"an overwrite may be lost", func(h hand) { h.durable("f", "old"); h.write("f", 0, "new") },
			[]string{`f="old"`, `f="new"`}},
		{"writes to one sector land in any order",
			func(h hand) { h.durable("f", "abc"); h.write("f", 0, "X"); h.write("f", 2, "Y") },
			[]string{`f="abc"`, `f="Xbc"`, `f="abY"`, `f="XbY"`}},
		{"a write over two sectors may be torn",
			func(h hand) { h.durable("f", sector+sector); h.write("f", 511, "bb") },
			[]string{`f="a"*1024`, `f="a"*511+"b"+"a"*512`, `f="a"*512+"b"+"a"*511`, `f="a"*511+"bb"+"a"*511`}},
		{"an append may be lost or zeros", func(h hand) { h.durable("f", "ab"); h.write("f", 2, "cd") },
			[]string{`f="ab"`, `f="ab\x00\x00"`, `f="abcd"`}},
		{"an append over a boundary: size and sectors apart",
			func(h hand) { h.durable("f", sector[1:]); h.write("f", 511, "bb") },
			[]string{`f="a"*511`, `f="a"*511+"\x00"`, `f="a"*511+"b"`, `f="a"*511+"\x00\x00"`, `f="a"*511+"b\x00"`,
				`f="a"*511+"\x00b"`, `f="a"*511+"bb"`}},
		{"later bytes there, earlier not", func(h hand) { h.durable("f", ""); h.write("f", 0, "ab"); h.write("f", 2, "cd") },
			[]string{`f=""`, `f="\x00\x00"`, `f="ab"`, `f="\x00\x00\x00\x00"`, `f="ab\x00\x00"`, `f="\x00\x00cd"`, `f="abcd"`}},

		{"a truncate may be lost, or be zeros first", func(h hand) { h.durable("f", "abcd"); h.truncate("f", 2) },
			[]string{`f="abcd"`, `f="ab\x00\x00"`, `f="ab"`}},
		{"a truncate that grows", func(h hand) { h.durable("f", "ab"); h.truncate("f", 4) },
			[]string{`f="ab"`, `f="ab\x00\x00"`}},
		{"a truncate lost, the write after it kept",
			func(h hand) { h.durable("f", "abcd"); h.truncate("f", 2); h.write("f", 2, "XY") },
			[]string{`f="abcd"`, `f="ab"`, `f="ab\x00\x00"`, `f="abXY"`}},
		{"a truncate and a write further on: the old bytes between",
			func(h hand) { h.durable("f", "abcd"); h.truncate("f", 1); h.write("f", 3, "Z") },
			[]string{`f="abcd"`, `f="a"`, `f="abcZ"`, `f="a\x00\x00\x00"`, `f="a\x00\x00Z"`}},
		{"a truncate that is synced stays",
			func(h hand) { h.durable("f", "abcd"); h.truncate("f", 1); h.sync("f"); h.write("f", 3, "Z") },
			[]string{`f="a"`, `f="a\x00\x00\x00"`, `f="a\x00\x00Z"`}},

		{"a remove may be lost", func(h hand) { h.durable("f", "x"); h.remove("f") }, []string{`f="x"`, ``}},
		{"a remove stays after syncdir", func(h hand) { h.durable("f", "x"); h.remove("f"); h.syncDir(".") },
			[]string{``}},
		{"removes are independent, the second may be the one that lasts",
			func(h hand) { h.durable("f", ""); h.durable("g", ""); h.remove("f"); h.remove("g") },
			[]string{``, `f=""`, `g=""`, `f="" g=""`}},
		{"a remove may last and a create before it not",
			func(h hand) { h.durable("f", "x"); h.create("g", ""); h.remove("f") },
			[]string{``, `f="x"`, `g=""`, `f="x" g=""`}},
		{"removed and made again: in order", func(h hand) { h.durable("f", "x"); h.remove("f"); h.create("f", "") },
			[]string{`f="x"`, ``, `f=""`}},
		{"what was removed comes back with what was not synced",
			func(h hand) { h.durable("f", "old"); h.write("f", 0, "new"); h.remove("f") },
			[]string{`f="old"`, `f="new"`, ``}},

		{"a rename may be lost, and is never half",
			func(h hand) { h.durable("f", "old"); h.durable("t", "new"); h.rename("t", "f") },
			[]string{`f="old" t="new"`, `f="new"`}},
		{"write, sync, rename", func(h hand) { h.durable("f", "old"); h.create("t", "new"); h.sync("t"); h.rename("t", "f") },
			[]string{`f="old"`, `f="old" t="new"`, `f="new"`}},
		// The second f="old" is the new file, in which a stale block of the old one has turned up.
		{"write, rename: the classic loss",
			func(h hand) { h.durable("f", "old"); h.create("t", "new"); h.rename("t", "f") },
			[]string{`f="old"`, `f="old" t=""`, `f="old" t="\x00\x00\x00"`, `f="old" t="new"`, `f=""`, `f="\x00\x00\x00"`,
				`f="old"`, `f="new"`}},
		{"renames of one file are in order",
			func(h hand) { h.durable("f", ""); h.rename("f", "g"); h.rename("g", "h") },
			[]string{`f=""`, `g=""`, `h=""`}},
		{"a name is not taken before it was given away",
			func(h hand) { h.durable("f", "x"); h.durable("t", "y"); h.rename("f", "g"); h.rename("t", "f") },
			[]string{`f="x" t="y"`, `g="x" t="y"`, `f="y" g="x"`}},
		{"a rename to another directory",
			func(h hand) { h.dirs("d", "e"); h.durable("d/f", ""); h.rename("d/f", "e/f") },
			[]string{`d/ d/f="" e/`, `d/ e/ e/f=""`}},
		{"a rename to another directory lasts when the new one is synced",
			func(h hand) { h.dirs("d", "e"); h.durable("d/f", ""); h.rename("d/f", "e/f"); h.syncDir("e") },
			[]string{`d/ e/ e/f=""`}},
		{"a rename to another directory lasts when the old one is synced",
			func(h hand) { h.dirs("d", "e"); h.durable("d/f", ""); h.rename("d/f", "e/f"); h.syncDir("d") },
			[]string{`d/ e/ e/f=""`}},
		{"to sync a rename is to sync the create before it",
			func(h hand) { h.dirs("d", "e"); h.create("d/f", ""); h.rename("d/f", "e/f"); h.syncDir("e") },
			[]string{`d/ e/ e/f=""`}},
		{"a file is not lost with the new directory it was moved to",
			func(h hand) { h.durable("f", ""); h.mkdir("d"); h.rename("f", "d/f"); h.syncDir("d") },
			[]string{`f=""`, `d/ d/f=""`}},

		{"a mkdir may be lost, with all in it", func(h hand) { h.mkdir("d"); h.create("d/f", "") },
			[]string{``, `d/`, `d/ d/f=""`}},
		{"syncdir does not save the directory's own name", func(h hand) { h.mkdir("d"); h.durable("d/f", "x") },
			[]string{``, `d/ d/f="x"`}},
		{"syncdir of the parent does not save what is in it",
			func(h hand) { h.mkdir("d"); h.create("d/f", ""); h.syncDir(".") }, []string{`d/`, `d/ d/f=""`}},
		{"a directory is not removed before what was in it",
			func(h hand) { h.dirs("d"); h.durable("d/f", ""); h.remove("d/f"); h.remove("d") },
			[]string{`d/ d/f=""`, `d/`, ``}},
		{"a file is not lost with the directory it was moved from",
			func(h hand) { h.dirs("d"); h.durable("d/f", "x"); h.rename("d/f", "f"); h.remove("d") },
			[]string{`d/ d/f="x"`, `d/ f="x"`, `f="x"`}},
		{"to sync its removal is to sync theirs",
			func(h hand) { h.dirs("d"); h.durable("d/f", ""); h.remove("d/f"); h.remove("d"); h.syncDir(".") },
			[]string{``}},
		{"directories do not move in a circle",
			func(h hand) { h.dirs("d", "e"); h.rename("d", "e/d"); h.rename("e/d", "c"); h.rename("e", "c/e") },
			[]string{`d/ e/`, `e/ e/d/`, `c/ e/`, `c/ c/e/`}},

		{"stale: what a removed file held",
			func(h hand) { h.durable("g", "secret"); h.remove("g"); h.durable("f", ""); h.write("f", 0, "new") },
			[]string{`f=""`, `f="\x00\x00\x00"`, `f="sec"`, `f="new"`}},
		{"stale: not of a file that may come back, where it does",
			func(h hand) { h.durable("g", "secret"); h.durable("f", ""); h.remove("g"); h.write("f", 0, "new") },
			[]string{`f="" g="secret"`, `f="\x00\x00\x00" g="secret"`, `f="new" g="secret"`,
				`f=""`, `f="\x00\x00\x00"`, `f="sec"`, `f="new"`}},
		{"stale: what was cut off",
			func(h hand) {
				h.durable("f", sector+"secret")
				h.truncate("f", 512)
				h.sync("f")
				h.write("f", 512, "new")
			},
			[]string{`f="a"*512`, `f="a"*512+"\x00\x00\x00"`, `f="a"*512+"sec"`, `f="a"*512+"new"`}},
		{"stale: what was cut off another file, once that is synced",
			func(h hand) {
				h.durable("g", "secret")
				h.durable("f", "")
				h.truncate("g", 0)
				h.sync("g")
				h.write("f", 0, "new")
			},
			[]string{`f="" g=""`, `f="\x00\x00\x00" g=""`, `f="sec" g=""`, `f="new" g=""`}},
		{"stale: not inside a sector, whose end is zeros on disk",
			func(h hand) { h.durable("f", "a-secret"); h.truncate("f", 1); h.sync("f"); h.write("f", 1, "new") },
			[]string{`f="a"`, `f="a\x00\x00\x00"`, `f="anew"`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			disk := crashfs.New()
			test.do(hand{t, disk})
			assert.ElementsMatch(t, test.want, statesOf(t, disk))
		})
	}
}

// dirs makes directories that are durable.
func (h hand) dirs(names ...string) {
	h.Helper()
	for _, name := range names {
		h.mkdir(name)
	}
	h.syncDir(".")
}

// A crash whose sizes were lost leaves bytes behind the end of files. The next crash may bring them back, at the very
// place: this is how stale records come back to life.
func TestBytesBehindTheEndComeBackAfterTheNextCrash(t *testing.T) {
	for _, test := range []struct{ name, base string }{
		{"in the last sector", "ab"},
		{"in a sector of its own", strings.Repeat("a", 512)},
	} {
		t.Run(test.name, func(t *testing.T) {
			end := int64(len(test.base))
			disk := crashfs.New()
			hand{t, disk}.durable("f", test.base)
			hand{t, disk}.write("f", end, "secret")
			after := disk.Crash(crashfs.SyncedOnly)
			assert.Equal(t, test.base, read(after, "f"))
			hand{t, after}.write("f", end, "new")
			var tails []string
			for _, again := range after.CrashStates(100).All() {
				tails = append(tails, read(again, "f")[end:])
			}
			assert.ElementsMatch(t, []string{"", "\x00\x00\x00", "sec", "new"}, tails)

			hand{t, after}.sync("f")
			assert.Equal(t, []string{"f=" + short(test.base+"new")}, statesOf(t, after))
			hand{t, after}.write("f", end+3, "more")
			for _, again := range after.CrashStates(100).All() {
				assert.NotContains(t, read(again, "f")[end+3:], "sec", "a sync writes the whole sector")
			}
		})
	}
}

// The death of the process loses nothing, and saves nothing either.
func TestEverythingIsStillUnsynced(t *testing.T) {
	disk := crashfs.New()
	h := hand{t, disk}
	h.durable("f", "old")
	h.write("f", 0, "new")
	h.mkdir("d")
	h.create("d/g", "x")
	before := statesOf(t, disk)
	after := disk.Crash(crashfs.Everything)
	assert.Equal(t, `d/ d/g="x" f="new"`, dump(after, "."))
	assert.Equal(t, before, statesOf(t, after))
	assert.Equal(t, `f="old"`, dump(after.Crash(crashfs.SyncedOnly), "."))
	hand{t, after}.sync("f")
	hand{t, after}.syncDir(".")
	assert.Equal(t, `d/ f="new"`, dump(after.Crash(crashfs.SyncedOnly), "."))
	assert.Equal(t, before, statesOf(t, disk), "the old world does not notice")
}

// After a power cut all that is there is there to stay.
func TestAfterACrashAllIsDurable(t *testing.T) {
	disk := crashfs.New()
	h := hand{t, disk}
	h.durable("f", "old")
	h.write("f", 1, "new")
	h.mkdir("d")
	h.create("d/g", "x")
	h.remove("f")
	for i, after := range disk.CrashStates(1000).All() {
		assert.Len(t, statesOf(t, after), 1, i)
		assert.Equal(t, dump(after, "."), dump(after.Crash(crashfs.SyncedOnly), "."))
	}
}

func TestCutAtEveryByte(t *testing.T) {
	disk := crashfs.New()
	h := hand{t, disk}
	h.durable("f", "ab")
	h.write("f", 2, "cde")
	h.truncate("f", 4)
	h.write("f", 1, "XYZ!!")
	h.create("g", "other")
	assert.EqualValues(t, 8, disk.Unsynced("f"))
	var got []string
	for n := range disk.Unsynced("f") + 1 {
		after := disk.Crash(crashfs.CutAt("f", n))
		assert.Equal(t, "other", read(after, "g"))
		got = append(got, read(after, "f"))
	}
	want := []string{"ab", "abc", "abcd", "abcde", "aXcd", "aXYd", "aXYZ", "aXYZ!", "aXYZ!!"}
	assert.Equal(t, want, got)
}

// Pages are lost or kept as a whole, sectors are not.
func TestGrain(t *testing.T) {
	disk := crashfs.New()
	h := hand{t, disk}
	h.durable("f", strings.Repeat("a", 64<<10))
	h.write("f", 0, strings.Repeat("b", 64<<10))
	mixed := func(p crashfs.Policy) (pages int) {
		data := read(disk.Crash(p), "f")
		for ; data != ""; data = data[crashfs.PageSize:] {
			if n := strings.Count(data[:crashfs.PageSize], "a"); n != 0 && n != crashfs.PageSize {
				pages++
			}
			for s := range crashfs.PageSize / crashfs.SectorSize {
				n := strings.Count(data[s*crashfs.SectorSize:(s+1)*crashfs.SectorSize], "a")
				assert.Contains(t, []int{0, crashfs.SectorSize}, n)
			}
		}
		return pages
	}
	for seed := range uint64(20) {
		assert.Zero(t, mixed(crashfs.Pages(seed)))
		assert.NotZero(t, mixed(crashfs.Sectors(seed)))
	}
}

// Every policy that rolls dice reaches every outcome that it promises.
func TestSeedsReachEverything(t *testing.T) {
	disk := crashfs.New()
	h := hand{t, disk}
	h.durable("gone", "secret")
	h.remove("gone")
	for _, name := range []string{"f", "back", "moved"} {
		h.durable(name, "")
	}
	h.write("f", 0, "new")
	h.remove("back")
	h.rename("moved", "there")
	h.create("fresh", "")
	seen := make(map[string]bool)
	for seed := range uint64(3000) {
		seen[dump(disk.CrashSeed(seed), ".")] = true
	}
	want := statesOf(t, disk)
	for _, state := range want {
		assert.True(t, seen[state], state)
	}
	assert.Greater(t, len(seen), len(want), "and sizes that no sector ends at")
	for _, test := range []struct {
		policy func(seed uint64) crashfs.Policy
		states int
	}{
		{crashfs.Sectors, 2}, {crashfs.Pages, 2}, {crashfs.Stale, 2}, {crashfs.Entries, 2 * 2 * 2},
	} {
		seen := make(map[string]bool)
		for seed := range uint64(500) {
			seen[dump(disk.Crash(test.policy(seed)), ".")] = true
		}
		assert.Len(t, seen, test.states, test.policy(0))
	}
}
