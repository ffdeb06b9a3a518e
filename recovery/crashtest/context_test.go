package crashtest_test

import (
	"context"
	"testing"

	"github.com/jobwal/jobwal/recovery/crashtest"
	"github.com/jobwal/jobwal/wal"
)

// Who writes tests today writes t.Context(), and the t that is at hand is the one outside of the bubble. Its end closed a
// channel that the bubble had made: "fatal error: close of synctest channel from outside bubble", after all had passed.
func TestCrashEveryOp_with_the_context_of_its_test(t *testing.T) {
	for name, run := range map[string]func(t *testing.T, workload, check func(wal.FS, *saved) error){
		"CrashEveryOp": func(t *testing.T, workload, check func(wal.FS, *saved) error) {
			crashtest.CrashEveryOp(t, workload, check)
		},
		"Replay": func(t *testing.T, workload, check func(wal.FS, *saved) error) {
			crashtest.Replay(t, "crash 2; synced", workload, check)
		},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(disk wal.FS, s *saved) error {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				select {
				case <-t.Context().Done():
					return t.Context().Err()
				case <-ctx.Done():
					return ctx.Err()
				default:
					return saveTwice(disk, s)
				}
			}, recoverWell)
		})
	}
}
