package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/recovery/runner"
)

// capabilities are what the agent can do, and what doing it twice means. Any of it may be killed at any instant.
func capabilities(w workshop) *runner.Registry {
	reg := runner.NewRegistry()
	runner.Add(reg, "file_read", fileRead{w}, runner.Settings{Effect: recovery.Pure})
	runner.Add(reg, "file_write", fileWrite{w}, runner.Settings{Effect: recovery.Idempotent})
	runner.Add(reg, "shell", shell{w}, runner.Settings{Effect: recovery.Irreversible})
	runner.Add(reg, "script", script{w}, runner.Settings{Effect: recovery.Idempotent})
	return reg
}

// undoable tells which capabilities have an Undo; to ask that, they need no workshop.
var undoable = capabilities(workshop{}).Undoes

type target struct {
	Path string `json:"path"`
}

func (p target) check() error {
	switch {
	case !filepath.IsLocal(p.Path) || filepath.Clean(p.Path) == ".":
		return fmt.Errorf("path %q leads out of the work directory, or nowhere", p.Path)
	case strings.HasPrefix(filepath.ToSlash(filepath.Clean(p.Path)), backups):
		return fmt.Errorf("path %q is the agent's own", p.Path)
	}
	return nil
}

// fileRead tells what a file is.
type fileRead struct{ workshop }

type sum struct {
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

func (fileRead) Validate(_ context.Context, args target) error { return args.check() }

func (c fileRead) Execute(ctx context.Context, args target) (sum, error) {
	return act(ctx, c.workshop, "", func() (sum, error) {
		f, err := c.root.Open(args.Path)
		if err != nil {
			return sum{}, err
		}
		defer f.Close() // only read
		c.pause()
		hash := sha256.New()
		n, err := io.Copy(hash, f)
		return sum{n, hex.EncodeToString(hash.Sum(nil))}, err
	})
}

// fileWrite keeps what was there before it writes, so that it can be undone, and done again.
type fileWrite struct{ workshop }

type writeArgs struct {
	target
	Content string `json:"content"`
}

type written struct {
	Bytes int `json:"bytes"`
}

func (fileWrite) Validate(_ context.Context, args writeArgs) error { return args.check() }

func (c fileWrite) Execute(ctx context.Context, args writeArgs) (written, error) {
	return act(ctx, c.workshop, "", func() (written, error) {
		if err := c.keepOld(jobID(ctx), args.Path); err != nil {
			return written{}, err
		}
		c.pause() // killed here: kept, and not written
		err := errors.Join(c.root.MkdirAll(filepath.Dir(args.Path), 0o755), c.write(args.Path, []byte(args.Content)))
		c.pause() // killed here: written, and nobody knows
		return written{len(args.Content)}, err
	})
}

func (c fileWrite) Undo(ctx context.Context, args writeArgs, _ runner.Done) error {
	return errors.Join(c.putBack(jobID(ctx), args.Path), c.undone(ctx, ""))
}

// shell runs a command. What it does is its own business, so nobody can tell, after a crash, how far it came.
type shell struct{ workshop }

type shellArgs struct {
	Command string `json:"command"`
	limit
}

func (shell) Validate(_ context.Context, args shellArgs) error {
	if strings.TrimSpace(args.Command) == "" {
		return fmt.Errorf("no command")
	}
	return args.check()
}

func (c shell) Execute(ctx context.Context, args shellArgs) (string, error) {
	return act(ctx, c.workshop, "", func() (string, error) { return c.run(ctx, args.Command, args.limit) })
}

// script runs commands, each a step of the job: one that is done is not done again. Those of a stage run beside each other, and
// one stage after the other. Each has a command that undoes it, also when it was done in part, or not at all.
type script struct{ workshop }

type scriptArgs struct {
	Stages [][]part `json:"stages"`
	limit
}

type part struct {
	Name string `json:"name"`
	Do   string `json:"do"`
	Undo string `json:"undo"`
}

func (script) Validate(_ context.Context, args scriptArgs) error {
	seen := make(map[string]bool)
	for _, p := range slices.Concat(args.Stages...) {
		if !validID.MatchString(p.Name) || p.Do == "" || p.Undo == "" || seen[p.Name] {
			return fmt.Errorf("part %q: a name of its own, of a-z, 0-9 and -, and commands to do and to undo it, please", p.Name)
		}
		seen[p.Name] = true
	}
	if len(seen) == 0 {
		return fmt.Errorf("no parts")
	}
	return args.check()
}

func (c script) Execute(ctx context.Context, args scriptArgs) (map[string]string, error) {
	said := make(map[string]string)
	for _, stage := range args.Stages {
		outputs, err := c.stage(ctx, stage, args.limit)
		if err != nil {
			return nil, err
		}
		for i, p := range stage {
			said[p.Name] = outputs[i]
		}
	}
	return said, nil
}

func (c script) stage(ctx context.Context, parts []part, l limit) ([]string, error) {
	outputs, errs := make([]string, len(parts)), make([]error, len(parts))
	var all sync.WaitGroup
	for i, p := range parts {
		all.Go(func() {
			outputs[i], errs[i] = runner.Step(runner.Branch(ctx, p.Name), "run", func(ctx context.Context) (string, error) {
				return act(ctx, c.workshop, p.Name, func() (string, error) { return c.run(ctx, p.Do, l) })
			})
		})
	}
	all.Wait()
	return outputs, errors.Join(errs...)
}

// Undo: which parts were begun, and are no steps, nobody knows, so that at last all those are undone.
func (c script) Undo(ctx context.Context, args scriptArgs, done runner.Done) error {
	for _, p := range slices.Backward(slices.Concat(args.Stages...)) {
		step := p.Name + "/run"
		if done.Step != step && (done.Step != "" || slices.Contains(done.Undone, step)) {
			continue
		}
		if _, err := c.run(ctx, p.Undo, args.limit); err != nil {
			return err
		}
		if err := c.undone(ctx, p.Name); err != nil {
			return err
		}
	}
	return nil
}
