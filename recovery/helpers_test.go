package recovery

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// step is the reference machine: where a command leads to, by a plain switch that knows nothing of the lifecycle's
// table. "" means refused.
func step(from statemachine.State, on wal.EventType) statemachine.State {
	switch on {
	case wal.JobSubmitted:
		if from == "" {
			return "submitted"
		}
	case wal.JobValidated:
		if from == "submitted" {
			return "validated"
		}
	case wal.JobStarted:
		if from == "validated" {
			return "started"
		}
	case wal.JobCompleted:
		if from == "started" {
			return "completed"
		}
	case wal.JobFailed:
		if from == "submitted" || from == "validated" || from == "started" {
			return "failed"
		}
	case wal.JobRolledBack:
		if from == "completed" || from == "failed" {
			return "rolled_back"
		}
	}
	return ""
}

// recorder is a projection that keeps everything it is told.
type recorder struct{ seqs []uint64 }

func (r *recorder) Name() string { return "recorder" }
func (r *recorder) Apply(e wal.Event, _ statemachine.Job) error {
	r.seqs = append(r.seqs, e.Seq)
	return nil
}

var someIDs = []string{"a", "b", "c", "größe 🚀", "e"}

func idsOf(jobs []statemachine.Job) (ids []string) {
	for _, job := range jobs {
		ids = append(ids, job.ID)
	}
	slices.Sort(ids)
	return ids
}

// states is what an engine says of its jobs, for comparing.
func states(e *Engine) map[string]statemachine.Job {
	all := make(map[string]statemachine.Job)
	for job := range e.Jobs(projection.Query{}) {
		all[job.ID] = job
	}
	return all
}

// R3, F14: power goes at every operation of a workload, and once more at every operation of the recovery.
func TestR3_crash_at_every_operation(t *testing.T) {
	whole := crashfs.Inject(crashfs.New(), nil)
	acked := work(t, whole)
	require.Equal(t, 14, acked)
	images := 0
	for at := 1; at <= whole.Count(); at++ {
		for _, seed := range []uint64{1, 2, 3} {
			disk := crashfs.New()
			acked := work(t, crashfs.Inject(disk, crashfs.MustSchedule(fmt.Sprint("crash ", at))))
			images += recoverTwice(t, disk.CrashSeed(seed), acked)
		}
	}
	t.Logf("%d crash images", images)
}

// work is a workload that may be cut off anywhere. It returns how many events were acknowledged before.
func work(t *testing.T, disk wal.FS) (acked int) {
	ctx := context.Background()
	e, err := Open(ctx, "jobs", Options{WAL: wal.Options{FS: disk, SegmentBytes: 1024}})
	if err != nil {
		return 0
	}
	defer e.Close() // it may fail: the power is gone
	for i := range 3 {
		id := fmt.Sprint("job-", i)
		for _, commands := range [][]Command{
			{Submit(Submission{JobID: id, Args: i})}, {Validate(id), Start(id)}, {Complete(id, i)},
		} {
			if _, err := e.Do(ctx, commands...); err != nil {
				return acked
			}
			acked += len(commands)
		}
	}
	for _, c := range []Command{RollBack("job-0", "why not"), Submit(Submission{JobID: "open"})} {
		if _, err := e.Do(ctx, c); err != nil {
			return acked
		}
		acked++
	}
	return acked
}

// recoverTwice opens a crashed disk, at every operation of which the power goes again, and holds both ends equal.
func recoverTwice(t *testing.T, disk *crashfs.FS, acked int) (images int) {
	want, n := recovered(t, disk.Crash(crashfs.Everything))
	require.GreaterOrEqual(t, n, acked, "an acknowledged event is missing")
	for at := 1; ; at++ {
		image := disk.Crash(crashfs.Everything)
		faulty := crashfs.Inject(image, crashfs.MustSchedule(fmt.Sprint("crash ", at)))
		e, err := Open(context.Background(), "jobs", Options{WAL: wal.Options{FS: faulty, SegmentBytes: 1024}})
		if err == nil {
			err = e.Close()
		}
		if err == nil {
			return images
		}
		got, again := recovered(t, image.CrashSeed(uint64(at)))
		require.GreaterOrEqual(t, again, acked)
		if again == n {
			require.Equal(t, want, got)
		}
		images++
	}
}

// recovered opens a disk twice: R2, both are the same.
func recovered(t *testing.T, disk wal.FS) (jobs map[string]statemachine.Job, events int) {
	for range 2 {
		e, err := Open(context.Background(), "jobs", Options{WAL: wal.Options{FS: disk, SegmentBytes: 1024}})
		require.NoError(t, err)
		got := states(e)
		if jobs != nil {
			require.Equal(t, jobs, got)
		}
		jobs, events = got, int(e.Report().Replayed)
		require.Empty(t, e.Report().Parked)
		require.NoError(t, e.Close())
	}
	return jobs, events
}
