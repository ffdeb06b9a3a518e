//go:build !linux

package crashtest_test

import "testing"

func TestF14_real_power_cut(t *testing.T) {
	t.Skip("needs Linux: file systems on loop devices that can be shut down")
}

func TestF10_real_full_disk(t *testing.T) {
	t.Skip("needs Linux: a small file system on a loop device")
}
