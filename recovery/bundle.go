package recovery

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/jobwal/jobwal/wal"
)

// A bundle is one job's story as JSON Lines: a header, and a line for each event.
//
//	{"bundle":1,"log":"ef11…","job_id":"order-1","events":4}
//	{"seq":7,"prev":0,"epoch":1,"ts":1795391881,"ns":370370367,"type":"job_submitted","job_id":"order-1","args":{…}}

// bundleVersion is that of the lines above.
const bundleVersion = 1

// What a bundle may be at most, for whoever reads it.
const (
	maxBundleLine   = 64 << 20 // bytes
	maxBundleBytes  = 1 << 30
	maxBundleEvents = 1 << 20
)

type bundleHead struct {
	Bundle int    `json:"bundle"`
	Log    string `json:"log"`
	JobID  string `json:"job_id"`
	Events int    `json:"events"`
}

// bundleEvent names the fields as a segment does.
type bundleEvent struct {
	Seq        uint64          `json:"seq"`
	Prev       uint64          `json:"prev"`
	Epoch      uint64          `json:"epoch"`
	Sec        int64           `json:"ts"`
	Ns         int64           `json:"ns"`
	Type       wal.EventType   `json:"type"`
	JobID      string          `json:"job_id"`
	Capability string          `json:"capability,omitempty"`
	Args       json.RawMessage `json:"args,omitempty"`
	Output     json.RawMessage `json:"output,omitempty"`
	Error      string          `json:"error,omitempty"`
	Problem    string          `json:"problem,omitempty"`
}

// Export writes the whole story of one job to w, as JSON Lines, for [ReadBundle] and for crashtest.Fixture. redact, if it is
// not nil, is given each event, which is its own, and returns what is written: without secrets, say, or under another job
// id, the same for all. What places an event stays as it was: Seq, Prev, Epoch and Type.
//
// The errors are those of [Engine.History], which leaves nothing out in silence, and w's; wal.ErrInvalid for what redact made
// that is no event. On an error, what was written is no whole bundle, and ReadBundle says so.
func (e *Engine) Export(ctx context.Context, id string, w io.Writer, redact func(wal.Event) wal.Event) error {
	var events []wal.Event
	for event, err := range e.History(ctx, id) {
		if err != nil {
			return err
		}
		if redact != nil {
			event = redacted(event, redact)
		}
		if n := len(events); n > 0 && event.JobID != events[0].JobID || event.JobID == "" {
			return &wal.InvalidError{Field: "redact", Reason: fmt.Sprintf("seq %d: of job %.64q", event.Seq, event.JobID)}
		}
		events = append(events, event)
	}
	out := bufio.NewWriter(w)
	lines := json.NewEncoder(out)
	lines.SetEscapeHTML(false)
	if err := lines.Encode(bundleHead{bundleVersion, e.log.ID(), events[0].JobID, len(events)}); err != nil {
		return err
	}
	for _, event := range events {
		if err := lines.Encode(bundled(event)); err != nil {
			return fmt.Errorf("recovery: export of job %q: seq %d: %w", id, event.Seq, err)
		}
	}
	return out.Flush()
}

func redacted(event wal.Event, redact func(wal.Event) wal.Event) wal.Event {
	seq, prev, epoch, on := event.Seq, event.Prev, event.Epoch, event.Type
	event = redact(event)
	event.Seq, event.Prev, event.Epoch, event.Type = seq, prev, epoch, on
	return event
}

func bundled(e wal.Event) bundleEvent {
	return bundleEvent{
		e.Seq, e.Prev, e.Epoch, e.Time.Unix(), int64(e.Time.Nanosecond()), e.Type, e.JobID, e.Capability, e.Args, e.Output,
		e.Error, e.Problem,
	}
}

func (b bundleEvent) event() wal.Event {
	return wal.Event{
		Seq: b.Seq, Prev: b.Prev, Epoch: b.Epoch, Time: time.Unix(b.Sec, b.Ns).UTC(), Type: b.Type, JobID: b.JobID,
		Capability: b.Capability, Args: b.Args, Output: b.Output, Error: b.Error, Problem: b.Problem,
	}
}

// ReadBundle reads what [Engine.Export] wrote, and believes nothing of it: a bundle has at most 1 GiB, and a million events
// in lines of at most 64 MiB, all of one job, in order of their seqs. An error that matches wal.ErrVersion: it is of a newer
// version; any other: it is no bundle, or not whole, or r's. Whether the events are legal is another matter: often they are
// not, which is why somebody wants to look at them.
func ReadBundle(r io.Reader) ([]wal.Event, error) {
	b := bundleReader{lines: bufio.NewScanner(io.LimitReader(r, maxBundleBytes+1))}
	b.lines.Buffer(nil, maxBundleLine)
	if err := b.read(); err != nil {
		return nil, fmt.Errorf("recovery: bundle: line %d: %w", b.line, err)
	}
	return b.events, nil
}

type bundleReader struct {
	lines  *bufio.Scanner
	line   int
	size   int
	head   bundleHead
	events []wal.Event
}

// next reads one line into v; io.EOF at the end.
func (b *bundleReader) next(v any) error {
	b.line++
	if !b.lines.Scan() {
		if err := b.lines.Err(); err != nil {
			return err
		}
		return io.EOF
	}
	if b.size += len(b.lines.Bytes()) + 1; b.size > maxBundleBytes {
		return fmt.Errorf("%w: more than %d bytes", wal.ErrTooLarge, maxBundleBytes)
	}
	return json.Unmarshal(bytes.Clone(b.lines.Bytes()), v)
}

func (b *bundleReader) read() error {
	switch err := b.next(&b.head); {
	case errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	case err != nil:
		return err
	case b.head.Bundle > bundleVersion:
		return fmt.Errorf("%w: bundle version %d", wal.ErrVersion, b.head.Bundle)
	case b.head.Bundle != bundleVersion || b.head.Events <= 0 || b.head.Events > maxBundleEvents:
		return errors.New("not the header of a bundle")
	}
	for {
		var e bundleEvent
		if err := b.next(&e); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
		if err := b.take(e.event()); err != nil {
			return err
		}
	}
	if len(b.events) != b.head.Events {
		return fmt.Errorf("it has %d events in place of %d: %w", len(b.events), b.head.Events, io.ErrUnexpectedEOF)
	}
	return nil
}

func (b *bundleReader) take(e wal.Event) error {
	switch n := len(b.events); {
	case n == b.head.Events:
		return fmt.Errorf("more than %d events", n)
	case e.JobID == "" || e.JobID != b.head.JobID:
		return fmt.Errorf("an event of job %.64q in a bundle of job %.64q", e.JobID, b.head.JobID)
	case e.Seq == 0 || n > 0 && e.Seq <= b.events[n-1].Seq:
		return fmt.Errorf("seq %d does not follow on what is before it", e.Seq)
	}
	b.events = append(b.events, e)
	return nil
}
