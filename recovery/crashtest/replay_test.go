package crashtest_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/recovery/crashtest"
	"github.com/jobwal/jobwal/wal"
)

const replayEnv = "JOBWAL_TEST_REPLAY"

// TestReplayChild is what the tests below run, since it fails.
func TestReplayChild(t *testing.T) {
	switch how, child := os.LookupEnv(replayEnv); {
	case !child:
		return
	case how == "":
		crashtest.CrashEveryOp(t, saveTwice, recoverBadly)
	case how == "in a bubble":
		synctest.Test(t, func(t *testing.T) { crashtest.CrashEveryOp(t, saveTwice, recoverWell) })
	case how == "goroutines":
		crashtest.CrashEveryOp(t, func(disk wal.FS, s *saved) error {
			go func() { <-make(chan bool) }()
			return saveTwice(disk, s)
		}, recoverWell)
	default:
		crashtest.Replay(t, how, saveTwice, recoverBadly)
	}
}

// What CrashEveryOp says is to be put in its place shows the same again, to the last word.
func TestReplay_after_CrashEveryOp(t *testing.T) {
	fails := func(how string) string {
		_, story, _ := strings.Cut(childFails(t, how), "crashtest: crash ")
		story, _, _ = strings.Cut(story, "\nFAIL")
		return story
	}
	const how = "crash 5; everything; crash 3; cut a 2"
	first := fails("")
	require.Contains(t, first, fmt.Sprintf("crashtest.Replay(t, %q, …) with the two functions of CrashEveryOp", how))
	require.Equal(t, first, fails(how))
	crashtest.Replay(t, how, saveTwice, recoverWell)
}

func childFails(t *testing.T, how string) string {
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(exe, "-test.run=^TestReplayChild$")
	cmd.Env = append(os.Environ(), replayEnv+"="+how)
	out, err := cmd.CombinedOutput()
	require.ErrorAs(t, err, new(*exec.ExitError), "%s", out)
	return string(out)
}

// What synctest can only panic about, CrashEveryOp gives its own words to.
func TestCrashEveryOp_says_what_a_bubble_wants(t *testing.T) {
	require.Contains(t, childFails(t, "in a bubble"), "call it outside, or use Crashes.Run")
	left := childFails(t, "goroutines")
	require.Contains(t, left, "open they must close, after a crash too")
	require.Contains(t, left, "created by github.com/jobwal/jobwal/recovery/crashtest_test.TestReplayChild")
}
