package crashtest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/wal"
)

// A Flaw is one thing that a log may do wrong: the name of a [Saboteur], and a switch of [OpenSimple].
type Flaw string

// The flaws.
const (
	NoFsync             Flaw = "no fsync"
	NoDirectoryFsync    Flaw = "no directory fsync"
	AckFirst            Flaw = "ack first"
	RetryFsync          Flaw = "retry after failed fsync"
	AppendAfterTornTail Flaw = "append after a torn tail"
	RemoveFirst         Flaw = "remove first"
	RenameFirst         Flaw = "rename first"
	LooseChecksum       Flaw = "loose checksum"
	NoChecksum          Flaw = "no checksum"
	ReuseSeqs           Flaw = "seqs used again"
	SplitGroups         Flaw = "groups split"
	ShowFirst           Flaw = "show first"
	TrustTheCache       Flaw = "trust the cache"
	WriteInPlace        Flaw = "write in place"
	TakeNothingBack     Flaw = "take nothing back"
	NoLock              Flaw = "no lock"
)

// A Saboteur makes a log break a promise in the way that real logs have. A suite that passes with one of them in place
// does not test that promise. Each is wrong in its own way alone: without it, the same log and file system pass.
type Saboteur struct {
	Name Flaw
	Row  string // of docs/faults.md: what it makes the log get wrong
	Doc  string // what goes wrong, and who had it so
	// FS breaks package wal from below: put it around the file system in wal.Options.FS, outside of crashfs.Inject. nil
	// where a file system cannot. What looks at the log's lines knows package wal's format and no other.
	FS func(wal.FS) wal.FS
	// Log opens a [SimpleLog] with the flaw, for [recovery.OpenLog]. nil where SimpleLog has no such flaw to have.
	Log func(disk wal.FS, dir string) (recovery.Log, error)
}

// Saboteurs returns all there are, for the tests of a suite:
//
//	for _, s := range crashtest.Saboteurs() {
//		if s.FS == nil {
//			continue
//		}
//		_, failed := crashtest.Fails(func(t rapid.TB) { suite(t, wal.Options{FS: s.FS(disk)}) })
//		if !failed {
//			t.Errorf("nobody noticed: %s", s.Name)
//		}
//	}
//
// Which of them a suite can notice depends on what it does: "remove first" in package wal needs wal.Log.DropBefore
// or recovery.Engine.Compact, "rename first" a checkpoint,
// "retry after failed fsync" a schedule with an fsync that fails and lies, the checksums need damaged files.
func Saboteurs() []Saboteur {
	return []Saboteur{
		{NoFsync, "F14", "acknowledges what the page cache holds: every store whose sync is off by default",
			aroundFiles(func(f wal.File, _ string) wal.File { return unsyncedFile{f} }), simple(NoFsync)},
		{NoDirectoryFsync, "F7", "syncs a file, and not the entry that names it: etcd's log in 2016 (issue 6368)",
			func(base wal.FS) wal.FS { return unsyncedDirFS{base} }, simple(NoDirectoryFsync)},
		{AckFirst, "F8", "answers, and syncs later: Elasticsearch 1 synced its log every five seconds",
			aroundFiles(func(f wal.File, _ string) wal.File { return &lateSyncFile{File: f} }), simple(AckFirst)},
		{RetryFsync, "F8", "takes a second fsync's success for the first one's: PostgreSQL until 2018",
			aroundFiles(func(f wal.File, _ string) wal.File { return retryFile{f} }), simple(RetryFsync)},
		{AppendAfterTornTail, "F1", "goes on behind what a crash tore, and loses the next line: runtimo-core 0.1.0",
			nil, simple(AppendAfterTornTail)},
		{RemoveFirst, "F15", "removes the old before what takes its place is durable: what compaction is prone to",
			func(base wal.FS) wal.FS { return removeFirstFS{filesFS{base, holdFloor}} }, simple(RemoveFirst)},
		{RenameFirst, "F16", "gives a checkpoint its name before its bytes are on the disk: empty files, on ext4 in 2009",
			aroundFiles(func(f wal.File, name string) wal.File {
				if base := filepath.Base(name); strings.HasPrefix(base, "checkpoint-") || strings.HasPrefix(base, "carried-") {
					return unsyncedFile{f}
				}
				return f
			}), nil},
		{LooseChecksum, "F24", "reads the checksum as hex parsers do, without regard to case: a flipped bit passes",
			aroundFiles(lens(foldEnds)), simple(LooseChecksum)},
		{NoChecksum, "F3", "has checksums, and compares nothing with them",
			aroundFiles(lens(forgeSums)), simple(NoChecksum)},
		{ReuseSeqs, "F5", "numbers on from what the file holds, and gives a number twice: runtimo-core 0.1.0",
			nil, simple(ReuseSeqs)},
		{SplitGroups, "F1", "writes the events of one append one by one, and a crash leaves some of them",
			nil, simple(SplitGroups)},
		{ShowFirst, "F9", "shows what is not durable yet, and may never be: dirty reads", nil, simple(ShowFirst)},
		{TrustTheCache, "F9", "believes what it reads when it is opened again: the next power cut takes what was shown",
			aroundFiles(func(f wal.File, _ string) wal.File { return &lazyFile{File: f} }), simple(TrustTheCache)},
		{WriteInPlace, "F14", "truncates a file to write it anew: runtimo-core 0.1.0, and many that met ext4 in 2009",
			nil, simple(WriteInPlace)},
		{TakeNothingBack, "F10", "says that the disk is full, and leaves what it wrote to be found later",
			aroundFiles(func(f wal.File, _ string) wal.File { return uncutFile{f} }), nil},
		{NoLock, "F13", "lets a second writer in: runtimo-core 0.1.0",
			func(base wal.FS) wal.FS { return unlockedFS{base} }, simple(NoLock)},
	}
}

func simple(flaw Flaw) func(wal.FS, string) (recovery.Log, error) {
	return func(disk wal.FS, dir string) (recovery.Log, error) {
		l, err := OpenSimple(disk, dir, flaw)
		if err != nil {
			return nil, err // and no *SimpleLog in a recovery.Log that is not nil
		}
		return l, nil
	}
}

// Fails runs a suite and tells whether it failed, and with what words, while the test that calls it goes on. The suite
// runs in a goroutine of its own, since it may end by FailNow; a panic is a failure. A suite that skips has not failed.
//
// What has to run in a synctest bubble needs one around Fails; there a suite calls [Crashes.Run] in place of
// CrashEveryOp. Of a property that fails, rapid keeps a file, to try that first the next time: tests that call this are
// better run with -rapid.nofailfile.
func Fails(suite func(t rapid.TB)) (report string, failed bool) {
	r := recorded(suite)
	return r.text.String(), r.failed
}

func recorded(suite func(t rapid.TB)) *recorder {
	r, done := new(recorder), make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if p := recover(); p != nil {
				r.Errorf("panic: %v", p)
			}
		}()
		suite(r)
	}()
	<-done
	return r
}

// recorder is a rapid.TB that keeps what it is told. As with testing.T, several goroutines may tell it.
type recorder struct {
	mu      sync.Mutex // guards the fields below
	text    strings.Builder
	failed  bool
	skipped bool
}

func (r *recorder) Helper()      {}
func (r *recorder) Name() string { return "crashtest.Fails" }

func (r *recorder) Log(args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Fprintln(&r.text, args...)
}

func (r *recorder) Fail() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed = true
}

func (r *recorder) SkipNow() {
	r.mu.Lock()
	r.skipped = true
	r.mu.Unlock()
	runtime.Goexit()
}

func (r *recorder) Failed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failed
}

func (r *recorder) Logf(format string, args ...any)   { r.Log(fmt.Sprintf(format, args...)) }
func (r *recorder) Skip(args ...any)                  { r.Log(args...); r.SkipNow() }
func (r *recorder) Skipf(format string, args ...any)  { r.Logf(format, args...); r.SkipNow() }
func (r *recorder) Error(args ...any)                 { r.Log(args...); r.Fail() }
func (r *recorder) Errorf(format string, args ...any) { r.Logf(format, args...); r.Fail() }
func (r *recorder) Fatal(args ...any)                 { r.Log(args...); r.FailNow() }
func (r *recorder) Fatalf(format string, args ...any) { r.Logf(format, args...); r.FailNow() }
func (r *recorder) FailNow()                          { r.Fail(); runtime.Goexit() }

// filesFS puts something around every file that is opened.
type filesFS struct {
	wal.FS
	around func(f wal.File, name string) wal.File
}

func aroundFiles(around func(wal.File, string) wal.File) func(wal.FS) wal.FS {
	return func(base wal.FS) wal.FS { return filesFS{base, around} }
}

func (x filesFS) OpenFile(name string, flag int, perm fs.FileMode) (wal.File, error) {
	f, err := x.FS.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	return x.around(f, name), nil
}

type unsyncedFile struct{ wal.File }

func (unsyncedFile) Sync() error { return nil }

type unsyncedDirFS struct{ wal.FS }

func (unsyncedDirFS) SyncDir(string) error { return nil }

type unlockedFS struct{ wal.FS }

func (unlockedFS) Lock(string) (io.Closer, error) { return io.NopCloser(nil), nil }

type uncutFile struct{ wal.File }

func (uncutFile) Truncate(int64) error { return nil }

type retryFile struct{ wal.File }

func (f retryFile) Sync() error {
	if f.File.Sync() == nil {
		return nil
	}
	return f.File.Sync()
}

// lateSyncFile syncs when the file is next changed or closed.
type lateSyncFile struct {
	wal.File
	due bool
}

func (f *lateSyncFile) Sync() error {
	f.due = true
	return nil
}

func (f *lateSyncFile) catchUp() error {
	if !f.due {
		return nil
	}
	f.due = false
	return f.File.Sync()
}

func (f *lateSyncFile) WriteAt(p []byte, off int64) (int, error) {
	if err := f.catchUp(); err != nil {
		return 0, err
	}
	return f.File.WriteAt(p, off)
}

func (f *lateSyncFile) Truncate(size int64) error {
	return errors.Join(f.catchUp(), f.File.Truncate(size))
}

func (f *lateSyncFile) Close() error { return errors.Join(f.catchUp(), f.File.Close()) }

// lazyFile does nothing for a write that changes nothing, nor for a sync after no change: it takes what it reads for
// what the disk has.
type lazyFile struct {
	wal.File
	changed bool
}

func (f *lazyFile) WriteAt(p []byte, off int64) (int, error) {
	there := make([]byte, len(p))
	if n, _ := f.ReadAt(there, off); n == len(p) && bytes.Equal(there, p) {
		return n, nil
	}
	f.changed = true
	return f.File.WriteAt(p, off)
}

func (f *lazyFile) Truncate(size int64) error {
	if now, err := f.Size(); err == nil && now == size {
		return nil
	}
	f.changed = true
	return f.File.Truncate(size)
}

func (f *lazyFile) Sync() error {
	if !f.changed {
		return nil
	}
	f.changed = false
	return f.File.Sync()
}

// removeFirstFS makes removes durable at once, and the floor that they rely on only later.
type removeFirstFS struct{ wal.FS }

func (x removeFirstFS) Remove(name string) error {
	if err := x.FS.Remove(name); err != nil {
		return err
	}
	return x.SyncDir(filepath.Dir(name))
}

func holdFloor(f wal.File, _ string) wal.File { return &floorFile{File: f} }

// floorFile does not sync what was written last when that was package wal's floor mark.
type floorFile struct {
	wal.File
	floor bool
}

func (f *floorFile) WriteAt(p []byte, off int64) (int, error) {
	f.floor = bytes.HasPrefix(p, []byte(`{"mark":"floor"`))
	return f.File.WriteAt(p, off)
}

func (f *floorFile) Sync() error {
	if f.floor {
		return nil
	}
	return f.File.Sync()
}

// lensFile shows a segment's bytes otherwise than they are.
type lensFile struct {
	wal.File
	show func(whole []byte) // changes bytes in place
}

// lens is for small files: every read reads the whole file.
func lens(show func(whole []byte)) func(wal.File, string) wal.File {
	return func(f wal.File, name string) wal.File {
		if !strings.HasSuffix(name, ".jsonl") {
			return f
		}
		return lensFile{f, show}
	}
}

func (f lensFile) ReadAt(p []byte, off int64) (int, error) {
	whole, err := readAll(f.File)
	if err != nil {
		return 0, err
	}
	f.show(whole)
	return bytes.NewReader(whole).ReadAt(p, off)
}

// foldEnds shows the ends of lines, where the checksum stands, in lower case.
func foldEnds(whole []byte) {
	for line := range bytes.Lines(whole) {
		line = bytes.TrimSuffix(line, []byte("\n"))
		end := line[max(0, len(line)-sealBytes):]
		for i, c := range end {
			if 'A' <= c && c <= 'Z' {
				end[i] = c + 'a' - 'A'
			}
		}
	}
}

// forgeSums shows each line with the checksum that is right for what stands in it.
func forgeSums(whole []byte) {
	salt := Salt(whole)
	for line := range bytes.Lines(whole) {
		line = bytes.TrimSuffix(line, []byte("\n"))
		body := len(line) - sealBytes
		if body < 0 || !bytes.HasPrefix(line[body:], []byte(`,"crc":"`)) {
			continue
		}
		copy(line[body:], Seal(salt, string(line[:body]))[body:])
	}
}
