package recovery

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// badJSON is refused as args and as output, as it is and nested in something that is fine.
var badJSON = map[string]string{
	"nothing but space":   " ",
	"torn":                `{"a":`,
	"two values":          `1 2`,
	"a comma too many":    `[1,]`,
	"single quotes":       `{'a':1}`,
	"NaN":                 `NaN`,
	"a raw NUL":           "\"\x00\"",
	"a raw newline":       "\"\n\"",
	"duplicate names":     `{"a":1,"b":2,"a":3}`,
	"duplicate, escaped":  `{"a":1,"\u0061":3}`,
	"duplicate, deep":     `[[{"x":{"a":1,"a":1}}]]`,
	"lone high surrogate": `"\ud83d"`,
	"lone low surrogate":  `"\ude80"`,
	"surrogates reversed": `"\ude80\ud83d"`,
	"bad UTF-8":           "\"\xff\"",
	"UTF-8, too long":     "\"\xc0\xaf\"",
	"a number too large":  `1e400`,
	"a leading zero":      `01`,
	"too deep":            strings.Repeat("[", 101) + strings.Repeat("]", 101),
	"far too deep":        strings.Repeat("[", 100_000),
}

// Not a byte of the directory changes for anything that is refused, and LastSeq stays.
func TestF20_F21_what_is_refused_leaves_the_directory_alone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, disk := context.Background(), crashfs.New()
		e := inMemory(t, disk, Options{WAL: wal.Options{MaxEventBytes: 1 << 16}})
		_, err := e.Do(ctx, Submit(Submission{JobID: "new"}), Submit(Submission{JobID: "run"}), Validate("run"), Start("run"))
		require.NoError(t, err)
		time.Sleep(time.Minute) // the log is idle, and has said so
		before, last := disk.Fingerprint(), e.log.LastSeq()
		refused := func(is error, says string, commands ...Command) {
			t.Helper()
			_, err := e.Do(ctx, commands...)
			require.ErrorIs(t, err, is, says)
			require.ErrorContains(t, err, says)
			var invalid *wal.InvalidError
			if errors.As(err, &invalid) {
				require.NotEmpty(t, invalid.Field)
				require.NotEmpty(t, invalid.Reason)
			}
		}
		for name, text := range badJSON {
			t.Log(name)
			refused(wal.ErrInvalid, "Args", Submit(Submission{Args: json.RawMessage(text)}))
			refused(wal.ErrInvalid, "Output", Complete("run", json.RawMessage(text)))
			refused(wal.ErrInvalid, "Args", Submit(Submission{Args: map[string]any{"x": json.RawMessage(text)}}))
			refused(wal.ErrInvalid, "Args", Submit(Submission{}), Submit(Submission{Args: json.RawMessage(text)}), Validate("new"))
		}
		for _, v := range []any{math.NaN(), math.Inf(1), make(chan int), func() {}, map[bool]int{true: 1}, refuses1{}, cycle()} {
			refused(wal.ErrInvalid, "Args", Submit(Submission{Args: v}))
			refused(wal.ErrInvalid, "Output", Complete("run", v))
		}
		for _, id := range []string{strings.Repeat("x", 257), "\xff", "a\x00", "a\nb", "\u007f", "\u0085", "a\xc3"} {
			refused(wal.ErrInvalid, "JobID", Submit(Submission{JobID: id}))
			refused(wal.ErrInvalid, "Capability", Submit(Submission{Capability: id}))
			refused(statemachine.ErrUnknownJob, "", Start(id))
		}
		for _, c := range []func(string) Command{Validate, Start,
			func(id string) Command { return Complete(id, nil) },
			func(id string) Command { return Fail(id, errBroken) },
			func(id string) Command { return RollBack(id, "") },
		} {
			refused(wal.ErrInvalid, "JobID", c(""))
			refused(statemachine.ErrUnknownJob, "nobody", c("nobody"))
		}
		large := strings.Repeat("x", 1<<16)
		refused(wal.ErrTooLarge, "", Submit(Submission{Args: large}))
		refused(wal.ErrTooLarge, "", Complete("run", large))
		refused(wal.ErrTooLarge, "", Fail("run", errors.New(large)))
		refused(wal.ErrTooLarge, "event 1", Validate("new"), Fail("run", errors.New(large)))
		refused(wal.ErrInvalid, "cause", Fail("run", nil))
		refused(wal.ErrInvalid, "command", Command{})
		refused(wal.ErrInvalid, "commands")
		refused(statemachine.ErrTransition, "allowed: job_completed, job_failed", Validate("run"))

		time.Sleep(time.Minute)
		require.Equal(t, before, disk.Fingerprint(), "refused, and something was written")
		require.Equal(t, last, e.log.LastSeq())
		_, err = e.Complete(ctx, "run", "and it goes on")
		require.NoError(t, err)
	})
}

type refuses1 struct{}

func (refuses1) MarshalJSON() ([]byte, error) { return nil, errBroken }

func cycle() any {
	type node struct{ Next *node }
	n := &node{}
	n.Next = n
	return n
}

// A nil or cancelled context is refused by everything that takes one.
func TestContextsAtTheDoor(t *testing.T) {
	ctx, e := context.Background(), inMemory(t, crashfs.New(), Options{})
	job, err := e.Submit(ctx, Submission{JobID: "a", Args: 1})
	require.NoError(t, err)
	var none context.Context
	gone, cancel := context.WithCancel(ctx)
	cancel()
	for is, ctx := range map[error]context.Context{wal.ErrInvalid: none, context.Canceled: gone} {
		calls := map[string]error{}
		_, calls["Submit"] = e.Submit(ctx, Submission{})
		_, calls["Validate"] = e.Validate(ctx, "a")
		_, calls["Start"] = e.Start(ctx, "a")
		_, calls["Complete"] = e.Complete(ctx, "a", nil)
		_, calls["Fail"] = e.Fail(ctx, "a", errBroken)
		_, calls["RollBack"] = e.RollBack(ctx, "a", "")
		_, calls["Do"] = e.Do(ctx, Validate("a"))
		_, calls["Open"] = Open(ctx, "other", Options{WAL: wal.Options{FS: crashfs.New()}})
		_, calls["OpenLog"] = OpenLog(ctx, newSharedLog().join(), Options{})
		for _, calls["History"] = range e.History(ctx, "a") {
		}
		for _, calls["Follow"] = range e.Follow(ctx, 1) {
		}
		for name, err := range calls {
			require.ErrorIs(t, err, is, name)
		}
	}
	_, err = e.Read(none, job.Args)
	require.ErrorIs(t, err, wal.ErrInvalid)
	_, err = OpenLog(ctx, nil, Options{})
	require.ErrorIs(t, err, wal.ErrInvalid)
	require.EqualValues(t, 1, e.log.LastSeq())
}

type plain struct {
	A string  `json:"a"`
	N float64 `json:"n"`
}

// "any" is marshalled with encoding/json, but for its rewriting of <, > and &; what is JSON already keeps every character
// but white space.
func TestMarshalling(t *testing.T) {
	ctx, disk := context.Background(), crashfs.New()
	e, err := Open(ctx, "jobs", Options{WAL: wal.Options{FS: disk}})
	require.NoError(t, err)
	const digits = "1234567890123456789012345"
	cases := []struct {
		in   any
		want string
	}{
		{nil, ""},
		{json.RawMessage(nil), ""},
		{json.RawMessage("null"), "null"},
		{(*plain)(nil), "null"},
		{"<script>&amp;", `"<script>&amp;"`},
		{map[string]any{"<k>": "&"}, `{"<k>":"&"}`},
		{plain{"<", 1.5}, `{"a":"<","n":1.5}`},
		{json.Number(digits), digits},
		{json.RawMessage(digits), digits},
		{json.RawMessage(" \t\r\n{ \"a\" : [ 1 , 2 ] ,\n\"b\" : \" \\u003c \" } "), `{"a":[1,2],"b":" \u003c "}`},
		{[]json.RawMessage{json.RawMessage(digits), json.RawMessage(` { "x" : "<" } `)}, `[` + digits + `,{"x":"<"}]`},
		{map[string]*json.RawMessage{"p": new(json.RawMessage(`[ "&" ]`))}, `{"p":["&"]}`},
		{json.RawMessage(`1E+2`), `1E+2`},
		{json.RawMessage(`-0.0`), `-0.0`},
		{json.RawMessage(`"\/\u00e9é🚀\ud83d\ude80"`), `"\/\u00e9é🚀\ud83d\ude80"`},
		{"\u2028", `"\u2028"`},
		{"bad \xff UTF-8", `"bad \ufffd UTF-8"`}, // as encoding/json has it
		{[]byte("bytes"), `"Ynl0ZXM="`},
		{time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), `"2026-01-02T03:04:05.000000006Z"`},
		{json.RawMessage(strings.Repeat("[", 100) + strings.Repeat("]", 100)), strings.Repeat("[", 100) + strings.Repeat("]", 100)},
	}
	for i, c := range cases {
		job, err := e.Do(ctx, Submit(Submission{JobID: fmt.Sprint(i), Args: c.in}), Validate(fmt.Sprint(i)), Start(fmt.Sprint(i)), Complete(fmt.Sprint(i), c.in))
		require.NoError(t, err, "%v", c.in)
		for _, p := range []statemachine.Payload{job[0].Args, job[0].Output} {
			got, err := e.Read(ctx, p)
			require.NoError(t, err)
			require.Equal(t, c.want, string(got))
			require.Equal(t, c.want == "", p.IsZero())
		}
	}
	require.NoError(t, e.Close())
	e = inMemory(t, disk, Options{}) // and so it is after a reopen
	for i, c := range cases {
		job, _ := e.Job(fmt.Sprint(i))
		got, err := e.Read(ctx, job.Args)
		require.NoError(t, err)
		require.Equal(t, c.want, string(got))
	}
}

// A text is kept, whatever is in it; what no JSON string can hold is replaced.
func TestCausesAndReasons(t *testing.T) {
	ctx, e := context.Background(), inMemory(t, crashfs.New(), Options{})
	for in, want := range map[string]string{
		"": "", "line\nfeed\x00\u2028": "line\nfeed\x00\u2028", "<&>\"\\": "<&>\"\\", "a\xff\xfeb": "a\uFFFDb",
	} {
		jobs, err := e.Do(ctx, Submit(Submission{JobID: "j" + fmt.Sprintf("%x", in)}))
		require.NoError(t, err)
		job, err := e.Fail(ctx, jobs[0].ID, errors.New(in))
		require.NoError(t, err)
		require.Equal(t, want, job.Error)
		job, err = e.RollBack(ctx, jobs[0].ID, in)
		require.NoError(t, err)
		require.Equal(t, []string{want, want}, []string{job.Error, job.RollbackReason})
	}
}

// Ids that are hard to tell apart, or hard to print, are jobs of their own.
func TestJobIDsAreKeptAsGiven(t *testing.T) {
	ctx, disk := context.Background(), crashfs.New()
	ids := []string{"a", "A", " a", "a ", "../a", `"`, `\`, "<a>", "é", "e\u0301", "🚀", "null", strings.Repeat("x", 256), "\u200b", "\u202e"}
	e, err := Open(ctx, "jobs", Options{WAL: wal.Options{FS: disk}})
	require.NoError(t, err)
	for _, id := range ids {
		_, err := e.Submit(ctx, Submission{JobID: id, Capability: id})
		require.NoError(t, err, id)
	}
	require.NoError(t, e.Close())
	e = inMemory(t, disk, Options{})
	require.Equal(t, ids, inOrder(e.Interrupted()))
	for _, id := range ids {
		job, known := e.Job(id)
		require.True(t, known)
		require.Equal(t, id, job.Capability)
	}
}
