package recovery

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

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

// known is what the model remembers of a job.
type known struct {
	state statemachine.State
	seqs  []uint64
	epoch uint64
}

// model is the acknowledged events, folded by step, and an engine on a disk that can lose power.
type model struct {
	t      *rapid.T
	disk   *crashfs.FS
	engine *Engine
	jobs   map[string]known
	epoch  uint64
	last   uint64
	shadow *recorder
}

// recorder is a projection that keeps everything it is told.
type recorder struct{ seqs []uint64 }

func (r *recorder) Name() string { return "recorder" }
func (r *recorder) Apply(e wal.Event, _ statemachine.Job) error {
	r.seqs = append(r.seqs, e.Seq)
	return nil
}

func (m *model) open() {
	m.shadow = &recorder{}
	opts := Options{WAL: wal.Options{FS: m.disk, SegmentBytes: 2048}, Projections: []projection.Projection{m.shadow}}
	engine, err := Open(context.Background(), "jobs", opts)
	require.NoError(m.t, err)
	m.engine, m.epoch = engine, m.epoch+1
	require.Equal(m.t, m.epoch, engine.Report().WAL.Epoch)
}

var someIDs = []string{"a", "b", "c", "größe 🚀", "e"}

func (m *model) command() Command {
	id := rapid.SampledFrom(someIDs).Draw(m.t, "id")
	switch rapid.IntRange(0, 5).Draw(m.t, "command") {
	case 0:
		return Submit(Submission{JobID: id, Capability: "x", Args: map[string]any{"n": m.last}})
	case 1:
		return Validate(id)
	case 2:
		return Start(id)
	case 3:
		return Complete(id, "done <&>")
	case 4:
		return Fail(id, errors.New("no \xff good"))
	}
	return RollBack(id, "undone")
}

// do carries out a group, and holds what came of it against the reference.
func (m *model) do(commands ...Command) {
	jobs, legal, seq := maps.Clone(m.jobs), true, m.last
	for _, c := range commands {
		job := jobs[c.id]
		to := step(job.state, c.event)
		if legal = legal && to != ""; !legal {
			break
		}
		seq++
		jobs[c.id] = known{to, append(slices.Clone(job.seqs), seq), m.epoch}
	}
	got, err := m.engine.Do(context.Background(), commands...)
	if !legal {
		var refused *statemachine.TransitionError
		require.ErrorAs(m.t, err, &refused)
		for _, on := range refused.Allowed {
			require.NotEmpty(m.t, step(refused.From, on), "offered, but not allowed")
		}
		return
	}
	require.NoError(m.t, err)
	m.jobs, m.last = jobs, seq
	for i, c := range commands { // a caller reads its own writes
		require.Equal(m.t, jobs[c.id].state, got[i].State)
	}
}

// check holds the whole engine against the model. R1, S1.
func (m *model) check() {
	count := 0
	for job := range m.engine.Jobs(projection.Query{}) {
		want := m.jobs[job.ID]
		require.Equal(m.t, want.state, job.State, job.ID)
		require.Equal(m.t, want.seqs[len(want.seqs)-1], job.Seq)
		require.Equal(m.t, want.epoch, job.Epoch)
		require.Empty(m.t, job.Parked)
		require.Equal(m.t, want.seqs, m.history(job.ID))
		count++
	}
	require.Equal(m.t, len(m.jobs), count)
	require.Equal(m.t, m.interrupted(), idsOf(m.engine.Interrupted()))
	require.Len(m.t, m.shadow.seqs, int(m.last))
	for i, seq := range m.shadow.seqs {
		require.EqualValues(m.t, i+1, seq, "a projection sees every event once, in order")
	}
}

func (m *model) history(id string) (seqs []uint64) {
	for e, err := range m.engine.History(context.Background(), id) {
		require.NoError(m.t, err)
		seqs = append(seqs, e.Seq)
	}
	return seqs
}

func (m *model) interrupted() (ids []string) {
	for id, job := range m.jobs {
		unfinished := job.state == "submitted" || job.state == "validated" || job.state == "started"
		if unfinished && job.epoch != m.epoch {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

func idsOf(jobs []statemachine.Job) (ids []string) {
	for _, job := range jobs {
		ids = append(ids, job.ID)
	}
	slices.Sort(ids)
	return ids
}

// crash cuts the power, in any way that the disk may take it, and opens again: everything was acknowledged, so
// everything has to be there.
func (m *model) crash() {
	seed := rapid.Uint64().Draw(m.t, "crash")
	after := m.disk.CrashSeed(seed)
	_ = m.engine.Close() // the old process is gone; this only ends its goroutines, on the old disk
	m.disk = after
	m.open()
}

// R1, R2, R3, S1: whatever is done, refused, crashed and reopened, the engine is the fold of what it acknowledged.
func TestR1_R2_S1_engine_is_the_fold_of_its_acknowledged_events(t *testing.T) {
	rapid.Check(t, checkModel)
}

func FuzzEngine(f *testing.F) { f.Fuzz(rapid.MakeFuzz(checkModel)) }

func checkModel(t *rapid.T) {
	m := &model{t: t, disk: crashfs.New(), jobs: make(map[string]known)}
	m.open()
	t.Repeat(map[string]func(*rapid.T){
		"command": func(t *rapid.T) { m.t = t; m.do(m.command()) },
		"group": func(t *rapid.T) {
			m.t = t
			commands := make([]Command, rapid.IntRange(2, 6).Draw(t, "of"))
			for i := range commands {
				commands[i] = m.command()
			}
			m.do(commands...)
		},
		"whole job": func(t *rapid.T) {
			m.t = t
			id := fmt.Sprintf("job-%d", m.last)
			m.do(Submit(Submission{JobID: id}), Validate(id), Start(id), Complete(id, nil))
		},
		"reopen": func(t *rapid.T) { m.t = t; require.NoError(t, m.engine.Close()); m.open() },
		"crash":  func(t *rapid.T) { m.t = t; m.crash() },
		"":       func(t *rapid.T) { m.t = t; m.check() },
	})
	require.NoError(t, m.engine.Close())
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
