// Package realdisk gives tests file systems of their own, for real: ext4 or XFS on a loop device, which can be shut down
// under whoever writes to them and mounted again, and tmpfs. It needs Linux 5.8 or newer, root, and a loop device, and
// skips the test, saying what is missing, where it does not have them.
//
// The disk is memory (memfd_create(2)), and what is mounted from it has no place in any directory: it is a file
// descriptor (fsmount(2)), its path is that of the descriptor under /proc/self/fd, and a process that the test starts may
// inherit it. All of it, and the loop device between the two, is gone when the last process is that holds it: a test that
// is killed leaves nothing behind.
package realdisk
