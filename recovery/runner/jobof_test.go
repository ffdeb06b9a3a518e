package runner

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/statemachine"
)

// Every function of a capability is told which job it is called for: a key for what is idempotent, or a name for a backup.
func TestJobOf_in_all_functions(t *testing.T) {
	var l ledger
	note := func(ctx context.Context, what string) {
		job, ok := JobOf(ctx)
		l.note("%s %s %s %d %v", what, job.ID, job.State, job.Attempts, ok)
	}
	x := script{
		validate: func(ctx context.Context, _ int) error { note(ctx, "validate"); return nil },
		execute:  func(ctx context.Context, _ int) (int, error) { note(ctx, "execute"); return 0, errBroken },
		undo:     func(ctx context.Context, _ int, _ Done) error { note(ctx, "undo"); return nil },
		reconcile: func(ctx context.Context, _ int) (Found[int], error) {
			note(ctx, "reconcile")
			return CantTell[int]("why"), nil
		},
	}
	p := newPool(t, does(x, Settings{Effect: recovery.Reconcilable}), Options{})
	p.run("do", "a", 0)
	_, err := p.engine.Do(t.Context(), recovery.Submit(recovery.Submission{JobID: "b", Capability: "do"}), recovery.Validate("b"), recovery.Start("b"))
	require.NoError(t, err)
	p = p.after(does(x, Settings{Effect: recovery.Reconcilable}), Options{})
	_, err = p.Recover(t.Context())
	require.NoError(t, err)
	require.Equal(t, []string{"validate a submitted 0 true", "execute a started 1 true", "undo a failed 1 true", "reconcile b started 1 true"}, l.all())
	_, ok := JobOf(context.Background())
	require.False(t, ok)
}

// One job's work has another undone: what is done for that is not the first one's, nor are there steps.
func TestJobOf_of_a_job_that_another_rolls_back(t *testing.T) {
	var p *pool
	var seen statemachine.Job
	var step error
	reg := does(script{undo: func(ctx context.Context, _ int, _ Done) error {
		seen, _ = JobOf(ctx)
		_, step = Step(ctx, "no", func(context.Context) (int, error) { return 0, nil })
		return nil
	}}, Settings{})
	Add(reg, "undo", Func[string, int](func(ctx context.Context, id string) (int, error) {
		_, err := p.RollBack(ctx, id, "no longer wanted")
		return 0, err
	}), Settings{})
	p = newPool(t, reg, Options{})
	p.run("do", "a", 1)
	require.Equal(t, statemachine.Completed, p.run("undo", "b", "a").State)
	require.Equal(t, "a", seen.ID)
	require.ErrorIs(t, step, ErrNoJob)
	require.Equal(t, []string{"submitted", "validated", "started", "completed"}, p.story("b"))
}
