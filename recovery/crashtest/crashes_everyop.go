package crashtest

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// CrashEveryOp proves a program crash-safe that keeps its files on a [wal.FS]: it runs the workload once as it is, then
// once for each of its file operations with the power going just before that operation, and gives check the disks that
// this may leave; then it does the same to check itself, which is the recovery. It is [Crashes] with nothing but the
// two functions, in a synctest bubble of its own, so that timers (those of the log among them) fire at the same point of
// every run. t must not be in a bubble already; t.Run and t.Parallel are not to be called in either function. They may use
// t.Context(), but what waits for it to be done keeps the bubble's clock standing.
//
// A crash at each operation of a small workload is the idea of ALICE (Pillai et al., OSDI 2014) and CrashMonkey (Mohan et
// al., OSDI 2018): of the bugs that are known, most need three operations or fewer. A few appends, a rotation or a
// reopening are better workloads than a thousand appends.
//
// L is the ledger: whatever the workload has to note for check to know what must be there. A [History] is one; so is a
// []string of what was acknowledged. Each run of the workload gets a new one, its zero value. With a method Clone() *L the
// check may note in it what it found and did; without, nobody notices a recovery that shows what the next crash takes.
//
// It logs its [Coverage]. When something fails, it fails the test with the shortest reproducer that it found, for
// [Replay].
func CrashEveryOp[L any](t *testing.T, workload, check func(disk wal.FS, ledger *L) error) (c Coverage) {
	t.Helper()
	bubble(t, func(t *testing.T) {
		c = Crashes[L]{Workload: workload, Check: check}.run(t, againEveryOp)
	})
	return c
}

// Replay runs again what the message of a failed [CrashEveryOp] gave as its reproducer, and nothing else, as
// [Crashes.Replay] does: in the test that failed, put it in CrashEveryOp's place, with the same two functions.
func Replay[L any](t *testing.T, reproducer string, workload, check func(disk wal.FS, ledger *L) error) {
	t.Helper()
	bubble(t, func(t *testing.T) {
		Crashes[L]{Workload: workload, Check: check}.replay(t, reproducer, againEveryOp)
	})
}

// bubble is synctest.Test, where what runs inside may use the context of the test outside: the test's end closes that
// context's channel, which is made here, since one that is made inside must not be closed outside. Where synctest panics,
// it fails the test with what is to be done.
func bubble(t *testing.T, do func(t *testing.T)) {
	t.Helper()
	_ = t.Context().Done()
	defer func() {
		v := recover()
		switch text := fmt.Sprint(v); {
		case v == nil:
		case strings.Contains(text, "within a synctest bubble"):
			t.Fatalf("crashtest: this test is in a bubble, and CrashEveryOp makes its own: call it outside, or use Crashes.Run")
		case strings.Contains(text, "blocked goroutines remain"):
			t.Fatalf("crashtest: goroutines were left behind: what the two functions open they must close, after a crash too\n%s",
				leftBehind())
		default:
			panic(v)
		}
	}()
	synctest.Test(t, do)
}

// leftBehind shows one of the goroutines that are in a bubble.
func leftBehind() string {
	stacks := make([]byte, 1<<20)
	all := strings.Split(string(stacks[:runtime.Stack(stacks, true)]), "\n\n")
	return all[max(0, slices.IndexFunc(all, func(s string) bool { return strings.Contains(s, "synctest bubble") }))]
}

// How a reproducer is run again, for people.
const (
	againEveryOp = "crashtest.Replay(t, %q, …) with the two functions of CrashEveryOp, in its place"
	againCrashes = "Replay(t, %q) of a crashtest.Crashes with the same settings"
)

// DefaultBudget is how often Check may run when [Crashes] does not say.
const DefaultBudget = 10_000

// Crashes are the crashes of one workload: [CrashEveryOp] with settings. Workload and Check are needed, nothing else is.
// It holds no state: it may be copied, and run any number of times.
type Crashes[L any] struct {
	// Workload is what the program does. It gets a disk, which is a *crashfs.Faulty, and notes in the ledger what it was
	// promised and what it was told. When the power goes, all operations fail with crashfs.ErrCrashed; Workload returns
	// nil or an error that wraps it, and closes what it has opened: that reaches the disk no more, and leaves no
	// goroutine behind. Any other error is a failure of the test, and so is an error without a crash.
	//
	// It must make the same operations in every run, as far as it comes; Run notices when it does not. That takes one
	// goroutine, no randomness but such as does not show in the number of operations, and timers only in a synctest
	// bubble.
	Workload func(disk wal.FS, ledger *L) error
	// Check opens what a crash left, and returns an error unless that is what the ledger calls for. What it does to the
	// disk is the recovery; it is crashed too, at each operation, and then may return nil or an error that wraps
	// crashfs.ErrCrashed, but nothing that wraps wal.ErrCorrupt, and nothing else. A panic is always a failure. It should
	// close what it has opened.
	//
	// Many runs of Check share one ledger and must not change it; unless *L has a method Clone() *L. Then each run has a
	// copy of its own, and may note what it saw or did itself: the Check that follows its crash finds that there. Only
	// so a recovery is caught that shows what it has not made durable.
	Check func(disk wal.FS, ledger *L) error
	// Base is what is on the disk when Workload begins; each run gets a copy. Default: nothing.
	Base *crashfs.FS
	// Schedule are faults that Workload meets, besides the crash. Default: none.
	Schedule crashfs.Schedule
	// Policies are what is tried at each crash. Default, if States is 0: SyncedOnly, Everything, Zeros, and for each
	// crash other CutAts of each file with unsynced bytes, Sectors, Pages, Stale, Entries and Seeds.
	Policies []crashfs.Policy
	// States, if more than 0, tries all states that each crash may leave, or so many of them where there are more; see
	// crashfs.FS.CrashStates. Everything is tried, too, since in no other state a part is still unsynced.
	States int
	// Once: Check itself is not crashed.
	Once bool
	// Budget is how often Check may run. It is shared out evenly to the crashes: first to what they leave, what remains
	// to crashes of Check, each of its operations in turn, on disks that are chosen by chance, but always the same. The
	// least that is done, whatever it says, is one state of every crash. Coverage says what was left out. Default:
	// DefaultBudget.
	Budget int
}

// Run does it all, logs the coverage, and fails the test where something is wrong; t.Fatalf has the reproducer. What can
// prove nothing fails too: a Workload without file operations, a Check that never looks at the disk, either of them
// failing when nothing crashes. Run is not in a bubble unless its caller is. With a *rapid.T, neither function may draw
// from it.
func (c Crashes[L]) Run(t rapid.TB) Coverage {
	t.Helper()
	return c.run(t, againCrashes)
}

func (c Crashes[L]) run(t rapid.TB, again string) Coverage {
	t.Helper()
	x := c.explorer(t, again)
	points := len(x.ops) + 1 // the last one is after all of them
	for n := 1; n <= points; n++ {
		x.share = max(1, x.budget/(points+1-n))
		x.crash(n)
		if x.found != nil && len(x.found.how) == 1 {
			break
		}
	}
	t.Logf("crashtest: %v", x.cover)
	if x.found != nil {
		x.fail()
	}
	return x.cover
}

// Replay runs again what the message of a failed Run gave as its reproducer, under the same settings, and in a synctest
// bubble if Run was in one: the workload as far as its crash, Check on what that left, and where the text says so a
// crash of Check and another one. It fails as Run did, or logs that nothing is wrong.
//
//	crash 17                                      the workload itself fails
//	crash 17; sectors 3                           Check fails after this crash and policy
//	crash 17; state 12 of 400; crash 4            Check fails when it is crashed at its operation 4
//	crash 17; everything; crash 4; cut a.jsonl 7  Check fails after that
func (c Crashes[L]) Replay(t rapid.TB, reproducer string) {
	t.Helper()
	c.replay(t, reproducer, againCrashes)
}

func (c Crashes[L]) replay(t rapid.TB, reproducer, again string) {
	t.Helper()
	how, err := parseReproducer(reproducer)
	if err != nil {
		t.Fatalf("crashtest: %v", err)
	}
	if f := c.explorer(t, again).follow(how); f.err != nil {
		t.Fatalf("%v", f)
	}
	t.Logf("crashtest: %v: nothing is wrong", how)
}
