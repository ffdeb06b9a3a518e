package recovery

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// written makes a log with the given events and returns its directory.
func written(t testing.TB, events ...wal.Event) string {
	dir := t.TempDir()
	l, err := wal.Open(dir, wal.Options{})
	require.NoError(t, err)
	for _, e := range events {
		_, err := l.Append(context.Background(), e)
		require.NoError(t, err)
	}
	require.NoError(t, l.Close())
	return dir
}

func opened(t testing.TB, dir string) *Engine {
	e, err := Open(context.Background(), dir, Options{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, e.Close()) })
	return e
}

// R4, F22, F23: each of these parks its own job, for a reason that names the event, and no other.
func TestR4_F22_F23_one_bad_event_parks_one_job(t *testing.T) {
	for name, bad := range map[string]wal.Event{
		"a type from the future": {Type: "job_paused", JobID: "bad", Prev: 2},
		"an illegal transition":  {Type: wal.JobCompleted, JobID: "bad", Prev: 2},
		"a wrong prev":           {Type: wal.JobValidated, JobID: "bad", Prev: 1},
		"a second submission":    {Type: wal.JobSubmitted, JobID: "bad", Prev: 2},
	} {
		t.Run(name, func(t *testing.T) {
			e := opened(t, written(t,
				wal.Event{Type: wal.JobSubmitted, JobID: "good"}, wal.Event{Type: wal.JobSubmitted, JobID: "bad"},
				bad,
				wal.Event{Type: wal.JobValidated, JobID: "good", Prev: 1}, wal.Event{Type: wal.JobValidated, JobID: "bad", Prev: 3}))
			good, _ := e.Job("good")
			require.Equal(t, statemachine.Validated, good.State)
			parked := e.Report().Parked
			require.Len(t, parked, 1)
			require.Equal(t, "bad", parked[0].ID)
			require.Contains(t, parked[0].Parked, "seq 3")
			require.Equal(t, statemachine.Submitted, parked[0].State)
			_, err := e.Validate(context.Background(), "bad")
			require.ErrorIs(t, err, statemachine.ErrParked)
			_, err = e.Start(context.Background(), "good")
			require.NoError(t, err)
			require.Equal(t, []string{}, append([]string{}, inOrder(e.Interrupted())...))
		})
	}
}

// F21: a line with a right checksum that is no event parks its job, or, if it has none, is listed.
func TestF21_an_undecodable_event_parks_its_job(t *testing.T) {
	dir := written(t, wal.Event{Type: wal.JobSubmitted, JobID: "bad"}, wal.Event{Type: wal.JobSubmitted, JobID: "good"})
	path := filepath.Join(dir, "00000000000000000001.jsonl")
	segment, err := os.ReadFile(path)
	require.NoError(t, err)
	segment = segment[:bytes.Index(segment, []byte(`{"mark":"closed"`))]
	_, rest, _ := bytes.Cut(segment, []byte(`"salt":"`))
	salt := rest[:16]
	for _, body := range []string{
		`{"seq":3,"prev":1,"epoch":1,"ts":1,"ns":0,"type":"job_failed","job_id":"bad","error":"a","error":"b","durable":2`,
		`{"seq":4,"prev":0,"epoch":1,"ts":1,"ns":0,"type":"job_failed","job_id":7,"durable":3`,
	} {
		table := crc32.MakeTable(crc32.Castagnoli)
		sum := crc32.Update(crc32.Checksum(salt, table), table, []byte(body))
		segment = fmt.Appendf(segment, "%s,\"crc\":\"%08x\"}\n", body, sum)
	}
	require.NoError(t, os.WriteFile(path, segment, 0o644))

	e := opened(t, dir)
	r := e.Report()
	require.Empty(t, r.WAL.Torn)
	require.Len(t, r.Parked, 1)
	require.Equal(t, "bad", r.Parked[0].ID)
	require.Contains(t, r.Parked[0].Parked, "duplicate name")
	require.Len(t, r.Unreadable, 1)
	require.EqualValues(t, 4, r.Unreadable[0].Seq)
	_, err = e.Validate(context.Background(), "good")
	require.NoError(t, err)
}

// breaking fails, one way or the other, at its nth event.
type breaking struct {
	n      int
	panics bool
}

func (b *breaking) Name() string { return fmt.Sprintf("breaking-%t", b.panics) }
func (b *breaking) Apply(wal.Event, statemachine.Job) error {
	if b.n--; b.n > 0 {
		return nil
	}
	if b.panics {
		panic("out of order")
	}
	return errors.New("out of order")
}

// F25: a projection that fails, or panics, is reported by name, seq and job; all else goes on.
func TestF25_a_failing_projection_harms_nobody(t *testing.T) {
	ctx, well := context.Background(), &recorder{}
	e, err := Open(ctx, t.TempDir(), Options{Projections: []projection.Projection{
		&breaking{n: 2}, &breaking{n: 3, panics: true}, well,
	}})
	require.NoError(t, err)
	for _, c := range []Command{Submit(Submission{JobID: "a"}), Validate("a"), Start("a"), Complete("a", 1)} {
		_, err := e.Do(ctx, c)
		require.NoError(t, err, "the command that meets it is acknowledged")
	}
	require.Equal(t, []uint64{1, 2, 3, 4}, well.seqs)
	failed := e.Report().Failed
	require.Len(t, failed, 2)
	require.Equal(t, []any{"breaking-false", uint64(2), "a"}, []any{failed[0].Name, failed[0].Seq, failed[0].JobID})
	require.Equal(t, []any{"breaking-true", uint64(3), "a"}, []any{failed[1].Name, failed[1].Seq, failed[1].JobID})
	require.ErrorContains(t, failed[1], "panic: out of order")
	require.NoError(t, e.Close())
}

func TestProjectionNamesAreTheirOwn(t *testing.T) {
	for _, projections := range [][]projection.Projection{
		{nil}, {projection.NewStats()}, {&recorder{}, &recorder{}},
	} {
		_, err := Open(context.Background(), t.TempDir(), Options{Projections: projections})
		require.ErrorIs(t, err, wal.ErrInvalid)
	}
}

// A checkpoint whose context was done in the moment when it got its turn kept the turn for ever: every later one, and Close,
// waited for it. So it could go for whoever closed an engine in the moment when a checkpoint was due.
func TestCheckpointGivesItsTurnBack(t *testing.T) {
	e, err := Open(context.Background(), t.TempDir(), Options{})
	require.NoError(t, err)
	done, cancel := context.WithCancel(context.Background())
	cancel()
	for range 50 {
		require.ErrorIs(t, e.Checkpoint(done), context.Canceled)
		_, err := e.Compact(done, 0)
		require.ErrorIs(t, err, context.Canceled)
	}
	require.Empty(t, e.keeping, "who has the turn?")
	require.NoError(t, e.Close())
}
