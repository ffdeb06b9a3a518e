package wal

import (
	"errors"
	"fmt"
	"path/filepath"
)

// The sentinels, for errors.Is. Where more is known than the kind, a struct of the same name carries it, for
// errors.As.
var (
	// ErrCorrupt: bytes that were acknowledged cannot be read. See [CorruptError].
	ErrCorrupt = errors.New("wal: corrupt")
	// ErrFailed: a sync failed, or what a failed write left behind could not be taken back. The log takes no more
	// appends for good: close it, find out what is wrong with the disk, and open it again. Reads go on.
	ErrFailed = errors.New("wal: the log has failed and takes no more appends; reads go on, reopen it once the disk is well")
	// ErrOutcomeUnknown comes with ErrFailed for what was in flight when the log failed: it may be there at the next
	// Open, or not.
	ErrOutcomeUnknown = errors.New("wal: outcome unknown until the log is opened again")
	// ErrLocked: another writer has the directory. See [LockedError].
	ErrLocked = errors.New("wal: directory locked by another writer")
	// ErrClosed: the log was closed. Nothing was written.
	ErrClosed = errors.New("wal: closed")
	// ErrReadOnly: an append, or anything else that writes, to a log that was opened with Options.ReadOnly.
	ErrReadOnly = errors.New("wal: opened read-only")
	// ErrTooLarge: an event, or the events of one append together, are larger than the log takes. See [TooLargeError].
	ErrTooLarge = errors.New("wal: too large")
	// ErrInvalid: something given by the caller is not what it has to be. See [InvalidError].
	ErrInvalid = errors.New("wal: invalid")
	// ErrVersion: a newer version of this library wrote the log. Nothing is wrong with it. See [VersionError].
	ErrVersion = errors.New("wal: log of a newer format")
	// ErrDropped: the event was removed by DropBefore or Compact. See [DroppedError].
	ErrDropped = errors.New("wal: dropped")
	// ErrNoSpace: the disk is full; nothing was changed. See [NoSpaceError].
	ErrNoSpace = errors.New("wal: no space")
)

// A CorruptError says where the log stops being what was acknowledged. Nothing was changed; [Salvage] copies what is
// intact into another directory.
type CorruptError struct {
	Path   string // the file
	Offset int64  // of the first byte that is not as it should be
	Seq    uint64 // the first event that cannot be delivered
	Reason string
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("wal: %s: offset %d (seq %d): %s; wal.Salvage copies what is intact",
		filepath.Base(e.Path), e.Offset, e.Seq, e.Reason)
}

// Is makes errors.Is(err, ErrCorrupt) true.
func (e *CorruptError) Is(target error) bool { return target == ErrCorrupt }

// An InvalidError says which field was refused, and why. Nothing was written.
type InvalidError struct {
	Field  string
	Reason string
}

func (e *InvalidError) Error() string { return "wal: invalid " + e.Field + ": " + e.Reason }

// Is makes errors.Is(err, ErrInvalid) true.
func (e *InvalidError) Is(target error) bool { return target == ErrInvalid }

func invalid(field, format string, args ...any) error {
	return &InvalidError{Field: field, Reason: fmt.Sprintf(format, args...)}
}

// A TooLargeError says what was larger than the log takes. Nothing was written.
type TooLargeError struct {
	What  string // "event 3", or "append"
	Size  int64  // bytes, as it would stand in the log
	Limit int64
}

func (e *TooLargeError) Error() string {
	return fmt.Sprintf("wal: %s takes %d bytes, the limit is %d", e.What, e.Size, e.Limit)
}

// Is makes errors.Is(err, ErrTooLarge) true.
func (e *TooLargeError) Is(target error) bool { return target == ErrTooLarge }

// A LockedError says who holds the directory. Where that process is dead, as PID goes, one that it started has inherited the lock, and
// has kept it for two seconds, in which Open waited.
type LockedError struct {
	Dir string
	PID int // 0 when it is not known
}

func (e *LockedError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("wal: %s: locked by another writer", e.Dir)
	}
	return fmt.Sprintf("wal: %s: locked by another writer (pid %d)", e.Dir, e.PID)
}

// Is makes errors.Is(err, ErrLocked) true.
func (e *LockedError) Is(target error) bool { return target == ErrLocked }

// A VersionError says which format was met. Nothing was changed.
type VersionError struct {
	Path         string
	Found, Known uint64
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("wal: %s: format %d, this version knows %d; use a newer jobwal", filepath.Base(e.Path), e.Found, e.Known)
}

// Is makes errors.Is(err, ErrVersion) true.
func (e *VersionError) Is(target error) bool { return target == ErrVersion }

// A DroppedError says which event was asked for, and the first that is still there.
type DroppedError struct{ Seq, First uint64 }

func (e *DroppedError) Error() string {
	return fmt.Sprintf("wal: seq %d was dropped, the log starts at seq %d", e.Seq, e.First)
}

// Is makes errors.Is(err, ErrDropped) true.
func (e *DroppedError) Is(target error) bool { return target == ErrDropped }

// A NoSpaceError says what there was no room for. What had been written of it was taken back, the log is as it was,
// and the call works once there is room.
type NoSpaceError struct {
	Path string
	Need int64 // bytes
	Err  error // ENOSPC, EDQUOT or EFBIG, as the system gave it
}

func (e *NoSpaceError) Error() string {
	return fmt.Sprintf("wal: %s: no room for %d bytes: %v", filepath.Base(e.Path), e.Need, e.Err)
}

// Is makes errors.Is(err, ErrNoSpace) true.
func (e *NoSpaceError) Is(target error) bool { return target == ErrNoSpace }

func (e *NoSpaceError) Unwrap() error { return e.Err }

// failure is the sticky error: ErrFailed and the first cause, for every waiter and every later call.
type failure struct {
	cause   error
	unknown bool // it was in flight
}

func (e *failure) Error() string {
	s := ErrFailed.Error() + ": " + e.cause.Error()
	if e.unknown {
		s += " (" + ErrOutcomeUnknown.Error() + ")"
	}
	return s
}

func (e *failure) Is(target error) bool {
	return target == ErrFailed || e.unknown && target == ErrOutcomeUnknown
}

func (e *failure) Unwrap() error { return e.cause }
