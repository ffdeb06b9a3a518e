package crashfs

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// A Schedule says which operations go wrong, and how. It prints as text and is read back from it:
//
//	sync *.jsonl #3 error EIO lie    the third sync fails, and what it was to write is lost for good
//	write * #2 short 17 ENOSPC       the second write takes 17 bytes and fails; without the error's name, returns nil
//	rename *.tmp #1+ error EIO       every rename from the first on fails; without #, too
//	read *.jsonl flip 37             bit 37 of the file (byte 4, bit 5) reads wrong
//	sync * #1 freeze                 the first sync waits for Release
//	disk 1048576                     the disk has room for so many bytes
//	crash 17                         operation 17 and all after it fail with ErrCrashed
//
// One fault stands on a line, or between semicolons. The pattern is path.Match's, for the last element of the path;
// of a rename, either path. Each fault counts the operations that it fits by itself. Of several that fall on one
// operation, the first in the schedule happens.
type Schedule []Fault

// A Fault is one line of a schedule.
type Fault struct {
	Op     Kind   // or OpAny, OpDisk, OpCrash
	Path   string // a pattern
	Nth    int    // of the operations that fit, from 1; 0 means all of them
	Onward bool   // and all after the Nth
	Do     Action
	N      int64         // of short: bytes; of flip: bit; of a disk: bytes of room; of a crash: operation
	Err    syscall.Errno // of an error; of a short write, where 0 means none
	Lie    bool          // of a failed sync: nothing brings back what it was to write
}

// What a Fault's Op may be besides an operation.
const (
	OpAny   Kind = "any"   // any operation
	OpDisk  Kind = "disk"  // not an operation: the byte budget
	OpCrash Kind = "crash" // not an operation: the end
)

// An Action is what happens to an operation.
type Action string

// The actions.
const (
	Error  Action = "error"
	Short  Action = "short"
	Flip   Action = "flip"
	Freeze Action = "freeze"
)

// String prints the schedule on one line, as ParseSchedule reads it.
func (s Schedule) String() string {
	lines := make([]string, len(s))
	for i, f := range s {
		lines[i] = f.String()
	}
	return strings.Join(lines, "; ")
}

// String prints the fault as ParseSchedule reads it.
func (f Fault) String() string {
	if f.Op == OpDisk || f.Op == OpCrash {
		return fmt.Sprintf("%s %d", f.Op, f.N)
	}
	words := []string{string(f.Op), f.Path}
	switch {
	case f.Onward:
		words = append(words, fmt.Sprintf("#%d+", f.Nth))
	case f.Nth > 0:
		words = append(words, fmt.Sprintf("#%d", f.Nth))
	}
	words = append(words, string(f.Do))
	if f.Do == Short || f.Do == Flip {
		words = append(words, strconv.FormatInt(f.N, 10))
	}
	if f.Err != 0 {
		words = append(words, errorName(f.Err))
	}
	if f.Lie {
		words = append(words, "lie")
	}
	return strings.Join(words, " ")
}

// MustSchedule is ParseSchedule for text that stands in a program. It panics where ParseSchedule fails.
func MustSchedule(text string) Schedule {
	s, err := ParseSchedule(text)
	if err != nil {
		panic(err)
	}
	return s
}

// ParseSchedule reads a schedule. Empty lines are nothing.
func ParseSchedule(text string) (Schedule, error) {
	var s Schedule
	for line := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == ';' || r == '\n' }) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		f, err := parseFault(words)
		if err == nil {
			err = f.valid()
		}
		if err != nil {
			return nil, fmt.Errorf("crashfs: schedule: %q: %w", strings.Join(words, " "), err)
		}
		s = append(s, f)
	}
	return s, nil
}

func parseFault(words []string) (f Fault, err error) {
	take := func() (word string) {
		if len(words) > 0 {
			word, words = words[0], words[1:]
		}
		return word
	}
	number := func(word string) int64 {
		n, e := strconv.ParseInt(word, 10, 64)
		if e != nil && err == nil {
			err = fmt.Errorf("a number is wanted where %q stands", word)
		}
		return n
	}
	f.Op = Kind(take())
	if f.Op == OpDisk || f.Op == OpCrash {
		f.N = number(take())
		return f, cmpErr(err, words)
	}
	f.Path = take()
	word := take()
	if nth, ok := strings.CutPrefix(word, "#"); ok {
		nth, f.Onward = strings.CutSuffix(nth, "+")
		if f.Nth = int(number(nth)); f.Nth < 1 && err == nil {
			err = fmt.Errorf("operations count from 1")
		}
		word = take()
	}
	f.Do = Action(word)
	if f.Do == Short || f.Do == Flip {
		f.N = number(take())
	}
	if f.Do == Error || f.Do == Short && len(words) > 0 {
		word := take()
		if f.Err = errnos[word]; f.Err == 0 && err == nil {
			err = fmt.Errorf("no error %q: a name like EIO or ENOSPC is wanted", word)
		}
	}
	if len(words) > 0 && words[0] == "lie" {
		f.Lie = take() != ""
	}
	return f, cmpErr(err, words)
}

func cmpErr(err error, left []string) error {
	if err == nil && len(left) > 0 {
		return fmt.Errorf("%q is left over", strings.Join(left, " "))
	}
	return err
}

// valid says what is wrong with a fault that the text of one cannot say, or that would do nothing.
func (f Fault) valid() error {
	_, badPattern := path.Match(f.Path, "")
	isOp := slices.Contains(changing, f.Op) || slices.Contains(asking, f.Op) || f.Op == OpAny
	switch {
	case f.Op == OpDisk || f.Op == OpCrash:
		if f != (Fault{Op: f.Op, N: f.N}) || f.N < 0 || f.Op == OpCrash && f.N == 0 {
			return fmt.Errorf("%s takes one number and nothing else", f.Op)
		}
		return nil
	case !isOp:
		return fmt.Errorf("no operation %q; there are %q, any, disk and crash", f.Op, slices.Concat(changing, asking))
	case f.Path == "" || badPattern != nil || strings.ContainsAny(f.Path, "; \t\r\n"):
		return fmt.Errorf("bad pattern %q", f.Path)
	case f.Nth < 0 || f.Nth == 0 && f.Onward || f.N < 0:
		return fmt.Errorf("negative number, or none")
	case !slices.Contains([]Action{Error, Short, Flip, Freeze}, f.Do):
		return fmt.Errorf("no action %q; there are error, short, flip and freeze, behind a pattern: sync *.jsonl #3 error EIO", f.Do)
	case f.Do == Short && f.Op != OpWrite, f.Do == Flip && f.Op != OpRead:
		return fmt.Errorf("%s does not fit %s", f.Do, f.Op)
	case f.Lie && (f.Do != Error || f.Op != OpSync && f.Op != OpSyncDir):
		return fmt.Errorf("only a sync that fails can lie")
	case (f.Err != 0) != (f.Do == Error) && f.Do != Short, f.N != 0 && f.Do != Short && f.Do != Flip:
		return fmt.Errorf("%s with something else than it takes", f.Do)
	case f.Err != 0 && errnos[errorName(f.Err)] != f.Err:
		return fmt.Errorf("error %d has no name here", f.Err)
	}
	return nil
}
