// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/node"
	"github.com/meshd/meshd/test/lab"
)

// TestNetworksWithNothingButHTTPS has a host join whose network lets out only TCP to port 443 that
// looks like TLS, and another one that reaches nothing but an HTTP proxy and can look up no name.
// Both reach all nodes and pods, and do so again after a restart.
func TestNetworksWithNothingButHTTPS(t *testing.T) {
	t.Parallel()
	const seed = "aws.example.com"
	m := newTestbed(t)
	host := func(name string) *lab.Host {
		h, err := m.lab.Host(m.ctx, name, lab.Routed)
		m.must(err)
		return h
	}
	aws, gcp, gateway := lab.NewNode(host("aws"), binary), lab.NewNode(host("gcp"), binary), host("proxy")
	proxy, err := lab.StartProxy(gateway.Do, netip.AddrPortFrom(gateway.Public(), 3128), map[string]netip.Addr{seed: aws.Public()}, "word")
	m.must(err)
	t.Cleanup(func() { m.must(proxy.Close()) })
	behind := func(name string, r lab.Router) *lab.Node {
		return lab.NewNode(m.site(name, lab.SiteOptions{Underlay: lab.Home, Router: r}, name)[0], binary)
	}
	library := behind("library", lab.Router{OnlyHTTPS: true})
	office := behind("office", lab.Router{OnlyTo: gateway.Public()})
	m.must(library.WriteFile("/etc/hosts", aws.Public().String()+" "+seed+"\n", 0o644))
	office.Env("HTTPS_PROXY="+proxy.URL(), "NO_PROXY=localhost")
	m.nodes = []*lab.Node{aws, gcp, library, office}
	m.secret, err = aws.NewSecret(m.ctx)
	m.must(err)
	configure := func(n *lab.Node, slot, join string, more ...string) {
		var entries []string
		if join != "" {
			entries = []string{`"` + join + `"`}
		}
		// A node without UDP may hear too late that another one has claimed its slot.
		m.must(n.Configure(lab.Config(n.Name, entries, append([]string{"  pod-cidr: [" + slot + "]"}, more...)...), m.secret))
	}
	configure(aws, "10.42.1.0/24", "", "relay:", `  listen: ":443"`)
	configure(gcp, "10.42.2.0/24", aws.Public().String())
	configure(library, "10.42.3.0/24", seed+":443")
	configure(office, "10.42.4.0/24", seed+":443")
	m.start(m.nodes...)
	meet := func() {
		m.t.Helper()
		m.settle(settleLimit, m.nodes...)
		m.connected(pingLimit, m.nodes...)
		for _, n := range []*lab.Node{library, office} {
			m.await(settleLimit, "on TCP to all", all(lab.OnPath(aws, control.PathTCP), lab.OnPath(gcp, control.PathTCP), shows(node.ProblemUDP, "packets go over TCP to aws")), n)
		}
		m.await(settleLimit, "aware of the proxy", shows(node.ProblemUDP, "through the proxy "+gateway.Public().String()+":3128"), office)
	}
	meet()
	if got := lab.PeerOf(m.status(office), gcp.Name).Path; got.Relay != aws.Name || got.Proxy != gateway.Public().String()+":3128" {
		t.Errorf("path from %s: got %+v, want one via %s and the proxy", office.Name, got, aws.Name)
	}
	if got := lab.PeerOf(m.status(library), gcp.Name).Path; got.Relay != aws.Name || got.Proxy != "" {
		t.Errorf("path from %s: got %+v, want one via %s and no proxy", library.Name, got, aws.Name)
	}
	if proxy.Opened(seed) == 0 {
		t.Errorf("the proxy has opened no connection to %s", seed)
	}
	pods := m.podOnEach()
	m.must(lab.AwaitEachOther(m.ctx, pods, func(p *lab.Pod) []netip.Addr { return p.Addresses }))
	for _, n := range []*lab.Node{library, office} {
		m.must(n.Stop())
		m.must(n.Start())
	}
	meet()
	m.must(lab.AwaitEachOther(m.ctx, pods, func(p *lab.Pod) []netip.Addr { return p.Addresses }))
	for _, n := range m.nodes {
		if strings.Contains(n.Log(), "word@") || strings.Contains(n.Log(), ":word") {
			t.Errorf("the log of %s has the proxy's password", n.Name)
		}
	}
	m.encrypted()
}

// TestRestartBehindHTTPSWithoutSeeds restarts a host whose network lets out only TCP to port 443
// that looks like TLS, while the only node that its join list names is gone. It finds the other
// node that listens there, which it knows from its disk alone.
func TestRestartBehindHTTPSWithoutSeeds(t *testing.T) {
	t.Parallel()
	m := newTestbed(t)
	open := func(name string) *lab.Node {
		h, err := m.lab.Host(m.ctx, name, lab.Routed)
		m.must(err)
		return lab.NewNode(h, binary)
	}
	aws, gcp := open("aws"), open("gcp")
	site := lab.SiteOptions{Underlay: lab.Home, Router: lab.Router{OnlyHTTPS: true}}
	library := lab.NewNode(m.site("library", site, "library")[0], binary)
	m.nodes = []*lab.Node{aws, gcp, library}
	var err error
	m.secret, err = aws.NewSecret(m.ctx)
	m.must(err)
	// A node without UDP may hear too late that another one has claimed its slot.
	for i, n := range m.nodes {
		lines := []string{fmt.Sprintf("  pod-cidr: [10.42.%d.0/24]", i+1)}
		if n != library {
			lines = append(lines, "relay:", `  listen: ":443"`)
		}
		var join []string
		if n != aws {
			join = []string{`"` + netip.AddrPortFrom(aws.Public(), 443).String() + `"`}
		}
		m.must(n.Configure(lab.Config(n.Name, join, lines...), m.secret))
	}
	m.start(m.nodes...)
	m.settle(settleLimit, m.nodes...)
	m.connected(pingLimit, m.nodes...)
	m.must(library.Stop())
	m.must(aws.Stop())
	m.must(aws.Cut(m.ctx))
	m.must(library.Start())
	m.settle(settleLimit, gcp, library)
	m.connected(pingLimit, gcp, library)
	m.await(settleLimit, "on TCP", all(lab.OnPath(gcp, control.PathTCP), shows(node.ProblemUDP, "packets go over TCP to gcp")), library)
}
