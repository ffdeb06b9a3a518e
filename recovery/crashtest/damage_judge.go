package crashtest

import (
	"fmt"
	"maps"
	"slices"

	"github.com/jobwal/jobwal/wal"
)

// A Verdict is what a directory must lead to.
type Verdict string

// The verdicts of the fault catalogue. An error leaves every byte of the directory as it was.
const (
	Unharmed Verdict = "unharmed" // it opens, with every event; nothing is cut
	Repaired Verdict = "repaired" // it opens to exactly the whole groups before the damage; the rest is cut, kept and reported
	Parked   Verdict = "parked"   // it opens, with every event; those that can't be taken park their own job, and no other
	Refused  Verdict = "refused"  // wal.ErrCorrupt from every way to open it
	// RefusedWhenRead is damage in a sealed segment, which wal.Open has no need to read: wal.ErrCorrupt comes where it
	// is read, from wal.Verify, and from recovery.Open.
	RefusedWhenRead Verdict = "refused when read"
	Version         Verdict = "version" // wal.ErrVersion
)

// A Judgement says what must be made of a directory, by promise W3 of package wal and R4 of package recovery.
type Judgement struct {
	Verdict Verdict
	// Path, Offset and Seq say where the log stops being what was written: the file's name, the first byte that is not as
	// it should be, and the first event that is not delivered. Offset is 0 where a segment's header or name is at fault.
	// They are zero for a log that is Unharmed or Parked.
	Path   string
	Offset int64
	Seq    uint64
	Reason string

	// The log holds the events First to Last; Readable is the last one before the damage, where it is in a sealed
	// segment, and else Last. What a writer's Open cuts is Cut, by file. No event beyond Durable is known to have been
	// acknowledged: a reader is not shown it.
	First, Last, Readable uint64
	Durable               uint64
	Cut                   map[string][]byte
	// Events are First to Readable, as their lines say. Of those that cannot be read Problem says why, in the judge's
	// own words, and only Seq, Prev and JobID are set.
	Events []wal.Event
	// States are those of all jobs, by the events that they could take. Stuck are the jobs that are parked, each with
	// the seq of the event that did it. Unreadable are the events of which not even the job can be made out.
	States     map[string]string
	Stuck      map[string]uint64
	Unreadable []uint64
	// Blemished: bytes behind the last event of a sealed segment are not as they were written. No event is harmed, and
	// nothing but wal.Verify, which reads every byte, has to complain.
	Blemished bool
}

// Judge says what must be made of an image. It knows the documented format and shares no code with packages wal,
// statemachine and recovery; it is slow, holds everything in memory, and is meant to be read beside the promises. The
// image is not changed. Events share no memory with it.
//
// It judges segments alone: what stands in checkpoints and carried files it does not read, so that of a log that was
// compacted it knows less than an engine.
func Judge(img Image) Judgement {
	j := Judgement{First: 1, Cut: make(map[string][]byte), States: make(map[string]string), Stuck: make(map[string]uint64)}
	segments, blank, ok := j.headers(img)
	if !ok {
		return j
	}
	var newest tail
	if n := len(segments); n > 0 {
		newest = segments[n-1].scan()
		if segments, ok = j.chain(segments, newest.floor); !ok {
			return j
		}
		j.First, j.Last, j.Durable = segments[0].first, newest.next-1, newest.durable
		if newest.durable >= newest.next {
			return j.refuse(segments[len(segments)-1].name, newest.at, newest.next,
				"%s, but seq %d was durable", newest.reason, newest.durable)
		}
		j.cutTail(segments[len(segments)-1], newest)
	}
	if blank != nil && blank.first != j.Last+1 {
		return j.refuse(blank.name, 0, j.Last+1, "no header, and the log ends before it")
	}
	if blank != nil && len(blank.file) > 0 {
		j.Cut[blank.name] = blank.file
		j.found(Repaired, blank.name, 0, j.Last+1, "no header")
	}
	j.read(segments)
	j.fold()
	return j
}

func (j *Judgement) found(v Verdict, name string, offset int, seq uint64, format string, args ...any) {
	j.Verdict, j.Path, j.Offset, j.Seq, j.Reason = v, name, int64(offset), seq, fmt.Sprintf(format, args...)
}

func (j *Judgement) refuse(name string, offset int, seq uint64, format string, args ...any) Judgement {
	j.found(Refused, name, offset, seq, format, args...)
	j.First, j.Last, j.Readable = 1, 0, 0
	return *j
}

func (j *Judgement) cutTail(s segment, t tail) {
	if t.reason == "" {
		return
	}
	j.Cut[s.name] = s.file[t.end:]
	j.found(Repaired, s.name, t.end, t.next, "%s", t.reason)
}

// segment is one file.
type segment struct {
	name  string
	first uint64 // as the name says
	head  lineRecord
	lines []span // behind the header
	body  int    // where they begin
	file  []byte
}

// headers are the segments as their headers tell; blank is the newest one, if it never held anything.
func (j *Judgement) headers(img Image) (segments []segment, blank *segment, ok bool) {
	names := img.Segments()
	for i, name := range names {
		s := segment{name: name, first: firstOf(name), file: img[name]}
		found := false
		s.head, s.body, found = readHeader(s.file)
		s.lines = spans(s.file, s.body)
		switch {
		case !found && (i < len(names)-1 || slices.ContainsFunc(s.lines, span.looksOurs)):
			j.refuse(name, 0, s.first, "no header")
			return nil, nil, false
		case !found:
			blank = &s
			continue
		case s.head.version > 1:
			j.found(Version, name, 0, 0, "format %d", s.head.version)
			return nil, nil, false
		case s.head.first != s.first || s.head.durable != s.first-1 || s.head.floor > s.first:
			j.refuse(name, 0, s.first, "the header is not its own")
			return nil, nil, false
		case len(segments) > 0 && segments[0].head.log != s.head.log:
			j.refuse(name, 0, s.first, "of another log")
			return nil, nil, false
		}
		segments = append(segments, s)
	}
	return segments, blank, true
}

// chain leaves out what was dropped, and holds the rest to be all there.
func (j *Judgement) chain(segments []segment, floor uint64) ([]segment, bool) {
	for _, s := range segments {
		floor = max(floor, s.head.floor)
	}
	for len(segments) > 1 && segments[1].first <= max(floor, 1) {
		segments = segments[1:]
	}
	if segments[0].first > max(floor, 1) {
		j.refuse(segments[0].name, 0, max(floor, 1, segments[0].head.prior), "the oldest segment is missing")
		return nil, false
	}
	for i, s := range segments[1:] {
		if before := segments[i]; s.head.prior != before.first || s.head.epoch < before.head.epoch {
			j.refuse(s.name, 0, max(floor, 1, s.head.prior), "does not follow %s", before.name)
			return nil, false
		}
	}
	return segments, true
}

// tail is what the newest segment comes to.
type tail struct {
	next    uint64 // the first seq that is not there as part of a whole group
	durable uint64 // the highest witness, wherever it stands
	floor   uint64
	end     int    // offset behind the last line that counts
	at      int    // offset of the first thing that is not right
	reason  string // what it is; "" when all is well
}

// scan is promise W3: whole groups up to the first thing that is not right, and witnesses everywhere.
func (s segment) scan() tail {
	t := tail{next: s.first, durable: s.first - 1, end: s.body, reason: "the segment ends here"}
	want, left := s.first, uint64(0)
	for i, l := range s.lines {
		r := readLine(l.text, s.head.salt)
		switch {
		case !l.whole || !r.intact || l.gap:
			t.reason = "a line that is not as it was written"
		case r.misplaced:
			t.reason, t.durable = "neither an event nor a mark", max(t.durable, t.next)
		case r.mark != "" && (left > 0 || r.mark == "segment"):
			t.reason = "a mark out of place"
		case r.mark != "" && r.floor > s.first:
			t.reason, t.durable = "a floor that no writer gives", max(t.durable, t.next)
		case r.mark == "" && (r.seq != want || left > 0 && r.more != left-1):
			t.reason = fmt.Sprintf("seq %d out of place", r.seq)
		default:
			t.durable = max(t.durable, r.durable)
			if r.mark != "" {
				t.floor, t.end = max(t.floor, r.floor), l.end
			} else if want, left = want+1, r.more; left == 0 {
				t.next, t.end = want, l.end
			}
			continue
		}
		t.at = l.at
		for _, behind := range s.lines[i:] {
			t.durable = max(t.durable, witnessIn(behind.text, s.head.salt))
		}
		return t
	}
	t.at = t.end
	switch {
	case left > 0:
		t.reason = "a group that is not whole"
	case t.durable < t.next:
		t.reason = ""
	}
	return t
}

// witnessIn looks for intact lines wherever they begin: what stood before them may have lost its newline.
func witnessIn(text []byte, salt string) (durable uint64) {
	for i := range text {
		if text[i] == '{' {
			if r := readLine(text[i:], salt); r.intact && !r.misplaced {
				durable = max(durable, r.durable)
			}
		}
	}
	return durable
}

// read reads from the front what the log holds.
func (j *Judgement) read(segments []segment) {
	j.Readable = j.First - 1
	for i, s := range segments {
		to, sealed := j.Last, i+1 < len(segments)
		if sealed {
			to = segments[i+1].first - 1
		}
		at, reason := j.readSegment(s, to, sealed)
		if reason != "" {
			j.found(RefusedWhenRead, s.name, at, j.Readable+1, "%s", reason)
			return
		}
	}
}

// readSegment reads one segment up to seq to. Nothing behind that, in a sealed one, speaks of a later seq as durable: it
// would be the next one's. An event of which nothing does was cut once.
func (j *Judgement) readSegment(s segment, to uint64, sealed bool) (at int, reason string) {
	for _, l := range s.lines {
		if j.Readable == to && !sealed {
			return 0, ""
		}
		r := readLine(l.text, s.head.salt)
		switch {
		case j.Readable == to && r.intact && !r.misplaced && r.durable > to:
			return l.at, fmt.Sprintf("seq %d was durable here", r.durable)
		case j.Readable == to:
			j.Blemished = j.Blemished || !r.intact || r.misplaced || r.mark == "" || !l.whole || l.gap
		case !l.whole || !r.intact || l.gap || r.misplaced:
			return l.at, "a line that is not as it was written"
		case r.mark == "" && (r.seq != j.Readable+1 || r.seq > to):
			return l.at, fmt.Sprintf("seq %d out of place", r.seq)
		case r.mark == "":
			j.Events = append(j.Events, r.event())
			j.Readable++
		}
	}
	if j.Readable < to {
		return len(s.file), "the segment ends here"
	}
	return 0, ""
}

// fold is promise R4: what a job cannot take parks it, and no other.
func (j *Judgement) fold() {
	heads := make(map[string]uint64)
	for _, e := range j.Events {
		if e.JobID == "" {
			if e.Problem != "" || forgets(e) && !j.forget(e, heads) {
				j.Unreadable = append(j.Unreadable, e.Seq)
			}
			continue
		}
		next, legal := after(j.States[e.JobID], e.Type)
		legal = legal && e.Problem == "" && e.Prev == heads[e.JobID]
		heads[e.JobID] = e.Seq
		switch {
		case j.Stuck[e.JobID] > 0:
		case legal:
			j.States[e.JobID] = next
		default:
			j.Stuck[e.JobID] = e.Seq
			j.States[e.JobID] += "" // a job, even if this is all that there is of it
		}
	}
	for id, state := range j.States {
		j.States[id] = unheld(state)
	}
	if j.Verdict == "" {
		j.Verdict = Unharmed
		if len(j.Stuck)+len(j.Unreadable) > 0 {
			j.Verdict = Parked
		}
	}
}

// forget lets go of jobs that have ended, and tells whether the event can be read.
func (j *Judgement) forget(e wal.Event, heads map[string]uint64) bool {
	f, err := readForgetting(e)
	for _, id := range f.Jobs {
		if ended(j.States[id]) && j.Stuck[id] == 0 {
			delete(j.States, id)
			delete(heads, id)
		}
	}
	return err == nil
}

// Jobs lists what the jobs come to, a line each, by their ids: "job-1 started", "job-2 submitted, parked by seq 7".
func (j Judgement) Jobs() (lines []string) {
	for _, id := range slices.Sorted(maps.Keys(j.States)) {
		state := or(j.States[id], "unknown")
		if seq := j.Stuck[id]; seq > 0 {
			state += fmt.Sprintf(", parked by seq %d", seq)
		}
		lines = append(lines, id+" "+state)
	}
	return lines
}

func (j Judgement) String() string {
	if j.Path == "" {
		return fmt.Sprintf("%s, seq %d to %d", j.Verdict, j.First, j.Last)
	}
	return fmt.Sprintf("%s: %s: offset %d (seq %d): %s", j.Verdict, j.Path, j.Offset, j.Seq, j.Reason)
}
