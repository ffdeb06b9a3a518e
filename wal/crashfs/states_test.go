package crashfs_test

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/jobwal/jobwal/wal/crashfs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Where there are more states than the bound, the bound is kept to, the rest is counted, and no state comes twice.
func TestStatesBound(t *testing.T) {
	disk := crashfs.New()
	h := hand{t, disk}
	for i := range 4 {
		name := fmt.Sprint("f", i)
		h.durable(name, "old")
		h.write(name, 3, "-new") // lost, zeros, or kept
	}
	h.create("g", "")
	for _, bound := range []int{1, 2, 7, 161, 162, 1000} {
		states := disk.CrashStates(bound)
		left, exact := states.Left()
		assert.True(t, exact)
		assert.Equal(t, min(bound, 2*81), states.Len())
		assert.EqualValues(t, 2*81, left+uint64(states.Len()))
		seen := make(map[[32]byte]bool)
		for i, after := range states.All() {
			seen[after.Fingerprint()] = true
			assert.Equal(t, after.Fingerprint(), disk.CrashStates(bound).At(i).Fingerprint())
		}
		assert.Len(t, seen, states.Len())
		assert.Equal(t, disk.Crash(crashfs.SyncedOnly).Fingerprint(), states.At(0).Fingerprint(), "the first")
	}
	assert.Panics(t, func() { disk.CrashStates(7).At(7) })
	for range disk.CrashStates(7).All() {
		break
	}
}

// Where even one file has too many states, or the directories do, no number is claimed to be exact.
func TestStatesThatCannotBeCounted(t *testing.T) {
	disk := crashfs.New()
	h := hand{t, disk}
	h.durable("f", strings.Repeat("a", 64*crashfs.SectorSize))
	h.write("f", 0, strings.Repeat("b", 64*crashfs.SectorSize))
	states := disk.CrashStates(10)
	left, exact := states.Left()
	assert.Equal(t, 10, states.Len())
	assert.Greater(t, left, uint64(1000))
	assert.False(t, exact)

	disk = crashfs.New()
	h = hand{t, disk}
	for i := range 20 {
		h.create(fmt.Sprint("f", i), "")
	}
	_, exact = disk.CrashStates(10).Left()
	assert.False(t, exact)

	disk = crashfs.New()
	h = hand{t, disk}
	for i := range 40 {
		h.durable(fmt.Sprint("f", i), "old")
		h.write(fmt.Sprint("f", i), 0, "newer")
	}
	h.create("g", "")
	states = disk.CrashStates(10)
	left, exact = states.Left()
	assert.False(t, exact)
	assert.Equal(t, uint64(math.MaxUint64-10), left, "so many that they are not counted")
	require.Equal(t, 10, states.Len())
	for _, after := range states.All() {
		assert.NotEmpty(t, after.String())
	}
}

// The states are those of the instant of the call, whatever happens until they are looked at.
func TestStatesAreOfOneInstant(t *testing.T) {
	disk := crashfs.New()
	h := hand{t, disk}
	h.durable("f", "old")
	h.write("f", 0, "new")
	states := disk.CrashStates(10)
	h.write("f", 0, "XXX")
	h.sync("f")
	var got []string
	for _, after := range states.All() {
		got = append(got, read(after, "f"))
	}
	assert.ElementsMatch(t, []string{"old", "new"}, got)
}

// What is remembered of free blocks is bounded, and the newest of it is kept.
func TestFreedBlocksAreBounded(t *testing.T) {
	disk := crashfs.New()
	h := hand{t, disk}
	for i := range 50 {
		h.durable("big", strings.Repeat(string(rune('A'+i%26)), 1<<20))
		h.remove("big")
		h.syncDir(".")
	}
	h.durable("f", "")
	h.write("f", 0, "new")
	got := make(map[string]bool)
	for seed := range uint64(300) {
		got[read(disk.Crash(crashfs.Stale(seed)), "f")] = true
	}
	assert.True(t, got["XXX"], "the newest")
	assert.Less(t, len(got), 10, "the oldest are forgotten")
}

func TestFingerprintAndString(t *testing.T) {
	disk := crashfs.New()
	h := hand{t, disk}
	sum := disk.Fingerprint()
	changes := []func(){
		func() { h.create("f", "") },
		func() { h.write("f", 0, "x") },
		func() { h.truncate("f", 2) },
		func() { h.rename("f", "g") },
		func() { h.mkdir("d") },
		func() { h.rename("g", "d/g") },
	}
	for i, change := range changes {
		change()
		require.NotEqual(t, sum, disk.Fingerprint(), i)
		sum = disk.Fingerprint()
	}
	assert.Equal(t, "d/\nd/g 2\n", disk.String())
	h.sync("d/g")
	h.syncDir(".")
	assert.Equal(t, sum, disk.Fingerprint(), "what is synced does not show")
	other := crashfs.New()
	hand{t, other}.mkdir("d")
	hand{t, other}.create("d/g", "x\x00")
	assert.Equal(t, sum, other.Fingerprint(), "nor how it came about")
}
