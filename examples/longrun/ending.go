package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// An ending is what a whole run came to.
type ending struct {
	rows       []row
	remembered int
	unfinished int    // jobs, each with its whole history
	below      int    // events of unfinished jobs that are older than every segment
	firstSeq   uint64 // of the log
	lastSeq    uint64
}

// settle opens what the last kill left, and holds every unfinished job against what it must be.
func settle(s settings) (end ending, err error) {
	ctx := context.Background()
	engine, err := recovery.Open(ctx, s.Dir, s.options())
	if err != nil {
		return end, err
	}
	defer func() { err = errors.Join(err, engine.Close()) }()
	r := engine.Report()
	end.firstSeq, end.lastSeq = r.WAL.FirstSeq, r.WAL.LastSeq
	for _, n := range r.Jobs {
		end.remembered += n
	}
	if _, known := engine.Job(forever); !known {
		return end, errors.New("the job that is never finished is not there")
	}
	unfinished := []statemachine.State{statemachine.Submitted, statemachine.Validated, statemachine.Started}
	for job := range engine.Jobs(projection.Query{States: unfinished}) {
		below, err := whole(ctx, engine, job, end.firstSeq)
		if err != nil {
			return end, fmt.Errorf("job %s, %s: %w", job.ID, job.State, err)
		}
		end.unfinished++
		end.below += below
	}
	return end, nil
}

// path is how an unfinished job comes to where it is.
var path = []struct {
	event wal.EventType
	state statemachine.State
}{
	{wal.JobSubmitted, statemachine.Submitted}, {wal.JobValidated, statemachine.Validated}, {wal.JobStarted, statemachine.Started},
}

// whole checks that an unfinished job's history has every step, and that its args are what they were. It counts the events
// that compactions have kept from before the log's first segment.
func whole(ctx context.Context, engine *recovery.Engine, job statemachine.Job, firstSeq uint64) (below int, err error) {
	args, err := engine.Read(ctx, job.Args)
	if err != nil {
		return 0, err
	}
	if !bytes.Equal(args, argsOf(job.ID)) {
		return 0, fmt.Errorf("its args are %.40s…", args)
	}
	steps, state := 0, statemachine.None
	for event, err := range engine.History(ctx, job.ID) {
		if err != nil {
			return 0, err
		}
		if steps == len(path) || event.Type != path[steps].event {
			return 0, fmt.Errorf("%s is step %d of its history", event.Type, steps+1)
		}
		if event.Seq < firstSeq {
			below++
		}
		state = path[steps].state
		steps++
	}
	if state != job.State {
		return 0, fmt.Errorf("its history ends when it was %q", state)
	}
	return below, nil
}

// openings returns what Open did after each kill.
func (end ending) openings() (all []opening) {
	for _, r := range end.rows {
		if r.opened != nil {
			all = append(all, *r.opened)
		}
	}
	return all
}

// tell says how the run went, the first kill beside the last.
func (end ending) tell(w io.Writer) {
	openings := end.openings()
	first, last := openings[0], openings[len(openings)-1]
	fmt.Fprintf(w, "\nkilled %d times; the first time, %s; the last time, %s\n", len(openings), first, last)
	fmt.Fprintf(w, "the log begins at seq %d of %d; %d jobs are remembered, %d of them unfinished, all with their whole history\n",
		end.firstSeq, end.lastSeq, end.remembered, end.unfinished)
	fmt.Fprintf(w, "(%d events of theirs are older than every segment: compactions carried them along)\n", end.below)
}
