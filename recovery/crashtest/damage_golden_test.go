package crashtest

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// updating tells whether -update was given, which faults_table_test.go declares: the golden directories that are missing
// are written, those that are there stay.
func updating() bool {
	update := flag.Lookup("update")
	return update != nil && update.Value.String() == "true"
}

// notGolden are too large to be kept.
var notGolden = []string{"huge line", "deep nesting"}

func goldenName(d Damage) string { return strings.ReplaceAll(d.String(), " ", "_") }

// judged is what the judge says, as a golden directory has it.
func judged(g GoldenDir) GoldenDir {
	j := Judge(g.Image)
	g.Verdict, g.Path, g.Offset, g.Seq, g.Jobs = j.Verdict, j.Path, j.Offset, j.Seq, nil
	g.First, g.Last = 0, 0
	if j.Verdict != Refused && j.Verdict != Version {
		g.First, g.Last = j.First, j.Last
	}
	if j.Verdict != RefusedWhenRead {
		g.Jobs = j.Jobs()
	}
	return g
}

// damagedBy is a small log with the damage.
func damagedBy(t *testing.T, d Damage) Image {
	for _, ending := range []string{"closed", "rotated"} {
		img := imageOf(t, 7, 2200, ending)
		for seed := range uint64(20) {
			if d.Do(rand.New(rand.NewPCG(seed, 0)), img) {
				return img
			}
		}
	}
	t.Fatalf("%v: no log has a place for it", d)
	return nil
}

// writeGolden damages a small log of its own for each damage that has no directory yet.
func writeGolden(t *testing.T) {
	for _, d := range Damages() {
		dir := filepath.Join("testdata", "damaged", goldenName(d))
		if _, err := os.Stat(dir); err == nil || slices.Contains(notGolden, d.Name) {
			continue
		}
		g := GoldenDir{Name: goldenName(d), Row: d.Row, Doc: d.Doc, Image: damagedBy(t, d)}
		verdict, err := json.MarshalIndent(judged(g), "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		if err := g.Image.spill(dir); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, verdictFile), append(verdict, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// F1 to F24: every golden directory leads to its verdict, at its offset and seq, for ever.
func TestGolden(t *testing.T) {
	t.Parallel()
	if updating() {
		writeGolden(t)
		t.Skip("written; what was compiled in is what was there before")
	}
	rows, size := make(map[string]int), 0
	for g := range Golden() {
		rows[g.Row]++
		for _, content := range g.Image {
			size += len(content)
		}
		t.Run(g.Name, func(t *testing.T) {
			if want, got := asJSON(t, g), asJSON(t, judged(g)); got != want {
				t.Fatalf("its verdict is\n%s\nthe judge says\n%s", want, got)
			}
			if err := Examine(g.Image, Judge(g.Image)); err != nil {
				t.Error(err)
			}
		})
	}
	t.Logf("%d bytes, directories by row: %v", size, rows)
	if size > 300<<10 {
		t.Errorf("%d bytes are too many", size)
	}
}

func asJSON(t *testing.T, g GoldenDir) string {
	b, err := json.Marshal(g)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Each damage that is not too large has its directory, with the verdict that the damage says.
func TestGolden_has_every_damage(t *testing.T) {
	missing := make(map[string]Damage)
	for _, d := range Damages() {
		if !slices.Contains(notGolden, d.Name) {
			missing[goldenName(d)] = d
		}
	}
	for g := range Golden() {
		if d, there := missing[g.Name]; there && (d.Verdict != g.Verdict || d.Row != g.Row) {
			t.Errorf("%s: %s, not %s", g.Name, g.Verdict, d.Verdict)
		}
		delete(missing, g.Name)
	}
	for name := range missing {
		t.Errorf("%s is missing: go test -run TestGolden -update", name)
	}
}

func ExampleGolden() {
	for g := range Golden() {
		if g.Row == "F2" || g.Row == "F4" {
			fmt.Printf("%s: %s at offset %d, seq %d\n", g.Name, g.Verdict, g.Offset, g.Seq)
		}
	}
	// Output:
	// F2_loss_inside_the_unsynced_window: repaired at offset 2084, seq 25
	// F4_bit_flip_in_the_last_event: refused at offset 1839, seq 24
}
