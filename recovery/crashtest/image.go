package crashtest

import (
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/jobwal/jobwal/wal"
)

// An Image is the files of a log's directory: their bytes by their names, with slashes, relative to the directory. LOCK
// is not among them, since it holds nothing of the log.
type Image map[string][]byte

// ReadImage reads a log's directory and the directories in it, such as quarantine. It takes no lock: beside a live
// writer it may see a state that no crash would leave. nil means the operating system's file system.
func ReadImage(fsys wal.FS, dir string) (Image, error) {
	img := make(Image)
	return img, img.read(orOS(fsys), dir, "")
}

// read adds the files of one directory, whose name in the image is under.
func (i Image) read(fsys wal.FS, dir, under string) error {
	entries, err := fsys.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name, full := path.Join(under, e.Name()), filepath.Join(dir, e.Name())
		switch {
		case e.IsDir():
			err = i.read(fsys, full, name)
		case name != "LOCK":
			i[name], err = readFile(fsys, full)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func readFile(fsys wal.FS, name string) (_ []byte, err error) {
	f, err := fsys.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return readAll(f)
}

func readAll(f wal.File) ([]byte, error) {
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	b := make([]byte, size)
	if n, err := f.ReadAt(b, 0); err != nil && (!errors.Is(err, io.EOF) || int64(n) < size) {
		return nil, err
	}
	return b, nil
}

// Write makes dir, whose parent has to exist, hold the image and no other file but LOCK. Everything is synced. nil means
// the operating system's file system.
func (i Image) Write(fsys wal.FS, dir string) error {
	fsys = orOS(fsys)
	if err := mkdir(fsys, dir); err != nil {
		return err
	}
	before, err := ReadImage(fsys, dir)
	if err != nil {
		return err
	}
	for name := range before {
		if _, stays := i[name]; !stays {
			full := filepath.Join(dir, filepath.FromSlash(name))
			if err := errors.Join(fsys.Remove(full), fsys.SyncDir(filepath.Dir(full))); err != nil {
				return err
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(i)) {
		if err := writeFile(fsys, dir, name, i[name]); err != nil {
			return err
		}
	}
	return nil
}

func mkdir(fsys wal.FS, dir string) error {
	err := fsys.Mkdir(dir, 0o755)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return fsys.SyncDir(filepath.Dir(dir))
}

func writeFile(fsys wal.FS, dir, name string, content []byte) (err error) {
	full := filepath.Join(dir, filepath.FromSlash(name))
	if under := path.Dir(name); under != "." {
		if err := mkdir(fsys, filepath.Join(dir, filepath.FromSlash(under))); err != nil {
			return err
		}
	}
	f, err := fsys.OpenFile(full, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if len(content) > 0 {
		if _, err := f.WriteAt(content, 0); err != nil {
			return err
		}
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return fsys.SyncDir(filepath.Dir(full))
}

func orOS(fsys wal.FS) wal.FS {
	if fsys == nil {
		return wal.OS
	}
	return fsys
}

// Clone returns a copy that shares no bytes.
func (i Image) Clone() Image {
	c := make(Image, len(i))
	for name, b := range i {
		c[name] = bytes.Clone(b)
	}
	return c
}

// Equal tells whether both hold the same files with the same bytes.
func (i Image) Equal(other Image) bool { return maps.EqualFunc(i, other, bytes.Equal) }

// Segments returns the names of the log's segments, oldest first.
func (i Image) Segments() []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(i)), func(name string) bool { return firstOf(name) == 0 })
}

// firstOf is the seq that a segment's name tells, 0 for any other name.
func firstOf(name string) (first uint64) {
	if _, err := fmt.Sscanf(name, "%020d.jsonl", &first); err != nil || segmentName(first) != name {
		return 0
	}
	return first
}

func segmentName(first uint64) string { return fmt.Sprintf("%020d.jsonl", first) }

// Newest is the name of the newest segment, "" when there is none.
func (i Image) Newest() string {
	names := i.Segments()
	if len(names) == 0 {
		return ""
	}
	return names[len(names)-1]
}

// Salt returns the salt that the checksums of a segment's lines begin with: 16 hex digits of its header. "" for what does
// not begin with a header.
func Salt(segment []byte) string {
	line, _, _ := bytes.Cut(segment, []byte("\n"))
	_, rest, found := bytes.Cut(line, []byte(`"salt":"`))
	if !found || len(rest) < 16 || !bytes.HasPrefix(line, []byte(`{"mark":"segment"`)) {
		return ""
	}
	return string(rest[:16])
}

// Seal makes a line of a segment out of a body: `{"seq":1,…,"durable":0`, with everything but the checksum and the brace
// behind it. The line that it returns ends with a newline and has a right checksum, whatever the body says: it is how a
// test gets past the checksum to what lies behind it.
func Seal(salt, body string) string {
	return fmt.Sprintf("%s,\"crc\":\"%08x\"}\n", body, sum([]byte(salt), []byte(body)))
}

// Unseal returns the body of a line, which may end with a newline, and whether its checksum is right.
func Unseal(salt, line string) (body string, intact bool) {
	line = strings.TrimSuffix(line, "\n")
	return line[:max(len(line)-sealBytes, 0)], isSealed(salt, []byte(line))
}

const sealBytes = len(`,"crc":"01234567"}`)

// isSealed tells whether the line, without its newline, has a body and behind it the right checksum.
func isSealed(salt string, line []byte) bool {
	at := len(line) - sealBytes
	if at <= 0 {
		return false
	}
	var end [sealBytes]byte
	return bytes.Equal(line[at:], fmt.Appendf(end[:0], ",\"crc\":\"%08x\"}", sum([]byte(salt), line[:at])))
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sum is how both logs of this package, and package wal, guard what they write.
func sum(salt, body []byte) uint32 {
	return crc32.Update(crc32.Checksum(salt, castagnoli), castagnoli, body)
}
