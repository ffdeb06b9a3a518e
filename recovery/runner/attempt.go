package runner

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/statemachine"
)

// ErrFenced and ErrNoHeartbeat: a stand-in.
var (
	ErrFenced      = errors.New("runner: fenced")
	ErrNoHeartbeat = errors.New("runner: no heartbeat")
	ErrStepOrder   = errors.New("runner: step order")
)

type attemptSettings struct {
	progress, heartbeat time.Duration
	logger              *slog.Logger
}

type attempt struct {
	e   *recovery.Engine
	job statemachine.Job
}

func newAttempt(e *recovery.Engine, job statemachine.Job, _ []recovery.StepRecord, _ attemptSettings) *attempt {
	return &attempt{e, job}
}

func (a *attempt) context(parent context.Context) (context.Context, context.CancelCauseFunc) {
	return context.WithCancelCause(parent)
}

func (a *attempt) end(ctx context.Context, commands ...recovery.Command) (statemachine.Job, error) {
	commands[0] = commands[0].IfSeq(a.job.Seq)
	jobs, err := a.e.Do(ctx, commands...)
	if err != nil {
		return statemachine.Job{}, err
	}
	return jobs[0], nil
}

func (a *attempt) complete(ctx context.Context, output any) (statemachine.Job, error) {
	return a.end(ctx, recovery.Complete(a.job.ID, output))
}

func (a *attempt) close()                       {}
func (a *attempt) steps() []recovery.StepRecord { return nil }
func (a *attempt) broken() error                { return nil }
