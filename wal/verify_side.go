package wal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// What Verify and Salvage make of the files beside the segments.

// same tells whether two listings are of the same files.
func (l listing) same(as listing) bool {
	return fmt.Sprint(l.segments, l.checkpoints, l.carried) == fmt.Sprint(as.segments, as.checkpoints, as.carried)
}

// witnesses takes what intact checkpoints say was durable.
func (c *checker) witnesses(dir string, s *survey) error {
	for _, name := range s.checkpoints {
		seq, _ := parseSideName(checkpointPrefix, name)
		said, err := saysDurable(c.fs, dir, seq, s.id)
		if err != nil {
			return err
		}
		if said {
			c.durable = max(c.durable, seq)
		}
	}
	return nil
}

// note lists damage, and returns what is none.
func (c *checker) note(err error) error {
	var bad *CorruptError
	if errors.As(err, &bad) {
		c.damage(bad)
		return nil
	}
	return err
}

// checkpoints reads all of them, whatever they say.
func (c *checker) checkpoints(dir string, s survey) error {
	for _, name := range s.checkpoints {
		c.report.Checkpoints++
		seq, _ := parseSideName(checkpointPrefix, name)
		if err := c.note(c.checkpoint(dir, s, seq)); err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) checkpoint(dir string, s survey, seq uint64) error {
	side, err := openSide(c.fs, dir, checkpointPrefix, seq)
	if err != nil {
		return err
	}
	defer side.Close() // only read
	if err := side.of(s.id); err != nil {
		return err
	}
	if seq >= c.want {
		return side.ahead(max(c.want, 1) - 1)
	}
	if err := c.madeAfter(side, s); err != nil {
		return err
	}
	return side.sections(context.Background(), func(Section, io.Reader) error { return nil })
}

// madeAfter holds the event that a checkpoint names to be the log's, where that is there and well.
func (c *checker) madeAfter(side *sideFile, s survey) error {
	i := len(s.segments) - 1
	for i >= 0 && s.segments[i].first > side.head.seq {
		i--
	}
	if i < 0 {
		return nil
	}
	f, err := c.fs.OpenFile(s.segments[i].path, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()       // only read
	last := side.head.seq // as far as it is known; a search needs no better
	if i+1 < len(s.segments) {
		last = s.segments[i+1].first - 1
	}
	sum, err := sumIn(f, s.segments[i], side.head.seq, last)
	if errors.Is(err, ErrCorrupt) {
		return nil // which was complained of
	}
	if err == nil && sum != side.head.event {
		return side.swapped(sum)
	}
	return err
}

// carriedFile finds the intact events of the carried file that the floor names, and complains of all else in it.
func (c *checker) carriedFile(dir string, s survey) error {
	if s.carried == 0 {
		return nil
	}
	side, err := c.openCarried(dir, s)
	if side == nil {
		c.report.Lost += s.carried
		return err
	}
	defer side.Close() // only read
	r := newCarriedReader(side)
	defer r.lines.close()
	for {
		l, err := r.lines.next()
		if errors.Is(err, io.EOF) {
			c.damageIn(side, r, r.lines.at, "the file ends here")
			break
		}
		if err != nil {
			return err
		}
		r.at = l.at
		part := l
		if rest, at := c.intactPart(l, segment{seed: side.seed}, &r.rec); at > 0 { // its start is damaged, or of another line
			c.damageIn(side, r, l.at, errChecksum.Error())
			part = line{at: l.at + int64(at), bytes: rest, end: l.end, whole: l.whole}
		}
		wrong := r.take(part)
		if wrong != "" {
			c.damageIn(side, r, l.at, wrong)
		}
		if wrong == "" && r.rec.mark != nil {
			break
		}
		if wrong == "" {
			if err := c.takeCarried(r, part.bytes); err != nil {
				return err
			}
		}
	}
	if r.count != s.carried {
		c.damageIn(side, r, r.at, fmt.Sprintf("%d events, and the floor says %d", r.count, s.carried))
		c.report.Lost += s.carried - min(s.carried, r.count)
	}
	return nil
}

func (c *checker) takeCarried(r *carriedReader, line []byte) error {
	r.last = r.rec.seq
	r.count++
	c.report.Carried++
	if c.carry == nil {
		return nil
	}
	return c.carry(r.rec.seq, line[:len(line)-crcLength])
}

func (c *checker) damageIn(side *sideFile, r *carriedReader, at int64, reason string) {
	c.damage(&CorruptError{Path: side.path, Offset: at, Seq: r.last + 1, Reason: reason})
}

// openCarried is nil for a file that cannot be read at all. The salt of one that lost its header is told by its lines.
func (c *checker) openCarried(dir string, s survey) (*sideFile, error) {
	side, err := openSide(c.fs, dir, carriedPrefix, s.floor)
	if err == nil {
		if err = side.of(s.id); err == nil {
			return side, nil
		}
		return nil, errors.Join(c.note(err), side.Close())
	}
	if isNotExist(err) {
		return nil, c.note(carriedGone(dir, s.floor, s.carried))
	}
	if err := c.note(err); err != nil {
		return nil, err
	}
	seg := segment{path: filepath.Join(dir, sideName(carriedPrefix, s.floor)), first: 1}
	if seg.size, err = sizeOf(c.fs, seg.path); err != nil {
		return nil, err
	}
	if ok, err := c.recoverSeed(&seg, s.floor); !ok {
		return nil, err
	}
	f, err := c.fs.OpenFile(seg.path, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	return &sideFile{File: f, path: seg.path, head: sideHead{kind: markCarried, log: s.id, seq: s.floor}, seed: seg.seed,
		body: seg.header, size: seg.size}, nil
}
