package crashtest_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/recovery/crashtest"
)

const replayEnv = "JOBWAL_TEST_REPLAY"

// TestReplayChild is what TestReplay_after_CrashEveryOp runs, since it fails.
func TestReplayChild(t *testing.T) {
	switch how, child := os.LookupEnv(replayEnv); {
	case !child:
		return
	case how == "":
		crashtest.CrashEveryOp(t, saveTwice, recoverBadly)
	default:
		crashtest.Replay(t, how, saveTwice, recoverBadly)
	}
}

// What CrashEveryOp says is to be put in its place shows the same again, to the last word.
func TestReplay_after_CrashEveryOp(t *testing.T) {
	exe, err := os.Executable()
	require.NoError(t, err)
	fails := func(how string) string {
		cmd := exec.Command(exe, "-test.run=^TestReplayChild$")
		cmd.Env = append(os.Environ(), replayEnv+"="+how)
		out, err := cmd.CombinedOutput()
		require.ErrorAs(t, err, new(*exec.ExitError), "%s", out)
		_, story, _ := strings.Cut(string(out), "crashtest: crash ")
		story, _, _ = strings.Cut(story, "\nFAIL")
		return story
	}
	const how = "crash 5; everything; crash 3; cut a 2"
	first := fails("")
	require.Contains(t, first, fmt.Sprintf("crashtest.Replay(t, %q, …) with the two functions of CrashEveryOp", how))
	require.Equal(t, first, fails(how))
	crashtest.Replay(t, how, saveTwice, recoverWell)
}
