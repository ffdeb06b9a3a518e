package wal_test

import (
	"encoding/json"
	"fmt"
	"iter"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/recovery/crashtest"
	"github.com/jobwal/jobwal/wal"
)

// Viewpoint: whatever lies in the files, Chain says what At says, one event after the other.

// byAt walks as Chain does, and knows nothing of it.
func byAt(l *wal.Log, seq uint64) (events []wal.Event, err error) {
	for seq != 0 {
		e, err := l.At(seq)
		if err != nil {
			return events, err
		}
		events = append(events, e)
		if e.Prev >= seq {
			return events, fmt.Errorf("prev %d does not lead back", e.Prev)
		}
		seq = e.Prev
	}
	return events, nil
}

// yielded collects what an iterator yields; behind an error there must be nothing.
func yielded(t require.TestingT, it iter.Seq2[wal.Event, error]) (events []wal.Event, err error) {
	for e, got := range it {
		require.NoError(t, err, "something is behind the error")
		if err = got; err == nil {
			events = append(events, e)
		}
	}
	return events, err
}

// sameAsAt holds Chain from everywhere against At, with first blocks of any size.
func sameAsAt(t *rapid.T, l *wal.Log, tried map[string]int) {
	for seq := range l.LastSeq() + 2 {
		want, wantErr := byAt(l, seq)
		first := rapid.Int64Range(1, 40<<10).Draw(t, "first")
		got, err := yielded(t, l.ChainFrom(seq, first))
		require.Equal(t, want, got, "from seq %d", seq)
		switch {
		case wantErr == nil:
			require.NoError(t, err, "from seq %d", seq)
			tried["whole"]++
		case strings.Contains(wantErr.Error(), "does not lead back"):
			require.ErrorIs(t, err, wal.ErrCorrupt)
			require.ErrorContains(t, err, wantErr.Error())
			tried["does not lead back"]++
		default:
			require.EqualError(t, err, wantErr.Error(), "from seq %d", seq)
			require.IsType(t, wantErr, err)
			tried[strings.SplitN(fmt.Sprintf("%T", wantErr), ".", 2)[1]]++
		}
	}
}

// jobsOf appends groups of a few jobs' events, most of them with the right Prev.
func jobsOf(t *rapid.T, l *wal.Log, groups int, heads map[string]uint64) {
	large := rapid.SampledFrom([]int{0, 1, 20}).Draw(t, "large") // of a hundred
	for range groups {
		var events []wal.Event
		prevs := make(map[string]uint64)
		for range rapid.IntRange(1, 8).Draw(t, "of") {
			e := wal.Event{Type: wal.JobStep, JobID: fmt.Sprintf("job-%d", rapid.IntRange(0, 4).Draw(t, "job")), Capability: "shell"}
			size := rapid.IntRange(0, 300).Draw(t, "size")
			if rapid.IntRange(0, 99).Draw(t, "is large") < large {
				size *= 30
			}
			e.Output = json.RawMessage(`"` + strings.Repeat("x", size) + `"`)
			if _, later := prevs[e.JobID]; !later {
				e.Prev = heads[e.JobID]
				if rapid.IntRange(0, 49).Draw(t, "wrong") == 0 {
					e.Prev = rapid.Uint64Range(0, l.LastSeq()).Draw(t, "prev")
				}
			}
			prevs[e.JobID] = uint64(len(events))
			events = append(events, e)
		}
		first, err := l.Append(ctx, events...)
		require.NoError(t, err)
		for id, i := range prevs {
			heads[id] = first + i
		}
	}
}

// harm does something to a file: any byte may go, and a line may be another, with a checksum that is right, but not of
// another seq: whether a line out of its order is found depends on where one looks, for At as for Chain.
func harm(t *rapid.T, r *ramFS) {
	name := rapid.SampledFrom(names(r.image())).Draw(t, "file")
	r.mu.Lock()
	defer r.mu.Unlock()
	node := r.files[path.Join("log", name)]
	b := slices.Clone(node.bytes)
	if len(b) == 0 {
		return
	}
	at := rapid.IntRange(0, len(b)-1).Draw(t, "at")
	part := b[at:min(len(b), at+rapid.IntRange(1, 700).Draw(t, "bytes"))]
	switch rapid.SampledFrom([]string{"flip", "zeros", "newlines", "cut", "copied", "prev", "spaced"}).Draw(t, "harm") {
	case "flip":
		b[at] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
	case "zeros":
		clear(part)
	case "newlines":
		copy(part, strings.Repeat("\n", len(part)))
	case "cut":
		b = b[:at]
	case "copied":
		copy(part, b[rapid.IntRange(0, at).Draw(t, "from"):])
	case "prev":
		b = rewritten(b, at, func(body string) string {
			return strings.Replace(body, `"prev":`, `"prev":`+fmt.Sprint(rapid.IntRange(1, 9).Draw(t, "prev")), 1)
		})
	case "spaced": // valid, and not as the writer spells
		b = rewritten(b, at, func(body string) string { return strings.Replace(body, `{"seq":`, `{ "seq":`, 1) })
	}
	node.bytes = b
}

func names(img image) (list []string) {
	for name := range img {
		if strings.HasSuffix(name, ".jsonl") {
			list = append(list, name)
		}
	}
	slices.Sort(list)
	return list
}

// rewritten changes the line that at lies in, and signs it.
func rewritten(b []byte, at int, edit func(body string) string) []byte {
	text := string(b)
	from := strings.LastIndexByte(text[:at], '\n') + 1
	n := strings.IndexByte(text[from:], '\n')
	if n < 0 || from == 0 || !strings.Contains(text, `"salt":"`) {
		return b
	}
	salt := saltOf(b)
	body, intact := crashtest.Unseal(salt, text[from:from+n])
	if !intact || !strings.HasPrefix(body, `{"seq"`) {
		return b
	}
	return []byte(text[:from] + crashtest.Seal(salt, edit(body)) + text[from+n+1:])
}

// W3, R5: Chain yields what At does, and ends where At does for the same reason: over segments, what compaction kept,
// openings, and whatever befalls the files, whether the places of events are known or not.
func TestChain_is_At_by_Prev(t *testing.T) {
	tried := make(map[string]int)
	rapid.Check(t, func(t *rapid.T) {
		r := ram(nil)
		opts := wal.Options{FS: r, SegmentBytes: rapid.SampledFrom([]int64{wal.MinSegmentBytes, 20 << 10, 1 << 20}).Draw(t, "segment"),
			Prefill: rapid.SampledFrom([]wal.Prefill{wal.PrefillOff, wal.PrefillOn}).Draw(t, "prefill")}
		l, err := wal.Open("log", opts)
		require.NoError(t, err)
		heads := make(map[string]uint64)
		for range rapid.IntRange(1, 3).Draw(t, "lives") {
			jobsOf(t, l, rapid.IntRange(1, 25).Draw(t, "groups"), heads)
			if rapid.IntRange(0, 2).Draw(t, "compact") == 0 {
				keep := rapid.SliceOfDistinct(rapid.SampledFrom([]string{"job-0", "job-1", "job-2", "job-3", "job-4"}), rapid.ID).Draw(t, "keep")
				_, err := l.Compact(ctx, rapid.Uint64Range(1, l.LastSeq()+1).Draw(t, "before"),
					wal.CompactOptions{Keep: func(e wal.Event) bool { return slices.Contains(keep, e.JobID) }})
				require.NoError(t, err)
			}
			killed := ram(r.image())
			require.NoError(t, l.Close())
			if rapid.Bool().Draw(t, "killed") {
				r, opts.FS = killed, killed
			}
			l, err = wal.Open("log", opts)
			require.NoError(t, err)
		}
		if rapid.Bool().Draw(t, "read before") {
			_, err := collect(l, 0)
			require.NoError(t, err)
		}
		for range rapid.IntRange(0, 3).Draw(t, "harms") {
			harm(t, r)
		}
		sameAsAt(t, l, tried)
		require.NoError(t, l.Close())
		_, err = yielded(t, l.Chain(l.LastSeq()))
		require.ErrorIs(t, err, wal.ErrClosed)
	})
	t.Log(tried)
	for _, what := range []string{"whole", "CorruptError", "DroppedError", "InvalidError"} {
		require.NotZero(t, tried[what], what)
	}
}

// A Prev that leads to its own event, or on, would have a walk go round for ever.
func TestChain_ends_where_prev_does_not_lead_back(t *testing.T) {
	for _, prev := range []string{"2", "3", "9"} {
		r := ram(nil)
		l := mustOpen(t, wal.Options{FS: r})
		mustAppend(t, l, event(1, 0, 1, 0))
		e := event(1, 0, 1, 0)
		for e.Prev = 1; e.Prev < 3; {
			e.Prev = mustAppend(t, l, e)
		}
		node := r.files["log/00000000000000000001.jsonl"]
		at := strings.Index(string(node.bytes), `{"seq":2,`)
		node.bytes = rewritten(node.bytes, at, func(body string) string { return strings.Replace(body, `"prev":1`, `"prev":`+prev, 1) })
		events, err := yielded(t, l.Chain(3))
		require.Len(t, events, 2, "%v", err)
		var corrupt *wal.CorruptError
		require.ErrorAs(t, err, &corrupt)
		require.Equal(t, wal.CorruptError{Path: "log/00000000000000000001.jsonl", Offset: int64(at), Seq: 2, Reason: "prev " + prev + " does not lead back"}, *corrupt)
		mustClose(t, l)
	}
}

// What goes on in the log between two events of a Chain: nothing that is appended is in it, what is dropped beneath it is
// there or is ErrDropped, and a Close ends it.
func TestChain_while_the_log_goes_on(t *testing.T) {
	l := mustOpen(t, wal.Options{FS: ram(nil), SegmentBytes: wal.MinSegmentBytes})
	e := event(1, 0, 1, 200)
	for range 100 {
		e.Prev = mustAppend(t, l, e)
	}
	want, err := byAt(l, 100)
	require.NoError(t, err)
	seen := uint64(100)
	for e, err := range l.Chain(100) {
		require.NoError(t, err)
		require.Equal(t, want[100-seen], e)
		if e.Seq > 60 {
			mustAppend(t, l, event(2, 0, 1, 200))
		} else if e.Seq == 60 {
			_, err := l.Compact(ctx, 90, wal.CompactOptions{Keep: func(e wal.Event) bool { return e.Seq > 20 }})
			require.NoError(t, err)
			require.Greater(t, l.FirstSeq(), uint64(60))
		}
		clear(e.Args) // it is the caller's
		if seen--; seen == 30 {
			break
		}
	}
	require.EqualValues(t, 30, seen)

	n := 0
	for _, err := range l.Chain(100) {
		if n++; n <= 80 {
			require.NoError(t, err)
			continue
		}
		require.ErrorIs(t, err, wal.ErrDropped)
	}
	require.Equal(t, 81, n)

	n = 0
	for _, err := range l.Chain(100) {
		if n++; n == 3 {
			require.NoError(t, err)
			mustClose(t, l)
		}
		if n > 3 {
			require.ErrorIs(t, err, wal.ErrClosed)
		}
	}
	require.Equal(t, 4, n)
}
