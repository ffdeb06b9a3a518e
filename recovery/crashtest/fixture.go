package crashtest

import (
	"context"
	"fmt"
	"io"
	"strings"

	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// Fixture makes a test of a bug that was met elsewhere: it reads a bundle, which [recovery.Engine.Export] wrote, puts its
// events into a log of their own on a new disk, in "jobs", and opens an engine on it, which the caller closes. The job is
// then as it was: interrupted, parked or held, with its attempts and steps. The test can go on from there, and crash the disk.
//
// Seqs are counted anew, and Prevs with them; each epoch is one opening. An event that could not be read there can't be
// written here: in its place is one of a type that nobody knows, which parks the job just so. Of opts, WAL.FS is not used.
// What is no bundle fails the test.
func Fixture(t rapid.TB, bundle io.Reader, opts recovery.Options) (*recovery.Engine, *crashfs.FS) {
	t.Helper()
	events, err := recovery.ReadBundle(bundle)
	if err != nil {
		t.Fatalf("crashtest: fixture: %v", err)
	}
	disk := crashfs.New()
	opts.WAL.FS = disk
	if err := writeFixture(disk, events); err != nil {
		t.Fatalf("crashtest: fixture: %v", err)
	}
	engine, err := recovery.Open(context.Background(), "jobs", opts)
	if err != nil {
		t.Fatalf("crashtest: fixture: %v", err)
	}
	return engine, disk
}

func writeFixture(disk wal.FS, events []wal.Event) error {
	places := make(map[uint64]uint64) // of each event, by the seq that it had
	for len(events) > 0 {
		n := 1
		for n < len(events) && events[n].Epoch == events[0].Epoch {
			n++
		}
		if err := writeEpoch(disk, events[:n], places); err != nil {
			return err
		}
		events = events[n:]
	}
	return nil
}

func writeEpoch(disk wal.FS, events []wal.Event, places map[uint64]uint64) (err error) {
	log, err := wal.Open("jobs", wal.Options{FS: disk})
	if err != nil {
		return err
	}
	defer func() {
		if closing := log.Close(); err == nil {
			err = closing
		}
	}()
	for _, e := range events {
		seq := e.Seq
		e.Seq, e.Prev, e.Epoch = 0, places[e.Prev], 0 // a Prev that was wrong is 0, and wrong again
		if e.Problem != "" {
			e = wal.Event{Type: notReadable, JobID: e.JobID, Prev: e.Prev, Time: e.Time, Error: strings.ToValidUTF8(e.Problem, "\uFFFD")}
		}
		if places[seq], err = log.Append(context.Background(), e); err != nil {
			return fmt.Errorf("seq %d: %w", seq, err)
		}
	}
	return nil
}

// notReadable stands in the place of what could not be read.
const notReadable wal.EventType = "unreadable"
