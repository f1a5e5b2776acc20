// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/test/lab"
)

// TestClient has a laptop behind NAT reach every node, pod and Service, in each mode,
// with the configuration that meshd client add prints.
func TestClient(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		mode  mesh.Mode
		alone []string
	}{
		"full":     {mode: mesh.ModeFull},
		"location": {mode: mesh.ModeLocation},
		"mixed":    {mode: mesh.ModeLocation, alone: []string{"lone"}},
		"cross":    {mode: mesh.ModeCross},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v, host := newClientVillage(t, tt.mode, tt.alone...)
			v.full(v.nodes...)
			c := v.laptop(v.node("aws-2"), host, "laptop", "--psk")
			v.knows(1, v.nodes...)
			c.reaches(v.nodes...)
			for _, n := range v.nodes {
				c.sees(v.pods[n].Do, netip.AddrPortFrom(v.pods[n].Addresses[0], port), c.overlay[0])
				c.sees(n.Do, netip.AddrPortFrom(v.overlay[n][0], port), c.overlay[0])
			}
			c.services()
			for _, n := range v.nodes {
				for _, a := range v.overlay[n] {
					c.refused(netip.AddrPortFrom(a, 7946)) // gossip's
				}
			}
			if resolver, err := c.Resolver(); err != nil || !strings.Contains(resolver, "nameserver 10.43.0.10") || !strings.Contains(resolver, "default.svc.cluster.local") {
				t.Errorf("resolver of the client: got %q, %v", resolver, err)
			}
			v.encrypted()

			t.Run("restart of all daemons", func(t *testing.T) {
				for _, n := range v.nodes {
					v.must(n.Stop())
				}
				v.start(v.nodes...)
				v.settle(settleLimit, v.nodes...)
				c.reaches(v.nodes...)
			})
			t.Run("removed", func(t *testing.T) {
				v := v.in(t)
				gone := control.ClientConfig{Overlay: c.overlay, PublicKey: publicKey(c.config, v)}
				v.run(v.node("aws-3"), binary, "client", "remove", "laptop")
				v.knows(0, v.nodes...)
				v.unknown(gone, v.nodes...)
				c.silent(v.pods[v.nodes[0]].Addresses[0])
			})
		})
	}
}

// publicKey returns the public key for the private key of a configuration.
func publicKey(config string, v *village) string {
	v.t.Helper()
	for line := range strings.Lines(config) {
		if key, ok := strings.CutPrefix(line, "PrivateKey = "); ok {
			return strings.TrimSpace(v.run(v.nodes[0], "sh", "-c", "echo "+strings.TrimSpace(key)+" | wg pubkey"))
		}
	}
	v.t.Fatal("no private key in the configuration")
	return ""
}

// TestClientMoves moves a laptop to another network, and then uses its configuration in
// two places at once: answers go to the one that sent last.
func TestClientMoves(t *testing.T) {
	t.Parallel()
	v, host := newClientVillage(t, mesh.ModeFull)
	other := v.site("hotel", lab.SiteOptions{Underlay: lab.Home}, "other")[0]
	c := v.laptop(v.nodes[0], host, "laptop")
	c.reaches(v.nodes...)
	train, err := v.lab.Site(v.ctx, "train", lab.SiteOptions{Underlay: lab.Home})
	v.must(err)
	v.must(host.Move(v.ctx, train, func() error { return nil }))
	c.reaches(v.nodes...)
	first := *c
	for range 2 {
		c.install(other)
		c.reaches(v.nodes...)
		v.must(c.Down(v.ctx))
		first.reaches(v.nodes...)
	}
	v.settle(settleLimit, v.nodes...)
}

// TestClientAccess checks clients with restricted access.
func TestClientAccess(t *testing.T) {
	t.Parallel()
	v, host := newClientVillage(t, mesh.ModeLocation)
	pod := func(n *lab.Node) netip.AddrPort { return netip.AddrPortFrom(v.pods[n].Addresses[0], port) }
	gateway := v.gateway(v.node("attic-1"), "aws")
	kiosk := v.laptop(v.nodes[0], host, "kiosk", "--access", fmt.Sprintf("tcp/80@%s/32", serviceAddr), "--service-gateway", gateway.Name)
	if strings.Contains(kiosk.config, "DNS") {
		t.Errorf("a client that may not ask the resolver is told of it: %s", kiosk.config)
	}
	if got := kiosk.servesThrough(); got != gateway {
		t.Errorf("service gateway: got %s, want %s", got.Name, gateway.Name)
	}
	v.knows(1, v.nodes...)
	kiosk.services()
	// The node must drop these packets: a client can send anything.
	v.must(kiosk.Down(v.ctx))
	kiosk.config = strings.Replace(kiosk.config, "AllowedIPs = ", "AllowedIPs = 10.42.0.0/16, 10.4.0.0/16, ", 1)
	kiosk.install(host)
	kiosk.services()
	for _, n := range v.nodes {
		echo, err := lab.ListenEcho(v.pods[n].Do, port)
		v.must(err)
		kiosk.refused(pod(n))
		v.must(echo.Close())
		kiosk.silent(v.overlay[n][0])
	}
	v.run(v.nodes[0], binary, "client", "remove", "kiosk")
	v.must(kiosk.Down(v.ctx))
	admin := v.laptop(v.nodes[0], host, "admin", "--access", "nodes")
	v.knows(1, v.nodes...)
	for _, n := range v.nodes {
		admin.sees(n.Do, netip.AddrPortFrom(v.overlay[n][0], port), admin.overlay[0])
	}
}

// TestClientWhileNodeIsDown adds and removes clients while a node is down.
func TestClientWhileNodeIsDown(t *testing.T) {
	t.Parallel()
	v, host := newClientVillage(t, mesh.ModeFull)
	old := v.addClient(v.nodes[0], "old")
	v.knows(1, v.nodes...)
	away := v.node("aws-3")
	if away == v.home(old, v.node("attic-1")) {
		away = v.node("aws-2")
	}
	v.must(away.Kill())
	// What is printed before the mesh knows of the loss may lead through the lost node.
	v.await(settleLimit, "aware of the loss", lab.Sees(len(v.nodes)-2), v.without(away)...)
	v.run(v.node("attic-1"), binary, "client", "remove", "old")
	c := v.laptop(v.nodes[0], host, "laptop")
	v.knows(1, v.without(away)...)
	c.reaches(v.without(away)...)
	v.start(away)
	v.settle(settleLimit, v.nodes...)
	c.reaches(away)
	v.unknown(old, v.nodes...)
}

// TestClientHomeDies kills the node through which clients reach another one that is behind
// NAT. Another node takes its place, and a new configuration names it.
func TestClientHomeDies(t *testing.T) {
	t.Parallel()
	v, host := newClientVillage(t, mesh.ModeFull)
	attic := v.node("attic-1")
	c := v.laptop(attic, host, "laptop")
	c.reaches(v.nodes...)
	home := v.home(c.shown(attic), attic)
	v.must(home.Kill())
	v.must(home.Cut(v.ctx)) // the device goes on without the daemon
	v.eventually(settleLimit, func() error {
		if v.home(c.shown(attic), attic) == home {
			return fmt.Errorf("clients reach %s through %s still", attic.Name, home.Name)
		}
		return nil
	})
	v.must(c.Down(v.ctx))
	key := regexp.MustCompile(`PrivateKey = .*`)
	c.config = key.ReplaceAllLiteralString(v.run(attic, binary, "client", "show", "laptop"), key.FindString(c.config))
	c.install(host)
	c.reaches(v.without(home)...)
}

// TestClientsOfASplit adds a client of the same name in both halves of a split. The older
// client stays; the other half gets a problem that says what to do.
func TestClientsOfASplit(t *testing.T) {
	t.Parallel()
	v, _ := newClientVillage(t, mesh.ModeFull)
	near, far := v.nodes[:3], v.nodes[3:] // a site has one link
	v.must(v.lab.Partition(v.ctx, hosts(near), hosts(far)))
	v.await(settleLimit, "alone", lab.Sees(0), far...)
	older := v.addClient(near[0], "laptop")
	time.Sleep(10 * time.Millisecond) // the clocks are one
	younger := v.addClient(far[0], "laptop")
	v.must(v.lab.Heal(v.ctx))
	v.settle(settleLimit, v.nodes...)
	v.await(settleLimit, "told of the conflict", has(mesh.ProblemClient, far[0].Name, "meshd client remove "+younger.ID.String()), v.nodes...)
	for _, s := range v.await(settleLimit, "agreed", func(s control.Status) bool { return len(s.Clients) == 1 }, v.nodes...) {
		if s.Clients[0].ID != older.ID {
			t.Errorf("%s has the client %v, want the older one, %v", s.Node.Name, s.Clients[0].ID, older.ID)
		}
	}
	v.unknown(younger, v.nodes...)
	v.run(near[1], binary, "client", "remove", younger.ID.String())
	v.await(settleLimit, "rid of the conflict", fine(mesh.ProblemClient), v.nodes...)
	v.knows(1, v.nodes...)
}
