package crashtest

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/wal"
)

// forgettingAt is a log with a jobs_forgotten event behind it.
func forgettingAt(log []wal.Event, before time.Time, ids ...string) []wal.Event {
	e := projection.Forgotten{Before: before, Jobs: ids}.Event()
	e.Seq, e.Epoch, e.Time = log[len(log)-1].Seq+1, log[len(log)-1].Epoch, before
	return append(log, e)
}

// without leaves out the events with these seqs.
func without(log []wal.Event, seqs ...uint64) []wal.Event {
	return slices.DeleteFunc(slices.Clone(log), func(e wal.Event) bool { return slices.Contains(seqs, e.Seq) })
}

// R5: what is forgotten, and what is gone, by hand: beside each thing that is right stands what is not.
func TestR5_check_of_forgotten_jobs(t *testing.T) {
	a, b, fa, fb := submit("a"), submit("b"), fail("a"), fail("b")
	at := time.Unix(1_700_000_000, 0).UTC()
	// 1 a, 2 b, 3 a fails, 4 forgets a, 5 b validated, 6 b fails.
	told := func(h *History) {
		h.Begin(a, b).OK(1)
		h.Begin(fa).OK(3)
		h.Compacts()
		h.Begin(validate("b")).OK(5)
		h.Begin(fb).OK(6)
	}
	var ref Reference
	for _, s := range []Step{a, b, fa} {
		ref.Append(1, s)
	}
	whole := forgettingAt(ref.Events(), at, "a")
	require.NoError(t, ref.Take(whole[3]))
	ref.Append(1, validate("b"))
	ref.Append(1, fb)
	whole = ref.Events()
	require.Len(t, whole, 6)
	late := whole[2]
	late.Time = at
	unasked := func(h *History) { h.Begin(a).OK(1); h.Begin(fa).OK(2) }
	asked := func(h *History) { unasked(h); h.Compacts() }
	broken := forgettingAt(logOf(a, fa), at, "a")
	broken[2].Args = []byte(`{"before":1}`)
	for _, tt := range []struct {
		name string
		tell func(h *History)
		log  []wal.Event
		want Rule
	}{
		{"forgotten", told, whole, ""},
		{"nobody asked for it", unasked, forgettingAt(logOf(a, fa), at, "a"), RuleAsked},
		{"forgotten and asked for", asked, forgettingAt(logOf(a, fa), at, "a"), ""},
		{"not finished", func(h *History) { h.Begin(a).OK(1); h.Compacts() }, forgettingAt(logOf(a), at, "a"), RuleForgotten},
		{"not there", asked, forgettingAt(logOf(a, fa), at, "a", "b"), RuleForgotten},
		{"ended at the cut-off", told, slices.Concat(whole[:2], []wal.Event{late}, whole[3:]), RuleForgotten},
		{"not to be read", asked, broken, RuleForgotten},
		{"in the middle of a group", func(h *History) { h.Begin(a, fa, b).OK(1); h.Compacts() }, forgettingAt(logOf(a, fa), at, "a"), RuleAcknowledged},
		{"in the middle of an unknown group", func(h *History) { h.Begin(a, fa, b); h.Compacts() }, forgettingAt(logOf(a, fa), at, "a"), RuleWhole},
		{"used again", func(h *History) { asked(h); h.Begin(a).OK(4) }, another(forgettingAt(logOf(a, fa), at, "a"), a), ""},
		{"goes on though forgotten", func(h *History) { asked(h); h.Begin(Step{Type: wal.JobRolledBack, JobID: "a"}).OK(4) },
			prev(another(forgettingAt(logOf(a, fa), at, "a"), Step{Type: wal.JobRolledBack, JobID: "a"}), 3, 2), RulePrev},

		{"compacted", told, without(whole, 1, 3, 4), ""},
		{"compacted, and forgotten further on", told, without(whole, 1), ""},
		{"compacted in silence", func(h *History) { h.Begin(a, b).OK(1); h.Begin(fa).OK(3) }, without(whole[:3], 1), RuleAcknowledged},
		{"the beginning of a remembered job", told, without(whole, 1, 2, 3, 4), RuleForgotten},
		{"the end of a remembered job", told, without(whole, 1, 3, 4, 5), RulePrev},
		{"a job that never ended", func(h *History) { h.Begin(a).OK(1); h.Begin(b).OK(2); h.Compacts() }, without(logOf(a, b), 1), RuleForgotten},
		{"all of it", func(h *History) { told(h) }, nil, RuleAcknowledged},
		{"something else below", told, reargued(without(whole, 1, 3, 4)), RuleAcknowledged},
		{"nobody asked for what is below", func(h *History) { h.Compacts(); h.Begin(validate("b")).OK(5); h.Begin(fb).OK(6) },
			without(whole, 1, 3, 4), RuleAsked},
		{"shown, and gone by right", func(h *History) { told(h); h.Saw(whole[0]); h.Saw(whole[3]) }, without(whole, 1, 3, 4), ""},
		{"shown, and another now", func(h *History) { told(h); h.Saw(logOf(b, b)[0]); e := whole[1]; e.Epoch = 9; h.Saw(e) },
			without(whole, 1, 3, 4), RuleShown},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var h History
			tt.tell(&h)
			require.Equal(t, tt.want, judge(t, &h, tt.log), "%v", Check(&h, yields(tt.log)))
			require.Equal(t, tt.want, judge(t, reread(t, &h), tt.log), "read from a file")
		})
	}
}

// another is a log with one more event, of a job that begins with it.
func another(log []wal.Event, s Step) []wal.Event {
	e := s.Event()
	e.Seq, e.Epoch = log[len(log)-1].Seq+1, log[len(log)-1].Epoch
	return append(log, e)
}

func reargued(log []wal.Event) []wal.Event {
	log[0].Args = []byte(`{"n":2}`)
	return log
}

// The reference forgets what a log says, and nothing else; what it is is what its events since then are.
func TestReferenceForgets(t *testing.T) {
	at := time.Unix(1_700_000_000, 0).UTC()
	var ref Reference
	ref.Append(1, submit("a"), submit("b"), fail("b"), submit("c"))
	for _, id := range []string{"a", "never"} {
		require.ErrorContains(t, ref.Take(forgettingAt(ref.Events(), at, id)[4]), "forgets job")
	}
	require.NoError(t, ref.Take(forgettingAt(ref.Events(), at, "b")[4]))
	require.Equal(t, []string{"a", "c"}, ref.Jobs())
	require.Equal(t, []any{"", uint64(5), true, false}, []any{ref.State("b"), ref.Last(), ref.Refuses("b"), ref.Refuses("a")})
	require.Empty(t, ref.History("b"))
	require.False(t, ref.Legal(submit("b")))
	copied := ref.Clone()

	released := projection.Forgotten{Before: at, IDsBefore: at.Add(time.Second), Jobs: []string{"c"}}.Event()
	ref.Append(1, fail("c"))
	released.Seq, released.Epoch, released.Time = 7, 1, at.Add(time.Minute)
	require.NoError(t, ref.Take(released))
	require.False(t, ref.Refuses("b"))
	require.True(t, ref.Append(1, submit("b")))
	require.Len(t, ref.History("b"), 1)
	require.Equal(t, uint64(8), ref.History("b")[0].Seq)
	require.Equal(t, []string{"a", "b"}, ref.Jobs())
	require.True(t, copied.Refuses("b"), "a copy is its own")
	require.Equal(t, "[a c]", fmt.Sprint(copied.Jobs()))
}
