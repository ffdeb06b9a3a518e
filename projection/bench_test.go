package projection

import (
	"bytes"
	"encoding/json"
	"fmt"
	"runtime"
	"testing"

	"github.com/jobwal/jobwal/statemachine"
	"github.com/jobwal/jobwal/wal"
)

// folded returns the events of n jobs, and the job as it stands after each.
func folded(n int) ([]wal.Event, []statemachine.Job) {
	events := history(n)
	after := make([]statemachine.Job, len(events))
	jobs := NewJobs()
	for i, e := range events {
		after[i], _ = jobs.Fold(e)
	}
	return events, after
}

func full(n int) *Jobs {
	jobs := NewJobs()
	for _, e := range history(n) {
		_, _ = jobs.Fold(e)
	}
	return jobs
}

func BenchmarkJobsApply(b *testing.B) {
	for _, n := range []int{10_000, 250_000} {
		events, after := folded(n)
		run := func(how string, apply func(jobs *Jobs, i int)) {
			b.Run(fmt.Sprintf("how=%s/jobs=%d", how, n), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					jobs := NewJobs()
					for i := range events {
						apply(jobs, i)
					}
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(events)), "ns/event")
			})
		}
		run("fold", func(jobs *Jobs, i int) { _, _ = jobs.Fold(events[i]) })
		run("apply", func(jobs *Jobs, i int) { _ = jobs.Apply(events[i], after[i]) })
	}
}

// BenchmarkJobsHeap reports the heap that a finished job takes beyond its payloads: with its id of 32 bytes, without
// the 16 bytes of args and 16 of output.
func BenchmarkJobsHeap(b *testing.B) {
	const args, output = `{"p":"/srv/1"}  `, `{"bytes":123456}`
	for _, last := range []wal.EventType{wal.JobCompleted, wal.JobFailed} { // failed: with an error of 13 bytes
		for _, n := range []int{100_000, 700_000, 1_000_000} {
			b.Run(fmt.Sprintf("end=%s/jobs=%d", last, n), func(b *testing.B) {
				for b.Loop() {
					before := heap()
					jobs := NewJobs()
					payloads := 0
					for i := range n {
						id, seq := jobID(i), uint64(4*i)
						for k, typ := range []wal.EventType{wal.JobSubmitted, wal.JobValidated, wal.JobStarted, last} {
							e := wal.Event{Seq: seq + uint64(k) + 1, JobID: id, Type: typ, Time: noon, Capability: "shell"}
							switch k {
							case 0:
								e.Args = json.RawMessage(args)
							case 3:
								e.Output, e.Prev = json.RawMessage(output), seq+3
								e.Error = map[bool]string{true: fmt.Sprintf("exit %08d", i)}[last == wal.JobFailed]
							default:
								e.Prev = seq + uint64(k)
							}
							job, err := jobs.Fold(e)
							if err != nil {
								b.Fatal(err)
							}
							if k == 3 {
								payloads += job.Args.Size() + job.Output.Size()
							}
						}
					}
					b.ReportMetric(float64(heap()-before-uint64(payloads))/float64(n), "B/job")
					runtime.KeepAlive(jobs)
				}
			})
		}
	}
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func BenchmarkJobsGet(b *testing.B) {
	const n = 1_000_000
	jobs := full(n)
	ids := make([]string, 1<<16)
	for i := range ids {
		ids[i] = jobID(i * 7919 % n)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		_, _ = jobs.Get(ids[i%len(ids)])
	}
}

// BenchmarkJobsPage takes one page of 100 in the middle of a million jobs, of which every hundredth is not completed.
func BenchmarkJobsPage(b *testing.B) {
	const n = 1_000_000
	jobs := full(n)
	for i := range n / 100 {
		seq := uint64(4*n + 1 + i)
		job, _ := jobs.Get(jobID(100 * i))
		_, _ = jobs.Fold(wal.Event{Seq: seq, Prev: job.Seq, JobID: job.ID, Type: wal.JobRolledBack, Time: noon})
	}
	for _, c := range []struct {
		name string
		q    Query
	}{
		{"filter=none/order=submission", Query{}},
		{"filter=completed/order=submission", Query{States: []statemachine.State{statemachine.Completed}}},
		{"filter=rolled_back/order=submission", Query{States: []statemachine.State{statemachine.RolledBack}}},
		{"filter=capability/order=submission", Query{Capabilities: []string{"cap3"}}},
		{"filter=started/order=submission", Query{States: []statemachine.State{statemachine.Started}}},
		{"filter=none/order=update", Query{Order: ByUpdate, Descending: true}},
		{"filter=completed/order=update", Query{Order: ByUpdate, States: []statemachine.State{statemachine.Completed}}},
		{"filter=parked/order=update", Query{Order: ByUpdate, Parked: new(true)}},
	} {
		b.Run(c.name, func(b *testing.B) {
			for range n / 200 {
				_, next, _ := jobs.Page(c.q)
				if next.IsZero() {
					break
				}
				c.q.After = next
			}
			b.ReportAllocs()
			b.ResetTimer()
			for b.Loop() {
				_, _, _ = jobs.Page(c.q)
			}
		})
	}
}

// BenchmarkJobsSnapshot saves a million jobs, of which some have changed since the freeze, and loads them. It reports the
// bytes of a job, and the most records that were put aside.
func BenchmarkJobsSnapshot(b *testing.B) {
	const n = 1_000_000
	jobs := full(n)
	for _, changes := range []int{0, 50_000} {
		b.Run(fmt.Sprintf("do=save/jobs=%d/changes=%d", n, changes), func(b *testing.B) {
			peak, bytes := 0, new(counter)
			b.ReportAllocs()
			for b.Loop() {
				save, err := jobs.Snapshot()
				if err != nil {
					b.Fatal(err)
				}
				frozen := jobs.frozen[0]
				b.StopTimer()
				for i := range changes {
					touch(jobs, i*7919%n)
				}
				b.StartTimer()
				*bytes = 0
				if err := save(bytes); err != nil {
					b.Fatal(err)
				}
				peak = max(peak, frozen.peak)
			}
			b.ReportMetric(float64(peak), "aside/op")
			b.ReportMetric(float64(*bytes)/n, "B/job")
		})
	}
	b.Run(fmt.Sprintf("do=load/jobs=%d", n), func(b *testing.B) {
		raw := save(b, jobs)
		b.ReportAllocs()
		for b.Loop() {
			if err := NewJobs().Load(bytes.NewReader(raw)); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// A counter counts what is written to it.
type counter int

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// touch gives a job an event, which is not legal: it may be given at any time.
func touch(jobs *Jobs, i int) {
	job, _ := jobs.Get(jobID(i))
	_, _ = jobs.Fold(wal.Event{Seq: jobs.last + 1, Prev: job.Seq, JobID: job.ID, Type: wal.JobStarted, Time: noon})
}

// BenchmarkForget forgets jobs by the thousand, among a hundred thousand that stay.
func BenchmarkForget(b *testing.B) {
	const n, batch = 100_000, 1000
	jobs := full(n)
	next := n
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		ids := make([]string, batch)
		for i := range ids {
			ids[i] = jobID(next)
			next++
			seq := jobs.last
			_, _ = jobs.Fold(wal.Event{Seq: seq + 1, JobID: ids[i], Type: wal.JobSubmitted, Time: noon})
			_, _ = jobs.Fold(wal.Event{Seq: seq + 2, Prev: seq + 1, JobID: ids[i], Type: wal.JobFailed, Time: noon})
		}
		e := Forgotten{IDsBefore: noon.Add(1), Jobs: ids}.Event()
		e.Seq, e.Time = jobs.last+1, noon
		b.StartTimer()
		if gone, err := jobs.Forget(e); err != nil || len(gone) != batch {
			b.Fatal(len(gone), err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*batch), "ns/job")
}
