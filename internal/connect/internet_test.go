// SPDX-License-Identifier: Apache-2.0

package connect

import (
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
)

var (
	all4 = netip.MustParsePrefix("0.0.0.0/0")
	all6 = netip.MustParsePrefix("::/0")
)

// internetFile returns the file of a client that may reach the internet.
func internetFile(t testing.TB) File {
	t.Helper()
	text, err := os.ReadFile("../../cmd/meshd/testdata/client-internet.conf")
	if err != nil {
		t.Fatal(err)
	}
	file, err := ParseFile(string(text))
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// withInternet is a client whose default routes lead to node 0, and to node 1 once the client says
// that node 0 is silent. Services go through node 1, unlike the exit.
func withInternet(t *testing.T) *testClient {
	t.Helper()
	c := newTestClient(t)
	for i, p := range internetFile(t).Config.Peers {
		c.File.Config.Peers[i].AllowedIPs = p.AllowedIPs
	}
	c.File.Config.Ranges = internetFile(t).Config.Ranges
	again := newClient(c.Options, c, 51820)
	again.http.Transport, again.resolvconf = c, c.resolvconf
	c.client = again
	c.normal = answerFor(t, c.File)
	c.normal.Peers[1].ServiceGateway = true
	c.exits = true
	return c
}

// exits returns the names of the kernel's peers that have the default routes.
func exits(s netcfg.State) string {
	var out []string
	for _, p := range s.Peers {
		for _, route := range []netip.Prefix{all4, all6} {
			if slices.Contains(p.AllowedIPs, route) {
				out = append(out, p.Name)
			}
		}
	}
	return strings.Join(out, " ")
}

// The default routes move to another exit within seconds after theirs has fallen silent, and nothing
// leaves past the tunnel meanwhile, nor while there is no exit.
func TestInternetFailsOver(t *testing.T) {
	c := withInternet(t)
	check := func(when, want string) {
		t.Helper()
		if got := exits(c.state); got != want {
			t.Errorf("%s: got exits %q, want %q", when, got, want)
		}
		if len(c.state.Policies) != 4 || len(c.state.Backstops) != 2 || c.state.Device.Mark != netcfg.TunnelMark {
			t.Errorf("%s: got\n%s", when, c.state)
		}
		for _, p := range c.state.Peers {
			if !p.Endpoint.IsValid() {
				t.Errorf("%s: %s has no endpoint", when, p.Name)
			}
		}
	}
	c.runTurns(1)
	check("at first", "node-0 node-0")
	c.silentNodes[c.normal.Peers[0].Overlay] = true
	c.runTurns(3)
	check("after its exit is silent", "node-1 node-1")
	delete(c.silentNodes, c.normal.Peers[0].Overlay)
	c.runTurns(6)
	check("after its exit is back", "node-0 node-0")
	c.normal.Peers[0].AllowedIPs = slices.DeleteFunc(c.normal.Peers[0].AllowedIPs, mesh.IsDefaultRoute)
	c.runTurns(2)
	check("without an exit", "")
	if routes := c.state.String(); strings.Contains(routes, "dev mesh0 table") {
		t.Errorf("without an exit: got\n%s", routes)
	}
}

// A client without the internet in its file leaves the host's default route alone.
func TestNoInternet(t *testing.T) {
	c := newTestClient(t)
	c.normal.Peers[0].AllowedIPs = append(c.normal.Peers[0].AllowedIPs, all4, all6)
	c.runTurns(2)
	if s := c.state; exits(s) != "" || len(s.Policies)+len(s.Backstops)+len(s.Firewall.Chains)+len(s.Sysctls) > 0 || s.Device.Mark != 0 {
		t.Errorf("got\n%s", s)
	}
}

// A granted default route does not have nodes take other networks, nor the host's own ones.
func TestHostileExit(t *testing.T) {
	f := internetFile(t)
	for prefix, want := range map[string]bool{
		"0.0.0.0/0": true, "::/0": true, "10.42.3.0/24": true,
		"0.0.0.0/1": false, "8.8.8.0/24": false, "192.168.1.0/24": false, "2001:db8::/32": false, "::ffff:0.0.0.0/0": false, "10.0.0.0/8": false,
	} {
		if got := within(netip.MustParsePrefix(prefix), f.granted()); got != want {
			t.Errorf("%s: got %v, want %v", prefix, got, want)
		}
	}
	answer := answerFor(t, f)
	answer.Resolver = "9.9.9.9"
	if _, _, err := f.accept(answer); err == nil {
		t.Error("a resolver on the internet is accepted")
	}
	answer = answerFor(t, f)
	answer.Peers[0].Overlay = netip.MustParseAddr("192.168.1.1") // the client would send requests there
	if got, _, err := f.accept(answer); err != nil || len(got.Peers) != 1 {
		t.Errorf("an overlay address in a default route: got %v, %v", got.Peers, err)
	}
	host := netcfg.Facts{Nearby: mesh.Nearby{Attached: attached("192.168.1.0/24", "10.42.0.0/24")}}
	kept, conflicts := withoutAttached([]control.ClientPeer{{AllowedIPs: []netip.Prefix{all4, netip.MustParsePrefix("10.42.0.0/24")}}}, host)
	if !slices.Equal(kept[0].AllowedIPs, []netip.Prefix{all4}) || len(conflicts) != 1 {
		t.Errorf("next to the host's own networks: got %v, %v", kept, conflicts)
	}
}
