// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/netip"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/netcfg"
)

// TestClockJumps looks at one peer while the system's clock, by which WireGuard
// tells its handshakes, is set by hours.
func TestClockJumps(t *testing.T) {
	start := time.Now()
	var s Sessions
	for _, step := range []struct {
		name string
		at   time.Duration // since the start, as time really goes
		told time.Time     // the handshake; zero for none
		age  time.Duration // want; -1 for never
	}{
		{"at the first look the system's time counts", 0, start.Add(-10 * time.Second), 10 * time.Second},
		{"the same session grows older", 20 * time.Second, start.Add(-10 * time.Second), 30 * time.Second},
		{"a handshake after the clock went an hour back", 30 * time.Second, start.Add(-time.Hour), 10 * time.Second},
		{"and grows older as it should", 60 * time.Second, start.Add(-time.Hour), 40 * time.Second},
		{"a handshake after the clock went ahead", 70 * time.Second, start.Add(5 * time.Hour), 0},
		{"a device that was made anew", 80 * time.Second, time.Time{}, -1},
	} {
		now := start.Add(step.at)
		state := netcfg.State{Peers: []netcfg.Peer{{Key: wgtypes.Key{1}, LastHandshake: step.told}}}
		s, state = s.Correct(state, now)
		got := time.Duration(-1)
		if h := state.Peers[0].LastHandshake; !h.IsZero() {
			got = now.Sub(h)
		}
		if got != step.age {
			t.Errorf("%s: got an age of %v, want %v", step.name, got, step.age)
		}
	}
}

// TestEndpoints looks at a peer whose device is deleted and made anew, and then at one
// that stays silent.
func TestEndpoints(t *testing.T) {
	start := time.Now()
	first, roamed := netip.MustParseAddrPort("203.0.113.9:40001"), netip.MustParseAddrPort("203.0.113.9:40002")
	session := start.Add(-10 * time.Second)
	var s Sessions
	for _, step := range []struct {
		name     string
		at       time.Duration // since the start
		observed []netcfg.Peer
		want     netip.AddrPort
	}{
		{"nobody yet", 0, nil, netip.AddrPort{}},
		{"one that was never heard", time.Second, []netcfg.Peer{{Endpoint: first}}, netip.AddrPort{}},
		{"heard", 2 * time.Second, []netcfg.Peer{{Endpoint: first, LastHandshake: session}}, first},
		{"roams", 3 * time.Second, []netcfg.Peer{{Endpoint: roamed, LastHandshake: session}}, roamed},
		{"the device is deleted", 4 * time.Second, nil, roamed},
		{"and made anew", 5 * time.Second, []netcfg.Peer{{}}, roamed},
		{"no session can be left", 4 * time.Minute, []netcfg.Peer{{}}, netip.AddrPort{}},
	} {
		s, _ = s.Correct(netcfg.State{Peers: step.observed}, start.Add(step.at))
		if got := s.endpoints()[wgtypes.Key{}]; got != step.want {
			t.Errorf("%s: got %v, want %v", step.name, got, step.want)
		}
	}
}
