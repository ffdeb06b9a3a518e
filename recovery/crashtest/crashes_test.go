package crashtest_test

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/recovery/crashtest"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// fatal runs a test that may fail, and returns what it ended with; "" where it did not fail.
func fatal(test func(t rapid.TB)) string {
	report, failed := crashtest.Fails(test)
	if !failed {
		return ""
	}
	return coverage.ReplaceAllString(report, "")
}

// coverage is what Run says in any case.
var coverage = regexp.MustCompile(`(?m)^crashtest: \d+ operations, .*\n`)

// put writes a file, and replaces it the right way: nothing that was there is lost before the new one is.
func put(disk wal.FS, name, text string) error {
	f, err := disk.OpenFile(name+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte(text), 0); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := disk.Rename(name+".new", name); err != nil {
		return err
	}
	return disk.SyncDir(".")
}

// saved is the ledger of a program that saves texts: what it began to save, and how many of those it did.
type saved struct {
	asked []string
	done  int
}

func saveTwice(disk wal.FS, s *saved) error {
	for _, text := range []string{"one", "two"} {
		s.asked = append(s.asked, text)
		if err := put(disk, "a", text); err != nil {
			return err
		}
		s.done++
	}
	return nil
}

func (s *saved) check(text string) error {
	if i := slices.Index(s.asked, text); i < 0 && (text != "" || s.done > 0) || i >= 0 && i < s.done-1 {
		return fmt.Errorf("found %q, asked %q, of which %d were done", text, s.asked, s.done)
	}
	return nil
}

// recoverWell cleans up in a way that may be repeated.
func recoverWell(disk wal.FS, s *saved) error {
	text := string(contents(disk, "a"))
	if err := s.check(text); err != nil {
		return err
	}
	if text == "" {
		return nil
	}
	return put(disk, "b", text)
}

// recoverBadly rewrites in place what it has found, and is not to be disturbed at that.
func recoverBadly(disk wal.FS, s *saved) error {
	text := string(contents(disk, "a"))
	if err := s.check(text); err != nil || text == "" {
		return err
	}
	f, err := disk.OpenFile("a", os.O_RDWR|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte(text), 0); err != nil {
		return err
	}
	return f.Sync()
}

// reproducer is what a message says is to be replayed.
func reproducer(message string) string {
	_, text, _ := strings.Cut(message, "Replay(t, \"")
	text, _, _ = strings.Cut(text, "\"")
	return text
}

// A log whose syncs do nothing loses what it acknowledged, and the test that found it says how to see that again.
func TestCrashes_have_teeth(t *testing.T) {
	for _, flaw := range []crashtest.Flaw{crashtest.NoFsync, crashtest.NoDirectoryFsync} {
		t.Run(string(flaw), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := crashtest.Crashes[notes]{
					Workload: func(disk wal.FS, n *notes) error {
						return n.session(flawed(disk, flaw), n.groups(1, 10, 2))
					},
					Check:  func(disk wal.FS, n *notes) error { return n.check(disk) },
					Budget: 200,
				}
				first := fatal(func(t rapid.TB) { c.Run(t) })
				require.Contains(t, first, "group 1 was acknowledged, and is not at seq 1")
				again := fatal(func(t rapid.TB) { c.Replay(t, reproducer(first)) })
				require.Equal(t, first, again)
				honest := c
				honest.Workload = func(disk wal.FS, n *notes) error { return n.session(disk, n.groups(1, 10, 2)) }
				honest.Replay(t, reproducer(first))
			})
		})
	}
}

// A recovery that can't be disturbed fails with two crashes, and the first of its operations that matters is named.
func TestCrashes_of_the_recovery(t *testing.T) {
	c := crashtest.Crashes[saved]{Workload: saveTwice, Check: recoverBadly}
	first := fatal(func(t rapid.TB) { c.Run(t) })
	require.Contains(t, first, `crashtest: crash 5; everything; crash 3; cut a 2: found "on", asked ["one"], of which 0 were done`)
	again := fatal(func(t rapid.TB) { c.Replay(t, "crash 5; everything; crash 3; cut a 2") })
	require.Equal(t, first, again)

	c.Once = true
	cover := c.Run(t)
	require.Zero(t, cover.SecondCrashes)
	c.Once, c.Check = false, recoverWell
	c.Run(t)
	c.Replay(t, "crash 5; everything; crash 3; cut a 2")
}

// Every operation is crashed, of the workload and of the check, each under every policy, on a copy of Base, and the
// numbers say so.
func TestCrashes_reach_every_operation(t *testing.T) {
	base := crashfs.New()
	require.NoError(t, put(base, "base", "here from the start"))
	before := base.Fingerprint()
	crashes := map[string]map[string]int{"workload": {}, "check": {}}
	checks := 0
	c := crashtest.Crashes[saved]{
		Base: base,
		Workload: func(disk wal.FS, s *saved) error {
			require.Zero(t, *s, "a ledger that was used before")
			require.Equal(t, "here from the start", string(contents(disk, "base")))
			require.Empty(t, contents(disk, "a"))
			crashes["workload"][disk.(*crashfs.Faulty).Schedule().String()]++
			return saveTwice(disk, s)
		},
		Check: func(disk wal.FS, s *saved) error {
			checks++
			crashes["check"][disk.(*crashfs.Faulty).Schedule().String()]++
			return recoverWell(disk, s)
		},
	}
	cover := c.Run(t)
	require.Equal(t, before, base.Fingerprint())
	require.Equal(t, 10, cover.Operations) // create, write, sync, rename, syncdir, twice
	require.Equal(t, 11, cover.Crashes)
	for n := 1; n <= 11; n++ {
		require.Equal(t, 1, crashes["workload"][fmt.Sprint("crash ", n)], n)
	}
	second := 0
	for n := 1; n <= 6; n++ {
		require.NotZero(t, crashes["check"][fmt.Sprint("crash ", n)], n)
		second += crashes["check"][fmt.Sprint("crash ", n)]
	}
	require.Equal(t, second, cover.SecondCrashes)
	require.Equal(t, checks, 1+cover.Distinct+cover.SecondCrashes+cover.SecondDistinct)
	require.Less(t, cover.Distinct, cover.States)
	require.Zero(t, cover.Left+uint64(cover.SecondLeft))
	require.False(t, cover.AtLeast)
	require.Equal(t, fmt.Sprintf("10 operations, 11 crashes, %d states, %d distinct; %d crashes of the recovery, %d states, %d distinct",
		cover.States, cover.Distinct, second, cover.SecondStates, cover.SecondDistinct), cover.String())

	c.Policies = []crashfs.Policy{crashfs.SyncedOnly, crashfs.Zeros}
	require.Equal(t, 22, c.Run(t).States)
}

// What does not fit the budget is counted, and each operation is crashed all the same.
func TestCrashes_budget(t *testing.T) {
	checks := 0
	c := crashtest.Crashes[saved]{Workload: saveTwice, Budget: 40, Check: func(disk wal.FS, s *saved) error {
		checks++
		return recoverWell(disk, s)
	}}
	cover := c.Run(t)
	require.Equal(t, 11, cover.Crashes)
	require.LessOrEqual(t, checks, 40+11)
	require.Greater(t, checks, 30)
	require.NotZero(t, cover.SecondLeft)
	require.Contains(t, cover.String(), fmt.Sprintf("; left out: %d states, %d crashes of the recovery", cover.Left, cover.SecondLeft))

	c.Budget, checks = 1, 0
	cover = c.Run(t)
	require.Equal(t, 11, cover.Distinct)
	require.NotZero(t, cover.Left)
}

// With States, the states of CrashStates are tried, and a reproducer names one by its number.
func TestCrashes_states(t *testing.T) {
	c := crashtest.Crashes[saved]{Workload: saveTwice, Check: recoverWell, States: 100}
	all := c.Run(t)
	require.Zero(t, all.Left)
	c.States = 2
	few := c.Run(t)
	require.Less(t, few.Distinct, all.Distinct)
	require.NotZero(t, few.Left)

	c.States = 100
	c.Workload = func(disk wal.FS, s *saved) error { return saveTwice(flawed(disk, crashtest.NoFsync), s) }
	first := fatal(func(t rapid.TB) { c.Run(t) })
	require.Regexp(t, `^crashtest: crash 4; state \d+ of 100: found`, first)
	again := fatal(func(t rapid.TB) { c.Replay(t, reproducer(first)) })
	require.Equal(t, first, again)
}

// noting is a ledger with a Clone.
type noting struct {
	saved
	seen []string
}

func (n *noting) Clone() *noting {
	c := *n
	c.seen = slices.Clone(n.seen)
	return &c
}

// A check may note what it saw where its ledger has a Clone: the check after its crash knows it, and no other.
func TestCrashes_ledger_with_a_clone(t *testing.T) {
	var first, second int
	crashtest.Crashes[noting]{
		Workload: func(disk wal.FS, n *noting) error { return saveTwice(disk, &n.saved) },
		Check: func(disk wal.FS, n *noting) error {
			switch len(n.seen) {
			case 0:
				first++
			case 1:
				second++
			default:
				return fmt.Errorf("%q were seen by others", n.seen[1:])
			}
			if err := disk.SyncDir("."); err != nil { // before anyone is shown what is there
				return err
			}
			text := string(contents(disk, "a"))
			if len(n.seen) > 0 && text != n.seen[0] {
				return fmt.Errorf("%q, and %q was seen before", text, n.seen[0])
			}
			n.seen = append(n.seen, text)
			return recoverWell(disk, &n.saved)
		},
	}.Run(t)
	require.NotZero(t, first)
	require.NotZero(t, second)
}

// What was seen in a recovery, and is lost by the next crash: F9. Only a ledger that the check writes into shows it.
func TestCrashes_seen_then_lost(t *testing.T) {
	c := crashtest.Crashes[noting]{
		Workload: func(disk wal.FS, n *noting) error { return saveTwice(disk, &n.saved) },
		Check: func(disk wal.FS, n *noting) error { // it makes nothing durable of what it shows
			text := string(contents(disk, "a"))
			if len(n.seen) > 0 && text != n.seen[0] {
				return fmt.Errorf("%q, and %q was seen before", text, n.seen[0])
			}
			n.seen = append(n.seen, text)
			return n.check(text)
		},
	}
	first := fatal(func(t rapid.TB) { c.Run(t) })
	require.Contains(t, first, `crashtest: crash 5; everything; crash 1; synced: "", and "one" was seen before`)
}

// What is wrong with a test is said, in place of a coverage that means nothing.
func TestCrashes_that_prove_nothing(t *testing.T) {
	boom := errors.New("boom")
	nothing := func(wal.FS, *saved) error { return nil }
	fails := func(wal.FS, *saved) error { return boom }
	counter := 0
	for name, c := range map[string]struct {
		crashtest.Crashes[saved]
		want string
	}{
		"no workload":   {crashtest.Crashes[saved]{Check: recoverWell}, "Workload or Check is missing"},
		"no operations": {crashtest.Crashes[saved]{Workload: nothing, Check: recoverWell}, "the workload makes no file operations"},
		"no look":       {crashtest.Crashes[saved]{Workload: saveTwice, Check: nothing}, "the check never looked at the disk"},
		"workload fails": {crashtest.Crashes[saved]{Workload: fails, Check: recoverWell},
			"the workload fails without a crash: boom"},
		"check fails": {crashtest.Crashes[saved]{Workload: saveTwice, Check: fails}, "the check fails without a crash: boom"},
		"a crash of its own": {crashtest.Crashes[saved]{Workload: saveTwice, Check: recoverWell,
			Schedule: crashfs.MustSchedule("crash 3")}, `a crash in the schedule "crash 3"`},
		"a policy that can't be printed": {crashtest.Crashes[saved]{Workload: saveTwice, Check: recoverWell,
			Policies: []crashfs.Policy{crashfs.CutAt("a;b", 1)}}, "can't stand in a reproducer"},
		"a negative budget": {crashtest.Crashes[saved]{Workload: saveTwice, Check: recoverWell, Budget: -1}, "negative"},
		"another number of operations": {crashtest.Crashes[saved]{Check: recoverWell, Workload: func(disk wal.FS, s *saved) error {
			if counter++; counter == 8 {
				return put(disk, "a", "once")
			}
			return saveTwice(disk, s)
		}}, "the workload isn't deterministic: its operation 6 was create when nothing crashed, and is nothing in the run that crashes at 7"},
		"other operations": {crashtest.Crashes[saved]{Check: recoverWell, Workload: func(disk wal.FS, s *saved) error {
			if counter++; counter%2 == 0 {
				_ = disk.Mkdir("odd", 0o755)
			} else {
				_ = disk.SyncDir(".")
			}
			return saveTwice(disk, s)
		}}, "isn't deterministic: its operation 1 was"},
		"a check that differs": {crashtest.Crashes[saved]{Workload: saveTwice, Check: func(disk wal.FS, s *saved) error {
			if counter++; counter%7 == 0 {
				_ = disk.Mkdir("odd", 0o755)
			}
			return recoverWell(disk, s)
		}}, "the check isn't deterministic: its operation"},
	} {
		t.Run(name, func(t *testing.T) {
			counter = 0
			require.Contains(t, fatal(func(t rapid.TB) { c.Run(t) }), c.want)
		})
	}
}

// Only what the crash itself makes of the functions is excused.
func TestCrashes_errors_after_the_crash(t *testing.T) {
	boom := errors.New("boom")
	after := func(do func(wal.FS, *saved) error, make func(error) error) func(wal.FS, *saved) error {
		return func(disk wal.FS, s *saved) error {
			err := do(disk, s)
			if disk.(*crashfs.Faulty).Crashed() {
				return make(err)
			}
			return err
		}
	}
	for name, c := range map[string]struct {
		make func(error) error
		want string // "" is for what is excused
	}{
		"nil":             {func(error) error { return nil }, ""},
		"wrapped":         {func(err error) error { return fmt.Errorf("put: %w", err) }, ""},
		"another":         {func(error) error { return boom }, "boom"},
		"only its text":   {func(err error) error { return errors.New("only " + err.Error()) }, "only "},
		"corrupt besides": {func(err error) error { return errors.Join(&wal.CorruptError{Path: "x"}, err) }, "wal: x: offset 0"},
		"panic":           {func(err error) error { panic("ouch") }, "panic: ouch\ngoroutine"},
	} {
		t.Run(name, func(t *testing.T) {
			workload := fatal(func(t rapid.TB) {
				crashtest.Crashes[saved]{Workload: after(saveTwice, c.make), Check: recoverWell}.Run(t)
			})
			check := fatal(func(t rapid.TB) {
				crashtest.Crashes[saved]{Workload: saveTwice, Check: after(recoverWell, c.make)}.Run(t)
			})
			if c.want == "" {
				require.Empty(t, workload+check)
				return
			}
			require.Contains(t, workload, "crashtest: crash 1: "+c.want)
			require.Contains(t, check, "crashtest: crash 5; everything; crash 1: "+c.want)
		})
	}
}

// A check that fails the test itself, in place of returning an error, is found as well.
func TestCrashes_check_with_assertions(t *testing.T) {
	h := fatal(func(t rapid.TB) {
		crashtest.Crashes[saved]{
			Workload: func(disk wal.FS, s *saved) error { return saveTwice(flawed(disk, crashtest.NoFsync), s) },
			Check: func(disk wal.FS, s *saved) error {
				if err := recoverWell(disk, s); err != nil && !errors.Is(err, crashfs.ErrCrashed) {
					t.Errorf("%v", err)
				}
				return nil
			},
		}.Run(t)
	})
	require.Contains(t, h, "crash 4; zeros: the test was failed, see above")
}

// A function that ends the test, as testing's FailNow does, can't be brought back, but where it was is said.
func TestCrashes_check_that_ends_the_test(t *testing.T) {
	report, failed := crashtest.Fails(func(t rapid.TB) {
		crashtest.Crashes[saved]{Workload: saveTwice, Check: func(disk wal.FS, s *saved) error {
			if len(contents(disk, "a")) == 0 {
				runtime.Goexit()
			}
			return nil
		}}.Run(t)
	})
	require.False(t, failed)
	require.Equal(t, "crashtest: the test ended itself in this run: \"crash 1; synced\"\n", report)
}

// CrashEveryOp is in a bubble of its own: an hour there takes no time, and timers go off in the same place every time.
func TestCrashEveryOp(t *testing.T) {
	clocks := make(map[time.Duration]bool)
	cover := crashtest.CrashEveryOp(t, func(disk wal.FS, s *saved) error {
		begin, written := time.Now(), make(chan error)
		time.AfterFunc(time.Hour, func() { written <- put(disk, "later", "there") })
		if err := errors.Join(saveTwice(disk, s), <-written); err != nil {
			return err
		}
		clocks[time.Since(begin)] = true
		return nil
	}, recoverWell)
	require.Equal(t, 15, cover.Operations)
	require.Equal(t, 16, cover.Crashes)
	require.NotZero(t, cover.SecondDistinct)
	require.Zero(t, cover.SecondLeft)
	require.Equal(t, map[time.Duration]bool{time.Hour: true}, clocks)
}

// What rapid throws to give up a case that is of no use goes through to it.
func TestCrashes_under_rapid_that_skips(t *testing.T) {
	whole := 0
	rapid.Check(t, func(t *rapid.T) {
		skip := rapid.Bool().Draw(t, "skip")
		crashtest.Crashes[saved]{Workload: saveTwice, Budget: 1, Check: func(disk wal.FS, s *saved) error {
			if skip {
				t.Skip("no use")
			}
			return recoverWell(disk, s)
		}}.Run(t)
		whole++
	})
	require.GreaterOrEqual(t, whole, 50)
}

// Run takes a *rapid.T: what the workload does is drawn once, before it is crashed.
func TestCrashes_under_rapid(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		texts := rapid.SliceOfN(rapid.StringMatching(`[a-z]{1,9}`), 1, 3).Draw(t, "texts")
		crashtest.Crashes[saved]{
			Workload: func(disk wal.FS, s *saved) error {
				for _, text := range texts {
					s.asked = append(s.asked, text)
					if err := put(disk, "a", text); err != nil {
						return err
					}
				}
				return nil
			},
			Check: recoverWell, Budget: 20,
		}.Run(t)
	})
}

// A fault that nothing meets is told of: its pattern is misspelt, or the workload is too short.
func TestCrashes_fault_that_never_happens(t *testing.T) {
	told, failed := crashtest.Fails(func(t rapid.TB) {
		crashtest.Crashes[saved]{Workload: saveTwice, Check: recoverWell, Budget: 1,
			Schedule: crashfs.MustSchedule("sync nothing #1 error EIO; open * #1 freeze; close a.new #9 error EIO")}.Run(t)
	})
	require.False(t, failed)
	require.Contains(t, told, "nothing is proved of them: sync nothing #1 error EIO; open * #1 freeze; close a.new #9")
	told, failed = crashtest.Fails(func(t rapid.TB) {
		crashtest.Crashes[saved]{Workload: saveTwice, Check: recoverWell, Budget: 1,
			Schedule: crashfs.MustSchedule("write a.new #1 short 99")}.Run(t)
	})
	require.False(t, failed)
	require.NotContains(t, told, "nothing is proved")
}

func TestCrashes_replay_of_nonsense(t *testing.T) {
	c := crashtest.Crashes[saved]{Workload: saveTwice, Check: recoverWell}
	for text, want := range map[string]string{
		"":                      "is no crash",
		"crash":                 "crash",
		"crash 0":               "crash",
		"zeros":                 "zeros",
		"crash 3; zeroes":       "no policy",
		"crash 3; state 1":      "is no state",
		"crash 3; state 1 of 0": "is no state",
		"crash 3; state 9 of 8": "there are only",
		"crash 12; zeros":       "the workload makes 10 operations",
		"crash 3; zeros; crash 1; zeros; crash 1": "more than two crashes",
	} {
		require.Contains(t, fatal(func(t rapid.TB) { c.Replay(t, text) }), want, text)
	}
	report, failed := crashtest.Fails(func(t rapid.TB) { c.Replay(t, " crash 11; state 0 of 7; crash 6; seed 3\n") })
	require.False(t, failed)
	require.Equal(t, "crashtest: crash 11; state 0 of 7; crash 6; seed 3: nothing is wrong\n", report)
}
