package crashtest

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jobwal/jobwal/wal"
)

// A history in a file is JSON Lines, one record a line:
//
//	{"kind":"run","run":"9f3a01bc5d20e714","n":1,"ns":0,"version":1,"start":"2026-11-23T21:00:00Z"}
//	{"kind":"opened","run":"9f3a01bc5d20e714","n":2,"ns":8100,"epoch":1}
//	{"kind":"begin","run":"9f3a01bc5d20e714","n":3,"ns":9200,"command":1,"steps":[{"type":"job_submitted","job_id":"a"}]}
//	{"kind":"end","run":"9f3a01bc5d20e714","n":4,"ns":91000,"command":1,"outcome":"ok","seq":1}
//	{"kind":"saw","run":"9f3a01bc5d20e714","n":5,"ns":93000,"seq":1,"digest":"c0ffee…"}
//	{"kind":"crash","run":"9f3a01bc5d20e714","n":6,"ns":95000}
//
// Every record says whose it is, so that the lines of several processes may stand in one file, in any mixture that
// keeps each one's own order; n is dense in each run, so that a line that is missing in the middle does not go unseen.
const (
	historyVersion = 1
	recordMemory   = 400 // what a record or a step takes besides its line, about
)

// limits are what ReadHistory holds at once: of one line, and of all.
type limits struct {
	line   int
	memory int64
}

var historyLimits = limits{line: wal.MaxLineBytes + 8<<20, memory: 1 << 30}

// writtenRecord is a record as it is put into a line.
type writtenRecord struct {
	record
	Steps []wireStep `json:"steps,omitempty"`
}

// readRecord is one as it is taken out of a line: "{}," is three bytes and a step is more than a hundred, so steps are
// taken one by one.
type readRecord struct {
	record
	Steps json.RawMessage `json:"steps"`
}

// wireStep is a step whose payloads may be anything: what is not JSON was asked for, too, and refused.
type wireStep struct {
	Step
	ArgsBytes   []byte `json:"args_bytes,omitempty"`
	OutputBytes []byte `json:"output_bytes,omitempty"`
}

// encodeRecord returns the record's line.
func encodeRecord(r *record) []byte {
	w := writtenRecord{record: *r}
	for _, s := range r.Steps {
		one := wireStep{Step: s}
		one.Args, one.ArgsBytes = apart(s.Args)
		one.Output, one.OutputBytes = apart(s.Output)
		w.Steps = append(w.Steps, one)
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false) // it would change the bytes of a payload
	if err := enc.Encode(w); err != nil {
		panic("crashtest: a record that encoding/json refuses: " + err.Error())
	}
	return buf.Bytes()
}

// apart tells what may stand as JSON within JSON from what has to be kept as bytes.
func apart(raw json.RawMessage) (plain json.RawMessage, other []byte) {
	deeper := slices.Concat([]byte("[[[[[["), raw, []byte("]]]]]]")) // encoding/json's bound is for the whole line
	if raw == nil || utf8.Valid(raw) && json.Valid(raw) && json.Valid(deeper) {
		return raw, nil
	}
	return nil, raw
}

// step puts together what apart took apart.
func (w wireStep) step() Step {
	if w.ArgsBytes != nil {
		w.Args = w.ArgsBytes
	}
	if w.OutputBytes != nil {
		w.Output = w.OutputBytes
	}
	return w.Step
}

// Stream writes what was recorded so far, and from now on each record as it is made, in one Write a record. Where w is
// a file of the operating system, a process that is killed leaves every record that it made; where the machine may die,
// too, w has to sync. Successive processes may append to one file, and one may read what another still writes. For
// errors see [History.Err]: after the first, nothing more is written.
func (h *History) Stream(w io.Writer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.out = w
	// The file's last line may be torn: what comes now begins a new one.
	_, h.err = w.Write([]byte("\n"))
	for i := range h.records {
		if h.err == nil {
			_, h.err = w.Write(encodeRecord(&h.records[i]))
		}
	}
}

// WriteTo writes the history as it is now, as [ReadHistory] reads it.
func (h *History) WriteTo(w io.Writer) (n int64, err error) {
	h.mu.Lock()
	records := slices.Clone(h.records)
	h.mu.Unlock()
	for i := range records {
		written, err := w.Write(encodeRecord(&records[i]))
		n += int64(written)
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// A HistoryError says which line is not one of a history.
type HistoryError struct {
	Line   int // from 1
	Reason string
}

func (e *HistoryError) Error() string {
	return fmt.Sprintf("crashtest: history: line %d: %s", e.Line, e.Reason)
}

// ReadHistory reads what [History.Stream] or [History.WriteTo] wrote: of one process, or of several, whose files may be
// given one after the other (io.MultiReader) or be one file. The line that a process was writing when it died is
// dropped, and counted by [History.Torn]; there can be one for each process, and nothing of that process behind it. A
// process that lives goes on with the history that was read as with its own.
//
// Errors are a *[HistoryError] or r's. Memory: that of the history, which is refused beyond about 1 GiB; one line
// beyond 72 MiB is refused, too.
func ReadHistory(r io.Reader) (*History, error) { return readHistory(r, historyLimits) }

func readHistory(r io.Reader, most limits) (*History, error) {
	in := historyReader{most: most, room: most.memory, lines: bufio.NewReaderSize(r, 64<<10)}
	in.runs = make(map[string]*readRun)
	for {
		line, err := in.next()
		if len(line) > 0 {
			if err := in.take(line); err != nil {
				return nil, err
			}
		}
		if errors.Is(err, io.EOF) {
			return &History{records: in.records, torn: in.torn}, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

type historyReader struct {
	most    limits
	room    int64 // of most.memory, what is left
	lines   *bufio.Reader
	line    int
	records []record
	torn    int
	runs    map[string]*readRun
}

// readRun is how far one run was read.
type readRun struct {
	order   uint64
	ns      int64
	command uint64
	open    map[uint64]int // how many steps the commands have that were begun and not ended
}

// next returns the next line without what ends it; with io.EOF the last, which may be empty.
func (in *historyReader) next() (line []byte, err error) {
	in.line++
	for {
		part, err := in.lines.ReadSlice('\n')
		if len(line)+len(part) > in.most.line {
			return nil, in.bad("longer than %d bytes", in.most.line)
		}
		line = append(line, part...)
		if !errors.Is(err, bufio.ErrBufferFull) {
			return bytes.TrimRight(line, "\n"), err
		}
	}
}

func (in *historyReader) bad(format string, args ...any) error {
	return &HistoryError{in.line, fmt.Sprintf(format, args...)}
}

// take takes one line. What is cut short says so by not being JSON: no record's beginning is a record.
func (in *historyReader) take(line []byte) error {
	if !json.Valid(line) {
		const begins = `{"kind":"`
		if n := min(len(begins), len(line)); string(line[:n]) != begins[:n] || in.torn > len(in.runs) {
			return in.bad("not a record: %.60q", line)
		}
		in.torn++
		return nil
	}
	if err := in.spend(int64(len(line)) + recordMemory); err != nil {
		return err
	}
	var w readRecord
	if err := json.Unmarshal(line, &w); err != nil {
		return in.bad("not a record: %v", err)
	}
	var err error
	if w.record.Steps, err = in.steps(w.Steps); err != nil {
		return err
	}
	if reason := in.check(&w.record); reason != "" {
		return in.bad("%s", reason)
	}
	in.records = append(in.records, w.record)
	return nil
}

func (in *historyReader) spend(bytes int64) error {
	if in.room -= bytes; in.room < 0 {
		return in.bad("the history takes more than %d bytes", in.most.memory)
	}
	return nil
}

func (in *historyReader) steps(raw json.RawMessage) (steps []Step, err error) {
	if raw == nil {
		return nil, nil
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	if open, err := d.Token(); err != nil || open != json.Delim('[') {
		return nil, in.bad("steps: not an array")
	}
	for d.More() {
		if err := in.spend(recordMemory); err != nil {
			return nil, err
		}
		var one wireStep
		if err := d.Decode(&one); err != nil {
			return nil, in.bad("step %d: %v", len(steps)+1, err)
		}
		steps = append(steps, one.step())
	}
	return steps, nil
}

// check says why the record cannot stand here, "" when it can.
func (in *historyReader) check(r *record) string {
	run := in.runs[r.Run]
	switch {
	case r.Kind == kindRun:
		return in.checkRun(r, run)
	case run == nil:
		return fmt.Sprintf("a record of run %.40q, which never began", r.Run)
	case r.N != run.order+1:
		return fmt.Sprintf("record %d of run %s where %d was expected: lines are missing, or not in their order",
			r.N, r.Run, run.order+1)
	case r.NS < run.ns:
		return fmt.Sprintf("time goes back, from %d to %d ns", run.ns, r.NS)
	}
	run.order, run.ns = r.N, r.NS
	switch r.Kind {
	case kindBegin:
		return run.begin(r)
	case kindEnd:
		return run.end(r)
	case kindSaw:
		if b, err := hex.DecodeString(r.Digest); err != nil || len(b) != digestBytes || r.Seq == 0 {
			return "saw: seq 0, or no digest"
		}
	case kindOpened:
		if r.Epoch == 0 {
			return "opened: epoch 0"
		}
	case kindCrash, kindDropped, kindCompacts:
	default:
		return fmt.Sprintf("a record of unknown kind %.40q", r.Kind)
	}
	return ""
}

func (in *historyReader) checkRun(r *record, run *readRun) string {
	switch {
	case r.Version > historyVersion:
		return fmt.Sprintf("version %d, this one knows %d; use a newer jobwal", r.Version, historyVersion)
	case r.Version != historyVersion, r.Start == nil, r.N != 1, r.NS < 0, r.Run == "":
		return "run: no version, start or name"
	case run != nil:
		return fmt.Sprintf("run %.40q begins twice", r.Run)
	}
	in.runs[r.Run] = &readRun{order: 1, ns: r.NS, open: make(map[uint64]int)}
	return ""
}

func (run *readRun) begin(r *record) string {
	if r.Command != run.command+1 {
		return fmt.Sprintf("begin: command %d where %d was expected", r.Command, run.command+1)
	}
	run.command++
	run.open[r.Command] = len(r.Steps)
	return ""
}

func (run *readRun) end(r *record) string {
	steps, open := run.open[r.Command]
	switch {
	case !open:
		return fmt.Sprintf("end: command %d was never begun, or has ended", r.Command)
	case !slices.Contains([]Outcome{OutcomeOK, OutcomeFailed, OutcomeUnknown}, r.Outcome):
		return fmt.Sprintf("end: outcome %.40q", r.Outcome)
	case r.Step < 0 || r.Step > 0 && (r.Step >= steps || uint64(r.Step) >= r.Seq):
		return fmt.Sprintf("end: step %d of %d at seq %d", r.Step, steps, r.Seq)
	}
	delete(run.open, r.Command)
	return ""
}

// Merge puts the histories of processes that ran side by side, on one machine, into one, by the machine's clock. Where
// they ran one after the other, reading their files one after the other does it, too. (Of what happened in two
// processes, only a crash of the disk below both needs an order; a clock that is set in the middle may give that a
// wrong one.) They must have no run in common.
func Merge(histories ...*History) *History {
	type timed struct {
		record
		at time.Time
	}
	var all []timed
	merged, starts := new(History), make(map[string]time.Time)
	for _, h := range histories {
		h.mu.Lock()
		merged.torn += h.torn
		for _, r := range h.records {
			if r.Kind == kindRun {
				starts[r.Run] = *r.Start
			}
			all = append(all, timed{r, starts[r.Run].Add(time.Duration(r.NS))})
		}
		h.mu.Unlock()
	}
	slices.SortStableFunc(all, func(a, b timed) int {
		if a.Run == b.Run {
			return cmp.Compare(a.N, b.N)
		}
		if c := a.at.Compare(b.at); c != 0 {
			return c
		}
		return strings.Compare(a.Run, b.Run)
	})
	for _, r := range all {
		merged.records = append(merged.records, r.record)
	}
	return merged
}
