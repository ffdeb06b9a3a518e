package main

import (
	"context"
	"encoding/json"
	"fmt"
	"sync/atomic"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/wal"
)

// lineBytes is what one event of the workload takes in the log, on average, at seqs of six digits.
const lineBytes = 190

// eventsPerJob: submitted, validated, started, completed.
const eventsPerJob = 4

const capability = "FileRead"

var (
	args   = json.RawMessage(`{"path":"14.txt"}`)
	output = json.RawMessage(`{"bytes":12}`)
)

func jobID(n int64) string { return fmt.Sprintf("%016x", n) }

// jobEvents are a whole job as the log has it.
func jobEvents(id string) [eventsPerJob]wal.Event {
	event := func(t wal.EventType) wal.Event { return wal.Event{Type: t, JobID: id, Capability: capability} }
	submitted, completed := event(wal.JobSubmitted), event(wal.JobCompleted)
	submitted.Args, completed.Output = args, output
	return [eventsPerJob]wal.Event{submitted, event(wal.JobValidated), event(wal.JobStarted), completed}
}

// jobCommands are the same job as the engine is told of it.
func jobCommands(id string) [eventsPerJob]recovery.Command {
	submission := recovery.Submission{JobID: id, Capability: capability, Args: args}
	return [eventsPerJob]recovery.Command{
		recovery.Submit(submission), recovery.Validate(id), recovery.Start(id), recovery.Complete(id, output),
	}
}

// A step makes something durable and returns when it is.
type step func(ctx context.Context) error

// logCaller takes one job after the other through its life, with an append for each event.
func logCaller(log *wal.Log, ids *atomic.Int64) step {
	var events [eventsPerJob]wal.Event
	next, prev := 0, uint64(0)
	return func(ctx context.Context) (err error) {
		if next == 0 {
			events, prev = jobEvents(jobID(ids.Add(1))), 0
		}
		event := events[next]
		event.Prev = prev
		next = (next + 1) % eventsPerJob
		prev, err = log.Append(ctx, event)
		return err
	}
}

// engineCaller does the same through the engine, which checks each event and has it applied before it returns.
func engineCaller(engine *recovery.Engine, ids *atomic.Int64) step {
	var commands [eventsPerJob]recovery.Command
	next := 0
	return func(ctx context.Context) error {
		if next == 0 {
			commands = jobCommands(jobID(ids.Add(1)))
		}
		command := commands[next]
		next = (next + 1) % eventsPerJob
		_, err := engine.Do(ctx, command)
		return err
	}
}
