package wal_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/recovery/crashtest"
	"github.com/jobwal/jobwal/wal"
)

// remains is what there is to save of a damaged log, by someone who knows what it was before.
type remains struct {
	intact  map[uint64]bool // events whose lines stand as they were written
	durable uint64          // the highest witness
}

func remainsOf(img, damaged image) remains {
	r := remains{intact: make(map[uint64]bool)}
	for _, name := range damaged.Segments() {
		salt := crashtest.Salt(img[name])
		for line := range bytes.Lines(damaged[name]) {
			var says struct{ Seq, Durable uint64 }
			if _, intact := crashtest.Unseal(salt, string(line)); intact && bytes.HasSuffix(line, []byte("\n")) {
				_ = json.Unmarshal(line, &says) // what is intact is as it was written
				r.durable = max(r.durable, says.Durable)
				r.intact[says.Seq] = true
			}
		}
	}
	return r
}

// due is what Salvage has to save: what a witness covers, and whole groups that follow it.
func (r remains) due(events []wal.Event) (seqs []uint64) {
	contiguous := r.durable
	for i, e := range events {
		if e.Seq == contiguous+1 {
			var p struct{ K, Of int }
			_, _ = fmt.Sscanf(payload(e), `{"g":%d,"k":%d,"of":%d`, new(int), &p.K, &p.Of)
			whole := true
			for j := i; j < min(len(events), i+p.Of); j++ {
				whole = whole && r.intact[events[j].Seq]
			}
			if whole && p.K == 0 {
				contiguous = e.Seq + uint64(p.Of) - 1
			}
		}
		if r.intact[e.Seq] && e.Seq <= contiguous {
			seqs = append(seqs, e.Seq)
		}
	}
	return seqs
}

// vouched tells whether anything still vouches for the lines of seq's segment: its header, or, without it, two of its
// lines or more that agree on what their checksums were begun with, and are not outvoted by what does not belong there.
func vouched(img, damaged image, seq uint64) bool {
	name := ""
	for _, n := range img.Segments() {
		if n <= fmt.Sprintf("%020d.jsonl", seq) {
			name = n
		}
	}
	header, _, _ := bytes.Cut(img[name], []byte("\n"))
	if bytes.HasPrefix(damaged[name], header) {
		return true
	}
	own, foreign := 0, 0
	for line := range bytes.Lines(damaged[name]) {
		switch {
		case !bytes.HasSuffix(line, []byte("}\n")):
		case bytes.Contains(img[name], append([]byte("\n"), line...)):
			own++
		default:
			foreign++
		}
	}
	return own > 1 && own > foreign
}

// salvaged checks a copy against what there was to save.
func salvaged(img, damaged image, events []wal.Event) error {
	r := ram(damaged)
	report, err := wal.SalvageFS(r, "log", "into")
	if err != nil {
		return fmt.Errorf("Salvage: %w", err)
	}
	if !maps.EqualFunc(r.image(), damaged, slices.Equal[[]byte]) {
		return errors.New("the source was changed")
	}
	l, err := wal.Open("into", wal.Options{FS: r})
	if err != nil {
		return fmt.Errorf("the copy: %w", err)
	}
	defer l.Close()
	copied, err := collect(l, 0)
	if err != nil {
		return fmt.Errorf("the copy: %w", err)
	}
	have, lost := make(map[uint64]bool), uint64(0)
	for i, e := range copied {
		switch {
		case e.Seq != l.FirstSeq()+uint64(i):
			return fmt.Errorf("seq %d where %d belongs", e.Seq, l.FirstSeq()+uint64(i))
		case e.Type == wal.EventLost:
			lost++
		case !sameEvent(e, find(events, e.Seq)):
			return fmt.Errorf("seq %d is %v", e.Seq, e)
		default:
			have[e.Seq] = true
		}
	}
	rest := remainsOf(img, damaged)
	torn := tornFrom(damaged)
	for _, seq := range rest.due(events) {
		if seq >= torn {
			break // a torn tail is left out, as Open would leave it out
		}
		if !have[seq] && vouched(img, damaged, seq) {
			return fmt.Errorf("seq %d is intact, and was not saved (to %d: %v)", seq, rest.durable, report.Damage)
		}
	}
	if report.Lost < lost || lost > 0 && report.Damages == 0 {
		return fmt.Errorf("%d lost in the copy, the report tells of %d and %d damages", lost, report.Lost, report.Damages)
	}
	oldest := img.Segments()[0]
	headed := bytes.HasPrefix(damaged[oldest], img[oldest][:bytes.IndexByte(img[oldest], '\n')+1])
	if headed && len(events) > 0 && rest.durable > 0 && l.FirstSeq() > events[0].Seq && oldest == segmentName(events[0].Seq) {
		return fmt.Errorf("the copy starts at %d: what came before it is not even marked as lost", l.FirstSeq())
	}
	return nil
}

// tornFrom is the first seq that a torn tail has cost, whatever else is damaged: the newest segment is judged alone, as if
// all before it had been dropped.
func tornFrom(img image) uint64 {
	name := img.Newest()
	alone, ok := refloored(img[name], strings.TrimLeft(strings.TrimSuffix(name, ".jsonl"), "0"))
	if !ok {
		return math.MaxUint64
	}
	if v := judge(image{name: alone}); !v.refused() && len(v.Cut) > 0 {
		return v.Last + 1
	}
	return math.MaxUint64
}

func TestSalvage_every_flipped_byte(t *testing.T) {
	t.Parallel()
	references(t, func(t *testing.T, img image, events []wal.Event) {
		for _, name := range img.Segments() {
			step := thin(1, 31)
			if t.Name() != "TestSalvage_every_flipped_byte/killed_dropped" {
				step = thin(9, 31)
			}
			parallel(t, len(img[name])/step, func(i int) error {
				i *= step
				damaged := maps.Clone(img)
				damaged[name] = slices.Clone(img[name])
				damaged[name][i] ^= 1 << (i % 8)
				if err := salvaged(img, damaged, events); err != nil {
					return fmt.Errorf("%s byte %d: %w", name, i, err)
				}
				return nil
			})
		}
	})
}

func TestSalvage_any_damage(t *testing.T) {
	t.Parallel()
	kinds := slices.DeleteFunc(slices.Sorted(maps.Keys(damages)), func(kind string) bool {
		switch kind { // what comes out of these is some log, but whose?
		case "segment of another log", "segments swapped", "segment again", "segment gone":
			return true
		}
		return false
	})
	synctest.Test(t, func(t *testing.T) {
		rapid.Check(bubbleTB{t}, func(t *rapid.T) {
			img, events := history(t)
			for range rapid.IntRange(1, 6).Draw(t, "damages") {
				damaged := img.Clone()
				kind := rapid.SampledFrom(kinds).Draw(t, "damage")
				damages[kind](t, damaged)
				if err := salvaged(img, damaged, events); err != nil {
					t.Fatalf("%s: %v", kind, err)
				}
			}
		})
	})
}

func TestSalvage_refuses_a_directory_that_holds_something(t *testing.T) {
	img, _ := reference(t, false, killed)
	r := ram(img)
	r.dirs["into"] = true
	r.files["into/something"] = new(ramNode)
	_, err := wal.SalvageFS(r, "log", "into")
	wantError(t, err, []error{wal.ErrInvalid})
	_, err = wal.SalvageFS(r, "log", "log")
	wantError(t, err, []error{wal.ErrInvalid})
	if r.changed() > 0 {
		t.Error("changed")
	}
}

// What was found: a log that lost its first events, or all of them, came out as one that had never had them.
func TestSalvage_marks_lost_events_at_the_beginning(t *testing.T) {
	var img image
	synctest.Test(t, func(t *testing.T) {
		r := ram(nil)
		l := mustOpen(t, wal.Options{FS: r})
		mustAppend(t, l, group(1, 3, 0)...)
		mustClose(t, l)
		img = r.image()
	})
	for lose := 1; lose <= 3; lose++ {
		damaged := img.Clone()
		name := damaged.Newest()
		for _, at := range lineStarts(damaged[name])[2:][:lose] { // behind the header and the opened mark
			damaged[name][at+20] ^= 1
		}
		r := ram(damaged)
		report, err := wal.SalvageFS(r, "log", "into")
		if err != nil {
			t.Fatal(err)
		}
		l, err := wal.Open("into", wal.Options{FS: r})
		if err != nil {
			t.Fatal(err)
		}
		events, err := collect(l, 0)
		if err != nil || len(events) != 3 || report.Lost != uint64(lose) || events[0].Type != wal.EventLost {
			t.Errorf("%d lost: %d events, report says %d: %v", lose, len(events), report.Lost, err)
		}
		mustClose(t, l)
	}
}

// What was found: with the newest segment unreadable, its name no longer told that the group at the end of the one before it
// had been acknowledged, and what was left of that group was taken for a torn tail.
func TestSalvage_believes_the_name_of_a_segment_that_cannot_be_read(t *testing.T) {
	var img image
	synctest.Test(t, func(t *testing.T) {
		r := ram(nil)
		l := mustOpen(t, wal.Options{FS: r})
		mustAppend(t, l, group(1, 3, 0)...)
		img = r.image() // killed: the next opening goes on in a segment of its own
		mustClose(t, l)
		r = ram(img)
		l = mustOpen(t, wal.Options{FS: r})
		img = r.image()
		mustClose(t, l)
	})
	segments := img.Segments()
	if len(segments) != 2 {
		t.Fatal(segments)
	}
	lines := bytes.SplitAfter(img[segments[0]], []byte("\n"))
	opened := bytes.SplitAfter(img[segments[1]], []byte("\n"))[1]
	img[segments[1]] = slices.Concat(lines[2], opened) // an event that does not belong here in place of the header
	lines[2] = []byte("what is left of the first event\n")
	img[segments[0]] = bytes.Join(lines, nil)
	r := ram(img)
	if _, err := wal.SalvageFS(r, "log", "into"); err != nil {
		t.Fatal(err)
	}
	l, err := wal.Open("into", wal.Options{FS: r})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	events, err := collect(l, 0)
	if err != nil || len(events) != 3 || events[0].Type != wal.EventLost || events[1].Type == wal.EventLost || events[2].Type == wal.EventLost {
		t.Errorf("%v: %v", events, err)
	}
}
