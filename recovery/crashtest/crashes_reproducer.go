package crashtest

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/jobwal/jobwal/wal/crashfs"
)

// A reproducer is one crash, or one and another inside the recovery from it.
type reproducer []crash

// A crash is the power that goes before an operation, counted from 1, and what that leaves; nil where the failure came
// before anyone looked.
type crash struct {
	at     int
	leaves *choice
}

// A choice is one of the states that a crash may leave: by policy, or by its number among those of CrashStates.
type choice struct {
	policy crashfs.Policy
	number int
	bound  int // 0: by policy
}

// String prints the reproducer as parseReproducer reads it.
func (r reproducer) String() string {
	var words []string
	for _, c := range r {
		words = append(words, "crash "+strconv.Itoa(c.at))
		if c.leaves != nil {
			words = append(words, c.leaves.String())
		}
	}
	return strings.Join(words, "; ")
}

func (c choice) String() string {
	if c.bound > 0 {
		return fmt.Sprintf("state %d of %d", c.number, c.bound)
	}
	return c.policy.String()
}

// disk is what the crash leaves by this choice.
func (c choice) disk(at *crashfs.FS) (*crashfs.FS, error) {
	if c.bound == 0 {
		return at.Crash(c.policy), nil
	}
	states := at.CrashStates(c.bound)
	if c.number >= states.Len() {
		return nil, fmt.Errorf("there are only %d states", states.Len())
	}
	return states.At(c.number), nil
}

// parseReproducer reads what reproducer.String printed.
func parseReproducer(text string) (how reproducer, err error) {
	words := strings.Split(strings.TrimSpace(text), "; ")
	for i, word := range words {
		switch {
		case i%2 == 0:
			var n int
			if n, err = parseCrash(word); err == nil {
				how = append(how, crash{at: n})
			}
		default:
			var c choice
			if c, err = parseChoice(word); err == nil {
				how[len(how)-1].leaves = &c
			}
		}
		if err != nil {
			return nil, fmt.Errorf("reproducer %q: %w; it looks like \"crash 17; synced\"", text, err)
		}
	}
	if len(how) > 2 {
		return nil, fmt.Errorf("reproducer %q: more than two crashes", text)
	}
	return how, nil
}

func parseCrash(word string) (int, error) {
	s, err := crashfs.ParseSchedule(word)
	if err != nil {
		return 0, err
	}
	if len(s) != 1 || s[0].Op != crashfs.OpCrash || s[0].N > math.MaxInt32 {
		return 0, fmt.Errorf("%q is no crash", word)
	}
	return int(s[0].N), nil
}

func parseChoice(word string) (c choice, err error) {
	if !strings.HasPrefix(word, "state ") {
		c.policy, err = crashfs.ParsePolicy(word)
		return c, err
	}
	if n, err := fmt.Sscanf(word, "state %d of %d", &c.number, &c.bound); n != 2 || c.String() != word || c.number < 0 {
		return choice{}, fmt.Errorf("%q is no state: %v", word, err)
	}
	return c, nil
}

// follow does what a reproducer says, and nothing else. It returns what it saw; without an error, nothing was wrong.
func (x *explorer[L]) follow(how reproducer) *failure {
	x.t.Helper()
	f := &failure{how: how, again: x.again}
	if last := len(x.ops) + 1; how[0].at > last {
		x.t.Fatalf("crashtest: %q: the workload makes %d operations", how, len(x.ops))
	}
	l := x.work(how[0].at)
	f.see("the workload, and where the power goes:\n%s", listing(x.ops, how[0].at))
	for i, c := range how {
		if l.err != nil {
			f.how, f.err = append(slices.Clone(how[:i]), crash{at: c.at}), l.err
			return f
		}
		if c.leaves == nil {
			return f
		}
		disk, err := c.leaves.disk(l.disk)
		if err != nil {
			x.t.Fatalf("crashtest: %q: %v", how, err)
		}
		f.see("what %s left:\n%s", c.leaves, indent(disk.String()))
		now := how[:i+1]
		if i+1 < len(how) {
			now = append(slices.Clone(now), crash{at: how[i+1].at})
		}
		l = x.live(x.Check, disk, nil, now, x.clone(l.ledger))
		f.see("the check, and what it changes:\n%s", listing(l.ops, 0))
	}
	f.err = l.err
	return f
}

// fail ends the test with what was found, as it looks when it is run by itself.
func (x *explorer[L]) fail() {
	x.t.Helper()
	f := x.follow(x.found.how)
	if f.err == nil {
		f.err = x.found.err
		if !errors.Is(f.err, errTestFailed) {
			f.see("It did not fail again when it was run by itself: is something not deterministic, or does Check change a " +
				"ledger that has no method Clone?\n")
		}
	}
	x.t.Fatalf("%v", f)
}

// A failure is what went wrong, how to get there, and the way that it took.
type failure struct {
	how    reproducer
	err    error
	scenes strings.Builder
	again  string
}

func (f *failure) see(format string, args ...any) { fmt.Fprintf(&f.scenes, format, args...) }

func (f *failure) String() string {
	return fmt.Sprintf("crashtest: %v: %v\n%s"+
		"To run this again, alone: %s.",
		f.how, f.err, &f.scenes, fmt.Sprintf(f.again, f.how.String()))
}

// listing shows the operations around one, by their numbers; 0 for the last ones.
func listing(ops []crashfs.Op, at int) string {
	const before, after = 12, 3
	if len(ops) == 0 {
		return "\t(no operations)\n"
	}
	around := at
	if around == 0 {
		around = len(ops)
	}
	var b strings.Builder
	from := max(0, around-1-before)
	if from > 0 {
		fmt.Fprintf(&b, "\t%6s\n", "…")
	}
	for i := from; i < min(len(ops), around+after); i++ {
		mark := ' '
		if i+1 == at {
			mark = '>'
		}
		fmt.Fprintf(&b, "\t%c%5d %v\n", mark, i+1, ops[i])
	}
	if at > len(ops) {
		fmt.Fprintf(&b, "\t>%5d (after all of them)\n", at)
	}
	return b.String()
}

func indent(s string) string {
	if s == "" {
		return "\t(nothing)\n"
	}
	return "\t" + strings.ReplaceAll(strings.TrimSuffix(s, "\n"), "\n", "\n\t") + "\n"
}
