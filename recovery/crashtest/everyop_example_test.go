package crashtest_test

import (
	"fmt"
	"os"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/recovery/crashtest"
	"github.com/jobwal/jobwal/wal"
)

// A test of a program that keeps its jobs in a log. What was acknowledged is all that its ledger knows.
func ExampleCrashEveryOp() {
	var t *testing.T // the test's own

	type ledger struct{ acknowledged []string }
	workload := func(disk wal.FS, l *ledger) error {
		log, err := wal.Open("log", wal.Options{FS: disk})
		if err != nil {
			return err
		}
		defer log.Close()
		for _, id := range []string{"one", "two", "three"} {
			if _, err := log.Append(ctx, wal.Event{Type: wal.JobSubmitted, JobID: id}); err != nil {
				return err
			}
			l.acknowledged = append(l.acknowledged, id)
		}
		return nil
	}
	check := func(disk wal.FS, l *ledger) error {
		log, err := wal.Open("log", wal.Options{FS: disk})
		if err != nil {
			return err
		}
		defer log.Close()
		var found []string
		for e, err := range log.Events(1) {
			if err != nil {
				return err
			}
			found = append(found, e.JobID)
		}
		if n := len(l.acknowledged); len(found) < n || !slices.Equal(found[:n], l.acknowledged) {
			return fmt.Errorf("acknowledged %v, found %v", l.acknowledged, found)
		}
		return nil
	}
	crashtest.CrashEveryOp(t, workload, check)
}

// A program that replaces a file by writing another and renaming it, and has forgotten something: to sync the other
// before it takes the name. The directory gets ahead of the bytes.
func ExampleCrashes() {
	save := func(disk wal.FS, text string) error {
		f, err := disk.OpenFile("settings.new", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte(text), 0); err != nil {
			return err
		}
		if err := disk.Rename("settings.new", "settings"); err != nil {
			return err
		}
		return disk.SyncDir(".")
	}
	test := crashtest.Crashes[[]string]{ // the ledger: what was to be saved, the last of them maybe in vain
		Workload: func(disk wal.FS, asked *[]string) error {
			for _, text := range []string{"colour=red", "colour=blue"} {
				*asked = append(*asked, text)
				if err := save(disk, text); err != nil {
					return err
				}
			}
			return nil
		},
		Check: func(disk wal.FS, asked *[]string) error {
			if text := string(contents(disk, "settings")); text != "" && !slices.Contains(*asked, text) {
				return fmt.Errorf("the settings are %q", text)
			}
			return nil
		},
	}
	try(func() { test.Run(printer{}) })
	// Output:
	// crashtest: 8 operations, 4 crashes, 47 states, 11 distinct; 9 crashes of the recovery, 128 states, 1 distinct
	// crashtest: crash 4; zeros: the settings are "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	// the workload, and where the power goes:
	//	     1 create settings.new
	//	     2 write settings.new 0+10
	//	     3 rename settings.new settings
	//	>    4 syncdir .
	//	     5 create settings.new
	//	     6 write settings.new 0+11
	//	     7 rename settings.new settings
	// what zeros left:
	//	settings 10
	// the check, and what it changes:
	//	(no operations)
	// To run this again, alone: Replay(t, "crash 4; zeros") of a crashtest.Crashes with the same settings.
}

// printer is a test handle for examples.
type printer struct{ rapid.TB }

func (printer) Helper()                         {}
func (printer) Failed() bool                    { return false }
func (printer) Logf(format string, args ...any) { fmt.Printf(format+"\n", args...) }

func (p printer) Fatalf(format string, args ...any) {
	p.Logf(format, args...)
	panic(p)
}

func try(test func()) {
	defer func() { _ = recover().(printer) }()
	test()
}
