// Package runnertest proves that capabilities survive the death of their process: at each operation on a file and at each thing
// that they do to the world, and again in the recovery.
//
// A test says which capabilities there are, what the program does with them, and what must be true at the end. What they do to
// the world goes to a [Ledger], which outlives every process: in the place of the bank, a capability under test writes a line.
//
//	type payment struct{ ledger *runnertest.Ledger[string] }
//
//	func (p payment) Execute(ctx context.Context, order string) (string, error) {
//		return "paid", p.ledger.Do("pay " + order)
//	}
//
//	func (p payment) Undo(ctx context.Context, order string, done runner.Done) error {
//		return p.ledger.Do("pay back " + order)
//	}
//
//	func TestPaymentsSurvive(t *testing.T) {
//		synctest.Test(t, func(t *testing.T) {
//			runnertest.Crashes[string]{
//				Register: func(reg *runner.Registry, ledger *runnertest.Ledger[string]) {
//					runner.Add(reg, "pay", payment{ledger}, runner.Settings{Effect: recovery.Irreversible})
//				},
//				Work: func(ctx context.Context, life runnertest.Life[string]) error {
//					if _, err := life.Runner.Submit(ctx, "pay", "order 1", runner.ID("job")); err != nil {
//						return err
//					}
//					_, err := life.Runner.Wait(ctx, "job")
//					return err
//				},
//				Check: func(ctx context.Context, life runnertest.Life[string]) error {
//					if lines := life.Ledger.Lines(); len(lines) > 1 {
//						return fmt.Errorf("paid more than once: %q", lines)
//					}
//					return nil
//				},
//			}.Run(t)
//		})
//	}
//
// # What is done
//
// Work runs once as it is. Then it runs once for each operation, and dies right before that one: the disk is as a power cut may
// leave it, the ledger as it was. The next life opens the log, makes a plan and applies it, lets all jobs come to rest, applies the
// plan again, and calls Check; and that life is killed at each of its operations, too, as far as Budget has room, and followed by
// another one, which begins with the plan of the dead one. So each capability meets its death before and after each line of the
// ledger, and before and after each event of the log.
//
// # What is proved without a word of yours
//
// Whatever an engine has shown, and so all that anybody was told, the next one shows. Every job ends, or is held for a reason, or
// is failed for one; none is parked, and none is left to nobody. A plan that is applied again writes nothing, and behind a recovery
// there is nothing to recover. What was done to the world, how often, and whether it was taken back, is for Check: only you
// know what must not be twice.
//
// # What a test has to see to
//
// A life must make the same operations in the same order each time, or the run fails and says where it went another way: one worker
// (the default), and jobs that do not run beside each other; branches of a job that end at different times of the bubble's clock, which
// costs nothing; retries that wait for a fixed time; no [runner.Backoff], which is random. Work that waits for something must stop
// waiting when its context ends. Goroutines that the functions begin have to end with them.
//
// It proves nothing about two jobs that race, and nothing about effects that are not on the ledger. A recovery in which Undo fails for
// good is a failure here.
package runnertest
