//go:build race

package crashtest

// raced thins out the exhaustive tests of damage: what they look for is not a race, and the detector makes them ten times
// slower.
func raced(_, some int) int { return some }
