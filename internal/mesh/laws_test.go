// SPDX-License-Identifier: Apache-2.0

package mesh_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/meshd/meshd/internal/mesh"
	"pgregory.net/rapid"
)

// The laws of the design. A packet between any two live nodes arrives, in both
// directions, or a problem of these two nodes says why not; no prefix has two
// destinations; no endpoint is routed into a tunnel; what a node serves it reaches by its own
// ways; only gateways have tunnels; the order of the input changes nothing.
func TestLawsOfDerive(t *testing.T) {
	var all, clients tally
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		k := w.walk(t)
		w.checkOrder(t, k)
		for _, h := range k.hosts {
			checkTables(t, k, h)
			w.checkTunnels(t, h)
		}
		for _, pair := range w.drawPairs(t) {
			checkPair(t, k, k.hosts[w.records[pair[0]].ID()], k.hosts[w.records[pair[1]].ID()], &all)
		}
		for _, c := range k.clients {
			w.checkClient(t, k, c, &clients)
		}
	})
	want := 80
	if testing.Short() {
		want = 60 // with few worlds a single bad one has much weight
	}
	if share := 100 * all.walked / (all.walked + all.excused); share < want {
		t.Errorf("of %d ways between living nodes %d %% were walked, want %d %%: problems excuse the others", all.walked+all.excused, share, want)
	} else {
		t.Logf("of %d ways between living nodes %d %% were walked", all.walked+all.excused, share)
	}
	if share := 100 * clients.walked / max(1, clients.walked+clients.excused); share < want {
		t.Errorf("of %d ways between clients and nodes %d %% were walked, want %d %%: problems excuse the others", clients.walked+clients.excused, share, want)
	}
}

// tally counts pairs between which packets travel, and pairs that a problem excuses.
type tally struct{ walked, excused int }

// drawPairs returns pairs of live nodes with addresses: all of a small world, some of a
// large one.
func (w world) drawPairs(t *rapid.T) [][2]int {
	owners := mesh.SlotOwners(w.records)
	var living []int
	for i, r := range w.records {
		if !w.dead[r.ID()] && owners[r.Claim.Slot] == r.ID() {
			living = append(living, i)
		}
	}
	var pairs [][2]int
	for i, a := range living {
		for _, b := range living[:i] {
			pairs = append(pairs, [2]int{a, b})
		}
	}
	rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "pairs"), 0))
	rng.Shuffle(len(pairs), func(i, j int) { pairs[i], pairs[j] = pairs[j], pairs[i] })
	return pairs[:min(len(pairs), 153)] // all, up to 18 nodes
}

func (w world) checkOrder(t *rapid.T, k *walker) {
	in := mesh.Input{Cluster: w.cluster, Self: w.records[0].ID()}
	in.Records = rapid.Permutation(w.records).Draw(t, "order of records")
	in.Verdicts = rapid.Permutation(w.verdicts).Draw(t, "order of verdicts")
	in.Clients = rapid.Permutation(w.clients).Draw(t, "order of clients")
	want := k.hosts[in.Self].top
	if got := mesh.Derive(in); !reflect.DeepEqual(got, want) { // cmp takes a minute here
		t.Fatalf("the same input in another order (-want +got):\n%s", cmp.Diff(want, got, compareTopologies))
	}
}

// checkTables checks what must hold on one node.
func checkTables(t *rapid.T, k *walker, h *host) {
	var outside []netip.Addr
	for _, p := range h.top.Peers {
		for _, e := range p.Endpoints {
			outside = append(outside, e.Addr())
		}
	}
	for _, n := range h.top.Neighbors {
		outside = append(append(outside, n.InternalIP), n.NextHops...)
	}
	for _, a := range outside {
		if e, ok := h.tables.lookup(a); ok {
			t.Fatalf("on %s %v is outside the mesh and routed to %s by %s", h.Name, a, k.hosts[e.to].Name, e.link)
		}
	}
	for _, p := range h.AllowedLocationIPs {
		if e, ok := h.tables.routes[p]; ok {
			t.Fatalf("on %s %v, which it serves, is routed to %s", h.Name, p, k.hosts[e.to].Name)
		}
	}
	if len(h.top.Routes) != len(k.hosts)-1 || !slices.IsSortedFunc(h.top.Routes, func(a, b mesh.Route) int { return a.ID.Compare(b.ID) }) {
		t.Fatalf("routes of %s: %v", h.Name, h.top.Routes)
	}
}

func (h *host) route(to mesh.ID) mesh.Route {
	return h.top.Routes[slices.IndexFunc(h.top.Routes, func(p mesh.Route) bool { return p.ID == to })]
}

// checkTunnels checks that in mode location only nodes that need tunnels have them.
func (w world) checkTunnels(t *rapid.T, h *host) {
	beside := slices.ContainsFunc(w.records, func(r mesh.Record) bool { return r.ID() != h.id && r.SameLAN(&h.Record) && !r.Encrypted })
	if w.cluster.Mode != mesh.ModeLocation || h.Location == "" || h.Encrypted || !beside || h.top.Seat != mesh.None {
		return
	}
	if (h.Term.Since == 0 || h.Gateway == mesh.GatewayNever) && len(h.top.Peers) > 0 {
		t.Fatalf("%s is not a gateway and was not one, but has %d peers", h.Name, len(h.top.Peers))
	}
}

// problem reports whether a knows of a problem that contains a text and concerns the
// connection from a to b.
func (w *walker) problem(a, b *host, text string, kinds ...mesh.ProblemKind) bool {
	return slices.ContainsFunc(a.top.Problems, func(p mesh.Problem) bool {
		return slices.Contains(kinds, p.Kind) && strings.Contains(p.Text, text) && w.concerns(p, a, b)
	})
}

// concerns reports whether a problem concerns the connection between two nodes: it
// belongs to the gateways of a location of theirs, to one of them and its gateway, to
// both, or to the nodes that have the tunnels for each.
func (w *walker) concerns(p mesh.Problem, a, b *host) bool {
	words := strings.FieldsFunc(p.Text, func(r rune) bool { return strings.ContainsRune(" ,:;", r) })
	at := func(h *host) bool { return slices.Contains(words, h.Name) }
	gateway := func(h *host) bool { // a gateway other than the node itself
		for _, o := range w.hosts {
			if o != h && o.near(h) && o.top.Seat != mesh.None && at(o) {
				return true
			}
		}
		return false
	}
	beside := a.near(b) && !a.Encrypted && !b.Encrypted
	switch p.Kind {
	case mesh.ProblemGateway:
		i := slices.Index(words, "location")
		return !beside && (words[i+1] == a.Location || words[i+1] == b.Location)
	case mesh.ProblemKey:
		return p.Node == a.Name || p.Node == b.Name
	case mesh.ProblemNeighbor:
		if beside {
			return at(a) && at(b)
		}
		return at(a) && gateway(a) || at(b) && gateway(b)
	}
	return false
}

// checkPair sends packets from a to b, and back.
func checkPair(t *rapid.T, k *walker, a, b *host, all *tally) {
	route := a.route(b.id)
	if route.Kind == mesh.RouteNone {
		if !k.problem(a, b, "", mesh.ProblemGateway, mesh.ProblemNeighbor, mesh.ProblemKey) {
			t.Fatalf("no route from %s to %s, and no problem that says why: %v", a.Name, b.Name, a.top.Problems)
		}
		all.excused += len(a.top.Addresses)
		return
	}
	if slices.ContainsFunc(route.Hops, func(id mesh.ID) bool { return k.hosts[id].dead }) {
		if !k.problem(a, b, "all gateways", mesh.ProblemGateway) {
			t.Fatalf("dead nodes on the route from %s to %s: %v, problems %v", a.Name, b.Name, route, a.top.Problems)
		}
		all.excused += len(a.top.Addresses)
		return
	}
	for i := range a.top.Addresses {
		walked := true
		for _, ends := range [][2]netip.Addr{
			{a.top.Addresses[i], b.top.Addresses[i]},
			{a.top.Addresses[i], b.top.PodCIDRs[i].Addr().Next()},
			{a.top.PodCIDRs[i].Addr().Next(), b.top.PodCIDRs[i].Addr().Next()},
		} {
			walked = checkWalk(t, k, a, b, ends[0], ends[1], route) && walked
			walked = checkWalk(t, k, b, a, ends[1], ends[0], b.route(a.id)) && walked
		}
		for _, ends := range [][2]*host{{a, b}, {b, a}} {
			checkInternal(t, k, ends[0], ends[1], ends[0].top.Addresses[i])
			checkNetworks(t, k, ends[0], ends[1], ends[0].top.Addresses[i])
		}
		if walked {
			all.walked++
		} else {
			all.excused++
		}
	}
}

// checkWalk sends one packet. Only a family that the LAN does not carry, which is
// reported, may have no route; then it returns false.
func checkWalk(t *rapid.T, k *walker, a, b *host, src, dst netip.Addr, route mesh.Route) bool {
	if _, ok := a.tables.lookup(dst); !ok {
		version := "IPv6"
		if dst.Is4() {
			version = "IPv4"
		}
		if !k.problem(a, b, "each other with "+version, mesh.ProblemNeighbor) {
			t.Fatalf("%s has no route to %v of %s and no problem: %v", a.Name, dst, b.Name, a.top.Problems)
		}
		return false
	}
	p, err := k.walk(a, src, dst)
	if err != nil {
		t.Fatalf("%s to %s: %v", a.Name, b.Name, err)
	}
	if got := p.hops[:len(p.hops)-1]; p.at != b || !slices.Equal(got, route.Hops) {
		t.Fatalf("%s to %s: went by way of %v, ended at %s; the route is %v", a.Name, b.Name, got, p.at.Name, route)
	}
	first := map[link]mesh.RouteKind{byTunnel: mesh.RouteTunnel, byVXLAN: mesh.RouteLAN, byLAN: mesh.RouteLAN}
	if e, _ := a.tables.lookup(dst); first[e.link] != route.Kind {
		t.Fatalf("%s to %s: leaves by %s; the route is %v", a.Name, b.Name, e.link, route)
	}
	return true
}

// checkInternal sends packets to b's internal IPs, and the replies.
func checkInternal(t *rapid.T, k *walker, a, b *host, src netip.Addr) {
	for _, ip := range b.InternalIPs {
		dst := ip.Addr()
		p := netip.PrefixFrom(dst, dst.BitLen())
		if k.expectsOnLAN(a, b) || dst.Is4() != src.Is4() || contested(k, b, dst) || !routed(t, k, a, b, p, "internal IP") {
			continue
		}
		if end := checkReply(t, k, a, b, src, dst); !end.at.holds(dst) || end.at.Location != b.Location {
			t.Fatalf("%s to %v of %s: ended at %s", a.Name, dst, b.Name, end.at.Name)
		}
	}
}

// checkNetworks sends packets to the networks behind b, and the replies. A gateway before b may
// have its own way there.
func checkNetworks(t *rapid.T, k *walker, a, b *host, src netip.Addr) {
	for _, p := range b.AllowedLocationIPs {
		if k.hasOwnWay(a, b, p) || p.Addr().Is4() != src.Is4() || !k.ownsNetwork(b, p) || !routed(t, k, a, b, p, "allowed-location-ips") {
			continue
		}
		if end := checkReply(t, k, a, b, src, last(p)); !end.outside || end.at != b && !k.hasOwnWay(end.at, b, p) {
			t.Fatalf("%s to %v behind %s: ended at %s", a.Name, p, b.Name, end.at.Name)
		}
	}
}

// hasOwnWay reports whether a reaches a network behind b without it: they share the network, or they are
// of one location, and it overlaps the LAN.
func (w *walker) hasOwnWay(a, b *host, p netip.Prefix) bool {
	if slices.Contains(a.AllowedLocationIPs, p) && shares(a, b, p) {
		return true
	}
	if !a.SameLocation(&b.Record) {
		return false
	}
	for _, h := range w.hosts {
		if a.near(h) && slices.ContainsFunc(h.InternalIPs, func(ip netip.Prefix) bool { return ip.Overlaps(p) }) {
			return true
		}
	}
	return false
}

// shares reports whether two nodes mean the same network: they have links to the same cluster, or no links
// and one location.
func shares(a, b *host, p netip.Prefix) bool {
	clusters := make(map[string]int)
	for _, h := range []*host{a, b} {
		for _, l := range h.Linked {
			if l.Network == p {
				clusters[l.Cluster]++
			}
		}
	}
	for _, n := range clusters {
		return n == 2
	}
	return a.SameLocation(&b.Record)
}

// expectsOnLAN reports whether a, or a node between, names the same location as b. It does not
// route the internal IPs of that location.
func (w *walker) expectsOnLAN(a, b *host) bool {
	return a.SameLocation(&b.Record) || slices.ContainsFunc(a.route(b.id).Hops, func(id mesh.ID) bool {
		hop := w.hosts[id]
		return hop.SameLocation(&b.Record) && !hop.near(b)
	})
}

// routed reports whether a routes a prefix of b. It must, unless a problem says why not,
// or an endpoint lies in the prefix.
func routed(t *rapid.T, k *walker, a, b *host, p netip.Prefix, what string) bool {
	if _, ok := a.tables.routes[p]; ok {
		return true
	}
	text := fmt.Sprintf("%s %v of node %s is not reachable", what, p, b.Name)
	for _, q := range a.top.Problems {
		if (q.Kind == mesh.ProblemAddress || q.Kind == mesh.ProblemNote) && strings.HasPrefix(q.Text, text) {
			return false
		}
	}
	endpoint := func(h *host) bool {
		return slices.ContainsFunc(h.Endpoints, func(e mesh.Endpoint) bool { return e.Host == p.Addr().String() })
	}
	for _, h := range k.hosts {
		if p.IsSingleIP() && endpoint(h) {
			return false
		}
	}
	if !k.problem(a, b, "", mesh.ProblemNeighbor) {
		t.Fatalf("%s has no route to %v of %s, and no problem that says why: %v", a.Name, p, b.Name, a.top.Problems)
	}
	return false
}

// checkReply sends a packet to an address at or behind b that is outside the cluster's
// ranges, and the reply, and returns where the packet arrived.
func checkReply(t *rapid.T, k *walker, a, b *host, src, dst netip.Addr) packet {
	p, err := k.walk(a, src, dst)
	if err != nil {
		t.Fatalf("%s to %s: %v", a.Name, b.Name, err)
	}
	if !slices.ContainsFunc(a.top.Inside, func(in netip.Prefix) bool { return in.Contains(dst) }) {
		t.Fatalf("%s routes %v of %s, but does not have it inside %v", a.Name, dst, b.Name, a.top.Inside)
	}
	answers := p.at
	if p.masked != nil {
		answers = p.masked
	}
	if back, err := k.walk(answers, dst, src); err != nil || back.at != a {
		t.Fatalf("reply of %s to %s from %v: ended at %s: %v", b.Name, a.Name, dst, back.at.Name, err)
	}
	return p
}

// ownsNetwork reports whether b is, of those that share the network, the node to which it is routed: one with an
// address before one without, then one that has not lost its way there, then a healthy one, then the one that serves it for the longest time, then the
// strongest claim.
func (w *walker) ownsNetwork(b *host, p netip.Prefix) bool {
	rank := func(h *host) []int64 {
		addressless, since := int64(0), h.ServesSince(p)
		if w.slots[h.Claim.Slot] != h.id || w.keys[h.Key] != h.id {
			addressless = 1
		}
		if since == 0 {
			since = math.MaxInt64
		}
		health := map[mesh.Health]int64{"": 0, mesh.HealthUp: 0, mesh.HealthDraining: 1, mesh.HealthDown: 2}[w.verdicts[h.id].State]
		lost := int64(0)
		if slices.Contains(h.Unserved, p) {
			lost = 1
		}
		return []int64{addressless, lost, health, since}
	}
	for _, h := range w.hosts {
		if h == b || !slices.Contains(h.AllowedLocationIPs, p) || !shares(h, b, p) {
			continue
		}
		if c := slices.Compare(rank(h), rank(b)); c < 0 || c == 0 && older(h.Record, b.Record) {
			return false
		}
	}
	return true
}

// last returns the last address of a prefix, which no node has.
func last(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// contested reports whether another node of b's location claims b's internal IP.
func contested(k *walker, b *host, ip netip.Addr) bool {
	for _, h := range k.hosts {
		if h != b && h.Location != "" && h.Location == b.Location && h.holds(ip) {
			return true
		}
	}
	return false
}
