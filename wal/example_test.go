package wal_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"log"
	"os"
	"strings"

	"github.com/jobwal/jobwal/wal"
)

func Example() {
	dir, err := os.MkdirTemp("", "jobwal")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	l, err := wal.Open(dir, wal.Options{})
	if err != nil {
		log.Fatal(err)
	}
	ctx := context.Background()
	submitted, err := l.Append(ctx, wal.Event{Type: wal.JobSubmitted, JobID: "job-1", Capability: "shell", Args: json.RawMessage(`{"run": "ls"}`)})
	if err != nil {
		log.Fatal(err)
	}
	if _, err := l.Append(ctx, wal.Event{Type: wal.JobStarted, JobID: "job-1", Prev: submitted}); err != nil {
		log.Fatal(err)
	}
	for e, err := range l.Events(1) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(e.Seq, e.Prev, e.Type, e.JobID, string(e.Args))
	}
	if err := l.Close(); err != nil {
		log.Fatal(err)
	}
	// Output:
	// 1 0 job_submitted job-1 {"run":"ls"}
	// 2 1 job_started job-1
}

func ExampleOpen() {
	dir, err := os.MkdirTemp("", "jobwal")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	for range 2 {
		l, err := wal.Open(dir, wal.Options{})
		if err != nil {
			log.Fatal(err)
		}
		found := l.Report()
		fmt.Printf("created %v, epoch %d, last seq %d, clean %v, torn bytes %d\n",
			found.Created, found.Epoch, found.LastSeq, found.Clean, found.TornBytes())
		if _, err := l.Append(context.Background(), wal.Event{Type: wal.JobSubmitted, JobID: "job-1"}); err != nil {
			log.Fatal(err)
		}
		if _, err := wal.Open(dir, wal.Options{}); errors.Is(err, wal.ErrLocked) {
			fmt.Println("one writer at a time")
		}
		if err := l.Close(); err != nil {
			log.Fatal(err)
		}
	}
	// Output:
	// created true, epoch 1, last seq 0, clean false, torn bytes 0
	// one writer at a time
	// created false, epoch 2, last seq 1, clean true, torn bytes 0
	// one writer at a time
}

// Several events in one Append are written together: all of them are there after a crash, or none. Within one Append
// the log links a job's events itself.
func ExampleLog_Append() {
	dir, err := os.MkdirTemp("", "jobwal")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	l, err := wal.Open(dir, wal.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()

	first, err := l.Append(context.Background(),
		wal.Event{Type: wal.JobSubmitted, JobID: "job-1"},
		wal.Event{Type: wal.JobSubmitted, JobID: "job-2"},
		wal.Event{Type: wal.JobValidated, JobID: "job-1"})
	fmt.Println(first, err)
	last, err := l.At(3)
	fmt.Println(last.JobID, last.Type, last.Prev, err)

	_, err = l.Append(context.Background(), wal.Event{Type: wal.JobSubmitted, JobID: "job\n3"})
	var invalid *wal.InvalidError
	fmt.Println(errors.As(err, &invalid), err)
	_, err = l.Append(context.Background(), wal.Event{Type: wal.JobSubmitted, JobID: "job-3", Args: json.RawMessage(`{"a":1,"a":2}`)})
	fmt.Println(err)
	// Output:
	// 1 <nil>
	// job-1 job_validated 1 <nil>
	// true wal: invalid JobID: control character U+000A
	// wal: invalid Args: not strict JSON at byte 7: duplicate name "a"
}

func ExampleLog_Follow() {
	dir, err := os.MkdirTemp("", "jobwal")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	l, err := wal.Open(dir, wal.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer l.Close()

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	next := func(id string) {
		if _, err := l.Append(ctx, wal.Event{Type: wal.JobSubmitted, JobID: id}); err != nil {
			log.Fatal(err)
		}
	}
	next("history")
	for e, err := range l.Follow(ctx, 1) {
		if err != nil {
			fmt.Println(err)
			break
		}
		fmt.Println(e.Seq, e.JobID)
		switch e.Seq {
		case 1:
			next("live")
		case 2:
			cancel()
		}
	}
	// Output:
	// 1 history
	// 2 live
	// context canceled
}

// A job's past, newest first, without a look at other jobs' events.
func ExampleLog_Chain() {
	dir, err := os.MkdirTemp("", "jobwal")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	l, err := wal.Open(dir, wal.Options{})
	if err != nil {
		log.Fatal(err)
	}
	heads := make(map[string]uint64) // each job's newest event: its next one's Prev
	for _, e := range []wal.Event{
		{Type: wal.JobSubmitted, JobID: "a"}, {Type: wal.JobSubmitted, JobID: "b"},
		{Type: wal.JobValidated, JobID: "a"}, {Type: wal.JobFailed, JobID: "b"}, {Type: wal.JobStarted, JobID: "a"},
	} {
		e.Prev = heads[e.JobID]
		if heads[e.JobID], err = l.Append(context.Background(), e); err != nil {
			log.Fatal(err)
		}
	}
	for e, err := range l.Chain(heads["a"]) {
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(e.Seq, e.Type)
	}
	if err := l.Close(); err != nil {
		log.Fatal(err)
	}
	// Output:
	// 5 job_started
	// 3 job_validated
	// 1 job_submitted
}

// A look at the end of a log that another process may be writing.
func ExampleTail() {
	dir, err := os.MkdirTemp("", "jobwal")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	l, err := wal.Open(dir, wal.Options{})
	if err != nil {
		log.Fatal(err)
	}
	for i := range 1000 {
		e := wal.Event{Type: wal.JobSubmitted, JobID: fmt.Sprint("job-", i+1), Capability: "shell"}
		if _, err := l.Append(context.Background(), e); err != nil {
			log.Fatal(err)
		}
	}
	if err := l.Close(); err != nil {
		log.Fatal(err)
	}
	events, err := wal.Tail(dir, 3)
	if err != nil {
		log.Fatal(err)
	}
	for _, e := range events {
		fmt.Println(e.Seq, e.Type, e.JobID)
	}
	// Output:
	// 998 job_submitted job-998
	// 999 job_submitted job-999
	// 1000 job_submitted job-1000
}

// The ancestor's log is read line by line; what is wrong with a line is told, and reading goes on.
func ExampleImport() {
	theirs := `{"seq":0,"ts":1715800001,"type":"job_submitted","job_id":"a","capability":"FileRead","output":{"path":"x"}}
{"seq":1,"ts":1715800002,"type":"job_sta{"seq":1,"ts":1715800009,"type":"job_failed","job_id":"a","error":"lost"}
{"seq":2,"ts":1715800010,"type":"job_started","job_id":"b"}
`
	for e, err := range wal.Import(strings.NewReader(theirs)) {
		var complaint *wal.ImportError
		switch {
		case err == nil:
			fmt.Println(e.Seq, e.Prev, e.Time.Unix(), e.Type, e.JobID)
		case errors.As(err, &complaint):
			fmt.Println(complaint, "kept:", complaint.Kept)
		default:
			log.Fatal(err) // the reader's
		}
	}
	// Output:
	// 1 0 1715800001 job_submitted a
	// wal: import: line 2: two lines fused: a torn event, and behind it, at byte 40, the event seq 1 (job_failed of job a) kept: false
	// 2 0 1715800010 job_started b
	// wal: import: line 3: job "b" starts with job_started: its first events are missing kept: true
}

func ExampleVerify() {
	report, err := wal.Verify("testdata/golden/v1")
	fmt.Println(err)
	fmt.Println(report.LogID, report.FirstSeq, report.LastSeq, report.Events, report.Segments, report.Clean)

	dir, err := os.MkdirTemp("", "jobwal")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.CopyFS(dir, os.DirFS("testdata/golden/v1")); err != nil {
		log.Fatal(err)
	}
	path := dir + "/00000000000000000001.jsonl"
	damaged, err := os.ReadFile(path)
	if err != nil {
		log.Fatal(err)
	}
	if err := os.WriteFile(path, bytes.Replace(damaged, []byte("exit status 1"), []byte("exit status 2"), 1), 0o644); err != nil {
		log.Fatal(err)
	}
	report, err = wal.Verify(dir)
	fmt.Println(errors.Is(err, wal.ErrCorrupt), report.Events)
	for _, damage := range report.Damage {
		fmt.Println(damage.Seq, damage.Offset, damage.Reason)
	}
	// Output:
	// <nil>
	// 6a6f6277616c2d676f6c64656e2d7631 1 15 15 2 true
	// true 14
	// 9 1771 checksum mismatch
	// 9 1948 1 events are missing here
}

// One line of a segment and its parts, as the picture in the package's documentation has them.
func Example_line() {
	segment, err := os.ReadFile("testdata/golden/v1/00000000000000000001.jsonl")
	if err != nil {
		log.Fatal(err)
	}
	lines := strings.Split(string(segment), "\n")
	var header struct{ Salt string }
	if err := json.Unmarshal([]byte(lines[0]), &header); err != nil {
		log.Fatal(err)
	}
	line := lines[14] // {"seq":10,…
	from := 0
	part := func(name, upTo string) {
		to := len(line)
		if upTo != "" {
			to = strings.Index(line, upTo)
		}
		fmt.Printf("%-10s %s\n", name, line[from:to])
		from = to
	}
	part("committer", `,"ts":`)
	part("caller", `,"more":`)
	part("group", `,"durable":`)
	part("witness", `,"crc":`)
	summed := line[:from]
	part("checksum", "")

	castagnoli := crc32.MakeTable(crc32.Castagnoli)
	sum := crc32.Update(crc32.Checksum([]byte(header.Salt), castagnoli), castagnoli, []byte(summed))
	fmt.Printf("over the salt %s and all before it: %08x\n", header.Salt, sum)
	// Output:
	// committer  {"seq":10,"prev":6,"epoch":1
	// caller     ,"ts":1715800010,"ns":234567890,"type":"job_rolled_back","job_id":"job-a","error":"undone"
	// group      ,"more":2
	// witness    ,"durable":9
	// checksum   ,"crc":"f1219a4e"}
	// over the salt 00000000000000a1 and all before it: f1219a4e
}
