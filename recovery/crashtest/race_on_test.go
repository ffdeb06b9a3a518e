//go:build race

package crashtest

// raceEnabled thins out the exhaustive tests: what they look for is not a race, and the detector makes them ten times
// slower. Without it they are complete.
const raceEnabled = true
