// SPDX-License-Identifier: Apache-2.0

package connect

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
)

// linkText is a file as meshd client add writes it, with the given ranges.
func linkText(ranges string) string {
	return "[Interface]\n# meshd-cluster = west\n# meshd-ranges = " + ranges + "\n" + `PrivateKey = yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=
Address = 10.5.128.5/32
ListenPort = 4500
MTU = 1420
[Peer]
# meshd-node = 1853c3ae568fe50559d1e8f92bbbd796, 10.5.0.1
PublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=
Endpoint = 198.51.100.1:51820
AllowedIPs = 10.5.0.1/32
PersistentKeepalive = 5
`
}

// TestReadLinks: a file that can't be a link is refused, and the error names what to do.
func TestReadLinks(t *testing.T) {
	own := mesh.Cluster{Overlay: []netip.Prefix{netip.MustParsePrefix("10.4.0.0/16")}, Services: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")}}
	many := strings.Repeat("10.6.0.0/32, ", mesh.MaxCIDRs) + "10.6.0.0/32"
	for _, tt := range []struct {
		name, text string
		beside     int // allowed-location-ips
		want       string
	}{
		{"well", linkText("10.5.0.0/17, 10.52.0.0/16"), 0, ""},
		{"as many as there may be", linkText("10.5.0.0/17, 10.52.0.0/16"), mesh.MaxCIDRs - 2, ""},
		{"two ranges overlap", linkText("10.4.0.0/17, 10.43.1.0/24, 10.52.0.0/16"), 0, "of the cluster west, 10.4.0.0/17 overlaps cluster.overlay 10.4.0.0/16, 10.43.1.0/24 overlaps cluster.services 10.43.0.0/16 of this one"},
		{"the internet", linkText("0.0.0.0/0, ::/0, 10.5.0.0/17"), 0, "it was made with --access internet"},
		{"too many", linkText(many), 0, "it names 9 networks, and a node can have 8"},
		{"too many with others", linkText("10.5.0.0/17, 10.52.0.0/16"), mesh.MaxCIDRs - 1, "9 networks are behind this node"},
		{"not of meshd", "[Interface]\nPrivateKey = yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=\n", 0, "use a file that meshd client add has written in the other cluster"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "west.conf")
			if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			cfg := config.Config{Cluster: own, Node: config.Node{Links: []string{path}, AllowedLocationIPs: make([]netip.Prefix, tt.beside)}}
			files, errs := ReadLinks("meshd.yaml", cfg)
			if tt.want == "" {
				if len(errs) > 0 || len(files) != 1 || files[0].Name != "west" || len(files[0].Networks()) != 2 || files[0].Config.ListenPort != 4500 {
					t.Errorf("got %v, %v", files, errs)
				}
				return
			}
			var bad *config.Error
			if len(errs) != 1 || !errors.As(errs[0], &bad) || bad.Key != "node.links[0]" || !strings.Contains(bad.Problem, tt.want) {
				t.Errorf("got %v, want %q", errs, tt.want)
			}
		})
	}
	if _, errs := ReadLinks("meshd.yaml", config.Config{Node: config.Node{Links: []string{"/nowhere/west.conf"}}}); len(errs) != 1 || !strings.Contains(errs[0].Error(), "no such file") {
		t.Errorf("a file that is not there: got %v", errs)
	}
}

// TestTellLink: a link is heard from the first answer on, until no node answers and nothing comes any more.
func TestTellLink(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	var told []bool
	c := newClient(Options{Now: func() time.Time { return now }, Link: func(heard bool) { told = append(told, heard) }}, nil, 0)
	c.config = control.ClientConfig{Peers: []control.ClientPeer{{PublicKey: "k"}}}
	received := func(bytes int64) { c.noteTraffic(netcfg.State{Peers: []netcfg.Peer{{Received: bytes}}}) }
	step := func(answered bool, missed int, want ...bool) {
		t.Helper()
		c.missed["k"] = missed
		c.tellLink(answered)
		if len(told) != len(want) || len(told) > 0 && told[len(told)-1] != want[len(want)-1] {
			t.Errorf("told %v, want %v", told, want)
		}
	}
	step(false, 1)
	step(true, 0, true)
	received(100)
	step(false, missesToSilent, true) // an answer may come late
	now = now.Add(linkSilence - time.Second)
	received(200)
	now = now.Add(linkSilence - time.Second)
	step(false, missesToSilent, true)
	now = now.Add(time.Second)
	step(false, missesToSilent, true, false)
	step(true, 0, true, false, true)
}

// TestLinkIsHeard: a link's owner is told once when a node answers, and once when none does any longer.
func TestLinkIsHeard(t *testing.T) {
	c := newTestClient(t)
	var told []bool
	c.Link = func(heard bool) { told = append(told, heard) }
	step := func(what string, turns int, want ...bool) {
		t.Helper()
		c.runTurns(turns)
		if d := cmp.Diff(want, told); d != "" {
			t.Errorf("%s: told (-want +got):\n%s", what, d)
		}
	}
	nodes := []netip.Addr{c.normal.Peers[0].Overlay, c.normal.Peers[1].Overlay, spare}
	silence := func(silent bool, which ...netip.Addr) {
		for _, a := range which {
			c.silentNodes[a] = silent
		}
	}
	silence(true, nodes...)
	step("nobody answers", 5)
	silence(false, nodes...)
	step("all answer", 20, true)
	silence(true, nodes[0])
	step("one of them is silent", 20, true)
	silence(true, nodes...)
	step("all are silent", 20, true, false)
	silence(false, nodes[1])
	step("one answers again", 20, true, false, true)
}

// TestPortOfTunnel: the file's port, else that of the device, else an unused one.
func TestPortOfTunnel(t *testing.T) {
	c := newTestClient(t)
	port := func() int {
		t.Helper()
		n, err := choosePort(t.Context(), c.Options, c)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if got := port(); got < 1024 {
		t.Errorf("without a device: got %d, want an unused port", got)
	}
	c.state = netcfg.State{Device: &netcfg.Device{ListenPort: 4001}}
	if got := port(); got != 4001 {
		t.Errorf("with a device: got %d, want 4001", got)
	}
	file, err := ParseFile(strings.Replace(fileText(t), "[Interface]\n", "[Interface]\nListenPort = 4002\n", 1))
	if err != nil {
		t.Fatal(err)
	}
	c.Options.File = file
	if got := port(); got != 4002 {
		t.Errorf("with a port in the file: got %d, want 4002", got)
	}
}

// TestLinkForwards: the host of a link forwards what comes by it, that of another client does not.
func TestLinkForwards(t *testing.T) {
	c := newTestClient(t)
	for _, link := range []func(bool){nil, func(bool) {}} {
		c.Link = link
		k := newClient(c.Options, c, 1)
		if err := k.apply(t.Context()); err != nil {
			t.Fatal(err)
		}
		want := netcfg.Sysctl{Key: "net.ipv4.conf.mesh0.forwarding", Value: "1"}
		if got := slices.Contains(c.desired.Sysctls, want); got != (link != nil) {
			t.Errorf("a link: %t, forwards: %t", link != nil, got)
		}
	}
}
