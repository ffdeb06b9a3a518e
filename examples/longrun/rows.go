package main

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"
)

// A row is a sample with what the parent knows of it.
type row struct {
	at   time.Duration // since the beginning
	jobs int64         // of all lives
	rate float64       // jobs a second since the row before, or since the life began
	sample
	opened *opening // in the row that ends a life
}

// columns are those of the CSV file. The last five are empty but in the row that ends a life.
var columns = []string{"seconds", "jobs", "jobs_per_s", "heap_bytes", "resident_bytes", "disk_bytes", "remembered",
	"unfinished", "first_seq", "last_seq", "checkpoint", "open_s", "open_low_s", "open_high_s", "replayed", "interrupted"}

func (r row) fields() []string {
	fields := []string{seconds(r.at), fmt.Sprint(r.jobs), strconv.FormatFloat(r.rate, 'f', 0, 64), fmt.Sprint(r.Heap),
		fmt.Sprint(r.Resident), fmt.Sprint(r.Disk), fmt.Sprint(r.Remembered), fmt.Sprint(r.Unfinished),
		fmt.Sprint(r.FirstSeq), fmt.Sprint(r.LastSeq), fmt.Sprint(r.Checkpoint)}
	o := r.opened
	if o == nil {
		return append(fields, "", "", "", "", "")
	}
	return append(fields, seconds(o.took), seconds(o.low), seconds(o.high), fmt.Sprint(o.replayed), fmt.Sprint(o.interrupted))
}

func seconds(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', 4, 64) }

// A recorder prints rows, writes them to a file, and keeps them.
type recorder struct {
	w       io.Writer
	file    *os.File // nil: none
	csv     *csv.Writer
	every   time.Duration
	started time.Time
	before  int64 // jobs of the lives before this one
	begun   time.Time
	last    sample    // the newest of this life
	lastAt  time.Time // when it came
	rows    []row
}

func newRecorder(w io.Writer, s settings) (r *recorder, err error) {
	r = &recorder{w: w, every: s.Interval, started: time.Now(), csv: csv.NewWriter(io.Discard)}
	if s.CSV != "" {
		if r.file, err = os.Create(s.CSV); err != nil {
			return nil, err
		}
		r.csv = csv.NewWriter(r.file)
	}
	return r, r.write(columns)
}

func (r *recorder) write(fields []string) error {
	err := r.csv.Write(fields)
	r.csv.Flush()
	return errors.Join(err, r.csv.Error())
}

func (r *recorder) close() error {
	if r.file == nil {
		return nil
	}
	return r.file.Close()
}

func (r *recorder) begin() {
	r.begun = time.Now()
	r.last, r.lastAt = sample{}, r.begun
}

// take makes a row of a sample when it is time for one.
func (r *recorder) take(now sample) error {
	r.last, r.lastAt = now, time.Now()
	if r.lastAt.Sub(r.started) < r.newest().at+r.every {
		return nil
	}
	return r.add(nil)
}

func (r *recorder) newest() row {
	if len(r.rows) == 0 {
		return row{}
	}
	return r.rows[len(r.rows)-1]
}

// reopened ends a life with a row of its last sample. The few jobs that came between that and its kill are not counted.
func (r *recorder) reopened(o opening) error {
	err := r.add(&o)
	r.before += r.last.Jobs
	fmt.Fprintf(r.w, "killed (SIGKILL), and %s\n", o)
	return err
}

func (o opening) String() string {
	short := func(d time.Duration) string { return d.Round(100 * time.Microsecond).String() }
	return fmt.Sprintf("opened in %s (of %d: %s to %s), %d events replayed, %d jobs interrupted",
		short(o.took), reopenings, short(o.low), short(o.high), o.replayed, o.interrupted)
}

func (r *recorder) add(o *opening) error {
	before := r.newest()
	next := row{at: r.lastAt.Sub(r.started), jobs: r.before + r.last.Jobs, sample: r.last, opened: o}
	if took := next.at - max(before.at, r.begun.Sub(r.started)); took > 0 {
		next.rate = float64(next.jobs-before.jobs) / took.Seconds()
	}
	if len(r.rows) == 0 || before.opened != nil {
		fmt.Fprintln(r.w, head)
	}
	r.rows = append(r.rows, next)
	fmt.Fprintln(r.w, next)
	return r.write(next.fields())
}

const head = "  seconds      jobs   jobs/s     heap  resident     disk  remembered  unfinished   first seq  checkpoint"

func (r row) String() string {
	return fmt.Sprintf("%9.1f %9d %8.0f %5.1f MB  %5.1f MB %5.1f MB %11d %11d %11d %11d", r.at.Seconds(), r.jobs, r.rate,
		mb(r.Heap), mb(r.Resident), mb(uint64(r.Disk)), r.Remembered, r.Unfinished, r.FirstSeq, r.Checkpoint)
}

func mb(bytes uint64) float64 { return float64(bytes) / 1e6 }
