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
	mu    sync.Mutex // guards the fields below and what lies behind them
	held  map[string]*jobLock
	spare *jobLock // to be used again; nil when there is none
}

// A jobLock is there while somebody holds it. A channel is made only for those who have to wait.
type jobLock struct {
	waiting []chan struct{} // closed, in order, to hand the lock on
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

// lock locks the jobs of a group, each once and in one order for all, so that two groups can't wait for each other, and
// returns what unlock wants: ids, which it takes over. The error is ctx's, and nothing is locked then.
func (l *jobLocks) lock(ctx context.Context, ids []string) ([]string, error) {
	if len(ids) > 1 {
		slices.Sort(ids)
		ids = slices.Compact(ids)
	}
	for i, id := range ids {
		if err := l.shard(id).lock(ctx, id); err != nil {
			l.unlock(ids[:i])
			return nil, err
		}
	}
	return ids, nil
}

func (l *jobLocks) unlock(ids []string) {
	for _, id := range ids {
		l.shard(id).unlock(id)
	}
}

func (s *lockShard) lock(ctx context.Context, id string) error {
	s.mu.Lock()
	lock := s.held[id]
	if lock == nil {
		s.held[id] = s.spareLocked()
		s.mu.Unlock()
		return nil
	}
	turn := make(chan struct{})
	lock.waiting = append(lock.waiting, turn)
	s.mu.Unlock()
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
		s.leave(id, turn)
		return ctx.Err()
	}
}

func (s *lockShard) spareLocked() *jobLock {
	lock := s.spare
	s.spare = nil
	if lock == nil {
		lock = new(jobLock)
	}
	return lock
}

// leave gives up waiting; or the lock, if it was handed over just now.
func (s *lockShard) leave(id string, turn chan struct{}) {
	s.mu.Lock()
	lock := s.held[id]
	i := slices.Index(lock.waiting, turn)
	if i >= 0 {
		lock.waiting = slices.Delete(lock.waiting, i, i+1)
	}
	s.mu.Unlock()
	if i < 0 {
		s.unlock(id)
	}
}

// unlock hands the lock to whoever waits longest, or puts it away.
func (s *lockShard) unlock(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	lock := s.held[id]
	if len(lock.waiting) > 0 {
		close(lock.waiting[0])
		lock.waiting = slices.Delete(lock.waiting, 0, 1)
		return
	}
	delete(s.held, id)
	s.spare = lock
}
