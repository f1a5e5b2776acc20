// SPDX-License-Identifier: Apache-2.0

package mesh_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/meshd/meshd/internal/mesh"
	"pgregory.net/rapid"
)

// world is a random cluster: its records, and which nodes are dead.
type world struct {
	cluster  mesh.Cluster
	records  []mesh.Record
	verdicts []mesh.Verdict
	clients  []mesh.Client
	dead     map[mesh.ID]bool
}

func drawWorld(t *rapid.T) world {
	w := world{cluster: drawCluster(t), dead: map[mesh.ID]bool{}}
	for i := range rapid.IntRange(2, 60).Draw(t, "nodes") {
		w.records = append(w.records, drawRecord(t, i))
	}
	if rapid.Bool().Draw(t, "joined to another cluster") {
		w.drawLinks(t)
	}
	w.drawCopies(t)
	if rapid.Bool().Draw(t, "not all have met") {
		w.drawSegments(t)
	}
	w.drawClients(t)
	for i := range w.records {
		if rapid.IntRange(0, 9).Draw(t, "spoken of") == 0 {
			w.drawVerdicts(t, i)
		}
	}
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
	c.Encapsulation = rapid.SampledFrom([]mesh.Encapsulation{mesh.EncapsulationAlways, mesh.EncapsulationCrossSubnet, mesh.EncapsulationAlways, mesh.EncapsulationNever}).Draw(t, "encapsulation")
	return c
}

// drawRecord draws a node. Every location has two subnets, which are the same in the
// locations c and d; some nodes have IPv6 on the LAN, some have only IPv6.
func drawRecord(t *rapid.T, i int) mesh.Record {
	r := record(i)
	r.MTU = rapid.IntRange(1280, 8920).Draw(t, "mtu")
	r.Location = rapid.SampledFrom([]string{"", "", "a", "a", "b", "c", "d"}).Draw(t, "location")
	r.Gateway = rapid.SampledFrom([]mesh.GatewayPreference{mesh.GatewayAuto, mesh.GatewayAuto, mesh.GatewayAuto, mesh.GatewayAuto, mesh.GatewayPrefer, mesh.GatewayNever}).Draw(t, "wish")
	r.Encrypted = rapid.IntRange(0, 7).Draw(t, "encrypted") == 0
	if rapid.IntRange(0, 3).Draw(t, "is a gateway") == 0 {
		r.Term = mesh.GatewayTerm{Seat: rapid.IntRange(-1, 4).Draw(t, "seat"), Since: rapid.Int64Range(1, 9).Draw(t, "since")}
	}
	if r.Location != "" {
		net := strings.Index("abcc", strings.Replace(r.Location, "d", "c", 1)) + 1
		subnet := rapid.SampledFrom([]int{0, 0, 0, 100}).Draw(t, "subnet")
		v4 := fmt.Sprintf("192.168.%d.%d/24", net+subnet, i+1)
		v6 := fmt.Sprintf("fd00:%d:%d::%x/64", net, subnet, i+1)
		r.InternalIPs = rapid.SampledFrom(slices.Concat(
			slices.Repeat([][]netip.Prefix{prefixes(v4), prefixes(v4, v6)}, 10), [][]netip.Prefix{prefixes(v6), nil})).Draw(t, "internal IPs")
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
		r.AllowedLocationIPs = prefixes(rapid.SampledFrom([]string{"192.168.0.0/16", "172.30.0.0/16", "172.30.1.0/24", "172.30.2.0/24", "fd99::/48"}).Draw(t, "network"))
		switch rapid.IntRange(0, 4).Draw(t, "serves it") {
		case 0:
			r.Unserved = r.AllowedLocationIPs
		case 1, 2:
			r.Serving = []mesh.NetworkTerm{{Network: r.AllowedLocationIPs[0], Since: rapid.Int64Range(1, 9).Draw(t, "serves since")}}
		}
	}
	return r
}

// drawLinks gives some nodes, wherever they are, links to the same other cluster. Now and then one has
// another cluster of the same range.
func (w *world) drawLinks(t *rapid.T) {
	network := rapid.SampledFrom([]string{"172.29.0.0/16", "172.29.0.0/16", "172.30.0.0/16"}).Draw(t, "linked network")
	for i := range w.records {
		r := &w.records[i]
		if rapid.IntRange(0, 5).Draw(t, "has a link") > 0 || slices.Contains(r.AllowedLocationIPs, prefixes(network)[0]) {
			continue
		}
		linkTo(r, rapid.SampledFrom([]string{"west", "west", "west", "west", "west", "west", "west", "west", "west", "east"}).Draw(t, "cluster"), network)
		p := prefixes(network)[0]
		switch rapid.IntRange(0, 4).Draw(t, "serves it") {
		case 0:
			r.Unserved = append(r.Unserved, p)
		case 1, 2:
			r.Serving = append(r.Serving, mesh.NetworkTerm{Network: p, Since: rapid.Int64Range(1, 9).Draw(t, "serves since")})
		}
	}
}

// drawCopies adds a few nodes that claim what belongs to another one.
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

// drawSegments has each location fall into up to three parts.
func (w *world) drawSegments(t *rapid.T) {
	parts := make([]int, len(w.records))
	for i := range parts {
		parts[i] = rapid.SampledFrom([]int{0, 0, 0, 0, 1, 1, 2}).Draw(t, "part")
	}
	var said []mesh.Membership
	for i, r := range w.records {
		var met []int
		for j, o := range w.records {
			if i != j && r.SameLocation(&o) && parts[i] == parts[j] {
				met = append(met, j)
			}
		}
		said = append(said, says(w.records, i, met...))
	}
	mesh.Locate(w.records, said)
}

// drawVerdicts draws verdicts on a live node, by itself and by others, which may be
// wrong.
func (w *world) drawVerdicts(t *rapid.T, i int) {
	all := []mesh.Health{mesh.HealthUp, mesh.HealthDraining, mesh.HealthDown}
	for range rapid.IntRange(1, 3).Draw(t, "verdicts") {
		author := i
		if rapid.Bool().Draw(t, "by another") {
			author = rapid.IntRange(0, len(w.records)-1).Draw(t, "author")
		}
		w.verdicts = append(w.verdicts, mesh.Verdict{
			Author: w.records[author].Identity, Subject: w.records[i].ID(),
			State:  rapid.SampledFrom(all).Draw(t, "state"),
			Epoch:  rapid.Uint64Range(0, deathEpoch-1).Draw(t, "epoch"),
			Record: rapid.Uint64Range(0, 2).Draw(t, "record"),
		})
	}
}

// deathEpoch is the lowest epoch of the verdicts on dead nodes.
const deathEpoch = 10

// kill makes a node die, and all nodes that could notice publish a verdict.
func (w *world) kill(i int) {
	id := w.records[i].ID()
	w.dead[id] = true
	for j, r := range w.records {
		if j == i {
			continue
		}
		w.verdicts = append(w.verdicts, mesh.Verdict{Author: r.Identity, Subject: id, State: mesh.HealthDown, Epoch: deathEpoch + uint64(j%3)})
	}
}

// walk returns a walker for the world.
func (w world) walk(t *rapid.T) *walker {
	k := newWalkerOf(mesh.Input{Cluster: w.cluster, Records: w.records, Verdicts: w.verdicts, Clients: w.clients})
	for _, hosts := range []map[mesh.ID]*host{k.hosts, k.clients} {
		for id, h := range hosts {
			h.dead = w.dead[id]
			var err error
			if h.tables, err = k.newTables(h.top); err != nil {
				t.Fatalf("tables of %s: %v", h.Name, err)
			}
		}
	}
	return k
}

// drawClients adds clients, some of which claim what belongs to another one.
func (w *world) drawClients(t *rapid.T) {
	for i := range rapid.IntRange(0, 4).Draw(t, "clients") {
		c := client(w.records[rapid.IntRange(0, len(w.records)-1).Draw(t, "added by")], i)
		if rapid.IntRange(0, 5).Draw(t, "conflict") == 0 {
			c.Name, c.Index = "c0", rapid.IntRange(0, 1).Draw(t, "index")
		}
		if rapid.IntRange(0, 2).Draw(t, "router") == 0 {
			c.Networks = prefixes(fmt.Sprintf("172.31.%d.0/24", i))
		}
		w.clients = append(w.clients, c)
	}
}
