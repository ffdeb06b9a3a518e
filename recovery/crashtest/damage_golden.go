package crashtest

import (
	"embed"
	"encoding/json"
	"io/fs"
	"iter"
	"path"
)

// A GoldenDir is one damaged log and what must be made of it. It was written once and is never written again, so that
// every later version, another implementation, or a tool of any kind, can be held against it.
type GoldenDir struct {
	// Name is that of the damage, behind its row: "F3_bit_flip_in_the_middle".
	Name    string  `json:"name"`
	Row     string  `json:"row"`
	Doc     string  `json:"doc"`
	Verdict Verdict `json:"verdict"`
	// Path, Offset and Seq say where the log stops being what was written, as in a [Judgement].
	Path   string `json:"path,omitempty"`
	Offset int64  `json:"offset,omitempty"`
	Seq    uint64 `json:"seq,omitempty"`
	// The log opens with the events First to Last, and with Jobs, as [Judgement.Jobs] lists them; none where it is
	// refused.
	First uint64   `json:"first,omitempty"`
	Last  uint64   `json:"last,omitempty"`
	Jobs  []string `json:"jobs,omitempty"`
	// Image is the log's directory; the caller's own.
	Image Image `json:"-"`
}

//go:embed testdata/damaged
var golden embed.FS

const (
	goldenRoot  = "testdata/damaged"
	verdictFile = "verdict.json"
)

// Golden yields the golden damaged directories, by name: at least one for each row of the catalogue that is about what
// lies in a directory. The files are in testdata/damaged.
func Golden() iter.Seq[GoldenDir] {
	return func(yield func(GoldenDir) bool) {
		dirs, err := golden.ReadDir(goldenRoot)
		must(err)
		for _, d := range dirs {
			if d.IsDir() && !yield(goldenDir(golden, path.Join(goldenRoot, d.Name()))) {
				return
			}
		}
	}
}

func goldenDir(files fs.FS, dir string) (g GoldenDir) {
	g.Image = make(Image)
	entries, err := fs.ReadDir(files, dir)
	must(err)
	for _, e := range entries {
		content, err := fs.ReadFile(files, path.Join(dir, e.Name()))
		must(err)
		if e.Name() == verdictFile {
			must(json.Unmarshal(content, &g))
		} else {
			g.Image[e.Name()] = content
		}
	}
	return g
}

// must is for what was compiled in.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
