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
	rate float64       // jobs a second since the row before; 0 in the first of a life
	sample
}

// columns are those of the CSV file. The last three are empty but in a life's first row.
var columns = []string{"seconds", "jobs", "jobs_per_s", "heap_bytes", "resident_bytes", "disk_bytes", "remembered",
	"unfinished", "first_seq", "last_seq", "checkpoint", "open_s", "replayed", "interrupted"}

func (r row) fields() []string {
	fields := []string{seconds(r.at), fmt.Sprint(r.jobs), strconv.FormatFloat(r.rate, 'f', 0, 64), fmt.Sprint(r.Heap),
		fmt.Sprint(r.Resident), fmt.Sprint(r.Disk), fmt.Sprint(r.Remembered), fmt.Sprint(r.Unfinished),
		fmt.Sprint(r.FirstSeq), fmt.Sprint(r.LastSeq), fmt.Sprint(r.Checkpoint), "", "", ""}
	if o := r.Opened; o != nil {
		copy(fields[len(fields)-3:], []string{seconds(o.Took), fmt.Sprint(o.Replayed), fmt.Sprint(o.Interrupted)})
	}
	return fields
}

func seconds(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', 4, 64) }

// A recorder prints rows, writes them to a file, and keeps them.
type recorder struct {
	w       io.Writer
	file    *os.File // nil: none
	csv     *csv.Writer
	every   time.Duration
	started time.Time
	before  int64  // jobs of the lives before this one
	last    sample // the newest of this life
	opening *opening
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

// jobs counts those of all lives. The few that ended between the last sample of a life and its kill are not in it.
func (r *recorder) jobs() int64 { return r.before + r.last.Jobs }

func (r *recorder) begin() { r.last, r.opening = sample{}, nil }

func (r *recorder) end() {
	r.before += r.last.Jobs
	r.last.Jobs = 0
	fmt.Fprintf(r.w, "killed (SIGKILL)\n")
}

// take makes a row of a sample when it is time for one. What a life's first sample says goes into its first row.
func (r *recorder) take(now sample, always bool) error {
	r.last = now
	if now.Opened != nil {
		r.opening = now.Opened
		fmt.Fprintf(r.w, "opened in %s: %d events replayed, %d jobs interrupted\n%s\n",
			short(now.Opened.Took), now.Opened.Replayed, now.Opened.Interrupted, head)
		return nil
	}
	since := r.started
	if len(r.rows) > 0 {
		since = since.Add(r.rows[len(r.rows)-1].at)
	}
	took := time.Since(since)
	if took < r.every && !always && r.opening == nil {
		return nil
	}
	return r.add(now, took)
}

func (r *recorder) add(now sample, took time.Duration) error {
	now.Opened, r.opening = r.opening, nil
	next := row{at: time.Since(r.started), jobs: r.before + now.Jobs, sample: now}
	if n := len(r.rows); n > 0 && now.Opened == nil {
		next.rate = float64(next.jobs-r.rows[n-1].jobs) / took.Seconds()
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
