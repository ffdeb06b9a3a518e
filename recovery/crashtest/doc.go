// Package crashtest proves programs crash-safe: jobwal's own, and yours. It is what a property-based correctness suite
// calls; package [github.com/jobwal/jobwal/wal/crashfs] is the disk underneath, and [pgregory.net/rapid] draws.
//
// # What to reach for
//
//	your program …                       use                       takes        finds
//	writes files of its own on a wal.FS  CrashEveryOp, own ledger  0.1 s        what a power cut loses or brings back
//	has a recovery.Engine                CrashEveryOp, Recover     1 to 3 s     the same, and memory that is not the log
//	meets bad disks, or an old one       Crashes                   by Budget    what failed syncs and full disks do
//	is used as nobody thought of         Actions, generators       15 ms a run  sequences of events, and shrinks them
//	is a process, or several             History.Stream, Recover   your own     what SIGKILL and races lose
//	does things to the world             Certify                   some 2 s     effects that are lost, or done twice
//	does that by recovery/runner         runnertest.Crashes        1 s          the same, at every operation, and twice over
//	has a log of its own                 TestLog                   1 s          what an engine would trip over
//	has a projection of its own          TestProjection            0.1 s        the same, for read models
//	reads, copies or mends logs          Damages, Golden           2 s          damage that is passed off as sound
//	had a bug in production              Fixture                   10 ms        that bug, as often as you like
//	has tests already                    Saboteurs, Fails          theirs       what those tests do not notice
//
// Times are for a small program on one core, without the race detector; with it, ten times that. Begin with the first
// row that fits, and with a workload of three operations: of the bugs that are known, most need no more.
//
// What every test has to have: it knows what somebody was told (the ledger, or the history), it looks at what the
// crash left, and it wants that to be true. What was asked for and not answered when the power went may be there or
// not; that is the one freedom that a correct program has, and the first thing that a new test gets wrong.
//
// # A file format of your own
//
// The program takes a [wal.FS], which is [wal.OS] when it runs in earnest, and does all it does to files through that.
// Here it has two functions, save and load, that keep a file. (This is complete but for those two, and for the imports.
// All code on this page stands in doc_test.go, where it runs.)
//
//	type ledger struct {
//		asked []string // noted before it is asked for
//		saved int      // so many of them were answered
//	}
//
//	func (l *ledger) Clone() *ledger { return &ledger{slices.Clone(l.asked), l.saved} }
//
//	func (l *ledger) save(disk wal.FS, text string) error {
//		l.asked = append(l.asked, text)
//		if err := save(disk, text); err != nil {
//			return err
//		}
//		l.saved = len(l.asked)
//		return nil
//	}
//
//	func change(disk wal.FS, l *ledger) error {
//		return errors.Join(l.save(disk, "red"), l.save(disk, "blue"))
//	}
//
//	func goOn(disk wal.FS, l *ledger) error {
//		text, err := load(disk)
//		if err != nil {
//			return err
//		}
//		found := slices.Index(l.asked, text) + 1
//		if found < l.saved || found == 0 && text != "" {
//			return fmt.Errorf("found %q after %q, of which %d were saved", text, l.asked, l.saved)
//		}
//		l.asked, l.saved = l.asked[:found], found // it was shown, so it stays
//		return l.save(disk, "green")
//	}
//
//	func TestSettings(t *testing.T) { crashtest.CrashEveryOp(t, change, goOn) }
//
// What the second function does to the disk is the recovery, and is crashed, too. Two things in it are easily left
// out, and then less is proved: the ledger has a Clone, and so the check may note that what it found was shown to
// somebody; without that, nobody notices a load that shows what the next power cut takes. And it goes on: it saves,
// and so finds what the recovery left behind in the way of new work.
//
// It proves that at each operation of this workload no power cut loses what was answered; as far as [Coverage], which
// is logged, says "left out", it was not tried. It does not prove anything of other workloads, of two threads that
// race (the workload must make the same operations each time), or of damage (bits that rot).
//
// # An engine
//
// [History.Do] asks the engine and notes both the question and the answer. [History.Begin] notes them for what asks
// in other ways. [Recover] is the whole check.
//
//	func placeOrders(disk wal.FS, h *crashtest.History) error {
//		engine, err := recovery.Open(ctx, "jobs", recovery.Options{WAL: wal.Options{FS: disk}})
//		if err != nil {
//			return err
//		}
//		defer engine.Close()
//		_, err = h.Do(ctx, engine,
//			crashtest.Step{Type: wal.JobSubmitted, JobID: "order-1", Capability: "charge"},
//			crashtest.Step{Type: wal.JobValidated, JobID: "order-1"})
//		return err
//	}
//
//	func recovered(disk wal.FS, h *crashtest.History) error {
//		return crashtest.Recover(disk, "jobs", h, recovery.Options{})
//	}
//
// The test is CrashEveryOp(t, placeOrders, recovered). It proves W1 to W3, W6, S1 and R1 to R3 for this workload: all
// that was acknowledged is there, once, whole, in order, nothing was made up, and memory is the fold of the log. It
// does not prove that the program did the right thing with what it recovered: for that open the engine in a check of
// your own.
//
// # Checkpoints, and jobs that are forgotten
//
// A program whose engine compacts its log says so before it does, by [History.Compacts]: then jobs that have ended may
// be forgotten, and nothing else may be. [Recover] holds a directory with checkpoints and carried files to the same as one
// without: what is remembered has every event, by Engine.History; what is gone had ended (RuleForgotten, R5); no
// checkpoint that a crash leaves is damaged; and an engine on a copy of the directory, without the checkpoints, comes to
// the same jobs and refuses the same ids. Nothing is kept up while Recover looks, so a check that is to find what a crash
// left in the way of the next compaction opens the engine itself behind it, compacts, and calls Recover again. With an
// engine that does it by itself (CheckpointEvery, Retain), the workload waits by synctest.Wait behind each command, so that
// the operations come in the same order in every run. [Actions] have the fields Checkpoint and Compact, and a [Reference]
// forgets what the log says.
//
// # Bad disks, and settings
//
// [Crashes] has the settings. Unlike CrashEveryOp it makes no bubble of its own, so that it runs under a *rapid.T as
// well; a program with timers, and an engine has some, needs one around it.
//
//	func TestOrdersOnABadDisk(t *testing.T) {
//		for _, faults := range []string{"sync *.jsonl #2 error EIO lie", "write *.jsonl #3 short 17 ENOSPC"} {
//			synctest.Test(t, func(t *testing.T) {
//				crashtest.Crashes[crashtest.History]{
//					Workload: func(disk wal.FS, h *crashtest.History) error {
//						err := placeOrders(disk, h)
//						if errors.Is(err, wal.ErrFailed) || errors.Is(err, wal.ErrNoSpace) {
//							return nil // as it should be, and the history has it
//						}
//						return err
//					},
//					Check:    recovered,
//					Schedule: crashfs.MustSchedule(faults),
//					States:   20,  // of each crash, in place of the usual policies
//					Budget:   100, // checks in all
//				}.Run(t)
//			})
//		}
//	}
//
// Costs: Budget is the number of checks. A file system that is not empty at first is Base, and Once leaves out the
// crashes of the recovery.
//
// # State machine tests
//
// [Actions] are an engine, its disk and the power switch, as actions for rapid's Repeat, with all that is true of an
// engine as the invariant. Add what your program does, by [Actions.Do], and what must be true of it, by Check.
//
//	func shopSells(t *rapid.T) {
//		rapid.SyncTest(t, func(t *rapid.T) {
//			var read *sold // of the engine that is open now
//			a := &crashtest.Actions{
//				Idle: time.Second,
//				Projections: func() []projection.Projection {
//					read = newSold()
//					return []projection.Projection{read}
//				},
//				Check: func(t *rapid.T, _ *recovery.Engine, ref *crashtest.Reference) {
//					completed := 0
//					for _, e := range ref.Events() {
//						if e.Type == wal.JobCompleted {
//							completed++
//						}
//					}
//					if read.total() != completed {
//						t.Fatalf("%d orders were completed, and the projection has %v", completed, read.all())
//					}
//				},
//			}
//			a.Open(t)
//			actions := a.Map()
//			actions["rush order"] = func(t *rapid.T) {
//				id := crashtest.JobIDs().Draw(t, "id")
//				a.Do(t, crashtest.Step{Type: wal.JobSubmitted, JobID: id}, crashtest.Step{Type: wal.JobValidated, JobID: id},
//					crashtest.Step{Type: wal.JobStarted, JobID: id})
//			}
//			t.Repeat(actions)
//		})
//	}
//
// The test is rapid.Check(t, shopSells); [Fuzz] makes it a fuzz target. Rapid prints what it drew and keeps a file to
// fail by again: go test -run TestShopSells -rapid.failfile=… . It proves what is true after any order of these
// actions, as many as it ran (-rapid.checks, -rapid.steps), one at a time: Actions has one goroutine. For a program
// without an engine use the generators ([LegalHistories], [NextStep], [Payloads], [JobIDs], and the bad ones, which
// must be refused) with a [Reference], which says what is legal and what a job then is.
//
// # Processes, and what SIGKILL leaves
//
// A history that is streamed to a file survives its process. This is in the program, which stops only when it is
// killed, and in the test, which may kill it three times over and then judge the directory:
//
//	func remember(ctx context.Context, dir string) error {
//		file, err := os.OpenFile(filepath.Join(dir, "history"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
//		if err != nil {
//			return err
//		}
//		var h crashtest.History
//		h.Stream(file)
//		engine, err := recovery.Open(ctx, filepath.Join(dir, "jobs"), recovery.Options{})
//		if err != nil {
//			return err
//		}
//		opened := engine.Report().WAL
//		h.Opened(opened.Epoch, opened.LastSeq)
//		for {
//			jobs, err := h.Do(ctx, engine, crashtest.Step{Type: wal.JobSubmitted, Capability: "charge"})
//			if err != nil {
//				return err
//			}
//			fmt.Println(jobs[0].ID)
//		}
//	}
//
//	func judge(dir string) error {
//		file, err := os.Open(filepath.Join(dir, "history"))
//		if err != nil {
//			return err
//		}
//		defer file.Close()
//		h, err := crashtest.ReadHistory(file)
//		if err != nil {
//			return err
//		}
//		return crashtest.Recover(nil, filepath.Join(dir, "jobs"), h, recovery.Options{}) // nil: wal.OS
//	}
//
// Nothing has to be said of a kill itself, since a disk whose machine lives loses nothing; [History.Crash] is for
// pictures of a disk that has lost power. Processes that run at the same time have a file each, and [Merge]. It proves
// that what a process was told was not lost by its death, with real syncs, real locks and real time. It proves nothing
// about power cuts: the page cache outlives the process, so that a log that never syncs passes.
//
// # Programs that act
//
// [Certify] starts a program, kills it before and after every operation, and holds the ledger of what it did to the
// world against its log. The program has two lines of package subject in it; the example of Certify is complete. Mind
// the words: the ledger here is a file, [subject.Ledger], and tells what was done; that of CrashEveryOp is a value in
// the test, and tells what was promised.
//
// It proves that no single kill, and of the double ones as many as Trials has room for, makes the program lose an
// effect or do an irreversible one twice. It sees no effects but those on the ledger, and no power cuts.
//
// # Logs and projections
//
//	func openCounting(disk wal.FS) (recovery.Log, error) {
//		log, err := wal.Open("jobs", wal.Options{FS: disk})
//		if err != nil {
//			return nil, err
//		}
//		return countingLog{recovery.OnDisk(log)}, nil
//	}
//
//	func TestCountingLog(t *testing.T) {
//		open := func(*testing.T) crashtest.Opener { return crashtest.DiskOpener(openCounting) }
//		crashtest.TestLog(t, open, crashtest.NoConflicts) // of one directory, which has one writer
//	}
//
//	func TestSold(t *testing.T) {
//		crashtest.TestProjection(t, newSold, func(s *sold) any { return s.all() })
//	}
//
// A part that does not fit is skipped and says why. Where a log need not do all that *wal.Log does, a [Relaxation] says
// so, and the part that failed for it names it. A type that embeds recovery.Log hides what else the log has:
// DropBefore is then not tested. Run TestProjection with the race detector, too.
//
// # Damaged files
//
//	func TestDamagedOrders(t *testing.T) {
//		disk := crashfs.New()
//		if err := placeOrders(disk, new(crashtest.History)); err != nil {
//			t.Fatal(err)
//		}
//		healthy, err := crashtest.ReadImage(disk, "jobs")
//		if err != nil {
//			t.Fatal(err)
//		}
//		for _, d := range crashtest.Damages() {
//			t.Run(d.String(), func(t *testing.T) {
//				if !crashtest.CheckDamage(t, healthy, d, 1) {
//					t.Skip("this log is too short for it")
//				}
//			})
//		}
//	}
//
// It proves, for each row of docs/faults.md, that the verdict is the one in the catalogue, by every way to open and
// read this log; with another seed, at another place. [Golden] are such directories that never change, for tools that
// have readers of their own; [Judge] says what must be made of any other.
//
// # Has the suite teeth?
//
// First see that it passes as it is; then break the log below it, and want it to fail.
//
//	func TestSuiteHasTeeth(t *testing.T) {
//		for _, s := range crashtest.Saboteurs() {
//			switch s.Name { // what this suite is there to notice
//			case crashtest.NoFsync, crashtest.NoDirectoryFsync, crashtest.AckFirst:
//			default:
//				continue
//			}
//			synctest.Test(t, func(t *testing.T) {
//				_, failed := crashtest.Fails(func(t rapid.TB) {
//					crashtest.Crashes[crashtest.History]{
//						Workload: func(disk wal.FS, h *crashtest.History) error { return placeOrders(s.FS(disk), h) },
//						Check:    func(disk wal.FS, h *crashtest.History) error { return recovered(s.FS(disk), h) },
//					}.Run(t)
//				})
//				if !failed {
//					t.Errorf("nobody noticed %s: %s", s.Name, s.Doc)
//				}
//			})
//		}
//	}
//
// A suite that misses one has no test for that promise, which may be as it should be: the other saboteurs need an
// fsync that fails, DropBefore or Compact, a checkpoint, a flipped bit, a full disk, or a second writer. [Saboteur.FS] serves any file format
// as long as it is the disk that is broken; those that look at lines know package wal's.
//
// # How to see a failure again
//
// Each failure prints one line that runs it alone, and shows it the same way:
//
//	CrashEveryOp   crashtest.Replay(t, "crash 12; everything", …) in its place, with the same two functions
//	Crashes        its method Replay, in a bubble if Run was in one
//	Certify        program.Replay(t, "kill after 17")
//	Actions, Fuzz  rapid's own: -rapid.failfile, or the corpus entry of go test -fuzz
//	TestLog        go test -run 'TestCountingLog/name_of_the_part'
//
// "crash 12" is the power going just before operation 12, as listed in the message; what follows is a [crashfs.Policy]
// or a state, and then perhaps a crash of the check. Once it is understood, a Replay may stay as a test of its own, as
// long as the workload keeps its operations.
//
// # Concurrency
//
// The functions may run in parallel tests, on different disks. CrashEveryOp makes a bubble of [testing/synctest], so
// inside its functions there is no t.Run and no t.Parallel, time stands until all goroutines wait, and a goroutine
// that waits for something outside of the bubble (another test's channel, t.Context().Done()) keeps it standing.
// Rapid's Check inside a bubble takes struct{ rapid.TB }{t} in place of t, which has a deadline by another clock. A
// [History], a [MemLog] and a [SimpleLog] take many goroutines; an [Actions] and a [Reference] one.
package crashtest
