// Package crashtest proves programs crash-safe: jobwal's own, and yours. It is what a property-based correctness suite
// calls; package [github.com/jobwal/jobwal/wal/crashfs] is the disk underneath.
//
// # What there is
//
//   - [CrashEveryOp] runs a workload, crashes it at each of its file operations in every way that a disk may, lets it
//     recover, and crashes the recovery, too.
//   - [History] records what was asked and what was answered; [Check] holds it against the log that was recovered.
//   - [Reference] is a machine so naive that it can be believed. Generators draw histories, legal and illegal; [Actions]
//     are ready for rapid's Repeat.
//   - [TestLog] and [TestProjection] are conformance suites, in the style of testing/fstest.
//   - [Damages] are what disks and people do to files, each with the verdict that it must lead to.
//   - [Certify] kills a whole program at every event, and holds what it did to the world against its log.
//   - [Saboteurs] are broken on purpose: a suite that does not catch them is broken itself.
package crashtest
