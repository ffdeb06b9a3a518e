package crashtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/wal"
)

type (
	appendFunc func(ctx context.Context, events []wal.Event) (uint64, error)
	readFunc   func(ctx context.Context, from uint64) iter.Seq2[wal.Event, error]
)

// bent is a good log, but for what a saboteur put in the place of its methods. The memory is one for all openings.
type bent struct {
	recovery.Log
	memory *memory
	append appendFunc
	events readFunc
	follow readFunc
	at     func(ctx context.Context, seq uint64) (wal.Event, error)
	chain  readFunc
	edit   func(e *wal.Event) // of whatever is read
	id     func() string
	first  func() uint64
	last   func() uint64
	epoch  func() uint64
	live   func(uint64) bool
	close  func() error
}

// memory is what a saboteur may remember over the openings of a log.
type memory struct {
	mu       sync.Mutex
	opened   int
	shared   map[uint64]wal.Event
	released chan struct{} // closed when the part is over
}

func (b *bent) Append(ctx context.Context, events ...wal.Event) (uint64, error) {
	return b.append(ctx, events)
}

func (b *bent) edited(read iter.Seq2[wal.Event, error]) iter.Seq2[wal.Event, error] {
	return func(yield func(wal.Event, error) bool) {
		for e, err := range read {
			if err == nil {
				b.edit(&e)
			}
			if !yield(e, err) {
				return
			}
		}
	}
}

func (b *bent) Events(ctx context.Context, from uint64) iter.Seq2[wal.Event, error] {
	return b.edited(b.events(ctx, from))
}

func (b *bent) Follow(ctx context.Context, from uint64) iter.Seq2[wal.Event, error] {
	return b.edited(b.follow(ctx, from))
}

func (b *bent) At(ctx context.Context, seq uint64) (wal.Event, error) {
	e, err := b.at(ctx, seq)
	if err == nil {
		b.edit(&e)
	}
	return e, err
}

func (b *bent) Chain(ctx context.Context, seq uint64) iter.Seq2[wal.Event, error] {
	return b.chain(ctx, seq)
}

// oneAfterTheOther is a Chain by At.
func (b *bent) oneAfterTheOther(ctx context.Context, seq uint64) iter.Seq2[wal.Event, error] {
	return func(yield func(wal.Event, error) bool) {
		for next := seq; next != 0; {
			e, err := b.At(ctx, next)
			if !yield(e, err) || err != nil {
				return
			}
			next = e.Prev
		}
	}
}

func (b *bent) ID() string                  { return b.id() }
func (b *bent) FirstSeq() uint64            { return b.first() }
func (b *bent) LastSeq() uint64             { return b.last() }
func (b *bent) Epoch() uint64               { return b.epoch() }
func (b *bent) Live(epoch uint64) bool      { return b.live(epoch) }
func (b *bent) Close() error                { return b.close() }
func (b *bent) DropBefore(seq uint64) error { return b.Log.(*memEnd).DropBefore(seq) }

func straight(good recovery.Log, m *memory) *bent {
	b := &bent{
		Log: good, memory: m,
		append: func(ctx context.Context, events []wal.Event) (uint64, error) { return good.Append(ctx, events...) },
		events: good.Events, follow: good.Follow, at: good.At, edit: func(*wal.Event) {},
		id: good.ID, first: good.FirstSeq, last: good.LastSeq, epoch: good.Epoch, live: good.Live, close: good.Close,
	}
	b.chain = b.oneAfterTheOther
	return b
}

// bender opens a MemLog and bends it.
type bender struct {
	*MemLog
	memory *memory
	bend   func(b *bent)
}

func (o bender) Open(ctx context.Context) (recovery.Log, error) {
	good, err := o.MemLog.Open(ctx)
	if err != nil {
		return nil, err
	}
	o.memory.mu.Lock()
	o.memory.opened++
	o.memory.mu.Unlock()
	b := straight(good, o.memory)
	o.bend(b)
	return b, nil
}

// oneByOne appends a group as if it were none.
func oneByOne(b *bent, ctx context.Context, events []wal.Event) (first uint64, err error) {
	newest := make(map[string]uint64)
	for i, e := range events {
		if seq, ours := newest[e.JobID]; ours && e.JobID != "" {
			e.Prev = seq
		}
		seq, err := b.Log.Append(ctx, e)
		if err != nil {
			return 0, err
		}
		if i == 0 {
			first = seq
		}
		newest[e.JobID] = seq
		runtime.Gosched()
	}
	if len(events) == 0 {
		return b.Log.Append(ctx)
	}
	return first, nil
}

// filtered yields what keep lets through.
func filtered(read readFunc, keep func(wal.Event) bool) readFunc {
	return func(ctx context.Context, from uint64) iter.Seq2[wal.Event, error] {
		return func(yield func(wal.Event, error) bool) {
			for e, err := range read(ctx, from) {
				if (err != nil || keep(e)) && !yield(e, err) {
					return
				}
			}
		}
	}
}

// instead replaces one error by another.
func instead(b *bent, of, by error) {
	good := b.append
	b.append = func(ctx context.Context, events []wal.Event) (uint64, error) {
		first, err := good(ctx, events)
		if errors.Is(err, of) {
			return 0, by
		}
		return first, err
	}
}

// detached forgets the caller's context where it is done or missing.
func detached(ctx context.Context) context.Context {
	if ctx == nil {
		return context.Background()
	}
	return context.WithoutCancel(ctx)
}

// afterReopen edits what is read from the second opening on, of events of an opening before.
func afterReopen(b *bent, edit func(*wal.Event)) {
	b.edit = func(e *wal.Event) {
		if e.Epoch < b.epoch() {
			edit(e)
		}
	}
}

// The parts that the bad logs below are to be caught by.
const (
	byEmpty      = "an empty log is empty"
	bySeqs       = "append returns the first seq and seqs are dense"
	byOrder      = "events come back in order as they were given"
	byGroups     = "groups are all or none"
	byFidelity   = "payloads are kept byte for byte"
	byCallers    = "the caller's events are neither changed nor kept"
	byTimes      = "time is set when zero and kept when given"
	byPrevs      = "prev of a job's later events in a group is set"
	byConflicts  = "a wrong prev is a conflict and nothing is written"
	byNotAnEvent = "what is not an event is refused and nothing is written"
	byTooLarge   = "what is too large is refused and nothing is written"
	byNothing    = "an append of nothing is refused"
	byDoneCtx    = "a context that is done means nothing is written"
	byNilCtx     = "a nil context is refused"
	byEventsFrom = "events from anywhere are the rest of the log"
	byEventsEnd  = "events end where the log ended at the call"
	byEventsAny  = "events can be broken off and begun again"
	byAt         = "at finds each event and nothing else"
	byYielded    = "what is yielded is the caller's"
	byDrops      = "what was dropped is dropped for all"
	byFollows    = "follow yields history and then what comes"
	byBeyond     = "follow from beyond the end waits for it"
	byFollowers  = "followers beside each other miss nothing"
	byStandstill = "a follower that stands still holds nobody up"
	byFollowCtx  = "follow ends with its context"
	byShownThere = "what a follower saw is there"
	byReopened   = "opened again the log is the same byte for byte"
	byNamed      = "the log keeps its name"
	byEpochs     = "each opening has an epoch of its own that lives until it is closed"
	bySecond     = "a second writer is refused"
	byWriters    = "writers beside each other see all events"
	byClosing    = "close is final and can be repeated"
	byCloseMeets = "close meets appends and follows and leaves nothing behind"
	byCancelled  = "a context that ends during an append leaves no doubt"
	byConcurrent = "appends of many goroutines keep to themselves"
	byCrash      = "what was acknowledged or shown survives a crash"
	byEngineRuns = "an engine takes jobs through their lives"
	byEngineStay = "an engine parks what it cannot read and goes on"
	byEngineRace = "engines beside each other lose races with a conflict"
)

// badLogs are logs that are wrong in one way each, and the parts that must see it.
var badLogs = []struct {
	name string
	bend func(b *bent)
	by   []string
}{
	{"LastSeq of an empty log is 1", func(b *bent) {
		b.last = func() uint64 { return max(1, b.Log.LastSeq()) }
	}, []string{byEmpty}},
	{"has no ID", func(b *bent) { b.id = func() string { return "" } }, []string{byEmpty, byNamed}},
	{"returns the last seq of a group", func(b *bent) {
		b.append = func(ctx context.Context, events []wal.Event) (uint64, error) {
			first, err := b.Log.Append(ctx, events...)
			if err != nil {
				return 0, err
			}
			return first + uint64(len(events)) - 1, nil
		}
	}, []string{bySeqs, byOrder}},
	{"reorders a group", func(b *bent) {
		b.append = func(ctx context.Context, events []wal.Event) (uint64, error) {
			events = slices.Clone(events)
			slices.Reverse(events)
			return b.Log.Append(ctx, events...)
		}
	}, []string{byOrder, byGroups}},
	{"writes a group event by event", func(b *bent) {
		b.append = func(ctx context.Context, events []wal.Event) (uint64, error) { return oneByOne(b, ctx, events) }
	}, []string{byGroups, byNotAnEvent, byConcurrent}},
	{"forgets part of a group on reopen", func(b *bent) {
		b.events = filtered(b.events, func(e wal.Event) bool { return e.Epoch == b.epoch() || e.Seq%250 != 0 })
	}, []string{byGroups}},
	{"reads and writes JSON anew", func(b *bent) {
		b.edit = func(e *wal.Event) {
			var v any
			if json.Unmarshal(e.Args, &v) == nil {
				e.Args, _ = json.Marshal(v)
			}
		}
	}, []string{byFidelity}},
	{"takes null for absent", func(b *bent) {
		b.edit = func(e *wal.Event) {
			if bytes.Equal(e.Output, []byte("null")) {
				e.Output = nil
			}
		}
	}, []string{byFidelity}},
	{"takes absent for null", func(b *bent) {
		b.edit = func(e *wal.Event) {
			if e.Args == nil {
				e.Args = json.RawMessage("null")
			}
		}
	}, []string{byFidelity, byOrder}},
	{"keeps white space", func(b *bent) {
		b.edit = func(e *wal.Event) { e.Args = bytes.ReplaceAll(e.Args, []byte(":["), []byte(": [")) }
	}, []string{byFidelity}},
	{"trims errors", func(b *bent) {
		b.edit = func(e *wal.Event) { e.Error = string(bytes.TrimSpace([]byte(e.Error))) }
	}, []string{byFidelity}},
	{"sets Seq in the caller's events", func(b *bent) {
		b.append = func(ctx context.Context, events []wal.Event) (uint64, error) {
			first, err := b.Log.Append(ctx, events...)
			for i := range events {
				events[i].Seq = first + uint64(i)
			}
			return first, err
		}
	}, []string{byCallers}},
	{"keeps the caller's slices", func(b *bent) {
		m := b.memory
		b.append = func(ctx context.Context, events []wal.Event) (uint64, error) {
			first, err := b.Log.Append(ctx, events...)
			if err == nil {
				m.mu.Lock()
				for i, e := range events {
					m.shared[first+uint64(i)] = e
				}
				m.mu.Unlock()
			}
			return first, err
		}
		b.at = func(ctx context.Context, seq uint64) (wal.Event, error) { // in Follow, the race detector would see it first
			e, err := b.Log.At(ctx, seq)
			m.mu.Lock()
			defer m.mu.Unlock()
			if kept, ok := m.shared[seq]; ok && err == nil {
				e.Args = slices.Clone(kept.Args)
			}
			return e, err
		}
	}, []string{byCallers}},
	{"does not set Time", func(b *bent) {
		b.edit = func(e *wal.Event) { e.Time = time.Time{} }
	}, []string{byTimes}},
	{"overwrites Time", func(b *bent) {
		b.append = func(ctx context.Context, events []wal.Event) (uint64, error) {
			events = slices.Clone(events)
			for i := range events {
				events[i].Time = time.Time{}
			}
			return b.Log.Append(ctx, events...)
		}
	}, []string{byTimes, byCallers}},
	{"keeps Time to the microsecond", func(b *bent) {
		b.edit = func(e *wal.Event) { e.Time = e.Time.Truncate(time.Microsecond) }
	}, []string{byTimes}},
	{"gives Time in a zone", func(b *bent) {
		b.edit = func(e *wal.Event) { e.Time = e.Time.In(time.FixedZone("", 3600)) }
	}, []string{byTimes}},
	{"sets Time anew on reopen", func(b *bent) {
		afterReopen(b, func(e *wal.Event) { e.Time = e.Time.Add(1) })
	}, []string{byTimes, byReopened}},
	{"drops a Prev in a group", func(b *bent) {
		b.edit = func(e *wal.Event) {
			if e.Prev+1 == e.Seq {
				e.Prev = 0
			}
		}
	}, []string{byPrevs, byOrder, byGroups}},
	{"takes any Prev", takeAnyPrev, []string{byConflicts, byWriters, byEngineRace}},
	{"does not name a conflict", func(b *bent) {
		instead(b, recovery.ErrConflict, errors.New("no"))
	}, []string{byConflicts, byWriters}},
	{"writes in spite of a conflict", func(b *bent) {
		b.append = func(ctx context.Context, events []wal.Event) (uint64, error) {
			first, err := b.Log.Append(ctx, events...)
			if errors.Is(err, recovery.ErrConflict) {
				_, _ = b.Log.Append(ctx, wal.Event{Type: "note"})
			}
			return first, err
		}
	}, []string{byConflicts}},
	{"says yes to what is not an event", func(b *bent) {
		instead(b, wal.ErrInvalid, nil)
	}, []string{byNotAnEvent, byNothing, byGroups}},
	{"does not say that events are invalid", func(b *bent) {
		instead(b, wal.ErrInvalid, errors.New("no"))
	}, []string{byNotAnEvent, byNothing, byNilCtx}},
	{"does not say what is too large", func(b *bent) {
		instead(b, wal.ErrTooLarge, wal.ErrInvalid)
	}, []string{byTooLarge}},
	{"takes an append of nothing", func(b *bent) {
		b.append = func(ctx context.Context, events []wal.Event) (uint64, error) {
			if len(events) == 0 {
				return b.Log.LastSeq() + 1, nil
			}
			return b.Log.Append(ctx, events...)
		}
	}, []string{byNothing}},
	{"appends whatever the context says", func(b *bent) {
		b.append = func(ctx context.Context, events []wal.Event) (uint64, error) {
			return b.Log.Append(detached(ctx), events...)
		}
	}, []string{byDoneCtx, byNilCtx}},
	{"writes, and then looks at the context", func(b *bent) {
		b.append = func(ctx context.Context, events []wal.Event) (uint64, error) {
			first, err := b.Log.Append(context.WithoutCancel(ctx), events...)
			if ctx.Err() != nil {
				return 0, ctx.Err()
			}
			return first, err
		}
	}, []string{byDoneCtx}},
	{"leaves an append to itself when its context ends", func(b *bent) {
		b.append = func(ctx context.Context, events []wal.Event) (uint64, error) {
			first, err := b.Log.Append(context.WithoutCancel(ctx), events...)
			select {
			case <-ctx.Done():
				return 0, ctx.Err()
			case <-time.After(time.Millisecond):
				return first, err
			}
		}
	}, []string{byCancelled, byDoneCtx}},
	{"reads whatever the context says", func(b *bent) {
		b.events = func(ctx context.Context, from uint64) iter.Seq2[wal.Event, error] {
			return b.Log.Events(detached(ctx), from)
		}
		b.at = func(ctx context.Context, seq uint64) (wal.Event, error) { return b.Log.At(detached(ctx), seq) }
	}, []string{byDoneCtx, byNilCtx}},
	{"follows whatever the context says", func(b *bent) {
		b.follow = func(ctx context.Context, from uint64) iter.Seq2[wal.Event, error] {
			return b.Log.Follow(detached(ctx), from)
		}
	}, []string{byDoneCtx, byNilCtx, byFollowCtx}},
	{"yields an error and goes on", func(b *bent) {
		good := b.events
		b.events = func(ctx context.Context, from uint64) iter.Seq2[wal.Event, error] {
			return func(yield func(wal.Event, error) bool) {
				for e, err := range good(ctx, from) {
					if err != nil && !yield(wal.Event{}, err) || !yield(e, err) {
						return
					}
				}
			}
		}
	}, []string{byDoneCtx, byClosing}},
	{"begins one event later", func(b *bent) {
		b.events = filtered(b.events, func(e wal.Event) bool { return e.Seq != 7 })
	}, []string{byEventsFrom, byReopened}},
	{"from 0 yields nothing", func(b *bent) {
		good := b.events
		b.events = func(ctx context.Context, from uint64) iter.Seq2[wal.Event, error] {
			if from == 0 && b.Log.LastSeq() > 0 {
				return good(ctx, b.Log.LastSeq())
			}
			return good(ctx, from)
		}
	}, []string{byEventsFrom, byOrder}},
	{"beyond the end begins at the end", func(b *bent) {
		events, follow := b.events, b.follow
		b.events = func(ctx context.Context, from uint64) iter.Seq2[wal.Event, error] {
			return events(ctx, min(from, b.Log.LastSeq()))
		}
		b.follow = func(ctx context.Context, from uint64) iter.Seq2[wal.Event, error] {
			return follow(ctx, min(from, b.Log.LastSeq()+1))
		}
	}, []string{byEventsFrom, byBeyond}},
	{"Events looks for the end when it gets there", func(b *bent) {
		b.events = func(ctx context.Context, from uint64) iter.Seq2[wal.Event, error] {
			return func(yield func(wal.Event, error) bool) { b.Log.Events(ctx, from)(yield) }
		}
	}, []string{byEventsEnd}},
	{"Events can be read once", func(b *bent) {
		good := b.events
		b.events = func(ctx context.Context, from uint64) iter.Seq2[wal.Event, error] {
			next := max(from, 1)
			return func(yield func(wal.Event, error) bool) {
				for e, err := range good(ctx, next) {
					next = e.Seq + 1
					if !yield(e, err) {
						return
					}
				}
			}
		}
	}, []string{byEventsAny}},
	{"At beyond the end is nothing, and no error", func(b *bent) {
		b.at = func(ctx context.Context, seq uint64) (wal.Event, error) {
			e, err := b.Log.At(ctx, seq)
			if errors.Is(err, wal.ErrInvalid) && ctx != nil {
				err = nil
			}
			return e, err
		}
	}, []string{byEmpty, byAt}},
	{"At is one off", func(b *bent) {
		b.at = func(ctx context.Context, seq uint64) (wal.Event, error) {
			if seq > 1 && seq%3 == 0 {
				seq--
			}
			return b.Log.At(ctx, seq)
		}
	}, []string{byAt, byFidelity, byEngineRuns}},
	{"At takes what was never there for dropped", func(b *bent) {
		b.at = func(ctx context.Context, seq uint64) (wal.Event, error) {
			e, err := b.Log.At(ctx, seq)
			if errors.Is(err, wal.ErrInvalid) {
				err = wal.ErrDropped
			}
			return e, err
		}
	}, []string{byAt}},
	{"Chain passes over a job's second event", func(b *bent) {
		b.chain = func(ctx context.Context, seq uint64) iter.Seq2[wal.Event, error] {
			return filtered(b.oneAfterTheOther, func(e wal.Event) bool { return e.Seq == seq || e.Prev == 0 })(ctx, seq)
		}
	}, []string{byAt, byEngineRuns}},
	{"Chain from beyond the end is empty", func(b *bent) {
		b.chain = func(ctx context.Context, seq uint64) iter.Seq2[wal.Event, error] {
			return func(yield func(wal.Event, error) bool) {
				for e, err := range b.oneAfterTheOther(ctx, seq) {
					if errors.Is(err, wal.ErrInvalid) || !yield(e, err) {
						return
					}
				}
			}
		}
	}, []string{byAt}},
	{"At shares what it returns", func(b *bent) {
		b.at = func(ctx context.Context, seq uint64) (wal.Event, error) {
			e, err := b.Log.At(ctx, seq)
			if err == nil {
				b.memory.share(&e)
			}
			return e, err
		}
	}, []string{byYielded}},
	{"Events shares what it yields", func(b *bent) {
		b.events = sharing(b.memory, b.events)
	}, []string{byYielded}},
	{"Follow shares what it yields", func(b *bent) {
		b.follow = sharing(b.memory, b.follow)
	}, []string{byYielded}},
	{"what was dropped is not there, and not an error", func(b *bent) {
		good := b.events
		b.events = func(ctx context.Context, from uint64) iter.Seq2[wal.Event, error] {
			return good(ctx, max(from, b.Log.FirstSeq()))
		}
	}, []string{byDrops}},
	{"FirstSeq forgets what was dropped", func(b *bent) {
		b.first = func() uint64 { return 1 }
	}, []string{byDrops}},
	{"Follow yields the first live event twice", func(b *bent) {
		good := b.follow
		b.follow = func(ctx context.Context, from uint64) iter.Seq2[wal.Event, error] {
			history := b.Log.LastSeq()
			return func(yield func(wal.Event, error) bool) {
				for e, err := range good(ctx, from) {
					if err == nil && e.Seq == history+1 && !yield(copied(e), nil) || !yield(e, err) {
						return
					}
				}
			}
		}
	}, []string{byFollows, byFollowers}},
	{"Follow skips the first live event", func(b *bent) {
		good := b.follow
		b.follow = func(ctx context.Context, from uint64) iter.Seq2[wal.Event, error] {
			history := b.Log.LastSeq()
			return filtered(good, func(e wal.Event) bool { return e.Seq != history+1 })(ctx, from)
		}
	}, []string{byFollows, byFollowers}},
	{"Follow ends with the history", func(b *bent) { b.follow = b.events }, []string{byFollows, byBeyond}},
	{"Follow yields no history", func(b *bent) {
		good := b.follow
		b.follow = func(ctx context.Context, from uint64) iter.Seq2[wal.Event, error] {
			return good(ctx, max(from, b.Log.LastSeq()+1))
		}
	}, []string{byFollows, byReopened, byFidelity}},
	{"Follow gives each event to one follower", func(b *bent) {
		var mu sync.Mutex
		taken := make(map[uint64]bool)
		b.follow = filtered(b.follow, func(e wal.Event) bool {
			mu.Lock()
			defer mu.Unlock()
			defer func() { taken[e.Seq] = true }()
			return !taken[e.Seq]
		})
	}, []string{byFollowers, byFollows}},
	{"a slow follower loses what its buffer has no room for", func(b *bent) {
		b.follow = lossy(b.follow)
	}, []string{byStandstill}},
	{"a slow follower holds up who appends", func(b *bent) {
		lock, good, read := make(chan struct{}, 1), b.append, b.follow
		b.append = func(ctx context.Context, events []wal.Event) (uint64, error) {
			lock <- struct{}{}
			defer func() { <-lock }()
			return good(ctx, events)
		}
		b.follow = func(ctx context.Context, from uint64) iter.Seq2[wal.Event, error] {
			return func(yield func(wal.Event, error) bool) {
				for e, err := range read(ctx, from) {
					lock <- struct{}{}
					more := yield(e, err)
					<-lock
					if !more {
						return
					}
				}
			}
		}
	}, []string{byStandstill}},
	{"Follow sees its context only when it has to wait", func(b *bent) {
		b.follow = func(ctx context.Context, from uint64) iter.Seq2[wal.Event, error] {
			return func(yield func(wal.Event, error) bool) {
				next := from
				for e, err := range b.Log.Events(context.WithoutCancel(ctx), from) {
					next = e.Seq + 1
					if !yield(e, err) {
						return
					}
				}
				b.Log.Follow(ctx, next)(yield)
			}
		}
	}, []string{byFollowCtx, byDoneCtx}},
	{"Follow ends without saying why", func(b *bent) {
		good := b.follow
		b.follow = func(ctx context.Context, from uint64) iter.Seq2[wal.Event, error] {
			return func(yield func(wal.Event, error) bool) {
				for e, err := range good(ctx, from) {
					if err != nil || !yield(e, nil) {
						return
					}
				}
			}
		}
	}, []string{byFollowCtx, byClosing, byDoneCtx}},
	{"LastSeq lags behind", func(b *bent) {
		b.last = func() uint64 { return max(1, b.Log.LastSeq()) - 1 }
	}, []string{byShownThere, bySeqs}},
	{"forgets the last event on reopen", func(b *bent) {
		b.events = filtered(b.events, func(e wal.Event) bool { return e.Epoch == b.epoch() || e.Seq%40 != 0 })
	}, []string{byReopened, byConcurrent}},
	{"forgets Prev on reopen", func(b *bent) {
		afterReopen(b, func(e *wal.Event) { e.Prev = 0 })
	}, []string{byReopened, byGroups}},
	{"has a new name on reopen", func(b *bent) {
		id := fmt.Sprint(rand.Uint64())
		b.id = func() string { return id }
	}, []string{byNamed, byWriters}},
	{"has one epoch for ever", func(b *bent) {
		b.epoch = func() uint64 { return 1 }
		b.edit = func(e *wal.Event) { e.Epoch = 1 }
	}, []string{byEpochs, byWriters}},
	{"says that all live for ever", func(b *bent) {
		b.live = func(uint64) bool { return true }
	}, []string{byEpochs, byWriters, byEngineRuns, byEngineRace}},
	{"says that only its own lives", func(b *bent) {
		b.live = func(epoch uint64) bool { return epoch == b.Log.Epoch() }
	}, []string{byWriters, byEngineRace}},
	{"events have the epoch of the reader", func(b *bent) {
		b.edit = func(e *wal.Event) { e.Epoch = b.Log.Epoch() }
	}, []string{byReopened, byWriters, byEngineRuns}},
	{"can be closed once", func(b *bent) {
		var mu sync.Mutex
		closed := false
		b.close = func() error {
			mu.Lock()
			defer mu.Unlock()
			if closed {
				return errors.New("closed already")
			}
			closed = true
			return b.Log.Close()
		}
	}, []string{byClosing}},
	{"is not closed by Close", func(b *bent) {
		b.close = func() error { return nil }
	}, []string{byClosing, byEpochs}},
	{"Close leaves a goroutine", func(b *bent) {
		go func() { <-b.memory.released }()
	}, []string{byCloseMeets}},
	{"says closed, and has written", func(b *bent) {
		b.append = func(ctx context.Context, events []wal.Event) (uint64, error) {
			first, err := b.Log.Append(ctx, events...)
			if err == nil && first > 60 {
				return 0, wal.ErrClosed
			}
			return first, err
		}
	}, []string{byCloseMeets}},
	{"says written, and is closed", func(b *bent) {
		b.append = func(ctx context.Context, events []wal.Event) (uint64, error) {
			first, err := b.Log.Append(ctx, events...)
			if errors.Is(err, wal.ErrClosed) && rand.N(4) > 0 {
				return b.Log.LastSeq() + 1, nil
			}
			return first, err
		}
	}, []string{byCloseMeets}},
	{"guesses the seq", func(b *bent) {
		b.append = func(ctx context.Context, events []wal.Event) (uint64, error) {
			guess := b.Log.LastSeq() + 1
			runtime.Gosched()
			_, err := b.Log.Append(ctx, events...)
			return guess, err
		}
	}, []string{byConcurrent}},
	{"hides events of unknown type", func(b *bent) {
		known := func(e wal.Event) bool { return e.Type != "job_dreamt" }
		b.follow, b.events = filtered(b.follow, known), filtered(b.events, known)
	}, []string{byEngineStay}},
}

// share puts the payloads that were handed out for this event before in the place of its own.
func (m *memory) share(e *wal.Event) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.shared[e.Seq]; !ok {
		m.shared[e.Seq] = *e
	}
	*e = m.shared[e.Seq]
}

func sharing(m *memory, read readFunc) readFunc {
	return func(ctx context.Context, from uint64) iter.Seq2[wal.Event, error] {
		return func(yield func(wal.Event, error) bool) {
			for e, err := range read(ctx, from) {
				if err == nil {
					m.share(&e)
				}
				if !yield(e, err) {
					return
				}
			}
		}
	}
}

func takeAnyPrev(b *bent) {
	b.append = func(ctx context.Context, events []wal.Event) (uint64, error) {
		log := b.Log.(*memEnd).log
		for {
			own := slices.Clone(events)
			log.mu.Lock()
			for i := range own {
				own[i].Prev = log.heads[own[i].JobID]
			}
			log.mu.Unlock()
			if first, err := b.Log.Append(ctx, own...); !errors.Is(err, recovery.ErrConflict) {
				return first, err
			}
		}
	}
}

// lossy has a buffer between the log and who follows it, and throws away what does not fit.
func lossy(read readFunc) readFunc {
	type item struct {
		event wal.Event
		err   error
	}
	return func(ctx context.Context, from uint64) iter.Seq2[wal.Event, error] {
		return func(yield func(wal.Event, error) bool) {
			items := make(chan item, 10)
			go func() {
				defer close(items)
				for e, err := range read(ctx, from) {
					if err != nil {
						items <- item{err: err}
						return
					}
					select {
					case items <- item{event: e}:
					default:
					}
				}
			}()
			for i := range items {
				if !yield(i.event, i.err) {
					return
				}
			}
		}
	}
}

// TestLog catches each broken log, by the parts that are to see it. A part that catches nobody proves nothing: there is
// none.
func TestTestLogHasTeeth(t *testing.T) {
	t.Parallel()
	catches := make(map[string]int)
	for _, s := range badLogs {
		t.Run(s.name, func(t *testing.T) {
			for _, part := range s.by {
				catches[part]++
				synctest.Test(t, func(t *testing.T) { // what waits in vain waits for no time
					m := &memory{shared: make(map[uint64]wal.Event), released: make(chan struct{})}
					r := runPart(t, part, func() Opener { return bender{newMemLog(), m, s.bend} }, SeveralWriters)
					close(m.released)
					require.True(t, r.failed, "not caught by %q", part)
					t.Logf("%s: %s", part, r.text.String())
				})
			}
		})
	}
	for _, o := range []struct {
		name, by string
		open     func() Opener
		relax    []Relaxation
	}{
		{"leaves out seqs", bySeqs, func() Opener { return &MemLog{Gap: 1} }, []Relaxation{SeveralWriters}},
		{"lets two writers in", bySecond, func() Opener { return new(MemLog) }, nil},
		{"does not see conflicts", byConflicts, func() Opener { return newOnDisk(wal.Options{MaxEventBytes: 1 << 20}) }, nil},
		{"acknowledges before it syncs", byCrash, func() Opener { return newOnDisk(wal.Options{Sync: wal.SyncNever}) }, nil},
	} {
		t.Run(o.name, func(t *testing.T) {
			catches[o.by]++
			synctest.Test(t, func(t *testing.T) {
				r := runPart(t, o.by, o.open, o.relax...)
				require.True(t, r.failed, "not caught by %q", o.by)
				t.Logf("%s: %s", o.by, r.text.String())
			})
		})
	}
	for _, p := range logParts {
		require.Positive(t, catches[p.name], "no broken log is caught by %q", p.name)
		delete(catches, p.name)
	}
	require.Empty(t, catches, "no such parts")
}

// What a part refuses, the relaxation of that name allows; and the rest of the promise still holds.
func TestRelaxations(t *testing.T) {
	unsure := func() Opener {
		return bender{newMemLog(), new(memory), func(b *bent) {
			b.append = func(ctx context.Context, events []wal.Event) (uint64, error) {
				first, err := b.Log.Append(ctx, events...)
				if errors.Is(err, wal.ErrClosed) || err == nil && first > 130 {
					return 0, wal.ErrOutcomeUnknown
				}
				return first, err
			}
		}}
	}
	for _, r := range []struct {
		relax Relaxation
		part  string
		open  func() Opener
		more  []Relaxation
	}{
		{SparseSeqs, bySeqs, func() Opener { return &MemLog{Gap: 1} }, []Relaxation{SeveralWriters}},
		{SparseSeqs, byReopened, func() Opener { return &MemLog{Gap: 5} }, []Relaxation{SeveralWriters}},
		{NoConflicts, byConflicts, func() Opener { return newOnDisk(wal.Options{MaxEventBytes: 1 << 20}) }, nil},
		{UnknownOutcomes, byCloseMeets, unsure, []Relaxation{SeveralWriters}},
	} {
		t.Run(string(r.relax), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				require.True(t, runPart(t, r.part, r.open, r.more...).failed, "relaxed, though nobody said so")
				with := runPart(t, r.part, r.open, append(r.more, r.relax)...)
				require.False(t, with.failed, with.text.String())
				require.False(t, with.skipped, with.text.String())
			})
		})
	}
	for _, part := range []string{byWriters, byEngineRace} {
		require.True(t, runPart(t, part, func() Opener { return newMemLog() }).skipped, "needs several writers")
	}
	require.True(t, runPart(t, bySecond, func() Opener { return newMemLog() }, SeveralWriters).skipped)
}

func runPart(t *testing.T, name string, open func() Opener, relax ...Relaxation) *recorder {
	i := slices.IndexFunc(logParts, func(p logPart) bool { return p.name == name })
	require.GreaterOrEqual(t, i, 0, "no part %q", name)
	return recorded(func(tb rapid.TB) { logParts[i].run(tb, open, relax) })
}

// A wrapper that bends nothing passes: what catches the others is not the wrapper.
func TestTestLogPassesTheWrapper(t *testing.T) {
	TestLog(t, func(*testing.T) Opener {
		return bender{newMemLog(), new(memory), func(*bent) {}}
	}, SeveralWriters)
}
