// SPDX-License-Identifier: Apache-2.0

package cni_test

import (
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/internal/cni"
)

// TestPlugins does with the installed conflist what containerd does: it adds pods, sends
// packets between them and deletes them, with the distribution's plugins.
func TestPlugins(t *testing.T) {
	tests := []struct {
		name         string
		cidrs        []netip.Prefix
		gateways     []string
		pod          []string // addresses of the first pod
		renumbered   []netip.Prefix
		renumberedTo []string // addresses of the first pod afterwards
	}{
		{
			name:  "ipv4",
			cidrs: prefixes("10.42.7.0/24"), gateways: []string{"10.42.7.1"}, pod: []string{"10.42.7.2"},
			renumbered: prefixes("10.42.9.0/24"), renumberedTo: []string{"10.42.9.2"},
		},
		{
			name:  "ipv6",
			cidrs: prefixes("fd42:7::/64"), gateways: []string{"fd42:7::1"}, pod: []string{"fd42:7::2"},
			renumbered: prefixes("fd42:9::/64"), renumberedTo: []string{"fd42:9::2"},
		},
		{
			name:  "dual",
			cidrs: prefixes("10.42.7.0/24", "fd42:7::/64"), gateways: []string{"10.42.7.1", "fd42:7::1"},
			pod:        []string{"10.42.7.2", "fd42:7::2"},
			renumbered: prefixes("10.42.9.0/24", "fd42:9::/64"), renumberedTo: []string{"10.42.9.2", "fd42:9::2"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, _ := host(t)
			c.PluginSource = "/usr/lib/cni"
			c.PodCIDRs, c.MTU = tt.cidrs, 1380
			install(t, c)
			isolate(t)
			run := containerd{t: t, cni: libcni.NewCNIConfigWithCacheDir([]string{c.BinDir}, t.TempDir(), nil)}

			a, b := run.add(c, "a", 8080), run.add(c, "b", 8081)
			if diff := cmp.Diff(tt.pod, a.addresses); diff != "" {
				t.Errorf("addresses of a pod (-want +got):\n%s", diff)
			}
			a.wantLinks(c, tt.gateways)
			for i, gateway := range tt.gateways {
				a.ping(b.addresses[i])
				a.ping(gateway)
				a.wantHostPort(gateway, 8080)
				b.wantHostPort(gateway, 8080)
			}
			if got, want := len(hostPortRules(t)), 2*len(tt.gateways); got != want {
				t.Errorf("got %d rules for host ports, want %d", got, want)
			}
			run.del(c, a, b)
			wantNothingLeft(t)

			c.PodCIDRs = tt.renumbered
			install(t, c)
			a = run.add(c, "c", 8082)
			if diff := cmp.Diff(tt.renumberedTo, a.addresses); diff != "" {
				t.Errorf("addresses after renumbering (-want +got):\n%s", diff)
			}
			run.del(c, a)
		})
	}
}

// isolate gives the calling test a thread with its own network and mount namespaces. The
// thread is never unlocked, so it ends with the test, and the namespaces with it, even if
// the test is killed. Child processes inherit the namespaces.
func isolate(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	// host-local keeps its state in /var/lib/cni; named network namespaces and iptables' lock
	// are in /run.
	for _, dir := range []string{"/var/lib", "/run"} {
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
	}
	command(t, "ip", "link", "set", "lo", "up")
}

// containerd does what containerd does when pods are added and deleted.
type containerd struct {
	t   *testing.T
	cni *libcni.CNIConfig
}

type pod struct {
	t         *testing.T
	name      string
	runtime   *libcni.RuntimeConf
	result    *types100.Result
	addresses []string
}

// add adds a pod whose port 80 is the host's port hostPort.
func (r containerd) add(c cni.Config, name string, hostPort int) pod {
	r.t.Helper()
	command(r.t, "ip", "netns", "add", name)
	p := pod{t: r.t, name: name, runtime: &libcni.RuntimeConf{
		ContainerID: "container-" + name,
		NetNS:       "/run/netns/" + name,
		IfName:      "eth0",
		CapabilityArgs: map[string]any{
			"portMappings": []map[string]any{{"hostPort": hostPort, "containerPort": 80, "protocol": "tcp"}},
		},
	}}
	r.addLoopback(p)

	result, err := r.cni.AddNetworkList(r.t.Context(), r.conflist(c), p.runtime)
	if err != nil {
		r.t.Fatalf("ADD %s: %v", name, err)
	}
	if p.result, err = types100.GetResult(result); err != nil {
		r.t.Fatal(err)
	}
	for _, ip := range p.result.IPs {
		p.addresses = append(p.addresses, ip.Address.IP.String())
	}
	return p
}

// addLoopback adds a pod to the network that containerd has built in.
func (r containerd) addLoopback(p pod) {
	r.t.Helper()
	list, err := libcni.ConfListFromBytes([]byte(`{"cniVersion": "1.0.0", "name": "cni-loopback", "plugins": [{"type": "loopback"}]}`))
	if err != nil {
		r.t.Fatal(err)
	}
	lo := &libcni.RuntimeConf{ContainerID: p.runtime.ContainerID, NetNS: p.runtime.NetNS, IfName: "lo"}
	if _, err := r.cni.AddNetworkList(r.t.Context(), list, lo); err != nil {
		r.t.Fatalf("ADD %s to loopback: %v", p.name, err)
	}
}

func (r containerd) del(c cni.Config, pods ...pod) {
	r.t.Helper()
	for _, p := range pods {
		if err := r.cni.DelNetworkList(r.t.Context(), r.conflist(c), p.runtime); err != nil {
			r.t.Errorf("DEL %s: %v", p.name, err)
		}
		h := p.netlink()
		if _, err := h.LinkByName("eth0"); err == nil {
			r.t.Errorf("%s still has eth0 after DEL", p.name)
		}
		h.Close()
		command(r.t, "ip", "netns", "delete", p.name)
	}
}

// conflist reads the first file of the directory, as containerd does.
func (r containerd) conflist(c cni.Config) *libcni.NetworkConfigList {
	r.t.Helper()
	files, err := libcni.ConfFiles(c.ConfDir, []string{".conf", ".conflist", ".json"})
	if err != nil {
		r.t.Fatal(err)
	}
	if diff := cmp.Diff([]string{filepath.Join(c.ConfDir, cni.FileName)}, files); diff != "" {
		r.t.Fatalf("configurations that containerd sees (-want +got):\n%s", diff)
	}
	list, err := libcni.ConfListFromFile(files[0])
	if err != nil {
		r.t.Fatal(err)
	}
	return list
}

// wantLinks checks the pod's link, the bridge and the bridge port between them.
func (p pod) wantLinks(c cni.Config, gateways []string) {
	p.t.Helper()
	host, err := netlink.NewHandle()
	if err != nil {
		p.t.Fatal(err)
	}
	defer host.Close()
	bridge := linkByName(p.t, host, c.Bridge)
	port := linkByName(p.t, host, p.result.Interfaces[1].Name)
	inside := p.netlink()
	defer inside.Close()
	eth0 := linkByName(p.t, inside, "eth0")

	got := map[string]int{}
	for _, l := range []netlink.Link{bridge, port, eth0} {
		got[l.Attrs().Name] = l.Attrs().MTU
	}
	want := map[string]int{bridge.Attrs().Name: c.MTU, port.Attrs().Name: c.MTU, "eth0": c.MTU}
	if diff := cmp.Diff(want, got); diff != "" {
		p.t.Errorf("MTU (-want +got):\n%s", diff)
	}
	info, err := host.LinkGetProtinfo(port)
	if err != nil {
		p.t.Fatal(err)
	}
	if port.Attrs().MasterIndex != bridge.Attrs().Index || !info.Hairpin {
		p.t.Errorf("got %s under link %d, hairpin %t, want it on the bridge, with hairpin", port.Attrs().Name, port.Attrs().MasterIndex, info.Hairpin)
	}
	if diff := cmp.Diff(gateways, globalAddresses(p.t, host, bridge)); diff != "" {
		p.t.Errorf("addresses of the bridge (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(p.addresses, globalAddresses(p.t, inside, eth0)); diff != "" {
		p.t.Errorf("addresses of eth0 (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(gateways, defaultGateways(p.t, inside)); diff != "" {
		p.t.Errorf("default routes (-want +got):\n%s", diff)
	}
}

// netlink returns a handle for the inside of the pod.
func (p pod) netlink() *netlink.Handle {
	p.t.Helper()
	ns, err := netns.GetFromName(p.name)
	if err != nil {
		p.t.Fatal(err)
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		p.t.Fatal(err)
	}
	return h
}

// ping waits for one answer. The first packets over IPv6 are lost while the
// addresses are tentative (RFC 4862, section 5.4).
func (p pod) ping(address string) {
	p.t.Helper()
	command(p.t, "ip", "netns", "exec", p.name, "ping", "-n", "-i", "0.2", "-c", "1", "-w", "60", address)
}

// wantHostPort connects from p to the host port of pod a. If p is pod a itself, packets
// leave the bridge by the port that they came from.
func (p pod) wantHostPort(gateway string, port int) {
	p.t.Helper()
	listener := inside(p.t, "a", func() (net.Listener, error) { return net.Listen("tcp", ":80") })
	defer listener.Close()
	conn := inside(p.t, p.name, func() (net.Conn, error) {
		d := net.Dialer{Timeout: time.Minute}
		return d.DialContext(p.t.Context(), "tcp", netip.AddrPortFrom(netip.MustParseAddr(gateway), uint16(port)).String())
	})
	defer conn.Close()
	server, err := listener.Accept()
	if err != nil {
		p.t.Fatal(err)
	}
	if _, err := io.WriteString(server, "hello"); err != nil {
		p.t.Fatal(err)
	}
	if err := server.Close(); err != nil {
		p.t.Fatal(err)
	}
	got, err := io.ReadAll(conn)
	if err != nil || string(got) != "hello" {
		p.t.Errorf("%s to the host's port %d: got %q, %v", p.name, port, got, err)
	}
}

// inside calls f on this thread while it is in a pod's network namespace.
func inside[T any](t *testing.T, pod string, f func() (T, error)) T {
	t.Helper()
	host, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	ns, err := netns.GetFromName(pod)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if err := netns.Set(ns); err != nil {
		t.Fatal(err)
	}
	v, err := f()
	if err := netns.Set(host); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func linkByName(t *testing.T, h *netlink.Handle, name string) netlink.Link {
	t.Helper()
	l, err := h.LinkByName(name)
	if err != nil {
		t.Fatalf("link %s: %v", name, err)
	}
	return l
}

func globalAddresses(t *testing.T, h *netlink.Handle, l netlink.Link) []string {
	t.Helper()
	addresses, err := h.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, a := range addresses {
		if a.Scope == unix.RT_SCOPE_UNIVERSE {
			out = append(out, a.IP.String())
		}
	}
	return out
}

func defaultGateways(t *testing.T, h *netlink.Handle) []string {
	t.Helper()
	var out []string
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := h.RouteList(nil, family)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range routes {
			if ones, _ := r.Dst.Mask.Size(); ones == 0 {
				out = append(out, r.Gw.String())
			}
		}
	}
	return out
}

// wantNothingLeft checks that no reserved addresses and no rules for host ports remain.
func wantNothingLeft(t *testing.T) {
	t.Helper()
	entries, err := os.ReadDir("/var/lib/cni/networks/" + cni.NetworkName)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "lock" && !strings.HasPrefix(e.Name(), "last_reserved_ip.") {
			t.Errorf("address %s is still reserved", e.Name())
		}
	}
	if rules := hostPortRules(t); len(rules) > 0 {
		t.Errorf("rules for host ports are still there: %q", rules)
	}
}

// hostPortRules returns the rules that forward a host port to a pod.
func hostPortRules(t *testing.T) []string {
	t.Helper()
	var rules []string
	for _, save := range []string{"iptables-save", "ip6tables-save"} {
		for line := range strings.Lines(command(t, save, "-t", "nat")) {
			if strings.Contains(line, "DNAT --to-destination") {
				rules = append(rules, line)
			}
		}
	}
	return rules
}

// command runs a command in the thread's namespaces and returns its output.
func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}
