package wal_test

import (
	"os"
	"runtime/debug"
	"testing"
)

func TestMain(m *testing.M) {
	if run := os.Getenv(childVariable); run != "" {
		child(run, os.Getenv(childVariable+"_DIR"))
		return
	}
	debug.SetGCPercent(800) // some ten thousand small logs are opened, each with buffers of its own
	os.Exit(m.Run())
}

// childVariable says, in the environment, what a test binary that a test started is to do in place of tests.
const childVariable = "JOBWAL_TEST_CHILD"

// thin is how much of an exhaustive test is done: all, or what there is time for under the race detector and with -short.
func thin(all, some int) int {
	if raceEnabled || testing.Short() {
		return some
	}
	return all
}
