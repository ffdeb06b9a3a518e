package wal_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// A submission is one append and what came of it.
type submission struct {
	number, of int
	first      uint64
	outcome    outcome
	hard       bool // acknowledged as being on stable storage
}

type outcome int

const (
	unknown outcome = iota // in flight when the power went
	acked
	denied // a definite no: it must never be seen
)

// world is one log on a disk that may lose its power, and what its only caller knows.
type world struct {
	t       testing.TB
	base    *crashfs.FS
	fs      *crashfs.Faulty
	opts    wal.Options
	log     *wal.Log
	told    []submission
	dropped uint64                 // the highest seq that DropBefore, or Compact, was given
	points  []uint64               // of the checkpoints that were acknowledged, in order
	wanted  []func(wal.Event) bool // the Keep of each compaction
	// A stubborn caller opens the log again when it has failed, and tries again when Open has.
	stubborn bool
	// The disk may have lied about a truncate: what was cut is in place again behind a segment's end, where no one but
	// Verify looks. (It is the model's own invention: a kernel that loses a truncate has lost its journal.)
	cutLied bool
	torn    []byte // bytes that nobody acknowledged, and that must not be lost all the same
	dead    bool
}

// enter begins a life on what base holds.
func enter(t testing.TB, base *crashfs.FS, schedule string, opts wal.Options) *world {
	w := &world{t: t, base: base, fs: crashfs.Inject(base, crashfs.MustSchedule(schedule)), opts: opts}
	w.opts.FS = w.fs
	if w.opts.SegmentBytes == 0 {
		w.opts.SegmentBytes = wal.MinSegmentBytes
	}
	return w
}

// died notes the crash, and tells whether it came.
func (w *world) died(err error) bool {
	w.dead = w.dead || w.fs.Crashed()
	if err != nil && !w.dead {
		w.t.Fatalf("schedule %q: %v", w.fs.Schedule(), err)
	}
	return w.dead
}

func (w *world) open() {
	if w.dead {
		return
	}
	l, err := wal.Open("log", w.opts)
	for range 2 {
		if err != nil && w.stubborn && !errors.Is(err, wal.ErrCorrupt) {
			w.fs.SetDisk(-1)
			l, err = wal.Open("log", w.opts)
		}
	}
	if w.died(err) && err != nil {
		return
	}
	w.log = l
}

// reopen is what a stubborn caller does with a log that has failed.
func (w *world) reopen(err error) {
	if err != nil && w.stubborn && !w.dead && !errors.Is(err, wal.ErrNoSpace) {
		_ = w.log.Close()
		w.open()
	}
}

func (w *world) append(of, padding int) {
	if w.dead {
		return
	}
	s := submission{number: len(w.told) + 1, of: of}
	first, err := w.log.Append(ctx, group(s.number, of, padding)...)
	switch {
	case err == nil:
		s.first, s.outcome, s.hard = first, acked, w.opts.Sync == wal.SyncAlways
	case errors.Is(err, wal.ErrOutcomeUnknown) && w.stubborn:
	case errors.Is(err, wal.ErrOutcomeUnknown):
		_ = w.died(err)
	case errors.Is(err, wal.ErrNoSpace), errors.Is(err, wal.ErrFailed):
		s.outcome = denied
		w.dead = w.fs.Crashed()
	default:
		w.t.Fatalf("append: %v", err)
	}
	w.told = append(w.told, s)
	w.reopen(err)
}

func (w *world) close() {
	if w.dead {
		return
	}
	err := w.log.Close()
	if w.stubborn && err != nil {
		return
	}
	if !w.died(err) {
		w.harden()
	}
}

// harden: all that was acknowledged is on stable storage, however weak Options.Sync.
func (w *world) harden() {
	for i := range w.told {
		w.told[i].hard = w.told[i].outcome == acked
	}
}

func (w *world) drop(seq uint64) {
	if w.dead {
		return
	}
	w.dropped = max(w.dropped, seq)
	err := w.log.DropBefore(seq)
	if w.reopen(err); !w.stubborn {
		_ = w.died(err)
	}
}

// checkpoint saves what pointOf says.
func (w *world) checkpoint(seq uint64) {
	if w.dead {
		return
	}
	_, err := w.log.SaveCheckpoint(ctx, seq, sectionsOf(seq))
	if err == nil {
		w.points = slices.Compact(append(w.points, seq))
		for i := range w.told {
			w.told[i].hard = w.told[i].hard || w.told[i].outcome == acked && w.told[i].first+uint64(w.told[i].of) <= seq+1
		}
	}
	w.judgeUpkeep(err)
}

func (w *world) judgeUpkeep(err error) {
	w.reopen(err)
	if w.dead = w.dead || w.fs.Crashed(); !w.stubborn && !errors.Is(err, wal.ErrNoSpace) {
		_ = w.died(err)
	}
}

// compact keeps the appends whose numbers a divisor divides.
func (w *world) compact(before uint64, divisor int) {
	if w.dead {
		return
	}
	keep := func(e wal.Event) bool { return numberOf(e)%divisor == 0 }
	w.dropped, w.wanted = max(w.dropped, before), append(w.wanted, keep)
	_, err := w.log.Compact(ctx, before, wal.CompactOptions{Keep: keep})
	w.judgeUpkeep(err)
}

// idle lets the timers of the log do their work.
func (w *world) idle() {
	if w.dead {
		return
	}
	time.Sleep(time.Second)
	if w.dead = w.fs.Crashed(); !w.dead && w.opts.Sync >= 0 {
		w.harden()
	}
}

// A seen is what someone was shown; whoever looks later must see it, too.
type seen struct{ events []wal.Event }

// check opens what a crash left, and holds it against what the caller was told, and what was ever shown.
func (w *world) check(disk *crashfs.FS, policy crashfs.Policy, shown *seen) error {
	before := disk.Fingerprint()
	if _, err := wal.VerifyFS(disk, "log"); err != nil && !errors.Is(err, fs.ErrNotExist) && !w.cutLied {
		return fmt.Errorf("Verify: %w", err)
	}
	if err := w.look(disk, shown); err != nil {
		return fmt.Errorf("ReadOnly: %w", err)
	}
	if disk.Fingerprint() != before {
		return errors.New("Verify or ReadOnly changed something")
	}
	if !holds(disk, w.torn) {
		return errors.New("the torn bytes are neither in place nor in quarantine")
	}
	opts := w.opts
	opts.FS = disk
	for i := range 2 { // R2: the second time as the first
		l, err := wal.Open("log", opts)
		if err != nil {
			return fmt.Errorf("open %d: %w", i+1, err)
		}
		if err := errors.Join(w.judge(l, policy, shown), w.judgeBeside(l, disk), l.Close()); err != nil {
			return fmt.Errorf("open %d: %w", i+1, err)
		}
	}
	if !holds(disk, w.torn) {
		return errors.New("the torn bytes are not in quarantine")
	}
	return nil
}

// holds tells whether some file of the log, or its quarantine, holds these bytes.
func holds(disk wal.FS, torn []byte) bool {
	for _, dir := range []string{"log", "log/quarantine"} {
		list, _ := disk.ReadDir(dir)
		for _, e := range list {
			if strings.HasSuffix(e.Name(), ".tmp") || e.IsDir() {
				continue
			}
			if bytes.Contains(contents(disk, dir+"/"+e.Name()), torn) {
				return true
			}
		}
	}
	return len(torn) == 0
}

func contents(disk wal.FS, name string) []byte {
	f, err := disk.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	size, _ := f.Size()
	b := make([]byte, size)
	n, _ := f.ReadAt(b, 0)
	return b[:n]
}

// look is a reader that comes before the writer.
func (w *world) look(disk *crashfs.FS, shown *seen) error {
	l, err := wal.Open("log", wal.Options{FS: disk, ReadOnly: true})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer l.Close()
	events, err := collect(l, 0)
	if err != nil || len(events) == 0 {
		return err
	}
	if err := w.judgeBeside(l, disk); err != nil {
		return err
	}
	for _, old := range shown.events {
		if last := events[len(events)-1].Seq; old.Seq <= last && old.Seq >= events[0].Seq && !slices.ContainsFunc(events, func(e wal.Event) bool { return sameEvent(e, old) }) {
			return fmt.Errorf("event %d is another than was shown", old.Seq)
		}
	}
	if len(events) > len(shown.events) {
		shown.events = events
	}
	return nil
}

// judge: acknowledged ⊑ recovered ⊑ submitted; groups whole and in order; seqs dense; what was shown is there.
func (w *world) judge(l *wal.Log, policy crashfs.Policy, shown *seen) error {
	events, err := collect(l, 0)
	if err != nil {
		return err
	}
	first := l.FirstSeq()
	if first > max(1, w.dropped) {
		return fmt.Errorf("the log starts at %d, and only what lies before %d was dropped", first, w.dropped)
	}
	if l.LastSeq() != first+uint64(len(events))-1 {
		return fmt.Errorf("%d events in a log of %d..%d", len(events), first, l.LastSeq())
	}
	have := make(map[int]uint64) // number of the append: its first seq
	number, place, of := 0, 0, 0
	for i, e := range events {
		var p struct{ G, K, Of int }
		if err := json.Unmarshal([]byte(payload(e)), &p); err != nil || e.Seq != first+uint64(i) {
			return fmt.Errorf("event %d where %d belongs: %v", e.Seq, first+uint64(i), err)
		}
		if place == of || i == 0 && first > 1 {
			if p.G <= number || p.K != 0 && i > 0 {
				return fmt.Errorf("seq %d: append %d after append %d", e.Seq, p.G, number)
			}
			number, place, of = p.G, p.K, p.Of
			have[number] = e.Seq - uint64(p.K)
		}
		if p.G != number || p.K != place || p.Of != of {
			return fmt.Errorf("seq %d: place %d of append %d, not place %d of append %d", e.Seq, p.K, p.G, place, number)
		}
		place++
	}
	if place != of {
		return fmt.Errorf("append %d has %d events of %d", number, place, of)
	}
	missing := 0
	for _, s := range w.told {
		at, there := have[s.number]
		delete(have, s.number)
		if s.first > 0 && s.first < first {
			continue // dropped
		}
		switch {
		case there && s.outcome == denied:
			return fmt.Errorf("append %d was denied, and is there", s.number)
		case there && missing > 0:
			return fmt.Errorf("append %d is there, append %d before it is not", s.number, missing)
		case there && s.outcome == acked && at != s.first:
			return fmt.Errorf("append %d was acknowledged as seq %d, and is seq %d", s.number, s.first, at)
		case !there && s.outcome == acked && (s.hard || policy == crashfs.Everything):
			return fmt.Errorf("append %d was acknowledged, and is not there", s.number)
		case !there && s.outcome == acked:
			missing = s.number
		}
	}
	if len(have) > 0 {
		return fmt.Errorf("nobody appended %v", have)
	}
	for _, old := range shown.events {
		if i := int64(old.Seq) - int64(first); i >= 0 && (i >= int64(len(events)) || !sameEvent(events[i], old)) {
			return fmt.Errorf("event %d was shown, and is not there any more", old.Seq)
		}
	}
	shown.events = events
	return nil
}

// crashes are the ways in which power may be lost, for one instant.
func crashes(seeds int) []crashfs.Policy {
	list := []crashfs.Policy{crashfs.SyncedOnly, crashfs.Everything, crashfs.Zeros}
	for seed := range uint64(seeds) {
		list = append(list, crashfs.Seed(seed))
		switch seed % 4 {
		case 0:
			list = append(list, crashfs.Sectors(seed))
		case 1:
			list = append(list, crashfs.Stale(seed))
		case 2:
			list = append(list, crashfs.Entries(seed))
		}
	}
	return list
}

// A workload is what a caller does, on an empty disk or on one that an earlier life left.
type workload struct {
	name   string
	opts   wal.Options
	disk   int64 // bytes of room, 0 for plenty
	before func(t testing.TB) *crashfs.FS
	do     func(w *world)
}

var workloads = []workload{
	{name: "open", do: func(w *world) { w.open() }},
	{name: "append", do: func(w *world) { w.open(); w.append(1, 0); w.append(1, 700) }},
	{name: "group", do: func(w *world) { w.open(); w.append(3, 100); w.append(2, 5) }},
	{name: "rotate", do: func(w *world) { w.open(); w.append(2, 200); w.append(1, 300); w.append(3, 100) }},
	{name: "large", do: func(w *world) { w.open(); w.append(1, 0); w.append(2, 3000); w.append(1, 0) }},
	{name: "drop", do: func(w *world) {
		w.open()
		w.append(1, 500)
		w.append(1, 500)
		w.append(1, 500)
		w.drop(3)
		w.append(1, 0)
	}},
	{name: "close", do: func(w *world) {
		w.open()
		w.append(2, 0)
		w.close()
		w.open()
		w.append(1, 0)
		w.close()
		w.open()
	}},
	{name: "idle", do: func(w *world) {
		w.open()
		w.append(1, 0)
		w.idle()
		w.append(1, 0)
		w.idle()
		w.close()
	}},
	{name: "torn", before: tornDisk, do: func(w *world) { w.open(); w.append(1, 10); w.close() }},
	{name: "full", disk: 1500, opts: wal.Options{SegmentBytes: 4096}, do: func(w *world) {
		w.open()
		w.append(1, 100)
		w.append(2, 600) // ENOSPC, taken back
		w.append(1, 0)
		w.fs.SetDisk(-1)
		w.append(1, 200)
		w.close()
	}},
	{name: "full_at_rotation", disk: 1500, do: func(w *world) {
		w.open()
		w.append(1, 600)
		w.append(1, 600) // ENOSPC for the next segment's header or the line
		w.fs.SetDisk(-1)
		w.append(1, 100)
		w.append(1, 100)
	}},
	{name: "sync_every", opts: wal.Options{Sync: wal.SyncEvery(50 * time.Millisecond)}, do: func(w *world) {
		w.open()
		w.append(1, 0)
		w.append(2, 100)
		w.idle()
		w.append(1, 300)
		w.append(1, 300)
		w.close()
	}},
	{name: "sync_never", opts: wal.Options{Sync: wal.SyncNever}, do: func(w *world) {
		w.open()
		w.append(1, 0)
		w.append(2, 100)
		w.append(1, 300)
		w.append(1, 300)
		w.close()
	}},
}

// besides are workloads with files beside the segments.
var besides = []workload{
	{name: "checkpoint", do: func(w *world) {
		w.open()
		w.append(1, 0)
		w.checkpoint(1)
		w.append(2, 0)
		w.checkpoint(2) // in the middle of a group
		w.append(1, 0)
		w.checkpoint(4)
		w.close()
		w.open()
		w.append(1, 0)
	}},
	{name: "checkpoint_unsynced", opts: wal.Options{Sync: wal.SyncNever}, do: func(w *world) {
		w.open()
		w.append(1, 0)
		w.close()
		w.open()
		w.append(1, 0)
		w.append(1, 0)
		w.checkpoint(3)
		w.append(1, 0)
	}},
	{name: "compact", do: func(w *world) {
		w.open()
		w.append(2, 200) // 1, 2 of append 1
		w.append(2, 200) // 3, 4 of append 2
		w.append(2, 200) // 5, 6 of append 3
		w.compact(5, 2)  // 3, 4 are kept
		w.append(2, 200) // 7, 8 of append 4
		w.append(1, 500) // 9 of append 5
		w.compact(9, 4)  // 7, 8 are kept
		w.append(1, 0)
	}},
	{name: "compact_to_nothing", do: func(w *world) {
		w.open()
		w.append(2, 200)
		w.append(2, 200)
		w.append(2, 200)
		w.compact(5, 2)
		w.append(2, 200)
		w.compact(7, 100)
		w.close()
		w.open()
		w.append(1, 0)
	}},
	{name: "retention", do: func(w *world) {
		w.open()
		w.append(2, 200)
		w.append(2, 200)
		w.checkpoint(4)
		w.append(2, 200)
		w.compact(5, 2)
		w.checkpoint(6)
		w.append(2, 200)
		w.compact(7, 4)
		w.checkpoint(8)
	}},
	{name: "compact_on_a_full_disk", disk: 3200, do: func(w *world) {
		w.open()
		w.append(2, 200)
		w.append(2, 200)
		w.append(2, 200)
		w.compact(5, 2) // no room
		w.checkpoint(6) // nor for this
		w.fs.SetDisk(-1)
		w.append(1, 0)
		w.compact(5, 2)
		w.checkpoint(6)
	}},
}

// filledAhead are the same workloads, with prefill: half of the segment sizes are larger, so that it has room.
func filledAhead(of []workload) (list []workload) {
	for i, k := range of {
		k.name += "/filled_ahead"
		k.opts.Prefill = wal.PrefillOn
		if k.opts.SegmentBytes == 0 && i%2 == 0 {
			k.opts.SegmentBytes = 2500
		}
		list = append(list, k)
	}
	return append(list, workload{name: "long/filled_ahead", opts: wal.Options{SegmentBytes: 8 << 10, Prefill: wal.PrefillOn},
		do: func(w *world) {
			w.open()
			w.append(3, 700)
			w.append(1, 0)
			w.idle()
			w.close()
			w.open()
			w.append(2, 900)
			w.append(1, 1)
		}}, workload{name: "full_while_filling", disk: 3000, opts: wal.Options{SegmentBytes: 8 << 10, Prefill: wal.PrefillOn},
		do: func(w *world) {
			w.open()
			w.append(1, 600)
			w.append(1, 600) // fits, but not what is to follow
			w.append(1, 300)
			w.close()
		}})
}

// tornDisk is what a power cut in the middle of a large group left, behind two appends whose records it does not have:
// that those are there is checked as for events that were shown.
func tornDisk(t testing.TB) *crashfs.FS {
	w := enter(t, crashfs.New(), "write * #4 short 600 EIO", wal.Options{SegmentBytes: 4096})
	w.open()
	w.append(1, 0)
	w.append(1, 10)
	if _, err := w.log.Append(ctx, group(3, 2, 300)...); !errors.Is(err, wal.ErrOutcomeUnknown) {
		t.Fatal(err, w.fs.Ops())
	}
	w.fs.Stop()
	return w.base.Crash(crashfs.CutAt("log/00000000000000000001.jsonl", 1<<20)) // all of it, on stable storage
}

func (k workload) enter(t testing.TB, crash int) *world {
	base, told := crashfs.New(), []submission(nil)
	if k.before != nil {
		base = k.before(t)
		told = []submission{{1, 1, 1, acked, true}, {2, 1, 2, acked, true}, {3, 2, 0, unknown, false}}
	}
	var schedule []string
	if k.disk > 0 {
		schedule = append(schedule, fmt.Sprint("disk ", k.disk))
	}
	if crash > 0 {
		schedule = append(schedule, fmt.Sprint("crash ", crash))
	}
	w := enter(t, base, strings.Join(schedule, ";"), k.opts)
	w.told = told
	if k.before != nil {
		const name = "00000000000000000001.jsonl"
		w.torn = judge(image{name: contents(base, "log/"+name)}).Cut[name]
	}
	return w
}

// Every operation of every workload is the last one before the power goes, in many ways; and then every operation of the
// recovery after it. W1, W2, W3, W6, R2, R3; F1, F2, F7, F9, F10, F14.
func TestF14_F1_F2_F7_F9_F10_crash_everywhere(t *testing.T) {
	seeds, twice := thin(8, 1), thin(5, 0)
	var states atomic.Int64
	t.Cleanup(func() { t.Logf("%d crash states", states.Load()) })
	for _, k := range slices.Concat(workloads, filledAhead(workloads), besides) {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				whole := k.enter(t, 0)
				k.do(whole)
				for crash := 1; crash <= whole.fs.Count()+1; crash++ {
					w := k.enter(t, crash)
					k.do(w)
					w.fs.Stop()
					for i, p := range crashes(seeds) {
						if i%4 == crash%4 && i < twice || i == 1 && crash%thin(1, 4) == 0 {
							states.Add(w.crashTwice(t, crash, p))
						} else {
							states.Add(w.crashOnce(t, crash, p, new(seen)))
						}
					}
				}
			})
		})
	}
}

// crashOnce checks one crash state.
func (w *world) crashOnce(t *testing.T, crash int, p crashfs.Policy, shown *seen) (states int64) {
	disk := w.base.Crash(p)
	if err := w.check(disk.Crash(crashfs.Everything), p, shown); err != nil {
		t.Fatalf("schedule %q, crash at operation %d (%s), policy %v: %v\n%s", w.fs.Schedule(), crash, w.last(), p, err, disk)
	}
	return 1
}

// crashTwice checks one crash state, and what a second crash inside its recovery may leave.
func (w *world) crashTwice(t *testing.T, crash int, p crashfs.Policy) (states int64) {
	states = w.crashOnce(t, crash, p, new(seen))
	disk := w.base.Crash(p)
	for again, alive := 1, false; !alive; again++ {
		r := enter(t, disk.Crash(crashfs.Everything), fmt.Sprint("crash ", again), w.opts)
		r.told, r.dropped, r.torn, r.points, r.wanted = w.told, w.dropped, w.torn, w.points, w.wanted
		var shown seen
		if err := r.look(r.base, &shown); err != nil {
			t.Fatal(err)
		}
		r.open()
		if alive = !r.dead; alive {
			if err := r.judge(r.log, p, &shown); err != nil {
				t.Fatal(err)
			}
		}
		r.fs.Stop()
		for _, q := range append(crashes(0), crashfs.Seed(uint64(again)), crashfs.Stale(uint64(again))) {
			// What a first crash of the process alone left unsynced, this one may lose, unless it was shown since.
			both := p
			if q != crashfs.Everything {
				both = q
			}
			shown := shown
			if err := r.check(r.base.Crash(q), both, &shown); err != nil {
				t.Fatalf("schedule %q, crash at operation %d (%s), policy %v; again at operation %d of the recovery (%s), policy %v: %v\n%s",
					w.fs.Schedule(), crash, w.last(), p, again, r.last(), q, err, r.base)
			}
			states++
		}
	}
	return states
}

// last is the operation that the power cut stopped.
func (w *world) last() string {
	ops := w.fs.Ops()
	if len(ops) == 0 {
		return "none"
	}
	return ops[len(ops)-1].String()
}

// The crash points of doc.go's table: the power goes just before the operation named, and every state that this may
// leave is opened.
var crashPoints = []struct {
	name, workload, op string
	nth                int
	then               func(disk *crashfs.FS, r wal.Report) error // what else holds when the log is open again
}{
	{name: "C1_temporary_file_empty", workload: "append", op: "write log/*1.jsonl.tmp", then: noTemps},
	{name: "C1_temporary_file_not_synced", workload: "append", op: "sync log/*2.jsonl.tmp", then: noTemps},
	{name: "C1_temporary_file_whole", workload: "append", op: "rename log/*2.jsonl.tmp", then: noTemps},
	{name: "C2_new_log_before_dirsync", workload: "open", op: "syncdir log"},
	{name: "C2_rotate_before_dirsync", workload: "rotate", op: "syncdir log", nth: 2},
	{name: "C3_directory_not_synced", workload: "open", op: "syncdir ."},
	{name: "C4_torn_tail_copied_not_cut", workload: "torn", op: "truncate log/*1.jsonl"},
	{name: "C5_torn_tail_cut_not_synced", workload: "torn", op: "sync log/*1.jsonl"},
	{name: "C6_old_segment_final", workload: "torn", op: "create log/*3.jsonl.tmp"},
	{name: "C7_opened_mark_not_synced", workload: "close", op: "sync log/*1.jsonl", nth: 3},
	{name: "C8_group_not_synced", workload: "group", op: "sync log/*1.jsonl"},
	{name: "C8_second_group_not_synced", workload: "group", op: "sync log/*4.jsonl"},
	{name: "C9_sealed_before_next", workload: "rotate", op: "create log/*3.jsonl.tmp"},
	{name: "C9_sealed_mark_not_synced", workload: "rotate", op: "sync log/*1.jsonl", nth: 2},
	{name: "C10_floor_not_synced", workload: "drop", op: "sync log/*4.jsonl"},
	{name: "C10_floor_durable", workload: "drop", op: "remove log/*1.jsonl", then: dropped},
	{name: "C10_half_removed", workload: "drop", op: "remove log/*2.jsonl", then: dropped},
	{name: "C10_removed_not_synced", workload: "drop", op: "syncdir log", nth: 5, then: dropped},
	{name: "C11_filled_not_synced", workload: "long/filled_ahead", op: "sync log/*1.jsonl"},
	{name: "C11_cut_not_synced", workload: "long/filled_ahead", op: "sync log/*1.jsonl", nth: 3},
	{name: "C12_checkpoint_not_synced", workload: "checkpoint", op: "sync log/checkpoint-*2.jsonl.tmp", then: noTemps},
	{name: "C12_checkpoint_whole", workload: "checkpoint", op: "rename log/checkpoint-*2.jsonl.tmp", then: noTemps},
	{name: "C13_checkpoint_before_dirsync", workload: "checkpoint", op: "syncdir log", nth: 3},
	{name: "C14_older_checkpoint_still_there", workload: "checkpoint", op: "remove log/checkpoint-*1.jsonl"},
	{name: "C14_older_checkpoint_removed_not_synced", workload: "checkpoint", op: "syncdir log", nth: 5},
	{name: "C15_carried_not_synced", workload: "compact", op: "sync log/carried-*5.jsonl.tmp", then: noTemps},
	{name: "C15_carried_whole", workload: "compact", op: "rename log/carried-*9.jsonl.tmp", then: noTemps},
	{name: "C16_carried_before_dirsync", workload: "compact", op: "syncdir log", nth: 4, then: noStrays},
	{name: "C16_floor_not_synced", workload: "compact", op: "sync log/*5.jsonl", nth: 2, then: noStrays},
	{name: "C17_old_carried_still_there", workload: "compact", op: "remove log/carried-*5.jsonl", then: noStrays},
	{name: "C17_old_carried_removed_not_synced", workload: "compact", op: "syncdir log", nth: 9, then: noStrays},
}

func noTemps(disk *crashfs.FS, _ wal.Report) error {
	if s := disk.String(); strings.Contains(s, ".tmp") {
		return errors.New("a temporary file is left")
	}
	return nil
}

func dropped(disk *crashfs.FS, r wal.Report) error {
	if s := disk.String(); r.FirstSeq != 3 || strings.Contains(s, "01.jsonl") || strings.Contains(s, "02.jsonl") {
		return fmt.Errorf("the log still starts at %d", r.FirstSeq)
	}
	return nil
}

func TestCrash(t *testing.T) {
	bound := thin(400, 40)
	for _, c := range crashPoints {
		workloads := slices.Concat(workloads, filledAhead(workloads), besides)
		k := workloads[slices.IndexFunc(workloads, func(k workload) bool { return k.name == c.workload })]
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				whole := k.enter(t, 0)
				k.do(whole)
				w := k.enter(t, point(t, whole.fs.Ops(), c.op, max(1, c.nth)))
				k.do(w)
				w.fs.Stop()
				states := w.base.CrashStates(bound)
				for i, disk := range states.All() {
					if err := w.check(disk, crashfs.SyncedOnly, new(seen)); err != nil {
						t.Fatalf("state %d: %v\n%s", i, err, disk)
					}
					l := mustOpen(t, wal.Options{FS: disk})
					if c.then != nil {
						if err := c.then(disk, l.Report()); err != nil {
							t.Fatalf("state %d: %v\n%s", i, err, disk)
						}
					}
					mustClose(t, l)
				}
				left, exact := states.Left()
				t.Logf("%d states, %d left out (%v)", states.Len(), left, exact)
			})
		})
	}
}

// point is the number of the nth operation that a pattern fits.
func point(t *testing.T, ops []crashfs.Op, pattern string, nth int) int {
	kind, name, _ := strings.Cut(pattern, " ")
	for i, op := range ops {
		ok, err := path.Match(name, op.Path)
		if err != nil {
			t.Fatal(err)
		}
		if ok && string(op.Kind) == kind {
			if nth--; nth == 0 {
				return i + 1
			}
		}
	}
	t.Fatalf("no operation %q in %v", pattern, ops)
	return 0
}

// C3: a process died after it had made one of several directories, before it had synced it. Whoever comes next finds the
// directory and must not take it for durable.
func TestCrash_C3_nested_directories(t *testing.T) {
	open := func(fs wal.FS) (*wal.Log, error) { return wal.Open("a/b/log", wal.Options{FS: fs}) }
	for crash := 1; ; crash++ {
		base := crashfs.New()
		first := crashfs.Inject(base, crashfs.Schedule{{Op: crashfs.OpCrash, N: int64(crash)}})
		if _, err := open(first); err == nil {
			return
		}
		disk := base.Crash(crashfs.Everything)
		l, err := open(disk)
		if err != nil {
			t.Fatalf("crash at %d: %v", crash, err)
		}
		mustAppend(t, l, group(1, 1, 0)...)
		disk = disk.Crash(crashfs.SyncedOnly)
		if l, err = open(disk); err != nil {
			t.Fatalf("crash at %d: %v", crash, err)
		}
		if l.LastSeq() != 1 {
			t.Fatalf("crash at %d (%v): an acknowledged event is gone with a directory that was never synced", crash, first.Ops()[crash-1])
		}
		mustClose(t, l)
	}
}

// What was found: a recovery died while it copied a torn tail, the same crash took the tail, and the unfinished copy lay in
// quarantine for ever, since nobody had anything to cut there any more.
func TestF14_unfinished_copies_are_swept(t *testing.T) {
	disk := crashfs.New()
	mustClose(t, mustOpen(t, wal.Options{FS: disk}))
	if err := disk.Mkdir("log/quarantine", 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"00000000000000000001.jsonl.425.1.torn.tmp", "00000000000000000001.jsonl.425.1.torn", "mine.tmp"} {
		f, err := disk.OpenFile("log/quarantine/"+name, os.O_RDWR|os.O_CREATE, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(disk.SyncDir("log"), disk.SyncDir("log/quarantine")); err != nil {
		t.Fatal(err)
	}
	l := mustOpen(t, wal.Options{FS: disk})
	defer mustClose(t, l)
	want := []string{"quarantine/00000000000000000001.jsonl.425.1.torn.tmp"}
	if got := l.Report().Swept; !slices.Equal(got, want) {
		t.Errorf("swept %q", got)
	}
	list, err := disk.Crash(crashfs.SyncedOnly).ReadDir("log/quarantine")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if e.Name() == path.Base(want[0]) {
			t.Error("it comes back with the next crash")
		}
	}
}

// A saboteur is a file system that leaves something out. The tests above must notice each.
type saboteur struct {
	wal.FS
	noSync    func(name string) bool // files that Sync does nothing for
	noSyncDir func(name string) bool
	noCut     bool   // Truncate does nothing
	hasty     string // where such a file is begun, all older ones are removed, and all segments below it
}

type sabotaged struct {
	wal.File
	s    *saboteur
	name string
}

func (s *saboteur) OpenFile(name string, flag int, perm fs.FileMode) (wal.File, error) {
	s.haste(name)
	f, err := s.FS.OpenFile(name, flag, perm)
	return sabotaged{f, s, name}, err
}

// haste removes what lies below a file that is begun.
func (s *saboteur) haste(name string) {
	if s.hasty == "" || !strings.HasPrefix(path.Base(name), s.hasty) || !strings.HasSuffix(name, ".tmp") {
		return
	}
	list, _ := s.FS.ReadDir(path.Dir(name))
	for _, e := range list {
		number := strings.TrimPrefix(e.Name(), s.hasty)
		if strings.HasPrefix(number, "0") && number < strings.TrimPrefix(path.Base(name), s.hasty)[:20] {
			_ = s.FS.Remove(path.Join(path.Dir(name), e.Name()))
		}
	}
	_ = s.FS.SyncDir(path.Dir(name))
}

func (s *saboteur) SyncDir(name string) error {
	if s.noSyncDir != nil && s.noSyncDir(name) {
		return nil
	}
	return s.FS.SyncDir(name)
}

func (f sabotaged) Sync() error {
	if f.s.noSync != nil && f.s.noSync(f.name) {
		return nil
	}
	return f.File.Sync()
}

func (f sabotaged) Truncate(size int64) error {
	if f.s.noCut {
		return nil
	}
	return f.File.Truncate(size)
}

func TestSaboteurs(t *testing.T) {
	is := func(pattern string) func(string) bool {
		return func(name string) bool {
			ok, _ := path.Match(pattern, path.Base(name))
			return ok
		}
	}
	for _, c := range []struct {
		name, workload string
		saboteur       saboteur
	}{
		{"no sync of segments", "append", saboteur{noSync: func(string) bool { return true }}},
		{"no sync of a segment that was reopened", "close", saboteur{noSync: is("*.jsonl")}},
		{"no sync of the log's directory", "append", saboteur{noSyncDir: is("log")}},
		{"no sync of the parent directory", "append", saboteur{noSyncDir: is(".")}},
		{"no sync of the quarantine's directory", "torn", saboteur{noSyncDir: is("quarantine")}},
		{"no sync of the copy in quarantine", "torn", saboteur{noSync: is("*.torn.tmp")}},
		{"no cut of a torn tail", "torn", saboteur{noCut: true}},
		{"nothing taken back", "full", saboteur{noCut: true}},
		{"no sync of a checkpoint", "checkpoint", saboteur{noSync: is("checkpoint-*")}},
		{"no sync of the segment before a checkpoint", "checkpoint_unsynced", saboteur{noSync: is("0*.jsonl")}},
		{"no sync of what was carried", "compact", saboteur{noSync: is("carried-*")}},
		{"removed before anything is durable", "compact", saboteur{hasty: "carried-"}},
		{"older checkpoints removed first", "checkpoint", saboteur{hasty: "checkpoint-"}},
	} {
		workloads := slices.Concat(workloads, besides)
		k := workloads[slices.IndexFunc(workloads, func(k workload) bool { return k.name == c.workload })]
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				for crash := 1; crash < 100; crash++ {
					w := k.enter(t, crash)
					c.saboteur.FS = w.fs
					w.opts.FS = &c.saboteur
					k.do(w)
					w.fs.Stop()
					for _, p := range crashes(8) {
						if err := w.check(w.base.Crash(p), p, new(seen)); err != nil {
							t.Logf("caught at operation %d: %v", crash, err)
							return
						}
					}
				}
				t.Error("nobody noticed")
			})
		})
	}
}
