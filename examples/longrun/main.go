// Longrun is an agent that never ends, under load, and shows that it could go on for ever: it forgets finished jobs after
// two seconds, and memory, disk and the time to open depend on the jobs that are remembered, not on all that ever were.
//
//	go run ./examples/longrun                                              # until interrupted, as fast as it goes
//	go run ./examples/longrun -jobs 1000000 -rate 5000 -csv longrun.csv    # a million, at an even pace, for a chart
//
// The load runs in a child, which is killed with SIGKILL every 100,000 jobs; then it is measured how long it takes to open
// what is left. Jobs fail, are rolled back, stay unfinished for long, and one of them for ever. At the end the
// directory is opened once more, and every unfinished job must have its whole history.
//
// Read the files in this order: main.go, life.go (the child: opens, resumes, works), jobs.go (what the jobs are),
// sample.go (what is measured), parent.go (the kills, and what it takes to open afterwards), ending.go (the check), rows.go.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/wal"
)

// settings are the flags. The child gets them as JSON.
type settings struct {
	Dir      string
	Jobs     int64
	Kill     int64
	Slow     int64
	Workers  int
	Rate     int64
	Retain   time.Duration
	Refuse   time.Duration
	Every    int
	Segment  int64
	Interval time.Duration
	CSV      string
	Keep     bool
	MinSeq   uint64 // the newest seq that an earlier child showed: a log that ends before it has lost something
}

func main() {
	s, child, err := parseFlags(os.Args[1:], os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return
	case err != nil:
		os.Exit(2)
	}
	run := runParent
	if child {
		run = runChild
	}
	if err := run(s); err != nil {
		fmt.Fprintln(os.Stderr, "longrun:", err)
		os.Exit(1)
	}
}

func parseFlags(args []string, errs io.Writer) (s settings, child bool, err error) {
	f := flag.NewFlagSet("longrun", flag.ContinueOnError)
	f.SetOutput(errs)
	f.StringVar(&s.Dir, "dir", "", "keep the jobs in this `directory`, and go on where an earlier run stopped; default: a new one, removed at the end")
	f.Int64Var(&s.Jobs, "jobs", 0, "end after so many jobs; 0: when interrupted")
	f.Int64Var(&s.Kill, "kill", 100_000, "kill the agent after so many jobs, again and again")
	f.Int64Var(&s.Slow, "slow", 20_000, "one job in five hundred stays unfinished until so many others have come; one does for ever")
	f.IntVar(&s.Workers, "workers", 64, "so many jobs at a time")
	f.Int64Var(&s.Rate, "rate", 0, "at most so many jobs a second; 0: as many as go")
	f.DurationVar(&s.Retain, "retain", 2*time.Second, "forget finished jobs after this time (recovery.Options.Retain)")
	f.DurationVar(&s.Refuse, "refuse", 0, "refuse the ids of forgotten jobs for this time; 0: as long again as they were remembered (recovery.Options.RefuseIDs)")
	f.IntVar(&s.Every, "every", 20_000, "write a checkpoint, and compact, every so many events (recovery.Options.CheckpointEvery)")
	f.Int64Var(&s.Segment, "segment", 4<<20, "size of one file of the log, in bytes (wal.Options.SegmentBytes)")
	f.DurationVar(&s.Interval, "interval", time.Second, "print a line this often")
	f.StringVar(&s.CSV, "csv", "", "write the lines to this `file`, too")
	f.BoolVar(&s.Keep, "keep", false, "keep the directory that was made")
	given := f.String("child", "", "be the agent itself, with these `settings` (used by the program itself)")
	f.Usage = func() {
		fmt.Fprintf(errs, "An agent that runs for ever, and is killed now and then.\n\nUsage: longrun [flags]\n\n")
		f.PrintDefaults()
	}
	if err := f.Parse(args); err != nil {
		return s, false, err
	}
	if *given != "" {
		return s, true, json.Unmarshal([]byte(*given), &s)
	}
	err = s.check(f.NArg())
	if err != nil {
		fmt.Fprintln(errs, "longrun:", err)
	}
	return s, false, err
}

func (s settings) check(args int) error {
	switch {
	case args > 0:
		return errors.New("no arguments but flags are taken; see -h")
	case s.Jobs < 0 || s.Rate < 0 || s.Retain < 0:
		return errors.New("-jobs, -rate and -retain are not negative")
	case s.Kill < 1 || s.Slow < 1 || s.Workers < 1 || s.Every < 1 || s.Interval <= 0:
		return errors.New("-kill, -slow, -workers, -every and -interval are at least 1")
	}
	return nil
}

// options are what makes it run for ever.
func (s settings) options() recovery.Options {
	return recovery.Options{
		CheckpointEvery: s.Every,
		Retain:          s.Retain,
		RefuseIDs:       s.Refuse,
		WAL:             wal.Options{SegmentBytes: s.Segment, MinSeq: s.MinSeq},
	}
}

// runParent runs and kills children until there were enough jobs or it is interrupted, and then checks what is left.
func runParent(s settings) (err error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	made := s.Dir == ""
	if made {
		if s.Dir, err = os.MkdirTemp("", "jobwal-longrun-"); err != nil {
			return err
		}
	}
	if _, err = longrun(ctx, os.Stdout, s); err != nil {
		return fmt.Errorf("%w (the directory is kept: %s)", err, s.Dir)
	}
	if made && !s.Keep {
		return os.RemoveAll(s.Dir)
	}
	return nil
}
