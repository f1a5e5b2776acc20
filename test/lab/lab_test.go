// SPDX-License-Identifier: Apache-2.0

//go:build !kernel

package lab_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/meshd/meshd/test/lab"
)

func TestHostHasItsOwnNameFilesAndProcesses(t *testing.T) {
	ctx, l := newLab(t)
	a, b := newHost(ctx, t, l, "alpha", lab.NAT), newHost(ctx, t, l, "beta", lab.Routed)

	if got := strings.TrimSpace(run(ctx, t, a, "hostname")); got != "alpha" {
		t.Errorf("host name: got %q, want alpha", got)
	}
	if x, y := run(ctx, t, a, "cat", "/etc/machine-id"), run(ctx, t, b, "cat", "/etc/machine-id"); x == y || len(x) != 33 {
		t.Errorf("machine-id: got %q and %q, want two of 32 digits", x, y)
	}
	for _, path := range []string{"/etc/cni/net.d/x", "/opt/cni/bin/x", "/var/lib/cni/x", "/run/x"} {
		if err := a.WriteFile(path, "mine", 0o600); err != nil {
			t.Fatal(err)
		}
		if got := run(ctx, t, a, "cat", path); got != "mine" {
			t.Errorf("%s: got %q, want what was written", path, got)
		}
		for _, elsewhere := range []string{path, b.Path(path)} {
			if _, err := os.Stat(elsewhere); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("stat %s: got %v, want that the file is only on its host", elsewhere, err)
			}
		}
	}
	if got := strings.Fields(run(ctx, t, a, "sh", "-c", "echo /proc/[0-9]*")); len(got) > 2 {
		t.Errorf("processes: got %v, want the holder and the shell", got)
	}
}

func TestCommandReportsFailure(t *testing.T) {
	ctx, l := newLab(t)
	h := newHost(ctx, t, l, "alpha", lab.NAT)
	_, err := h.Run(ctx, "sh", "-c", "echo sorry >&2; exit 3")
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 || !strings.Contains(err.Error(), "alpha: run sh") || !strings.Contains(err.Error(), "sorry") {
		t.Errorf("got %v, want the host, the command, exit status 3 and what it said", err)
	}
}

func TestUnderlayReachesEveryHost(t *testing.T) {
	ctx, l := newLab(t)
	hosts := []*lab.Host{
		newHost(ctx, t, l, "n1", lab.NAT), newHost(ctx, t, l, "n2", lab.NAT),
		newHost(ctx, t, l, "r3", lab.Routed), newHost(ctx, t, l, "r4", lab.Routed),
	}
	for _, from := range hosts {
		for _, to := range hosts { // itself too: hairpin NAT
			if err := answers(ctx, from, to.Public(), 20); err != nil {
				t.Error(err)
			}
		}
		if err := answers(ctx, from, lab.OutsideAddr, 20); err != nil {
			t.Error(err)
		}
	}
	if err := answers(ctx, hosts[2], hosts[3].Public6(), 20); err != nil {
		t.Error(err)
	}
}

func TestPrivateAddressesAreNotRouted(t *testing.T) {
	ctx, l := newLab(t)
	n1, n2, r3 := newHost(ctx, t, l, "n1", lab.NAT), newHost(ctx, t, l, "n2", lab.NAT), newHost(ctx, t, l, "r3", lab.Routed)
	for _, from := range []*lab.Host{n1, r3} {
		if err := answers(ctx, from, n2.Address(), 1); err == nil {
			t.Errorf("%s reaches %s, the private address of %s", from.Name, n2.Address(), n2.Name)
		}
	}
	run(ctx, t, n1, "ip", "address", "add", "10.4.0.1/32", "dev", "lo")
	if _, err := n1.Run(ctx, "ping", "-q", "-c", "1", "-w", "1", "-I", "10.4.0.1", n2.Public().String()); err == nil {
		t.Error("a packet from a foreign source crosses the underlay")
	}
}

// TestFarSideSeesPublicAddress checks that other hosts see a host's public address.
func TestFarSideSeesPublicAddress(t *testing.T) {
	ctx, l := newLab(t)
	n1, n2 := newHost(ctx, t, l, "n1", lab.NAT), newHost(ctx, t, l, "n2", lab.NAT)
	for name, server := range map[string]*lab.Host{"neighbour": n2, "outside": l.Outside()} {
		addr := lab.OutsideAddr
		if server == n2 {
			addr = n2.Public()
		}
		echo, err := lab.ListenEcho(server.Do, 7000)
		if err != nil {
			t.Fatal(err)
		}
		got, err := lab.SourceSeen(ctx, n1.Do, netip.AddrPortFrom(addr, 7000))
		if err := errors.Join(err, echo.Close()); err != nil {
			t.Fatal(err)
		}
		if want := n1.Public(); got != want {
			t.Errorf("%s: source seen: got %s, want %s", name, got, want)
		}
	}
}

func TestPartitionAndHeal(t *testing.T) {
	for _, u := range []lab.Underlay{lab.NAT, lab.Routed} {
		t.Run(string(u), func(t *testing.T) {
			ctx, l := newLab(t)
			a, b, c := newHost(ctx, t, l, "a", u), newHost(ctx, t, l, "b", u), newHost(ctx, t, l, "c", u)
			if err := l.Partition(ctx, []*lab.Host{a}, []*lab.Host{b, c}); err != nil {
				t.Fatal(err)
			}
			for _, pair := range [][2]*lab.Host{{a, b}, {b, a}, {a, c}, {c, a}} {
				if err := answers(ctx, pair[0], pair[1].Public(), 1); err == nil {
					t.Errorf("%s reaches %s through the partition", pair[0].Name, pair[1].Name)
				}
			}
			if err := answers(ctx, b, c.Public(), 20); err != nil {
				t.Errorf("one side of the partition: %v", err)
			}
			if err := l.Heal(ctx); err != nil {
				t.Fatal(err)
			}
			if err := answers(ctx, a, b.Public(), 20); err != nil {
				t.Errorf("healed: %v", err)
			}
		})
	}
}

func TestCutAndRestore(t *testing.T) {
	for _, u := range []lab.Underlay{lab.NAT, lab.Routed} {
		t.Run(string(u), func(t *testing.T) {
			ctx, l := newLab(t)
			a, b := newHost(ctx, t, l, "a", u), newHost(ctx, t, l, "b", u)
			routes := run(ctx, t, a, "ip", "-o", "route")
			if err := a.Cut(ctx); err != nil {
				t.Fatal(err)
			}
			if err := answers(ctx, b, a.Public(), 1); err == nil {
				t.Error("a host whose link is cut answers")
			}
			if err := a.Restore(ctx); err != nil {
				t.Fatal(err)
			}
			if err := answers(ctx, b, a.Public(), 20); err != nil {
				t.Error(err)
			}
			if got := run(ctx, t, a, "ip", "-o", "route"); got != routes {
				t.Errorf("routes after a cut: got %q, want %q", got, routes)
			}
		})
	}
}

func TestAwaitPings(t *testing.T) {
	ctx, l := newLab(t)
	a, b := newHost(ctx, t, l, "a", lab.NAT), newHost(ctx, t, l, "b", lab.NAT)
	if err := a.AwaitPings(ctx, []netip.Addr{b.Public(), lab.OutsideAddr}); err != nil {
		t.Error(err)
	}
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	err := a.AwaitPings(short, []netip.Addr{b.Public(), b.Address()})
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "no answer from ["+b.Address().String()+"]") {
		t.Errorf("got %v, want that it names the silent address alone", err)
	}
}

func TestTwoLabsDoNotMeet(t *testing.T) {
	ctx, first := newLab(t)
	_, second := newLab(t)
	a, b := newHost(ctx, t, first, "a", lab.NAT), newHost(ctx, t, second, "b", lab.NAT)
	c := newHost(ctx, t, second, "c", lab.NAT)
	if a.Public() != b.Public() {
		t.Fatalf("got %s and %s, want the same address in both labs", a.Public(), b.Public())
	}
	if err := answers(ctx, a, c.Public(), 1); err == nil {
		t.Error("a host of one lab reaches one of the other")
	}
	if err := answers(ctx, b, c.Public(), 20); err != nil {
		t.Error(err)
	}
}

// podNetwork is a conflist such as meshd would install.
const podNetwork = `{"cniVersion": "1.0.0", "name": "meshd", "plugins": [
	{"type": "bridge", "bridge": "kube-bridge", "isDefaultGateway": true, "hairpinMode": true,
	 "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.42.0.0/24"}]]}},
	{"type": "portmap", "capabilities": {"portMappings": true}}]}`

func TestPod(t *testing.T) {
	ctx, l := newLab(t)
	h := newHost(ctx, t, l, "a", lab.NAT)
	if err := h.WriteFile(lab.ConfDir+"/10-meshd.conflist", podNetwork, 0o644); err != nil {
		t.Fatal(err)
	}
	run(ctx, t, h, "mkdir", "-p", lab.BinDir)
	run(ctx, t, h, "sh", "-c", "ln -s /usr/lib/cni/* "+lab.BinDir)

	p, err := h.Pod(ctx, lab.Network, "web")
	if err != nil {
		t.Fatal(err)
	}
	if !netip.MustParsePrefix("10.42.0.0/24").Contains(p.Addresses[0]) {
		t.Errorf("pod address: got %s, want one of 10.42.0.0/24", p.Addresses[0])
	}
	if err := answers(ctx, h, p.Addresses[0], 20); err != nil {
		t.Error(err)
	}
	if out, err := p.Run(ctx, "ip", "-o", "-4", "address"); err != nil || !strings.Contains(out, p.Addresses[0].String()) {
		t.Errorf("addresses in the pod: got %q, %v, want %s", out, err, p.Addresses[0])
	}
	if err := p.Delete(ctx); err != nil {
		t.Fatal(err)
	}
	if got := run(ctx, t, h, "ip", "netns"); got != "" {
		t.Errorf("namespaces after delete: got %q, want none", got)
	}
}

// TestNothingOutlivesTheProgram kills a program whose lab has a process, a pod's namespace
// and files.
func TestNothingOutlivesTheProgram(t *testing.T) {
	before := traces(t)
	program := exec.Command("/proc/self/exe")
	program.Env = append(os.Environ(), abandonedLab+"=1")
	stdout, err := program.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := program.Start(); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(stdout)
	line, err := r.ReadString('\n')
	if line != "ready\n" {
		rest, _ := io.ReadAll(r)
		t.Fatalf("got %q, %v from the program, want ready; then %s", line, err, rest)
	}
	if during := traces(t); len(during) <= len(before) {
		t.Errorf("got %d traces with a lab, %d before: the test would see none", len(during), len(before))
	}
	if err := program.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := program.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("got %v, want that the program was killed", err)
	}
	var left []string
	for deadline := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		left = nil
		for trace := range traces(t) {
			if !before[trace] {
				left = append(left, trace)
			}
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("left behind: %s", strings.Join(left, ", "))
		}
	}
}

// traces returns what an abandoned lab could leave on the machine: processes, without
// which no namespace stays, and mounts, links and files of the machine itself.
func traces(t *testing.T) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range processes {
		b, err := os.ReadFile(path)
		if err == nil && (strings.Contains(string(b), "abandoned") || strings.Contains(string(b), "987654")) {
			found[path+" "+string(b)] = true
		}
	}
	for _, path := range []string{"/proc/self/mounts", "/proc/net/dev"} {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			name, _, _ := strings.Cut(line, ":") // without an interface's counters
			found[path+" "+name] = true
		}
	}
	for _, pattern := range []string{"/run/netns/*", "/etc/cni/net.d/*", "/var/lib/cni/*", "/opt/cni/*"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			found[path] = true
		}
	}
	return found
}

// limit is for conditions that take well under a second on an idle machine.
const limit = 30 * time.Second

func run(ctx context.Context, t *testing.T, h *lab.Host, name string, args ...string) string {
	t.Helper()
	out, err := h.Run(ctx, name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
