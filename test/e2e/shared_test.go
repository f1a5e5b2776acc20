// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/node"
	"github.com/meshd/meshd/test/lab"
)

// TestSharedNetwork has two nodes of one location serve a network with a host without meshd, while a node
// elsewhere pings that host. The one that serves it loses its links, returns, is drained, forwards nothing, and is
// taken down: each time the other one serves it, and keeps it.
func TestSharedNetwork(t *testing.T) { // not parallel: slow answers count as none
	for _, mode := range []mesh.Mode{mesh.ModeFull, mesh.ModeCross} {
		t.Run(string(mode), func(t *testing.T) {
			var printer *lab.Host
			network := netip.MustParsePrefix("172.30.1.0/24")
			v := newVillage(t, func(m *testbed) []*lab.Host {
				a, err := m.lab.Site(m.ctx, "a", lab.SiteOptions{Underlay: lab.NAT, Subnets: []netip.Prefix{netip.MustParsePrefix("192.168.1.0/24"), network}})
				m.must(err)
				var all []*lab.Host
				for _, name := range []string{"a1", "a2"} {
					h, err := a.Host(m.ctx, name)
					m.must(err)
					all = append(all, h)
				}
				printer, err = a.HostIn(m.ctx, 1, "printer")
				m.must(err)
				return append(m.site("far", lab.SiteOptions{Underlay: lab.NAT}, "r"), all...)
			})
			user := v.node("r")
			for _, n := range v.nodes {
				settings := cluster(1, mode)
				if n != user {
					settings = append([]string{"  allowed-location-ips: [" + network.String() + "]"}, settings...)
				}
				v.configure(n, settings...)
			}
			v.live()
			v.full(v.nodes...)
			at := printer.Address()
			pinged := func() {
				t.Helper()
				ctx, cancel := context.WithTimeout(v.ctx, pingLimit)
				defer cancel()
				v.must(user.AwaitPings(ctx, []netip.Addr{at}))
				v.must(v.pods[user].AwaitPings(ctx, []netip.Addr{at}))
			}
			server := func() *lab.Node {
				v.t.Helper()
				return v.carrier(user, at)
			}
			other := func(n *lab.Node) *lab.Node { return v.without(user, n)[0] }
			serves := func(want *lab.Node) {
				t.Helper()
				v.await(settleLimit, "serving "+network.String(), func(s control.Status) bool {
					return len(s.Node.Networks) == 1 && s.Node.Networks[0].Through == want.Name
				}, want)
			}
			returns := func(n, serving *lab.Node) {
				t.Helper()
				v.settle(settleLimit, v.nodes...)
				v.await(settleLimit, n.Name+" up again", func(s control.Status) bool {
					return !slices.ContainsFunc(s.Peers, func(p control.Peer) bool { return p.Name == n.Name && p.Role != "" })
				}, user, serving)
				if got := server(); got != serving {
					t.Errorf("when %s is back: %v is reached through %s, want %s still", n.Name, network, nameOf(got), serving.Name)
				}
				if s := v.settle(settleLimit, v.nodes...)[slices.Index(v.nodes, n)]; len(s.Node.Networks) != 1 || s.Node.Networks[0].Through != serving.Name {
					t.Errorf("status of %s: got networks %v, want one through %s", n.Name, s.Node.Networks, serving.Name)
				}
			}
			pinged()
			steps := []struct {
				name string
				do   func(n *lab.Node)
				undo func(n *lab.Node)
			}{
				{"it loses all links", func(n *lab.Node) { v.must(n.Cut(v.ctx)) }, func(n *lab.Node) { v.must(n.Restore(v.ctx)) }},
				{"it forwards nothing", func(n *lab.Node) { v.must(n.StopForwarding(v.ctx)) }, func(n *lab.Node) { v.must(n.ResumeForwarding(v.ctx)) }},
				{"it is taken down", func(n *lab.Node) {
					v.must(n.Stop())
					v.run(n, binary, "down", "--force")
				}, func(n *lab.Node) { v.start(n) }},
			}
			if mode == mesh.ModeCross {
				steps = steps[:1] // the modes differ in how these nodes reach each other alone
			}
			for _, step := range steps {
				was := server()
				if was == nil || was == user {
					t.Fatalf("%v is reached through %s, want a1 or a2", network, nameOf(was))
				}
				began := time.Now()
				step.do(was)
				serves(other(was))
				t.Logf("%s: %s serves after %v", step.name, other(was).Name, time.Since(began).Round(10*time.Millisecond))
				pinged()
				step.undo(was)
				returns(was, other(was))
			}

			was := server()
			counted := make(chan string)
			go func() {
				out, err := user.Run(v.ctx, "ping", "-n", "-q", "-i", "0.05", "-c", "100", at.String())
				counted <- fmt.Sprint(out, err)
			}()
			time.Sleep(time.Second)
			v.run(was, binary, "drain")
			v.eventually(settleLimit, func() error {
				if got := server(); got != other(was) {
					return fmt.Errorf("after %s is drained: %v is reached through %s", was.Name, network, nameOf(got))
				}
				return nil
			})
			if out := <-counted; !strings.Contains(out, " 100 received") {
				t.Errorf("pings while %s is drained: %s", was.Name, out)
			}
			v.run(was, binary, "drain", "--undo")
			returns(was, other(was))
			v.encrypted()
		})
	}
}

// TestSharedNetworkBehindLinks has each of two nodes serve the same network by a card of its own. The one that serves it
// loses the other end of that card's link; it says so, and the other one serves the network, and keeps it.
func TestSharedNetworkBehindLinks(t *testing.T) {
	t.Parallel()
	v := newVillage(t, func(m *testbed) []*lab.Host {
		return append(m.site("far", lab.SiteOptions{Underlay: lab.NAT}, "r"), m.site("a", lab.SiteOptions{Underlay: lab.NAT}, "a1", "a2")...)
	})
	user := v.node("r")
	at := netip.MustParseAddr("10.77.0.5")
	for _, n := range v.nodes {
		settings := cluster(1, mesh.ModeFull)
		if n != user {
			settings = append([]string{"  allowed-location-ips: [10.77.0.0/16]"}, settings...)
		}
		v.configure(n, settings...)
	}
	v.live()
	for i, name := range []string{"a1", "a2"} {
		v.serve(served{"wide-" + name, v.node(name), netip.MustParsePrefix("10.77.0.0/16"), netip.AddrFrom4([4]byte{10, 77, 0, byte(i + 1)}), at, false})
	}
	pinged := func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(v.ctx, pingLimit)
		defer cancel()
		v.must(user.AwaitPings(ctx, []netip.Addr{at}))
	}
	pinged()
	was := v.carrier(user, at)
	other := v.without(user, was)[0]
	link := func(state string) { v.run(was, "ip", "-n", "wide-"+was.Name, "link", "set", "eth0", state) }
	through := func(what string, want *lab.Node, problem bool) {
		t.Helper()
		v.await(settleLimit, what, func(s control.Status) bool {
			return len(s.Node.Networks) == 1 && s.Node.Networks[0].Through == want.Name && shows(node.ProblemNetwork, "10.77.0.0/16")(s) == problem
		}, was)
	}
	link("down")
	through("aware of its lost link", other, true)
	pinged()
	link("up")
	through("content", other, false)
	if got := v.carrier(user, at); got != other {
		t.Errorf("when the link is back: %v is reached through %s, want %s still", at, nameOf(got), other.Name)
	}
	pinged()
}
