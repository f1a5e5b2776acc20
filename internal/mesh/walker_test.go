// SPDX-License-Identifier: Apache-2.0

package mesh_test

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/meshd/meshd/internal/mesh"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// walker follows packets through all nodes' tables, as WireGuard, VXLAN, the LAN and the
// firewall treat them. It does not know how the tables were derived, and uses only them
// and the properties of the hosts.
type walker struct {
	encapsulation mesh.Encapsulation
	hosts         map[mesh.ID]*host
	keys          map[wgtypes.Key]mesh.ID
	clients       map[mesh.ID]*host
	slots         map[int]mesh.ID
	verdicts      map[mesh.ID]mesh.Verdict
}

// host is a node or a client of the walker's world.
type host struct {
	mesh.Record
	id     mesh.ID
	dead   bool
	top    mesh.Topology
	tables *tables
}

// link is what a packet arrives through.
type link string

const (
	fromInside link = "inside"
	byTunnel   link = "tunnel"
	byVXLAN    link = "vxlan"
	byLAN      link = "lan"
)

// entry is the destination of a prefix.
type entry struct {
	to   mesh.ID
	link link
}

// tables are a node's routes and WireGuard's allowed IPs.
type tables struct {
	routes  map[netip.Prefix]entry
	lengths [2][]int // of the prefixes of IPv4 and IPv6, the longest first
	peers   map[mesh.ID]mesh.Peer
	near    map[mesh.ID]mesh.Neighbor
}

// newTables converts a topology. A prefix with two destinations is an error.
func (w *walker) newTables(t mesh.Topology) (*tables, error) {
	tb := &tables{routes: map[netip.Prefix]entry{}, peers: map[mesh.ID]mesh.Peer{}, near: map[mesh.ID]mesh.Neighbor{}}
	add := func(ps []netip.Prefix, e entry) error {
		for _, p := range ps {
			if o, ok := tb.routes[p]; ok {
				return fmt.Errorf("%v is routed to %v and to %v", p, o, e)
			}
			tb.routes[p] = e
			i := family(p.Addr())
			if !slices.Contains(tb.lengths[i], p.Bits()) {
				tb.lengths[i] = append(tb.lengths[i], p.Bits())
			}
		}
		return nil
	}
	for _, p := range t.Peers {
		tb.peers[w.keys[p.Key]] = p
		if err := add(p.AllowedIPs, entry{w.keys[p.Key], byTunnel}); err != nil {
			return nil, err
		}
	}
	for _, c := range t.Clients {
		tb.peers[c.ID] = mesh.Peer{ID: c.ID, Key: c.Key}
		ps := slices.Clone(c.Networks)
		for _, a := range c.Addresses {
			ps = append(ps, netip.PrefixFrom(a, a.BitLen()))
		}
		if err := add(ps, entry{c.ID, byTunnel}); err != nil {
			return nil, err
		}
	}
	for _, n := range t.Neighbors {
		tb.near[n.ID] = n
		by := byLAN
		if n.Encapsulated {
			by = byVXLAN
		}
		if err := add(n.Prefixes, entry{n.ID, by}); err != nil {
			return nil, err
		}
	}
	for i := range tb.lengths {
		slices.Sort(tb.lengths[i])
		slices.Reverse(tb.lengths[i])
	}
	return tb, nil
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// lookup returns the destination of an address: the longest prefix wins.
func (tb *tables) lookup(a netip.Addr) (entry, bool) {
	p := tb.longest(a)
	e, ok := tb.routes[p]
	return e, ok
}

// longest returns the longest prefix in the routes that contains an address.
func (tb *tables) longest(a netip.Addr) netip.Prefix {
	for _, bits := range tb.lengths[family(a)] {
		p, _ := a.Prefix(bits)
		if _, ok := tb.routes[p]; ok {
			return p
		}
	}
	return netip.Prefix{}
}

// packet is a packet on its way.
type packet struct {
	src, dst netip.Addr
	at       *host
	by       link
	from     *host // that sent it to at
	hops     []mesh.ID
	masked   *host // that replaced the source by its own address
	outside  bool  // it is at a host without meshd, behind the host that masqueraded it
}

// walk sends a packet and returns where it ends.
func (w *walker) walk(from *host, src, dst netip.Addr) (packet, error) {
	p := packet{src: src, dst: dst, at: from, by: fromInside}
	for range 16 {
		if p.at.dead {
			return p, p.lost("the host is dead")
		}
		if err := p.enter(p.at.tables); err != nil {
			return p, err
		}
		if p.outside || p.at.holds(dst) {
			return p, nil
		}
		if err := w.forward(&p, p.at.tables); err != nil {
			return p, err
		}
	}
	return p, p.lost("it goes round and round")
}

func (p packet) lost(format string, args ...any) error {
	return fmt.Errorf("%v to %v, by way of %v, at %s: %s", p.src, p.dst, p.hops, p.at.Name, fmt.Sprintf(format, args...))
}

// enter applies the checks of the receiving host: WireGuard's, that the source is an
// allowed IP of the peer that sent the packet, and the firewall's, which drops packets
// with sources of the mesh unless the route back uses the same link.
func (p packet) enter(tb *tables) error {
	if p.by == fromInside || p.masked != nil {
		return nil
	}
	back, ok := tb.lookup(p.src)
	if p.by == byTunnel && (!ok || back != entry{p.from.id, byTunnel}) {
		return p.lost("WireGuard takes %v from %v, %v, not from %s", p.src, back, ok, p.from.Name)
	}
	guarded := slices.ContainsFunc(p.at.top.Guarded, func(g netip.Prefix) bool { return g.Contains(p.src) })
	if guarded && (!ok || back.link != p.by) {
		return p.lost("the guard takes %v from %v, %v, not from %s by %s", p.src, back, ok, p.from.Name, p.by)
	}
	return nil
}

// holds reports whether an address belongs to the host or its pods.
func (h *host) holds(a netip.Addr) bool {
	return slices.Contains(h.top.Addresses, a) ||
		slices.ContainsFunc(h.top.PodCIDRs, func(p netip.Prefix) bool { return p.Contains(a) }) ||
		slices.ContainsFunc(h.InternalIPs, func(p netip.Prefix) bool { return p.Addr() == a })
}

// forward moves the packet to the next host.
func (w *walker) forward(p *packet, tb *tables) error {
	e, ok := tb.lookup(p.dst)
	longest := tb.longest(p.dst)
	own := slices.ContainsFunc(p.at.AllowedLocationIPs, func(n netip.Prefix) bool { return n.Contains(p.dst) && n.Bits() > longest.Bits() })
	switch {
	case (own || !ok) && p.by != fromInside:
		return w.deliver(p)
	case !ok:
		return p.lost("no route")
	}
	next, ok := w.hosts[e.to]
	if !ok {
		next = w.clients[e.to]
	}
	var why string
	if e.link == byTunnel {
		why = tunnelFault(p.at, next)
	} else {
		why = w.lanFault(tb.near[next.id], p, next)
	}
	if why != "" {
		return p.lost("to %s: %s", next.Name, why)
	}
	p.hops = append(p.hops, next.id)
	p.from, p.at, p.by = p.at, next, e.link
	return nil
}

// deliver passes a packet to a host on the LAN, or to one of the networks behind it, with
// the host's own address there as the source.
func (w *walker) deliver(p *packet) error {
	if !slices.ContainsFunc(p.at.top.ServedNetworks, func(s netip.Prefix) bool { return s.Contains(p.dst) }) {
		return p.lost("no route, and it serves %v", p.at.top.ServedNetworks)
	}
	behind := false
	for _, h := range w.hosts {
		if h != p.at && !p.at.near(h) {
			continue
		}
		if h.holds(p.dst) {
			p.hops, p.masked = append(p.hops, h.id), p.at
			p.from, p.at, p.by = p.at, h, byLAN
			return nil
		}
		behind = behind || slices.ContainsFunc(h.AllowedLocationIPs, func(q netip.Prefix) bool { return q.Contains(p.dst) })
	}
	if !behind {
		return p.lost("nobody on the LAN has the address")
	}
	p.masked, p.outside = p.at, true
	return nil
}

// near reports whether two hosts are on one private network.
func (h *host) near(o *host) bool { return h.SameLAN(&o.Record) }

// tunnelFault returns why there can be no tunnel. How packets get to the other end beneath
// it is not what the tables are about.
func tunnelFault(from, to *host) string {
	if _, ok := to.tables.peers[from.id]; !ok {
		return "it has no such peer"
	}
	return ""
}

// lanFault returns why a packet does not reach a neighbor.
func (w *walker) lanFault(n mesh.Neighbor, p *packet, to *host) string {
	from := p.at
	if !from.near(to) {
		return "it is on no LAN of this host"
	}
	back, ok := to.tables.near[from.id]
	switch {
	case !ok:
		return "it has no such neighbor"
	case back.Encapsulated != n.Encapsulated:
		return "one encapsulates, the other does not"
	}
	next := []netip.Addr{n.InternalIP}
	if !n.Encapsulated {
		next = n.NextHops
	} else if n.InternalIP.Is4() != back.InternalIP.Is4() {
		return "vxlan in different families"
	} else if !slices.ContainsFunc(n.Overlay, func(a netip.Addr) bool { return a.Is4() == p.dst.Is4() }) {
		return "no next hop inside vxlan"
	}
	i := slices.IndexFunc(next, func(a netip.Addr) bool { return n.Encapsulated || a.Is4() == p.dst.Is4() })
	if i < 0 {
		return "no next hop of that family"
	}
	if !slices.ContainsFunc(to.InternalIPs, func(q netip.Prefix) bool { return q.Addr() == next[i] }) {
		return "it has not that address"
	}
	onLink := slices.ContainsFunc(from.InternalIPs, func(q netip.Prefix) bool { return q.Contains(next[i]) })
	if !onLink && (!n.Encapsulated || w.encapsulation == mesh.EncapsulationNever) {
		return "it is not on link"
	}
	return ""
}

// newWalker derives all nodes' tables from records that all know.
func newWalker(c mesh.Cluster, records []mesh.Record, verdicts ...mesh.Verdict) *walker {
	return newWalkerOf(mesh.Input{Cluster: c, Records: records, Verdicts: verdicts})
}

func newWalkerOf(in mesh.Input) *walker {
	w := &walker{encapsulation: in.Cluster.Encapsulation, hosts: map[mesh.ID]*host{}, keys: map[wgtypes.Key]mesh.ID{}}
	w.slots, w.verdicts = mesh.SlotOwners(in.Records), mesh.GatewayVerdicts(in.Verdicts, in.Records)
	for _, r := range in.Records {
		if o, ok := w.keys[r.Key]; !ok || older(r, w.hosts[o].Record) {
			w.keys[r.Key] = r.ID()
		}
		w.hosts[r.ID()] = &host{Record: r, id: r.ID()}
	}
	for id, h := range w.hosts {
		in.Self = id
		h.top = mesh.Derive(in)
	}
	w.addClients(in)
	return w
}

// addClients adds the clients that count as hosts, set up by their configurations.
func (w *walker) addClients(in mesh.Input) {
	w.clients = map[mesh.ID]*host{}
	for _, c := range w.hosts[in.Self].top.AllClients {
		config := mesh.ClientConfigOf(in, c, nil)
		h := &host{Record: mesh.Record{Name: "client-" + c.Name, Key: c.Key}, id: c.ID}
		h.top.Addresses, h.top.PodCIDRs = config.Addresses, c.Networks // what is behind it
		for _, p := range config.Peers {
			h.top.Peers = append(h.top.Peers, mesh.Peer{
				ID: p.ID, Key: p.Key, AllowedIPs: p.AllowedIPs, Endpoints: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:1")},
			})
		}
		w.clients[c.ID], w.keys[c.Key] = h, c.ID
	}
}

// older reports whether a's claim is stronger than b's.
func older(a, b mesh.Record) bool {
	if c := a.Claim.Compare(b.Claim); c != 0 {
		return c < 0
	}
	return a.ID().Compare(b.ID()) < 0
}
