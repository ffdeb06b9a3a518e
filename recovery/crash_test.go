package recovery

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// read returns the segments of a directory by name.
func read(t require.TestingT, disk wal.FS, dir string) map[string][]byte {
	files := make(map[string][]byte)
	list, err := disk.ReadDir(dir)
	require.NoError(t, err)
	for _, entry := range list {
		if !strings.HasSuffix(entry.Name(), ".jsonl") {
			continue
		}
		f, err := disk.OpenFile(path.Join(dir, entry.Name()), os.O_RDONLY, 0)
		require.NoError(t, err)
		size, err := f.Size()
		require.NoError(t, err)
		content := make([]byte, size)
		_, err = f.ReadAt(content, 0)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		files[entry.Name()] = content
	}
	return files
}

// put makes a disk with these segments on it.
func put(t require.TestingT, dir string, files map[string][]byte) *crashfs.FS {
	disk := crashfs.New()
	require.NoError(t, disk.Mkdir(dir, 0o755))
	for name, content := range files {
		f, err := disk.OpenFile(path.Join(dir, name), os.O_RDWR|os.O_CREATE, 0o644)
		require.NoError(t, err)
		_, err = f.WriteAt(content, 0)
		require.NoError(t, err)
		require.NoError(t, f.Close())
	}
	return disk
}

// told is a random history that an engine was led through: the disk as its process left it, with or without a Close,
// and its story.
func told(t *rapid.T, closed bool) (files map[string][]byte, s story) {
	disk := crashfs.New()
	opts := Options{WAL: wal.Options{FS: disk, SegmentBytes: 2048}}
	for range rapid.IntRange(1, 3).Draw(t, "epochs") {
		e, err := Open(context.Background(), "jobs", opts)
		require.NoError(t, err)
		for range rapid.IntRange(0, 12).Draw(t, "groups") {
			var group []fact
			var commands []Command
			for range rapid.IntRange(1, 3).Draw(t, "of") {
				f := drawFact(t, s)
				if after, legal := s.with(e.log.Epoch(), append(slices.Clone(group), f)...); legal && len(after) > 0 {
					group, commands = append(group, f), append(commands, f.command())
				}
			}
			if len(group) == 0 {
				continue
			}
			s, _ = s.with(e.log.Epoch(), group...)
			_, err := e.Do(context.Background(), commands...)
			require.NoError(t, err)
		}
		files = read(t, disk, "jobs")
		require.NoError(t, e.Close())
		if closed {
			files = read(t, disk, "jobs")
		}
	}
	return files, s
}

// checkSurvived opens what is left of a log. Either it is refused as corrupt, or the engine is the fold of a prefix of
// the story: of what the log says survived.
func checkSurvived(t *rapid.T, files map[string][]byte, s story) (survived int, err error) {
	disk := put(t, "jobs", files)
	for range 2 { // R2: the second time it finds the same
		e, err := Open(context.Background(), "jobs", Options{WAL: wal.Options{FS: disk, SegmentBytes: 2048}})
		if err != nil {
			require.ErrorIs(t, err, wal.ErrCorrupt)
			var corrupt *wal.CorruptError
			require.ErrorAs(t, err, &corrupt)
			require.NotEmpty(t, corrupt.Reason)
			checkRefused(t, files, read(t, disk, "jobs"), path.Base(corrupt.Path))
			return 0, err
		}
		survived = int(e.log.LastSeq())
		require.LessOrEqual(t, survived, len(s))
		checkStory(t, e, s[:survived])
		require.NoError(t, e.Close())
	}
	return survived, nil
}

// checkRefused: what is refused is not changed. Only where the damage lies in a sealed segment, which wal.Open has no
// need to read, a new epoch has begun before replay comes upon it; the damaged segment is as it was even then.
func checkRefused(t *rapid.T, before, after map[string][]byte, damaged string) {
	require.Equal(t, string(before[damaged]), string(after[damaged]), "refused, and changed")
	if damaged != newest(before) {
		return
	}
	require.Len(t, after, len(before))
	for name, content := range before {
		require.Equal(t, string(content), string(after[name]), "refused, and changed")
	}
}

// newest is the name of the last segment.
func newest(files map[string][]byte) string {
	name := ""
	for n := range files {
		name = max(name, n)
	}
	return name
}

// F1, R2: the newest segment of a random history is cut at a random byte, or ends in something else: the engine is the
// fold of the whole groups before, or refuses.
func TestF1_R2_random_history_with_a_torn_tail(t *testing.T) {
	survivors, refused := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		closed := rapid.Bool().Draw(t, "closed")
		files, s := told(t, closed)
		name := newest(files)
		cut := rapid.IntRange(0, len(files[name])).Draw(t, "cut")
		tail := rapid.SampledFrom([]string{"", "\x00", "\n", "x\n", "{\"seq\":", "\xff"}).Draw(t, "tail")
		whole := files[name]
		files[name] = append(bytes.Clone(whole[:cut]), strings.Repeat(tail, rapid.IntRange(0, 600).Draw(t, "times"))...)
		if n := len(files[name]); rapid.Bool().Draw(t, "a hole") && n < len(whole) {
			files[name] = append(files[name], whole[n:]...) // what comes behind it may be a witness
		}
		survived, err := checkSurvived(t, files, s)
		if err != nil {
			refused++
			return
		}
		survivors++
		if bytes.HasPrefix(files[name], whole) {
			require.Equal(t, len(s), survived, "nothing that was acknowledged was touched")
		}
	})
	t.Logf("%d opened, %d refused", survivors, refused)
}

// F3, F4, F6: one bit flips anywhere in a random history.
func TestF3_F4_F6_random_history_with_a_flipped_bit(t *testing.T) {
	survivors, refused := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		closed := rapid.Bool().Draw(t, "closed")
		files, s := told(t, closed)
		names := slices.Sorted(func(yield func(string) bool) {
			for name := range files {
				if !yield(name) {
					return
				}
			}
		})
		name := rapid.SampledFrom(names).Draw(t, "segment")
		bit := rapid.IntRange(0, 8*len(files[name])-1).Draw(t, "bit")
		files[name] = bytes.Clone(files[name])
		files[name][bit/8] ^= 1 << (bit % 8)
		survived, err := checkSurvived(t, files, s)
		if err != nil {
			refused++
			return
		}
		survivors++
		if closed {
			require.Equal(t, len(s), survived, "a closed log lost an event without a word")
		}
	})
	t.Logf("%d opened, %d refused", survivors, refused)
}

// F6: a segment in the middle is gone, or stands in another's place.
func TestF6_a_segment_is_missing_or_misplaced(t *testing.T) {
	disk := crashfs.New()
	e, err := Open(context.Background(), "jobs", Options{WAL: wal.Options{FS: disk, SegmentBytes: 1024}})
	require.NoError(t, err)
	for i := range 40 {
		_, err := e.Submit(context.Background(), Submission{JobID: fmt.Sprint("job-", i), Args: "größe"})
		require.NoError(t, err)
	}
	require.NoError(t, e.Close())
	files := read(t, disk, "jobs")
	require.Greater(t, len(files), 3)
	last := newest(files)
	for name := range files {
		if name == last {
			continue
		}
		left := map[string][]byte{}
		for n, content := range files {
			left[n] = content
		}
		delete(left, name)
		refuses(t, left)
		left[name] = files[last]
		refuses(t, left)
	}
}

func refuses(t *testing.T, files map[string][]byte) {
	e, err := Open(context.Background(), "jobs", Options{WAL: wal.Options{FS: put(t, "jobs", files)}})
	require.ErrorIs(t, err, wal.ErrCorrupt)
	require.Nil(t, e)
}
