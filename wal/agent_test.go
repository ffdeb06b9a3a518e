package wal_test

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/jobwal/jobwal/wal"
)

// leakDescriptors lets a command inherit all that is open: a bug for the test below to find, where there is a way to
// have it.
var leakDescriptors func()

// runCommand is what agents do: a command runs, while the log is open. It has the agent's standard input and output.
func runCommand() {
	self, err := os.Executable()
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childVariable+"=echo")
	cmd.Stdin, cmd.Stdout = os.Stdin, os.Stdout
	if err == nil {
		err = cmd.Run()
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// orphan starts an agent that runs a command, and kills the agent. The command lives.
func orphan(t *testing.T, run, dir string) *process {
	t.Helper()
	p := startChild(t, run, dir)
	p.wantEcho(t)
	must(t, p.cmd.Process.Kill())
	_, err := p.cmd.Process.Wait() // and not cmd.Wait, which would close the command's input
	must(t, err)
	p.wantEcho(t)
	return p
}

func (p *process) wantEcho(t *testing.T) {
	t.Helper()
	_, err := io.WriteString(p.in, "alive\n")
	if err != nil || !p.lines.Scan() || p.lines.Text() != "alive" {
		t.Fatalf("the command said %q: %v", p.lines.Text(), err)
	}
}

// F13: a command that an agent has started outlives it, and does not keep its lock.
func TestF13_a_command_does_not_inherit_the_lock(t *testing.T) {
	dir := t.TempDir()
	p := orphan(t, "agent", dir)
	l := dirOpen(t, dir, wal.Options{})
	if l.Epoch() != 2 || l.Report().Clean {
		t.Errorf("%+v", l.Report())
	}
	mustAppend(t, l, event(1, 0, 1, 0))
	p.wantEcho(t)
	mustClose(t, l)
}

// The test above has teeth: a command that inherits the lock keeps it.
func TestF13_a_lock_that_is_inherited_is_found(t *testing.T) {
	if leakDescriptors == nil {
		t.Skip("needs a Unix with flock(2), where a descriptor can be inherited after it was opened")
	}
	dir := t.TempDir()
	p := orphan(t, "leaky agent", dir)
	_, err := wal.Open(dir, wal.Options{})
	wantError(t, err, []error{wal.ErrLocked})
	p.wantEcho(t)
}

// F13: a process that was killed between fork and exec of a command leaves its lock for as long as exec takes. Here a command
// keeps it for a moment; Open waits for that one, and no time for a process that lives.
func TestF13_the_lock_of_the_dead_is_waited_for(t *testing.T) {
	if leakDescriptors == nil {
		t.Skip("needs a Unix with flock(2), where a descriptor can be inherited after it was opened")
	}
	dir := t.TempDir()
	p := orphan(t, "leaky agent", dir)
	time.AfterFunc(50*time.Millisecond, func() { _ = p.in.Close() }) // the command ends
	mustClose(t, dirOpen(t, dir, wal.Options{}))
}
