package crashtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// imageOf makes a log by an engine: so many jobs, each some steps on, alone and in groups, in several openings, of which
// the last ends as said: "closed", "killed", "idle" (killed some milliseconds later) or "rotated" (killed before the first
// event of its newest segment).
func imageOf(t *testing.T, jobs int, segmentBytes int64, ending string) (img Image) {
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

var endings = []string{"killed", "idle", "closed", "rotated"}

// W3, R4: a healthy log is judged so, and read so in every way.
func TestExamine_a_healthy_log(t *testing.T) {
	for _, ending := range endings {
		img := imageOf(t, 30, 3000, ending)
		j := Judge(img)
		if j.Verdict != Unharmed || j.Last < 90 || len(j.Events) != int(j.Last) || len(j.States) != 30 {
			t.Fatalf("%s: %v, %d jobs", ending, j, len(j.States))
		}
		if err := Examine(img, j); err != nil {
			t.Errorf("%s: %v", ending, err)
		}
	}
}

// A judgement that is wrong in any part is found out by the ways that it concerns.
func TestExamine_finds_a_wrong_judgement(t *testing.T) {
	t.Parallel()
	n := 0
	for g := range Golden() {
		if n++; n%thin(1, 4) != 0 {
			continue
		}
		for what, spoil := range map[string]func(j *Judgement) bool{
			"verdict": func(j *Judgement) bool {
				j.Verdict = map[bool]Verdict{true: Repaired, false: Refused}[j.Verdict == Refused]
				return true
			},
			"offset":   func(j *Judgement) bool { j.Offset++; return j.Verdict == Refused || j.Verdict == RefusedWhenRead },
			"seq":      func(j *Judgement) bool { j.Seq++; return j.Verdict == Refused || j.Verdict == RefusedWhenRead },
			"last":     func(j *Judgement) bool { j.Last++; return j.Verdict != Refused && j.Verdict != Version },
			"cut":      func(j *Judgement) bool { clear(j.Cut); return j.Verdict == Repaired },
			"an event": func(j *Judgement) bool { return len(j.Events) > 0 && spoilEvent(j) },
			"a state":  func(j *Judgement) bool { return len(j.States) > 0 && spoilState(j) },
			"a parked job": func(j *Judgement) bool {
				clear(j.Stuck)
				j.Unreadable = nil
				return j.Verdict == Parked
			},
		} {
			j := Judge(g.Image)
			if spoil(&j) && Examine(g.Image, j) == nil {
				t.Errorf("%s: a judgement with another %s passes", g.Name, what)
			}
		}
	}
}

func spoilEvent(j *Judgement) bool {
	j.Events[0].Epoch++
	return true
}

func spoilState(j *Judgement) bool {
	for id := range j.States {
		j.States[id] = "elsewhere"
		break
	}
	return j.Verdict != RefusedWhenRead // where nothing is folded
}

// Each damage leads to its verdict, on logs that ended in every way.
func TestDamage_F1_F2_F3_F4_F5_F6_F7_F20_F21_F22_F23_F24(t *testing.T) {
	t.Parallel()
	images := make(map[string]Image)
	endings := endings[thin(0, 2):]
	for _, ending := range endings {
		images[ending] = imageOf(t, 24, 3000, ending)
	}
	for i, d := range Damages() {
		t.Run(d.String(), func(t *testing.T) {
			if d.Name == "huge line" && raceEnabled {
				t.Skip("too slow beside the race detector")
			}
			done := 0
			for k, ending := range endings {
				for try := range uint64(10) {
					if CheckDamage(t, images[ending], d, uint64(100*i+10*k)+try) {
						done++
						break
					}
				}
				if done > 0 && d.Name == "huge line" {
					break // once is slow enough
				}
			}
			if done == 0 {
				t.Error("done to no log")
			}
		})
	}
}

// Names are unique, and every row of the catalogue that is about what lies in a directory has one.
func TestDamages_cover_the_catalogue(t *testing.T) {
	names, rows := make(map[string]bool), make(map[string]bool)
	for _, d := range Damages() {
		if names[d.Name] || d.Doc == "" {
			t.Errorf("%q: there twice, or without a word", d.Name)
		}
		names[d.Name], rows[d.Row] = true, true
	}
	for _, row := range []string{"F1", "F2", "F3", "F4", "F5", "F6", "F7", "F20", "F21", "F22", "F23", "F24"} {
		if !rows[row] {
			t.Errorf("%s has no damage", row)
		}
	}
}

// F1, F3, F4, F6, F24: an engine's log, its newest segment cut at every byte, and bits turned everywhere: the engine opens
// to the jobs that the judge counts, or refuses and changes nothing.
func TestF1_F3_F4_F6_F24_R2_an_engine_cut_and_flipped(t *testing.T) {
	t.Parallel()
	img := imageOf(t, 24, 3000, "closed")
	name, whole := img.Newest(), Judge(img)
	cuts := parallel(t, len(img[name]), thin(1, 11), func(at int) error {
		return engineOf(img, name, img[name][:at:at], nil)
	})
	flips := 0
	for _, name := range img.Segments() {
		// The step has no factor in common with 8: each bit of a byte has its turn.
		flips += parallel(t, 8*len(img[name]), thin(61, 509), func(bit int) error {
			b := bytes.Clone(img[name])
			b[bit/8] ^= 1 << (bit % 8)
			return engineOf(img, name, b, whole.Events)
		})
	}
	t.Logf("%d cuts, %d flips", cuts, flips)
}

// engineOf opens an engine on the image with another content of one file. all are the events that must be there if it
// opens: no damage to a closed log that leaves its files their lengths may lose one of them in silence.
func engineOf(img Image, name string, content []byte, all []wal.Event) error {
	damaged := maps.Clone(img)
	damaged[name] = content
	j := Judge(damaged)
	if all != nil && j.Verdict != Refused && j.Verdict != RefusedWhenRead && len(j.Events) != len(all) {
		return fmt.Errorf("%s: the judge lets it open with %d events: %v", name, len(j.Events), j)
	}
	if err := tryEngine(damaged, j); err != nil {
		return fmt.Errorf("%s: %w (the judge says: %v)", name, err, j)
	}
	return nil
}

// parallel runs check for 0, step, 2·step … below n on all processors, and returns how often.
func parallel(t *testing.T, n, step int, check func(i int) error) int {
	t.Helper()
	var all sync.WaitGroup
	var next, done atomic.Int64
	for range runtime.GOMAXPROCS(0) {
		all.Go(func() {
			for i := int(next.Add(int64(step))) - step; i < n && !t.Failed(); i = int(next.Add(int64(step))) - step {
				if err := check(i); err != nil {
					t.Errorf("%d: %v", i, err)
				}
				done.Add(1)
			}
		})
	}
	all.Wait()
	return int(done.Load())
}

// R2: an image that is written and read is the same, and takes away what is not in it.
func TestImage_round_trip(t *testing.T) {
	disk := crashfs.New()
	for _, img := range []Image{
		{"00000000000000000001.jsonl": []byte("a\n"), "quarantine/x.torn": {0, 1, 2}, "LOCKS": nil},
		{"00000000000000000002.jsonl": []byte("b")},
	} {
		if err := img.Write(disk, "log"); err != nil {
			t.Fatal(err)
		}
		for what, fsys := range map[string]wal.FS{"written": disk, "after a crash": disk.Crash(crashfs.SyncedOnly)} {
			if got, err := ReadImage(fsys, "log"); err != nil || !got.Equal(img) {
				t.Errorf("%s: %q, %v", what, got, err)
			}
		}
	}
	dir := t.TempDir()
	if err := (Image{"a": []byte("1"), "sub/b": []byte("2")}).Write(nil, dir+"/log"); err != nil {
		t.Fatal(err)
	}
	got, err := ReadImage(nil, dir+"/log")
	if err != nil || string(got["a"])+string(got["sub/b"]) != "12" {
		t.Error(got, err)
	}
}

// A tool of one's own can be held against a damage: this one counts the lines that a log has lost.
func ExampleDamage() {
	disk := crashfs.New()
	log, err := wal.Open("log", wal.Options{FS: disk})
	if err != nil {
		panic(err)
	}
	for id := range 3 {
		if _, err := log.Append(context.Background(), wal.Event{Type: wal.JobSubmitted, JobID: fmt.Sprint(id)}); err != nil {
			panic(err)
		}
	}
	if err := log.Close(); err != nil {
		panic(err)
	}
	img, err := ReadImage(disk, "log")
	if err != nil {
		panic(err)
	}
	for _, d := range Damages() {
		if d.Row == "F4" && d.Do(rand.New(rand.NewPCG(1, 2)), img) {
			fmt.Println(d, "→", Judge(img).Verdict)
		}
	}
	if err := img.Write(disk, "log"); err != nil {
		panic(err)
	}
	_, err = wal.Open("log", wal.Options{FS: disk})
	fmt.Println(errors.Is(err, wal.ErrCorrupt))
	// Output:
	// F4 bit flip in the last event → refused
	// true
}

func ExampleSeal() {
	line := Seal("00000000000000a1", `{"seq":1,"prev":0,"epoch":1,"ts":0,"ns":0,"type":"x","job_id":"j","durable":0`)
	fmt.Print(line)
	_, intact := Unseal("00000000000000a1", line)
	_, elsewhere := Unseal("00000000000000b2", line)
	fmt.Println(intact, elsewhere)
	// Output:
	// {"seq":1,"prev":0,"epoch":1,"ts":0,"ns":0,"type":"x","job_id":"j","durable":0,"crc":"94105a08"}
	// true false
}
