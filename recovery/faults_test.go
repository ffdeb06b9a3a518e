package recovery

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
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
			require.Equal(t, []string{}, append([]string{}, idsOf(e.Interrupted())...))
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

// F1: an engine's log cut at every byte opens to the fold of the events that are whole.
func TestF1_R2_a_log_cut_at_every_byte(t *testing.T) {
	ctx, disk := context.Background(), crashfs.New()
	e, err := Open(ctx, "jobs", Options{WAL: wal.Options{FS: disk}})
	require.NoError(t, err)
	for i := range 3 {
		id := fmt.Sprint("job-", i)
		_, err := e.Do(ctx, Submit(Submission{JobID: id, Args: "größe"}), Validate(id))
		require.NoError(t, err)
		_, err = e.Start(ctx, id)
		require.NoError(t, err)
	}
	require.NoError(t, e.Close())
	f, err := disk.OpenFile("jobs/00000000000000000001.jsonl", os.O_RDONLY, 0)
	require.NoError(t, err)
	size, err := f.Size()
	require.NoError(t, err)
	whole := make([]byte, size)
	_, err = f.ReadAt(whole, 0)
	require.NoError(t, err)
	for cut := range whole {
		checkCut(t, whole[:cut])
	}
}

// checkCut opens what is left of a log and holds it against the lines that are whole.
func checkCut(t *testing.T, left []byte) {
	disk := crashfs.New()
	require.NoError(t, disk.Mkdir("jobs", 0o755))
	f, err := disk.OpenFile("jobs/00000000000000000001.jsonl", os.O_RDWR|os.O_CREATE, 0o644)
	require.NoError(t, err)
	_, err = f.WriteAt(left, 0)
	require.NoError(t, err)
	want, pending := make(map[string]statemachine.State), make(map[string]statemachine.State)
	for line := range strings.Lines(string(left)) {
		if !strings.HasSuffix(line, "}\n") || !strings.HasPrefix(line, `{"seq"`) {
			continue
		}
		_, id, _ := strings.Cut(line, `"job_id":"`)
		_, kind, _ := strings.Cut(line, `"type":"`)
		pending[id[:5]] = step(max(want[id[:5]], pending[id[:5]]), wal.EventType(kind[:strings.IndexByte(kind, '"')]))
		if !strings.Contains(line, `"more":`) { // a group counts when it is whole
			for id, state := range pending {
				want[id] = state
			}
			clear(pending)
		}
	}
	e, err := Open(context.Background(), "jobs", Options{WAL: wal.Options{FS: disk}})
	require.NoError(t, err, "cut at byte %d", len(left))
	got := make(map[string]statemachine.State)
	for id, job := range states(e) {
		got[id] = job.State
	}
	require.NoError(t, e.Close())
	require.Equal(t, want, got, "cut at byte %d", len(left))
}

// F3, F4: a flipped bit anywhere in a closed log is refused, or touches nothing that was acknowledged.
func TestF3_F4_a_flipped_bit_is_refused_or_harmless(t *testing.T) {
	dir := written(t, wal.Event{Type: wal.JobSubmitted, JobID: "a"}, wal.Event{Type: wal.JobValidated, JobID: "a", Prev: 1},
		wal.Event{Type: wal.JobStarted, JobID: "a", Prev: 2})
	whole, err := os.ReadFile(filepath.Join(dir, "00000000000000000001.jsonl"))
	require.NoError(t, err)
	rapid.Check(t, func(rt *rapid.T) {
		bit := rapid.IntRange(0, 8*len(whole)-1).Draw(rt, "bit")
		flipped := bytes.Clone(whole)
		flipped[bit/8] ^= 1 << (bit % 8)
		dir := t.TempDir()
		require.NoError(rt, os.WriteFile(filepath.Join(dir, "00000000000000000001.jsonl"), flipped, 0o644))
		e, err := Open(context.Background(), dir, Options{})
		if err != nil {
			require.ErrorIs(rt, err, wal.ErrCorrupt)
			return
		}
		job, _ := e.Job("a")
		require.Equal(rt, statemachine.Started, job.State)
		require.NoError(rt, e.Close())
	})
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
