package crashtest

import (
	"testing"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/wal"
)

func TestTestLogOnSimpleLog(t *testing.T) {
	t.Parallel()
	TestLog(t, func(*testing.T) Opener {
		return limited{DiskOpener(func(disk wal.FS) (recovery.Log, error) {
			return OpenSimple(disk, "jobs")
		}).(*diskOpener), wal.DefaultMaxEventBytes}
	})
}
