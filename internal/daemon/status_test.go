// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/meshd/meshd/internal/mesh"
)

func TestJoinAt(t *testing.T) {
	endpoints := []mesh.Endpoint{{Host: "aws.example.com", Port: 51820}, {Host: "2001:db8::1", Port: 51820}, {Host: "aws.example.com", Port: 51821}}
	internal := []netip.Prefix{netip.MustParsePrefix("192.168.1.5/24")}
	for _, tt := range []struct {
		name string
		own  mesh.Record
		want string
	}{
		{"nothing is known", mesh.Record{GossipPort: 7946}, ""},
		{"behind NAT, unseen", mesh.Record{GossipPort: 7946, InternalIPs: internal}, "192.168.1.5:7946"},
		{"seen", mesh.Record{GossipPort: 7000, Endpoints: endpoints, InternalIPs: internal}, "aws.example.com:7000 [2001:db8::1]:7000"},
		{"configured", mesh.Record{GossipPort: 7946, GossipAddr: "gossip.example.com:1", Endpoints: endpoints}, "gossip.example.com:1"},
	} {
		if got := strings.Join(joinAt(tt.own), " "); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}
