package crashtest

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// A Kill is a moment to kill a program at. One of the fields is set; After goes with Op.
type Kill struct {
	Op    int  // at this operation on its files or its ledger, from 1; needs [subject.KillFS]
	After bool // when the operation is done, and not when it begins

	Events int           // when its log has this many events, from outside
	Time   time.Duration // so long after its start, from outside
}

// String: "before 17", "after 17", "at event 5", "at 12ms".
func (k Kill) String() string {
	switch {
	case k.Events > 0:
		return fmt.Sprintf("at event %d", k.Events)
	case k.Time > 0:
		return fmt.Sprintf("at %s", k.Time)
	case k.After:
		return fmt.Sprintf("after %d", k.Op)
	}
	return fmt.Sprintf("before %d", k.Op)
}

// Kills are those of a program's lives, in order; the life after the last of them is left to itself.
type Kills []Kill

// String prints kills as [ParseKills] reads them: "kill after 17, then before 3".
func (ks Kills) String() string {
	if len(ks) == 0 {
		return "no kill"
	}
	texts := make([]string, len(ks))
	for i, k := range ks {
		texts[i] = k.String()
	}
	return "kill " + strings.Join(texts, ", then ")
}

// ParseKills reads what String prints.
func ParseKills(text string) (Kills, error) {
	if text == Kills(nil).String() {
		return nil, nil
	}
	list, ok := strings.CutPrefix(text, "kill ")
	if !ok {
		return nil, fmt.Errorf("crashtest: kills %q: \"kill after 17, then before 3\" was expected", text)
	}
	var ks Kills
	for part := range strings.SplitSeq(list, ", then ") {
		k, err := parseKill(part)
		if err != nil {
			return nil, fmt.Errorf("crashtest: kills %q: %w", text, err)
		}
		ks = append(ks, k)
	}
	return ks, nil
}

func parseKill(text string) (k Kill, err error) {
	when, what, _ := strings.Cut(text, " ")
	number := &k.Op
	if event, ok := strings.CutPrefix(what, "event "); ok && when == "at" {
		number, what = &k.Events, event
	}
	switch {
	case when == "at" && number == &k.Op:
		k.Time, err = time.ParseDuration(what)
	case when == "before", when == "after", when == "at":
		k.After = when == "after"
		*number, err = strconv.Atoi(what)
	default:
		err = fmt.Errorf("%q is no moment", text)
	}
	if err == nil && k.String() != text {
		err = fmt.Errorf("%q is no moment", text)
	}
	return k, err
}
