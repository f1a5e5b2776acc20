// SPDX-License-Identifier: Apache-2.0

package connect

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
)

// apply changes the host to match the configuration.
func (c *client) apply(ctx context.Context) error {
	t := c.tunnel
	t.MTU, t.Addresses = c.config.MTU, c.config.Overlay
	facts, err := c.kernel.Networks(ctx)
	if err != nil {
		return err
	}
	peers, conflicts := withoutAttached(c.tunnelPeers(), facts)
	c.logConflicts(conflicts)
	c.resolve(ctx, peers)
	for _, p := range peers {
		key, err := wgtypes.ParseKey(p.PublicKey)
		if err != nil {
			return fmt.Errorf("public key of %s: %w", p.Name, err)
		}
		t.Peers = append(t.Peers, netcfg.Peer{
			Key: key, Name: p.Name, Endpoint: c.endpoint(p, peers), AllowedIPs: p.AllowedIPs,
			PresharedKey: c.File.PresharedKey, Keepalive: time.Duration(c.config.Keepalive) * time.Second,
		})
	}
	desired := t.State()
	observed, err := c.kernel.Observe(ctx, desired)
	if err != nil {
		return fmt.Errorf("observe host: %w", err)
	}
	if plan := netcfg.Diff(observed, desired, netcfg.Options{Now: c.Now(), Prune: true, CorrectEndpoints: true}); !plan.Empty() {
		if err := c.kernel.Apply(ctx, plan); err != nil {
			return fmt.Errorf("apply plan: %w", err)
		}
	}
	c.noteTraffic(observed)
	c.startHandshakes(ctx)
	resolver, _ := netip.ParseAddr(c.config.Resolver)
	if c.allSilent() || !routedTo(peers, resolver) {
		// The cluster's resolver can't be reached, and names of endpoints must still resolve.
		return c.setResolver(ctx, control.ClientConfig{})
	}
	return c.setResolver(ctx, c.config)
}

// routedTo reports whether an address is in the allowed IPs of one of the peers, other than a
// default route.
func routedTo(peers []control.ClientPeer, a netip.Addr) bool {
	return slices.ContainsFunc(peers, func(p control.ClientPeer) bool {
		return slices.ContainsFunc(p.AllowedIPs, func(n netip.Prefix) bool { return !mesh.IsDefaultRoute(n) && n.Contains(a) })
	})
}

// logConflicts logs the prefixes that overlap this host's own networks, each time that
// they change.
func (c *client) logConflicts(conflicts []string) {
	slices.Sort(conflicts)
	text := strings.Join(slices.Compact(conflicts), ", ")
	if text != c.loggedConflicts && text != "" {
		c.Logger.Warn("prefixes left out because they overlap this host's own networks", "prefixes", text)
	}
	c.loggedConflicts = text
}

// tunnelPeers returns the nodes to set up tunnels to: the peers of the configuration and,
// while all of them are silent, also the standbys.
func (c *client) tunnelPeers() []control.ClientPeer {
	if !c.allSilent() || len(c.config.Standbys) == 0 {
		return c.config.Peers
	}
	peers := slices.Clone(c.config.Standbys)
	for _, p := range c.config.Peers {
		p.AllowedIPs = slices.DeleteFunc(slices.Clone(p.AllowedIPs), func(a netip.Prefix) bool {
			return slices.ContainsFunc(c.config.Standbys, func(s control.ClientPeer) bool { return slices.Contains(s.AllowedIPs, a) })
		})
		peers = append(peers, p)
	}
	return peers
}

// startHandshakes makes WireGuard shake hands with nodes that have no session. Only the
// client can start: nodes don't know its endpoint, so pods could not reach it before.
func (c *client) startHandshakes(ctx context.Context) {
	if c.Now().Sub(c.handshakesAt) < retryEvery {
		return
	}
	c.handshakesAt = c.Now()
	for _, p := range c.config.Peers {
		if c.sessions[p.PublicKey] {
			continue
		}
		if err := c.kernel.InitiateHandshake(ctx, p.Overlay); err != nil {
			c.Logger.Debug("start handshake", "peer", p.Name, "err", err)
		}
	}
}

// noteTraffic notes with which nodes there is a session, and whether something has come from any node
// since it was called last.
func (c *client) noteTraffic(observed netcfg.State) {
	var sum int64
	c.sessions = make(map[string]bool, len(observed.Peers))
	for _, p := range observed.Peers {
		sum += p.Received
		if p.MayHaveSession(c.Now()) {
			c.sessions[p.Key.String()] = true
		}
	}
	if sum != c.received {
		c.received, c.receivedAt = sum, c.Now()
	}
}
