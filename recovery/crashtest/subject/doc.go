// Package subject is what a program imports in order to be certified by crashtest.Certify: two things that do nothing
// at all, and cost nothing, unless Certify started the program. It needs package wal and the standard library only, so
// a program may keep it in the binary that it ships.
//
//	opts.WAL.FS = subject.KillFS(wal.OS)         // dies where it is told to
//	ledger, err := subject.OpenLedger("")        // tells, outside of the log, what was done to the world
//
//	_, err = engine.Start(ctx, job.ID)           // durable before the work begins
//	err = ledger.Begin(effect)
//	charge(card)
//	err = ledger.Done(effect)
//	_, err = engine.Complete(ctx, job.ID, output)
package subject
