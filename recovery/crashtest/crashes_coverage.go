package crashtest

import (
	"fmt"
	"math"
	"math/bits"
	"strings"
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
		fmt.Fprintf(&b, "; %d crashes of the recovery, %d states, %d distinct",
			c.SecondCrashes, c.SecondStates, c.SecondDistinct)
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
