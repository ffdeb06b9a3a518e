// Package wal is a durable, append-only log of job events: what Append acknowledged is there after any crash, and
// whatever cannot be vouched for is never passed off as an event.
//
//	log, err := wal.Open(dir, wal.Options{})
//	seq, err := log.Append(ctx, wal.Event{Type: wal.JobSubmitted, JobID: "job-1", Capability: "shell"})
//	for e, err := range log.Events(1) { … }
//
// # Promises
//
// Of the disk it is assumed that a successful fsync means what it says; that unsynced writes may land in any order, in
// part, or not at all; that bytes of a sector which a write does not change survive it; that a rename is durable after
// the directory's fsync; and that bits rot.
//
//	W1  Seqs are dense, across segments and restarts, and never used again once acknowledged or shown.
//	W2  Append returns nil only when all its events are on stable storage, file and directory entries.
//	W3  Let k be the first seq that is not delivered as part of a whole group with right checksums. If any intact line,
//	    header, mark or checkpoint speaks of a durable seq ≥ k, that is corruption: Open refuses with segment, offset, seq and
//	    reason, and changes nothing. Otherwise it is a torn tail: copied to quarantine, cut, reported, and the log
//	    opens. So damage to the last group is told from a torn tail only as far as the newest witness that survives; a
//	    clean Close, or some idle milliseconds, leave one.
//	W4  After a failed sync the log has failed for good: every later Append returns ErrFailed with the first cause. A
//	    full disk is not that: the append fails, what it half wrote is taken back, and appends work again once there is
//	    room. Open writes anew, and syncs, what no witness covers, before it shows it: after a failed sync the page
//	    cache may hold what the disk does not.
//	W5  One writer per directory, across processes. ReadOnly readers need no lock and may follow a live writer.
//	W6  Nothing is shown to anyone before it is durable; what was shown stays.
//
// With SyncEvery and SyncNever, W2 and W6 hold for "written" in place of "durable"; rotation, Close, checkpoints and
// compactions sync all the same.
//
// # Files
//
//	DIR/LOCK                          the one writer's advisory lock
//	DIR/00000000000000000001.jsonl    a segment, named by the first seq in it
//	DIR/checkpoint-<seq>.jsonl        what a caller folded from the events up to seq; the two newest are kept
//	DIR/carried-<floor>.jsonl         the events below the floor that compactions kept
//	DIR/quarantine/                   every byte that Open ever cut, with where and why; never deleted by us
//
// A segment is JSON Lines: a header, then events and marks. One event, in the writer's order and spelling (on one line):
//
//	{"seq":42,"prev":40,"epoch":3,"ts":1715800000,"ns":123456789,"type":"job_completed","job_id":"abc123",
//	│                             │                                                                        │
//	└ the committer's             └ the caller's, down to the payload, encoded in the caller's goroutine   …
//
//	 "capability":"FileRead","output":{"bytes":12},"more":1,"durable":41,"crc":"9f3a01bc"}
//	                                               │        │            │
//	  events of this append that still follow, if any ┘     │            │
//	  the highest seq known to be on disk when this was written ┘        │
//	  CRC-32C over the segment's salt and every byte before ,"crc"       ┘
//
// The reader takes this form by a fast path and any other strict JSON with the same end by an ordinary one. Fields that
// it does not know it passes over. A line without seq is a mark:
//
//	segment  the header, first line: version, log (random id), salt (random, of this segment), prior (first seq of the
//	         segment before), first, epoch, ts, ns, floor (what lies below may be gone), carried, durable
//	opened   a writer begins: epoch, durable. Synced before it serves
//	durable  written, without a sync, when the log has been idle for some milliseconds: a witness for the last append
//	floor    what lies below may be gone: DropBefore, Compact. Synced before anything is removed; carried: as many events
//	         below it are kept in the carried file of that floor, and without it there is no such file
//	sealed   the segment is full: last, durable. Synced before the next one is made
//	closed   a clean Close: last, durable
//
// A segment is made under a temporary name, synced, renamed, and its directory synced, before a line goes in. The log
// goes on in the same segment only after a clean Close; after any other end, and after anything was cut or taken back,
// in a new one, since what a crash took from a file's end may come back. Newlines at the end of a segment are room for
// lines to come, and no damage; in front of a line they are damage. On ext4 and XFS the newest segment is filled with them
// ahead of the writer ([Options].Prefill), since a sync that rewrites blocks takes half the time of one that adds them.
//
// # Files beside the segments
//
// A checkpoint and a carried file are JSON Lines of the same kind, each with a salt of its own, written under a temporary
// name with a sync every 96 KiB, synced, renamed, and their directory synced. They are never changed afterwards. A
// checkpoint holds nothing but marks:
//
//	checkpoint  the header: version, log, salt, seq, event (the checksum of the event at seq, "" if that was gone), epoch, ts, ns
//	section     n (which line this is, the header being 0), name, version: what follows belongs to it
//	data        n, data (base64 of at most 48 KiB)
//	end         n, sections, bytes (of all data)
//
// It is all there and as it was written, or it is not used. Its header is a witness for W3: seq was durable when it was
// made. A carried file holds events:
//
//	carried     the header: version, log, salt, floor
//	            the lines of events below the floor, as they were but for their checksums, by their seqs, which have gaps
//	sealed      last, count
//
// Exactly the carried file that the highest floor names is used. Where it is missing, or its header is not right, Open
// refuses; its lines are checked when they are read.
//
// # What Open finds after a crash
//
//	C1   temporary segment, whole or not           swept
//	C2   new segment, directory entry not synced   empty or not there; made again
//	C3   directories made, not all synced          made and synced again
//	C4   torn tail copied, not cut                 the copy is found; cut
//	C5   torn tail cut, or not; suffix rewritten   the same bytes as before; done again
//	C6   old segment final, new one not there      made
//	C7   opened mark written, not synced           kept if whole, else cut
//	C8   group written, not synced                 kept if whole, else cut
//	C9   old segment sealed, new one not there     made
//	C10  floor durable, old segments still there   removed
//	C11  newlines ahead written or cut, not synced no damage; cut
//	C12  temporary checkpoint, whole or not        swept
//	C13  checkpoint, directory entry not synced    there or not; the older ones are there
//	C14  new checkpoint, older ones still there    all can be used; the next one removes them
//	C15  temporary carried file, whole or not      swept; the old floor and all above it are there
//	C16  new carried file, floor not durable       swept if no floor names it
//	C17  floor durable, old carried file there     removed
//
// # Locks
//
// Log.upkeep, of which one SaveCheckpoint or Compact at a time has the only place, comes first; then reader.mu; then Log.mu.
// Log.mu is held neither during I/O nor while yielding. Who commits is decided under Log.mu (leading); the committer alone
// writes and syncs segments, and syncs the directory. Who has upkeep writes and syncs a temporary file beside it, and asks
// it for the rest.
// places.mu, one a segment, is taken last, and held for a look at a list in memory.
package wal
