// SPDX-License-Identifier: Apache-2.0

package node_test

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/probe"
)

// packet is a packet on its way through the kernels' tables. It knows nothing of how they
// came about.
type packet struct {
	src, dst netip.Addr
	at       *host
	from     *host  // that sent it to at; nil where it begins
	link     string // by which it arrived
	hops     []string
}

func (p *packet) lost(format string, args ...any) error {
	return fmt.Errorf("%v to %v, by way of %v, at %s: %s", p.src, p.dst, p.hops, p.at.name, fmt.Sprintf(format, args...))
}

// arrive reports whether a packet is where it is to go, or returns why the host drops it:
// WireGuard takes a source from the peer that has it among its allowed IPs, and the firewall
// from the link to which the route to it leads.
func (p *packet) arrive() (done bool, err error) {
	h := p.at
	if !h.powered {
		return false, p.lost("the host is down")
	}
	if p.from != nil {
		if owner, ok := h.peerFor(p.src); p.link == "meshd0" && (!ok || owner.Key != p.from.deviceKey()) {
			return false, p.lost("WireGuard does not take %v from %s", p.src, p.from.name)
		}
		if back, ok := h.route(p.src); !ok || back.Link != p.link {
			return false, p.lost("the guard takes %v by %q, not by %s", p.src, back.Link, p.link)
		}
	}
	if h.holds(p.dst) {
		return true, nil
	}
	forwards := slices.Contains(h.kernel.Sysctls, netcfg.Sysctl{Key: "net.ipv4.ip_forward", Value: "1"})
	if p.from != nil && (h.stuck || !forwards) {
		return false, p.lost("the host forwards nothing")
	}
	return false, nil
}

// forward sends a packet on to the next host. If it waits for a session, it returns what it
// waits for.
func (p *packet) forward() (waits *tunnel, err error) {
	h := p.at
	r, ok := h.route(p.dst)
	if !ok {
		return nil, p.lost("no route")
	}
	var next *host
	switch r.Link {
	case "meshd0":
		peer, ok := h.peerFor(p.dst)
		if !ok {
			return nil, p.lost("no peer has it")
		}
		if next, waits = h.transmit(peer); waits != nil {
			return waits, p.lost("no session with %s at %v: %+v", peer.Key, peer.Endpoint, *waits)
		}
		if next == nil {
			return nil, p.lost("it does not get through the tunnel, endpoint %v", peer.Endpoint)
		}
	case "meshd0-vx":
		if h.noVXLAN {
			return nil, p.lost("the LAN drops VXLAN")
		}
		next = h.byVXLAN(r, p.dst)
	default:
		if h.antiSpoofing {
			return nil, p.lost("the LAN does not know the address")
		}
		next = h.neighborAt(r.Via)
	}
	if next == nil {
		return nil, p.lost("%s leads nowhere", r)
	}
	p.hops = append(p.hops, next.name)
	p.from, p.at, p.link = h, next, r.Link
	return nil, nil
}

// byVXLAN returns the host to which an encapsulated packet gets, or nil.
func (h *host) byVXLAN(r netcfg.Route, dst netip.Addr) *host {
	via := r.Via
	if !via.IsValid() {
		via = dst
	}
	for _, n := range h.kernel.Neighbors {
		for _, f := range h.kernel.Forwarding {
			if n.Addr == via && f.MAC == n.MAC {
				if to := h.neighborAt(f.To); to != nil && to.kernel.VXLAN != nil && f.MAC == mesh.MAC(to.id) && to.kernel.VXLAN.Local == f.To {
					return to
				}
			}
		}
	}
	return nil
}

// neighborAt returns the host that has an address on the LAN, or nil.
func (h *host) neighborAt(a netip.Addr) *host {
	for _, o := range h.hosts {
		if h.onLAN(o) && o != h && o.internal.Addr() == a && h.internal.Contains(a) && h.powered && o.powered && !h.cut[[2]int{h.number, o.number}] {
			return o
		}
	}
	return nil
}

// route returns the route with the longest prefix.
func (h *host) route(a netip.Addr) (best netcfg.Route, ok bool) {
	for _, r := range h.kernel.Routes {
		if r.Destination.Contains(a) && (!ok || r.Destination.Bits() > best.Destination.Bits()) {
			best, ok = r, true
		}
	}
	return best, ok && best.Source.IsValid()
}

// peerFor returns the peer that has an address among its allowed IPs.
func (h *host) peerFor(a netip.Addr) (best netcfg.Peer, ok bool) {
	bits := -1
	for _, p := range h.kernel.Peers {
		for _, ip := range p.AllowedIPs {
			if ip.Contains(a) && ip.Bits() > bits {
				best, bits = p, ip.Bits()
			}
		}
	}
	return best, bits >= 0
}

// holds reports whether an address is one of the host or of its pods.
func (h *host) holds(a netip.Addr) bool {
	return slices.Contains(h.kernel.Addresses, netip.PrefixFrom(a, a.BitLen())) ||
		slices.ContainsFunc(h.pods, func(p netip.Prefix) bool { return p.Contains(a) })
}

// send takes a packet to its destination in no time.
func (h *host) send(src, dst netip.Addr) error {
	p := packet{src: src, dst: dst, at: h}
	for range 16 {
		if done, err := p.arrive(); done || err != nil {
			return err
		}
		if _, err := p.forward(); err != nil {
			return err
		}
	}
	return p.lost("it goes round and round")
}

// post takes a packet to its destination in the time that it needs, and says what became of
// it. It waits for sessions.
func (h *host) post(src, dst netip.Addr, became func(*packet, error)) {
	h.travel(&packet{src: src, dst: dst, at: h}, became)
}

func (s *simulation) travel(p *packet, became func(*packet, error)) {
	done, err := p.arrive()
	if done || err != nil {
		became(p, err)
		return
	}
	waits, err := p.forward()
	switch {
	case waits != nil && len(waits.waiting) < maxWaiting:
		waits.waiting = append(waits.waiting, waiting{
			send: func() { s.travel(p, became) },
			lose: func() { became(p, p.lost("the peer was renewed while it waited for a session")) },
		})
	case err != nil:
		became(p, err)
	default:
		s.after(p.from.flight(p.at), func() { s.travel(p, became) })
	}
}

// overlay returns the host's first address in the mesh, or the zero Addr.
func (h *host) overlay() (a netip.Addr) {
	if len(h.kernel.Addresses) > 0 {
		a = h.kernel.Addresses[0].Addr()
	}
	return a
}

// pod returns the address of a pod on the host, or the zero Addr.
func (h *host) pod() (a netip.Addr) {
	if len(h.pods) > 0 {
		a = h.pods[0].Addr().Next().Next()
	}
	return a
}

// echo reports whether an echo request is answered, and how long that takes.
func (h *host) echo(t probe.Target) (rtt time.Duration, ok bool) {
	if o := h.neighborAt(t.Addr); o != nil {
		return 2 * simLAN, !h.cut[[2]int{o.number, h.number}]
	}
	i := slices.IndexFunc(h.hosts, func(o *host) bool { return o.powered && o.holds(t.Addr) })
	if i < 0 || !t.Source.IsValid() || h.send(t.Source, t.Addr) != nil || h.hosts[i].send(t.Addr, t.Source) != nil {
		return 0, false
	}
	return 2 * simTunnel, true
}
