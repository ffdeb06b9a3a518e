package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/jobwal/jobwal/recovery/crashtest/subject"
	"github.com/jobwal/jobwal/recovery/runner"
)

// workshop is where capabilities work: no path leads out of root.
type workshop struct {
	root   *os.Root
	pace   time.Duration
	ledger *subject.Ledger // nil, unless a test certifies the agent
}

// pause makes work long enough to be killed in the middle of it. It is there for the demonstration alone.
func (w workshop) pause() { time.Sleep(w.pace) }

// jobID is that of the job that a capability works for.
func jobID(ctx context.Context) string {
	job, _ := runner.JobOf(ctx)
	return job.ID
}

// act does something to the world, and says so on the ledger.
func act[R any](ctx context.Context, w workshop, part string, do func() (R, error)) (out R, err error) {
	e := effect(ctx, part)
	if err := w.ledger.Begin(e); err != nil {
		return out, err
	}
	if out, err = do(); err != nil {
		return out, err
	}
	return out, w.ledger.Done(e)
}

// undone says on the ledger that something is not in the world any more.
func (w workshop) undone(ctx context.Context, part string) error {
	return w.ledger.Undone(effect(ctx, part))
}

func effect(ctx context.Context, part string) subject.Effect {
	job, _ := runner.JobOf(ctx)
	return subject.Effect{Job: job.ID, Capability: job.Capability, Name: part, Irreversible: job.Capability == "shell"}
}

// backups holds, for each job, either what its file had in it (.old), or the fact that there was none (.none).
const backups = ".backups"

func backupOf(job string) string { return filepath.Join(backups, job) }

// keepOld keeps what is there, once: of a job that runs again, the first run's backup is the true one.
func (w workshop) keepOld(job, path string) error {
	if kept, err := w.isKept(job); kept || err != nil {
		return err
	}
	if err := w.root.MkdirAll(backups, 0o755); err != nil {
		return err
	}
	old, err := w.root.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return w.write(backupOf(job)+".none", nil)
	case err != nil:
		return err
	}
	return w.write(backupOf(job)+".old", old)
}

func (w workshop) isKept(job string) (bool, error) {
	for _, kind := range []string{".none", ".old"} {
		_, err := w.root.Stat(backupOf(job) + kind)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return err == nil, err
		}
	}
	return false, nil
}

// putBack makes a file what it was before the job. Doing it twice does no harm.
func (w workshop) putBack(job, path string) error {
	old, err := w.root.ReadFile(backupOf(job) + ".old")
	switch {
	case err == nil:
		return w.write(path, old)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if kept, err := w.isKept(job); !kept || err != nil {
		return err // nothing was kept, so nothing was written
	}
	if err := w.root.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncDir(w.root, filepath.Dir(path))
}

// write puts a file in place in one step: after a crash it is the old one or the new one.
func (w workshop) write(path string, content []byte) error {
	temp := path + ".tmp"
	f, err := w.root.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
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
	if err := w.root.Rename(temp, path); err != nil {
		return err
	}
	return syncDir(w.root, filepath.Dir(path))
}

// limit is how long a command may take.
type limit struct {
	TimeoutMS int64 `json:"timeout_ms"` // default 10,000
}

func (l limit) check() error {
	if l.TimeoutMS < 0 || l.TimeoutMS > time.Hour.Milliseconds() {
		return fmt.Errorf("timeout_ms %d: 0 to an hour, please", l.TimeoutMS)
	}
	return nil
}

// run runs a command, and returns the end of what it wrote.
func (w workshop) run(ctx context.Context, command string, l limit) (string, error) {
	after := time.Duration(cmp.Or(l.TimeoutMS, 10_000)) * time.Millisecond
	ctx, cancel := context.WithTimeoutCause(ctx, after, &runner.TimeoutError{After: after})
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", command)
	cmd.Dir = w.root.Name()
	out := &tailBuffer{}
	cmd.Stdout, cmd.Stderr = out, out
	killWithChildren(cmd)
	cmd.WaitDelay = time.Second // for pipes that a stray grandchild holds open
	err := cmd.Run()
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if err != nil {
		return "", out.explain(err)
	}
	return out.String(), nil
}

// maxOutput is how much of a command's output is kept.
const maxOutput = 4 << 10

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
