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

// TestRouters has two routers with one network, of which the first one is silent for a while, then both.
func TestRouters(t *testing.T) {
	network := netip.MustParsePrefix("192.168.50.0/24")
	first, second, alone := wgtypes.Key{9}, wgtypes.Key{2}, wgtypes.Key{3}
	all := []mesh.Client{
		{Key: second, Added: 2, Networks: []netip.Prefix{network}},
		{Key: first, Added: 1, Networks: []netip.Prefix{network}},
		{Key: alone, Added: 3, Networks: []netip.Prefix{netip.MustParsePrefix("192.168.60.0/24")}},
	}
	var (
		r        Routers
		now      = time.Unix(1000, 0)
		received = map[wgtypes.Key]int64{}
	)
	serving := func() (key wgtypes.Key) {
		t.Helper()
		var tunnels []mesh.ClientTunnel
		for _, c := range all {
			tunnels = append(tunnels, mesh.ClientTunnel{Key: c.Key, Added: c.Added, Networks: c.Networks})
		}
		r.assign(tunnels)
		serving := 0
		for _, c := range tunnels {
			switch {
			case c.Key == alone && len(c.Networks) != 1:
				t.Errorf("the router of another network has %v", c.Networks)
			case c.Key != alone && len(c.Networks) > 0:
				key, serving = c.Key, serving+1
			}
		}
		if serving != 1 {
			t.Fatalf("%d clients have the network", serving)
		}
		return key
	}
	pass := func(d time.Duration, heard ...wgtypes.Key) {
		for end := now.Add(d); now.Before(end); now = now.Add(time.Second) {
			for _, k := range heard {
				received[k] += 32
			}
			var peers []netcfg.Peer
			for _, c := range all {
				peers = append(peers, netcfg.Peer{Key: c.Key, Received: received[c.Key]})
			}
			before := len(r.Down)
			if again := r.observe(sharing(all), peers, now); again == 0 || (again == soon) != (len(r.Down) != before) {
				t.Fatalf("asks for another turn in %v with %d down, before %d", again, len(r.Down), before)
			}
		}
	}
	for _, step := range []struct {
		name string
		wait time.Duration
		from []wgtypes.Key
		want wgtypes.Key
	}{
		{"at first", 0, nil, first},
		{"both are heard", 20 * time.Second, []wgtypes.Key{first, second}, first},
		{"a keepalive is lost", 10 * time.Second, []wgtypes.Key{second}, first},
		{"the first one is gone", 10 * time.Second, []wgtypes.Key{second}, second},
		{"it is back", 20 * time.Second, []wgtypes.Key{first, second}, second},
		{"it is back for long", 20 * time.Second, []wgtypes.Key{first, second}, first},
		{"both are gone", 20 * time.Second, nil, first},
		{"one is back", 31 * time.Second, []wgtypes.Key{second}, second},
	} {
		if pass(step.wait, step.from...); serving() != step.want {
			t.Errorf("%s: %v has the network, want %v", step.name, serving(), step.want)
		}
	}
	r = Routers{Down: r.Down} // the daemon restarts
	if pass(14*time.Second, first, second); serving() != second {
		t.Error("a restart moves the network")
	}
	if again := r.observe(sharing(all[:1]), []netcfg.Peer{{Key: second}}, now); again != soon || len(r.Down) > 0 {
		t.Errorf("without a network in common: another turn in %v, %d are down", again, len(r.Down))
	}
	if again := r.observe(sharing(all[:1]), []netcfg.Peer{{Key: second}}, now); again != 0 {
		t.Errorf("without a network in common: another turn in %v", again)
	}
}
