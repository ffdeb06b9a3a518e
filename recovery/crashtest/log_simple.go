package crashtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/wal"
)

// A SimpleLog is a [recovery.Log] in one file, as simple as one can be that keeps every promise but speed: it is there
// to be read, to show that an engine runs on another log than package wal's, and to be broken by a [Flaw]. It holds all
// events in memory, writes them all anew when it is opened, and syncs each append by itself. It is safe for concurrent
// use.
//
// Its file is DIR/log.jsonl. Each line is a checksum, a space and a JSON object, and one append is one line, so a group
// cannot be torn:
//
//	3f0a11c2 {"Log":"…","Salt":"…"}                 the file, made anew by each opening
//	9b1cd0f7 {"Events":[{"Seq":1,…},{"Seq":2,…}]}   one append
//	07d35a90 {"Epoch":3}                            all above is durable, and the opening of this epoch serves
//	e2b4419e {"Closed":true}                        all above is durable, and nothing follows
//
// The checksum is CRC-32C of the salt and the object, so that what lies in the file's blocks from their former use is
// never taken for a line. A line is written when the one before it was synced: so a bad line with an intact one behind
// it is corruption, and with none it is a torn tail, which is dropped; no copy is kept.
type SimpleLog struct {
	disk  wal.FS
	dir   string
	flaws []Flaw
	lock  io.Closer
	id    string
	epoch uint64

	writing sync.Mutex // held while the file is written; guards the fields below, and is taken before mu
	file    wal.File
	size    int64
	salt    []byte
	next    uint64
	heads   map[string]uint64 // by job, its newest event
	failed  error
	late    bool // of AckFirst: the last append was not synced yet

	mu      sync.Mutex // guards the fields below
	shown   []wal.Event
	changed chan struct{} // closed when shown grows, or the log closes
	closed  bool
}

var _ recovery.Log = (*SimpleLog)(nil)

// OpenSimple opens the log in dir, and makes one if there is none. Errors: [wal.ErrCorrupt], [wal.ErrLocked], and the
// file system's. With flaws, it and the log do wrong what those say; without any, nothing.
func OpenSimple(disk wal.FS, dir string, flaws ...Flaw) (*SimpleLog, error) {
	l := &SimpleLog{
		disk: disk, dir: dir, flaws: flaws, next: 1, heads: make(map[string]uint64), changed: make(chan struct{}),
	}
	if err := disk.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, err
	}
	// A directory that is there may have been made by a process that died before it synced it.
	if err := l.syncDir(filepath.Dir(dir)); err != nil {
		return nil, err
	}
	if !l.has(NoLock) {
		lock, err := disk.Lock(dir)
		if err != nil {
			return nil, err
		}
		l.lock = lock
	}
	if err := l.recover(); err != nil {
		return nil, errors.Join(fmt.Errorf("crashtest: simple log: %w", err), l.unlock())
	}
	return l, nil
}

func (l *SimpleLog) has(flaw Flaw) bool { return slices.Contains(l.flaws, flaw) }

func (l *SimpleLog) path() string { return filepath.Join(l.dir, "log.jsonl") }

// recover reads the file, and writes what it holds into a new one before anyone is shown any of it: of the old one's
// end nobody knows whether it is on stable storage, and a sync that succeeds now would prove nothing.
func (l *SimpleLog) recover() error {
	var found simpleFile
	data, err := readFile(l.disk, l.path())
	if err == nil {
		found, err = l.parse(data)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	l.epoch = found.epoch + 1
	if len(data) > 0 && (found.torn && l.has(AppendAfterTornTail) || !found.torn && l.has(TrustTheCache)) {
		err = l.goOn(int64(len(data)))
	} else {
		err = l.startFile(found.groups)
	}
	if err != nil {
		return err
	}
	for _, group := range found.groups {
		l.show(group)
	}
	if l.has(ReuseSeqs) {
		l.next = uint64(len(found.groups)) + 1
	}
	return nil
}

// goOn is the flaw of going on in the old file.
func (l *SimpleLog) goOn(size int64) (err error) {
	l.file, err = l.disk.OpenFile(l.path(), os.O_RDWR, 0)
	l.size = size
	return err
}

// startFile makes the new file: written and synced under another name, renamed, the directory synced.
func (l *SimpleLog) startFile(groups [][]wal.Event) (err error) {
	temp := l.path() + ".tmp"
	if l.has(WriteInPlace) {
		temp = l.path()
	}
	if l.file, err = l.disk.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.file.Close())
		}
	}()
	if err := l.fill(groups); err != nil {
		return err
	}
	if l.has(RemoveFirst) {
		if err := l.disk.Remove(l.path()); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := l.syncDir(l.dir); err != nil {
			return err
		}
	}
	if temp != l.path() {
		if err := l.disk.Rename(temp, l.path()); err != nil {
			return err
		}
	}
	return l.syncDir(l.dir)
}

func (l *SimpleLog) fill(groups [][]wal.Event) error {
	if l.id == "" {
		l.id = randomHex()
	}
	l.salt = []byte(randomHex())
	lines := []simpleLine{{Log: l.id, Salt: string(l.salt)}}
	for _, group := range groups {
		lines = append(lines, simpleLine{Events: toSimple(group)})
	}
	var all []byte
	for _, line := range append(lines, simpleLine{Epoch: l.epoch}) {
		text, err := l.encode(line)
		if err != nil {
			return err
		}
		all = append(all, text...)
	}
	if err := l.write(all); err != nil {
		return err
	}
	return l.sync()
}

// write puts bytes at the file's end.
func (l *SimpleLog) write(b []byte) error {
	n, err := l.file.WriteAt(b, l.size)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	l.size += int64(n)
	return err
}

func (l *SimpleLog) sync() error {
	if l.has(NoFsync) {
		return nil
	}
	err := l.file.Sync()
	if err != nil && l.has(RetryFsync) {
		err = l.file.Sync()
	}
	return err
}

func (l *SimpleLog) syncDir(name string) error {
	if l.has(NoDirectoryFsync) {
		return nil
	}
	return l.disk.SyncDir(name)
}

// Append: see [recovery.Log]. Before anything is written: the errors of [wal.Prepare], [recovery.ErrConflict],
// [wal.ErrClosed], ctx's. [wal.ErrFailed] from the file's first error on, with [wal.ErrOutcomeUnknown] for the append
// that met it.
func (l *SimpleLog) Append(ctx context.Context, events ...wal.Event) (first uint64, err error) {
	l.writing.Lock()
	defer l.writing.Unlock()
	if err := l.readable(ctx); err != nil {
		return 0, err
	}
	if l.failed != nil {
		return 0, l.failed
	}
	group, err := l.place(events)
	if err != nil {
		return 0, err
	}
	if l.has(ShowFirst) {
		l.show(group)
	}
	if err := l.put(group); err != nil {
		// Whether the file holds the line, no one can tell before it is opened again: nothing may go behind it.
		l.failed = fmt.Errorf("%w: %w", wal.ErrFailed, err)
		return 0, fmt.Errorf("%w: %w", wal.ErrOutcomeUnknown, l.failed)
	}
	if !l.has(ShowFirst) {
		l.show(group)
	}
	return group[0].Seq, nil
}

// place gives events their places in the log. What it returns shares nothing with the caller's.
func (l *SimpleLog) place(events []wal.Event) ([]wal.Event, error) {
	group, err := wal.Prepare(wal.Options{}, events...)
	if err != nil {
		return nil, err
	}
	ours := make(map[string]uint64)
	for i := range group {
		e := &group[i]
		e.Seq, e.Epoch = l.next+uint64(i), l.epoch
		if e.JobID == "" {
			continue
		}
		prev, moved := ours[e.JobID]
		switch {
		case moved:
			e.Prev = prev
		case e.Prev != l.heads[e.JobID]:
			newest := l.heads[e.JobID]
			return nil, fmt.Errorf("%w %q: it is at seq %d, not %d", recovery.ErrConflict, e.JobID, newest, e.Prev)
		}
		ours[e.JobID] = e.Seq
	}
	return group, nil
}

// put makes a group durable.
func (l *SimpleLog) put(group []wal.Event) error {
	if l.late {
		if err := l.sync(); err != nil {
			return err
		}
	}
	lines := []simpleLine{{Events: toSimple(group)}}
	if l.has(SplitGroups) {
		lines = nil
		for _, e := range group {
			lines = append(lines, simpleLine{Events: []simpleEvent{simpleEvent(e)}})
		}
	}
	for _, line := range lines {
		text, err := l.encode(line)
		if err == nil {
			err = l.write(text)
		}
		if err != nil {
			return err
		}
	}
	if l.late = l.has(AckFirst); l.late {
		return nil
	}
	return l.sync()
}

// show lets everyone see a group.
func (l *SimpleLog) show(group []wal.Event) {
	for _, e := range group {
		l.heads[e.JobID] = e.Seq
		l.next = e.Seq + 1
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.shown = append(l.shown, group...)
	close(l.changed)
	l.changed = make(chan struct{})
}

// now returns what is shown, and what tells that there is more, or that the log is closed.
func (l *SimpleLog) now() (shown []wal.Event, changed <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.shown, l.changed
}

// readable returns why the log cannot be read, if it cannot.
func (l *SimpleLog) readable(ctx context.Context) error {
	if ctx == nil {
		return &wal.InvalidError{Field: "context", Reason: "nil"}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return wal.ErrClosed
	}
	return ctx.Err()
}

// Events: see [recovery.Log]. It may be used after Close no more: [wal.ErrClosed].
func (l *SimpleLog) Events(ctx context.Context, from uint64) iter.Seq2[wal.Event, error] {
	last := l.LastSeq()
	return func(yield func(wal.Event, error) bool) {
		if err := l.readable(ctx); err != nil {
			yield(wal.Event{}, err)
			return
		}
		for seq := max(1, from); seq <= last; seq++ {
			if e, err := l.At(ctx, seq); !yield(e, err) || err != nil {
				return
			}
		}
	}
}

// Follow: see [recovery.Log]. It ends with ctx's error or [wal.ErrClosed].
func (l *SimpleLog) Follow(ctx context.Context, from uint64) iter.Seq2[wal.Event, error] {
	return func(yield func(wal.Event, error) bool) {
		for seq := max(1, from); ; {
			shown, changed := l.now()
			for ; seq <= uint64(len(shown)); seq++ {
				if e, err := l.At(ctx, seq); !yield(e, err) || err != nil {
					return
				}
			}
			if err := l.wait(ctx, changed); err != nil {
				yield(wal.Event{}, err)
				return
			}
		}
	}
}

func (l *SimpleLog) wait(ctx context.Context, changed <-chan struct{}) error {
	if err := l.readable(ctx); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-changed:
		return nil
	}
}

// At: see [recovery.Log]. [wal.ErrInvalid]: the log has not reached seq.
func (l *SimpleLog) At(ctx context.Context, seq uint64) (wal.Event, error) {
	if err := l.readable(ctx); err != nil {
		return wal.Event{}, err
	}
	shown, _ := l.now()
	if seq == 0 || seq > uint64(len(shown)) {
		reason := fmt.Sprintf("%d; the log ends at seq %d", seq, len(shown))
		return wal.Event{}, &wal.InvalidError{Field: "seq", Reason: reason}
	}
	return copied(shown[seq-1]), nil
}

// ID: see [recovery.Log].
func (l *SimpleLog) ID() string { return l.id }

// FirstSeq is 1: nothing is ever dropped.
func (l *SimpleLog) FirstSeq() uint64 { return 1 }

// LastSeq is the seq of the newest event, 0 for an empty log.
func (l *SimpleLog) LastSeq() uint64 {
	shown, _ := l.now()
	return uint64(len(shown))
}

// Epoch is the number of this opening, from 1.
func (l *SimpleLog) Epoch() uint64 { return l.epoch }

// Live: a directory has one writer, so every epoch but this one has ended.
func (l *SimpleLog) Live(epoch uint64) bool { return epoch == l.epoch }

// Close waits for the append under way, marks a clean end and gives the lock back. Its error is that of a log that had
// failed, or of closing it. Closing again does nothing.
func (l *SimpleLog) Close() error {
	l.writing.Lock()
	defer l.writing.Unlock()
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	close(l.changed)
	l.changed = make(chan struct{})
	l.mu.Unlock()
	err := l.failed
	if err == nil {
		err = l.markClosed()
	}
	return errors.Join(err, l.file.Close(), l.unlock())
}

func (l *SimpleLog) markClosed() error {
	text, err := l.encode(simpleLine{Closed: true})
	if err == nil {
		err = l.write(text)
	}
	if err != nil {
		return err
	}
	return l.sync()
}

func (l *SimpleLog) unlock() error {
	if l.lock == nil {
		return nil
	}
	return l.lock.Close()
}
