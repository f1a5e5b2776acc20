// SPDX-License-Identifier: Apache-2.0

package mesh_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/meshd/meshd/internal/mesh"
	"pgregory.net/rapid"
)

// world is a random cluster: what is told, and who does not live any more.
type world struct {
	cluster  mesh.Cluster
	records  []mesh.Record
	verdicts []mesh.Verdict
	dead     map[mesh.ID]bool
}

func drawWorld(t *rapid.T) world {
	w := world{cluster: drawCluster(t), dead: map[mesh.ID]bool{}}
	for i := range rapid.IntRange(2, 60).Draw(t, "nodes") {
		w.records = append(w.records, drawRecord(t, i))
	}
	w.drawCopies(t)
	for i := range w.records {
		if rapid.IntRange(0, 9).Draw(t, "dead") == 0 {
			w.kill(i)
		}
	}
	return w
}

func drawCluster(t *rapid.T) mesh.Cluster {
	c := cluster(false)
	switch rapid.IntRange(0, 3).Draw(t, "families") {
	case 0:
		c = cluster(true)
	case 1:
		c.Overlay, c.Pods, c.PodPrefix = c.Overlay[1:], c.Pods[1:], c.PodPrefix[1:]
	}
	c.Mode = rapid.SampledFrom([]mesh.Mode{mesh.ModeFull, mesh.ModeLocation, mesh.ModeLocation, mesh.ModeCross}).Draw(t, "mode")
	c.Gateways = rapid.IntRange(1, 4).Draw(t, "gateways")
	c.Encapsulation = rapid.SampledFrom([]string{mesh.EncapsulationAlways, mesh.EncapsulationCrossSubnet, mesh.EncapsulationNever}).Draw(t, "encapsulation")
	return c
}

// drawRecord draws a node. Every location has two subnets, and they are the same
// in the locations c and d; some nodes have IPv6 on the LAN, some only that.
func drawRecord(t *rapid.T, i int) mesh.Record {
	r := record(i)
	r.MTU = rapid.IntRange(1280, 8920).Draw(t, "mtu")
	r.Location = rapid.SampledFrom([]string{"", "", "a", "a", "b", "c", "d"}).Draw(t, "location")
	r.Gateway = rapid.SampledFrom([]mesh.GatewayWish{mesh.GatewayAuto, mesh.GatewayAuto, mesh.GatewayPrefer, mesh.GatewayNever}).Draw(t, "wish")
	if rapid.IntRange(0, 3).Draw(t, "in office") == 0 {
		r.Office = mesh.Office{Seat: rapid.IntRange(-1, 4).Draw(t, "seat"), Since: rapid.Int64Range(1, 9).Draw(t, "since")}
	}
	if r.Location != "" {
		net := strings.Index("abcc", strings.Replace(r.Location, "d", "c", 1)) + 1
		subnet := rapid.SampledFrom([]int{0, 0, 0, 100}).Draw(t, "subnet")
		v4 := fmt.Sprintf("192.168.%d.%d/24", net+subnet, i+1)
		v6 := fmt.Sprintf("fd00:%d:%d::%x/64", net, subnet, i+1)
		r.InternalIPs = rapid.SampledFrom([][]netip.Prefix{prefixes(v4), prefixes(v4), prefixes(v4, v6), prefixes(v4, v6), prefixes(v6), nil}).Draw(t, "internal IPs")
	} else if rapid.Bool().Draw(t, "as half the world") {
		r.InternalIPs = prefixes("192.168.1.7/24")
	}
	switch rapid.IntRange(0, 5).Draw(t, "endpoint") {
	case 0, 1:
		r.NAT, r.Endpoints = true, nil
	case 2:
		r.NAT = true
	case 3:
		if len(r.InternalIPs) > 0 {
			r.Endpoints = []mesh.Endpoint{{Host: r.InternalIPs[0].Addr().String(), Port: 51820}}
		}
	}
	if rapid.IntRange(0, 7).Draw(t, "networks behind it") == 0 {
		r.AllowedLocationIPs = prefixes(rapid.SampledFrom([]string{"192.168.0.0/16", "172.30.1.0/24", "172.30.2.0/24", "fd99::/48"}).Draw(t, "network"))
	}
	return r
}

// drawCopies makes a few nodes that claim what is another's.
func (w *world) drawCopies(t *rapid.T) {
	for range rapid.SampledFrom([]int{0, 0, 0, 1, 2}).Draw(t, "copies") {
		i := rapid.IntRange(1, len(w.records)-1).Draw(t, "copy")
		switch rapid.IntRange(0, 2).Draw(t, "copied") {
		case 0:
			w.records[i].Key = w.records[0].Key
		case 1:
			w.records[i].Claim.Slot = 0
		case 2:
			w.records[i].InternalIPs = w.records[0].InternalIPs
		}
	}
}

// kill lets a node die, and everybody who could notice say so.
func (w *world) kill(i int) {
	id := w.records[i].ID()
	w.dead[id] = true
	for j, r := range w.records {
		if j == i {
			continue
		}
		w.verdicts = append(w.verdicts, mesh.Verdict{Author: r.Identity, Subject: id, Role: mesh.RoleRelay, State: mesh.HealthDown, Epoch: uint64(j)})
		if r.Location != "" && r.Location == w.records[i].Location {
			w.verdicts = append(w.verdicts, mesh.Verdict{Author: r.Identity, Subject: id, Role: mesh.RoleGateway, State: mesh.HealthDown, Epoch: uint64(j % 3)})
		}
	}
}

// walk makes a walker for the world.
func (w world) walk(t *rapid.T) *walker {
	k := newWalker(w.cluster, w.records, w.verdicts...)
	for id, h := range k.hosts {
		h.dead = w.dead[id]
		var err error
		if h.tables, err = k.newTables(h.top); err != nil {
			t.Fatalf("tables of %s: %v", h.Name, err)
		}
	}
	return k
}

// The laws of the design. A packet between any two living nodes arrives, both
// ways, or a problem says why not; no prefix is in two places; no endpoint lies
// in a tunnel; networks behind a location are not routed inside it; the order
// of what was told changes nothing.
func TestLawsOfDerive(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		k := w.walk(t)
		owners := mesh.Owners(w.records)
		w.checkOrder(t, k)
		for _, h := range k.hosts {
			checkTables(t, k, h)
		}
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "pairs"), 0))
		for range 150 {
			a, b := k.hosts[w.records[rng.IntN(len(w.records))].ID()], k.hosts[w.records[rng.IntN(len(w.records))].ID()]
			if a != b && !a.dead && !b.dead && owners[a.Claim.Slot] == a.id && owners[b.Claim.Slot] == b.id {
				checkPair(t, k, a, b)
			}
		}
	})
}

func (w world) checkOrder(t *rapid.T, k *walker) {
	in := mesh.Input{Cluster: w.cluster, Self: w.records[0].ID()}
	in.Records = rapid.Permutation(w.records).Draw(t, "order of records")
	in.Verdicts = rapid.Permutation(w.verdicts).Draw(t, "order of verdicts")
	want := k.hosts[in.Self].top
	if got := mesh.Derive(in); !reflect.DeepEqual(got, want) { // cmp takes a minute here
		t.Fatalf("the same in another order (-want +got):\n%s", cmp.Diff(want, got, compareTopologies))
	}
}

// checkTables checks what has to hold on one node.
func checkTables(t *rapid.T, k *walker, h *host) {
	var outside []netip.Addr
	for _, p := range h.top.Peers {
		for _, e := range p.Endpoints {
			outside = append(outside, e.Addr())
		}
	}
	for _, n := range h.top.Neighbors {
		outside = append(append(outside, n.InternalIP), n.NextHops...)
	}
	for _, a := range outside {
		if e, ok := h.tables.lookup(a); ok {
			t.Fatalf("on %s %v is outside the mesh and routed to %s by %s", h.Name, a, k.hosts[e.to].Name, e.link)
		}
	}
	for _, o := range k.hosts {
		for _, p := range o.AllowedLocationIPs {
			if e, ok := h.tables.routes[p]; ok && (o == h || o.Location != "" && o.Location == h.Location) {
				t.Fatalf("on %s %v, a network of its own location, is routed to %s", h.Name, p, k.hosts[e.to].Name)
			}
		}
	}
	if len(h.top.Paths) != len(k.hosts)-1 || !slices.IsSortedFunc(h.top.Paths, func(a, b mesh.Path) int { return a.ID.Compare(b.ID) }) {
		t.Fatalf("paths of %s: %v", h.Name, h.top.Paths)
	}
}

func (h *host) path(to mesh.ID) mesh.Path {
	return h.top.Paths[slices.IndexFunc(h.top.Paths, func(p mesh.Path) bool { return p.ID == to })]
}

func (h *host) hasProblem(text string, kinds ...mesh.ProblemKind) bool {
	return slices.ContainsFunc(h.top.Problems, func(p mesh.Problem) bool {
		return slices.Contains(kinds, p.Kind) && strings.Contains(p.Text, text)
	})
}

// checkPair sends packets from a to b, and back.
func checkPair(t *rapid.T, k *walker, a, b *host) {
	path := a.path(b.id)
	if path.Kind == mesh.PathNone {
		if !a.hasProblem("", mesh.ProblemGateway, mesh.ProblemNeighbor, mesh.ProblemRelay, mesh.ProblemKey) {
			t.Fatalf("no path from %s to %s, and no problem: %v", a.Name, b.Name, a.top.Problems)
		}
		return
	}
	if slices.ContainsFunc(path.Hops, func(id mesh.ID) bool { return k.hosts[id].dead }) {
		if !a.hasProblem("all gateways", mesh.ProblemGateway) {
			t.Fatalf("dead nodes on the path from %s to %s: %v, problems %v", a.Name, b.Name, path, a.top.Problems)
		}
		return
	}
	for i := range a.top.Addresses {
		for _, ends := range [][2]netip.Addr{
			{a.top.Addresses[i], b.top.Addresses[i]},
			{a.top.Addresses[i], b.top.PodCIDRs[i].Addr().Next()},
			{a.top.PodCIDRs[i].Addr().Next(), b.top.PodCIDRs[i].Addr().Next()},
		} {
			checkWalk(t, k, a, b, ends[0], ends[1], path)
			checkWalk(t, k, b, a, ends[1], ends[0], b.path(a.id))
		}
		checkInternal(t, k, a, b, a.top.Addresses[i], path)
	}
}

// checkWalk sends one packet. Only a family that the LAN does not carry, which is
// reported, may be without route.
func checkWalk(t *rapid.T, k *walker, a, b *host, src, dst netip.Addr, path mesh.Path) {
	if _, ok := a.tables.lookup(dst); !ok {
		version := "IPv6"
		if dst.Is4() {
			version = "IPv4"
		}
		if !a.hasProblem("each other with "+version, mesh.ProblemNeighbor) {
			t.Fatalf("%s has no route to %v of %s and no problem", a.Name, dst, b.Name)
		}
		return
	}
	p, err := k.walk(a, src, dst)
	if err != nil {
		t.Fatalf("%s to %s: %v", a.Name, b.Name, err)
	}
	if got := p.hops[:len(p.hops)-1]; p.at != b || !slices.Equal(got, path.Hops) {
		t.Fatalf("%s to %s: went by way of %v, ended at %s; the path is %v", a.Name, b.Name, got, p.at.Name, path)
	}
	first := map[link]mesh.PathKind{byTunnel: mesh.PathTunnel, byVXLAN: mesh.PathLAN, byLAN: mesh.PathLAN}
	if e, _ := a.tables.lookup(dst); first[e.link] != path.Kind {
		t.Fatalf("%s to %s: leaves by %s; the path is %v", a.Name, b.Name, e.link, path)
	}
}

// checkInternal sends a packet to b's internal IPs, and the answers.
func checkInternal(t *rapid.T, k *walker, a, b *host, src netip.Addr, path mesh.Path) {
	for _, ip := range b.InternalIPs {
		dst := ip.Addr()
		if _, ok := a.tables.routes[netip.PrefixFrom(dst, dst.BitLen())]; dst.Is4() != src.Is4() || contested(k, b, dst) {
			continue
		} else if !ok {
			if !excused(k, a, b, dst) {
				t.Fatalf("%s has no route to internal IP %v of %s, and no problem: %v", a.Name, dst, b.Name, a.top.Problems)
			}
			continue
		}
		p, err := k.walk(a, src, dst)
		if err != nil {
			t.Fatalf("%s to %s: %v", a.Name, b.Name, err)
		}
		if !p.at.holds(dst) || p.at.Location != b.Location {
			t.Fatalf("%s to %v of %s: ended at %s", a.Name, dst, b.Name, p.at.Name)
		}
		if !slices.ContainsFunc(a.top.Inside, func(in netip.Prefix) bool { return in.Contains(dst) }) {
			t.Fatalf("%s routes %v of %s, but has it not inside %v", a.Name, dst, b.Name, a.top.Inside)
		}
		answers := p.at
		if p.masked != nil {
			answers = p.masked
		}
		if back, err := k.walk(answers, dst, src); err != nil || back.at != a {
			t.Fatalf("answer of %s to %s from %v: ended at %s: %v", b.Name, a.Name, dst, back.at.Name, err)
		}
	}
}

// excused says whether there is a reason for not routing an internal IP.
func excused(k *walker, a, b *host, ip netip.Addr) bool {
	if a.Location != "" && a.Location == b.Location {
		return true // on the LAN
	}
	if a.hasProblem(ip.String(), mesh.ProblemAddress, mesh.ProblemNeighbor) || a.hasProblem("", mesh.ProblemNeighbor) {
		return true
	}
	for _, h := range k.hosts {
		if slices.ContainsFunc(h.Endpoints, func(e mesh.Endpoint) bool { return e.Host == ip.String() }) {
			return true
		}
	}
	return false
}

// contested says whether another node of b's location claims b's internal IP.
func contested(k *walker, b *host, ip netip.Addr) bool {
	for _, h := range k.hosts {
		if h != b && h.Location != "" && h.Location == b.Location && h.holds(ip) {
			return true
		}
	}
	return false
}
