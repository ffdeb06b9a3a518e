package crashtest_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/recovery/crashtest"
	"github.com/jobwal/jobwal/wal"
)

// shopProgram is this test binary as a program: see shop.
func shopProgram(t *testing.T, behaviour string) crashtest.Program {
	self, err := os.Executable()
	require.NoError(t, err)
	return crashtest.Program{
		Command: func(dir, _ string) *exec.Cmd {
			cmd := exec.Command(self, dir)
			cmd.Env = append(os.Environ(), childVariable+"="+behaviour)
			return cmd
		},
		Log: "jobs",
	}
}

// A program that keeps to the order of things gets its certificate, and was killed before and after each operation.
func TestCertify_a_program_as_it_should_be(t *testing.T) {
	t.Parallel()
	p := shopProgram(t, "right")
	p.Trials = crashtest.Thin(115, 38)
	c := crashtest.Certify(t, p)
	require.True(t, c.Deterministic(), "%s", c)
	require.Equal(t, 13, c.Events)
	require.Equal(t, 3, c.Effects)
	require.Equal(t, p.Trials, c.Trials)
	if p.Trials > 2*c.Operations {
		require.Greater(t, c.Kills, c.Trials, "each operation, before and after, and pairs")
	}
	require.Equal(t, c.Starts, c.Trials+c.Kills, "a life more than kills")
	for _, place := range []string{"before write", "after sync", "after syncdir", "before ledger acked", "after ledger acked"} {
		require.NotZero(t, c.Places[place], "%s\n%s", place, c)
	}
}

// Right programs of other kinds.
func TestCertify_passes(t *testing.T) {
	t.Parallel()
	for behaviour, check := range map[string]func(t *testing.T, c crashtest.Certificate){
		"never syncs, by choice": func(*testing.T, crashtest.Certificate) {},
		"all at once":            func(t *testing.T, c crashtest.Certificate) { require.Equal(t, 13, c.Events) },
		"tears": func(t *testing.T, c crashtest.Certificate) {
			require.Positive(t, c.Torn, "killed behind half a record")
			require.Equal(t, int64(13*c.Torn), c.TornBytes)
		},
		"outside": func(t *testing.T, c crashtest.Certificate) {
			require.False(t, c.Inside)
			require.Contains(t, c.String(), "without KillFS")
			require.Positive(t, c.Kills)
		},
	} {
		t.Run(behaviour, func(t *testing.T) {
			t.Parallel()
			p := shopProgram(t, behaviour)
			p.Trials = 16
			p.Lax = behaviour == "never syncs, by choice"
			p.Sync = behaviour == "all at once"
			check(t, crashtest.Certify(t, p))
		})
	}
}

// Each program that does one thing wrong is caught, by the rule that it breaks, and can be caught again.
func TestCertify_catches(t *testing.T) {
	t.Parallel()
	for _, wrong := range []struct {
		behaviour string
		rule      crashtest.Rule
		job       string
		kills     int
	}{
		{"acts first", crashtest.RuleUnknown, "pay", 1},
		{"again", crashtest.RuleTwice, "pay", 1},
		{"outside, again", crashtest.RuleTwice, "pay", 1},
		{"logs afterwards", crashtest.RuleUnknown, "pay", 1},
		{"completes first", crashtest.RuleMissing, "pay", 1},
		{"never syncs", crashtest.RuleUnsynced, "pay", 0},
		{"leaves it", crashtest.RuleUnfinished, "pay", 1},
		{"hangs", crashtest.RuleTimeout, "", 0},
		{"tells first", crashtest.RuleAcknowledged, "pay", 1},
		{"rolls back only the log", crashtest.RuleRolledBack, "gift", 0},
		{"undoes only the world", crashtest.RuleRolledBack, "gift", 0},
		{"starts afresh", crashtest.RuleLost, "pay", 1},
		{"scribbles", crashtest.RuleLog, "", 1},
		{"gives up", crashtest.RuleExit, "", 1},
	} {
		t.Run(wrong.behaviour, func(t *testing.T) {
			t.Parallel()
			p := shopProgram(t, wrong.behaviour)
			p.Trials, p.Parallel = 40, 2
			if wrong.rule == crashtest.RuleTimeout {
				p.Timeout = 300 * time.Millisecond
			}
			_, err := p.Certify(context.Background())
			var u *crashtest.Uncertified
			require.ErrorAs(t, err, &u)
			require.Len(t, u.Kills, wrong.kills)
			require.Equal(t, wrong.rule, u.Breaches[0].Rule, "%v", err)
			require.Equal(t, wrong.job, u.Breaches[0].Job, "%v", err)

			report, failed := crashtest.Fails(func(t rapid.TB) { p.Replay(t, u.Kills.String()) })
			require.True(t, failed)
			require.Contains(t, report, fmt.Sprintf("\n\t%s: ", wrong.rule))
		})
	}
}

// Replay tells each life: what it did to the world, and where it died.
func TestReplay_tells_the_story(t *testing.T) {
	t.Parallel()
	p := shopProgram(t, "right")
	story, failed := crashtest.Fails(func(t rapid.TB) { p.Replay(t, "kill before 16, then after 2") })
	require.False(t, failed, "%s", story)
	for _, line := range []string{"life 1: killed at operation 16", "life 1: operation 14: acked pay job_validated",
		"life 2: killed at operation 2", "life 3: ended; the log has 13 events"} {
		require.Contains(t, story, line)
	}
}

// A program without any of our lines in it is killed when its log has grown so far, or after a time: one that stands
// still meanwhile, since another might get on.
func TestReplay_from_outside(t *testing.T) {
	t.Parallel()
	for _, kill := range []string{"kill at event 8", "kill at 300ms"} {
		p, starts := shopProgram(t, "outside"), 0
		right := p.Command
		p.Command = func(dir, ledger string) *exec.Cmd {
			cmd := right(dir, ledger)
			if starts++; starts == 2 { // the first is the undisturbed one
				cmd.Env = append(cmd.Env, childVariable+"=stops at the gift")
			}
			return cmd
		}
		story, failed := crashtest.Fails(func(t rapid.TB) { p.Replay(t, kill) })
		require.False(t, failed, "%s", story)
		first, _, _ := strings.Cut(story, "\n")
		require.Contains(t, first, "life 1: killed")
		if kill == "kill at event 8" {
			require.Contains(t, first, "the log has 8 events")
		}
		require.Contains(t, story, "life 2: ended; the log has 13 events")
	}
}

// The directory of a trial that failed is there to be looked at, where that was asked for, and no other.
func TestCertify_keeps_what_failed(t *testing.T) {
	t.Parallel()
	p := shopProgram(t, "rolls back only the log")
	p.Dir = t.TempDir()
	_, err := p.Certify(context.Background())
	var u *crashtest.Uncertified
	require.ErrorAs(t, err, &u)
	_, err = wal.Verify(filepath.Join(u.Dir, "program", "jobs"))
	require.NoError(t, err)
	require.FileExists(t, filepath.Join(u.Dir, "ledger.jsonl"))
	list, err := os.ReadDir(p.Dir)
	require.NoError(t, err)
	require.Len(t, list, 1)
}

// What there is no time for is left out, and counted; it is no failure.
func TestCertify_is_bounded(t *testing.T) {
	t.Parallel()
	p := shopProgram(t, "right")
	p.Trials = 11
	c := crashtest.Certify(t, p)
	require.Equal(t, 11, c.Trials)
	require.GreaterOrEqual(t, c.LeftOut, 2*c.Operations-10)

	_, err := crashtest.Program{}.Certify(context.Background())
	require.Error(t, err)
	p.Log = "elsewhere"
	_, err = p.Certify(context.Background())
	require.ErrorContains(t, err, "Program.Log")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = p.Certify(ctx)
	require.ErrorIs(t, err, context.Canceled)
}

func TestKills_print_and_parse(t *testing.T) {
	kill := rapid.Custom(func(t *rapid.T) crashtest.Kill {
		n := rapid.IntRange(1, 1_000_000).Draw(t, "n")
		return rapid.SampledFrom([]crashtest.Kill{{Op: n}, {Op: n, After: true}, {Events: n}, {Time: time.Duration(n)}}).Draw(t, "kill")
	})
	rapid.Check(t, func(t *rapid.T) {
		kills := crashtest.Kills(rapid.SliceOfN(kill, 0, 4).Draw(t, "kills"))
		back, err := crashtest.ParseKills(kills.String())
		require.NoError(t, err)
		require.ElementsMatch(t, kills, back)
		require.Equal(t, kills.String(), back.String())
	})
	for _, text := range []string{"", "kill ", "kill soon", "kill after", "kill after x", "before 3", "kill at 3", "kill at event", "kill before 03"} {
		_, err := crashtest.ParseKills(text)
		require.Error(t, err, "%q", text)
	}
}
