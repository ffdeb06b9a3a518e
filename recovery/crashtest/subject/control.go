package subject

import (
	"fmt"
	"os"
	"sync"

	"github.com/jobwal/jobwal/recovery/crashtest/internal/orders"
)

// control numbers what this process does to its files and its ledger, and ends the process where it was ordered to.
type control struct {
	orders.Orders

	mu      sync.Mutex // guards the fields below; held while the process dies, so that nothing else begins
	n       int        // operations so far
	trace   *os.File
	pending map[string]map[string]bool // by file, the events in it that no sync has covered yet
	renamed map[string]string          // the names of files that were opened under another
}

// current is this process's control, nil when nobody certifies it.
var current = sync.OnceValue(func() *control {
	o, ok := orders.FromEnviron()
	if !ok {
		return nil
	}
	return newControl(o)
})

func newControl(o orders.Orders) *control {
	trace, err := os.OpenFile(o.Trace, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		panic(fmt.Sprintf("crashtest: no trace can be kept: %v", err))
	}
	return &control{Orders: o, trace: trace, pending: make(map[string]map[string]bool), renamed: make(map[string]string)}
}

// do carries out one operation, or dies before or after it.
func (c *control) do(what string, op func() error) error {
	n := c.begin(what)
	err := op()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.dieLocked(n, true)
	return err
}

func (c *control) begin(what string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.beginLocked(what)
}

func (c *control) beginLocked(what string) int {
	c.n++
	c.note(what)
	c.dieLocked(c.n, false)
	return c.n
}

// dieLocked ends the process, if this is the place, with SIGKILL or what the system has in its place.
func (c *control) dieLocked(n int, after bool) {
	if n != c.Kill || after != c.After {
		return
	}
	c.note(orders.Killed)
	self, err := os.FindProcess(os.Getpid())
	if err == nil {
		err = self.Kill()
	}
	if err != nil {
		panic(fmt.Sprintf("crashtest: a process that cannot kill itself: %v", err))
	}
	select {} // the signal is on its way
}

// note writes a line of the trace, in one piece.
func (c *control) note(what string) {
	if _, err := c.trace.WriteString(what + "\n"); err != nil {
		panic(fmt.Sprintf("crashtest: no trace can be kept: %v", err))
	}
}
