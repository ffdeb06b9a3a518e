package crashtest_test

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/recovery/crashtest"
)

// bubbled runs a property in a bubble of its own at each check.
func bubbled(property func(*rapid.T)) func(*rapid.T) {
	return func(t *rapid.T) { rapid.SyncTest(t, property) }
}

// R1, R2, R3, R4, S1: the power goes at any operation of a command, of Close, of Open, or between them. Everything that was
// acknowledged is there afterwards, nothing that was not submitted, a group as a whole, and all that the engine says is the
// fold of it.
func TestR1_R2_R3_S1_actions(t *testing.T) { rapid.Check(t, bubbled(act)) }

func act(t *rapid.T) {
	a := &crashtest.Actions{Idle: time.Second}
	a.Open(t)
	t.Repeat(a.Map())
}
