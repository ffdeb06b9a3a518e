package recovery

import (
	"os"
	"runtime/debug"
	"testing"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childVariable); dir != "" {
		child(dir)
		return
	}
	debug.SetGCPercent(800) // some ten thousand small logs are opened, each with buffers of its own
	os.Exit(m.Run())
}

// childVariable is, in the environment, the directory in which a test binary that a test started is to work in place of
// running tests.
const childVariable = "JOBWAL_TEST_ENGINE_CHILD"
