// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/netip"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
)

// TestClientEndpoints has a host switched off and on that is the home of a client, then another node take over
// for a while, and the client be removed.
func TestClientEndpoints(t *testing.T) {
	now := time.Now()
	key, before, roamed := wgtypes.Key{1}, netip.MustParseAddrPort("203.0.113.9:40001"), netip.MustParseAddrPort("203.0.113.9:40002")
	m := Memory{Clients: map[wgtypes.Key]netip.AddrPort{key: before}} // from disk
	known, ending := []mesh.Client{{Key: key}}, []mesh.ClientTunnel{{Key: key}}
	for _, step := range []struct {
		name       string
		known      []mesh.Client
		ending     []mesh.ClientTunnel
		observed   []netcfg.Peer
		want, kept netip.AddrPort
	}{
		{"the other nodes are not heard yet", known, nil, nil, netip.AddrPort{}, before},
		{"this node is its home", known, ending, nil, before, before},
		{"it roams", known, ending, []netcfg.Peer{{Key: key, Endpoint: roamed, LastHandshake: now}}, roamed, roamed},
		{"its session has ended", known, ending, []netcfg.Peer{{Key: key}}, roamed, roamed},
		{"it is removed", nil, nil, nil, netip.AddrPort{}, netip.AddrPort{}},
	} {
		now = now.Add(4 * time.Minute)
		m.Sessions, _ = m.Sessions.Correct(netcfg.State{Peers: step.observed}, now)
		if got := m.endpoints(step.known, step.ending)[key]; got != step.want {
			t.Errorf("%s: got the endpoint %v, want %v", step.name, got, step.want)
		}
		if got := m.Clients[key]; got != step.kept {
			t.Errorf("%s: kept is %v, want %v", step.name, got, step.kept)
		}
	}
}
