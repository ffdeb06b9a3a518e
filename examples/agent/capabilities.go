package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// A capability is something that the agent can do. Its methods may be killed at any instant, and run is then called
// again only as the agent decides.
type capability interface {
	// validate refuses arguments before anything is done.
	validate(args json.RawMessage) error
	// run does the work and returns its output.
	run(ctx context.Context, w workshop, args json.RawMessage) (any, error)
	// undo takes back what run did, or a part of it. Doing it twice does no harm.
	undo(ctx context.Context, w workshop, args json.RawMessage) error
}

var capabilities = map[string]capability{"file_read": fileRead{}, "file_write": fileWrite{}, "shell": shell{}}

// workshop is where a capability works: no path leads out of root.
type workshop struct {
	root *os.Root
	job  string
	pace time.Duration
}

// pause makes a step long enough to be killed in the middle of it. It is there for the demonstration alone.
func (w workshop) pause() { time.Sleep(w.pace) }

type fileArgs struct {
	Path    string `json:"path"`
	Content string `json:"content"`
}

func decode[T any](raw json.RawMessage) (T, error) {
	var args T
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&args); err != nil {
		return args, fmt.Errorf("args: %w", err)
	}
	return args, nil
}

func (a fileArgs) check() error {
	switch {
	case !filepath.IsLocal(a.Path) || filepath.Clean(a.Path) == ".":
		return fmt.Errorf("path %q leads out of the work directory, or nowhere", a.Path)
	case strings.HasPrefix(filepath.ToSlash(filepath.Clean(a.Path)), backups):
		return fmt.Errorf("path %q is the agent's own", a.Path)
	}
	return nil
}

type fileRead struct{}

func (fileRead) validate(raw json.RawMessage) error {
	args, err := decode[fileArgs](raw)
	if err != nil {
		return err
	}
	return args.check()
}

func (fileRead) run(_ context.Context, w workshop, raw json.RawMessage) (any, error) {
	args, err := decode[fileArgs](raw)
	if err != nil {
		return nil, err
	}
	f, err := w.root.Open(args.Path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read
	w.pause()
	sum := sha256.New()
	n, err := io.Copy(sum, f)
	if err != nil {
		return nil, err
	}
	return map[string]any{"bytes": n, "sha256": hex.EncodeToString(sum.Sum(nil))}, nil
}

func (fileRead) undo(context.Context, workshop, json.RawMessage) error { return nil }

// fileWrite keeps what was there before it writes, so that it can be undone, and knows, from what it kept, that it has
// been here before.
type fileWrite struct{}

// backups holds, for each job, either what the file had in it (.old), or the fact that there was none (.none).
const backups = ".backups"

func (fileWrite) validate(raw json.RawMessage) error { return fileRead{}.validate(raw) }

func (fileWrite) run(_ context.Context, w workshop, raw json.RawMessage) (any, error) {
	args, err := decode[fileArgs](raw)
	if err != nil {
		return nil, err
	}
	if err := keepOld(w, args.Path); err != nil {
		return nil, err
	}
	w.pause() // killed here: kept, and not written
	if err := w.root.MkdirAll(filepath.Dir(args.Path), 0o755); err != nil {
		return nil, err
	}
	if err := writeDurably(w.root, args.Path, []byte(args.Content)); err != nil {
		return nil, err
	}
	w.pause() // killed here: written, and nobody knows
	return map[string]any{"bytes": len(args.Content)}, nil
}

func backupOf(job string) string { return filepath.Join(backups, job) }

// keepOld keeps what is there, once: of a job that runs again, the first run's backup is the true one.
func keepOld(w workshop, path string) error {
	if kept, err := isKept(w); kept || err != nil {
		return err
	}
	if err := w.root.MkdirAll(backups, 0o755); err != nil {
		return err
	}
	old, err := w.root.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return writeDurably(w.root, backupOf(w.job)+".none", nil)
	case err != nil:
		return err
	}
	return writeDurably(w.root, backupOf(w.job)+".old", old)
}

func isKept(w workshop) (bool, error) {
	for _, kind := range []string{".none", ".old"} {
		_, err := w.root.Stat(backupOf(w.job) + kind)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return err == nil, err
		}
	}
	return false, nil
}

func (fileWrite) undo(_ context.Context, w workshop, raw json.RawMessage) error {
	args, err := decode[fileArgs](raw)
	if err != nil {
		return err
	}
	old, err := w.root.ReadFile(backupOf(w.job) + ".old")
	if err == nil {
		return writeDurably(w.root, args.Path, old)
	}
	if _, err := w.root.Stat(backupOf(w.job) + ".none"); err != nil {
		return nil // nothing was kept, so nothing was written
	}
	if err := w.root.Remove(args.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncDir(w.root, filepath.Dir(args.Path))
}

// writeDurably puts a file in place in one step: after a crash it is the old one or the new one.
func writeDurably(root *os.Root, path string, content []byte) error {
	temp := path + ".tmp"
	f, err := root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := root.Rename(temp, path); err != nil {
		return err
	}
	return syncDir(root, filepath.Dir(path))
}

// shell runs a command. What it does is its own business, so nobody can tell, after a crash, how far it came.
type shell struct{}

type shellArgs struct {
	Command   string `json:"command"`
	Undo      string `json:"undo"`
	TimeoutMS int64  `json:"timeout_ms"` // default 10,000
}

func (shell) validate(raw json.RawMessage) error {
	args, err := decode[shellArgs](raw)
	switch {
	case err != nil:
		return err
	case strings.TrimSpace(args.Command) == "":
		return fmt.Errorf("no command")
	case args.TimeoutMS < 0 || args.TimeoutMS > time.Hour.Milliseconds():
		return fmt.Errorf("timeout_ms %d: 0 to an hour, please", args.TimeoutMS)
	}
	return nil
}

func (shell) run(ctx context.Context, w workshop, raw json.RawMessage) (any, error) {
	args, err := decode[shellArgs](raw)
	if err != nil {
		return nil, err
	}
	return runCommand(ctx, w, args.Command, args.TimeoutMS)
}

func (shell) undo(ctx context.Context, w workshop, raw json.RawMessage) error {
	args, err := decode[shellArgs](raw)
	if err != nil || args.Undo == "" {
		return err
	}
	_, err = runCommand(ctx, w, args.Undo, args.TimeoutMS)
	return err
}

// maxOutput is how much of a command's output is kept.
const maxOutput = 4 << 10

func runCommand(ctx context.Context, w workshop, command string, timeoutMS int64) (any, error) {
	if timeoutMS == 0 {
		timeoutMS = 10_000
	}
	timeout := time.Duration(timeoutMS) * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", command)
	cmd.Dir = w.root.Name()
	out := &tailBuffer{}
	cmd.Stdout, cmd.Stderr = out, out
	killWithChildren(cmd)
	cmd.WaitDelay = time.Second // for pipes that a stray grandchild holds open
	err := cmd.Run()
	switch {
	case ctx.Err() != nil:
		return nil, out.explain(fmt.Errorf("stopped after %s", timeout))
	case err != nil:
		return nil, out.explain(err)
	}
	return map[string]any{"exit": 0, "output": out.String()}, nil
}

// tailBuffer keeps the end of what is written to it.
type tailBuffer struct{ kept []byte }

func (b *tailBuffer) Write(p []byte) (int, error) {
	b.kept = append(b.kept, p...)
	if over := len(b.kept) - maxOutput; over > 0 {
		b.kept = b.kept[over:]
	}
	return len(p), nil
}

// explain adds what the command wrote to how it ended.
func (b *tailBuffer) explain(err error) error {
	if said := b.String(); said != "" {
		return fmt.Errorf("%w: %s", err, said)
	}
	return err
}

func (b *tailBuffer) String() string {
	return strings.TrimSpace(strings.ToValidUTF8(string(b.kept), "\uFFFD"))
}
