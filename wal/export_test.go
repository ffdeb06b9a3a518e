package wal

// Verify and Salvage on any file system, for the tests outside the package.
var (
	VerifyFS  = verify
	SalvageFS = salvage
)
