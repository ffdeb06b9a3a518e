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

// quickPlan has a step of each kind that decide tells apart, and no pauses.
const quickPlan = `{"steps": [
	{"id": "write",   "capability": "file_write", "args": {"path": "config.ini", "content": "level = 1\n"}},
	{"id": "read",    "capability": "file_read",  "args": {"path": "config.ini"}},
	{"id": "build",   "capability": "shell", "idempotent": true, "args": {"command": "echo ok > build.log"}},
	{"id": "migrate", "capability": "shell", "args": {"command": "echo migrated >> migrations.log"}},
	{"id": "draft",   "capability": "file_write", "roll_back": true, "args": {"path": "config.ini", "content": "no\n"}},
	{"id": "half",    "capability": "shell", "roll_back": true, "args": {"command": "echo > half; exit 3", "undo": "rm -f half"}}
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
	require.Equal(t, 5, c.Effects, "of those that ended well")
	require.Equal(t, 39, c.Kills)
}
