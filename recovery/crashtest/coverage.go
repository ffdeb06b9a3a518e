package crashtest

import (
	"fmt"
	"math"
	"math/bits"
	"strconv"
	"strings"

	"github.com/jobwal/jobwal/wal/crashfs"
)

// Coverage is what [Crashes.Run] went through.
type Coverage struct {
	Operations int // of the workload, when nothing crashes it
	Crashes    int // of the workload: one for each operation, and one after the last
	States     int // disks that those left
	Distinct   int // of them, not counting those that look the same after the same crash: so many were checked
	// Left are the states, after either crash, that neither States nor Budget left room for, as far as they could be
	// counted: with AtLeast there are more. What other policies would have left is not counted.
	Left    uint64
	AtLeast bool

	SecondCrashes  int // of Check, at one of its own operations or after the last
	SecondStates   int // disks that those left
	SecondDistinct int // of them, as above
	SecondLeft     int // crashes of Check that Budget left no room for
}

// String prints the coverage on one line.
func (c Coverage) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d operations, %d crashes, %d states, %d distinct", c.Operations, c.Crashes, c.States, c.Distinct)
	if c.SecondCrashes > 0 || c.SecondLeft > 0 {
		fmt.Fprintf(&b, "; %d crashes of the recovery, %d states, %d distinct", c.SecondCrashes, c.SecondStates, c.SecondDistinct)
	}
	if c.Left > 0 || c.SecondLeft > 0 || c.AtLeast {
		least := ""
		if c.AtLeast {
			least = "at least "
		}
		fmt.Fprintf(&b, "; left out: %s%d states, %d crashes of the recovery", least, c.Left, c.SecondLeft)
	}
	return b.String()
}

// leave adds to what was left out.
func (c *Coverage) leave(states uint64, exact bool) {
	sum, carry := bits.Add64(c.Left, states, 0)
	if carry > 0 {
		sum = math.MaxUint64
	}
	c.Left, c.AtLeast = sum, c.AtLeast || carry > 0 || !exact
}

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
			return nil, fmt.Errorf("reproducer %q: %w", text, err)
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
