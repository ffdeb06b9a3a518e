package wal

import "iter"

// Verify, Salvage and Tail on any file system, for the tests outside the package. TailFS is told how much to read at first.
var (
	VerifyFS  = verify
	SalvageFS = salvage
	TailFS    = lastEvents
)

// ChainFrom is Chain with a first block of so many bytes.
func (l *Log) ChainFrom(seq uint64, first int64) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) { l.chain(seq, first, yield) }
}
