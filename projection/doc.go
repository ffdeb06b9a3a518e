// Package projection holds read models folded from the log: [Jobs] finds jobs by id, state, capability and time,
// [Stats] counts them and times their stages. Programs add their own by implementing [Projection].
//
// A projection is fed by one applier, event after event in the order of their seqs, with the job as it stands after
// each; it may be read at any time from any number of goroutines. What it holds depends on the events alone, never on
// the wall clock, so a fold of the same log always ends in the same state.
//
// # Promises
//
//	R1  A read model reflects every event exactly once, in seq order. Jobs refuses an event that it is past.
//	R4  A parked job stays visible, is counted as parked, and changes no other job.
//
// # Ownership
//
// The event and the job that a projection is handed are the same ones that all others are handed: it must not change
// them, Args and Output above all, nor keep an event's slices (a job's [statemachine.Payload] may be kept, it never
// changes). All that Jobs and Stats hand out belongs to the caller.
//
// # Locks
//
// Jobs and Stats have one lock each, mu. The applier holds it for the time of one event, a reader for a bounded look,
// and nobody while a caller's code runs: an iteration may feed back into whatever the caller likes.
package projection
