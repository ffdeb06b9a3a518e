package subject

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/jobwal/jobwal/recovery/crashtest/internal/orders"
	"github.com/jobwal/jobwal/wal"
	"github.com/jobwal/jobwal/wal/crashfs"
)

// Without orders there is nothing: not a file, not a wrapper.
func TestNobodyCertifies(t *testing.T) {
	require.Equal(t, wal.OS, KillFS(wal.OS))
	ledger, err := OpenLedger("")
	require.NoError(t, err)
	require.Nil(t, ledger)
	require.NoError(t, ledger.Begin(Effect{Job: "a"}))
	require.NoError(t, ledger.Acked("a", wal.JobStarted, 1))
	require.NoError(t, ledger.Close())
}

// A ledger with a path is kept whoever asks for it; a line that was cut is counted, and costs no other.
func TestLedgerByItself(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger")
	for range 2 { // opened again, it goes on
		ledger, err := OpenLedger(path)
		require.NoError(t, err)
		require.NoError(t, ledger.Begin(Effect{Job: "a", Capability: "charge", Irreversible: true}))
		require.NoError(t, ledger.Done(Effect{Job: "a"}))
		require.NoError(t, ledger.Undone(Effect{Job: "a", Name: "second", Key: "order 7"}))
		require.NoError(t, ledger.Close())
	}
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, append([]byte("{\"mark\":\"do\n"), data...), 0o644))
	entries, cut, err := ReadLedger(path)
	require.NoError(t, err)
	require.Equal(t, 1, cut)
	require.Len(t, entries, 6)
	require.Equal(t, Entry{Mark: Began, Effect: Effect{Job: "a", Capability: "charge", Irreversible: true}, Run: run}, entries[0])
	require.Equal(t, "order 7", entries[5].Key)
	entries, cut, err = ReadLedger(filepath.Join(t.TempDir(), "none"))
	require.NoError(t, err)
	require.Zero(t, len(entries)+cut)
}

// Every operation that changes the disk is traced before it happens, under one count with the ledger's lines; the ledger
// knows which events were synced.
func TestControl(t *testing.T) {
	dir := t.TempDir()
	o := orders.Orders{Ledger: filepath.Join(dir, "ledger"), Trace: filepath.Join(dir, "trace"), Life: 3}
	c := newControl(o)
	counted := crashfs.Inject(crashfs.New(), nil)
	log, err := wal.Open("log", wal.Options{FS: killFS{counted, c}, Sync: wal.SyncNever})
	require.NoError(t, err)
	opened := c.n
	_, err = log.Append(context.Background(), wal.Event{Type: wal.JobStarted, JobID: "a"})
	require.NoError(t, err)
	ledger, err := OpenLedger(o.Ledger)
	require.NoError(t, err)
	ledger.control = c
	require.NoError(t, ledger.Begin(Effect{Job: "a"}))
	require.NoError(t, ledger.Begin(Effect{Job: "b"}))
	require.NoError(t, ledger.Acked("a", wal.JobStarted, 1))
	require.NoError(t, log.Close())
	require.NoError(t, ledger.Acked("a", wal.JobStarted, 1))

	entries, _, err := ReadLedger(o.Ledger)
	require.NoError(t, err)
	for i, unsynced := range []bool{true, false, true, false} {
		require.Equal(t, unsynced, entries[i].Unsynced, "line %d", i)
		require.Equal(t, 3, entries[i].Life)
	}
	trace, err := orders.ReadTrace(o.Trace)
	require.NoError(t, err)
	require.False(t, trace.Killed)
	require.Len(t, trace.Ops, c.n)
	require.Equal(t, c.n-4, trace.Files())
	require.Equal(t, "write 00000000000000000001.jsonl", trace.Ops[opened], "by its name of now")
	require.Equal(t, "ledger begin a", trace.Ops[entries[0].Op-1])
	for _, kind := range []crashfs.Kind{crashfs.OpWrite, crashfs.OpCreate, crashfs.OpRename, crashfs.OpMkdir} {
		n := traced(trace, string(kind))
		if kind == crashfs.OpWrite {
			n += idles(t, o.Trace)
		}
		require.Equal(t, counted.Count(kind), n, "%s: %q", kind, trace.Ops)
	}
	require.Zero(t, counted.Count(crashfs.OpSync, crashfs.OpSyncDir), "counted, and not carried out")
	require.NotZero(t, traced(trace, "sync"))
}

// idles counts the writes that have no number.
func idles(t *testing.T, path string) int {
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	return strings.Count("\n"+string(data), "\n"+orders.Idle+"\n")
}

func traced(trace orders.Trace, kind string) (n int) {
	for _, op := range trace.Ops {
		if word, _, _ := strings.Cut(op, " "); word == kind {
			n++
		}
	}
	return n
}
