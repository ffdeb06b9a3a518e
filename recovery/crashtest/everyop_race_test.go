//go:build race

package crashtest_test

// thin thins out what does not look for races, and takes ten times as long with the detector.
func thin(_, some int) int { return some }
