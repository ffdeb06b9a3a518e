package crashtest_test

import (
	"context"
	"testing"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/recovery/crashtest"
	"github.com/jobwal/jobwal/wal"
)

// Who writes tests today writes t.Context(), and the t that is at hand is the one outside of the bubble. Its end closed a
// channel that the bubble had made: "fatal error: close of synctest channel from outside bubble", after all had passed.
func TestCrashEveryOp_with_the_context_of_its_test(t *testing.T) {
	for name, run := range map[string]func(t *testing.T, workload, check func(wal.FS, *crashtest.History) error){
		"CrashEveryOp": func(t *testing.T, workload, check func(wal.FS, *crashtest.History) error) {
			crashtest.CrashEveryOp(t, workload, check)
		},
		"Replay": func(t *testing.T, workload, check func(wal.FS, *crashtest.History) error) {
			crashtest.Replay(t, "crash 2; synced", workload, check)
		},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(disk wal.FS, h *crashtest.History) error {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				engine, err := recovery.Open(ctx, "jobs", recovery.Options{WAL: wal.Options{FS: disk}})
				if err != nil {
					return err
				}
				defer engine.Close()
				_, err = h.Do(t.Context(), engine, crashtest.Step{Type: wal.JobSubmitted, JobID: "a"})
				return err
			}, func(disk wal.FS, h *crashtest.History) error {
				return crashtest.Recover(disk, "jobs", h, recovery.Options{})
			})
		})
	}
}
