package runner

import (
	"context"
	"fmt"
	"runtime"
	"sync"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// commits carries out commands of several jobs in one append, where they come at the same time: after a sync, all whose commands
// it made durable come with their next ones. It costs an engine less than as many appends that share a sync, and nobody waits for
// it. A job's commands must not come from two sides at once: in one append, IfSeq would be true of both.
type commits struct {
	engine *recovery.Engine

	mu   sync.Mutex // guards the field below
	next *batch     // that others may join; nil: none
}

// A batch is one append. What no lock guards is its leader's, and everybody's when done is closed.
type batch struct {
	commands []recovery.Command
	jobs     []statemachine.Job
	err      error
	done     chan struct{}
}

// mostCommands is how many go into one batch.
const mostCommands = 256

// Do is [recovery.Engine.Do] for commands on one job.
func (c *commits) Do(ctx context.Context, commands ...recovery.Command) ([]statemachine.Job, error) {
	b, from, leads := c.join(commands)
	if leads {
		runtime.Gosched() // those who were woken together come together
		c.part(b)
		c.carryOut(context.WithoutCancel(ctx), b)
	}
	<-b.done
	switch {
	case b.err == nil:
		return b.jobs[from : from+len(commands) : from+len(commands)], nil
	case len(b.commands) == len(commands) || refusalOf(b.err) == broken:
		return nil, b.err
	}
	return c.engine.Do(ctx, commands...) // one of the batch was refused, and nothing written: each by itself
}

// carryOut: whoever waits for b is told, also when the log or the clock that the engine was given panics.
func (c *commits) carryOut(ctx context.Context, b *batch) {
	defer close(b.done)
	b.err = errAbandoned
	b.jobs, b.err = c.engine.Do(ctx, b.commands...)
}

var errAbandoned = fmt.Errorf("runner: the log or the clock of the engine panicked, or ended the goroutine: %w", wal.ErrOutcomeUnknown)

// Job is [recovery.Engine.Job].
func (c *commits) Job(id string) (statemachine.Job, bool) { return c.engine.Job(id) }

// join puts commands into the batch that is next, and tells where they are in it.
func (c *commits) join(commands []recovery.Command) (b *batch, from int, leads bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.next == nil || len(c.next.commands)+len(commands) > mostCommands {
		c.next, leads = &batch{done: make(chan struct{})}, true
	}
	b, from = c.next, len(c.next.commands)
	b.commands = append(b.commands, commands...)
	return b, from, leads
}

// part: nobody joins b any more.
func (c *commits) part(b *batch) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.next == b {
		c.next = nil
	}
}
