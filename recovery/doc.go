// Package recovery is what a program imports: an [Engine] takes jobs through their lives, keeps every step as a durable
// event, and after a crash has every acknowledged event back and knows which jobs were interrupted, and in which step.
//
//	engine, err := recovery.Open(ctx, "jobs", recovery.Options{})
//	for _, job := range engine.Interrupted() { … } // resume, fail, or undo; or make a plan of it, see below
//	job, err := engine.Submit(ctx, recovery.Submission{Capability: "shell", Args: args})
//	job, err = engine.Validate(ctx, job.ID)
//	job, err = engine.Start(ctx, job.ID) // durable before the work begins
//	job, err = engine.Complete(ctx, job.ID, output)
//
// # One path
//
// There is no recovery code apart from the code that runs all day:
//
//	down   caller → Engine → statemachine (may this job take this event?) → Log.Append (durable)
//	up     Log.Follow → statemachine (fold) → projections → caller
//
// One applier reads the log in order and folds it. At Open it starts from the newest checkpoint, or from the log's first
// event, before anything on disk is changed; when it has caught up, the engine is open; it never stops. A command
// appends, and returns when the applier has applied its event: a caller reads its own writes. A fresh directory is the
// recovery of nothing.
//
// # Bounded for ever
//
// Every Options.CheckpointEvery events the state is frozen at one seq, saved beside the log while commands go on
// ([Engine.Checkpoint]), and the next Open replays only what lies behind. Finished jobs are forgotten by
// [Engine.Compact], or by Options.Retain with each checkpoint: as events that name them, so that every fold of the log,
// a follower's too, forgets the same, whatever its clock says. Then whole segments go; what of them belongs to jobs that
// are remembered is carried along, so that one that stays open for a month keeps its whole history and pins nothing.
// Args and outputs of more than Options.HoldBytes stay in the log, and [Engine.Read] reads them from there. What an
// engine takes of memory and disk, and Open of time, depends on the jobs that are remembered, not on all that ever were.
//
// A [projection.Projection] of the caller's own is part of this if it is a [projection.Snapshotter]. One that is not, or
// whose snapshot is of another version or can't be loaded, is built from the log alone, as long as that reaches back to
// its beginning; afterwards there is an [IncompleteError], from Compact before it comes to that.
//
// # Promises
//
// Those of package wal (W1 to W6) and package statemachine (S1), and:
//
//	R1  The state in memory reflects every event exactly once, in seq order: applied ≤ durable.
//	R2  Opening twice gives the same state as opening once, and the same as folding the whole log.
//	R3  A crash inside Open loses nothing and leaves nothing that stops the next Open.
//	R4  One undecodable or illegal event parks that one job (reported, listed, refused further commands); all others
//	    recover. An event type that this version does not know is kept and parks its job; it is never dropped.
//	R5  Compaction never removes an unfinished job, nor one that is parked or half undone, nor anything needed to rebuild
//	    the state of those remembered.
//
// # What a crash leaves, and what Open does
//
//	the process died …                     the next Open
//	before the append was written          knows nothing of the command; nobody was told that it happened
//	while it was written                   cuts what is torn, keeps a copy, reports it; or finds the event whole
//	after it was durable, before it        replays it: the job is where the event says
//	  was applied, or acknowledged
//	between Start and Complete or Fail     lists the job in Interrupted: its work may have been done in part
//	inside Open                            does it again, to the same end
//	while a checkpoint was written         begins with the one before; sweeps the rest
//	while jobs were forgotten              has forgotten those whose event is whole, and no other
//	while the log was compacted            has the old set, or the new one, and finishes what is left (wal: C15 to C17)
//	after it, with checkpoints damaged     replays what was carried and what lies behind, and says so; the jobs are
//	                                       whole, projections may be incomplete
//
// # After a crash: a plan
//
// What to do with the interrupted jobs is decided before anything is done. [Engine.Plan] looks at each and writes down the
// evidence, an action and a reason, by a [Policy]; [DefaultPolicy] goes by what running a capability twice means ([Effect]).
// A [Plan] can be printed, kept, compared and edited; [Plan.Apply] carries it out, each decision only if the job is still as
// it was looked at, and each one durable before a function acts on it. So:
//
//	the process dies …                       the same plan, applied again
//	before a decision is durable             carries it out
//	after it is durable                      leaves the job alone: it has changed since
//	after an attempt (job_resumed), before   leaves it alone; the next plan has the job, with one attempt more
//	  or in the work
//	between a failure and its rollback, or   goes on with the rollback, which may have been done in part
//	  in a rollback
//
// A started job that waits for a person is held ([Engine.Hold]): it is not interrupted any more, takes nothing but its
// release and its ends, and is listed in the [Report]. What is decided is an event ([Engine.Release]). [Engine.Explain] tells
// one job's story, with what it waits for, [Engine.Steps] returns what its recorded steps left; [Engine.Export] writes it to a
// file, of which crashtest.Fixture makes a test.
//
// Package recovery/runner does all of this with capabilities that are registered with it: it makes the plan, applies it, and
// does the jobs, with steps, retries and rollback.
//
// # Concurrency
//
// All methods may be called from any number of goroutines. Two commands on one job run one after the other: of two that
// exclude each other one wins, and the other gets a *statemachine.TransitionError. Commands on different jobs share
// syncs. A projection's Apply runs on the applier, and so does the Logger when a projection stops: neither may call the
// engine's commands, nor Checkpoint, Compact or Close, which wait for it. What only reads (Job, Jobs, Stats, Report, History,
// Steps) waits for nobody.
//
// Lock order: keeping (one checkpoint or compaction at a time), the engine's gate, jobs in the order of their ids, then
// folding (the applier's, for one event or one freeze), then the projections', the applier's mu, or the log's own; the
// applier takes none of the former.
package recovery
