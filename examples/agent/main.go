// Agent is a small agent runtime on jobwal, and a demonstration: without arguments it starts itself as a child, kills
// the child with SIGKILL in the middle of its work, again and again, and shows what each next one finds and decides. At
// the end it checks that every event which any child had acknowledged is in the log.
//
// Read the files in this order: main.go, plan.go, capabilities.go (what it can do), agent.go (the agent proper, on
// recovery/runner), workshop.go (files and commands), parent.go (the kills and the check), importer.go, table.go.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// settings are the flags.
type settings struct {
	plan    string
	workdir string
	imports string
	kills   int
	seed    uint64
	pace    time.Duration
	keep    bool
	child   bool
}

func main() {
	s, err := parseFlags(os.Args[1:], os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return
	case err != nil:
		os.Exit(2)
	}
	if err := run(context.Background(), s); err != nil {
		fmt.Fprintln(os.Stderr, "agent:", err)
		os.Exit(1)
	}
}

func parseFlags(args []string, errors io.Writer) (settings, error) {
	var s settings
	f := flag.NewFlagSet("agent", flag.ContinueOnError)
	f.SetOutput(errors)
	f.StringVar(&s.plan, "plan", "", "run the plan in this JSON `file`; default: a built-in one")
	f.StringVar(&s.workdir, "workdir", "", "work in this `directory`, and go on where an earlier run stopped; default: a new one, removed at the end")
	f.StringVar(&s.imports, "import", "", "show the jobs in this `file`, a log of runtimo-core 0.1.0, and do nothing else")
	f.IntVar(&s.kills, "kills", len(chosenKills), "kill the agent so many times")
	f.Uint64Var(&s.seed, "seed", 0, "choose the moments of the kills by this number; 0: the most instructive ones")
	f.DurationVar(&s.pace, "pace", 120*time.Millisecond, "pause between the visible parts of a step, so that there is a middle to be killed in")
	f.BoolVar(&s.keep, "keep", false, "keep the directory that was made")
	f.BoolVar(&s.child, "child", false, "be the agent itself: run the plan in -workdir, report on standard output (used by the demonstration)")
	f.Usage = func() {
		fmt.Fprintf(errors, "An agent that is killed again and again, and finishes its plan all the same.\n\nUsage: agent [flags]\n\n")
		f.PrintDefaults()
	}
	if err := f.Parse(args); err != nil {
		return s, err
	}
	if f.NArg() > 0 || s.kills < 0 || s.pace < 0 {
		fmt.Fprintf(errors, "agent: unexpected argument, or a negative number; see -h\n")
		return s, fmt.Errorf("bad arguments")
	}
	return s, nil
}

func run(ctx context.Context, s settings) error {
	if s.imports != "" {
		return showImport(ctx, os.Stdout, s.imports)
	}
	p, err := loadPlan(s.plan)
	if err != nil {
		return err
	}
	if s.child {
		return runChild(ctx, p, s)
	}
	made := s.workdir == ""
	if made {
		if s.workdir, err = os.MkdirTemp("", "jobwal-agent-"); err != nil {
			return err
		}
	}
	if s.workdir, err = filepath.Abs(s.workdir); err != nil {
		return err
	}
	if err := demonstrate(ctx, os.Stdout, p, s); err != nil {
		return fmt.Errorf("%w (the directory is kept: %s)", err, s.workdir)
	}
	if made && !s.keep {
		return os.RemoveAll(s.workdir)
	}
	return nil
}

// The agent's directory: what its capabilities may touch, and the log.
func filesDir(workdir string) string { return filepath.Join(workdir, "files") }
func jobsDir(workdir string) string  { return filepath.Join(workdir, "jobs") }
