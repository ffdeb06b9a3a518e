package crashtest

// A Relaxation names something that another kind of log need not do. Without any, a log does all that [recovery.Log] asks
// for, with dense seqs and one writer at a time besides. [TestLog] and [Check] each pass over those that are not theirs.
type Relaxation string

const (
	// SparseSeqs: between one append and the next, seqs may be left out, as by a replicated log that puts entries of its
	// own there. They rise all the same, those of one append are contiguous, since an engine counts on that, and no gap
	// may hide what was acknowledged or shown.
	SparseSeqs Relaxation = "sparse seqs"
	// SeveralWriters: the log may be open several times at once, each time under an epoch of its own that lives until it
	// is closed, so that epochs take turns; all see the events of all. Without it a second Open is refused with
	// wal.ErrLocked.
	SeveralWriters Relaxation = "several writers"
	// NoConflicts, of TestLog: a wrong Prev may go unnoticed, as long as the log has reached it: there is one writer, who
	// knows best.
	NoConflicts Relaxation = "no conflicts"
	// UnknownOutcomes, of TestLog: an append that Close or a crash meets may end with wal.ErrOutcomeUnknown. Without it
	// only nil and wal.ErrClosed will do: in Close there is nothing that could fail.
	UnknownOutcomes Relaxation = "unknown outcomes"
	// LostTail, of Check: what was acknowledged or shown may be lost in a crash, as with wal.SyncEvery and wal.SyncNever
	// when the machine dies. What survives is a prefix.
	LostTail Relaxation = "lost tail"
	// LateStart, of Check: the log's beginning may be gone, as after DropBefore, when nobody called [History.Dropped].
	// What lies before the first event that is there is not looked for.
	LateStart Relaxation = "late start"
)
