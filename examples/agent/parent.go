package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jobwal/jobwal/projection"
	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// A kill is a moment to kill the agent at.
type kill struct {
	job     string // after this job's
	event   wal.EventType
	acks    int           // or, with job "", after so many acknowledged events
	after   time.Duration // and then so much later
	tornToo bool          // and leave half a record behind, as a power cut might
}

// chosenKills hit the built-in plan where it hurts.
var chosenKills = []kill{
	{job: "write-config", event: wal.JobStarted, after: 60 * time.Millisecond},
	{job: "build", event: wal.JobStep, after: 200 * time.Millisecond, tornToo: true},
	{job: "raise-level", event: wal.JobStarted, after: 180 * time.Millisecond},
	{job: "migrate", event: wal.JobStarted, after: 200 * time.Millisecond},
	{job: "draft", event: wal.JobCompleted},
	{job: "half-made", event: wal.JobFailed, after: 50 * time.Millisecond},
}

// kills are those chosen above, or random ones; a plan of the user's has no jobs of those names, so it gets random
// ones, too.
func (s settings) chooseKills() []kill {
	if s.seed == 0 && s.plan == "" && s.kills <= len(chosenKills) {
		return chosenKills[:s.kills]
	}
	random := rand.New(rand.NewPCG(s.seed, 1))
	kills := make([]kill, s.kills)
	for i := range kills {
		kills[i] = kill{acks: 1 + random.IntN(8), after: time.Duration(random.Int64N(int64(s.pace) + 1)), tornToo: i == 1}
	}
	return kills
}

// demonstrate runs the agent until its plan is done, kills it on the way, and checks what it acknowledged.
func demonstrate(ctx context.Context, w io.Writer, p plan, s settings) error {
	t := newPrinter(w)
	t.title("A plan of %d steps, in %s", len(p.Steps), s.workdir)
	var acks []message
	kills := s.chooseKills()
	for n := 0; ; n++ {
		var next *kill
		if n < len(kills) {
			next = &kills[n]
		}
		t.title("Agent %d", n+1)
		got, killed, err := runAgent(ctx, t, s, next)
		acks = append(acks, got...)
		if err != nil {
			return err
		}
		if !killed {
			break
		}
		if next.tornToo {
			if err := tear(t, s); err != nil {
				return err
			}
		}
	}
	return settle(ctx, t, p, s, acks)
}

// runAgent runs one child, to its end or to its kill, and returns what it acknowledged.
func runAgent(ctx context.Context, t *printer, s settings, k *kill) (acks []message, killed bool, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, false, err
	}
	child := exec.CommandContext(ctx, self, "-child", "-workdir", s.workdir, "-plan", s.plan, "-pace", s.pace.String())
	var complaints tailBuffer
	child.Stderr = &complaints
	out, err := child.StdoutPipe()
	if err != nil {
		return nil, false, err
	}
	if err := child.Start(); err != nil {
		return nil, false, err
	}
	armed := false
	err = readMessages(out, func(m message) {
		if m.Note != "" {
			t.note(m.Note)
			return
		}
		acks = append(acks, m)
		t.ack(m)
		if k != nil && !armed && k.due(m, len(acks)) {
			armed = true
			time.AfterFunc(k.after, func() { _ = child.Process.Kill() }) // too late is no error: it had ended
		}
	})
	ended := child.Wait()
	var exit *exec.ExitError
	switch {
	case err != nil:
		return acks, false, err
	case ended == nil:
		return acks, false, nil
	case armed && errors.As(ended, &exit) && !exit.Exited():
		t.bad("killed (SIGKILL), %s", k)
		return acks, true, nil
	case armed && exit != nil && complaints.String() == "": // Windows tells a kill by exit code 1
		t.bad("killed, %s", k)
		return acks, true, nil
	}
	return acks, false, fmt.Errorf("the agent ended by itself: %w: %s", ended, complaints.String())
}

func (k *kill) due(m message, acks int) bool {
	if k.job != "" {
		return m.Job == k.job && m.Type == k.event
	}
	return acks >= k.acks
}

func (k *kill) String() string {
	what := fmt.Sprintf("after %d acknowledged events", k.acks)
	if k.job != "" {
		what = fmt.Sprintf("after %s of %s", k.event, k.job)
	}
	if k.after > 0 {
		what += fmt.Sprintf(" and %s", k.after.Round(time.Millisecond))
	}
	return what
}

// tear appends half a record to the newest segment: SIGKILL by itself leaves no torn bytes, since the system keeps what
// was written; a power cut would.
func tear(t *printer, s settings) error {
	segments, err := filepath.Glob(filepath.Join(jobsDir(s.workdir), "*.jsonl"))
	if err != nil || len(segments) == 0 {
		return errors.Join(err, errors.New("no segment to tear"))
	}
	f, err := os.OpenFile(slices.Max(segments), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	half := `{"seq":999,"prev":0,"epoch":9,"ts":1715800000,"ns":0,"type":"job_subm`
	_, err = f.WriteString(half)
	t.bad("and half a record left behind (%d bytes), as a power cut might: this demonstration wrote it", len(half))
	return errors.Join(err, f.Close())
}

// settle has decided what has to be, shows all jobs, and holds the log against what was acknowledged.
func settle(ctx context.Context, t *printer, p plan, s settings, acks []message) (err error) {
	engine, err := recovery.Open(ctx, jobsDir(s.workdir), recovery.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, engine.Close()) }()
	if err := decide(ctx, t, engine); err != nil {
		return err
	}
	t.title("All jobs")
	if err := t.jobs(ctx, engine, p); err != nil {
		return err
	}
	t.title("Check")
	missing, err := check(ctx, engine, acks)
	if err != nil {
		return err
	}
	unfinished := unfinished(engine, p)
	for _, m := range missing {
		t.bad("acknowledged, and not in the log: seq %d, %s of %s", m.Seq, m.Type, m.Job)
	}
	for _, id := range unfinished {
		t.bad("not finished: %s", id)
	}
	if len(missing)+len(unfinished) > 0 {
		return fmt.Errorf("%d acknowledged events are missing, %d jobs are not finished", len(missing), len(unfinished))
	}
	t.good("%d events were acknowledged by the agents, and every one is in the log; all %d jobs are finished",
		len(acks), len(p.Steps))
	return nil
}

// decide stands for the person whom a held job waits for. This one looks at its story, and never has it done again.
func decide(ctx context.Context, t *printer, engine *recovery.Engine) error {
	for _, job := range slices.Collect(engine.Jobs(projection.Query{Held: new(true)})) {
		t.title("Somebody has to decide")
		story, err := engine.Explain(ctx, job.ID)
		if err != nil {
			return err
		}
		t.note(story.String())
		if _, err := engine.Fail(ctx, job.ID, errors.New("somebody looked at it: it is not to be done again")); err != nil {
			return err
		}
		t.good("somebody looks, and decides that %s has failed", job.ID)
	}
	return nil
}

// check returns the acknowledged events that the log has not, or has otherwise.
func check(ctx context.Context, engine *recovery.Engine, acks []message) (missing []message, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	log := make(map[uint64]message)
	last := engine.Stats().LastSeq
	if last > 0 {
		for e, err := range engine.Follow(ctx, 0) {
			if err != nil {
				return nil, err
			}
			log[e.Seq] = ackOf(e)
			if e.Seq == last {
				break
			}
		}
	}
	for _, ack := range acks {
		if log[ack.Seq] != ack {
			missing = append(missing, ack)
		}
	}
	return missing, nil
}

func unfinished(engine *recovery.Engine, p plan) (ids []string) {
	for _, s := range p.Steps {
		job, _ := engine.Job(s.ID)
		undone := job.State == statemachine.RolledBack || job.StartedAt.IsZero()
		toUndo := s.RollBack || job.State == statemachine.Failed && undoable(job.Capability)
		if !job.Finished() || toUndo && !undone {
			ids = append(ids, s.ID)
		}
	}
	return ids
}

// within shortens a path for people.
func within(dir, path string) string {
	if rel, err := filepath.Rel(dir, path); err == nil && !strings.HasPrefix(rel, "..") {
		return rel
	}
	return path
}
