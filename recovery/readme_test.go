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
	text, err := os.ReadFile("../README.md")
	require.NoError(t, err)
	parts := strings.Split(string(text), "```"+language+"\n")
	require.Len(t, parts, 2, "README.md must have one %s block", language)
	block, _, found := strings.Cut(parts[1], "```")
	require.True(t, found)
	return block
}

func TestREADMEShowsTheLifecycle(t *testing.T) {
	diagram, err := statemachine.Diagram("mermaid")
	require.NoError(t, err)
	require.Equal(t, strings.TrimSpace(diagram), strings.TrimSpace(readmeBlock(t, "mermaid")))
}

func TestREADMEShowsQuickstart(t *testing.T) {
	program, err := os.ReadFile("../examples/quickstart/main.go")
	require.NoError(t, err)
	require.Equal(t, string(program), readmeBlock(t, "go"))
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
