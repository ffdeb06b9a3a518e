package main

import (
	"encoding/csv"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
)

// A longrunRow is one of the rows that examples/longrun writes.
type longrunRow struct {
	jobs, rate, heap, resident, disk float64
	open                             figure // seconds; 0 but in the row before each kill
}

// readLongrun reads what examples/longrun -csv has written.
func readLongrun(path string) ([]longrunRow, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // only read
	lines, err := csv.NewReader(f).ReadAll()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	var rows []longrunRow
	for i, line := range lines[min(1, len(lines)):] {
		r, err := parseLongrun(lines[0], line)
		if err != nil {
			return nil, fmt.Errorf("%s: row %d: %w", path, i+1, err)
		}
		rows = append(rows, r)
	}
	if len(rows) < 2 {
		return nil, fmt.Errorf("%s: %d rows are no run", path, len(rows))
	}
	return rows, nil
}

func parseLongrun(head, line []string) (r longrunRow, err error) {
	for name, field := range map[string]*float64{"jobs": &r.jobs, "jobs_per_s": &r.rate, "heap_bytes": &r.heap,
		"resident_bytes": &r.resident, "disk_bytes": &r.disk,
		"open_s": &r.open.median, "open_low_s": &r.open.low, "open_high_s": &r.open.high} {
		i := slices.Index(head, name)
		switch {
		case i < 0:
			err = errors.Join(err, fmt.Errorf("no column %s", name))
		case line[i] != "":
			var e error
			*field, e = strconv.ParseFloat(line[i], 64)
			err = errors.Join(err, e)
		}
	}
	return r, err
}

// drawLongrun draws what must stay flat over the jobs so far.
func drawLongrun(path string, rows []longrunRow) error {
	heap, resident := &series{name: "live heap", look: logLook, bare: true}, &series{name: "whole process", look: bareLook, bare: true}
	disk, open := &series{name: "all files of the directory", look: logLook, bare: true}, &series{name: "recovery.Open", look: engineLook}
	rate := &series{name: "each with four events or more, all durable", look: logLook, bare: true}
	for _, r := range rows {
		heap.addIf(r.heap > 0, r.jobs, exactly(r.heap))
		resident.addIf(r.resident > 0, r.jobs, exactly(r.resident))
		disk.addIf(r.disk > 0, r.jobs, exactly(r.disk))
		open.addIf(r.open.median > 0, r.jobs, r.open)
		rate.addIf(r.open.median == 0, r.jobs, exactly(r.rate)) // a row before a kill may be of a few milliseconds
	}
	const jobs = "jobs so far"
	panels := []panel{
		{title: "Memory", x: jobs, y: "bytes (MB)", yTick: bytesOf, series: []*series{heap, resident}},
		{title: "Disk", x: jobs, y: "bytes (MB)", yTick: bytesOf, series: []*series{disk}},
		{title: "Time to open after each kill", x: jobs, y: "time (ms)", yTick: duration, series: []*series{open}},
		{title: "Jobs a second", x: jobs, y: "jobs a second", yTick: thousands, series: []*series{rate}},
	}
	var drawn []panel
	for _, p := range panels {
		p.linear, p.xTick = true, thousands
		p.series = slices.DeleteFunc(p.series, func(s *series) bool { return s.Len() == 0 })
		if len(p.series) > 0 {
			drawn = append(drawn, p)
		}
	}
	return drawPanels(path, fmt.Sprintf("one run of examples/longrun: %.0f jobs, killed (SIGKILL) %d times; time to open: median of several, lowest, highest",
		rows[len(rows)-1].jobs, open.Len()), drawn...)
}

// addIf leaves out what was not measured.
func (s *series) addIf(measured bool, x float64, y figure) {
	if measured {
		s.add(x, y)
	}
}

// exactly is a figure of a single measurement.
func exactly(v float64) figure { return figure{v, v, v} }
