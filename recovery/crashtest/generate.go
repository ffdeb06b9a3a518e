package crashtest

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unicode"

	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/wal"
)

// Ids, texts and histories, for rapid. Payloads are in generate_payloads.go. All are drawn in an order that lets rapid shrink to
// what a person would write down: the fewest steps, of the fewest jobs, with the shortest ids.

// names are ids and capabilities that some layer between a caller and a disk takes for something else.
var names = []string{
	"..", ".", "/", "a/b", `a\b`, "a b", " ", "'", `"`, `\`, "-", "%s", "<&>", "0", "null", "job_submitted", "größe 🚀",
	"e\u0301", "\u00e9", "\u00a0", "\u2028", "\u202e", "\u200b", "\ufeff", "\ufffd", "\U0010ffff", `{"seq":1}`,
	`","crc":"00000000"}`, `\u0061`, "00000000000000000001.jsonl", "LOCK", "quarantine", "A", "a", "a ",
}

// JobIDs draws what is allowed as a job's id: 1 to 256 bytes of valid UTF-8 without control characters. Most are a
// few letters, so that histories drawn with them can be read; one in five is unicode, a name that means something to a
// file system, to JSON or to the log, or has exactly 256 bytes.
func JobIDs() *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		switch rapid.IntRange(0, 11).Draw(t, "kind") {
		default:
			return rapid.StringOfN(rapid.RuneFrom([]rune("abcdefgh")), 1, 3, -1).Draw(t, "letters")
		case 9:
			return rapid.SampledFrom(names).Draw(t, "name")
		case 10:
			return rapid.StringOfN(runes(), 1, -1, maxName).Draw(t, "unicode")
		case 11:
			return longName(runes().Draw(t, "filled with"), maxName)
		}
	})
}

// maxName is the most bytes of an id or a capability.
const maxName = 256

func runes() *rapid.Generator[rune] {
	return rapid.Rune().Filter(func(r rune) bool { return !unicode.IsControl(r) })
}

// longName is as many of r as fit, and letters up to n bytes.
func longName(r rune, n int) string {
	name := strings.Repeat(string(r), n/len(string(r)))
	return name + strings.Repeat("x", n-len(name))
}

// BadJobIDs draws what is refused as a job's id: more than 256 bytes, invalid UTF-8, control characters, at any place. The
// empty id is not among them: recovery.Submit takes it for none, and makes one.
func BadJobIDs() *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		if rapid.IntRange(0, 4).Draw(t, "kind") == 4 {
			n := rapid.IntRange(maxName+1, 4*maxName).Draw(t, "bytes")
			return longName(runes().Draw(t, "filled with"), n)
		}
		bad := rapid.SampledFrom(badNames).Draw(t, "bad")
		before := rapid.StringOfN(runes(), 0, 8, -1).Draw(t, "before")
		return before + bad + rapid.StringOfN(runes(), 0, 8, -1).Draw(t, "behind")
	})
}

var badNames = []string{
	"\n", "\x00", "\t", "\r", "\x1b", "\x7f", "\u0080", "\u0085", "\u009f", "\xff", "\xc0\xaf", "\xed\xa0\x80", "\xf4\x90\x80\x80",
	"\xc3", "\xf0\x9f\x9a",
}

// Capabilities draws capabilities: the rules are those for ids, and none at all is allowed, too.
func Capabilities() *rapid.Generator[string] {
	plain := rapid.SampledFrom([]string{"", "shell", "FileRead"})
	return rapid.OneOf(plain, plain, plain, JobIDs())
}

// Texts draws reasons, for Fail and RollBack: any valid UTF-8, none and control characters included, a few of many
// KiB.
func Texts() *rapid.Generator[string] {
	plain := rapid.SampledFrom([]string{"", "no", "exit status 1"})
	odd := rapid.SampledFrom(append([]string{
		"line\nfeed", "\x00", "a\x00b", "\r\n", "\x1b[31mred", "\x7f\u0080", "<&>", "\u2028", "\ufffd", logLine, logLine + "\n" + logLine,
	}, names...))
	return rapid.OneOf(plain, plain, rapid.String(), odd, rapid.Custom(func(t *rapid.T) string {
		return strings.Repeat(odd.Draw(t, "unit"), rapid.SampledFrom([]int{10, 100, 1000}).Draw(t, "times"))
	}))
}

// logLine looks like an event to whoever searches a file for one.
const logLine = `{"seq":1,"prev":0,"epoch":1,"ts":1,"ns":1,"type":"job_submitted","job_id":"a","capability":"","durable":9,"crc":"00000000"}`

// types are those that lead a job on. Those that leave it where it is are not drawn: a check that is to tell which of two
// commands an event is of needs them to differ.
var types = []wal.EventType{
	wal.JobSubmitted, wal.JobValidated, wal.JobStarted, wal.JobCompleted, wal.JobFailed, wal.JobRolledBack,
}

// notes are the others, in the order of the lifecycle.
var notes = []wal.EventType{
	wal.JobResumed, wal.JobStep, wal.JobProgress, wal.JobStepUndone, wal.JobHeld, wal.JobReleased,
}

func isNote(on wal.EventType) bool { return slices.Contains(notes, on) }

// legalTypes and illegalTypes are what a job in a state may take and what not, in the order of the lifecycle.
func legalTypes(state string) []wal.EventType {
	return slices.DeleteFunc(slices.Clone(types), func(on wal.EventType) bool { _, legal := after(state, on); return !legal })
}

func illegalTypes(state string) []wal.EventType {
	return slices.DeleteFunc(slices.Clone(types), func(on wal.EventType) bool { _, legal := after(state, on); return legal })
}

// drawStep is the stepper of all that the log takes.
func drawStep(t *rapid.T, id string, on wal.EventType) Step {
	s := Step{JobID: id, Type: on}
	switch on {
	case wal.JobSubmitted:
		s.Capability = Capabilities().Draw(t, "capability")
		s.Args = drawPayload(t, "args")
	case wal.JobCompleted:
		s.Output = drawPayload(t, "output")
	case wal.JobFailed, wal.JobRolledBack:
		s.Error = Texts().Draw(t, "text")
	}
	return s
}

// drawPayload draws none in one of four.
func drawPayload(t *rapid.T, label string) json.RawMessage {
	if rapid.IntRange(0, 3).Draw(t, label+"?") == 0 {
		return nil
	}
	return Payloads().Draw(t, label)
}

// NextStep draws a step for the jobs as they stand: in nine of ten a legal one, of a job that is not rolled back or of a
// new one, each with the same probability; so there are ever more jobs, more and more slowly. The tenth is of any type, of
// any job, known or not, and is legal only by chance. The reference is read when a value is drawn, and not changed.
func NextStep(ref *Reference) *rapid.Generator[Step] {
	return rapid.Custom(func(t *rapid.T) Step { return drawNextStep(t, ref, drawStep) })
}

// A stepper draws what a step of a type says besides.
type stepper = func(t *rapid.T, id string, on wal.EventType) Step

func drawNextStep(t *rapid.T, ref *Reference, step stepper) Step {
	if rapid.IntRange(0, 9).Draw(t, "any") == 9 {
		id := drawJob(t, ref, func(string) bool { return true })
		return step(t, id, rapid.SampledFrom(types).Draw(t, "type"))
	}
	id := drawJob(t, ref, func(state string) bool { return len(legalTypes(state)) > 0 })
	return step(t, id, rapid.SampledFrom(legalTypes(ref.states[id])).Draw(t, "type"))
}

// illegalStep draws a step that the jobs as they stand may not take.
func illegalStep(t *rapid.T, ref *Reference, step stepper) Step {
	id := drawJob(t, ref, func(string) bool { return true })
	return step(t, id, rapid.SampledFrom(illegalTypes(ref.states[id])).Draw(t, "type"))
}

// drawJob draws a job that is in one of the states, or a new one.
func drawJob(t *rapid.T, ref *Reference, in func(state string) bool) string {
	known := slices.DeleteFunc(ref.Jobs(), func(id string) bool { return !in(ref.states[id]) })
	if i := rapid.IntRange(0, len(known)).Draw(t, "job"); i < len(known) {
		return known[i]
	}
	return drawNew(t, "id", ref)
}

// drawNew draws the id of a job that is not there yet. It never fails, as a filter would where the same id is drawn for
// ever: rapid gives up on a test in which nothing can be done any more.
func drawNew(t *rapid.T, label string, ref *Reference, besides ...string) string {
	id := JobIDs().Draw(t, label)
	stem := id
	if len(stem) > maxName/2 {
		stem = "long"
	}
	for n := 2; ref.State(id) != "" || ref.Refuses(id) && !ref.reuse || slices.Contains(besides, id); n++ {
		id = fmt.Sprint(stem, n)
	}
	return id
}

// LegalHistories draws histories of at most so many jobs and steps in which every step is legal, and no two jobs have the
// same id. Either number may be drawn as 0. Each is an interleaving of whole or unfinished lives; see [Interleavings].
func LegalHistories(jobs, steps int) *rapid.Generator[[]Step] {
	return rapid.Custom(func(t *rapid.T) []Step {
		history := Interleavings(drawLives(t, jobs)...).Draw(t, "interleaved")
		return slices.Clip(history[:min(len(history), steps)])
	})
}

// drawLives draws lives of different jobs, half as many on average. rapid's slices have five elements on average, however
// many they may have; so there are several, of which rapid can empty each.
func drawLives(t *rapid.T, jobs int) (lives [][]Step) {
	const few = 10
	batches := (jobs + few - 1) / few
	drawn := rapid.SliceOfN(rapid.SliceOfN(lifeOf(), 0, min(jobs, few)), batches, batches).Draw(t, "lives")
	known := make(map[string]bool)
	for _, life := range slices.Concat(drawn...) {
		if id := life[0].JobID; !known[id] && len(lives) < jobs {
			known[id] = true
			lives = append(lives, life)
		}
	}
	return lives
}

// lifeOf draws one job's steps from its submission on, one at least.
func lifeOf() *rapid.Generator[[]Step] {
	return rapid.Custom(func(t *rapid.T) []Step {
		id, state := JobIDs().Draw(t, "id"), ""
		// The choices are drawn before their number is known to be of use, so that rapid can take any away by itself.
		choices := rapid.SliceOfN(rapid.IntRange(0, 2), 0, 4).Draw(t, "ways")
		var steps []Step
		for _, choice := range append([]int{0}, choices...) {
			legal := legalTypes(state)
			if len(legal) == 0 {
				break
			}
			on := legal[0]
			if choice == 2 { // of two ways one leads to failure: the rarer one
				on = legal[len(legal)-1]
			}
			steps = append(steps, drawStep(t, id, on))
			state, _ = after(state, on)
		}
		return steps
	})
}

// An IllegalHistory is a legal history but for one step.
type IllegalHistory struct {
	Steps []Step
	// At is the index of the one step that is not legal where it stands. Those behind it are legal if it is passed over.
	At int
}

// IllegalHistories draws histories in which exactly one step is not legal: a legal one of at most so many jobs and steps,
// with one more step somewhere in it, of any job, known or not.
func IllegalHistories(jobs, steps int) *rapid.Generator[IllegalHistory] {
	return rapid.Custom(func(t *rapid.T) IllegalHistory {
		history := LegalHistories(jobs, steps).Draw(t, "history")
		at := rapid.IntRange(0, len(history)).Draw(t, "at")
		var ref Reference
		for _, s := range history[:at] {
			ref.Append(1, s)
		}
		bad := illegalStep(t, &ref, drawStep)
		return IllegalHistory{slices.Insert(history, at, bad), at}
	})
}

// Interleavings draws merges of histories in which the steps of each keep their order. It shrinks to one history behind
// the other. Where no two histories have a job in common, and each is legal, so is every merge.
func Interleavings(histories ...[]Step) *rapid.Generator[[]Step] {
	return rapid.Custom(func(t *rapid.T) []Step {
		rapid.Just(0).Draw(t, "") // rapid wants a draw even where there is nothing to choose
		left := slices.DeleteFunc(slices.Clone(histories), func(h []Step) bool { return len(h) == 0 })
		var merged []Step
		for len(left) > 1 {
			i := rapid.IntRange(0, len(left)-1).Draw(t, "next")
			merged = append(merged, left[i][0])
			if left[i] = left[i][1:]; len(left[i]) == 0 {
				left = slices.Delete(left, i, i+1)
			}
		}
		return append(merged, slices.Concat(left...)...)
	})
}
