// SPDX-License-Identifier: Apache-2.0

package mesh_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshd/meshd/internal/mesh"
)

// twoLinks returns two locations: n1 of a and n4 of b have links to the cluster west, of which 10.52.0.0/16 is a range.
func twoLinks(mode mesh.Mode) mesh.Input {
	in := twoLocations()
	in.Cluster.Mode = mode
	for _, i := range []int{1, 4} {
		linkTo(&in.Records[i], "west", "10.52.0.0/16")
	}
	return in
}

// TestServerOfLinkedNetwork: nodes of two locations have links to one cluster, and one of them serves it.
func TestServerOfLinkedNetwork(t *testing.T) {
	network := netip.MustParsePrefix("10.52.0.0/16")
	term := []mesh.NetworkTerm{{Network: network, Since: 7}}
	for _, tt := range []struct {
		name   string
		change func(in *mesh.Input, rs []mesh.Record)
		want   string
	}{
		{"the strongest claim", func(*mesh.Input, []mesh.Record) {}, "n1"},
		{"the one that serves it", func(_ *mesh.Input, rs []mesh.Record) { rs[4].Serving = term }, "n4"},
		{"the first one is down", func(in *mesh.Input, _ []mesh.Record) {
			in.Verdicts = []mesh.Verdict{verdict(*in, 2, 1, mesh.HealthDown, 1)}
		}, "n4"},
		{"the one that serves it has lost its link", func(_ *mesh.Input, rs []mesh.Record) {
			rs[4].Serving, rs[4].Unserved = term, []netip.Prefix{network}
		}, "n1"},
		{"both have lost their links", func(_ *mesh.Input, rs []mesh.Record) {
			rs[4].Serving, rs[1].Unserved, rs[4].Unserved = term, []netip.Prefix{network}, []netip.Prefix{network}
		}, "n4"},
	} {
		for _, mode := range []mesh.Mode{mesh.ModeFull, mesh.ModeCross, mesh.ModeLocation} {
			t.Run(tt.name+", "+string(mode), func(t *testing.T) {
				in := twoLinks(mode)
				in.Records[0].Gateway, in.Records[1].Gateway = mesh.GatewayNever, mesh.GatewayPrefer // so that servers are gateways, as server wants it
				tt.change(&in, in.Records)
				// Whoever has a link uses that, and never another one's.
				for _, i := range []int{1, 4} {
					in.Self = in.Records[i].ID()
					for _, p := range mesh.Derive(in).Peers {
						if slices.Contains(p.AllowedIPs, network) {
							t.Errorf("n%d sends packets to %v to %s", i, network, p.Name)
						}
					}
				}
				if got := server(t, in, network); got != tt.want {
					t.Errorf("got %s, want %s", got, tt.want)
				}
			})
		}
	}
}

// TestRivalOfLink: a node that names the range of the other cluster without a link to it, or with one to
// another cluster, means another network, wherever it is. Then nobody is sent to either.
func TestRivalOfLink(t *testing.T) {
	network := netip.MustParsePrefix("10.52.0.0/16")
	for name, rival := range map[string]func(in *mesh.Input){
		"no link, elsewhere":         func(in *mesh.Input) { in.Records[5].AllowedLocationIPs = []netip.Prefix{network} },
		"no link, in one's location": func(in *mesh.Input) { in.Records[2].AllowedLocationIPs = []netip.Prefix{network} },
		"a stronger claim":           func(in *mesh.Input) { in.Records[0].AllowedLocationIPs = []netip.Prefix{network} },
		"another cluster":            func(in *mesh.Input) { linkTo(&in.Records[2], "east", network.String()) },
	} {
		in := twoLinks(mesh.ModeFull)
		rival(&in)
		for _, r := range in.Records {
			in.Self = r.ID()
			top := mesh.Derive(in)
			for _, p := range top.Peers {
				if slices.Contains(p.AllowedIPs, network) {
					t.Errorf("%s: %s sends packets to %v to %s", name, r.Name, network, p.Name)
				}
			}
			if len(top.Shared) > 0 {
				t.Errorf("%s: %s shares %v", name, r.Name, top.Shared)
			}
			if r.Name == "n6" && !slices.ContainsFunc(top.Problems, func(p mesh.Problem) bool {
				return strings.Contains(p.Text, network.String()) && strings.Contains(p.Text, "has it, too")
			}) {
				t.Errorf("%s: n6 has problems %v, want one of %v", name, top.Problems, network)
			}
		}
	}
}

// TestClientReachesLinkedNetwork: exactly one of a client's peers leads there, whichever node has the link.
func TestClientReachesLinkedNetwork(t *testing.T) {
	network := netip.MustParsePrefix("10.52.0.0/16")
	for _, mode := range []mesh.Mode{mesh.ModeFull, mesh.ModeCross, mesh.ModeLocation} {
		for _, server := range []int{1, 4} {
			in := twoLinks(mode)
			in.Clients = []mesh.Client{client(in.Records[6], 0)}
			in.Clients[0].Access = append(in.Clients[0].Access, mesh.Access{Prefix: network})
			in.Records[server].Serving = []mesh.NetworkTerm{{Network: network, Since: 7}}
			config := mesh.ClientConfigOf(in, in.Clients[0], nil)
			var through []string
			for _, p := range config.Peers {
				if slices.Contains(p.AllowedIPs, network) {
					through = append(through, p.Name)
				}
			}
			if len(through) != 1 || len(config.Unserved) > 0 {
				t.Errorf("%s, n%d serves: it is reached through %v, unserved %v", mode, server, through, config.Unserved)
			}
		}
	}
}

// TestLinkedAccess: what comes by a link is in the topology of the node that has it, and only there.
func TestLinkedAccess(t *testing.T) {
	in := twoLinks(mesh.ModeFull)
	linkTo(&in.Records[1], "west", "10.51.0.0/16")
	in.LinkAccess = []mesh.Access{{Protocol: "tcp", Port: 443, Target: mesh.AccessServices}, {Target: mesh.AccessPods}}
	in.Self = in.Records[1].ID()
	top := mesh.Derive(in)
	if len(top.Problems) > 0 {
		t.Errorf("problems %v", top.Problems)
	}
	want := mesh.Linked{
		Networks: prefixes("10.51.0.0/16", "10.52.0.0/16"),
		Allowed: []mesh.Allowance{
			{Destinations: prefixes("10.42.0.0/16")},
			{Protocol: "tcp", Port: 443, Destinations: prefixes("10.43.0.0/16")},
		},
	}
	if d := cmp.Diff(want, top.Linked, compareTopologies); d != "" {
		t.Errorf("linked (-want +got):\n%s", d)
	}
	if got := fmt.Sprint(top.GossipPorts); got != "[7946]" || len(top.Nodes) == 0 {
		t.Errorf("closed ports %s of nodes %v", got, top.Nodes)
	}
	in.Self = in.Records[2].ID()
	if other := mesh.Derive(in); len(other.Linked.Networks)+len(other.Linked.Allowed)+len(other.Nodes) > 0 {
		t.Errorf("a node without a link: got %+v, nodes %v", other.Linked, other.Nodes)
	}
}

// TestClientReachesLinkThroughCarrier: clients reach the node that serves the network through another one, which
// has a link of its own.
func TestClientReachesLinkThroughCarrier(t *testing.T) {
	network := netip.MustParsePrefix("10.52.0.0/16")
	in := withClient(2)
	in.Cluster.Mode = mesh.ModeFull
	in.Records[1].Endpoints, in.Records[1].NAT = nil, true
	for i := range in.Records {
		linkTo(&in.Records[i], "west", network.String())
	}
	in.Records[1].Serving = []mesh.NetworkTerm{{Network: network, Since: 7}}
	in.Clients[0].Access = append(in.Clients[0].Access, mesh.Access{Prefix: network})
	config := mesh.ClientConfigOf(in, in.Clients[0], nil)
	if len(config.Peers) != 1 || !slices.Contains(config.Peers[0].AllowedIPs, network) || len(config.Unserved) > 0 {
		t.Errorf("got peers %+v, unserved %v, want one that leads to %v", config.Peers, config.Unserved, network)
	}
}
