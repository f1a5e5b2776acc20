// SPDX-License-Identifier: Apache-2.0

//go:build !kernel

package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/test/lab"
)

// TestClientNetworks has two routers, which are clients, carry the network of an office. A printer there
// and all nodes and pods see each other's own addresses, also after one router has failed, and after it
// is back. Then the office may reach less, and offers less.
func TestClientNetworks(t *testing.T) {
	t.Parallel()
	for _, mode := range []mesh.Mode{mesh.ModeFull, mesh.ModeLocation} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			v, host := newClientVillage(t, mode)
			v.full(v.nodes...)
			o := v.office()
			first := o.router(0, "--networks", o.network.String())
			second := o.router(1, "--networks", o.network.String(), "--endpoint", netip.AddrPortFrom(o.hosts[1].Public(), 51820).String())
			v.knows(2, v.nodes...)
			o.leaveThrough(first)
			o.connected()
			laptop := v.laptop(v.nodes[0], host, "laptop", "--access", o.network.String())
			v.knows(3, v.nodes...)
			o.sees(laptop.Do, netip.AddrPortFrom(o.printer.Address(), port), v.overlay[laptop.servesThrough()][0])

			v.must(first.Cut(v.ctx))
			o.leaveThrough(second)
			o.connected()
			v.must(first.Restore(v.ctx))
			o.leaveThrough(first)
			o.connected()

			for _, name := range []string{"router-1", "router-2", "laptop"} {
				v.run(v.nodes[0], binary, "client", "remove", name)
			}
			v.knows(0, v.nodes...)
			v.must(first.Down(v.ctx))
			v.must(second.Down(v.ctx))
			printer := o.printer.Address()
			strict := o.router(0, "--networks", o.network.String(), "--access", "nodes", "--offers", fmt.Sprintf("tcp/%d@%v", port, printer))
			v.knows(1, v.nodes...)
			for _, n := range v.nodes {
				pod := v.pods[n]
				o.sees(pod.Do, netip.AddrPortFrom(printer, port), pod.Addresses[0])
				strict.Host = o.printer // from where the following is tried
				strict.refused(netip.AddrPortFrom(pod.Addresses[0], port))
				strict.silent(pod.Addresses[0])
				if out, err := n.Run(v.ctx, "ping", "-c", "1", "-W", "1", printer.String()); err == nil {
					t.Errorf("%s pings the printer, which is not offered: %s", n.Name, out)
				}
			}
		})
	}
}

// TestClientNetworkConflicts: a network that a node serves stays with it, and one that a host is attached to
// stays with the host; who adds such a client is told.
func TestClientNetworkConflicts(t *testing.T) {
	t.Parallel()
	v, _ := newClientVillage(t, mesh.ModeFull)
	at := v.nodes[0]
	for network, why := range map[string]string{
		"10.42.7.0/24": "overlaps the cluster's range 10.42.0.0/16",
		v.status(at).Node.InternalIPs[0].Address.Addr().String() + "/32": "node " + at.Name + " has it, too",
	} {
		if out, err := at.Meshd(v.ctx, "client", "add", "router", "--networks", network); err == nil || !strings.Contains(err.Error()+out, why) {
			t.Errorf("network %s: got %s, %v, want %q", network, out, err, why)
		}
	}
	lan := v.status(v.node("attic-1")).Node.InternalIPs[0].Address.Masked()
	v.addClient(at, "router", "--networks", lan.String())
	v.await(settleLimit, "told of its own network", shows(mesh.ProblemAddress, lan.String(), "behind client router", "attic-1"), v.node("attic-1"))
	v.await(settleLimit, "content", func(s control.Status) bool { return len(s.Clients) == 1 }, v.nodes...)
	v.full(v.nodes...)
}

// office is a site with a printer, and two hosts that are its routers into the mesh.
type office struct {
	v       *village
	hosts   []*lab.Host
	printer *lab.Host
	network netip.Prefix
}

func (v *village) office() *office {
	v.t.Helper()
	hosts := v.site("office", lab.SiteOptions{Underlay: lab.NAT}, "router-1", "router-2", "printer")
	printer := hosts[2]
	echo, err := lab.ListenEcho(printer.Do, port)
	v.must(err)
	v.t.Cleanup(func() { echo.Close() })
	return &office{v, hosts[:2], printer, printer.Prefix().Masked()}
}

// router makes a host one that forwards into the mesh.
func (o *office) router(i int, flags ...string) *client {
	o.v.t.Helper()
	c := o.v.laptop(o.v.nodes[0], o.hosts[i], o.hosts[i].Name, flags...)
	if out, err := c.Run(o.v.ctx, "sysctl", "-w", "net.ipv4.ip_forward=1"); err != nil {
		o.v.t.Fatalf("forward packets: %v: %s", err, out)
	}
	return c
}

// leaveThrough has the printer send to the mesh through a router, as when that has the virtual
// address of both.
func (o *office) leaveThrough(c *client) {
	o.v.t.Helper()
	for _, p := range []string{"10.4.0.0/16", "10.42.0.0/16"} {
		if out, err := o.printer.Run(o.v.ctx, "ip", "route", "replace", p, "via", c.Address().String()); err != nil {
			o.v.t.Fatalf("route through %s: %v: %s", c.name, err, out)
		}
	}
}

// connected waits until the printer and all hosts and pods have reached each other, each under its own
// address.
func (o *office) connected() {
	o.v.t.Helper()
	printer := o.printer.Address()
	for _, n := range o.v.nodes {
		pod := o.v.pods[n]
		o.sees(n.Do, netip.AddrPortFrom(printer, port), o.v.overlay[n][0])
		o.sees(pod.Do, netip.AddrPortFrom(printer, port), pod.Addresses[0])
		for _, to := range []struct {
			lab.Place
			addr netip.Addr
		}{{n.Do, o.v.overlay[n][0]}, {pod.Do, pod.Addresses[0]}} {
			echo, err := lab.ListenEcho(to.Place, port)
			o.v.must(err)
			o.sees(o.printer.Do, netip.AddrPortFrom(to.addr, port), printer)
			o.v.must(echo.Close())
		}
	}
}

// sees waits until an echo server is reached that sees the given source.
func (o *office) sees(from lab.Place, at netip.AddrPort, want netip.Addr) {
	o.v.t.Helper()
	o.v.eventually(settleLimit, func() error {
		if err := o.v.seenAs(want, from, at); err != nil {
			return fmt.Errorf("to %v: %w", at, err)
		}
		return nil
	})
}
