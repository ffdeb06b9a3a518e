//go:build !race

package crashtest_test

import "testing"

func thin(all, some int) int {
	if testing.Short() {
		return some
	}
	return all
}
