// SPDX-License-Identifier: Apache-2.0

package mesh

// routes returns how packets get to every other node.
func (d *deriver) routes() []Route {
	routes := make([]Route, len(d.all))
	for i, m := range d.all {
		routes[i] = Route{ID: m.id, Kind: RouteNone}
	}
	kind := RouteTunnel
	if !d.self.isTunnelEnd() {
		kind = RouteLAN
	}
	for _, end := range d.farEnds {
		hops := d.hops(end)
		for _, m := range end.carries {
			if m.viaFamilies&d.self.viaFamilies&d.clusterFamilies == noFamily {
				continue
			}
			p := &routes[m.index]
			p.Kind, p.Hops = kind, hops
			if m == end {
				p.Hops = hops[:len(hops)-1]
			}
		}
	}
	for _, m := range d.self.group.members {
		if m != d.self && !d.tunnelled(d.self, m) && d.link(d.self, m).families != noFamily {
			routes[m.index].Kind = RouteLAN
		}
	}
	return append(routes[:d.self.index], routes[d.self.index+1:]...)
}

// hops are the nodes of a route through a far tunnel end, which is among them. Routes
// share them.
func (d *deriver) hops(end *member) []ID {
	if d.self.isTunnelEnd() {
		return []ID{end.id}
	}
	return []ID{d.self.via.id, end.id}
}
