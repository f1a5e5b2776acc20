// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"time"

	"github.com/meshd/meshd/internal/cni"
	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/node"
	"github.com/meshd/meshd/internal/probe"
	"github.com/meshd/meshd/internal/rotation"
)

// nodeConfig returns the part of the configuration that a node's decisions depend on.
func nodeConfig(c config.Config) node.Config {
	out := node.Config{
		Name:               c.Node.Name,
		Location:           c.Node.Location,
		Cluster:            c.Cluster,
		Slot:               c.StaticSlot(),
		Gateway:            c.Node.Gateway,
		Exit:               c.Node.Exit,
		Relay:              c.Node.Relay,
		PortMapping:        c.Node.PortMapping == config.PortMappingAuto,
		Encrypted:          c.Encrypted(),
		EncryptionRequired: c.Node.Encryption == config.EncryptionRequired,
		Endpoint:           mesh.Endpoint{Host: c.Node.Endpoint.Host, Port: c.Node.Endpoint.Port, Source: mesh.EndpointConfigured},
		InternalIP:         c.Node.InternalIP,
		AllowedLocationIPs: c.Node.AllowedLocationIPs,
		LinkAccess:         c.Node.LinkAccess,
		Keepalive:          c.Node.Keepalive,
		ListenPort:         uint16(c.WireGuard.ListenPort),
		MTU:                c.WireGuard.MTU,
		GossipPort:         c.Gossip.Bind.Port(),
		GossipBind:         c.Gossip.Bind.Addr(),
		GossipAddr:         c.Gossip.Advertise.String(),
		StreamPort:         c.Relay.Listen.Port(),
		Secrets:            rotation.Hashes(c.Secrets),
		Joins:              len(c.Join) > 0,
		Pace:               probe.Pace(c.Probe),
		ForgetAfter:        c.ForgetAfter,
		Interface:          c.WireGuard.Interface,
		Implementation:     netcfg.Implementation(c.WireGuard.Implementation),
	}
	if c.CNI.Enabled {
		out.Bridge = c.CNI.Bridge
	}
	return out
}

// input returns the input of a turn's decisions, as far as it is known without reading the
// host.
func (d *daemon) input(view mesh.View, now time.Time) node.Input {
	return node.Input{
		Now: now, Started: d.self.started, Config: nodeConfig(d.cfg), View: view, Promise: d.promise(),
		Self: node.Identity{
			Public: d.self.Key.Public().(ed25519.PublicKey), WireGuard: d.self.WireGuard, Instance: d.self.instance,
		},
	}
}

// promise returns what this node has told others and saved to disk.
func (d *daemon) promise() node.Promise {
	return node.Promise{Sequence: d.disk.node.Sequence, Claim: d.disk.node.Claim, Ready: d.disk.node.Ready, Duplicate: d.disk.node.Duplicate}
}

// users returns what uses the addresses that this node has claimed, "" for nothing. It is
// not "" if that can't be found out.
func (d *daemon) users(ctx context.Context, c mesh.Cluster) (string, error) {
	claimed := slot(c, d.disk.node.Claim.Slot)
	var users []string
	if !d.cfg.CNI.Enabled && d.disk.node.Ready {
		users = append(users, "cni.enabled is false, and another program gives its pods addresses")
	}
	pods, err := d.services.PodAddresses(claimed.PodCIDRs)
	if err != nil {
		return "it is not known what uses it", err
	}
	if len(pods) > 0 {
		users = append(users, fmt.Sprintf("%d addresses of pods in %s", len(pods), cni.StoreDir))
	}
	others, err := d.kernel.Users(ctx, claimed.Overlay)
	if err != nil {
		return "it is not known what uses it", fmt.Errorf("look for users of the claimed addresses: %w", err)
	}
	users = append(users, others...)
	return mesh.Some(users, shownUsers), nil
}

// shownUsers is how many users of an address are listed.
const shownUsers = 4

// publishRecord publishes this node's record if it has changed. It is on disk before, so that
// the node still stands by it after a crash.
func (d *daemon) publishRecord(a node.Announcement, now time.Time) error {
	if !a.RecordChanged {
		return nil
	}
	next, former := d.disk.node, d.disk.node.Claim.Slot
	next.Sequence, next.Claim, next.Ready = a.Promise.Sequence, a.Promise.Claim, a.Promise.Ready
	if err := d.disk.saveNode(next); err != nil {
		return err
	}
	if a.NewClaim {
		d.memory.ClaimedAt = now
		d.log.Info("claim", "slot", next.Claim.Slot, "former", former)
	}
	if err := d.gossip.Publish(a.Record); err != nil {
		return err
	}
	d.memory.Own = a.Record
	return nil
}
