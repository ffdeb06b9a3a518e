package realdisk

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A Disk is one file system, mounted. It is not safe for concurrent use; what is on it is, as files are.
type Disk struct {
	t     testing.TB
	kind  string
	image *os.File // nil for tmpfs
	loop  *os.File
	mount *os.File
}

// New makes an image of so many bytes (in memory and sparse; XFS wants 300 MiB, ext4 with a journal 2), a file system of
// the kind "ext4" or "xfs" in it, and mounts that until the test is over. kind "tmpfs" needs no image and no loop device,
// and forgets everything when unmounted.
func New(t testing.TB, kind string, bytes int64) *Disk {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts a file system")
	}
	d := &Disk{t: t, kind: kind}
	t.Cleanup(d.Discard)
	if kind == "tmpfs" {
		d.mountWith("size", strconv.FormatInt(bytes, 10))
		return d
	}
	d.format(bytes)
	d.attach()
	d.mountWith("source", d.loop.Name())
	return d
}

// Dir is the root of the file system, for this process. In a child that got File as its file descriptor n it is
// DirOf(n).
func (d *Disk) Dir() string { return DirOf(int(d.mount.Fd())) }

// DirOf is the path of what a file descriptor of the process that asks refers to.
func DirOf(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// File is the mount itself, for exec.Cmd.ExtraFiles. It stays the Disk's, and Remount makes another.
func (d *Disk) File() *os.File { return d.mount }

// Remount takes the file system off its device and puts it there again, with nothing in any cache: the journal is
// replayed, and what comes back is what was on the disk. Nothing may be open on it, in any process.
func (d *Disk) Remount() {
	d.t.Helper()
	d.unmount()
	d.attach()
	d.mountWith("source", d.loop.Name())
}

// A Flush is what a Shutdown leaves to the file system to write before it stops.
type Flush uint32

const (
	// FlushJournal (the kernel's LOGFLUSH, 1): the journal is written out, and no data: what was created, renamed or
	// removed is there, and files are as long as the journal knew, whatever of their bytes was on the disk.
	FlushJournal Flush = 1
	// FlushNothing (NOLOGFLUSH, 2): nothing at all is written, as if the cable had been pulled.
	//
	// The third, 0, freezes the file system first and so writes out everything: no crash.
	FlushNothing Flush = 2
)

// ioctlShutdown is FS_IOC_SHUTDOWN, _IOR('X', 125, __u32), as all architectures of Go's have it but ppc64 and mips.
const ioctlShutdown = 0x8004587d

// Shutdown stops the file system that dir is on: from then on no byte reaches its disk, and every operation that would
// have to fails with EIO.
func Shutdown(dir string, how Flush) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.IoctlSetPointerInt(int(f.Fd()), ioctlShutdown, int(how)), f.Close())
}

func (d *Disk) format(bytes int64) {
	d.t.Helper()
	mkfs, err := exec.LookPath("mkfs." + d.kind)
	if err != nil {
		d.t.Skipf("needs mkfs.%s (package e2fsprogs or xfsprogs): %v", d.kind, err)
	}
	fd, err := unix.MemfdCreate(imageName, unix.MFD_CLOEXEC)
	if err != nil {
		d.t.Fatal(os.NewSyscallError("memfd_create", err))
	}
	d.image = os.NewFile(uintptr(fd), imageName)
	if err := d.image.Truncate(bytes); err != nil {
		d.t.Fatal(err)
	}
	cmd := exec.Command(mkfs, "-q", DirOf(3))
	cmd.ExtraFiles = []*os.File{d.image}
	if out, err := cmd.CombinedOutput(); err != nil {
		d.t.Fatalf("%s: %v\n%s", mkfs, err, out)
	}
}

// imageName is what the kernel shows as the loop device's file, behind "/memfd:".
var imageName = fmt.Sprintf("realdisk-of-%d", os.Getpid())

// attach puts the image on a free loop device, which is freed when the last one to have it open, or mounted, is gone.
func (d *Disk) attach() {
	d.t.Helper()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		d.t.Skip("needs a loop device: ", err)
	}
	defer control.Close() // only asked
	for {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			d.t.Skip("needs a loop device: LOOP_CTL_GET_FREE: ", err)
		}
		loop, err := os.OpenFile("/dev/loop"+strconv.Itoa(n), os.O_RDWR, 0)
		if err != nil {
			d.t.Skip("needs a loop device: ", err)
		}
		config := unix.LoopConfig{Fd: uint32(d.image.Fd())}
		config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &config)
		if err == nil {
			d.loop = loop
			return
		}
		_ = loop.Close()
		if !errors.Is(err, unix.EBUSY) { // else somebody was faster, and the next free one is another
			d.t.Skip("needs a loop device: LOOP_CONFIGURE: ", err)
		}
	}
}

// mountWith mounts with the one option that its kind needs.
func (d *Disk) mountWith(key, value string) {
	d.t.Helper()
	fsfd, err := unix.Fsopen(d.kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		d.t.Skipf("needs a kernel that mounts %s with fsopen(2), and the right to: %v", d.kind, err)
	}
	defer unix.Close(fsfd)
	if err := unix.FsconfigSetString(fsfd, key, value); err != nil {
		d.t.Fatalf("mount %s: %s=%s: %v%s", d.kind, key, value, err, complaints(fsfd))
	}
	if err := unix.FsconfigCreate(fsfd); errors.Is(err, unix.EPERM) {
		d.t.Skipf("needs the right to mount %s: %v", d.kind, err)
	} else if err != nil {
		d.t.Fatalf("mount %s: %v%s", d.kind, err, complaints(fsfd))
	}
	fd, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		d.t.Fatalf("mount %s: fsmount: %v%s", d.kind, err, complaints(fsfd))
	}
	d.mount = os.NewFile(uintptr(fd), d.kind)
}

// complaints is what the kernel has to say about a mount, a message at each read.
func complaints(fsfd int) string {
	var all strings.Builder
	for buf := make([]byte, 1024); ; {
		n, err := unix.Read(fsfd, buf)
		if err != nil || n <= 0 {
			return all.String()
		}
		fmt.Fprintf(&all, "; %s", strings.TrimSpace(string(buf[:n])))
	}
}

// Discard ends the file system before the test is over.
func (d *Disk) Discard() {
	d.t.Helper()
	d.unmount()
	if d.image != nil {
		_ = d.image.Close() // and with that it is gone
		d.image = nil
	}
}

// unmount is over when the last byte that the file system still writes is in the image: the kernel unmounts before the
// close of the last reference returns. That it was the last one shows in that the device can be had for oneself.
// (Tests on it do not run beside others that start processes: between fork and exec a child holds all that is open.)
func (d *Disk) unmount() {
	d.t.Helper()
	if d.mount != nil {
		if err := d.mount.Close(); err != nil {
			d.t.Error(err)
		}
		d.mount = nil
	}
	if d.loop != nil {
		own, err := os.OpenFile(d.loop.Name(), os.O_RDWR|os.O_EXCL, 0)
		if err != nil {
			d.t.Errorf("unmounted, but something on it is still open: %v", err)
		} else {
			_ = own.Close()
		}
		if err := d.loop.Close(); err != nil {
			d.t.Error(err)
		}
		d.loop = nil
	}
}
