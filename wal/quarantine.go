package wal

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// cutNote is the first line of a file in quarantine; the cut bytes follow it.
type cutNote struct {
	Segment string    `json:"segment"`
	Offset  int64     `json:"offset"`
	Bytes   int64     `json:"bytes"`
	Seq     uint64    `json:"seq"` // the first that was not delivered
	Reason  string    `json:"reason"`
	Time    time.Time `json:"time"`
}

// quarantine copies the bytes that are to be cut, and puts the copy on stable storage, before anything is cut. The name
// comes from the segment and the offset alone, so that a recovery that died after the copy makes the same one again; a
// copy that is there already, of other bytes, is never touched.
func quarantine(fsys FS, dir string, t Torn, now time.Time) (string, error) {
	into := filepath.Join(dir, quarantineDir)
	if err := makeDir(fsys, into); err != nil {
		return "", noSpace(err, into, t.Bytes)
	}
	src, err := fsys.OpenFile(t.Path, os.O_RDONLY, 0)
	if err != nil {
		return "", err
	}
	defer src.Close() // only read
	body := io.NewSectionReader(src, t.Offset, t.Bytes)
	for n := 1; ; n++ {
		path := filepath.Join(into, fmt.Sprintf("%s.%d.%d%s", filepath.Base(t.Path), t.Offset, n, tornSuffix))
		same, err := holds(fsys, path, body)
		if errors.Is(err, fs.ErrNotExist) {
			return path, copyCut(fsys, path, t, body, now)
		}
		if err != nil {
			return path, err
		}
		if same {
			// crash C4: whoever made the copy may have died before its directory entry was synced.
			return path, fsys.SyncDir(into)
		}
	}
}

// unfinishedCopies are what a crash left of copies that were under way. If the bytes are still in their segment, they were
// copied again, under the same name; if not, that crash took them, and nobody cut them. A directory that can't be listed
// keeps them: they are in nobody's way.
func unfinishedCopies(fsys FS, dir string) (names []string) {
	list, _ := fsys.ReadDir(filepath.Join(dir, quarantineDir))
	for _, e := range list {
		if strings.HasSuffix(e.Name(), tornSuffix+tempSuffix) && !e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names
}

// holds tells whether path is the whole copy of body. A copy that another one's crash cut short is not.
func holds(fsys FS, path string, body *io.SectionReader) (bool, error) {
	f, err := fsys.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return false, err
	}
	defer f.Close() // only read
	size, err := f.Size()
	if err != nil {
		return false, err
	}
	lines := newLineReader(f, 0, size)
	note, err := lines.next()
	lines.close()
	if err != nil || !note.whole || size-note.end != body.Size() {
		return false, nil
	}
	return sameBytes(io.NewSectionReader(f, note.end, body.Size()), body)
}

func sameBytes(a, b *io.SectionReader) (bool, error) {
	x, y := make([]byte, 64<<10), make([]byte, 64<<10)
	for at := int64(0); at < b.Size(); {
		n, errX := a.ReadAt(x[:min(int64(len(x)), b.Size()-at)], at)
		m, errY := b.ReadAt(y[:n], at)
		if err := errors.Join(notEOF(errX), notEOF(errY)); err != nil {
			return false, err
		}
		if n == 0 || m != n || !bytes.Equal(x[:n], y[:n]) {
			return false, nil
		}
		at += int64(n)
	}
	return true, nil
}

func notEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// copyCut writes the note and the bytes under a temporary name, syncs, renames, syncs the directory.
func copyCut(fsys FS, path string, t Torn, body *io.SectionReader, now time.Time) (err error) {
	note, err := json.Marshal(cutNote{filepath.Base(t.Path), t.Offset, t.Bytes, t.Seq, t.Reason, now.UTC()})
	if err != nil {
		return err
	}
	note = append(note, '\n')
	temp := path + tempSuffix
	f, err := fsys.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return noSpace(err, path, t.Bytes)
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			_ = fsys.Remove(temp) // a leftover is written over by the next try
			err = noSpace(err, path, int64(len(note))+t.Bytes)
		}
	}()
	if err := f.Preallocate(int64(len(note)) + t.Bytes); err != nil {
		return err
	}
	if err := writeAll(f, note, 0); err != nil {
		return err
	}
	if err := copyBytes(f, int64(len(note)), body); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := fsys.Rename(temp, path); err != nil {
		return err
	}
	return fsys.SyncDir(filepath.Dir(path))
}

func copyBytes(f File, at int64, body *io.SectionReader) error {
	buf := make([]byte, 64<<10)
	for from := int64(0); from < body.Size(); {
		n, err := body.ReadAt(buf, from)
		if n == 0 && err != nil {
			return err
		}
		if err := writeAll(f, buf[:n], at+from); err != nil {
			return err
		}
		from += int64(n)
	}
	return nil
}

// noSpace gives a full disk's error its type.
func noSpace(err error, path string, need int64) error {
	if err == nil || !isNoSpace(err) || errors.Is(err, ErrNoSpace) {
		return err
	}
	return &NoSpaceError{Path: path, Need: need, Err: err}
}

// makeDirs is makeDir for a directory that nothing durable lies in yet. It and any of those above it may have been made
// by a process that died before it synced them, so all are synced; where that is not allowed, or not possible, they are
// not ours.
func makeDirs(fsys FS, dir string) error {
	if err := makeDir(fsys, dir); err != nil {
		return err
	}
	for at := filepath.Dir(dir); at != filepath.Dir(at); at = filepath.Dir(at) {
		err := fsys.SyncDir(filepath.Dir(at))
		if err != nil && !errors.Is(err, fs.ErrPermission) && !errors.Is(err, errors.ErrUnsupported) &&
			!errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.EROFS) {
			return err
		}
	}
	return nil
}

// makeDir makes a directory and those above it, each on stable storage before the next.
func makeDir(fsys FS, dir string) error {
	err := fsys.Mkdir(dir, 0o755)
	if errors.Is(err, fs.ErrNotExist) && filepath.Dir(dir) != dir {
		if err := makeDir(fsys, filepath.Dir(dir)); err != nil {
			return err
		}
		err = fsys.Mkdir(dir, 0o755)
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	made := err == nil
	// A directory that was there may have been made by a process that died before it synced it.
	err = fsys.SyncDir(filepath.Dir(dir))
	if !made && errors.Is(err, fs.ErrPermission) {
		return nil
	}
	return err
}
