// SPDX-License-Identifier: Apache-2.0

package mesh_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/meshd/meshd/internal/mesh"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
	"pgregory.net/rapid"
)

// checkClient sends packets from a client to every live node and its pods, and the
// replies. Both directions must go through the one node that the client's configuration
// names.
func (w world) checkClient(t *rapid.T, k *walker, c *host, all *tally) {
	owners := mesh.SlotOwners(w.records)
	for _, r := range w.records {
		b := k.hosts[r.ID()]
		if b.dead || owners[r.Claim.Slot] != b.id {
			continue
		}
		for i, addr := range b.top.Addresses {
			for _, dst := range []netip.Addr{addr, b.top.PodCIDRs[i].Addr().Next()} {
				sources := []netip.Addr{c.top.Addresses[slices.IndexFunc(c.top.Addresses, func(a netip.Addr) bool { return a.Is4() == dst.Is4() })]}
				for _, p := range c.top.PodCIDRs {
					if p.Addr().Is4() == dst.Is4() {
						sources = append(sources, p.Addr().Next())
					}
				}
				for _, src := range sources {
					if err := roundTrip(k, c, b, src, dst); err != nil {
						if !w.isExcused(k, c, b, dst) {
							t.Fatalf("%s and %s: %v; problems %v", c.Name, b.Name, err, b.top.Problems)
						}
						all.excused++
						continue
					}
					all.walked++
				}
			}
		}
	}
}

// roundTrip sends a packet from a client to a node, and one back.
func roundTrip(k *walker, c, b *host, src, dst netip.Addr) error {
	there, err := k.walk(c, src, dst)
	if err != nil {
		return err
	}
	back, err := k.walk(b, dst, src)
	if err != nil {
		return err
	}
	if there.at != b || back.at != c {
		return fmt.Errorf("ended at %s and at %s", there.at.Name, back.at.Name)
	}
	if first, last := there.hops[0], back.from.id; first != last {
		return fmt.Errorf("entered through %v and left through %v", first, last)
	}
	return nil
}

// isExcused reports whether there is a reason why a client can't reach a node: a problem
// of the node or of a node between, or a dead node on the way.
func (w world) isExcused(k *walker, c, b *host, dst netip.Addr) bool {
	e, ok := c.tables.lookup(dst)
	if ok && k.hosts[e.to].dead && (k.hosts[e.to].near(b) || e.to == b.id || !w.hasLivingCarrier()) {
		return true
	}
	for _, p := range b.top.Problems {
		words := strings.FieldsFunc(p.Text, func(r rune) bool { return strings.ContainsRune(" ,:;", r) })
		switch p.Kind {
		case mesh.ProblemClient, mesh.ProblemKey, mesh.ProblemNeighbor:
			if slices.Contains(words, b.Name) {
				return true
			}
		case mesh.ProblemGateway:
			if slices.Contains(words, b.Location) {
				return true
			}
		}
	}
	if !ok {
		return false
	}
	// Its gateway may not reach a node that it needs, or may be dead.
	route := k.hosts[e.to].route
	if e.to != b.id {
		p := route(b.id)
		if p.Kind == mesh.RouteNone || slices.ContainsFunc(p.Hops, func(id mesh.ID) bool { return k.hosts[id].dead }) {
			return true
		}
		for _, id := range p.Hops {
			if hasProblem(k.hosts[id], mesh.ProblemNeighbor) {
				return true
			}
		}
	}
	return hasProblem(k.hosts[e.to], mesh.ProblemNeighbor)
}

// hasLivingCarrier reports whether a node lives that can carry clients' traffic for nodes
// of any location, and that no verdict calls down: it goes before all dead ones.
func (w world) hasLivingCarrier() bool {
	owners := mesh.SlotOwners(w.records)
	verdicts := mesh.GatewayVerdicts(w.verdicts, w.records)
	return slices.ContainsFunc(w.records, func(r mesh.Record) bool {
		id := r.ID()
		return !w.dead[id] && verdicts[id].State != mesh.HealthDown &&
			r.Location == "" && len(r.Endpoints) > 0 && r.Gateway != mesh.GatewayNever && owners[r.Claim.Slot] == id
	})
}

func hasProblem(h *host, kind mesh.ProblemKind) bool {
	return slices.ContainsFunc(h.top.Problems, func(p mesh.Problem) bool { return p.Kind == kind && strings.Contains(p.Text, h.Name) })
}

// withClient returns a cluster of n nodes with one client, added by the last node.
func withClient(n int) mesh.Input {
	in := clusterOf(n)
	in.Cluster = cluster(true)
	in.Clients = []mesh.Client{client(in.Records[n-1], 0)}
	return in
}

func TestDeriveClient(t *testing.T) {
	in := withClient(2)
	in.Records[1].Endpoints, in.Records[1].NAT = nil, true
	home := mesh.Derive(in)
	want := []mesh.ClientTunnel{{
		ID: in.Clients[0].ID, Name: "c0", Key: in.Clients[0].Key, Addresses: []netip.Addr{netip.MustParseAddr("10.4.128.1")},
		Allowed: []mesh.Allowance{{
			Destinations: prefixes("10.4.0.0/17", "10.42.0.0/16", "10.43.0.0/16", "172.16.0.5/32", "172.16.1.5/32"),
			Bridges:      prefixes("10.42.0.0/16"),
		}},
		Added: 5000,
	}}
	if d := cmp.Diff(want, home.Clients, compareTopologies); d != "" {
		t.Errorf("clients of the node with an endpoint (-want +got):\n%s", d)
	}
	if got, want := fmt.Sprint(home.ClientRanges, home.Nodes, home.GossipPorts), "[10.4.128.0/17] [10.4.0.0/17 172.16.0.5/32 172.16.1.5/32] [7946]"; got != want {
		t.Errorf("ranges of clients and nodes, ports: got %s, want %s", got, want)
	}
	in.Self = in.Records[1].ID()
	away := mesh.Derive(in)
	if len(away.Clients) > 0 {
		t.Errorf("clients of the node without endpoint: got %v, want none", away.Clients)
	}
	if away.ClientHome != in.Records[0].ID() || home.ClientHome != (mesh.ID{}) {
		t.Errorf("homes of clients: got %v and %v", away.ClientHome, home.ClientHome)
	}
	if got, want := fmt.Sprint(away.Peers[0].AllowedIPs), "[10.4.0.1/32 10.4.128.1/32 10.42.0.0/24 172.16.0.5/32]"; got != want {
		t.Errorf("allowed IPs of its only peer: got %s, want %s", got, want)
	}
}

// Clients reach a node that strangers don't reach through its carrier: a node that no
// verdict calls down or draining, if there is one, first one of the same location. All
// nodes choose the same one.
func TestCarrier(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(in *mesh.Input, rs []mesh.Record)
		want   string // of n0
	}{
		{"one of those that strangers reach", func(*mesh.Input, []mesh.Record) {}, "n4"},
		{"it is down", func(in *mesh.Input, _ []mesh.Record) {
			in.Verdicts = []mesh.Verdict{verdict(*in, 0, 4, mesh.HealthDown, 1)}
		}, "n3"},
		{"it was down", func(in *mesh.Input, _ []mesh.Record) {
			in.Verdicts = []mesh.Verdict{verdict(*in, 0, 4, mesh.HealthDown, 1), verdict(*in, 4, 4, mesh.HealthUp, 2)}
		}, "n4"},
		{"it is draining", func(in *mesh.Input, _ []mesh.Record) {
			in.Verdicts = []mesh.Verdict{verdict(*in, 4, 4, mesh.HealthDraining, 1)}
		}, "n3"},
		{"another one is down", func(in *mesh.Input, _ []mesh.Record) {
			in.Verdicts = []mesh.Verdict{verdict(*in, 0, 3, mesh.HealthDown, 1)}
		}, "n4"},
		{"all are down", func(in *mesh.Input, rs []mesh.Record) {
			for i := 1; i < len(rs); i++ {
				in.Verdicts = append(in.Verdicts, verdict(*in, 0, i, mesh.HealthDown, 1))
			}
		}, "n4"},
		{"one is in the same location", func(_ *mesh.Input, rs []mesh.Record) {
			for _, i := range []int{0, 2} {
				rs[i].Location, rs[i].InternalIPs = "home", prefixes(fmt.Sprintf("192.168.1.%d/24", i+1))
			}
		}, "n2"},
		{"it does not want to", func(_ *mesh.Input, rs []mesh.Record) { rs[4].Gateway = mesh.GatewayNever }, "n3"},
		{"strangers reach none", func(_ *mesh.Input, rs []mesh.Record) {
			for i := range rs {
				rs[i].Endpoints = nil
			}
		}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := withClient(5)
			in.Cluster.Mode, in.Records[0].Endpoints = mesh.ModeFull, nil
			tt.change(&in, in.Records)
			carries := ""
			for _, p := range mesh.ClientConfigOf(in, in.Clients[0], nil).Peers {
				if slices.Contains(p.AllowedIPs, netip.MustParsePrefix("10.4.0.1/32")) {
					carries += p.Name
				}
			}
			in.Self = in.Records[0].ID()
			home := ""
			for _, p := range mesh.Derive(in).Peers {
				if slices.Contains(p.AllowedIPs, netip.MustParsePrefix("10.4.128.1/32")) {
					home += p.Name
				}
			}
			if carries != tt.want || home != tt.want {
				t.Errorf("got %q for the client and %q for the node, want %q", carries, home, tt.want)
			}
		})
	}
}

// In a location the client's address is routed to the gateway that has the client's
// tunnel.
func TestDeriveClientInLocation(t *testing.T) {
	in := withClient(3)
	in.Cluster.Mode, in.Cluster.Encapsulation = mesh.ModeLocation, mesh.EncapsulationAlways
	for i := range 2 {
		in.Records[i].Location = "a"
		in.Records[i].InternalIPs = prefixes(fmt.Sprintf("192.168.1.%d/24", i+1))
	}
	in.Self = in.Records[1].ID()
	got := mesh.Derive(in)
	if s := fmt.Sprint(got.Neighbors[0].Prefixes); len(got.Clients) > 0 || !strings.Contains(s, "10.4.128.1/32") {
		t.Errorf("a member has %d clients, and its gateway %s", len(got.Clients), s)
	}
	config := mesh.ClientConfigOf(in, in.Clients[0], nil)
	var peers []string
	for _, p := range config.Peers {
		peers = append(peers, fmt.Sprint(p.Name, p.AllowedIPs))
	}
	if len(peers) != 2 || !strings.HasPrefix(peers[0], "n0[10.4.0.1/32 10.4.0.2/32 10.42.0.0/24 10.42.1.0/24") || !strings.Contains(peers[0], "192.168.1.2/32") {
		t.Errorf("peers of the client: got %q", peers)
	}
}

// A client without internal IPs has every other prefix that it would have with them, also networks behind
// nodes. What it may reach is the same.
func TestNoInternalIPs(t *testing.T) {
	in := withClient(3)
	in.Records[1].AllowedLocationIPs = prefixes("192.168.10.0/24")
	in.Clients[0].Access = append(in.Clients[0].Access, mesh.Access{Prefix: in.Records[1].AllowedLocationIPs[0]})
	routed := func(c mesh.Client) (ps []netip.Prefix) {
		for _, p := range mesh.ClientConfigOf(in, c, nil).Peers {
			ps = append(ps, p.AllowedIPs...)
		}
		return ps
	}
	c := in.Clients[0]
	var want []netip.Prefix
	for _, p := range routed(c) {
		if !strings.HasPrefix(p.String(), "172.16.") {
			want = append(want, p)
		}
	}
	all := len(routed(c))
	c.NoInternalIPs = true
	if got := routed(c); len(want) != all-3 || fmt.Sprint(got) != fmt.Sprint(want) || !slices.Contains(got, in.Records[1].AllowedLocationIPs[0]) {
		t.Errorf("got %v, want %v, %d in all", got, want, all-3)
	}
	in.Self = in.Records[0].ID()
	allowed := func() any { return mesh.Derive(in).Clients[0].Allowed }
	before := allowed()
	in.Clients[0].NoInternalIPs = true
	if d := cmp.Diff(before, allowed(), compareTopologies); d != "" {
		t.Errorf("what it may reach (-before +after):\n%s", d)
	}
}

// A configuration that is printed while a gateway hands over leads to its successor.
func TestConfigWithoutReplacedGateway(t *testing.T) {
	in := withClient(3)
	in.Cluster.Mode, in.Cluster.Encapsulation = mesh.ModeLocation, mesh.EncapsulationAlways
	for i := range 2 {
		in.Records[i].Location, in.Records[i].Endpoints = "a", in.Records[0].Endpoints
		in.Records[i].InternalIPs = prefixes(fmt.Sprintf("192.168.1.%d/24", i+1))
	}
	in.Records[0].Gateway, in.Records[1].Term = mesh.GatewayPrefer, mesh.GatewayTerm{Since: 7}
	names := func(in mesh.Input) (names []string) {
		for _, p := range mesh.ClientConfigOf(in, in.Clients[0], nil).Peers {
			names = append(names, p.Name)
		}
		return names
	}
	if got := names(in); !slices.Equal(got, []string{"n0", "n1", "n2"}) {
		t.Errorf("while n1 hands over to n0: got peers %s, want both and n2", got)
	}
	if got := names(mesh.WithoutReplaced(in)); !slices.Equal(got, []string{"n0", "n2"}) {
		t.Errorf("afterwards: got peers %s, want n0 and n2", got)
	}
	if in.Records[1].Term.Since != 7 {
		t.Error("the records have changed")
	}
}

// A client knows in advance which nodes take over when its home in a location fails.
func TestStandbys(t *testing.T) {
	in := withClient(6)
	in.Cluster.Mode, in.Cluster.Encapsulation = mesh.ModeLocation, mesh.EncapsulationAlways
	for i := range 5 {
		in.Records[i].Location, in.Records[i].Endpoints = "a", in.Records[0].Endpoints
		in.Records[i].InternalIPs = prefixes(fmt.Sprintf("192.168.1.%d/24", i+1))
	}
	in.Records[2].Gateway, in.Records[3].Endpoints = mesh.GatewayNever, nil
	in.Records[4].Term = mesh.GatewayTerm{Since: 7}
	if home := mesh.Homes(in)[0]; home != in.Records[4].ID() {
		t.Fatalf("home: got %s, want n4, which is the gateway", home)
	}
	var got []string
	for _, p := range mesh.ClientConfigOf(in, in.Clients[0], nil).Standbys {
		got = append(got, fmt.Sprint(p.Name, p.AllowedIPs))
	}
	if s := strings.Join(got, " "); s != "n0[10.4.0.1/32] n1[10.4.0.2/32]" {
		t.Errorf("standbys: got %s, want n0 and n1, which have endpoints and may be gateways", s)
	}
	in.Verdicts = []mesh.Verdict{verdict(in, 5, 4, mesh.HealthDown, 1)}
	if homes := mesh.Homes(in); !slices.Contains(homes, in.Records[0].ID()) {
		t.Errorf("homes when n4 is down: got %v, want n0 among them", homes)
	}
}

func TestClientConflicts(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(in *mesh.Input, c *mesh.Client)
		want   string // in the problem
	}{
		{"name", func(_ *mesh.Input, c *mesh.Client) { c.Name = "c0" }, "client c0 that n1 added before has the same name"},
		{"address", func(_ *mesh.Input, c *mesh.Client) { c.Index = 0 }, "the same address"},
		{"key", func(in *mesh.Input, c *mesh.Client) { c.Key = in.Clients[0].Key }, "the same WireGuard key"},
		{"key of a node", func(in *mesh.Input, c *mesh.Client) { c.Key = in.Records[0].Key }, "node n0 has the same WireGuard key"},
		{"beyond the range", func(in *mesh.Input, c *mesh.Client) { c.Index = in.Cluster.ClientSlots() }, "room for 32766 clients"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := withClient(2)
			c := client(in.Records[0], 1)
			tt.change(&in, &c)
			in.Clients = []mesh.Client{c, in.Clients[0]}
			top := mesh.Derive(in)
			if len(top.Clients) != 1 || top.Clients[0].ID != in.Clients[1].ID {
				t.Fatalf("got %v, want the older client alone", top.Clients)
			}
			if len(top.Problems) != 1 || top.Problems[0].Kind != mesh.ProblemClient || top.Problems[0].Node != "n0" ||
				!strings.Contains(top.Problems[0].Text, tt.want) || !strings.Contains(top.Problems[0].Advice, c.ID.String()) {
				t.Errorf("problems %+v, want one of n0 with %q", top.Problems, tt.want)
			}
		})
	}
}

// A client's name is unique, whatever its case; the one that was there first keeps it.
func TestHostileClientName(t *testing.T) {
	for _, tt := range []struct {
		name    string
		change  func(in *mesh.Input) // client c0 is added at 5000
		clients int
		kind    mesh.ProblemKind
		want    string
	}{
		{"of another client", func(in *mesh.Input) {
			c := client(in.Records[0], 1)
			c.Name = "C0"
			in.Clients = append(in.Clients, c)
		}, 1, mesh.ProblemClient, "client c0 that n1 added before has the same name"},
		{"of a node", func(in *mesh.Input) { in.Clients[0].Name = "N1" }, 1, mesh.ProblemName, "node n1 has the name of client N1"},
		{"a node comes later", func(in *mesh.Input) { in.Records[1].Name, in.Records[1].Claim.Time = "C0", mesh.FirstRelease+6000 }, 1, mesh.ProblemName, "node C0 has the name of client c0"},
		{"a node without a claim", func(in *mesh.Input) {
			in.Records[1].Name, in.Records[1].Claim = "c0", mesh.Claim{Slot: mesh.None}
		}, 1, mesh.ProblemName, "node c0 has the name of client c0"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := withClient(2)
			tt.change(&in)
			top := mesh.Derive(in)
			if len(top.AllClients) != tt.clients {
				t.Errorf("%d clients count, want %d", len(top.AllClients), tt.clients)
			}
			if !slices.ContainsFunc(top.Problems, func(p mesh.Problem) bool { return p.Kind == tt.kind && strings.Contains(p.Text, tt.want) }) {
				t.Errorf("problems %+v, want one with %q", top.Problems, tt.want)
			}
		})
	}
}

func TestFreeClientIndex(t *testing.T) {
	c := cluster(true)
	c.Overlay = prefixes("10.4.0.0/29", "fd04::/120")
	if n := c.ClientSlots(); n != 2 {
		t.Fatalf("room for %d clients, want 2", n)
	}
	var clients []mesh.Client
	for i := range 2 {
		index, ok := mesh.FreeClientIndex(c, clients, wgtypes.Key{byte(i)})
		if !ok {
			t.Fatalf("client %d: no address", i)
		}
		clients = append(clients, mesh.Client{Index: index})
	}
	if _, ok := mesh.FreeClientIndex(c, clients, wgtypes.Key{}); ok {
		t.Error("got a third address, of two")
	}
	if got := fmt.Sprint(c.ClientAddresses(1)); got != "[10.4.0.6 fd04::82]" {
		t.Errorf("addresses of the last one: %s", got)
	}
}

func TestConfigOfRestrictedClient(t *testing.T) {
	in := withClient(2)
	in.Cluster.DNS = mesh.DNS{Address: netip.MustParseAddr("10.43.0.10"), Domain: "cluster.local"}
	c := in.Clients[0]
	c.ServiceGateway = in.Records[1].ID()
	for _, tt := range []struct {
		access  string
		allowed string // all of n0, and all of n1
		ranges  string
		dns     string
	}{
		{"pods", "[10.4.0.1/32 10.42.0.0/24] [10.4.0.2/32 10.42.1.0/24]", "[10.4.0.0/17 10.42.0.0/16]", ""},
		{"services", "[10.4.0.1/32] [10.4.0.2/32 10.43.0.0/16]", "[10.4.0.0/17 10.43.0.0/16]", "10.43.0.10"},
		{"tcp/443@10.43.0.0/16", "[10.4.0.1/32] [10.4.0.2/32 10.43.0.0/16]", "[10.4.0.0/17 10.43.0.0/16]", ""},
		{"udp/53@services 10.4.0.1", "[10.4.0.1/32] [10.4.0.2/32 10.43.0.0/16]", "[10.4.0.0/17 10.43.0.0/16]", "10.43.0.10"},
		{"nodes", "[10.4.0.1/32 172.16.0.5/32] [10.4.0.2/32 172.16.1.5/32]", "[10.4.0.0/17]", ""},
	} {
		c.Access = nil
		for _, s := range strings.Fields(tt.access) {
			a, err := mesh.ParseAccess(s)
			if err != nil {
				t.Fatal(err)
			}
			c.Access = append(c.Access, a)
		}
		got := mesh.ClientConfigOf(in, c, nil)
		var allowed []string
		for _, p := range got.Peers {
			allowed = append(allowed, fmt.Sprint(p.AllowedIPs))
		}
		if strings.Join(allowed, " ") != tt.allowed {
			t.Errorf("%s: allowed IPs %s, want %s", tt.access, allowed, tt.allowed)
		}
		if got := fmt.Sprint(got.Ranges); got != tt.ranges {
			t.Errorf("%s: ranges %s, want %s", tt.access, got, tt.ranges)
		}
		if dns := got.Resolver; dns.IsValid() != (tt.dns != "") || dns.IsValid() && dns.String() != tt.dns {
			t.Errorf("%s: resolver %v, want %q", tt.access, dns, tt.dns)
		}
	}
}

// Access to networks that no node reaches is listed as unserved, and no client gets a
// default route.
func TestHostileAccess(t *testing.T) {
	in := withClient(2)
	in.Records[1].AllowedLocationIPs = prefixes("192.168.10.0/24")
	parse := func(list string) (out []mesh.Access) {
		for _, s := range strings.Fields(list) {
			a, err := mesh.ParseAccess(s)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, a)
		}
		return out
	}
	c := in.Clients[0]
	c.Access = parse("pods services nodes 192.168.10.7 tcp/22@192.168.20.0/24 10.4.128.1 0.0.0.0/1")
	config := mesh.ClientConfigOf(in, c, nil)
	if got := fmt.Sprint(config.Unserved); got != "[tcp/22@192.168.20.0/24 10.4.128.1/32]" {
		t.Errorf("unserved: got %s", got)
	}
	if got := fmt.Sprint(config.Ranges); got != "[10.4.0.0/17 10.4.128.1/32 10.42.0.0/16 10.43.0.0/16 192.168.10.7/32 192.168.20.0/24]" {
		t.Errorf("ranges: got %s", got)
	}
	for _, list := range []string{"", "0.0.0.0/0", "pods 128.0.0.0/1", "::/0", "169.254.169.254", "127.0.0.0/8", "224.0.0.1", "tcp/80@fe80::/64"} {
		if err := mesh.CheckAccess(parse(list)); err == nil {
			t.Errorf("%q: no error", list)
		}
	}
	if err := mesh.CheckAccess(parse("pods 10.0.0.0/8 fd00::/8 tcp/443@services")); err != nil {
		t.Error(err)
	}
}

// If a service gateway fails, only its own clients get another one.
func TestServiceGatewayMoves(t *testing.T) {
	in := clusterOf(5)
	of := func(c mesh.Client, alive map[mesh.ID]bool) mesh.ID {
		for _, p := range mesh.ClientConfigOf(in, c, alive).Peers {
			if p.ServiceGateway {
				return p.ID
			}
		}
		return mesh.ID{}
	}
	alive := make(map[mesh.ID]bool)
	for _, r := range in.Records {
		alive[r.ID()] = true
	}
	dead := in.Records[2].ID()
	used := make(map[mesh.ID]bool)
	for i := range 40 {
		c := client(in.Records[0], i)
		delete(alive, dead)
		after := of(c, alive)
		alive[dead] = true
		before := of(c, alive)
		used[before] = true
		if after == dead || before != dead && before != after {
			t.Errorf("client %d: from %v to %v when %v died", i, before, after, dead)
		}
	}
	if len(used) != 5 {
		t.Errorf("%d of 5 nodes carry Services", len(used))
	}
}

func TestParseAccess(t *testing.T) {
	for _, s := range []string{"pods", "services", "nodes", "10.43.0.0/16", "tcp/443@services", "udp/53@10.43.0.10/32", "fd00::/64", "internet", "tcp/443@internet"} {
		if a, err := mesh.ParseAccess(s); err != nil || a.String() != s {
			t.Errorf("%s: got %v, %v", s, a, err)
		}
	}
	for _, s := range []string{"", "pod", "tcp@pods", "tcp/0@pods", "icmp/1@pods", "tcp/443", "10.43.0.1/16", "fe80::1%eth0", "::ffff:10.0.0.0/104", "pods@pods"} {
		if a, err := mesh.ParseAccess(s); err == nil {
			t.Errorf("%q: got %v, want an error", s, a)
		}
	}
}

func TestPresharedKeyIsHidden(t *testing.T) {
	c := mesh.Client{PresharedKey: mesh.PresharedKey{1, 2, 3}}
	j, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{fmt.Sprintf("%v %+v %#v %s %x", c, c, c, c.PresharedKey, c.PresharedKey), string(j)} {
		if strings.Contains(s, "010203") || strings.Contains(s, "AQID") || strings.Contains(s, "1 2 3") || strings.Contains(s, "0x1, 0x2") {
			t.Errorf("the key is visible in %s", s)
		}
	}
}
