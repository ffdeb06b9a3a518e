package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/term"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/statemachine"
)

// printer writes for people: with colours on a terminal, plain elsewhere.
type printer struct {
	w      io.Writer
	colour bool
}

func newPrinter(w io.Writer) *printer {
	f, isFile := w.(*os.File)
	return &printer{w: w, colour: isFile && term.IsTerminal(int(f.Fd())) && os.Getenv("NO_COLOR") == ""}
}

const (
	bold  = "1"
	red   = "31"
	green = "32"
	dim   = "2"
)

func (t *printer) line(style, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if t.colour && style != "" {
		text = "\x1b[" + style + "m" + text + "\x1b[0m"
	}
	fmt.Fprintln(t.w, text)
}

func (t *printer) title(format string, args ...any) { t.line(bold, "\n"+format, args...) }
func (t *printer) note(text string) {
	for line := range strings.Lines(text) {
		t.line("", "  %s", strings.TrimRight(line, "\n"))
	}
}
func (t *printer) bad(format string, args ...any)  { t.line(red, "  ✗ "+format, args...) }
func (t *printer) good(format string, args ...any) { t.line(green, "  ✓ "+format, args...) }
func (t *printer) ack(m message) {
	t.line(dim, "    %4d  %-16s %s %s", m.Seq, m.Job, m.Type, m.Step)
}

// table writes rows in columns; it takes no styles, since escapes would count as width.
func (t *printer) table(rows [][]string) {
	w := tabwriter.NewWriter(t.w, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(w, "  "+strings.Join(row, "\t"))
	}
	_ = w.Flush() // to the terminal
}

// jobs lists the plan's jobs with what they went through.
func (t *printer) jobs(ctx context.Context, engine *recovery.Engine, p plan) error {
	rows := [][]string{{"JOB", "CAPABILITY", "STATE", "AGENTS", "TOOK", "RESULT"}}
	for _, s := range p.Steps {
		job, known := engine.Job(s.ID)
		if !known {
			rows = append(rows, []string{s.ID, s.Capability, "-", "-", "-", "never submitted"})
			continue
		}
		epochs, err := epochsOf(ctx, engine, job.ID)
		if err != nil {
			return err
		}
		rows = append(rows, []string{job.ID, job.Capability, string(job.State), epochs, took(job), result(job)})
	}
	t.table(rows)
	return nil
}

// epochsOf tells which agents had a hand in the job.
func epochsOf(ctx context.Context, engine *recovery.Engine, id string) (string, error) {
	var epochs []string
	last := uint64(0)
	for e, err := range engine.History(ctx, id) {
		if err != nil {
			return "", err
		}
		if e.Epoch != last {
			epochs = append(epochs, fmt.Sprint(e.Epoch))
			last = e.Epoch
		}
	}
	return strings.Join(epochs, ","), nil
}

func took(job statemachine.Job) string {
	if job.StartedAt.IsZero() || job.FinishedAt.IsZero() {
		return "-"
	}
	return job.Took().Round(time.Millisecond).String()
}

// result is short enough for a line.
func result(job statemachine.Job) string {
	text := job.Error
	if text == "" {
		raw, _ := job.Output.JSON()
		text = string(raw)
	}
	if job.Parked != "" {
		text = "parked: " + job.Parked
	}
	const most = 44
	runes := []rune(strings.Join(strings.Fields(text), " "))
	if len(runes) > most {
		return string(runes[:most-1]) + "…"
	}
	return string(runes)
}

// shownJobs is how many imported jobs are listed; the rest is counted.
const shownJobs = 20

func (t *printer) imported(engine *recovery.Engine) {
	rows := [][]string{{"JOB", "CAPABILITY", "STATE", "TOOK", "RESULT"}}
	for job := range engine.Jobs(projection.Query{Limit: shownJobs}) {
		rows = append(rows, []string{job.ID, job.Capability, state(job), took(job), result(job)})
	}
	t.table(rows)
	report, total := engine.Report(), 0
	for _, n := range report.Jobs {
		total += n
	}
	if total > shownJobs {
		t.note(fmt.Sprintf("… and %d more", total-shownJobs))
	}
	t.title("By state")
	for _, s := range statemachine.States() {
		if n := report.Jobs[s]; n > 0 && s != statemachine.None {
			t.note(fmt.Sprintf("%-12s %d", s, n))
		}
	}
	t.note(fmt.Sprintf("%-12s %d", "unfinished", report.Interrupted))
	for _, job := range report.Parked {
		t.bad("%s is parked by %s", job.ID, job.Parked)
	}
}

func state(job statemachine.Job) string {
	if job.State == statemachine.None {
		return "-"
	}
	return string(job.State)
}
