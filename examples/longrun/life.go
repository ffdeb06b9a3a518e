package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/statemachine"
)

// A life is one process of the agent, from its Open to its kill.
type life struct {
	engine  *recovery.Engine
	epoch   uint64
	s       settings
	started time.Time
	taken   atomic.Int64 // the number of the newest job
	done    atomic.Int64 // jobs that are as far as they go for now

	mu   sync.Mutex // guards the field below
	late []lateJob  // by due
}

// A lateJob is unfinished until the job with the number due is taken.
type lateJob struct {
	id  string
	due int64
}

// sampleEvery is how often the child tells how it stands.
const sampleEvery = 100 * time.Millisecond

// runChild works until it is killed, and tells on standard output how it stands. Nothing but an error ends it.
func runChild(s settings) error {
	signal.Ignore(os.Interrupt) // the terminal sends it to the child, too; the parent decides
	ctx := context.Background()
	engine, err := recovery.Open(ctx, s.Dir, s.options())
	if err != nil {
		return err
	}
	l := &life{engine: engine, epoch: engine.Report().WAL.Epoch, s: s, started: time.Now()}
	out := json.NewEncoder(os.Stdout)
	if err := l.takeStock(ctx); err != nil {
		return err
	}
	failed := make(chan error, s.Workers)
	for range s.Workers {
		go func() { failed <- l.work(ctx) }()
	}
	for tick := time.Tick(sampleEvery); ; {
		select {
		case err := <-failed:
			return err
		case <-tick:
		}
		now, err := l.sample()
		if err == nil {
			err = out.Encode(now)
		}
		if err != nil {
			return err
		}
	}
}

// takeStock decides about the jobs that the life before left unfinished.
func (l *life) takeStock(ctx context.Context) error {
	for _, job := range l.engine.Interrupted() {
		var err error
		switch {
		case job.ID == forever:
		case job.Capability == slow.capability() && job.State == statemachine.Started:
			l.postpone(job.ID, l.s.Slow)
		default:
			_, err = l.engine.Fail(ctx, job.ID, fmt.Errorf("interrupted when %s", job.State))
		}
		if err != nil {
			return err
		}
	}
	if _, known := l.engine.Job(forever); known {
		return nil
	}
	_, err := l.engine.Do(ctx, recovery.Submit(submission(forever, endless)), recovery.Validate(forever), recovery.Start(forever))
	return err
}

// work takes one job after the other.
func (l *life) work(ctx context.Context) error {
	for {
		n := l.taken.Add(1)
		l.pace(n)
		if err := l.finishLate(ctx, n); err != nil {
			return err
		}
		if err := l.carryOut(ctx, n); err != nil {
			return err
		}
		l.done.Add(1)
	}
}

// pace waits until it is the nth job's turn.
func (l *life) pace(n int64) {
	if l.s.Rate > 0 {
		time.Sleep(time.Until(l.started.Add(time.Duration(n) * time.Second / time.Duration(l.s.Rate))))
	}
}

// carryOut takes a job through its life, each step durable before the next.
func (l *life) carryOut(ctx context.Context, n int64) error {
	id, kind := l.name(n), kindOf(n)
	if _, err := l.engine.Submit(ctx, submission(id, kind)); err != nil {
		return err
	}
	if kind == refused {
		_, err := l.engine.Fail(ctx, id, errors.New("its arguments are no good"))
		return err
	}
	if _, err := l.engine.Validate(ctx, id); err != nil {
		return err
	}
	if _, err := l.engine.Start(ctx, id); err != nil {
		return err
	}
	switch kind {
	case slow:
		l.postpone(id, n+l.s.Slow)
		return nil
	case broken:
		_, err := l.engine.Fail(ctx, id, errors.New("it did not work"))
		return err
	}
	_, err := l.engine.Complete(ctx, id, outputOf(n))
	if err == nil && kind == undone {
		_, err = l.engine.RollBack(ctx, id, "it was not wanted after all")
	}
	return err
}

// name makes ids that no other life makes.
func (l *life) name(n int64) string {
	return fmt.Sprintf("job-%d-%d", l.epoch, n)
}

func (l *life) postpone(id string, due int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.late = append(l.late, lateJob{id, due})
}

// finishLate completes one job that was put off until now, if there is one.
func (l *life) finishLate(ctx context.Context, n int64) error {
	l.mu.Lock()
	if len(l.late) == 0 || l.late[0].due > n {
		l.mu.Unlock()
		return nil
	}
	id := l.late[0].id
	l.late = l.late[1:]
	l.mu.Unlock()
	_, err := l.engine.Complete(ctx, id, outputOf(n))
	return err
}
