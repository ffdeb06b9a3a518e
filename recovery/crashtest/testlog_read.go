package crashtest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/wal"
)

// What TestLog asks of reading.
var readParts = []logPart{
	{"events from anywhere are the rest of the log", testEventsFrom},
	{"events end where the log ended at the call", testEventsEnd},
	{"events can be broken off and begun again", testEventsBreak},
	{"at finds each event and nothing else", testAt},
	{"what is yielded is the caller's", testYielded},
	{"what was dropped is dropped for all", testDropped},
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// behind returns the events at seq from and behind it.
func behind(events []wal.Event, from uint64) []wal.Event {
	i := slices.IndexFunc(events, func(e wal.Event) bool { return e.Seq >= from })
	if i < 0 {
		return nil
	}
	return events[i:]
}

func testEventsFrom(t *trial) {
	log := t.open()
	for range 2 {
		all := t.fill(log)
		t.check(all[0].Seq == log.FirstSeq(), "FirstSeq is %d, the first event's is %d", log.FirstSeq(), all[0].Seq)
		for from := range log.LastSeq() + 3 {
			t.same(t.from(log, from), behind(all, from), "Events from %d", from)
		}
		t.same(t.from(log, 1<<63), nil, "Events from far beyond the end")
		log = t.reopen(log)
		t.same(t.all(log), all, "Events of the log opened again")
	}
}

func testEventsEnd(t *trial) {
	log := t.open()
	empty := log.Events(t.ctx, 0)
	first := t.append(log, t.group(3)...)
	for e := range empty {
		t.Fatalf("Events was called on an empty log and yielded seq %d, which came later", e.Seq)
	}
	ahead := log.Events(t.ctx, first+1)
	t.append(log, t.group(4)...)
	var seqs []uint64
	for e, err := range ahead {
		t.must(err, "Events")
		seqs = append(seqs, e.Seq)
		t.append(log, t.submitted()) // no lock may be held here
	}
	want := []uint64{first + 1, first + 2}
	t.check(slices.Equal(seqs, want), "Events yielded seqs %d; from %d to the end at the call are %d", seqs, first+1, want)
}

func testEventsBreak(t *trial) {
	log := t.open()
	all := t.fill(log)
	again := log.Events(t.ctx, 0)
	for stop := range all {
		n := 0
		for e, err := range again {
			t.must(err, "Events")
			t.same([]wal.Event{e}, all[n:n+1], "a sequence that was broken off, and begun again")
			if n++; n > stop {
				break
			}
		}
	}
}

func testAt(t *trial) {
	log := t.open()
	for range 2 {
		all := t.fill(log)
		there := make(map[uint64]bool)
		for _, e := range all {
			there[e.Seq] = true
		}
		for i, e := range all {
			t.same([]wal.Event{t.at(log, e.Seq)}, all[i:i+1], "At(%d)", e.Seq)
		}
		t.chains(log, all)
		for _, seq := range []uint64{0, log.LastSeq() + 1, log.LastSeq() + 1000, 1<<64 - 1} {
			t.notThere(log, seq)
		}
		for seq := log.FirstSeq(); seq < log.LastSeq(); seq++ {
			if !there[seq] {
				t.notThere(log, seq)
			}
		}
		log = t.reopen(log)
	}
}

// chains holds Chain, where the log has one, against At.
func (t *trial) chains(log recovery.Log, all []wal.Event) {
	t.Helper()
	chained, ok := log.(recovery.Chains)
	if !ok {
		return
	}
	for _, e := range all {
		var got, want []wal.Event
		for e, err := range chained.Chain(t.ctx, e.Seq) {
			t.must(err, "Chain")
			got = append(got, e)
		}
		for seq := e.Seq; seq != 0; seq = want[len(want)-1].Prev {
			want = append(want, t.at(log, seq))
		}
		t.same(got, want, "Chain(%d)", e.Seq)
	}
	for e, err := range chained.Chain(t.ctx, 0) {
		t.Fatalf("Chain(0) yielded seq %d, error %v; of 0 there is nothing", e.Seq, err)
	}
	n := 0
	for e, err := range chained.Chain(t.ctx, log.LastSeq()+1) {
		n++
		t.check(err != nil && n == 1, "Chain from beyond the end yielded seq %d, error %v", e.Seq, err)
	}
	t.check(n == 1, "Chain from beyond the end yielded nothing, and no error")
}

// notThere: seq is none that any event ever had.
func (t *trial) notThere(log recovery.Log, seq uint64) {
	t.Helper()
	e, err := log.At(t.ctx, seq)
	t.check(err != nil, "At(%d) returned the event at seq %d; there is none", seq, e.Seq)
	t.check(!errors.Is(err, wal.ErrDropped), "At(%d) returned %q; nothing was dropped", seq, err)
}

func testYielded(t *trial) {
	log := t.open()
	scribbled := t.followWith(log, 0, func(e wal.Event) { scribble([]wal.Event{e}) })
	var all []wal.Event
	for i, n := range []int{1, 7, 20} {
		given := t.group(n)
		for j := range given {
			given[j].Time = time.Unix(int64(i), int64(j))
		}
		all = append(all, stored(given, t.append(log, given...), log.Epoch(), nil)...)
	}
	scribbled.until(log.LastSeq())
	scribbled.cancel()
	scribbled.ends(context.Canceled) // and has written over the last one, too
	live := t.follow(log, 0)
	live.until(log.LastSeq())
	t.same(live.seen(), all, "Follow, after another follower wrote over what it got")
	for range 2 {
		scribble(t.all(log))
		t.same(t.all(log), all, "Events, after the caller wrote over what Events yielded")
		scribble([]wal.Event{t.at(log, all[0].Seq)})
		t.same([]wal.Event{t.at(log, all[0].Seq)}, all[:1], "At, after the caller wrote over what At returned")
	}
	t.same(t.all(t.reopen(log)), all, "the log opened again")
}

// testDropped needs a log that can forget, which the interface does not ask for.
func testDropped(t *trial) {
	log := t.open()
	dropper, ok := log.(interface{ DropBefore(seq uint64) error })
	if !ok {
		t.Skip("the log has no DropBefore")
	}
	all := t.fill(log)
	middle := all[len(all)/2].Seq
	t.must(dropper.DropBefore(middle), "DropBefore(%d)", middle)
	first := log.FirstSeq()
	t.check(first <= middle, "DropBefore(%d) dropped up to %d", middle, first)
	if _, err := log.At(t.ctx, all[0].Seq); err == nil && first == all[0].Seq {
		t.Skip("nothing was dropped: open the log with smaller segments")
	}
	t.check(first > all[0].Seq, "FirstSeq is %d, and that event was dropped", first)
	for range 2 {
		t.check(log.FirstSeq() == first, "FirstSeq is %d after a drop up to %d", log.FirstSeq(), first)
		rest := behind(all, first)
		t.same(t.all(log), rest, "Events, after a drop")
		t.same(t.from(log, first), rest, "Events from the first that is left")
		for _, e := range all[:len(all)-len(rest)] {
			t.dropped(log, e.Seq)
		}
		f := t.follow(log, 0)
		f.until(log.LastSeq())
		t.same(f.seen(), rest, "Follow from 0, after a drop")
		log = t.reopen(log)
	}
}

func (t *trial) dropped(log recovery.Log, seq uint64) {
	t.Helper()
	_, err := log.At(t.ctx, seq)
	t.check(errors.Is(err, wal.ErrDropped), "At(%d), which was dropped, returned %v", seq, err)
	for e, err := range log.Events(t.ctx, seq) {
		t.check(errors.Is(err, wal.ErrDropped), "Events from %d, which was dropped, yielded seq %d, %v", seq, e.Seq, err)
		break
	}
	f := t.follow(log, seq)
	t.wait("the end of Follow from what was dropped", f.done)
	t.check(errors.Is(f.err, wal.ErrDropped), "Follow from %d, which was dropped, ended with %v", seq, f.err)
}

// What TestLog asks of Follow.
var followParts = []logPart{
	{"follow yields history and then what comes", testFollow},
	{"follow from beyond the end waits for it", testFollowBeyond},
	{"followers beside each other miss nothing", testFollowers},
	{"a follower that stands still holds nobody up", testSlowFollower},
	{"follow ends with its context", testFollowContext},
	{"what a follower saw is there", testFollowShown},
}

// A follower collects what one Follow yields, in a goroutine of its own.
type follower struct {
	t      *trial
	from   uint64
	cancel context.CancelFunc
	done   chan struct{}
	err    error // that Follow ended with; to be read when done is closed

	mu     sync.Mutex // guards the fields below
	events []wal.Event
	news   chan struct{} // closed with the next event
}

func (t *trial) follow(log recovery.Log, from uint64) *follower {
	return t.followWith(log, from, func(wal.Event) {})
}

// followWith calls see with each event after it was noted down.
func (t *trial) followWith(log recovery.Log, from uint64, see func(wal.Event)) *follower {
	ctx, cancel := context.WithCancel(t.ctx)
	f := &follower{t: t, from: from, cancel: cancel, done: make(chan struct{}), news: make(chan struct{})}
	t.mu.Lock()
	t.followers = append(t.followers, f)
	t.mu.Unlock()
	events, begun := log.Follow(ctx, from), make(chan struct{})
	defer func() { <-begun }() // what is appended next is to come live
	go func() {
		defer close(f.done)
		close(begun)
		for e, err := range events {
			if f.err != nil {
				f.err = errors.New("Follow went on behind its error")
				return
			}
			if err != nil {
				f.err = err
				continue
			}
			f.note(e)
			see(e)
		}
	}()
	return f
}

func (f *follower) note(e wal.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.events = append(f.events, copied(e))
	close(f.news)
	f.news = make(chan struct{})
}

// seen returns what was yielded so far.
func (f *follower) seen() []wal.Event {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.events)
}

// until waits until the follower has seen seq, or something behind it.
func (f *follower) until(seq uint64) {
	f.t.Helper()
	for {
		f.mu.Lock()
		n, news := len(f.events), f.news
		reached := n > 0 && f.events[n-1].Seq >= seq
		f.mu.Unlock()
		if reached {
			return
		}
		f.either(news, fmt.Sprintf("seq %d by Follow from %d, which has yielded %d events", seq, f.from, n))
	}
}

// either waits for news; a Follow that ended has none.
func (f *follower) either(news <-chan struct{}, what string) {
	f.t.Helper()
	ended := make(chan struct{})
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		defer close(ended)
		select {
		case <-news:
		case <-f.done:
		case <-stop:
		}
	}()
	f.t.wait(what, ended)
	select {
	case <-news:
	default:
		f.t.Fatalf("Follow from %d ended with %v before it came to %s", f.from, f.err, what)
	}
}

// ends fails the part unless Follow has ended, or soon does, with the error.
func (f *follower) ends(want error) {
	f.t.Helper()
	f.t.wait("the end of Follow", f.done)
	f.t.check(errors.Is(f.err, want), "Follow from %d ended with %v; want %q", f.from, f.err, want)
}

func testFollow(t *trial) {
	log := t.open()
	t.fill(log)
	history := t.all(log)
	froms := []uint64{0, history[0].Seq, history[len(history)/2].Seq, log.LastSeq(), log.LastSeq() + 1}
	var followers []*follower
	for _, from := range froms {
		followers = append(followers, t.follow(log, from))
	}
	followers[0].until(log.LastSeq())
	t.fill(log)
	for _, from := range froms {
		followers = append(followers, t.follow(log, from))
	}
	for _, n := range []int{1, 30, 2} {
		t.append(log, t.group(n)...)
	}
	all := t.all(log)
	for _, f := range followers {
		f.until(log.LastSeq())
		t.same(f.seen(), behind(all, f.from), "Follow from %d", f.from)
	}
}

func testFollowBeyond(t *trial) {
	log := t.open()
	const from = 50
	all := t.follow(log, 0)
	var early []*follower
	for range 10 {
		early = append(early, t.follow(log, from))
		t.append(log, t.group(5)...)
		all.until(log.LastSeq())
	}
	t.append(log, t.group(20)...)
	for _, f := range early {
		f.until(log.LastSeq())
		t.same(f.seen(), behind(t.all(log), from), "Follow from %d, begun before that was there", from)
	}
}

func testFollowers(t *trial) {
	log := t.open()
	var followers []*follower
	for i := range 12 {
		f := t.follow(log, uint64(i%3))
		followers = append(followers, f)
		if i%2 == 1 {
			f.until(log.LastSeq()) // it has come to the end, and waits
		}
		t.append(log, t.group(1+i)...)
	}
	all := t.all(log)
	for _, f := range followers {
		f.until(log.LastSeq())
		t.same(f.seen(), behind(all, f.from), "one follower of several, from %d", f.from)
	}
}

func testSlowFollower(t *trial) {
	log := t.open()
	gate := make(chan struct{})
	open := sync.OnceFunc(func() { close(gate) })
	defer open()
	slow, quick := t.followWith(log, 0, func(wal.Event) { <-gate }), t.follow(log, 0)
	t.append(log, t.submitted())
	slow.until(1) // and stands still from here on
	done := make(chan struct{})
	var err error
	groups := [][]wal.Event{t.group(100), t.group(7), t.group(1), t.group(100)}
	go func() {
		defer close(done)
		for _, g := range groups {
			_, appendErr := log.Append(t.ctx, g...)
			err = errors.Join(err, appendErr)
		}
	}()
	t.wait("appends beside a follower that stands still", done)
	t.must(err, "appends beside a follower that stands still")
	quick.until(log.LastSeq())
	open()
	slow.until(log.LastSeq())
	all := t.all(log)
	t.same(quick.seen(), all, "the follower beside the slow one")
	t.same(slow.seen(), all, "the slow follower")
}

func testFollowContext(t *trial) {
	log := t.open()
	waiting, idle := t.follow(log, 0), t.follow(log, 1000)
	t.fill(log)
	waiting.until(log.LastSeq())
	for _, f := range []*follower{waiting, idle} {
		f.cancel()
		f.ends(context.Canceled)
	}
	t.append(log, t.submitted()) // nobody is left to be told

	const enough = 5
	ctx, cancel := context.WithCancel(t.ctx)
	defer cancel()
	yielded := 0
	for e, err := range log.Follow(ctx, 0) {
		if err != nil {
			t.check(errors.Is(err, context.Canceled), "Follow ended with %v; want %q", err, context.Canceled)
			break
		}
		yielded++
		t.check(yielded <= enough, "Follow yielded seq %d after its context was done", e.Seq)
		if yielded == enough {
			cancel()
		}
	}
	t.check(yielded == enough, "Follow yielded %d events until its context was done; want %d", yielded, enough)
}

func testFollowShown(t *trial) {
	log := t.open()
	const n = 61 // the last append is of one event
	wrong := make(chan string, 10*n)
	f := t.followWith(log, 0, func(e wal.Event) {
		if last := log.LastSeq(); last < e.Seq {
			wrong <- fmt.Sprintf("Follow yielded seq %d while LastSeq was %d", e.Seq, last)
		}
		if at, err := log.At(t.ctx, e.Seq); err != nil || difference(at, e) != "" {
			wrong <- fmt.Sprintf("Follow yielded seq %d; At: %v %s", e.Seq, err, difference(at, e))
		}
	})
	last := uint64(0)
	for i := range n {
		last = t.append(log, t.group(1+i%3)...)
	}
	f.until(last) // not LastSeq, which is on trial here
	f.cancel()
	f.ends(context.Canceled)
	select {
	case what := <-wrong:
		t.Fatalf("%s", what)
	default:
	}
}
