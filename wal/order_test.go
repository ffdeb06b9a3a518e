package wal_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// Viewpoint: what lands before what. Each test counts the states that it is about, so that it can't pass for want of them.

const firstSegment = "log/00000000000000000001.jsonl"

func read(t *testing.T, disk wal.FS, name string) []byte {
	t.Helper()
	f, err := disk.OpenFile(name, os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	require.NoError(t, err)
	defer f.Close()
	size, err := f.Size()
	require.NoError(t, err)
	raw := make([]byte, size)
	_, err = f.ReadAt(raw, 0)
	require.NoError(t, err)
	return raw
}

// F2: of three groups that no sync had reached, a later one landed and an earlier did not. Nothing promises either: the
// cut is at the first bad line, and the intact one behind it goes to quarantine with the rest.
func TestF2_lost_out_of_order(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, "", wal.Options{Sync: wal.SyncNever, SegmentBytes: 1 << 20})
		for i := range 4 { // a few sectors each
			mustAppend(t, w.log, group(i+1, 1, 1000)...)
		}
		whole := read(t, w.base, firstSegment)
		lines := bytes.SplitAfter(whole, []byte("\n"))
		lines = lines[len(lines)-5 : len(lines)-1] // the events
		holes := 0
		for seed := range uint64(thin(400, 100)) {
			disk := w.base.Crash(crashfs.Sectors(seed))
			left := read(t, disk, firstSegment)
			good := 0
			for good < 4 && bytes.Contains(left, lines[good]) {
				good++
			}
			behind := good < 3 && bytes.Contains(left, lines[3])
			if left == nil || !behind {
				continue
			}
			holes++
			l := mustOpen(t, wal.Options{FS: disk})
			wantEvents(t, l, good)
			torn := l.Report().Torn
			require.Len(t, torn, 1, "seed %d", seed)
			require.EqualValues(t, good+1, torn[0].Seq)
			require.Contains(t, string(read(t, disk, torn[0].Quarantine)), string(lines[3]), "seed %d", seed)
			mustClose(t, l)
		}
		require.Greater(t, holes, 10)
		t.Logf("%d crashes with a hole", holes)
	})
}

// F7: an acknowledgement waits for the directory entry of the segment that its event is in. So wherever the newest
// segment is missing after a crash, nothing in it was acknowledged, and the log goes on without it.
func TestF7_newest_segment_without_its_entry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		missing := 0
		for crash := 1; ; crash++ {
			w := enter(t, crashfs.New(), fmt.Sprint("crash ", crash), wal.Options{SegmentBytes: wal.MinSegmentBytes})
			w.open()
			for range 6 {
				w.append(1, 300)
			}
			if !w.dead {
				break // it ran to its end
			}
			for _, p := range []crashfs.Policy{crashfs.SyncedOnly, crashfs.Entries(1), crashfs.Entries(2)} {
				disk := w.base.Crash(p)
				if strings.Count(disk.String(), ".jsonl ") < strings.Count(w.base.String(), ".jsonl ") {
					missing++
				}
				if err := w.check(disk, p, new(seen)); err != nil {
					t.Fatalf("crash %d, %v: %v", crash, p, err)
				}
			}
		}
		require.Greater(t, missing, 5)
		t.Logf("%d crashes took a segment's name", missing)
	})
}

// F15: segments are removed when the floor that allows it is durable, and not before. So wherever a crash left one
// removed, the floor is there, and all that is not below it.
func TestF15_removes_that_land_first(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		removed := 0
		for crash := 1; ; crash++ {
			w := enter(t, crashfs.New(), "", wal.Options{SegmentBytes: wal.MinSegmentBytes})
			w.open()
			for range 8 {
				w.append(1, 300)
			}
			faulty := crashfs.Inject(w.base, crashfs.MustSchedule(fmt.Sprint("crash ", crash)))
			require.NoError(t, w.log.Close())
			l, err := wal.Open("log", wal.Options{FS: faulty, SegmentBytes: wal.MinSegmentBytes})
			if err == nil {
				err = l.DropBefore(6)
			}
			before := strings.Count(w.base.String(), ".jsonl ")
			for seed := range uint64(16) {
				disk := w.base.Crash(crashfs.Entries(seed))
				first := strings.Contains(disk.String(), firstSegment[len("log/"):]+" ")
				l := mustOpen(t, wal.Options{FS: disk})
				if !first {
					removed++
					require.Greater(t, l.FirstSeq(), uint64(1), "crash %d, seed %d", crash, seed)
				}
				events, err := collect(l, 0)
				require.NoError(t, err)
				require.EqualValues(t, 8, l.LastSeq())
				require.Len(t, events, int(8-l.FirstSeq()+1))
				require.LessOrEqual(t, l.FirstSeq(), uint64(6))
				require.LessOrEqual(t, strings.Count(disk.String(), ".jsonl "), before+1)
				mustClose(t, l)
			}
			if l != nil {
				_ = l.Close()
			}
			if err == nil && !faulty.Crashed() {
				break
			}
		}
		require.Greater(t, removed, 10)
		t.Logf("%d crashes had lost the oldest segment", removed)
	})
}

// F15: just before any file is removed, all that stands in for it is on stable storage: the floor, and what was carried; or
// a newer checkpoint.
func TestF15_what_a_remove_relies_on_is_durable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		removes := 0
		for _, k := range besides {
			whole := k.enter(t, 0)
			k.do(whole)
			for i, op := range whole.fs.Ops() {
				if op.Kind != crashfs.OpRemove || strings.HasSuffix(op.Path, ".tmp") {
					continue
				}
				removes++
				w := k.enter(t, i+1)
				k.do(w)
				w.fs.Stop()
				disk := w.base.Crash(crashfs.SyncedOnly)
				var gone uint64
				prefix, number, _ := strings.Cut(op.Path, "000")
				_, err := fmt.Sscanf(strings.TrimLeft(number, "0"), "%d", &gone)
				require.NoError(t, err)
				l := mustOpen(t, wal.Options{FS: disk})
				points, err := l.Checkpoints()
				require.NoError(t, err)
				if strings.HasSuffix(prefix, "checkpoint-") {
					require.Len(t, points, 3)
					require.Greater(t, points[0].Seq, gone)
				} else {
					require.Greater(t, l.FirstSeq(), gone, "%s: %v", k.name, op)
				}
				require.NoError(t, w.judgeBeside(l, disk), "%s: %v", k.name, op)
				mustClose(t, l)
			}
		}
		require.Greater(t, removes, 15)
	})
}

// F16: whatever lies under a checkpoint's name and is none is left alone by Open, and the log is replayed from its events.
func TestF16_what_is_no_checkpoint_is_left_alone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, "", wal.Options{})
		w.append(3, 0)
		mustClose(t, w.log)
		for name, text := range map[string]string{
			"log/checkpoint-00000000000000000002.jsonl": `{"mark":"checkpoint","ver`,
			"log/checkpoint-00000000000000000099.jsonl": `{"seq":99}` + "\n",
		} {
			f, err := w.base.OpenFile(name, os.O_CREATE|os.O_WRONLY, 0o600)
			require.NoError(t, err)
			_, err = f.WriteAt([]byte(text), 0)
			require.NoError(t, err)
			require.NoError(t, f.Close())
			l := w.again()
			wantEvents(t, l, 3)
			require.Empty(t, l.Report().Swept)
			mustClose(t, l)
			require.Equal(t, text, string(read(t, w.base, name)))
		}
	})
}

// F18: a disk that is full when the floor is to be written: a no, with every segment as it was, and the writer goes on.
func TestF18_no_space_while_dropping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, "", wal.Options{SegmentBytes: wal.MinSegmentBytes})
		for range 8 {
			w.append(1, 300)
		}
		segments := strings.Count(w.base.String(), ".jsonl ")
		w.fs.SetDisk(0)
		wantError(t, w.log.DropBefore(6), []error{wal.ErrNoSpace}, wal.ErrFailed)
		require.Equal(t, segments, strings.Count(w.base.String(), ".jsonl "))
		require.EqualValues(t, 1, w.log.FirstSeq())
		wantEvents(t, w.log, 8)
		w.fs.SetDisk(-1)
		require.NoError(t, w.log.DropBefore(6))
		require.Greater(t, w.log.FirstSeq(), uint64(1))
		w.append(1, 0)
		require.EqualValues(t, 9, w.log.LastSeq())
	})
}

// A log that is opened and closed again and again, with nothing appended, wrote all its marks anew each time.
func TestF8_marks_of_clean_closes_are_not_rewritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := start(t, "", wal.Options{SegmentBytes: 1 << 20})
		w.append(1, 0)
		mustClose(t, w.log)
		for range 30 {
			l := w.again()
			require.Less(t, l.Report().Rewritten, int64(200))
			mustClose(t, l)
		}
	})
}
