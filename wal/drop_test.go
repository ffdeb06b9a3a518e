package wal

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"
)

// Follow went on yielding what DropBefore had removed as long as it was in memory, where At and Events said ErrDropped.
func TestFollow_of_what_was_dropped_and_is_still_in_memory(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	l, err := Open(t.TempDir(), Options{SegmentBytes: MinSegmentBytes})
	require.NoError(t, err)
	for range 20 {
		_, err = l.Append(ctx, Event{Type: "note"})
		require.NoError(t, err)
	}
	require.NoError(t, l.DropBefore(15))
	first := l.FirstSeq()
	require.Greater(t, first, uint64(1))
	for seq := uint64(1); seq < first; seq++ {
		for e, err := range l.Follow(ctx, seq) {
			require.ErrorIs(t, err, ErrDropped, "yielded seq %d", e.Seq)
		}
	}
	for e, err := range l.Follow(ctx, 0) {
		require.NoError(t, err)
		require.Equal(t, first, e.Seq)
		break
	}
	require.NoError(t, l.Close())
}
