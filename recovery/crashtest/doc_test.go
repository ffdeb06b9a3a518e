package crashtest_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"go/doc/comment"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/recovery/crashtest"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// The package's documentation shows code. All of it stands in this file too, and runs.
func TestDocShowsCodeThatRuns(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "doc.go", nil, parser.ParseComments)
	require.NoError(t, err)
	here, err := os.ReadFile("doc_test.go")
	require.NoError(t, err)
	shown := 0
	for _, block := range new(comment.Parser).Parse(file.Doc.Text()).Content {
		code, ok := block.(*comment.Code)
		if !ok || !strings.HasPrefix(code.Text, "func ") && !strings.HasPrefix(code.Text, "type ") {
			continue // a table
		}
		require.True(t, strings.Contains(string(here), "\n"+code.Text), "not in doc_test.go, or not so:\n%s", code.Text)
		shown++
	}
	require.Equal(t, 8, shown)
}

// save replaces a file as a whole. load does not show what the next power cut may take.
func save(disk wal.FS, text string) error {
	f, err := disk.OpenFile("settings.new", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte(text), 0); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := disk.Rename("settings.new", "settings"); err != nil {
		return err
	}
	return disk.SyncDir(".")
}

func load(disk wal.FS) (string, error) {
	if err := disk.SyncDir("."); err != nil {
		return "", err
	}
	return loadLightly(disk)
}

func loadLightly(disk wal.FS) (string, error) {
	f, err := disk.OpenFile("settings", os.O_RDONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return "", err
	}
	p := make([]byte, size)
	if _, err := f.ReadAt(p, 0); err != nil && err != io.EOF {
		return "", err
	}
	return string(p), nil
}

type ledger struct {
	asked []string // noted before it is asked for
	saved int      // so many of them were answered
}

func (l *ledger) Clone() *ledger { return &ledger{slices.Clone(l.asked), l.saved} }

func (l *ledger) save(disk wal.FS, text string) error {
	l.asked = append(l.asked, text)
	if err := save(disk, text); err != nil {
		return err
	}
	l.saved = len(l.asked)
	return nil
}

func change(disk wal.FS, l *ledger) error {
	return errors.Join(l.save(disk, "red"), l.save(disk, "blue"))
}

func goOn(disk wal.FS, l *ledger) error {
	text, err := load(disk)
	if err != nil {
		return err
	}
	found := slices.Index(l.asked, text) + 1
	if found < l.saved || found == 0 && text != "" {
		return fmt.Errorf("found %q after %q, of which %d were saved", text, l.asked, l.saved)
	}
	l.asked, l.saved = l.asked[:found], found // it was shown, so it stays
	return l.save(disk, "green")
}

func TestSettings(t *testing.T) { crashtest.CrashEveryOp(t, change, goOn) }

// What the documentation says of Clone: without it nobody notices that load shows what it has not made durable.
func TestSettings_need_a_Clone(t *testing.T) {
	checked := func(disk wal.FS, l *ledger) error {
		text, err := loadLightly(disk)
		found := slices.Index(l.asked, text) + 1
		if found < l.saved || found == 0 && text != "" {
			return errors.Join(err, fmt.Errorf("found %q after %q, of which %d were saved", text, l.asked, l.saved))
		}
		l.asked, l.saved = l.asked[:found], found
		return err
	}
	_, failed := crashtest.Fails(func(t rapid.TB) { crashtest.Crashes[ledger]{Workload: change, Check: checked}.Run(t) })
	require.True(t, failed)

	type noClone struct{ ledger *ledger }
	_, failed = crashtest.Fails(func(t rapid.TB) {
		crashtest.Crashes[noClone]{
			Workload: func(disk wal.FS, l *noClone) error {
				l.ledger = new(ledger)
				return change(disk, l.ledger)
			},
			Check: func(disk wal.FS, l *noClone) error { return checked(disk, l.ledger.Clone()) },
		}.Run(t)
	})
	require.False(t, failed)
}

func placeOrders(disk wal.FS, h *crashtest.History) error {
	engine, err := recovery.Open(ctx, "jobs", recovery.Options{WAL: wal.Options{FS: disk}})
	if err != nil {
		return err
	}
	defer engine.Close()
	_, err = h.Do(ctx, engine,
		crashtest.Step{Type: wal.JobSubmitted, JobID: "order-1", Capability: "charge"},
		crashtest.Step{Type: wal.JobValidated, JobID: "order-1"})
	return err
}

func recovered(disk wal.FS, h *crashtest.History) error {
	return crashtest.Recover(disk, "jobs", h, recovery.Options{})
}

func TestOrdersOnABadDisk(t *testing.T) {
	for _, faults := range []string{"sync *.jsonl #2 error EIO lie", "write *.jsonl #3 short 17 ENOSPC"} {
		synctest.Test(t, func(t *testing.T) {
			crashtest.Crashes[crashtest.History]{
				Workload: func(disk wal.FS, h *crashtest.History) error {
					err := placeOrders(disk, h)
					if errors.Is(err, wal.ErrFailed) || errors.Is(err, wal.ErrNoSpace) {
						return nil // as it should be, and the history has it
					}
					return err
				},
				Check:    recovered,
				Schedule: crashfs.MustSchedule(faults),
				States:   20,  // of each crash, in place of the usual policies
				Budget:   100, // checks in all
			}.Run(t)
		})
	}
}

// sold is a projection: how many orders of each capability were completed.
type sold struct {
	mu sync.Mutex // guards n
	n  map[string]int
}

func newSold() *sold         { return &sold{n: make(map[string]int)} }
func (s *sold) Name() string { return "sold" }

func (s *sold) Apply(e wal.Event, job statemachine.Job) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.Type == wal.JobCompleted && job.Parked == "" {
		s.n[job.Capability]++
	}
	return nil
}

func (s *sold) all() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make(map[string]int)
	for capability, n := range s.n {
		all[capability] = n
	}
	return all
}

func (s *sold) total() (n int) {
	for _, each := range s.all() {
		n += each
	}
	return n
}

func shopSells(t *rapid.T) {
	rapid.SyncTest(t, func(t *rapid.T) {
		var read *sold // of the engine that is open now
		a := &crashtest.Actions{
			Idle: time.Second,
			Projections: func() []projection.Projection {
				read = newSold()
				return []projection.Projection{read}
			},
			Check: func(t *rapid.T, _ *recovery.Engine, ref *crashtest.Reference) {
				completed := 0
				for _, e := range ref.Events() {
					if e.Type == wal.JobCompleted {
						completed++
					}
				}
				if read.total() != completed {
					t.Fatalf("%d orders were completed, and the projection has %v", completed, read.all())
				}
			},
		}
		a.Open(t)
		actions := a.Map()
		actions["rush order"] = func(t *rapid.T) {
			id := crashtest.JobIDs().Draw(t, "id")
			a.Do(t, crashtest.Step{Type: wal.JobSubmitted, JobID: id}, crashtest.Step{Type: wal.JobValidated, JobID: id},
				crashtest.Step{Type: wal.JobStarted, JobID: id})
		}
		t.Repeat(actions)
	})
}

func TestShopSells(t *testing.T) {
	thinned(t, 10)
	rapid.Check(t, shopSells)
}

func remember(ctx context.Context, dir string) error {
	file, err := os.OpenFile(filepath.Join(dir, "history"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	var h crashtest.History
	h.Stream(file)
	engine, err := recovery.Open(ctx, filepath.Join(dir, "jobs"), recovery.Options{})
	if err != nil {
		return err
	}
	opened := engine.Report().WAL
	h.Opened(opened.Epoch, opened.LastSeq)
	for {
		jobs, err := h.Do(ctx, engine, crashtest.Step{Type: wal.JobSubmitted, Capability: "charge"})
		if err != nil {
			return err
		}
		fmt.Println(jobs[0].ID)
	}
}

func judge(dir string) error {
	file, err := os.Open(filepath.Join(dir, "history"))
	if err != nil {
		return err
	}
	defer file.Close()
	h, err := crashtest.ReadHistory(file)
	if err != nil {
		return err
	}
	return crashtest.Recover(nil, filepath.Join(dir, "jobs"), h, recovery.Options{}) // nil: wal.OS
}

func TestKilled(t *testing.T) {
	dir := t.TempDir()
	for range 3 {
		program := exec.Command(os.Args[0], dir)
		program.Env = append(os.Environ(), "RUN_ORDERS=1")
		out, err := program.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, program.Start())
		for lines := bufio.NewScanner(out); lines.Scan() && lines.Text()[0] > '3'; { // ids are random: so is the moment
		}
		require.NoError(t, program.Process.Kill())
		_ = program.Wait() // "signal: killed"
	}
	require.NoError(t, judge(dir))
}

func init() {
	if os.Getenv("RUN_ORDERS") != "" {
		fmt.Fprintln(os.Stderr, remember(context.Background(), os.Args[1]))
		os.Exit(1)
	}
}

type countingLog struct{ recovery.Log } // with methods of its own

func openCounting(disk wal.FS) (recovery.Log, error) {
	log, err := wal.Open("jobs", wal.Options{FS: disk})
	if err != nil {
		return nil, err
	}
	return countingLog{recovery.OnDisk(log)}, nil
}

func TestCountingLog(t *testing.T) {
	open := func(*testing.T) crashtest.Opener { return crashtest.DiskOpener(openCounting) }
	crashtest.TestLog(t, open, crashtest.NoConflicts) // of one directory, which has one writer
}

func TestSold(t *testing.T) {
	crashtest.TestProjection(t, newSold, func(s *sold) any { return s.all() })
}

func TestDamagedOrders(t *testing.T) {
	disk := crashfs.New()
	if err := placeOrders(disk, new(crashtest.History)); err != nil {
		t.Fatal(err)
	}
	healthy, err := crashtest.ReadImage(disk, "jobs")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range crashtest.Damages() {
		t.Run(d.String(), func(t *testing.T) {
			if !crashtest.CheckDamage(t, healthy, d, 1) {
				t.Skip("this log is too short for it")
			}
		})
	}
}

func TestSuiteHasTeeth(t *testing.T) {
	for _, s := range crashtest.Saboteurs() {
		switch s.Name { // what this suite is there to notice
		case crashtest.NoFsync, crashtest.NoDirectoryFsync, crashtest.AckFirst:
		default:
			continue
		}
		synctest.Test(t, func(t *testing.T) {
			_, failed := crashtest.Fails(func(t rapid.TB) {
				crashtest.Crashes[crashtest.History]{
					Workload: func(disk wal.FS, h *crashtest.History) error { return placeOrders(s.FS(disk), h) },
					Check:    func(disk wal.FS, h *crashtest.History) error { return recovered(s.FS(disk), h) },
				}.Run(t)
			})
			if !failed {
				t.Errorf("nobody noticed %s: %s", s.Name, s.Doc)
			}
		})
	}
}
