//go:build unix

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/recovery/crashtest"
)

// quickPlan has a step of each kind that recovery tells apart, and no pauses.
const quickPlan = `{"steps": [
	{"id": "write",   "capability": "file_write", "args": {"path": "config.ini", "content": "level = 1\n"}},
	{"id": "read",    "capability": "file_read",  "args": {"path": "config.ini"}},
	{"id": "build",   "capability": "script", "args": {"stages": [
		[{"name": "make", "do": "echo ok > made", "undo": "rm -f made"}], [{"name": "log", "do": "cat made > log", "undo": "rm -f log"}]]}},
	{"id": "migrate", "capability": "shell", "args": {"command": "echo migrated >> migrations.log"}},
	{"id": "draft",   "capability": "file_write", "roll_back": true, "args": {"path": "config.ini", "content": "no\n"}},
	{"id": "half",    "capability": "script", "args": {"stages": [
		[{"name": "make", "do": "echo > half", "undo": "rm -f half"}], [{"name": "check", "do": "exit 3", "undo": "true"}]]}}
]}`

// The agent is killed at its files' operations and between its effects, and what it did is held against its log.
func TestAgentIsCertified(t *testing.T) {
	self, err := os.Executable()
	require.NoError(t, err)
	plan := filepath.Join(t.TempDir(), "plan.json")
	require.NoError(t, os.WriteFile(plan, []byte(quickPlan), 0o644))
	c := crashtest.Certify(t, crashtest.Program{
		Command: func(dir, _ string) *exec.Cmd {
			return exec.Command(self, "-child", "-workdir", dir, "-plan", plan, "-pace", "0")
		},
		Log:    "jobs",
		Trials: 40,
	})
	require.True(t, c.Inside)
	require.Equal(t, 6, c.Jobs)
	require.Equal(t, 7, c.Effects, "a script's parts are one each")
	require.True(t, c.Deterministic())
	require.Equal(t, 39, c.Kills)
}
