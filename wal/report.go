package wal

import "time"

// A Report says what was found in a directory, and what was done about it.
type Report struct {
	Dir      string
	LogID    string // 32 hex digits; "" for a directory without a log
	Epoch    uint64 // of this opening; for Verify, Salvage and ReadOnly the newest that was found
	FirstSeq uint64 // of the oldest event there is; LastSeq+1 when there is none
	LastSeq  uint64
	Segments int
	Bytes    int64  // in all segments, before anything was cut
	Events   uint64 // intact events read: by Verify and Salvage all there are, by Open those of the newest segment
	// Carried counts the events below FirstSeq that compactions kept, in a file of their own: those that Verify and Salvage
	// found intact, and for Open as many as the log says there are. Checkpoints counts the files of that kind.
	Carried     uint64
	Checkpoints int
	Created     bool // Open made a new log
	Clean       bool // the last writer closed the log

	// Torn is what followed the last whole group of the newest segment without anything to say that it was ever
	// acknowledged. Open cuts it and keeps a copy; Verify and ReadOnly leave it where it is.
	Torn []Torn
	// Rewritten counts the bytes that no witness covered and that Open therefore wrote anew, and synced, before it
	// served them: after a failed sync the page cache may show what the disk does not have.
	Rewritten int64
	// Swept are the leftovers of interrupted work that Open removed: temporary files, dropped segments, and
	// carried files that no floor names.
	Swept []string
	// Damage is what Verify and Salvage found corrupt, the first 100; Damages counts them all.
	Damage  []*CorruptError
	Damages int
	// Lost counts the events that Salvage could not save and put an EventLost in the place of.
	Lost uint64
	Took time.Duration
}

// Torn is one range of bytes that recovery cut, or would cut.
type Torn struct {
	Path       string // the segment
	Offset     int64
	Bytes      int64
	Seq        uint64 // the first seq that is not delivered
	Reason     string
	Quarantine string // where the bytes are now; "" if they were left in place
}

// TornBytes adds up Torn.
func (r Report) TornBytes() int64 {
	var n int64
	for _, t := range r.Torn {
		n += t.Bytes
	}
	return n
}
