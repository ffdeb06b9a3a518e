package crashtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// eon is one log through many lives, and all that anybody ever asked of it or was shown of it.
type eon struct {
	t    *testing.T
	r    *rand.Rand
	base *crashfs.FS
	h    History

	// What happened, so that a test which tests nothing shows.
	crashes, inOpen, clean, pictures, torn int
}

// enter begins a life on a disk that stops at an operation, never if it is 0. It may stop while the engine opens.
func (w *eon) enter(crashAt int) (*crashfs.Faulty, *recovery.Engine) {
	var schedule crashfs.Schedule
	if crashAt > 0 {
		schedule = crashfs.MustSchedule(fmt.Sprint("crash ", crashAt))
	}
	disk := crashfs.Inject(w.base, schedule)
	e, err := recovery.Open(context.Background(), "jobs", recovery.Options{WAL: wal.Options{FS: disk, SegmentBytes: 8 << 10}})
	if err != nil {
		require.ErrorIs(w.t, err, crashfs.ErrCrashed)
		w.inOpen++
		return disk, nil
	}
	report := e.Report().WAL
	w.torn += len(report.Torn)
	w.h.Opened(report.Epoch, report.LastSeq)
	require.NoError(w.t, Check(&w.h, Events(e)), "as the life begins")
	return disk, e
}

// life is many callers and some readers, until the end of the disk, of the engine, or of the world below a disk that
// goes on. It leaves the disk of the next life.
func (w *eon) life(number int) {
	how := number % 4
	crashAt := 0
	switch how {
	case early: // of which some are in Open
		crashAt = 1 + w.r.IntN(20)
	case late:
		crashAt = 20 + w.r.IntN(150)
	}
	before := len(w.h.Attempts())
	disk, e := w.enter(crashAt)
	if e == nil {
		w.h.Crash()
		w.power(w.base)
		return
	}
	var callers, readers sync.WaitGroup
	following, stop := context.WithCancel(context.Background())
	for range 3 {
		from := 1 + w.r.Uint64N(e.Stats().Events+1)
		readers.Go(func() { w.read(following, e, from) })
	}
	acks := make(acks, 64)
	for g := range 8 {
		seed := w.r.Uint64()
		callers.Go(func() { w.work(e, fmt.Sprint(number, "-", g), rand.New(rand.NewPCG(seed, 0)), acks) })
	}
	go func() { callers.Wait(); close(acks) }()
	next := w.base
	switch how {
	case byClose: // in the middle of it all
		acks.take(w.r.IntN(120))
		require.NoError(w.t, e.Close())
		w.clean++
	case byPicture: // the power goes; the old world does not know it yet, and goes on answering
		acks.take(w.r.IntN(120))
		w.h.Crash()
		next = w.base.CrashSeed(w.r.Uint64())
		w.pictures++
		acks.take(20)
		disk.Stop()
	}
	acks.take(math.MaxInt) // until all callers have found out
	stop()
	readers.Wait()
	_ = e.Close() // the power may be gone
	if how == byClose {
		for _, a := range w.h.Attempts()[before:] {
			require.NotEqual(w.t, OutcomeUnknown, a.Outcome, "Close leaves no doubt: %v", &a)
		}
	}
	w.base = next
	if how == early || how == late {
		w.h.Crash()
		w.power(w.base)
	}
}

// The ways in which a life ends. The first two are the power, at one of the disk's operations.
const (
	early = iota
	late
	byClose
	byPicture
)

// acks has something in it for each acknowledgement, and is closed when there will be no more.
type acks chan struct{}

func (a acks) take(n int) {
	for ; n > 0; n-- {
		if _, more := <-a; !more {
			return
		}
	}
}

// power makes the next disk what this one may leave.
func (w *eon) power(disk *crashfs.FS) {
	w.crashes++
	w.base = disk.CrashSeed(w.r.Uint64())
}

// read follows the log and puts on record what it is shown.
func (w *eon) read(ctx context.Context, e *recovery.Engine, from uint64) {
	for event, err := range e.Follow(ctx, from) {
		if err != nil {
			return
		}
		w.h.Saw(event)
	}
}

// work asks for random groups, over a few jobs that all fight for and some of its own, until the log takes no more.
func (w *eon) work(e *recovery.Engine, name string, r *rand.Rand, acks acks) {
	for n := 0; ; n++ {
		steps := make([]Step, 1+r.IntN(3))
		own := fmt.Sprint("own-", name, "-", n/4)
		for i := range steps {
			id := own
			if r.IntN(3) == 0 {
				id = fmt.Sprint("job-", r.IntN(40))
			}
			steps[i] = nextStep(r, e, id, steps[:i])
		}
		ctx, cancel := context.WithCancel(context.Background())
		if r.IntN(8) == 0 {
			go cancel() // it loses patience, at any moment
		}
		_, err := w.h.Do(ctx, e, steps...)
		cancel()
		if err == nil {
			acks <- struct{}{}
		}
		if errors.Is(err, wal.ErrClosed) || errors.Is(err, wal.ErrFailed) {
			return
		}
	}
}

// nextStep is one that the job may take, as far as the caller knows; somebody else may be faster, and now and then it
// does not care.
func nextStep(r *rand.Rand, e *recovery.Engine, id string, before []Step) Step {
	job, _ := e.Job(id)
	state := string(job.State)
	for _, s := range before {
		if s.JobID == id {
			state, _ = after(state, s.Type)
		}
	}
	steps := []Step{
		{Type: wal.JobSubmitted, JobID: id, Capability: "shell", Args: json.RawMessage(fmt.Sprintf(`{"n":%d}`, r.IntN(2)))},
		validate(id), start(id), fail(id),
		{Type: wal.JobCompleted, JobID: id, Output: json.RawMessage(`"done"`)},
		{Type: wal.JobRolledBack, JobID: id, Error: "undone"},
	}
	r.Shuffle(len(steps), func(i, k int) { steps[i], steps[k] = steps[k], steps[i] })
	for _, s := range steps {
		if _, legal := after(state, s.Type); legal || r.IntN(20) == 0 {
			return s
		}
	}
	return steps[0]
}

// W1, W2, W3, W6, R1, R2, R3, S1, F14, F26: many callers ask for random groups of steps, readers follow, and the power
// goes at any operation, or while they are all at work on a disk that goes on without them, or somebody closes the engine
// among them; then again, on what the crash left. After every one of many such lives the whole log is what callers and
// readers of all lives know, and the engine is the fold of it.
func TestW1_W2_W6_R2_S1_F14_F26_many_callers_and_many_lives(t *testing.T) {
	t.Parallel()
	var sum eon
	outcomes := make(map[Outcome]int)
	for seed := range uint64(4) {
		w := &eon{t: t, r: rand.New(rand.NewPCG(seed, 3)), base: crashfs.New()}
		for number := range 8 {
			w.life(number)
			picture := w.base.Crash(crashfs.SyncedOnly)
			require.NoError(t, Recover(picture, "jobs", &w.h, recovery.Options{}), "eon %d, after life %d", seed, number)
		}
		for _, a := range w.h.Attempts() {
			outcomes[a.judged()]++
		}
		sum.crashes, sum.inOpen, sum.clean = sum.crashes+w.crashes, sum.inOpen+w.inOpen, sum.clean+w.clean
		sum.pictures, sum.torn = sum.pictures+w.pictures, sum.torn+w.torn
	}
	t.Logf("32 lives: %d ended at an operation, %d of them in Open, %d while a picture was taken, %d by Close; %d torn tails; commands %v",
		sum.crashes, sum.inOpen, sum.pictures, sum.clean, sum.torn, outcomes)
	require.Positive(t, outcomes[OutcomeUnknown])
	require.Positive(t, outcomes[OutcomeFailed])
	require.Positive(t, outcomes[OutcomeOK])
	require.Positive(t, sum.inOpen)
}

// The same test has teeth: a log that does not sync is caught, by the first crash that takes what was not synced.
func TestManyCallersCatchALogThatDoesNotSync(t *testing.T) {
	w := &eon{t: t, r: rand.New(rand.NewPCG(1, 2)), base: crashfs.New()}
	all := Saboteurs()
	s := all[slices.IndexFunc(all, func(s Saboteur) bool { return s.Name == NoFsync })]
	e, err := recovery.Open(context.Background(), "jobs", recovery.Options{WAL: wal.Options{FS: s.FS(w.base)}})
	require.NoError(t, err)
	w.h.Opened(e.Report().WAL.Epoch, 0)
	var callers sync.WaitGroup
	acks := make(acks, 4)
	for g := range 4 {
		callers.Go(func() { w.work(e, fmt.Sprint(g), rand.New(rand.NewPCG(uint64(g), 0)), acks) })
	}
	go func() { callers.Wait(); close(acks) }()
	acks.take(50)
	w.h.Crash()
	left := w.base.Crash(crashfs.SyncedOnly)
	require.NoError(t, e.Close())
	acks.take(math.MaxInt)
	var v *Violation
	require.ErrorAs(t, Recover(left, "jobs", &w.h, recovery.Options{}), &v)
	require.Equal(t, RuleAcknowledged, v.Rule)
	require.Equal(t, OutcomeOK, v.Command.judged())
	require.NotEmpty(t, v.Command.Steps)
}
