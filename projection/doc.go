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
//	R2  What was loaded from a snapshot and has folded the events behind it is equal to what has folded them all.
//	R4  A parked job stays visible, is counted as parked, and changes no other job.
//	R5  Only a job that has finished, and is not parked, is ever forgotten. What is forgotten leaves no memory behind
//	    but 24 bytes for its id, as long as that is refused.
//
// # Forgetting
//
// That a job is remembered no longer is an event too, jobs_forgotten, which names the jobs: see [Forgotten]. Whoever
// folds the log forgets the same ones. Who decides what is due asks [Jobs.Forgettable] and appends [Forgotten.Event];
// [Jobs.Fold] and [Jobs.Forget] fold it. Other projections are told by [Forgetter], if they keep or count anything by
// job.
//
// The ids stay refused ([Jobs.Refuses]) until a later jobs_forgotten event lets go of those that were forgotten before
// some time. Jobs only answers the question: a submission that stands in the log all the same is a new job.
//
// A log from which the events of forgotten jobs were removed, below a floor, may still have later ones of such jobs, and
// the event that forgets them behind these. With that floor in [JobsOptions] they are passed over; [Jobs.Strays] tells
// of which jobs they are, and at the end of a sound log of none. From there on [Jobs.EndFloor] says that none can be.
//
// # Snapshots
//
// A projection that is a [Snapshotter] can be written into a checkpoint, and read back, so that a log need not be folded
// from its beginning. Jobs and Stats are. A freeze of Jobs copies nothing, however many jobs there are: of what changes
// while the snapshot is being written the old record is kept until it is written. The bytes depend on the state alone
// and carry a version, but no checksum of their own; that is the checkpoint's. Whatever bytes Load is given, it takes
// memory in proportion to them, and returns an error or a model that can be used.
//
// # Memory
//
// A million jobs fit: a job is a packed record inside, and a [statemachine.Job] is made of it on read. Args and outputs
// beyond a limit are not held if JobsOptions say so. The memory of forgotten jobs comes back in blocks of 64 jobs; when
// holes have come to take more than the jobs do, the applier moves the jobs together, which costs less than forgetting
// did.
//
// # Ownership
//
// The event and the job that a projection is handed are the same ones that all others are handed: it must not change
// them, Args and Output above all, nor keep an event's slices (a job's [statemachine.Payload] may be kept, it never
// changes). All that Jobs and Stats hand out belongs to the caller.
//
// # Locks
//
// Jobs and Stats have one lock each, mu. The applier holds it for the time of one event (of a jobs_forgotten event: about
// a microsecond for each job that it names), a reader, and who saves a snapshot, for a bounded look, and nobody while a
// caller's code runs: an iteration may feed back into whatever the caller likes.
package projection
