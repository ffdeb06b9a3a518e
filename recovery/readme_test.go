package recovery_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// The README shows the code, the lifecycle and the format; these tests hold it to them.

// readmeBlock returns the fenced block of the given language, of which there must be one.
func readmeBlock(t *testing.T, language string) string {
	t.Helper()
	blocks := readmeBlocks(t, language)
	require.Len(t, blocks, 1, "README.md must have one %s block", language)
	return blocks[0]
}

// readmeBlocks returns all of a language, in order.
func readmeBlocks(t *testing.T, language string) (blocks []string) {
	t.Helper()
	text, err := os.ReadFile("../README.md")
	require.NoError(t, err)
	for _, part := range strings.Split(string(text), "```"+language+"\n")[1:] {
		block, _, found := strings.Cut(part, "```")
		require.True(t, found)
		blocks = append(blocks, block)
	}
	return blocks
}

func TestREADMEShowsTheLifecycle(t *testing.T) {
	diagram, err := statemachine.Diagram("mermaid")
	require.NoError(t, err)
	require.Equal(t, strings.TrimSpace(diagram), strings.TrimSpace(readmeBlock(t, "mermaid")))
}

// The programs that it shows are there to be run: the quickstart, what the runner makes of it, and the test that proves it.
func TestREADMEShowsPrograms(t *testing.T) {
	var programs []string
	for _, file := range []string{"quickstart/main.go", "runner/main.go", "quickstart/crash_test.go"} {
		program, err := os.ReadFile("../examples/" + file)
		require.NoError(t, err)
		programs = append(programs, string(program))
	}
	require.Equal(t, programs, readmeBlocks(t, "go"))
}

func TestREADMEShowsASegment(t *testing.T) {
	dir := t.TempDir()
	segment := readmeBlock(t, "jsonl")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "00000000000000000001.jsonl"), []byte(segment), 0o644))
	report, err := wal.Verify(dir)
	require.NoError(t, err)
	require.Empty(t, report.Torn)
	require.True(t, report.Clean)
	require.EqualValues(t, 4, report.Events)
}
