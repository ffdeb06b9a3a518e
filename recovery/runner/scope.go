package runner

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/jobwal/jobwal/recovery"
)

// What steps are called, and which of them may be called next. Nothing here waits, or writes.

// scopes are an attempt's, by name.
type scopes map[string]*scope

// A scope is steps that come one after the other: the job's own, whose name is "", or a branch's. What was recorded by
// attempts before this one has to be met first. The attempt's mu guards it.
type scope struct {
	name     string
	recorded []recovery.StepRecord // by attempts before this one, in order
	met      int                   // so many of them were called again
	counts   map[string]int        // how often a name was met or recorded by this attempt
	running  *call                 // nil: none
}

// A call is a step under way.
type call struct {
	jobID    string
	scope    *scope
	name     string              // without scope and number
	record   recovery.StepRecord // with its full name
	replayed bool                // it was recorded by an attempt before this one
}

// recordedScopes sorts what is recorded by scopes.
func recordedScopes(done []recovery.StepRecord) scopes {
	if len(done) == 0 {
		return nil // most jobs have no steps
	}
	all := make(scopes)
	for _, r := range done {
		name, _ := split(r.Name)
		s := all.at(name)
		s.recorded = append(s.recorded, r)
	}
	return all
}

func (all scopes) at(name string) *scope {
	s := all[name]
	if s == nil {
		s = &scope{name: name, counts: make(map[string]int)}
		all[name] = s
	}
	return s
}

// underWay is about a step that still runs; nil: there is none.
func (all scopes) underWay() error {
	for _, s := range all {
		if s.running != nil {
			return s.running.failed("it was still running when the work returned; it has to wait for all its branches", nil)
		}
	}
	return nil
}

// next is the call of a step by its name: the one that is recorded next, or one that is not recorded yet.
func (s *scope) next(jobID, name string) *call {
	c := &call{jobID: jobID, scope: s, name: name}
	c.record.Name = join(s.name, numbered(name, s.counts[name]+1))
	if s.met < len(s.recorded) && s.recorded[s.met].Name == c.record.Name {
		c.record, c.replayed = s.recorded[s.met], true
	}
	return c
}

// refuses is why a step can't be called now, and why the work as a whole is wrong; nil: it can.
func (s *scope) refuses(c *call) error {
	if s.running != nil {
		return c.failed(fmt.Sprintf("in parallel with %q: give each its Branch", s.running.record.Name), nil)
	}
	if s.met < len(s.recorded) && !c.replayed {
		_, called := split(c.record.Name)
		return s.orderError(c.jobID, called)
	}
	return nil
}

// orderError is about the step that is recorded next.
func (s *scope) orderError(jobID, called string) *OrderError {
	_, recorded := split(s.recorded[s.met].Name)
	return &OrderError{JobID: jobID, Scope: s.name, Position: s.met + 1, Recorded: recorded, Called: called}
}

// meet: the call's step is recorded, and its name taken.
func (s *scope) meet(c *call) {
	s.counts[c.name]++
	if c.replayed {
		s.met++
	}
}

func (c *call) failed(reason string, err error) error {
	return &StepError{JobID: c.jobID, Step: c.record.Name, Reason: reason, Err: err}
}

// maxName is the most bytes of a step's full name, as in package recovery.
const maxName = 256

// join is a name in a scope.
func join(scope, name string) string {
	if scope == "" {
		return name
	}
	return scope + "/" + name
}

// split undoes join.
func split(full string) (scope, name string) {
	i := strings.LastIndexByte(full, '/')
	return full[:max(i, 0)], full[i+1:]
}

// numbered is the n-th of a name, from 1.
func numbered(name string, n int) string {
	if n == 1 {
		return name
	}
	return fmt.Sprintf("%s#%d", name, n)
}

// refusedName is what is wrong with the name of a step or a branch; "": nothing.
func refusedName(name string) string {
	switch {
	case name == "":
		return "empty"
	case !utf8.ValidString(name):
		return "not valid UTF-8"
	case strings.ContainsAny(name, "/#"):
		return "not possible: it has a '/' or a '#', which tell branches and repeated steps apart"
	case strings.ContainsFunc(name, unicode.IsControl):
		return "not possible: it has a control character"
	}
	return ""
}

// refuses is why a step of that name can't be called in the place, whatever is recorded; nil: it can.
func (p place) refuses(name string) error {
	if p.bad != nil {
		return p.bad
	}
	reason := refusedName(name)
	switch {
	case reason != "":
		reason = "its name is " + reason
	case p.inside != "":
		reason = fmt.Sprintf("called inside step %q, where there are no steps", p.inside)
	default:
		return nil
	}
	return &StepError{JobID: p.attempt.job.ID, Step: join(p.scope, name), Reason: reason}
}

// marshal is json.Marshal without its rewriting of <, > and &.
func marshal(v any) (json.RawMessage, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}

// unmarshal leaves v alone where nothing is recorded.
func unmarshal(raw json.RawMessage, v any) error {
	if len(raw) == 0 {
		return nil
	}
	return json.Unmarshal(raw, v)
}
