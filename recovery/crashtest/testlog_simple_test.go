package crashtest

import (
	"context"
	"testing"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/wal"
)

// onSimple opens a SimpleLog on the disk of diskOpener.
type onSimple struct{ *diskOpener }

func (d onSimple) Open(context.Context) (recovery.Log, error) { return OpenSimple(d.faulty, "jobs") }

func TestTestLogOnSimpleLog(t *testing.T) {
	TestLog(t, func(*testing.T) Opener {
		return onSimple{newOnDisk(wal.Options{MaxEventBytes: wal.DefaultMaxEventBytes})}
	})
}
