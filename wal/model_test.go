package wal_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// machine drives a log and the plainest model of one: a slice of events, and where it begins.
type machine struct {
	disk   *crashfs.FS
	opts   wal.Options
	log    *wal.Log
	model  []wal.Event // model[i] has seq i+1; what was dropped stays in it
	first  uint64      // as the log says: whole segments go, so the model only bounds it
	given  uint64      // the highest seq that DropBefore was given
	number int
}

func (m *machine) open(t *rapid.T) {
	m.opts.FS = m.disk
	m.opts.MinSeq = uint64(len(m.model))
	l, err := wal.Open("log", m.opts)
	if err != nil {
		t.Fatal(err)
	}
	m.log = l
	if l.LastSeq() != uint64(len(m.model)) || l.FirstSeq() != m.first {
		t.Fatalf("opened as %d..%d, it was %d..%d", l.FirstSeq(), l.LastSeq(), m.first, len(m.model))
	}
}

func (m *machine) Append(t *rapid.T) {
	m.number++
	padding := rapid.SampledFrom([]int{0, 50, 50, 300, 5000, 100 << 10}).Draw(t, "padding")
	given := group(m.number, rapid.IntRange(1, 5).Draw(t, "of"), padding)
	kept := slices.Clone(given)
	first, err := m.log.Append(ctx, given...)
	if err != nil || first != uint64(len(m.model))+1 {
		t.Fatalf("seq %d: %v", first, err)
	}
	for k := range given {
		if !sameEvent(given[k], kept[k]) {
			t.Fatal("the caller's events were changed")
		}
		e := kept[k]
		e.Seq, e.Epoch = first+uint64(k), m.log.Epoch()
		if k > 0 {
			e.Prev = e.Seq - 1 // all are of one job
		}
		e.Time = time.Now().UTC() // the bubble's clock stands still meanwhile
		m.model = append(m.model, e)
	}
}

func (m *machine) Drop(t *rapid.T) {
	before := rapid.Uint64Range(0, uint64(len(m.model))+2).Draw(t, "before")
	if err := m.log.DropBefore(before); err != nil {
		t.Fatal(err)
	}
	m.given = max(m.given, before)
	if first := m.log.FirstSeq(); first < m.first || first > max(1, m.given) {
		t.Fatalf("the log starts at %d, it was %d, and dropped was what lies before %d", first, m.first, m.given)
	}
	m.first = m.log.FirstSeq()
}

func (m *machine) Reopen(t *rapid.T) {
	if err := m.log.Close(); err != nil {
		t.Fatal(err)
	}
	m.open(t)
	if !m.log.Report().Clean {
		t.Fatal("not clean")
	}
}

// PowerCut takes from the disk all that was not synced.
func (m *machine) PowerCut(t *rapid.T) {
	m.disk = m.disk.CrashSeed(rapid.Uint64().Draw(t, "seed"))
	m.open(t)
}

func (m *machine) Idle(t *rapid.T) { time.Sleep(time.Second) }

func (m *machine) Events(t *rapid.T) {
	from := rapid.Uint64Range(0, uint64(len(m.model))+2).Draw(t, "from")
	got, err := collect(m.log, from)
	if from > 0 && from < m.first && from <= uint64(len(m.model)) {
		m.wantDropped(t, err, from)
		return
	}
	m.want(t, got, err, max(from, m.first))
}

func (m *machine) At(t *rapid.T) {
	seq := rapid.Uint64Range(0, uint64(len(m.model))+2).Draw(t, "seq")
	e, err := m.log.At(seq)
	switch {
	case seq == 0 || seq > uint64(len(m.model)):
		if !errors.Is(err, wal.ErrInvalid) {
			t.Fatal(err)
		}
	case seq < m.first:
		m.wantDropped(t, err, seq)
	case err != nil || !sameEvent(e, m.model[seq-1]):
		t.Fatalf("seq %d is %v: %v", seq, e.Seq, err)
	}
}

func (m *machine) Tail(t *rapid.T) {
	n := rapid.IntRange(-1, len(m.model)+2).Draw(t, "n")
	got, err := m.log.Tail(n)
	m.want(t, got, err, max(m.first, uint64(max(0, len(m.model)-max(n, 0))+1)))
}

func (m *machine) want(t *rapid.T, got []wal.Event, err error, from uint64) {
	var want []wal.Event
	if from <= uint64(len(m.model)) {
		want = m.model[from-1:]
	}
	if err != nil || !slices.EqualFunc(got, want, sameEvent) {
		t.Fatalf("from %d: %d events, not %d: %v", from, len(got), len(want), err)
	}
}

func (m *machine) wantDropped(t *rapid.T, err error, seq uint64) {
	var gone *wal.DroppedError
	if !errors.As(err, &gone) || !errors.Is(err, wal.ErrDropped) || gone.First != m.first || gone.Seq != seq {
		t.Fatalf("%#v, want dropped %d, first %d", err, seq, m.first)
	}
}

// The log is a slice: whatever is done to it, and however its process or its power ends, what was acknowledged is there.
func TestModel(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		rapid.Check(bubbleTB{t}, func(t *rapid.T) {
			m := &machine{disk: crashfs.New(), first: 1}
			m.opts.SegmentBytes = int64(rapid.SampledFrom([]int{wal.MinSegmentBytes, 4000, 64 << 10, 1 << 20}).Draw(t, "segmentBytes"))
			m.open(t)
			t.Repeat(map[string]func(*rapid.T){
				"Append": m.Append, "Append again": m.Append, "Drop": m.Drop, "Reopen": m.Reopen, "PowerCut": m.PowerCut, "Idle": m.Idle,
				"Events": m.Events, "At": m.At, "Tail": m.Tail, "": func(t *rapid.T) {
					if m.log.LastSeq() != uint64(len(m.model)) || m.log.FirstSeq() != m.first {
						t.Fatalf("the log is %d..%d, not %d..%d", m.log.FirstSeq(), m.log.LastSeq(), m.first, len(m.model))
					}
				},
			})
			if err := m.log.Close(); err != nil {
				t.Fatal(err)
			}
		})
	})
}

// Very large events between small ones, in one segment and in several: every way to read finds each.
func TestModel_large_events(t *testing.T) {
	t.Parallel()
	sizes := []int{0, 1 << 20, 0, 0, 16 << 20, 10, 4095, 4096, 256 << 10, 1 << 20, 0}
	sizes[4] = thin(16<<20, 1<<20)
	for _, segmentBytes := range []int64{0, wal.MinSegmentBytes} {
		if segmentBytes > 0 {
			sizes[4] = 1 << 20 // it has a segment to itself either way
		}
		r := ram(nil)
		l := mustOpen(t, wal.Options{FS: r, SegmentBytes: segmentBytes})
		for i, size := range sizes {
			mustAppend(t, l, event(i, 0, 1, size))
		}
		mustClose(t, l)
		l = mustOpen(t, wal.Options{FS: r})
		for seq := uint64(len(sizes)); seq > 0; seq-- {
			e, err := l.At(seq)
			if err != nil || payload(e) != payload(event(int(seq-1), 0, 1, sizes[seq-1])) {
				t.Fatalf("At(%d): %d bytes: %v", seq, len(e.Args), err)
			}
			if n := uint64(len(sizes)) - seq + 1; n < 4 || n == 7 {
				tail, err := l.Tail(int(n))
				if err != nil || tail[0].Seq != seq {
					t.Fatalf("Tail: %v", err)
				}
			}
		}
		if events, err := collect(l, 1); err != nil || len(events) != len(sizes) {
			t.Fatal(len(events), err)
		}
		mustClose(t, l)
	}
}

func TestMinSeq(t *testing.T) {
	r := ram(nil)
	_, err := wal.Open("log", wal.Options{FS: r, MinSeq: 1})
	wantError(t, err, []error{wal.ErrCorrupt})
	if len(r.image()) > 0 {
		t.Error("it made a log all the same")
	}
	l := mustOpen(t, wal.Options{FS: r})
	mustAppend(t, l, group(1, 3, 0)...)
	mustClose(t, l)
	for _, readOnly := range []bool{false, true} {
		opts := wal.Options{FS: r, MinSeq: 4, ReadOnly: readOnly}
		changes := r.changed()
		_, err = wal.Open("log", opts)
		wantError(t, err, []error{wal.ErrCorrupt})
		if err == nil || !strings.Contains(err.Error(), "MinSeq") || r.changed() != changes {
			t.Error(err)
		}
		opts.MinSeq = 3
		mustClose(t, mustOpen(t, opts))
	}
}

// W3. What was found: where the newline before an intact line was lost, the line went unseen if the payload before it
// looked like more than 64 lines; so its witness was not heard, and an acknowledged event was cut.
func TestW3_payload_that_looks_like_lines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := ram(nil)
		l := mustOpen(t, wal.Options{FS: r})
		e := event(1, 0, 1, 0)
		e.Args = []byte("[" + strings.Repeat(`{"seq":1},`, 100) + "{}]")
		mustAppend(t, l, e)
		mustAppend(t, l, event(2, 0, 1, 0)) // says that seq 1 was durable
		img := r.image()
		mustClose(t, l)
		name := img.Newest()
		i := strings.Index(string(img[name]), "\n{\"seq\":2,")
		img[name][i] ^= 0x40
		if err := examine(img, nil); err != nil {
			t.Error(err)
		}
		_, err := wal.Open("log", wal.Options{FS: ram(img)})
		wantError(t, err, []error{wal.ErrCorrupt})
	})
}

// F10: several callers' appends that went into one write, for which there was no room: all of them are told no, none of
// them is seen, then or later, even those whose lines were whole.
func TestF10_no_space_for_several_callers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, "sync *.jsonl #1 freeze; write *.jsonl #2 short 500 ENOSPC", wal.Options{SegmentBytes: 1 << 20})
		results := make(chan error, 10)
		go w.log.Append(ctx, event(1, 0, 1, 0))
		synctest.Wait()
		for i := range cap(results) {
			go func() {
				_, err := w.log.Append(ctx, event(100+i, 0, 1, 0))
				results <- err
			}()
		}
		synctest.Wait()
		w.fs.Release()
		for range cap(results) {
			wantError(t, <-results, []error{wal.ErrNoSpace}, wal.ErrFailed)
		}
		synctest.Wait()
		wantEvents(t, w.log, 1)
		w.told = []submission{{1, 1, 1, acked, true}}
		for _, p := range crashes(8) {
			if err := w.check(w.base.Crash(p), p, new(seen)); err != nil {
				t.Errorf("policy %v: %v", p, err)
			}
		}
		if first := mustAppend(t, w.log, event(2, 0, 1, 0)); first != 2 {
			t.Error(first)
		}
		mustClose(t, w.log)
	})
}

// F20: a file of nothing but one endless line is refused in bounded memory, whatever its name promises.
func TestF20_endless_line(t *testing.T) {
	if raceEnabled {
		t.Skip("nothing runs beside anything here, and it takes long")
	}
	img, _ := reference(t, false, killed)
	for _, with := range []string{"x", "\n"} {
		dir := t.TempDir()
		for name, b := range img {
			if name == img.Newest() {
				b = append(b, []byte(strings.Repeat(with, wal.MaxLineBytes+1<<20))...)
			}
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		l := dirOpen(t, dir, wal.Options{})
		if torn := l.Report().TornBytes(); with == "\n" && torn != 0 || with != "\n" && torn != wal.MaxLineBytes+1<<20 {
			t.Errorf("%q: %d bytes cut", with, torn)
		}
		mustClose(t, l)
	}
}
