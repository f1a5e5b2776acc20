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

// The tests need a host of their own. Each test runs again in a child process that has
// its own network, mount and process namespaces. The kernel removes everything when the
// child ends, for whatever reason, and simultaneous runs don't affect each other.
const (
	insideVar = "NETCFG_TEST_INSIDE" // name of the test that the child runs
	peerVar   = "NETCFG_TEST_PEER"   // set in the child that acts as the other host: apart | beside
	// socketsVar is set in the child that opens these sockets, see openSockets.
	socketsVar = "NETCFG_TEST_SOCKETS"
)

// patience is how long a test waits for something; a loaded machine may be slow.
const patience = 60 * time.Second

func TestMain(m *testing.M) {
	if os.Getenv(peerVar) != "" {
		os.Exit(playPeer(os.Stdin, os.Stdout))
	}
	if sockets := os.Getenv(socketsVar); sockets != "" {
		os.Exit(openSockets(strings.Fields(sockets)))
	}
	os.Exit(m.Run())
}

// namespaced runs the calling test in its own namespaces and returns true there. In the
// original process it returns false after the child has ended; the test must then return.
func namespaced(t *testing.T) bool {
	t.Helper()
	if os.Getenv(insideVar) == t.Name() {
		isolate(t)
		t.Cleanup(func() { goleak.VerifyNone(t) })
		return true
	}
	t.Parallel() // children share nothing, and mostly wait for the kernel
	// Pdeathsig is sent when the thread that started the child ends.
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

// isolate adapts the mount namespace to the network namespace.
func isolate(t testing.TB) {
	t.Helper()
	if err := privateMounts(); err != nil {
		t.Fatal(err)
	}
	run(t, "ip link set lo up")
}

// privateMounts replaces mounts of the machine by those that belong to the process's own
// namespaces.
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

// run runs a command line, split at blanks, and returns its output.
func run(t testing.TB, line string) string {
	t.Helper()
	f := strings.Fields(line)
	out, err := exec.Command(f[0], f[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return string(out)
}

// eventually waits until a condition is true.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}

// peerSpec is the configuration of the other host.
type peerSpec struct {
	Implementation        netcfg.Implementation // "" for Auto
	Private, RemotePublic [32]byte
	Self, Remote          int            // numbers of the hosts, for addresses
	Endpoint              netip.AddrPort // of the remote host; invalid for none
}

// playPeer runs the other host: it applies the configuration from its input, reports
// that, and waits until its input ends.
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

// startKernel opens the kernel and applies the desired state.
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

// startPeer starts the other host, in its own namespaces (apart) or in those of the test
// (beside). If prepare is not nil, it is called with the process id before the other host
// starts.
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
