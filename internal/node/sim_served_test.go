// SPDX-License-Identifier: Apache-2.0

package node_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/node"
)

// siteNetwork is a network behind the nodes of a site.
func siteNetwork(site int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, byte(site), 0}), 24)
}

// serverFor sends a packet to a network and returns the host that it leaves the mesh at, and the reply.
func (h *host) serverFor(network netip.Prefix) (*host, error) {
	there := network.Addr().Next()
	p := packet{src: h.overlay(), dst: there, at: h}
	for range 16 {
		if p.at != h && slices.Contains(p.at.config.AllowedLocationIPs, network) {
			if _, ok := p.at.route(there); !ok { // it has a way of its own
				if _, err := p.arrive(); err != nil {
					return nil, err
				}
				return p.at, p.at.send(there, h.overlay())
			}
		}
		if _, err := p.arrive(); err != nil {
			return nil, err
		}
		if _, err := p.forward(); err != nil {
			return nil, err
		}
	}
	return nil, p.lost("it goes round and round")
}

// served returns which network is not served as it should be, or nil: those who could serve it agree on
// who does, and that one has power if one of them has, is up if one of them is, and says in its record that it serves.
func (s *simulation) served() error {
	servers := make(map[netip.Prefix]mesh.ID)
	candidates := make(map[netip.Prefix][]*host)
	for _, h := range s.hosts {
		if !h.running {
			continue
		}
		for _, n := range h.wanted.Topology.Shared {
			if o, ok := servers[n.Network]; ok && o != n.Server {
				return fmt.Errorf("%s has %s serve %v, others %s", h.name, s.byID(n.Server).name, n.Network, s.byID(o).name)
			}
			servers[n.Network] = n.Server
			candidates[n.Network] = append(candidates[n.Network], h)
		}
	}
	for network, id := range servers {
		server := s.byID(id)
		for _, h := range candidates[network] {
			if slices.Contains(h.memory.Own.Unserved, network) {
				continue // it could not
			}
			up := node.IsUp(mesh.GatewayVerdicts(h.view().Verdicts, h.view().Records)[h.id])
			if up && !server.running && s.live() > 2 {
				return fmt.Errorf("%v is served by %s, which does not live, though %s could", network, server.name, h.name)
			}
			if slices.Contains(server.memory.Own.Unserved, network) {
				return fmt.Errorf("%v is served by %s, which has no way there, though %s has", network, server.name, h.name)
			}
		}
		if v := server.view(); server.running && node.IsUp(mesh.GatewayVerdicts(v.Verdicts, v.Records)[id]) && server.memory.Own.ServesSince(network) == 0 &&
			!slices.Contains(server.memory.Own.Unserved, network) {
			return fmt.Errorf("%s serves %v and does not say so", server.name, network)
		}
	}
	return nil
}

// TestServerFails has the server of a network fail, return and hand over, in every mode. a1 and a2 serve
// the network, a3 is beside them, and b elsewhere.
func TestServerFails(t *testing.T) {
	for _, mode := range []mesh.Mode{mesh.ModeFull, mesh.ModeCross, mesh.ModeLocation} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			s := newSimulation(t, 1)
			s.cluster.Mode = mode
			s.gossipDelay = func(from, to *host) time.Duration {
				return time.Duration(20*from.number+7*to.number) * time.Millisecond
			}
			network := siteNetwork(1)
			for _, name := range []string{"a1", "a2", "a3"} {
				h := s.add(name, "a", place{1, cloud})
				h.config.Gateway = mesh.GatewayNever
				if name != "a3" {
					h.config.AllowedLocationIPs = []netip.Prefix{network}
				}
			}
			s.hosts[2].config.Gateway = mesh.GatewayAuto
			s.add("b", "", place{0, routed})
			first, second, users := s.hosts[0], s.hosts[1], s.hosts[2:]
			s.settleDown(s.hosts...)
			s.pass(10 * time.Second)
			// lossOf has something happen and returns for how long packets to the network were lost.
			lossOf := func(what string, happens func(), want *host) (lost time.Duration) {
				t.Helper()
				s.note("%s", what)
				happens()
				for range 3000 {
					s.pass(flowEvery)
					for _, u := range users {
						if at, err := u.serverFor(network); err != nil || !at.powered || at.stuck || at.blocked {
							lost += flowEvery
							break
						}
					}
				}
				for _, u := range users {
					if got, err := u.serverFor(network); err != nil || got != want {
						s.fail("%s: %s does not reach the network through %s: %v", what, u.name, want.name, err)
					}
				}
				if err := s.served(); err != nil {
					s.fail("%s: %v", what, err)
				}
				t.Logf("%s: lost for %v", what, lost)
				return lost
			}
			if got := lossOf("nothing happens", func() {}, first); got > 0 {
				t.Errorf("lost for %v without a reason", got)
			}
			if got := lossOf("the server has no power", first.crash, second); got > detectMost+switchMost {
				t.Errorf("a server that dies: lost for %v, want %v at the most", got, detectMost+switchMost)
			}
			if got := lossOf("it has power again", first.boot, second); got > 0 {
				t.Errorf("a server that returns: lost for %v, want nothing", got)
			}
			if got := lossOf("the other one is drained", func() {
				second.memory.Drain(false)
				second.tellUrgently()
			}, first); got > 0 {
				t.Errorf("a server that is drained: lost for %v, want nothing", got)
			}
			if got := lossOf("that is undone", func() {
				second.memory.Drain(true)
				second.tellUrgently()
			}, first); got > 0 {
				t.Errorf("a drain that is undone: lost for %v, want nothing", got)
			}
			if got := lossOf("the server sees that it forwards nothing", func() {
				first.blocked = true
				first.turn()
			}, second); got > 5*time.Second {
				t.Errorf("a server that sees that it forwards nothing: lost for %v, want 5s at the most", got)
			}
			lossOf("the server forwards again", func() { first.blocked = false }, second)
			way := mesh.AttachedNetwork{Prefix: network, Link: "eth2"}
			down := way
			down.Down = true
			for _, h := range []*host{first, second} {
				h.nearby = []mesh.AttachedNetwork{way}
			}
			lossOf("both have a way of their own", func() {}, second)
			for i, h := range []*host{second, first} { // each in turn, by the event of a link that is down, and of one that is gone
				other := []*host{first, second}[i]
				if got := lossOf("the server has lost its way to the network", func() {
					h.nearby = [][]mesh.AttachedNetwork{{down}, nil}[i]
					h.tell()
				}, other); got > switchMost {
					t.Errorf("a server that has lost its way: lost for %v, want %v at the most", got, switchMost)
				}
				if !slices.ContainsFunc(h.wanted.Problems, func(p mesh.Problem) bool {
					return p.Kind == node.ProblemNetwork && strings.Contains(p.Text, network.String())
				}) {
					t.Errorf("%s has lost its way, and has problems %v", h.name, h.wanted.Problems)
				}
				lossOf("it has its way again", func() {
					h.nearby = []mesh.AttachedNetwork{way}
					h.tell()
				}, other)
				if len(h.wanted.Problems) > 0 || len(h.memory.Own.Unserved) > 0 {
					t.Errorf("%s has its way again: got problems %v, and that it can't serve %v", h.name, h.wanted.Problems, h.memory.Own.Unserved)
				}
			}
			if got := lossOf("the daemon of the other one is restarted", func() {
				second.stop()
				second.startDaemon()
			}, second); got > 0 {
				t.Errorf("a daemon that is restarted: lost for %v, want nothing", got)
			}
		})
	}
}
