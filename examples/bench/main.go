// Bench measures how fast jobwal is on the machine and the file system at hand, and draws it:
//
//	go run ./examples/bench -out docs/charts append    # durable events/s and latency, by number of callers
//	go run ./examples/bench -out docs/charts replay    # time and heap until an engine is ready, by size of log
//	go run ./examples/bench -out docs/charts longrun longrun.csv    # draws what examples/longrun -csv has written
//	go run ./examples/bench disk    # syncs/s of the disk itself, one at a time and several; no chart
//
// Without a word it does the first two. Every figure is the median of several rounds, with the lowest and the
// highest. Machines and disks drift by a factor of two within minutes, so the rounds of what is compared take turns, and
// a bare loop on the same disk takes its turn with them: compare with that, not with the figures of another day. x-bare is
// that comparison: events/s over the bare loop's for append, time over the bare loop's for replay. The bare loop is a floor,
// not a rival: it checks nothing, and with many callers it has none to wake. bbolt is a peer: a durable store of its own kind,
// given the same bytes.
//
// It is a module of its own so that whoever imports jobwal does not get a library for charts with it.
//
// Read the files in this order: main.go, append.go, replay.go, disk.go, workload.go, figures.go, longrun.go, chart.go.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"time"
)

// settings are the flags.
type settings struct {
	out     string
	dir     string
	round   time.Duration
	rounds  int
	callers int
	max     int
	which   string // "append", "replay", "longrun", "disk", or "" for the first two
	file    string // longrun: the rows
}

func main() {
	s, err := parseFlags(os.Args[1:], os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return
	case err != nil:
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt) // so that an interrupted run cleans up, too
	err = run(ctx, s, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parseFlags(args []string, errors io.Writer) (settings, error) {
	var s settings
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(errors)
	f.StringVar(&s.out, "out", ".", "write append.svg, replay.svg or longrun.svg into this `directory`")
	f.StringVar(&s.dir, "dir", ".", "measure the file system of this `directory`; what is written there is removed at the end")
	f.DurationVar(&s.round, "round", 250*time.Millisecond, "append and disk: length of one round")
	f.IntVar(&s.rounds, "rounds", 5, "rounds for each figure")
	f.IntVar(&s.callers, "callers", 1024, "append: go up to so many callers, from 1 by doubling")
	f.IntVar(&s.max, "max", 1_000_000, "replay: go up to logs of so many events, from 1000 by factors of ten; 200 bytes of disk each")
	f.Usage = func() {
		fmt.Fprintf(errors, "How fast jobwal is here, in figures and charts.\n\nUsage: bench [flags] [append | replay | longrun FILE.csv | disk]\n\n")
		f.PrintDefaults()
	}
	if err := f.Parse(args); err != nil {
		return s, err
	}
	s.which, s.file = f.Arg(0), f.Arg(1)
	if err := s.check(f.NArg()); err != nil {
		fmt.Fprintln(errors, "bench:", err)
		return s, err
	}
	return s, nil
}

func (s settings) check(args int) error {
	switch {
	case s.which == "longrun" && args != 2:
		return errors.New(`after "longrun" comes the file that examples/longrun -csv has written`)
	case s.which != "longrun" && args > 1 || !slices.Contains([]string{"", "append", "replay", "longrun", "disk"}, s.which):
		return errors.New(`after the flags comes "append", "replay", "longrun" with a file, "disk", or nothing`)
	case s.round <= 0 || s.rounds < 1 || s.callers < 1:
		return errors.New("-round, -rounds and -callers are at least 1")
	case s.max < smallestLog:
		return fmt.Errorf("-max is at least %d", smallestLog)
	}
	return nil
}

func run(ctx context.Context, s settings, stdout io.Writer) (err error) {
	if err := os.MkdirAll(s.out, 0o777); err != nil {
		return err
	}
	if s.which == "longrun" {
		rows, err := readLongrun(s.file)
		if err != nil {
			return err
		}
		return drawLongrun(filepath.Join(s.out, "longrun.svg"), rows)
	}
	temp, err := os.MkdirTemp(s.dir, "jobwal-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(temp)) }()
	s.dir = temp
	fmt.Fprintln(stdout, machine())
	if s.which == "disk" {
		return measureDisk(ctx, s, stdout)
	}
	if s.which != "replay" {
		if err := runAppend(ctx, s, stdout); err != nil {
			return fmt.Errorf("append: %w", err)
		}
	}
	if s.which != "append" {
		if err := runReplay(ctx, s, stdout); err != nil {
			return fmt.Errorf("replay: %w", err)
		}
	}
	return nil
}

func runAppend(ctx context.Context, s settings, stdout io.Writer) error {
	points, err := measureAppend(ctx, s, stdout)
	if err != nil {
		return err
	}
	return drawAppend(filepath.Join(s.out, "append.svg"), s, points)
}

func runReplay(ctx context.Context, s settings, stdout io.Writer) error {
	points, err := measureReplay(ctx, s, stdout)
	if err != nil {
		return err
	}
	return drawReplay(filepath.Join(s.out, "replay.svg"), s, points)
}

func machine() string {
	return fmt.Sprintf("go=%s os=%s arch=%s cpus=%d", runtime.Version(), runtime.GOOS, runtime.GOARCH, runtime.GOMAXPROCS(0))
}
