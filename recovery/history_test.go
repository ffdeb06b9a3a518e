package recovery

import (
	"context"
	"fmt"
	"iter"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/wal"
)

// walked is what History yields: the seqs, and the errors.
func walked(e *Engine, id string) (seqs []uint64, errs []error) {
	for event, err := range e.History(context.Background(), id) {
		if err != nil {
			errs = append(errs, err)
			continue
		}
		seqs = append(seqs, event.Seq)
	}
	return seqs, errs
}

// The history of a job that was parked by a wrong Prev ended in silence where that Prev led, with older events left
// out. It says that the way back is broken, and yields what lies on this side.
func TestR4_F23_history_says_where_the_way_back_is_broken(t *testing.T) {
	submitted := wal.Event{Type: wal.JobSubmitted, JobID: "a"}
	for name, c := range map[string]struct {
		events []wal.Event
		want   []uint64
		broken bool
	}{
		"whole": {[]wal.Event{submitted, {Type: wal.JobValidated, JobID: "a", Prev: 1}}, []uint64{1, 2}, false},
		"prev says that it is the first": {
			[]wal.Event{submitted, {Type: wal.JobValidated, JobID: "a"}}, []uint64{2}, true},
		"and so says a later one": {
			[]wal.Event{submitted, {Type: wal.JobValidated, JobID: "a"}, {Type: wal.JobStarted, JobID: "a", Prev: 2}}, []uint64{2, 3}, true},
		"prev is of another job": {
			[]wal.Event{submitted, {Type: wal.JobSubmitted, JobID: "b"}, {Type: wal.JobValidated, JobID: "a", Prev: 2}}, []uint64{3}, true},
		"prev passes over an event": {
			[]wal.Event{submitted, {Type: wal.JobValidated, JobID: "a", Prev: 1}, {Type: wal.JobValidated, JobID: "a", Prev: 1}}, []uint64{1, 3}, true},
		"parked, but whole": {
			[]wal.Event{submitted, {Type: "job_paused", JobID: "a", Prev: 1}, {Type: wal.JobValidated, JobID: "a", Prev: 2}}, []uint64{1, 2, 3}, false},
		"begins in the middle": {[]wal.Event{{Type: wal.JobStarted, JobID: "a"}}, []uint64{1}, false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := written(t, c.events...)
			e := opened(t, dir)
			seqs, errs := walked(e, "a")
			require.Equal(t, c.want, seqs)
			require.Equal(t, c.broken, len(errs) == 1, "%v", errs)
			require.NoError(t, e.Close())

			plain, plainErrs := walked(openedOn(t, dir, func(log Log) Log { return struct{ Log }{log} }), "a")
			require.Equal(t, seqs, plain, "by a log that has no Chain")
			require.Equal(t, errs, plainErrs, "by a log that has no Chain")
		})
	}
}

// openedOn is an engine on a log that something was put around.
func openedOn(t *testing.T, dir string, around func(Log) Log) *Engine {
	log, err := wal.Open(dir, wal.Options{})
	require.NoError(t, err)
	e, err := OpenLog(context.Background(), around(OnDisk(log)), Options{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, e.Close()) })
	return e
}

// bentChain is a log whose Chain is not as it should be.
type bentChain struct {
	Log
	keep func(wal.Event) bool
}

func (b bentChain) Chain(ctx context.Context, seq uint64) iter.Seq2[wal.Event, error] {
	return func(yield func(wal.Event, error) bool) {
		for e, err := range b.Log.(Chains).Chain(ctx, seq) {
			if (err != nil || b.keep(e)) && !yield(e, err) {
				return
			}
		}
	}
}

// What a log's Chain leaves out is missed, wherever it is: work would be done again if a step were.
func TestHistory_believes_no_Chain(t *testing.T) {
	dir := written(t, wal.Event{Type: wal.JobSubmitted, JobID: "a"}, wal.Event{Type: wal.JobValidated, JobID: "a", Prev: 1},
		wal.Event{Type: wal.JobStarted, JobID: "a", Prev: 2})
	for missing := range uint64(4) {
		e := openedOn(t, dir, func(log Log) Log {
			return bentChain{log, func(e wal.Event) bool { return e.Seq != missing }}
		})
		seqs, errs := walked(e, "a")
		require.Equal(t, append([]uint64(nil), []uint64{1, 2, 3}[missing:]...), seqs, "what lies on this side")
		require.Equal(t, missing == 0, len(errs) == 0)
		if missing > 0 {
			require.ErrorContains(t, errs[0], fmt.Sprintf("broken at seq %d", missing))
		}
		require.NoError(t, e.Close())
	}
}
