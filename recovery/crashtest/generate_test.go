package crashtest_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/recovery/crashtest"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// strict judges JSON by encoding/json's means alone, and says what is wrong with it.
func strict(raw []byte) error {
	if !json.Valid(raw) {
		return errors.New("not JSON")
	}
	if !utf8.Valid(raw) {
		return errors.New("not UTF-8")
	}
	var floats any
	if err := json.Unmarshal(raw, &floats); err != nil {
		return err
	}
	if replaced(floats) > bytes.Count(raw, []byte("\ufffd"))+bytes.Count(bytes.ToLower(raw), []byte(`\ufffd`)) {
		return errors.New("a lone surrogate was replaced")
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	return walk(d, 0)
}

// replaced counts U+FFFD.
func replaced(v any) (n int) {
	switch v := v.(type) {
	case string:
		return strings.Count(v, "\ufffd")
	case []any:
		for _, e := range v {
			n += replaced(e)
		}
	case map[string]any:
		for name, e := range v {
			n += replaced(name) + replaced(e)
		}
	}
	return n
}

// walk looks for duplicate names and for depth.
func walk(d *json.Decoder, depth int) error {
	token, err := d.Token()
	if delim, opens := token.(json.Delim); err != nil || !opens {
		return err
	} else if depth++; depth > 100 {
		return errors.New("too deep")
	} else if names := map[json.Token]bool{}; delim == '{' {
		for d.More() {
			name, _ := d.Token()
			if names[name] {
				return fmt.Errorf("duplicate %q", name)
			}
			names[name] = true
			if err := walk(d, depth); err != nil {
				return err
			}
		}
	} else {
		for d.More() {
			if err := walk(d, depth); err != nil {
				return err
			}
		}
	}
	_, err = d.Token()
	return err
}

// logOn opens a log on a disk in memory, for tests of the door.
func logOn(t *testing.T, disk wal.FS) *wal.Log {
	log, err := wal.Open("log", wal.Options{FS: disk})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, log.Close()) })
	return log
}

// kindsSeen counts what a generator drew, so that a kind that is never drawn fails a test.
type kindsSeen map[string]int

func (k kindsSeen) count(name string, is bool) {
	k[name] += 0
	if is {
		k[name]++
	}
}

func (k kindsSeen) check(t *testing.T) {
	for name, n := range k {
		if n == 0 {
			t.Errorf("none drawn that is %s", name)
		}
	}
	t.Log(k)
}

// examples draws n values, each from a seed of its own: the same in every run.
func examples[V any](g *rapid.Generator[V], n int, do func(V)) {
	for seed := range n {
		do(g.Example(seed))
	}
}

// What Payloads draws is strict JSON to encoding/json, passes the door, and is read back as it was, but for white space.
func TestPayloads(t *testing.T) {
	log, seen := logOn(t, crashfs.New()), kindsSeen{}
	examples(crashtest.Payloads(), 600, func(raw json.RawMessage) {
		require.NoError(t, strict(raw), "%.200q", raw)
		given := bytes.Clone(raw)
		seq, err := log.Append(context.Background(), wal.Event{Type: wal.JobCompleted, JobID: "a", Output: raw})
		require.NoError(t, err, "%.200q", raw)
		require.Equal(t, given, []byte(raw), "the caller's bytes are not changed")
		e, err := log.At(seq)
		require.NoError(t, err)
		var want bytes.Buffer
		require.NoError(t, json.Compact(&want, raw))
		require.Equal(t, want.String(), string(e.Output))

		text := want.String()
		seen.count("null", text == "null")
		seen.count("a byte", len(text) == 1)
		seen.count("KiBs", len(text) > 4<<10)
		seen.count("100 KiB", len(text) >= 100<<10)
		seen.count("spaced", len(text) < len(raw))
		seen.count("100 deep", deepest(text) == 100)
		seen.count("an object of many names", strings.Contains(text, `"name-99"`))
		seen.count("not ASCII", strings.ContainsFunc(text, func(r rune) bool { return r > unicode.MaxASCII }))
		seen.count("beyond the BMP", strings.ContainsFunc(text, func(r rune) bool { return r > 0xffff }))
		seen.count("a surrogate pair", strings.Contains(strings.ToLower(text), `\ud8`))
		seen.count("like a log line", strings.Contains(text, `job_submitted`))
		seen.count("a double's limit", strings.Contains(text, "1.7976931348623157e308"))
		seen.count("a long number", strings.Contains(text, strings.Repeat("0", 290)))
	})
	seen.check(t)
}

// deepest is how many brackets are open at most; brackets in strings may make it larger.
func deepest(text string) (most int) {
	depth := 0
	for _, c := range text {
		switch c {
		case '[', '{':
			depth++
			most = max(most, depth)
		case ']', '}':
			depth--
		}
	}
	return most
}

// What BadPayloads draws is refused at the door, with nothing written, and not without reason: encoding/json finds something
// wrong with it, too.
func TestBadPayloads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := crashfs.New()
		log, seen := logOn(t, disk), kindsSeen{}
		synctest.Wait()
		operations, before := disk.Count(), disk.Fingerprint()
		examples(crashtest.BadPayloads(), crashtest.Thin(600, 250), func(raw json.RawMessage) {
			wrong := strict(raw)
			require.Error(t, wrong, "%.200q", raw)
			for _, e := range []wal.Event{{Args: raw, Type: wal.JobSubmitted}, {Output: raw, Type: wal.JobCompleted}} {
				e.JobID = "a"
				_, err := log.Append(context.Background(), e)
				require.ErrorIs(t, err, wal.ErrInvalid, "%.200q", raw)
				_, err = log.Append(context.Background(), wal.Event{Type: wal.JobStarted, JobID: "a"}, e)
				require.ErrorIs(t, err, wal.ErrInvalid, "%.200q", raw)
			}
			for _, kind := range []string{"not JSON", "not UTF-8", "too deep", "surrogate", "duplicate", "float64"} {
				seen.count(kind, strings.Contains(wrong.Error(), kind))
			}
			seen.count("large", len(raw) > 10<<10)
			seen.count("with something behind", json.Valid(raw[:len(raw)-1]))
			seen.count("with a NUL", bytes.Contains(raw, []byte{0}))
		})
		synctest.Wait()
		require.Equal(t, operations, disk.Count(), "nothing was written")
		require.Equal(t, before, disk.Fingerprint())
		seen.check(t)
	})
}

func TestJobIDs(t *testing.T) {
	log, seen, distinct := logOn(t, crashfs.New()), kindsSeen{}, map[string]bool{}
	examples(crashtest.JobIDs(), 1000, func(id string) {
		distinct[id] = true
		require.True(t, len(id) >= 1 && len(id) <= 256 && utf8.ValidString(id) && !strings.ContainsFunc(id, unicode.IsControl), "%q", id)
		_, err := log.Append(context.Background(), wal.Event{Type: wal.JobStarted, JobID: id, Capability: id})
		require.NoError(t, err, "%q", id)
		seen.count("a letter", len(id) == 1)
		seen.count("256 bytes", len(id) == 256)
		seen.count("a directory", id == "..")
		seen.count("a path", id == "a/b")
		seen.count("a quote", strings.Contains(id, `"`))
		seen.count("unicode", len(id) > len([]rune(id)))
	})
	seen.check(t)
	require.Greater(t, len(distinct), 250)
	examples(crashtest.Capabilities(), 200, func(capability string) {
		seen.count("no capability", capability == "")
		_, err := log.Append(context.Background(), wal.Event{Type: wal.JobStarted, JobID: "a", Capability: capability})
		require.NoError(t, err, "%q", capability)
	})
	seen.check(t)
}

func TestBadJobIDs(t *testing.T) {
	disk, seen := crashfs.New(), kindsSeen{}
	log := logOn(t, disk)
	examples(crashtest.BadJobIDs(), 400, func(id string) {
		for _, e := range []wal.Event{{JobID: id}, {JobID: "a", Capability: id}} {
			e.Type = wal.JobSubmitted
			_, err := log.Append(context.Background(), e)
			require.ErrorIs(t, err, wal.ErrInvalid, "%q", id)
		}
		seen.count("too long", len(id) > 256)
		seen.count("not UTF-8", !utf8.ValidString(id))
		seen.count("a control character", strings.ContainsFunc(id, unicode.IsControl))
		seen.count("a NUL", strings.Contains(id, "\x00"))
	})
	seen.check(t)
	require.Zero(t, log.LastSeq())
}

func TestTexts(t *testing.T) {
	log, seen := logOn(t, crashfs.New()), kindsSeen{}
	examples(crashtest.Texts(), 400, func(text string) {
		seq, err := log.Append(context.Background(), wal.Event{Type: wal.JobFailed, JobID: "a", Error: text})
		require.NoError(t, err, "%q", text)
		e, err := log.At(seq)
		require.NoError(t, err)
		require.Equal(t, text, e.Error)
		seen.count("empty", text == "")
		seen.count("long", len(text) > 4<<10)
		seen.count("several lines", strings.Contains(text, "\n"))
		seen.count("a NUL", strings.Contains(text, "\x00"))
		seen.count("like a log line", strings.Contains(text, "job_submitted"))
	})
	seen.check(t)
}

// fold takes a step to the jobs by package statemachine alone.
func fold(jobs map[string]statemachine.Job, seq uint64, s crashtest.Step) error {
	e, job := s.Event(), jobs[s.JobID]
	e.Seq, e.Prev = seq, job.Seq
	if err := statemachine.NewMachine(job).Fire(context.Background(), s.Type, func(context.Context) error { return nil }); err != nil {
		return err
	}
	moved, err := job.Apply(e)
	jobs[s.JobID] = moved
	return err
}

// What LegalHistories draws is legal to the Reference, to package statemachine, and to an engine; within its bounds.
func TestLegalHistories(t *testing.T) {
	seen := kindsSeen{}
	examples(crashtest.LegalHistories(4, 12), 400, func(history []crashtest.Step) {
		var ref crashtest.Reference
		jobs := map[string]statemachine.Job{}
		for i, s := range history {
			require.NoError(t, fold(jobs, uint64(i+1), s))
			require.True(t, ref.Append(1, s), "%d: %v", i, s)
		}
		require.LessOrEqual(t, len(history), 12)
		require.LessOrEqual(t, len(jobs), 4)
		for id, job := range jobs {
			require.EqualValues(t, job.State, ref.State(id))
			seen.count(string(job.State), true)
		}
		seen.count("empty", len(history) == 0)
		seen.count("of one job", len(jobs) == 1)
		seen.count("of four jobs", len(jobs) == 4)
		seen.count("of twelve steps", len(history) == 12)
		seen.count("interleaved", interleaved(history))
	})
	for _, state := range statemachine.States()[1:] {
		seen.count(string(state), false)
	}
	seen.check(t)
	examples(crashtest.LegalHistories(0, 10), 5, func(history []crashtest.Step) { require.Empty(t, history) })
	examples(crashtest.LegalHistories(10, 0), 5, func(history []crashtest.Step) { require.Empty(t, history) })
	examples(crashtest.LegalHistories(5, 20), 25, func(history []crashtest.Step) { require.Equal(t, -1, refusedAt(t, history)) })
}

// refusedAt leads an engine through a history, step by step, and returns the index of the one that it refused; -1 for none.
func refusedAt(t *testing.T, history []crashtest.Step) int {
	e, err := recovery.Open(context.Background(), "jobs", recovery.Options{WAL: wal.Options{FS: crashfs.New()}})
	require.NoError(t, err)
	at := -1
	for i, s := range history {
		if _, err := e.Do(context.Background(), s.Command()); err != nil {
			require.ErrorIs(t, err, statemachine.ErrTransition)
			require.Equal(t, -1, at, "a second step is refused")
			at = i
		}
	}
	require.NoError(t, e.Close())
	return at
}

// interleaved: some job goes on after another did.
func interleaved(history []crashtest.Step) bool {
	left := map[string]bool{}
	for i, s := range history {
		if left[s.JobID] {
			return true
		}
		if i > 0 && history[i-1].JobID != s.JobID {
			left[history[i-1].JobID] = true
		}
	}
	return false
}

// What IllegalHistories draws is refused at its index and nowhere else: by the Reference, by package statemachine, and by an
// engine.
func TestIllegalHistories(t *testing.T) {
	seen := kindsSeen{}
	examples(crashtest.IllegalHistories(4, 12), 400, func(history crashtest.IllegalHistory) {
		var ref crashtest.Reference
		jobs := map[string]statemachine.Job{}
		for i, s := range history.Steps {
			legal := i != history.At
			var refused *statemachine.TransitionError
			require.Equal(t, legal, !errors.As(fold(jobs, ref.Last()+1, s), &refused), "%d: %v", i, s)
			if !legal {
				seen.count(string(refused.From)+" "+string(s.Type), true)
			}
			require.Equal(t, legal, ref.Append(1, s), "%d: %v", i, s)
		}
		seen.count("at the start", history.At == 0)
		seen.count("at the end", history.At == len(history.Steps)-1)
		seen.count("in the middle", history.At > 0 && history.At < len(history.Steps)-1)
	})
	seen.check(t)
	require.GreaterOrEqual(t, len(seen), 3+20, "of the 29 pairs of state and event that are not legal")
	examples(crashtest.IllegalHistories(3, 10), 25, func(history crashtest.IllegalHistory) {
		require.Equal(t, history.At, refusedAt(t, history.Steps))
	})
}

// An interleaving has all steps of all histories, each history's in order; and every merge can be drawn.
func TestInterleavings(t *testing.T) {
	of := func(id string, n int) (history []crashtest.Step) {
		for i := range n {
			history = append(history, crashtest.Step{JobID: id, Error: fmt.Sprint(i)})
		}
		return history
	}
	histories := [][]crashtest.Step{of("a", 2), nil, of("b", 2), of("c", 1)}
	merges := map[string]bool{}
	examples(crashtest.Interleavings(histories...), 600, func(merged []crashtest.Step) {
		spelled := ""
		for _, s := range merged {
			spelled += s.JobID
		}
		merges[spelled] = true
		for _, h := range histories {
			kept := slices.DeleteFunc(slices.Clone(merged), func(s crashtest.Step) bool { return len(h) == 0 || s.JobID != h[0].JobID })
			require.Len(t, kept, len(h))
			require.True(t, slices.EqualFunc(h, kept, crashtest.Step.Same))
		}
	})
	require.Len(t, merges, 30, "5! / (2! 2! 1!)")
	require.Empty(t, crashtest.Interleavings().Example(1))
	require.Equal(t, histories[0], crashtest.Interleavings(histories[0]).Example(1))
}

// NextStep is legal in nine of ten, does not change the Reference, and leads jobs through all of their lives.
func TestNextStep(t *testing.T) {
	legal, all, seen := 0, 0, kindsSeen{}
	for seed := range 40 {
		var ref crashtest.Reference
		for i := range 30 {
			before := ref.Last()
			s := crashtest.NextStep(&ref).Example(1000*seed + i)
			require.Equal(t, before, ref.Last())
			all++
			if ref.Append(1, s) {
				legal++
			}
		}
		for _, id := range ref.Jobs() {
			seen.count(ref.State(id), true)
		}
	}
	seen.check(t)
	require.Len(t, seen, 6)
	require.InDelta(t, 0.94, float64(legal)/float64(all), 0.04, "%d of %d", legal, all)
}

// falsified runs a property that has to fail, and returns what rapid said. The last run of the property is the one that
// rapid shrank to.
func falsified(t *testing.T, seed int, shrink time.Duration, property func(*rapid.T)) string {
	t.Helper()
	flags := map[string]string{
		"rapid.seed": fmt.Sprint(seed + 1), "rapid.shrinktime": shrink.String(), "rapid.nofailfile": "true",
	}
	for name, value := range flags {
		before := flag.Lookup(name).Value.String()
		require.NoError(t, flag.Set(name, value))
		defer func() { require.NoError(t, flag.Set(name, before)) }()
	}
	said, failed := crashtest.Fails(func(t rapid.TB) { rapid.Check(t, property) })
	require.True(t, failed, "it has to fail")
	return said
}

// Generators shrink to the smallest counterexample that a person would have thought of, or to one that is close to it.
func TestShrinking(t *testing.T) {
	smallest := 0
	for seed := range 8 {
		var history []crashtest.Step
		falsified(t, seed, 5*time.Second, func(t *rapid.T) {
			history = crashtest.LegalHistories(6, 30).Draw(t, "history")
			if slices.ContainsFunc(history, func(s crashtest.Step) bool { return s.Type == wal.JobRolledBack }) {
				t.Fatal("rolled back")
			}
		})
		t.Log(history)
		require.LessOrEqual(t, len(history), 5)
		if len(history) == 3 && history[2].String() == "job_rolled_back a" {
			smallest++
		}

		var illegal crashtest.IllegalHistory
		falsified(t, seed, 5*time.Second, func(t *rapid.T) {
			illegal = crashtest.IllegalHistories(6, 30).Draw(t, "history")
			if len(illegal.Steps) > 1 {
				t.Fatal("two steps")
			}
		})
		t.Log(illegal)
		require.Len(t, illegal.Steps, 2)

		var raw json.RawMessage
		falsified(t, seed, 5*time.Second, func(t *rapid.T) {
			raw = crashtest.Payloads().Draw(t, "payload")
			if bytes.Contains(raw, []byte("[")) {
				t.Fatal("an array")
			}
		})
		t.Logf("%s", raw)
		require.LessOrEqual(t, len(raw), 8)
	}
	require.GreaterOrEqual(t, smallest, 4, "of 8")
}
