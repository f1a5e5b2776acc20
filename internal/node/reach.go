// SPDX-License-Identifier: Apache-2.0

package node

import (
	"net/netip"
	"slices"

	"github.com/meshd/meshd/internal/mesh"
)

// enoughOthers is how many others have to speak of a node for this one to say no more of it
// when that is no longer its task. Until then a node that others reach must not seem closed.
const enoughOthers = 2

// Reach returns what this node says of addresses at which it has tried to reach others as a
// stranger. What it has said before stays until there is something new.
func (in Input) Reach() mesh.Reach {
	self := in.Self.ID()
	var said []mesh.Tried
	others := make(map[mesh.ID]int) // that speak of a node
	for _, r := range in.View.Reaches {
		if r.Author == self {
			said = r.Tried
			continue
		}
		subjects := make(map[mesh.ID]bool)
		for _, t := range r.Tried {
			subjects[t.Subject] = true
		}
		for id := range subjects {
			others[id]++
		}
	}
	duty := in.reachDuty()
	var out []mesh.Tried
	for id, addrs := range duty {
		for _, a := range addrs {
			if i := slices.IndexFunc(in.Paths.Tried, func(t mesh.Tried) bool { return t.Subject == id && t.Addr == a }); i >= 0 {
				out = append(out, in.Paths.Tried[i])
			}
		}
	}
	known := func(t mesh.Tried) bool {
		return slices.ContainsFunc(out, func(o mesh.Tried) bool { return o.Subject == t.Subject && o.Addr == t.Addr })
	}
	for _, t := range said {
		_, mine := duty[t.Subject]
		stays := mine || !in.View.Alive[t.Subject] || others[t.Subject] < enoughOthers
		if stays && !known(t) && slices.Contains(in.endpointsToTry(t.Subject), t.Addr) {
			out = append(out, t)
		}
	}
	slices.SortFunc(out, mesh.Tried.Compare)
	return mesh.Reach{Tried: out[:min(len(out), mesh.MaxTried)]}
}

// StrangeAddresses returns an address of each family, where this host has one, from which it tries to
// reach others as a stranger: one at which nobody has heard of it, so that no router takes what comes
// from there for an answer.
func (in Input) StrangeAddresses() []netip.Addr {
	named := in.resolve(in.Config.Endpoint)
	return slices.DeleteFunc(in.Facts.Spare(), func(a netip.Addr) bool {
		return slices.ContainsFunc(named, func(e netip.AddrPort) bool { return e.Addr() == a })
	})
}

// knownAddresses returns the host's addresses at which others may reach it.
func (in Input) knownAddresses() []netip.Addr {
	strange := in.StrangeAddresses()
	return slices.DeleteFunc(slices.Clone(in.Facts.Addresses), func(a netip.Addr) bool { return slices.Contains(strange, a) })
}

// reachDuty returns the nodes that this one is to try to reach, and where.
func (in Input) reachDuty() map[mesh.ID][]netip.AddrPort {
	out := make(map[mesh.ID][]netip.AddrPort)
	for _, id := range mesh.ReachDuty(in.Self.ID(), in.View.Records, in.View.Alive) {
		out[id] = in.endpointsToTry(id)
	}
	return out
}

// triedAt returns how many others say that they have reached this node as strangers at an
// address, and how many that they have not.
func (in Input) triedAt(a netip.AddrPort) (reached, failed int) {
	for _, r := range in.View.Reaches {
		for _, t := range r.Tried {
			switch {
			case t.Subject != in.Self.ID() || t.Addr != a || r.Author == t.Subject:
			case t.Reached:
				reached++
			default:
				failed++
			}
		}
	}
	return reached, failed
}

// endpointsToTry returns where a node's router maps a port to it, else its first endpoint, in each family, and, if that is none on the
// internet, the first candidate there, or where gossip meets it: behind a 1:1 NAT nothing else is
// known of a node without tunnels, whose record then names its private address.
func (in Input) endpointsToTry(id mesh.ID) []netip.AddrPort {
	i := slices.IndexFunc(in.View.Records, func(r mesh.Record) bool { return r.ID() == id })
	if i < 0 {
		return nil
	}
	var all, mapped []netip.AddrPort
	for _, e := range in.View.Records[i].Endpoints {
		all = append(all, in.resolve(e)...)
	}
	for _, p := range in.View.Paths {
		for _, c := range p.Candidates {
			switch {
			case p.Author != id || !mesh.IsPublic(c.Addr.Addr()) || c.Kind == mesh.CandidateLAN:
			case c.Kind == mesh.CandidateMapped: // who has a mapping has no other way in
				mapped = append(mapped, c.Addr)
			default:
				all = append(all, c.Addr)
			}
		}
	}
	all = append(mapped, all...)
	if at, port := in.View.MetAt[id], in.View.Records[i].ListenPort; mesh.IsPublic(at) && port != 0 {
		all = append(all, netip.AddrPortFrom(at, port))
	}
	var out []netip.AddrPort
	for _, a := range all {
		taken := func(o netip.AddrPort) bool {
			return o.Addr().Is4() == a.Addr().Is4() && (mesh.IsPublic(o.Addr()) || !mesh.IsPublic(a.Addr()))
		}
		if in.View.Cluster.Outside(a.Addr()) && !slices.ContainsFunc(out, taken) {
			out = append(out, a)
		}
	}
	return out
}
