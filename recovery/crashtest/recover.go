package crashtest

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// Recover opens the engine in dir on a disk, as a crash left it, and holds all that it says against the history and
// against the log itself: [Check]; the state in memory is what [Reference] and [statemachine.Job.Apply] make of the
// whole log, job by job and field by field, with each job's history and the list of those interrupted; what was cut is
// in quarantine, whole; and an engine that has to do without checkpoints, on a copy, has the same jobs. Then it closes the
// engine, opens it again, and wants the same again. It is the check of a [CrashEveryOp] whose ledger is a History:
//
//	func(disk wal.FS, h *crashtest.History) error { return crashtest.Recover(disk, "jobs", h, recovery.Options{}) }
//
// opts are those of the opening, twice: a projection among them sees the log twice. WAL.FS is set to disk, where disk
// is not nil. The history is not added to, so that many disks can be held against one. With an opts.WAL.Sync that is
// not SyncAlways, Check gets [LostTail]. Nothing is kept up beside it: CheckpointEvery and Retain are not used. The error
// is a *[Violation], that of opening, or that of reading the log.
//
// A log that was compacted ([History.Compacts]) is whole as far as its jobs are remembered. No crash leaves a checkpoint
// that can't be used, or a projection that can't be whole, unless opts.AllowIncomplete names it. Logs that start late
// otherwise (see [History.Dropped]) are taken by Check, but not by an engine: of a job that began before, it cannot know
// the state.
func Recover(disk wal.FS, dir string, h *History, opts recovery.Options) error {
	if disk != nil {
		opts.WAL.FS = disk
	}
	if opts.WAL.FS == nil {
		opts.WAL.FS = wal.OS
	}
	opts.CheckpointEvery, opts.Retain = -1, 0
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
	if err := checkFrom(h, events, engine.Report().WAL.FirstSeq, relax...); err != nil {
		return nil, err
	}
	if v := checkFold(engine, events, opts); v != nil {
		return nil, v
	}
	if err := checkRebuilt(engine, h, files, dir, opts); err != nil {
		return nil, err
	}
	return events, checkQuarantine(engine.Report().WAL, opts.WAL.FS, files)
}

// Events yields an engine's events, from the first that is there to the last that is applied at the call: what [Check]
// asks for. Of a log that was compacted these are first those below its first one that belong to a job which is not
// forgotten.
func Events(engine *recovery.Engine) iter.Seq2[wal.Event, error] {
	return func(yield func(wal.Event, error) bool) {
		last := engine.Stats().LastSeq
		if last == 0 {
			return
		}
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		first := firstSeq(ctx, engine, last)
		below, err := carried(ctx, engine, first)
		for _, e := range below {
			if !yield(e, nil) {
				return
			}
		}
		if err != nil {
			yield(wal.Event{}, err)
			return
		}
		if first > last {
			return // all of it is carried
		}
		for e, err := range engine.Follow(ctx, first) {
			if !yield(e, err) || err != nil || e.Seq >= last {
				return
			}
		}
	}
}

// firstSeq is where the log begins now; behind last where it is empty.
func firstSeq(ctx context.Context, engine *recovery.Engine, last uint64) uint64 {
	first := max(engine.Report().WAL.FirstSeq, 1)
	if first > last {
		return first
	}
	for _, err := range engine.Follow(ctx, first) {
		var dropped *wal.DroppedError
		if errors.As(err, &dropped) {
			first = dropped.First
		}
		break
	}
	return first
}

// carried are the events of jobs that lie before the log's first.
func carried(ctx context.Context, engine *recovery.Engine, first uint64) (events []wal.Event, err error) {
	for job := range engine.Jobs(projection.Query{}) {
		if job.FirstSeq >= first {
			continue
		}
		for e, err := range engine.History(ctx, job.ID) {
			if err != nil {
				return nil, err
			}
			if e.Seq < first {
				events = append(events, e)
			}
		}
	}
	slices.SortFunc(events, func(a, b wal.Event) int { return cmp.Compare(a.Seq, b.Seq) })
	return events, nil
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
func checkFold(engine *recovery.Engine, events []wal.Event, opts recovery.Options) error {
	ref := Reference{floor: engine.Report().WAL.FirstSeq}
	folded, histories := make(map[string]statemachine.Job), make(map[string][]wal.Event)
	for _, e := range events {
		if err := ref.Take(e); err != nil {
			return violated(RuleTransition, nil, e, "the reference does not take it: %v", err)
		}
		if forgets(e) {
			f, _ := readForgetting(e) // the reference took it
			for _, id := range f.Jobs {
				delete(folded, id)
				delete(histories, id)
			}
			continue
		}
		if ref.State(e.JobID) == "" {
			continue // its job is forgotten further on
		}
		histories[e.JobID] = append(histories[e.JobID], e)
		e.Args, e.Output = bytes.Clone(e.Args), bytes.Clone(e.Output) // Apply takes over what it is given
		job, err := folded[e.JobID].Apply(e)
		if err != nil {
			return violated(RuleFold, nil, e, "package statemachine does not take what the reference takes: %v", err)
		}
		folded[e.JobID] = job
	}
	for id := range ref.strays {
		return missed(RuleForgotten, nil, "job %q is not forgotten, and its beginning is gone", id)
	}
	for _, id := range ref.Jobs() {
		if err := checkJob(engine, &ref, shed(folded[id], opts), histories[id]); err != nil {
			return err
		}
	}
	return checkLists(engine, &ref, opts)
}

// shed lets go of the payloads that an engine with these options does not hold.
func shed(job statemachine.Job, opts recovery.Options) statemachine.Job {
	if limit := cmp.Or(opts.HoldBytes, recovery.DefaultHoldBytes); limit >= 0 {
		job.Args, job.Output = job.Args.Shed(limit), job.Output.Shed(limit)
	}
	return job
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
func checkLists(engine *recovery.Engine, ref *Reference, opts recovery.Options) error {
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
	for _, err := range report.PassedOver {
		return missed(RuleFold, nil, "a checkpoint is not as it was written: %v", err)
	}
	for _, name := range report.Incomplete {
		if !slices.Contains(opts.AllowIncomplete, name) {
			return missed(RuleFold, nil, "projection %q is not whole", name)
		}
	}
	if all := ref.Last() - report.Checkpoint; report.Replayed != all && ref.floor <= 1 && len(opts.Projections) == 0 {
		return missed(RuleFold, nil, "%d events replayed of %d", report.Replayed, all)
	}
	return nil
}

// checkRebuilt: checkpoint and tail come to what all events come to. An engine on a copy of the directory, without its
// checkpoints, has the same jobs, and refuses the same ids.
func checkRebuilt(engine *recovery.Engine, h *History, files Image, dir string, opts recovery.Options) error {
	if engine.Report().Checkpoint == 0 {
		return nil
	}
	files = files.Clone()
	maps.DeleteFunc(files, func(name string, _ []byte) bool { return strings.HasPrefix(name, "checkpoint-") })
	disk := crashfs.New()
	if err := files.Write(disk, filepath.Base(dir)); err != nil {
		return err
	}
	opts.WAL.FS, opts.Projections, opts.OnProgress, opts.WAL.Inspect = disk, nil, nil, nil
	rebuilt, err := recovery.Open(context.Background(), filepath.Base(dir), opts)
	if err != nil {
		return missed(RuleFold, nil, "the log does not open without its checkpoints: %v", err)
	}
	return errors.Join(sameState(engine, rebuilt, h), rebuilt.Close())
}

func sameState(engine, rebuilt *recovery.Engine, h *History) error {
	jobs, again := slices.Collect(engine.Jobs(projection.Query{})), slices.Collect(rebuilt.Jobs(projection.Query{}))
	for i := range min(len(jobs), len(again)) {
		if !reflect.DeepEqual(jobs[i], again[i]) {
			return missed(RuleFold, nil, "a job is\n\t%+v from a checkpoint, and\n\t%+v from the log", jobs[i], again[i])
		}
	}
	if a, b := idsOf(jobs), idsOf(again); len(a) != len(b) {
		return missed(RuleFold, nil, "jobs are %.500q from a checkpoint, and %.500q from the log", a, b)
	}
	for _, a := range h.Attempts() {
		for _, s := range a.Steps {
			if is, was := isForgotten(engine, s.JobID), isForgotten(rebuilt, s.JobID); is != was {
				return missed(RuleFold, nil, "job %q is forgotten: %v from a checkpoint, %v from the log", s.JobID, is, was)
			}
		}
	}
	return nil
}

// isForgotten tells whether the engine says that there was such a job.
func isForgotten(engine *recovery.Engine, id string) bool {
	for _, err := range engine.History(context.Background(), id) {
		return errors.Is(err, recovery.ErrForgotten)
	}
	return false
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
