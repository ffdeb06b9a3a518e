package wal

import (
	"errors"
	"fmt"
	"strconv"
	"time"
)

// A mark is a line about the log itself. Zero fields are left out, but for those that the kind always has.
type mark struct {
	Kind    string
	Version uint64
	Log     string
	Salt    string
	Prior   uint64 // the header's: first seq of the segment before, 0 for none
	First   uint64
	Last    uint64
	Epoch   uint64
	Time    time.Time
	Floor   uint64 // events below it may be gone
	Carried uint64 // as many of them are kept in the carried file of that floor
	Count   uint64 // the carried file's own: events in it
	Durable uint64
}

const (
	markSegment = "segment" // the header, the first line
	markOpened  = "opened"
	markDurable = "durable"
	markFloor   = "floor"
	markSealed  = "sealed"
	markClosed  = "closed"

	formatVersion = 1
)

// appendMark appends the mark's line, newline included. No mark has a seq, so the ancestor's reader passes it over.
func appendMark(dst []byte, m mark, seed uint32) []byte {
	from := len(dst)
	dst = appendQuoted(append(dst, `{"mark":`...), m.Kind)
	if m.Kind == markSegment {
		dst = strconv.AppendUint(append(dst, `,"version":`...), m.Version, 10)
		dst = appendQuoted(append(dst, `,"log":`...), m.Log)
		dst = appendQuoted(append(dst, `,"salt":`...), m.Salt)
		dst = strconv.AppendUint(append(dst, `,"prior":`...), m.Prior, 10)
		dst = strconv.AppendUint(append(dst, `,"first":`...), m.First, 10)
	}
	if m.Epoch > 0 {
		dst = strconv.AppendUint(append(dst, `,"epoch":`...), m.Epoch, 10)
	}
	if !m.Time.IsZero() {
		dst = strconv.AppendInt(append(dst, `,"ts":`...), m.Time.Unix(), 10)
		dst = strconv.AppendInt(append(dst, `,"ns":`...), int64(m.Time.Nanosecond()), 10)
	}
	if m.Kind == markSealed || m.Kind == markClosed {
		dst = strconv.AppendUint(append(dst, `,"last":`...), m.Last, 10)
	}
	if m.Floor > 0 {
		dst = strconv.AppendUint(append(dst, `,"floor":`...), m.Floor, 10)
	}
	if m.Carried > 0 {
		dst = strconv.AppendUint(append(dst, `,"carried":`...), m.Carried, 10)
	}
	dst = strconv.AppendUint(append(dst, `,"durable":`...), m.Durable, 10)
	return seal(dst, from, seed)
}

// parse takes any mark, those of later versions included: what it does not know it passes over.
func (m *mark) parse(f *fields) error {
	kind := f.text("mark")
	*m = mark{
		Kind: kind.string(), Version: f.uintOr0("version"), Log: f.textOrNone("log").string(),
		Salt: f.textOrNone("salt").string(), Prior: f.uintOr0("prior"), First: f.uintOr0("first"),
		Last: f.uintOr0("last"), Epoch: f.uintOr0("epoch"), Floor: f.uintOr0("floor"), Durable: f.uintOr0("durable"),
		Carried: f.uintOr0("carried"), Count: f.uintOr0("count"),
	}
	return f.err
}

// parseHeader reads a segment's first line (without its newline). The salt that its checksum needs stands in it.
func parseHeader(line []byte) (*mark, error) {
	var f fields
	if err := f.parse(new(jsonScanner), line); err != nil {
		return nil, errors.New("not a segment header")
	}
	m := new(mark)
	if err := m.parse(&f); err != nil || m.Kind != markSegment {
		return nil, errors.New("not a segment header")
	}
	if _, ok := unseal(line, saltSeed(m.Salt)); !ok {
		return nil, fmt.Errorf("segment header: %w", errChecksum)
	}
	return m, nil
}
