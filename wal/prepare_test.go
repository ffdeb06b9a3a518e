package wal

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What Prepare returns is what a log gives back, but for what only the log knows.
func TestPrepare_is_what_comes_back_from_a_log(t *testing.T) {
	noon := time.Date(2026, 1, 2, 12, 0, 0, 5, time.FixedZone("", 3600))
	opts := Options{Now: func() time.Time { return noon }}
	given := []Event{
		{Type: JobSubmitted, JobID: "a", Capability: "shell", Args: json.RawMessage(` { "n" : 1.50, "t":"\u0041<" } `)},
		{Type: JobFailed, JobID: "a", Prev: 9, Error: "no\n", Time: noon.Add(time.Hour)},
		{Type: "note", Output: json.RawMessage("null")},
	}
	before := slices.Clone(given)
	prepared, err := Prepare(opts, given...)
	require.NoError(t, err)
	require.Equal(t, before, given)
	require.JSONEq(t, string(given[0].Args), string(prepared[0].Args))
	require.Equal(t, uint64(9), prepared[1].Prev)

	l, err := Open(t.TempDir(), opts)
	require.NoError(t, err)
	_, err = l.Append(context.Background(), given...)
	require.NoError(t, err)
	stored, err := l.Tail(3)
	require.NoError(t, err)
	for i := range stored {
		stored[i].Seq, stored[i].Epoch, stored[i].Prev = 0, 0, prepared[i].Prev
	}
	require.Equal(t, prepared, stored)
	require.NoError(t, l.Close())
}

// It refuses what Append refuses, with the same words.
func TestPrepare_refuses_what_Append_refuses(t *testing.T) {
	opts := Options{MaxEventBytes: 1000}
	l, err := Open(t.TempDir(), opts)
	require.NoError(t, err)
	good := Event{Type: JobSubmitted, JobID: "a"}
	for name, events := range map[string][]Event{
		"none":      {},
		"type":      {{JobID: "a"}},
		"job":       {good, {Type: JobStarted}},
		"payload":   {{Type: JobSubmitted, JobID: "a", Args: json.RawMessage("{]")}},
		"too large": {good, {Type: JobFailed, JobID: "a", Error: strings.Repeat("x", 1000)}},
	} {
		_, want := l.Append(context.Background(), events...)
		require.Error(t, want, name)
		prepared, err := Prepare(opts, events...)
		require.Equal(t, want, err, name)
		require.Empty(t, prepared, name)
	}
	_, err = Prepare(Options{MaxEventBytes: 1}, good)
	require.ErrorIs(t, err, ErrInvalid)
	require.Zero(t, l.LastSeq())
	require.NoError(t, l.Close())
}

// What it returns holds on to nothing else: one event had the room of the 4,000 that had been appended before.
func TestPrepare_returns_no_more_than_its_events(t *testing.T) {
	large := make([]Event, 4000)
	for i := range large {
		large[i] = Event{Type: "note"}
	}
	l, err := Open(t.TempDir(), Options{})
	require.NoError(t, err)
	for range 10 { // the pool may lose some
		_, err := l.Append(context.Background(), large...)
		require.NoError(t, err)
		prepared, err := Prepare(Options{}, large[0])
		require.NoError(t, err)
		require.LessOrEqual(t, cap(prepared), 4)
	}
	require.NoError(t, l.Close())
}
