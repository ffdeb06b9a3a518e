package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/recovery/runner"
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
			afterwards(t, dir, out.String())

			// Once more, in the same directory: everything is done already.
			out.Reset()
			s.kills = 0
			require.NoError(t, demonstrate(context.Background(), &out, p, s))
			require.Contains(t, out.String(), "✓ 0 events were acknowledged")
		})
	}
}

// afterwards looks at the files themselves.
func afterwards(t *testing.T, dir, said string) {
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
	build, _ := e.Job("build")
	require.Equal(t, 3, build.Steps, "each part is recorded once, however often it was killed")
	migrate, _ := e.Job("migrate")
	require.Equal(t, 1, migrate.Attempts, "it began once")
	held := strings.Contains(said, "somebody looks, and decides that migrate has failed")
	require.Equal(t, held, migrate.State == statemachine.Failed, "nobody but a person says that it failed")
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
		`{"steps":[{"id":"a","capability":"shell","roll_back":true}]}`:                "a shell can't be undone",
		`{"steps":[{"id":"a","capability":"shell"}]} and more`:                        "follows",
		`{"steps":`: "line 1",
	} {
		_, err := parsePlan([]byte(text))
		require.ErrorContains(t, err, says, text)
	}
	_, err := loadPlan(filepath.Join(t.TempDir(), "none.json"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

// What the plan says of jobs that are left, and what the capabilities say: nothing is done twice that must not be.
func TestPolicy(t *testing.T) {
	p, err := loadPlan("")
	require.NoError(t, err)
	for _, c := range []struct {
		job, capability string
		state           statemachine.State
		want            recovery.Action
	}{
		{"migrate", "shell", statemachine.Submitted, recovery.ActionResume},
		{"migrate", "shell", statemachine.Validated, recovery.ActionResume},
		{"migrate", "shell", statemachine.Started, recovery.ActionHold},
		{"read-config", "file_read", statemachine.Started, recovery.ActionResume},
		{"write-config", "file_write", statemachine.Started, recovery.ActionResume},
		{"build", "script", statemachine.Started, recovery.ActionResume},
		{"unheard-of", "file_read", statemachine.Started, recovery.ActionFail},
	} {
		_, r := newAgent(t)
		policy := recovery.First(p.policy(), r.Policy())
		ev := recovery.Evidence{JobID: c.job, Capability: c.capability, Effect: capabilities(workshop{}).Effects()[c.capability], State: c.state}
		action, why, _ := policy.Decide(ev)
		require.Equal(t, c.want, action, "%+v", c)
		require.NotEmpty(t, why)
	}
}

// newAgent is a runner of all capabilities, in a directory that goes with the test.
func newAgent(t *testing.T) (workshop, *runner.Runner) {
	dir := t.TempDir()
	w, err := openWorkshop(settings{workdir: dir})
	require.NoError(t, err)
	engine, err := recovery.Open(context.Background(), jobsDir(dir), recovery.Options{})
	require.NoError(t, err)
	r, err := runner.New(engine, capabilities(w), runner.Options{})
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, r.Drain(context.Background()))
		require.NoError(t, engine.Close())
		require.NoError(t, w.root.Close())
	})
	return w, r
}

// do has a capability do something, and returns how that ended.
func do(t *testing.T, r *runner.Runner, capability, args string) statemachine.Job {
	job, err := r.Submit(t.Context(), capability, json.RawMessage(args))
	require.NoError(t, err)
	job, err = r.Wait(t.Context(), job.ID)
	require.NoError(t, err)
	return job
}

// A write that is undone, any number of times, and even before it was done, leaves what was there.
func TestFileWriteIsUndone(t *testing.T) {
	for _, old := range []string{"", "old"} {
		w, _ := newAgent(t)
		if old != "" {
			require.NoError(t, w.root.WriteFile("f", []byte(old), 0o644))
		}
		require.NoError(t, w.putBack("job", "f"))
		for _, now := range []string{"half", "new"} { // interrupted and run again: the first backup is the true one
			require.NoError(t, w.keepOld("job", "f"))
			require.NoError(t, w.write("f", []byte(now)))
		}
		for range 2 {
			require.NoError(t, w.putBack("job", "f"))
			got, err := w.root.ReadFile("f")
			if old == "" {
				require.ErrorIs(t, err, os.ErrNotExist)
			} else {
				require.Equal(t, old, string(got))
			}
		}
	}
}

// Each job has a backup of its own, so that they are undone in the reverse of the order in which they were done.
func TestFileWritesAreUndoneOneByOne(t *testing.T) {
	w, r := newAgent(t)
	var ids []string
	for _, content := range []string{"1", "2"} {
		job := do(t, r, "file_write", fmt.Sprintf(`{"path":"a/f","content":%q}`, content))
		require.Equal(t, statemachine.Completed, job.State, job.Error)
		ids = append(ids, job.ID)
	}
	for _, left := range []string{"1", ""} {
		job, err := r.RollBack(t.Context(), ids[len(ids)-1], "no longer wanted")
		require.NoError(t, err)
		require.Equal(t, statemachine.RolledBack, job.State)
		ids = ids[:len(ids)-1]
		got, err := w.root.ReadFile("a/f")
		require.Equal(t, left == "", errors.Is(err, os.ErrNotExist))
		require.Equal(t, left, string(got))
	}
}

func TestPathsStayInside(t *testing.T) {
	w, r := newAgent(t)
	for _, path := range []string{"../x", "/etc/passwd", "", ".", "a/../../x", ".backups/job.old"} {
		job := do(t, r, "file_write", fmt.Sprintf(`{"path":%q}`, path))
		require.Equal(t, statemachine.Failed, job.State, path)
		require.Zero(t, job.StartedAt, path)
	}
	_, err := w.root.Stat(backups)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.Equal(t, statemachine.Completed, do(t, r, "file_write", `{"path":"a/b.txt"}`).State)
}

// A command that runs too long is ended, its children too, and its output is bounded.
func TestShell(t *testing.T) {
	_, r := newAgent(t)
	start := time.Now()
	require.Equal(t, "timed out after 50ms", do(t, r, "shell", `{"command":"sleep 60 & sleep 60","timeout_ms":50}`).Error)
	require.Less(t, time.Since(start), 30*time.Second)
	require.Equal(t, "exit status 3: why", do(t, r, "shell", `{"command":"echo why >&2; exit 3"}`).Error)
	job := do(t, r, "shell", `{"command":"yes | head -c 100000"}`)
	require.Equal(t, statemachine.Completed, job.State)
	require.LessOrEqual(t, job.Output.Size(), 2*maxOutput, "newlines take two bytes")
	for _, args := range []string{`{"command":" "}`, `{"command":"x","comand":"y"}`, `{"command":"x","timeout_ms":-1}`} {
		require.Zero(t, do(t, r, "shell", args).StartedAt, args)
	}
}

// A script that fails leaves nothing behind, neither of what was done before nor of what was done in part.
func TestScript(t *testing.T) {
	w, r := newAgent(t)
	job := do(t, r, "script", `{"stages":[[{"name":"a","do":"echo 1 | tee a","undo":"rm a"},{"name":"b","do":"echo 2 | tee b","undo":"rm b"}]]}`)
	out, _ := job.Output.JSON()
	require.JSONEq(t, `{"a":"1","b":"2"}`, string(out))
	require.Equal(t, 2, job.Steps)

	job = do(t, r, "script", `{"stages":[[{"name":"c","do":"touch c","undo":"rm -f c; echo c >> undone"}],
		[{"name":"d","do":"touch d; exit 1","undo":"rm -f d; echo d >> undone"}]]}`)
	require.Equal(t, statemachine.RolledBack, job.State)
	undone, err := w.root.ReadFile("undone")
	require.NoError(t, err)
	require.Equal(t, "c\nd\n", string(undone), "the step, and then what may have been begun and is none")
	for name, left := range map[string]bool{"a": true, "b": true, "c": false, "d": false} {
		_, err := w.root.Stat(name)
		require.Equal(t, left, err == nil, name)
	}
	for _, args := range []string{`{}`, `{"stages":[[{"name":"a","do":"true"}]]}`, `{"stages":[[{"name":"a/b","do":"true","undo":"true"}]]}`,
		`{"stages":[[{"name":"a","do":"true","undo":"true"}],[{"name":"a","do":"true","undo":"true"}]]}`} {
		require.Zero(t, do(t, r, "script", args).StartedAt, args)
	}
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
