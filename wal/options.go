package wal

import (
	"log/slog"
	"time"
)

// Sync says when an append is put on stable storage.
type Sync time.Duration

const (
	// SyncAlways, the default: Append returns when its events are on stable storage.
	SyncAlways Sync = 0
	// SyncNever leaves syncing to the operating system. Append returns when its events are written; a process that is
	// killed loses nothing, a power cut or a kernel crash may lose everything since the last rotation or Close.
	SyncNever Sync = -1
)

// SyncEvery syncs at most d after an append that was not synced yet. Append returns when its events are written; a
// process that is killed loses nothing, a power cut or a kernel crash may lose what was appended in the last d, and
// the time of one sync. A d of zero or less is SyncAlways.
func SyncEvery(d time.Duration) Sync {
	if d <= 0 {
		return SyncAlways
	}
	return Sync(d)
}

// What Options{} means, and how far it can be changed.
const (
	DefaultSegmentBytes  = 64 << 20
	MinSegmentBytes      = 1 << 10
	DefaultMaxEventBytes = 32 << 20
	// MaxLineBytes is the format's own limit for one line, and for the lines of one append together: no reader holds
	// more of a file than this at once, whatever the file says.
	MaxLineBytes = 64 << 20
)

// Options are the settings of one opening. The zero value is the safest.
type Options struct {
	// SegmentBytes: an append that would make the newest segment larger goes to a new one. Default 64 MiB, at least
	// 1 KiB. An append larger than this has a segment to itself.
	SegmentBytes int64
	// MaxEventBytes: the largest event that Append takes, in bytes as it stands in the log. Default 32 MiB, at most
	// MaxLineBytes less what a line has around an event. Larger events already in the log are read all the same.
	MaxEventBytes int
	// MinSeq: Open refuses, with ErrCorrupt, a log whose last seq is smaller. For callers that remember elsewhere how
	// far the log reached: it tells a log that lost its end in silence. Default 0, which any log satisfies.
	MinSeq uint64
	// Sync: when an append is durable. Default SyncAlways. The others lose acknowledged events in a power cut, and
	// hold promises W2 and W6 for "written" in place of "durable".
	Sync Sync
	// ReadOnly: take no lock and write nothing. It may stand beside a live writer in this or another process, and sees
	// what the log itself says is durable: of a log whose writer died, the last append may be missing until a writer
	// has opened it again.
	ReadOnly bool
	// Inspect, if set, is called by Open once the log is locked and found sound as far as Open reads it, and before
	// anything is changed: its error is Open's, and leaves the directory as it was. It is for callers who read the whole
	// log anyway, and for whom damage in an old segment is a reason not to begin. The log that it gets is read-only,
	// shows what is known to be durable (of the newest segment the last append may be missing), does not grow, and is
	// closed when Inspect returns. Not called for a new log, nor with ReadOnly.
	Inspect func(*Log) error
	// Prefill: fill the newest segment ahead of the writer with newlines, so that a sync rewrites blocks that exist, which
	// halves its time on some file systems. The log takes at most twice its size that way, and no more than 192 KiB beyond
	// it; Close and rotation cut it to size. Default PrefillAuto: on Linux on ext4 and XFS, unless Sync is SyncNever.
	Prefill Prefill
	// FS: the file system. Default OS.
	FS FS
	// Logger gets what Open had to repair, and what made the log fail: what nobody may be waiting to be told. Default:
	// none.
	Logger *slog.Logger
	// Now: the clock for events without a time. Default time.Now.
	Now func() time.Time
}

// maxEnvelope is the most that a line has around an event's own fields: names, numbers, checksum, newline.
const maxEnvelope = 256

func (o Options) withDefaults() (Options, error) {
	if o.SegmentBytes == 0 {
		o.SegmentBytes = DefaultSegmentBytes
	}
	if o.MaxEventBytes == 0 {
		o.MaxEventBytes = DefaultMaxEventBytes
	}
	if o.FS == nil {
		o.FS = OS
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	switch {
	case o.SegmentBytes < MinSegmentBytes:
		return o, invalid("Options.SegmentBytes", "%d, the least is %d", o.SegmentBytes, int64(MinSegmentBytes))
	case o.MaxEventBytes < maxEnvelope || o.MaxEventBytes > MaxLineBytes-maxEnvelope:
		return o, invalid("Options.MaxEventBytes", "%d, outside %d to %d", o.MaxEventBytes, maxEnvelope, MaxLineBytes-maxEnvelope)
	case o.Sync < SyncNever:
		return o, invalid("Options.Sync", "%d; use SyncAlways, SyncEvery or SyncNever", int64(o.Sync))
	}
	return o, nil
}
