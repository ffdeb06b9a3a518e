package crashtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// TestProjection tests whether a read model is one that an engine can keep: it takes every event that a log may hold
// (parked jobs, unknown types, events about the log itself, clocks that jump), depends on the log alone, keeps nothing
// that belongs to others, and may be read while it is fed. Each part is a subtest, named by what it
// proves; run it with the race detector, too.
//
// empty returns a new projection that has seen nothing. read returns all that it shows, as a value of the caller's own:
// two of them are compared by [reflect.DeepEqual]. Both are called from several goroutines.
//
// A projection that takes snapshots, with
//
//	Version() int
//	Snapshot() (save func(io.Writer) error, err error)
//	Load(r io.Reader) error
//
// is tested to freeze, save and load them, and to refuse what is not whole: an empty projection on which Load failed must
// still be as good as new.
func TestProjection[P projection.Projection](t *testing.T, empty func() P, read func(P) any) {
	t.Helper()
	for _, p := range projectionParts[P]() {
		t.Run(p.name, func(t *testing.T) { p.test(&viewing[P]{t, empty, read}) })
	}
}

// projectionPart is one thing asked of a projection, and the test for it.
type projectionPart[P projection.Projection] struct {
	name string
	test func(v *viewing[P])
}

func projectionParts[P projection.Projection]() []projectionPart[P] {
	return []projectionPart[P]{
		{"its name stays", (*viewing[P]).testName},
		{"every event is taken", (*viewing[P]).testTaken},
		{"the same history reads the same", (*viewing[P]).testSame},
		{"reading changes nothing", (*viewing[P]).testReading},
		{"what was read stays as it was", (*viewing[P]).testRead},
		{"events are neither changed nor kept", (*viewing[P]).testEvents},
		{"instances share nothing", (*viewing[P]).testInstances},
		{"it may be read while it is fed", (*viewing[P]).testBeside},
		{"a snapshot and the rest are the whole", (*viewing[P]).testSnapshot},
		{"a snapshot is of the moment when it was taken", (*viewing[P]).testMoment},
		{"the version of snapshots stays", (*viewing[P]).testVersion},
		{"a snapshot that cannot be written is an error", (*viewing[P]).testSave},
		{"a snapshot that is not whole is an error and changes nothing", (*viewing[P]).testDamaged},
	}
}

// snapshotter is what a projection has that takes snapshots.
type snapshotter interface {
	Version() int
	Snapshot() (save func(io.Writer) error, err error)
	Load(r io.Reader) error
}

// told is an event as an engine tells a projection of it: with the job as it stands after it.
type told struct {
	event wal.Event
	job   statemachine.Job
}

// tale returns a log's events as no good log has them all: the legal steps of many jobs, and everything that an engine
// may meet besides. One seed makes one tale.
func tale(seed uint64, n int) (history []told) {
	teller := &teller{random: rand.New(rand.NewPCG(seed, 0)), epoch: 1, jobs: make(map[string]statemachine.Job)}
	for range n {
		history = append(history, teller.next())
	}
	return history
}

type teller struct {
	random *rand.Rand
	seq    uint64
	epoch  uint64
	jobs   map[string]statemachine.Job
}

var everyType = slices.Concat(types, notes, []wal.EventType{"job_dreamt"})

func (g *teller) next() told {
	g.seq++
	if g.random.IntN(50) == 0 {
		g.epoch++
	}
	e := wal.Event{
		Seq: g.seq, Epoch: g.epoch, JobID: fmt.Sprint("job-", g.random.IntN(120)),
		// a clock that goes back now and then
		Time: time.Unix(1_700_000_000+int64(g.seq)-int64(g.random.IntN(3)*g.random.IntN(100)), g.random.Int64N(1e9)).UTC(),
	}
	switch g.random.IntN(25) {
	case 0:
		return told{event: wal.Event{Seq: e.Seq, Epoch: e.Epoch, Time: e.Time, Type: "about_the_log"}}
	case 1:
		return told{event: wal.Event{Seq: e.Seq, Epoch: e.Epoch, Time: e.Time, Type: wal.EventLost, Problem: "unreadable"}}
	}
	job := g.jobs[e.JobID]
	e.Prev, e.Capability, e.Type = job.Seq, job.Capability, g.step(job)
	switch g.random.IntN(40) {
	case 0:
		e.Problem = "half of it can be read"
	case 1:
		e.Prev += 1 + g.random.Uint64N(10)
	}
	g.fill(&e)
	job, _ = job.Apply(copied(e)) // what it refuses parks the job
	g.jobs[e.JobID] = job
	return told{e, job}
}

// step returns a legal next step, or, now and then, any.
func (g *teller) step(job statemachine.Job) wal.EventType {
	legal := slices.DeleteFunc(slices.Clone(everyType), func(on wal.EventType) bool {
		state := string(job.State)
		if job.Held != "" {
			state += held
		}
		_, ok := after(state, on)
		return !ok
	})
	if onward := slices.DeleteFunc(slices.Clone(legal), isNote); len(onward) > 0 && g.random.IntN(2) > 0 {
		legal = onward // else a job seldom comes to its end
	}
	if len(legal) == 0 || g.random.IntN(30) == 0 {
		legal = everyType
	}
	return legal[g.random.IntN(len(legal))]
}

func (g *teller) fill(e *wal.Event) {
	text := strings.Repeat("é", g.random.IntN(30))
	payload := json.RawMessage(fmt.Sprintf(`{"n":%d,"text":%q}`, g.random.IntN(1000), text))
	switch e.Type {
	case wal.JobSubmitted:
		e.Capability = []string{"", "shell", "file", "Ünïcode"}[g.random.IntN(4)]
		e.Args = payload
	case wal.JobStep, wal.JobStepUndone:
		e.Args, e.Output = json.RawMessage(fmt.Sprintf(`{"step":%q}`, []string{"a", "b", "c#2", "#", "#mark"}[g.random.IntN(5)])), payload
	case wal.JobCompleted, wal.JobProgress:
		e.Output = payload
	case wal.JobFailed, wal.JobRolledBack, wal.JobHeld, wal.JobReleased:
		e.Error = fmt.Sprint("reason ", g.random.IntN(5))
	case "job_dreamt":
		e.Args, e.Output, e.Error = payload, slices.Clone(payload), "from the future"
	}
}

// viewing is one part at work on a projection.
type viewing[P projection.Projection] struct {
	rapid.TB
	empty func() P
	read  func(P) any
}

// wholeTale is long enough for every kind of event to meet every state of a job.
func wholeTale() []told { return tale(1, 1600) }

func (v *viewing[P]) fold(p P, history []told) P {
	v.Helper()
	for _, x := range history {
		v.apply(p, copied(x.event), x.job)
	}
	return p
}

func (v *viewing[P]) apply(p P, e wal.Event, job statemachine.Job) {
	v.Helper()
	if err := guarded(func() error { return p.Apply(e, job) }); err != nil {
		v.Fatalf("Apply of seq %d, %s of job %q: %v", e.Seq, e.Type, e.JobID, err)
	}
}

// guarded returns a panic as an error.
func guarded(f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", errPanic, r)
		}
	}()
	return f()
}

var errPanic = errors.New("panic")

// of returns what a projection shows that was fed with nothing but the history.
func (v *viewing[P]) of(history []told) any {
	v.Helper()
	return v.read(v.fold(v.empty(), history))
}

func (v *viewing[P]) same(got, want any, format string, args ...any) {
	v.Helper()
	if reflect.DeepEqual(got, want) {
		return
	}
	g, w := fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", want)
	if g == w { // nil or empty, or behind pointers
		g, w = fmt.Sprintf("%#v", got), fmt.Sprintf("%#v", want)
	}
	at := 0
	for at < min(len(g), len(w)) && g[at] == w[at] {
		at++
	}
	from := max(0, at-60)
	v.Fatalf("%s: reads differ:\n got …%.160s\nwant …%.160s", fmt.Sprintf(format, args...), g[from:], w[from:])
}

func (v *viewing[P]) testName() {
	p := v.empty()
	name := p.Name()
	if name == "" {
		v.Fatalf("the name is empty")
	}
	v.fold(p, wholeTale())
	for _, other := range []string{p.Name(), v.empty().Name()} {
		if other != name {
			v.Fatalf("the name was %q and is %q", name, other)
		}
	}
}

func (v *viewing[P]) testTaken() {
	for seed := range uint64(5) {
		v.fold(v.empty(), tale(seed, 400))
	}
}

func (v *viewing[P]) testSame() {
	want := v.of(wholeTale())
	for range 8 { // the order of a map is another one each time
		v.same(v.of(wholeTale()), want, "the same history again")
	}
}

func (v *viewing[P]) testReading() {
	history := wholeTale()
	want := v.of(history)
	for _, every := range []int{1, 7, 100} {
		p := v.empty()
		for i := range history {
			v.fold(p, history[i:i+1])
			if i%every == 0 {
				v.read(p)
			}
		}
		v.same(v.read(p), want, "read after every %d events", every)
	}
}

func (v *viewing[P]) testRead() {
	history, p := wholeTale(), v.empty()
	var reads []any
	for i := range history {
		if i%100 == 0 {
			reads = append(reads, v.read(p))
		}
		v.fold(p, history[i:i+1])
	}
	for i, got := range reads {
		v.same(got, v.of(history[:i*100]), "what was read after %d events, looked at after %d", i*100, len(history))
	}
}

func (v *viewing[P]) testEvents() {
	history := wholeTale()
	p := v.empty()
	for _, x := range history {
		e := copied(x.event)
		e.Args, e.Output = roomy(e.Args), roomy(e.Output)
		v.apply(p, e, x.job)
		if d := difference(e, x.event); d != "" {
			v.Fatalf("Apply changed the event: %s", d)
		}
		scribble([]wal.Event{e})
	}
	v.same(v.read(p), v.of(history), "after the events were written over")
}

func (v *viewing[P]) testInstances() {
	one := wholeTale()
	two := tale(2, len(one))
	a, b, unfed := v.empty(), v.empty(), v.read(v.empty())
	for i := range one {
		v.fold(a, one[i:i+1])
		v.fold(b, two[i:i+1])
	}
	v.same(v.read(a), v.of(one), "an instance beside another")
	v.same(v.read(b), v.of(two), "an instance beside another")
	v.same(v.read(v.empty()), unfed, "a new instance, after others were fed")
}

func (v *viewing[P]) testBeside() {
	history, p := wholeTale(), v.empty()
	done := make(chan struct{})
	var readers sync.WaitGroup
	var reads, ended atomic.Int64
	for range 2 {
		readers.Go(func() {
			defer ended.Add(1)
			for {
				select {
				case <-done:
					return
				default:
					v.read(p)
					reads.Add(1)
					runtime.Gosched()
				}
			}
		})
	}
	func() {
		defer readers.Wait()
		defer close(done)
		for i := range history {
			for before := reads.Load(); reads.Load() == before && ended.Load() == 0; { // or nobody would be beside it
				runtime.Gosched()
			}
			v.fold(p, history[i:i+1])
		}
	}()
	v.same(v.read(p), v.of(history), "after it was read while it was fed")
}

// snapshots returns p as one that takes snapshots, or ends the part.
func (v *viewing[P]) snapshots(p P) snapshotter {
	s, ok := any(p).(snapshotter)
	if !ok {
		v.Skip("the projection takes no snapshots")
	}
	return s
}

func (v *viewing[P]) freeze(p P) (save func(io.Writer) error) {
	v.Helper()
	save, err := v.snapshots(p).Snapshot()
	if err != nil || save == nil {
		v.Fatalf("Snapshot: %v", err)
	}
	return save
}

func (v *viewing[P]) saved(save func(io.Writer) error) []byte {
	v.Helper()
	var snapshot bytes.Buffer
	if err := save(&snapshot); err != nil {
		v.Fatalf("saving a snapshot: %v", err)
	}
	return snapshot.Bytes()
}

func (v *viewing[P]) loaded(snapshot []byte) P {
	v.Helper()
	p := v.empty()
	if err := v.snapshots(p).Load(iotest.HalfReader(bytes.NewReader(snapshot))); err != nil {
		v.Fatalf("Load: %v", err)
	}
	return p
}

func (v *viewing[P]) testSnapshot() {
	history := wholeTale()
	want := v.of(history)
	for _, cut := range []int{0, 1, 33, 400, len(history)} {
		p := v.fold(v.empty(), history[:cut])
		snapshot := v.saved(v.freeze(p))
		q := v.loaded(snapshot)
		v.same(v.read(q), v.read(p), "loaded after %d events", cut)
		v.same(v.read(v.fold(q, history[cut:])), want, "loaded after %d events, and fed with the rest", cut)
		v.same(v.read(v.fold(p, history[cut:])), want, "a snapshot was taken after %d events", cut)
		again := v.loaded(v.saved(v.freeze(v.loaded(snapshot))))
		v.same(v.read(v.fold(again, history[cut:])), want, "a snapshot of what was loaded")
	}
}

func (v *viewing[P]) testMoment() {
	history := wholeTale()
	for _, cut := range []int{0, 50, 400} {
		want := v.of(history[:cut])
		p := v.fold(v.empty(), history[:cut])
		late, beside := v.freeze(p), v.freeze(p)
		var snapshot bytes.Buffer
		var err error
		done := make(chan struct{})
		go func() {
			defer close(done)
			err = beside(&snapshot)
		}()
		v.fold(p, history[cut:])
		<-done
		if err != nil {
			v.Fatalf("saving a snapshot beside the applier: %v", err)
		}
		v.same(v.read(v.loaded(snapshot.Bytes())), want, "saved while the projection went on")
		v.same(v.read(v.loaded(v.saved(late))), want, "saved after the projection had gone on")
	}
}

func (v *viewing[P]) testVersion() {
	p := v.empty()
	version := v.snapshots(p).Version()
	v.fold(p, wholeTale())
	for _, other := range []P{p, v.empty(), v.loaded(v.saved(v.freeze(p)))} {
		if got := v.snapshots(other).Version(); got != version {
			v.Fatalf("the version was %d and is %d", version, got)
		}
	}
}

// fullDisk takes so many bytes and no more.
type fullDisk struct{ room int }

var errFull = errors.New("no room")

func (d *fullDisk) Write(p []byte) (int, error) {
	n := min(len(p), d.room)
	d.room -= n
	if n < len(p) {
		return n, errFull
	}
	return n, nil
}

func (v *viewing[P]) testSave() {
	p := v.fold(v.empty(), wholeTale())
	size := len(v.saved(v.freeze(p)))
	for _, room := range []int{0, size / 2, size - 1} {
		save := v.freeze(p)
		err := guarded(func() error { return save(&fullDisk{room}) })
		if err == nil || errors.Is(err, errPanic) {
			v.Fatalf("saving %d bytes where there is room for %d returned %v", size, room, err)
		}
	}
	v.same(v.read(p), v.of(wholeTale()), "after snapshots that could not be written")
}

func (v *viewing[P]) testDamaged() {
	history := wholeTale()
	want := v.of(history)
	half := v.fold(v.empty(), history[:400])
	snapshot, state := v.saved(v.freeze(half)), v.read(half)
	for _, n := range cutPoints(len(snapshot)) {
		p, err := v.load(bytes.NewReader(snapshot[:n]))
		if err == nil { // what was cut off may be what nobody misses, as a last newline
			v.same(v.read(p), state, "Load took the first %d bytes of a snapshot of %d", n, len(snapshot))
			continue
		}
		v.asNew(p, history, want, snapshot)
		p, err = v.load(io.MultiReader(bytes.NewReader(snapshot[:n]), iotest.ErrReader(errFull)))
		if err == nil {
			v.Fatalf("Load from a reader that failed after %d bytes of %d has no error", n, len(snapshot))
		}
		v.asNew(p, history, want, snapshot)
	}
	random := rand.New(rand.NewPCG(3, 0))
	for range 20 {
		garbage := make([]byte, 1+random.IntN(300))
		for i := range garbage {
			garbage[i] = byte(random.Uint32())
		}
		p, err := v.load(bytes.NewReader(garbage))
		if err == nil {
			v.Fatalf("Load took %d random bytes", len(garbage))
		}
		v.asNew(p, history, want, snapshot)
	}
}

// cutPoints are some places short of n: all of the first and last, and some between.
func cutPoints(n int) (at []int) {
	for i := 0; i < n; i++ {
		if i < 8 || i > n-8 || i%(n/16+1) == 0 {
			at = append(at, i)
		}
	}
	return at
}

// load loads into a new projection. A panic ends the part.
func (v *viewing[P]) load(r io.Reader) (P, error) {
	v.Helper()
	p := v.empty()
	err := guarded(func() error { return v.snapshots(p).Load(r) })
	if errors.Is(err, errPanic) {
		v.Fatalf("Load of a snapshot that is not whole: %v", err)
	}
	return p, err
}

// asNew: where Load failed, the engine goes on with an older snapshot, or with none.
func (v *viewing[P]) asNew(p P, history []told, want any, snapshot []byte) {
	v.Helper()
	v.same(v.read(p), v.read(v.empty()), "a projection on which Load failed")
	if err := v.snapshots(p).Load(bytes.NewReader(snapshot)); err != nil {
		v.Fatalf("Load of a good snapshot, after one that failed: %v", err)
	}
	v.same(v.read(v.fold(p, history[400:])), want, "a good snapshot, after one that failed, and the rest")
}
