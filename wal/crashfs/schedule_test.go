package crashfs_test

import (
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/jobwal/jobwal/wal/crashfs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestScheduleText(t *testing.T) {
	s, err := crashfs.ParseSchedule(`
		sync *.jsonl #3 error EIO lie
		write   *   #2   short 17;  write a.jsonl short 0 ENOSPC

		rename *.tmp #1+ error EROFS ; read * flip 37
		any LOCK #1 freeze
		disk 0; crash 12`)
	require.NoError(t, err)
	assert.Equal(t, crashfs.Schedule{
		{Op: crashfs.OpSync, Path: "*.jsonl", Nth: 3, Do: crashfs.Error, Err: syscall.EIO, Lie: true},
		{Op: crashfs.OpWrite, Path: "*", Nth: 2, Do: crashfs.Short, N: 17},
		{Op: crashfs.OpWrite, Path: "a.jsonl", Do: crashfs.Short, Err: syscall.ENOSPC},
		{Op: crashfs.OpRename, Path: "*.tmp", Nth: 1, Onward: true, Do: crashfs.Error, Err: syscall.EROFS},
		{Op: crashfs.OpRead, Path: "*", Do: crashfs.Flip, N: 37},
		{Op: crashfs.OpAny, Path: "LOCK", Nth: 1, Do: crashfs.Freeze},
		{Op: crashfs.OpDisk},
		{Op: crashfs.OpCrash, N: 12},
	}, s)
	assert.Equal(t, "sync *.jsonl #3 error EIO lie; write * #2 short 17; write a.jsonl short 0 ENOSPC; "+
		"rename *.tmp #1+ error EROFS; read * flip 37; any LOCK #1 freeze; disk 0; crash 12", s.String())
	assert.Equal(t, s, crashfs.Inject(crashfs.New(), s).Schedule())
	empty, err := crashfs.ParseSchedule(" \n;; \n")
	require.NoError(t, err)
	assert.Empty(t, empty)
	assert.Panics(t, func() { crashfs.MustSchedule("nonsense") })
}

// A misspelt pattern is a fault that never happens, and a test that proves less than it says.
func TestUnmet(t *testing.T) {
	x := crashfs.Inject(crashfs.New(), crashfs.MustSchedule(
		"create a #1 error EIO; create #1 error EIO; create a #3 error EIO; disk 7; crash 9; create b #2+ freeze"))
	for range 2 {
		_, _ = x.OpenFile("a", os.O_RDWR|os.O_CREATE, 0o644)
	}
	assert.Equal(t, "create #1 error EIO; create a #3 error EIO; crash 9; create b #2+ freeze", x.Unmet().String())
	_, _ = x.OpenFile("a", os.O_RDWR|os.O_CREATE, 0o644)
	x.Stop()
	assert.Equal(t, "create #1 error EIO; create b #2+ freeze", x.Unmet().String())
}

func TestSchedulesThatAreNone(t *testing.T) {
	for _, text := range []string{
		"sync", "sync *", "sync * #1", "sync * error", "sync * error EWHAT", "sync * error EIO lie lie",
		"sync * error EIO more",
		"sync * #0 error EIO", "sync * #-1 error EIO", "sync * #x error EIO", "sync * # error EIO", "sync * #+ error EIO",
		"sync [ error EIO", "sink * error EIO", "sync * explode", "sync * freeze EIO", "sync * freeze lie",
		"write * short", "write * short x", "write * short -1", "write * short 1 EWHAT", "write * short 99999999999999999999",
		"read * short 1", "write * flip 1", "read * flip", "write * error EIO lie", "any * error EIO lie",
		"disk", "disk x", "disk -1", "disk 1 2", "disk * 1", "crash", "crash 0", "crash -1", "crash x",
	} {
		_, err := crashfs.ParseSchedule(text)
		assert.ErrorContains(t, err, "crashfs: schedule", text)
	}
	for _, f := range []crashfs.Fault{
		{Op: crashfs.OpSync, Path: "a b", Do: crashfs.Error, Err: syscall.EIO},
		{Op: crashfs.OpSync, Path: "*", Do: crashfs.Error, Err: syscall.Errno(9999)},
		{Op: crashfs.OpSync, Path: "*", Do: crashfs.Error, Err: syscall.EIO, N: 3},
		{Op: crashfs.OpSync, Path: "*", Onward: true, Do: crashfs.Freeze},
		{Op: crashfs.OpDisk, N: 3, Path: "*"},
	} {
		assert.Panics(t, func() { crashfs.Inject(crashfs.New(), crashfs.Schedule{f}) }, f)
	}
}

var errnos = []syscall.Errno{syscall.EIO, syscall.ENOSPC, syscall.EROFS, syscall.EDQUOT, syscall.EFBIG, syscall.EACCES,
	syscall.EINTR, syscall.EMFILE, syscall.EPERM, syscall.EAGAIN, syscall.EOPNOTSUPP}

var faults = rapid.Custom(func(t *rapid.T) crashfs.Fault {
	ops := []crashfs.Kind{crashfs.OpCreate, crashfs.OpWrite, crashfs.OpTruncate, crashfs.OpSync, crashfs.OpPreallocate,
		crashfs.OpMkdir, crashfs.OpRename, crashfs.OpRemove, crashfs.OpSyncDir, crashfs.OpOpen, crashfs.OpRead,
		crashfs.OpSize, crashfs.OpClose, crashfs.OpReadDir, crashfs.OpLock, crashfs.OpAny, crashfs.OpDisk, crashfs.OpCrash}
	f := crashfs.Fault{Op: rapid.SampledFrom(ops).Draw(t, "op"), N: rapid.Int64Range(1, 1<<50).Draw(t, "n")}
	if f.Op == crashfs.OpDisk || f.Op == crashfs.OpCrash {
		return f
	}
	f.Path = rapid.SampledFrom([]string{"*", "*.jsonl", "a?c", "[a-z]*", ".", "#1", `\*`, "lie"}).Draw(t, "path")
	f.Nth = rapid.IntRange(0, 1000).Draw(t, "nth")
	f.Onward = f.Nth > 0 && rapid.Bool().Draw(t, "onward")
	actions := []crashfs.Action{crashfs.Error, crashfs.Freeze}
	switch f.Op {
	case crashfs.OpWrite:
		actions = append(actions, crashfs.Short)
	case crashfs.OpRead:
		actions = append(actions, crashfs.Flip)
	}
	f.Do = rapid.SampledFrom(actions).Draw(t, "do")
	if f.Do == crashfs.Error || f.Do == crashfs.Short && rapid.Bool().Draw(t, "with error") {
		f.Err = rapid.SampledFrom(errnos).Draw(t, "err")
	}
	f.Lie = (f.Op == crashfs.OpSync || f.Op == crashfs.OpSyncDir) && f.Do == crashfs.Error && rapid.Bool().Draw(t, "lie")
	if f.Do != crashfs.Short && f.Do != crashfs.Flip {
		f.N = 0
	}
	return f
})

func TestScheduleRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := crashfs.Schedule(rapid.SliceOf(faults).Draw(t, "schedule"))
		again, err := crashfs.ParseSchedule(s.String())
		if err != nil || !slices.Equal(s, again) {
			t.Fatalf("%s\n%s\n%v", s, again, err)
		}
		lines, err := crashfs.ParseSchedule(strings.ReplaceAll(s.String(), "; ", "\n\t"))
		if err != nil || !slices.Equal(s, lines) {
			t.Fatalf("%s\n%s\n%v", s, lines, err)
		}
	})
}

// Whatever is read prints as something that reads as the same.
func FuzzParseSchedule(f *testing.F) {
	f.Add("sync *.jsonl #3 error EIO lie; write * #2 short 17 ENOSPC; read * flip 37; any x #1+ freeze; disk 1; crash 2")
	f.Add("write * short 017; sync * #+1 error EIO")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := crashfs.ParseSchedule(text)
		if err != nil {
			return
		}
		again, err := crashfs.ParseSchedule(s.String())
		require.NoError(t, err)
		require.Equal(t, s, again)
		crashfs.Inject(crashfs.New(), s)
	})
}

func TestPolicyRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.Uint64().Draw(t, "seed")
		name := rapid.SampledFrom([]string{"f", "d/f", "a b", "a 7"}).Draw(t, "name")
		for _, p := range []crashfs.Policy{
			{}, crashfs.SyncedOnly, crashfs.Everything, crashfs.Zeros, crashfs.CutAt(name, int64(n>>1)), crashfs.Sectors(n),
			crashfs.Pages(n), crashfs.Stale(n), crashfs.Entries(n), crashfs.Seed(n),
		} {
			if got, err := crashfs.ParsePolicy(p.String()); err != nil || got != p {
				t.Fatalf("%q: %v, %v", p, got, err)
			}
		}
	})
	for _, text := range []string{"", "what", "synced 1", "seed", "seed x", "seed -1", "seed 01", "cut", "cut f", "cut f x",
		"Seed 1"} {
		_, err := crashfs.ParsePolicy(text)
		assert.Error(t, err, text)
	}
}
