package crashtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/recovery/crashtest/internal/orders"
	"github.com/jobwal/jobwal/recovery/crashtest/subject"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// programLife is one start of a program, and how it ended.
type programLife struct {
	trace  orders.Trace
	killed bool
	hung   bool
	err    error // of a life that ended by itself, and not well
	took   time.Duration
}

// pollEvery is how often a log is looked at by whoever waits for it to grow.
const pollEvery = 200 * time.Microsecond

// live starts the program once and sees it to its end.
func (tr *programTrial) live(ctx context.Context, n int, kill Kill) (l programLife, err error) {
	cmd := tr.program.Command(tr.dir(), tr.ledger())
	o := orders.Orders{Ledger: tr.ledger(), Trace: tr.path("trace", n), Life: n, Kill: kill.Op, After: kill.After, Sync: tr.program.Sync}
	cmd.Env = append(atOnce(cmd.Environ()), o.Environ())
	out, err := os.Create(tr.path("output", n))
	if err != nil {
		return l, err
	}
	defer out.Close() // it is the program that writes
	// Files and no pipes: a grandchild that outlives the program holds nobody up.
	if cmd.Stdout == nil {
		cmd.Stdout = out
	}
	if cmd.Stderr == nil {
		cmd.Stderr = out
	}
	if err := tr.mend(); err != nil {
		return l, err
	}
	started := time.Now()
	if err := cmd.Start(); err != nil {
		return l, fmt.Errorf("crashtest: the program does not start: %w; see Program.Command", err)
	}
	sent, hung, ended := tr.watch(ctx, cmd, kill)
	l.took, l.hung = time.Since(started), hung
	l.trace, err = orders.ReadTrace(o.Trace)
	l.killed = l.trace.Killed || sent && ended != nil
	if !l.killed && !hung {
		l.err = ended
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return l, err
}

// atOnce lets a program with the race detector in it end when it is done: if nothing else is said, it sleeps for a second
// first, in which it lets others find races, and there is nobody left here to find any.
func atOnce(env []string) []string {
	if slices.ContainsFunc(env, func(v string) bool { return strings.HasPrefix(v, "GORACE=") }) {
		return env
	}
	return append(env, "GORACE=atexit_sleep_ms=0")
}

// watch waits for the program, and kills it where that is to be done from outside, where it hangs, and where ctx is done.
func (tr *programTrial) watch(ctx context.Context, cmd *exec.Cmd, kill Kill) (sent, hung bool, ended error) {
	over := make(chan error, 1)
	go func() { over <- cmd.Wait() }()
	timeout := time.After(tr.program.Timeout)
	var due, poll <-chan time.Time
	if kill.Time > 0 {
		due = time.After(kill.Time)
	}
	if kill.Events > 0 {
		ticker := time.NewTicker(pollEvery)
		defer ticker.Stop()
		poll = ticker.C
	}
	for {
		select {
		case err := <-over:
			return sent, hung, err
		case <-ctx.Done():
		case <-timeout:
			hung = !sent
		case <-due:
			sent = true
		case <-poll:
			if sent = countEvents(tr.log()) >= kill.Events; !sent {
				continue
			}
		}
		_ = cmd.Process.Kill() // too late is no error: it had ended
		return sent, hung, <-over
	}
}

// countEvents counts the events in a log's files as anybody can, without a look at what they are worth.
func countEvents(dir string) (n int) {
	names, _ := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	for _, name := range names {
		data, _ := os.ReadFile(name) // gone again: the next look finds out
		for line := range bytes.Lines(data) {
			if bytes.HasPrefix(line, []byte(`{"seq":`)) && bytes.HasSuffix(line, []byte("\n")) {
				n++
			}
		}
	}
	return n
}

// mend ends a line of the ledger that the kill before cut, so that the next one is not lost with it.
func (tr *programTrial) mend() error {
	data, err := os.ReadFile(tr.ledger())
	if errors.Is(err, fs.ErrNotExist) || err == nil && (len(data) == 0 || bytes.HasSuffix(data, []byte("\n"))) {
		return nil
	}
	if err != nil {
		return err
	}
	f, err := os.OpenFile(tr.ledger(), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString("\n")
	return errors.Join(err, f.Close())
}

// remains are what a life left.
type remains struct {
	torn    int64 // bytes of the log's end that are cut by the next Open
	events  []wal.Event
	jobs    []statemachine.Job
	entries []subject.Entry
	cut     int   // lines of the ledger
	broken  error // the log does not pass
}

// look reads what a life left, and changes none of it: it is a copy in memory that is opened as the program would, since
// a reader that may not repair does not see what the dead writer had no time to vouch for.
func (tr *programTrial) look(ctx context.Context) (f remains, err error) {
	if f.entries, f.cut, err = subject.ReadLedger(tr.ledger()); err != nil {
		return f, err
	}
	switch _, err := os.Stat(tr.log()); {
	case errors.Is(err, fs.ErrNotExist):
		return f, nil // killed before there was a log
	case err != nil:
		return f, err
	}
	report, broken := wal.Verify(tr.log())
	f.torn = report.TornBytes()
	if broken != nil {
		f.broken = broken
		return f, nil
	}
	img, err := ReadImage(nil, tr.log())
	if err != nil {
		return f, err
	}
	disk := crashfs.New()
	if err := img.Write(disk, "log"); err != nil {
		return f, err
	}
	f.broken = f.open(ctx, disk)
	return f, nil
}

func (f *remains) open(ctx context.Context, disk wal.FS) error {
	log, err := wal.Open("log", wal.Options{FS: disk})
	if err != nil {
		return err
	}
	engine, err := recovery.OpenLog(ctx, recovery.OnDisk(log), recovery.Options{})
	if err != nil {
		return err
	}
	for e, err := range log.Events(log.FirstSeq()) {
		if err != nil {
			return errors.Join(err, engine.Close())
		}
		f.events = append(f.events, e)
	}
	f.jobs = slices.Collect(engine.Jobs(projection.Query{}))
	return engine.Close()
}

// programTrial is a program's whole life on one directory, through its kills to its end.
type programTrial struct {
	program *Program
	root    string
	kills   Kills
	logf    func(format string, args ...any)

	lives   []programLife
	account *account
	torn    []int64 // bytes, of the lives that left any
	cut     int     // lines of the ledger
	last    remains
}

func (tr *programTrial) dir() string    { return filepath.Join(tr.root, "program") }
func (tr *programTrial) ledger() string { return filepath.Join(tr.root, "ledger.jsonl") }
func (tr *programTrial) log() string    { return filepath.Join(tr.dir(), tr.program.Log) }
func (tr *programTrial) path(name string, n int) string {
	return filepath.Join(tr.root, fmt.Sprintf("%s-%d", name, n))
}

// run takes the program through all its lives. An error means that nothing can be said of the program; what it did wrong
// is in the account.
func (tr *programTrial) run(ctx context.Context) error {
	if err := os.Mkdir(tr.dir(), 0o755); err != nil {
		return err
	}
	for n := 1; ; n++ {
		var kill Kill
		if n <= len(tr.kills) {
			kill = tr.kills[n-1]
		}
		l, err := tr.live(ctx, n, kill)
		if err != nil {
			return err
		}
		tr.lives = append(tr.lives, l)
		if err := tr.judge(ctx, n, l); err != nil {
			return err
		}
		if !l.killed || len(tr.account.breaches) > 0 {
			return nil
		}
	}
}

// judge holds what a life left against the ledger.
func (tr *programTrial) judge(ctx context.Context, n int, l programLife) error {
	f, err := tr.look(ctx)
	if err != nil {
		return err
	}
	tr.last, tr.cut = f, f.cut
	if f.torn > 0 {
		tr.torn = append(tr.torn, f.torn)
	}
	tr.tell(n, l, f)
	switch {
	case f.broken != nil:
		tr.account.breach(RuleLog, "", "", []int{n}, "the log does not pass: %v", f.broken)
		return nil
	case l.hung:
		tr.account.breach(RuleTimeout, "", "", []int{n}, "the program did not end within %s", tr.program.Timeout)
	case l.err != nil:
		tr.account.breach(RuleExit, "", "", []int{n}, "the program ended by itself: %v: %s", l.err, tr.said(n))
	}
	tr.account.after(n, f.entries, f.events)
	if !l.killed && !l.hung && l.err == nil {
		tr.account.atEnd(f.jobs)
	}
	return nil
}

// tell says how a life went, for whoever replays it.
func (tr *programTrial) tell(n int, l programLife, f remains) {
	end := "ended"
	switch {
	case l.killed && len(l.trace.Ops) > 0:
		end = fmt.Sprintf("killed at operation %d (%s)", len(l.trace.Ops), l.trace.Ops[len(l.trace.Ops)-1])
	case l.killed:
		end = "killed"
	case l.hung:
		end = "hung"
	}
	tr.logf("life %d: %s; the log has %d events, the ledger %d lines, torn bytes %d", n, end, len(f.events), len(f.entries), f.torn)
	for _, e := range f.entries {
		if e.Life == n {
			tr.logf("life %d: operation %d: %s %s %s", n, e.Op, e.Mark, e.Job, or(e.Name, string(e.Event)))
		}
	}
}

// said is the end of what a life wrote to its standard output and error.
func (tr *programTrial) said(n int) string {
	data, err := os.ReadFile(tr.path("output", n))
	if err != nil {
		return err.Error()
	}
	const most = 1000
	return strings.TrimSpace(string(data[max(0, len(data)-most):]))
}
