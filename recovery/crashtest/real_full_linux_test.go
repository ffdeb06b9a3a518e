package crashtest_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/jobwal/jobwal/recovery/crashtest"
	"github.com/jobwal/jobwal/recovery/crashtest/internal/realdisk"
	"github.com/jobwal/jobwal/wal"
)

// fullKinds are how small a file system can be: 4 MiB of ext4 have a journal, and blocks of 1 KiB; tmpfs counts pages,
// and needs no loop device. XFS is never smaller than 300 MiB.
var fullKinds = []string{"ext4", "tmpfs"}

const fullBytes = 4 << 20

// A fullLog is a log on a small disk, and what it acknowledged.
type fullLog struct {
	*testing.T
	disk  *realdisk.Disk
	opts  wal.Options
	log   *wal.Log
	acked []wal.Event
	full  int // appends refused
	size  int // of the payload of the next append
}

func newFullLog(t *testing.T, kind string, opts wal.Options) *fullLog {
	return &fullLog{T: t, disk: realdisk.New(t, kind, fullBytes), opts: opts}
}

func (f *fullLog) dir() string { return filepath.Join(f.disk.Dir(), "log") }

func (f *fullLog) open() {
	f.Helper()
	log, err := wal.Open(f.dir(), f.opts)
	if err != nil {
		f.Fatal(err)
	}
	f.log = log
	f.check()
}

// tryOpen opens the log, if there is room for that.
func (f *fullLog) tryOpen() {
	f.Helper()
	log, err := wal.Open(f.dir(), f.opts)
	if err != nil {
		f.wantNoSpace(err)
		return
	}
	f.log = log
	f.check()
	f.close()
}

func (f *fullLog) close() {
	f.Helper()
	if err := f.log.Close(); err != nil {
		f.Fatal(err)
	}
	found, err := wal.Verify(f.dir())
	if err != nil || found.LastSeq != uint64(len(f.acked)) || found.TornBytes() != 0 {
		f.Fatalf("Verify: %+v, %v", found, err)
	}
}

// fill appends until there is room for nothing more, not even a small event.
func (f *fullLog) fill() {
	f.Helper()
	for _, size := range []int{20_000, 1000, 1} {
		for f.append(3, size) {
		}
	}
}

// append tells whether there was room. That there was none is a definite no: nothing of it is there, reads go on, and so
// may appends.
func (f *fullLog) append(of, size int) bool {
	f.Helper()
	events := make([]wal.Event, of)
	for k := range events {
		f.size++
		events[k] = wal.Event{Type: wal.JobSubmitted, JobID: fmt.Sprintf("job-%d", f.size), Capability: "shell",
			Args: fmt.Appendf(nil, `"%0*d"`, size, f.size)}
	}
	first, err := f.log.Append(context.Background(), events...)
	if err != nil {
		f.wantNoSpace(err)
		f.full++
		f.check()
		return false
	}
	if first != uint64(len(f.acked)+1) {
		f.Fatalf("seq %d after %d", first, len(f.acked))
	}
	f.acked = append(f.acked, events...)
	return true
}

func (f *fullLog) wantNoSpace(err error) *wal.NoSpaceError {
	f.Helper()
	var full *wal.NoSpaceError
	if !errors.Is(err, wal.ErrNoSpace) || !errors.Is(err, unix.ENOSPC) || errors.Is(err, wal.ErrFailed) ||
		!errors.As(err, &full) || full.Need <= 0 || full.Path == "" {
		f.Fatalf("%#v: %v", err, err)
	}
	return full
}

// check reads all there is: what was acknowledged, and nothing else.
func (f *fullLog) check() {
	f.Helper()
	n := 0
	for e, err := range f.log.Events(1) {
		if err != nil {
			f.Fatal(err)
		}
		if n == len(f.acked) {
			f.Fatalf("seq %d was not acknowledged", e.Seq)
		}
		want := f.acked[n]
		n++
		want.Seq, want.Epoch, want.Time = uint64(n), e.Epoch, e.Time
		if err := sameEvent(e, want); err != nil {
			f.Fatal(err)
		}
	}
	if n != len(f.acked) {
		f.Fatalf("%d events are there, %d were acknowledged", n, len(f.acked))
	}
}

// ballast takes so many bytes of room.
func (f *fullLog) ballast(name string, bytes int) {
	f.Helper()
	f.must(os.WriteFile(filepath.Join(f.disk.Dir(), name), make([]byte, bytes), 0o644))
}

// rest takes all the room there is. ext4 sets room aside for what it may need to note where the bytes are, and gives it
// back when they are on the disk: so again, until a sync gives nothing back.
func (f *fullLog) rest() {
	f.Helper()
	file, err := os.Create(filepath.Join(f.disk.Dir(), "rest"))
	f.must(err)
	for took := true; took; f.must(file.Sync()) {
		for took = false; ; took = true {
			if _, err = file.Write(make([]byte, 512)); err != nil {
				break
			}
		}
		if !errors.Is(err, unix.ENOSPC) {
			f.Fatal(err)
		}
	}
	f.must(file.Close())
}

func (f *fullLog) free(name string) {
	f.Helper()
	f.must(os.Remove(filepath.Join(f.disk.Dir(), name)))
}

// F10 for real: a disk of 4 MiB is filled up, some of it is freed, and it is filled again, with the log open and across
// openings, with segments of all sizes.
func TestF10_real_full_disk(t *testing.T) {
	for _, kind := range fullKinds {
		for _, segment := range []int64{4 << 10, 64 << 10, 8 << 20}[:crashtest.Thin(3, 2)] {
			t.Run(fmt.Sprintf("%s/segment=%d", kind, segment), func(t *testing.T) {
				f := newFullLog(t, kind, wal.Options{SegmentBytes: segment})
				for i := range 6 {
					f.ballast(fmt.Sprint("ballast", i), 300<<10)
				}
				f.open()
				for i := range 6 {
					f.fill()
					if i%2 == 1 {
						f.close()
						f.tryOpen()
					}
					f.free(fmt.Sprint("ballast", i))
					if i%2 == 1 {
						f.open()
					}
					if !f.append(1, 1000) {
						t.Fatal("there is room again, and the append was refused")
					}
				}
				f.close()
				t.Logf("%d events, %d appends refused", len(f.acked), f.full)
			})
		}
	}
}

// F27 for real: no room at Open, for whatever it has to write. It says how much is lacking, and leaves everything as it
// was; with some room it opens.
func TestF27_real_full_disk_at_open(t *testing.T) {
	ends := map[string]func(f *fullLog){
		"closed": func(*fullLog) {},
		"torn":   func(f *fullLog) { f.tear(100_000) },
		"new":    func(f *fullLog) { f.acked = nil; f.must(os.RemoveAll(f.dir())) },
	}
	for _, kind := range fullKinds {
		for name, end := range ends {
			t.Run(kind+"/"+name, func(t *testing.T) {
				// Each Open makes a segment; no blocks that were filled ahead and cut are on their way back.
				f := newFullLog(t, kind, wal.Options{SegmentBytes: 1 << 10, Prefill: wal.PrefillOff})
				f.open()
				f.append(3, 1000)
				f.close()
				end(f)
				f.ballast("reserve", 400<<10)
				f.rest()
				before := f.files()
				log, err := wal.Open(f.dir(), f.opts)
				for tries := 0; err == nil && name == "closed" && tries < 10; tries++ {
					// ext4 gives blocks back some time after the journal is written. What came back is used up now.
					f.must(log.Close())
					f.must(os.Remove(filepath.Join(f.disk.Dir(), "rest")))
					f.rest()
					before = f.files()
					log, err = wal.Open(f.dir(), f.opts)
				}
				if err == nil {
					defer log.Close()
					f.Fatal("opened, on a full disk: ", log.Report())
				}
				full := f.wantNoSpace(err)
				if after := f.files(); !before.Equal(after) {
					t.Errorf("something was changed:\n%q\n%q", before, after)
				}
				if name == "torn" && full.Need < 100_000 {
					t.Errorf("the copy of 100000 bytes needs %d", full.Need)
				}
				f.free("reserve")
				f.open()
				if torn := f.log.Report().TornBytes(); (torn > 0) != (name == "torn") {
					t.Errorf("%d torn bytes", torn)
				}
				f.append(1, 1)
				f.close()
			})
		}
	}
}

// tear takes the mark of a clean end off the newest segment and puts part of a large event there, as a crash leaves it.
func (f *fullLog) tear(bytes int) {
	f.Helper()
	segments, err := filepath.Glob(filepath.Join(f.dir(), "*.jsonl"))
	f.must(err)
	path := segments[len(segments)-1]
	data, err := os.ReadFile(path)
	f.must(err)
	data = data[:strings.LastIndexByte(string(data[:len(data)-1]), '\n')+1]
	data = append(data, `{"seq":4,"`+strings.Repeat("x", bytes)...)
	f.must(os.WriteFile(path, data, 0o644))
}

func (f *fullLog) must(err error) {
	f.Helper()
	if err != nil {
		f.Fatal(err)
	}
}

// files is what is in the log's directory; nothing where there is none.
func (f *fullLog) files() crashtest.Image {
	f.Helper()
	found, err := crashtest.ReadImage(nil, f.dir())
	if !errors.Is(err, os.ErrNotExist) {
		f.must(err)
	}
	return found
}
