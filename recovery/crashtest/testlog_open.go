package crashtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime/pprof"
	"slices"
	"sync"
	"time"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/wal"
)

// What TestLog asks of opening, closing and crashing, and of many goroutines at once.
var openParts = []logPart{
	{"opened again the log is the same byte for byte", testReopen},
	{"the log keeps its name", testName},
	{"each opening has an epoch of its own that lives until it is closed", testEpochs},
	{"a second writer is refused", testSecondWriter},
	{"writers beside each other see all events", testWriters},
	{"close is final and can be repeated", testClose},
	{"close meets appends and follows and leaves nothing behind", testCloseMeets},
	{"a context that ends during an append leaves no doubt", testCancelled},
	{"appends of many goroutines keep to themselves", testConcurrent},
	{"what was acknowledged or shown survives a crash", testCrash},
}

func testReopen(t *trial) {
	log := t.open()
	var all []wal.Event
	for range 4 {
		last, epoch := log.LastSeq(), log.Epoch()
		before := len(all)
		all = t.fill(log)
		t.check(all[before].Seq > last, "seq %d was given out again after the log ended at %d", all[before].Seq, last)
		t.check(all[before].Seq == last+1 || t.may(SparseSeqs), "seq %d follows %d", all[before].Seq, last)
		for _, e := range all[before:] {
			t.check(e.Epoch == epoch, "seq %d has epoch %d, appended under %d", e.Seq, e.Epoch, epoch)
		}
		for range 2 {
			first, last := log.FirstSeq(), log.LastSeq()
			log = t.reopen(log)
			t.check(log.FirstSeq() == first && log.LastSeq() == last,
				"seqs %d to %d, were %d to %d before the log was opened again", log.FirstSeq(), log.LastSeq(), first, last)
			t.same(t.all(log), all, "the log opened again")
		}
	}
	f := t.follow(log, 0)
	f.until(log.LastSeq())
	t.same(f.seen(), all, "Follow of the log opened again")
}

func testName(t *trial) {
	log := t.open()
	id := log.ID()
	t.check(id != "", "the log has no ID")
	t.fill(log)
	for range 2 {
		t.check(log.ID() == id, "the log's ID was %q and is %q", id, log.ID())
		log = t.reopen(log)
	}
}

func testEpochs(t *trial) {
	log := t.open()
	for before := uint64(0); before < 4; {
		epoch := log.Epoch()
		t.check(epoch > before, "epoch %d after epoch %d", epoch, before)
		t.check(log.Live(epoch), "the log's own epoch %d does not live", epoch)
		t.check(before == 0 || !log.Live(before), "epoch %d lives, and its opening was closed", before)
		e := t.at(log, t.append(log, t.submitted()))
		t.check(e.Epoch == epoch, "an event appended under epoch %d has epoch %d", epoch, e.Epoch)
		before = epoch
		log = t.reopen(log)
	}
}

func testSecondWriter(t *trial) {
	if t.may(SeveralWriters) {
		t.Skip("relaxed: " + SeveralWriters)
	}
	log := t.open()
	t.fill(log)
	second, err := t.Open(t.ctx)
	if err == nil {
		_ = second.Close()
		t.Fatalf("Open succeeded beside an opening that appends; want %q", wal.ErrLocked)
	}
	t.check(errors.Is(err, wal.ErrLocked), "Open beside an opening that appends returned %v; want %q", err, wal.ErrLocked)
	t.append(log, t.submitted())
	t.append(t.reopen(log), t.submitted())
}

func testWriters(t *trial) {
	if !t.may(SeveralWriters) {
		t.Skip("needs " + SeveralWriters)
	}
	one, two := t.open(), t.open()
	t.check(one.Epoch() != two.Epoch(), "two openings share epoch %d", one.Epoch())
	t.check(one.ID() == two.ID(), "the log's ID is %q and %q", one.ID(), two.ID())
	t.check(one.Live(two.Epoch()) && two.Live(one.Epoch()), "an epoch of two that are open does not live")
	a, b := t.follow(one, 0), t.follow(two, 0)
	for range 10 {
		for _, log := range []recovery.Log{one, two} {
			e := t.submitted()
			first := t.append(log, e, wal.Event{Type: wal.JobValidated, JobID: e.JobID})
			e = t.at(log, first)
			t.check(e.Epoch == log.Epoch(), "seq %d has epoch %d, appended under %d", e.Seq, e.Epoch, log.Epoch())
		}
	}
	last := max(one.LastSeq(), two.LastSeq())
	a.until(last)
	b.until(last)
	t.check(len(a.seen()) == 40, "%d events of 40 were followed", len(a.seen()))
	t.same(a.seen(), b.seen(), "what the two openings follow")
	if !t.may(NoConflicts) {
		newest := a.seen()[39]
		next := wal.Event{Type: wal.JobStarted, JobID: newest.JobID, Prev: newest.Seq}
		t.append(one, next)
		_, err := two.Append(t.ctx, next)
		t.check(errors.Is(err, recovery.ErrConflict), "an append that lost its race returned %v", err)
	}
	closed := one.Epoch()
	t.close(one)
	t.check(!two.Live(closed), "epoch %d lives, and its opening was closed", closed)
	t.check(two.Live(two.Epoch()), "the epoch of the opening that is left does not live")
	t.append(two, t.submitted())
}

func testClose(t *trial) {
	log := t.open()
	t.fill(log)
	id, epoch, first, last := log.ID(), log.Epoch(), log.FirstSeq(), log.LastSeq()
	before := t.all(log)
	waiting := t.follow(log, last+1)
	t.close(log)
	waiting.ends(wal.ErrClosed)
	t.close(log)
	var several sync.WaitGroup
	for range 4 {
		several.Go(func() { _ = log.Close() })
	}
	several.Wait()
	_, err := log.Append(t.ctx, t.submitted())
	t.check(errors.Is(err, wal.ErrClosed), "Append to a closed log returned %v; want %q", err, wal.ErrClosed)
	t.unreadable(t.ctx, log, wal.ErrClosed, 0, 1, last, last+1)
	t.check(log.ID() == id && log.Epoch() == epoch && log.FirstSeq() == first && log.LastSeq() == last,
		"a closed log remembers name, epoch and seqs")
	t.same(t.all(t.open()), before, "the log opened again")
}

// attempt is one append of a goroutine beside others, and what came of it.
type attempt struct {
	events []wal.Event
	first  uint64
	err    error
}

// unique returns n events of jobs that no other batch has.
func unique(worker, turn, n int) (events []wal.Event) {
	for i := range n {
		events = append(events, wal.Event{Type: wal.JobSubmitted, JobID: fmt.Sprintf("%d/%d/%d", worker, turn, i)})
	}
	return events
}

// hammer appends with several goroutines until each has met an error, calls stop when some appends have succeeded, and
// returns all that was tried.
func (t *trial) hammer(log recovery.Log, stop func()) (batches []attempt) {
	const workers, enough = 8, 40
	var mu sync.Mutex
	succeeded, reached := 0, make(chan struct{})
	var all sync.WaitGroup
	for w := range workers {
		all.Go(func() {
			for turn, failed := 0, false; !failed; turn++ {
				b := attempt{events: unique(w, turn, 1+turn%3)}
				b.first, b.err = log.Append(t.ctx, b.events...)
				failed = b.err != nil
				mu.Lock()
				batches = append(batches, b)
				if succeeded++; succeeded == enough {
					close(reached)
				}
				mu.Unlock()
			}
		})
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		all.Wait()
	}()
	select {
	case <-reached:
	case <-ended:
		t.Fatalf("appends beside each other end with errors: %v", batches[len(batches)-1].err)
	}
	stop()
	t.wait("the end of appends to a log that was closed", ended)
	return batches
}

// settled: what succeeded is there, what failed is not, and nothing else is.
func (t *trial) settled(all []wal.Event, batches []attempt, unknown error) {
	t.Helper()
	at := make(map[uint64]wal.Event)
	for _, e := range all {
		at[e.Seq] = e
	}
	jobs := make(map[string]int)
	for _, e := range all {
		jobs[e.JobID]++
	}
	owned := 0
	for _, b := range batches {
		there := 0
		for i, e := range b.events {
			there += jobs[e.JobID]
			if b.err == nil {
				seq := b.first + uint64(i)
				t.check(at[seq].JobID == e.JobID, "seq %d was acknowledged as job %q and is job %q", seq, e.JobID, at[seq].JobID)
			}
		}
		switch {
		case b.err == nil:
			t.check(there == len(b.events), "%d events of %d that were acknowledged at seq %d", there, len(b.events), b.first)
		case unknown != nil && errors.Is(b.err, unknown):
			t.check(there == 0 || there == len(b.events), "%d events of a group of %d (%v)", there, len(b.events), b.err)
		default:
			t.check(there == 0, "%d events of an append that failed with %v", there, b.err)
		}
		owned += there
	}
	t.check(owned == len(all), "%d events, of which %d were appended", len(all), owned)
}

func testCloseMeets(t *trial) {
	name := fmt.Sprintf("%s %p", t.Name(), t)
	pprof.Do(t.ctx, pprof.Labels("crashtest", name), func(context.Context) {
		log := t.open()
		followers := []*follower{t.follow(log, 0), t.follow(log, 0), t.follow(log, 1_000_000)}
		batches := t.hammer(log, func() { t.close(log) })
		for _, f := range followers {
			f.ends(wal.ErrClosed)
		}
		var unknown error
		for _, b := range batches {
			ok := b.err == nil || errors.Is(b.err, wal.ErrClosed)
			if t.may(UnknownOutcomes) && errors.Is(b.err, wal.ErrOutcomeUnknown) {
				unknown, ok = wal.ErrOutcomeUnknown, true
			}
			t.check(ok, "an append that Close met returned %v; want %q", b.err, wal.ErrClosed)
		}
		log = t.open()
		all := t.all(log)
		t.settled(all, batches, unknown)
		for _, f := range followers {
			seen := f.seen()
			t.same(seen, all[:min(len(seen), len(all))], "what a follower saw before Close")
		}
		t.close(log)
	})
	// Whatever a log starts has its starter's labels.
	left := goroutines(name)
	for pause := time.Millisecond; left > 0 && pause < patience; pause *= 2 { // one that is about to end has not begun to
		time.Sleep(pause)
		left = goroutines(name)
	}
	t.check(left == 0, "%d goroutines are left after Close", left)
}

func testCancelled(t *trial) {
	log := t.open()
	var attempts []attempt
	var unknown error
	for turn := range 60 {
		ctx, cancel := context.WithCancel(t.ctx)
		go cancel()
		a := attempt{events: unique(0, turn, 1+turn%3)}
		a.first, a.err = log.Append(ctx, a.events...)
		<-ctx.Done()
		ok := a.err == nil || errors.Is(a.err, context.Canceled)
		if t.may(UnknownOutcomes) && errors.Is(a.err, wal.ErrOutcomeUnknown) {
			unknown, ok = wal.ErrOutcomeUnknown, true
		}
		t.check(ok, "an append whose context ended meanwhile returned %v; want nil or %q", a.err, context.Canceled)
		attempts = append(attempts, a)
	}
	t.append(log, t.submitted())
	for range 2 {
		all := t.all(log)
		t.settled(all[:len(all)-1], attempts, unknown)
		log = t.reopen(log)
	}
}

// goroutines counts those with the label.
func goroutines(label string) (n int) {
	var profile bytes.Buffer
	_ = pprof.Lookup("goroutine").WriteTo(&profile, 1) // a buffer takes all
	for stack := range bytes.SplitSeq(profile.Bytes(), []byte("\n\n")) {
		if bytes.Contains(stack, fmt.Appendf(nil, "%q:%q", "crashtest", label)) {
			n++
		}
	}
	return n
}

func testConcurrent(t *trial) {
	const workers, turns = 12, 20
	log := t.open()
	followers := []*follower{t.follow(log, 0), t.follow(log, 0), t.followWith(log, 0, func(e wal.Event) {
		for next := range log.Events(t.ctx, e.Seq) { // beside the appends
			if next.Seq > e.Seq+3 {
				break
			}
		}
	})}
	batches, errs := make([][]attempt, workers), make([]error, workers)
	var all sync.WaitGroup
	for w := range workers {
		all.Go(func() { batches[w], errs[w] = oneLife(t.ctx, log, w, turns) })
	}
	all.Wait()
	t.must(errors.Join(errs...), "appends beside each other")
	events := t.all(log)
	var prev uint64
	for _, e := range events {
		t.check(e.Seq > prev && (e.Seq == prev+1 || t.may(SparseSeqs)), "seq %d follows %d", e.Seq, prev)
		prev = e.Seq
	}
	t.settled(withoutLives(events), withoutHeads(slices.Concat(batches...)), nil)
	for _, f := range followers {
		f.until(log.LastSeq())
		t.same(f.seen(), events, "a follower beside %d appending goroutines", workers)
	}
	t.same(t.all(t.reopen(log)), events, "the log opened again")
}

// oneLife appends, turn by turn, the next event of one job with others behind it, and reads back what it wrote.
func oneLife(ctx context.Context, log recovery.Log, worker, turns int) (batches []attempt, err error) {
	head := wal.Event{Type: "step", JobID: fmt.Sprint("life ", worker)}
	for turn := range turns {
		b := attempt{events: append([]wal.Event{head}, unique(worker, turn, turn%4)...)}
		if b.first, err = log.Append(ctx, b.events...); err != nil {
			return nil, err
		}
		for i, given := range b.events {
			e, err := log.At(ctx, b.first+uint64(i))
			if err != nil {
				return nil, err
			}
			if e.JobID != given.JobID || e.Prev != given.Prev {
				return nil, fmt.Errorf("seq %d is of job %q with prev %d; appended there were job %q and prev %d",
					e.Seq, e.JobID, e.Prev, given.JobID, given.Prev)
			}
		}
		head.Prev = b.first
		batches = append(batches, b)
	}
	return batches, nil
}

// withoutLives leaves the events whose jobs have no other.
func withoutLives(events []wal.Event) (rest []wal.Event) {
	for _, e := range events {
		if e.Type != "step" {
			rest = append(rest, e)
		}
	}
	return rest
}

func withoutHeads(batches []attempt) []attempt {
	for i := range batches {
		batches[i].events = batches[i].events[1:]
		batches[i].first++
	}
	return batches
}

func testCrash(t *trial) {
	crasher, ok := t.Opener.(interface{ Crash() })
	if !ok {
		t.Skip("the opener has no Crash, so nothing is known of power cuts; crashtest.DiskOpener makes one that has")
	}
	log := t.open()
	for range 3 {
		before, epoch := t.fill(log), log.Epoch()
		crasher.Crash()
		log = t.open()
		t.same(t.all(log), before, "what was acknowledged before the crash")
		t.check(log.Epoch() > epoch, "epoch %d after epoch %d", log.Epoch(), epoch)
	}
	before := len(t.all(log))
	f := t.follow(log, log.LastSeq()+1)
	var shown []wal.Event
	batches := t.hammer(log, func() {
		shown = f.seen()
		crasher.Crash()
	})
	for i := range batches { // whoever was in flight when the power went knows nothing
		if batches[i].err != nil {
			batches[i].err = wal.ErrOutcomeUnknown
		}
	}
	log = t.open()
	survivors := t.all(log)[before:]
	t.settled(survivors, batches, wal.ErrOutcomeUnknown)
	t.same(survivors[:min(len(shown), len(survivors))], shown, "what was shown before the crash")
	t.append(log, t.submitted())
}
