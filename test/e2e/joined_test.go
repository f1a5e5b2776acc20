// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/test/lab"
)

// eastRanges are those of a cluster that is joined with one that has the usual ranges.
var eastRanges = []string{"cluster:", "  name: east", "  mode: location", "  overlay: [10.5.0.0/16, fd00:5::/112]", "  pods: [10.52.0.0/16, fd00:52::/48]", "  services: [10.53.0.0/16, fd00:53::/112]"}

// eastNetworks are these ranges, in one list.
const eastNetworks = "10.5.0.0/16,fd00:5::/112,10.52.0.0/16,fd00:52::/48,10.53.0.0/16,fd00:53::/112"

// joined are two clusters with secrets of their own, west and east. Two nodes of east have links to west.
type joined struct {
	west, east *village
	links      []*lab.Node // of east
}

// newJoined makes two clusters. Of the links of east one is behind the gateway of a location, and one stands
// alone.
func newJoined(t *testing.T) *joined {
	t.Helper()
	var hosts []*lab.Host
	west := newVillage(t, func(m *testbed) []*lab.Host {
		hq := m.site("hq", lab.SiteOptions{Underlay: lab.NAT}, "e1", "e3")
		alone, err := m.lab.Host(m.ctx, "e2", lab.NAT)
		m.must(err)
		hosts = append([]*lab.Host{hq[0], alone, hq[1]}, m.site("branch", lab.SiteOptions{Underlay: lab.Home}, "e4")...)
		return append(m.site("aws", lab.SiteOptions{Underlay: lab.NAT}, "w1", "w2"), m.site("attic", lab.SiteOptions{Underlay: lab.Home}, "w3")...)
	})
	bed := &testbed{t: t, ctx: west.ctx, lab: west.lab}
	for _, h := range hosts {
		bed.nodes = append(bed.nodes, lab.NewNode(h, binary))
	}
	first := bed.nodes[0]
	var err error
	bed.secret, err = first.NewSecret(bed.ctx)
	bed.must(err)
	east := &village{testbed: bed, config: func(n *lab.Node, more ...string) string {
		if n.Name == "e3" {
			more = append([]string{"  gateway: prefer"}, more...)
		}
		if location := n.Location(); location != "" {
			more = append([]string{"  location: " + location}, more...)
		}
		return lab.Config(n.Name, []string{first.Public().String()}, more...)
	}}
	t.Cleanup(bed.printLogs)
	return &joined{west, east, bed.nodes[:2]}
}

// link has a node of west add a node of east as a client, and returns the settings of that node's link.
func (j *joined) link(n *lab.Node, flags ...string) {
	j.west.t.Helper()
	const path = "/run/link.conf"
	at := j.west.nodes[0]
	args := append([]string{"client", "add", n.Name, "--networks", eastNetworks, "--cluster", "east", "--out", path}, flags...)
	j.west.run(at, binary, args...)
	text := j.west.run(at, "cat", path)
	j.west.run(at, "rm", path)
	j.east.must(n.WriteFile("/etc/meshd/west.conf", text, 0o600))
}

// connected waits until the hosts and pods of both clusters have reached each other.
func (j *joined) connected(west, east []*lab.Node) {
	j.west.t.Helper()
	for _, a := range west {
		for _, b := range east {
			j.reach(j.west, a, j.east, b)
			j.reach(j.east, b, j.west, a)
		}
	}
}

// reach waits until the host and the pod of one node have reached those of another.
func (j *joined) reach(from *village, a *lab.Node, to *village, b *lab.Node) {
	from.t.Helper()
	targets := append(to.overlay[b][:2:2], to.pods[b].Addresses...)
	ctx, cancel := context.WithTimeout(from.ctx, settleLimit)
	defer cancel()
	if err := a.AwaitPings(ctx, targets); err != nil {
		from.t.Fatalf("%s to %s: %v", a.Name, b.Name, err)
	}
	if err := from.pods[a].AwaitPings(ctx, targets); err != nil {
		from.t.Fatalf("pod on %s to %s: %v", a.Name, b.Name, err)
	}
}

// TestJoinedClusters joins two clusters in mode location by two links. All hosts, pods and Services reach each other, also
// on a new node, after each of the links has failed, and after a restart; then only what the access lists
// of both clusters name.
func TestJoinedClusters(t *testing.T) {
	t.Parallel()
	j := newJoined(t)
	west, east := j.west, j.east
	for _, n := range west.nodes {
		west.configure(n, cluster(1, mesh.ModeLocation)...)
	}
	late := east.nodes[3]
	east.nodes = east.nodes[:3]
	settings := func(more ...string) []string { return append(append(more, probes...), eastRanges...) }
	for _, n := range east.nodes {
		east.configure(n, settings()...)
	}
	west.live()
	east.live()
	for _, n := range j.links {
		j.link(n)
		east.configure(n, settings("  links: [/etc/meshd/west.conf]")...)
		east.must(n.Reload())
	}
	j.connected(west.nodes, east.nodes)
	for _, n := range j.links {
		east.await(settleLimit, "without problems", well, n)
	}

	t.Log("a Service of each cluster, from the other one")
	j.service(west, west.node("w3"), east, east.nodes[2], serviceAddr)
	j.service(east, east.nodes[2], west, west.node("w3"), netip.MustParseAddr("10.53.7.7"))

	t.Log("a new node")
	east.configure(late, settings()...)
	east.nodes = append(east.nodes, late)
	east.start(late)
	east.overlay[late] = east.settle(settleLimit, east.nodes...)[3].Node.Overlay
	east.pods[late] = east.pod(late, "pod-"+late.Name)
	j.connected(west.nodes, []*lab.Node{late})

	t.Log("one link after the other fails, and comes back")
	for i, n := range j.links {
		east.must(n.Cut(east.ctx))
		alive := east.without(n)
		j.connected(west.nodes, alive)
		east.must(n.Restore(east.ctx))
		east.settle(settleLimit, east.nodes...)
		if i == 0 {
			j.connected(west.nodes, alive)
		}
	}
	j.connected(west.nodes, east.nodes)

	t.Log("both have the other as one cluster")
	for _, v := range []*village{west, east} {
		other := map[*village]string{west: "east", east: "west"}[v]
		v.await(settleLimit, "showing "+other, func(s control.Status) bool {
			return len(s.Clusters) == 1 && s.Clusters[0].Name == other && len(s.Clusters[0].Through) == 2
		}, v.nodes...)
		if dot := v.run(v.nodes[0], binary, "graph"); strings.Count(dot, `"`+other) == 0 {
			t.Errorf("graph without %s:\n%s", other, dot)
		}
	}

	t.Log("a restart, and a link less")
	for _, n := range j.links {
		east.must(n.Stop())
		east.must(n.Start())
	}
	east.settle(settleLimit, east.nodes...)
	east.configure(j.links[0], settings()...)
	east.must(j.links[0].Reload())
	j.connected(west.nodes, east.nodes)
	east.eventually(settleLimit, func() error {
		if out, err := j.links[0].Run(east.ctx, "ip", "link", "show", "west"); err == nil {
			return fmt.Errorf("the device of a link that is no longer configured: %s", out)
		}
		return nil
	})

	t.Log("what is not on the lists is not reached")
	port := uint16(7007)
	east.configure(j.links[1], settings("  links: [/etc/meshd/west.conf]", fmt.Sprintf("  link-access: [tcp/%d@pods]", port))...)
	east.must(j.links[1].Reload())
	from, pod := west.node("w1"), east.pods[late]
	echo, err := lab.ListenEcho(pod.Do, port)
	east.must(err)
	defer echo.Close()
	at := netip.AddrPortFrom(pod.Addresses[0], port)
	west.eventually(settleLimit, func() error {
		if out, err := from.Run(west.ctx, "ping", "-c", "1", "-W", "1", pod.Addresses[0].String()); err == nil {
			return fmt.Errorf("what is not on the list answers: %s", out)
		}
		_, err := lab.SourceSeen(west.ctx, from.Do, at)
		return err
	})
	j.reach(east, late, west, from)
}

// service makes a Service in one cluster, and reaches it from a node and a pod of the other one.
func (j *joined) service(of *village, backend *lab.Node, by *village, n *lab.Node, addr netip.Addr) {
	of.t.Helper()
	pod := of.pods[backend]
	rules := strings.ReplaceAll(fmt.Sprintf(service, pod.Addresses[0]), serviceAddr.String(), addr.String())
	if addr != serviceAddr {
		rules = strings.ReplaceAll(rules, "10.42.0.0/16", "10.52.0.0/16")
	}
	for _, node := range of.nodes {
		of.must(nft(of.ctx, node, rules))
	}
	echo, err := lab.ListenEcho(pod.Do, 80)
	of.must(err)
	defer echo.Close()
	for name, from := range map[string]lab.Place{n.Name: n.Do, "a pod on " + n.Name: by.pods[n].Do} {
		of.eventually(settleLimit, func() error {
			ctx, cancel := context.WithTimeout(of.ctx, pingLimit)
			defer cancel()
			if _, err := lab.SourceSeen(ctx, from, netip.AddrPortFrom(addr, 80)); err != nil {
				return fmt.Errorf("Service %v from %s: %w", addr, name, err)
			}
			return nil
		})
	}
	for _, node := range of.nodes {
		of.must(nft(of.ctx, node, "delete table ip kube\n"))
	}
}
