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
	"pgregory.net/rapid"
)

func attached(p, link string) mesh.AttachedNetwork {
	return mesh.AttachedNetwork{Prefix: netip.MustParsePrefix(p), Link: link}
}

func viaRouter(p, link string) mesh.AttachedNetwork {
	a := attached(p, link)
	a.Routed = true
	return a
}

func TestOverlaps(t *testing.T) {
	v4 := mesh.Cluster{Overlay: prefixes("10.4.0.0/16"), Pods: prefixes("10.42.0.0/16"), PodPrefix: []int{24}, Services: prefixes("10.43.0.0/16")}
	v6 := mesh.Cluster{Overlay: prefixes("fd00:4::/64"), Pods: prefixes("fd00:42::/48"), PodPrefix: []int{64}, Services: prefixes("fd00:43::/112")}
	tests := []struct {
		name     string
		cluster  mesh.Cluster
		networks []mesh.AttachedNetwork
		want     []string // overlaps, each with the range that would do
		wider    []string
	}{
		{"none", v4, []mesh.AttachedNetwork{attached("10.5.0.0/16", "eth0"), attached("192.168.0.0/16", "eth1")}, nil, nil},
		{"a LAN in the pod range", v4, []mesh.AttachedNetwork{attached("10.42.3.0/24", "eth0")}, []string{"cluster.pods 10.42.0.0/16: 10.42.3.0/24 → 10.44.0.0/16"}, nil},
		{"a LAN as large as the overlay range", v4, []mesh.AttachedNetwork{attached("10.4.0.0/16", "eth0")}, []string{"cluster.overlay 10.4.0.0/16: 10.4.0.0/16 → 10.5.0.0/16"}, nil},
		{"Services, and their neighbor is taken", v4, []mesh.AttachedNetwork{attached("10.43.0.0/24", "eth0"), attached("10.44.0.0/24", "eth1")}, []string{"cluster.services 10.43.0.0/16: 10.43.0.0/24 → 10.45.0.0/16"}, nil},
		{"a LAN around all ranges", v4, []mesh.AttachedNetwork{attached("10.0.0.0/8", "eth0")}, []string{
			"cluster.overlay 10.4.0.0/16: 10.0.0.0/8 → 172.16.0.0/16", "cluster.pods 10.42.0.0/16: 10.0.0.0/8 → 172.17.0.0/16", "cluster.services 10.43.0.0/16: 10.0.0.0/8 → 172.18.0.0/16",
		}, nil},
		{"a route to a part, and one around all", v4, []mesh.AttachedNetwork{viaRouter("10.42.0.0/17", "eth0"), viaRouter("10.0.0.0/9", "eth0")}, []string{"cluster.pods 10.42.0.0/16: 10.42.0.0/17 → 10.128.0.0/16"}, []string{
			"cluster.overlay 10.4.0.0/16: 10.0.0.0/9 → 10.128.0.0/16", "cluster.pods 10.42.0.0/16: 10.0.0.0/9 → 10.129.0.0/16", "cluster.services 10.43.0.0/16: 10.0.0.0/9 → 10.130.0.0/16",
		}},
		{"no private range is free", v4, []mesh.AttachedNetwork{attached("10.42.3.0/24", "eth0"), viaRouter("10.0.0.0/8", "eth0"), viaRouter("172.16.0.0/12", "eth0"), viaRouter("192.168.0.0/16", "eth0")}, []string{"cluster.pods 10.42.0.0/16: 10.42.3.0/24 → invalid Prefix"}, []string{
			"cluster.overlay 10.4.0.0/16: 10.0.0.0/8 → invalid Prefix", "cluster.pods 10.42.0.0/16: 10.0.0.0/8 → invalid Prefix", "cluster.services 10.43.0.0/16: 10.0.0.0/8 → invalid Prefix",
		}},
		{"IPv6", v6, []mesh.AttachedNetwork{attached("fd00:42:0:7::/64", "eth0"), attached("fd00:4::/64", "eth1")}, []string{
			"cluster.overlay fd00:4::/64: fd00:4::/64 → fd00:4:0:1::/64", "cluster.pods fd00:42::/48: fd00:42:0:7::/64 → fd00:42:1::/48",
		}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			lines := func(overlaps []mesh.RangeOverlap) (out []string) {
				for _, o := range overlaps {
					out = append(out, fmt.Sprintf("%s %v: %v → %v", o.Key, o.Range, o.Network.Prefix, o.Free))
				}
				return out
			}
			n := mesh.Nearby{Attached: tt.networks}
			if diff := cmp.Diff(tt.want, lines(n.Overlaps(tt.cluster))); diff != "" {
				t.Errorf("overlaps (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.wider, lines(n.Wider(tt.cluster))); diff != "" {
				t.Errorf("wider routes (-want +got):\n%s", diff)
			}
		})
	}
}

// TestHostKeepsItsNetworks checks that nothing in a network of the host is the mesh's on that
// host, whatever part of the cluster's ranges it is, and that all the rest stays the mesh's.
func TestHostKeepsItsNetworks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		in := mesh.Input{Cluster: w.cluster, Self: w.records[0].ID(), Records: w.records, Verdicts: w.verdicts, Clients: w.clients}
		before := mesh.Derive(in)
		r := rapid.SampledFrom(append(slices.Clone(w.cluster.Overlay), w.cluster.Pods...)).Draw(t, "range")
		at := r.Addr().AsSlice()
		at[len(at)-1-rapid.IntRange(0, 1).Draw(t, "byte")] |= byte(rapid.IntRange(0, 3).Draw(t, "part"))
		addr, _ := netip.AddrFromSlice(at)
		kept, err := addr.Prefix(rapid.IntRange(max(8, r.Bits()-2), addr.BitLen()).Draw(t, "length"))
		if err != nil {
			t.Fatal(err)
		}
		in.Nearby.Attached = []mesh.AttachedNetwork{{Prefix: kept, Link: "eth0", LAN: true}}
		got := mesh.Derive(in)
		for _, list := range []struct {
			name        string
			before, got []netip.Prefix
			split       bool // a prefix that overlaps is kept in part
		}{
			{"addresses", hosts(before.Addresses), hosts(got.Addresses), false},
			{"pod CIDRs", before.PodCIDRs, got.PodCIDRs, false},
			{"prefixes of peers and neighbors", allPrefixes(before), allPrefixes(got), false},
			{"guarded", before.Guarded, got.Guarded, true},
			{"inside", before.Inside, got.Inside, true},
			{"pods and clients", before.PodsAndClients, got.PodsAndClients, true},
			{"clients", before.ClientRanges, got.ClientRanges, true},
		} {
			for _, p := range list.got {
				if p.Overlaps(kept) {
					t.Errorf("%s: %v overlaps %v, which is the host's", list.name, p, kept)
				}
			}
			for _, p := range list.before {
				for _, a := range []netip.Addr{p.Masked().Addr(), lastOf(p)} {
					inside := slices.ContainsFunc(list.got, func(g netip.Prefix) bool { return g.Contains(a) })
					if lost := !list.split && p.Overlaps(kept) || kept.Contains(a); inside == lost {
						t.Errorf("%s: %v of %v is in it: %v, with %v on the LAN", list.name, a, p, inside, kept)
					}
				}
			}
		}
		if !slices.ContainsFunc(got.Problems, func(p mesh.Problem) bool {
			return p.Kind == mesh.ProblemRange && strings.Contains(p.Text, kept.String()+", to which this host is attached by eth0")
		}) {
			t.Errorf("no problem names %v: %v", kept, got.Problems)
		}
	})
}

func allPrefixes(t mesh.Topology) (all []netip.Prefix) {
	for _, p := range t.Peers {
		all = append(all, p.AllowedIPs...)
	}
	for _, n := range t.Neighbors {
		all = append(all, n.Prefixes...)
		all = append(all, hosts(n.Overlay)...)
	}
	return all
}

func hosts(addrs []netip.Addr) (all []netip.Prefix) {
	for _, a := range addrs {
		all = append(all, netip.PrefixFrom(a, a.BitLen()))
	}
	return all
}

// lastOf returns the last address of a prefix.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// TestBothSidesNameIt checks that a network of one node that another one's host reaches
// otherwise is a problem on both, each of which names the other.
func TestBothSidesNameIt(t *testing.T) {
	tests := []struct {
		name    string
		network mesh.AttachedNetwork // of n0
		change  func(n1 *mesh.Record)
		want    []netip.Prefix // withheld by n0
	}{
		{"a second card", attached("10.200.0.0/16", "eth1"), func(r *mesh.Record) { r.InternalIPs = prefixes("10.200.0.5/24") }, prefixes("10.200.0.5/32")},
		{"a bridge of containers", mesh.AttachedNetwork{Prefix: netip.MustParsePrefix("172.30.0.0/16"), Link: "docker0", Containers: true}, func(r *mesh.Record) { r.InternalIPs = prefixes("172.30.0.5/24") }, prefixes("172.30.0.5/32")},
		{"a route", viaRouter("10.200.0.0/16", "eth0"), func(r *mesh.Record) { r.AllowedLocationIPs = prefixes("10.200.7.0/24") }, prefixes("10.200.7.0/24")},
		{"a network that contains the route", viaRouter("10.200.7.0/24", "eth0"), func(r *mesh.Record) { r.AllowedLocationIPs = prefixes("10.200.0.0/16") }, nil},
		{"a network that contains a card's", attached("10.200.7.0/24", "eth1"), func(r *mesh.Record) { r.AllowedLocationIPs = prefixes("10.200.0.0/16") }, prefixes("10.200.0.0/16")},
		{"pods", attached("10.42.1.0/24", "eth1"), func(*mesh.Record) {}, prefixes("10.42.1.0/24")},
		{"an overlay address", attached("10.4.0.0/29", "eth1"), func(*mesh.Record) {}, prefixes("10.4.0.2/32")},
		{"the own private network, which the record has", attached("172.16.0.0/24", "eth0"), func(r *mesh.Record) { r.InternalIPs = prefixes("172.16.0.9/24") }, nil},
		{"nothing", attached("10.200.0.0/16", "eth1"), func(*mesh.Record) {}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := mesh.Input{Cluster: cluster(true), Records: []mesh.Record{record(0), record(1)}}
			here, there := &in.Records[0], &in.Records[1]
			tt.change(there)
			nearby := mesh.Nearby{Attached: []mesh.AttachedNetwork{tt.network}}
			here.Withheld, here.WithheldMore = mesh.Withheld(in.Cluster, *here, in.Records, nearby)
			if !slices.Equal(here.Withheld, tt.want) {
				t.Fatalf("withheld: got %v, want %v", here.Withheld, tt.want)
			}
			problem := func(t mesh.Topology, texts ...string) bool {
				return slices.ContainsFunc(t.Problems, func(p mesh.Problem) bool {
					return !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(p.Text, text) })
				})
			}
			in.Self, in.Nearby = here.ID(), nearby
			near := mesh.Derive(in)
			in.Self, in.Nearby = there.ID(), mesh.Nearby{}
			far := mesh.Derive(in)
			for _, p := range tt.want {
				if slices.Contains(allPrefixes(near), p) {
					t.Errorf("%v is routed to the other node", p)
				}
				if !problem(near, tt.network.Prefix.String(), tt.network.Link, "n1") {
					t.Errorf("problems of the node that withholds it: %v", near.Problems)
				}
				if !problem(far, p.String(), "node n0 does not reach") {
					t.Errorf("problems of the node whose it is: %v", far.Problems)
				}
			}
			if tt.want == nil && problem(far, "does not reach") {
				t.Errorf("problems where nothing is withheld: %v", far.Problems)
			}
		})
	}
}

// TestWithheldMore: a node that withholds more networks than it may name says how many more,
// and those whose networks may be among them report that.
func TestWithheldMore(t *testing.T) {
	in := mesh.Input{Cluster: cluster(true), Nearby: mesh.Nearby{Attached: []mesh.AttachedNetwork{attached("10.200.0.0/16", "eth1")}}}
	for i := range mesh.MaxWithheld + 3 {
		r := record(i)
		if i > 0 {
			r.InternalIPs = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 200, 0, byte(i)}), 24)}
		}
		in.Records = append(in.Records, r)
	}
	here := &in.Records[0]
	here.Withheld, here.WithheldMore = mesh.Withheld(in.Cluster, *here, in.Records, in.Nearby)
	if len(here.Withheld) != mesh.MaxWithheld || here.WithheldMore != 2 {
		t.Fatalf("withheld: got %v and %d more, want %d and 2", here.Withheld, here.WithheldMore, mesh.MaxWithheld)
	}
	in.Nearby = mesh.Nearby{}
	for i, r := range in.Records[1:] {
		in.Self = r.ID()
		want := "node n0 does not reach " + r.InternalIPs[0].Addr().String() + "/32 of this node"
		if i >= mesh.MaxWithheld {
			want = "node n0 does not reach 2 more networks of other nodes through the mesh than it names; " + r.InternalIPs[0].Addr().String() + "/32"
		}
		var got []string
		for _, p := range mesh.Derive(in).Problems {
			if strings.HasPrefix(p.Text, "node n0 does not reach") {
				got = append(got, p.Text)
			}
		}
		// The overlay address and the pod CIDR of a node sort before these networks.
		if len(got) != 1 || !strings.HasPrefix(got[0], want) {
			t.Errorf("%s: got %q, want %q", r.Name, got, want)
		}
	}
}
