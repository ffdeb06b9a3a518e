package wal

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
)

const (
	segmentSuffix = ".jsonl"
	tempSuffix    = ".tmp"
	quarantineDir = "quarantine"
	tornSuffix    = ".torn"
	seqDigits     = 20
)

// segment is one file of the log, as its header and its name say.
type segment struct {
	path   string
	first  uint64 // the first seq in it, also its name
	prior  uint64 // the first seq of the segment before it, 0 for none
	epoch  uint64
	seed   uint32 // the checksum's state after its salt
	header int64  // bytes of its header line, newline included
	size   int64  // bytes in it that count: for the newest segment up to the last shown event, or the file's size
	places *places
}

func segmentName(first uint64) string { return fmt.Sprintf("%0*d%s", seqDigits, first, segmentSuffix) }

// parseSegmentName returns the first seq that a segment's name tells.
func parseSegmentName(name string) (uint64, bool) {
	digits, ok := strings.CutSuffix(name, segmentSuffix)
	if !ok || len(digits) != seqDigits {
		return 0, false
	}
	first, end, ok := parseUint([]byte(strings.TrimLeft(digits[:seqDigits-1], "0")+digits[seqDigits-1:]), 0)
	return first, ok && end > 0 && first > 0 && segmentName(first) == name
}

func randomHex(bytes int) string {
	b := make([]byte, bytes)
	rand.Read(b) // never fails, by its contract
	return hex.EncodeToString(b)
}

func isHex(s string, digits int) bool {
	return len(s) == digits && strings.Trim(s, hexDigits) == ""
}

// listing is what a directory holds, by kind.
type listing struct {
	segments    []string // names, ascending
	checkpoints []string // as well
	carried     []string
	temps       []string
	foreign     []string // not ours
}

func list(fsys FS, dir string) (listing, error) {
	var l listing
	entries, err := fsys.ReadDir(dir)
	if err != nil {
		return l, fmt.Errorf("wal: %w", err)
	}
	for _, e := range entries {
		name := e.Name()
		whole, isTemp := strings.CutSuffix(name, tempSuffix)
		of := l.of(whole)
		switch {
		case of != nil && !e.IsDir() && isTemp:
			l.temps = append(l.temps, name)
		case of != nil && !e.IsDir():
			*of = append(*of, name)
		case name != lockName && name != quarantineDir && name != "lost+found":
			l.foreign = append(l.foreign, name)
		}
	}
	for _, names := range [][]string{l.segments, l.checkpoints, l.carried} {
		sort.Strings(names)
	}
	return l, nil
}

// of is where a name belongs, by its kind; nil if it is none of ours.
func (l *listing) of(name string) *[]string {
	if _, ok := parseSegmentName(name); ok {
		return &l.segments
	}
	if _, ok := parseSideName(checkpointPrefix, name); ok {
		return &l.checkpoints
	}
	if _, ok := parseSideName(carriedPrefix, name); ok {
		return &l.carried
	}
	return nil
}

// ours refuses a directory that holds something, but no log: it was probably named by mistake.
func (l listing) ours(dir string) error {
	if len(l.segments) > 0 || len(l.foreign) == 0 {
		return nil
	}
	return invalid("directory", "%s holds no log but other files (%q); give an empty directory, a new one, or a log's",
		dir, l.foreign[0])
}

// createSegment makes a new segment and returns it open for writing. It is written and synced under a temporary name,
// so that a segment never stands under its own name without a whole header; extra lines go in with the header.
func createSegment(fsys FS, dir string, head mark, extra ...mark) (_ segment, _ File, err error) {
	head.Kind, head.Version, head.Salt = markSegment, formatVersion, randomHex(8)
	seg := segment{
		path: filepath.Join(dir, segmentName(head.First)), first: head.First, prior: head.Prior, epoch: head.Epoch,
		seed: saltSeed(head.Salt), places: new(places),
	}
	buf := appendMark(nil, head, seg.seed)
	seg.header = int64(len(buf))
	for _, m := range extra {
		buf = appendMark(buf, m, seg.seed)
	}
	seg.size = int64(len(buf))

	temp := seg.path + tempSuffix
	f, err := fsys.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return seg, nil, noSpace(err, seg.path, int64(len(buf)))
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close())
		}
	}()
	// crash C1: a temporary file, whole or not, and no segment. Open sweeps it.
	if err := writeTemp(fsys, f, temp, seg.path, buf); err != nil {
		_ = fsys.Remove(temp) // a leftover is swept by the next Open
		return seg, nil, noSpace(err, seg.path, int64(len(buf)))
	}
	// crash C2: the segment exists, but its directory entry is not yet synced. Nothing in it is acknowledged: Open finds
	// it empty or not at all, and makes it again. An error is final, one for lack of room too: the file has its name, and
	// that another sync succeeds would prove nothing.
	if err := fsys.SyncDir(dir); err != nil {
		return seg, nil, err
	}
	return seg, f, nil
}

// writeTemp gives a new file its content, durably, and then its name.
func writeTemp(fsys FS, f File, temp, path string, buf []byte) error {
	if err := writeAll(f, buf, 0); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return fsys.Rename(temp, path)
}

// writeAll writes all of buf, however short single writes are.
func writeAll(f File, buf []byte, at int64) error {
	for len(buf) > 0 {
		n, err := f.WriteAt(buf, at)
		if err != nil {
			return err
		}
		if n <= 0 {
			return io.ErrShortWrite
		}
		buf, at = buf[n:], at+int64(n)
	}
	return nil
}

// errNoHeader: the file holds not one whole line that could be a header, nor anything else of ours.
var errNoHeader = errors.New("no segment header")

// readHeader opens a segment and reads its header.
func readHeader(fsys FS, path string) (_ segment, _ *mark, err error) {
	seg := segment{path: path, places: new(places)}
	seg.first, _ = parseSegmentName(filepath.Base(path))
	f, err := fsys.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return seg, nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if seg.size, err = f.Size(); err != nil {
		return seg, nil, err
	}
	lines := newLineReader(f, 0, min(seg.size, maxHeader))
	defer lines.close()
	l, err := lines.next()
	if err != nil && !errors.Is(err, io.EOF) {
		return seg, nil, err
	}
	if l.whole && l.at == 0 {
		head, herr := parseHeader(l.bytes)
		if herr == nil {
			return seg, head, seg.use(head, l.end)
		}
	}
	return seg, nil, headerDamage(f, seg)
}

// maxHeader is more than any header takes.
const maxHeader = 4 << 10

// use takes over what the header says.
func (s *segment) use(head *mark, length int64) error {
	if head.Version > formatVersion {
		return &VersionError{Path: s.path, Found: head.Version, Known: formatVersion}
	}
	if !isHex(head.Log, 32) || !isHex(head.Salt, 16) { // they are shown to people, and a name may hold what a terminal obeys
		return &CorruptError{Path: s.path, Seq: s.first, Reason: "the header has no log id, or no salt, that a writer made"}
	}
	if head.First != s.first {
		return &CorruptError{Path: s.path, Seq: s.first, Reason: fmt.Sprintf("the header is that of seq %d", head.First)}
	}
	if head.Durable != head.First-1 {
		return &CorruptError{Path: s.path, Seq: s.first,
			Reason: fmt.Sprintf("the header speaks of durable seq %d, not %d", head.Durable, head.First-1)}
	}
	if head.Floor > head.First {
		return &CorruptError{Path: s.path, Seq: s.first, Reason: fmt.Sprintf("the header speaks of floor %d, behind it", head.Floor)}
	}
	s.prior, s.epoch, s.seed, s.header = head.Prior, head.Epoch, saltSeed(head.Salt), length
	return nil
}

// headerDamage tells a segment that never held anything (errNoHeader) from one that lost its header. The writer syncs
// the header before the file gets its name, so a crash leaves neither; but a file without one line of ours has nothing
// to lose, while lines whose salt is gone may have been acknowledged.
func headerDamage(f File, seg segment) error {
	lines := newLineReader(f, 0, seg.size)
	defer lines.close()
	for {
		l, err := lines.next()
		if errors.Is(err, io.EOF) {
			return errNoHeader
		}
		if err != nil {
			return err
		}
		if l.whole && looksOurs(l.bytes) || l.bytes == nil {
			return &CorruptError{Path: seg.path, Seq: seg.first, Reason: "no intact segment header before the first line"}
		}
	}
}

// looksOurs is true for what looks like a line of the log, or like any JSON at all: better refused than cut.
func looksOurs(b []byte) bool {
	return len(b) > 0 && b[0] == '{' && b[len(b)-1] == '}'
}

// survey is the segments of a log as their headers tell, oldest first, and what is known from that alone.
type survey struct {
	id       string
	segments []segment
	floor    uint64 // events below it may be gone
	carried  uint64 // as many of them are in the carried file of that floor
	epoch    uint64
	blank    *segment // the newest file, when it holds no header and nothing to lose

	checkpoints []string // names
	strays      []string // carried files, whether the floor names them or not
}

// raise takes the higher of two floors, with what belongs to it.
func raise(floor, carried *uint64, to, with uint64) {
	if to >= *floor {
		*floor, *carried = to, with
	}
}

// surveySegments reads all headers.
func surveySegments(fsys FS, dir string, found listing) (survey, error) {
	s := survey{floor: 1, checkpoints: found.checkpoints, strays: found.carried}
	names := found.segments
	for i, name := range names {
		seg, head, err := readHeader(fsys, filepath.Join(dir, name))
		if errors.Is(err, errNoHeader) && i == len(names)-1 {
			s.blank = &seg
			break
		}
		if errors.Is(err, errNoHeader) {
			err = &CorruptError{Path: seg.path, Seq: seg.first, Reason: errNoHeader.Error()}
		}
		if err == nil {
			err = s.add(seg, head)
		}
		if err != nil {
			return s, wrapped(err)
		}
	}
	return s, nil
}

// wrapped gives an error of the file system our prefix; ours have it.
func wrapped(err error) error {
	if err == nil || strings.HasPrefix(err.Error(), "wal: ") {
		return err
	}
	return fmt.Errorf("wal: %w", err)
}

func (s *survey) add(seg segment, head *mark) error {
	if s.id == "" {
		s.id = head.Log
	}
	if head.Log != s.id {
		return &CorruptError{Path: seg.path, Seq: seg.first,
			Reason: fmt.Sprintf("segment of another log (%s, not %s)", head.Log, s.id)}
	}
	s.segments = append(s.segments, seg)
	raise(&s.floor, &s.carried, head.Floor, head.Carried)
	s.epoch = max(s.epoch, seg.epoch)
	return nil
}

// checkChain holds the segments from the floor on to be all there, each behind the one that it was made behind. The
// floor has to be known by then: of what lies below it, a crash may have left any part.
func (s *survey) checkChain() error {
	kept := s.segments[s.dropped():]
	for i, seg := range kept {
		reason := ""
		switch {
		case i == 0 && seg.first > s.floor:
			reason = fmt.Sprintf("the log starts at seq %d, but only what lies below seq %d was dropped", seg.first, s.floor)
		case i > 0 && seg.prior != kept[i-1].first:
			reason = "the segment before it, " + segmentName(seg.prior) + ", is missing"
		case i > 0 && seg.epoch < kept[i-1].epoch:
			reason = fmt.Sprintf("epoch %d after epoch %d", seg.epoch, kept[i-1].epoch)
		}
		if reason != "" {
			return &CorruptError{Path: seg.path, Seq: max(s.floor, seg.prior), Reason: reason}
		}
	}
	return nil
}

// dropped returns how many of the oldest segments lie wholly below the floor.
func (s *survey) dropped() int {
	n := 0
	for n+1 < len(s.segments) && s.segments[n+1].first <= s.floor {
		n++
	}
	return n
}

// keepPlaces takes over what is known of places in segments that were surveyed before.
func (s *survey) keepPlaces(before []segment) {
	for i := range s.segments {
		now := &s.segments[i]
		j, found := slices.BinarySearchFunc(before, now.first, func(b segment, first uint64) int { return cmp.Compare(b.first, first) })
		if found && before[j].seed == now.seed {
			now.places = before[j].places
		}
	}
}

func isNotExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }
