package crashtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"path/filepath"
	"reflect"
	"slices"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// Recover opens the engine in dir on a disk, as a crash left it, and holds all that it says against the history and
// against the log itself: [Check]; the state in memory is what [Reference] and [statemachine.Job.Apply] make of the
// whole log, job by job and field by field, with each job's history and the list of those interrupted; what was cut is
// in quarantine, whole. Then it closes the engine, opens it again, and wants the same again. It is the check of a
// [CrashEveryOp] whose ledger is a History:
//
//	func(disk wal.FS, h *crashtest.History) error { return crashtest.Recover(disk, "jobs", h, recovery.Options{}) }
//
// opts are those of the opening, twice: a projection among them sees the log twice. WAL.FS is set to disk, where disk
// is not nil. The history is not added to, so that many disks can be held against one. With an opts.WAL.Sync that is
// not SyncAlways, Check gets [LostTail]. The error is a *[Violation], that of opening, or that of reading the log.
//
// Logs that start late (see [History.Dropped]) are taken by Check, but not by an engine that has no checkpoint: of a
// job that began before, it cannot know the state. Recover wants a log with a beginning.
func Recover(disk wal.FS, dir string, h *History, opts recovery.Options) error {
	if disk != nil {
		opts.WAL.FS = disk
	}
	if opts.WAL.FS == nil {
		opts.WAL.FS = wal.OS
	}
	var first []wal.Event
	for again := range 2 {
		files, err := before(opts.WAL.FS, dir)
		if err != nil {
			return fmt.Errorf("crashtest: recover: %w", err)
		}
		events, err := recoverOnce(dir, h, opts, files)
		if err != nil {
			return err
		}
		if again > 0 {
			if v := sameLog(first, events); v != nil {
				return v
			}
		}
		first = events
	}
	return nil
}

// recoverOnce is one opening and closing.
func recoverOnce(dir string, h *History, opts recovery.Options, files Image) (_ []wal.Event, err error) {
	engine, err := recovery.Open(context.Background(), dir, opts)
	if err != nil {
		return nil, fmt.Errorf("crashtest: recover: %w", err)
	}
	defer func() { err = errors.Join(err, engine.Close()) }()
	var events []wal.Event
	for e, err := range Events(engine) {
		if err != nil {
			return nil, fmt.Errorf("crashtest: recover: %w", err)
		}
		events = append(events, e)
	}
	var relax []Relaxation
	if opts.WAL.Sync != wal.SyncAlways {
		relax = append(relax, LostTail)
	}
	if err := Check(h, yields(events), relax...); err != nil {
		return nil, err
	}
	if v := checkFold(engine, events); v != nil {
		return nil, v
	}
	return events, checkQuarantine(engine.Report().WAL, opts.WAL.FS, files)
}

// Events yields an engine's events, from the first that is there to the last that is applied at the call: what [Check]
// asks for.
func Events(engine *recovery.Engine) iter.Seq2[wal.Event, error] {
	return func(yield func(wal.Event, error) bool) {
		left := engine.Stats().Events
		if left == 0 {
			return
		}
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		for e, err := range engine.Follow(ctx, max(engine.Report().WAL.FirstSeq, 1)) {
			if left--; !yield(e, err) || err != nil || left == 0 {
				return
			}
		}
	}
}

func yields(events []wal.Event) iter.Seq2[wal.Event, error] {
	return func(yield func(wal.Event, error) bool) {
		for _, e := range events {
			if !yield(e, nil) {
				return
			}
		}
	}
}

// sameLog: opening changes nothing that is there.
func sameLog(before, now []wal.Event) error {
	for i := range min(len(before), len(now)) {
		if digest(before[i]) != digest(now[i]) {
			return violated(RuleFold, nil, now[i], "the second opening shows another event than the first")
		}
	}
	if len(before) != len(now) {
		return missed(RuleFold, nil, "the second opening shows %d events, the first showed %d", len(now), len(before))
	}
	return nil
}

// checkFold: the state in memory is that of a full replay, by the package's own fold and by the naive one.
func checkFold(engine *recovery.Engine, events []wal.Event) error {
	var ref Reference
	folded, histories := make(map[string]statemachine.Job), make(map[string][]wal.Event)
	for _, e := range events {
		if err := ref.Take(e); err != nil {
			return violated(RuleTransition, nil, e, "the reference does not take it: %v", err)
		}
		histories[e.JobID] = append(histories[e.JobID], e)
		e.Args, e.Output = bytes.Clone(e.Args), bytes.Clone(e.Output) // Apply takes over what it is given
		job, err := folded[e.JobID].Apply(e)
		if err != nil {
			return violated(RuleFold, nil, e, "package statemachine does not take what the reference takes: %v", err)
		}
		folded[e.JobID] = job
	}
	for _, id := range ref.Jobs() {
		if err := checkJob(engine, &ref, folded[id], histories[id]); err != nil {
			return err
		}
	}
	return checkLists(engine, &ref)
}

// checkJob holds one job in memory against its two folds, and its history against its events.
func checkJob(engine *recovery.Engine, ref *Reference, folded statemachine.Job, history []wal.Event) error {
	newest := history[len(history)-1]
	job, known := engine.Job(folded.ID)
	switch {
	case !known:
		return violated(RuleFold, nil, newest, "job %q is not known in memory", folded.ID)
	case string(job.State) != ref.State(folded.ID):
		return violated(RuleFold, nil, newest,
			"job %q is %s in memory, and %s by its events", job.ID, job.State, ref.State(job.ID))
	case !reflect.DeepEqual(job, folded):
		return violated(RuleFold, nil, newest, "job %q is\n\t%+v in memory, and\n\t%+v by its events", job.ID, job, folded)
	}
	if err := checkPayloads(engine, job, history); err != nil {
		return err
	}
	n := 0
	for e, err := range engine.History(context.Background(), job.ID) {
		if err != nil {
			return violated(RuleFold, nil, newest, "history of job %q: %v", job.ID, err)
		}
		if n == len(history) || digest(e) != digest(history[n]) {
			return violated(RuleFold, nil, e, "history of job %q: event %d is another one in the log", job.ID, n+1)
		}
		n++
	}
	if n != len(history) {
		return violated(RuleFold, nil, newest, "history of job %q: %d events of %d", job.ID, n, len(history))
	}
	return nil
}

// checkPayloads reads what need not be in memory.
func checkPayloads(engine *recovery.Engine, job statemachine.Job, history []wal.Event) error {
	last := func(on wal.EventType, payload func(wal.Event) json.RawMessage) (of json.RawMessage) {
		for _, e := range history {
			if p := payload(e); e.Type == on && p != nil {
				of = p
			}
		}
		return of
	}
	given := func(e wal.Event) json.RawMessage { return e.Args }
	made := func(e wal.Event) json.RawMessage { return e.Output }
	progress := last(wal.JobProgress, made)
	if job.State == statemachine.Completed || job.State == statemachine.RolledBack && job.Before == statemachine.Completed {
		progress = nil
	}
	for _, p := range []struct {
		held statemachine.Payload
		want json.RawMessage
	}{{job.Args, last(wal.JobSubmitted, given)}, {job.Output, last(wal.JobCompleted, made)}, {job.Progress, progress}} {
		got, err := engine.Read(context.Background(), p.held)
		if err != nil || !bytes.Equal(got, p.want) {
			return violated(RuleFold, nil, history[0],
				"a payload of job %q reads as %.60q (%v), and is %.60q", job.ID, got, err, p.want)
		}
	}
	return nil
}

// checkLists: no job too many, each in its place, and none parked, since no legal log parks a job.
func checkLists(engine *recovery.Engine, ref *Reference) error {
	report := engine.Report()
	for _, list := range []struct {
		name      string
		got, want []string
	}{
		{"all jobs", idsOf(slices.Collect(engine.Jobs(projection.Query{}))), ref.Jobs()},
		{"jobs interrupted", idsOf(engine.Interrupted()), ref.Interrupted(report.WAL.Epoch)},
		{"jobs parked", idsOf(report.Parked), nil},
	} {
		if !slices.Equal(list.got, list.want) {
			return missed(RuleFold, nil, "%s: %.500q in memory, %.500q by the events", list.name, list.got, list.want)
		}
	}
	if n := len(report.Unreadable) + len(report.Failed); n > 0 {
		return missed(RuleFold, nil, "unreadable events %v, projections that stopped %v", report.Unreadable, report.Failed)
	}
	if report.Replayed != ref.Last() {
		return missed(RuleFold, nil, "%d events replayed of %d", report.Replayed, ref.Last())
	}
	return nil
}

func idsOf(jobs []statemachine.Job) (ids []string) {
	for _, job := range jobs {
		ids = append(ids, job.ID)
	}
	return ids
}

// before is the directory as it is before the log is opened; empty where there is none.
func before(disk wal.FS, dir string) (Image, error) {
	files, err := ReadImage(disk, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return files, err
}

// checkQuarantine: every byte that was cut has a copy, behind a line that says where it was.
func checkQuarantine(report wal.Report, disk wal.FS, files Image) error {
	for _, torn := range report.Torn {
		copied, err := readFile(disk, torn.Quarantine)
		_, body, _ := bytes.Cut(copied, []byte("\n"))
		was, end := files[filepath.Base(torn.Path)], torn.Offset+torn.Bytes
		if err != nil || end > int64(len(was)) || !bytes.Equal(body, was[torn.Offset:end]) {
			return missed(RuleQuarantine, nil, "%d bytes were cut from %s at offset %d (%s), and are not in %q: %v",
				torn.Bytes, torn.Path, torn.Offset, torn.Reason, torn.Quarantine, err)
		}
	}
	return nil
}
