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

// withInternet returns a dual-stack cluster of n nodes, the first of which are exits of both
// families, with a client that may reach the internet.
func withInternet(n, exits int) mesh.Input {
	in := clusterOf(n)
	for i := range exits {
		in.Records[i].Exit = mesh.ExitFamilies{IPv4: true, IPv6: true}
	}
	c := client(in.Records[0], 0)
	c.Access = []mesh.Access{{Target: mesh.AccessPods}, {Protocol: "tcp", Port: 443, Target: mesh.AccessInternet}}
	in.Clients = []mesh.Client{c}
	return in
}

// Both default routes of a client lead to an exit that is alive and has that family, and
// Services go through it, too.
func TestExit(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(in *mesh.Input, c *mesh.Client, alive map[mesh.ID]bool)
		want   string // the exits of IPv4 and of IPv6, and the service gateway
	}{
		{"one of several", func(*mesh.Input, *mesh.Client, map[mesh.ID]bool) {}, "n0 n0 n0"},
		{"it is dead", func(in *mesh.Input, _ *mesh.Client, alive map[mesh.ID]bool) { alive[in.Records[0].ID()] = false }, "n1 n1 n1"},
		{"all are dead", func(in *mesh.Input, _ *mesh.Client, alive map[mesh.ID]bool) {
			alive[in.Records[1].ID()], alive[in.Records[0].ID()] = false, false
		}, "n0 n0 n2"},
		{"named", func(in *mesh.Input, c *mesh.Client, _ map[mesh.ID]bool) { c.ServiceGateway = in.Records[1].ID() }, "n1 n1 n1"},
		{"one that is not an exit is named", func(in *mesh.Input, c *mesh.Client, _ map[mesh.ID]bool) { c.ServiceGateway = in.Records[3].ID() }, "n0 n0 n3"},
		{"it has one family", func(in *mesh.Input, _ *mesh.Client, _ map[mesh.ID]bool) { in.Records[0].Exit.IPv6 = false }, "n0 n1 n0"},
		{"no exit has the other family", func(in *mesh.Input, _ *mesh.Client, _ map[mesh.ID]bool) {
			in.Records[1].Exit.IPv6, in.Records[0].Exit.IPv6 = false, false
		}, "n0 n0 n0"},
		{"strangers don't reach it", func(in *mesh.Input, _ *mesh.Client, _ map[mesh.ID]bool) { in.Records[0].Endpoints = nil }, "n1 n1 n1"},
		{"there is none", func(in *mesh.Input, _ *mesh.Client, _ map[mesh.ID]bool) {
			in.Records[0].Exit, in.Records[1].Exit = mesh.ExitFamilies{}, mesh.ExitFamilies{}
		}, "- - n2"},
		{"the client may not", func(_ *mesh.Input, c *mesh.Client, _ map[mesh.ID]bool) { c.Access = c.Access[:1] }, "- - n2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in := withInternet(4, 2)
			alive := make(map[mesh.ID]bool)
			for _, r := range in.Records {
				alive[r.ID()] = true
			}
			tt.change(&in, &in.Clients[0], alive)
			config := mesh.ClientConfigOf(in, in.Clients[0], alive)
			got := []string{"-", "-", "-"}
			for _, p := range config.Peers {
				for i, route := range prefixes("0.0.0.0/0", "::/0") {
					if slices.Contains(p.AllowedIPs, route) {
						got[i] = p.Name
					}
				}
				if p.ServiceGateway {
					got[2] = p.Name
				}
				if !slices.Contains(p.AllowedIPs, netip.PrefixFrom(p.Overlay[0], 32)) {
					t.Errorf("%s: the default route takes in its address: %v", p.Name, p.AllowedIPs)
				}
				if !slices.IsSortedFunc(p.AllowedIPs, mesh.ComparePrefix) {
					t.Errorf("%s: not sorted: %v", p.Name, p.AllowedIPs)
				}
			}
			if got := strings.Join(got, " "); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			granted := slices.Contains(config.Ranges, netip.MustParsePrefix("::/0"))
			if may := len(in.Clients[0].Access) > 1; granted != may {
				t.Errorf("ranges: got %v", config.Ranges)
			}
			if unserved := fmt.Sprint(config.Unserved); (unserved == "[tcp/443@internet]") != (tt.name == "there is none") {
				t.Errorf("unserved: got %s", unserved)
			}
		})
	}
}

// An exit forwards what is globally reachable and neither the cluster's nor behind a node.
func TestInternet(t *testing.T) {
	in := withInternet(3, 1)
	in.Cluster.Services = append(in.Cluster.Services, prefixes("2a01:db8:53::/112")...)
	in.Records[1].AllowedLocationIPs = prefixes("93.184.216.0/24")
	in.Records[0].AllowedLocationIPs = prefixes("5.9.0.0/16")
	in.Self = in.Records[0].ID()
	top := mesh.Derive(in)
	if got := top.Clients[0].Allowed; len(got) != 2 || got[0].Internet || !got[1].Internet || len(got[1].Destinations) > 0 {
		t.Errorf("allowed: got %+v", got)
	}
	for addr, want := range map[string]bool{
		"8.8.8.8": true, "93.184.215.255": true, "93.184.217.0": true, "223.255.255.255": true, "11.0.0.1": true,
		"93.184.216.34": false, "5.9.1.1": false, "10.1.2.3": false, "192.168.1.1": false, "172.31.0.1": false, "100.100.0.1": false,
		"127.0.0.1": false, "169.254.169.254": false, "0.0.0.0": false, "224.0.0.1": false, "240.0.0.1": false, "255.255.255.255": false, "198.18.0.1": false,
		"2a00:1450::1": true, "2600::1": true, "2a01:db8:53::a": false, "fd00::1": false, "fe80::1": false, "::1": false, "ff02::1": false,
		"64:ff9b::a00:1": false, "2002:a00:1::1": false, "2001:0:1::1": false, "::ffff:10.0.0.1": false,
	} {
		if got := slices.ContainsFunc(top.Internet, func(p netip.Prefix) bool { return p.Contains(netip.MustParseAddr(addr)) }); got != want {
			t.Errorf("%s: got %v, want %v", addr, got, want)
		}
	}
	for i, p := range top.Internet {
		if i > 0 && (mesh.ComparePrefix(top.Internet[i-1], p) >= 0 || p.Overlaps(top.Internet[i-1])) {
			t.Errorf("%v after %v", p, top.Internet[i-1])
		}
	}
	in.Self = in.Records[1].ID()
	if top := mesh.Derive(in); len(top.Internet) > 0 || len(top.Clients) == 0 {
		t.Errorf("a node that is not an exit: got %v", top.Internet)
	}
	in.Self = in.Records[0].ID()
	in.Clients[0].Access = in.Clients[0].Access[:1]
	if top := mesh.Derive(in); len(top.Internet) > 0 {
		t.Errorf("an exit whose clients may not: got %v", top.Internet)
	}
	isNoted := func(p mesh.Problem) bool {
		return p.Kind == mesh.ProblemNote && strings.Contains(p.Text, "through n0, which has node.exit")
	}
	if top := mesh.Derive(in); slices.ContainsFunc(top.Problems, isNoted) {
		t.Errorf("an exit: got problems %v", top.Problems)
	}
	in.Records[0].NAT, in.Records[0].Endpoints = true, nil
	if top := mesh.Derive(in); !slices.ContainsFunc(top.Problems, isNoted) {
		t.Errorf("a node that strangers don't reach: got problems %v", top.Problems)
	}
	if exits := mesh.Exits(in); len(exits) > 0 {
		t.Errorf("a node that strangers don't reach is an exit: %v", exits)
	}
}

// A default route is no entry of an access list: the error says what is.
func TestAccessToDefaultRoute(t *testing.T) {
	for _, s := range []string{"0.0.0.0/0", "::/0", "udp/53@0.0.0.0/0"} {
		a, err := mesh.ParseAccess(s)
		if err != nil {
			t.Fatal(err)
		}
		if err := mesh.CheckAccess([]mesh.Access{a}); err == nil || !strings.Contains(err.Error(), "write internet") {
			t.Errorf("%s: got %v", s, err)
		}
	}
}
