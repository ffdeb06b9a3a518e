//go:build !linux

package crashtest_test

import "testing"

// The tests whose names have "real" in them are not here; that they are not should be seen.
func TestRealDisks(t *testing.T) {
	t.Skip("needs Linux: it shuts down and fills up file systems on loop devices")
}
