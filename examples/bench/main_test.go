package main

import (
	"context"
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jobwal/jobwal/wal"
)

// bench runs the program with small settings and returns what it printed and where it drew.
func bench(t *testing.T, args ...string) (printed, out string) {
	t.Helper()
	dir, out := t.TempDir(), filepath.Join(t.TempDir(), "charts")
	s, err := parseFlags(append([]string{"-dir", dir, "-out", out, "-round", "2ms", "-rounds", "3", "-callers", "4", "-max", "10000"}, args...), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := run(context.Background(), s, &b); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	return b.String(), out
}

// value returns the figure of a key in the one printed line that has all of these words.
func value(t *testing.T, printed, key string, words ...string) float64 {
	t.Helper()
	for line := range strings.Lines(printed) {
		fields := strings.Fields(line)
		if !hasAll(fields, words) {
			continue
		}
		for _, field := range fields {
			if number, ok := strings.CutPrefix(field, key+"="); ok {
				v, err := strconv.ParseFloat(number, 64)
				if err != nil {
					t.Fatal(err)
				}
				return v
			}
		}
	}
	t.Errorf("no %s= with %v", key, words)
	return 0
}

func hasAll(fields, words []string) bool {
	all := " " + strings.Join(fields, " ") + " "
	for _, word := range words {
		if !strings.Contains(all, " "+word+" ") {
			return false
		}
	}
	return true
}

// drawn checks that an SVG is well-formed, and returns the words in it.
func drawn(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var words strings.Builder
	for d := xml.NewDecoder(f); ; {
		token, err := d.Token()
		if err == io.EOF {
			return words.String()
		}
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if text, ok := token.(xml.CharData); ok {
			words.Write(text)
		}
	}
}

func wantWords(t *testing.T, path string, words ...string) {
	t.Helper()
	text := drawn(t, path)
	for _, word := range words {
		if !strings.Contains(text, word) {
			t.Errorf("%s does not say %q", filepath.Base(path), word)
		}
	}
}

func TestAppend(t *testing.T) {
	printed, out := bench(t, "append")
	for _, callers := range []int{1, 2, 4} {
		for _, of := range []string{"bare", "log", "engine", "bbolt"} {
			words := []string{"append", fmt.Sprintf("callers=%d", callers), "of=" + of}
			p50, p99 := value(t, printed, "p50-us", words...), value(t, printed, "p99-us", words...)
			if p50 <= 0 || p99 < p50 {
				t.Errorf("%v: p50 %v, p99 %v", words, p50, p99)
			}
			if value(t, printed, "events/s", words...) <= 0 || value(t, printed, "x-bare", words...) <= 0 {
				t.Errorf("%v: nothing done", words)
			}
		}
	}
	wantWords(t, filepath.Join(out, "append.svg"), "wal.Log", "recovery.Engine", "bare loop", "bbolt", "p99 latency", "events a second", " ms")
	if _, err := os.Stat(filepath.Join(out, "replay.svg")); !os.IsNotExist(err) {
		t.Error("drew a replay that nobody asked for:", err)
	}
}

func TestDisk(t *testing.T) {
	printed, _ := bench(t, "disk")
	for _, lines := range []string{"lines=16", "lines=256"} {
		one, two := value(t, printed, "syncs/s", lines, "at-a-time=1"), value(t, printed, "syncs/s", lines, "at-a-time=2")
		if x := value(t, printed, "x-one", lines, "at-a-time=2"); one <= 0 || math.Abs(two/one-x) > 0.01 {
			t.Errorf("%s: %v and %v syncs/s, x-one=%v", lines, one, two, x)
		}
	}
}

func TestReplay(t *testing.T) {
	printed, out := bench(t, "replay")
	for _, events := range []string{"events=1000", "events=10000"} {
		for _, of := range []string{"bare", "log", "engine"} {
			if value(t, printed, "events/s", "replay", events, "of="+of) <= 0 {
				t.Errorf("%s of %s: no time", events, of)
			}
		}
		if heap := value(t, printed, "heap-bytes", "replay", events, "of=engine"); heap <= 0 {
			t.Errorf("%s: heap %v", events, heap)
		}
	}
	wantWords(t, filepath.Join(out, "replay.svg"), "wal.Log", "recovery.Engine", "log on disk", "1k", "10k", "kB")
}

// The rows of examples/longrun are drawn by the names of their columns; what was not measured is left out.
func TestLongrun(t *testing.T) {
	head := "seconds,jobs,jobs_per_s,heap_bytes,resident_bytes,disk_bytes,open_s,open_low_s,open_high_s\n"
	good := head + "1,500000,100,2e7,0,1000000,,,\n2,1000000,100,2e7,0,4e7,0.123,0.1,0.2\n3,1300000,100,2e7,0,4e7,,,\n"
	file, out := filepath.Join(t.TempDir(), "rows.csv"), t.TempDir()
	draw := func(rows string) error {
		if err := os.WriteFile(file, []byte(rows), 0o666); err != nil {
			t.Fatal(err)
		}
		s, err := parseFlags([]string{"-out", out, "longrun", file}, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		return run(context.Background(), s, io.Discard)
	}
	if err := draw(good); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(out, "longrun.svg")
	wantWords(t, path, "Memory", "live heap", "Disk", "Time to open", "50 ms", "Jobs a second", "1300000 jobs", "killed (SIGKILL) 1 times", "1.5M", "40 MB")
	if strings.Contains(drawn(t, path), "whole process") {
		t.Error("drew what was not measured")
	}
	for what, rows := range map[string]string{"no column open_s": strings.ReplaceAll(good, "open_s", "other"),
		"row 2": strings.ReplaceAll(good, "0.123", "soon"), "no run": head, "wrong number of fields": good + "1,2\n"} {
		if err := draw(rows); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// The bare loop, and the charts, say that an event takes lineBytes.
func TestLineBytes(t *testing.T) {
	printed, _ := bench(t, "-rounds", "1", "replay")
	const events = 10_000
	size := value(t, printed, "log-bytes", "replay", fmt.Sprintf("events=%d", events), "of=bare") / events
	if size < 0.97*lineBytes || size > 1.03*lineBytes {
		t.Errorf("an event takes %v bytes in the log, not %d", size, lineBytes)
	}
}

// What fails in the middle fails the run, by its own name, and leaves nothing behind.
func TestInterrupted(t *testing.T) {
	dir := t.TempDir()
	s, err := parseFlags([]string{"-dir", dir, "-out", t.TempDir(), "-round", "1ms"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := run(ctx, s, io.Discard); err == nil || !strings.Contains(err.Error(), "append: ") {
		t.Error("an interrupted run:", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestFlags(t *testing.T) {
	for _, args := range [][]string{{"both"}, {"append", "replay"}, {"-rounds", "0"}, {"-max", "999"}, {"-round", "0s"}, {"-callers", "0"},
		{"longrun"}, {"longrun", "a", "b"}, {"append", "a"}} {
		if _, err := parseFlags(args, io.Discard); err == nil {
			t.Errorf("%q were taken", args)
		}
	}
}

// A replay that comes to fewer events than were written is an error, not a good time.
func TestReplayOfLess(t *testing.T) {
	ctx, dir := context.Background(), t.TempDir()
	if err := writeLog(ctx, dir, 400); err != nil {
		t.Fatal(err)
	}
	if err := readLog(ctx, dir, 404); err == nil {
		t.Error("the log: 400 events were taken for 404")
	}
	if _, _, err := openEngine(ctx, dir, 404); err == nil {
		t.Error("the engine: 100 jobs were taken for 101")
	}
	if report, err := wal.Verify(dir); err != nil {
		t.Error(report, err)
	}
}

func TestFigures(t *testing.T) {
	if got := figureOf([]float64{3, 1, 2}); got != (figure{1, 2, 3}) {
		t.Error(got)
	}
	var latencies []time.Duration
	for i := range time.Duration(200) {
		latencies = append(latencies, i+1)
	}
	for p, want := range map[int]time.Duration{1: 2, 50: 100, 99: 198, 100: 200} {
		if got := percentile(latencies, p); got != want {
			t.Errorf("p%d is %d, want %d", p, got, want)
		}
	}
	if got := percentile(latencies[:1], 99); got != 1 {
		t.Error("of one:", got)
	}
}

func TestTicks(t *testing.T) {
	for want, got := range map[string]string{
		"0.5 µs": duration(0.5e-6), "200 µs": duration(200e-6), "1 ms": duration(0.001), "20 s": duration(20),
		"500 kB": bytesOf(5e5), "1 GB": bytesOf(1e9), "1M": thousands(1e6), "2k": thousands(2000), "5": thousands(5), "1024": plain(1024),
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	steps := []float64{1, 2, 5}
	if low, high := outward(310, 4100, steps); low != 200 || high != 5000 {
		t.Error(low, high)
	}
	for most, want := range map[float64]float64{1e6: 2e5, 1.3e6: 5e5, 0.24: 0.05, 59: 10, 61: 20, 6: 1} {
		if got := stepOf(most); math.Abs(got/want-1) > 1e-9 {
			t.Errorf("steps of %v up to %v, want %v", got, most, want)
		}
	}
	var labels []string
	for _, tick := range decimalTicks(thousands, steps)(200, 5000) {
		labels = append(labels, tick.Label)
	}
	if got := strings.Join(labels, " "); got != "200 500 1k 2k 5k" {
		t.Error(got)
	}
}
