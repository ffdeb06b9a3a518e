package crashfs

import (
	"errors"
	"io"
	"io/fs"
	"slices"
	"sync"

	"github.com/jobwal/jobwal/wal"
)

// ErrCrashed is what every operation returns from the crash point of a schedule on, or from Stop on, wrapped in an
// *fs.PathError.
var ErrCrashed = errors.New("crashfs: crashed")

var _ wal.FS = (*Faulty)(nil)

// Faulty is a file system in which operations go wrong as a [Schedule] says. It is safe for concurrent use.
//
// Operations that change the disk are numbered from 1 as they begin; see Kind.Changes. Ops lists them under their
// number less one, so "crash 17" is the crash before Ops()[16] does anything.
type Faulty struct {
	base   wal.FS
	record recorder
	frozen chan Op

	mu       sync.Mutex // guards the fields below
	schedule Schedule
	seen     []int // per fault, the operations that fitted
	crashed  bool
	stopAt   int             // the operation that the crash stands in place of, by CrashAfter; 0: none
	gates    []chan struct{} // of the operations that are frozen
	locks    map[*heldLock]bool

	disk disk
}

// Inject wraps a file system. It panics if the schedule is not one that ParseSchedule could have returned.
func Inject(base wal.FS, schedule Schedule) *Faulty {
	x := &Faulty{base: base, schedule: slices.Clone(schedule), seen: make([]int, len(schedule)),
		frozen: make(chan Op, 1024), locks: make(map[*heldLock]bool)}
	x.disk.init(base)
	for _, f := range schedule {
		if err := f.valid(); err != nil {
			panic("crashfs: schedule: " + f.String() + ": " + err.Error())
		}
		if f.Op == OpDisk {
			x.disk.set(f.N)
		}
	}
	return x
}

// Schedule returns the schedule that was injected.
func (x *Faulty) Schedule() Schedule { return slices.Clone(x.schedule) }

// Unmet returns the faults of the schedule that no operation has met so far: after a test that was to meet them, their
// pattern or their number is wrong. Of OpDisk, which is no operation, it says nothing.
func (x *Faulty) Unmet() (unmet Schedule) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for i, f := range x.schedule {
		switch f.Op {
		case OpDisk:
		case OpCrash:
			if !x.crashed {
				unmet = append(unmet, f)
			}
		default:
			if x.seen[i] < max(f.Nth, 1) {
				unmet = append(unmet, f)
			}
		}
	}
	return unmet
}

// Ops returns the operations so far that change the disk or put a change on stable storage, those that failed too.
func (x *Faulty) Ops() []Op { return x.record.list() }

// Count returns how many operations of the given kinds there were; of all that Ops lists, when no kind is given.
func (x *Faulty) Count(kinds ...Kind) int { return x.record.count(kinds) }

// SetDisk changes the room of the disk while it is in use: to more, or to less. A negative number means no limit.
func (x *Faulty) SetDisk(bytes int64) { x.disk.set(bytes) }

// Crashed reports whether the crash point was reached, or Stop called.
func (x *Faulty) Crashed() bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.crashed
}

// Stop is a crash now: every operation from here on fails with ErrCrashed, and so do those that are frozen. Locks are
// freed, as those of a dead process are.
func (x *Faulty) Stop() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.stopLocked()
}

// CrashAfter is a crash soon: n more operations happen that change the disk; the one behind them, and all after it, fail
// with ErrCrashed. A second call takes the place of the first, and a negative n takes it back. It is "crash" of a Schedule
// for programs that go on living, where the number of operations so far is not known before.
func (x *Faulty) CrashAfter(n int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.stopAt = 0
	if n >= 0 {
		x.stopAt = x.record.count(nil) + n + 1
	}
}

func (x *Faulty) stopLocked() {
	x.crashed = true
	for l := range x.locks {
		_ = l.base.Close() // whoever closes it later is told of the crash
	}
	clear(x.locks)
	x.releaseLocked()
}

// Frozen receives each operation that a fault froze, at the moment it does.
func (x *Faulty) Frozen() <-chan Op { return x.frozen }

// Release lets the operations go on that are frozen now. Later ones freeze again, if the schedule says so.
func (x *Faulty) Release() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.releaseLocked()
}

func (x *Faulty) releaseLocked() {
	for _, gate := range x.gates {
		close(gate)
	}
	x.gates = nil
}

// do counts and logs an operation, and runs it unless the crash, or an error of the schedule, stands in its place. Run
// gets the fault that falls on it, if one does, and sees to what only it can: a failed sync, a short write, a flip.
func (x *Faulty) do(op Op, run func(f Fault) error) error {
	place, f, gate, err := x.begin(op)
	if gate != nil {
		<-gate
		err = x.alive()
	}
	switch {
	case err != nil:
		err = pathError(op.Kind, op.Path, err)
	case f.Do == Error && op.Kind != OpSync && op.Kind != OpSyncDir && op.Kind != OpClose:
		err = pathError(op.Kind, op.Path, f.Err)
	default:
		err = run(f)
	}
	x.record.result(place, err)
	return err
}

// begin decides what happens to an operation.
func (x *Faulty) begin(op Op) (place int, f Fault, gate chan struct{}, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.crashed {
		return -1, Fault{}, nil, ErrCrashed
	}
	place = x.record.add(op)
	if x.crashesAtLocked(place + 1) {
		x.stopLocked()
		return place, Fault{}, nil, ErrCrashed
	}
	f = x.hitLocked(op)
	if f.Do == Freeze {
		gate = make(chan struct{})
		x.gates = append(x.gates, gate)
		select {
		case x.frozen <- op:
		default: // nobody listens
		}
	}
	return place, f, gate, nil
}

func (x *Faulty) crashesAtLocked(number int) bool {
	if number == 0 { // it only looks
		return false
	}
	return number == x.stopAt || slices.ContainsFunc(x.schedule, func(f Fault) bool { return f.Op == OpCrash && f.N == int64(number) })
}

// hitLocked returns the first fault that falls on the operation. All count it.
func (x *Faulty) hitLocked(op Op) (hit Fault) {
	for i, f := range x.schedule {
		if f.Op != op.Kind && f.Op != OpAny || !op.touches(f.Path) {
			continue
		}
		x.seen[i]++
		falls := f.Nth == 0 || x.seen[i] == f.Nth || f.Onward && x.seen[i] > f.Nth
		if falls && hit.Do == "" {
			hit = f
		}
	}
	return hit
}

func (x *Faulty) alive() error {
	if x.Crashed() {
		return ErrCrashed
	}
	return nil
}

// OpenFile: see wal.FS.
func (x *Faulty) OpenFile(name string, flag int, perm fs.FileMode) (wal.File, error) {
	f := &faultyFile{fs: x}
	err := x.do(Op{Kind: openKind(flag), Path: slashed(name)}, func(Fault) (err error) {
		f.base, f.room, err = x.disk.open(name, flag, perm)
		return err
	})
	if err != nil {
		return nil, err
	}
	return f, nil
}

// ReadDir: see wal.FS.
func (x *Faulty) ReadDir(name string) (list []fs.DirEntry, err error) {
	err = x.do(Op{Kind: OpReadDir, Path: slashed(name)}, func(Fault) error {
		list, err = x.base.ReadDir(name)
		return err
	})
	return list, err
}

// Mkdir: see wal.FS.
func (x *Faulty) Mkdir(name string, perm fs.FileMode) error {
	return x.do(Op{Kind: OpMkdir, Path: slashed(name)}, func(Fault) error { return x.base.Mkdir(name, perm) })
}

// Rename: see wal.FS.
func (x *Faulty) Rename(oldname, newname string) error {
	op := Op{Kind: OpRename, Path: slashed(oldname), To: slashed(newname)}
	return x.do(op, func(Fault) error { return x.disk.rename(oldname, newname) })
}

// Remove: see wal.FS.
func (x *Faulty) Remove(name string) error {
	return x.do(Op{Kind: OpRemove, Path: slashed(name)}, func(Fault) error {
		return x.disk.drop(name, func() error { return x.base.Remove(name) })
	})
}

// SyncDir: see wal.FS.
func (x *Faulty) SyncDir(name string) error {
	return x.do(Op{Kind: OpSyncDir, Path: slashed(name)}, func(f Fault) error {
		if f.Do != Error {
			return x.base.SyncDir(name)
		}
		if f.Lie {
			x.loseUnsyncedDir(name)
		}
		return pathError(OpSyncDir, name, f.Err)
	})
}

// A file system that can lie about a failed sync is FS, or a Faulty around one. On others the sync just fails.
func (x *Faulty) loseUnsyncedDir(name string) {
	if l, ok := x.base.(interface{ loseUnsyncedDir(string) }); ok {
		l.loseUnsyncedDir(name)
	}
}

// Lock: see wal.FS. The lock is freed by the crash.
func (x *Faulty) Lock(dir string) (io.Closer, error) {
	l := &heldLock{fs: x}
	err := x.do(Op{Kind: OpLock, Path: slashed(dir)}, func(Fault) (err error) {
		l.base, err = x.base.Lock(dir)
		return err
	})
	if err != nil {
		return nil, err
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.crashed {
		return nil, errors.Join(pathError(OpLock, dir, ErrCrashed), l.base.Close())
	}
	x.locks[l] = true
	return l, nil
}

type heldLock struct {
	fs   *Faulty
	base io.Closer
}

func (l *heldLock) Close() error {
	l.fs.mu.Lock()
	defer l.fs.mu.Unlock()
	if l.fs.crashed {
		return ErrCrashed
	}
	delete(l.fs.locks, l)
	return l.base.Close()
}
