package crashtest_test

import (
	"context"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/recovery/crashtest"
)

// shopProgram is this test binary as a program: see shop.
func shopProgram(t *testing.T, behaviour string) crashtest.Program {
	self, err := os.Executable()
	require.NoError(t, err)
	return crashtest.Program{
		Command: func(dir, _ string) *exec.Cmd {
			cmd := exec.Command(self, dir)
			cmd.Env = append(os.Environ(), childVariable+"="+behaviour)
			return cmd
		},
		Log: "jobs",
	}
}

func TestCertify_right(t *testing.T) {
	p := shopProgram(t, "right")
	p.Trials = 200
	c := crashtest.Certify(t, p)
	require.True(t, c.Inside)
	_ = time.Now
	_ = context.Background
}
