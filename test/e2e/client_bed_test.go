// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/test/lab"
)

// serviceAddr is the address of a Service that kube-proxy's kind of rules translates.
var serviceAddr = netip.MustParseAddr("10.43.7.7")

// service returns the rules that kube-proxy makes for a Service: a client that is not a
// pod reaches the backend from an address of the node that translates.
const service = `
table ip kube {
	chain services {
		type nat hook prerouting priority dstnat
		ip saddr != 10.42.0.0/16 ip daddr 10.43.7.7 tcp dport 80 meta mark set meta mark or 0x4000 dnat to %[1]s
		ip daddr 10.43.7.7 tcp dport 80 dnat to %[1]s
	}
	chain postrouting {
		type nat hook postrouting priority srcnat
		meta mark & 0x4000 == 0 return
		meta mark set meta mark xor 0x4000
		masquerade fully-random
	}
}
`

// wireguardGo is the userspace WireGuard for wg-quick, where the kernel has none. It
// is of the release that meshd has inside.
var wireguardGo = sync.OnceValues(func() (string, error) {
	path, err := filepath.Abs("../../bin/wireguard-go")
	if err != nil {
		return "", err
	}
	if out, err := exec.Command("go", "build", "-o", path, "golang.zx2c4.com/wireguard").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build wireguard-go: %w: %s", err, out)
	}
	return path, nil
})

// client is a laptop with a configuration that meshd has printed.
type client struct {
	*lab.WGQuick
	*lab.Host
	v       *village
	name    string
	config  string
	overlay []netip.Addr

	pid       string // of meshd connect
	userspace string // path of wireguard-go; "" where the kernel has WireGuard
}

// addClient has a node add a client.
func (v *village) addClient(at *lab.Node, name string, flags ...string) control.ClientConfig {
	v.t.Helper()
	var c control.ClientConfig
	v.must(json.Unmarshal([]byte(v.run(at, binary, slices.Concat([]string{"client", "add", name, "-o", "json"}, flags)...)), &struct {
		*control.ClientConfig
		PresharedKey string `json:"presharedKey"` // the key itself, here
	}{ClientConfig: &c}))
	return c
}

// laptop adds a client, and sets it up on a host with wg-quick.
func (v *village) laptop(at *lab.Node, h *lab.Host, name string, flags ...string) *client {
	v.t.Helper()
	const path = "/run/client.conf"
	v.run(at, binary, slices.Concat([]string{"client", "add", name, "--out", path}, flags)...)
	config := v.run(at, "cat", path)
	v.run(at, "rm", path)
	c := &client{Host: h, v: v, name: name, config: config}
	if v.status(at).Device.Implementation == netcfg.Userspace {
		var err error
		c.userspace, err = wireguardGo()
		v.must(err)
	}
	c.overlay = c.shown(at).Overlay
	c.install(h)
	return c
}

// shown returns the client's configuration as a node would print it now.
func (c *client) shown(at *lab.Node) (config control.ClientConfig) {
	c.v.t.Helper()
	c.v.must(json.Unmarshal([]byte(c.v.run(at, binary, "client", "show", c.name, "-o", "json")), &config))
	return config
}

// home returns the node through which the client's configuration reaches another one.
func (v *village) home(c control.ClientConfig, n *lab.Node) *lab.Node {
	v.t.Helper()
	for _, p := range c.Peers {
		if slices.ContainsFunc(p.AllowedIPs, func(a netip.Prefix) bool { return a.Addr() == v.overlay[n][0] }) {
			return v.node(p.Name)
		}
	}
	v.t.Fatalf("nobody leads %s to %s: %+v", c.Name, n.Name, c.Peers)
	return nil
}

// install sets the client up on a host.
func (c *client) install(h *lab.Host) {
	c.v.t.Helper()
	q, err := h.WGQuick(c.name, c.config, c.userspace)
	c.v.must(err)
	c.Host, c.WGQuick = h, q
	c.v.must(q.Up(c.v.ctx))
}

// reaches waits until all addresses of the nodes and their pods have answered the client.
func (c *client) reaches(nodes ...*lab.Node) {
	c.v.t.Helper()
	ctx, cancel := context.WithTimeout(c.v.ctx, pingLimit)
	defer cancel()
	var addrs []netip.Addr
	for _, n := range nodes {
		addrs = append(addrs, c.v.overlay[n]...)
		addrs = append(addrs, c.v.pods[n].Addresses...)
	}
	c.v.must(c.Host.AwaitPings(ctx, addrs))
}

// silent checks that an address does not answer the client.
func (c *client) silent(a netip.Addr) {
	c.v.t.Helper()
	ctx, cancel := context.WithTimeout(c.v.ctx, 2*time.Second)
	defer cancel()
	if err := c.Host.AwaitPings(ctx, []netip.Addr{a}); err == nil {
		c.v.t.Errorf("%s has an answer from %s", c.name, a)
	}
}

// sees connects to an echo server and checks which source address the server saw.
func (c *client) sees(backend lab.Place, at netip.AddrPort, want netip.Addr) {
	c.v.t.Helper()
	echo, err := lab.ListenEcho(backend, port)
	c.v.must(err)
	defer echo.Close()
	ctx, cancel := context.WithTimeout(c.v.ctx, pingLimit)
	defer cancel()
	got, err := lab.SourceSeen(ctx, c.Host.Do, at)
	if err != nil || got != want {
		c.v.t.Errorf("%s at %s: seen as %s, %v, want %s", c.name, at, got, err, want)
	}
}

// refused checks that a connection fails.
func (c *client) refused(at netip.AddrPort) {
	c.v.t.Helper()
	ctx, cancel := context.WithTimeout(c.v.ctx, 3*time.Second)
	defer cancel()
	if _, err := lab.SourceSeen(ctx, c.Host.Do, at); err == nil || !strings.Contains(err.Error(), "timeout") && ctx.Err() == nil {
		c.v.t.Errorf("%s at %s: got %v, want no answer", c.name, at, err)
	}
}

// services returns the name of the node through which a configuration reaches Services.
func services(c control.ClientConfig) string {
	i := slices.IndexFunc(c.Peers, func(p control.ClientPeer) bool { return p.ServiceGateway })
	return c.Peers[i].Name
}

// servesThrough returns the node through which the client's configuration reaches Services.
func (c *client) servesThrough() *lab.Node {
	c.v.t.Helper()
	for line := range strings.Lines(c.config) {
		if name, _, ok := strings.Cut(strings.TrimPrefix(line, "# "), ", and Services"); ok {
			return c.v.node(name)
		}
	}
	c.v.t.Fatalf("no service gateway in %s", c.config)
	return nil
}

// services has the client reach a Service's address, with a backend on each node in
// turn. Each sees the service gateway.
func (c *client) services() {
	c.v.t.Helper()
	gateway := c.servesThrough()
	for _, n := range c.v.nodes {
		c.v.must(nft(c.v.ctx, gateway, fmt.Sprintf(service, netip.AddrPortFrom(c.v.pods[n].Addresses[0], port))))
		c.sees(c.v.pods[n].Do, netip.AddrPortFrom(serviceAddr, 80), c.v.overlay[gateway][0])
		c.v.must(nft(c.v.ctx, gateway, "delete table ip kube\n"))
	}
}

// knows waits until all nodes show this number of clients.
func (v *village) knows(clients int, nodes ...*lab.Node) {
	v.t.Helper()
	v.await(settleLimit, fmt.Sprintf("aware of %d clients", clients), func(s control.Status) bool { return len(s.Clients) == clients }, nodes...)
}

// unknown waits until no node has the client's key or address any more.
func (v *village) unknown(c control.ClientConfig, nodes ...*lab.Node) {
	v.t.Helper()
	v.eventually(settleLimit, func() error {
		for _, n := range nodes {
			if peers := v.run(n, "wg", "show", device, "peers"); strings.Contains(peers, c.PublicKey) {
				return fmt.Errorf("%s has the client's key", n.Name)
			}
			if routes := v.run(n, "ip", "route"); strings.Contains(routes, c.Overlay[0].String()) {
				return fmt.Errorf("%s has a route to the client", n.Name)
			}
		}
		return nil
	})
}

// newClientVillage makes three nodes in a cloud, one at home behind NAT, nodes without a
// location, and a host in another home for a client. One node of the cloud is preferred as
// gateway, so a printed configuration is valid again after all nodes have been down.
func newClientVillage(t *testing.T, mode mesh.Mode, alone ...string) (v *village, laptop *lab.Host) {
	t.Helper()
	v = newVillage(t, func(m *testbed) []*lab.Host {
		all := m.site("aws", lab.SiteOptions{Underlay: lab.NAT}, "aws-1", "aws-2", "aws-3")
		all = append(all, m.site("attic", lab.SiteOptions{Underlay: lab.Home}, "attic-1")...)
		for _, name := range alone {
			h, err := m.lab.Host(m.ctx, name, lab.NAT)
			m.must(err)
			all = append(all, h)
		}
		laptop = m.site("cafe", lab.SiteOptions{Underlay: lab.Home}, "laptop")[0]
		return all
	})
	settings := cluster(1, mode)
	if len(probes) == 0 {
		// A busy machine makes a gateway look dead for a while, and what is printed for a
		// client then leads through another one.
		settings = slices.Concat(slowProbes, settings)
	}
	for _, n := range v.nodes {
		v.configure(n, settings...)
	}
	v.configure(v.node("aws-1"), append([]string{"  gateway: prefer"}, settings...)...)
	v.live()
	// What is printed for a client says for ever who is reached from outside.
	v.await(settleLimit, "aware of who is reached by strangers", func(s control.Status) bool {
		open := 0
		for _, p := range s.Peers {
			if p.Open {
				open++
			}
		}
		if s.Node.Open {
			open++
		}
		return open == 3+len(alone)
	}, v.nodes...)
	return v, laptop
}
