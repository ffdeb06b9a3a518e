package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/wal"
)

// showImport rebuilds the jobs of an ancestor's log in a log of ours, made for the purpose and removed afterwards.
func showImport(ctx context.Context, w io.Writer, path string) (err error) {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close() // only read
	dir, err := os.MkdirTemp("", "jobwal-import-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	t := newPrinter(w)
	t.title("Importing %s", path)
	events, complaints, err := importLog(ctx, t, f, dir)
	if err != nil {
		return err
	}
	engine, err := recovery.Open(ctx, dir, recovery.Options{})
	if err != nil {
		return err
	}
	defer engine.Close() // nothing was written
	t.note(fmt.Sprintf("%d events taken over, %d complaints", events, complaints))
	t.title("Jobs")
	t.imported(engine)
	return nil
}

// shownComplaints is how many complaints are printed; the rest is counted.
const shownComplaints = 10

func importLog(ctx context.Context, t *printer, r io.Reader, dir string) (events, complaints int, err error) {
	// The log is thrown away, so nothing has to survive a power cut.
	log, err := wal.Open(dir, wal.Options{Sync: wal.SyncNever})
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, log.Close()) }()
	for e, err := range wal.Import(r) {
		var complaint *wal.ImportError
		switch {
		case errors.As(err, &complaint):
			if complaints++; complaints <= shownComplaints {
				t.bad("line %d: %s", complaint.Line, complaint.Reason)
			}
			continue
		case err != nil:
			return events, complaints, err
		}
		if _, err := log.Append(ctx, e); err != nil {
			return events, complaints, err
		}
		events++
	}
	if complaints > shownComplaints {
		t.bad("… and %d more", complaints-shownComplaints)
	}
	return events, complaints, nil
}
