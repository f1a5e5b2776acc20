// SPDX-License-Identifier: Apache-2.0

package mesh_test

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/meshd/meshd/internal/mesh"
)

// topologyText lists what a node derives, in readable form.
func topologyText(in mesh.Input, i int) string {
	names := map[mesh.ID]string{}
	for _, r := range in.Records {
		names[r.ID()] = r.Name
	}
	in.Self = in.Records[i].ID()
	top := mesh.Derive(in)
	var b strings.Builder
	fmt.Fprintf(&b, "%s seat %d\n", in.Records[i].Name, top.Seat)
	for _, p := range top.Peers {
		fmt.Fprintf(&b, "  peer %s %v %v mtu %d\n", p.Name, p.Endpoints, p.AllowedIPs, p.MTU)
	}
	for _, n := range top.Neighbors {
		how := fmt.Sprintf("plain %v", n.NextHops)
		if n.Encapsulated {
			how = fmt.Sprintf("vxlan to %v inside %v", n.InternalIP, n.Overlay)
		}
		fmt.Fprintf(&b, "  neighbor %s %s %v mtu %d\n", n.Name, how, n.Prefixes, n.MTU)
	}
	for _, p := range top.Routes {
		var hops []string
		for _, id := range p.Hops {
			hops = append(hops, names[id])
		}
		fmt.Fprintf(&b, "  path %s %s %v\n", names[p.ID], p.Kind, hops)
	}
	fmt.Fprintf(&b, "  inside %v\n  serves %v\n", top.Inside, top.ServedNetworks)
	for _, p := range top.Problems {
		fmt.Fprintf(&b, "  problem %s on %s: %s; %s\n", p.Kind, p.Node, p.Text, p.Advice)
	}
	return b.String()
}

func TestTopologies(t *testing.T) {
	tests := []struct {
		name string
		in   mesh.Input
	}{
		{"two-locations-and-a-lone-node", func() mesh.Input {
			in := clusterIn(mesh.ModeLocation, "aws aws gcp gcp -")
			in.Records[1].MTU = 1370
			in.Records[3].AllowedLocationIPs = prefixes("172.30.0.0/24")
			return in
		}()},
		{"cross", clusterIn(mesh.ModeCross, "aws aws gcp -")},
		{"two-gateways", func() mesh.Input {
			in := clusterIn(mesh.ModeLocation, "aws aws aws aws -")
			in.Cluster.Gateways = 2
			return in
		}()},
		{"behind-nat", func() mesh.Input {
			in := clusterIn(mesh.ModeLocation, "home home - -")
			for i := range 3 {
				in.Records[i].NAT, in.Records[i].Endpoints = true, nil
			}
			return in
		}()},
		{"clashing-internal-ips", func() mesh.Input {
			in := clusterIn(mesh.ModeLocation, "aws aws gcp gcp")
			in.Records[3].InternalIPs = in.Records[1].InternalIPs
			return in
		}()},
		{"no-next-hop", func() mesh.Input {
			in := clusterIn(mesh.ModeLocation, "aws aws aws -")
			in.Cluster.Encapsulation = mesh.EncapsulationNever
			in.Records[2].InternalIPs = prefixes("192.168.200.7/24")
			return in
		}()},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var all []string
			for i := range tt.in.Records {
				all = append(all, topologyText(tt.in, i))
			}
			golden(t, "topology-"+tt.name+".txt", strings.Join(all, "\n"))
		})
	}
}

// The families that two nodes of a location can exchange on the LAN, and how.
func TestLinks(t *testing.T) {
	tests := []struct {
		name          string
		encapsulation mesh.Encapsulation
		dual          bool // IPv6 among the pods
		a, b          string
		want          string
		problem       string
	}{
		{"always", mesh.EncapsulationAlways, false, "192.168.1.1/24", "192.168.1.2/24", "vxlan 192.168.1.2 v4", ""},
		{"always, IPv6 inside", mesh.EncapsulationAlways, true, "192.168.1.1/24", "192.168.1.2/24", "vxlan 192.168.1.2 v4 v6", ""},
		{"IPv4 where all have it", mesh.EncapsulationAlways, true, "fd00::1/64 192.168.1.1/24", "192.168.1.2/24 fd00::2/64", "vxlan 192.168.1.2 v4 v6", ""},
		{"IPv6 where one has no other", mesh.EncapsulationAlways, true, "fd00::1/64", "192.168.1.2/24 fd00::2/64", "vxlan fd00::2 v4 v6", ""},
		{"no common family", mesh.EncapsulationAlways, false, "fd00::1/64", "192.168.1.2/24", "", "different families"},
		{"no internal IP", mesh.EncapsulationAlways, false, "192.168.1.1/24", "", "", "n1 has no internal IP"},
		{"the same internal IP", mesh.EncapsulationAlways, false, "192.168.1.1/24", "192.168.1.1/24", "", "both have the internal IP 192.168.1.1"},
		{"crosssubnet, same subnet", mesh.EncapsulationCrossSubnet, false, "192.168.1.1/24", "192.168.1.2/24", "plain [192.168.1.2] v4", ""},
		{"crosssubnet, another subnet", mesh.EncapsulationCrossSubnet, false, "192.168.1.1/24", "192.168.2.2/24", "vxlan 192.168.2.2 v4", ""},
		{"crosssubnet, a cloud's single addresses", mesh.EncapsulationCrossSubnet, false, "192.168.1.1/32", "192.168.1.2/32", "vxlan 192.168.1.2 v4", ""},
		{"crosssubnet, one sees the other on link", mesh.EncapsulationCrossSubnet, false, "192.168.1.1/16", "192.168.2.2/24", "vxlan 192.168.2.2 v4", ""},
		{"crosssubnet, IPv6 inside alone", mesh.EncapsulationCrossSubnet, true, "192.168.1.1/24", "192.168.1.2/24", "vxlan 192.168.1.2 v4 v6", ""},
		{"crosssubnet, both", mesh.EncapsulationCrossSubnet, true, "192.168.1.1/24 fd00::1/64", "192.168.1.2/24 fd00::2/64", "plain [192.168.1.2 fd00::2] v4 v6", ""},
		{"never", mesh.EncapsulationNever, false, "192.168.1.1/24", "192.168.1.2/24", "plain [192.168.1.2] v4", ""},
		{"never, IPv6 has no next hop", mesh.EncapsulationNever, true, "192.168.1.1/24", "192.168.1.2/24", "plain [192.168.1.2] v4", "don't reach each other with IPv6"},
		{"never, another subnet", mesh.EncapsulationNever, false, "192.168.1.1/24", "192.168.2.2/24", "", "not in one subnet"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := clusterOf(2)
			in.Cluster = cluster(!tt.dual)
			in.Cluster.Mode, in.Cluster.Encapsulation = mesh.ModeCross, tt.encapsulation
			for i, ips := range []string{tt.a, tt.b} {
				in.Records[i].Location, in.Records[i].InternalIPs = "a", prefixes(strings.Fields(ips)...)
			}
			top := mesh.Derive(in)
			got := ""
			for _, n := range top.Neighbors {
				got = fmt.Sprint("plain ", n.NextHops)
				if n.Encapsulated {
					got = fmt.Sprint("vxlan ", n.InternalIP)
				}
				for _, v := range []string{"v4", "v6"} {
					i := slices.IndexFunc(n.Prefixes, func(p netip.Prefix) bool { return p.Addr().Is4() == (v == "v4") })
					if i >= 0 {
						got += " " + v
					}
				}
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if text := fmt.Sprint(top.Problems); (len(top.Problems) > 0) != (tt.problem != "") || !strings.Contains(text, tt.problem) {
				t.Errorf("problems: got %s, want %q", text, tt.problem)
			}
		})
	}
}

// What all files say who want to be encrypted on the LAN, no settings of others undo: in
// the modes location and cross they have the tunnels of a full mesh.
func TestHostileSettingsKeepEncryption(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		for i := range w.records {
			w.records[i].Encrypted = true
		}
		in := mesh.Input{Cluster: w.cluster, Self: w.records[0].ID(), Records: w.records, Verdicts: w.verdicts, Clients: w.clients}
		in.Cluster.Mode = mesh.ModeFull
		want := mesh.Derive(in)
		for _, mode := range []mesh.Mode{mesh.ModeLocation, mesh.ModeCross} {
			in.Cluster.Mode = mode
			if got := mesh.Derive(in); !reflect.DeepEqual(got, want) {
				t.Errorf("mode %s: got %+v, want as in mode full %+v", mode, got, want)
			}
		}
	})
}

// A node that wants to be encrypted is not a neighbor of any node, whatever the others want,
// and each node has a tunnel to it or is behind a gateway that has one.
func TestHostileSettingsKeepOneNodeEncrypted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		for _, r := range w.records {
			top := mesh.Derive(mesh.Input{Cluster: w.cluster, Self: r.ID(), Records: w.records, Verdicts: w.verdicts, Clients: w.clients})
			if r.Encrypted && len(top.Neighbors) > 0 {
				t.Fatalf("%s is encrypted and has neighbors on the LAN: %v", r.Name, top.Neighbors)
			}
			for _, n := range top.Neighbors {
				if slices.ContainsFunc(w.records, func(o mesh.Record) bool { return o.ID() == n.ID && o.Encrypted }) {
					t.Fatalf("%s reaches %s on the LAN, which is encrypted", r.Name, n.Name)
				}
			}
		}
	})
}
