package crashtest

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"reflect"
	"runtime/debug"
	"slices"
	"strings"

	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// explorer is one Run, or one Replay.
type explorer[L any] struct {
	Crashes[L]
	t      rapid.TB
	cover  Coverage
	ops    []crashfs.Op // the workload's, when nothing crashes it
	budget int          // the runs of Check that remain
	share  int          // those of them that the crash at hand may take
	found  *failure     // the shortest so far
	again  string       // how a reproducer is run again, for people
}

func (c Crashes[L]) explorer(t rapid.TB, again string) *explorer[L] {
	t.Helper()
	x := &explorer[L]{Crashes: c, t: t, budget: c.Budget, again: again}
	switch {
	case c.Workload == nil || c.Check == nil:
		t.Fatalf("crashtest: Workload or Check is missing")
	case slices.ContainsFunc(c.Schedule, func(f crashfs.Fault) bool { return f.Op == crashfs.OpCrash }):
		t.Fatalf("crashtest: a crash in the schedule %q: Run sets it", c.Schedule)
	case c.Budget < 0 || c.States < 0:
		t.Fatalf("crashtest: a negative Budget or States")
	case c.Budget == 0:
		x.budget = DefaultBudget
	}
	for _, p := range c.Policies {
		if !prints(p.String()) {
			t.Fatalf("crashtest: policy %q can't stand in a reproducer", p)
		}
	}
	if c.Base == nil {
		x.Base = crashfs.New()
	}
	x.whole()
	return x
}

// prints tells whether a policy's text can stand on a reproducer's line.
func prints(policy string) bool { return !strings.ContainsAny(policy, ";\n") }

// copyOf is a disk of which nothing is lost, not even what is unsynced.
func copyOf(disk *crashfs.FS) *crashfs.FS { return disk.Crash(crashfs.Everything) }

// whole runs Workload and Check as if nothing ever crashed: what fails then needs no crash.
func (x *explorer[L]) whole() {
	x.t.Helper()
	w := x.live(x.Workload, copyOf(x.Base), x.Schedule, nil, new(L))
	if w.err != nil {
		x.t.Fatalf("crashtest: the workload fails without a crash: %v\n%s", w.err, listing(w.ops, 0))
	}
	if len(w.ops) == 0 {
		x.t.Fatalf("crashtest: the workload makes no file operations: nothing can crash, and this test proves nothing")
	}
	if len(w.unmet) > 0 {
		x.t.Logf("crashtest: no operation meets these faults of the schedule, so nothing is proved of them: %v", w.unmet)
	}
	x.ops, x.cover.Operations = w.ops, len(w.ops)
	c := x.live(x.Check, copyOf(w.disk), nil, nil, x.clone(w.ledger))
	if c.err != nil {
		x.t.Fatalf("crashtest: the check fails without a crash: %v\n%s", c.err, w.disk)
	}
	if !c.looked {
		x.t.Fatalf("crashtest: the check never looked at the disk, and this test proves nothing")
	}
}

// A life is one run of Workload or Check, as far as it came.
type life[L any] struct {
	disk    *crashfs.FS // what lies below the faults
	ops     []crashfs.Op
	looked  bool             // something was read or listed, or tried to
	unmet   crashfs.Schedule // what never happened of the faults
	ledger  *L
	crashed bool
	err     error // what no crash excuses
}

// live runs Workload or Check. The power goes where how ends with a crash; where it ends with what a crash left, or is
// empty, it stays.
func (x *explorer[L]) live(do func(wal.FS, *L) error, disk *crashfs.FS, faults crashfs.Schedule, how reproducer,
	ledger *L) life[L] {
	if n := len(how); n > 0 && how[n-1].leaves == nil {
		faults = append(slices.Clone(faults), crashfs.Fault{Op: crashfs.OpCrash, N: int64(how[n-1].at)})
	}
	fs := crashfs.Inject(disk, faults)
	err := x.guard(how, func() error { return do(fs, ledger) })
	l := life[L]{disk: disk, ledger: ledger, crashed: fs.Crashed(), ops: fs.Ops(), unmet: fs.Unmet()}
	fs.Stop() // goroutines that were left behind must not write any more
	l.looked = len(l.ops) > 0 || fs.Count(crashfs.OpOpen, crashfs.OpReadDir) > 0
	if err != nil && (!l.crashed || !errors.Is(err, crashfs.ErrCrashed) || errors.Is(err, wal.ErrCorrupt)) {
		l.err = err
	}
	return l
}

// errTestFailed: the function did not return an error, but told the test itself.
var errTestFailed = errors.New("the test was failed, see above")

// guard makes an error of a panic and of a test that is failed from inside; not of what the test handle itself throws
// to end the test, but then it says where that was.
func (x *explorer[L]) guard(how reproducer, do func() error) (err error) {
	failed, returned := x.t.Failed(), false
	defer func() {
		v := recover()
		switch {
		case v == nil && !returned, fromRapid(v):
			x.t.Logf("crashtest: the test ended itself in this run: %q", how)
			if v != nil {
				panic(v)
			}
		case v != nil:
			err = fmt.Errorf("panic: %v\n%s", v, debug.Stack())
		case err == nil && x.t.Failed() && !failed:
			err = errTestFailed
		}
	}()
	err = do()
	returned = true
	return err
}

func fromRapid(v any) bool {
	return v != nil && reflect.TypeOf(v).PkgPath() == reflect.TypeFor[rapid.T]().PkgPath()
}

// clone gives a run of Check its own ledger, if there is a way.
func (x *explorer[L]) clone(ledger *L) *L {
	if c, ok := any(ledger).(interface{ Clone() *L }); ok {
		return c.Clone()
	}
	return ledger
}

func (x *explorer[L]) clones() bool {
	_, ok := any(new(L)).(interface{ Clone() *L })
	return ok
}

// work runs the workload to its crash before operation n, the same way as far as there as the whole one went.
func (x *explorer[L]) work(n int) life[L] {
	x.t.Helper()
	w := x.live(x.Workload, copyOf(x.Base), x.Schedule, reproducer{{at: n}}, new(L))
	x.cover.Crashes++
	x.same("workload", x.ops, w.ops, n, w.err)
	return w
}

// same ends the test when a function goes another way than it did before; which no seed could bring back.
func (x *explorer[L]) same(who string, before, now []crashfs.Op, n int, err error) {
	x.t.Helper()
	want := before[:min(n, len(before))]
	for i := range max(len(want), len(now)) {
		was, is := "nothing", "nothing"
		if i < len(want) {
			was = string(want[i].Kind)
		}
		if i < len(now) {
			is = string(now[i].Kind)
		}
		if was != is {
			x.t.Fatalf("crashtest: the %[1]s isn't deterministic: its operation %[2]d was %[3]s when nothing crashed, and is "+
				"%[4]s in the run that crashes at %[5]d (error: %[6]v). Run it in a synctest bubble, on one goroutine, and "+
				"without randomness or clocks that change what it writes.\nbefore:\n%[7]snow:\n%[8]s",
				who, i+1, was, is, n, err, listing(before, i+1), listing(now, i+1))
		}
	}
}

// A picture is one state that a crash left, and what is known of it.
type picture struct {
	choice choice
	disk   *crashfs.FS
	sum    [sha256.Size]byte
}

// pictures visits the states that are tried of a crash, the first of them in any case, the others while Check may run.
func (x *explorer[L]) pictures(disk *crashfs.FS, at int, visit func(p picture) (goOn bool)) {
	var all []choice
	for _, p := range x.policies(disk, at) {
		all = append(all, choice{policy: p})
	}
	var states *crashfs.States
	if x.States > 0 {
		states = disk.CrashStates(x.States)
		x.cover.leave(states.Left())
		for _, i := range shuffled(states.Len(), at) {
			all = append(all, choice{number: i, bound: x.States})
		}
	}
	for i, c := range all {
		if i > 0 && x.share <= 0 {
			x.cover.leave(uint64(len(all)-i), true)
			return
		}
		var d *crashfs.FS
		if c.bound > 0 {
			d = states.At(c.number)
		} else {
			d = disk.Crash(c.policy)
		}
		if !visit(picture{c, d, d.Fingerprint()}) {
			return
		}
	}
}

// shuffled are the numbers below n in an order by chance, which is always the same.
func shuffled(n, seed int) []int { return rand.New(rand.NewPCG(uint64(seed), uint64(n))).Perm(n) }

// policies are those that were asked for, or the default ones for a crash.
func (x *explorer[L]) policies(disk *crashfs.FS, at int) []crashfs.Policy {
	switch {
	case x.Policies != nil:
		return x.Policies
	case x.States > 0:
		return []crashfs.Policy{crashfs.Everything}
	}
	n := uint64(at)
	r := rand.New(rand.NewPCG(n, 0))
	list := []crashfs.Policy{crashfs.SyncedOnly, crashfs.Everything, crashfs.Zeros}
	for _, name := range unsynced(disk, "") {
		bytes := disk.Unsynced(name)
		list = append(list, crashfs.CutAt(name, bytes-1), crashfs.CutAt(name, r.Int64N(bytes)))
	}
	for i := range uint64(2) {
		list = append(list, crashfs.Sectors(2*n+i), crashfs.Stale(2*n+i), crashfs.Entries(2*n+i))
	}
	list = append(list, crashfs.Pages(n))
	for i := range uint64(4) {
		list = append(list, crashfs.Seed(4*n+i))
	}
	return list
}

// unsynced are the files below a directory with bytes that a crash may take.
func unsynced(disk *crashfs.FS, dir string) (names []string) {
	list, _ := disk.ReadDir(dir)
	for _, e := range list {
		name := path.Join(dir, e.Name())
		switch {
		case e.IsDir():
			names = append(names, unsynced(disk, name)...)
		case disk.Unsynced(name) > 0 && prints(name):
			names = append(names, name)
		}
	}
	return names
}

// check runs Check to its end, and returns its operations, and whether it accepted the disk.
func (x *explorer[L]) check(how reproducer, disk *crashfs.FS, ledger *L) ([]crashfs.Op, bool) {
	x.budget, x.share = x.budget-1, x.share-1
	c := x.live(x.Check, copyOf(disk), nil, how, x.clone(ledger))
	if c.err != nil {
		x.note(how, c.err)
	}
	return c.ops, c.err == nil
}

// note keeps a failure, if it is shorter than what was found before.
func (x *explorer[L]) note(how reproducer, err error) {
	if x.found == nil || len(how) < len(x.found.how) {
		x.found = &failure{how: how, err: err}
	}
}

// seen are the disks that Check accepted under one ledger, by fingerprint, and its operations.
type seen map[[sha256.Size]byte][]crashfs.Op

// A victim is a disk on which Check will be crashed.
type victim[L any] struct {
	how    reproducer
	disk   *crashfs.FS
	ledger *L
	ops    []crashfs.Op // of Check, when nothing crashes it
}

// crash is everything about one crash of the workload.
func (x *explorer[L]) crash(n int) {
	x.t.Helper()
	w := x.work(n)
	if w.err != nil {
		x.note(reproducer{{at: n}}, w.err)
		return
	}
	checked := make(seen)
	var victims []victim[L]
	x.pictures(w.disk, n, func(p picture) bool {
		how := reproducer{{n, &p.choice}}
		x.cover.States++
		ops, known := checked[p.sum]
		if !known {
			var ok bool
			if ops, ok = x.check(how, p.disk, w.ledger); !ok {
				return false
			}
			checked[p.sum] = ops
			x.cover.Distinct++
		}
		// Of two disks that look alike, one may still have something to lose.
		if !known || p.choice == (choice{policy: crashfs.Everything}) && loses(p.disk) {
			victims = append(victims, victim[L]{how, p.disk, w.ledger, ops})
		}
		return true
	})
	if !x.Once && x.found == nil {
		x.crashChecks(n, victims, checked)
	}
}

// loses tells whether a power cut can make a difference.
func loses(disk *crashfs.FS) bool {
	states := disk.CrashStates(1)
	left, exact := states.Left()
	return left > 0 || !exact
}

// crashChecks crashes Check on these disks, at every operation or at as many as there is room for.
func (x *explorer[L]) crashChecks(n int, victims []victim[L], checked seen) {
	x.t.Helper()
	all := turns(victims, n)
	for i, a := range all {
		if x.share <= 0 {
			x.cover.SecondLeft += len(all) - i
			return
		}
		x.crashCheck(victims[a.victim], a.op, checked)
		if x.found != nil {
			x.shorten(victims[a.victim], a.op)
			return
		}
	}
}

// A turn is a crash of Check on one of the victims.
type turn struct{ victim, op, round int }

// turns are all of them, in rounds: one has every operation of Check, each on some disk.
func turns[L any](victims []victim[L], seed int) []turn {
	var all []turn
	for i, v := range victims {
		for op := range len(v.ops) + 1 {
			all = append(all, turn{victim: i, op: op + 1})
		}
	}
	rand.New(rand.NewPCG(uint64(seed), 0)).Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	rounds := make(map[int]int)
	for i := range all {
		all[i].round = rounds[all[i].op]
		rounds[all[i].op]++
	}
	slices.SortStableFunc(all, func(a, b turn) int { return a.round - b.round })
	return all
}

// crashCheck crashes Check before one of its operations, and looks at what that leaves. What was checked before under
// the same ledger is not checked again.
func (x *explorer[L]) crashCheck(v victim[L], op int, checked seen) {
	x.t.Helper()
	x.budget, x.share = x.budget-1, x.share-1
	x.cover.SecondCrashes++
	how := append(slices.Clone(v.how), crash{at: op})
	c := x.live(x.Check, copyOf(v.disk), nil, how, x.clone(v.ledger))
	if c.err != nil {
		x.note(how, c.err)
		return
	}
	x.same("check", v.ops, c.ops, op, c.err)
	if x.clones() || checked == nil {
		checked = make(seen)
	}
	x.pictures(c.disk, v.how[0].at+op, func(p picture) bool {
		x.cover.SecondStates++
		if _, known := checked[p.sum]; known {
			return true
		}
		how := append(slices.Clone(v.how), crash{op, &p.choice})
		ops, ok := x.check(how, p.disk, c.ledger)
		checked[p.sum] = ops
		x.cover.SecondDistinct++
		return ok
	})
}

// shorten looks for an earlier crash of the same Check that fails, too.
func (x *explorer[L]) shorten(v victim[L], op int) {
	x.t.Helper()
	found, cover := x.found, x.cover
	for earlier := 1; earlier < op; earlier++ {
		x.found, x.share = nil, DefaultBudget
		if x.crashCheck(v, earlier, nil); x.found != nil {
			found = x.found
			break
		}
	}
	x.found, x.cover = found, cover
}
