// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/netip"
	"testing"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
)

// A host that lost its way out says so, unless it reaches others all the same.
func TestUplinkProblems(t *testing.T) {
	lost := Input{View: mesh.View{Alone: true, Records: make([]mesh.Record, 2)}}
	for _, tt := range []struct {
		name   string
		change func(*Input)
		want   int
	}{
		{"lost", func(*Input) {}, 1},
		{"others are reached", func(l *Input) { l.View.Alone = false }, 0},
		{"there is one", func(l *Input) { l.Facts.Uplinks = make([]netcfg.Uplink, 1) }, 0},
		{"first of its mesh", func(l *Input) { l.View.Records = l.View.Records[1:] }, 0},
		{"new, with others to join", func(l *Input) {
			l.View.Records, l.Config.Joins = nil, true
		}, 1},
	} {
		l := lost
		tt.change(&l)
		if got := uplinkProblems(l); len(got) != tt.want {
			t.Errorf("%s: got %v, want %d", tt.name, got, tt.want)
		}
	}
}

// Where another program gives pods their network, its bridge is not in the mesh's way: the
// node keeps its pod CIDR, and others get to it.
func TestPodsOfAnotherProgram(t *testing.T) {
	cni0 := mesh.AttachedNetwork{Prefix: netip.MustParsePrefix("10.42.3.0/24"), Link: "cni0", Containers: true}
	docker := mesh.AttachedNetwork{Prefix: netip.MustParsePrefix("172.17.0.0/16"), Link: "docker0", Containers: true}
	for bridge, want := range map[string]int{"kube-bridge": 2, "": 1} {
		in := Input{Config: Config{Bridge: bridge}, View: mesh.View{Cluster: config().Cluster}}
		in.Facts.Nearby.Attached = []mesh.AttachedNetwork{cni0, docker}
		if got := in.nearby().Attached; len(got) != want || got[want-1] != docker {
			t.Errorf("with the bridge %q: got %v, want %d networks", bridge, got, want)
		}
		if got := len(in.nearby().Overlaps(in.View.Cluster)); got != want-1 {
			t.Errorf("with the bridge %q: got %d overlaps, want %d", bridge, got, want-1)
		}
	}
}

func TestEncryptionProblems(t *testing.T) {
	other := Input{Config: Config{Name: "a", Location: "home", Encrypted: true, Cluster: mesh.Cluster{Mode: mesh.ModeFull}}, View: mesh.View{Cluster: mesh.Cluster{Mode: mesh.ModeLocation, Generation: 2}}}
	for _, tt := range []struct {
		name   string
		change func(*Input)
		want   int
	}{
		{"the others are in another mode", func(*Input) {}, 1},
		{"written on purpose", func(in *Input) { in.Config.EncryptionRequired = true }, 0},
		{"in the same mode", func(in *Input) { in.View.Cluster.Mode = mesh.ModeFull }, 0},
		{"without a location", func(in *Input) { in.Config.Location = "" }, 0},
	} {
		in := other
		tt.change(&in)
		if got := encryptionProblems(in); len(got) != tt.want {
			t.Errorf("%s: got %v, want %d", tt.name, got, tt.want)
		}
	}
}

func TestBindProblems(t *testing.T) {
	facts := netcfg.Facts{Attached: []netcfg.LAN{{Link: "eth0", Address: netip.MustParsePrefix("192.168.1.5/24")}}}
	for bind, want := range map[string]int{"": 0, "0.0.0.0": 0, "127.0.0.1": 0, "192.168.1.5": 0, "192.168.1.6": 1} {
		in := Input{Config: Config{GossipPort: 7946}, Facts: facts}
		if bind != "" {
			in.Config.GossipBind = netip.MustParseAddr(bind)
		}
		if got := bindProblems(in); len(got) != want {
			t.Errorf("%q: got %+v, want %d problems", bind, got, want)
		}
	}
}
