package wal_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/recovery/crashtest"
	"github.com/jobwal/jobwal/wal"
)

var ctx = context.Background()

// event makes one that tells, wherever it turns up, which append it was in, at which place of how many.
func event(group, place, of, padding int) wal.Event {
	e := wal.Event{Type: wal.JobSubmitted, JobID: fmt.Sprintf("job-%d", group), Capability: "shell",
		Args: json.RawMessage(fmt.Sprintf(`{"g":%d,"k":%d,"of":%d,"pad":"%s"}`, group, place, of, strings.Repeat("x", padding)))}
	if place%2 == 1 {
		e.Type, e.Args, e.Output = wal.JobCompleted, nil, e.Args
	}
	return e
}

func group(number, of, padding int) (events []wal.Event) {
	for k := range of {
		events = append(events, event(number, k, of, padding))
	}
	return events
}

func payload(e wal.Event) string { return string(e.Args) + string(e.Output) }

func mustOpen(t testing.TB, opts wal.Options) *wal.Log {
	t.Helper()
	l, err := wal.Open("log", opts)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	return l
}

func mustAppend(t testing.TB, l *wal.Log, events ...wal.Event) uint64 {
	t.Helper()
	first, err := l.Append(ctx, events...)
	if err != nil {
		t.Fatalf("Append: %v", err)
	}
	return first
}

func mustClose(t testing.TB, l *wal.Log) {
	t.Helper()
	if err := l.Close(); err != nil {
		t.Fatalf("Close: %v", err)
	}
}

// collect reads all there is, up to the first error.
func collect(l *wal.Log, from uint64) (events []wal.Event, err error) {
	for e, err := range l.Events(from) {
		if err != nil {
			return events, err
		}
		events = append(events, e)
	}
	return events, nil
}

// ending is how the reference log's last writer ended.
type ending string

const (
	closed ending = "closed" // cleanly
	killed ending = "killed" // the last append has no witness
	idle   ending = "idle"   // killed some milliseconds after the last append
)

// reference is a small log with everything in it: groups, several segments, an opening in the same segment, one in a new
// segment, a dropped beginning, and an ending.
func reference(t *testing.T, dropped bool, end ending) (img image, events []wal.Event) {
	synctest.Test(t, func(t *testing.T) {
		r := ram(nil)
		opts := wal.Options{FS: r, SegmentBytes: 2000}
		l := mustOpen(t, opts)
		mustAppend(t, l, group(1, 1, 0)...)
		mustAppend(t, l, group(2, 3, 5)...)
		mustClose(t, l)
		l = mustOpen(t, opts)
		mustAppend(t, l, group(3, 1, 30)...)
		mustAppend(t, l, group(4, 5, 0)...)
		time.Sleep(time.Second)
		mustAppend(t, l, group(5, 2, 0)...)
		if dropped {
			if err := l.DropBefore(6); err != nil {
				t.Fatal(err)
			}
		}
		r = ram(r.image()) // killed
		opts.FS = r
		l = mustOpen(t, opts)
		for g := 6; g < 11; g++ {
			mustAppend(t, l, group(g, 1+g%3, g)...)
		}
		switch end {
		case closed:
			mustClose(t, l)
		case idle:
			time.Sleep(time.Second)
		}
		img = r.image()
		if end != closed {
			defer mustClose(t, l)
		}
		var err error
		if events, err = collect2(l, r, opts); err != nil {
			t.Fatal(err)
		}
	})
	if len(img.Segments()) < 3 {
		t.Fatalf("the reference has only the segments %v", img.Segments())
	}
	return img, events
}

// collect2 reads from a copy of the log, which is closed or not.
func collect2(_ *wal.Log, r *ramFS, opts wal.Options) ([]wal.Event, error) {
	opts.FS = ram(r.image())
	l, err := wal.Open("log", opts)
	if err != nil {
		return nil, err
	}
	events, err := collect(l, 0)
	return events, errors.Join(err, l.Close())
}

// examine opens a damaged image and holds what happens against the judge. It returns what is wrong.
func examine(img image, events []wal.Event) error {
	v := judge(img)
	r := ram(img)
	if err := examineVerify(r, v); err != nil {
		return fmt.Errorf("verdict %v: %w", v, err)
	}
	if err := examineReader(r, v, events); err != nil {
		return fmt.Errorf("verdict %v: ReadOnly: %w", v, err)
	}
	if err := examineTail(r, events, 32<<10); err != nil {
		return fmt.Errorf("verdict %v: Tail: %w", v, err)
	}
	if err := examineOpen(r, v, events, true); err != nil {
		return fmt.Errorf("verdict %v: %w", v, err)
	}
	return nil
}

// examineNth examines most of very many cases by one Open alone, and every so many-th in all ways.
func examineNth(i, each int, img image, v verdict, events []wal.Event) error {
	if i%each == 0 {
		return examine(img, events)
	}
	if err := examineOpen(ram(img), v, events, false); err != nil {
		return fmt.Errorf("verdict %v: %w", v, err)
	}
	return nil
}

// examineVerify: Verify complains exactly where Open refuses or reading fails, and changes nothing.
func examineVerify(r *ramFS, v verdict) error {
	_, err := wal.VerifyFS(r, "log")
	damaged := v.refused() || v.corrupt()
	switch {
	case r.changed() > 0:
		return errors.New("Verify changed something")
	case err != nil && !errors.Is(err, wal.ErrCorrupt):
		return fmt.Errorf("Verify: %w", err)
	case damaged && err == nil:
		return errors.New("Verify finds nothing")
	}
	return nil
}

// examineReader: ReadOnly refuses what a writer refuses, shows of the rest what has a witness, and changes nothing.
func examineReader(r *ramFS, v verdict, events []wal.Event) error {
	l, err := wal.Open("log", wal.Options{FS: r, ReadOnly: true})
	switch {
	case v.refused() && !errors.Is(err, wal.ErrCorrupt):
		return fmt.Errorf("should be refused: %v", err)
	case v.refused():
		return nil
	case err != nil:
		return fmt.Errorf("should be opened: %w", err)
	}
	defer l.Close()
	v.Last = min(v.Last, v.Durable)
	v.Readable = min(v.Readable, v.Last)
	if err := sameAs(l, v, events); err != nil {
		return err
	}
	if r.changed() > 0 {
		return errors.New("changed something")
	}
	return nil
}

// examineOpen opens for writing; and what opens, twice again, if asked for.
func examineOpen(r *ramFS, v verdict, events []wal.Event, again bool) error {
	opts := wal.Options{FS: r, SegmentBytes: 2000}
	l, err := wal.Open("log", opts)
	if v.refused() {
		var bad *wal.CorruptError
		switch {
		case err == nil:
			return errors.Join(errors.New("opened what should be refused"), l.Close())
		case !errors.As(err, &bad) || !errors.Is(err, wal.ErrCorrupt) || bad.Path == "" || bad.Reason == "":
			return fmt.Errorf("refused, but with %#v", err)
		case r.changed() > 0:
			return errors.New("refused, but something was changed")
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("refused what should be opened: %w", err)
	}
	defer l.Close()
	if err := sameAs(l, v, events); err != nil {
		return err
	}
	if err := quarantined(r.image(), v); err != nil {
		return err
	}
	if torn := l.Report().TornBytes(); torn != int64(cutBytes(v)) {
		return fmt.Errorf("the report tells of %d torn bytes, %d were cut", torn, cutBytes(v))
	}
	if !again || len(v.Cut) == 0 && v.corrupt() {
		return nil // damage in a sealed segment is no business of Open's: what follows was seen in another case
	}
	// R2: once more, from the directory as a crash right now would leave it, and after a clean Close.
	for _, clean := range []bool{false, true} {
		if clean {
			if err := l.Close(); err != nil {
				return err
			}
		}
		opts.FS = ram(r.image())
		again, err := wal.Open("log", opts)
		if err != nil {
			return fmt.Errorf("second open (closed %v): %w", clean, err)
		}
		if err := errors.Join(sameAs(again, v, events), quarantined(opts.FS.(*ramFS).image(), v), again.Close()); err != nil {
			return fmt.Errorf("second open (closed %v): %w", clean, err)
		}
	}
	return nil
}

// sameAs holds a log to the verdict, and its events to those that were written.
func sameAs(l *wal.Log, v verdict, events []wal.Event) error {
	if l.FirstSeq() != v.First || l.LastSeq() != v.Last {
		return fmt.Errorf("opened as %d..%d", l.FirstSeq(), l.LastSeq())
	}
	got, err := collect(l, 0)
	if v.corrupt() != errors.Is(err, wal.ErrCorrupt) || !v.corrupt() && err != nil {
		return fmt.Errorf("reading to %d ended with %v", v.Readable, err)
	}
	if uint64(len(got)) != v.Readable+1-v.First {
		return fmt.Errorf("read %d events", len(got))
	}
	for i, e := range got {
		if e.Seq != v.First+uint64(i) || i < len(events) && !sameEvent(e, find(events, e.Seq)) {
			return fmt.Errorf("event %d is %v", v.First+uint64(i), e)
		}
	}
	return nil
}

func find(events []wal.Event, seq uint64) wal.Event {
	i, _ := slices.BinarySearchFunc(events, seq, func(e wal.Event, seq uint64) int { return cmp.Compare(e.Seq, seq) })
	if i < len(events) && events[i].Seq == seq {
		return events[i]
	}
	return wal.Event{}
}

func sameEvent(a, b wal.Event) bool {
	return a.Seq == b.Seq && a.Prev == b.Prev && a.Epoch == b.Epoch && a.Time.Equal(b.Time) && a.Type == b.Type &&
		a.JobID == b.JobID && a.Capability == b.Capability && a.Error == b.Error && a.Problem == b.Problem &&
		bytes.Equal(a.Args, b.Args) && bytes.Equal(a.Output, b.Output)
}

func cutBytes(v verdict) (n int) {
	for _, b := range v.Cut {
		n += len(b)
	}
	return n
}

// quarantined: every byte that was cut is in quarantine, once, and nothing else is.
func quarantined(img image, v verdict) error {
	kept := make(map[string][]byte)
	for name, b := range img {
		if q, ok := strings.CutPrefix(name, "quarantine/"); ok {
			_, body, _ := bytes.Cut(b, []byte("\n"))
			kept[strings.Join(strings.Split(q, ".")[:3], ".")] = body
		}
	}
	for name, b := range v.Cut {
		key := fmt.Sprintf("%s.%d", name, v.offset[name])
		if !bytes.Equal(kept[key], b) {
			return fmt.Errorf("%s: cut %q, quarantine has %q", key, b, kept[key])
		}
		delete(kept, key)
	}
	if len(kept) > 0 {
		return fmt.Errorf("quarantine has more: %v", slices.Sorted(maps.Keys(kept)))
	}
	return nil
}

// parallel runs check for 0..n-1 on all processors and stops at the first error.
func parallel(t *testing.T, n int, check func(i int) error) {
	t.Helper()
	var next atomic.Int64
	failed := make(chan error, runtime.GOMAXPROCS(0))
	for range cap(failed) {
		go func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					failed <- nil
					return
				}
				if err := check(i); err != nil {
					next.Store(int64(n))
					failed <- err
					return
				}
			}
		}()
	}
	for range cap(failed) {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
}

func references(t *testing.T, run func(t *testing.T, img image, events []wal.Event)) {
	for _, dropped := range []bool{false, true} {
		for _, end := range []ending{closed, killed, idle} {
			name := string(end)
			if dropped {
				name += "_dropped"
			}
			t.Run(name, func(t *testing.T) {
				img, events := reference(t, dropped, end)
				if err := examine(img, events); err != nil {
					t.Fatalf("undamaged: %v", err)
				}
				run(t, img, events)
			})
		}
	}
}

// F1: the newest segment cut at every byte; every other segment, too.
func TestF1_every_truncation(t *testing.T) {
	t.Parallel()
	total := 0
	references(t, func(t *testing.T, img image, events []wal.Event) {
		names := img.Segments()
		if t.Name() != "TestF1_every_truncation/idle_dropped" {
			names = names[len(names)-1:]
		}
		for _, name := range names {
			total += everyCut(t, img, name, func(cut image, _ int) error { return examine(cut, events) })
		}
	})
	t.Logf("%d cuts", total)
}

// everyCut cuts a file at each byte, or at every so many-th where the race detector is on, and returns how many.
func everyCut(t *testing.T, img image, name string, check func(cut image, at int) error) int {
	t.Helper()
	step := thin(1, 23)
	n := len(img[name]) / step
	parallel(t, n, func(i int) error {
		at := i * step
		cut := maps.Clone(img)
		cut[name] = img[name][:at:at]
		if err := check(cut, at); err != nil {
			return fmt.Errorf("%s cut at %d: %w", name, at, err)
		}
		return nil
	})
	return n
}

// F3, F4, F24: every bit of the newest file, turned, whichever way the writer ended.
func TestF3_every_bit_flip(t *testing.T) {
	t.Parallel()
	total := 0
	references(t, func(t *testing.T, img image, events []wal.Event) {
		total += everyFlip(t, img, img.Newest(), func(flipped image, bit int) error {
			return examineNth(bit, 9, flipped, judge(flipped), events) // 9, so that each bit of a byte has its turn
		})
	})
	t.Logf("%d flips", total)
}

// everyFlip turns each bit of a file, or every so many-th where the race detector is on, and returns how many.
func everyFlip(t *testing.T, img image, name string, check func(flipped image, bit int) error) int {
	t.Helper()
	step := thin(1, 61)
	n := len(img[name]) * 8 / step
	parallel(t, n, func(i int) error {
		bit := i * step
		flipped := maps.Clone(img)
		flipped[name] = slices.Clone(img[name])
		flipped[name][bit/8] ^= 1 << (bit % 8)
		if err := check(flipped, bit); err != nil {
			return fmt.Errorf("%s bit %d (%q at %d): %w", name, bit, img[name][bit/8], bit/8, err)
		}
		return nil
	})
	return n
}

// hundred is a log of a hundred events, with groups, in several segments: its writer was killed once, and closed it twice.
func hundred(t *testing.T) (img image, events []wal.Event) {
	synctest.Test(t, func(t *testing.T) {
		r := ram(nil)
		opts := wal.Options{FS: r, SegmentBytes: 5000}
		l := mustOpen(t, opts)
		for n := range 40 { // four appends are ten events
			switch n {
			case 16: // killed
				r = ram(r.image())
				opts.FS = r
				l = mustOpen(t, opts)
			case 32:
				mustClose(t, l)
				l = mustOpen(t, opts)
			}
			batch := make([]wal.Event, 1+n%4)
			for k := range batch {
				batch[k] = wal.Event{Type: "e", JobID: fmt.Sprint(n, "-", k)}
			}
			mustAppend(t, l, batch...)
		}
		mustClose(t, l)
		img = r.image()
		var err error
		if events, err = collect2(nil, r, opts); err != nil {
			t.Fatal(err)
		}
	})
	return img, events
}

// A closed log of a hundred events, cut at every byte and with every bit turned, of all its segments.
// Every case is opened and read as the judge says, each 27th (so that each bit of a byte has its turn) in all ways. And no
// flip loses an event in silence: what opens has all hundred, or says where it is damaged.
func TestF1_F3_F4_F6_F24_a_hundred_events(t *testing.T) {
	t.Parallel()
	img, events := hundred(t)
	if len(events) != 100 || len(img.Segments()) < 3 {
		t.Fatalf("%d events in %v", len(events), img.Segments())
	}
	cuts, flips, refused := 0, 0, atomic.Int64{}
	for _, name := range img.Segments() {
		cuts += everyCut(t, img, name, func(cut image, at int) error { return examineNth(at, 27, cut, judge(cut), events) })
		flips += everyFlip(t, img, name, func(flipped image, bit int) error {
			v := judge(flipped)
			if v.refused() {
				refused.Add(1)
			} else if v.Last != 100 {
				return fmt.Errorf("the judge lets it open to %d", v.Last)
			}
			return examineNth(bit, 27, flipped, v, events)
		})
	}
	t.Logf("%d bytes in %d segments: %d cuts, %d flips (%d refused by Open)", cuts, len(img.Segments()), cuts, flips, refused.Load())
}

// history is a log that lived through a random life.
func history(t *rapid.T) (img image, events []wal.Event) {
	opts := wal.Options{FS: ram(nil), SegmentBytes: int64(rapid.IntRange(wal.MinSegmentBytes, 4000).Draw(t, "segmentBytes"))}
	disk := opts.FS.(*ramFS)
	l := mustOpen2(t, opts)
	die := func() { // the old log lives on in a world of its own
		disk = ram(disk.image())
		opts.FS = disk
	}
	number := 0
	for range rapid.IntRange(1, 25).Draw(t, "steps") {
		switch rapid.SampledFrom([]string{"append", "append", "append", "append", "idle", "close", "kill", "drop"}).Draw(t, "step") {
		case "append":
			number++
			padding := rapid.SampledFrom([]int{0, 10, 100, 600, 3000}).Draw(t, "padding")
			if _, err := l.Append(ctx, group(number, rapid.IntRange(1, 5).Draw(t, "of"), padding)...); err != nil {
				t.Fatal(err)
			}
		case "idle":
			time.Sleep(time.Second)
		case "close":
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			l = mustOpen2(t, opts)
		case "kill":
			die()
			l = mustOpen2(t, opts)
		case "drop":
			if err := l.DropBefore(rapid.Uint64Range(1, l.LastSeq()+1).Draw(t, "before")); err != nil {
				t.Fatal(err)
			}
		}
	}
	if rapid.Bool().Draw(t, "closed") {
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	events, err := collect2(l, disk, opts)
	if err != nil {
		t.Fatal(err)
	}
	return disk.image(), events
}

// bubbleTB hides Deadline, which rapid would call and which a synctest bubble forbids.
type bubbleTB struct{ rapid.TB }

func mustOpen2(t *rapid.T, opts wal.Options) *wal.Log {
	l, err := wal.Open("log", opts)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// damages are what disks, and people, do to files.
var damages = map[string]func(t *rapid.T, img image){
	"cut": func(t *rapid.T, img image) {
		name := someSegment(t, img)
		img[name] = img[name][:offset(t, img[name])]
	},
	"tail": func(t *rapid.T, img image) {
		name := img.Newest()
		at := offset(t, img[name])
		img[name] = append(img[name][:at:at], junk(t, img, len(img[name])-at)...)
	},
	"more": func(t *rapid.T, img image) {
		name := someSegment(t, img)
		img[name] = append(img[name], junk(t, img, rapid.IntRange(1, 2000).Draw(t, "bytes"))...)
	},
	"flip": func(t *rapid.T, img image) {
		if name := someSegment(t, img); len(img[name]) > 0 {
			img[name][rapid.IntRange(0, len(img[name])-1).Draw(t, "at")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		}
	},
	"hole": func(t *rapid.T, img image) {
		b := img[someSegment(t, img)]
		at := offset(t, b)
		copy(b[at:], junk(t, img, rapid.IntRange(1, 600).Draw(t, "bytes")))
	},
	"sector": func(t *rapid.T, img image) {
		b := img[someSegment(t, img)]
		at := offset(t, b) / 512 * 512
		copy(b[at:], junk(t, img, 512))
	},
	"line again": func(t *rapid.T, img image) {
		editLines(t, img, func(lines [][]byte, i, j int) [][]byte { return slices.Insert(lines, i, lines[j]) })
	},
	"line gone": func(t *rapid.T, img image) {
		editLines(t, img, func(lines [][]byte, i, _ int) [][]byte { return slices.Delete(lines, i, i+1) })
	},
	"lines swapped": func(t *rapid.T, img image) {
		editLines(t, img, func(lines [][]byte, i, j int) [][]byte {
			lines[i], lines[j] = lines[j], lines[i]
			return lines
		})
	},
	"line blank": func(t *rapid.T, img image) {
		editLines(t, img, func(lines [][]byte, i, _ int) [][]byte {
			lines[i] = bytes.Repeat([]byte("\n"), len(lines[i]))
			return lines
		})
	},
	"two bytes": func(t *rapid.T, img image) {
		b := img[someSegment(t, img)]
		for range min(2, len(b)) {
			b[rapid.IntRange(0, len(b)-1).Draw(t, "at")] = rapid.SampledFrom([]byte("\n\x00}{,0a\" ")).Draw(t, "byte")
		}
	},
	"block again": func(t *rapid.T, img image) {
		size := rapid.SampledFrom([]int{512, 4096}).Draw(t, "size")
		from, name := img[someSegment(t, img)], someSegment(t, img)
		at := offset(t, from) / size * size
		to := offset(t, img[name]) / size * size
		b := slices.Clone(from[at:min(at+size, len(from))])
		if rapid.Bool().Draw(t, "in its place") {
			img[name] = slices.Concat(img[name][:to], b, img[name][min(to+size, len(img[name])):])
		} else {
			img[name] = slices.Insert(img[name], to, b...)
		}
	},
	"lines swapped across segments": func(t *rapid.T, img image) {
		a, b := someSegment(t, img), someSegment(t, img)
		linesA, linesB := bytes.SplitAfter(img[a], []byte("\n")), bytes.SplitAfter(img[b], []byte("\n"))
		if a == b {
			return
		}
		i := rapid.IntRange(0, len(linesA)-1).Draw(t, "line")
		j := rapid.IntRange(0, len(linesB)-1).Draw(t, "other")
		linesA[i], linesB[j] = linesB[j], linesA[i]
		img[a], img[b] = bytes.Join(linesA, nil), bytes.Join(linesB, nil)
	},
	"line moved to the end": func(t *rapid.T, img image) {
		from, to := someSegment(t, img), someSegment(t, img)
		lines := bytes.SplitAfter(img[from], []byte("\n"))
		img[to] = append(img[to], lines[rapid.IntRange(0, len(lines)-1).Draw(t, "line")]...)
	},
	"segment gone": func(t *rapid.T, img image) {
		if len(img.Segments()) > 1 {
			delete(img, someSegment(t, img))
		}
	},
	"segments swapped": func(t *rapid.T, img image) {
		a, b := someSegment(t, img), someSegment(t, img)
		img[a], img[b] = img[b], img[a]
	},
	"segment again": func(t *rapid.T, img image) {
		from := someSegment(t, img)
		img[fmt.Sprintf("%020d.jsonl", rapid.Uint64Range(1, 60).Draw(t, "as"))] = slices.Clone(img[from])
	},
	"segment of another log": func(t *rapid.T, img image) {
		other, _ := history(t)
		if len(img.Segments()) > 1 {
			img[someSegment(t, img)] = other[someSegment(t, other)]
		}
	},
}

func someSegment(t *rapid.T, img image) string {
	names := img.Segments()
	if rapid.Bool().Draw(t, "newest") {
		return names[len(names)-1]
	}
	return rapid.SampledFrom(names).Draw(t, "segment")
}

func offset(t *rapid.T, b []byte) int { return rapid.IntRange(0, len(b)).Draw(t, "offset") }

// junk is what may stand where something else should.
func junk(t *rapid.T, img image, n int) []byte {
	switch rapid.SampledFrom([]string{"zeros", "newlines", "garbage", "stale", "nothing"}).Draw(t, "junk") {
	case "zeros":
		return make([]byte, n)
	case "newlines":
		return bytes.Repeat([]byte("\n"), n)
	case "garbage":
		return rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, "garbage")
	case "stale":
		old := img[someSegment(t, img)]
		at := offset(t, old)
		return slices.Clone(old[at:min(len(old), at+n)])
	}
	return nil
}

// editLines changes the lines behind a header.
func editLines(t *rapid.T, img image, edit func(lines [][]byte, i, j int) [][]byte) {
	name := someSegment(t, img)
	lines := bytes.SplitAfter(img[name], []byte("\n"))
	if lines = lines[:len(lines)-1]; len(lines) < 2 {
		return
	}
	some := rapid.IntRange(1, len(lines)-1)
	img[name] = bytes.Join(edit(lines, some.Draw(t, "line"), some.Draw(t, "other")), nil)
}

// W3, F1 to F6: any life, any damage, and the log does as the judge says; nothing that a witness covers is ever missing
// in silence.
func TestW3_any_damage(t *testing.T) {
	t.Parallel()
	kinds := slices.Sorted(maps.Keys(damages))
	counts := make(map[bool]int)
	synctest.Test(t, func(t *testing.T) {
		rapid.Check(bubbleTB{t}, func(t *rapid.T) {
			img, events := history(t)
			id := logIn(img[img.Segments()[0]])
			for range rapid.IntRange(1, 12).Draw(t, "damages") {
				damaged := img.Clone()
				var did []string
				for range rapid.SampledFrom([]int{1, 1, 2}).Draw(t, "at once") {
					kind := rapid.SampledFrom(kinds).Draw(t, "damage")
					damages[kind](t, damaged)
					did = append(did, kind)
				}
				if other := logIn(damaged[damaged.Segments()[0]]); other != "" && other != id {
					continue // all that is left is the other log
				}
				if err := examine(damaged, events); err != nil {
					t.Fatalf("%v: %v", did, err)
				}
				counts[judge(damaged).refused()]++
			}
		})
	})
	t.Logf("%d opened, %d refused", counts[false], counts[true])
}

// F1, F5: lines that were cut and come back, where the next segment has the same offsets and waits for the same seqs: the
// salt tells that they are none of its own.
func TestF5_stale_lines_of_a_cut_group(t *testing.T) {
	var img image
	var stale []byte
	synctest.Test(t, func(t *testing.T) {
		r := ram(nil)
		l := mustOpen(t, wal.Options{FS: r})
		mustAppend(t, l, event(1, 0, 1, 0))
		mustAppend(t, l, event(2, 0, 1, 0))
		img = r.image()
		mustClose(t, l)
		name := img.Newest()
		second := bytes.LastIndex(img[name], []byte("\n{")) + 1
		stale = slices.Clone(img[name][second:])
		img[name] = img[name][:second] // it never came to the disk
		r = ram(img)
		l = mustOpen(t, wal.Options{FS: r})
		img = r.image()
		mustClose(t, l)
	})
	name := img.Newest()
	if name != "00000000000000000002.jsonl" || !bytes.HasPrefix(stale, []byte(`{"seq":2,`)) {
		t.Fatalf("%s, %s", name, stale)
	}
	img[name] = append(img[name], stale...)
	if err := examine(img, nil); err != nil {
		t.Error(err)
	}
	if v := judge(img); v.refused() || v.Last != 1 {
		t.Error(v)
	}
}

// F5, F6: each segment missing, in each other's place, doubled under another's name or a name of its own, and in the place
// of the same segment of another log; and the newest one without its header, behind one that was cut.
func TestF6_segments_out_of_place(t *testing.T) {
	other, _ := reference(t, false, killed)
	references(t, func(t *testing.T, img image, events []wal.Event) {
		try := func(what string, damage func(img image)) {
			t.Helper()
			damaged := maps.Clone(img)
			damage(damaged)
			if err := examine(damaged, events); err != nil {
				t.Errorf("%s: %v", what, err)
			}
			if v := judge(damaged); !v.refused() && what != "newest gone" {
				t.Errorf("%s: the judge lets it pass: %v", what, v)
			}
			if _, err := wal.TailFS(ram(damaged), "log", 1000, 32<<10); !errors.Is(err, wal.ErrCorrupt) && what != "newest gone" {
				t.Errorf("%s: Tail lets all of it pass: %v", what, err)
			}
		}
		names := img.Segments()
		for i, a := range names {
			what := "gone"
			if a == img.Newest() {
				what = "newest gone"
			}
			try(what, func(img image) { delete(img, a) })
			if b := other[a]; b != nil {
				try("of another log", func(img image) { img[a] = b })
			}
			try("again", func(img image) { img["00000000000000000099.jsonl"] = img[a] })
			for _, b := range names[i+1:] {
				try("swapped", func(img image) { img[a], img[b] = img[b], img[a] })
				try("doubled", func(img image) { img[a] = img[b] })
			}
		}
		last := names[len(names)-2]
		for _, at := range lineStarts(img[last]) {
			if bytes.HasPrefix(img[last][at:], []byte(`{"seq":`)) {
				try("cut behind a newest one without a header", func(img image) {
					img[img.Newest()] = img[img.Newest()][:10]
					img[last] = img[last][:at]
				})
			}
		}
	})
}

// C10: the floor is durable, and the segment below it is still there. A reader's second look at the directory took the
// leftover for the first segment, and passed over those that it knew.
func TestF14_reader_of_a_log_whose_dropped_segment_is_left(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := ram(nil)
		l := mustOpen(t, wal.Options{FS: r, SegmentBytes: 1024})
		for n := range 12 {
			mustAppend(t, l, group(n, 2, 100)...)
		}
		before := r.image()
		names := before.Segments()
		kept := uint64(0)
		if _, err := fmt.Sscanf(names[1], "%d", &kept); err != nil || len(names) < 4 {
			t.Fatal(names, err)
		}
		if err := l.DropBefore(kept); err != nil {
			t.Fatal(err)
		}
		mustAppend(t, l, group(12, 2, 100)...) // a look takes over what is known only where the newest segment has events
		mustClose(t, l)
		left := r.image()
		left[names[0]] = before[names[0]]
		if err := examineTail(ram(left), nil, 300); err != nil {
			t.Error(err)
		}
		if len(left[left.Newest()]) > 1024 || left.Newest() == names[1] {
			t.Fatal("the floor should stand in the newest segment, before the last events")
		}
		reader := mustOpen(t, wal.Options{FS: ram(left), ReadOnly: true})
		defer mustClose(t, reader)
		for range 2 {
			events, err := collect(reader, 0)
			if err != nil || len(events) == 0 || events[0].Seq != kept || events[len(events)-1].Seq != 26 || reader.FirstSeq() != kept {
				t.Fatalf("%d events, from seq %d: %v", len(events), reader.FirstSeq(), err)
			}
		}
	})
}

// F6: a log was copied, both copies went on, and then files of both lay in one directory. All headers follow each other;
// but the older segment goes on where the newer one has begun, and of those events nobody would have heard.
func TestF6_files_of_two_copies(t *testing.T) {
	var img image
	synctest.Test(t, func(t *testing.T) {
		r := ram(nil)
		l := mustOpen(t, wal.Options{FS: r})
		mustAppend(t, l, group(1, 2, 0)...)
		fork := ram(r.image())
		mustAppend(t, l, group(2, 2, 0)...)
		mustClose(t, l)
		other := mustOpen(t, wal.Options{FS: fork})
		mustAppend(t, other, group(3, 1, 0)...)
		mustClose(t, other)
		img = r.image()
		maps.Copy(img, image{segmentName(3): fork.image()[segmentName(3)]})
	})
	if v := judge(img); v.refused() || v.Last != 3 || v.Readable != 2 || !v.corrupt() {
		t.Fatal(v)
	}
	if err := examine(img, nil); err != nil {
		t.Error(err)
	}
}

// F6: files of two copies, one of which ends in the middle of a group that the other does not have. What was saved of them
// was no log: the next event stood where the group's next one was expected.
func TestF6_salvage_of_files_of_two_copies_that_part_inside_a_group(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := ram(nil)
		l := mustOpen(t, wal.Options{FS: r})
		mustAppend(t, l, group(1, 1, 0)...)
		fork := ram(r.image())
		mustAppend(t, l, group(2, 3, 0)...)
		img := r.image() // killed
		older := img[segmentName(1)]
		img[segmentName(1)] = older[:len(older)-200] // seq 2 is whole, 3 and 4 are not
		for n := range 2 {
			other := mustOpen(t, wal.Options{FS: fork})
			mustAppend(t, other, group(3+n, 1, 0)...)
			fork = ram(fork.image()) // killed
			mustClose(t, other)
		}
		img[segmentName(3)] = fork.image()[segmentName(3)]
		mustClose(t, l)

		r = ram(img)
		report, err := wal.SalvageFS(r, "log", "saved")
		if err != nil || report.Events != 3 || report.Lost != 0 {
			t.Fatalf("%+v %v", report, err)
		}
		l, err = wal.Open("saved", wal.Options{FS: r})
		if err != nil {
			t.Fatal(err)
		}
		if events, err := collect(l, 0); err != nil || len(events) != 3 || !strings.HasPrefix(payload(events[1]), `{"g":2,`) {
			t.Fatal(events, err)
		}
		mustClose(t, l)
	})
}

// F6: a header, with a right checksum, whose floor lies behind the segment's own first event. Taken at its word, it would have
// the next Open drop the segment.
func TestF6_a_floor_behind_the_log(t *testing.T) {
	references(t, func(t *testing.T, img image, _ []wal.Event) {
		name := img.Newest()
		damaged, ok := maps.Clone(img), false
		if damaged[name], ok = refloored(img[name], "99"); !ok {
			t.Fatalf("%s", img[name])
		}
		if err := examine(damaged, nil); err != nil {
			t.Error(err)
		}
		if v := judge(damaged); !v.refused() {
			t.Error(v)
		}
	})
}

func segmentName(first uint64) string { return fmt.Sprintf("%020d.jsonl", first) }

// W3: a group is whole when its lines count down. These have right checksums, and do not.
func TestW3_group_that_does_not_add_up(t *testing.T) {
	img, _ := reference(t, false, killed)
	name := img.Newest()
	next := judge(img).Last + 1
	line := func(seq, more uint64) string {
		return crashtest.Seal(crashtest.Salt(img[name]), fmt.Sprintf(
			`{"seq":%d,"prev":0,"epoch":9,"ts":1,"ns":0,"type":"x","job_id":"j","more":%d,"durable":%d`, seq, more, next-1))
	}
	for _, c := range []struct {
		lines string
		last  uint64
	}{
		{line(next, 1) + line(next+1, 0), next + 1},
		{line(next, 1) + line(next+1, 1) + line(next+2, 0), next - 1},
		{line(next, 2) + line(next+1, 0), next - 1},
		{line(next, 0) + line(next+1, 3), next},
		{line(next, 1) + line(next+2, 0), next - 1},
	} {
		damaged := maps.Clone(img)
		damaged[name] = append(slices.Clone(img[name]), c.lines...)
		if v := judge(damaged); v.refused() || v.Last != c.last {
			t.Errorf("%s: %v", c.lines, v)
		}
		if err := examine(damaged, nil); err != nil {
			t.Errorf("%s: %v", c.lines, err)
		}
	}
}

// forged is a line of a segment with the right checksum, which no writer wrote.
func forged(file []byte, body string) []byte {
	return []byte(crashtest.Seal(crashtest.Salt(file), body))
}

// W3: a floor is where some segment begins, so never behind the beginning of the one that speaks of it. One that is would
// have every Open, from then on, remove all segments but the newest.
func TestW3_floor_beyond_its_segment(t *testing.T) {
	img, events := reference(t, false, closed)
	newest := img.Newest()
	for name, floor := range map[string]uint64{"one": judge(img).Last, "all": 1 << 60, "max": math.MaxUint64} {
		damaged := maps.Clone(img)
		line := forged(img[newest], fmt.Sprintf(`{"mark":"floor","floor":%d,"durable":%d`, floor, judge(img).Last))
		damaged[newest] = append(slices.Clone(img[newest]), line...)
		r := ram(damaged)
		for _, opts := range []wal.Options{{FS: r}, {FS: r, ReadOnly: true}} {
			_, err := wal.Open("log", opts)
			wantError(t, err, []error{wal.ErrCorrupt})
		}
		if !maps.EqualFunc(r.image(), damaged, bytes.Equal) {
			t.Error(name, "something was changed")
		}
		_, err := wal.VerifyFS(r, "log")
		wantError(t, err, []error{wal.ErrCorrupt})
		report, err := wal.SalvageFS(r, "log", "saved")
		if err != nil || report.Events != uint64(len(events)) {
			t.Error(name, report, err)
		}
	}
}

// W3: Verify finds what a reader would be refused: in a sealed segment, a witness of what the next one claims.
func TestW3_verify_finds_a_seq_that_was_durable_twice(t *testing.T) {
	img, events := reference(t, false, closed)
	oldest := img.Segments()[0]
	img[oldest] = append(slices.Clone(img[oldest]), forged(img[oldest], `{"mark":"durable","durable":1000`)...)
	r := ram(img)
	_, err := wal.VerifyFS(r, "log")
	wantError(t, err, []error{wal.ErrCorrupt})
	l := mustOpen(t, wal.Options{FS: r})
	_, read := collect(l, 0)
	wantError(t, read, []error{wal.ErrCorrupt})
	if read.Error() != err.Error() {
		t.Errorf("%v; %v", read, err)
	}
	mustClose(t, l)
	if report, err := wal.SalvageFS(ram(img), "log", "saved"); err != nil || report.Events != uint64(len(events)) {
		t.Error(report, err)
	}
}

// What a header says is shown to people, in errors and reports: only what a writer makes is taken.
func TestF24_header_with_names_that_a_terminal_obeys(t *testing.T) {
	for _, c := range []struct{ log, salt string }{
		{`\u001b[2J`, "0123456789abcdef"}, {"", "0123456789abcdef"}, {strings.Repeat("a", 32), `\u009b2J`}, {strings.Repeat("A", 32), "0123456789abcdef"},
	} {
		var salt string
		if err := json.Unmarshal([]byte(`"`+c.salt+`"`), &salt); err != nil {
			t.Fatal(err)
		}
		body := fmt.Sprintf(`{"mark":"segment","version":1,"log":"%s","salt":"%s","prior":0,"first":1,"epoch":1,"durable":0`, c.log, c.salt)
		_, err := wal.Open("log", wal.Options{FS: ram(image{segmentName(1): []byte(crashtest.Seal(salt, body))})})
		wantError(t, err, []error{wal.ErrCorrupt})
		if err != nil && (strings.ContainsAny(err.Error(), "\x1b\u009b") || !strings.Contains(err.Error(), "log id")) {
			t.Errorf("%q", err)
		}
	}
}
