// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/node"
)

// Network implements control.Daemon. All but hairpinning is known before somebody asks.
func (d *daemon) Network(ctx context.Context) (control.Network, error) {
	last := d.published.Load()
	if last.turn.wanted.Input.Self == (mesh.ID{}) {
		return control.Network{}, fmt.Errorf("%w: the daemon has only just started", control.ErrRefused)
	}
	n := networkOf(last.status, last.turn)
	n.Hairpin = control.Unknown
	if i := slices.IndexFunc(n.Families, hasSteadyMapping); i >= 0 {
		n.Hairpin = answer(true, d.paths.Hairpin(ctx, n.Families[i].Seen[0]))
	}
	return n, ctx.Err()
}

// hasSteadyMapping reports whether there is one address at which a router might pass packets back.
func hasSteadyMapping(f control.Family) bool {
	return f.Name == familyName(true) && f.NAT == control.NATSamePort
}

func familyName(four bool) string {
	if four {
		return "IPv4"
	}
	return "IPv6"
}

// answer returns what is known of something that was tried or not.
func answer(tried, holds bool) control.Answer {
	switch {
	case holds:
		return control.Yes
	case tried:
		return control.No
	default:
		return control.Unknown
	}
}

// networkOf returns what a status and its turn say of the networks between the nodes.
func networkOf(s control.Status, t turn) control.Network {
	in := t.in
	n := control.Network{
		Node: s.Node.Name, Port: s.Device.ListenPort, MTU: s.Device.MTU,
		PortMappings: slices.Clone(s.Node.PortMappings),
		Families:     []control.Family{}, Narrow: []control.NarrowPath{}, Relays: []control.NearbyRelay{},
	}
	for _, four := range []bool{true, false} {
		if o, ok := in.Outside(four); ok {
			n.Families = append(n.Families, control.Family{
				Name: familyName(four), Seen: slices.Clone(o.Seen), NAT: natOf(o), Reached: answer(o.Tried, o.Reached),
			})
		}
	}
	blocked := slices.ContainsFunc(s.Problems, func(p mesh.Problem) bool { return p.Kind == node.ProblemUDP })
	passes := false
	relays := make(map[mesh.ID]bool)
	for _, p := range in.View.Paths {
		relays[p.Author] = p.IsRelay()
	}
	tunnelMTU := make(map[mesh.ID]int)
	for _, p := range t.wanted.Topology.Peers {
		tunnelMTU[p.ID] = p.MTU
	}
	for _, p := range s.Peers {
		kind := p.Path.Works()
		passes = passes || kind == control.PathDirect || kind == control.PathRelayed
		if p.Path.MTU > 0 && p.Path.MTU < tunnelMTU[p.ID] {
			n.Narrow = append(n.Narrow, control.NarrowPath{Node: p.Name, MTU: p.Path.MTU})
		}
		if !p.Alive {
			continue
		}
		n.Alive++
		if relays[p.ID] {
			rtt := p.RTT
			if kind == control.PathDirect || kind == control.PathLAN {
				rtt = cmp.Or(p.Path.RTT, rtt)
			}
			n.Relays = append(n.Relays, control.NearbyRelay{Name: p.Name, RTT: rtt})
		}
	}
	n.UDP = answer(blocked, passes && !blocked)
	slices.SortFunc(n.Relays, func(a, b control.NearbyRelay) int {
		if (a.RTT == 0) != (b.RTT == 0) {
			return cmp.Compare(b.RTT, a.RTT) // those of which it is not known come last
		}
		return cmp.Or(cmp.Compare(a.RTT, b.RTT), cmp.Compare(a.Name, b.Name))
	})
	return n
}

// natOf names what others see.
func natOf(o node.Outside) control.NAT {
	switch {
	case len(o.Seen) == 0:
		return control.NATUnknown
	case o.Own:
		return control.NATNone
	case len(o.Seen) > 1:
		return control.NATPorts
	case o.Nodes == 1:
		return control.NATOneNode
	default:
		return control.NATSamePort
	}
}
