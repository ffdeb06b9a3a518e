package runner

import (
	"cmp"
	"errors"
	"math"
	"math/rand/v2"
	"time"
)

// A RetryPolicy decides whether a job whose attempt has ended with err has another one, and how long it waits before. attempt
// is how often its work has begun, over all epochs: 1 for the first. It is called from several goroutines at once.
//
// It is not asked about an error that is marked [Permanent], about a job that was cancelled, about steps out of order, nor,
// of a capability that is Irreversible or Unknown, about an error that is not marked [Transient].
type RetryPolicy interface {
	Retry(err error, attempt int) (wait time.Duration, again bool)
}

// RetryFunc makes a function a [RetryPolicy].
type RetryFunc func(err error, attempt int) (time.Duration, bool)

// Retry calls the function.
func (f RetryFunc) Retry(err error, attempt int) (time.Duration, bool) { return f(err, attempt) }

// NoRetry never tries again.
var NoRetry RetryPolicy = RetryFunc(func(error, int) (time.Duration, bool) { return 0, false })

// Backoff tries again after any error, and waits at random, so that many jobs which failed together do not come back
// together: between nothing and First, then First × Factor and so on, up to Most. The zero value has the defaults.
type Backoff struct {
	First    time.Duration // default 100 ms
	Most     time.Duration // default 30 s
	Factor   float64       // default 2; below 1: 1
	Attempts int           // so many attempts in all, the first one too. Default 5; negative: no limit
}

// Retry implements [RetryPolicy].
func (b Backoff) Retry(_ error, attempt int) (time.Duration, bool) {
	if most := cmp.Or(b.Attempts, 5); most >= 0 && attempt >= most {
		return 0, false
	}
	return rand.N(b.longest(attempt) + 1), true
}

// longest is the upper bound of the wait after so many attempts.
func (b Backoff) longest(attempt int) time.Duration {
	first, most := cmp.Or(b.First, 100*time.Millisecond), cmp.Or(b.Most, 30*time.Second)
	long := float64(first) * math.Pow(max(1, cmp.Or(b.Factor, 2)), float64(attempt-1))
	if !(long < float64(most)) { // infinity, too
		return max(0, min(most, math.MaxInt64-1))
	}
	return max(0, time.Duration(long))
}

// OnIs is p for errors that are target, by errors.Is, and no retry for others.
func OnIs(target error, p RetryPolicy) RetryPolicy {
	return on(func(err error) bool { return errors.Is(err, target) }, p)
}

// OnError is p for errors that are of type E, by errors.As, and no retry for others.
func OnError[E error](p RetryPolicy) RetryPolicy {
	return on(func(err error) bool { var e E; return errors.As(err, &e) }, p)
}

func on(applies func(error) bool, p RetryPolicy) RetryPolicy {
	return RetryFunc(func(err error, attempt int) (time.Duration, bool) {
		if !applies(err) {
			return 0, false
		}
		return p.Retry(err, attempt)
	})
}

// FirstRetry tries again as the first of these policies says that would.
func FirstRetry(policies ...RetryPolicy) RetryPolicy {
	return RetryFunc(func(err error, attempt int) (time.Duration, bool) {
		for _, p := range policies {
			if wait, again := p.Retry(err, attempt); again {
				return wait, true
			}
		}
		return 0, false
	})
}

// DefaultRetry is what a capability has whose Settings have no Retry: errors marked [Transient] are tried again, by the
// default [Backoff].
var DefaultRetry = OnIs(ErrTransient, Backoff{})

// The marks that an error can have.
var (
	ErrTransient = errors.New("transient")
	ErrPermanent = errors.New("permanent")
)

// Transient marks an error: what was to be done did not happen, and may be tried again. It says so even of a capability that
// is Irreversible: mark nothing of which you are not sure, a timeout least of all. The text is that of err. nil stays nil.
func Transient(err error) error { return mark(err, ErrTransient) }

// Permanent marks an error: trying again is of no use, whatever a policy says. The text is that of err. nil stays nil.
func Permanent(err error) error { return mark(err, ErrPermanent) }

func mark(err, as error) error {
	if err == nil {
		return nil
	}
	return &marked{err, as}
}

type marked struct{ err, as error }

func (m *marked) Error() string   { return m.err.Error() }
func (m *marked) Unwrap() []error { return []error{m.err, m.as} }

// mayRetry tells whether a policy is asked at all. again is what running the capability twice means.
func mayRetry(err error, twice bool) bool {
	return !errors.Is(err, ErrPermanent) && (twice || errors.Is(err, ErrTransient))
}
