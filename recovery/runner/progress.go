package runner

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"time"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/wal"
)

// Progress says that the work is alive, and how far it is: the job's Progress. The value is marshalled with encoding/json at
// once, and has to be strict JSON; nil: alive, and nothing new, which is a heartbeat.
//
// It may be called as often as one likes. The first value is durable when Progress returns. After that there is at most one
// event in Options.Progress (10 s, if nothing is said): what comes sooner is held back, and the newest of it written when it
// is due, or not at all when the attempt ends before. So a nil error may mean that the value is held back; what goes wrong
// when that is written is logged, and hurts nothing but the progress that is shown.
//
// Every call is a sign of life for Settings.Heartbeat, and so are the beginning and the end of a [Step].
//
// Errors: ErrNoJob; the cause with which ctx has ended, so a long loop may ask here whether it should go on; ErrFenced when
// the attempt is over, or the job is held; wal.ErrInvalid for the value; otherwise those of [recovery.Engine.Do].
func Progress(ctx context.Context, value any) error {
	p, ok := placeOf(ctx)
	if !ok {
		return ErrNoJob
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var raw json.RawMessage
	if value != nil {
		var err error
		if raw, err = marshal(value); err != nil {
			return &wal.InvalidError{Field: "Progress", Reason: err.Error()}
		}
	}
	return p.attempt.say(ctx, raw)
}

// said is what was told of an attempt's progress. The attempt's mu guards it.
type said struct {
	at    time.Time       // when the newest event of it was begun; zero: there is none
	held  bool            // something is held back
	value json.RawMessage // the newest that was held back; nil: only that it is alive
	timer *time.Timer     // writes it
}

// wait is how long nothing more may be written.
func (s *said) wait(now time.Time, every time.Duration) time.Duration {
	if s.at.IsZero() || every <= 0 {
		return 0
	}
	return s.at.Add(every).Sub(now)
}

// hold keeps raw until it is due.
func (s *said) hold(raw json.RawMessage, wait time.Duration, due func()) {
	if raw != nil {
		s.value = raw
	}
	if !s.held {
		s.held = true
		s.timer = time.AfterFunc(wait, due)
	}
}

// take returns what is to be written now: raw, or, where that says nothing, what was held back.
func (s *said) take(raw json.RawMessage, now time.Time) json.RawMessage {
	if raw == nil {
		raw = s.value
	}
	s.stop()
	s.at = now
	return raw
}

func (s *said) stop() {
	if s.held {
		s.timer.Stop()
	}
	s.held, s.value = false, nil
}

func (a *attempt) say(ctx context.Context, raw json.RawMessage) error {
	a.alive()
	a.mu.Lock()
	if err := a.over; err != nil {
		a.mu.Unlock()
		return err
	}
	now := time.Now()
	if wait := a.said.wait(now, a.settings.progress); wait > 0 {
		a.said.hold(raw, wait, a.sayHeld)
		a.mu.Unlock()
		return nil
	}
	e := a.progressLocked(raw, now)
	a.mu.Unlock()
	return a.write(ctx, e)
}

// sayHeld writes what was held back, now that it is due.
func (a *attempt) sayHeld() {
	a.mu.Lock()
	if !a.said.held { // a call has written it meanwhile, or the attempt is over
		a.mu.Unlock()
		return
	}
	e := a.progressLocked(nil, time.Now())
	a.mu.Unlock()
	if err := a.write(context.Background(), e); err != nil && !errors.Is(err, ErrFenced) {
		a.settings.logger.Warn("runner: progress not written", slog.String("job", a.job.ID), slog.Any("error", err))
	}
}

// progressLocked lets the newest progress wait to be written; behind what was said before it, since mu is held.
func (a *attempt) progressLocked(raw json.RawMessage, now time.Time) *entry {
	e := &entry{command: recovery.SetProgress(a.job.ID, a.said.take(raw, now))}
	a.waiting = append(a.waiting, e)
	return e
}
