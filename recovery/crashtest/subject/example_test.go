package subject_test

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/jobwal/jobwal/recovery/crashtest/subject"
	"github.com/jobwal/jobwal/wal"
)

// What a program puts around what it does to the world. With "" in place of a path the ledger is there only where
// crashtest.Certify started the program, and everything below does nothing anywhere else.
func ExampleLedger() {
	dir, err := os.MkdirTemp("", "ledger")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "ledger")
	ledger, err := subject.OpenLedger(path)
	if err != nil {
		panic(err)
	}
	charge := subject.Effect{Job: "order-1", Capability: "charge", Irreversible: true}
	_ = ledger.Begin(charge) // the job's start is durable by now
	_ = ledger.Done(charge)  // the card is charged; now the job may be completed
	_ = ledger.Acked("order-1", wal.JobCompleted, 4)
	_ = ledger.Close()

	entries, cut, err := subject.ReadLedger(path)
	for _, e := range entries {
		fmt.Printf("%s %s, seq %d\n", e.Mark, e.Job, e.Seq)
	}
	fmt.Println(cut, err)
	// Output:
	// begin order-1, seq 0
	// done order-1, seq 0
	// acked order-1, seq 4
	// 0 <nil>
}

// Where nobody certifies, the file system is the one that was given.
func ExampleKillFS() {
	fmt.Println(subject.KillFS(wal.OS) == wal.OS)
	ledger, err := subject.OpenLedger("")
	fmt.Println(ledger == nil, err, ledger.Begin(subject.Effect{Job: "order-1"}))
	// Output:
	// true
	// true <nil> <nil>
}
