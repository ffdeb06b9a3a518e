package recovery

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// childOptions make small segments, so that a kill also falls into a rotation.
var childOptions = Options{WAL: wal.Options{SegmentBytes: 4096}}

// child is a program at work, in another process: four callers take jobs through their lives, as far as each job's
// number says, and say on stdout what was acknowledged, until it is killed, or its stdin ends.
func child(dir string) {
	e, err := Open(context.Background(), dir, childOptions)
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	fmt.Println("open", e.log.Epoch())
	over := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(over)
	}()
	var all sync.WaitGroup
	for c := range 4 {
		all.Go(func() {
			for i := 0; !ended(over); i++ {
				work1(e, fmt.Sprintf("job-%d-%d-%d", e.log.Epoch(), c, i), i)
			}
		})
	}
	all.Wait()
	if err := e.Close(); err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
}

func ended(over <-chan struct{}) bool {
	select {
	case <-over:
		return true
	default:
		return false
	}
}

// work1 takes one job so far as n says, and says each step.
func work1(e *Engine, id string, n int) {
	life := [][]Command{
		{Submit(Submission{JobID: id, Capability: "shell", Args: n})},
		{Validate(id), Start(id)},
		{Complete(id, n)},
		{RollBack(id, "undone")},
	}
	if n%3 == 0 {
		life[2] = []Command{Fail(id, errors.New("no"))}
	}
	for _, commands := range life[:1+n%4] {
		jobs, err := e.Do(context.Background(), commands...)
		if err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		job := jobs[len(jobs)-1]
		fmt.Println("acked", id, job.Seq, job.State) // one write, unbuffered
	}
}

// said is what a child acknowledged of one event.
type said struct {
	id    string
	state statemachine.State
}

// F14: a process that is killed at any instant has every acknowledged event back, and is told which jobs were interrupted.
func TestF14_SIGKILL_acknowledged_is_recovered_and_interrupted_is_right(t *testing.T) {
	self, err := os.Executable()
	require.NoError(t, err)
	dir, acked, next := filepath.Join(t.TempDir(), "deeper", "jobs"), make(map[uint64]said), uint64(1)
	const kills = 10
	torn := 0
	for range kills {
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), childVariable+"="+dir)
		in, err := cmd.StdinPipe()
		require.NoError(t, err)
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		lines := bufio.NewScanner(out)
		for range 1 + rand.IntN(120) {
			if !lines.Scan() {
				t.Error("the child died by itself")
				break
			}
			hear(t, acked, lines.Text())
		}
		require.NoError(t, cmd.Process.Kill())
		for lines.Scan() { // what it said before it died counts
			hear(t, acked, lines.Text())
		}
		require.Error(t, cmd.Wait(), "killed")
		_ = in.Close() // it was held open for the child, which ends with it
		var report Report
		next, report = checkKilled(t, dir, acked, next)
		torn += len(report.WAL.Torn)
	}
	t.Logf("%d kills, %d torn tails, %d events, %d of them known to be acknowledged", kills, torn, next-1, len(acked))
}

func hear(t *testing.T, acked map[uint64]said, line string) {
	var s said
	var seq uint64
	if n, _ := fmt.Sscanf(line, "acked %s %d %s", &s.id, &seq, &s.state); n == 3 {
		acked[seq] = s
		return
	}
	require.True(t, strings.HasPrefix(line, "open "), "the child said %q", line)
}

// checkKilled opens the directory as a writer does, and holds what is there against what was said, and against the
// reference machine. It returns the next seq, and what Open found.
func checkKilled(t *testing.T, dir string, acked map[uint64]said, from uint64) (uint64, Report) {
	e, err := Open(context.Background(), dir, childOptions)
	require.NoError(t, err)
	states, found := make(map[string]statemachine.State), 0
	var unfinished []string
	last := e.log.LastSeq()
	for event, err := range e.log.Events(context.Background(), 1) {
		require.NoError(t, err)
		to := step(states[event.JobID], event.Type)
		require.NotEmpty(t, to, "seq %d: %s of a job that is %q", event.Seq, event.Type, states[event.JobID])
		states[event.JobID] = to
		requireContent(t, event)
		if s, ok := acked[event.Seq]; ok {
			require.Equal(t, s, said{event.JobID, to}, "seq %d", event.Seq)
			found++
		}
	}
	require.Len(t, acked, found, "acknowledged, and not there")
	require.GreaterOrEqual(t, last+1, from, "what an earlier round saw is still there")
	for id, state := range states {
		job, known := e.Job(id)
		require.True(t, known)
		require.Equal(t, state, job.State)
		if state == "submitted" || state == "validated" || state == "started" {
			unfinished = append(unfinished, id)
		}
		require.NotEqual(t, statemachine.Validated, state, "a group is whole: validated and started together")
	}
	require.ElementsMatch(t, slices.Collect(maps.Keys(states)), inOrder(slices.Collect(e.Jobs(projection.Query{}))))
	require.ElementsMatch(t, unfinished, inOrder(e.Interrupted()))
	require.Equal(t, last, e.Report().Replayed)
	for _, job := range e.Interrupted() { // it decides, and nothing is interrupted any more
		_, err := e.Fail(context.Background(), job.ID, errors.New("interrupted"))
		require.NoError(t, err)
	}
	require.Empty(t, e.Interrupted())
	last = e.log.LastSeq()
	require.NoError(t, e.Close())
	return last + 1, e.Report()
}

// requireContent holds an event's content against what the program gave it, which follows from the job's number.
func requireContent(t *testing.T, e wal.Event) {
	var epoch, caller int
	var n string
	_, err := fmt.Sscanf(e.JobID, "job-%d-%d-%s", &epoch, &caller, &n)
	require.NoError(t, err, e.JobID)
	var args, output, reason string
	switch e.Type {
	case wal.JobSubmitted:
		args = n
	case wal.JobCompleted:
		output = n
	case wal.JobRolledBack:
		reason = "undone"
	case wal.JobFailed:
		reason = e.Error
		require.Contains(t, []string{"no", "interrupted"}, reason) // the program's, or this test's
	}
	require.Equal(t, []string{"shell", args, output, reason},
		[]string{e.Capability, string(e.Args), string(e.Output), e.Error}, "seq %d", e.Seq)
}
