package recovery

import (
	"os"
	"runtime/debug"
	"testing"
)

func TestMain(m *testing.M) {
	debug.SetGCPercent(800) // some ten thousand small logs are opened, each with buffers of its own
	os.Exit(m.Run())
}
