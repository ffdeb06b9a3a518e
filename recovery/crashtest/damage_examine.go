package crashtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// damagedDir is where the image lies while it is examined.
const damagedDir = "log"

// ways are what reads a log's directory, each with what it has to make of a judgement. [wal.Salvage] is the last.
var ways = []struct {
	name string
	try  func(img Image, j Judgement) error
}{
	{"wal.Open, ReadOnly", tryReader}, {"wal.Open", tryWriter}, {"recovery.Open", tryEngine},
	{"wal.Verify", tryVerify},
}

// Examine holds every way to read a log's directory against a judgement of it, each on a copy of its own: [wal.Open], for
// a reader and for a writer and once more behind that one, [recovery.Open], [wal.Verify] and [wal.Salvage]. An error says
// which of them does otherwise, and how. The last two are given a temporary directory of the operating system.
func Examine(img Image, j Judgement) error { return examine(img, j, nil) }

// examine is Examine for who knows what was written.
func examine(img Image, j Judgement, written []wal.Event) error {
	for _, way := range ways {
		if err := way.try(img, j); err != nil {
			return fmt.Errorf("%s: %w (the judge says: %v)", way.name, err, j)
		}
	}
	if err := salvage(img, j, written); err != nil {
		return fmt.Errorf("wal.Salvage: %w (the judge says: %v)", err, j)
	}
	return nil
}

// onDisk is the image on a disk of its own, and how many operations it took to put it there.
func onDisk(img Image) (*crashfs.FS, int, error) {
	disk := crashfs.New()
	err := img.Write(disk, damagedDir)
	return disk, len(disk.Ops()), err
}

// refused holds an error to what the judgement asks for. done: that is all there is to hold; the log does not open.
func (j Judgement) refused(err error) (done bool, _ error) {
	switch j.Verdict {
	case Version:
		if !errors.Is(err, wal.ErrVersion) || errors.Is(err, wal.ErrCorrupt) {
			return true, fmt.Errorf("should be refused as a newer format: %v", err)
		}
		return true, nil
	case Refused:
		return true, j.corrupt(err)
	}
	if err != nil {
		return true, fmt.Errorf("should not be refused: %w", err)
	}
	return false, nil
}

// corrupt holds the error to name the place of the damage.
func (j Judgement) corrupt(err error) error {
	var at *wal.CorruptError
	switch {
	case !errors.Is(err, wal.ErrCorrupt) || !errors.As(err, &at):
		return fmt.Errorf("should be refused as corrupt: %v", err)
	case filepath.Base(at.Path) != j.Path || at.Offset != j.Offset || at.Seq != j.Seq || at.Reason == "":
		return fmt.Errorf("refused at the wrong place: %w", err)
	}
	return nil
}

// untouched: the disk saw no operation that could have changed anything.
func untouched(disk *crashfs.FS, before int) error {
	if ops := disk.Ops(); len(ops) > before {
		return fmt.Errorf("the directory was changed: %v", ops[before])
	}
	return nil
}

func tryReader(img Image, j Judgement) error {
	disk, before, err := onDisk(img)
	if err != nil {
		return err
	}
	log, err := wal.Open(damagedDir, wal.Options{FS: disk, ReadOnly: true})
	if done, err := j.refused(err); done {
		return errors.Join(err, untouched(disk, before))
	}
	shown := j
	shown.Last = min(j.Last, j.Durable)
	shown.Readable = min(j.Readable, shown.Last)
	return errors.Join(shown.holds(log), log.Close(), untouched(disk, before))
}

func tryWriter(img Image, j Judgement) error {
	disk, before, err := onDisk(img)
	if err != nil {
		return err
	}
	log, err := wal.Open(damagedDir, wal.Options{FS: disk})
	if done, err := j.refused(err); done {
		return errors.Join(err, untouched(disk, before))
	}
	if err := errors.Join(j.holds(log), j.kept(disk, log.Report()), log.Close()); err != nil {
		return err
	}
	return again(disk, j)
}

// again opens the log as the last opening left it: the same events, and nothing more to cut.
func again(disk *crashfs.FS, j Judgement) error {
	log, err := wal.Open(damagedDir, wal.Options{FS: disk})
	if err != nil {
		return fmt.Errorf("opened again: %w", err)
	}
	if err := errors.Join(j.holds(log), log.Close()); err != nil {
		return fmt.Errorf("opened again: %w", err)
	}
	if torn := log.Report().TornBytes(); torn > 0 {
		return fmt.Errorf("opened again: %d bytes more were cut", torn)
	}
	return nil
}

// holds reads the log from its front.
func (j Judgement) holds(log *wal.Log) error {
	if log.FirstSeq() != j.First || log.LastSeq() != j.Last {
		return fmt.Errorf("it holds %d to %d, not %d to %d", log.FirstSeq(), log.LastSeq(), j.First, j.Last)
	}
	next := j.First
	for e, err := range log.Events(0) {
		if err != nil {
			return j.stops(next, err)
		}
		if next > j.Readable || !sameEvent(e, j.Events[next-j.First]) {
			return fmt.Errorf("seq %d reads %+v", next, e)
		}
		next++
	}
	return j.stops(next, nil)
}

// stops: reading ends where the damage begins, and says so, or else at the end.
func (j Judgement) stops(next uint64, err error) error {
	switch {
	case next != j.Readable+1:
		return fmt.Errorf("reading stops before seq %d: %v", next, err)
	case j.Verdict == RefusedWhenRead:
		return j.corrupt(err)
	}
	return err
}

func sameEvent(got, want wal.Event) bool {
	if want.Problem != "" {
		return got.Problem != "" && got.Seq == want.Seq && got.Prev == want.Prev && got.JobID == want.JobID
	}
	return got.Problem == "" && got.Seq == want.Seq && got.Prev == want.Prev && got.Epoch == want.Epoch &&
		got.Time.Equal(want.Time) && StepOf(got).identical(StepOf(want))
}

func (s Step) identical(other Step) bool {
	return s.Type == other.Type && s.JobID == other.JobID && s.Capability == other.Capability && s.Error == other.Error &&
		bytes.Equal(s.Args, other.Args) && bytes.Equal(s.Output, other.Output)
}

// kept: what was cut is in the report, and every byte of it in quarantine.
func (j Judgement) kept(fsys wal.FS, report wal.Report) error {
	cut := 0
	for _, b := range j.Cut {
		cut += len(b)
	}
	if report.TornBytes() != int64(cut) {
		return fmt.Errorf("the report tells of %d bytes that were cut, not %d", report.TornBytes(), cut)
	}
	for _, torn := range report.Torn {
		copied, err := readFile(fsys, torn.Quarantine)
		if err != nil {
			return err
		}
		if _, body, _ := bytes.Cut(copied, []byte("\n")); !bytes.Equal(body, j.Cut[filepath.Base(torn.Path)]) {
			return fmt.Errorf("%s is not what was cut of %s", torn.Quarantine, torn.Path)
		}
	}
	return nil
}

func tryEngine(img Image, j Judgement) error {
	disk, before, err := onDisk(img)
	if err != nil {
		return err
	}
	engine, err := recovery.Open(context.Background(), damagedDir, recovery.Options{WAL: wal.Options{FS: disk}})
	if j.Verdict == RefusedWhenRead {
		if err == nil {
			return errors.Join(errors.New("opened a log that cannot be read"), engine.Close())
		}
		return errors.Join(j.corrupt(err), untouched(disk, before))
	}
	if done, err := j.refused(err); done {
		return errors.Join(err, untouched(disk, before))
	}
	return errors.Join(j.folded(engine), j.kept(disk, engine.Report().WAL), engine.Close())
}

// folded holds the engine's jobs to the judge's.
func (j Judgement) folded(engine *recovery.Engine) error {
	n := 0
	for job := range engine.Jobs(projection.Query{}) {
		n++
		if state, known := j.States[job.ID]; !known || string(job.State) != state || job.ParkedSeq != j.Stuck[job.ID] {
			return fmt.Errorf("%v (seq %d); the judge has it %q, parked by seq %d", job, job.ParkedSeq, state, j.Stuck[job.ID])
		}
	}
	if n != len(j.States) {
		return fmt.Errorf("%d jobs, not %d", n, len(j.States))
	}
	report := engine.Report()
	if len(report.Parked) != len(j.Stuck) || len(report.Unreadable) != len(j.Unreadable) {
		return fmt.Errorf("the report has %d parked jobs and %d unreadable events, not %d and %d",
			len(report.Parked), len(report.Unreadable), len(j.Stuck), len(j.Unreadable))
	}
	return nil
}

// inTemp puts the image into a temporary directory, runs f on it, and holds f to have changed nothing.
func inTemp(img Image, f func(dir, empty string) error) (err error) {
	temp, err := os.MkdirTemp("", "crashtest")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(temp)) }()
	dir := filepath.Join(temp, damagedDir)
	if err := img.spill(dir); err != nil {
		return err
	}
	if err := f(dir, filepath.Join(temp, "empty")); err != nil {
		return err
	}
	now, err := ReadImage(nil, dir)
	if err == nil && !now.Equal(img) {
		err = errors.New("the directory was changed")
	}
	return err
}

// spill is Write without the syncs, for what is read once and thrown away.
func (i Image) spill(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for name, content := range i {
		full := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(full, content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func tryVerify(img Image, j Judgement) error {
	return inTemp(img, func(dir, _ string) error {
		report, err := wal.Verify(dir)
		switch j.Verdict {
		case Version:
			_, err = j.refused(err)
			return err
		case Refused, RefusedWhenRead:
			if !errors.Is(err, wal.ErrCorrupt) || report.Damages == 0 {
				return fmt.Errorf("finds no damage: %v", err)
			}
			return nil
		}
		if j.Blemished && errors.Is(err, wal.ErrCorrupt) {
			err = nil
		} else if j.Blemished {
			return fmt.Errorf("does not see what is behind a sealed segment's last event: %v", err)
		}
		if err != nil || report.LastSeq != j.Last {
			return fmt.Errorf("finds %d events, not %d: %v", report.LastSeq, j.Last, err)
		}
		return nil
	})
}

// salvage: every event that can be read from the front is in the copy, and in the place of what was lost none that was
// not written.
func salvage(img Image, j Judgement, written []wal.Event) error {
	return inTemp(img, func(dir, into string) error {
		_, err := wal.Salvage(dir, into)
		if j.Verdict == Version {
			_, err = j.refused(err)
			return err
		}
		if err != nil {
			return err
		}
		log, err := wal.Open(into, wal.Options{ReadOnly: true})
		if err != nil {
			return fmt.Errorf("the copy: %w", err)
		}
		return errors.Join(saved(log, j.Events), onlyThose(log, written), log.Close())
	})
}

// saved holds the copy to have all these.
func saved(copied *wal.Log, events []wal.Event) error {
	for _, want := range events {
		got, err := copied.At(want.Seq)
		if err != nil {
			return fmt.Errorf("the copy: %w", err)
		}
		if !sameEvent(got, want) {
			return fmt.Errorf("the copy: seq %d reads %+v", want.Seq, got)
		}
	}
	return nil
}

// onlyThose holds the copy to have, at the seqs of these, nothing else, but for what says that it is lost or unreadable.
func onlyThose(copied *wal.Log, events []wal.Event) error {
	for e, err := range copied.Events(0) {
		if err != nil {
			return fmt.Errorf("the copy: %w", err)
		}
		i := slices.IndexFunc(events, func(want wal.Event) bool { return want.Seq == e.Seq })
		if i >= 0 && e.Type != wal.EventLost && e.Problem == "" && !sameEvent(e, events[i]) {
			return fmt.Errorf("the copy makes another event of seq %d: %+v", e.Seq, e)
		}
	}
	return nil
}
