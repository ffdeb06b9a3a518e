package crashtest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

func TestTestProjectionOnJobs(t *testing.T) {
	t.Parallel()
	TestProjection(t, projection.NewJobs, func(p *projection.Jobs) any {
		shown := [][]statemachine.Job{
			slices.Collect(p.List(projection.Query{})),
			slices.Collect(p.List(projection.Query{Order: projection.ByUpdate, Descending: true})),
			slices.Collect(p.List(projection.Query{Parked: new(true)})),
		}
		for _, state := range []statemachine.State{statemachine.Submitted, statemachine.Failed} {
			shown = append(shown, slices.Collect(p.List(projection.Query{States: []statemachine.State{state}})))
		}
		return shown
	})
}

func TestTestProjectionOnStats(t *testing.T) {
	t.Parallel()
	TestProjection(t, projection.NewStats, func(p *projection.Stats) any { return p.Read() })
}

func TestTestProjectionOnSnapshots(t *testing.T) {
	TestProjection(t, newOutputs, (*outputs).Read)
}

// outputs is a small projection that takes snapshots: how often each job was touched, and what it put out last. What a
// saboteur sets bends it.
type outputs struct {
	mu   sync.Mutex // guards the fields below
	view outputView

	name    string
	edit    func(o *outputs, e wal.Event) error // before the event is applied
	keep    func(e wal.Event) json.RawMessage
	read    func(o *outputs) any
	frozen  func(view outputView) outputView
	saved   func(w io.Writer, view outputView) error
	load    func(o *outputs, r io.Reader) error
	version func() int
}

type outputView struct {
	Touched map[string]int
	Output  map[string]json.RawMessage
}

func newOutputs() *outputs {
	return &outputs{
		view: emptyView(), name: "outputs",
		edit:    func(*outputs, wal.Event) error { return nil },
		keep:    func(e wal.Event) json.RawMessage { return slices.Clone(e.Output) },
		read:    func(o *outputs) any { o.mu.Lock(); defer o.mu.Unlock(); return cloneView(o.view) },
		frozen:  cloneView,
		saved:   func(w io.Writer, view outputView) error { return json.NewEncoder(w).Encode(view) },
		load:    loadView,
		version: func() int { return 1 },
	}
}

func emptyView() outputView {
	return outputView{make(map[string]int), make(map[string]json.RawMessage)}
}

func cloneView(v outputView) outputView {
	return outputView{maps.Clone(v.Touched), maps.Clone(v.Output)} // what Output holds is never changed
}

func loadView(o *outputs, r io.Reader) error {
	view := emptyView()
	if err := json.NewDecoder(r).Decode(&view); err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.view = view
	return nil
}

func (o *outputs) Name() string { return o.name }
func (o *outputs) Version() int { return o.version() }
func (o *outputs) Read() any    { return o.read(o) }

func (o *outputs) Apply(e wal.Event, job statemachine.Job) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := o.edit(o, e); err != nil {
		return err
	}
	o.view.Touched[job.ID]++
	if e.Output != nil {
		o.view.Output[job.ID] = o.keep(e)
	}
	return nil
}

func (o *outputs) Snapshot() (func(io.Writer) error, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	frozen := o.frozen(o.view)
	return func(w io.Writer) error { return o.saved(w, frozen) }, nil
}

func (o *outputs) Load(r io.Reader) error { return o.load(o, r) }

// badProjections are wrong in one way each, and by is the part that must see it.
var badProjections = []struct {
	name string
	bend func(o *outputs)
	by   string
}{
	{"has another name each time", func(o *outputs) { o.name = fmt.Sprint(rand.Uint64()) }, "its name stays"},
	{"has no name", func(o *outputs) { o.name = "" }, "its name stays"},
	{"refuses what it does not know", func(o *outputs) {
		o.edit = func(_ *outputs, e wal.Event) error {
			if e.Type == "job_dreamt" {
				return errors.New("unknown type")
			}
			return nil
		}
	}, "every event is taken"},
	{"panics without a job", func(o *outputs) {
		o.edit = func(_ *outputs, e wal.Event) error {
			_ = e.JobID[0]
			return nil
		}
	}, "every event is taken"},
	{"refuses what cannot be read", func(o *outputs) {
		o.edit = func(_ *outputs, e wal.Event) error {
			if e.Problem != "" {
				return errors.New(e.Problem)
			}
			return nil
		}
	}, "every event is taken"},
	{"shows the order of a map", func(o *outputs) {
		o.read = func(o *outputs) any {
			o.mu.Lock()
			defer o.mu.Unlock()
			return slices.Collect(maps.Keys(o.view.Touched))
		}
	}, "the same history reads the same"},
	{"rolls dice", func(o *outputs) {
		o.edit = func(o *outputs, e wal.Event) error {
			o.view.Touched["dice"] += rand.N(6)
			return nil
		}
	}, "the same history reads the same"},
	{"counts from the last read", func(o *outputs) {
		o.read = func(o *outputs) any {
			o.mu.Lock()
			defer o.mu.Unlock()
			defer func() { o.view = emptyView() }()
			return cloneView(o.view)
		}
	}, "reading changes nothing"},
	{"hands out its own map", func(o *outputs) {
		o.read = func(o *outputs) any {
			o.mu.Lock()
			defer o.mu.Unlock()
			return o.view
		}
	}, "what was read stays as it was"},
	{"keeps the event's slices", func(o *outputs) {
		o.keep = func(e wal.Event) json.RawMessage { return e.Output }
	}, "events are neither changed nor kept"},
	{"changes the event's slices", func(o *outputs) {
		o.keep = func(e wal.Event) json.RawMessage {
			own := slices.Clone(e.Output)
			e.Output[0] = ' '
			return own
		}
	}, "events are neither changed nor kept"},
	{"shares its state", func(o *outputs) { o.view = sharedView }, "instances share nothing"},
	{"is away while it is read", func(o *outputs) {
		o.read = func(o *outputs) any {
			o.mu.Lock()
			view := o.view
			o.view = emptyView()
			o.mu.Unlock()
			for range 100 { // long enough to be met, on a busy machine too
				runtime.Gosched()
			}
			o.mu.Lock()
			defer o.mu.Unlock()
			o.view = view
			return cloneView(view)
		}
	}, "it may be read while it is fed"},
	{"forgets in Load", func(o *outputs) {
		o.load = func(o *outputs, r io.Reader) error {
			err := loadView(o, r)
			clear(o.view.Output)
			return err
		}
	}, "a snapshot and the rest are the whole"},
	{"changes in Snapshot", func(o *outputs) {
		o.frozen = func(view outputView) outputView {
			frozen := cloneView(view)
			clear(view.Touched)
			return frozen
		}
	}, "a snapshot and the rest are the whole"},
	{"saves what is there when it is saved", func(o *outputs) {
		o.frozen = func(view outputView) outputView { return view }
		o.saved = func(w io.Writer, view outputView) error {
			o.mu.Lock() // else the race detector would see it first
			defer o.mu.Unlock()
			return json.NewEncoder(w).Encode(view)
		}
	}, "a snapshot is of the moment when it was taken"},
	{"has another version each time", func(o *outputs) { o.version = rand.Int }, "the version of snapshots stays"},
	{"does not say that it could not save", func(o *outputs) {
		o.saved = func(w io.Writer, view outputView) error {
			_ = json.NewEncoder(w).Encode(view)
			return nil
		}
	}, "a snapshot that cannot be written is an error"},
	{"takes garbage for nothing", func(o *outputs) {
		o.load = func(o *outputs, r io.Reader) error {
			_ = loadView(o, r)
			return nil
		}
	}, "a snapshot that is not whole is an error and changes nothing"},
	{"panics on garbage", func(o *outputs) {
		o.load = func(o *outputs, r io.Reader) error {
			if err := loadView(o, r); err != nil {
				panic(err)
			}
			return nil
		}
	}, "a snapshot that is not whole is an error and changes nothing"},
	{"is in between after garbage", func(o *outputs) {
		o.load = func(o *outputs, r io.Reader) error {
			o.mu.Lock()
			o.view = outputView{}
			o.mu.Unlock()
			return loadView(o, r)
		}
	}, "a snapshot that is not whole is an error and changes nothing"},
}

var sharedView outputView // of the one saboteur that shares its state; made anew for each part

// TestProjection catches each broken projection, by the part that is to see it, and there is no part that catches nobody.
func TestTestProjectionHasTeeth(t *testing.T) {
	catches := make(map[string]int)
	parts := projectionParts[*outputs]()
	for _, s := range badProjections {
		catches[s.by]++
		t.Run(s.name, func(t *testing.T) {
			sharedView = emptyView()
			bent := func() *outputs {
				o := newOutputs()
				s.bend(o)
				return o
			}
			i := slices.IndexFunc(parts, func(p projectionPart[*outputs]) bool { return p.name == s.by })
			require.GreaterOrEqual(t, i, 0, "no part %q", s.by)
			r := recorded(func(tb rapid.TB) { parts[i].test(&viewing[*outputs]{tb, bent, (*outputs).Read}) })
			require.True(t, r.failed, "not caught by %q", s.by)
			t.Logf("%s: %s", s.by, r.text.String())
		})
	}
	for _, p := range parts {
		require.Positive(t, catches[p.name], "no broken projection is caught by %q", p.name)
	}
}

// The tale that projections are tested with has everything in it that is to be met.
func TestTaleHasEverything(t *testing.T) {
	met := make(map[string]int)
	for _, x := range wholeTale() {
		switch {
		case x.event.JobID == "":
			met["no job"]++
		case x.job.ParkedSeq == x.event.Seq:
			met["parked by "+string(x.event.Type)]++
		case x.job.Parked != "":
			met["behind a parked job"]++
		default:
			met[string(x.event.Type)]++
		}
		if x.event.Problem != "" {
			met["a problem"]++
		}
	}
	for _, what := range []string{"no job", "parked by job_dreamt", "behind a parked job", "a problem", "job_submitted",
		"job_validated", "job_started", "job_completed", "job_failed", "job_rolled_back",
		"job_resumed", "job_step", "job_progress", "job_step_undone", "job_held", "job_released"} {
		require.Positive(t, met[what], what)
	}
	require.Equal(t, wholeTale(), wholeTale(), "one seed, one tale")
}
