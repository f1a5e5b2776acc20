// SPDX-License-Identifier: Apache-2.0

package kilo

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/mesh"
)

// networksBehind returns the networks behind a peer that meshd can route to it.
func (c *conversion) networksBehind(p peer) []string {
	var out []string
	for _, text := range p.Spec.AllowedIPs {
		network, err := netip.ParsePrefix(text)
		if err != nil || network.IsSingleIP() {
			continue
		}
		if err := mesh.CheckNetwork(network.Masked()); err != nil {
			c.note(p.Metadata.Name, "%s behind it is left out: %v", network, err)
			continue
		}
		out = append(out, network.Masked().String())
	}
	return out
}

// clients returns a shell script that adds all peers. They may reach what they reached before: the
// cluster, and the given networks behind nodes, or the internet.
func (c *conversion) clients(networks []string) string {
	if len(c.peers) == 0 {
		return ""
	}
	slices.Sort(networks)
	access := strings.Join(slices.Concat([]string{"pods", "services", "nodes"}, slices.Compact(networks)), ",")
	var b strings.Builder
	b.WriteString("#!/bin/sh\n# Kilo's peers as clients of meshd. Run it on one node, once all are up.\n" +
		"# Each NAME.conf goes to that machine, which puts its own private key in.\nset -e\n")
	slices.SortFunc(c.peers, func(a, b peer) int { return cmp.Compare(a.Metadata.Name, b.Metadata.Name) })
	for _, p := range c.peers {
		name, spec := p.Metadata.Name, p.Spec
		if err := mesh.CheckName(name); err != nil {
			c.note("a peer", "%v: the script has no client for it", err)
			continue
		}
		key, err := wgtypes.ParseKey(spec.PublicKey)
		if err != nil {
			c.note(name, "its public key is %q, which is none: Kilo ignores it, and so does the script", spec.PublicKey)
			continue
		}
		var flags strings.Builder
		if spec.PresharedKey != "" {
			flags.WriteString(" --psk")
			c.note(name, "its preshared key is replaced by a new one")
		}
		if behind := c.networksBehind(p); len(behind) > 0 {
			flags.WriteString(" --networks " + strings.Join(behind, ","))
			if at := spec.Endpoint.String(); at != "" {
				flags.WriteString(" --endpoint " + at)
			}
		} else if spec.Endpoint != nil {
			c.note(name, "its endpoint has no counterpart: a client without networks behind it speaks to the nodes first")
		}
		fmt.Fprintf(&b, "meshd client add %s --public-key %s%s --access %s --out %s.conf\n", name, key, flags.String(), access, name)
	}
	return b.String()
}
