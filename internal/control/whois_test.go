// SPDX-License-Identifier: Apache-2.0

package control_test

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/netcfg"
)

func TestWhoIs(t *testing.T) {
	addr, prefix, at := netip.MustParseAddr, netip.MustParsePrefix, netip.MustParseAddrPort
	s := control.Status{
		Cluster: control.Cluster{Overlay: []netip.Prefix{prefix("10.4.0.0/16")}, Pods: []netip.Prefix{prefix("10.42.0.0/16")}, Services: []netip.Prefix{prefix("10.43.0.0/16")}},
		Node: control.Node{
			Name: "aws-1", Overlay: []netip.Addr{addr("10.4.0.1"), addr("fd04::1")}, PodCIDRs: []netip.Prefix{prefix("10.42.0.0/24")},
			Endpoints: []string{"198.51.100.1:51820", "aws.example.com:51820"}, InternalIPs: []netcfg.InternalIP{{Address: prefix("172.31.0.5/20")}},
			Networks: []control.SharedNetwork{{Network: prefix("10.77.0.0/16"), Through: "aws-2"}},
		},
		Peers: []control.Peer{{
			Name: "gcp-1", Overlay: []netip.Addr{addr("10.4.0.127")}, PodCIDRs: []netip.Prefix{prefix("10.42.126.0/24")}, InternalIPs: []netip.Addr{addr("192.168.2.1")},
			Endpoint: at("198.51.100.2:51820"), Candidates: []netip.AddrPort{at("198.51.100.3:51820")}, LANAddress: addr("192.168.2.9"), Networks: []netip.Prefix{prefix("192.168.9.0/24"), prefix("192.168.9.128/25")},
		}, {Name: "home", Endpoint: at("198.51.100.9:7946"), Path: control.Path{Relay: "gcp-1"}, Networks: []netip.Prefix{prefix("192.168.9.0/26")}}},
		Clients: []control.ClientStatus{
			{Name: "laptop", Overlay: []netip.Addr{addr("10.4.128.1")}},
			{Name: "office", Networks: []netip.Prefix{prefix("192.168.50.0/24")}},
			{Name: "west-1", Cluster: "west", Networks: []netip.Prefix{prefix("10.52.0.0/16")}},
		},
		Clusters: []control.LinkedCluster{{Name: "west", Networks: []netip.Prefix{prefix("10.52.0.0/16")}}},
	}
	for _, tt := range []struct {
		address string
		kind    control.OwnerKind
		name    string
		text    string
	}{
		{"10.4.0.1", control.OwnerNode, "aws-1", "10.4.0.1 is the overlay address of the node aws-1."},
		{"::ffff:10.4.0.1", control.OwnerNode, "aws-1", "10.4.0.1 is the overlay address of the node aws-1."},
		{"fd04::1", control.OwnerNode, "aws-1", "fd04::1 is the overlay address of the node aws-1."},
		{"10.4.0.127", control.OwnerNode, "gcp-1", "10.4.0.127 is the overlay address of the node gcp-1."},
		{"10.42.126.9", control.OwnerPod, "gcp-1", "10.42.126.9 is of the pods of the node gcp-1."},
		{"172.31.0.5", control.OwnerNode, "aws-1", "172.31.0.5 is an internal address of the node aws-1."},
		{"192.168.2.9", control.OwnerNode, "gcp-1", "192.168.2.9 is an internal address of the node gcp-1."},
		{"198.51.100.1", control.OwnerNode, "aws-1", "198.51.100.1 is an address at which the node aws-1 is reached."},
		{"198.51.100.3", control.OwnerNode, "gcp-1", "198.51.100.3 is an address at which the node gcp-1 is reached."},
		{"198.51.100.9", control.OwnerOutside, "", "198.51.100.9 is not known to the mesh."}, // the relay's
		{"10.4.128.1", control.OwnerClient, "laptop", "10.4.128.1 is the address of the client laptop."},
		{"10.43.0.10", control.OwnerService, "", "10.43.0.10 is in the range of Services, 10.43.0.0/16: kubectl get services -A knows which one."},
		{"192.168.9.200", control.OwnerNetwork, "gcp-1", "192.168.9.200 is in the network 192.168.9.128/25 behind the node gcp-1."},
		{"192.168.9.7", control.OwnerNetwork, "home", "192.168.9.7 is in the network 192.168.9.0/26 behind the node home."},
		{"10.77.1.1", control.OwnerNetwork, "aws-2", "10.77.1.1 is in the network 10.77.0.0/16 behind the node aws-2."},
		{"192.168.50.4", control.OwnerRouter, "office", "192.168.50.4 is in the network 192.168.50.0/24 behind the client office."},
		{"10.52.3.4", control.OwnerCluster, "west", "10.52.3.4 is in the network 10.52.0.0/16 of the cluster west."},
		{"10.42.200.1", control.OwnerUnused, "", "10.42.200.1 is in 10.42.0.0/16 of this cluster, and no node or client has it."},
		{"192.0.2.1", control.OwnerOutside, "", "192.0.2.1 is not known to the mesh."},
	} {
		want := control.Owner{Address: addr(tt.address).Unmap(), Kind: tt.kind, Name: tt.name, Text: tt.text}
		if diff := cmp.Diff(want, s.WhoIs(addr(tt.address)), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.address, diff)
		}
	}
}
