package crashtest

import (
	"testing"

	"pgregory.net/rapid"
)

// thin is how much of an exhaustive test is done: all, or what there is time for under the race detector and with -short.
func thin(all, some int) int {
	if raceEnabled || testing.Short() {
		return some
	}
	return all
}

// For the tests outside the package.
var (
	Thin      = thin
	IDsOf     = idsOf
	ReadFile  = readFile
	CheckFrom = checkFrom
)

// OnceFuzzed is what Fuzz does with one input.
func OnceFuzzed(t *testing.T, in []byte, property func(*rapid.T)) {
	rapid.MakeFuzz(property)(t, padded(in))
}
