package main

import (
	"testing"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/recovery/crashtest"
	"github.com/jobwal/jobwal/wal"
)

func TestLosesNothing(t *testing.T) {
	crashtest.CrashEveryOp(t, func(disk wal.FS, h *crashtest.History) error { // the program
		engine, err := recovery.Open(t.Context(), "jobs", recovery.Options{WAL: wal.Options{FS: disk}})
		if err != nil {
			return err
		}
		defer engine.Close()
		_, err = h.Do(t.Context(), engine, crashtest.Step{Type: wal.JobSubmitted, JobID: "order-1", Capability: "charge"})
		return err
	}, func(disk wal.FS, h *crashtest.History) error { // what has to be true of what a crash left
		return crashtest.Recover(disk, "jobs", h, recovery.Options{})
	})
}
