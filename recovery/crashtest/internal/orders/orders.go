// Package orders is what crashtest.Certify and a program that it certifies say to each other, past the program's own
// arguments: one environment variable in, one file of operations out.
package orders

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
)

// Variable is the environment variable that holds the orders, as JSON.
const Variable = "JOBWAL_CERTIFY"

// Orders are for one life of the program.
type Orders struct {
	Ledger string `json:"ledger"` // the file that the ledger appends to
	Trace  string `json:"trace"`  // the file in which each operation is noted before it happens
	Life   int    `json:"life"`   // which start of the program this is, from 1
	Kill   int    `json:"kill"`   // die at this operation, from 1; 0: live
	After  bool   `json:"after"`  // of an operation that is to be died at: when it is done and has not returned
	Sync   bool   `json:"sync"`   // sync for real
}

// Ledger, Idle and Killed are words in a trace, besides the kinds of file operations.
const (
	Ledger = "ledger"
	Idle   = "idle"
	Killed = "killed"
)

// Environ returns the orders as one entry of an environment.
func (o Orders) Environ() string {
	text, _ := json.Marshal(o) // strings and numbers
	return Variable + "=" + string(text)
}

// FromEnviron returns the orders of this process; false when there are none.
func FromEnviron() (o Orders, ok bool) {
	text, ok := os.LookupEnv(Variable)
	if !ok {
		return o, false
	}
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		panic(fmt.Sprintf("crashtest: %s in the environment is %q, and not from Certify: %v", Variable, text, err))
	}
	return o, true
}

// A Trace is what a life did, in order.
type Trace struct {
	Ops    []string // each operation that is numbered, the first one at 0: "write 00000000000000000001.jsonl"
	Killed bool     // it died as it was ordered to
}

// ReadTrace reads a trace; one that was never begun is empty.
func ReadTrace(path string) (t Trace, err error) {
	data, err := os.ReadFile(path)
	if os.IsNotExist(err) {
		return t, nil
	}
	for line := range strings.Lines(string(data)) {
		switch line = strings.TrimSuffix(line, "\n"); line {
		case Killed:
			t.Killed = true
		case Idle:
		default:
			t.Ops = append(t.Ops, line)
		}
	}
	return t, err
}

// Files counts the operations that are not the ledger's.
func (t Trace) Files() (n int) {
	for _, op := range t.Ops {
		if !strings.HasPrefix(op, Ledger+" ") {
			n++
		}
	}
	return n
}
