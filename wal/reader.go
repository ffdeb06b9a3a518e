package wal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
)

// reader is what a ReadOnly log remembers between two looks at the directory. It shows what some line on disk says is
// durable, and nothing else: a live writer may yet take back what it has only written.
type reader struct {
	mu    sync.Mutex // guards the fields below; taken before Log.mu; held during I/O
	at    int64      // in the newest segment, the offset behind what is shown
	still bool       // nothing is looked at again: Options.Inspect, with the writer's lock held
}

// pollEvery is how often a ReadOnly follower looks for what another process wrote.
const pollEvery = 10 * time.Millisecond

// poll returns a channel that wakes a waiting follower, if nothing else does.
func (l *Log) poll() (<-chan time.Time, func() bool) {
	if l.reader == nil {
		return nil, func() bool { return false }
	}
	timer := time.NewTimer(pollEvery)
	return timer.C, timer.Stop
}

func (l *Log) openReader() error {
	found, err := list(l.fs, l.dir)
	if err != nil {
		return err
	}
	if err := found.ours(l.dir); err != nil {
		return err
	}
	l.reader = new(reader)
	l.floor = 1
	s, t, err := l.reader.look(l)
	if err != nil {
		return err
	}
	l.take(s, t)
	return l.reader.show(l, s, t)
}

// refresh brings what is shown up to date and returns the last seq. For a writer there is nothing to do.
func (l *Log) refresh() (last uint64, err error) {
	if l.reader != nil {
		if err := l.reader.refresh(l); err != nil {
			return 0, wrapped(err)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return 0, ErrClosed
	}
	return l.last, nil
}

func (r *reader) refresh(l *Log) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if l.isClosed() {
		return ErrClosed
	}
	if r.still {
		return nil
	}
	s, t, err := r.look(l)
	if err != nil {
		return err
	}
	return r.show(l, s, t)
}

// look surveys the directory and reads the newest segment from where it stopped last time. A writer beside it may
// remove, replace and extend files meanwhile, so what looks wrong is looked at again before it is believed: whatever a
// witness speaks of was on disk before the witness was, so the second look must find it.
func (r *reader) look(l *Log) (s survey, t tail, err error) {
	var before error
	for range 100 {
		s, t, err = r.lookOnce(l)
		same := before != nil && err != nil && err.Error() == before.Error()
		if err == nil || same || !errors.Is(err, ErrCorrupt) && !isNotExist(err) {
			return s, t, err
		}
		before = err
	}
	return s, t, err
}

func (r *reader) lookOnce(l *Log) (survey, tail, error) {
	found, err := list(l.fs, l.dir)
	if err != nil {
		return survey{}, tail{}, err
	}
	s, known, err := r.survey(l, found)
	if err != nil {
		return s, tail{}, err
	}
	var t tail
	if !known || len(s.segments) == 0 {
		t, err = l.judge(&s)
	} else {
		t, err = r.more(l, &s)
	}
	if err == nil {
		err = l.stillShows(s, t)
	}
	return s, t, err
}

// stillShows holds what was found to be the log that was shown, and no less of it: what was shown stays. A directory that
// was removed, and another log that took its name, are not what comes next.
func (l *Log) stillShows(s survey, t tail) error {
	l.mu.Lock()
	id, shown := l.id, l.last
	l.mu.Unlock()
	last := min(t.durable, t.next-1)
	switch {
	case id == "": // nothing was there yet
		return nil
	case s.id == "":
		return &CorruptError{Path: l.dir, Seq: 1, Reason: "the log that was here is gone"}
	case s.id != id:
		return &CorruptError{Path: l.dir, Seq: 1, Reason: fmt.Sprintf("another log is here now (%s, not %s)", s.id, id)}
	case last < shown:
		return &CorruptError{Path: l.dir, Seq: last + 1, Reason: fmt.Sprintf("the log ends here, and was shown to seq %d", shown)}
	}
	return nil
}

// survey takes over what is known of the segments, as long as the newest one is still the newest and holds something
// that was shown, so that it cannot have been replaced.
func (r *reader) survey(l *Log, found listing) (s survey, known bool, err error) {
	names := found.segments
	l.mu.Lock()
	s = survey{id: l.id, segments: slices.Clone(l.segments), floor: l.floor, carried: l.carried, epoch: l.epoch,
		checkpoints: found.checkpoints}
	last := l.last
	l.mu.Unlock()
	n := len(s.segments)
	if n == 0 || len(names) == 0 || s.segments[n-1].first > last || filepath.Base(s.segments[n-1].path) != names[len(names)-1] {
		s, err = surveySegments(l.fs, l.dir, found)
		return s, false, err
	}
	// What was dropped may still be there, in front: the writer removes it after it said so, or died before it could.
	for len(s.segments) > 1 && !slices.Contains(names, filepath.Base(s.segments[0].path)) {
		s.segments = s.segments[1:]
	}
	return s, true, nil
}

// more reads what came since the last look.
func (r *reader) more(l *Log, s *survey) (tail, error) {
	newest := s.segments[len(s.segments)-1]
	f, err := l.fs.OpenFile(newest.path, os.O_RDONLY, 0)
	if err != nil {
		return tail{}, err
	}
	t, err := scanTail(f, newest, r.at, l.LastSeq()+1)
	if err = errors.Join(err, f.Close()); err != nil {
		return t, err
	}
	t.durable = max(t.durable, l.LastSeq())
	s.epoch = max(s.epoch, t.epoch)
	if err := t.verdict(newest.path); err != nil {
		return t, err
	}
	if t.floor > s.floor {
		s.floor, s.carried = t.floor, t.carried
		if err := s.checkCarried(l.fs, l.dir); err != nil {
			return t, err
		}
	}
	return t, l.witnesses(s, &t)
}

// shown returns the last seq that may be shown, and the offset behind its line in the newest segment.
func (r *reader) shown(l *Log, s survey, t tail) (last uint64, end int64, err error) {
	last, n := min(t.durable, t.next-1), len(s.segments)
	if last == t.next-1 || n == 0 {
		return last, t.end, nil
	}
	// Something was written that has no witness yet: the next look reads it again.
	newest := s.segments[n-1]
	newest.size = t.end
	if last < newest.first {
		return last, newest.header, nil
	}
	f, err := l.fs.OpenFile(newest.path, os.O_RDONLY, 0)
	if err != nil {
		return 0, 0, err
	}
	line, err := findLine(f, newest, last, t.next-1)
	return last, line.end, errors.Join(err, f.Close())
}

// show takes over what was found, as far as it is known to be durable.
func (r *reader) show(l *Log, s survey, t tail) error {
	last, end, err := r.shown(l, s, t)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	r.at = end
	l.id, l.epoch, l.floor, l.carried = s.id, s.epoch, s.floor, s.carried
	s.keepPlaces(l.segments)
	l.segments = s.segments[s.dropped():]
	if n := len(l.segments); n > 0 {
		l.segments[n-1].size = end
	}
	if last != l.last && l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
	l.last, l.durable = last, last
	return nil
}
