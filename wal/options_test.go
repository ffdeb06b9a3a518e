package wal

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestOptions_zero_value_is_the_safest(t *testing.T) {
	o, err := Options{}.withDefaults()
	require.NoError(t, err)
	require.Equal(t, SyncAlways, o.Sync)
	require.Equal(t, int64(64<<20), o.SegmentBytes)
	require.Equal(t, 32<<20, o.MaxEventBytes)
	require.Zero(t, o.MinSeq)
	require.False(t, o.ReadOnly)
	require.Equal(t, OS, o.FS)
	require.NotNil(t, o.Logger)
	require.WithinDuration(t, time.Now(), o.Now(), time.Minute)
}

func TestOptions_refused(t *testing.T) {
	for field, bad := range map[string][]Options{
		"Options.SegmentBytes":  {{SegmentBytes: -1}, {SegmentBytes: MinSegmentBytes - 1}},
		"Options.MaxEventBytes": {{MaxEventBytes: -1}, {MaxEventBytes: 255}, {MaxEventBytes: MaxLineBytes - 255}},
		"Options.Sync":          {{Sync: -2}, {Sync: Sync(-time.Second)}},
	} {
		for _, opts := range bad {
			dir := filepath.Join(t.TempDir(), "log")
			_, err := Open(dir, opts)
			var invalid *InvalidError
			require.ErrorAs(t, err, &invalid)
			require.ErrorIs(t, err, ErrInvalid)
			require.Equal(t, field, invalid.Field)
			require.NoDirExists(t, dir)
		}
	}
	for _, good := range []Options{{SegmentBytes: MinSegmentBytes}, {MaxEventBytes: 256}, {MaxEventBytes: MaxLineBytes - 256}, {Sync: SyncNever},
		{Sync: SyncEvery(time.Nanosecond)}} {
		_, err := good.withDefaults()
		require.NoError(t, err)
	}
}

func TestSyncEvery_of_nothing_is_SyncAlways(t *testing.T) {
	require.Equal(t, SyncAlways, SyncEvery(0))
	require.Equal(t, SyncAlways, SyncEvery(-time.Second))
	require.Equal(t, Sync(time.Second), SyncEvery(time.Second))
}

// --- the door: what Append refuses, by field, and that nothing was written

var (
	fine     = Event{Type: JobSubmitted, JobID: "j", Args: json.RawMessage(`{}`)}
	tooLong  = strings.Repeat("é", 129) // 258 bytes
	justFits = strings.Repeat("é", 128)
)

func with(change func(*Event)) Event {
	e := fine
	change(&e)
	return e
}

var refused = []struct {
	name, field, reason string
	event               Event
}{
	{"no type", "Type", "empty", with(func(e *Event) { e.Type = "" })},
	{"type too long", "Type", "258 bytes, the most is 256", with(func(e *Event) { e.Type = EventType(tooLong) })},
	{"type of bad UTF-8", "Type", "UTF-8", with(func(e *Event) { e.Type = "a\xff" })},
	{"type with a control character", "Type", "U+000A", with(func(e *Event) { e.Type = "a\n" })},
	{"no job", "JobID", "empty; job_submitted is about a job", with(func(e *Event) { e.JobID = "" })},
	{"job too long", "JobID", "258 bytes, the most is 256", with(func(e *Event) { e.JobID = tooLong })},
	{"job of bad UTF-8", "JobID", "UTF-8", with(func(e *Event) { e.JobID = "\xed\xa0\x80" })},
	{"job with a NUL", "JobID", "U+0000", with(func(e *Event) { e.JobID = "a\x00b" })},
	{"job with a DEL", "JobID", "U+007F", with(func(e *Event) { e.JobID = "\x7f" })},
	{"job with a C1 control character", "JobID", "U+0085", with(func(e *Event) { e.JobID = "\u0085" })},
	{"capability too long", "Capability", "258 bytes, the most is 256", with(func(e *Event) { e.Capability = tooLong })},
	{"capability of bad UTF-8", "Capability", "UTF-8", with(func(e *Event) { e.Capability = "\xc0\xaf" })},
	{"capability with a tab", "Capability", "U+0009", with(func(e *Event) { e.Capability = "a\tb" })},
	{"error of bad UTF-8", "Error", "UTF-8", with(func(e *Event) { e.Error = "cut \xc3" })},
	{"time before 1970", "Time", "years 1970 to 9999", with(func(e *Event) { e.Time = time.Unix(-1, 0) })},
	{"time in the year 1", "Time", "years 1970 to 9999", with(func(e *Event) { e.Time = time.Time{}.Add(1) })},
	{"time in the year 10000", "Time", "years 1970 to 9999", with(func(e *Event) { e.Time = time.Unix(maxUnix+1, 0) })},
	{"args that are no JSON", "Args", "not strict JSON", with(func(e *Event) { e.Args = json.RawMessage(`{`) })},
	{"args of white space only", "Args", "unexpected end", with(func(e *Event) { e.Args = json.RawMessage(" ") })},
	{"args with duplicate names", "Args", "duplicate name", with(func(e *Event) { e.Args = json.RawMessage(`{"a":1,"a":2}`) })},
	{"args with a raw NUL", "Args", "control character", with(func(e *Event) { e.Args = json.RawMessage("\"\x00\"") })},
	{"args with a lone surrogate", "Args", "surrogate", with(func(e *Event) { e.Args = json.RawMessage(`"\ud800"`) })},
	{"args with 1e400", "Args", "range of a double", with(func(e *Event) { e.Args = json.RawMessage(`[1e400]`) })},
	{"args 101 deep", "Args", "deeper than 100", with(func(e *Event) { e.Args = json.RawMessage(nested("[", "]", 101)) })},
	{"two values as args", "Args", "something follows", with(func(e *Event) { e.Args = json.RawMessage("1\n2") })},
	{"output that is no JSON", "Output", "not strict JSON", with(func(e *Event) { e.Output = json.RawMessage(`nul`) })},
	{"output of bad UTF-8", "Output", "UTF-8", with(func(e *Event) { e.Output = json.RawMessage("\"\xff\"") })},
	{"a prev that is not there yet", "Prev", "3; the log ends at seq 2", with(func(e *Event) { e.Prev, e.JobID = 3, "another" })},
	{"a prev without a job", "Prev", "without a job", Event{Type: "note", Prev: 1}},
	{"an event read with a problem", "Problem", "must not be written again", with(func(e *Event) { e.Problem = "x" })},
}

func TestAppend_refuses_at_the_door(t *testing.T) {
	dir := t.TempDir()
	log, err := Open(dir, Options{})
	require.NoError(t, err)
	defer log.Close()
	ctx := context.Background()
	_, err = log.Append(ctx, fine, fine)
	require.NoError(t, err)
	for _, c := range refused {
		t.Run(c.name, func(t *testing.T) {
			for n, events := range [][]Event{{c.event}, {fine, c.event, fine}} {
				_, err := log.Append(ctx, events...)
				require.ErrorIs(t, err, ErrInvalid)
				var invalid *InvalidError
				require.ErrorAs(t, err, &invalid)
				require.Equal(t, []string{"", "event 1 "}[n]+c.field, invalid.Field)
				require.Contains(t, invalid.Reason, c.reason)
			}
		})
	}
	t.Run("no events", func(t *testing.T) {
		_, err := log.Append(ctx)
		require.ErrorIs(t, err, ErrInvalid)
	})
	t.Run("a nil context", func(t *testing.T) {
		var none context.Context
		_, err := log.Append(none, fine)
		var invalid *InvalidError
		require.ErrorAs(t, err, &invalid)
		require.Equal(t, "context", invalid.Field)
	})
	t.Run("a cancelled context", func(t *testing.T) {
		cancelled, cancel := context.WithCancel(ctx)
		cancel()
		_, err := log.Append(cancelled, fine)
		require.ErrorIs(t, err, context.Canceled)
	})
	t.Run("more events than a group takes", func(t *testing.T) {
		_, err := log.Append(ctx, make([]Event, maxGroup+1)...)
		require.ErrorIs(t, err, ErrTooLarge)
	})
	require.Equal(t, uint64(2), log.LastSeq(), "nothing of it was written")
	first, err := log.Append(ctx, fine)
	require.NoError(t, err)
	require.Equal(t, uint64(3), first)
}

func TestAppend_refuses_what_is_too_large(t *testing.T) {
	log, err := Open(t.TempDir(), Options{MaxEventBytes: 1000})
	require.NoError(t, err)
	defer log.Close()
	for name, change := range map[string]func(e *Event, n int){
		"args":                               func(e *Event, n int) { e.Args = json.RawMessage(`"` + strings.Repeat("x", n) + `"`) },
		"output":                             func(e *Event, n int) { e.Output = json.RawMessage(`"` + strings.Repeat("x", n) + `"`) },
		"error":                              func(e *Event, n int) { e.Error = strings.Repeat("x", n) },
		"error that grows when it is quoted": func(e *Event, n int) { e.Error = strings.Repeat("\x00", n/6) },
	} {
		for _, n := range []int{1001, 100_000} {
			e := fine
			change(&e, n)
			_, err := log.Append(context.Background(), e)
			var large *TooLargeError
			require.ErrorAs(t, err, &large, name)
			require.ErrorIs(t, err, ErrTooLarge)
			require.Equal(t, "event", large.What)
			require.Equal(t, int64(1000), large.Limit)
			require.Greater(t, large.Size, large.Limit)
			_, err = log.Append(context.Background(), fine, fine, e)
			require.ErrorAs(t, err, &large, name)
			require.Equal(t, "event 2", large.What)
		}
		e := fine
		change(&e, 600)
		_, err := log.Append(context.Background(), e)
		require.NoError(t, err, name)
	}
}

func TestAppend_refuses_a_group_that_is_too_large(t *testing.T) {
	log, err := Open(t.TempDir(), Options{})
	require.NoError(t, err)
	defer log.Close()
	large := Event{Type: JobFailed, JobID: "j", Error: strings.Repeat("x", 23<<20)}
	_, err = log.Append(context.Background(), large, large, large)
	var tooLarge *TooLargeError
	require.ErrorAs(t, err, &tooLarge)
	require.Equal(t, "append", tooLarge.What)
	require.Equal(t, int64(MaxLineBytes), tooLarge.Limit)
	require.Zero(t, log.LastSeq())
}

func TestDoor_lets_the_extremes_in(t *testing.T) {
	for name, e := range map[string]Event{
		"longest names":                {Type: EventType(justFits), JobID: justFits, Capability: justFits},
		"error with every control":     {Type: JobFailed, JobID: "j", Error: "\x00\x01\n\r\t\x1f\x7f\u0085"},
		"first second":                 {Type: JobFailed, JobID: "j", Time: time.Unix(0, 0)},
		"last nanosecond":              {Type: JobFailed, JobID: "j", Time: time.Unix(maxUnix, 999_999_999)},
		"in another zone":              {Type: JobFailed, JobID: "j", Time: time.Unix(1, 2).In(time.FixedZone("x", 3600))},
		"without a job":                {Type: "jobs_forgotten"},
		"100 deep":                     {Type: JobFailed, JobID: "j", Args: json.RawMessage(nested("[", "]", 100)), Output: json.RawMessage(nested("[", "]", 100))},
		"null payloads":                {Type: JobFailed, JobID: "j", Args: json.RawMessage("null"), Output: json.RawMessage(" null\n")},
		"empty payloads are none":      {Type: JobFailed, JobID: "j", Args: json.RawMessage{}, Output: json.RawMessage("")},
		"names that JSON has to quote": {Type: `"\`, JobID: `{"seq":1}`, Capability: "<>&\u2028"},
	} {
		given := e
		got, err := newDoor().check(e, time.Now)
		require.NoError(t, err, name)
		require.Equal(t, given, e, "the caller's is not changed")
		if e.Time.IsZero() {
			e.Time = got.Time
		}
		if len(e.Args)+len(e.Output) == 0 {
			e.Args, e.Output = nil, nil
		}
		got.Seq = 1
		e.Seq = 1
		line := canonicalLine(got, 0, 0, testSeed)
		back, err := read(line[:len(line)-1], testSeed)
		require.NoError(t, err, name)
		require.Equal(t, stands(t, e), back.Event, name)
	}
}

// Whatever passes the door reads back as it was given, and nothing but what is documented is refused.
func TestDoor_refuses_or_keeps(t *testing.T) {
	hostile := []string{"", "a", "\x00", "\x1f", "\x7f", "\u0085", "\xff", "\xed\xa0\x80", "\n", `"`, "é", justFits, tooLong}
	payloads := []string{"", " ", "{}", `{"a":1,"a":2}`, `{"a":1,"A":2}`, "1e400", "nul", "\"\xff\"", `"\ud800"`, "[1 , 2]", nested("[", "]", 101)}
	rapid.Check(t, func(rt *rapid.T) {
		draw := func(from []string, label string) string { return rapid.SampledFrom(from).Draw(rt, label) }
		e := Event{
			Seq: 1, Type: EventType(draw(hostile, "type")), JobID: draw(hostile, "job"), Capability: draw(hostile, "capability"), Error: draw(hostile, "error"),
			Args: json.RawMessage(draw(payloads, "args")), Output: json.RawMessage(draw(payloads, "output")),
			Time: time.Unix(rapid.SampledFrom([]int64{-1, 0, maxUnix, maxUnix + 1}).Draw(rt, "sec"), 5),
		}
		checked, err := newDoor().check(e, time.Now)
		if err != nil {
			var invalid *InvalidError
			require.ErrorAs(rt, err, &invalid)
			require.NotEmpty(rt, invalid.Field)
			require.NotEmpty(rt, invalid.Reason)
			return
		}
		line := canonicalLine(checked, 0, 0, testSeed)
		got, err := read(line[:len(line)-1], testSeed)
		require.NoError(rt, err)
		require.Empty(rt, got.Event.Problem)
		if e.Args = stands(t, e).Args; len(e.Args) == 0 {
			e.Args = nil
		}
		if len(e.Output) == 0 {
			e.Output = nil
		}
		require.Equal(rt, stands(t, e), got.Event)
	})
}

// A clock that was never set, or runs wild, is not the caller's fault unless it cannot be stored at all.
func TestDoor_asks_the_clock_for_a_missing_time(t *testing.T) {
	clock := func(at time.Time) func() time.Time { return func() time.Time { return at } }
	e, err := newDoor().check(fine, clock(time.Unix(7, 8).In(time.FixedZone("x", -3600))))
	require.NoError(t, err)
	require.Equal(t, time.Unix(7, 8).UTC(), e.Time)
	e, err = newDoor().check(fine, clock(time.Unix(-5, 0)))
	require.NoError(t, err)
	require.Equal(t, time.Unix(0, 0).UTC(), e.Time)
	e, err = newDoor().check(fine, clock(time.Time{}))
	require.NoError(t, err)
	require.Equal(t, time.Unix(0, 0).UTC(), e.Time)
	_, err = newDoor().check(fine, clock(time.Unix(maxUnix+1, 0)))
	require.ErrorIs(t, err, ErrInvalid)
	e, err = newDoor().check(fine, time.Now)
	require.NoError(t, err)
	require.Equal(t, e.Time, e.Time.Round(0), "no monotonic reading")
}

// The caller's slices stay the caller's, and payloads are compact, in memory as on disk.
func TestAppend_takes_copies(t *testing.T) {
	dir := t.TempDir()
	log, err := Open(dir, Options{})
	require.NoError(t, err)
	args := json.RawMessage(`{ "n" : 12345678901234567890123456 , "html" : "<&>" }`)
	given := []Event{{Type: JobSubmitted, JobID: "j", Args: args, Time: time.Unix(1, 0)}, {Type: JobStarted, JobID: "j", Time: time.Unix(1, 0)}}
	_, err = log.Append(context.Background(), given...)
	require.NoError(t, err)
	require.Equal(t, []Event{{Type: JobSubmitted, JobID: "j", Args: args, Time: time.Unix(1, 0)}, {Type: JobStarted, JobID: "j", Time: time.Unix(1, 0)}}, given)
	copy(args, strings.Repeat("X", len(args)))
	want := `{"n":12345678901234567890123456,"html":"<&>"}`
	got, err := log.At(1)
	require.NoError(t, err)
	require.Equal(t, want, string(got.Args))
	for e, err := range log.Follow(context.Background(), 1) { // from memory
		require.NoError(t, err)
		require.Equal(t, want, string(e.Args))
		break
	}
	got, err = log.At(2)
	require.NoError(t, err)
	require.Equal(t, uint64(1), got.Prev, "set within one append")
	require.NoError(t, log.Close())
	file, err := os.ReadFile(filepath.Join(dir, segmentName(1)))
	require.NoError(t, err)
	require.Contains(t, string(file), want)
}

func TestErrors_name_their_kind(t *testing.T) {
	for _, c := range []struct {
		err, kind error
		text      string
	}{
		{&CorruptError{Path: "/d/00000000000000000001.jsonl", Offset: 311, Seq: 7, Reason: "checksum mismatch"}, ErrCorrupt,
			"wal: 00000000000000000001.jsonl: offset 311 (seq 7): checksum mismatch; wal.Salvage copies what is intact"},
		{&InvalidError{Field: "JobID", Reason: "empty"}, ErrInvalid, "wal: invalid JobID: empty"},
		{&TooLargeError{What: "event 3", Size: 5, Limit: 4}, ErrTooLarge, "wal: event 3 takes 5 bytes, the limit is 4"},
		{&LockedError{Dir: "/d"}, ErrLocked, "wal: /d: locked by another writer"},
		{&LockedError{Dir: "/d", PID: 12}, ErrLocked, "wal: /d: locked by another writer (pid 12)"},
		{&VersionError{Path: "/d/s.jsonl", Found: 2, Known: 1}, ErrVersion, "wal: s.jsonl: format 2, this version knows 1; use a newer jobwal"},
		{&DroppedError{Seq: 3, First: 9}, ErrDropped, "wal: seq 3 was dropped, the log starts at seq 9"},
		{&NoSpaceError{Path: "/d/s.jsonl", Need: 9, Err: errors.New("full")}, ErrNoSpace, "wal: s.jsonl: no room for 9 bytes: full"},
		{&failure{cause: errors.New("EIO")}, ErrFailed, ErrFailed.Error() + ": EIO"},
		{&failure{cause: errors.New("EIO"), unknown: true}, ErrOutcomeUnknown, ErrFailed.Error() + ": EIO (" + ErrOutcomeUnknown.Error() + ")"},
	} {
		require.ErrorIs(t, c.err, c.kind)
		require.Equal(t, c.text, c.err.Error())
		for _, other := range []error{ErrCorrupt, ErrInvalid, ErrTooLarge, ErrLocked, ErrVersion, ErrDropped, ErrNoSpace, ErrClosed, ErrReadOnly} {
			require.Equal(t, other == c.kind, errors.Is(c.err, other))
		}
	}
	require.ErrorIs(t, &failure{unknown: true}, ErrFailed)
	require.NotErrorIs(t, &failure{}, ErrOutcomeUnknown)
}
