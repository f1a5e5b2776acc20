// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/meshd/meshd/internal/control"
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

// TestSentence: a node without a slot is looking for others only as long as it hears none.
func TestSentence(t *testing.T) {
	none := control.Status{Node: control.Node{Slot: mesh.None}}
	full := none
	full.Peers, full.Problems = []control.Peer{{Alive: true}}, []mesh.Problem{{Kind: mesh.ProblemExhausted}}
	failing := full
	failing.Reconcile.Error = "no space\nno route"
	for _, tt := range []struct {
		name   string
		status control.Status
		want   string
	}{
		{"nobody is heard", none, "looking for the mesh: no member of the join list has answered yet"},
		{"no slot is free", full, "pods may not start yet, 1 of 1 other nodes alive, 1 problems: see meshd status"},
		{"online", control.Status{Node: control.Node{Ready: true}}, "online, 0 of 0 other nodes alive"},
		{"failing", failing, "reconcile fails: no space; no route"},
	} {
		if got := sentence(tt.status); got != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got, tt.want)
		}
	}
}

// TestPublishFillsLists: what requests answer with, maybe at once, is not changed by them any more.
func TestPublishFillsLists(t *testing.T) {
	var d daemon
	d.publish(control.Status{Peers: []control.Peer{{}}}, turn{})
	if p := d.Status().Peers[0]; p.Overlay == nil || p.Path.Tried == nil || p.Route.Via == nil {
		t.Errorf("lists of a peer are nil: %+v", p)
	}
}
