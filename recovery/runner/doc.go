// Package runner does the jobs of a [recovery.Engine]: a program registers what it can do, and a [Runner] takes each job that is
// submitted through its life, and through the lives of the processes that die meanwhile.
//
//	reg := runner.NewRegistry()
//	fetch := runner.Add(reg, "fetch", runner.Func[Args, Page](doFetch), runner.Settings{Effect: recovery.Pure})
//
//	engine, err := recovery.Open(ctx, "jobs", recovery.Options{})
//	r, err := runner.New(engine, reg, runner.Options{})
//	applied, err := r.Recover(ctx)           // what the last process has left; or Plan, and Apply
//	page, err := fetch.Do(ctx, r, Args{URL}) // or Submit now, and Result later; with Once, after a crash again
//	err = r.Drain(ctx)                       // when the program is told to end; and then engine.Close()
//
// # Capabilities
//
// A capability is an [Executor] under a name: typed args in, a typed output or an error out, both through encoding/json. What
// else it implements is used: [Validator] looks at the args before anything is done, [Undoer] takes back what was done,
// [Reconciler] finds out whether it was done. Its [Settings] say what doing it twice means, how long it may take, and which
// failures are followed by another attempt. [Add] panics where these do not go together.
//
// # A job's life
//
// Nothing is done before the log says that it begins, and everything that is written is written only if the job is still as
// this runner knows it: who comes late, from an older attempt or an older process, is fenced out ([ErrFenced]).
//
//	what happens                        in the log, each line in one append
//	Submit                              job_submitted
//	args decoded, Validate              job_validated, job_started; or job_failed
//	Execute                             whatever it records: job_step, job_progress
//	  returns nil                       job_completed
//	  fails, and may be tried again     nothing; job_resumed when it has waited, right before Execute is called again
//	  fails                             job_failed; with a job_step_undone "#rollback" behind it, if it is to be undone
//	RollBack                            job_step_undone "#rollback", before Undo is called
//	Undo, once for each step            job_step_undone
//	Undo, for the rest                  job_rolled_back
//
// Inside Execute, [Step] does a part of the work once, whatever happens; [Branch] is for parts that go on beside each other;
// [Progress] says how far it is, and that it is alive. [JobOf] tells which job it is, and which attempt; Validate, Undo and
// Reconcile can ask it, too, and the job's ID is the key by which another system can know what it was asked before.
//
// # Failures, attempts, the end of a context
//
// By itself only an error that is marked [Transient] is tried again, five times in all. A [RetryPolicy] says otherwise; [Backoff],
// [OnIs], [OnError] and [FirstRetry] make one. Of a capability whose effect is Irreversible or Unknown nothing else than a Transient
// error is ever tried again, and a Reconcilable one is asked before, unless the error was Transient.
//
// The context of Execute ends, with a [context.Cause] that tells them apart, by [Runner.Cancel] (*[CancelledError]: the job
// fails), after Settings.Timeout (*[TimeoutError]: the attempt fails), without a sign of life for Settings.Heartbeat
// ([ErrNoHeartbeat]: the attempt fails), and when [Runner.Drain] has no more time ([ErrDraining]: the job stays as it is). What
// Execute makes of it decides: work that got done and returns nil is completed. It may return ctx.Err(), wrapped or not: what is
// recorded, and what a RetryPolicy sees, is the cause. Execute must come back: a goroutine can't be
// stopped, and one that does not come back keeps its worker, which the Logger is told.
//
// # Rollback
//
// A job that has started and fails is undone if its capability is an [Undoer], unless Settings.KeepFailed: its steps newest first,
// each undo durable before the next, then the rest ([Done]). [Runner.RollBack] undoes a job that completed, or was kept. That a job
// is to be undone is in the log before anything is, with the failure itself where that is why, as the undo of a mark "#rollback"
// that was no step. Until it is rolled back it is [statemachine.Job].RollingBack, by which projection.Query finds it.
//
// # What a crash leaves, and what the next process does
//
//	the process died …                      [Runner.Recover], by the runner's own Policy
//	while a job waited for a worker         puts it into the queue; that it waited is no attempt
//	in Execute, or before another attempt   goes by the effect: another attempt (Pure, Idempotent), asks (Reconcilable), or
//	                                        holds it until somebody decides (Irreversible, Unknown): [Runner.Release]
//	  held and released while it went on    the same: what it did after the release is as unknown as before
//	  for the MaxAttempts-th time           holds it: it may be what kills the process
//	after a step's effect, before it was    does the step again; after it was recorded, returns what is recorded
//	  recorded
//	between a failure and its rollback,     goes on with the rollback, behind the last undo that is durable; the one that was
//	  or in a rollback, whoever wanted it   under way may be done twice
//	with a job of a capability that is      holds it; one that is half undone has no hold, and stays RollingBack until a program
//	  not registered any more               comes that can go on
//	while a plan was applied                makes a new plan; applied again, the old one does nothing twice
//	in Validate, Reconcile or Undo          calls it again, however often that was: only attempts are counted. If it is what kills
//	                                        the process, have a policy hold the job; take a rollback out of the plan, or end it by
//	                                        [recovery.Engine.RollBack]
//
// [Runner.Plan] shows all that before it is done; edit it and give it to [Runner.Apply]; or give Recover a policy of your own.
//
// # Somebody decides
//
// Held jobs are in [recovery.Report].Held, with the reason; those that are half undone are found by projection.Query.RollingBack;
// and [recovery.Engine.Explain], given [Runner.Policy], tells what is known of one. What somebody
// has found out, and wants, is said by one of these, and is an event:
//
//	it did not happen, or may happen twice  [Runner.Release]: another attempt
//	it happened                             [recovery.Engine.Complete], with the output that it should have had
//	it is not to be done                    [Runner.Cancel]: the job fails, and is rolled back where a failure is
//	it has been undone by other means       [recovery.Engine.RollBack], of a job that has ended, half undone or not
//
// The log has one writer, so it is the program with the runner that takes the decision: let it ask, or be asked, by whatever means it
// has. To look, any process may open the log with wal.Options.ReadOnly.
//
// # Concurrency
//
// All methods may be called from any number of goroutines. There are Options.Workers goroutines, and none for a job that waits.
// While Options.Queue jobs wait, Submit, Release and Recover wait for a place before they write. Functions of a capability may
// call the runner, with the ctx that they were given: Submit does not wait then, since all workers could. But they must not wait
// for another job (Wait, Do) that needs a worker too, unless there are always enough.
//
// One runner per engine: two would each have a queue of their own, and the fence lets only one of them do a job, but each would
// tell the other's jobs ErrNotRunning. Locks: Runner.mu is never held while anything is written or called; an attempt's fence,
// then its mu, come before the engine's.
package runner
