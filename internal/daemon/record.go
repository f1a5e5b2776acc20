// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"crypto/ed25519"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/node"
)

// natKeepalive is how often a node behind NAT speaks to its peers: NATs forget
// a UDP mapping after 30 s at the earliest (RFC 4787, REQ-5 asks for two
// minutes; many grant less), and 25 s is WireGuard's own advice.
const natKeepalive = 25 * time.Second

// surroundings are what this node's record says of its host.
type surroundings struct {
	netcfg.Facts
	observed []mesh.Observation // where others see it
	voices   int                // how many of them it takes to change the last record
}

// nextRecord makes what this node says of itself now. The sequence is that of
// the last record; publish raises it if the content differs.
func nextRecord(cfg config.Config, here surroundings, last mesh.Record) mesh.Record {
	r, facts := last, here.Facts
	r.Name = cfg.Node.Name
	r.Settings = cfg.Cluster.Hash()
	r.Location = cfg.Node.Location
	r.Gateway = cfg.Node.Gateway
	r.Encrypted = cfg.Encrypted()
	r.ListenPort = uint16(cfg.WireGuard.ListenPort)
	r.GossipPort = cfg.Gossip.Bind.Port()
	r.GossipAddr = cfg.Gossip.Advertise.String()
	r.AllowedLocationIPs = slices.Clone(cfg.Node.AllowedLocationIPs)
	// A host that has lost its way out will most likely have the same one again,
	// unless it is on its way to another place.
	online := len(facts.Uplinks) > 0 || last.MTU == 0
	if online || r.Location != last.Location || cfg.Node.InternalIP.IsValid() {
		r.InternalIPs = internalIPs(cfg, facts)
	}
	if online {
		r.MTU = deviceMTU(cfg, facts)
	}
	// A node that nobody sees just now is still where it was seen last.
	if len(here.observed) > 0 || len(last.Endpoints) == 0 {
		r.Endpoints, r.NAT = mesh.OwnEndpoints(mesh.EndpointInput{
			Cluster:    cfg.Cluster,
			Configured: mesh.Endpoint{Host: cfg.Node.Endpoint.Host, Port: cfg.Node.Endpoint.Port, Source: mesh.EndpointConfigured},
			Own:        facts.Addresses,
			OnLink:     facts.InternalIPs,
			Observed:   here.observed,
			ListenPort: r.ListenPort,
			Last:       last.Endpoints,
			LastNAT:    last.NAT,
			Voices:     here.voices,
		})
	}
	// Votes come and go; that alone is no reason to tell everybody.
	if sameEndpoints(r.Endpoints, last.Endpoints) {
		r.Endpoints = last.Endpoints
	}
	return r
}

// lookAround collects what the record says of the host.
func (d *daemon) lookAround(facts netcfg.Facts, view mesh.View, now time.Time) surroundings {
	if d.moves.look(facts.Addresses, now) {
		d.gossip.Greet() // so that others say where they see it now
	}
	here := surroundings{Facts: facts, observed: d.moves.since(view.Observed), voices: 1}
	settled := len(d.own.Endpoints) > 0 || d.own.NAT
	if settled && now.Sub(d.started) < firstVoices && slices.Equal(internalIPs(d.cfg, facts), d.own.InternalIPs) {
		here.voices = 2
	}
	return here
}

// firstVoices is how long after the start a single node's word does not change what
// this one said of itself before: whoever speaks first may lie, and the others have
// greeted it by then.
const firstVoices = 30 * time.Second

// moves remembers when the host's addresses changed last. What others said before
// is of another address.
type moves struct {
	addresses []netip.Addr
	last      time.Time // zero for not since the start
}

// look takes in the addresses, and reports whether they have changed.
func (m *moves) look(addresses []netip.Addr, now time.Time) bool {
	changed := m.addresses != nil && !slices.Equal(m.addresses, addresses)
	if changed {
		m.last = now
	}
	m.addresses = append([]netip.Addr{}, addresses...)
	return changed
}

// since returns what was said since then.
func (m *moves) since(all []mesh.Observation) (now []mesh.Observation) {
	for _, o := range all {
		if !o.At.Before(m.last) {
			now = append(now, o)
		}
	}
	return now
}

// sameEndpoints says whether the lists differ in their order at most.
func sameEndpoints(a, b []mesh.Endpoint) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(e mesh.Endpoint) bool { return !slices.Contains(b, e) })
}

// internalIPs are the configured one, or those found out.
func internalIPs(cfg config.Config, facts netcfg.Facts) []netip.Prefix {
	ips := facts.InternalIPs
	if cfg.Node.InternalIP.IsValid() {
		ips = []netip.Prefix{cfg.Node.InternalIP}
	}
	return slices.Clone(ips[:min(len(ips), mesh.MaxInternalIPs)])
}

// deviceMTU is the configured one, or what fits through the uplink.
func deviceMTU(cfg config.Config, facts netcfg.Facts) int {
	if cfg.WireGuard.MTU != 0 {
		return cfg.WireGuard.MTU
	}
	_, v6 := cfg.Cluster.Families()
	return netcfg.MTU(facts.MTU, v6)
}

// keepalive is how often this node speaks to each peer; 0 is never.
func keepalive(cfg config.Config, own mesh.Record) time.Duration {
	switch {
	case cfg.Node.Keepalive != nil:
		return *cfg.Node.Keepalive
	case own.NAT:
		return natKeepalive
	}
	return 0
}

// staticSlot is the slot that the configuration names, or mesh.None.
func staticSlot(cfg config.Config) int {
	for _, p := range cfg.Node.PodCIDR {
		if slot, ok := cfg.Cluster.SlotOf(p); ok {
			return slot
		}
	}
	return mesh.None
}

// publish makes and tells what this node says of itself, if that is news. What
// is told is on disk before: after a crash the node still stands by it.
func (d *daemon) publish(facts netcfg.Facts, view mesh.View, now time.Time) ([]mesh.Problem, error) {
	if view.Forgotten == mesh.Forever {
		return nil, nil // revoked: nobody would listen
	}
	claim, problems := mesh.NextClaim(d.situation(view, now))
	if d.own.Identity == nil {
		d.own = d.firstRecord(view)
	}
	next := nextRecord(d.cfg, d.lookAround(facts, view, now), d.own)
	next.Claim = claim
	d.carriers.term.Stamp(&next)
	// It is told again if it has gone: whoever has revoked this node is revoked.
	told := slices.ContainsFunc(view.Records, func(r mesh.Record) bool { return r.ID() == d.identity.ID() })
	if told && reflect.DeepEqual(next, d.own) && d.own.Sequence >= view.OwnSequence && d.own.Sequence > 0 {
		return problems, nil
	}
	next.Sequence = node.NextSequence(d.node.Sequence, view.OwnSequence, now)
	promised := d.node
	claimed := claim != d.node.Claim
	if claimed && claim.Slot != mesh.None {
		next.Claim.Since = next.Sequence
	}
	if claimed {
		promised.Ready = d.node.Ready && claim.Slot == d.node.Claim.Slot
	}
	promised.Sequence, promised.Claim = next.Sequence, next.Claim
	if err := d.dir.SaveNode(promised); err != nil {
		return problems, err
	}
	if claimed {
		d.claimed = now
		d.log.Info("claim", "slot", claim.Slot, "former", d.node.Claim.Slot)
	}
	d.node = promised
	if err := d.gossip.Publish(next); err != nil {
		return problems, err
	}
	d.own = next
	return problems, nil
}

// firstRecord is the record to start from: what this node said of itself in its
// former life, as far as that says where it was seen and what office it held.
func (d *daemon) firstRecord(view mesh.View) mesh.Record {
	r := mesh.Record{Identity: d.identity.Key.Public().(ed25519.PublicKey), Key: d.identity.WireGuard.PublicKey(), Instance: d.instance}
	for _, old := range view.Records {
		if old.ID() == d.identity.ID() {
			r.Endpoints, r.NAT, r.Office, r.Replaced = old.Endpoints, old.NAT, old.Office, old.Replaced
		}
	}
	return r
}
