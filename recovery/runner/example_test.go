package runner_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/jobwal/jobwal/recovery"
	"github.com/jobwal/jobwal/recovery/runner"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

func check(err error) {
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
}

// open is an engine in memory; a program gives [recovery.Open] a directory.
func open(disk *crashfs.FS) *recovery.Engine {
	clock := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	engine, err := recovery.Open(context.Background(), "jobs", recovery.Options{WAL: wal.Options{FS: disk, Now: func() time.Time { return clock }}})
	check(err)
	return engine
}

type Order struct {
	Item  string `json:"item"`
	Cents int    `json:"cents"`
}

type Receipt struct {
	Number string `json:"number"`
}

// A capability that is a function, from its registration to its output.
func Example() {
	ctx := context.Background()
	reg := runner.NewRegistry()
	price := runner.Add(reg, "price", runner.Func[Order, int](func(_ context.Context, o Order) (int, error) {
		if o.Item == "" {
			return 0, errors.New("no item")
		}
		return o.Cents + 500, nil
	}), runner.Settings{Effect: recovery.Pure})

	engine := open(crashfs.New())
	r, err := runner.New(engine, reg, runner.Options{})
	check(err)
	_, err = r.Recover(ctx) // what an earlier process has left
	check(err)

	cents, err := price.Do(ctx, r, Order{"lamp", 3000})
	fmt.Println(cents, err)
	_, err = price.Do(ctx, r, Order{}, runner.ID("a"))
	fmt.Println(err)

	check(r.Drain(ctx))
	check(engine.Close())
	// Output:
	// 3500 <nil>
	// runner: job a (price) failed: no item
}

// purchase reserves and pays, each a step, and can take both back.
type purchase struct{ decline bool }

func (purchase) Validate(_ context.Context, o Order) error {
	if o.Cents <= 0 {
		return fmt.Errorf("%d cents: that is no price", o.Cents)
	}
	return nil
}

func (p purchase) Execute(ctx context.Context, o Order) (Receipt, error) {
	if _, err := runner.Step(ctx, "reserve", func(context.Context) (string, error) {
		fmt.Println("reserve", o.Item)
		return "shelf 12", nil
	}); err != nil {
		return Receipt{}, err
	}
	return runner.Step(ctx, "pay", func(context.Context) (Receipt, error) {
		if p.decline {
			return Receipt{}, errors.New("card declined")
		}
		return Receipt{"R-1"}, nil
	})
}

func (purchase) Undo(_ context.Context, o Order, done runner.Done) error {
	switch done.Step {
	case "reserve":
		fmt.Printf("put %s back on %s\n", o.Item, done.Output)
	case "pay":
		fmt.Printf("refund %s\n", done.Output)
	default:
		fmt.Println("nothing else to undo")
	}
	return nil
}

// A job that fails is undone, in reverse order of its steps; what was not done is not undone.
func ExampleUndoer() {
	ctx := context.Background()
	reg := runner.NewRegistry()
	buy := runner.Add(reg, "purchase", purchase{decline: true}, runner.Settings{})
	engine := open(crashfs.New())
	r, err := runner.New(engine, reg, runner.Options{})
	check(err)
	_, err = buy.Do(ctx, r, Order{"lamp", 3000}, runner.ID("a"))
	fmt.Println(err)
	story, err := engine.Explain(ctx, "a")
	check(err)
	for _, event := range story.Events {
		fmt.Println(strings.TrimSpace(string(event.Type) + " " + recovery.StepName(event)))
	}
	check(r.Drain(ctx))
	check(engine.Close())
	// Output:
	// reserve lamp
	// put lamp back on "shelf 12"
	// nothing else to undo
	// runner: job a (purchase) rolled_back: card declined
	// job_submitted
	// job_validated
	// job_started
	// job_step reserve
	// job_failed
	// job_step_undone #rollback
	// job_step_undone reserve
	// job_rolled_back
}

// The process dies between two steps. The next one looks at the plan, applies it, and the first step is not done again.
func ExampleRunner_Recover() {
	ctx := context.Background()
	disk, crash := crashfs.New(), make(chan *crashfs.FS, 1)
	register := func(pay func() Receipt) *runner.Registry {
		reg := runner.NewRegistry()
		runner.Add(reg, "purchase", runner.Func[Order, Receipt](func(ctx context.Context, o Order) (Receipt, error) {
			shelf, err := runner.Step(ctx, "reserve", func(context.Context) (string, error) { fmt.Println("reserve"); return "shelf 12", nil })
			if err != nil {
				return Receipt{}, err
			}
			return runner.Step(ctx, "pay", func(context.Context) (Receipt, error) { fmt.Println("pay for", shelf); return pay(), nil })
		}), runner.Settings{Effect: recovery.Idempotent})
		return reg
	}
	engine := open(disk)
	r, err := runner.New(engine, register(func() Receipt { crash <- disk.Crash(crashfs.SyncedOnly); select {} }), runner.Options{})
	check(err)
	_, err = r.Submit(ctx, "purchase", Order{"lamp", 3000}, runner.ID("a"))
	check(err)

	engine = open(<-crash) // another process
	r, err = runner.New(engine, register(func() Receipt { return Receipt{"R-1"} }), runner.Options{})
	check(err)
	plan, err := r.Plan(ctx)
	check(err)
	for _, d := range plan.Decisions {
		fmt.Printf("%s: %s, since %s\n", d.JobID, d.Action, d.Reason)
	}
	_, err = r.Apply(ctx, plan)
	check(err)
	job, err := r.Wait(ctx, "a")
	check(err)
	fmt.Println(job)
	check(r.Drain(ctx))
	check(engine.Close())
	// Output:
	// reserve
	// pay for shelf 12
	// a: resume, since idempotent: it may be done again; attempts so far: 1
	// pay for shelf 12
	// job a (purchase) completed
}

// What must not happen twice was under way when the process died. The plan holds it; two of the jobs are somebody's to decide, and
// about the third the plan is edited.
func ExampleRunner_Plan() {
	ctx := context.Background()
	disk := crashfs.New()
	engine := open(disk)
	for _, id := range []string{"a", "b", "c"} {
		_, err := engine.Do(ctx, recovery.Submit(recovery.Submission{JobID: id, Capability: "mail", Args: "to " + id}), recovery.Validate(id), recovery.Start(id))
		check(err)
	}
	engine = open(disk.Crash(crashfs.SyncedOnly)) // another process
	reg := runner.NewRegistry()
	mail := runner.Add(reg, "mail", runner.Func[string, string](func(_ context.Context, to string) (string, error) {
		return "sent " + to, nil
	}), runner.Settings{Effect: recovery.Irreversible})
	r, err := runner.New(engine, reg, runner.Options{})
	check(err)
	plan, err := r.Plan(ctx)
	check(err)
	_, table, _ := strings.Cut(plan.String(), "\n") // without the name of the log, which is random
	fmt.Print(table)
	if d := plan.Decision("c"); d != nil { // nil: the plan has no such job
		d.Action, d.Reason = recovery.ActionFail, "nobody wants it any more"
	}
	applied, err := r.Apply(ctx, plan)
	check(errors.Join(err, applied.Err()))

	for _, job := range engine.Report().Held {
		fmt.Println(job)
	}
	_, err = engine.Complete(ctx, "a", "sent, the outbox says") // it happened
	check(err)
	_, err = r.Release(ctx, "b", "it is not in the outbox") // it did not: another attempt
	check(err)
	for _, id := range []string{"a", "b", "c"} {
		said, err := mail.Result(ctx, r, id)
		fmt.Printf("%s: %q, %v\n", id, said, err)
	}
	check(r.Drain(ctx))
	check(engine.Close())
	// Output:
	// JOB  CAPABILITY  EFFECT        STATE    EPOCH  ATTEMPTS  LAST STEP  ACTION  REASON
	// a    mail        irreversible  started  1      1         -          hold    started in epoch 1 without a result: whether it happened is unknown
	// b    mail        irreversible  started  1      1         -          hold    started in epoch 1 without a result: whether it happened is unknown
	// c    mail        irreversible  started  1      1         -          hold    started in epoch 1 without a result: whether it happened is unknown
	// job a (mail) started, held: started in epoch 1 without a result: whether it happened is unknown
	// job b (mail) started, held: started in epoch 1 without a result: whether it happened is unknown
	// a: "sent, the outbox says", <nil>
	// b: "sent to b", <nil>
	// c: "", runner: job c (mail) failed: nobody wants it any more
}

// payment can't be done twice, but asked about.
type payment struct{ paid map[string]Receipt }

func (p payment) Execute(context.Context, Order) (Receipt, error) {
	return Receipt{}, errors.New("not called here")
}

func (p payment) Reconcile(_ context.Context, o Order) (runner.Found[Receipt], error) {
	if receipt, ok := p.paid[o.Item]; ok {
		return runner.Happened(receipt), nil
	}
	return runner.CantTell[Receipt]("the bank does not know of it yet"), nil
}

// Two jobs were started in a process that died. One has happened and completes; about the other somebody has to decide.
func ExampleReconciler() {
	ctx := context.Background()
	disk := crashfs.New()
	engine := open(disk)
	for id, item := range map[string]string{"a": "lamp", "b": "chair"} {
		_, err := engine.Do(ctx, recovery.Submit(recovery.Submission{JobID: id, Capability: "pay", Args: Order{item, 3000}}), recovery.Validate(id), recovery.Start(id))
		check(err)
	}
	engine = open(disk.Crash(crashfs.SyncedOnly))
	reg := runner.NewRegistry()
	pay := runner.Add(reg, "pay", payment{map[string]Receipt{"lamp": {"R-1"}}}, runner.Settings{Effect: recovery.Reconcilable})
	r, err := runner.New(engine, reg, runner.Options{})
	check(err)
	_, err = r.Recover(ctx)
	check(err)
	receipt, err := pay.Result(ctx, r, "a")
	fmt.Println(receipt.Number, err)
	_, err = pay.Result(ctx, r, "b")
	fmt.Println(err)
	check(r.Drain(ctx))
	check(engine.Close())
	// Output:
	// R-1 <nil>
	// runner: job b (pay) started, held: asked, and it can't be told whether it happened: the bank does not know of it yet
}

// A program that does not know whether a request got through makes it again, and there is one job.
func ExampleOnce() {
	ctx := context.Background()
	reg := runner.NewRegistry()
	price := runner.Add(reg, "price", runner.Func[Order, int](func(_ context.Context, o Order) (int, error) {
		fmt.Println("asked for the price of a", o.Item)
		return o.Cents + 500, nil
	}), runner.Settings{Effect: recovery.Pure})
	engine := open(crashfs.New())
	r, err := runner.New(engine, reg, runner.Options{})
	check(err)
	for range 2 {
		cents, err := price.Do(ctx, r, Order{"lamp", 3000}, runner.Once("request-17"))
		fmt.Println(cents, err)
	}
	_, err = price.Do(ctx, r, Order{"chair", 3000}, runner.Once("request-17"))
	fmt.Println(err)
	check(r.Drain(ctx))
	check(engine.Close())
	// Output:
	// asked for the price of a lamp
	// 3500 <nil>
	// 3500 <nil>
	// runner: job "request-17" has other args: statemachine: job exists already
}

// Another attempt after some errors, and not after others.
func ExampleFirstRetry() {
	busy := errors.New("the other side is busy")
	policy := runner.FirstRetry(
		runner.OnIs(runner.ErrTimeout, runner.Backoff{Attempts: 2}),
		runner.OnIs(busy, runner.Backoff{First: time.Second, Most: time.Minute, Attempts: 10}),
		runner.DefaultRetry, // what is marked Transient
	)
	for _, err := range []error{&runner.TimeoutError{After: time.Second}, fmt.Errorf("ask: %w", busy), runner.Transient(errors.New("reset")), errors.New("no such item")} {
		_, again := policy.Retry(err, 3)
		fmt.Println(again, err)
	}
	// Output:
	// false timed out after 1s
	// true ask: the other side is busy
	// true reset
	// false no such item
}

// A job that is worked on is told to stop, and why.
func ExampleRunner_Cancel() {
	ctx := context.Background()
	begun := make(chan bool)
	reg := runner.NewRegistry()
	runner.Add(reg, "sleep", runner.Func[struct{}, struct{}](func(ctx context.Context, _ struct{}) (struct{}, error) {
		close(begun)
		<-ctx.Done()
		fmt.Println(context.Cause(ctx))
		return struct{}{}, ctx.Err()
	}), runner.Settings{Effect: recovery.Pure})
	engine := open(crashfs.New())
	r, err := runner.New(engine, reg, runner.Options{})
	check(err)
	_, err = r.Submit(ctx, "sleep", struct{}{}, runner.ID("a"))
	check(err)
	<-begun
	job, err := r.Cancel(ctx, "a", "no longer needed")
	check(err)
	fmt.Println(job)
	check(r.Drain(ctx))
	check(engine.Close())
	// Output:
	// cancelled: no longer needed
	// job a (sleep) failed: cancelled: no longer needed
}

// A program that is told to end (by signal.NotifyContext, say) gives its jobs a while. What has not come to its end by then has not
// failed: the next process has it in its plan.
func ExampleRunner_Drain() {
	ctx := context.Background()
	disk := crashfs.New()
	reg, begun := runner.NewRegistry(), make(chan bool, 1)
	long := runner.Add(reg, "long", runner.Func[string, string](func(ctx context.Context, of string) (string, error) {
		if job, _ := runner.JobOf(ctx); job.Attempts > 1 {
			return "the end of " + of, nil
		}
		begun <- true
		<-ctx.Done()
		return "", ctx.Err()
	}), runner.Settings{Effect: recovery.Idempotent})
	engine := open(disk)
	r, err := runner.New(engine, reg, runner.Options{})
	check(err)
	_, err = long.Submit(ctx, r, "the story", runner.Once("a"))
	check(err)
	<-begun

	while, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	var left *runner.DrainError
	if err := r.Drain(while); errors.As(err, &left) {
		fmt.Println(left)
	}
	check(engine.Close())

	engine = open(disk) // the next process
	r, err = runner.New(engine, reg, runner.Options{})
	check(err)
	_, err = r.Recover(ctx)
	check(err)
	fmt.Println(long.Do(ctx, r, "the story", runner.Once("a")))
	check(r.Drain(ctx))
	check(engine.Close())
	// Output:
	// runner: drained in part: context deadline exceeded; interrupted: a; still running: none
	// the end of the story <nil>
}
