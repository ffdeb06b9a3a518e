package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"
)

// A figure is what several rounds of one measurement came to.
type figure struct{ low, median, high float64 }

func figureOf(rounds []float64) figure {
	sorted := slices.Sorted(slices.Values(rounds))
	return figure{sorted[0], sorted[len(sorted)/2], sorted[len(sorted)-1]}
}

// show prints a figure as key=median and key-range=low..high, a column each.
func (f figure) show(key string) string {
	return fmt.Sprintf("%s=%.0f\t%s-range=%.0f..%.0f", key, f.median, key, f.low, f.high)
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// percentile returns the smallest of the sorted latencies that p percent of them do not exceed.
func percentile(sorted []time.Duration, p int) time.Duration {
	return sorted[(len(sorted)*p+99)/100-1]
}

// table aligns the columns of what is printed between two flushes, and, by their least width, mostly of all.
func table(w io.Writer) *tabwriter.Writer { return tabwriter.NewWriter(w, 14, 0, 2, ' ', 0) }
