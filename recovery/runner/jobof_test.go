package runner

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/statemachine"
)

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
