// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"cmp"
	"crypto/ed25519"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// MaxAccess bounds a client's access list.
const MaxAccess = 16

// maxAccessLists limits how many different access lists count: each is resolved, and kept
// in a home's packet filter, separately.
const maxAccessLists = 256

// Client is a WireGuard device that is not a node: a laptop, a phone. A node adds it,
// signs it, and sends it to all others. It never changes; it can only be removed.
type Client struct {
	ID             ID                // a hash of all that follows
	Author         ed25519.PublicKey // of the node that added it, 32 bytes
	Name           string            // as a host name
	Key            wgtypes.Key       // WireGuard public key
	PresharedKey   PresharedKey      // zero for none
	Index          int               // of its addresses, see Cluster.ClientAddresses
	Added          int64             // milliseconds since 1970, by the author's clock
	Access         []Access          // what it may reach; at most MaxAccess
	ServiceGateway ID                // the node that carries Services for it; zero for any
	// Networks are behind it, and routed to it from everywhere; at most MaxClientNetworks.
	// Their hosts may reach what it may.
	Networks []netip.Prefix
	Offers   []Access // what nodes and pods may reach in its networks, at most MaxAccess; none for everything
	Endpoint Endpoint // at which it waits for nodes; Host "" for a client that speaks first
	Cluster  string   // of another cluster, whose ranges its networks are; "" for none
	// NoInternalIPs means that its configuration leaves out the nodes' internal IPs, which its own
	// networks may have, too.
	NoInternalIPs bool
}

// PresharedKey is WireGuard's additional symmetric key. No way of printing it shows the
// key.
type PresharedKey wgtypes.Key

const hiddenKeyText = "(hidden)"

// Format implements fmt.Formatter.
func (PresharedKey) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(hiddenKeyText)) }

// MarshalText hides the key in JSON too.
func (PresharedKey) MarshalText() ([]byte, error) { return []byte(hiddenKeyText), nil }

// ClientSlots returns how many clients the overlay ranges have room for: the upper half
// of the smallest one, without its first and its last address, which in IPv4 is the
// broadcast address; at most MaxSlots.
func (c Cluster) ClientSlots() int {
	n := MaxSlots
	for _, p := range c.Overlay {
		if host := p.Addr().BitLen() - p.Bits(); host < 22 {
			n = min(n, 1<<max(host-1, 0)-2)
		}
	}
	if len(c.Overlay) == 0 {
		return 0
	}
	return max(n, 0)
}

// ClientAddresses returns a client's overlay addresses, one per family.
func (c Cluster) ClientAddresses(index int) []netip.Addr {
	addrs := make([]netip.Addr, 0, len(c.Overlay))
	for _, p := range c.clientRanges() {
		addrs = append(addrs, addToAddr(p.Addr(), index+1, 0))
	}
	return addrs
}

// clientRanges returns the upper halves of the overlay ranges, nodeRanges the lower ones.
func (c Cluster) clientRanges() []netip.Prefix {
	return halves(c.Overlay, 1)
}

func (c Cluster) nodeRanges() []netip.Prefix {
	return halves(c.Overlay, 0)
}

func halves(ps []netip.Prefix, which int) []netip.Prefix {
	out := make([]netip.Prefix, 0, len(ps))
	for _, p := range ps {
		if p.IsSingleIP() {
			continue
		}
		base := addToAddr(p.Masked().Addr(), which, p.Addr().BitLen()-p.Bits()-1)
		out = append(out, netip.PrefixFrom(base, p.Bits()+1))
	}
	return out
}

// FreeClientIndex returns an index that no client has. It starts searching at a number
// from the new client's key, so that two halves of a split network seldom choose the
// same; ok is false if all are taken.
func FreeClientIndex(c Cluster, clients []Client, key wgtypes.Key) (index int, ok bool) {
	taken := make(map[int]bool, len(clients))
	for _, o := range clients {
		taken[o.Index] = true
	}
	n := c.ClientSlots()
	if n == 0 {
		return 0, false
	}
	first := int(binary.BigEndian.Uint64(key[:]) % uint64(n))
	for i := range n {
		if index := (first + i) % n; !taken[index] {
			return index, true
		}
	}
	return 0, false
}

// selectClients decides which clients count. If two clients have the same name, key or
// address, the older one keeps it, and of two of the same age the one with the lower ID,
// so that all nodes that know the same clients agree. Names are compared without regard
// to case. A node with the name of a client is reported, but never displaces the client:
// a node can claim any name and any age.
func (l *layout) selectClients() {
	if len(l.Input.Clients) == 0 {
		return
	}
	all := slices.Clone(l.Input.Clients)
	slices.SortFunc(all, func(a, b Client) int { return cmp.Or(cmp.Compare(a.Added, b.Added), a.ID.Compare(b.ID)) })
	all = slices.CompactFunc(all, func(a, b Client) bool { return a.ID == b.ID })
	nodes := l.nodesByName()
	names := make(map[string]*Client)
	keys := make(map[wgtypes.Key]*Client)
	indices := make(map[int]*Client)
	lists := make(map[string]bool)
	for i := range all {
		c := &all[i]
		name := strings.ToLower(c.Name)
		switch n, room := l.keys[c.Key], l.Cluster.ClientSlots(); {
		case c.Index >= room:
			l.reportClient(c, fmt.Sprintf("its address is beyond cluster.overlay, which has room for %d clients", room))
		case n != nil:
			l.reportClient(c, fmt.Sprintf("node %s has the same WireGuard key", n.Name))
		case names[name] != nil:
			l.reportClient(c, l.olderClientReason(names[name], "name"))
		case keys[c.Key] != nil:
			l.reportClient(c, l.olderClientReason(keys[c.Key], "WireGuard key"))
		case indices[c.Index] != nil:
			l.reportClient(c, l.olderClientReason(indices[c.Index], "address"))
		case len(lists) == maxAccessLists && !lists[fmt.Sprint(c.Access)]:
			l.reportClient(c, fmt.Sprintf("there are %d different access lists, and it has another one", maxAccessLists))
		default:
			lists[fmt.Sprint(c.Access)] = true
			names[name], keys[c.Key], indices[c.Index] = c, c, c
			l.clients = append(l.clients, c)
			for _, m := range nodes[name] {
				l.reportClientName(m, c)
			}
		}
	}
	slices.SortFunc(l.clients, func(a, b *Client) int { return cmp.Compare(a.Index, b.Index) })
	l.selectClientNetworks()
	if len(l.clients) > 0 {
		l.nodes = l.nodePrefixes()
	}
}

// nodesByName groups all nodes by their names in lower case.
func (l *layout) nodesByName() map[string][]*member {
	nodes := make(map[string][]*member, len(l.all))
	for _, m := range l.all {
		name := strings.ToLower(m.Name)
		nodes[name] = append(nodes[name], m)
	}
	return nodes
}

// reportClientName reports a node that has the name of a client.
func (l *layout) reportClientName(m *member, c *Client) {
	l.report(ProblemName, m.Name, fmt.Sprintf("node %s has the name of client %s, which %s added before", m.Name, c.Name, l.nameOf(IDOf(c.Author))),
		fmt.Sprintf("set another node.name on %s; or run: meshd client remove %v; then add it again under another name", m.Name, c.ID))
}

func (l *layout) olderClientReason(o *Client, what string) string {
	return fmt.Sprintf("client %s that %s added before has the same %s", o.Name, l.nameOf(IDOf(o.Author)), what)
}

func (l *layout) reportClient(c *Client, why string) {
	author := l.nameOf(IDOf(c.Author))
	l.report(ProblemClient, author, fmt.Sprintf("client %s (%v) that %s added is not connected: %s", c.Name, c.ID, author, why),
		fmt.Sprintf("run: meshd client remove %v; then add it again", c.ID))
}

// nameOf returns a node's name for messages.
func (l *layout) nameOf(id ID) string {
	if m := l.find(id); m != nil {
		return m.Name
	}
	return id.String()
}

// isHome reports whether clients have a tunnel to a node: it has tunnels of its own, and
// can be reached from outside.
func (m *member) isHome() bool { return m.isTunnelEnd() && m.IsOpen() && m.slot != None }

// Homes returns the nodes to which clients have tunnels, sorted by ID.
func Homes(in Input) []ID { return idsOf(in, (*member).isHome) }

// idsOf returns the nodes that something is true of, sorted by ID.
func idsOf(in Input, is func(*member) bool) []ID {
	var out []ID
	for _, m := range newLayout(in).all {
		if is(m) {
			out = append(out, m.id)
		}
	}
	return out
}

// home returns the node through which clients reach m, and m reaches clients. It is m
// itself, or the gateway that has the tunnels for m, or, if strangers don't reach that
// gateway, its carrier; nil if there is none. All nodes must choose the same one, because
// WireGuard accepts a source address from one peer only.
func (l *layout) home(m *member) *member {
	end := m.via
	if end == nil || end.slot == None || end.isHome() {
		return end.withSlot()
	}
	return l.carrierFor(end)
}

// withSlot returns m if it owns its slot, else nil.
func (m *member) withSlot() *member {
	if m == nil || m.slot == None {
		return nil
	}
	return m
}

// clientNextHop returns the peer or neighbor to which this node sends packets for
// clients. own is true if the clients' tunnels end on this node; otherwise a nil hop
// means that clients are unreachable.
func (d *deriver) clientNextHop() (hop *member, own bool) {
	h := d.home(d.self)
	switch {
	case h == nil || len(d.clients) == 0:
		return nil, false
	case h == d.self:
		return nil, true
	case d.self.isTunnelEnd() || !d.tunnelled(d.self, h) && d.link(d.self, h).families != noFamily:
		return h, false
	}
	return d.self.via, false
}

// clientPrefixes returns the addresses of all clients, and the networks behind them, in the
// given families, sorted.
func (d *deriver) clientPrefixes(f families) []netip.Prefix {
	ps := slices.Clone(d.clientNetworks)
	for _, c := range d.clients {
		ps = append(ps, singles(d.Cluster.ClientAddresses(c.Index))...)
	}
	ps = slices.DeleteFunc(ps, func(p netip.Prefix) bool { return familyOf(p.Addr())&f == 0 })
	slices.SortFunc(ps, ComparePrefix)
	return ps
}

// routeToClients adds the clients' addresses to the peer or the neighbor through which
// this node reaches them.
func (d *deriver) routeToClients(t *Topology) {
	hop, own := d.clientNextHop()
	if own {
		t.Clients = d.tunnelsToClients()
	}
	for _, c := range d.clients {
		t.AllClients = append(t.AllClients, *c)
	}
	if len(d.clients) > 0 {
		t.ClientRanges = d.Cluster.clientRanges()
		t.ClientNetworks = d.clientNetworks
		t.PodsAndClients = mergePrefixes(slices.Concat(t.PodsAndClients, d.clientNetworks))
	}
	if len(d.nodes) > 0 {
		t.GossipPorts = d.gossipPorts()
		t.Nodes = d.nodes
	}
	if hop == nil {
		return
	}
	if d.self.isTunnelEnd() && d.tunnelled(d.self, hop) {
		t.ClientHome = hop.id
	}
	for i := range t.Peers {
		if p := &t.Peers[i]; p.ID == hop.id {
			p.AllowedIPs = merge(p.AllowedIPs, d.clientPrefixes(family4|family6))
		}
	}
	for i := range t.Neighbors {
		if n := &t.Neighbors[i]; n.ID == hop.id {
			n.Prefixes = merge(n.Prefixes, d.clientPrefixes(d.link(d.self, hop).families))
		}
	}
}

// merge returns two sorted lists as one sorted list.
func merge(a, b []netip.Prefix) []netip.Prefix {
	return mergeSorted(slices.Concat(a, b), len(a))
}

// tunnelsToClients returns the clients' tunnels that end on this node.
func (d *deriver) tunnelsToClients() []ClientTunnel {
	out := make([]ClientTunnel, 0, len(d.clients))
	for _, c := range d.clients {
		out = append(out, ClientTunnel{
			ID: c.ID, Name: c.Name, Key: c.Key, PresharedKey: c.PresharedKey,
			Addresses: d.Cluster.ClientAddresses(c.Index),
			Allowed:   d.allowances(c.Access),
			Networks:  slices.DeleteFunc(slices.Clone(c.Networks), func(p netip.Prefix) bool { return !slices.Contains(d.clientNetworks, p) }),
			Offers:    d.allowances(c.Offers),
			Endpoint:  d.clientEndpoint(c),
			Added:     c.Added,
		})
	}
	return out
}

// gossipPorts returns the gossip ports of all nodes, sorted.
func (l *layout) gossipPorts() []uint16 {
	var ports []uint16
	for _, m := range l.all {
		if m.GossipPort != 0 {
			ports = append(ports, m.GossipPort)
		}
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}

// nodePrefixes returns the addresses of nodes: what access to nodes includes.
func (l *layout) nodePrefixes() []netip.Prefix {
	ps := l.Cluster.nodeRanges()
	for _, m := range l.all {
		for _, ip := range m.InternalIPs {
			ps = append(ps, single(ip.Addr()))
		}
	}
	return mergePrefixes(ps)
}

// hosts returns all addresses of nodes, including those of their endpoints. Addresses
// that a record claims in the ranges of pods, clients or Services are left out.
func (l *layout) hosts() []netip.Prefix {
	ps := l.Cluster.nodeRanges()
	for _, p := range slices.Concat(l.nodePrefixes(), singles(l.endpointAddrs)) {
		if !contains(l.reserved, p.Addr()) {
			ps = append(ps, p)
		}
	}
	return mergePrefixes(ps)
}

// reportUnreachableByClients reports nodes that no client can reach.
func (d *deriver) reportUnreachableByClients() {
	if len(d.clients) == 0 {
		return
	}
	for _, m := range d.all {
		if m.slot != None && m.via != nil && d.home(m) == nil {
			d.report(ProblemClient, m.Name, fmt.Sprintf("clients don't reach node %s: neither it nor any node that could forward its packets has an endpoint", m.Name),
				"set node.endpoint on a node, and forward that port to it")
		}
	}
}
