// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// wgDevice is the name of meshd's WireGuard device.
const wgDevice = "meshd0"

// Tunnels returns the nodes to which a node has tunnels, with their allowed IPs, as its
// WireGuard device has them.
func Tunnels(ctx context.Context, from *Node, nodes []*Node) (map[*Node][]netip.Prefix, error) {
	keys := map[string]*Node{}
	for _, n := range nodes {
		key, err := n.Run(ctx, "wg", "show", wgDevice, "public-key")
		if err != nil {
			return nil, err
		}
		keys[strings.TrimSpace(key)] = n
	}
	out, err := from.Run(ctx, "wg", "show", wgDevice, "allowed-ips")
	if err != nil {
		return nil, err
	}
	tunnels := map[*Node][]netip.Prefix{}
	for line := range strings.Lines(out) {
		words := strings.Fields(line)
		to := keys[words[0]]
		if to == nil {
			return nil, fmt.Errorf("%s: peer %s is none of the nodes", from.Name, words[0])
		}
		tunnels[to] = nil
		for _, word := range words[1:] {
			p, err := netip.ParsePrefix(word)
			if err != nil {
				continue // (none)
			}
			tunnels[to] = append(tunnels[to], p)
		}
		slices.SortFunc(tunnels[to], netip.Prefix.Compare)
	}
	return tunnels, nil
}

// Carrier returns the node at the end of the tunnel through which another node reaches an
// address, or nil if it has no tunnel for it.
func Carrier(ctx context.Context, from *Node, nodes []*Node, to netip.Addr) (*Node, error) {
	tunnels, err := Tunnels(ctx, from, nodes)
	for n, prefixes := range tunnels {
		if slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(to) }) {
			return n, nil
		}
	}
	return nil, err
}

// Gateway returns the node through which an observer elsewhere reaches all nodes of a
// location, given their overlay addresses. It fails if that is not a single node.
func Gateway(ctx context.Context, observer *Node, nodes []*Node, location []netip.Addr) (*Node, error) {
	var gateway *Node
	for _, a := range location {
		n, err := Carrier(ctx, observer, nodes, a)
		switch {
		case err != nil:
			return nil, err
		case n == nil:
			return nil, fmt.Errorf("%s has no tunnel for %s", observer.Name, a)
		case gateway != nil && n != gateway:
			return nil, fmt.Errorf("%s has tunnels for %v to %s and to %s", observer.Name, location, n.Name, gateway.Name)
		}
		gateway = n
	}
	return gateway, nil
}
