package crashtest

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/wal/crashfs"
)

// What is printed is read back the same, whatever it is.
func TestReproducer_round_trip(t *testing.T) {
	seeds := rapid.Uint64()
	policies := rapid.OneOf(
		rapid.SampledFrom([]crashfs.Policy{crashfs.SyncedOnly, crashfs.Everything, crashfs.Zeros}),
		rapid.Map(seeds, crashfs.Sectors), rapid.Map(seeds, crashfs.Pages), rapid.Map(seeds, crashfs.Stale),
		rapid.Map(seeds, crashfs.Entries), rapid.Map(seeds, crashfs.Seed),
		rapid.Custom(func(t *rapid.T) crashfs.Policy {
			return crashfs.CutAt(rapid.StringMatching(`[ a-z/.0-9]{1,12}`).Draw(t, "name"), rapid.Int64Min(0).Draw(t, "n"))
		}))
	choices := rapid.Custom(func(t *rapid.T) choice {
		if rapid.Bool().Draw(t, "by policy") {
			return choice{policy: policies.Draw(t, "policy")}
		}
		return choice{number: rapid.IntRange(0, 1000).Draw(t, "number"), bound: rapid.IntRange(1, 1000).Draw(t, "bound")}
	})
	rapid.Check(t, func(t *rapid.T) {
		want := reproducer{{at: rapid.IntRange(1, 1000).Draw(t, "first")}}
		for n := rapid.IntRange(0, 3).Draw(t, "more"); n > 0; n-- {
			if last := &want[len(want)-1]; last.leaves == nil {
				last.leaves = new(choices.Draw(t, "choice"))
			} else {
				want = append(want, crash{at: rapid.IntRange(1, 1000).Draw(t, "second")})
			}
		}
		got, err := parseReproducer(want.String())
		require.NoError(t, err)
		require.Equal(t, want, got)
	})
}
