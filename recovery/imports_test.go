package recovery

import (
	"go/build"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Whatever the engine is made of, directly or not, on every system that is built for: none of it is a package for tests,
// nor anything that a program which only wants jobs would not expect to drag along.
func TestWhatAProgramDragsAlong(t *testing.T) {
	const us = "github.com/jobwal/jobwal"
	for _, goos := range []string{"linux", "darwin", "windows", "freebsd"} {
		context := build.Default
		context.GOOS, context.CgoEnabled = goos, false
		seen := make(map[string]bool)
		var visit func(importPath, from string)
		visit = func(importPath, from string) {
			if seen[importPath] || importPath == "C" || importPath == "unsafe" {
				return
			}
			seen[importPath] = true
			if !strings.HasPrefix(importPath, us) {
				return // what lies behind others' packages is theirs, and named in docs/dependencies.md
			}
			dir := path.Join("..", strings.TrimPrefix(importPath, us))
			pkg, err := context.ImportDir(dir, 0)
			require.NoError(t, err, "%s, imported by %s on %s", importPath, from, goos)
			for _, p := range pkg.Imports {
				visit(p, importPath)
			}
		}
		visit(us+"/recovery", "this test")
		require.NotContains(t, seen, us+"/recovery/runner")
		visit(us+"/recovery/runner", "this test")
		var ours []string
		for p := range seen {
			base := path.Base(p)
			require.False(t, p == "testing" || strings.HasPrefix(p, "testing/") || strings.HasSuffix(base, "test") ||
				strings.Contains(p, "crashfs") || strings.Contains(p, "testify") || strings.Contains(p, "rapid"),
				"%s is for tests", p)
			require.NotContains(t, []string{"net", "net/http", "os/exec", "plugin", "database/sql", "flag"}, p, "on %s", goos)
			if strings.HasPrefix(p, us) {
				ours = append(ours, strings.TrimPrefix(p, us+"/"))
			}
		}
		slices.Sort(ours)
		require.Equal(t, []string{"projection", "recovery", "recovery/runner", "statemachine", "wal"}, ours)
	}
}
