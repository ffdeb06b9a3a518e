package recovery

import (
	"context"
	"hash/maphash"
	"slices"
	"sync"
)

// jobLocks is one lock per job that somebody is at work on. Two commands on one job run one after the other; commands
// on different jobs never wait for each other.
type jobLocks struct {
	seed   maphash.Seed
	shards [64]lockShard
}

type lockShard struct {
	mu   sync.Mutex // guards held and the refs in it
	held map[string]*jobLock
}

type jobLock struct {
	token chan struct{} // holds one value while the job is locked
	refs  int           // who holds it or waits for it
}

func newJobLocks() *jobLocks {
	l := &jobLocks{seed: maphash.MakeSeed()}
	for i := range l.shards {
		l.shards[i].held = make(map[string]*jobLock)
	}
	return l
}

func (l *jobLocks) shard(id string) *lockShard {
	return &l.shards[maphash.String(l.seed, id)%uint64(len(l.shards))]
}

// lock locks the jobs of a group, each once and in one order for all, so that two groups can't wait for each other. The
// error is ctx's, and nothing is locked then.
func (l *jobLocks) lock(ctx context.Context, ids []string) (unlock func(), err error) {
	ids = slices.Compact(slices.Sorted(slices.Values(ids)))
	for i, id := range ids {
		if err := l.lockOne(ctx, id); err != nil {
			l.unlock(ids[:i])
			return nil, err
		}
	}
	return func() { l.unlock(ids) }, nil
}

func (l *jobLocks) lockOne(ctx context.Context, id string) error {
	s := l.shard(id)
	s.mu.Lock()
	lock := s.held[id]
	if lock == nil {
		lock = &jobLock{token: make(chan struct{}, 1)}
		s.held[id] = lock
	}
	lock.refs++
	s.mu.Unlock()
	select {
	case lock.token <- struct{}{}:
		return nil
	case <-ctx.Done():
		s.drop(id, lock)
		return ctx.Err()
	}
}

func (l *jobLocks) unlock(ids []string) {
	for _, id := range ids {
		s := l.shard(id)
		s.mu.Lock()
		lock := s.held[id]
		s.mu.Unlock()
		<-lock.token
		s.drop(id, lock)
	}
}

func (s *lockShard) drop(id string, lock *jobLock) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if lock.refs--; lock.refs == 0 {
		delete(s.held, id)
	}
}
