package crashtest_test

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the tests that there are into docs/faults.md")

const (
	root       = "../.."
	faultTable = root + "/docs/faults.md"
	rows       = 27
)

// A row of the table is one line: | F1 | fault | verdict | tests |.
var (
	rowLine = regexp.MustCompile(`^\| F(\d+) \| ([^|]+) \| ([^|]+) \| ([^|]*) \|$`)
	inName  = regexp.MustCompile(`_F(\d+)|^TestF(\d+)`)
)

// Every row of the catalogue has a test whose name carries its number, every such test stands in the table, and the table
// names no other.
func TestFaultTableIsComplete(t *testing.T) {
	raw, err := os.ReadFile(faultTable)
	require.NoError(t, err)
	tests := testsByRow(t)
	lines := strings.Split(string(raw), "\n")
	var found []int
	for i, line := range lines {
		cells := rowLine.FindStringSubmatch(line)
		if cells == nil {
			require.NotRegexp(t, `^\| F\d`, line, "line %d is a row that does not read as one", i+1)
			continue
		}
		row, _ := strconv.Atoi(cells[1])
		found = append(found, row)
		require.NotEmpty(t, tests[row], "no test is named after F%d", row)
		want := strings.Join(tests[row], "<br>")
		if *update {
			lines[i] = fmt.Sprintf("| F%d | %s | %s | %s |", row, cells[2], cells[3], want)
			continue
		}
		require.Equal(t, want, cells[4], "F%d; go test -run TestFaultTable ./recovery/crashtest -update writes it", row)
	}
	var all []int
	for row := range rows {
		all = append(all, row+1)
	}
	require.Equal(t, all, found, "every row once, in order")
	for row := range tests {
		require.Contains(t, all, row, "%v", tests[row])
	}
	if *update {
		require.NoError(t, os.WriteFile(faultTable, []byte(strings.Join(lines, "\n")), 0o644))
	}
}

// testsByRow finds the tests whose names carry a row's number, as "package: name", sorted.
func testsByRow(t *testing.T) map[int][]string {
	t.Helper()
	tests := make(map[int][]string)
	require.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		for _, decl := range file.Decls {
			f, ok := decl.(*ast.FuncDecl)
			if !ok || f.Recv != nil || !strings.HasPrefix(f.Name.Name, "Test") {
				continue
			}
			dir, err := filepath.Rel(root, filepath.Dir(path))
			if err != nil {
				return err
			}
			for _, m := range inName.FindAllStringSubmatch(f.Name.Name, -1) {
				row, _ := strconv.Atoi(m[1] + m[2])
				tests[row] = append(tests[row], fmt.Sprintf("`%s` %s", filepath.ToSlash(dir), f.Name.Name))
			}
		}
		return nil
	}))
	for _, names := range tests {
		slices.Sort(names)
	}
	return tests
}
