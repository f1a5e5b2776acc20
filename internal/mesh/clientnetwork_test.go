// SPDX-License-Identifier: Apache-2.0

package mesh_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/meshd/meshd/internal/mesh"
)

// withRouter returns a cluster of three nodes, of which the last one has no endpoint, with a router for a
// network and a laptop that may reach it.
func withRouter() mesh.Input {
	in := withClient(3)
	in.Cluster.Mode = mesh.ModeFull
	in.Records[2].Endpoints, in.Records[2].NAT = nil, true
	in.Clients[0].Networks = prefixes("192.168.50.0/24")
	in.Clients[0].Access = []mesh.Access{{Target: mesh.AccessServices}}
	in.Clients = append(in.Clients, client(in.Records[0], 1))
	in.Clients[1].Access = []mesh.Access{{Prefix: netip.MustParsePrefix("192.168.50.7/32")}}
	return in
}

// A network behind a client is routed like the client's address: by each home into the tunnel, by another
// node to its home. Nothing masquerades packets to it, and it is as little trusted as a client.
func TestDeriveClientNetwork(t *testing.T) {
	const network = "192.168.50.0/24"
	in := withRouter()
	home := mesh.Derive(in)
	if got := home.Clients[0].Networks; fmt.Sprint(got) != "["+network+"]" {
		t.Errorf("networks of the router's tunnel: got %v", got)
	}
	in.Self = in.Records[2].ID()
	away := mesh.Derive(in)
	var through []string
	for _, p := range away.Peers {
		if slices.Contains(p.AllowedIPs, netip.MustParsePrefix(network)) {
			through = append(through, p.Name)
		}
	}
	if len(through) != 1 || len(away.Clients) > 0 {
		t.Errorf("a node without an endpoint reaches the network through %v, and has %d clients", through, len(away.Clients))
	}
	for name, top := range map[string]mesh.Topology{"home": home, "away": away} {
		for what, list := range map[string][]netip.Prefix{"inside": top.Inside, "pods and clients": top.PodsAndClients, "networks": top.ClientNetworks} {
			if !slices.Contains(list, netip.MustParsePrefix(network)) {
				t.Errorf("%s: the network is not among %s: %v", name, what, list)
			}
		}
		if len(top.Problems) > 0 {
			t.Errorf("%s: got problems %v", name, top.Problems)
		}
	}
}

// What a router gets leads to all pods and overlay addresses, whatever it may reach: they speak to its
// network. Another client reaches that through its service gateway.
func TestRouterConfig(t *testing.T) {
	in := withRouter()
	router := mesh.ClientConfigOf(in, in.Clients[0], nil)
	var all []netip.Prefix
	for _, p := range router.Peers {
		all = append(all, p.AllowedIPs...)
	}
	slices.SortFunc(all, mesh.ComparePrefix)
	if got, want := fmt.Sprint(all), "[10.4.0.1/32 10.4.0.2/32 10.4.0.3/32 10.42.0.0/24 10.42.1.0/24 10.42.2.0/24 10.43.0.0/16]"; got != want {
		t.Errorf("allowed IPs of the router's peers: got %s, want %s", got, want)
	}
	if router.Resolver.IsValid() || router.Keepalive.Seconds() != 5 {
		t.Errorf("the router gets the resolver %v and a keepalive of %v", router.Resolver, router.Keepalive)
	}
	laptop := mesh.ClientConfigOf(in, in.Clients[1], nil)
	for _, p := range laptop.Peers {
		if slices.Contains(p.AllowedIPs, in.Clients[0].Networks[0]) != p.ServiceGateway {
			t.Errorf("%s has allowed IPs %v, service gateway: %t", p.Name, p.AllowedIPs, p.ServiceGateway)
		}
	}
	if len(laptop.Unserved) > 0 {
		t.Errorf("nobody serves %v", laptop.Unserved)
	}
}

func TestClientNetworkConflicts(t *testing.T) {
	network := netip.MustParsePrefix("192.168.50.0/24")
	for _, tt := range []struct {
		name    string
		change  func(in *mesh.Input)
		problem string // "" for none, and the network is routed
		refused string // by CheckClientNetworks
	}{
		{"none", func(*mesh.Input) {}, "", ""},
		{"with the cluster", func(in *mesh.Input) { in.Cluster.Pods = prefixes("192.168.0.0/16") }, "overlaps the cluster's range 192.168.0.0/16", "overlaps the cluster's range"},
		{"with a network behind a node", func(in *mesh.Input) { in.Records[1].AllowedLocationIPs = []netip.Prefix{network} }, "node n1 has it, too", "node n1 has it, too"},
		{"a part of it is behind a node", func(in *mesh.Input) { in.Records[1].AllowedLocationIPs = prefixes("192.168.50.64/26") }, "", ""},
		{"with an endpoint", func(in *mesh.Input) { in.Records[1].Endpoints[0].Host = "192.168.50.9" }, "endpoints of WireGuard peers lie in it", "a tunnel can't run through itself"},
		{"with its own endpoint", func(in *mesh.Input) {
			in.Clients[0].Endpoint = mesh.Endpoint{Host: "router.example.com", Port: 51820}
			in.Resolved = map[string][]netip.Addr{"router.example.com": {netip.MustParseAddr("192.168.50.1")}}
		}, "the client's own endpoint lies in it", "a tunnel can't run through itself"},
		{"with a network of this host", func(in *mesh.Input) {
			in.Nearby.Attached = []mesh.AttachedNetwork{{Prefix: network, Link: "eth1", LAN: true}}
		}, "is not reachable from node n0: it overlaps 192.168.50.0/24, to which this host is attached by eth1", ""},
		{"with this host's own LAN", func(in *mesh.Input) { in.Records[0].InternalIPs = prefixes("192.168.50.3/24") }, "is not reachable from node n0", ""},
		{"with another client, which takes turns", func(in *mesh.Input) { in.Clients[1].Networks = []netip.Prefix{network} }, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := withRouter()
			tt.change(&in)
			c := in.Clients[0]
			top := mesh.Derive(in)
			if routed := slices.Contains(top.ClientNetworks, network); routed != (tt.problem == "") {
				t.Errorf("routed: %t; problems: %v", routed, top.Problems)
			}
			if tt.problem != "" && (len(top.Problems) != 1 || !strings.Contains(top.Problems[0].Text, tt.problem)) {
				t.Errorf("problems: got %v, want one with %q", top.Problems, tt.problem)
			}
			others := in
			others.Clients = in.Clients[1:]
			if err := mesh.CheckClientNetworks(others, c); (err == nil) != (tt.refused == "") || err != nil && !strings.Contains(err.Error(), tt.refused) {
				t.Errorf("as a new one: got %v, want %q", err, tt.refused)
			}
		})
	}
}

func TestCheckClientNetworks(t *testing.T) {
	for _, tt := range []struct {
		name string
		c    mesh.Client
		want string
	}{
		{"none", mesh.Client{}, ""},
		{"default route", mesh.Client{Networks: prefixes("0.0.0.0/0")}, "network 0.0.0.0/0: it overlaps"},
		{"too many", mesh.Client{Networks: make([]netip.Prefix, mesh.MaxClientNetworks+1)}, "17 networks"},
		{"within another one", mesh.Client{Networks: prefixes("192.168.50.0/24", "192.168.50.8/29")}, "networks 192.168.50.0/24 and 192.168.50.8/29 overlap"},
		{"offers", mesh.Client{Networks: prefixes("192.168.50.0/24"), Offers: []mesh.Access{{Prefix: netip.MustParsePrefix("192.168.50.7/32")}}}, ""},
		{"offers something else", mesh.Client{Networks: prefixes("192.168.50.0/24"), Offers: []mesh.Access{{Target: mesh.AccessPods}}}, "pods is not in a network behind the client"},
		{"offers nothing that it has", mesh.Client{Offers: []mesh.Access{{Prefix: netip.MustParsePrefix("192.168.50.7/32")}}}, "without networks behind it"},
		{"another cluster", mesh.Client{Cluster: "west", Networks: prefixes("10.52.0.0/16", "10.53.0.0/16")}, ""},
		{"another cluster of this cluster's name", mesh.Client{Cluster: "test", Networks: prefixes("10.52.0.0/16")}, ""},
		{"another cluster without ranges", mesh.Client{Cluster: "west"}, "cluster west is named without its ranges; name them with --networks"},
		{"another cluster without a host name", mesh.Client{Cluster: "far west", Networks: prefixes("10.52.0.0/16")}, `"far west" is not a host name`},
		{
			"another cluster with the same pods",
			mesh.Client{Cluster: "west", Networks: prefixes("10.42.0.0/17")},
			"of the cluster west, 10.42.0.0/17 overlaps cluster.pods 10.42.0.0/16 of this one; clusters that are joined need different ranges: in the one that is easier to change, " +
				"on all of its nodes, choose another cluster.overlay, cluster.pods (k3s's --cluster-cidr must be the same) or cluster.services (k3s's --service-cidr)",
		},
		{"endpoint alone", mesh.Client{Endpoint: mesh.Endpoint{Host: "192.0.2.1", Port: 1}}, "without networks behind it"},
	} {
		err := mesh.CheckClientNetworks(withRouter(), tt.c)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", tt.name, err, tt.want)
		}
	}
}
