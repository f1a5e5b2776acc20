// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/test/lab"
)

// leaks counts on a client's host the packets to the web server that leave past the tunnel.
const leaks = `
table inet leaks {
	counter leaked { }
	chain out {
		type filter hook postrouting priority 300
		oifname %q ip daddr %s counter name leaked
		oifname %[1]q ip6 daddr %[3]s counter name leaked
	}
}
`

// internet is a mesh with two exits, and around it hosts that are not nodes.
type internet struct {
	*village
	cloud, lone *lab.Node // the exits: with IPv4 alone, and with both families
	web         *lab.Host // a server with both families
	nas         *lab.Host // on the private network of the first exit
	laptop      *lab.Host // with both families
	printer     *lab.Host // on the laptop's network
}

// newInternet makes an internet whose nodes are no exits yet.
func newInternet(t *testing.T) *internet {
	t.Helper()
	w := &internet{}
	w.village = newVillage(t, func(m *testbed) []*lab.Host {
		host := func(name string) *lab.Host {
			h, err := m.lab.Host(m.ctx, name, lab.Routed)
			m.must(err)
			return h
		}
		cloud := m.site("cloud", lab.SiteOptions{Underlay: lab.NAT}, "cloud-1", "nas")
		cafe := m.site("cafe", lab.SiteOptions{Underlay: lab.Home, GUA: true}, "laptop", "printer")
		w.web, w.nas, w.laptop, w.printer = host("web"), cloud[1], cafe[0], cafe[1]
		return []*lab.Host{cloud[0], host("lone-1"), host("far-1")}
	})
	for _, n := range w.nodes {
		w.configure(n, cluster(1, mesh.ModeLocation)...)
	}
	w.live()
	w.await(settleLimit, "aware of who is reached by strangers", func(s control.Status) bool {
		for _, p := range s.Peers {
			if !p.Open {
				return false
			}
		}
		return s.Node.Open
	}, w.nodes...)
	w.cloud, w.lone = w.node("cloud-1"), w.node("lone-1")
	return w
}

// offer has nodes be exits from now on, and waits until a node knows of all of them.
func (w *internet) offer(exits ...*lab.Node) {
	w.t.Helper()
	for _, n := range exits {
		w.configure(n, append([]string{"  exit: true"}, cluster(1, mesh.ModeLocation)...)...)
		w.must(n.Reload())
		w.eventually(settleLimit, func() error {
			out, err := w.nodes[2].Run(w.ctx, binary, "client", "add", "probe", "--access", "internet", "--service-gateway", n.Name)
			if err != nil {
				return err
			}
			w.run(w.nodes[2], binary, "client", "remove", "probe")
			if i := strings.Index(out, "# "+n.Name); i < 0 || !strings.Contains(out[i:], "0.0.0.0/0") {
				return fmt.Errorf("%s is not the exit:\n%s", n.Name, out)
			}
			return nil
		})
	}
}

// watch counts from now on what leaves past the tunnel.
func (w *internet) watch() {
	w.t.Helper()
	const path = "/run/leaks.nft"
	w.must(w.laptop.WriteFile(path, "table inet leaks\ndelete table inet leaks\n"+fmt.Sprintf(leaks, lab.HostLink, w.web.Public(), w.web.Public6()), 0o600))
	w.run(w.laptop, "nft", "-f", path)
}

// leaked returns how many packets have left past the tunnel.
func (w *internet) leaked() bool {
	w.t.Helper()
	return !strings.Contains(w.run(w.laptop, "nft", "list", "counter", "inet", "leaks", "leaked"), "packets 0 ")
}

// tight checks that nothing has left past the tunnel.
func (w *internet) tight(when string) {
	w.t.Helper()
	if w.leaked() {
		w.t.Errorf("%s: packets left past the tunnel: %s", when, w.run(w.laptop, "nft", "list", "counter", "inet", "leaks", "leaked"))
	}
}

// seen waits until the web server sees the laptop at two addresses.
func (w *internet) seen(as4, as6 netip.Addr) {
	w.t.Helper()
	w.eventually(settleLimit, func() error {
		for to, want := range map[netip.Addr]netip.Addr{w.web.Public(): as4, w.web.Public6(): as6} {
			ctx, cancel := context.WithTimeout(w.ctx, 2*time.Second)
			got, err := lab.SourceSeen(ctx, w.laptop.Do, netip.AddrPortFrom(to, port))
			cancel()
			if err != nil || got != want {
				return fmt.Errorf("%s sees %v, %w, want %v", to, got, err, want)
			}
		}
		return nil
	})
}

// lost checks that the laptop reaches the web server in neither family.
func (w *internet) lost(when string) {
	w.t.Helper()
	for _, to := range []netip.Addr{w.web.Public(), w.web.Public6()} {
		ctx, cancel := context.WithTimeout(w.ctx, 2*time.Second)
		if got, err := lab.SourceSeen(ctx, w.laptop.Do, netip.AddrPortFrom(to, port)); err == nil {
			w.t.Errorf("%s: %s sees %s", when, to, got)
		}
		cancel()
	}
}

// unreachable waits until the laptop is told at once that the web server's IPv6 is not reached.
func (w *internet) unreachable() {
	w.t.Helper()
	w.eventually(settleLimit, func() error {
		ctx, cancel := context.WithTimeout(w.ctx, 2*time.Second)
		defer cancel()
		got, err := lab.SourceSeen(ctx, w.laptop.Do, netip.AddrPortFrom(w.web.Public6(), port))
		if !errors.Is(err, unix.ENETUNREACH) && !errors.Is(err, unix.EHOSTUNREACH) {
			return fmt.Errorf("got %v, %w, want unreachable", got, err)
		}
		return nil
	})
}

// near checks that the laptop reaches its own network.
func (w *internet) near(when string) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.ctx, 5*time.Second)
	defer cancel()
	if err := w.laptop.AwaitPings(ctx, []netip.Addr{w.printer.Address(), w.printer.Public6()}); err != nil {
		w.t.Errorf("%s: the laptop's own network: %v", when, err)
	}
}

// bounded checks that the laptop does not reach the private network of the first exit, nor that
// exit itself.
func (w *internet) bounded() {
	w.t.Helper()
	c := &client{Host: w.laptop, v: w.village, name: "laptop"}
	for _, at := range []*lab.Host{w.nas, w.cloud.Host} {
		echo, err := lab.ListenEcho(at.Do, port)
		w.must(err)
		c.refused(netip.AddrPortFrom(at.Address(), port))
		w.must(echo.Close())
	}
}

// TestExit has a client reach the internet through the mesh, with meshd connect and with a printed
// configuration. Only the exits' addresses are seen there, and whatever dies, nothing leaves the
// client past the tunnel.
func TestExit(t *testing.T) {
	t.Parallel()
	w := newInternet(t)
	if out, err := w.cloud.Run(w.ctx, binary, "client", "add", "laptop", "--access", "internet"); err == nil || !strings.Contains(err.Error(), "node.exit: true") {
		t.Errorf("no node offers the internet, and a client gets it: %s, %v", out, err)
	}
	// WireGuard's packets come by another link than the route to their source.
	w.run(w.laptop, "sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1")
	echo, err := lab.ListenEcho(w.web.Do, port)
	w.must(err)
	defer echo.Close()
	w.offer(w.cloud)
	early := w.village.laptop(w.cloud, w.laptop, "early", "--access", "internet")
	w.watch()
	w.unreachable()
	w.tight("no exit has IPv6")
	w.must(early.Down(w.ctx))
	w.offer(w.lone)
	w.watch()
	w.seen(w.laptop.Public(), w.laptop.Public6()) // before there is a tunnel
	if !w.leaked() {
		t.Fatal("packets past the tunnel are not counted")
	}

	kiosk := w.village.laptop(w.cloud, w.laptop, "kiosk", "--access", "pods")
	w.must(kiosk.Down(w.ctx))
	if strings.Contains(kiosk.config, "0.0.0.0/0") {
		t.Errorf("a client that may not reach the internet has a default route:\n%s", kiosk.config)
	}
	kiosk.config = strings.ReplaceAll(kiosk.config, "AllowedIPs = "+w.overlay[w.lone][0].String(), "AllowedIPs = 0.0.0.0/0, ::/0, "+w.overlay[w.lone][0].String())
	kiosk.install(w.laptop)
	ctx, cancel := context.WithTimeout(w.ctx, pingLimit)
	defer cancel()
	w.must(w.laptop.AwaitPings(ctx, w.pods[w.lone].Addresses)) // its tunnel is up
	w.watch()
	w.lost("a client that may not")
	w.must(kiosk.Down(w.ctx))

	c := w.village.laptop(w.cloud, w.laptop, "laptop", "--access", "pods,internet", "--service-gateway", w.cloud.Name)
	w.watch()
	w.seen(w.cloud.Public(), w.lone.Public6()) // the first exit has no IPv6
	w.near("with wg-quick")
	w.bounded()
	w.tight("with wg-quick")
	w.must(c.Down(w.ctx))
	w.seen(w.laptop.Public(), w.laptop.Public6())

	before := w.hostState(w.laptop)
	c.connect()
	w.seen(w.cloud.Public(), w.lone.Public6())
	w.watch()
	w.near("with meshd connect")
	w.bounded()
	w.run(w.laptop, "ip", "link", "delete", clientDevice)
	w.seen(w.cloud.Public(), w.lone.Public6())
	w.tight("the device was deleted")
	w.must(w.cloud.Kill())
	w.must(w.cloud.Cut(w.ctx))
	w.seen(w.lone.Public(), w.lone.Public6())
	w.tight("an exit died")
	c.kill("-KILL")
	_, _ = w.laptop.Run(w.ctx, "ip", "link", "delete", clientDevice) // it is gone already if the daemon ran WireGuard itself
	w.lost("meshd connect is dead")
	w.near("meshd connect is dead")
	w.tight("meshd connect died")
	end := c.connect()
	w.seen(w.lone.Public(), w.lone.Public6())
	w.tight("meshd connect runs again")
	end()
	w.seen(w.laptop.Public(), w.laptop.Public6())
	after := w.hostState(w.laptop)
	for _, what := range []string{"ip -br link", "ip -4 route show table all", "ip -6 route show table all", "ip rule", "ip -6 rule"} {
		if after[what] != before[what] {
			t.Errorf("%s afterwards: got\n%s\nwant\n%s", what, after[what], before[what])
		}
	}
}
