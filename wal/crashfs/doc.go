// Package crashfs is a disk that can lose power: a file system in memory for tests of package wal, and of anything else
// that goes through a [wal.FS].
//
// [FS] keeps apart what was written and what was synced. [FS.Crash] returns a new file system in a state that a power
// cut may leave, chosen by a [Policy]; [FS.CrashStates] lists all of them where they are few. [Inject] wraps an FS, or
// the real file system, and makes operations fail as a [Schedule] says. Both log the operations that change the disk.
//
// To prove a whole program crash-safe, begin with CrashEveryOp of package
// [github.com/jobwal/jobwal/recovery/crashtest], which does the loop over crashes and shortens what it finds. This
// package by itself is for one crash, one fault, or one state:
//
//	disk := crashfs.New()
//	faulty := crashfs.Inject(disk, crashfs.MustSchedule("write *.jsonl #3 short 17 ENOSPC; crash 40"))
//	workload(faulty)
//	for _, after := range disk.CrashStates(1000).All() {
//		check(after)
//	}
//
// # What the disk does
//
// It is the disk that package wal assumes, and does nothing better than it must:
//
//   - A successful Sync of a file puts its bytes and its size on stable storage; for ever, whatever happens. It does
//     not put the file's name there: that takes SyncDir of the directory, and the directory's own name takes SyncDir
//     of its parent. SyncDir puts no bytes there.
//   - Of writes that were not synced, every sector of every write lands or is lost by itself, in any order; so of two
//     writes to one sector either may be there without the other. Bytes of a sector that no write changed survive.
//     (Pages of 4 KiB instead of sectors of 512 bytes are a policy.)
//   - The size follows on its own. It may be what it was after any of the changes, or part of the way of a write.
//     Where it covers a sector that no write reached, there are zeros, or what the block held when it belonged to
//     something else: bytes that were cut off or removed, or that a crash before this one left without an owner. A
//     sector that one write reached holds zeros besides, never old bytes.
//   - A truncate is two things: the new size, and zeros in place of what it cuts off. Both may land or be lost, apart
//     from each other and from the writes that follow. So where a truncate is followed by a write further on, before
//     a sync, the bytes between may be the old ones. What was below the new size is never touched.
//   - Of changes of directories that were not synced, every one is there or not, across all directories in any order,
//     but for what every journal keeps to: changes of the same name come in order; a change inside a directory needs the
//     directory; one that removes a directory needs those that emptied it; moves of directories come in order. To put
//     a change on stable storage is to put those there that it follows, but never the directory that it is in.
//   - A rename is one change: the new name refers to the file and the old name is gone, or neither. A rename from one
//     directory to another is durable when either is synced.
//   - A Sync that fails without doing anything leaves everything unsynced, and the next may succeed. One that fails
//     and lies (see [Schedule]) does what ext4 and XFS do: the bytes can be read until the crash, every later Sync
//     succeeds, and they are lost all the same, unless they are written again; the size may have grown over them, or
//     not. A SyncDir that lies leaves changes in the balance that no later one settles.
//
// Preallocate has no effect on the FS, and takes room on the disk of a [Faulty]. There are no hard or symbolic links,
// no times, and modes are not enforced.
//
// # Two worlds
//
// Crash changes nothing in the file system that it is called on: that one goes on, with its handles and locks, and
// the new one shares nothing with it. So one instant may be looked at under any number of policies, while a program
// runs. After the crash everything is on stable storage and no lock is held. The one exception is [Everything], the
// death of the process: what was not synced is there to be read, and the next crash may still take it.
//
// To crash a program in the middle, run it on a Faulty whose schedule says "crash 17": operation 17 and all after it
// fail with [ErrCrashed]. Then call Crash on the FS below. Operations that only look are not numbered, since a crash
// before one of them leaves what a crash before the next one leaves.
//
// # Reproducing
//
// One seed gives one result for the same operations in the same order: file systems of one goroutine are the same in
// every run. Schedules and policies print as text and are parsed from it.
package crashfs
