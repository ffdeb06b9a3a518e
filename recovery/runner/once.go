package runner

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"sync"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// A SubmitOption is one of [Runner.Submit].
type SubmitOption struct {
	id   string
	once bool
}

// ID is the new job's id, in place of one made at random: see [recovery.Submission]. If there is a job of that id, the error is
// statemachine.ErrDuplicateJob.
func ID(id string) SubmitOption { return SubmitOption{id: id} }

// Once is [ID] for a submission that may be made again: after a crash, or when its outcome is not known. If there is a job of
// that id, of the same capability and with the same args, no other is made; Submit returns that one, however it stands, and
// [Capability.Do] waits for it. So choose an id that is the same the next time: that of the request, or, where a job submits
// others, its own and a name ([JobOf]).
//
// Args are the same if their JSON is, but for white space: a field that a new version of the program adds makes them others.
// statemachine.ErrDuplicateJob: the job that is there is another. wal.ErrInvalid: the id is empty. recovery.ErrForgotten: it was there, has ended, and is
// forgotten. One that an earlier process left is not in this runner until [Runner.Recover]: call that first.
func Once(id string) SubmitOption { return SubmitOption{id, true} }

// submission puts options together; the last one decides.
func submission(capability string, args any, opts []SubmitOption) (s recovery.Submission, once bool, err error) {
	s = recovery.Submission{Capability: capability, Args: args}
	for _, o := range opts {
		s.JobID, once = o.id, o.once
	}
	if once && s.JobID == "" { // a random one would be another each time
		err = &wal.InvalidError{Field: "JobID", Reason: "empty, and the job is to be made once"}
	}
	return s, once, err
}

// made is there, for whoever has no turn yet.
func (r *Runner) made(ctx context.Context, s recovery.Submission) (t *task, job statemachine.Job, ok bool, err error) {
	if err := r.turns.take(ctx, s.JobID); err != nil {
		return nil, job, true, err
	}
	defer r.turns.give(s.JobID)
	job, ok, err = r.there(ctx, s)
	return r.task(s.JobID), job, ok, err
}

// there returns the job that a submission would make, if it was made before; ok: there is one, or an error.
func (r *Runner) there(ctx context.Context, s recovery.Submission) (job statemachine.Job, ok bool, err error) {
	job, known := r.engine.Job(s.JobID)
	if !known {
		return job, false, nil
	}
	if job.Capability != s.Capability {
		return job, true, fmt.Errorf("runner: job %q is of capability %q: %w", job.ID, job.Capability, statemachine.ErrDuplicateJob)
	}
	same, err := r.sameArgs(ctx, job, s.Args)
	if err == nil && !same {
		err = fmt.Errorf("runner: job %q has other args: %w", job.ID, statemachine.ErrDuplicateJob)
	}
	return job, true, err
}

func (r *Runner) sameArgs(ctx context.Context, job statemachine.Job, args any) (bool, error) {
	want, err := marshal(args)
	if err != nil {
		return false, &wal.InvalidError{Field: "Args", Reason: err.Error()}
	}
	have, err := r.engine.Read(ctx, job.Args)
	if len(have) == 0 {
		have = json.RawMessage("null") // nil is submitted as no args
	}
	return err == nil && bytes.Equal(want, have), err
}

// turns lets one caller at a time have an id. Between the job's first event and its place among the tasks nobody else is to look
// for it: it would be taken for one that another process has left.
type turns struct {
	mu    sync.Mutex
	taken map[string]chan struct{} // closed when it is free
}

func (q *turns) take(ctx context.Context, id string) error {
	for {
		free := q.try(id)
		if free == nil {
			return nil
		}
		select {
		case <-free:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// try returns nil if the id is the caller's now.
func (q *turns) try(id string) <-chan struct{} {
	q.mu.Lock()
	defer q.mu.Unlock()
	if free := q.taken[id]; free != nil {
		return free
	}
	if q.taken == nil {
		q.taken = make(map[string]chan struct{})
	}
	q.taken[id] = make(chan struct{})
	return nil
}

func (q *turns) give(id string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	close(q.taken[id])
	delete(q.taken, id)
}
