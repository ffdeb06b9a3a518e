package crashtest

import (
	"context"
	"encoding/json"
	"errors"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/wal"
)

// What TestLog asks of Append.
var appendParts = []logPart{
	{"an empty log is empty", testEmpty},
	{"append returns the first seq and seqs are dense", testSeqs},
	{"events come back in order as they were given", testOrder},
	{"groups are all or none", testGroups},
	{"payloads are kept byte for byte", testPayloads},
	{"the caller's events are neither changed nor kept", testCallersEvents},
	{"time is set when zero and kept when given", testTime},
	{"prev of a job's later events in a group is set", testPrevInGroup},
	{"a wrong prev is a conflict and nothing is written", testConflicts},
	{"what is not an event is refused and nothing is written", testInvalid},
	{"what is too large is refused and nothing is written", testTooLarge},
	{"an append of nothing is refused", testNothing},
	{"a context that is done means nothing is written", testDoneContext},
	{"a nil context is refused", testNilContext},
}

func matchesAny(err error, any []error) bool {
	return slices.ContainsFunc(any, func(target error) bool { return errors.Is(err, target) })
}

func testEmpty(t *trial) {
	log := t.open()
	first, last := log.FirstSeq(), log.LastSeq()
	t.check(first > last, "FirstSeq %d and LastSeq %d of an empty log: nothing lies behind the last", first, last)
	t.check(t.may(SparseSeqs) || first == 1 && last == 0, "FirstSeq %d and LastSeq %d of an empty log", first, last)
	for _, from := range []uint64{0, 1, 100} {
		t.same(t.from(log, from), nil, "Events from %d of an empty log", from)
	}
	_, err := log.At(t.ctx, 1)
	t.check(err != nil, "At(1) of an empty log has no error")
	t.check(log.ID() != "", "the log has no ID")
}

func testSeqs(t *trial) {
	log := t.open()
	next := uint64(1)
	for _, n := range []int{1, 1, 3, 2, 100, 1} {
		first := t.append(log, t.group(n)...)
		t.check(first >= next, "Append returned seq %d, but %d is the first that was never used", first, next)
		t.check(first == next || t.may(SparseSeqs), "Append returned seq %d where %d comes next", first, next)
		next = first + uint64(n)
		t.check(log.LastSeq() == next-1, "LastSeq is %d right after an append up to %d", log.LastSeq(), next-1)
		events := t.all(log)
		tail := events[max(0, len(events)-n):]
		for i, e := range tail {
			t.check(e.Seq == first+uint64(i), "event %d of an append of %d at seq %d has seq %d", i, n, first, e.Seq)
		}
		t.check(len(tail) == n, "%d events after an append of %d", len(tail), n)
	}
}

func testOrder(t *trial) {
	log := t.open()
	var want []wal.Event
	for _, n := range []int{2, 1, 5, 1, 1, 30} {
		given := t.group(n)
		first := t.append(log, given...)
		back := t.all(log)
		want = append(want, stored(given, first, log.Epoch(), back[min(len(want), len(back)):])...)
		t.same(back, want, "after an append of %d", n)
	}
}

func testGroups(t *trial) {
	log := t.open()
	t.fill(log)
	bad := wal.Event{Type: wal.JobSubmitted, JobID: t.name(), Args: json.RawMessage(`{"half`)}
	for _, at := range []int{0, 3, 6} {
		group := t.group(7)
		group[at] = bad
		t.refused(log, "a group with a bad event in it", []error{wal.ErrInvalid}, group...)
	}
	given := t.group(250)
	first, before := t.append(log, given...), len(t.all(log))-len(given)
	whole := t.all(log)[before:]
	t.same(whole, stored(given, first, log.Epoch(), whole), "a group of 250")
	log = t.reopen(log)
	t.same(t.all(log)[before:], whole, "a group of 250, in the log opened again")
}

// keptPayloads are what must come back as it went in.
var keptPayloads = map[string]string{
	"null":          `null`,
	"false":         `false`,
	"zero":          `0`,
	"minus zero":    `-0`,
	"25 digits":     `1234567890123456789012345`,
	"exponent":      `1.50E+3`,
	"empty string":  `""`,
	"empty object":  `{}`,
	"empty array":   `[]`,
	"unicode":       `{"Ελλ":"日本語 \u200d 👩‍👩‍👧 é"}`,
	"separators":    "\"\u2028\u2029\ufeff\"",
	"escapes":       `"\u0000\u0041\/\"\\\b\f\n\r\t\ud83d\ude00"`,
	"HTML":          `"<script>&amp;</script>"`,
	"order":         `{"b":1,"a":2,"B":3}`,
	"100 deep":      strings.Repeat("[", 100) + strings.Repeat("]", 100),
	"many":          "[0" + strings.Repeat(",1", 3_000) + "]",
	"huge":          `"` + strings.Repeat("x", 200<<10) + `"`,
	"like a line":   `"{\"seq\":1,\"crc\":\"00000000\"}\n"`,
	"empty key":     `{"":{"":[{}]}}`,
	"digits as key": `{"1e1000":"1e1000"}`,
}

func testPayloads(t *trial) {
	log := t.open()
	long := strings.Repeat("é", 128)
	given := []wal.Event{
		{Type: wal.JobSubmitted, JobID: long, Capability: long},
		{Type: "a type from the future", JobID: "x", Args: json.RawMessage(`1`), Output: json.RawMessage(`2`), Error: "3"},
		{Type: "about_the_log"},
		{Type: "about_the_log", Output: json.RawMessage(`{}`)},
		{Type: wal.JobFailed, JobID: " '\"\\<>&  ", Error: "\x00\t\n\"\\\u2028 <é>  "},
	}
	for _, name := range sortedKeys(keptPayloads) {
		given = append(given,
			wal.Event{Type: wal.JobSubmitted, JobID: "args " + name, Args: json.RawMessage(keptPayloads[name])},
			wal.Event{Type: wal.JobCompleted, JobID: "output " + name, Output: json.RawMessage(keptPayloads[name])})
	}
	first := t.append(log, given...)
	back := t.all(log)
	want := stored(given, first, log.Epoch(), back)
	t.same(back, want, "Events")
	for _, e := range want {
		t.same([]wal.Event{t.at(log, e.Seq)}, []wal.Event{e}, "At")
	}
	f := t.follow(log, first)
	f.until(want[len(want)-1].Seq)
	t.same(f.seen(), want, "Follow")

	spaced := t.submitted()
	spaced.Args = json.RawMessage(" {\r\n\t\"a b\" : [ 1 , \" \" ] } ")
	e := t.at(log, t.append(log, spaced))
	t.check(string(e.Args) == `{"a b":[1," "]}`, "white space between tokens is not kept: got %s", e.Args)
	t.same(t.all(t.reopen(log)), append(want, e), "the log opened again")
}

func testCallersEvents(t *trial) {
	log := t.open()
	live := t.follow(log, 0) // what it is handed may come from memory, before it is read back from anywhere
	given := t.group(10)
	for i := range given {
		given[i].Args = roomy(given[i].Args)
		given[i].Output = roomy(given[i].Output)
		given[i].Seq, given[i].Epoch, given[i].Time = 77, 88, time.Unix(int64(i), 5)
	}
	given[9].Prev = 12345 // of a job's later event: to be set, but not in the caller's own
	before := copies(given)
	first := t.append(log, given...)
	t.same(given, before, "the caller's events after Append")
	want := stored(before, first, log.Epoch(), nil)
	scribble(given)
	clear(given)
	live.until(first + 9)
	t.same(live.seen(), want, "Follow, after the caller wrote over the events")
	t.same(t.all(log), want, "Events, after the caller wrote over the events")
	t.same([]wal.Event{t.at(log, first)}, want[:1], "At, after the caller wrote over the events")
	t.same(t.all(t.reopen(log)), want, "the log opened again")
}

// roomy returns raw with room behind it, where an append by somebody else would show.
func roomy(raw json.RawMessage) json.RawMessage {
	if raw == nil {
		return nil
	}
	return append(make(json.RawMessage, 0, 2*len(raw)), raw...)
}

// scribble writes over all that the events' payloads give access to.
func scribble(events []wal.Event) {
	for _, e := range events {
		for _, raw := range []json.RawMessage{e.Args, e.Output} {
			raw = raw[:cap(raw)]
			for i := range raw {
				raw[i] = '#'
			}
		}
	}
}

func testTime(t *trial) {
	log := t.open()
	started := time.Now()
	e := t.at(log, t.append(log, t.submitted()))
	t.check(!e.Time.IsZero(), "Time was zero and was not set")
	t.check(e.Time.Location() == time.UTC, "Time is in %v, not in UTC", e.Time.Location())
	t.check(e.Time.Sub(started).Abs() < time.Hour, "Time was set to %v; it is %v", e.Time, started)

	given := []time.Time{
		time.Unix(0, 0), time.Unix(1, 999_999_999), time.Date(9999, 12, 31, 23, 59, 59, 999_999_999, time.UTC),
		time.Date(2026, 2, 3, 4, 5, 6, 7, time.FixedZone("", -5*3600)), time.Unix(1, 0), // a clock that went back
	}
	events := make([]wal.Event, len(given))
	for i := range events {
		events[i] = t.submitted()
		events[i].Time = given[i]
	}
	first := t.append(log, events...)
	want := stored(events, first, log.Epoch(), nil)
	t.same(t.from(log, first), want, "times that were given")
	log = t.reopen(log)
	t.same(t.from(log, first), want, "times that were given, in the log opened again")
	t.same([]wal.Event{t.at(log, e.Seq)}, []wal.Event{e}, "the time that was set, in the log opened again")
}

func testPrevInGroup(t *trial) {
	log := t.open()
	a, b := t.submitted(), t.submitted()
	next := func(e wal.Event, typ wal.EventType, prev uint64) wal.Event {
		return wal.Event{Type: typ, JobID: e.JobID, Prev: prev}
	}
	given := []wal.Event{
		a, b, {Type: "about_the_log"}, next(a, wal.JobValidated, 0), next(b, wal.JobFailed, 999),
		{Type: "about_the_log"}, next(a, wal.JobStarted, 1),
	}
	first := t.append(log, given...)
	back := t.all(log)
	t.same(back, stored(given, first, log.Epoch(), back), "two jobs in one group")
	given = []wal.Event{
		next(a, wal.JobCompleted, first+6), next(a, wal.JobRolledBack, 0), next(b, wal.JobRolledBack, first+4),
	}
	more := t.append(log, given...)
	back = t.from(log, more)
	t.same(back, stored(given, more, log.Epoch(), back), "the same jobs in a later group")
}

func testConflicts(t *trial) {
	log := t.open()
	first := t.append(log, t.group(3)...) // one job, three events
	newest := t.at(log, first+2)
	other := t.append(log, t.submitted())
	next := func(prev uint64) wal.Event {
		return wal.Event{Type: wal.JobCompleted, JobID: newest.JobID, Prev: prev}
	}
	unreached := []error{recovery.ErrConflict, wal.ErrInvalid}
	t.refused(log, "a Prev that the log has not reached", unreached, next(log.LastSeq()+1000))
	if !t.may(NoConflicts) {
		conflict := []error{recovery.ErrConflict}
		defer t.hint("a log that leaves this check to its only writer, as recovery.OnDisk does, is tested with crashtest.NoConflicts")
		for what, prev := range map[string]uint64{
			"the first event of a job that has some": 0, "a Prev before the newest": first + 1,
			"a Prev of another job": other,
		} {
			t.refused(log, what, conflict, next(prev))
			t.refused(log, what+", in a group", conflict, t.submitted(), next(prev), t.submitted())
		}
		fresh := t.submitted()
		fresh.Prev = other
		t.refused(log, "a Prev of a job that has no event", conflict, fresh)
	}
	t.append(log, next(newest.Seq))
}

var tooDeep = strings.Repeat("[", 101) + strings.Repeat("]", 101)

// notEvents are what an append must refuse: each is wrong in one way.
var notEvents = map[string]wal.Event{
	"no type":               {JobID: "x"},
	"no job":                {Type: wal.JobStarted},
	"a prev without a job":  {Type: "about_the_log", Prev: 1},
	"bad UTF-8 in job":      {Type: wal.JobSubmitted, JobID: "\xff"},
	"control in job":        {Type: wal.JobSubmitted, JobID: "a\nb"},
	"257 bytes of job":      {Type: wal.JobSubmitted, JobID: strings.Repeat("x", 257)},
	"control in capability": {Type: wal.JobSubmitted, JobID: "x", Capability: "a\x00b"},
	"257 bytes of type":     {Type: wal.EventType(strings.Repeat("x", 257)), JobID: "x"},
	"bad UTF-8 in error":    {Type: wal.JobFailed, JobID: "x", Error: "\xc0\x80"},
	"a problem":             {Type: wal.JobSubmitted, JobID: "x", Problem: "unreadable"},
	"a time before 1970":    {Type: wal.JobSubmitted, JobID: "x", Time: time.Unix(-1, 0)},
	"a time after 9999":     {Type: wal.JobSubmitted, JobID: "x", Time: time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)},
	"half a payload":        {Type: wal.JobSubmitted, JobID: "x", Args: json.RawMessage(`{"a":`)},
	"two payloads":          {Type: wal.JobSubmitted, JobID: "x", Args: json.RawMessage(`1 2`)},
	"blank payload":         {Type: wal.JobSubmitted, JobID: "x", Args: json.RawMessage(` `)},
	"a name twice":          {Type: wal.JobSubmitted, JobID: "x", Args: json.RawMessage(`{"a":1,"\u0061":2}`)},
	"a lone surrogate":      {Type: wal.JobCompleted, JobID: "x", Output: json.RawMessage(`"\ud800"`)},
	"bad UTF-8 in payload":  {Type: wal.JobCompleted, JobID: "x", Output: json.RawMessage("\"\xff\"")},
	"a raw NUL":             {Type: wal.JobCompleted, JobID: "x", Output: json.RawMessage("\"\x00\"")},
	"a number beyond all":   {Type: wal.JobCompleted, JobID: "x", Output: json.RawMessage(`1e400`)},
	"101 deep":              {Type: wal.JobCompleted, JobID: "x", Output: json.RawMessage(tooDeep)},
}

func testInvalid(t *trial) {
	log := t.open()
	t.append(log, t.group(3)...)
	before := t.all(log)
	for _, name := range sortedKeys(notEvents) {
		t.refused(log, name, []error{wal.ErrInvalid}, notEvents[name])
		t.refused(log, name+", in a group", []error{wal.ErrInvalid}, t.submitted(), notEvents[name], t.submitted())
	}
	t.same(t.all(t.reopen(log)), before, "what was refused, in the log opened again")
}

func testTooLarge(t *trial) {
	log := t.open()
	limit := wal.MaxLineBytes
	if l, ok := t.Opener.(interface{ MaxEventBytes() int }); ok {
		limit = l.MaxEventBytes()
	}
	t.append(log, t.submitted())
	large := t.submitted()
	large.Args = json.RawMessage(`"` + strings.Repeat("x", limit) + `"`)
	t.refused(log, "an event beyond the limit", []error{wal.ErrTooLarge}, large)
	t.refused(log, "a group with an event beyond the limit", []error{wal.ErrTooLarge}, t.submitted(), large)
	t.append(log, t.submitted())
}

func testNothing(t *trial) {
	log := t.open()
	t.refused(log, "an append of nothing", []error{wal.ErrInvalid})
	t.fill(log)
	t.refused(log, "an append of nothing", []error{wal.ErrInvalid})
}

func testDoneContext(t *trial) {
	log := t.open()
	t.fill(log)
	cancelled, cancel := context.WithCancel(t.ctx)
	cancel()
	late, cancel := context.WithDeadline(t.ctx, time.Unix(1, 0))
	defer cancel()
	for _, ctx := range []context.Context{cancelled, late} {
		t.refusedWith(ctx, log, "a context that is done", []error{ctx.Err()}, t.submitted())
		t.unreadable(ctx, log, ctx.Err(), 0)
	}
	t.append(log, t.submitted())
}

func testNilContext(t *trial) {
	log := t.open()
	t.fill(log)
	var none context.Context
	t.refusedWith(none, log, "a nil context", []error{wal.ErrInvalid}, t.submitted())
	t.unreadable(none, log, wal.ErrInvalid, 0, log.LastSeq()+1)
}

// unreadable: every way to read the log, which has events, must end with the error, and before it yields any.
func (t *trial) unreadable(ctx context.Context, log recovery.Log, want error, froms ...uint64) {
	t.Helper()
	_, err := log.At(ctx, log.LastSeq())
	t.check(errors.Is(err, want), "At returned %v; want %q", err, want)
	for _, from := range froms {
		t.onlyError("Events", log.Events(ctx, from), want)
		t.onlyError("Follow", log.Follow(ctx, from), want)
	}
}

func (t *trial) onlyError(name string, sequence iter.Seq2[wal.Event, error], want error) {
	t.Helper()
	yielded := 0
	for e, err := range sequence {
		t.check(errors.Is(err, want), "%s yielded seq %d and error %v; want %q", name, e.Seq, err, want)
		yielded++
		t.check(yielded == 1, "%s went on behind its error", name)
	}
	t.check(yielded == 1, "%s ended without an error; want %q", name, want)
}
