package main

import (
	"context"
	"encoding/csv"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// TestMain makes the test binary stand for the program, so that it can start itself as a child.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "-child" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func flags(t *testing.T, args ...string) settings {
	s, child, err := parseFlags(args, t.Output())
	require.NoError(t, err)
	require.False(t, child)
	return s
}

// Ten thousand jobs at a bounded rate, of which those of the last fraction of a second are remembered: what is on disk and
// in memory, and what an Open has to replay, does not grow with those that ever were, and the unfinished ones are whole.
func TestF16_LongRunStaysBounded(t *testing.T) {
	const jobs, every = 10_000, 2_000
	file := filepath.Join(t.TempDir(), "rows.csv")
	s := flags(t, "-dir", t.TempDir(), "-jobs", "10000", "-kill", "2500", "-rate", "2500", "-workers", "16", "-slow", "4000",
		"-retain", "100ms", "-refuse", "200ms", "-every", "2000", "-segment", "262144", "-interval", "100ms", "-csv", file)
	end, err := longrun(context.Background(), t.Output(), s)
	require.NoError(t, err)

	last := end.rows[len(end.rows)-1]
	require.GreaterOrEqual(t, last.jobs, int64(jobs))
	require.GreaterOrEqual(t, end.lastSeq, uint64(3*jobs))
	openings := end.openings()
	require.GreaterOrEqual(t, len(openings), 4, "kills")
	for _, o := range openings {
		// Nothing, as a rule, comes while a checkpoint is written; on a busy machine as much as between two of them, twice.
		require.LessOrEqual(t, o.replayed, uint64(4*every))
		require.NotZero(t, o.interrupted)
	}
	for _, r := range end.rows {
		// All jobs together are some 14 MB and 40,000 events.
		require.Less(t, r.Disk, int64(8<<20), "%s", r)
		require.Less(t, r.Remembered, jobs/2, "%s", r)
		require.Less(t, r.Heap, uint64(64<<20), "%s", r)
		require.LessOrEqual(t, r.LastSeq-r.Checkpoint, uint64(4*every), "%s", r)
	}
	require.Greater(t, end.firstSeq, end.lastSeq/2, "the log was compacted")
	require.GreaterOrEqual(t, end.unfinished, 8, "the slow jobs of the last 4,000, and the one for ever")
	require.GreaterOrEqual(t, end.below, 3, "at least that one's events were carried along")

	rows := readCSV(t, file)
	require.Len(t, rows, 1+len(end.rows))
	require.Equal(t, columns, rows[0])
}

func readCSV(t *testing.T, file string) [][]string {
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	rows, err := csv.NewReader(strings.NewReader(string(data))).ReadAll() // refuses rows of different lengths
	require.NoError(t, err)
	return rows
}

// The check has teeth: a job that is not as it was, and one whose history lacks a step, are noticed.
func TestEndingNoticesWhatIsWrong(t *testing.T) {
	ctx := context.Background()
	for name, c := range map[string]struct {
		does []recovery.Command
		says string
	}{
		"nothing there": {nil, "is not there"},
		"other args": {
			[]recovery.Command{recovery.Submit(recovery.Submission{JobID: forever, Args: 1})}, "its args are"},
		"whole": {
			[]recovery.Command{recovery.Submit(submission(forever, endless)), recovery.Validate(forever)}, ""},
		"one that was not asked for": {
			[]recovery.Command{recovery.Submit(submission(forever, endless)), recovery.Submit(recovery.Submission{JobID: "b"})}, "job b"},
	} {
		t.Run(name, func(t *testing.T) {
			s := flags(t, "-dir", t.TempDir())
			e, err := recovery.Open(ctx, s.Dir, s.options())
			require.NoError(t, err)
			if len(c.does) > 0 {
				_, err = e.Do(ctx, c.does...)
				require.NoError(t, err)
			}
			require.NoError(t, e.Close())
			end, err := settle(s)
			if c.says == "" {
				require.NoError(t, err)
				require.Equal(t, 1, end.unfinished)
				return
			}
			require.ErrorContains(t, err, c.says)
		})
	}
}

// What a life decides about the jobs of the one before, and about those that it puts off itself.
func TestTakeStock(t *testing.T) {
	ctx := context.Background()
	s := flags(t, "-dir", t.TempDir(), "-slow", "10")
	open := func() *life {
		e, err := recovery.Open(ctx, s.Dir, s.options())
		require.NoError(t, err)
		l := &life{engine: e, epoch: e.Report().WAL.Epoch, s: s, started: time.Now()}
		require.NoError(t, l.takeStock(ctx))
		return l
	}
	l := open()
	require.NoError(t, l.carryOut(ctx, 1), "a slow one")
	_, err := l.engine.Do(ctx, recovery.Submit(submission("think", ordinary)), recovery.Submit(submission("wait", slow)))
	require.NoError(t, err)
	require.NoError(t, l.engine.Close())

	l = open()
	require.Equal(t, map[string]statemachine.State{
		forever: statemachine.Started, "job-1-1": statemachine.Started, "think": statemachine.Failed, "wait": statemachine.Failed,
	}, states(l.engine))
	require.NoError(t, l.finishLate(ctx, 9))
	require.Equal(t, statemachine.Started, states(l.engine)["job-1-1"], "it is not due")
	require.NoError(t, l.finishLate(ctx, 10))
	require.NoError(t, l.finishLate(ctx, 11), "there is no other")
	require.Equal(t, statemachine.Completed, states(l.engine)["job-1-1"])
	for n, want := range map[int64]statemachine.State{
		3: statemachine.Failed, 9: statemachine.Failed, 7: statemachine.RolledBack, 16: statemachine.Completed,
	} {
		require.NoError(t, l.carryOut(ctx, n))
		require.Equal(t, want, states(l.engine)[l.name(n)], "%d", n)
	}
	require.NoError(t, l.engine.Close())
}

func states(e *recovery.Engine) map[string]statemachine.State {
	all := make(map[string]statemachine.State)
	for job := range e.Jobs(projection.Query{}) {
		all[job.ID] = job.State
	}
	return all
}

// A child that fails by itself ends the run with what it said: here, of a log that lost what an earlier child had shown.
func TestLongRunNoticesALostEnd(t *testing.T) {
	s := flags(t, "-dir", t.TempDir(), "-jobs", "1")
	s.MinSeq = 1000
	_, err := longrun(context.Background(), t.Output(), s)
	require.ErrorContains(t, err, "the agent ended by itself")
	require.ErrorContains(t, err, "seq")
}

// It counts what lies in the directory, and takes names of other kinds for what they are.
func TestLook(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"00000000000000000041.jsonl", "00000000000000000123.jsonl", "carried-00000000000000000041.jsonl",
		"checkpoint-00000000000000000100.jsonl", "checkpoint-00000000000000000140.jsonl", "LOCK", "checkpoint-9.tmp"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), make([]byte, 10), 0o644))
	}
	got, err := look(dir)
	require.NoError(t, err)
	require.Equal(t, disk{Disk: 70, FirstSeq: 41, Checkpoint: 140}, got)
	_, err = look(filepath.Join(dir, "none"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

// A sample that the kill cut in half is no error; one that is no sample is.
func TestReadSamples(t *testing.T) {
	var got []int64
	take := func(s sample) error { got = append(got, s.Jobs); return nil }
	require.NoError(t, readSamples(strings.NewReader(`{"Jobs":1}{"Jobs":2}{"Jo`), take))
	require.Equal(t, []int64{1, 2}, got)
	require.Error(t, readSamples(strings.NewReader(`{"Jobs":"many"}`), take))
	no := errors.New("no")
	require.ErrorIs(t, readSamples(strings.NewReader(`{}`), func(sample) error { return no }), no)
}

func TestBadFlags(t *testing.T) {
	for _, args := range [][]string{{"-nonsense"}, {"stray"}, {"-jobs", "-1"}, {"-workers", "0"}, {"-kill", "0"}, {"-retain", "-1s"}} {
		var out strings.Builder
		_, _, err := parseFlags(args, &out)
		require.Error(t, err)
		require.NotEmpty(t, out.String())
	}
	s := flags(t, "-segment", "1024")
	require.Equal(t, wal.Options{SegmentBytes: 1024}, s.options().WAL)
}
