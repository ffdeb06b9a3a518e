package wal

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// The window is the newest events, in order, as many as its bytes allow, whatever their sizes; and holds on to no other.
func TestWindow(t *testing.T) {
	text := strings.Repeat("x", windowBytes)
	rapid.Check(t, func(t *rapid.T) {
		var w window
		var all []Event
		seq := rapid.Uint64Range(1, 1<<40).Draw(t, "first")
		first := seq
		sizes := rapid.SampledFrom([]int{0, 1, 100, 50_000, windowBytes / 3, windowBytes})
		for range rapid.IntRange(1, 12).Draw(t, "appends") {
			var group []Event
			for range rapid.SampledFrom([]int{1, 1, 2, 63, 64, 65, 300}).Draw(t, "events") {
				group = append(group, Event{Seq: seq, Error: text[:sizes.Draw(t, "size")]})
				seq++
			}
			all = append(all, group...)
			w.add(group)
			clear(group) // they are the caller's again

			held, bytes := 0, int64(0)
			for i := len(all) - 1; i >= 0 && bytes+weight(&all[i]) <= windowBytes; i-- {
				held, bytes = held+1, bytes+weight(&all[i])
			}
			if w.bytes != bytes || w.next-w.first != uint64(held) {
				t.Fatalf("%d events of %d bytes are held, not %d of %d", w.next-w.first, w.bytes, held, bytes)
			}
			there := 0
			for _, e := range w.ring {
				if e.Seq != 0 {
					there++
				}
			}
			if there != held || len(w.ring) > max(64, 2*windowBytes/eventBytes) {
				t.Fatalf("the ring has %d places, and holds on to %d events instead of %d", len(w.ring), there, held)
			}
			from := rapid.Uint64Range(first-1, seq+1).Draw(t, "from")
			room := make([]Event, 0, rapid.IntRange(1, 100).Draw(t, "room"))
			var want []Event
			if from >= seq-uint64(held) && from < seq {
				rest := all[from-first:]
				want = rest[:min(len(rest), cap(room))]
			}
			same := func(a, b Event) bool { return a.Seq == b.Seq && len(a.Error) == len(b.Error) }
			if got := w.from(from, room); !slices.EqualFunc(got, want, same) {
				t.Fatalf("%d events from %d on, not %d", len(got), from, len(want))
			}
		}
	})
}

// What it holds on to is no more than what it counts. Payloads took what they had been with their white space, and those of
// each small group 4 KiB: 100 MB and 30 MB of a window of 4.
func TestWindow_holds_what_it_counts(t *testing.T) {
	one, spaced := json.RawMessage("1"), json.RawMessage("["+strings.Repeat(" ", 200_000)+"]")
	for name, group := range map[string][]Event{
		"white space":  {{Type: "note", Args: spaced}},
		"in a group":   {{Type: "note", Args: spaced}, {Type: "note", Output: spaced}},
		"small groups": {{Type: "note", Args: one}, {Type: "note", Output: one}},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := Open(t.TempDir(), Options{Sync: SyncNever})
			require.NoError(t, err)
			before := liveHeap()
			for appended := 0; appended < 100<<20; { // bytes that were held
				_, err := l.Append(context.Background(), group...)
				require.NoError(t, err)
				appended += 8 << 10
				for i := range group {
					appended += len(group[i].Args) + len(group[i].Output)
				}
			}
			after := liveHeap()
			t.Logf("%d KiB", (int64(after)-int64(before))>>10)
			require.Less(t, after, before+2*windowBytes)
			require.NoError(t, l.Close())
		})
	}
}
