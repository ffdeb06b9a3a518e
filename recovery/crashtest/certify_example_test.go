package crashtest_test

import (
	"os/exec"
	"testing"

	"github.com/jobwal/jobwal/recovery/crashtest"
)

// A test of a shop that takes its directory as an argument, keeps its log in "jobs" there, and exits when all orders are
// served. In the shop there are two lines of package subject, and a few for its ledger.
func ExampleCertify() {
	var t *testing.T // the test's own
	shop := crashtest.Program{
		Command: func(dir, _ string) *exec.Cmd { return exec.Command("./shop", "-dir", dir) },
		Log:     "jobs",
	}
	crashtest.Certify(t, shop)

	// What failed is seen again, life by life, by the reproducer that was printed:
	shop.Replay(t, "kill after 17, then before 3")
}
