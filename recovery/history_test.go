package recovery

import (
	"context"
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
			seqs, errs := walked(opened(t, written(t, c.events...)), "a")
			require.Equal(t, c.want, seqs)
			require.Equal(t, c.broken, len(errs) == 1, "%v", errs)
		})
	}
}
