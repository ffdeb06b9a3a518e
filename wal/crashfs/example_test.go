package crashfs_test

import (
	"errors"
	"fmt"
	"os"

	"github.com/jobwal/jobwal/wal/crashfs"
)

// A file that was synced, in a directory that was not: the bytes are safe, and there may be no name to find them by.
func Example() {
	disk := crashfs.New()
	f, _ := disk.OpenFile("log", os.O_RDWR|os.O_CREATE, 0o644)
	_, _ = f.WriteAt([]byte("one\n"), 0)
	_ = f.Sync()
	for i, after := range disk.CrashStates(100).All() {
		fmt.Printf("state %d: %q\n", i, after)
	}

	_ = disk.SyncDir(".")
	_, _ = f.WriteAt([]byte("two\n"), 4)
	for i, after := range disk.CrashStates(100).All() {
		fmt.Printf("state %d: %q\n", i, contents(after, "log"))
	}
	for _, op := range disk.Ops() {
		fmt.Println(op)
	}
	// Output:
	// state 0: ""
	// state 1: "log 4\n"
	// state 0: "one\n"
	// state 1: "one\n\x00\x00\x00\x00"
	// state 2: "one\ntwo\n"
	// create log
	// write log 0+4
	// sync log
	// syncdir .
	// write log 4+4
}

// A sync fails once. The second succeeds, the bytes can be read, and the crash shows that they were never written.
func ExampleInject() {
	disk := crashfs.New()
	faulty := crashfs.Inject(disk, crashfs.MustSchedule("sync * #1 error EIO lie; crash 6"))
	f, _ := faulty.OpenFile("log", os.O_RDWR|os.O_CREATE, 0o644)
	_ = faulty.SyncDir(".")
	_, _ = f.WriteAt([]byte("one\n"), 0)
	fmt.Println(f.Sync())
	fmt.Println(f.Sync())
	fmt.Printf("%q\n", contents(disk, "log"))
	_, err := f.WriteAt([]byte("two\n"), 4)
	fmt.Println(errors.Is(err, crashfs.ErrCrashed))
	fmt.Printf("%q\n", contents(disk.Crash(crashfs.SyncedOnly), "log"))
	// Output:
	// sync log: input/output error
	// <nil>
	// "one\n"
	// true
	// ""
}

// contents is what everyone sees in a file.
func contents(disk *crashfs.FS, name string) string {
	f, err := disk.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return err.Error()
	}
	size, _ := f.Size()
	p := make([]byte, size)
	_, _ = f.ReadAt(p, 0)
	return string(p)
}
