// SPDX-License-Identifier: Apache-2.0

package host

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/netcfg/netcfgtest"
)

// newTunnelKernel returns the kernel of a tunnel or, if link is true, of a link to another cluster.
func newTunnelKernel(t *testing.T, device string, link bool) *Kernel {
	t.Helper()
	k, err := Open(Options{Interface: device, Tunnel: true, Link: link})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	return k
}

// tunnelTo returns the state of a tunnel to a network.
func tunnelTo(device string, port int, network string) netcfg.State {
	return netcfg.Tunnel{
		Interface: device, PrivateKey: netcfgtest.Key(1), ListenPort: port, MTU: 1420, Addresses: netcfgtest.Addrs("10.54.128.1"), Forwards: true,
		Peers: []netcfg.Peer{{Key: netcfgtest.Key(8).PublicKey(), AllowedIPs: netcfgtest.Prefixes(network)}},
	}.State()
}

// ownParts returns what a host has of a daemon and of tunnels, but for one device and its routes.
func ownParts(t *testing.T, but string) string {
	t.Helper()
	var out []string
	for _, line := range []string{"ip -o link show", "ip -o addr show scope global", "ip route show table all", "ip -6 route show table all", "ip rule", "nft list ruleset"} {
		for l := range strings.Lines(run(t, line)) {
			if !strings.Contains(l, but) {
				out = append(out, l)
			}
		}
	}
	return strings.Join(out, "")
}

// TestTunnelBesideDaemon: a daemon and two tunnels run on one host. Each sees and removes its own things only.
func TestTunnelBesideDaemon(t *testing.T) {
	if !namespaced(t) {
		return
	}
	daemon, want := newKernel(t), alone()
	want.Backstops = append(want.Backstops, netip.MustParsePrefix("10.52.0.0/16"))
	slices.SortFunc(want.Backstops, mesh.ComparePrefix)
	mustReconcile(t, daemon, want)
	west, wantWest := newTunnelKernel(t, "west", true), tunnelTo("west", 40001, "10.52.0.0/16")
	mustReconcile(t, west, wantWest)
	before := ownParts(t, "east")
	east, wantEast := newTunnelKernel(t, "east", false), tunnelTo("east", 40002, "10.62.0.0/16")
	mustReconcile(t, east, wantEast)

	checkState(t, daemon, want)
	checkState(t, west, wantWest)
	checkState(t, east, wantEast)
	if d := cmp.Diff(before, ownParts(t, "east")); d != "" {
		t.Errorf("the rest of the host with the tunnel (-before +after):\n%s", d)
	}
	removed, err := east.Remove(t.Context())
	if d := cmp.Diff([]string{"route 10.62.0.0/16", "device east"}, removed); err != nil || d != "" {
		t.Errorf("remove: %v, removed (-want +got):\n%s", err, d)
	}
	if d := cmp.Diff(before, ownParts(t, "east")); d != "" {
		t.Errorf("the rest of the host after Remove (-before +after):\n%s", d)
	}
	if removed, err := east.Remove(t.Context()); err != nil || len(removed) > 0 {
		t.Errorf("remove of nothing: got %v, %v", removed, err)
	}
	if _, err := daemon.Remove(t.Context()); err != nil {
		t.Error(err)
	}
	checkState(t, west, wantWest)
}

// TestRemoveLinks: only devices of links go, but for those named.
func TestRemoveLinks(t *testing.T) {
	if !namespaced(t) {
		return
	}
	run(t, "ip link add foreign type bridge")
	mustReconcile(t, newKernel(t), alone())
	mustReconcile(t, newTunnelKernel(t, "laptop", false), tunnelTo("laptop", 40001, "10.61.0.0/16"))
	for i, name := range []string{"west", "east", "north"} {
		mustReconcile(t, newTunnelKernel(t, name, true), tunnelTo(name, 40002+i, netcfgtest.Prefixes("10.62.0.0/16", "10.63.0.0/16", "10.64.0.0/16")[i].String()))
	}
	left := func() (names []string) {
		for _, name := range []string{"foreign", "meshd0", "laptop", "west", "east", "north"} {
			if strings.Contains(run(t, "ip -o link show"), " "+name+":") {
				names = append(names, name)
			}
		}
		return names
	}
	for _, tt := range []struct{ but, removed, left []string }{
		{[]string{"west", "foreign"}, []string{"east", "north"}, []string{"foreign", "meshd0", "laptop", "west"}},
		{[]string{"west"}, nil, []string{"foreign", "meshd0", "laptop", "west"}},
		{nil, []string{"west"}, []string{"foreign", "meshd0", "laptop"}},
	} {
		removed, err := RemoveLinks(tt.but)
		slices.Sort(removed)
		if d := cmp.Diff([][]string{tt.removed, tt.left}, [][]string{removed, left()}); err != nil || d != "" {
			t.Errorf("all but %v: %v, removed and left (-want +got):\n%s", tt.but, err, d)
		}
	}
	if routes := run(t, "ip route"); strings.Contains(routes, "10.62.") || !strings.Contains(routes, "10.61.") {
		t.Errorf("routes afterwards:\n%s", routes)
	}
}
