package projection

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"time"

	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// ErrQuery: a query that can't be answered. See [QueryError].
var ErrQuery = errors.New("projection: invalid query")

// A QueryError says which field of a query was refused, and why. It matches [ErrQuery] and [wal.ErrInvalid].
type QueryError struct {
	Field  string
	Reason string
}

func (e *QueryError) Error() string { return "projection: invalid query: " + e.Field + ": " + e.Reason }

// Is makes errors.Is work for ErrQuery and wal.ErrInvalid.
func (e *QueryError) Is(target error) bool { return target == ErrQuery || target == wal.ErrInvalid }

// Order is the order in which jobs are listed.
type Order uint8

const (
	// BySubmission, the default, is the order of the jobs' first events.
	BySubmission Order = iota
	// ByUpdate is the order of the jobs' newest events.
	ByUpdate
)

// DefaultPage is how many jobs a page holds at most when the query sets no limit.
const DefaultPage = 100

// A Query says which jobs are wanted, and in which order. The zero Query wants all, oldest first. A job has to satisfy
// every field that is set.
type Query struct {
	States       []statemachine.State // any of these; empty: any
	Capabilities []string             // any of these; empty: any
	Parked       *bool                // new(true): only parked ones; new(false): none of them; nil: both
	Held         *bool                // new(true): only those that wait for somebody's decision; new(false): none of them
	RollingBack  *bool                // new(true): only those whose rollback has begun and is not done; new(false): none of them
	// Since and Until: submitted at Since or later, and before Until. Zero: no bound. A job that was never submitted
	// satisfies neither. Clocks may jump, so each job that the other fields leave is looked at.
	Since, Until time.Time

	Order      Order
	Descending bool
	// Limit: at most so many jobs. 0 means DefaultPage for [Jobs.Page], and no limit for [Jobs.List].
	Limit int
	// After: go on behind the last job of an earlier page of the same Order and direction. The zero Cursor starts at
	// the beginning.
	After Cursor
}

// Validate returns a *[QueryError] for a query that can't be answered. Call it on what comes from outside.
func (q Query) Validate() error {
	for _, s := range q.States {
		if stateNumber(s) < 0 {
			return &QueryError{"States", fmt.Sprintf("unknown state %.64q", string(s))}
		}
	}
	switch {
	case q.Order > ByUpdate:
		return &QueryError{"Order", fmt.Sprintf("unknown order %d", q.Order)}
	case q.Limit < 0:
		return &QueryError{"Limit", fmt.Sprintf("%d is negative", q.Limit)}
	case !q.Since.IsZero() && !q.Until.IsZero() && q.Since.After(q.Until):
		return &QueryError{"Since", "is after Until"}
	case !q.After.IsZero() && (q.After.order != q.Order || q.After.descending != q.Descending):
		return &QueryError{"After", "the cursor is of a query with another order or direction"}
	}
	return nil
}

// wantsTime tells whether the query asks when jobs were submitted.
func (q *Query) wantsTime() bool { return !q.Since.IsZero() || !q.Until.IsZero() }

func (q *Query) inTime(at time.Time) bool {
	return !at.IsZero() && !at.Before(q.Since) && (q.Until.IsZero() || at.Before(q.Until))
}

// states are all there are, in the lifecycle's order: a record has a state's number.
var states = statemachine.States()

// stateNumber is the place of s in the lifecycle's order, -1 for what is no state.
func stateNumber(s statemachine.State) int { return slices.Index(states, s) }

// A Cursor marks a place in a listing: right behind the last job of a page. It is a position, not a copy: it stays good
// while jobs come and change, after a restart, and in other processes with the same log.
//
// By submission, jobs don't move: going on with a cursor shows none twice and skips none (that a job may begin or cease
// to satisfy the query meanwhile is another matter). By update a job moves to the newest end with each of its events:
// ascending, it is shown again there; descending, it is not shown again, nor at all if the listing had not come to it
// yet. Jobs that don't change are shown exactly once in either direction.
//
// A Cursor marshals to text that is opaque and safe in URLs, and to "" when it is zero.
type Cursor struct {
	seq        uint64 // of the last job: its FirstSeq or its Seq, by order; 0 in the zero Cursor only
	slot       uint32 // where it lay: a hint, which is checked
	order      Order
	descending bool
}

// IsZero tells whether c is the beginning, as an argument, or the end, as a result.
func (c Cursor) IsZero() bool { return c == Cursor{} }

// cursorVersion is the first byte of a cursor's text, before it is encoded.
const cursorVersion = 1

// MarshalText implements encoding.TextMarshaler.
func (c Cursor) MarshalText() ([]byte, error) {
	if c.IsZero() {
		return []byte{}, nil
	}
	flags := byte(c.order) << 1
	if c.descending {
		flags |= 1
	}
	raw := binary.AppendUvarint([]byte{cursorVersion, flags}, c.seq)
	raw = binary.AppendUvarint(raw, uint64(c.slot))
	raw = binary.BigEndian.AppendUint32(raw, crc32.ChecksumIEEE(raw))
	return base64.RawURLEncoding.AppendEncode(nil, raw), nil
}

// UnmarshalText implements encoding.TextUnmarshaler. Its error is a *[QueryError]; c is then as it was.
func (c *Cursor) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*c = Cursor{}
		return nil
	}
	raw, err := base64.RawURLEncoding.Strict().AppendDecode(nil, text)
	if err != nil || len(raw) < 8 {
		return &QueryError{"After", "not a cursor"}
	}
	if raw[0] != cursorVersion {
		return &QueryError{"After", "a cursor of another version, or none"}
	}
	body, sum := raw[:len(raw)-4], raw[len(raw)-4:]
	if crc32.ChecksumIEEE(body) != binary.BigEndian.Uint32(sum) {
		return &QueryError{"After", "a cursor that was changed"}
	}
	read, ok := parseCursor(body)
	if !ok {
		return &QueryError{"After", "not a cursor"}
	}
	*c = read
	return nil
}

func parseCursor(body []byte) (Cursor, bool) {
	c := Cursor{order: Order(body[1] >> 1), descending: body[1]&1 == 1}
	seq, n := binary.Uvarint(body[2:])
	if n <= 0 {
		return c, false
	}
	slot, m := binary.Uvarint(body[2+n:])
	c.seq, c.slot = seq, uint32(slot)
	return c, m > 0 && 2+n+m == len(body) && uint64(c.slot) == slot && seq > 0 && c.order <= ByUpdate
}
