package subject

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/jobwal/jobwal/recovery/crashtest/internal/orders"
	"github.com/jobwal/jobwal/wal"
)

// Mark is what a line of the ledger says.
type Mark string

// The marks, as they stand in the file.
const (
	Began     Mark = "begin"  // the program is about to act; killed from here on, it may have acted
	Performed Mark = "done"   // it acted, or found that it had
	Undid     Mark = "undone" // it took the effect back, or found that the world has no trace of it
	Told      Mark = "acked"  // it told somebody that an event is in the log
)

// An Effect is one thing done to the world outside of the log.
type Effect struct {
	Job        string `json:"job"`
	Capability string `json:"capability,omitempty"`
	Name       string `json:"effect,omitempty"` // apart from the job's other effects; "" where it has one
	// Key names what is done by itself, for an effect that must not happen twice whichever job does it, such as the
	// number of an order. Default: the job and the name.
	Key string `json:"key,omitempty"`
	// Irreversible: nothing takes it back, so it must not happen twice.
	Irreversible bool `json:"irreversible,omitempty"`
}

// An Entry is one line of the ledger, in JSON. Programs in other languages append their own, each in one write to a file
// that is opened for appending.
type Entry struct {
	Mark Mark `json:"mark"`
	Effect
	Seq   uint64        `json:"seq,omitempty"`   // of acked
	Event wal.EventType `json:"event,omitempty"` // of acked
	Run   string        `json:"run,omitempty"`   // which process wrote it: pid and time of start
	Life  int           `json:"life,omitempty"`  // which start of the program, as Certify counts
	Op    int           `json:"op,omitempty"`    // the number of this line among the operations of that life
	// Unsynced: what had to be on stable storage by now was written and not synced: of begin the job's start, of acked
	// its event. Only a program with KillFS knows.
	Unsynced bool `json:"unsynced,omitempty"`
}

// A Ledger is where a program says what it does to the world, apart from its log. A line is one write, so it survives
// SIGKILL; it is not synced. A nil *Ledger takes everything and does nothing. Safe for concurrent use.
type Ledger struct {
	file    *os.File
	control *control // nil when nobody certifies
}

// run tells apart processes that had the same pid.
var run = fmt.Sprintf("%d-%d", os.Getpid(), time.Now().UnixNano())

// OpenLedger opens the ledger at a path, and makes it if there is none. With path "" it is the one that Certify named
// to this process; where nobody certifies, it is nil, which costs nothing.
func OpenLedger(path string) (*Ledger, error) {
	c := current()
	if path == "" && c == nil {
		return nil, nil
	}
	if path == "" {
		path = c.Ledger
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("crashtest: %w", err)
	}
	return &Ledger{file, c}, nil
}

// Begin says that the effect is about to happen. Call it when the job's start is durable.
func (l *Ledger) Begin(e Effect) error { return l.Record(Entry{Mark: Began, Effect: e}) }

// Done says that the effect has happened. Call it before the job is completed. After a crash it may be called without
// Begin, by a program that found out.
func (l *Ledger) Done(e Effect) error { return l.Record(Entry{Mark: Performed, Effect: e}) }

// Undone says that the effect is not in the world (any more). Call it before the job is rolled back, or before an
// interrupted effect is begun again.
func (l *Ledger) Undone(e Effect) error { return l.Record(Entry{Mark: Undid, Effect: e}) }

// Acked says that somebody was told that a job's event is in the log, at seq.
func (l *Ledger) Acked(job string, on wal.EventType, seq uint64) error {
	return l.Record(Entry{Mark: Told, Effect: Effect{Job: job}, Event: on, Seq: seq})
}

// Record appends a line. Run, Life, Op and Unsynced are set by it.
func (l *Ledger) Record(e Entry) error {
	if l == nil {
		return nil
	}
	e.Run = run
	c := l.control
	if c == nil {
		return l.write(e)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	e.Life, e.Op = c.Life, c.beginLocked(fmt.Sprintf("%s %s %s", orders.Ledger, e.Mark, e.Job))
	switch e.Mark {
	case Began:
		e.Unsynced = c.hangsLocked(eventKey(e.Job, wal.JobStarted))
	case Told:
		e.Unsynced = c.hangsLocked(eventKey(e.Job, e.Event))
	}
	err := l.write(e)
	c.dieLocked(e.Op, true)
	return err
}

func (l *Ledger) write(e Entry) error {
	line, err := json.Marshal(e)
	if err == nil {
		_, err = l.file.Write(append(line, '\n'))
	}
	if err != nil {
		return fmt.Errorf("crashtest: ledger: %w", err)
	}
	return nil
}

// Close closes the file. Nothing is lost without it.
func (l *Ledger) Close() error {
	if l == nil {
		return nil
	}
	return l.file.Close()
}

// ReadLedger returns the lines of a ledger, in order, and the number of those that are none: a kill may cut the last
// line of a life. A ledger that was never begun is empty.
func ReadLedger(path string) (entries []Entry, cut int, err error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, fmt.Errorf("crashtest: %w", err)
	}
	for line := range bytes.Lines(data) {
		var e Entry
		if json.Unmarshal(line, &e) != nil {
			cut++
			continue
		}
		entries = append(entries, e)
	}
	return entries, cut, nil
}
