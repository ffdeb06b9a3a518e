package crashtest_test

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/recovery/crashtest"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// A failed CrashEveryOp printed this line; it stands in its place until the failure is understood.
func ExampleReplay() {
	// In a _test.go file:
	_ = func(t *testing.T) {
		crashtest.Replay(t, "crash 5; everything; crash 3; synced", change, goOn)
	}
	// Output:
}

// sold counts completed orders, and all returns a copy of what it has.
func ExampleTestProjection() {
	// In a _test.go file:
	_ = func(t *testing.T) {
		crashtest.TestProjection(t, newSold, func(s *sold) any { return s.all() })
	}
	// Output:
}

// A process streams what it asks and what it is told; when it has died, another reads that and judges the log by it.
func ExampleHistory_Stream() {
	ctx, disk := context.Background(), crashfs.New()
	var file bytes.Buffer // in earnest a file that was opened with os.O_APPEND
	var h crashtest.History
	h.Stream(&file)
	engine, err := recovery.Open(ctx, "jobs", recovery.Options{WAL: wal.Options{FS: disk}})
	if err != nil {
		panic(err)
	}
	h.Opened(engine.Report().WAL.Epoch, engine.Report().WAL.LastSeq)
	if _, err := h.Do(ctx, engine, crashtest.Step{Type: wal.JobSubmitted, JobID: "order-1"}); err != nil {
		panic(err)
	}
	h.Begin(crashtest.Step{Type: wal.JobValidated, JobID: "order-1"}) // and here it is killed
	defer engine.Close()

	read, err := crashtest.ReadHistory(&file)
	if err != nil {
		panic(err)
	}
	for _, a := range read.Attempts() {
		fmt.Println(a.Steps, a.Outcome)
	}
	fmt.Println(crashtest.Recover(disk.Crash(crashfs.Everything), "jobs", read, recovery.Options{}))
	// Output:
	// [job_submitted order-1] ok
	// [job_validated order-1] unknown
	// <nil>
}
