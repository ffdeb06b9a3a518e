package crashtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/recovery/crashtest/subject"
)

// A Program is a whole program that is to be certified: how to start it, and what it is allowed.
//
// It works on one directory, goes on there where its last life stopped, and exits with status 0 when all its work is
// done; it needs no input. With two lines of package subject it says more and is killed more exactly: [subject.KillFS] in
// its wal.Options lets it be killed at each operation, and a [subject.Ledger] tells what it did to the world. Without the
// first it is killed from outside, when its log has grown to so many events, and at random; without the second only its
// log is judged.
type Program struct {
	// Command returns how to start the program on a directory: empty in the first life of a trial, and as the last kill
	// left it in all others. ledger is the file that a program without package subject appends its lines to. Standard
	// output and error, where they are nil, are kept for the report. It is called from several goroutines.
	Command func(dir, ledger string) *exec.Cmd
	// Log is where under that directory the program keeps its log. Default: in the directory itself.
	Log string

	// Irreversible tells which capabilities' effects must not happen twice, beside those of which the ledger says so.
	// Default: none.
	Irreversible func(capability string) bool
	// Effectful tells which capabilities' jobs must have an effect on the ledger when they are completed. Default:
	// those that have one there in a life that nobody disturbs.
	Effectful func(capability string) bool
	// Lax: the program chose wal.SyncEvery or wal.SyncNever, so it may act, and acknowledge, before its log is synced.
	Lax bool

	// Sync: let KillFS sync for real. It is slower, and proves no more by itself, but concurrent appends then wait for
	// each other, and are grouped, as in earnest. Default: syncs are only counted.
	Sync bool

	// Trials is how many times the program is taken through its whole life, once undisturbed, and at the most. Default
	// 300. Places to kill it at that are left out for it are counted in [Certificate.LeftOut].
	Trials int
	// Timeout is how long one life may take. Default 30 s.
	Timeout time.Duration
	// Within is how long all of it may take; what is left out for it is counted. Default: as long as it takes.
	Within time.Duration
	// Seed chooses among second kills, and random ones. Default 0, which is as good as any.
	Seed uint64
	// Parallel is how many trials run at once. Default: twice runtime.GOMAXPROCS(0), since a program waits, too.
	Parallel int
	// Dir is where trials have their directories. Default: a directory of the system's, removed at the end. In one that
	// is given the directory of a trial that failed stays.
	Dir string
}

// A Certificate says what a program went through.
type Certificate struct {
	Inside     bool // subject.KillFS was there: kills are exact
	Operations int  // of the undisturbed life: on files that change, and lines of the ledger
	Events     int  // that its log had at the end
	Jobs       int
	Effects    int // that were done, by its ledger

	Trials  int            // whole lives
	Starts  int            // of the program
	Kills   int            // starts that were killed
	Places  map[string]int // where: "before write", "after ledger begin", "at an event", "at a random time"
	Missed  int            // kills that were planned, and the program ended before
	Varied  int            // starts that did not do what the undisturbed life had done up to there: see Deterministic
	LeftOut int            // trials that were not made for Program.Trials or Program.Within: single kills, and pairs of those made

	Torn      int   // starts that left a torn end in the log
	TornBytes int64 // and how much that was
	CutLines  int   // lines of the ledger that a kill cut, and that therefore say nothing
	Took      time.Duration
}

// Deterministic tells whether every first life did the same operations as the undisturbed one, up to its kill. Of a
// program that is not, the same number is not always the same place: a reproducer may need a few tries, and places may
// have been missed.
func (c Certificate) Deterministic() bool { return c.Inside && c.Varied == 0 && c.Missed == 0 }

// String is for people, several lines long.
func (c Certificate) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "certified: %d trials, %d starts, %d kills, in %s; left out: %d\n", c.Trials, c.Starts, c.Kills,
		c.Took.Round(time.Millisecond), c.LeftOut)
	fmt.Fprintf(&b, "undisturbed: %d operations, %d events, %d jobs, %d effects\n", c.Operations, c.Events, c.Jobs, c.Effects)
	for _, place := range slices.Sorted(maps.Keys(c.Places)) {
		fmt.Fprintf(&b, "killed %s: %d\n", place, c.Places[place])
	}
	switch {
	case !c.Inside:
		b.WriteString("without KillFS: killed from outside, not exactly where it was planned\n")
	case !c.Deterministic():
		fmt.Fprintf(&b, "not deterministic: %d first lives differed, %d kills came too late\n", c.Varied, c.Missed)
	}
	if c.Effects == 0 {
		b.WriteString("nothing on the ledger: only the log was judged\n")
	}
	fmt.Fprintf(&b, "torn ends: %d, %d bytes; ledger lines cut: %d", c.Torn, c.TornBytes, c.CutLines)
	return b.String()
}

// Uncertified is why a program got no certificate.
type Uncertified struct {
	Kills    Kills // the shortest that were found to lead there: the fewest, then the earliest
	Breaches []Breach
	Dir      string // of the trial, where Program.Dir keeps it
}

func (u *Uncertified) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "crashtest: not certified; to see it again: program.Replay(t, %q)", u.Kills)
	for _, breach := range u.Breaches {
		fmt.Fprintf(&b, "\n\t%s", breach)
	}
	if u.Dir != "" {
		fmt.Fprintf(&b, "\n\tthe directory is kept: %s", u.Dir)
	}
	return b.String()
}

// Certify starts a program again and again, kills it everywhere, and holds the ledger of what it did to the world against
// its log: nothing acknowledged is missing, nothing irreversible ran twice. It fails the test otherwise, with the rules
// that were broken, by job, effect and life, and with the shortest reproducer for [Program.Replay].
//
// First the program runs undisturbed, and its operations are counted: what changes its log's files or makes a change
// durable, and each line of the ledger. Then it is killed, with SIGKILL, before each of them, and after each before it
// returns; and with the trials that are left, once more in the life that follows, early in it rather than late. After
// each life the log must pass wal.Verify and open, and what it holds is judged by the rules RuleExit to RuleUnfinished.
//
// SIGKILL alone proves little: the system keeps what was written, so a program that never syncs loses nothing here. That
// the log survives a power cut is what [CrashEveryOp] is for. What Certify adds is that subject.KillFS knows what was
// synced when the program acted (RuleUnsynced). It cannot see an effect that the program does not put on its ledger, nor
// one done by a process that outlives it.
//
// It logs the [Certificate]. The program may be the test's own binary: see the example.
func Certify(t rapid.TB, p Program) Certificate {
	t.Helper()
	c, err := p.Certify(context.Background())
	if err != nil {
		t.Errorf("%v", err)
		return c
	}
	t.Logf("%s", c)
	return c
}

// Certify is the function of that name without a test. The error is an [*Uncertified] when the program is to blame;
// the Certificate says how far it came.
func (p Program) Certify(ctx context.Context) (Certificate, error) {
	c, err := newCertifier(p)
	if err != nil {
		return Certificate{}, err
	}
	started := time.Now()
	err = errors.Join(c.run(ctx), c.clean())
	c.cert.Took = time.Since(started)
	return c.cert, err
}

// Replay runs one trial, as the reproducer in a failed test's output says, tells what happened in each life, and fails
// the test as Certify does.
func (p Program) Replay(t rapid.TB, reproducer string) {
	t.Helper()
	kills, err := ParseKills(reproducer)
	if err != nil {
		t.Fatalf("%v", err)
	}
	c, err := newCertifier(p)
	if err != nil {
		t.Fatalf("%v", err)
	}
	_, err = c.undisturbed(context.Background())
	if err == nil && len(kills) > 0 {
		err = c.trial(context.Background(), kills, t.Logf).err
	}
	if err = errors.Join(err, c.clean()); err != nil {
		t.Errorf("%v", err)
	}
}

// certifier is one call of Certify.
type certifier struct {
	program Program
	rules   programRules
	dir     string
	first   *programTrial // the undisturbed one
	clean   func() error

	mu      sync.Mutex // guards the fields below
	cert    Certificate
	seconds map[Kill]int // operations of the life after a kill, where it was not disturbed
	failed  int          // the index of the first plan that failed
	failure error
}

func newCertifier(p Program) (*certifier, error) {
	if p.Command == nil {
		return nil, errors.New("crashtest: a Program needs a Command")
	}
	if p.Trials <= 0 {
		p.Trials = 300
	}
	if p.Timeout <= 0 {
		p.Timeout = 30 * time.Second
	}
	if p.Parallel <= 0 {
		p.Parallel = 2 * runtime.GOMAXPROCS(0)
	}
	c := &certifier{program: p, dir: p.Dir, clean: func() error { return nil }, seconds: make(map[Kill]int),
		cert: Certificate{Places: make(map[string]int)}}
	if p.Dir == "" {
		dir, err := os.MkdirTemp("", "certify-")
		if err != nil {
			return nil, err
		}
		c.dir, c.clean = dir, func() error { return os.RemoveAll(dir) }
	}
	c.rules = programRules{effectful: p.Effectful, irreversible: p.Irreversible, lax: p.Lax}
	if c.rules.irreversible == nil {
		c.rules.irreversible = func(string) bool { return false }
	}
	if c.rules.effectful == nil {
		c.rules.effectful = func(string) bool { return false } // until the undisturbed life has told
	}
	return c, nil
}

func (c *certifier) run(ctx context.Context) error {
	if c.program.Within > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.program.Within)
		defer cancel()
	}
	operations, err := c.undisturbed(ctx)
	if err != nil {
		return err
	}
	singles := c.singles(operations)
	kept := spreadPlans(singles, c.program.Trials-1)
	if err := c.all(ctx, kept); err != nil {
		return err
	}
	pairs, all := c.pairs(kept, c.program.Trials-1-len(kept))
	if err := c.all(ctx, pairs); err != nil {
		return err
	}
	c.cert.LeftOut += len(singles) - len(kept) + all - len(pairs)
	return nil
}

// undisturbed runs the program without a kill and learns from it what there is to be killed at.
func (c *certifier) undisturbed(ctx context.Context) (operations int, err error) {
	out := c.trial(ctx, nil, func(string, ...any) {})
	if out.noLog() {
		return 0, fmt.Errorf("crashtest: the program ended well, and there is no job in %q of its directory: is Program.Log right?",
			c.program.Log)
	}
	if out.err != nil {
		return 0, out.err
	}
	c.first = out.trial
	last := out.trial.last
	acting := make(map[string]bool)
	for _, e := range last.entries {
		if e.Mark == subject.Performed {
			c.cert.Effects++
			acting[or(e.Capability, out.trial.account.jobs[e.Job].capability)] = true
		}
	}
	if c.program.Effectful == nil {
		c.rules.effectful = func(capability string) bool { return acting[capability] }
	}
	trace := out.trial.lives[0].trace
	c.cert.Inside = trace.Files() > 0
	c.cert.Operations, c.cert.Events, c.cert.Jobs = len(trace.Ops), len(last.events), len(last.jobs)
	return len(trace.Ops), nil
}

// singles are all trials with one kill.
func (c *certifier) singles(operations int) (plans []Kills) {
	for n := 1; n <= operations; n++ {
		plans = append(plans, Kills{{Op: n}}, Kills{{Op: n, After: true}})
	}
	if c.cert.Inside {
		return plans
	}
	for n := 1; n <= c.cert.Events; n++ {
		plans = append(plans, Kills{{Events: n}})
	}
	random := rand.New(rand.NewPCG(c.program.Seed, 1))
	for range randomKills {
		plans = append(plans, Kills{{Time: c.randomTime(random)}})
	}
	return plans
}

// randomKills is how many there are for a program without KillFS, beside those that wait for its log.
const randomKills = 20

// randomTime is a moment in a life as long as the undisturbed one.
func (c *certifier) randomTime(random *rand.Rand) time.Duration {
	return 1 + time.Duration(random.Int64N(int64(c.first.lives[0].took)))
}

// spreadPlans keeps at most n plans, evenly.
func spreadPlans(plans []Kills, n int) []Kills {
	if len(plans) <= n {
		return plans
	}
	kept := make([]Kills, 0, max(n, 0))
	for i := range n {
		kept = append(kept, plans[i*len(plans)/n])
	}
	return kept
}

// pairs draws n trials that kill twice, without doubles, from all that there are. The second life begins with the
// recovery, so early operations are drawn more often than late ones.
func (c *certifier) pairs(singles []Kills, n int) (plans []Kills, all int) {
	for _, plan := range singles {
		all += 2 * c.seconds[plan[0]]
	}
	random := rand.New(rand.NewPCG(c.program.Seed, 2))
	drawn := make(map[[2]Kill]bool)
	for try := 0; len(plans) < min(n, all) && try < 20*n; try++ {
		first := singles[random.IntN(len(singles))][0]
		operations := c.seconds[first]
		if operations == 0 {
			continue
		}
		early := random.Float64()
		second := Kill{Op: 1 + int(early*early*float64(operations)), After: random.IntN(2) == 1}
		if key := [2]Kill{first, second}; !drawn[key] {
			drawn[key] = true
			plans = append(plans, Kills{first, second})
		}
	}
	return plans, all
}

// all runs trials, several at once, until one fails; then those before it in the list are still waited for, so that the
// first that fails is the first in the list.
func (c *certifier) all(ctx context.Context, plans []Kills) error {
	c.failed = len(plans)
	next := make(chan int)
	var workers sync.WaitGroup
	for range c.program.Parallel {
		workers.Go(func() {
			for i := range next {
				c.one(ctx, i, plans[i])
			}
		})
	}
	for i := range plans {
		if !c.wanted(i) {
			break
		}
		next <- i
	}
	close(next)
	workers.Wait()
	return c.failure
}

func (c *certifier) wanted(i int) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return i < c.failed
}

// one runs the i-th trial. One that there is no time for is left out.
func (c *certifier) one(ctx context.Context, i int, plan Kills) {
	out := trialOutcome{err: ctx.Err()}
	if out.err == nil {
		out = c.trial(ctx, plan, func(string, ...any) {})
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case out.err == nil:
		if lives := out.trial.lives; len(lives) == 2 {
			c.seconds[plan[0]] = len(lives[1].trace.Ops)
		}
	case c.program.Within > 0 && errors.Is(out.err, context.DeadlineExceeded):
		c.cert.LeftOut++
	case i < c.failed:
		c.failed, c.failure = i, out.err
	}
}

// trialOutcome is a trial that was made, and what it showed.
type trialOutcome struct {
	trial *programTrial
	err   error
}

// noLog tells that the program did its work, and not where it is looked for.
func (o trialOutcome) noLog() bool {
	return o.trial != nil && len(o.trial.lives) > 0 && o.trial.lives[0].err == nil && !o.trial.lives[0].hung &&
		o.trial.last.broken == nil && len(o.trial.last.jobs) == 0
}

// trial takes the program through one whole life in a directory of its own, which is removed unless it is to be kept.
func (c *certifier) trial(ctx context.Context, plan Kills, logf func(string, ...any)) trialOutcome {
	root, err := os.MkdirTemp(c.dir, "trial-")
	if err != nil {
		return trialOutcome{err: err}
	}
	if root, err = filepath.Abs(root); err != nil {
		return trialOutcome{err: err}
	}
	tr := &programTrial{program: &c.program, root: root, kills: plan, logf: logf, account: newAccount(c.rules)}
	err = tr.run(ctx)
	c.count(tr)
	if err != nil {
		return trialOutcome{tr, errors.Join(err, os.RemoveAll(root))}
	}
	if len(tr.account.breaches) == 0 {
		return trialOutcome{tr, os.RemoveAll(root)}
	}
	u := &Uncertified{Kills: plan[:min(len(plan), len(tr.lives))], Breaches: tr.account.breaches}
	if c.program.Dir == "" {
		return trialOutcome{tr, errors.Join(u, os.RemoveAll(root))}
	}
	u.Dir = root
	return trialOutcome{tr, u}
}

// count adds a trial to the certificate.
func (c *certifier) count(tr *programTrial) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cert.Trials++
	c.cert.Starts += len(tr.lives)
	c.cert.CutLines += tr.cut
	c.cert.Torn += len(tr.torn)
	for _, n := range tr.torn {
		c.cert.TornBytes += n
	}
	for i, l := range tr.lives {
		if l.killed && i < len(tr.kills) {
			c.cert.Kills++
			c.cert.Places[killPlace(tr.kills[i], l)]++
		} else if i < len(tr.kills) {
			c.cert.Missed++
		}
	}
	if c.first != nil && len(tr.lives) > 0 && otherOps(c.first.lives[0].trace.Ops, tr.lives[0].trace.Ops) {
		c.cert.Varied++
	}
}

// killPlace says what a kill hit, by kind of operation.
func killPlace(k Kill, l programLife) string {
	switch {
	case k.Events > 0:
		return "at an event"
	case k.Time > 0:
		return "at a random time"
	case k.Op > len(l.trace.Ops):
		return "by others"
	}
	words := strings.Fields(l.trace.Ops[k.Op-1])
	when, _, _ := strings.Cut(k.String(), " ")
	if len(words) > 2 { // a line of the ledger, without its job
		words = words[:2]
	} else {
		words = words[:1]
	}
	return when + " " + strings.Join(words, " ")
}

// otherOps tells whether a life that may have been cut short did something else than the one that was not.
func otherOps(whole, cut []string) bool {
	return len(cut) > len(whole) || !slices.Equal(whole[:len(cut)], cut)
}
