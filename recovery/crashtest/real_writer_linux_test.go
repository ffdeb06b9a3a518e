package crashtest_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/jobwal/jobwal/recovery/crashtest/internal/realdisk"
	"github.com/jobwal/jobwal/wal"
)

// What a test binary that a test started is to do in place of tests stands in its environment.
const (
	realWriterVariable   = "JOBWAL_TEST_REAL_WRITER"   // be a writer, in the round of this number
	realSabotageVariable = "JOBWAL_TEST_REAL_SABOTAGE" // be one of realSaboteurs
)

func init() {
	if round, err := strconv.Atoi(os.Getenv(realWriterVariable)); err == nil {
		writeUntilShutdown(realdisk.DirOf(3), round)
		os.Exit(0)
	}
}

// realOptions vary from round to round. With small segments nearly every append rotates, which syncs whatever the
// setting; with large ones hardly any.
func realOptions(round int) wal.Options {
	opts := wal.Options{SegmentBytes: []int64{64 << 10, 4 << 20}[round%2]}
	if realLazy(round) {
		opts.Sync = wal.SyncNever
	}
	return opts
}

// realLazy: in every third round the writer leaves syncing to the kernel. Then an ack promises nothing to this test; but
// there is always something on the way to the disk, and all else that must be is the same.
func realLazy(round int) bool { return round%3 == 2 }

// realGroup is the append of a number: its content follows from that alone.
func realGroup(number int) []wal.Event {
	of, pad := 1+number%3, number*7919%3001
	if number%4 == 1 {
		pad *= 150 // many pages: what tears, tears somewhere in the middle
	}
	events := make([]wal.Event, of)
	for k := range events {
		events[k] = wal.Event{Type: wal.JobSubmitted, JobID: fmt.Sprintf("job-%d-%d", number, k), Capability: "shell",
			Args: fmt.Appendf(nil, `{"number":%d,"k":%d,"pad":"%s"}`, number, k, strings.Repeat("x", pad/of))}
	}
	return events
}

// A realLine is one thing that a writer says on its standard output.
type realLine struct {
	What   string `json:"what"`  // open, begin, acked, unknown, failed, seen, shutdown, over, wrong
	Stamp  int64  `json:"stamp"` // in order of what happened
	Number int    `json:"number,omitempty"`
	Seq    uint64 `json:"seq,omitempty"` // of acked: the first; of open: the last
	Error  string `json:"error,omitempty"`
}

// A realWriter is a process that writes until the file system is gone. As the log's file system it makes the moments last
// in which a shutdown does most.
type realWriter struct {
	wal.FS
	writing chan struct{} // told of every write that is about to be made, if anybody listens

	mu    sync.Mutex // makes the order of stamps that of the lines
	stamp int64
	gone  atomic.Bool
}

// say is one write to a pipe, unbuffered: what was said was said.
func (w *realWriter) say(l realLine) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stamp++
	l.Stamp = w.stamp
	line, _ := json.Marshal(l) // numbers and strings
	_, _ = os.Stdout.Write(append(line, '\n'))
}

func writeUntilShutdown(root string, round int) {
	w := &realWriter{FS: wal.OS, writing: make(chan struct{})}
	if saboteur, ok := realSaboteurs[os.Getenv(realSabotageVariable)]; ok {
		w.FS = saboteur
	}
	var shutdown sync.WaitGroup
	shutdown.Go(func() { w.shutdownWhenTold(root) })
	opts := realOptions(round)
	opts.FS = w
	log, err := wal.Open(filepath.Join(root, realDir), opts)
	if err == nil {
		w.say(realLine{What: "open", Seq: log.LastSeq()})
		w.work(root, log, round)
	} else if !errors.Is(err, unix.EIO) {
		w.say(realLine{What: "wrong", Error: "Open: " + err.Error()})
		return
	}
	shutdown.Wait()
}

// shutdownWhenTold waits for a line, "how nanoseconds", and for the next write after it. The stamp is that of the moment
// before: what was acknowledged under a smaller one was acknowledged before the disk was gone.
func (w *realWriter) shutdownWhenTold(root string) {
	var how realdisk.Flush
	var after time.Duration
	if _, err := fmt.Fscanln(os.Stdin, &how, &after); err != nil {
		os.Exit(1) // the test is gone
	}
	<-w.writing
	for begun := time.Now(); time.Since(begun) < after; { // any instant is as good, and no sleep is that short
	}
	w.say(realLine{What: "shutdown"})
	if err := realdisk.Shutdown(root, how); err != nil {
		w.say(realLine{What: "wrong", Error: "shutdown: " + err.Error()})
	}
	w.gone.Store(true)
	w.say(realLine{What: "over"})
}

func (w *realWriter) work(root string, log *wal.Log, round int) {
	var callers, others sync.WaitGroup
	others.Go(func() { w.writeBack(root) })
	others.Go(func() {
		for e, err := range log.Follow(context.Background(), log.LastSeq()+1) {
			if err != nil {
				return
			}
			w.say(realLine{What: "seen", Seq: e.Seq})
		}
	})
	for c := range realCallers {
		callers.Go(func() {
			for number := round*1_000_000 + c*100_000; w.append1(log, number); number++ {
			}
		})
	}
	callers.Wait()
	_ = log.Close() // it has failed
	others.Wait()
}

const realCallers = 4

// append1 tells whether there is any use in going on.
func (w *realWriter) append1(log *wal.Log, number int) bool {
	w.say(realLine{What: "begin", Number: number})
	first, err := log.Append(context.Background(), realGroup(number)...)
	l := realLine{What: "acked", Number: number, Seq: first}
	switch {
	case errors.Is(err, wal.ErrFailed) && errors.Is(err, wal.ErrOutcomeUnknown):
		l.What = "unknown"
	case errors.Is(err, wal.ErrFailed):
		l.What = "failed"
	case err != nil:
		l.What, l.Error = "wrong", "Append: "+err.Error()
	}
	w.say(l)
	return err == nil
}

// writeBack makes happen often what may happen at any time: the kernel writes some pages of the newest segment to the
// disk, and another program's sync has the journal written, with the sizes of all files in it. So the disk has later
// pages without those before them, and sizes without what they cover.
func (w *realWriter) writeBack(root string) {
	neighbour, err := os.Create(filepath.Join(root, "neighbour"))
	for err == nil && !w.gone.Load() {
		segments, _ := filepath.Glob(filepath.Join(root, realDir, "*.jsonl"))
		if len(segments) == 0 {
			return // so the disk is gone
		}
		if f, err := os.Open(segments[len(segments)-1]); err == nil {
			for range 1 + rand.IntN(5) {
				from := rand.Int64N(256) * int64(os.Getpagesize())
				_ = unix.SyncFileRange(int(f.Fd()), from, rand.Int64N(1<<19), unix.SYNC_FILE_RANGE_WRITE)
			}
			_ = f.Close()
		}
		_, err = neighbour.WriteAt([]byte{'x'}, rand.Int64N(1<<20))
		err = errors.Join(err, neighbour.Sync())
	}
}

func (w *realWriter) OpenFile(name string, flag int, perm os.FileMode) (wal.File, error) {
	file, err := w.FS.OpenFile(name, flag, perm)
	return realFile{file, w.writing}, err
}

type realFile struct {
	wal.File
	writing chan<- struct{}
}

func (f realFile) WriteAt(b []byte, at int64) (n int, err error) {
	for err == nil && n < len(b) {
		select {
		case f.writing <- struct{}{}:
		default:
		}
		var m int
		m, err = f.File.WriteAt(b[n:min(n+32<<10, len(b))], at+int64(n))
		n += m
	}
	return n, err
}

// realSaboteurs are the oldest mistake: they say that they synced. One syncs nothing; the other a new segment's header and
// the directory, and then no line.
var realSaboteurs = map[string]seldomSynced{
	"no sync":         {FS: wal.OS},
	"no sync of data": {FS: wal.OS, syncs: 1},
}

type seldomSynced struct {
	wal.FS
	syncs int // of each file
}

func (s seldomSynced) OpenFile(name string, flag int, perm os.FileMode) (wal.File, error) {
	file, err := s.FS.OpenFile(name, flag, perm)
	return &seldomSyncedFile{file, s.syncs}, err
}

func (s seldomSynced) SyncDir(name string) error {
	if s.syncs == 0 {
		return nil
	}
	return s.FS.SyncDir(name)
}

type seldomSyncedFile struct {
	wal.File
	left int
}

func (f *seldomSyncedFile) Sync() error {
	if f.left == 0 {
		return nil
	}
	f.left--
	return f.File.Sync()
}
