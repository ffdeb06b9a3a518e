package wal

// Verify, Salvage and Tail on any file system, for the tests outside the package. TailFS is told how much to read at first.
var (
	VerifyFS  = verify
	SalvageFS = salvage
	TailFS    = lastEvents
)
