package crashtest_test

import (
	"bytes"
	"cmp"
	"context"
	"maps"
	"os"
	"path"
	"regexp"
	"slices"

	"encoding/json"
	"errors"
	"fmt"
	"io"

	"strings"
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

// clock is one that a test sets. Its own engine asks it from several goroutines, but never while it is set.
type clock struct{ now time.Time }

func newClock() *clock { return &clock{time.Unix(1_700_000_000, 0)} }

func (c *clock) Now() time.Time { return c.now }

// retain are actions with all that bounds a log on, and a clock that jumps: 1 KiB segments, payloads on disk.
func retain(t *rapid.T) {
	c := newClock()
	a := &crashtest.Actions{
		Idle: time.Second, Compact: 2 * time.Minute, Checkpoint: (*recovery.Engine).Checkpoint,
		Options: recovery.Options{
			WAL: wal.Options{SegmentBytes: wal.MinSegmentBytes, Now: c.Now}, HoldBytes: 16, CheckpointEvery: -1,
			RefuseIDs: rapid.SampledFrom([]time.Duration{-1, time.Minute, 0}).Draw(t, "refuse ids"),
		},
	}
	a.Open(t)
	actions := a.Map()
	actions["clock"] = func(t *rapid.T) {
		c.now = c.now.Add(time.Duration(rapid.IntRange(-60, 120).Draw(t, "seconds")) * time.Second)
	}
	actions["through a life"] = func(t *rapid.T) {
		id := crashtest.JobIDs().Draw(t, "id")
		for _, on := range []wal.EventType{wal.JobSubmitted, wal.JobValidated, wal.JobStarted, wal.JobCompleted} {
			a.Do(t, a.Step(t, id, on))
			c.now = c.now.Add(time.Second)
		}
	}
	actions["compact again"] = actions["compact"]
	t.Repeat(actions)
}

// F14, F19, R1, R2, R3, R5, S1: whatever is saved, forgotten and carried in between, and wherever the power goes in it: all
// that was acknowledged is there, or was forgotten by right; nothing unfinished ever is; what is remembered has its whole
// history and its payloads.
func TestF14_F19_R2_R5_actions_with_retention(t *testing.T) {
	t.Parallel()
	rapid.Check(t, bubbled(retain))
}

// tight are options with which little is enough to fill a segment.
func tight(disk wal.FS) recovery.Options {
	return recovery.Options{
		WAL: wal.Options{FS: disk, SegmentBytes: wal.MinSegmentBytes}, HoldBytes: 64, CheckpointEvery: -1,
	}
}

// totals is a projection of somebody's own, which checkpoints have a part of.
type totals struct{ Steps map[wal.EventType]int }

func newTotals() *totals { return &totals{make(map[wal.EventType]int)} }

func (p *totals) Name() string { return "totals" }
func (p *totals) Version() int { return 1 }

func (p *totals) Apply(e wal.Event, _ statemachine.Job) error {
	p.Steps[e.Type]++
	return nil
}

func (p *totals) Snapshot() (func(io.Writer) error, error) {
	raw, err := json.Marshal(p)
	return func(w io.Writer) error { _, err := w.Write(raw); return err }, err
}

func (p *totals) Load(r io.Reader) error { return json.NewDecoder(r).Decode(p) }

// check: it saw all events that there ever were.
func (p *totals) check(e *recovery.Engine) error {
	ever := e.Stats().Ever
	for on, state := range map[wal.EventType]statemachine.State{
		wal.JobSubmitted: statemachine.Submitted, wal.JobStarted: statemachine.Started, wal.JobCompleted: statemachine.Completed,
	} {
		if uint64(p.Steps[on]) != ever[state] {
			return fmt.Errorf("totals has %d %s, stats %d", p.Steps[on], on, ever[state])
		}
	}
	return nil
}

// doing is one thing that a program does with its engine.
type doing = func(e *recovery.Engine, h *crashtest.History) error

// lives opens the engine, does what is asked until something fails, and closes it. Jobs may be forgotten.
func lives(disk wal.FS, h *crashtest.History, opts recovery.Options, all ...doing) error {
	opts.WAL.FS = disk
	opts.Projections = []projection.Projection{newTotals()}
	h.Compacts()
	e, err := recovery.Open(ctx, "jobs", opts)
	if err != nil {
		return err
	}
	h.Opened(e.Report().WAL.Epoch, e.Report().WAL.LastSeq)
	for _, do := range all {
		if err = do(e, h); err != nil {
			break
		}
	}
	return errors.Join(err, e.Close())
}

func steps(id string, types ...wal.EventType) doing {
	return func(e *recovery.Engine, h *crashtest.History) error {
		var group []crashtest.Step
		for _, on := range types {
			s := crashtest.Step{Type: on, JobID: id}
			switch on {
			case wal.JobSubmitted:
				s.Capability, s.Args = "c", fmt.Appendf(nil, `{"for":%q,"pad":%q}`, id, strings.Repeat("x", 150))
			case wal.JobCompleted:
				s.Output = fmt.Appendf(nil, `[%q]`, strings.Repeat("y", 150))
			}
			group = append(group, s)
		}
		_, err := h.Do(ctx, e, group...)
		return err
	}
}

// begun is a job that stays open, finished one that does not.
func begun(id string) doing { return steps(id, wal.JobSubmitted, wal.JobValidated) }

func finished(id string) doing {
	return steps(id, wal.JobSubmitted, wal.JobValidated, wal.JobStarted, wal.JobCompleted)
}

func checkpoint(e *recovery.Engine, _ *crashtest.History) error { return e.Checkpoint(ctx) }

// compactAll forgets whatever has ended.
func compactAll(e *recovery.Engine, _ *crashtest.History) error {
	time.Sleep(time.Second) // of the bubble's clock: it ended before now
	_, err := e.Compact(ctx, 0)
	return err
}

// settled waits for what the engine does by itself.
func settled(*recovery.Engine, *crashtest.History) error {
	synctest.Wait()
	return nil
}

// recovers is the check of all these: what the crash left is what it should be, it can be gone on with where the crash
// was, and then it still is.
func recovers(disk wal.FS, h *crashtest.History, opts recovery.Options) error {
	opts.Projections = nil // Recover opens twice; a projection is for once
	if err := crashtest.Recover(disk, "jobs", h, opts); err != nil {
		return err
	}
	counted := newTotals()
	again := opts
	again.WAL.FS, again.Projections = disk, []projection.Projection{counted}
	e, err := recovery.Open(ctx, "jobs", again)
	if err != nil {
		return err
	}
	if err := errors.Join(counted.check(e), compactAll(e, nil), e.Close()); err != nil {
		return err
	}
	return errors.Join(crashtest.Recover(disk, "jobs", h, opts), swept(disk))
}

// swept: at most three checkpoints, one carried file, and no temporary one are left.
func swept(disk wal.FS) error {
	img, err := crashtest.ReadImage(disk, "jobs")
	if err != nil {
		return err
	}
	var checkpoints, carried int
	for name := range img {
		switch {
		case strings.HasSuffix(name, ".tmp"):
			return fmt.Errorf("%s is left", name)
		case strings.HasPrefix(name, "checkpoint-"):
			checkpoints++
		case strings.HasPrefix(name, "carried-"):
			carried++
		}
	}
	if checkpoints > 3 || carried > 1 { // crash C14 of package wal leaves one too many, until the next is written
		return fmt.Errorf("%d checkpoints, %d carried files", checkpoints, carried)
	}
	return nil
}

// The workloads of retention.
var retention = map[string][]doing{
	"checkpoint": {begun("a"), checkpoint},
	"third checkpoint": {
		begun("a"), checkpoint, finished("b"), checkpoint, steps("a", wal.JobStarted), checkpoint, begun("c"),
	},
	"compaction": {begun("a"), finished("b"), finished("c"), compactAll, steps("a", wal.JobStarted)},
	"second compaction": {
		begun("a"), finished("b"), begun("c"), compactAll, finished("d"), finished("e"), steps("c", wal.JobFailed), compactAll, begun("f"),
	},
}

// everyRetention crashes a workload everywhere, and what recovers from it.
func everyRetention(t *testing.T, opts recovery.Options, c crashtest.Crashes[crashtest.History], all ...doing) crashtest.Coverage {
	t.Helper()
	if c.Workload == nil {
		c.Workload = func(disk wal.FS, h *crashtest.History) error { return lives(disk, h, opts, all...) }
	}
	if c.Check == nil {
		opts.Retain = 0
		c.Check = func(disk wal.FS, h *crashtest.History) error { return recovers(disk, h, opts) }
	}
	c.Budget = cmp.Or(c.Budget, budget()/5)
	var got crashtest.Coverage
	synctest.Test(t, func(t *testing.T) { got = c.Run(t) })
	return got
}

// retained is what a workload leaves that nothing crashes, and its history.
func retained(t *testing.T, opts recovery.Options, all ...doing) (img crashtest.Image, h *crashtest.History) {
	t.Helper()
	disk, h := crashfs.New(), new(crashtest.History)
	synctest.Test(t, func(t *testing.T) { require.NoError(t, lives(disk, h, opts, all...)) })
	img, err := crashtest.ReadImage(disk, "jobs")
	require.NoError(t, err)
	return img, h
}

// named are an image's files that begin so, oldest first.
func named(img crashtest.Image, prefix string) (names []string) {
	for _, name := range slices.Sorted(maps.Keys(img)) {
		if strings.HasPrefix(name, prefix) {
			names = append(names, name)
		}
	}
	return names
}

// R3, R5, F14: the power goes at any operation of a checkpoint, of the third, which takes the place of the first, of a
// compaction, of the next, which takes over what the first carried, and of the recovery from each.
func TestF14_R3_R5_CrashEveryOp_retention(t *testing.T) {
	t.Parallel()
	for name, all := range retention {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			img, _ := retained(t, tight(nil), all...)
			require.Equal(t, strings.Contains(name, "compaction"), len(named(img, "carried-")) == 1, "%v", named(img, ""))
			got := everyRetention(t, tight(nil), crashtest.Crashes[crashtest.History]{}, all...)
			require.GreaterOrEqual(t, got.SecondDistinct, crashtest.Thin(1, 0))
		})
	}
}

// The same while the engine does it by itself.
func TestF14_R5_CrashEveryOp_retention_by_itself(t *testing.T) {
	t.Parallel()
	opts := tight(nil)
	opts.CheckpointEvery, opts.Retain = 6, time.Second
	wait := func(e *recovery.Engine, h *crashtest.History) error {
		err := settled(e, h)
		time.Sleep(time.Minute)
		return err
	}
	all := []doing{begun("a"), finished("b"), wait, finished("c"), wait, finished("d"), wait}
	img, _ := retained(t, opts, all...)
	require.Len(t, named(img, "carried-"), 1)
	everyRetention(t, opts, crashtest.Crashes[crashtest.History]{}, all...)
}

// archiving copies each segment into a directory beside the engine's, as one that may crash has to.
func archiving(disk wal.FS) func(context.Context, wal.Sealed) error {
	return func(_ context.Context, s wal.Sealed) error {
		r, err := s.Open()
		if err != nil {
			return err
		}
		content, err := io.ReadAll(r)
		if err = errors.Join(err, r.Close()); err != nil {
			return err
		}
		name := path.Join("archive", path.Base(s.Path))
		if err := disk.Mkdir("archive", 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		f, err := disk.OpenFile(name+".tmp", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
		if err != nil {
			return err
		}
		if _, err = f.WriteAt(content, 0); err == nil {
			err = f.Sync()
		}
		if err = errors.Join(err, f.Close()); err == nil {
			err = disk.Rename(name+".tmp", name)
		}
		if err == nil {
			err = disk.SyncDir("archive")
		}
		if err == nil {
			err = disk.SyncDir(".")
		}
		return err
	}
}

// archived: every event below the log's first is in a segment that was archived, each line of it as it was written.
func archived(disk wal.FS) error {
	img, err := crashtest.ReadImage(disk, "jobs")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	first := uint64(1)
	if names := img.Segments(); len(names) > 0 {
		fmt.Sscanf(names[0], "%d", &first)
	}
	archive, err := crashtest.ReadImage(disk, "archive")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	there := make(map[uint64]bool)
	for _, name := range archive.Segments() {
		salt := crashtest.Salt(archive[name])
		for line := range bytes.Lines(archive[name]) {
			var seq uint64
			if _, intact := crashtest.Unseal(salt, string(line)); !intact {
				return fmt.Errorf("archive/%s: %q", name, line)
			}
			if n, _ := fmt.Sscanf(string(line), `{"seq":%d,`, &seq); n == 1 {
				there[seq] = true
			}
		}
	}
	for seq := uint64(1); seq < first; seq++ {
		if !there[seq] {
			return fmt.Errorf("seq %d is not archived, and the log starts at %d", seq, first)
		}
	}
	return nil
}

// F14, F15: nothing goes that is not archived, durably, at least once.
func TestF14_F15_CrashEveryOp_archive(t *testing.T) {
	t.Parallel()
	with := func(disk wal.FS) recovery.Options {
		opts := tight(disk)
		opts.Archive = archiving(disk)
		return opts
	}
	everyRetention(t, recovery.Options{}, crashtest.Crashes[crashtest.History]{
		Workload: func(disk wal.FS, h *crashtest.History) error {
			return lives(disk, h, with(disk), begun("a"), finished("b"), compactAll, finished("c"), compactAll)
		},
		Check: func(disk wal.FS, h *crashtest.History) error {
			if err := archived(disk); err != nil {
				return err
			}
			return errors.Join(recovers(disk, h, with(disk)), archived(disk))
		},
	})
}

// F15: a suite that crashes compactions notices segments that go before the floor is durable which says that they may,
// and checkpoints and carried files that have their names before they have their bytes. Without the saboteur it passes, as
// above.
func TestF15_F16_crashes_of_compaction_notice_saboteurs(t *testing.T) {
	t.Parallel()
	for _, s := range crashtest.Saboteurs() {
		want, ours := map[crashtest.Flaw]string{
			crashtest.RemoveFirst: "only what lies below seq 1 was dropped",
			crashtest.RenameFirst: "a checkpoint is not as it was written",
		}[s.Name]
		if !ours {
			continue
		}
		t.Run(string(s.Name), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				report, failed := crashtest.Fails(func(t rapid.TB) {
					crashtest.Crashes[crashtest.History]{
						Budget: 600, Once: true,
						Workload: func(disk wal.FS, h *crashtest.History) error {
							return lives(s.FS(disk), h, tight(nil), retention["compaction"]...)
						},
						Check: func(disk wal.FS, h *crashtest.History) error { return recovers(s.FS(disk), h, tight(nil)) },
					}.Run(t)
				})
				require.True(t, failed, "nobody noticed: %s", s.Doc)
				require.Regexp(t, want, report)
				t.Log(report)
			})
		})
	}
}

// opened is an engine on a disk of its own with these files.
func opened(t *testing.T, img crashtest.Image, opts recovery.Options) (*recovery.Engine, *crashfs.FS, error) {
	t.Helper()
	disk := crashfs.New()
	require.NoError(t, img.Write(disk, "jobs"))
	opts.WAL.FS = disk
	e, err := recovery.Open(ctx, "jobs", opts)
	if err != nil {
		left, readErr := crashtest.ReadImage(disk, "jobs")
		require.NoError(t, readErr)
		require.True(t, img.Equal(left), "refused, and something was changed")
	}
	return e, disk, err
}

// shows is what an engine says of its jobs.
type shows struct {
	Jobs  []statemachine.Job
	Stats projection.StatsView
	Gone  []string
}

func showing(e *recovery.Engine, ids ...string) (s shows) {
	s.Jobs, s.Stats = slices.Collect(e.Jobs(projection.Query{})), e.Stats()
	for _, id := range ids {
		for _, err := range e.History(ctx, id) {
			if errors.Is(err, recovery.ErrForgotten) {
				s.Gone = append(s.Gone, id)
			}
			break
		}
	}
	return s
}

// damagedLog is one with two checkpoints, behind each of which there are events, and a carried file.
func damagedLog(t *testing.T) (img crashtest.Image, healthy shows, checkpoints []string) {
	img, _ = retained(t, tight(nil), begun("a"), finished("b"), finished("c"), compactAll, steps("a", wal.JobStarted),
		begun("d"), checkpoint, steps("d", wal.JobFailed))
	checkpoints = named(img, "checkpoint-")
	require.Len(t, checkpoints, 2)
	require.Len(t, named(img, "carried-"), 1)
	e, _, err := opened(t, img, tight(nil))
	require.NoError(t, err)
	require.Empty(t, e.Report().PassedOver)
	require.Equal(t, checkpoints[1], fmt.Sprintf("checkpoint-%020d.jsonl", e.Report().Checkpoint))
	healthy = showing(e, "a", "b", "c", "d", "e")
	require.Equal(t, []string{"b", "c"}, healthy.Gone)
	require.NoError(t, e.Close())
	return img, healthy, checkpoints
}

// F16: whatever byte of the newest checkpoint is another, and wherever it ends, it is passed over, and reported; the older
// one serves. The state is the same.
func TestF16_R2_newest_checkpoint_flipped_and_cut_at_every_byte(t *testing.T) {
	t.Parallel()
	img, healthy, names := damagedLog(t)
	newest := img[names[1]]
	passesOver := func(what string, content []byte) {
		img[names[1]] = content
		e, _, err := opened(t, img, tight(nil))
		require.NoError(t, err, what)
		require.Equal(t, healthy, showing(e, "a", "b", "c", "d", "e"), what)
		require.Len(t, e.Report().PassedOver, 1, what)
		require.ErrorIs(t, e.Report().PassedOver[0], wal.ErrCorrupt, what)
		require.Equal(t, names[0], fmt.Sprintf("checkpoint-%020d.jsonl", e.Report().Checkpoint), what)
		require.NoError(t, e.Close())
	}
	for at := 0; at < len(newest); at += crashtest.Thin(1, 13) {
		passesOver(fmt.Sprintf("cut at byte %d of %d", at, len(newest)), newest[:at])
		for bit := at % 3; bit < 8; bit += crashtest.Thin(3, 8) {
			flipped := bytes.Clone(newest)
			flipped[at] ^= 1 << bit
			passesOver(fmt.Sprintf("bit %d of byte %d of %d", bit, at, len(newest)), flipped)
		}
	}
	passesOver("one more line", append(bytes.Clone(newest), newest...))
	passesOver("the older one in its place", img[names[0]])
}

// F16: without a checkpoint that can be used, what was carried and the log have to do. Jobs and what is refused are the
// same; a projection that would not be whole is refused, by its name, and nothing is changed.
func TestF16_R5_no_checkpoint_can_be_used(t *testing.T) {
	t.Parallel()
	img, healthy, names := damagedLog(t)
	other, _ := retained(t, tight(nil), begun("x"), finished("y"), finished("z"), checkpoint)
	foreign := other[named(other, "checkpoint-")[0]]
	for what, content := range map[string][]byte{"empty": {}, "of another log": foreign, "cut": img[names[1]][:700]} {
		damaged := img.Clone()
		damaged[names[0]], damaged[names[1]] = content, content
		e, _, err := opened(t, damaged, tight(nil))
		require.NoError(t, err, what)
		got := showing(e, "a", "b", "c", "d", "e")
		require.Equal(t, healthy.Jobs, got.Jobs, what)
		require.Equal(t, healthy.Gone, got.Gone, what)
		require.Equal(t, healthy.Stats.States, got.Stats.States, what)
		report := e.Report()
		require.Len(t, report.PassedOver, 2, what)
		require.Equal(t, []string{"stats"}, report.Incomplete, what)
		require.Zero(t, report.Checkpoint, what)
		require.NoError(t, e.Close())

		opts := tight(nil)
		opts.Projections = []projection.Projection{newTotals()}
		_, _, err = opened(t, damaged, opts)
		var incomplete *recovery.IncompleteError
		require.ErrorAs(t, err, &incomplete, what)
		require.Equal(t, []string{"totals"}, incomplete.Names, what)
	}
}

// F16: a checkpoint of a newer format is ErrVersion, and never taken for damage.
func TestF16_newer_checkpoint_is_ErrVersion(t *testing.T) {
	t.Parallel()
	img, _, names := damagedLog(t)
	line, rest, _ := bytes.Cut(img[names[1]], []byte("\n"))
	salt := regexp.MustCompile(`"salt":"([0-9a-f]{16})"`).FindSubmatch(line)[1]
	body, intact := crashtest.Unseal(string(salt), string(line))
	require.True(t, intact)
	img[names[1]] = append([]byte(crashtest.Seal(string(salt), strings.Replace(body, `"version":1`, `"version":2`, 1))), rest...)
	_, _, err := opened(t, img, tight(nil))
	require.ErrorIs(t, err, wal.ErrVersion)
	require.NotErrorIs(t, err, wal.ErrCorrupt)
}

// F17: a log that ends before one of its checkpoints, at whatever event, has lost what was durable.
func TestF17_log_that_ends_before_its_checkpoint(t *testing.T) {
	t.Parallel()
	img, _ := retained(t, tight(nil), begun("a"), checkpoint, finished("b"), begun("c"), checkpoint)
	var durable uint64
	_, err := fmt.Sscanf(named(img, "checkpoint-")[1], "checkpoint-%d.jsonl", &durable)
	require.NoError(t, err)
	cuts := 0
	for names := img.Segments(); len(names) > 0; names = img.Segments() {
		last := img.Newest()
		for at := len(img[last]); at >= 0; at-- {
			if at < len(img[last]) && img[last][at] != '\n' {
				continue
			}
			whole := img[last]
			img[last] = whole[:min(at+1, len(whole))]
			e, _, err := opened(t, img, tight(nil))
			if bytes.Contains(img[last], fmt.Appendf(nil, `{"seq":%d,`, durable)) {
				require.NoError(t, err)
				require.Equal(t, durable, e.Report().Checkpoint)
				require.NoError(t, e.Close())
			} else {
				require.ErrorIs(t, err, wal.ErrCorrupt, "%s cut to %d bytes", last, at+1)
				cuts++
			}
			img[last] = whole
		}
		delete(img, last)
	}
	_, _, err = opened(t, img, tight(nil))
	require.ErrorIs(t, err, wal.ErrCorrupt, "no segment is left")
	require.Greater(t, cuts, 5)
}

// F18: the disk is full at any one write, sync, file or rename of checkpoints and compactions. That is a no; the old set is
// intact, appends go on, and when there is room it works.
func TestF18_R3_full_disk_at_every_step_of_checkpoint_and_compaction(t *testing.T) {
	t.Parallel()
	full := 0
	for _, fault := range []string{
		"write *.tmp #%d short 20 ENOSPC", "write 0*.jsonl #%d short 20 ENOSPC", "sync *.tmp #%d error ENOSPC", "create *.tmp #%d error ENOSPC",
		"rename checkpoint-* #%d error ENOSPC", "rename carried-* #%d error ENOSPC",
	} {
		for nth, met := 1, true; met; nth++ {
			synctest.Test(t, func(t *testing.T) {
				base, h := crashfs.New(), new(crashtest.History)
				faulty := crashfs.Inject(base, crashfs.MustSchedule(fmt.Sprintf(fault, nth)))
				said := 0
				err := untilRoom(faulty, h, &said)
				require.NoError(t, err, "%v", faulty.Schedule())
				met = len(faulty.Unmet()) == 0
				full += said
				for _, policy := range []crashfs.Policy{crashfs.SyncedOnly, crashfs.Everything, crashfs.Seed(uint64(nth))} {
					require.NoError(t, recovers(base.Crash(policy), h, tight(nil)), "%v, then %v", faulty.Schedule(), policy)
				}
			})
		}
	}
	require.Greater(t, full, 10)
}

// untilRoom does a bit of everything, each step again where the disk was full; said counts those.
func untilRoom(disk wal.FS, h *crashtest.History, said *int) error {
	again := func(do doing) doing {
		return func(e *recovery.Engine, h *crashtest.History) error {
			err := do(e, h)
			if errors.Is(err, wal.ErrNoSpace) && !errors.Is(err, wal.ErrFailed) {
				*said++
				img, readErr := crashtest.ReadImage(disk, "jobs")
				if left := slices.DeleteFunc(named(img, ""), func(s string) bool { return !strings.HasSuffix(s, ".tmp") }); len(left) > 0 {
					return fmt.Errorf("%q are left", left)
				}
				err = errors.Join(readErr, do(e, h))
			}
			return err
		}
	}
	all := []doing{begun("a"), checkpoint, finished("b"), begun("c"), compactAll, finished("d"), steps("a", wal.JobFailed), compactAll, begun("e")}
	for i, do := range all {
		all[i] = again(do)
	}
	err := lives(disk, h, tight(nil), all...)
	if errors.Is(err, wal.ErrNoSpace) { // already at Open
		err = lives(disk, h, tight(nil), all...)
	}
	return err
}

// F19: a clock that goes back forgets nothing that ended after the cut-off as it says, one that goes ahead nothing that has
// not ended; and no duration is negative.
func TestF19_R5_clock_jumps_during_retention(t *testing.T) {
	t.Parallel()
	c := newClock()
	synctest.Test(t, func(t *testing.T) {
		opts := tight(crashfs.New())
		opts.WAL.Now, opts.CheckpointEvery, opts.Retain = c.Now, 4, time.Hour
		h := new(crashtest.History)
		h.Compacts()
		e, err := recovery.Open(ctx, "jobs", opts)
		require.NoError(t, err)
		h.Opened(e.Report().WAL.Epoch, e.Report().WAL.LastSeq)
		require.NoError(t, begun("open")(e, h))
		for i, jump := range []time.Duration{time.Minute, -30 * 24 * time.Hour, 0, 90 * 24 * time.Hour, -time.Second, -365 * 24 * time.Hour, 400 * 24 * time.Hour} {
			require.NoError(t, steps(fmt.Sprint(i), wal.JobSubmitted, wal.JobValidated, wal.JobStarted)(e, h))
			require.NoError(t, settled(e, h)) // nobody asks the clock now
			c.now = c.now.Add(jump)
			require.NoError(t, steps(fmt.Sprint(i), wal.JobCompleted)(e, h))
			require.NoError(t, settled(e, h))
			require.NoError(t, e.Report().Keeping)
			job, known := e.Job("open")
			require.True(t, known)
			require.Equal(t, statemachine.Validated, job.State)
			s := e.Stats()
			for _, stage := range []projection.Latency{s.Validation, s.Waiting, s.Running, s.Total} {
				require.GreaterOrEqual(t, min(stage.P50, stage.P95, stage.P99, stage.Max), time.Duration(0))
			}
		}
		require.NoError(t, crashtest.Check(h, crashtest.Events(e)))
		c.now = c.now.Add(500 * 24 * time.Hour)
		_, err = e.Compact(ctx, time.Hour)
		require.NoError(t, err)
		require.Equal(t, []string{"open"}, crashtest.IDsOf(slices.Collect(e.Jobs(projection.Query{}))))
		require.NoError(t, e.Close())
		require.NoError(t, crashtest.Recover(opts.WAL.FS, "jobs", h, opts))
	})
}

// R5: what Recover and Check hold a compacted log to has teeth: take away any event that is remembered, or forget a job
// that has not ended, and they say so.
func TestR5_recover_wants_what_is_remembered(t *testing.T) {
	t.Parallel()
	img, h := retained(t, tight(nil), retention["second compaction"]...)
	e, disk, err := opened(t, img, tight(nil))
	require.NoError(t, err)
	var events []wal.Event
	for event, err := range crashtest.Events(e) {
		require.NoError(t, err)
		events = append(events, event)
	}
	first := e.Report().WAL.FirstSeq
	require.NoError(t, e.Close())
	require.Greater(t, first, events[0].Seq)
	require.NoError(t, crashtest.CheckFrom(h, events, first))
	for i := range events {
		require.Error(t, crashtest.CheckFrom(h, slices.Delete(slices.Clone(events), i, i+1), first), "without %v", events[i])
	}
	require.NoError(t, crashtest.Recover(disk, "jobs", h, tight(nil)))

	log, err := wal.Open("jobs", wal.Options{FS: disk})
	require.NoError(t, err)
	_, err = log.Append(ctx, projection.Forgotten{Before: time.Now().Add(time.Hour), Jobs: []string{"f"}}.Event())
	require.NoError(t, errors.Join(err, log.Close()))
	require.ErrorContains(t, crashtest.Recover(disk, "jobs", h, tight(nil)), "R5 forgotten")
}
