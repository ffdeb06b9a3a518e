package wal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
)

// A Sealed is a segment that is about to go.
type Sealed struct {
	Path        string
	First, Last uint64 // of the events in it
	Bytes       int64

	fs FS
}

// Open opens the segment for reading, through the log's file system. It is to be closed.
func (s Sealed) Open() (io.ReadCloser, error) {
	f, err := s.fs.OpenFile(s.Path, os.O_RDONLY, 0)
	if err != nil {
		return nil, wrapped(err)
	}
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(f, 0, s.Bytes), f}, nil
}

// CompactOptions say what Compact does with what goes.
type CompactOptions struct {
	// Keep tells which of the events that would go are still wanted. They stay to be read by At and Carried. It is called
	// in the order of seqs, in the goroutine of Compact, for each event at least once; what the event's payloads point to
	// is valid during the call only. Default: none.
	Keep func(Event) bool
	// Archive, if set, gets each segment before it goes, oldest first. An error keeps that segment and those behind it;
	// those before it go all the same.
	Archive func(context.Context, Sealed) error
	// DryRun: change nothing, call Archive for nothing, and return what would have been returned.
	DryRun bool
}

// Compacted is what a compaction did.
type Compacted struct {
	FirstSeq     uint64 // of the log, afterwards
	Segments     int    // that went
	Bytes        int64  // that went: of the segments, and of the carried file before this one
	Carried      uint64 // events below FirstSeq that were kept
	CarriedBytes int64  // of the file that they are in
}

// Compact removes the oldest segments as far as every event in them is older than before, and keeps those of their events
// that are still wanted in a file of their own, with those that earlier compactions kept and that are still wanted. Only
// whole segments go: the active one is sealed first, if all of it can. Where none can go, nothing is done. It runs beside appends, and beside no
// other Compact or SaveCheckpoint of this log, which it waits for. Memory is bounded, whatever is kept.
//
// Each step is on stable storage before the next: what is archived, the new carried file, the floor that names it; then
// the segments go, then the old carried file. After a crash in the middle the next Open finishes it, or has the old set.
//
// Any error before the floor leaves the old set as it was and the log open: [ErrNoSpace] for a full disk, ctx's, the
// disk's, [ErrCorrupt] for damage in what was to be read, Archive's. Only a failed sync of the segment or the directory is
// [ErrFailed]. An error behind the floor comes with what was done; what could not be removed, the next Open removes.
func (l *Log) Compact(ctx context.Context, before uint64, opts CompactOptions) (Compacted, error) {
	ctx, done, err := l.beginUpkeep(ctx)
	if err != nil {
		return Compacted{}, err
	}
	defer done()
	if !opts.DryRun {
		if err := l.commit(context.Background(), newTask(func() error { return l.sealBelow(before) })); err != nil {
			return Compacted{FirstSeq: l.FirstSeq()}, wrapped(err)
		}
	}
	p := l.plan(before, opts.DryRun)
	var kept error
	if opts.Archive != nil && !opts.DryRun {
		kept = p.archive(ctx, opts.Archive)
	}
	if len(p.gone) == 0 {
		return Compacted{FirstSeq: l.FirstSeq()}, kept
	}
	c, err := l.compact(ctx, p, opts)
	if err = wrapped(err); kept != nil {
		err = errors.Join(kept, err)
	}
	return c, err
}

// sealBelow goes on in a new segment if there are events in the active one and all of them are older than before: what is
// read at every Open is then as small as what is left. For the committer.
func (l *Log) sealBelow(before uint64) error {
	if !l.activeBelow(before) {
		return nil
	}
	return l.rotate()
}

// activeBelow: for the committer, or who holds mu.
func (l *Log) activeBelow(before uint64) bool {
	active := l.segments[len(l.segments)-1]
	return active.first <= l.last && l.last < before
}

// plan is what a compaction is to do.
type plan struct {
	fs    FS
	gone  []segment
	next  uint64 // the first seq behind them, which is the new floor
	old   uint64 // the floor before, and
	count uint64 // how many events its carried file has
}

// plan finds the segments that can go. They stay the oldest ones whatever is appended meanwhile. A dry run counts the active
// one as it would be sealed.
func (l *Log) plan(before uint64, dry bool) *plan {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := &plan{fs: l.fs, old: l.floor, count: l.carried}
	n := (&survey{segments: l.segments, floor: before}).dropped()
	if n > 0 {
		p.gone, p.next = slices.Clone(l.segments[:n]), l.segments[n].first
	}
	if dry && n == len(l.segments)-1 && l.activeBelow(before) {
		active := l.segments[n]
		active.size += int64(len(appendMark(nil, mark{Kind: markSealed, Last: l.last, Durable: l.last}, active.seed)))
		p.gone, p.next = append(p.gone, active), l.last+1
	}
	return p
}

// archive hands over what is to go, and takes out of the plan what was not taken.
func (p *plan) archive(ctx context.Context, archive func(context.Context, Sealed) error) error {
	for i, seg := range p.gone {
		end := p.next
		if i+1 < len(p.gone) {
			end = p.gone[i+1].first
		}
		err := stopped(ctx)
		if err == nil {
			err = archive(ctx, Sealed{Path: seg.path, First: seg.first, Last: end - 1, Bytes: seg.size, fs: p.fs})
		}
		if err != nil {
			p.gone, p.next = p.gone[:i], seg.first
			return fmt.Errorf("wal: %s was not archived, and stays: %w", filepath.Base(seg.path), err)
		}
	}
	return nil
}

func (l *Log) compact(ctx context.Context, p *plan, opts CompactOptions) (Compacted, error) {
	bytes, err := p.bytes(l.dir)
	if err != nil {
		return Compacted{FirstSeq: l.FirstSeq()}, err
	}
	k := keeper{l: l, ctx: ctx, p: p, opts: opts}
	defer k.giveUp() // also when Keep panics
	if err = k.run(); err == nil && !opts.DryRun {
		err = k.commit()
	}
	if err != nil {
		return Compacted{FirstSeq: l.FirstSeq()}, err
	}
	c := Compacted{FirstSeq: p.next, Segments: len(p.gone), Bytes: bytes}
	if k.w != nil {
		c.Carried, c.CarriedBytes = k.w.count, k.w.at
	}
	if opts.DryRun {
		return c, nil
	}
	return c, l.removeBelow(p)
}

// bytes adds up what is to go.
func (p *plan) bytes(dir string) (n int64, err error) {
	for _, seg := range p.gone {
		n += seg.size
	}
	if p.count == 0 {
		return n, nil
	}
	old, err := sizeOf(p.fs, filepath.Join(dir, sideName(carriedPrefix, p.old)))
	if isNotExist(err) {
		return n, nil
	}
	return n + old, err
}

// raiseFloor puts the new carried file in place, and then the floor that names it. For the committer.
func (l *Log) raiseFloor(p *plan, w *carriedWriter) error {
	if err := l.held(); err != nil {
		return err
	}
	var carried uint64
	if w != nil {
		carried = w.count
		// crash C16: the new carried file has its name, and no floor names it. The next Open sweeps it.
		if err := l.place(w.sideWriter); err != nil {
			return err
		}
	}
	if err := l.makeRoom(maxHeader); err != nil {
		return err
	}
	if err := l.syncActive(); err != nil {
		return err
	}
	if err := l.putMark(mark{Kind: markFloor, Floor: p.next, Carried: carried, Durable: l.last}, true); err != nil {
		return err
	}
	l.mu.Lock()
	l.floor, l.carried = p.next, carried
	l.segments = append([]segment(nil), l.segments[len(p.gone):]...)
	l.mu.Unlock()
	return nil
}

// removeBelow removes what the floor has made useless.
func (l *Log) removeBelow(p *plan) error {
	var gone []string
	for _, seg := range p.gone {
		gone = append(gone, seg.path)
	}
	if p.count > 0 {
		gone = append(gone, filepath.Join(l.dir, sideName(carriedPrefix, p.old)))
	}
	// crash C10: the floor is durable, and any part of what lies below it may still be there. The next Open sweeps it.
	// crash C17: so is the old carried file, which the segments that went do not need.
	return l.removeUseless(gone)
}

// keeper copies the lines that are to be kept.
type keeper struct {
	l    *Log
	ctx  context.Context
	p    *plan
	opts CompactOptions
	w    *carriedWriter // nil while nothing was kept
	done bool           // the floor names what was written, or may do so
}

// commit hands the new floor to the committer.
func (k *keeper) commit() error {
	if err := stopped(k.ctx); err != nil {
		return err
	}
	err := k.l.commit(context.Background(), newTask(func() error { return k.l.raiseFloor(k.p, k.w) }))
	k.done = err == nil || errors.Is(err, ErrFailed) // in that case the next Open tells what of it is durable
	return err
}

// giveUp takes back what was written for no floor.
func (k *keeper) giveUp() {
	if !k.done && k.w != nil {
		k.w.discard()
	}
}

// run reads the old carried file and the segments that go, if anything of them is wanted.
func (k *keeper) run() error {
	if k.opts.Keep == nil {
		return nil
	}
	if err := k.carried(); err != nil {
		return err
	}
	for i, seg := range k.p.gone {
		end := k.p.next
		if i+1 < len(k.p.gone) {
			end = k.p.gone[i+1].first
		}
		if err := k.segment(seg, end); err != nil {
			return err
		}
	}
	if k.w == nil {
		return nil
	}
	return k.w.finish()
}

func (k *keeper) carried() error {
	if k.p.count == 0 {
		return nil
	}
	side, err := openSide(k.l.fs, k.l.dir, carriedPrefix, k.p.old)
	if isNotExist(err) {
		return carriedGone(k.l.dir, k.p.old, k.p.count)
	}
	if err != nil {
		return err
	}
	defer side.Close() // only read
	r := newCarriedReader(side)
	defer r.lines.close()
	for {
		line, err := r.next()
		if err != nil {
			return err
		}
		if line == nil {
			return r.counted(k.p.count)
		}
		if err := k.offer(line, &r.decoder, &r.rec); err != nil {
			return err
		}
	}
}

// segment reads a segment to its end; end is the first seq of the next one.
func (k *keeper) segment(seg segment, end uint64) error {
	f, err := k.l.fs.OpenFile(seg.path, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close() // only read
	r := rangeReader{seg: seg, lines: newLineReader(f, seg.header, seg.size), next: seg.first}
	defer r.lines.close()
	for r.next < end {
		line, err := r.line()
		if err != nil {
			return err
		}
		if err := k.offer(line, &r.decoder, &r.rec); err != nil {
			return err
		}
	}
	return r.over()
}

// offer keeps a line, if it is wanted.
func (k *keeper) offer(line []byte, d *decoder, rec *record) (err error) {
	if err := stopped(k.ctx); err != nil {
		return err
	}
	if !k.opts.Keep(d.shared(rec)) {
		return nil
	}
	if k.w == nil {
		if err := k.l.held(); err != nil {
			return err
		}
		// crash C15: a temporary file, whole or not. Open sweeps it, and has the old set.
		if k.w, err = newCarried(k.l.fs, k.l.dir, k.l.ID(), k.p.next, k.opts.DryRun); err != nil {
			return err
		}
	}
	return k.w.add(rec.seq, line[:len(line)-crcLength])
}
