// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/internal/netcfg"
)

// The tests need a host to themselves. Each runs again in a child of the
// test binary that has network, mount and process namespaces of its own: the
// kernel takes everything back when the child ends, however it ends, and two
// runs at once don't meet.
const (
	insideVar = "NETCFG_TEST_INSIDE" // name of the test that the child runs
	peerVar   = "NETCFG_TEST_PEER"   // set in the child that plays the other host: apart or beside
)

// patience bounds what a test waits for; a loaded machine may be slow.
const patience = 60 * time.Second

func TestMain(m *testing.M) {
	if os.Getenv(peerVar) != "" {
		os.Exit(playPeer(os.Stdin, os.Stdout))
	}
	os.Exit(m.Run())
}

// namespaced runs the calling test in namespaces of its own and returns true
// there. In the process that was started by hand it returns false when the child
// has ended; the test is over then.
func namespaced(t *testing.T) bool {
	t.Helper()
	if os.Getenv(insideVar) == t.Name() {
		isolate(t)
		t.Cleanup(func() { goleak.VerifyNone(t) })
		return true
	}
	// Pdeathsig is sent when the thread ends that started the child.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.v", "-test.run=^"+regexp.QuoteMeta(t.Name())+"$")
	cmd.Env = append(os.Environ(), insideVar+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL,
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("in namespaces: %v\n%s", err, out)
	} else {
		t.Logf("%s", out)
	}
	return false
}

// isolate makes the mount namespace fit the network namespace.
func isolate(t testing.TB) {
	t.Helper()
	if err := privateMounts(); err != nil {
		t.Fatal(err)
	}
	run(t, "ip link set lo up")
}

// privateMounts hides the machine's mounts behind those that belong to the
// process's own namespaces.
func privateMounts() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	for target, kind := range map[string]string{"/proc": "proc", "/sys": "sysfs", "/run": "tmpfs"} {
		if err := unix.Mount(kind, target, kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", target, err)
		}
	}
	return nil
}

// run runs a command line without quoting and returns what it prints.
func run(t testing.TB, line string) string {
	t.Helper()
	f := strings.Fields(line)
	out, err := exec.Command(f[0], f[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return string(out)
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not in %v", what, patience)
		}
	}
}

// peerSpec is what the other host has to apply.
type peerSpec struct {
	Implementation        netcfg.Implementation // "" for Auto
	Private, RemotePublic [32]byte
	Self, Remote          int            // numbers of the hosts, for addresses
	Endpoint              netip.AddrPort // of the remote host; invalid for none
}

// playPeer is the other host: it applies what its input says, says so, and
// stays until its input ends.
func playPeer(in io.Reader, out io.Writer) int {
	var spec peerSpec
	r := bufio.NewReader(in)
	line, err := r.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &spec)
	}
	if err != nil {
		_, _ = io.WriteString(out, err.Error()+"\n")
		return 1
	}
	h, err := startKernel(stateOf(spec))
	if err != nil {
		_, _ = io.WriteString(out, strings.ReplaceAll(err.Error(), "\n", "; ")+"\n")
		return 1
	}
	defer h.Close()
	_, _ = io.WriteString(out, "ready\n")
	_, _ = io.Copy(io.Discard, r)
	return 0
}

// startKernel makes this process a host.
func startKernel(want netcfg.State) (*Kernel, error) {
	if os.Getenv(peerVar) == "apart" {
		if err := privateMounts(); err != nil {
			return nil, err
		}
	}
	h, err := Open(Options{Interface: "meshd0"})
	if err != nil {
		return nil, err
	}
	if err := reconcile(h, want); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

// startPeer starts the other host: apart in namespaces of its own, or beside the
// test in the same ones. prepare, if any, is called with its process id before it begins.
func startPeer(t *testing.T, where string, spec peerSpec, prepare func(pid int)) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), peerVar+"="+where)
	if where == "apart" {
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS}
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	if prepare != nil {
		prepare(cmd.Process.Pid)
	}
	if err := json.NewEncoder(in).Encode(spec); err != nil {
		t.Fatal(err)
	}
	if got, err := bufio.NewReader(out).ReadString('\n'); got != "ready\n" {
		t.Fatalf("other host: got %q, %v, want ready", got, err)
	}
	return cmd
}
