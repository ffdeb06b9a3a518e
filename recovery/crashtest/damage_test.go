package crashtest

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// lifeOf makes a log by an engine: so many jobs, each some steps on, alone and in groups, in several openings, of which
// the last ends as said: "closed", "killed", "idle" (killed some milliseconds later) or "rotated" (killed before the first
// event of its newest segment).
func lifeOf(t *testing.T, jobs int, segmentBytes int64, ending string) (img Image) {
	synctest.Test(t, func(t *testing.T) {
		disk := crashfs.New()
		open := func() *recovery.Engine {
			e, err := recovery.Open(context.Background(), "log", recovery.Options{WAL: wal.Options{FS: disk, SegmentBytes: segmentBytes}})
			if err != nil {
				t.Fatal(err)
			}
			return e
		}
		e := open()
		for i := range jobs {
			if i == jobs/3 {
				closed(t, e)
				e = open()
			}
			if i == jobs*2/3 {
				killed := e
				disk = disk.Crash(crashfs.SyncedOnly)
				e = open()
				closed(t, killed)
			}
			live(t, e, i)
		}
		switch ending {
		case "closed":
			closed(t, e)
			e = nil
		case "idle":
			time.Sleep(time.Second)
		case "rotated":
			killed := e
			disk = disk.Crash(crashfs.SyncedOnly)
			e = open()
			closed(t, killed)
		}
		var err error
		if img, err = ReadImage(disk.Crash(crashfs.Everything), "log"); err != nil {
			t.Fatal(err)
		}
		if e != nil {
			closed(t, e)
		}
	})
	return img
}

func closed(t *testing.T, e *recovery.Engine) {
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
}

// live takes a job some steps on, and ends some of those before it.
func live(t *testing.T, e *recovery.Engine, i int) {
	id := fmt.Sprint("job-", i)
	commands := [][]recovery.Command{{recovery.Submit(recovery.Submission{JobID: id, Capability: "shell",
		Args: json.RawMessage(`{"path":"größe"}`)}), recovery.Validate(id)}}
	if i%2 == 0 {
		commands = append(commands, []recovery.Command{recovery.Start(id)}, []recovery.Command{recovery.Complete(id, i)})
	}
	if i%4 == 0 {
		commands = append(commands, []recovery.Command{recovery.RollBack(id, "undone")})
	}
	for _, group := range commands {
		if _, err := e.Do(context.Background(), group...); err != nil {
			t.Fatal(err)
		}
	}
}

var endings = []string{"closed", "killed", "idle", "rotated"}

func TestExamine_a_healthy_log(t *testing.T) {
	for _, ending := range endings {
		img := lifeOf(t, 30, 3000, ending)
		j := Judge(img)
		if j.Verdict != Unharmed || j.Last < 90 {
			t.Fatalf("%s: %v", ending, j)
		}
		if err := Examine(img, j); err != nil {
			t.Errorf("%s: %v", ending, err)
		}
	}
	_ = rand.N[int]
	_ = os.Stdout
	_ = slices.Sort[[]int]
	_ = strings.Cut
	_ = runtime.NumCPU
	_ = atomic.Int64{}
}

func TestDamage(t *testing.T) {
	images := make(map[string]Image)
	for _, ending := range endings {
		images[ending] = lifeOf(t, 24, 3000, ending)
	}
	for _, d := range Damages() {
		t.Run(d.String(), func(t *testing.T) {
			done := 0
			for _, ending := range endings {
				for seed := range uint64(3) {
					if CheckDamage(t, images[ending], d, seed) {
						done++
					}
				}
			}
			if done == 0 {
				t.Error("done to no image")
			}
		})
	}
}
