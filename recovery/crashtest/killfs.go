package crashtest

import (
	"github.com/jobwal/jobwal/recovery/crashtest/subject"
	"github.com/jobwal/jobwal/wal"
)

// Ledger is [subject.Ledger]: where a program says what it does to the world. A program that is shipped imports package
// subject, which drags nothing along; the names here are for programs that are tests themselves.
type (
	Ledger = subject.Ledger
	Effect = subject.Effect
)

// KillFS is [subject.KillFS]: it ends a program that [Certify] started where Certify chose, and is nothing otherwise.
func KillFS(base wal.FS) wal.FS { return subject.KillFS(base) }

// OpenLedger is [subject.OpenLedger].
func OpenLedger(path string) (*Ledger, error) { return subject.OpenLedger(path) }
