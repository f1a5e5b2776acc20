// SPDX-License-Identifier: Apache-2.0

package node_test

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/node"
)

// checkWanted checks the laws of what a host should have: no endpoint is reached through the
// tunnel that it is for, or through another one, and no prefix is in two places.
func (h *host) checkWanted() {
	d := h.wanted.Desired
	owner := make(map[netip.Prefix]string)
	for _, p := range d.Peers {
		for _, ip := range p.AllowedIPs {
			if o, taken := owner[ip]; taken {
				h.fail("%s: %s is with both %s and %s", h.name, ip, o, p.Name)
			}
			owner[ip] = p.Name
			if p.Endpoint.IsValid() && ip.Contains(p.Endpoint.Addr()) {
				h.fail("%s: the endpoint %s of %s is in its own tunnel, by %s", h.name, p.Endpoint, p.Name, ip)
			}
		}
		for _, r := range d.Routes {
			if p.Endpoint.IsValid() && r.Destination.Contains(p.Endpoint.Addr()) {
				h.fail("%s: the endpoint %s of %s is behind %s", h.name, p.Endpoint, p.Name, r)
			}
		}
	}
	to := make(map[netip.Prefix]netcfg.Route)
	for _, r := range d.Routes {
		if o, taken := to[r.Destination]; taken {
			h.fail("%s: both %s and %s", h.name, o, r)
		}
		to[r.Destination] = r
	}
}

// checkPlan checks the laws of what is done to a host: before gossip has settled nothing is
// taken away, and an allowed IP never leaves its peer for none.
func (h *host) checkPlan(in node.Input, p netcfg.Plan, o netcfg.Options) {
	settled := in.View.Merged || h.now.Sub(h.started) >= time.Minute
	takes := len(p.StaleRoutes)+len(p.StaleAddresses)+len(p.StaleNeighbors)+len(p.StaleForwarding)+len(p.StaleBackstops) > 0 || p.StaleVXLAN != "" || p.StaleDevice != ""
	moving := make(map[netip.Prefix]bool) // allowed IPs that stay
	for _, peer := range h.wanted.Desired.Peers {
		for _, ip := range peer.AllowedIPs {
			moving[ip] = slices.ContainsFunc(h.kernel.Peers, func(k netcfg.Peer) bool { return slices.Contains(k.AllowedIPs, ip) && o.Renew[k.Key].IsZero() })
		}
	}
	for _, c := range p.Peers {
		_, had := h.tunnels[c.Key]
		takes = takes || c.Remove && had && o.Renew[c.Key].IsZero()
	}
	if takes && !settled {
		h.fail("%s takes away what nobody has told of yet:\n%s", h.name, p)
	}
	if p.Device != nil && p.Device.Create {
		return
	}
	h.kernel.Changed = func() {
		for ip, stays := range moving {
			if stays && !slices.ContainsFunc(h.kernel.Peers, func(k netcfg.Peer) bool { return slices.Contains(k.AllowedIPs, ip) }) {
				h.fail("%s: nobody has %s at one moment of\n%s", h.name, ip, p)
			}
		}
	}
}

// whole returns why not all running nodes and their pods reach each other both ways, or nil.
func (s *simulation) whole() error {
	for _, a := range s.hosts {
		if !a.running {
			continue
		}
		if !a.overlay().IsValid() || !a.pod().IsValid() {
			return fmt.Errorf("%s is not ready: claim %v, %v", a.name, a.disk.promise.Claim, a.concluded.Problems)
		}
		for _, b := range s.hosts {
			if a == b || !b.running {
				continue
			}
			for _, ends := range [][2]netip.Addr{{a.overlay(), b.overlay()}, {a.pod(), b.pod()}} {
				if err := a.send(ends[0], ends[1]); err != nil {
					return fmt.Errorf("%s to %s: %w", a.name, b.name, err)
				}
			}
		}
	}
	return nil
}

// alike returns in what the running nodes differ, or nil.
func (s *simulation) alike() error {
	var first *host
	for _, h := range s.hosts {
		if !h.running {
			continue
		}
		if first == nil {
			first = h
		}
		a, b := first.view(), h.view()
		switch {
		case len(h.alive()) != s.live():
			return fmt.Errorf("%s holds %d nodes for alive, %d are", h.name, len(h.alive()), s.live())
		case !reflect.DeepEqual(a.Records, b.Records), !reflect.DeepEqual(a.Verdicts, b.Verdicts):
			return fmt.Errorf("%s and %s know different things", first.name, h.name)
		case !reflect.DeepEqual(h.wanted.Input.Records, b.Records), !reflect.DeepEqual(h.wanted.Input.Verdicts, b.Verdicts):
			return fmt.Errorf("%s has not derived from what it knows", h.name)
		case settingsOf(a.Cluster) != settingsOf(b.Cluster):
			return fmt.Errorf("%s has settings %v, %s has %v", first.name, settingsOf(a.Cluster), h.name, settingsOf(b.Cluster))
		}
	}
	return nil
}

// live counts the running nodes.
func (s *simulation) live() (n int) {
	for _, h := range s.hosts {
		if h.running {
			n++
		}
	}
	return n
}

// checkSlots checks that no two nodes have one slot, and that nobody whose pods may run has
// another one than before.
func (s *simulation) checkSlots(before map[*host]int) {
	owner := make(map[int]*host)
	for _, h := range s.hosts {
		slot := h.disk.promise.Claim.Slot
		if !h.running || !h.disk.promise.Ready {
			continue
		}
		if o, taken := owner[slot]; taken {
			s.fail("both %s and %s have slot %d", o.name, h.name, slot)
		}
		owner[slot] = h
		if was, ok := before[h]; ok && was != slot {
			s.fail("%s had slot %d and has %d now", h.name, was, slot)
		}
		before[h] = slot
	}
}

// checkRestart restarts a daemon while nothing else happens: it writes nothing to the kernel,
// but perhaps the endpoints of peers that it has never met.
func (s *simulation) checkRestart(h *host) {
	sessions := maps.Clone(h.tunnels)
	writes, news := h.writes, s.news
	if h.turn(); h.writes != writes {
		return // a handshake just before had been left to the next turn
	}
	s.note("%s: the daemon restarts while all is calm", h.name)
	h.stop()
	h.startDaemon()
	s.pass(5 * time.Second)
	plan, firsts := h.plan, true
	for _, c := range plan.Peers {
		firsts = firsts && h.tunnels[c.Key].lastHandshake().IsZero() && c.Endpoint.IsValid() && len(c.AllowedIPs) == 0
	}
	plan.Peers = nil
	if h.writes != writes && s.news == news+1 && !(firsts && plan.Empty()) { // nothing is new but the daemon's own record
		s.fail("%s: a restart has changed the kernel:\n%s", h.name, h.plan)
	}
	if s.news == news+1 && !maps.EqualFunc(sessions, h.tunnels, func(a, b *tunnel) bool { return a == b }) {
		s.fail("%s: a restart has ended sessions", h.name)
	}
}
