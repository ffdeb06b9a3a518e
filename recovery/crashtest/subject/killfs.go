package subject

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"maps"
	"os"
	"path/filepath"

	"github.com/jobwal/jobwal/recovery/crashtest/internal/orders"
	"github.com/jobwal/jobwal/wal"
)

// KillFS returns base as it is, unless the program was started by crashtest.Certify: then it returns a file system that
// ends the process with SIGKILL before or after one of its operations, as Certify chose. What is numbered is what
// changes the disk or makes a change durable (create, write, truncate, sync, preallocate, mkdir, rename, remove, syncdir),
// and each line of the [Ledger]. The mark that an idle log writes after some milliseconds is passed on without a number,
// since the clock and not the program decides when it comes. Syncs are numbered and not carried out, unless Certify says
// otherwise: no power fails here, and a process that dies loses nothing that was written.
//
// It is a line in the program that is to be certified, for good:
//
//	opts.WAL.FS = subject.KillFS(wal.OS)
func KillFS(base wal.FS) wal.FS {
	c := current()
	if c == nil {
		return base
	}
	return killFS{base, c}
}

type killFS struct {
	wal.FS
	c *control
}

type killFile struct {
	wal.File
	name string // under which it was opened
	c    *control
}

func (k killFS) OpenFile(name string, flag int, perm fs.FileMode) (f wal.File, err error) {
	open := func() error {
		f, err = k.FS.OpenFile(name, flag, perm)
		return err
	}
	switch {
	case flag&os.O_CREATE != 0:
		k.c.rename("", name)
		err = k.c.do(words("create", name), open)
	case flag&os.O_TRUNC != 0:
		err = k.c.do(words("truncate", name), open)
	default:
		err = open()
	}
	if err != nil {
		return nil, err
	}
	return killFile{f, name, k.c}, nil
}

func words(kind, name string) string { return kind + " " + filepath.Base(name) }

func (k killFS) Mkdir(name string, perm fs.FileMode) error {
	return k.c.do(words("mkdir", name), func() error { return k.FS.Mkdir(name, perm) })
}

func (k killFS) Rename(oldname, newname string) error {
	return k.c.do(words("rename", newname), func() error {
		err := k.FS.Rename(oldname, newname)
		if err == nil {
			k.c.rename(oldname, newname)
		}
		return err
	})
}

func (k killFS) Remove(name string) error {
	return k.c.do(words("remove", name), func() error { return k.FS.Remove(name) })
}

func (k killFS) SyncDir(name string) error {
	return k.c.do("syncdir", func() error { // the directory's name is the user's, and may vary
		if !k.c.Sync {
			return nil
		}
		return k.FS.SyncDir(name)
	})
}

func (f killFile) WriteAt(p []byte, off int64) (n int, err error) {
	write := func() error {
		f.c.written(f.now(), p) // from here on some of it may be there
		n, err = f.File.WriteAt(p, off)
		return err
	}
	if bytes.HasPrefix(p, []byte(`{"mark":"durable"`)) {
		f.c.idle()
		err = write()
		return n, err
	}
	err = f.c.do(words("write", f.now()), write)
	return n, err
}

func (f killFile) Truncate(size int64) error {
	return f.c.do(words("truncate", f.now()), func() error { return f.File.Truncate(size) })
}

func (f killFile) Sync() error {
	return f.c.do(words("sync", f.now()), func() error {
		covered := f.c.unsynced(f.now())
		if f.c.Sync {
			if err := f.File.Sync(); err != nil {
				return err
			}
		}
		f.c.synced(f.now(), covered)
		return nil
	})
}

func (f killFile) Preallocate(size int64) error {
	return f.c.do(words("preallocate", f.now()), func() error { return f.File.Preallocate(size) })
}

func (c *control) idle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.note(orders.Idle)
}

// written remembers which events are in a file and not synced. A payload that looks like an event adds one that nobody
// asks for.
func (c *control) written(name string, p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for line := range bytes.Lines(p) {
		var e struct {
			Type  string `json:"type"`
			JobID string `json:"job_id"`
		}
		if json.Unmarshal(line, &e) != nil || e.Type == "" {
			continue
		}
		if c.pending[name] == nil {
			c.pending[name] = make(map[string]bool)
		}
		c.pending[name][eventKey(e.JobID, wal.EventType(e.Type))] = true
	}
}

func eventKey(job string, on wal.EventType) string { return string(on) + " " + job }

func (c *control) unsynced(name string) map[string]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.pending[name])
}

// synced forgets what was there when the sync began; a write that came beside it waits for the next one.
func (c *control) synced(name string, covered map[string]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for key := range covered {
		delete(c.pending[name], key)
	}
}

// rename lets handles that were opened under the old name go by the new one; with no old name, the new one is its own.
func (c *control) rename(oldname, newname string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.renamed, newname)
	if oldname == "" {
		return
	}
	c.renamed[oldname] = newname
	c.pending[newname] = c.pending[oldname]
	delete(c.pending, oldname)
}

func (f killFile) now() string {
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	if newname, ok := f.c.renamed[f.name]; ok {
		return newname
	}
	return f.name
}

// hangsLocked tells whether an event was written and not synced.
func (c *control) hangsLocked(key string) bool {
	for _, events := range c.pending {
		if events[key] {
			return true
		}
	}
	return false
}
