package crashtest

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/jobwal/jobwal/wal"
)

// A Damage is one thing that disks, crashes and people do to the files of a log, with the verdict that it must lead to,
// whatever log it is done to.
type Damage struct {
	Name    string // as in "bit flip in the middle"
	Row     string // of the fault catalogue: "F3"
	Doc     string // what happens, in one sentence
	Verdict Verdict
	// Do damages an image that a healthy log left, in place. It chooses by r: one seed, one result. false means that the
	// image has nothing to do this to (no second segment, say), and it is as it was.
	Do func(r *rand.Rand, img Image) bool
}

func (d Damage) String() string { return d.Row + " " + d.Name }

// Damages are all of them, in the order of the catalogue's rows. The list is the caller's.
func Damages() []Damage { return slices.Clone(damages) }

var damages = []Damage{
	{"cut in a line", "F1", "The newest segment ends in the middle of a line.", Repaired, cutInLine},
	{"cut in a header", "F1", "The newest segment, which holds no event yet, ends inside its header.", Repaired, cutInHeader},
	{"zeros tail", "F1", "The file grew before its data came: zeros follow.", Repaired, tailed(zeros)},
	{"newlines tail", "F1", "Room for lines to come follows, which is no damage.", Unharmed, tailed(newlines)},
	{"garbage tail", "F1", "Random bytes follow.", Repaired, tailed(garbage)},
	{"stale block tail", "F1", "A block that belonged to an older segment follows.", Repaired, staleTail},
	{"group not whole", "F1", "The last append's second line never came to the disk.", Repaired, groupNotWhole},
	{"loss inside the unsynced window", "F2", "Of two appends in flight, the first is lost and the second is there.",
		Repaired, lossInWindow},
	{"hole covered by a durable", "F3", "Zeros in place of an event that a later line says was durable.", Refused, hole},
	{"newlines in the middle", "F3", "Room for lines stands in front of an event that a later line says was durable.", Refused, blanks},
	{"bit flip in the middle", "F3", "One bit of an event is turned that a later line says was durable.", Refused, flipCovered},
	{"bit flip in the last event", "F4", "One bit of the last event is turned, behind which the log was closed.",
		Refused, flipLast},
	{"duplicated line", "F5", "An event's line stands there twice.", Refused, duplicateLine},
	{"swapped lines", "F5", "Two events have changed places.", Refused, swapLines},
	{"misplaced block", "F5", "A block was written where another one belongs.", Refused, misplacedBlock},
	{"duplicated segment", "F5", "A segment is there a second time, under a later name.", Refused, duplicateSegment},
	{"swapped segments", "F5", "Two segments have each other's name.", Refused, swapSegments},
	{"segment of another log", "F5", "A segment is whole, and another log's.", Refused, foreignSegment},
	{"bit flip in a sealed segment", "F6", "One bit of an event in a sealed segment is turned.", RefusedWhenRead, flipSealed},
	{"cut in a sealed segment", "F6", "A sealed segment has lost its last event, and what follows it.", RefusedWhenRead, cutSealed},
	{"middle segment missing", "F6", "A segment between two others is gone.", Refused, middleMissing},
	{"oldest segment missing", "F6", "The oldest segment is gone, and nothing says that it was dropped.", Refused, oldestMissing},
	{"seq gap", "F6", "An event's line is gone, and those around it are there.", Refused, gap},
	{"two segments claiming one seq", "F6", "The newest segment begins before the one behind it ends: two copies of one log, " +
		"each of which went on by itself, were put into one directory.", RefusedWhenRead, overlap},
	{"newest segment missing", "F7", "A segment without an event is gone: its directory entry was never synced.",
		Unharmed, newestMissing},
	{"huge line", "F20", "A line follows that is longer than any reader holds.", Repaired, tailed(huge)},
	{"raw NUL", "F21", "An event whose checksum is right holds a raw NUL.", Parked, spoilt(`,"error":"` + "\x00" + `"`)},
	{"duplicate names", "F21", "An event whose checksum is right says one thing twice.", Parked, spoilt(`,"error":"a","error":"b"`)},
	{"names that differ in case", "F21", "An event has names of its own that differ from ours in case; they mean nothing.",
		Unharmed, added(`,"Seq":1,"Type":"job_rolled_back","JOB_ID":"other","Prev":0`)},
	{"bad UTF-8", "F21", "An event whose checksum is right holds bytes that are no text.", Parked, spoilt(`,"error":"` + "\xff\xfe" + `"`)},
	{"lone surrogate", "F21", "An event whose checksum is right holds half of a character.", Parked, spoilt(`,"error":"\ud800"`)},
	{"deep nesting", "F21", "An event whose checksum is right is nested 100,000 deep.", Parked,
		spoilt(`,"output":` + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000))},
	{"number beyond a double", "F21", "An event whose checksum is right holds a number beyond a double's range.", Parked,
		spoilt(`,"output":[1e999]`)},
	{"number beyond 53 bits", "F21", "An event has a field that is not ours, a number that a double does not hold.", Unharmed,
		added(`,"note":9007199254740993`)},
	{"job id of bad UTF-8", "F21", "An event whose checksum is right has a job id that is no text: it is listed, and no job " +
		"is parked.", Parked, unreadable},
	{"unknown event type", "F22", "An event is of a type from the future.", Parked, unknownType},
	{"newer version", "F22", "The newest segment says that it is of a newer format.", Version, newerVersion},
	{"illegal transition", "F23", "An event whose checksum is right is not one that its job may take.", Parked, illegal},
	{"wrong prev", "F23", "An event whose checksum is right does not follow its job's newest event.", Parked, wrongPrev},
	{"case flip in a checksum", "F24", "A letter of a checksum's hex digits has become a capital one.", Refused, caseFlip},
	{"bit flip around a checksum", "F24", "One bit of a checksum, or of the bytes around it, is turned.", Refused, flipChecksum},
}

// part is a segment with its lines as the judge reads them.
type part struct {
	name    string
	salt    string
	file    []byte
	lines   []span
	records []lineRecord
}

func partOf(img Image, name string) part {
	p := part{name: name, salt: Salt(img[name]), file: img[name], lines: spans(img[name], 0)}
	for _, l := range p.lines {
		p.records = append(p.records, readLine(l.text, p.salt))
	}
	return p
}

// newestPart is the newest segment, which a healthy log has.
func newestPart(img Image) part { return partOf(img, img.Newest()) }

// events are the lines that are events.
func (p part) events() (lines []int) {
	for i, r := range p.records {
		if r.intact && r.mark == "" {
			lines = append(lines, i)
		}
	}
	return lines
}

// covered are the events of which a line behind them says that they, and their whole group, were durable.
func (p part) covered() []int {
	return slices.DeleteFunc(p.events(), func(i int) bool {
		return !slices.ContainsFunc(p.records[i+1:], func(r lineRecord) bool { return r.durable >= p.records[i].seq })
	})
}

// sealed are the segments that are not the newest, and were not dropped.
func sealed(img Image) []string {
	names := img.Segments()
	j := Judge(img)
	return slices.DeleteFunc(names[:max(len(names)-1, 0)], func(name string) bool { return firstOf(name) < j.First })
}

func pick[T any](r *rand.Rand, from []T) (picked T, ok bool) {
	if len(from) == 0 {
		return picked, false
	}
	return from[r.IntN(len(from))], true
}

// flip turns one bit in [from, to) of a copy of the file.
func flip(r *rand.Rand, img Image, name string, from, to int) {
	b := bytes.Clone(img[name])
	b[from+r.IntN(to-from)] ^= 1 << r.IntN(8)
	img[name] = b
}

// splice puts something in the place of file[from:to].
func splice(img Image, name string, from, to int, what []byte) {
	img[name] = slices.Concat(img[name][:from], what, img[name][to:])
}

func cutInLine(r *rand.Rand, img Image) bool {
	p := newestPart(img)
	keep := 1 // the header, and what says that older segments were dropped
	for i, r := range p.records {
		if r.mark == "floor" {
			keep = i + 1
		}
	}
	l, ok := pick(r, p.lines[min(keep, len(p.lines)):])
	if !ok {
		return false
	}
	img[p.name] = bytes.Clone(p.file[:l.at+1+r.IntN(len(l.text))])
	return true
}

func cutInHeader(r *rand.Rand, img Image) bool {
	p := newestPart(img)
	if len(p.events()) > 0 || len(img.Segments()) < 2 {
		return false
	}
	img[p.name] = bytes.Clone(p.file[:1+r.IntN(len(p.lines[0].text))])
	return true
}

// tailed puts something behind the newest segment's last line.
func tailed(what func(r *rand.Rand) []byte) func(*rand.Rand, Image) bool {
	return func(r *rand.Rand, img Image) bool {
		name := img.Newest()
		img[name] = slices.Concat(bytes.TrimRight(img[name], "\n"), []byte("\n"), what(r))
		return true
	}
}

func zeros(r *rand.Rand) []byte    { return make([]byte, 1+r.IntN(5000)) }
func newlines(r *rand.Rand) []byte { return bytes.Repeat([]byte("\n"), 1+r.IntN(5000)) }
func huge(*rand.Rand) []byte       { return bytes.Repeat([]byte("x"), wal.MaxLineBytes+1) }

func garbage(r *rand.Rand) []byte {
	b := []byte("x")
	for range r.IntN(2000) {
		b = append(b, byte(r.Uint32()))
	}
	return b
}

// block is what disks write in one piece.
const block = 512

func staleTail(r *rand.Rand, img Image) bool {
	names := img.Segments()
	old, ok := pick(r, names[:len(names)-1])
	if !ok {
		return false
	}
	b := img[old]
	at := r.IntN((len(b)+block-1)/block) * block
	stale := b[at:min(at+block, len(b))]
	if len(bytes.Trim(stale, "\n")) == 0 {
		return false
	}
	return tailed(func(*rand.Rand) []byte { return stale })(r, img)
}

// next is what the line of the next event has to say.
type next struct {
	seq, epoch, durable uint64
	salt                string
}

func nextOf(img Image) next {
	p, j := newestPart(img), Judge(img)
	n := next{seq: j.Last + 1, durable: j.Last, salt: p.salt}
	for _, r := range p.records {
		n.epoch = max(n.epoch, r.epoch)
	}
	return n
}

// line is that of an event. rest is what stands behind its type and job.
func (n next) line(prev uint64, kind, job, rest string) []byte {
	body := fmt.Sprintf(`{"seq":%d,"prev":%d,"epoch":%d,"ts":946684800,"ns":0,"type":"%s","job_id":%s%s,"durable":%d`,
		n.seq, prev, n.epoch, kind, job, rest, n.durable)
	return []byte(Seal(n.salt, body))
}

// more puts lines behind the newest segment's last one.
func more(img Image, lines ...[]byte) {
	name := img.Newest()
	img[name] = slices.Concat(bytes.TrimRight(img[name], "\n"), []byte("\n"), bytes.Join(lines, nil))
}

func groupNotWhole(r *rand.Rand, img Image) bool {
	n := nextOf(img)
	more(img, n.line(0, "job_submitted", `"torn"`, fmt.Sprintf(`,"more":%d`, 1+r.IntN(3))))
	return true
}

func lossInWindow(r *rand.Rand, img Image) bool {
	n := nextOf(img)
	lost := n.line(0, "job_submitted", `"lost"`, "")
	clear(lost[:1+r.IntN(len(lost)-1)])
	n.seq++
	more(img, lost, n.line(0, "job_submitted", `"there"`, ""))
	return true
}

// toCovered changes the line of an event in the newest segment that is known to have been durable.
func toCovered(change func(r *rand.Rand, img Image, p part, l span) bool) func(*rand.Rand, Image) bool {
	return func(r *rand.Rand, img Image) bool {
		p := newestPart(img)
		i, ok := pick(r, p.covered())
		return ok && change(r, img, p, p.lines[i])
	}
}

var hole = toCovered(func(r *rand.Rand, img Image, p part, l span) bool {
	from := r.IntN(len(l.text))
	splice(img, p.name, l.at+from, l.end, make([]byte, len(l.text)-from+1))
	return true
})

var blanks = toCovered(func(r *rand.Rand, img Image, p part, l span) bool {
	splice(img, p.name, l.at, l.at, newlines(r))
	return true
})

var flipCovered = toCovered(func(r *rand.Rand, img Image, p part, l span) bool {
	flip(r, img, p.name, l.at, l.end)
	return true
})

var flipChecksum = toCovered(func(r *rand.Rand, img Image, p part, l span) bool {
	flip(r, img, p.name, l.end-len(`,"crc":"01234567"}`+"\n"), l.end)
	return true
})

var caseFlip = toCovered(func(r *rand.Rand, img Image, p part, l span) bool {
	digits := bytes.Clone(l.text[len(l.text)-10 : len(l.text)-2])
	at := bytes.IndexAny(digits, "abcdef")
	if at < 0 {
		return false
	}
	digits[at] -= 'a' - 'A'
	splice(img, p.name, l.at+len(l.text)-10, l.at+len(l.text)-2, digits)
	return true
})

var gap = toCovered(func(r *rand.Rand, img Image, p part, l span) bool {
	splice(img, p.name, l.at, l.end, nil)
	return true
})

func flipLast(r *rand.Rand, img Image) bool {
	p := newestPart(img)
	events := p.events()
	if len(events) == 0 || p.records[len(p.records)-1].mark != "closed" {
		return false
	}
	l := p.lines[events[len(events)-1]]
	flip(r, img, p.name, l.at, l.end)
	return true
}

// duplicateLine leaves the last covered event alone: the line that would tell that its copy is too much says no more than
// that it is there once.
func duplicateLine(r *rand.Rand, img Image) bool {
	p := newestPart(img)
	covered := p.covered()
	i, ok := pick(r, covered[:max(len(covered)-1, 0)])
	if !ok {
		return false
	}
	l := p.lines[i]
	splice(img, p.name, l.end, l.end, p.file[l.at:l.end])
	return true
}

func swapLines(r *rand.Rand, img Image) bool {
	p := newestPart(img)
	covered := p.covered()
	if len(covered) < 2 {
		return false
	}
	r.Shuffle(len(covered), func(i, j int) { covered[i], covered[j] = covered[j], covered[i] })
	a, b := p.lines[min(covered[0], covered[1])], p.lines[max(covered[0], covered[1])]
	img[p.name] = slices.Concat(p.file[:a.at], p.file[b.at:b.end], p.file[a.end:b.at], p.file[a.at:a.end], p.file[b.end:])
	return true
}

// misplacedBlock puts it where it damages an event of which a line behind the block says that it was durable.
func misplacedBlock(r *rand.Rand, img Image) bool {
	p := newestPart(img)
	var targets []int
	for to := block; to+block <= len(p.file); to += block {
		if p.vital(to, to+block) {
			targets = append(targets, to)
		}
	}
	to, ok := pick(r, targets)
	if !ok {
		return false
	}
	from := r.IntN(to/block) * block
	splice(img, p.name, to, to+block, p.file[from:from+block])
	return true
}

// vital tells whether [from, to) holds so much of an event that other bytes there can't be the same by chance, and a line
// behind it says that the event was durable.
func (p part) vital(from, to int) bool {
	const enough = 32
	for _, i := range p.events() {
		if l := p.lines[i]; min(l.end, to)-max(l.at, from) < enough {
			continue
		}
		for w, behind := range p.lines {
			if behind.at >= to && p.records[w].durable >= p.records[i].seq {
				return true
			}
		}
	}
	return false
}

func duplicateSegment(r *rand.Rand, img Image) bool {
	name, _ := pick(r, img.Segments())
	img[segmentName(Judge(img).Last+1+r.Uint64N(100)+1)] = bytes.Clone(img[name])
	return true
}

func swapSegments(r *rand.Rand, img Image) bool {
	names := img.Segments()
	if len(names) < 2 {
		return false
	}
	r.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	img[names[0]], img[names[1]] = img[names[1]], img[names[0]]
	return true
}

// reheaded gives a segment another header, with a right checksum.
func reheaded(img Image, name string, edit func(header string) string) {
	salt := Salt(img[name])
	header, rest, _ := bytes.Cut(img[name], []byte("\n"))
	body, _ := Unseal(salt, string(header))
	img[name] = append([]byte(Seal(salt, edit(body))), rest...)
}

func foreignSegment(r *rand.Rand, img Image) bool {
	kept := append(sealed(img), img.Newest())
	if len(kept) < 2 {
		return false
	}
	name, _ := pick(r, kept)
	reheaded(img, name, func(header string) string {
		before, after, _ := strings.Cut(header, `"log":"`)
		return fmt.Sprintf(`%s"log":"%032x%s`, before, r.Uint64(), after[32:])
	})
	return true
}

func newerVersion(_ *rand.Rand, img Image) bool {
	reheaded(img, img.Newest(), func(header string) string {
		return strings.Replace(header, `"version":1`, `"version":2,"packed":true`, 1)
	})
	return true
}

func flipSealed(r *rand.Rand, img Image) bool {
	name, ok := pick(r, sealed(img))
	if !ok {
		return false
	}
	p := partOf(img, name)
	i, ok := pick(r, p.events())
	if !ok {
		return false
	}
	flip(r, img, name, p.lines[i].at, p.lines[i].at+len(p.lines[i].text))
	return true
}

func cutSealed(r *rand.Rand, img Image) bool {
	name, ok := pick(r, sealed(img))
	if !ok {
		return false
	}
	p := partOf(img, name)
	events := p.events()
	if len(events) == 0 {
		return false
	}
	l := p.lines[events[len(events)-1]]
	img[name] = bytes.Clone(p.file[:l.at+r.IntN(len(l.text))])
	return true
}

func middleMissing(r *rand.Rand, img Image) bool {
	kept := sealed(img)
	name, ok := pick(r, kept[min(1, len(kept)):])
	delete(img, name)
	return ok
}

func oldestMissing(_ *rand.Rand, img Image) bool {
	kept := sealed(img)
	if len(kept) == 0 {
		return false
	}
	delete(img, kept[0])
	return true
}

func newestMissing(_ *rand.Rand, img Image) bool {
	p := newestPart(img)
	if len(p.events()) > 0 || len(img.Segments()) < 2 {
		return false
	}
	delete(img, p.name)
	return true
}

// overlap begins a segment in the middle of the newest one, as the log would have gone on after a crash there.
func overlap(r *rand.Rand, img Image) bool {
	p := newestPart(img)
	events := p.events()
	if len(events) < 2 {
		return false
	}
	first := p.records[events[1+r.IntN(len(events)-1)]].seq
	salt := fmt.Sprintf("%016x", r.Uint64())
	epoch := nextOf(img).epoch + 1
	head := fmt.Sprintf(`{"mark":"segment","version":1,"log":"%s","salt":"%s","prior":%d,"first":%d,"epoch":%d,"floor":1,"durable":%d`,
		p.records[0].log, salt, firstOf(p.name), first, epoch, first-1)
	n := next{seq: first, epoch: epoch, durable: first - 1, salt: salt}
	img[segmentName(first)] = append([]byte(Seal(salt, head)), n.line(0, "job_submitted", `"fork"`, "")...)
	return true
}

// candidate is a job as it stands, and a step that it may take.
type candidate struct {
	id   string // quoted
	head uint64 // the seq of its newest event
	step string
}

// someJob is a job that may take a step.
func someJob(r *rand.Rand, img Image) (candidate, bool) {
	var all []candidate
	j := Judge(img)
	for _, id := range slices.Sorted(maps.Keys(j.States)) {
		s := candidate{id: quoted(id), step: legalStep(j.States[id])}
		for _, e := range j.Events {
			if e.JobID == id {
				s.head = e.Seq
			}
		}
		if s.step != "" {
			all = append(all, s)
		}
	}
	return pick(r, all)
}

// legalStep is a step that a job in this state may take, "" when there is none.
func legalStep(state string) string {
	if legal := legalTypes(state); len(legal) > 0 {
		return string(legal[0])
	}
	return ""
}

// misfit adds an event of some job, made by line, that the job can't take.
func misfit(line func(n next, s candidate) []byte) func(*rand.Rand, Image) bool {
	return func(r *rand.Rand, img Image) bool {
		s, ok := someJob(r, img)
		if ok {
			more(img, line(nextOf(img), s))
		}
		return ok
	}
}

// spoilt is an event that would be legal, but for what is in it.
func spoilt(with string) func(*rand.Rand, Image) bool {
	return misfit(func(n next, s candidate) []byte { return n.line(s.head, s.step, s.id, with) })
}

var (
	unknownType = misfit(func(n next, s candidate) []byte { return n.line(s.head, "job_paused", s.id, `,"until":{"a":1}`) })
	illegal     = misfit(func(n next, s candidate) []byte { return n.line(s.head, "job_submitted", s.id, "") })
	wrongPrev   = misfit(func(n next, s candidate) []byte { return n.line(s.head-1, s.step, s.id, "") })
)

// added gives an event of the newest segment fields that are not ours, with a right checksum.
func added(fields string) func(*rand.Rand, Image) bool {
	return func(r *rand.Rand, img Image) bool {
		p := newestPart(img)
		i, ok := pick(r, p.events())
		if !ok {
			return false
		}
		l := p.lines[i]
		body, _ := Unseal(p.salt, string(l.text))
		at := strings.LastIndex(body, `,"durable":`)
		splice(img, p.name, l.at, l.end, []byte(Seal(p.salt, body[:at]+fields+body[at:])))
		return true
	}
}

func unreadable(_ *rand.Rand, img Image) bool {
	more(img, nextOf(img).line(0, "job_submitted", "\"\xc3\x28\"", ""))
	return true
}
