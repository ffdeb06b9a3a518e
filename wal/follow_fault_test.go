package wal_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// W6: followers, prompt and slow, see what was acknowledged, as the log has it, and nothing else: whatever appends beside it
// were refused, found no room, or were the last before the log failed, and whatever their callers do with their events then.
func TestW6_followers_see_what_was_acknowledged_whatever_fails(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		rapid.Check(bubbleTB{t}, func(t *rapid.T) {
			var faults []string
			for range rapid.IntRange(0, 4).Draw(t, "faults") {
				nth := rapid.IntRange(2, 20).Draw(t, "nth")
				faults = append(faults, rapid.SampledFrom([]string{
					fmt.Sprintf("write *.jsonl #%d short %d ENOSPC", nth, rapid.IntRange(0, 2000).Draw(t, "short")),
					fmt.Sprintf("write * #%d error ENOSPC", nth),
					fmt.Sprintf("sync *.jsonl #%d error EIO lie", 3*nth),
				}).Draw(t, "fault"))
			}
			l, err := wal.Open("log", wal.Options{
				FS:           crashfs.Inject(crashfs.New(), crashfs.MustSchedule(strings.Join(faults, "; "))),
				SegmentBytes: rapid.SampledFrom([]int64{4 << 10, 64 << 10, 1 << 20}).Draw(t, "segment"),
			})
			if err != nil {
				if !errors.Is(err, wal.ErrNoSpace) {
					t.Fatal(err)
				}
				return
			}
			follow, stop := context.WithCancel(ctx)
			defer stop()
			turn := make(chan struct{}) // of the slow one
			seen := make([][]wal.Event, 2)
			for i := range seen {
				go func() {
					for e, err := range l.Follow(follow, 1) {
						if err != nil {
							return
						}
						seen[i] = append(seen[i], e)
						if i == 1 {
							<-turn
						}
					}
				}()
			}
			var mu sync.Mutex
			acked := make(map[uint64]int) // seq to number
			append1 := func(number, of, padding, spoilt int) {
				events := group(number, of, padding)
				switch spoilt {
				case 1:
					events[of-1].Args = []byte(`{"a":1,"a":2}`)
				case 2:
					events[0].Prev = 1 << 40
				}
				first, err := l.Append(ctx, events...)
				for i := range events {
					clear(events[i].Args) // they are the caller's
					clear(events[i].Output)
				}
				mu.Lock()
				defer mu.Unlock()
				for k := range events {
					if err == nil {
						acked[first+uint64(k)] = number
					}
				}
			}
			number := 0
			for range rapid.IntRange(1, 12).Draw(t, "rounds") {
				var round sync.WaitGroup
				for range rapid.IntRange(1, 8).Draw(t, "callers") {
					number++
					of := rapid.SampledFrom([]int{1, 1, 1, 2, 5, 70}).Draw(t, "of")
					padding := rapid.SampledFrom([]int{0, 10, 400, 3000, 100 << 10}).Draw(t, "padding")
					spoilt := rapid.SampledFrom([]int{0, 0, 0, 0, 1, 2}).Draw(t, "spoilt")
					mine := number
					round.Go(func() { append1(mine, of, padding/of, spoilt) })
				}
				round.Wait()
				select {
				case turn <- struct{}{}:
				default:
				}
			}
			close(turn)
			synctest.Wait()
			there, err := collect(l, 1)
			if err != nil || len(there) != len(acked) {
				t.Fatalf("%d events, %d acknowledged: %v", len(there), len(acked), err)
			}
			for i, events := range seen {
				if len(events) != len(there) {
					t.Fatalf("follower %d saw %d events of %d", i, len(events), len(there))
				}
				for k, e := range events {
					if !sameEvent(e, there[k]) || numberOf(e) != acked[e.Seq] {
						t.Fatalf("follower %d saw seq %d of append %d, and acknowledged is %d", i, e.Seq, numberOf(e), acked[e.Seq])
					}
				}
			}
			stop()
			_ = l.Close() // it may have failed
			synctest.Wait()
		})
	})
}
