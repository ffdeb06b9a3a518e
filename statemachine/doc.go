// Package statemachine says which event may follow which in a job's life, and folds events into jobs. It does no I/O
// and looks at no clock: what comes out depends on what goes in alone.
//
//	submitted → validated → started → completed ┐
//	    └───────────┴──────────┴────→ failed ───┴→ rolled_back
//
// The lifecycle is declared once, in lifecycle.go, in the terms of github.com/looplab/fsm, and used in two ways:
//
//   - A live command goes through a [Machine], a looplab FSM that moves only if the append that it was given succeeded.
//   - Replay goes through [Job.Apply], which looks the transition up in a table compiled from the same declaration.
//
// Within a state more may be said of a job, by events that leave it there: of a started one that its work begins once
// more (job_resumed, an attempt), that a step of it is done (job_step), how far it is (job_progress); of a finished one
// that a step was undone, or is going to be (job_step_undone); of an unfinished one that it is held until somebody decides
// (job_held, job_released). A held job goes nowhere meanwhile but to an end: it takes job_released, job_failed, and, if it has
// started, job_completed.
//
// # Promises
//
//	S1  A job's events are a path in the lifecycle, checked before the append ([Machine.Fire]) and again on replay
//	    ([Job.Apply]). The two agree on every state and event.
//	R4  An event that is not legal, not known to this version, or not readable parks its job: it keeps the state it
//	    had, says why, and takes no more commands. No other job is touched.
//
// # Payloads
//
// Args and outputs lie in the log; a [Payload] is the value, or only its place and size ([Payload.Shed]). The fold makes
// no difference between the two, so a job that is folded without them is the same job. (The args of a step are its name, and no
// Payload: see [Job].Steps.)
//
// # Time
//
// Times are data and come from the events. A clock that jumps back leaves the order of events alone, which is that of
// their seqs, and the durations derived from times ([Job.Queued], [Job.Took]) are never negative.
//
// # Ownership and concurrency
//
// States, events and jobs are values. The functions and the methods of [Job] and [Payload] may be called from any
// number of goroutines. For [Machine] see there.
package statemachine
