// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"crypto/ed25519"
	"reflect"
	"slices"
	"time"

	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/node"
)

// nodeConfig returns what a node's decisions depend on of the configuration.
func nodeConfig(c config.Config) node.Config {
	out := node.Config{
		Name:               c.Node.Name,
		Location:           c.Node.Location,
		Cluster:            c.Cluster,
		Slot:               mesh.None,
		Gateway:            c.Node.Gateway,
		Encrypted:          c.Encrypted(),
		Endpoint:           mesh.Endpoint{Host: c.Node.Endpoint.Host, Port: c.Node.Endpoint.Port, Source: mesh.EndpointConfigured},
		InternalIP:         c.Node.InternalIP,
		AllowedLocationIPs: c.Node.AllowedLocationIPs,
		Keepalive:          c.Node.Keepalive,
		ListenPort:         uint16(c.WireGuard.ListenPort),
		MTU:                c.WireGuard.MTU,
		GossipPort:         c.Gossip.Bind.Port(),
		GossipAddr:         c.Gossip.Advertise.String(),
	}
	for _, p := range c.Node.PodCIDR {
		if slot, ok := c.Cluster.SlotOf(p); ok {
			out.Slot = slot
			break
		}
	}
	return out
}

// lookAround collects what the record says of the host.
func (d *daemon) lookAround(facts netcfg.Facts, view mesh.View, now time.Time) node.Surroundings {
	if d.moves.Look(facts.Addresses, now) {
		d.gossip.Greet() // so that others say where they see it now
	}
	return node.Surroundings{
		Facts: facts, Observed: d.moves.Since(view.Observed),
		Voices: nodeConfig(d.cfg).Voices(d.own, facts, now.Sub(d.started)),
	}
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
	next := node.NextRecord(nodeConfig(d.cfg), d.lookAround(facts, view, now), d.own)
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
