package recovery

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// What is said of a job that stays in its state.

// Resume says that a started job's work begins once more.
func Resume(id string) Command { return Command{event: wal.JobResumed, id: id} }

// Step says that a step of a started job is done, and what came of it. The output is taken as [Submission].Args is. Of the
// name, the rules are those for a JobID. One that begins with '#' is a mark: a note of whoever runs the job, and no work. [Engine.Steps]
// has it, but it is no step that [statemachine.Job].Steps counts, nor for people ([Engine.Explain], [Evidence]).
func Step(id, name string, output any) Command {
	return Command{event: wal.JobStep, id: id, payload: output, field: "Output", step: name, bad: checkStep(name)}
}

// UndoStep says that what a step of a completed or failed job did was undone; of a mark (see [Step]), that the job is going to be
// rolled back. From the first one on until its rollback is done, the job is [statemachine.Job].RollingBack.
func UndoStep(id, name string) Command {
	return Command{event: wal.JobStepUndone, id: id, step: name, bad: checkStep(name)}
}

// SetProgress says that a started job is alive, and how far it is; nil: nothing new. The value is taken as
// [Submission].Args is.
func SetProgress(id string, value any) Command {
	return Command{event: wal.JobProgress, id: id, payload: value, field: "Progress"}
}

// Hold says that an unfinished job waits for somebody's decision, and why. Until it is released it takes no command but
// Fail, and, if it has started, Complete; the others get a *[statemachine.HeldError]. The reason must not be empty; it is
// treated as Fail's cause.
func Hold(id, reason string) Command { return noted(wal.JobHeld, id, "reason", reason) }

// Release says what was decided about a held job, and by whom: it may go on. The decision must not be empty; it is treated
// as Fail's cause.
func Release(id, decision string) Command { return noted(wal.JobReleased, id, "decision", decision) }

func noted(on wal.EventType, id, field, text string) Command {
	c := Command{event: on, id: id, text: strings.ToValidUTF8(text, "\uFFFD")}
	if text == "" {
		c.bad = &wal.InvalidError{Field: field, Reason: "empty"}
	}
	return c
}

func checkStep(name string) error {
	reason := ""
	switch {
	case name == "":
		reason = "empty"
	case len(name) > maxStep:
		reason = fmt.Sprintf("%d bytes, the most is %d", len(name), maxStep)
	case !utf8.ValidString(name):
		reason = "not valid UTF-8"
	case strings.ContainsFunc(name, unicode.IsControl):
		reason = "control character"
	default:
		return nil
	}
	return &wal.InvalidError{Field: "step", Reason: reason}
}

// maxStep is the most bytes of a step's name.
const maxStep = 256

// isMark: see [Step].
func isMark(name string) bool { return strings.HasPrefix(name, "#") }

// stepArgs are the Args of an event about a step.
type stepArgs struct {
	Step string `json:"step"`
}

// StepName returns the name of the step that an event of type job_step or job_step_undone is about; "" for other types, and
// where Args do not say.
func StepName(e wal.Event) string {
	if e.Type != wal.JobStep && e.Type != wal.JobStepUndone {
		return ""
	}
	if name, ok := plainStep(e.Args); ok {
		return name
	}
	// A struct would take "Step" for "step".
	var fields map[string]json.RawMessage
	var name string
	if json.Unmarshal(e.Args, &fields) != nil || json.Unmarshal(fields["step"], &name) != nil {
		return ""
	}
	return name
}

// plainStep takes what [Step] makes of a name that needs no escapes, which is a job of a thousand steps read in half the
// time.
func plainStep(args []byte) (string, bool) {
	name, begun := bytes.CutPrefix(args, []byte(`{"step":"`))
	name, ended := bytes.CutSuffix(name, []byte(`"}`))
	if !begun || !ended || !utf8.Valid(name) {
		return "", false
	}
	for _, c := range name {
		if c < ' ' || c == '"' || c == '\\' {
			return "", false
		}
	}
	return string(name), true
}

// Resume says that a started job's work begins once more, in this epoch. Call it before the work: an attempt is counted
// ([statemachine.Job].Attempts) that no crash takes back.
func (e *Engine) Resume(ctx context.Context, id string) (statemachine.Job, error) {
	return e.one(ctx, Resume(id))
}

// Step records that a step of a started job is done, and what came of it: see the function [Step].
func (e *Engine) Step(ctx context.Context, id, name string, output any) (statemachine.Job, error) {
	return e.one(ctx, Step(id, name, output))
}

// UndoStep records that what a step of a completed or failed job did was undone. Call it when it is.
func (e *Engine) UndoStep(ctx context.Context, id, name string) (statemachine.Job, error) {
	return e.one(ctx, UndoStep(id, name))
}

// SetProgress records that a started job is alive, and how far it is. Each call is a durable event: call it seldom.
func (e *Engine) SetProgress(ctx context.Context, id string, value any) (statemachine.Job, error) {
	return e.one(ctx, SetProgress(id, value))
}

// Hold keeps an unfinished job until somebody decides: see the function [Hold].
func (e *Engine) Hold(ctx context.Context, id, reason string) (statemachine.Job, error) {
	return e.one(ctx, Hold(id, reason))
}

// Release lets a held job go on: see the function [Release]. Its epoch is the present one then, so it is not among the
// [Engine.Interrupted]: whoever releases it sees to it that it goes on, or ends.
func (e *Engine) Release(ctx context.Context, id, decision string) (statemachine.Job, error) {
	return e.one(ctx, Release(id, decision))
}

// ErrChanged: the job is not as it was looked at. See [ChangedError].
var ErrChanged = errors.New("recovery: job has changed")

// A ChangedError says that a command with [Command.IfSeq] came too late. Nothing was written. It matches ErrChanged.
type ChangedError struct {
	JobID      string
	Seq        uint64 // of its newest event as it was looked at
	Newest     uint64 // and as it is now
	NewestType wal.EventType
}

func (e *ChangedError) Error() string {
	text := fmt.Sprintf("recovery: job %q has changed since: seq %d was its newest event, now it is seq %d", e.JobID, e.Seq, e.Newest)
	if e.NewestType != "" {
		text += " (" + string(e.NewestType) + ")"
	}
	return text
}

// Is makes errors.Is(err, ErrChanged) true.
func (e *ChangedError) Is(target error) bool { return target == ErrChanged }

// IfSeq returns the command with a condition: it is refused with a *[ChangedError] unless its job's newest event is the one
// at seq when it is carried out. In a group, the condition is on the job as it stands before the group. 0: no condition.
func (c Command) IfSeq(seq uint64) Command {
	c.ifSeq = seq
	return c
}

// expected: the commands' jobs are locked.
func (e *Engine) expected(commands []Command) error {
	for i, c := range commands {
		if c.ifSeq == 0 {
			continue
		}
		if job, _ := e.jobs.Get(c.id); job.Seq != c.ifSeq {
			return which(&ChangedError{JobID: c.id, Seq: c.ifSeq, Newest: job.Seq}, i, len(commands))
		}
	}
	return nil
}
