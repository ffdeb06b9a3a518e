package runner

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/statemachine"
)

// spoiler changes what it is given, in each of its functions.
type spoiler struct{ l *ledger }

func (s spoiler) note(what string, args *int) {
	s.l.note("%s %d", what, *args)
	*args++
}

func (s spoiler) Validate(_ context.Context, args *int) error { s.note("validate", args); return nil }

func (s spoiler) Execute(ctx context.Context, args *int) (int, error) {
	s.note("execute", args)
	if job, _ := JobOf(ctx); job.Attempts == 1 {
		return 0, errBroken
	}
	return 0, Permanent(errBroken)
}

func (s spoiler) Undo(_ context.Context, args *int, _ Done) error { s.note("undo", args); return nil }

func (s spoiler) Reconcile(_ context.Context, args *int) (Found[int], error) {
	s.note("reconcile", args)
	return DidNotHappen[int](), nil
}

// What a function makes of the args that it is given is not in the log: the next one is given them as they were submitted, in this
// process as in the next. (What Validate had put in order Execute had so, but for the first time after a crash.)
func TestArgs_are_those_that_were_submitted(t *testing.T) {
	var l ledger
	reg := NewRegistry()
	Add(reg, "do", spoiler{&l}, Settings{Effect: recovery.Reconcilable, Retry: Backoff{First: 1}})
	p := newPool(t, reg, Options{})
	require.Equal(t, statemachine.RolledBack, p.run("do", "a", 1).State)
	require.Equal(t, []string{"validate 1", "execute 1", "reconcile 1", "execute 1", "undo 1"}, l.all())
}
