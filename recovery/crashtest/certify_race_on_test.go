//go:build race

package crashtest_test

// thinTrials: with the race detector a process takes several times as long to start.
func thinTrials(n int) int { return n / 3 }
