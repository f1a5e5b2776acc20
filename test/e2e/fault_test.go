// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/gossip"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/node"
	"github.com/meshd/meshd/test/lab"
)

// says reports whether a person would learn of something from the status: in
// an error, or in a problem with its advice.
func says(s control.Status, texts ...string) bool {
	told := []string{s.Reconcile.Error}
	for _, p := range s.Problems {
		told = append(told, p.Text+" "+p.Advice)
	}
	return slices.ContainsFunc(told, func(one string) bool {
		return !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(one, text) })
	})
}

// well is for Await: ready, and nothing to complain of.
func well(s control.Status) bool {
	return lab.Ready(s) && s.Reconcile.Error == "" && len(s.Problems) == 0
}

// TestFaultsAreMended starts a daemon on a host that lacks something. It says
// what, and how to get out of it, and works as soon as that is done. meshd check
// finds it beforehand.
func TestFaultsAreMended(t *testing.T) {
	t.Parallel()
	nft := program(t, "nft")
	tests := []struct {
		name   string
		config []string
		breaks []string // commands
		mends  []string
		texts  []string // in the status
		what   string   // of check's finding
	}{
		{
			name: "no nft", breaks: []string{"mount --bind /dev/null " + nft}, mends: []string{"umount " + nft},
			texts: []string{"nft is not installed", "apt install nftables"}, what: "nftables",
		},
		{
			name: "device of somebody else", breaks: []string{"ip link add meshd0 type bridge"}, mends: []string{"ip link delete meshd0"},
			texts: []string{"meshd0", "not meshd's", "wireguard.interface"}, what: "links",
		},
		{
			name:   "TUN of somebody else",
			breaks: []string{"ip tuntap add meshd0 mode tun"}, mends: []string{"ip link delete meshd0"},
			texts: []string{"meshd0", "not meshd's", "wireguard.interface"}, what: "links",
		},
		{
			name: "network of somebody else", breaks: []string{"mkdir -p " + lab.ConfDir, "touch " + lab.ConfDir + "/05-other.conflist"},
			mends: []string{"rm " + lab.ConfDir + "/05-other.conflist"}, texts: []string{"05-other.conflist", "remove that network"}, what: "cni",
		},
		{
			name: "no plugins", config: []string{"cni:", "  plugin-source: /opt/plugins"}, mends: []string{"cp -r /usr/lib/cni /opt/plugins"},
			texts: []string{"containernetworking-plugins"}, what: "cni",
		},
		{
			name: "read-only /etc", breaks: []string{"mount --bind /etc /etc", "mount -o remount,bind,ro /etc"}, mends: []string{"umount /etc"},
			texts: []string{lab.ConfDir, "read-only file system"}, what: "cni",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m := newMesh(t, lab.NAT, 1)
			n := m.nodes[0]
			m.must(n.Configure(lab.Config(n.Name, nil, tt.config...), m.secret))
			m.commands(n, tt.breaks)
			if found := m.check(n); len(found) != 1 || found[0].What != tt.what {
				t.Errorf("errors that check finds: got %+v, want one of %s", found, tt.what)
			}
			m.start(n)
			m.await(settleLimit, fmt.Sprintf("aware of its fault: %q", tt.texts), func(s control.Status) bool { return says(s, tt.texts...) }, n)
			m.commands(n, tt.mends)
			m.await(settleLimit, "well", well, n)
		})
	}
}

// program is where a program really is, behind all links.
func program(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err == nil {
		path, err = filepath.EvalSymlinks(path)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func (m *testbed) commands(n *lab.Node, commands []string) {
	m.t.Helper()
	for _, command := range commands {
		words := strings.Fields(command)
		m.run(n, words[0], words[1:]...)
	}
}

// TestRefusesToStart starts a daemon that could only do harm. It ends, and says
// what a person can do.
func TestRefusesToStart(t *testing.T) {
	t.Parallel()
	identity, node, objects := lab.StateDir+"/identity.json", lab.StateDir+"/node.json", lab.StateDir+"/objects.cbor"
	tests := []struct {
		name  string
		file  string // of a node that has run
		text  string // what is in it now
		texts []string
	}{
		{"identity torn", identity, `{"version": 1, "ed25519-se`, []string{identity, "damaged", "move it away"}},
		{"identity of another program", identity, "PK\x03\x04", []string{identity, "damaged", "move it away"}},
		{"identity from a newer version", identity, `{"version": 99}`, []string{identity, "written by a newer meshd", "install that version again"}},
		{"claim torn", node, "", []string{node, "damaged", "move it away"}},
		{"claim from a newer version", node, `{"version": 99}`, []string{node, "written by a newer meshd", "install that version again"}},
		{"objects from a newer version", objects, "\xa1\x01\x18\x63", []string{objects, "written by a newer meshd", "install that version again"}}, // {1: 99}
		{"no machine-id", "/etc/machine-id", "", []string{"machine-id", "systemd-machine-id-setup"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			m := newMesh(t, lab.NAT, 1)
			n := m.nodes[0]
			m.start(n)
			m.await(settleLimit, "ready", lab.Ready, n)
			m.must(n.Stop())
			before := withoutCarrier(m.hostState(n.Host))
			m.must(n.WriteFile(tt.file, tt.text, 0o600))
			if found := m.check(n); len(found) != 1 || found[0].What != "state" {
				t.Errorf("errors that check finds: got %+v, want one of state", found)
			}
			m.refuses(n, tt.texts...)
			if content := m.run(n, "cat", tt.file); content != tt.text {
				t.Errorf("%s after a start: got %q, want it as it was", tt.file, content)
			}
			if diff := cmp.Diff(before, withoutCarrier(m.hostState(n.Host))); diff != "" {
				t.Errorf("the host after a start (-before +after):\n%s", diff)
			}
		})
	}
}

// refuses runs a daemon that has to end by itself, with texts in what it prints.
func (m *testbed) refuses(n *lab.Node, texts ...string) {
	m.t.Helper()
	_, err := n.Meshd(m.ctx, "run")
	if err == nil {
		m.t.Fatal("the daemon ended without an error")
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			m.t.Errorf("what the daemon says: got %v, want %q in it", err, text)
		}
	}
}

// TestNoPermission runs a daemon in a user namespace of its own, where it may do
// nothing to the host: as nobody, and as one that only looks like root.
func TestNoPermission(t *testing.T) {
	t.Parallel()
	m := newMesh(t, lab.NAT, 1)
	n := m.nodes[0]
	before := withoutCarrier(m.hostState(n.Host))
	for _, tt := range []struct {
		name, as, advice string
	}{
		{"nobody", "--map-user=65534", "sudo meshd check"},
		{"root in name", "--map-root-user", "grant the container these capabilities"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := m.in(t)
			found, _ := n.Run(m.ctx, "unshare", "--user", tt.as, binary, "check") // fails if it finds errors
			if !strings.Contains(found, tt.advice) {
				t.Errorf("check: got %s, want %q in it", found, tt.advice)
			}
			_, err := n.Run(m.ctx, "unshare", "--user", tt.as, binary, "run")
			const want = "meshd needs CAP_NET_ADMIN on this host: run it as root"
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("run: got %v, want %q", err, want)
			}
			if diff := cmp.Diff(before, withoutCarrier(m.hostState(n.Host))); diff != "" {
				t.Errorf("the host after a start (-before +after):\n%s", diff)
			}
		})
	}
}

// TestTakenPorts has another program listen where the daemon would.
func TestTakenPorts(t *testing.T) {
	t.Parallel()
	m := newMesh(t, lab.NAT, 1)
	n := m.nodes[0]
	t.Run("gossip", func(t *testing.T) {
		m := m.in(t)
		taken := m.listen(n, "tcp", ":7946")
		m.refuses(n, "7946", "gossip.bind")
		m.must(taken.Close())
	})
	t.Run("WireGuard", func(t *testing.T) {
		m := m.in(t)
		taken := m.listen(n, "udp", ":51820")
		m.start(n)
		m.await(settleLimit, "aware that its port is taken", func(s control.Status) bool { return says(s, "51820", "wireguard.listen-port") }, n)
		m.must(taken.Close())
		m.await(settleLimit, "well", well, n)
	})
	t.Run("metrics", func(t *testing.T) {
		m := m.in(t)
		m.must(n.Stop())
		taken := m.listen(n, "tcp", lab.MetricsAddress)
		m.start(n)
		m.await(settleLimit, "aware that its port is taken", func(s control.Status) bool { return says(s, "9586", "metrics.listen") }, n)
		m.must(taken.Close())
		m.await(settleLimit, "well", well, n)
	})
}

func (m *testbed) listen(n *lab.Node, network, address string) io.Closer {
	m.t.Helper()
	var c io.Closer
	m.must(n.Do(func() (err error) {
		if network == "udp" {
			c, err = net.ListenPacket(network, address)
		} else {
			c, err = net.Listen(network, address)
		}
		return err
	}))
	return c
}

// TestFullDisk fills the disk of a node that runs. The mesh runs on, and takes a
// newcomer in; a restart finds the old state whole.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	m := newMesh(t, lab.NAT, 4)
	n := m.nodes[0]
	m.run(n, "mkdir", "-p", lab.StateDir)
	m.run(n, "mount", "-t", "tmpfs", "-o", "size=256k", "none", lab.StateDir)
	m.start(m.nodes[:2]...)
	before := addresses(t, m.settle(settleLimit, m.nodes[:2]...))
	m.connected(pingLimit, m.nodes[:2]...)

	// Whoever replaces a file meanwhile leaves room for another one: that of the
	// old file. So the disk is full only if nobody was at it when it was filled.
	m.run(n, "sh", "-c", `cd "$1"; until ! ls .*.tmp && test "$(stat -f -c %f .)" = 0; do cat /dev/zero >> fill || :; done 2>&1`, "sh", lab.StateDir)
	m.start(m.nodes[2])
	m.await(settleLimit, "aware of its full disk", func(s control.Status) bool { return says(s, lab.StateDir, "no space left on device") }, n)
	m.start(m.nodes[3])
	m.settle(settleLimit, m.nodes...)
	m.connected(pingLimit, m.nodes...)
	if strings.Contains(n.Log(), "works again") {
		t.Error("log while the disk is full: got that reconcile works again, want an error that stays")
	}

	m.run(n, "rm", lab.StateDir+"/fill")
	m.await(settleLimit, "well", well, n)
	m.must(n.Stop())
	m.start(n)
	after := addresses(t, m.settle(settleLimit, m.nodes...))
	for _, a := range before {
		if !slices.Contains(after, a) {
			t.Errorf("addresses after the disk was full: got %q, want %s among them", after, a)
		}
	}
}

// TestWithoutIPv6 has hosts on which IPv6 is switched off, as many clouds do.
func TestWithoutIPv6(t *testing.T) {
	t.Parallel()
	m := newMesh(t, lab.NAT, 2)
	for _, n := range m.nodes {
		m.commands(n, []string{"sysctl -q -w net.ipv6.conf.all.disable_ipv6=1", "sysctl -q -w net.ipv6.conf.default.disable_ipv6=1"})
		if found := m.check(n); found != nil {
			t.Errorf("errors on %s: got %+v, want none", n.Name, found)
		}
	}
	m.start(m.nodes...)
	m.settle(settleLimit, m.nodes...)
	m.connected(pingLimit, m.nodes...)
	m.reaches(m.pod(m.nodes[0], "near"), m.pod(m.nodes[1], "far"))
	m.await(settleLimit, "well", well, m.nodes...)
}

// TestUnderlayAddressChanges gives a host another address while the mesh runs, as
// providers do. Nobody else changes anything.
func TestUnderlayAddressChanges(t *testing.T) {
	t.Parallel()
	m := settledMesh(t, lab.Routed, 3)
	m.connected(pingLimit, m.nodes...)
	n := m.nodes[1]
	talk := m.converse(m.pod(n, "near"), m.pod(m.nodes[2], "far"))
	talk.goesOn(t)
	const other = "203.0.113.77"
	for _, command := range []string{
		"ip route add " + other + " dev host2",
		"nft add element inet lab sources { host2 . " + other + " }",
	} {
		words := strings.Fields(command)
		m.run(m.lab.Outside(), words[0], words[1:]...)
	}
	m.commands(n, []string{
		"ip -6 address flush dev " + lab.HostLink + " scope global",
		"ip address add " + other + "/32 dev " + lab.HostLink,
		"ip route replace default via 172.31.1.1 src " + other,
		"ip address delete " + n.Public().String() + "/32 dev " + lab.HostLink,
	})
	m.await(settleLimit, "known under its new address", func(s control.Status) bool {
		return slices.ContainsFunc(s.Peers, func(p control.Peer) bool { return strings.HasPrefix(p.Endpoint, other+":") })
	}, m.nodes[0], m.nodes[2])
	m.settle(settleLimit, m.nodes...)
	m.connected(pingLimit, m.nodes...)
	talk.goesOn(t)
	talk.Stop()
}

// TestUplinkGoesAndComes takes a host's only link down and up again, with which
// its routes go, until somebody makes them anew.
func TestUplinkGoesAndComes(t *testing.T) {
	t.Parallel()
	m := settledMesh(t, lab.NAT, 3)
	before := addresses(t, m.settle(settleLimit, m.nodes...))
	m.connected(pingLimit, m.nodes...)
	n := m.nodes[1]
	m.run(n, "ip", "link", "set", lab.HostLink, "down")
	m.await(settleLimit, "aware of one dead peer", lab.Sees(1), m.nodes[0], m.nodes[2])
	m.await(settleLimit, "alone, and aware of why", all(lab.Sees(0), shows(node.ProblemUplink, "no default route"), shows(gossip.ProblemJoin, "nobody of the join list answers", "gossip port")), n)
	m.commands(n, []string{"ip link set " + lab.HostLink + " up", "ip route add default via 192.168.2.254"})
	after := addresses(t, m.settle(settleLimit, m.nodes...))
	m.connected(pingLimit, m.nodes...)
	if !slices.Equal(before, after) {
		t.Errorf("addresses after the link came back: got %q, want %q", after, before)
	}
}

// resolver is a name server whose answers change.
type resolver struct {
	conn net.PacketConn

	mu    sync.Mutex
	names map[string]netip.Addr // what is not in it does not exist
	mute  map[string]bool       // names that are never answered
	told  map[string]netip.Addr // with which addresses names were answered last
}

// resolver starts a name server at the outside of the lab, which the nodes ask.
func (m *testbed) resolver(nodes ...*lab.Node) *resolver {
	m.t.Helper()
	r := &resolver{names: map[string]netip.Addr{}, mute: map[string]bool{}, told: map[string]netip.Addr{}}
	m.must(m.lab.Outside().Do(func() (err error) {
		r.conn, err = net.ListenPacket("udp", netip.AddrPortFrom(lab.OutsideAddr, 53).String())
		return err
	}))
	var serving sync.WaitGroup
	serving.Go(r.serve)
	m.t.Cleanup(func() {
		m.must(r.conn.Close())
		serving.Wait()
	})
	for _, n := range nodes {
		m.must(n.WriteFile("/etc/resolv.conf", "nameserver "+lab.OutsideAddr.String()+"\n", 0o644))
	}
	return r
}

// set has a name lead to an address, or to none if that is invalid.
func (r *resolver) set(name string, a netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.names[name] = a
}

func (r *resolver) serve() {
	buf := make([]byte, 512)
	for {
		n, from, err := r.conn.ReadFrom(buf)
		if err != nil {
			return
		}
		var q dnsmessage.Message
		if q.Unpack(buf[:n]) != nil || len(q.Questions) != 1 {
			continue
		}
		if answer, ok := r.answer(q); ok {
			_, _ = r.conn.WriteTo(answer, from) // a question that gets lost is asked again
		}
	}
}

func (r *resolver) answer(q dnsmessage.Message) ([]byte, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	question := q.Questions[0]
	name := strings.TrimSuffix(question.Name.String(), ".")
	if r.mute[name] {
		return nil, false
	}
	a := dnsmessage.Message{Header: dnsmessage.Header{ID: q.ID, Response: true, RecursionAvailable: true}, Questions: q.Questions}
	addr := r.names[name]
	if !addr.IsValid() {
		a.RCode = dnsmessage.RCodeNameError
	}
	if addr.Is4() && question.Type == dnsmessage.TypeA {
		r.told[name] = addr
		a.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: question.Name, Type: question.Type, Class: question.Class, TTL: 1},
			Body:   &dnsmessage.AResource{A: addr.As4()},
		}}
	}
	packed, err := a.Pack()
	return packed, err == nil
}

// saw returns an error until somebody has been told that the name leads to the
// address.
func (r *resolver) saw(name string, a netip.Addr) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if got := r.told[name]; got != a {
		return fmt.Errorf("answer to who asked for %s: got %s, want %s", name, got, a)
	}
	return nil
}

// TestSeedsByName joins by names of which one does not exist at first, then leads
// to nobody, and then to a node, while another one is never answered.
func TestSeedsByName(t *testing.T) {
	t.Parallel()
	m := newMesh(t, lab.NAT, 3)
	names := m.resolver(m.nodes...)
	names.mute["hangs.example"] = true
	names.set("good.example", m.nodes[0].Public())
	m.must(m.nodes[1].Configure(lab.Config(m.nodes[1].Name, []string{"hangs.example", "changes.example"}), m.secret))
	m.must(m.nodes[2].Configure(lab.Config(m.nodes[2].Name, []string{"hangs.example", "good.example"}), m.secret))
	m.start(m.nodes...)
	// A seed that hangs doesn't keep another one from being asked.
	m.settle(settleLimit, m.nodes[0], m.nodes[2])

	late := m.nodes[1]
	if s, err := late.Status(m.ctx); err != nil || s.Node.Slot != mesh.None {
		t.Fatalf("node whose seeds don't resolve: got %+v, %v, want one without a slot", s.Node, err)
	}
	names.set("changes.example", lab.OutsideAddr) // where nobody listens
	m.eventually(settleLimit, func() error { return names.saw("changes.example", lab.OutsideAddr) })
	names.set("changes.example", m.nodes[0].Public())
	m.settle(settleLimit, m.nodes...)
	m.connected(pingLimit, m.nodes...)
	addresses(t, m.settle(settleLimit, m.nodes...))
}
