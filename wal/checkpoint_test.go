package wal_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/recovery/crashtest"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

func checkpointName(seq uint64) string { return fmt.Sprintf("checkpoint-%020d.jsonl", seq) }

// saltOf is the salt in the header of a file beside the segments.
func saltOf(file []byte) string {
	_, rest, _ := strings.Cut(string(file), `"salt":"`)
	return rest[:16]
}

func carriedName(floor uint64) string { return fmt.Sprintf("carried-%020d.jsonl", floor) }

// retained is a small log with everything beside its segments: events 3 and 4 are carried, the checkpoints are of 6 and 8.
func retained(t *testing.T) (img image, opts wal.Options) {
	t.Helper()
	r := ram(nil)
	opts = wal.Options{FS: r, SegmentBytes: wal.MinSegmentBytes}
	l := mustOpen(t, opts)
	for n := 1; n <= 3; n++ {
		mustAppend(t, l, group(n, 2, 200)...)
	}
	c, err := l.Compact(ctx, 5, wal.CompactOptions{Keep: func(e wal.Event) bool { return numberOf(e) == 2 }})
	require.NoError(t, err)
	require.Equal(t, uint64(5), c.FirstSeq)
	require.Equal(t, uint64(2), c.Carried)
	mustSave(t, l, 6)
	mustAppend(t, l, group(4, 2, 0)...)
	mustSave(t, l, 8)
	mustClose(t, l)
	return r.image(), opts
}

func mustSave(t testing.TB, l *wal.Log, seq uint64) wal.Checkpoint {
	t.Helper()
	c, err := l.SaveCheckpoint(ctx, seq, sectionsOf(seq))
	require.NoError(t, err)
	return c
}

// openImage opens a log in a directory that holds an image.
func openImage(img image, readOnly bool) (*wal.Log, *ramFS, error) {
	r := ram(img)
	l, err := wal.Open("log", wal.Options{FS: r, SegmentBytes: wal.MinSegmentBytes, ReadOnly: readOnly})
	return l, r, err
}

// What was saved is loaded, in any chunks, by whoever may read the log.
func TestCheckpoint_loads_what_was_saved(t *testing.T) {
	disk := crashfs.New()
	l := mustOpen(t, wal.Options{FS: disk})
	mustAppend(t, l, group(1, 3, 0)...)
	large := bytes.Repeat([]byte("0123456789abcde"), 300_000) // 4.5 MB
	save := func(step int) func(io.Writer) error {
		return func(w io.Writer) error {
			for part := range slices.Chunk(large, step) {
				if n, err := w.Write(part); err != nil || n != len(part) {
					return fmt.Errorf("%d of %d: %w", n, len(part), err)
				}
			}
			return nil
		}
	}
	counted := crashfs.Inject(disk, nil)
	require.NoError(t, l.Close())
	l = mustOpen(t, wal.Options{FS: counted})
	before := counted.Count(crashfs.OpSync)
	c, err := l.SaveCheckpoint(ctx, 3, []wal.Section{{Name: "whole", Save: save(len(large))}, {Name: "parts", Version: 2, Save: save(1009)}})
	require.NoError(t, err)
	require.GreaterOrEqual(t, counted.Count(crashfs.OpSync)-before, int(c.Bytes/(160<<10)), "one every 96 KiB, and a line of 64 at most")
	points, err := l.Checkpoints()
	require.NoError(t, err)
	require.Equal(t, []wal.Checkpoint{c}, points)
	require.Equal(t, int64(len(contents(disk, c.Path))), c.Bytes)

	r := readOnly(t, disk)
	for _, l := range []*wal.Log{l, r} {
		var names []string
		require.NoError(t, l.LoadCheckpoint(ctx, c, func(s wal.Section, r io.Reader) error {
			names = append(names, fmt.Sprint(s.Name, s.Version))
			got, err := io.ReadAll(r)
			require.NoError(t, err)
			require.True(t, bytes.Equal(large, got))
			return nil
		}))
		require.Equal(t, []string{"whole0", "parts2"}, names)
		// What is not read is passed over.
		first := make([]byte, 10)
		require.NoError(t, l.LoadCheckpoint(ctx, c, func(_ wal.Section, r io.Reader) error {
			_, err := io.ReadFull(r, first)
			return err
		}))
		require.Equal(t, large[:10], first)
		stop := errors.New("stop")
		calls := 0
		err := l.LoadCheckpoint(ctx, c, func(wal.Section, io.Reader) error { calls++; return stop })
		require.ErrorIs(t, err, stop)
		require.ErrorContains(t, err, `section "whole"`)
		require.Equal(t, 1, calls)
	}
	_, err = r.SaveCheckpoint(ctx, 3, nil)
	require.ErrorIs(t, err, wal.ErrReadOnly)
	_, err = r.Compact(ctx, 3, wal.CompactOptions{})
	require.ErrorIs(t, err, wal.ErrReadOnly)
	mustClose(t, r)
	mustClose(t, l)
	_, err = l.SaveCheckpoint(ctx, 3, nil)
	require.ErrorIs(t, err, wal.ErrClosed)
	_, err = l.Checkpoints()
	require.ErrorIs(t, err, wal.ErrClosed)
	require.ErrorIs(t, l.LoadCheckpoint(ctx, c, nil), wal.ErrClosed)
}

// The options of Inspect see them, before anything is changed.
func TestCheckpoint_in_Inspect(t *testing.T) {
	img, opts := retained(t)
	opts.FS = ram(img)
	asked := false
	opts.Inspect = func(view *wal.Log) error {
		asked = true
		points, err := view.Checkpoints()
		require.NoError(t, err)
		require.Len(t, points, 2)
		for _, c := range points {
			got, err := load(view, c)
			require.NoError(t, err)
			require.Equal(t, contentOf(c.Seq), got)
		}
		kept, err := carried(view)
		require.NoError(t, err)
		require.Len(t, kept, 2)
		return nil
	}
	l := mustOpen(t, opts)
	require.True(t, asked)
	require.Equal(t, uint64(2), l.Report().Carried)
	require.Equal(t, 2, l.Report().Checkpoints)
	mustClose(t, l)
}

func TestCheckpoint_refuses(t *testing.T) {
	l := mustOpen(t, wal.Options{FS: crashfs.New()})
	defer mustClose(t, l)
	save := func(io.Writer) error { return nil }
	_, err := l.SaveCheckpoint(ctx, 0, nil)
	require.ErrorIs(t, err, wal.ErrInvalid, "an empty log")
	mustAppend(t, l, group(1, 2, 0)...)
	for name, c := range map[string]struct {
		seq      uint64
		sections []wal.Section
	}{
		"seq 0":            {0, nil},
		"seq beyond":       {3, nil},
		"no name":          {2, []wal.Section{{Save: save}}},
		"name twice":       {2, []wal.Section{{Name: "a", Save: save}, {Name: "a", Save: save}}},
		"control in name":  {2, []wal.Section{{Name: "a\n", Save: save}}},
		"negative version": {2, []wal.Section{{Name: "a", Version: -1, Save: save}}},
		"no save":          {2, []wal.Section{{Name: "a"}}},
	} {
		_, err := l.SaveCheckpoint(ctx, c.seq, c.sections)
		require.ErrorIs(t, err, wal.ErrInvalid, name)
	}
	var none context.Context
	_, err = l.SaveCheckpoint(none, 1, nil)
	require.ErrorIs(t, err, wal.ErrInvalid)
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	_, err = l.SaveCheckpoint(cancelled, 1, nil)
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorIs(t, l.LoadCheckpoint(ctx, wal.Checkpoint{}, nil), wal.ErrInvalid)
	require.ErrorIs(t, l.LoadCheckpoint(ctx, wal.Checkpoint{Seq: 1}, nil), fs.ErrNotExist)
	points, err := l.Checkpoints()
	require.NoError(t, err)
	require.Empty(t, points)
}

// A Save that fails, panics, or keeps its writer, and a caller who gives up in the middle, leave nothing behind.
func TestCheckpoint_that_is_given_up(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // so that no idle mark comes between
		disk := crashfs.New()
		l := mustOpen(t, wal.Options{FS: disk})
		mustAppend(t, l, group(1, 2, 0)...)
		mustSave(t, l, 1)
		before := disk.String()
		var kept io.Writer
		broken := errors.New("broken")
		giving, up := context.WithCancel(ctx)
		block := make([]byte, 200<<10)
		for name, c := range map[string]struct {
			ctx  context.Context
			save func(io.Writer) error
			is   error
		}{
			"error":  {ctx, func(io.Writer) error { return broken }, broken},
			"late":   {ctx, func(w io.Writer) error { kept = w; _, _ = w.Write(block); return broken }, broken},
			"cancel": {giving, func(w io.Writer) error { up(); _, _ = w.Write(block); return nil }, context.Canceled},
		} {
			_, err := l.SaveCheckpoint(c.ctx, 2, []wal.Section{{Name: "s", Save: c.save}})
			require.ErrorIs(t, err, c.is, name)
			require.Equal(t, before, disk.String(), name)
		}
		_, err := kept.Write(block)
		require.Error(t, err)
		require.Panics(t, func() {
			_, _ = l.SaveCheckpoint(ctx, 2, []wal.Section{{Name: "s", Save: func(io.Writer) error { panic("save") }}})
		})
		require.Equal(t, before, disk.String())
		mustSave(t, l, 2) // and nobody waits for those
		mustClose(t, l)
	})
}

// F26: Close ends what is under way, waits for it, and only then gives the lock back.
func TestF26_close_during_a_checkpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := crashfs.New()
		l := mustOpen(t, wal.Options{FS: disk})
		mustAppend(t, l, group(1, 2, 0)...)
		started, goOn, results := make(chan bool), make(chan bool), make(chan error, 2)
		go func() {
			_, err := l.SaveCheckpoint(ctx, 2, []wal.Section{{Name: "s", Save: func(w io.Writer) error {
				close(started)
				<-goOn
				for range 100 {
					if _, err := w.Write(make([]byte, 100<<10)); err != nil {
						return err
					}
				}
				return nil
			}}})
			results <- err
		}()
		<-started
		go func() {
			_, err := l.Compact(ctx, 2, wal.CompactOptions{})
			results <- err
		}()
		ended := make(chan error)
		go func() { ended <- l.Close() }()
		synctest.Wait()
		_, err := wal.Open("log", wal.Options{FS: disk})
		require.ErrorIs(t, err, wal.ErrLocked, "someone still writes there")
		close(goOn)
		require.NoError(t, <-ended)
		require.ErrorIs(t, <-results, wal.ErrClosed)
		require.ErrorIs(t, <-results, wal.ErrClosed)
		require.NotContains(t, disk.String(), "checkpoint")
		l = mustOpen(t, wal.Options{FS: disk})
		require.True(t, l.Report().Clean)
		mustClose(t, l)
	})
}

// The two newest are kept; the one that was just made always.
func TestCheckpoint_keeps_two(t *testing.T) {
	disk := crashfs.New()
	l := mustOpen(t, wal.Options{FS: disk})
	mustAppend(t, l, group(1, 9, 0)...)
	seqs := func() (seqs []uint64) {
		points, err := l.Checkpoints()
		require.NoError(t, err)
		for _, c := range points {
			seqs = append(seqs, c.Seq)
		}
		return seqs
	}
	for _, c := range []struct {
		save uint64
		left []uint64
	}{{2, []uint64{2}}, {3, []uint64{3, 2}}, {5, []uint64{5, 3}}, {5, []uint64{5, 3}}, {1, []uint64{5, 1}}, {9, []uint64{9, 5}}} {
		mustSave(t, l, c.save)
		require.Equal(t, c.left, seqs())
	}
	mustClose(t, l)
}

// F16: whichever bit of a checkpoint is turned, and wherever it is cut, it is refused when it is loaded, with its own
// error; the older one can be used, and the log opens.
func TestF16_damaged_checkpoint(t *testing.T) {
	t.Parallel()
	img, _ := retained(t)
	name := checkpointName(8)
	check := func(damaged image) error {
		l, _, err := openImage(damaged, true)
		if err != nil {
			return fmt.Errorf("Open: %w", err)
		}
		defer l.Close()
		points, err := l.Checkpoints()
		if err != nil || len(points) != 2 {
			return fmt.Errorf("%v: %w", points, err)
		}
		called := false
		err = l.LoadCheckpoint(ctx, points[0], func(wal.Section, io.Reader) error { called = true; return nil })
		var bad *wal.CorruptError
		if !errors.As(err, &bad) || bad.Path != "log/"+name || bad.Seq != 8 || called {
			return fmt.Errorf("load was called: %v, and the error is %w", called, err)
		}
		if got, err := load(l, points[1]); err != nil || got != contentOf(6) {
			return fmt.Errorf("the older one: %w", err)
		}
		return nil
	}
	everyFlip(t, img, name, func(flipped image, _ int) error { return check(flipped) })
	everyCut(t, img, name, func(cut image, _ int) error { return check(cut) })
	longer := maps.Clone(img)
	longer[name] = append(slices.Clone(img[name]), '\n')
	require.NoError(t, check(longer))
	for i, line := range bytes.SplitAfter(img[name], []byte("\n")) { // each line away, or twice
		away, twice := maps.Clone(img), maps.Clone(img)
		away[name] = bytes.Replace(img[name], line, nil, 1)
		twice[name] = bytes.Replace(img[name], line, append(slices.Clone(line), line...), 1)
		if len(line) > 0 {
			require.NoError(t, check(away), "line %d", i)
			require.NoError(t, check(twice), "line %d", i)
		}
	}
	for _, at := range []int{0, len(img[name]) / 2} {
		flipped := maps.Clone(img)
		flipped[name] = slices.Clone(img[name])
		flipped[name][at] ^= 1
		report, err := wal.VerifyFS(ram(flipped), "log")
		require.ErrorIs(t, err, wal.ErrCorrupt)
		require.Equal(t, 1, report.Damages)
		l, _, err := openImage(flipped, false)
		require.NoError(t, err)
		mustClose(t, l)
	}
}

// F16: of another log, of a newer version, or made after another event.
func TestF16_checkpoint_of_another_log_or_version(t *testing.T) {
	img, _ := retained(t)
	other, _ := retained(t)
	name := checkpointName(8)
	header, rest, _ := strings.Cut(string(img[name]), "\n")
	body, _ := crashtest.Unseal(saltOf(img[name]), header)
	reheaded := func(old, new string) image {
		require.Contains(t, body, old)
		changed := maps.Clone(img)
		changed[name] = []byte(crashtest.Seal(saltOf(img[name]), strings.Replace(body, old, new, 1)) + rest)
		return changed
	}

	swapped := maps.Clone(img)
	swapped[name] = other[name]
	_, event, _ := strings.Cut(body, `"event":"`)
	for reason, damaged := range map[string]image{
		"checkpoint of another log":   swapped,
		"made after an event":         reheaded(`"event":"`+event[:8], `"event":"00000000`),
		"header is that of seq 7":     reheaded(`"seq":8`, `"seq":7`),
		"no intact header":            reheaded(`"version":1`, `"version":0`),
		"no log id, salt or checksum": reheaded(`"event":"`+event[:8], `"event":"0000`),
		`and the log has`:             reheaded(`"event":"`+event[:8], `"event":"`),
	} {
		l, _, err := openImage(damaged, false)
		require.NoError(t, err, reason)
		_, err = load(l, wal.Checkpoint{Seq: 8})
		require.ErrorIs(t, err, wal.ErrCorrupt)
		require.ErrorContains(t, err, reason)
		mustClose(t, l)
		_, err = wal.VerifyFS(ram(damaged), "log")
		require.ErrorIs(t, err, wal.ErrCorrupt)
	}

	newer := reheaded(`"version":1`, `"version":2,"packed":true`)
	for _, readOnly := range []bool{true, false} {
		_, r, err := openImage(newer, readOnly)
		require.ErrorIs(t, err, wal.ErrVersion)
		require.NotErrorIs(t, err, wal.ErrCorrupt)
		require.ErrorContains(t, err, name)
		require.Zero(t, r.changed())
	}
	_, err := wal.VerifyFS(ram(newer), "log")
	require.ErrorIs(t, err, wal.ErrVersion)
}

// F17, W3: a checkpoint says that its seq was durable. A log that ends before it has lost something.
func TestF17_checkpoint_ahead_of_the_log(t *testing.T) {
	img, _ := retained(t)
	newest := img.Newest()
	last := bytes.LastIndex(img[newest], []byte("\n{\"seq\":7")) + 1
	for name, file := range map[string][]byte{"cut": img[newest][:last], "none": nil, "damaged": append(slices.Clone(img[newest][:last]), "{\"se"...)} {
		t.Run(name, func(t *testing.T) {
			damaged := maps.Clone(img)
			if damaged[newest] = file; file == nil {
				for _, segment := range img.Segments() {
					delete(damaged, segment)
				}
			}
			for _, readOnly := range []bool{true, false} {
				_, r, err := openImage(damaged, readOnly)
				require.ErrorIs(t, err, wal.ErrCorrupt)
				require.ErrorContains(t, err, checkpointName(8))
				require.ErrorContains(t, err, "seq 8 was durable")
				require.True(t, maps.EqualFunc(r.image(), damaged, bytes.Equal), "something was changed")
			}
			_, err := wal.VerifyFS(ram(damaged), "log")
			require.ErrorIs(t, err, wal.ErrCorrupt)
			_, err = wal.TailFS(ram(damaged), "log", 1, 100)
			require.ErrorIs(t, err, wal.ErrCorrupt)
			r := ram(damaged)
			report, err := wal.SalvageFS(r, "log", "into")
			require.NoError(t, err)
			require.GreaterOrEqual(t, report.Lost, uint64(2))
			l, err := wal.Open("into", wal.Options{FS: r})
			require.NoError(t, err)
			require.Equal(t, uint64(8), l.LastSeq(), "no seq is given twice")
			mustClose(t, l)

			// One that is damaged itself is no witness, nor one of another log.
			other, _ := retained(t)
			for _, file := range [][]byte{other[checkpointName(8)], append([]byte("x"), img[checkpointName(8)]...)} {
				if name == "none" {
					continue // with no log there, any checkpoint is that of what was there
				}
				damaged := maps.Clone(damaged)
				damaged[checkpointName(8)] = file
				l, _, err := openImage(damaged, false)
				require.NoError(t, err)
				require.Equal(t, uint64(6), l.LastSeq())
				_, err = load(l, wal.Checkpoint{Seq: 8})
				require.ErrorIs(t, err, wal.ErrCorrupt)
				mustAppend(t, l, group(9, 1, 0)...)
				mustSave(t, l, 7) // it takes no more room among the two
				points, err := l.Checkpoints()
				require.NoError(t, err)
				require.Equal(t, []uint64{7, 6}, []uint64{points[0].Seq, points[1].Seq})
				mustClose(t, l)
			}
		})
	}
}

// W6: what a checkpoint was made after is durable, so a reader is shown it, though no line says so yet.
func TestReadOnly_takes_a_checkpoint_for_a_witness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, "", wal.Options{})
		mustAppend(t, w.log, group(1, 2, 0)...)
		r := readOnly(t, w.base)
		wantEvents(t, r, 0)
		mustSave(t, w.log, 2)
		wantEvents(t, r, 2)
		mustAppend(t, w.log, group(2, 3, 0)...)
		mustSave(t, w.log, 4) // in the middle of a group
		wantEvents(t, r, 4)
		wantEvents(t, readOnly(t, w.base), 4)
		tail, err := wal.TailFS(w.base, "log", 2, 100)
		require.NoError(t, err)
		require.Equal(t, []uint64{3, 4}, seqs(tail))
		time.Sleep(time.Second)
		wantEvents(t, r, 5)
		mustClose(t, r)
		mustClose(t, w.log)
	})
}

// F18: a full disk, or a disk with a fault, in the middle of a checkpoint: no checkpoint, no file, and the log goes on.
func TestF18_fault_during_a_checkpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, schedule := range []string{
			"create checkpoint-*3.jsonl.tmp error %s", "write checkpoint-*3.jsonl.tmp #1 short 100 %s", "write checkpoint-*3.jsonl.tmp #5 short 0 %s",
			"sync checkpoint-*3.jsonl.tmp #1 error %s", "sync checkpoint-*3.jsonl.tmp #2 error %s", "rename checkpoint-*3.jsonl.tmp error %s",
			"close checkpoint-*3.jsonl.tmp error %s",
		} {
			for errno, is := range map[string][]error{"ENOSPC": {wal.ErrNoSpace, syscall.ENOSPC}, "EIO": {syscall.EIO}} {
				if strings.HasPrefix(schedule, "close") && errno == "ENOSPC" {
					continue
				}
				w := start(t, fmt.Sprintf(schedule, errno), wal.Options{})
				mustAppend(t, w.log, group(1, 3, 0)...)
				mustSave(t, w.log, 1)
				mustSave(t, w.log, 2)
				before := w.base.String()
				_, err := w.log.SaveCheckpoint(ctx, 3, []wal.Section{{Name: "large", Save: func(w io.Writer) error {
					_, err := w.Write(make([]byte, 2<<20))
					return err
				}}})
				wantError(t, err, is, wal.ErrFailed)
				var full *wal.NoSpaceError
				if errno == "ENOSPC" && (!errors.As(err, &full) || full.Need <= 0 || !strings.HasSuffix(full.Path, checkpointName(3))) {
					t.Errorf("%s: %#v", schedule, err)
				}
				require.Equal(t, before, w.base.String(), "%s %s", schedule, errno)
				mustAppend(t, w.log, group(2, 1, 0)...)
				mustSave(t, w.log, 4)
				mustClose(t, w.log)
			}
		}
	})
}

// W4: a failed sync of the directory is final, whoever asked for it.
func TestF8_failed_directory_sync_of_a_checkpoint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, "syncdir log #2 error EIO", wal.Options{})
		mustAppend(t, w.log, group(1, 3, 0)...)
		_, err := w.log.SaveCheckpoint(ctx, 3, sectionsOf(3))
		wantError(t, err, []error{wal.ErrFailed, syscall.EIO})
		_, err = w.log.Append(ctx, group(2, 1, 0)...)
		wantError(t, err, []error{wal.ErrFailed})
		_, err = w.log.SaveCheckpoint(ctx, 3, sectionsOf(3))
		wantError(t, err, []error{wal.ErrFailed})
		wantError(t, w.log.Close(), []error{wal.ErrFailed})
		mustClose(t, w.again())
	})
}

// Appends go on while a Save takes its time.
func TestCheckpoint_holds_nobody_up(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := mustOpen(t, wal.Options{FS: crashfs.New()})
		mustAppend(t, l, group(1, 1, 0)...)
		_, err := l.SaveCheckpoint(ctx, 1, []wal.Section{{Name: "s", Save: func(w io.Writer) error {
			mustAppend(t, l, group(2, 2, 0)...)
			wantEvents(t, l, 3)
			return nil
		}}})
		require.NoError(t, err)
		mustClose(t, l)
	})
}
