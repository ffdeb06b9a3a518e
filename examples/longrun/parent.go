package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"time"

	"github.com/jobwal/jobwal/recovery"
)

// longrun runs one child after the other, kills each, and checks in the end what they left. It returns what it recorded.
func longrun(ctx context.Context, w io.Writer, s settings) (end ending, err error) {
	r, err := newRecorder(w, s)
	if err != nil {
		return end, err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	for first := true; first || ctx.Err() == nil && !s.enough(r.before); first = false {
		if err := runLife(ctx, s, r); err != nil {
			return end, err
		}
		s.MinSeq = max(s.MinSeq, r.last.LastSeq)
		opened, err := reopen(s)
		if err != nil {
			return end, err
		}
		if err := r.reopened(opened); err != nil {
			return end, err
		}
	}
	if end, err = settle(s); err != nil {
		return end, err
	}
	end.rows = r.rows
	end.tell(w)
	return end, nil
}

func (s settings) enough(jobs int64) bool { return s.Jobs > 0 && jobs >= s.Jobs }

// runLife runs one child until it is killed: after so many jobs, when there are enough of them, or when ctx is done.
func runLife(ctx context.Context, s settings, r *recorder) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	config, err := json.Marshal(s)
	if err != nil {
		return err
	}
	child := exec.CommandContext(ctx, self, "-child", string(config)) // which kills it when ctx is done
	var complaints bytes.Buffer
	child.Stderr = &complaints
	out, err := child.StdoutPipe()
	if err != nil {
		return err
	}
	if err := child.Start(); err != nil {
		return err
	}
	r.begin()
	killed := false
	err = readSamples(out, func(now sample) error {
		if !killed && (now.Jobs >= s.Kill || s.enough(r.before+now.Jobs)) {
			killed = true
			_ = child.Process.Kill() // an error says that it ended by itself, which Wait tells, too
		}
		return r.take(now)
	})
	ended := child.Wait()
	switch {
	case complaints.Len() > 0 || !killed && ctx.Err() == nil:
		return errors.Join(err, fmt.Errorf("the agent ended by itself: %w: %s", ended, bytes.TrimSpace(complaints.Bytes())))
	}
	return err
}

// An opening is what recovery.Open did after a kill.
type opening struct {
	low, took, high time.Duration // the median of several, and how far they went
	replayed        uint64        // events
	interrupted     int           // jobs
}

// reopenings is how often the time to open is measured after each kill: other work on the machine delays it now and then.
const reopenings = 5

// reopen opens what a kill left, and then again. Nothing is written meanwhile that would make it cheaper.
func reopen(s settings) (o opening, err error) {
	opts := s.options()
	opts.CheckpointEvery, opts.Retain = -1, 0
	var took []time.Duration
	for i := range reopenings {
		engine, err := recovery.Open(context.Background(), s.Dir, opts)
		if err != nil {
			return o, err
		}
		r := engine.Report()
		if took = append(took, r.Took); i == 0 {
			o.replayed, o.interrupted = r.Replayed, r.Interrupted
		}
		if err := engine.Close(); err != nil {
			return o, err
		}
	}
	slices.Sort(took)
	o.low, o.took, o.high = took[0], took[reopenings/2], took[reopenings-1]
	return o, nil
}

// readSamples hands on the whole lines that r yields; the last one may have been cut by the kill.
func readSamples(r io.Reader, take func(sample) error) error {
	for dec := json.NewDecoder(r); ; {
		var now sample
		err := dec.Decode(&now)
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, os.ErrClosed):
			return nil
		case err == nil:
			err = take(now)
		}
		if err != nil {
			return err
		}
	}
}
