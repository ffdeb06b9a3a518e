package recovery

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"log/slog"
	"slices"
	"sync"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// A checkpoint is the state as of one seq: the jobs, and each projection that can be saved. Open begins with the newest
// that is whole, so that what it costs depends on what came since.

// An IncompleteError names projections that no checkpoint has, and for which the log no longer reaches back to its
// beginning: what was compacted away is missing in them for good. Name them in Options.AllowIncomplete to have them built
// from the jobs that are still remembered; leave them out; or put a checkpoint back that has them. Nothing was changed.
type IncompleteError struct {
	Names    []string
	FirstSeq uint64 // the log's first event that is still there
}

func (e *IncompleteError) Error() string {
	return fmt.Sprintf("recovery: in no checkpoint, and the log starts at seq %d: projections %q can't be whole; "+
		"name them in Options.AllowIncomplete to build them from the jobs that are remembered", e.FirstSeq, e.Names)
}

// restore brings the state from nothing to the end of what log shows. It changes nothing on disk.
func (e *Engine) restore(ctx context.Context, log Log) error {
	e.opened, e.begun, e.kept, e.stale = Report{}, wal.Checkpoint{}, 0, false
	files, ok := log.(Files)
	floor := uint64(0)
	if ok {
		for range log.Events(ctx, log.LastSeq()+1) { // looks: what is known of a log that is only read may be old
			break
		}
		if first := log.FirstSeq(); first > 1 {
			floor = first
		}
	}
	e.reset(floor)
	if ok {
		if err := e.loadNewest(ctx, log, files); err != nil {
			return err
		}
	}
	if err := e.replay(ctx, log, floor); err != nil {
		return err
	}
	return ctx.Err() // it may all have been read before ctx was done
}

// restoreBeside is restore, and what came meanwhile, beside a live writer, who may compact the log. What the caller's own
// projections have been shown can't be taken back, so that with them the first try is the last.
func (e *Engine) restoreBeside(ctx context.Context, log Log) (err error) {
	for range 10 {
		if err = e.restore(ctx, log); err == nil {
			err = e.catchUp(ctx, log)
		}
		if !errors.Is(err, wal.ErrDropped) || len(e.opts.Projections) > 0 {
			break
		}
	}
	return err
}

// loadNewest loads the newest checkpoint that is whole, of this log, and can be gone on from.
func (e *Engine) loadNewest(ctx context.Context, log Log, files Files) error {
	found, err := files.Checkpoints()
	if err != nil {
		return err
	}
	for _, c := range found {
		if c.Seq+1 < log.FirstSeq() {
			return nil // what follows it was compacted away, and the others are older
		}
		loaded, err := e.load(ctx, files, c)
		switch {
		case err == nil:
			e.begun, e.kept, e.opened.Checkpoint = c, c.Seq, c.Seq
			e.applier.applied.Store(c.Seq)
			return nil
		case loaded || ctx.Err() != nil || errors.Is(err, wal.ErrVersion) || errors.Is(err, wal.ErrClosed):
			return err
		}
		e.opened.PassedOver = append(e.opened.PassedOver, err)
		e.opts.Logger.Warn("recovery: checkpoint passed over", slog.Any("error", err))
	}
	return nil
}

// load loads one checkpoint. It tells whether anything came of it: what a projection has taken can't be taken back.
func (e *Engine) load(ctx context.Context, files Files, c wal.Checkpoint) (loaded bool, err error) {
	err = files.LoadCheckpoint(ctx, c, func(s wal.Section, r io.Reader) error {
		switch {
		case s.Name == e.jobs.Name():
			if s.Version != e.jobs.Version() {
				return fmt.Errorf("jobs of version %d, not %d", s.Version, e.jobs.Version())
			}
			err := e.jobs.Load(r)
			loaded = loaded || err == nil
			return err
		case !loaded:
			return errors.New("it begins without jobs")
		case s.Name == ownSection:
			return e.loadOwn(s, r)
		}
		for _, v := range e.applier.views {
			if v.Name() == s.Name {
				e.loadView(v, s, c, r)
			}
		}
		return nil
	})
	if err == nil && !loaded {
		err = &wal.CorruptError{Path: c.Path, Seq: c.Seq, Reason: "a checkpoint without jobs"}
	}
	return loaded, err
}

// ownSection is the engine's own part of a checkpoint: which projections in it are incomplete, as a JSON object.
const (
	ownSection = "engine"
	ownVersion = 1
)

type own struct {
	Incomplete []string `json:"incomplete"`
}

func (e *Engine) saveOwn(w io.Writer) error {
	return json.NewEncoder(w).Encode(own{e.opened.Incomplete})
}

func (e *Engine) loadOwn(s wal.Section, r io.Reader) error {
	var o own
	if s.Version != ownVersion {
		return fmt.Errorf("version %d, not %d", s.Version, ownVersion)
	}
	if err := json.NewDecoder(r).Decode(&o); err != nil {
		return err
	}
	e.opened.Incomplete = o.Incomplete
	return nil
}

// loadView loads one projection. If that fails, or its snapshot is of another version, the log will have to do.
func (e *Engine) loadView(v *view, s wal.Section, c wal.Checkpoint, r io.Reader) {
	p, ok := v.Projection.(projection.Snapshotter)
	if !ok || p.Version() != s.Version {
		return
	}
	if err := guarded(func() error { return p.Load(r) }); err != nil {
		err = fmt.Errorf("recovery: projection %q: checkpoint at seq %d: %w", v.Name(), c.Seq, err)
		e.opened.PassedOver = append(e.opened.PassedOver, err)
		e.opts.Logger.Warn("recovery: projection is built from the log", slog.Any("error", err))
		return
	}
	v.loaded = true
}

// replay applies what the checkpoint does not have, or, without one, all there is.
func (e *Engine) replay(ctx context.Context, log Log, floor uint64) (err error) {
	e.applier.goal = log.LastSeq()
	if from := e.applier.applied.Load() + 1; e.kept > 0 && from >= log.FirstSeq() {
		err = e.replayBehind(ctx, log, floor, from)
	} else {
		err = e.replayWhole(ctx, log, floor, e.notLoaded())
	}
	if err != nil {
		return err
	}
	return e.findLost(ctx, log, floor)
}

// catchUp applies what was not there yet, or could not be believed yet, when the rest was replayed: what no witness
// covers the log shows only when it has written it anew.
func (e *Engine) catchUp(ctx context.Context, log Log) error {
	a, first := e.applier, log.FirstSeq()
	a.goal = log.LastSeq()
	if from := a.applied.Load() + 1; from <= a.goal { // of a log that was compacted since, what lies between would be missing
		if err := e.apply(log.Events(ctx, from)); err != nil {
			return err
		}
	}
	return e.findLost(ctx, log, first)
}

// findLost folds the jobs once more when there are strays: see replayLost. Those that were found before, and are parked, come
// out as strays of that, and it folds them again.
func (e *Engine) findLost(ctx context.Context, log Log, floor uint64) error {
	lost := make(map[string]bool)
	for strays := e.jobs.Strays(); len(strays) > 0; strays = e.jobs.Strays() {
		for _, s := range strays {
			lost[s.JobID] = true
		}
		if err := e.replayLost(ctx, log.(Files), log, floor, lost); err != nil {
			return err
		}
	}
	return nil
}

// replayBehind lets the jobs, and the projections that were loaded, go on behind the checkpoint. Before that, projections
// that are not in it take the whole log, with jobs of their own: those know nothing of jobs that were forgotten since, of
// which the others have seen the beginning.
func (e *Engine) replayBehind(ctx context.Context, log Log, floor, from uint64) error {
	a, all, jobs := e.applier, e.applier.views, e.jobs
	defer func() { a.views = all }()
	with := func(loaded bool) []*view {
		return slices.DeleteFunc(slices.Clone(all), func(v *view) bool { return v.loaded != loaded })
	}
	unreadable := a.unreadable
	if lacking := e.notLoaded(); len(lacking) > 0 {
		e.stale = true
		a.views = with(false)
		if err := e.replayWhole(ctx, log, floor, lacking); err != nil {
			return err
		}
		e.jobs, a.jobs = jobs, jobs
		a.applied.Store(from - 1)
		unreadable, a.unreadable = a.unreadable, nil // of all; what lies behind the checkpoint is met again
	}
	a.views = with(true)
	if err := e.apply(log.Events(ctx, from)); err != nil {
		return err
	}
	if len(unreadable) > 0 {
		a.unreadable = unreadable
	}
	return nil
}

// replayWhole folds all there is of the log.
func (e *Engine) replayWhole(ctx context.Context, log Log, floor uint64, lacking []string) error {
	a, first := e.applier, log.FirstSeq()
	if _, ok := log.(Files); ok && first != max(1, floor) {
		return &wal.DroppedError{Seq: max(1, floor), First: first} // a writer beside it has compacted since floor was read
	}
	e.jobs = projection.NewJobsWith(e.jobsOptions(floor))
	a.jobs = e.jobs
	a.applied.Store(0)
	if floor > 0 {
		if refused := e.refusedIncomplete(lacking); len(refused) > 0 {
			return &IncompleteError{Names: refused, FirstSeq: floor}
		}
		for _, name := range lacking {
			if !slices.Contains(e.opened.Incomplete, name) {
				e.opened.Incomplete = append(e.opened.Incomplete, name)
			}
		}
		if err := e.apply(log.(Files).Carried()); err != nil {
			return err
		}
	}
	a.applied.Store(max(a.applied.Load(), first-1))
	return e.apply(log.Events(ctx, first))
}

// apply applies events up to the end that the log had when the replay began: a log that is only read may grow meanwhile.
func (e *Engine) apply(events iter.Seq2[wal.Event, error]) error {
	goal := e.applier.goal
	return e.applier.applyAll(func(yield func(wal.Event, error) bool) {
		for event, err := range readAhead(events) {
			if err == nil && event.Seq > goal {
				return
			}
			e.opened.Replayed++
			if !yield(event, err) {
				return
			}
		}
	})
}

// replayLost folds the jobs once more, when there are some of which the log has the end, and neither the beginning nor
// that they were forgotten: it was cut by [wal.Log.DropBefore], or saved by [wal.Salvage] from what was left of it. They
// are parked. The projections have seen all that can be believed.
//
// It begins where the first fold began. Of a log that was cut by hand only the checkpoint may have the others: from the log
// alone they would be strays, too, or gone. What there are of strays lies behind the checkpoint: who makes one has none, see
// [projection.Jobs.EndFloor].
func (e *Engine) replayLost(ctx context.Context, files Files, log Log, floor uint64, lost map[string]bool) error {
	opts := e.jobsOptions(floor)
	opts.Lost = lost
	e.jobs = projection.NewJobsWith(opts)
	e.applier.jobs = e.jobs
	if e.begun.Seq > 0 {
		if err := e.loadJobs(ctx, files); err != nil {
			return err
		}
		return e.foldJobs(log.Events(ctx, e.begun.Seq+1))
	}
	if err := e.foldJobs(files.Carried()); err != nil {
		return err
	}
	return e.foldJobs(log.Events(ctx, floor))
}

// loadJobs loads the jobs, and no more, of the checkpoint that Open began with.
func (e *Engine) loadJobs(ctx context.Context, files Files) error {
	err := files.LoadCheckpoint(ctx, e.begun, func(s wal.Section, r io.Reader) error {
		if s.Name != e.jobs.Name() {
			return nil
		}
		return e.jobs.Load(r)
	})
	if errors.Is(err, fs.ErrNotExist) { // a writer beside it has newer ones
		return fmt.Errorf("recovery: the checkpoint at seq %d, which was read before: %w", e.begun.Seq, wal.ErrDropped)
	}
	return err
}

// foldJobs lets the jobs alone take what has been applied.
func (e *Engine) foldJobs(events iter.Seq2[wal.Event, error]) error {
	for event, err := range readAhead(events) {
		if err != nil {
			return err
		}
		if event.Seq > e.applier.goal {
			return nil
		}
		if _, err := e.jobs.Fold(event); errors.Is(err, statemachine.ErrMisdirected) {
			return err
		}
	}
	return nil
}

// notLoaded returns the names of projections that no checkpoint brought.
func (e *Engine) notLoaded() []string {
	var names []string
	for _, v := range e.applier.views {
		if !v.loaded {
			names = append(names, v.Name())
		}
	}
	return names
}

// refusedIncomplete returns those of the names that must be whole. Our own need not: jobs that are remembered are, and
// Stats says what it counts.
func (e *Engine) refusedIncomplete(names []string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool {
		return name == e.stats.Name() || slices.Contains(e.opts.AllowIncomplete, name)
	})
}

// Checkpoint writes the state as it stands, durably, so that the next Open replays no more than what comes after it. It
// holds commands up no longer than a freeze takes; the two newest checkpoints are kept. With nothing new since the last
// one it does nothing.
//
// errors.ErrUnsupported: the log is no directory. wal.ErrReadOnly, wal.ErrClosed, ctx's error; wal.ErrNoSpace, or
// another error of the disk: the old checkpoints are as they were, and the engine goes on. A projection that can't be
// frozen, or whose save fails, is named in the error, and left out: all else is saved. One that is lacking when the log
// was compacted before ends it: an older checkpoint may have that.
func (e *Engine) Checkpoint(ctx context.Context) error {
	ctx, release, err := e.own(ctx)
	if err != nil {
		return err
	}
	defer release()
	return e.closedInstead(e.checkpoint(ctx))
}

// own waits for its turn to keep the log, and returns a context that Close ends, too.
func (e *Engine) own(ctx context.Context) (context.Context, func(), error) {
	if ctx == nil {
		return nil, nil, &wal.InvalidError{Field: "context", Reason: "nil"}
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(e.life, cancel)
	over := func() { stop(); cancel() }
	release := func() { <-e.keeping; over() }
	select {
	case e.keeping <- struct{}{}:
		if ctx.Err() == nil {
			return ctx, release, nil
		}
		release() // ctx was done just then: of two that are ready, select takes either
	case <-ctx.Done():
		over()
	}
	return nil, nil, e.closedInstead(ctx.Err())
}

// closedInstead says what the end of a context means that Close has ended.
func (e *Engine) closedInstead(err error) error {
	if errors.Is(err, context.Canceled) && e.life.Err() != nil {
		return wal.ErrClosed
	}
	return err
}

// checkpoint is for who holds keeping.
func (e *Engine) checkpoint(ctx context.Context) error {
	files, ok := e.log.(Files)
	if !ok {
		return fmt.Errorf("recovery: checkpoint: this log is no directory: %w", errors.ErrUnsupported)
	}
	if e.opts.WAL.ReadOnly {
		return wal.ErrReadOnly
	}
	defer e.setDue()
	without := make(map[string]error) // projections whose save has failed, each once
	for {
		switch guilty, err := e.saveWithout(ctx, files, without); {
		case guilty == "" || without[guilty] != nil || ctx.Err() != nil:
			return err
		default:
			without[guilty] = err
		}
	}
}

// saveWithout saves all but some projections. guilty is one whose own save has failed.
func (e *Engine) saveWithout(ctx context.Context, files Files, without map[string]error) (guilty string, err error) {
	f := e.freeze(without)
	defer f.thaw()
	if f.seq == 0 || f.seq == e.kept && !e.stale {
		return "", nil
	}
	if refused := e.refusedIncomplete(f.lacking); len(refused) > 0 && e.log.FirstSeq() > 1 {
		// Older checkpoints may have it, and go when newer ones come.
		return "", errors.Join(append(f.errs, &IncompleteError{Names: refused, FirstSeq: e.log.FirstSeq()})...)
	}
	if _, err := files.SaveCheckpoint(ctx, f.seq, f.sections); err != nil {
		return f.guilty, err
	}
	e.kept, e.lacking, e.stale = f.seq, f.lacking, len(f.errs) > 0
	return "", errors.Join(f.errs...)
}

// setDue says when the next checkpoint is due: not sooner after one that failed than after one that did not.
func (e *Engine) setDue() {
	if e.opts.CheckpointEvery >= 0 {
		e.applier.dueAt.Store(e.applier.applied.Load() + e.interval())
	}
}

// interval is how many events lie between two checkpoints.
func (e *Engine) interval() uint64 {
	if n := e.opts.CheckpointEvery; n != 0 {
		return uint64(n)
	}
	return uint64(max(DefaultCheckpointEvery, e.jobs.Len()))
}

// frozen is the state as of seq.
type frozen struct {
	seq      uint64
	sections []wal.Section
	lacking  []string // projections that are not in it
	errs     []error  // why, where they failed
	guilty   string   // the projection whose save has failed, without a failure of what it wrote to
}

// freeze lets the applier stand still for as long as it takes to freeze the state, without some projections.
func (e *Engine) freeze(without map[string]error) *frozen {
	a := e.applier
	a.folding.Lock()
	defer a.folding.Unlock()
	f := &frozen{seq: a.applied.Load()}
	f.add(e.jobs)
	f.sections = append(f.sections, wal.Section{Name: ownSection, Version: ownVersion, Save: e.saveOwn})
	for _, v := range a.views {
		switch failed := without[v.Name()]; {
		case failed != nil:
			f.leaveOut(v.Name(), failed)
		case v.out:
			f.lacking = append(f.lacking, v.Name())
		default:
			f.add(v.Projection)
		}
	}
	return f
}

func (f *frozen) add(p projection.Projection) {
	s, ok := p.(projection.Snapshotter)
	if !ok {
		f.lacking = append(f.lacking, p.Name())
		return
	}
	var save func(io.Writer) error
	err := guarded(func() (err error) {
		if v := s.Version(); v < 0 {
			return fmt.Errorf("its version is %d", v)
		}
		save, err = s.Snapshot()
		return err
	})
	if err == nil && save == nil {
		err = errors.New("its Snapshot returned nothing")
	}
	if err != nil {
		f.leaveOut(p.Name(), err)
		return
	}
	once := new(sync.Once)
	f.sections = append(f.sections, wal.Section{Name: p.Name(), Version: s.Version(), Save: func(w io.Writer) (err error) {
		to := &watched{w: w}
		once.Do(func() { err = guarded(func() error { return save(to) }) })
		switch {
		case err == nil:
			return nil
		case to.err == nil:
			f.guilty = p.Name()
		}
		return fmt.Errorf("its save: %w", err)
	}})
}

func (f *frozen) leaveOut(name string, err error) {
	f.lacking = append(f.lacking, name)
	f.errs = append(f.errs, fmt.Errorf("recovery: checkpoint without projection %q: %w", name, err))
}

// watched remembers whether it was the writer that failed.
type watched struct {
	w   io.Writer
	err error
}

func (w *watched) Write(p []byte) (n int, err error) {
	n, err = w.w.Write(p)
	w.err = cmp.Or(w.err, err)
	return n, err
}

// thaw ends the freezing of what was not saved: a snapshot costs its owner something until its save has returned.
func (f *frozen) thaw() {
	for _, s := range f.sections {
		_ = s.Save(nowhere{}) // does nothing for what was saved, and fails for what was not
	}
}

// nowhere is a writer without room.
type nowhere struct{}

func (nowhere) Write([]byte) (int, error) { return 0, io.ErrShortWrite }

// keep writes checkpoints, and lets go of what need not be retained, whenever that is due, until the engine is closed.
func (e *Engine) keep() {
	if _, ok := e.log.(Files); !ok || e.opts.CheckpointEvery < 0 || e.opts.WAL.ReadOnly {
		return
	}
	a := e.applier
	a.dueAt.Store(e.kept + e.interval())
	if a.applied.Load() >= a.dueAt.Load() {
		select {
		case a.due <- struct{}{}:
		default: // the applier was faster
		}
	}
	e.keeper.Go(func() {
		for {
			select {
			case <-e.life.Done():
				return
			case <-a.due:
				e.noteKept(e.tend())
			}
		}
	})
}

// tend does what is due. What keeps the log from being compacted need not keep it from being checkpointed.
func (e *Engine) tend() error {
	defer e.setDue() // whatever comes of it: not at once again
	var kept error
	if e.opts.Retain > 0 {
		if _, kept = e.Compact(e.life, e.opts.Retain); kept == nil {
			return nil
		}
	}
	return errors.Join(kept, e.Checkpoint(e.life))
}

// noteKept takes note of how it went, and says it if nobody else will.
func (e *Engine) noteKept(err error) {
	if errors.Is(err, wal.ErrClosed) {
		return
	}
	a := e.applier
	a.mu.Lock()
	a.keepErr = err
	a.mu.Unlock()
	if err != nil {
		e.opts.Logger.Error("recovery: checkpoint or compaction failed; it will be tried again", slog.Any("error", err))
	}
}
