package runner

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

var errBroken = errors.New("broken")

// a pool is a runner on an engine in memory; both end with the test.
type pool struct {
	*Runner
	t    testing.TB
	disk *crashfs.FS
	log  *record
}

func newPool(t testing.TB, reg *Registry, opts Options) *pool {
	return poolOn(t, crashfs.New(), reg, opts)
}

func poolOn(t testing.TB, disk wal.FS, reg *Registry, opts Options) *pool {
	p := poolOf(t, engineOn(t, disk), reg, opts)
	p.disk, _ = disk.(*crashfs.FS)
	return p
}

func poolOf(t testing.TB, e *recovery.Engine, reg *Registry, opts Options) *pool {
	log := &record{}
	opts.Logger = slog.New(slog.NewTextHandler(log, nil))
	r, err := New(e, reg, opts)
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		require.NoError(t, r.Drain(ctx))
	})
	return &pool{r, t, nil, log}
}

// after is a pool on what a crash leaves of this one, at this instant.
func (p *pool) after(reg *Registry, opts Options) *pool {
	return poolOn(p.t, p.disk.Crash(crashfs.SyncedOnly), reg, opts)
}

// submit submits a job of its own id.
func (p *pool) submit(capability, id string, args any) {
	_, err := p.Submit(context.Background(), capability, args, ID(id))
	require.NoError(p.t, err)
}

func (p *pool) wait(id string) statemachine.Job {
	job, err := p.Wait(context.Background(), id)
	require.NoError(p.t, err)
	return job
}

// run submits a job and waits for it.
func (p *pool) run(capability, id string, args any) statemachine.Job {
	p.submit(capability, id, args)
	return p.wait(id)
}

// story is a job's events in short: types without "job_", and what they are about.
func (p *pool) story(id string) (story []string) {
	for e, err := range p.engine.History(context.Background(), id) {
		require.NoError(p.t, err)
		text := string(e.Type)[len("job_"):]
		if name := recovery.StepName(e); name != "" {
			text += " " + name
		}
		if e.Error != "" {
			text += ": " + e.Error
		}
		story = append(story, text)
	}
	return story
}

// record is what was logged.
type record struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (r *record) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.buf.Write(p)
}

func (r *record) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.buf.String()
}

// ledger is what was done in the world outside.
type ledger struct {
	mu    sync.Mutex
	lines []string
}

func (l *ledger) note(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, fmt.Sprintf(format, args...))
}

func (l *ledger) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.lines)
}

// script is a capability made of functions; those that are nil do nothing.
type script struct {
	validate  func(context.Context, int) error
	execute   func(context.Context, int) (int, error)
	undo      func(context.Context, int, Done) error
	reconcile func(context.Context, int) (Found[int], error)
}

func (s script) Validate(ctx context.Context, n int) error {
	if s.validate == nil {
		return nil
	}
	return s.validate(ctx, n)
}

func (s script) Execute(ctx context.Context, n int) (int, error) {
	if s.execute == nil {
		return n, nil
	}
	return s.execute(ctx, n)
}

func (s script) Undo(ctx context.Context, n int, done Done) error {
	if s.undo == nil {
		return nil
	}
	return s.undo(ctx, n, done)
}

func (s script) Reconcile(ctx context.Context, n int) (Found[int], error) {
	if s.reconcile == nil {
		return Found[int]{}, nil
	}
	return s.reconcile(ctx, n)
}

// does is a registry with one capability, "do", whose failures are kept unless it undoes.
func does(x script, s Settings) *Registry {
	reg := NewRegistry()
	s.KeepFailed = s.KeepFailed || x.undo == nil
	Add(reg, "do", x, s)
	return reg
}

// until is work that goes on until its context ends.
func until(ctx context.Context, _ int) (int, error) {
	<-ctx.Done()
	return 0, ctx.Err()
}

func states(e *recovery.Engine, ids ...string) (all []statemachine.State) {
	for _, id := range ids {
		job, _ := e.Job(id)
		all = append(all, job.State)
	}
	return all
}
