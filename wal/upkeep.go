package wal

import "context"

// Upkeep is what goes on beside appends for longer than one: a checkpoint, a compaction. There is one at a time. It runs
// in its caller's goroutine, and asks the committer for what that alone may do.

// beginUpkeep waits for the one before it. The context that it returns ends when the log is closed, too; done gives the
// place back.
func (l *Log) beginUpkeep(ctx context.Context) (_ context.Context, done func(), err error) {
	if ctx == nil {
		return nil, nil, invalid("context", "nil")
	}
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	if l.reader != nil {
		return nil, nil, ErrReadOnly
	}
	select {
	case l.upkeep <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	ctx, stop := context.WithCancelCause(ctx)
	done = func() {
		stop(nil)
		<-l.upkeep
	}
	l.mu.Lock()
	err = l.refusedLocked()
	l.stopUpkeep = stop
	l.mu.Unlock()
	if err != nil {
		done()
		return nil, nil, err
	}
	return ctx, done, nil
}

// awaitUpkeep is for Close: the lock is not given back while someone writes in the directory.
func (l *Log) awaitUpkeep() (done func()) {
	l.upkeep <- struct{}{}
	return func() { <-l.upkeep }
}

// stopped is why an upkeep is to end: ErrClosed, or its caller's own reason.
func stopped(ctx context.Context) error {
	if ctx.Err() == nil {
		return nil
	}
	return context.Cause(ctx)
}
