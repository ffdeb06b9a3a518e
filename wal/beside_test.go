package wal_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// numberOf is the append that an event was in.
func numberOf(e wal.Event) int {
	var p struct{ G int }
	_ = json.Unmarshal([]byte(payload(e)), &p) // group made it
	return p.G
}

// sectionsOf is what tests save in a checkpoint: it tells which one it is.
func sectionsOf(seq uint64) []wal.Section {
	write := func(s string) func(io.Writer) error {
		return func(w io.Writer) error {
			_, err := io.WriteString(w, s)
			return err
		}
	}
	return []wal.Section{
		{Name: "jobs", Version: 1, Save: write(fmt.Sprintf("jobs up to %d", seq))},
		{Name: "empty", Save: write("")},
		{Name: "stats \"2\"", Version: 7, Save: write(strings.Repeat(fmt.Sprintf("%d\n\x00\xff", seq), 40))},
	}
}

// contentOf is what sectionsOf comes to.
func contentOf(seq uint64) string {
	var b bytes.Buffer
	for _, s := range sectionsOf(seq) {
		fmt.Fprintf(&b, "[%s %d]", s.Name, s.Version)
		_ = s.Save(&b) // a Buffer takes everything
	}
	return b.String()
}

// load reads a checkpoint whole, in the way of contentOf.
func load(l *wal.Log, c wal.Checkpoint) (string, error) {
	var b bytes.Buffer
	err := l.LoadCheckpoint(ctx, c, func(s wal.Section, r io.Reader) error {
		fmt.Fprintf(&b, "[%s %d]", s.Name, s.Version)
		_, err := b.ReadFrom(r)
		return err
	})
	return b.String(), err
}

// carried reads all that is kept below the floor.
func carried(l *wal.Log) (events []wal.Event, err error) {
	for e, err := range l.Carried() {
		if err != nil {
			return events, err
		}
		events = append(events, e)
	}
	return events, nil
}

// judgeBeside holds the files beside the segments against what the caller was told.
func (w *world) judgeBeside(l *wal.Log, disk *crashfs.FS) error {
	if err := w.judgePoints(l); err != nil {
		return err
	}
	return w.judgeCarried(l)
}

// judgePoints: every checkpoint that is there can be used; the last that was acknowledged is there, and one more.
func (w *world) judgePoints(l *wal.Log) error {
	points, err := l.Checkpoints()
	if err != nil {
		return err
	}
	there := make(map[uint64]bool)
	for _, c := range points {
		there[c.Seq] = true
		if got, err := load(l, c); err != nil || got != contentOf(c.Seq) {
			return fmt.Errorf("checkpoint %d holds %q: %w", c.Seq, got, err)
		}
	}
	if n := len(w.points); n > 0 && !there[w.points[n-1]] {
		return fmt.Errorf("checkpoint %d was acknowledged, and there are %v", w.points[n-1], points)
	}
	if n := len(w.points); n > 1 && len(points) < 2 {
		return fmt.Errorf("%v were acknowledged, and there are %v", w.points, points)
	}
	return nil
}

// judgeCarried: of what was acknowledged, all is there that every compaction wanted, and nothing that none did; At says
// the same, event by event.
func (w *world) judgeCarried(l *wal.Log) error {
	events, err := carried(l)
	if err != nil {
		return err
	}
	first := l.FirstSeq()
	there, last := make(map[uint64]int), uint64(0)
	for _, e := range events {
		one, err := l.At(e.Seq)
		if err != nil || !sameEvent(one, e) {
			return fmt.Errorf("At(%d): %v, %w", e.Seq, one, err)
		}
		if e.Seq <= last || e.Seq >= first || !w.want(e, false) {
			return fmt.Errorf("seq %d, append %d, is carried after %d", e.Seq, numberOf(e), last)
		}
		there[e.Seq], last = numberOf(e), e.Seq
	}
	for _, s := range w.told {
		for seq := s.first; s.outcome == acked && seq < min(s.first+uint64(s.of), first); seq++ {
			e := event(s.number, int(seq-s.first), s.of, 0)
			if w.want(e, true) && there[seq] != s.number {
				return fmt.Errorf("seq %d of append %d was wanted by all, and is not carried", seq, s.number)
			}
			if _, err := l.At(seq); there[seq] == 0 && !errors.Is(err, wal.ErrDropped) {
				return fmt.Errorf("At(%d): %v", seq, err)
			}
		}
	}
	return nil
}

// want tells whether all compactions, or any, would keep an event.
func (w *world) want(e wal.Event, all bool) bool {
	for _, keep := range w.wanted {
		if keep(e) != all {
			return !all
		}
	}
	return all && len(w.wanted) > 0
}

// noStrays: exactly one carried file is left, or none where the log begins at 1.
func noStrays(disk *crashfs.FS, r wal.Report) error {
	list, err := disk.ReadDir("log")
	if err != nil {
		return err
	}
	for _, e := range list {
		if strings.HasPrefix(e.Name(), "carried-") && e.Name() != fmt.Sprintf("carried-%020d.jsonl", r.FirstSeq) {
			return fmt.Errorf("%s is left in a log from %d on", e.Name(), r.FirstSeq)
		}
	}
	return noTemps(disk, r)
}
