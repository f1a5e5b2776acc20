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
		for _, text := range spec.AllowedIPs {
			if network, err := netip.ParsePrefix(text); err == nil && !network.IsSingleIP() {
				c.note(name, "%s behind it has no counterpart: nodes reach a client's own address alone", network)
			}
		}
		if spec.Endpoint != nil {
			c.note(name, "its endpoint has no counterpart: clients speak to the nodes first")
		}
		psk := ""
		if spec.PresharedKey != "" {
			psk = " --psk"
			c.note(name, "its preshared key is replaced by a new one")
		}
		fmt.Fprintf(&b, "meshd client add %s --public-key %s%s --access %s --out %s.conf\n", name, key, psk, access, name)
	}
	return b.String()
}
