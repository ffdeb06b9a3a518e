package wal_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/recovery/crashtest"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// compactor drives a log and the plainest model of what compactions leave.
type compactor struct {
	disk   *crashfs.FS
	log    *wal.Log
	model  map[uint64]wal.Event
	below  map[uint64]bool // seqs below the log's first that are kept
	number int
}

func (m *compactor) opts() wal.Options {
	return wal.Options{FS: m.disk, SegmentBytes: wal.MinSegmentBytes}
}

func (m *compactor) open(t *rapid.T) {
	l, err := wal.Open("log", m.opts())
	require.NoError(t, err)
	m.log = l
}

func (m *compactor) Append(t *rapid.T) {
	for range rapid.IntRange(1, 3).Draw(t, "appends") {
		m.number++
		of := rapid.IntRange(1, 4).Draw(t, "of")
		first, err := m.log.Append(ctx, group(m.number, of, rapid.SampledFrom([]int{0, 100, 600}).Draw(t, "padding"))...)
		require.NoError(t, err)
		for seq := first; seq < first+uint64(of); seq++ {
			m.model[seq], err = m.log.At(seq)
			require.NoError(t, err)
		}
	}
}

func (m *compactor) Compact(t *rapid.T) {
	first := m.log.FirstSeq()
	before := rapid.Uint64Range(first, m.log.LastSeq()+1).Draw(t, "before")
	keep := rapid.IntRange(0, 4).Draw(t, "keep") // of five
	salt := rapid.IntRange(0, 4).Draw(t, "salt")
	opts := wal.CompactOptions{Keep: func(e wal.Event) bool {
		require.True(t, sameEvent(e, m.model[e.Seq]))
		return (numberOf(e)+salt)%5 < keep
	}}
	if keep == 0 && salt == 0 {
		opts.Keep = nil
	}
	opts.DryRun = true
	dry, err := m.log.Compact(ctx, before, opts)
	require.NoError(t, err)
	require.Equal(t, first, m.log.FirstSeq(), "a dry run changes nothing")
	m.look(t)
	opts.DryRun = false
	done, err := m.log.Compact(ctx, before, opts)
	require.NoError(t, err)
	require.InDelta(t, dry.Bytes, done.Bytes, 100, "but for the mark of an idle log, which may come in between")
	dry.Bytes = done.Bytes
	require.Equal(t, dry, done)
	require.Equal(t, done.FirstSeq, m.log.FirstSeq())
	require.LessOrEqual(t, done.FirstSeq, max(before, first))
	if done.FirstSeq == first {
		require.Equal(t, wal.Compacted{FirstSeq: first}, done)
		return
	}
	bytesBefore := m.below
	m.below = make(map[uint64]bool)
	for seq := uint64(1); seq < done.FirstSeq; seq++ {
		if (seq >= first || bytesBefore[seq]) && opts.Keep != nil && opts.Keep(m.model[seq]) {
			m.below[seq] = true
		}
	}
	require.Equal(t, uint64(len(m.below)), done.Carried)
	name := "log/" + carriedName(done.FirstSeq)
	require.Len(t, contents(m.disk, name), int(done.CarriedBytes))
}

func (m *compactor) Checkpoint(t *rapid.T) {
	if last := m.log.LastSeq(); last > 0 {
		mustSaveRapid(t, m.log, rapid.Uint64Range(1, last).Draw(t, "seq"))
	}
}

func mustSaveRapid(t *rapid.T, l *wal.Log, seq uint64) {
	_, err := l.SaveCheckpoint(ctx, seq, sectionsOf(seq))
	require.NoError(t, err)
}

func (m *compactor) Reopen(t *rapid.T) {
	require.NoError(t, m.log.Close())
	m.open(t)
}

func (m *compactor) PowerCut(t *rapid.T) {
	m.disk = m.disk.CrashSeed(rapid.Uint64().Draw(t, "seed"))
	m.open(t)
}

func (m *compactor) Salvage(t *rapid.T) {
	copied := m.disk.Crash(crashfs.Everything)
	report, err := wal.SalvageFS(copied, "log", "copy")
	require.NoError(t, err)
	require.Zero(t, report.Damages)
	require.Zero(t, report.Lost)
	require.Equal(t, uint64(len(m.below)), report.Carried)
	l, err := wal.Open("copy", wal.Options{FS: copied})
	require.NoError(t, err)
	m.lookAt(t, l)
	require.NoError(t, l.Close())
}

// look holds what the writer, and a reader, see against the model.
func (m *compactor) look(t *rapid.T) {
	m.lookAt(t, m.log)
	_, err := wal.VerifyFS(m.disk, "log")
	require.NoError(t, err)
	opts := m.opts()
	opts.ReadOnly = true
	r, err := wal.Open("log", opts)
	require.NoError(t, err)
	if r.LastSeq() == m.log.LastSeq() {
		m.lookAt(t, r)
	}
	require.NoError(t, r.Close())
}

func (m *compactor) lookAt(t *rapid.T, l *wal.Log) {
	first, last := l.FirstSeq(), l.LastSeq()
	require.Equal(t, int(last), len(m.model))
	for seq := uint64(1); seq <= last; seq += 1 + last/50 {
		e, err := l.At(seq)
		if seq < first && !m.below[seq] {
			var gone *wal.DroppedError
			require.ErrorAs(t, err, &gone)
			require.Equal(t, wal.DroppedError{Seq: seq, First: first}, *gone)
			continue
		}
		require.NoError(t, err)
		require.True(t, sameEvent(e, m.model[seq]), "seq %d", seq)
	}
	kept, err := carried(l)
	require.NoError(t, err)
	require.Len(t, kept, len(m.below))
	for _, e := range kept {
		require.True(t, m.below[e.Seq] && sameEvent(e, m.model[e.Seq]))
	}
	events, err := collect(l, 0)
	require.NoError(t, err)
	require.Len(t, events, int(last-first+1))
	if first > 1 {
		_, err = collect(l, first-1)
		require.ErrorIs(t, err, wal.ErrDropped)
	}
}

func (m *compactor) Check(t *rapid.T) { m.look(t) }

// R5: whatever compactions there were, exactly what they were told to keep is there, and reads as it always did.
func TestR5_compactions_keep_what_is_wanted(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		m := &compactor{disk: crashfs.New(), model: make(map[uint64]wal.Event), below: make(map[uint64]bool)}
		m.open(t)
		t.Repeat(rapid.StateMachineActions(m))
		require.NoError(t, m.log.Close())
	})
}

// filled is a log of so many appends of one event, about three to a segment.
func filled(t testing.TB, fsys wal.FS, appends int) *wal.Log {
	l := mustOpen(t, wal.Options{FS: fsys, SegmentBytes: wal.MinSegmentBytes})
	for n := range appends {
		mustAppend(t, l, event(n+1, 0, 1, 100))
	}
	return l
}

// A segment that cannot be archived stays, with those behind it; those before it go.
func TestCompact_archives_what_goes(t *testing.T) {
	disk := crashfs.New()
	l := filled(t, disk, 20)
	whole := map[string][]byte{}
	archived := map[string][]byte{}
	next := uint64(1)
	broken := errors.New("no such bucket")
	opts := wal.CompactOptions{Archive: func(_ context.Context, s wal.Sealed) error {
		require.Equal(t, next, s.First)
		next = s.Last + 1
		if len(archived) == 2 {
			return broken
		}
		whole[s.Path] = contents(disk, s.Path)
		r, err := s.Open()
		require.NoError(t, err)
		archived[s.Path], err = io.ReadAll(r)
		require.NoError(t, err)
		require.NoError(t, r.Close())
		require.Len(t, archived[s.Path], int(s.Bytes))
		return nil
	}, Keep: func(e wal.Event) bool { return numberOf(e)%2 == 0 }}
	c, err := l.Compact(ctx, 15, opts)
	require.ErrorIs(t, err, broken)
	require.Equal(t, 2, c.Segments)
	require.Equal(t, l.FirstSeq(), c.FirstSeq)
	require.Equal(t, whole, archived)
	require.Equal(t, (c.FirstSeq-1)/2, c.Carried)
	_, err = l.At(c.FirstSeq)
	require.NoError(t, err)

	next = c.FirstSeq
	c, err = l.Compact(ctx, 15, opts)
	require.ErrorIs(t, err, broken)
	require.Equal(t, wal.Compacted{FirstSeq: l.FirstSeq()}, c, "the first one stays, and all behind it")
	opts.DryRun = true
	c, err = l.Compact(ctx, 15, opts)
	require.NoError(t, err, "a dry run archives nothing")
	require.Positive(t, c.Segments)
	mustClose(t, l)
}

// F18: a full disk, or one with a fault, in the middle of a compaction: the old set works, nothing is left behind.
func TestF18_fault_during_a_compaction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keep := func(e wal.Event) bool { return numberOf(e)%3 > 0 }
		for _, schedule := range []string{
			"create carried-*.jsonl.tmp #2 error %s", "write carried-*.jsonl.tmp #2 short 100 %s", "sync carried-*.jsonl.tmp #2 error %s",
			"rename carried-*.jsonl.tmp #2 error %s", "close carried-*.jsonl.tmp #2 error %s",
		} {
			for errno, is := range map[string][]error{"ENOSPC": {wal.ErrNoSpace, syscall.ENOSPC}, "EIO": {syscall.EIO}} {
				if errno == "ENOSPC" && strings.HasPrefix(schedule, "close") {
					continue
				}
				w := enter(t, crashfs.New(), fmt.Sprintf(schedule, errno), wal.Options{})
				w.log = filled(t, w.fs, 19)
				_, err := w.log.Compact(ctx, 8, wal.CompactOptions{Keep: keep})
				require.NoError(t, err, schedule)
				before, err := carried(w.log)
				require.NoError(t, err)
				first, files := w.log.FirstSeq(), w.base.String()
				_, err = w.log.Compact(ctx, 15, wal.CompactOptions{Keep: keep})
				wantError(t, err, is, wal.ErrFailed)
				require.Equal(t, first, w.log.FirstSeq(), schedule)
				require.Equal(t, files, w.base.String(), "%s %s", schedule, errno)
				after, err := carried(w.log)
				require.NoError(t, err)
				require.Equal(t, before, after)
				_, err = w.log.Compact(ctx, 9, wal.CompactOptions{Keep: keep}) // nothing to do, and no harm
				require.NoError(t, err)
				require.NotContains(t, w.base.String(), ".tmp")
				mustClose(t, w.log)
				l := w.again()
				require.Equal(t, uint64(19), l.LastSeq())
				c, err := l.Compact(ctx, 15, wal.CompactOptions{Keep: keep})
				require.NoError(t, err)
				require.Positive(t, c.Segments)
				mustClose(t, l)
			}
		}
	})
}

// F18: whatever room there is, a compaction is done or has changed nothing.
func TestF18_compaction_with_some_room(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		keep := func(e wal.Event) bool { return numberOf(e)%3 > 0 }
		done := 0
		for room := int64(0); room < 4000; room += 50 {
			w := enter(t, crashfs.New(), "", wal.Options{})
			w.log = filled(t, w.fs, 19)
			w.fs.SetDisk(used(w.base) + room)
			_, err := w.log.Compact(ctx, 15, wal.CompactOptions{Keep: keep})
			if err == nil {
				done++
			} else {
				wantError(t, err, []error{wal.ErrNoSpace}, wal.ErrFailed)
				require.Equal(t, uint64(1), w.log.FirstSeq())
				require.NotContains(t, w.base.String(), "carried")
			}
			w.fs.SetDisk(-1)
			mustAppend(t, w.log, event(20, 0, 1, 0))
			mustClose(t, w.log)
			_, err = wal.VerifyFS(w.base, "log")
			require.NoError(t, err)
		}
		require.NotZero(t, done)
		require.Less(t, done, 80)
	})
}

// What is damaged is not copied, nor does what it was in go.
func TestCompact_stops_at_damage(t *testing.T) {
	disk := ram(nil)
	l := filled(t, disk, 12)
	mustClose(t, l)
	img := disk.image()
	oldest := img.Segments()[0]
	for at, b := range img[oldest] {
		if b != '"' {
			continue
		}
		damaged := maps.Clone(img)
		damaged[oldest] = slices.Clone(img[oldest])
		damaged[oldest][at] = '\''
		l, r, err := openImage(damaged, false)
		if err != nil {
			continue // of the header
		}
		before := r.image()
		_, err = l.Compact(ctx, 9, wal.CompactOptions{Keep: func(e wal.Event) bool { return true }})
		if err == nil { // of the last mark, which is none of the events
			require.Greater(t, at, bytes.LastIndex(img[oldest], []byte(`{"seq"`)))
			mustClose(t, l)
			continue
		}
		require.ErrorIs(t, err, wal.ErrCorrupt)
		require.ErrorContains(t, err, oldest)
		require.True(t, maps.EqualFunc(r.image(), before, bytes.Equal), "something was changed")
		require.NoError(t, l.DropBefore(9), "what is not to be read may go")
		mustClose(t, l)
	}
}

// examineCarried holds what is read of a damaged carried file against what was written: never another event, never one
// that is missing in silence.
func examineCarried(damaged image, want []wal.Event) error {
	l, _, err := openImage(damaged, true)
	if err != nil {
		if !errors.Is(err, wal.ErrCorrupt) {
			return err
		}
		return nil
	}
	defer l.Close()
	got, err := carried(l)
	if err == nil && len(got) == len(want) {
		err = errors.New("nobody noticed")
	}
	if !errors.Is(err, wal.ErrCorrupt) || len(got) > len(want) {
		return fmt.Errorf("Carried: %d events: %w", len(got), err)
	}
	for i, e := range got {
		if !sameEvent(e, want[i]) {
			return fmt.Errorf("Carried: %v", e)
		}
	}
	for seq := uint64(1); seq < l.FirstSeq(); seq++ {
		e, err := l.At(seq)
		there := slices.ContainsFunc(want, func(w wal.Event) bool { return w.Seq == seq })
		switch {
		case err == nil && (!there || !sameEvent(e, find(want, seq))):
			return fmt.Errorf("At(%d): %v", seq, e)
		case errors.Is(err, wal.ErrDropped) && there:
			return fmt.Errorf("At(%d): %w", seq, err)
		case err != nil && !errors.Is(err, wal.ErrDropped) && !errors.Is(err, wal.ErrCorrupt):
			return fmt.Errorf("At(%d): %w", seq, err)
		}
	}
	report, err := wal.VerifyFS(ram(damaged), "log")
	if !errors.Is(err, wal.ErrCorrupt) {
		return fmt.Errorf("Verify: %w", err)
	}
	if report.Carried > uint64(len(want)) || report.Carried+2 < uint64(len(want)) {
		return fmt.Errorf("Verify found %d events", report.Carried)
	}
	return nil
}

// F24: whichever bit of a carried file is turned, it is noticed when it is read, and no event is changed or passed over.
func TestF24_every_bit_flip_of_a_carried_file(t *testing.T) {
	t.Parallel()
	r := ram(nil)
	l := filled(t, r, 24)
	_, err := l.Compact(ctx, 20, wal.CompactOptions{Keep: func(e wal.Event) bool { return numberOf(e)%4 == 1 }})
	require.NoError(t, err)
	want, err := carried(l)
	require.NoError(t, err)
	require.Greater(t, len(want), 3)
	name := carriedName(l.FirstSeq())
	mustClose(t, l)
	img := r.image()
	everyFlip(t, img, name, func(flipped image, _ int) error { return examineCarried(flipped, want) })
	everyCut(t, img, name, func(cut image, at int) error {
		if err := examineCarried(cut, want); err != nil && !strings.Contains(err.Error(), "Verify found") {
			return err
		}
		return nil
	})
	for i, line := range bytes.SplitAfter(img[name], []byte("\n")) {
		away, twice := maps.Clone(img), maps.Clone(img)
		away[name] = bytes.Replace(img[name], line, nil, 1)
		twice[name] = bytes.Replace(img[name], line, append(slices.Clone(line), line...), 1)
		if len(line) > 0 && i > 0 {
			require.NoError(t, examineCarriedRead(away), "line %d", i)
			require.NoError(t, examineCarriedRead(twice), "line %d", i)
		}
	}
}

// examineCarriedRead wants reading it all to be refused.
func examineCarriedRead(damaged image) error {
	l, _, err := openImage(damaged, true)
	if err == nil {
		_, err = carried(l)
		_ = l.Close()
	}
	if !errors.Is(err, wal.ErrCorrupt) {
		return fmt.Errorf("accepted: %w", err)
	}
	return nil
}

// A carried file that the floor names and that is not there, is of another log, or of a newer version. One that no floor
// names is swept.
func TestCarried_file_that_is_not_the_one(t *testing.T) {
	img, _ := retained(t)
	other, _ := retained(t)
	name := carriedName(5)
	header, rest, _ := strings.Cut(string(img[name]), "\n")
	body, _ := crashtest.Unseal(saltOf(img[name]), header)
	reheaded := func(old, new string) []byte {
		return []byte(crashtest.Seal(saltOf(img[name]), strings.Replace(body, old, new, 1)) + rest)
	}
	for what, c := range map[string]struct {
		file   []byte
		is     error
		reason string
	}{
		"missing":   {nil, wal.ErrCorrupt, "2 events are in it"},
		"other log": {other[name], wal.ErrCorrupt, "of another log"},
		"floor":     {reheaded(`"floor":5`, `"floor":4`), wal.ErrCorrupt, "that of seq 4"},
		"no header": {[]byte(rest), wal.ErrCorrupt, "no intact header"},
		"version":   {reheaded(`"version":1`, `"version":2`), wal.ErrVersion, name},
	} {
		damaged := maps.Clone(img)
		if damaged[name] = c.file; c.file == nil {
			delete(damaged, name)
		}
		for _, readOnly := range []bool{true, false} {
			_, r, err := openImage(damaged, readOnly)
			require.ErrorIs(t, err, c.is, what)
			require.ErrorContains(t, err, c.reason, what)
			require.ErrorContains(t, err, name, what)
			require.True(t, maps.EqualFunc(r.image(), damaged, bytes.Equal), "something was changed")
		}
		_, err := wal.VerifyFS(ram(damaged), "log")
		require.ErrorIs(t, err, c.is, what)
		if what == "version" {
			continue
		}
		r := ram(damaged)
		report, err := wal.SalvageFS(r, "log", "into")
		require.NoError(t, err, what)
		saved := uint64(0)
		if what == "no header" || what == "floor" { // the lines tell the salt
			saved = 2
		}
		require.Equal(t, saved, report.Carried, what)
		require.Equal(t, 2-saved, report.Lost, what)
		l, err := wal.Open("into", wal.Options{FS: r})
		require.NoError(t, err, what)
		kept, err := carried(l)
		require.NoError(t, err)
		require.Len(t, kept, int(saved))
		require.Equal(t, uint64(5), l.FirstSeq())
		mustClose(t, l)
	}
	alone := image{name: img[name]}
	for _, readOnly := range []bool{true, false} {
		_, r, err := openImage(alone, readOnly)
		require.ErrorIs(t, err, wal.ErrCorrupt)
		require.True(t, maps.EqualFunc(r.image(), alone, bytes.Equal), "something was changed")
	}
	_, err := wal.VerifyFS(ram(alone), "log")
	require.ErrorIs(t, err, wal.ErrCorrupt)
	strays := maps.Clone(img)
	strays[carriedName(4)], strays[carriedName(9)+".tmp"], strays[checkpointName(3)+".tmp"] = img[name], nil, []byte("x")
	l, r, err := openImage(strays, false)
	require.NoError(t, err)
	swept := l.Report().Swept
	slices.Sort(swept)
	require.Equal(t, []string{carriedName(4), carriedName(9) + ".tmp", checkpointName(3) + ".tmp"}, swept)
	mustClose(t, l)
	require.Subset(t, slices.Collect(maps.Keys(r.image())), []string{name, checkpointName(6), checkpointName(8)})
	_, err = wal.VerifyFS(r, "log")
	require.NoError(t, err)
}

// ReadOnly logs beside a writer that compacts, saves checkpoints and rotates all the time are right, or are told what was
// dropped; they never take for damage what only goes on.
func TestReadOnly_beside_compactions(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		disk := crashfs.New()
		l := mustOpen(t, wal.Options{FS: disk, SegmentBytes: wal.MinSegmentBytes})
		mustAppend(t, l, event(1, 0, 1, 0))
		keep := func(e wal.Event) bool { return numberOf(e)%7 == 0 }
		stop := make(chan bool)
		var wg sync.WaitGroup
		looks := make([]int, 3)
		for i := range looks {
			r := readOnly(t, disk)
			wg.Go(func() {
				defer r.Close()
				for ; ; looks[i]++ {
					select {
					case <-stop:
						return
					case <-time.After(time.Duration(1+i) * time.Millisecond):
					}
					if err := beside(r); err != nil {
						t.Errorf("reader %d: %v", i, err)
						return
					}
				}
			})
		}
		for n := 2; n < thin(400, 150); n++ {
			mustAppend(t, l, event(n, 0, 1, 150))
			if n%9 == 0 {
				_, err := l.Compact(ctx, l.LastSeq()-uint64(rand.IntN(8)), wal.CompactOptions{Keep: keep})
				require.NoError(t, err)
			}
			if n%5 == 0 {
				mustSave(t, l, l.LastSeq())
			}
			time.Sleep(time.Duration(rand.IntN(3)) * time.Millisecond)
		}
		close(stop)
		wg.Wait()
		for i, n := range looks {
			require.Greater(t, n, 20, "reader %d", i)
		}
		_, err := wal.VerifyFS(disk, "log")
		require.NoError(t, err)
		mustClose(t, l)
	})
}

// beside is one look at all there is.
func beside(r *wal.Log) error {
	last := uint64(0)
	for e, err := range r.Carried() {
		if err != nil {
			return fmt.Errorf("Carried: %w", err)
		}
		if e.Seq <= last || uint64(numberOf(e)) != e.Seq || numberOf(e)%7 != 0 {
			return fmt.Errorf("Carried: %d after %d", e.Seq, last)
		}
		last = e.Seq
	}
	for e, err := range r.Events(0) {
		if errors.Is(err, wal.ErrDropped) {
			break
		}
		if err != nil {
			return fmt.Errorf("Events: %w", err)
		}
		last = e.Seq
	}
	for range 5 {
		seq := 1 + rand.Uint64N(max(last, 1))
		e, err := r.At(seq)
		if err == nil && uint64(numberOf(e)) != seq || err != nil && (!errors.Is(err, wal.ErrDropped) || seq%7 == 0) {
			return fmt.Errorf("At(%d): %v %w", seq, e, err)
		}
	}
	points, err := r.Checkpoints()
	if err != nil {
		return fmt.Errorf("Checkpoints: %w", err)
	}
	for _, c := range points {
		if got, err := load(r, c); err == nil && got != contentOf(c.Seq) || err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("checkpoint %d: %w", c.Seq, err)
		}
	}
	return nil
}

// An event about which jobs are forgotten is about the log.
func TestAppend_jobs_forgotten(t *testing.T) {
	l := mustOpen(t, wal.Options{FS: crashfs.New()})
	defer mustClose(t, l)
	_, err := l.Append(ctx, wal.Event{Type: wal.JobsForgotten, JobID: "a"})
	require.ErrorIs(t, err, wal.ErrInvalid)
	mustAppend(t, l, wal.Event{Type: wal.JobsForgotten, Args: []byte(`{"before":17}`)})
	e, err := l.At(1)
	require.NoError(t, err)
	require.Equal(t, `{"before":17}`, string(e.Args))
}
