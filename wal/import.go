package wal

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"
)

// An ImportError is a complaint about one line of an imported file. Reading goes on after it.
type ImportError struct {
	Line   int // from 1
	Reason string
	// Kept is set when the line's event was yielded all the same.
	Kept bool
	// Behind is the event that stands, whole, behind the bytes of a torn one on the same line, if there is one: the
	// ancestor's next writer put it there, acknowledged it, and its reader never saw it again. It is not yielded by
	// itself, since no line of its own vouches for it. Its Seq is the ancestor's, its Prev is 0.
	Behind *Event
}

func (e *ImportError) Error() string {
	return fmt.Sprintf("wal: import: line %d: %s", e.Line, e.Reason)
}

// Import reads a log as runtimo-core 0.1.0 wrote it: plain JSON Lines, no checksums, no groups. An event comes with a
// nil error; a complaint, which is an [*ImportError], by itself, and reading goes on. Any other error is the reader's
// and ends it.
//
// Every line that is an event is yielded, in the file's order, with the time and the strings it has. Seq and Prev are
// what Append gives and asks for when the events are appended, one by one or in groups, to an empty log: the
// ancestor's own seqs may collide, where two of its processes wrote one file, which is complained of. A job whose first
// event is not its submission is complained of, too. What the ancestor kept under output of job_submitted becomes Args.
//
// Memory: one line, and some 100 bytes for each job.
func Import(r io.Reader) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		im := importer{door: *newDoor(), r: bufio.NewReaderSize(r, readBuffer), last: make(map[string]uint64), yield: yield}
		for im.next() {
		}
	}
}

type importer struct {
	door    door
	r       *bufio.Reader
	line    int
	count   uint64            // events yielded
	last    map[string]uint64 // a job's last event
	highest uint64            // of the ancestor's seqs
	seen    bool              // highest is set
	yield   func(Event, error) bool
}

// next takes one line and tells whether to go on.
func (im *importer) next() bool {
	text, err := im.read()
	if err != nil && (!errors.Is(err, io.EOF) || len(text) == 0) {
		if !errors.Is(err, io.EOF) {
			im.yield(Event{}, fmt.Errorf("wal: import: line %d: %w", im.line, err))
		}
		return false
	}
	if im.line == 1 {
		text = bytes.TrimPrefix(text, []byte("\ufeff")) // what some editors put before the first line
	}
	if len(bytes.TrimSpace(text)) == 0 && text != nil {
		return true
	}
	if text == nil {
		return im.complain(&ImportError{Reason: fmt.Sprintf("longer than %d bytes", MaxLineBytes)})
	}
	e, err := im.parse(text)
	if err != nil {
		return im.complain(im.explain(text, err))
	}
	return im.event(e)
}

// read returns the next line without its newline; nil for one that is too long to be held.
func (im *importer) read() ([]byte, error) {
	im.line++
	var long []byte
	skipped := false
	for {
		part, err := im.r.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			if skipped = skipped || len(long) > MaxLineBytes; !skipped {
				long = append(long, part...)
			}
			continue
		}
		if skipped {
			return nil, notEOF(err)
		}
		if long != nil {
			part = append(long, part...)
		}
		if err == nil {
			part = part[:len(part)-1]
		}
		return part, err
	}
}

// parse takes a line that has what the ancestor's reader asks for.
func (im *importer) parse(text []byte) (Event, error) {
	var f fields
	if err := f.parse(im.door.json, text); err != nil {
		return Event{}, err
	}
	seq := f.uint("seq")
	sec := f.int("ts")
	kind, job := f.text("type"), f.text("job_id")
	capability, errText := f.textOrNone("capability"), f.textOrNone("error")
	e := Event{
		Seq: seq, Time: time.Unix(min(sec, maxUnix+1), int64(min(f.uintOr0("ns"), 999_999_999))), Type: EventType(kind.string()),
		JobID: job.string(), Capability: capability.string(), Error: errText.string(),
		Args: f.raw("args"), Output: f.raw("output"),
	}
	if f.err != nil {
		return Event{}, f.err
	}
	if e.Type == JobSubmitted && e.Args == nil {
		e.Args, e.Output = e.Output, nil
	}
	return im.door.check(e, time.Now)
}

// event yields an event, and then what there is to complain of it.
func (im *importer) event(e Event) bool {
	theirs := e.Seq
	im.count++
	prev, known := im.last[e.JobID]
	e.Seq, e.Prev = im.count, prev
	im.last[e.JobID] = e.Seq
	if e.JobID == "" {
		e.Prev, known = 0, true
	}
	if !im.yield(e, nil) {
		return false
	}
	before := im.highest
	collides := im.seen && theirs <= before
	im.highest, im.seen = max(before, theirs), true
	if collides && !im.complain(&ImportError{Kept: true,
		Reason: fmt.Sprintf("seq %d does not follow on seq %d: two writers, or lines out of order", theirs, before)}) {
		return false
	}
	if !known && e.Type != JobSubmitted {
		return im.complain(&ImportError{Kept: true,
			Reason: fmt.Sprintf("job %q starts with %s: its first events are missing", e.JobID, e.Type)})
	}
	return true
}

func (im *importer) complain(e *ImportError) bool {
	e.Line = im.line
	return im.yield(Event{}, e)
}

// maxStarts bounds the places inside one damaged line where a whole event is looked for.
const maxStarts = 64

// explain says what is wrong with a line, and looks for a whole event behind a torn one.
func (im *importer) explain(text []byte, err error) *ImportError {
	complaint := &ImportError{Reason: "not an event: " + err.Error()}
	at := 0
	for range maxStarts {
		i := bytes.Index(text[min(at+1, len(text)):], []byte(`{"seq":`))
		if i < 0 {
			break
		}
		at += 1 + i
		if e, err := im.parse(text[at:]); err == nil {
			complaint.Behind = &e
			complaint.Reason = fmt.Sprintf("two lines fused: a torn event, and behind it, at byte %d, the event seq %d (%s of job %s)",
				at, e.Seq, e.Type, e.JobID)
			return complaint
		}
	}
	return complaint
}
