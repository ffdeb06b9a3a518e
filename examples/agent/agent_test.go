package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// TestMain makes the test binary stand for the program, so that the demonstration can start itself as a child.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "-child" {
		main()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func flags(t *testing.T, args ...string) settings {
	s, err := parseFlags(args, t.Output())
	require.NoError(t, err)
	return s
}

// The whole demonstration: killed where it was chosen, or by the dice, it finishes its plan, and the log has every event
// that was acknowledged.
func TestAgentSurvivesItsKills(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			s := flags(t, "-workdir", dir, "-seed", fmt.Sprint(seed), "-pace", "40ms")
			p, err := loadPlan("")
			require.NoError(t, err)
			var out bytes.Buffer
			require.NoError(t, demonstrate(context.Background(), &out, p, s), "%s", &out)
			require.Contains(t, out.String(), "every one is in the log; all 11 jobs are finished")
			require.Contains(t, out.String(), "killed")
			require.NotContains(t, out.String(), "\x1b", "colours are for terminals")
			if seed == 0 {
				require.Contains(t, out.String(), "torn tail cut")
			}
			afterwards(t, dir)

			// Once more, in the same directory: everything is done already.
			out.Reset()
			s.kills = 0
			require.NoError(t, demonstrate(context.Background(), &out, p, s))
			require.Contains(t, out.String(), "✓ 0 events were acknowledged")
		})
	}
}

// afterwards looks at the files themselves.
func afterwards(t *testing.T, dir string) {
	config, err := os.ReadFile(filepath.Join(dir, "files/config.ini"))
	require.NoError(t, err)
	require.Equal(t, "level = 2\n", string(config), "the draft was rolled back")
	require.NoFileExists(t, filepath.Join(dir, "outside.txt"))
	require.NoFileExists(t, filepath.Join(dir, "files/half.txt"))
	migrations, err := os.ReadFile(filepath.Join(dir, "files/migrations.log"))
	if err == nil {
		require.Equal(t, "migrated\n", string(migrations), "what must not run twice did not")
	}
	e, err := recovery.Open(context.Background(), filepath.Join(dir, "jobs"), recovery.Options{})
	require.NoError(t, err)
	for id, want := range map[string]statemachine.State{
		"write-config": statemachine.Completed, "escape": statemachine.Failed, "build": statemachine.Completed,
		"read-missing": statemachine.Failed, "draft": statemachine.RolledBack, "half-made": statemachine.RolledBack,
		"too-slow": statemachine.Failed, "final-config": statemachine.Completed,
	} {
		job, _ := e.Job(id)
		require.Equal(t, want, job.State, id)
	}
	require.NoError(t, e.Close())
}

// A missing event is noticed: the check has teeth.
func TestCheckNoticesWhatIsMissing(t *testing.T) {
	ctx := context.Background()
	e, err := recovery.Open(ctx, t.TempDir(), recovery.Options{})
	require.NoError(t, err)
	_, err = e.Submit(ctx, recovery.Submission{JobID: "a"})
	require.NoError(t, err)
	there := message{Seq: 1, Job: "a", Type: wal.JobSubmitted}
	gone := message{Seq: 2, Job: "a", Type: wal.JobValidated}
	other := message{Seq: 1, Job: "b", Type: wal.JobSubmitted}
	missing, err := check(ctx, e, []message{there, gone, other})
	require.NoError(t, err)
	require.Equal(t, []message{gone, other}, missing)
	require.NoError(t, e.Close())
}

func TestPlans(t *testing.T) {
	for text, says := range map[string]string{
		`{"steps":[]}`:                                                                "no steps",
		"{\n\"steps\": [\n{\"id\": 7}]}":                                              "line 3",
		`{"steps":[{"id":"a","capability":"fly"}]}`:                                   `step 1 (a): no capability "fly"`,
		`{"steps":[{"id":"A/../b","capability":"shell"}]}`:                            "step 1: id",
		`{"steps":[{"id":"a","capability":"shell"},{"id":"a","capability":"shell"}]}`: "step 2: id \"a\" is taken",
		`{"steps":[{"id":"a","capability":"shell","colour":"red"}]}`:                  "colour",
		`{"steps":[{"id":"a","capability":"shell"}]} and more`:                        "follows",
		`{"steps":`: "line 1",
	} {
		_, err := parsePlan([]byte(text))
		require.ErrorContains(t, err, says, text)
	}
	_, err := loadPlan(filepath.Join(t.TempDir(), "none.json"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestDecide(t *testing.T) {
	for _, c := range []struct {
		state      statemachine.State
		capability string
		idempotent bool
		known      bool
		want       action
	}{
		{statemachine.Submitted, "shell", false, true, carryOn},
		{statemachine.Validated, "shell", false, true, carryOn},
		{statemachine.Started, "file_read", false, true, runAgain},
		{statemachine.Started, "file_write", false, true, undoFirst},
		{statemachine.Started, "shell", true, true, runAgain},
		{statemachine.Started, "shell", false, true, giveUp},
		{statemachine.Started, "file_read", false, false, giveUp},
	} {
		d := decide(statemachine.Job{State: c.state, Capability: c.capability}, step{Idempotent: c.idempotent}, c.known)
		require.Equal(t, c.want, d.action, "%+v", c)
		require.NotEmpty(t, d.why)
	}
}

func newWorkshop(t *testing.T) workshop {
	root, err := os.OpenRoot(t.TempDir())
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, root.Close()) })
	return workshop{root: root, job: "job"}
}

func raw(t *testing.T, v any) json.RawMessage {
	data, err := json.Marshal(v)
	require.NoError(t, err)
	return data
}

// A write that is undone, any number of times, and even before it was done, leaves what was there.
func TestFileWriteIsUndone(t *testing.T) {
	ctx := context.Background()
	for _, old := range []string{"", "old"} {
		w := newWorkshop(t)
		if old != "" {
			require.NoError(t, w.root.WriteFile("f", []byte(old), 0o644))
		}
		args := raw(t, fileArgs{Path: "f", Content: "new"})
		require.NoError(t, fileWrite{}.undo(ctx, w, args))
		for range 2 { // interrupted and run again: the first backup is the true one
			_, err := fileWrite{}.run(ctx, w, args)
			require.NoError(t, err)
		}
		for range 2 {
			require.NoError(t, fileWrite{}.undo(ctx, w, args))
			got, err := w.root.ReadFile("f")
			if old == "" {
				require.ErrorIs(t, err, os.ErrNotExist)
			} else {
				require.Equal(t, old, string(got))
			}
		}
	}
}

func TestPathsStayInside(t *testing.T) {
	for _, path := range []string{"../x", "/etc/passwd", "", ".", "a/../../x", ".backups/job.old"} {
		require.Error(t, fileWrite{}.validate(raw(t, fileArgs{Path: path})), path)
	}
	require.NoError(t, fileWrite{}.validate(raw(t, fileArgs{Path: "a/b.txt"})))
}

// A command that runs too long is ended, its children too, and its output is bounded.
func TestShell(t *testing.T) {
	ctx, w := context.Background(), newWorkshop(t)
	start := time.Now()
	_, err := shell{}.run(ctx, w, raw(t, shellArgs{Command: "sleep 60 & sleep 60", TimeoutMS: 50}))
	require.ErrorContains(t, err, "stopped after 50ms")
	require.Less(t, time.Since(start), 30*time.Second)
	_, err = shell{}.run(ctx, w, raw(t, shellArgs{Command: "echo why >&2; exit 3"}))
	require.ErrorContains(t, err, "exit status 3: why")
	out, err := shell{}.run(ctx, w, raw(t, shellArgs{Command: "yes | head -c 100000"}))
	require.NoError(t, err)
	require.LessOrEqual(t, len(out.(map[string]any)["output"].(string)), maxOutput)
	require.Error(t, shell{}.validate(raw(t, shellArgs{Command: " "})))
	require.Error(t, shell{}.validate(json.RawMessage(`{"command":"x","comand":"y"}`)))
}

// -import shows each of the ancestor's logs, complaints first.
func TestImport(t *testing.T) {
	for file, says := range map[string]string{
		"ordinary": "1050 events taken over, 0 complaints", "torn-tail": "line 34:", "torn-then-appended": "two lines fused",
		"torn-utf8": "invalid UTF-8", "two-writers": "… and 60 more", "cleaned": "159 events taken over",
	} {
		var out bytes.Buffer
		path := filepath.Join("../../recovery/testdata/ancestor", file+".jsonl")
		require.NoError(t, showImport(context.Background(), &out, path))
		require.Contains(t, out.String(), says)
		require.Contains(t, out.String(), "completed")
	}
	require.ErrorIs(t, showImport(context.Background(), t.Output(), "none.jsonl"), os.ErrNotExist)
}

func TestBadFlags(t *testing.T) {
	for _, args := range [][]string{{"-nonsense"}, {"stray"}, {"-kills", "-1"}, {"-pace", "soon"}} {
		var out bytes.Buffer
		_, err := parseFlags(args, &out)
		require.Error(t, err)
		require.NotEmpty(t, strings.TrimSpace(out.String()))
	}
}
