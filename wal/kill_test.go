package wal_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/jobwal/jobwal/wal"
)

// child is another process, run by a test: this test binary, started again.
func child(run, dir string) {
	if run == "echo" {
		_, _ = io.Copy(os.Stdout, os.Stdin)
		return
	}
	l, err := wal.Open(dir, wal.Options{SegmentBytes: 4096, FS: piecewise{wal.OS}})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("open", l.Epoch())
	switch run {
	case "hold":
		_, _ = io.Copy(io.Discard, os.Stdin)
	case "append":
		appendForEver(l)
	case "agent", "leaky agent":
		if run == "leaky agent" {
			leakDescriptors()
		}
		runCommand()
	}
	if err := l.Close(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// piecewise writes a few bytes at a time, so that a kill falls between two writes of one line: one system call that takes
// all of it is over before the process is.
type piecewise struct{ wal.FS }

type piecewiseFile struct{ wal.File }

func (p piecewise) OpenFile(name string, flag int, perm os.FileMode) (wal.File, error) {
	f, err := p.FS.OpenFile(name, flag, perm)
	return piecewiseFile{f}, err
}

func (f piecewiseFile) WriteAt(b []byte, at int64) (int, error) {
	return f.File.WriteAt(b[:min(len(b), 40)], at)
}

// appendForEver appends with several callers and says on stdout what was acknowledged, until it is killed, or stdin ends.
func appendForEver(l *wal.Log) {
	over := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(over)
	}()
	var wg sync.WaitGroup
	var out sync.Mutex
	for c := range 4 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-over:
					return
				default:
				}
				number, of := int(l.Epoch())*1_000_000+c*10_000+i, 1+i%3
				first, err := l.Append(ctx, group(number, of, i%5*100)...)
				if err != nil {
					fmt.Println(err)
					os.Exit(1)
				}
				out.Lock()
				fmt.Println("acked", number, of, first) // one write, unbuffered: what is printed was acknowledged before
				out.Unlock()
			}
		})
	}
	wg.Wait()
}

type process struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines *bufio.Scanner
}

func startChild(t *testing.T, run, dir string) *process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childVariable+"="+run, childVariable+"_DIR="+dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &process{cmd, in, bufio.NewScanner(out)}
	t.Cleanup(p.kill)
	if !p.lines.Scan() || !strings.HasPrefix(p.lines.Text(), "open ") {
		t.Fatalf("the child said %q", p.lines.Text())
	}
	return p
}

// kill is SIGKILL; the child has no time for anything.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// finish lets the child come to an end by itself.
func (p *process) finish(t *testing.T) {
	t.Helper()
	_ = p.in.Close()
	for p.lines.Scan() {
	}
	if err := p.cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// F14, F1: a process that is killed at any instant has lost nothing that it was told was there; and nothing is there that
// it did not submit.
func TestF1_F14_SIGKILL(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "deeper", "log")
	acked := make(map[uint64]string) // by first seq
	kills, torn := thin(12, 5), 0
	for round := range kills {
		p := startChild(t, "append", dir)
		for range rand.IntN(150) {
			if !p.lines.Scan() {
				t.Fatal("the child died by itself")
			}
			ack(t, acked, p.lines.Text())
		}
		_ = p.cmd.Process.Kill()
		for p.lines.Scan() { // what it said before it died counts
			ack(t, acked, p.lines.Text())
		}
		p.kill()
		torn += afterKill(t, dir, acked, round)
	}
	t.Logf("%d kills, %d torn tails, %d appends acknowledged and all there", kills, torn, len(acked))
}

func ack(t *testing.T, acked map[uint64]string, text string) {
	var number, of int
	var first uint64
	if n, _ := fmt.Sscanf(text, "acked %d %d %d", &number, &of, &first); n != 3 {
		t.Fatalf("the child said %q", text)
	}
	acked[first] = fmt.Sprint(number, " ", of)
}

// afterKill returns how many torn tails there were.
func afterKill(t *testing.T, dir string, acked map[uint64]string, round int) int {
	t.Helper()
	if _, err := wal.Verify(dir); err != nil {
		t.Fatal(err)
	}
	l, err := wal.Open(dir, wal.Options{SegmentBytes: 4096})
	if err != nil {
		t.Fatal(err)
	}
	defer mustClose(t, l)
	if want := uint64(2*round + 2); l.Epoch() != want {
		t.Errorf("epoch %d, want %d", l.Epoch(), want)
	}
	events, err := collect(l, 1)
	if err != nil {
		t.Fatal(err)
	}
	found, extra := 0, 0
	for i := 0; i < len(events); {
		var p struct{ G, K, Of int }
		if err := json.Unmarshal([]byte(payload(events[i])), &p); err != nil || p.K != 0 || events[i].Seq != uint64(i+1) {
			t.Fatalf("event %v: %v", events[i], err)
		}
		for k, want := range group(p.G, p.Of, p.G%10_000%5*100) {
			if i+k >= len(events) {
				t.Fatalf("append %d is not whole", p.G)
			}
			got := events[i+k]
			want.Seq, want.Prev, want.Epoch, want.Time = uint64(i+k+1), got.Prev, got.Epoch, got.Time
			if k > 0 && got.Prev != got.Seq-1 || got.Epoch != uint64(p.G/1_000_000) || !reflect.DeepEqual(got, want) {
				t.Fatalf("%+v is not what was submitted: %+v", got, want)
			}
		}
		switch said := acked[uint64(i+1)]; said {
		case fmt.Sprint(p.G, " ", p.Of):
			found++
		case "":
			extra++
		default:
			t.Fatalf("seq %d is of append %d, but %s was acknowledged", i+1, p.G, said)
		}
		i += p.Of
	}
	if found != len(acked) {
		t.Fatalf("%d appends acknowledged, %d there", len(acked), found)
	}
	if extra > 4*(round+1) {
		t.Fatalf("%d appends there that nobody was told of: more than were in flight", extra)
	}
	if n := l.Report().TornBytes(); n > 0 {
		kept, err := os.ReadFile(l.Report().Torn[0].Quarantine)
		if err != nil || int64(len(kept)) < n {
			t.Errorf("%d bytes cut, %d kept: %v", n, len(kept), err)
		}
	}
	return len(l.Report().Torn)
}

// W6: a reader in another process sees every event of a living writer, in order, through rotations, and through the
// writer's death and its successor.
func TestReadOnly_beside_another_process(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p := startChild(t, "append", dir)
	r, err := wal.Open(dir, wal.Options{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	acked := make(map[uint64]string)
	next := uint64(1)
	follow := func(to uint64) {
		for e, err := range r.Follow(ctx, next) {
			if err != nil || e.Seq != next {
				t.Fatalf("seq %d where %d belongs: %v", e.Seq, next, err)
			}
			if next++; next > to {
				return
			}
		}
	}
	lastAcked := func(lines int) (last uint64) {
		for range lines {
			if !p.lines.Scan() {
				t.Fatal("the child died by itself")
			}
			ack(t, acked, p.lines.Text())
		}
		for first, said := range acked {
			var number, of int
			_, _ = fmt.Sscan(said, &number, &of)
			last = max(last, first+uint64(of)-1)
		}
		return last
	}
	follow(lastAcked(100) - 20) // the newest may have no witness yet, while the writer is busy
	p.kill()
	p = startChild(t, "append", dir)
	follow(lastAcked(100))
	p.finish(t)
	mustClose(t, r)
	if r, err = wal.Open(dir, wal.Options{ReadOnly: true}); err != nil {
		t.Fatal(err)
	}
	all, err := collect(r, next)
	if err != nil || r.LastSeq() != next+uint64(len(all))-1 || !r.Report().Clean {
		t.Errorf("the rest: %d events to %d: %v", len(all), r.LastSeq(), err)
	}
	mustClose(t, r)
}
