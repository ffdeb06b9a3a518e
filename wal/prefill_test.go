package wal_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// Viewpoint: newlines ahead of the writer.

// used is how much of a segment's file are lines.
func usedOf(raw []byte) int { return len(bytes.TrimRight(raw, "\n")) + 1 }

func TestPrefill_grows_with_the_log(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, "", wal.Options{Prefill: wal.PrefillOn, SegmentBytes: 4 << 20})
		filled, most := 0, 0
		for range thin(3000, 800) {
			w.append(1, 100)
			size, used := len(w.rawSegment(t)), usedOf(w.rawSegment(t))
			require.LessOrEqual(t, size, 2*used, "a small log stays small")
			if most = max(most, size-used); size > used {
				filled++
			}
		}
		require.Greater(t, filled, thin(2900, 700), "nearly every append finds its blocks in place")
		require.LessOrEqual(t, most, 192<<10, "no more than that is filled at once")
		require.Greater(t, most, thin(191<<10, 100<<10))
		mustClose(t, w.log)
		raw := w.rawSegment(t)
		require.Equal(t, usedOf(raw), len(raw), "cut to size")
	})
}

// A log of ten events takes what ten events take, and as much again at most.
func TestPrefill_small_logs_stay_small(t *testing.T) {
	dir := t.TempDir()
	l, err := wal.Open(dir, wal.Options{Prefill: wal.PrefillOn})
	require.NoError(t, err)
	defer mustClose(t, l)
	for i := range 10 {
		mustAppend(t, l, group(i+1, 1, 100)...)
	}
	size := int64(0)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		info, err := e.Info()
		require.NoError(t, err)
		size += info.Size()
	}
	require.Less(t, size, int64(10<<10))
}

func (w *world) rawSegment(t *testing.T) []byte { return read(t, w.base, firstSegment) }

func TestPrefill_rotation_cuts_to_size(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, "", wal.Options{Prefill: wal.PrefillOn, SegmentBytes: 4096})
		for range 12 {
			w.append(1, 300)
		}
		raw := w.rawSegment(t)
		require.Equal(t, usedOf(raw), len(raw))
		require.Contains(t, string(raw[len(raw)-150:]), `"mark":"sealed"`)
		r, err := wal.VerifyFS(w.base, "log")
		require.NoError(t, err)
		require.Empty(t, r.Torn)
	})
}

// A live segment is JSON Lines to whoever reads it.
func TestPrefill_live_segment_is_JSON_lines(t *testing.T) {
	dir := t.TempDir()
	l, err := wal.Open(dir, wal.Options{Prefill: wal.PrefillOn})
	require.NoError(t, err)
	defer mustClose(t, l)
	for i := range 50 {
		mustAppend(t, l, group(i+1, 1, 100)...)
	}
	path := filepath.Join(dir, filepath.Base(firstSegment))
	raw, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Greater(t, len(raw), usedOf(raw), "it is filled ahead")
	values := 0
	for dec := json.NewDecoder(bytes.NewReader(raw)); dec.More(); values++ {
		var v map[string]any
		require.NoError(t, dec.Decode(&v))
	}
	require.GreaterOrEqual(t, values, 52)
	if jq, err := exec.LookPath("jq"); err == nil {
		out, err := exec.Command(jq, "-c", ".", path).CombinedOutput()
		require.NoError(t, err, "%s", out)
		require.GreaterOrEqual(t, bytes.Count(out, []byte("\n")), values, "the idle log may have marked its end meanwhile")
	}
	r, err := wal.Open(dir, wal.Options{ReadOnly: true})
	require.NoError(t, err)
	defer mustClose(t, r)
	events, err := collect(r, 0)
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(events), 49)
	report, err := wal.Verify(dir)
	require.NoError(t, err)
	require.Empty(t, report.Torn)
}

// F10, F18: a disk that has room for the lines but not for what is to follow them is not full: it is told once, and the
// file grows line by line.
func TestF10_full_while_filling_ahead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var told bytes.Buffer
		w := start(t, "", wal.Options{Prefill: wal.PrefillOn, SegmentBytes: 1 << 20, Logger: slog.New(slog.NewTextHandler(&told, nil))})
		for range 5 {
			w.append(1, 300)
		}
		room := int64(len(w.rawSegment(t)))
		w.fs.SetDisk(room + 700)
		for told.Len() == 0 {
			w.append(1, 300)
			require.Equal(t, acked, w.told[len(w.told)-1].outcome)
		}
		w.append(1, 0)
		require.Equal(t, 1, strings.Count(told.String(), "no room to fill ahead"))
		raw := w.rawSegment(t)
		require.Equal(t, usedOf(raw), len(raw))
		events := len(w.told)
		_, err := w.log.Append(ctx, group(1, 1, 10_000)...)
		require.True(t, errors.Is(err, wal.ErrNoSpace), err)
		w.fs.SetDisk(-1)
		w.append(1, 300)
		wantEvents(t, w.log, events+1)
		mustClose(t, w.log)
	})
}

type rewriter struct {
	wal.FS
	cheaper bool
}

func (r rewriter) RewritesAreCheaper(string) bool { return r.cheaper }

// Auto: where the file system says that it pays, and something is synced.
func TestPrefill_auto(t *testing.T) {
	for _, c := range []struct {
		cheaper bool
		opts    wal.Options
		filled  bool
	}{
		{true, wal.Options{}, true},
		{false, wal.Options{}, false},
		{true, wal.Options{Sync: wal.SyncNever}, false},
		{true, wal.Options{Prefill: wal.PrefillOff}, false},
		{false, wal.Options{Prefill: wal.PrefillOn}, true},
	} {
		synctest.Test(t, func(t *testing.T) {
			disk := crashfs.New()
			c.opts.FS = rewriter{disk, c.cheaper}
			l := mustOpen(t, c.opts)
			for i := range 20 {
				mustAppend(t, l, group(i+1, 1, 300)...)
			}
			raw := read(t, disk, firstSegment)
			require.Equal(t, c.filled, len(raw) > usedOf(raw), "%+v", c)
			mustClose(t, l)
		})
	}
}

// F3: newlines in front of a line are room that was never used, or a hole. Behind the last line they are no damage.
func TestF3_newlines_before_the_end(t *testing.T) {
	references(t, func(t *testing.T, img image, events []wal.Event) {
		refused := 0
		for _, name := range img.Segments() {
			for _, at := range lineStarts(img[name]) {
				damaged := maps.Clone(img)
				damaged[name] = slices.Concat(img[name][:at], []byte("\n\n"), img[name][at:])
				if err := examine(damaged, events); err != nil {
					t.Errorf("newlines at %s:%d: %v", name, at, err)
				}
				if judge(damaged).refused() {
					refused++
				}
			}
			damaged := maps.Clone(img)
			damaged[name] = append(slices.Clone(img[name]), "\n\n\n"...)
			if v, before := judge(damaged), judge(img); v.refused() != before.refused() || v.Last != before.Last {
				t.Errorf("newlines at the end of %s: %v", name, v)
			}
			if err := examine(damaged, events); err != nil {
				t.Errorf("newlines at the end of %s: %v", name, err)
			}
		}
		if refused == 0 {
			t.Error("nothing was refused")
		}
	})
}
