package crashtest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/jobwal/jobwal/wal"
)

// simpleLine is the object of one line; one of its fields is set (of the first line, Log and Salt).
type simpleLine struct {
	Log, Salt string        `json:",omitempty"`
	Events    []simpleEvent `json:",omitempty"`
	Epoch     uint64        `json:",omitempty"`
	Closed    bool          `json:",omitempty"`
}

// simpleEvent is a wal.Event whose absent payloads are told from null.
type simpleEvent struct {
	Seq        uint64
	Prev       uint64
	Epoch      uint64
	Time       time.Time
	Type       wal.EventType
	JobID      string
	Capability string
	Args       json.RawMessage `json:",omitempty"`
	Output     json.RawMessage `json:",omitempty"`
	Error      string
	Problem    string
}

func simpleSum(salt, object []byte) string { return fmt.Sprintf("%08x", sum(salt, object)) }

// encode returns a line with its newline.
func (l *SimpleLog) encode(line simpleLine) ([]byte, error) {
	var object bytes.Buffer
	encoder := json.NewEncoder(&object)
	encoder.SetEscapeHTML(false) // payloads are kept as they are given
	if err := encoder.Encode(line); err != nil {
		return nil, err
	}
	salt := l.salt
	if line.Log != "" {
		salt = nil
	}
	sum := simpleSum(salt, bytes.TrimSuffix(object.Bytes(), []byte("\n")))
	return append([]byte(sum+" "), object.Bytes()...), nil
}

// decode returns the line that text is, newline excluded, and whether it is intact.
func (l *SimpleLog) decode(text, salt []byte) (line simpleLine, intact bool) {
	if len(text) < 10 || text[8] != ' ' {
		return line, false
	}
	want, found := simpleSum(salt, text[9:]), string(text[:8])
	intact = want == found || l.has(LooseChecksum) && strings.EqualFold(want, found) || l.has(NoChecksum)
	return line, intact && json.Unmarshal(text[9:], &line) == nil
}

// simpleFile is what a file holds.
type simpleFile struct {
	groups [][]wal.Event
	last   uint64
	epoch  uint64
	torn   bool
}

func (l *SimpleLog) corrupt(at int, seq uint64, reason string) error {
	return &wal.CorruptError{Path: l.path(), Offset: int64(at), Seq: seq, Reason: reason}
}

// parse takes the file apart, and tells a torn tail from corruption.
func (l *SimpleLog) parse(data []byte) (found simpleFile, err error) {
	if len(data) == 0 {
		return found, l.corrupt(0, 1, "no header")
	}
	for at := 0; at < len(data); {
		text, _, whole := bytes.Cut(data[at:], []byte("\n"))
		line, intact := l.decode(text, l.salt)
		switch {
		case at == 0 && !(whole && intact && line.Log != ""):
			return found, l.corrupt(0, 1, "no header") // it was synced before the file had its name
		case !whole || !intact:
			if l.anyIntact(data[at+1:]) {
				return found, l.corrupt(at, found.last+1, "bad line, and an intact one behind it")
			}
			found.torn = true
			return found, nil
		case at == 0:
			l.id, l.salt = line.Log, []byte(line.Salt)
		}
		if err := found.take(line); err != nil {
			return found, l.corrupt(at, found.last+1, err.Error())
		}
		at += len(text) + 1
	}
	return found, nil
}

// anyIntact looks for a line wherever one may begin: the newline before it may be what was damaged.
func (l *SimpleLog) anyIntact(data []byte) bool {
	for i := range data {
		text, _, whole := bytes.Cut(data[i:], []byte("\n"))
		if _, intact := l.decode(text, l.salt); whole && intact {
			return true
		}
	}
	return false
}

func (f *simpleFile) take(line simpleLine) error {
	f.epoch = max(f.epoch, line.Epoch)
	if len(line.Events) == 0 {
		return nil
	}
	group := make([]wal.Event, len(line.Events))
	for i, e := range line.Events {
		if e.Seq != f.last+1 {
			return fmt.Errorf("seq %d where %d belongs", e.Seq, f.last+1)
		}
		group[i], f.last = wal.Event(e), e.Seq
	}
	f.groups = append(f.groups, group)
	return nil
}

func toSimple(group []wal.Event) []simpleEvent {
	events := make([]simpleEvent, len(group))
	for i, e := range group {
		events[i] = simpleEvent(e)
	}
	return events
}
