// SPDX-License-Identifier: Apache-2.0

// Package vagrant tests the Vagrantfile as a user meets it: vagrant up, with a box of
// our own and machines that QEMU emulates.
package vagrant

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// host runs a libvirt of its own, whose machines and networks are invisible outside.
type host struct {
	dir  string // of this run
	pid  int    // of process 1 there
	gone <-chan struct{}
}

// isolate is what libvirtd's namespaces are before it starts in them. A kernel may have
// a /dev/kvm that hangs, so there is none here. The shell stays, because it is process 1
// of its namespace and reaps the processes that libvirt leaves behind.
const isolate = `
	mount --make-rprivate /
	mount -t proc proc /proc
	mount -t tmpfs tmpfs /run
	mkdir -p /run/lock $DIR/lib/images $DIR/cache $DIR/etc $DIR/tmp
	mount --bind $DIR/lib /var/lib/libvirt
	mount --bind $DIR/cache /var/cache/libvirt
	mount --bind $DIR/etc /etc/libvirt
	[ ! -e /dev/kvm ] || mount --bind /dev/null /dev/kvm
	ip link set lo up
	libvirtd &
	wait`

// settings are those of libvirt's driver of QEMU: no other user, no security module, no
// control groups, none of which a container has to have, and no further daemon.
const settings = `
user = "root"
group = "root"
security_driver = "none"
cgroup_controllers = [ ]
namespaces = [ ]
stdio_handler = "file"
`

// start starts libvirtd in namespaces of its own, which end with it.
func start(t *testing.T) *host {
	t.Helper()
	// Not t.TempDir, whose name may be too long for a socket.
	dir, err := os.MkdirTemp("", "vagrant-")
	if err != nil {
		t.Fatal(err)
	}
	remove := removeLater(t, dir)
	writeFile(t, filepath.Join(dir, "etc/qemu.conf"), settings)
	log, err := os.Create(filepath.Join(dir, "libvirtd.log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("bash", "-euc", isolate)
	cmd.Env = append(os.Environ(), "DIR="+dir)
	cmd.Stdout, cmd.Stderr = log, log
	// If this program is killed, so is libvirtd, and with it everything in its process
	// namespace. The kernel sends the signal when the thread ends that started it.
	runtime.LockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	gone := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(gone)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-gone
		log.Close()
		if t.Failed() {
			text, _ := os.ReadFile(log.Name())
			t.Logf("libvirtd: %s", text)
		}
		if err := remove(); err != nil {
			t.Errorf("remove %s: %v", dir, err)
		}
	})
	h := &host{dir: dir, pid: cmd.Process.Pid, gone: gone}
	h.eventually(t, "libvirtd answers", func() error {
		_, err := h.try("/", nil, "virsh", "--connect", "qemu:///system", "version")
		return err
	})
	return h
}

// removeLater removes a directory when the returned function is called, or when this
// program has ended, whatever has become of it: then its end of the pipe is closed. What
// still writes there is killed at the same moment, so one attempt may not be enough.
func removeLater(t *testing.T, dir string) func() error {
	t.Helper()
	cmd := exec.Command("bash", "-c", `read; for _ in {1..60}; do rm -rf "$0" && exit; sleep 1; done; exit 1`, dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // ctrl-C is for this program
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return func() error { return errors.Join(stdin.Close(), cmd.Wait()) }
}

// try runs a program among the machines and returns what it printed on standard output.
func (h *host) try(dir string, env []string, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--target", strconv.Itoa(h.pid), "--net", "--mount", "--pid", "--wd=" + dir, name}, args...)...)
	// Vagrant names its temporary files by a process id, which is the same in two runs.
	cmd.Env = append(append(os.Environ(), "TMPDIR="+filepath.Join(h.dir, "tmp")), env...)
	cmd.WaitDelay = 10 * time.Second // what nsenter has started is not killed with it
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("%s %s: %w\n%s%s", name, strings.Join(args, " "), err, out, &stderr)
	}
	return string(out), nil
}

// patience is how long a condition may take on machines that a busy machine emulates.
const patience = 20 * time.Minute

var errGone = errors.New("libvirtd has ended")

// eventually waits until f returns nil.
func (h *host) eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(200 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		select {
		case <-h.gone:
			err = errors.Join(errGone, err)
		default:
			if time.Now().Before(end) {
				continue
			}
		}
		t.Fatalf("%s: %v", what, err)
	}
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o600)); err != nil {
		t.Fatal(err)
	}
}
