// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/google/go-cmp/cmp"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/test/lab"
)

// carryOver moves the gateway of a to b, where it gets other addresses, while its daemon
// runs; and back again while it is switched off. Its configuration is changed before it is
// connected: otherwise its neighbors would look for it on the wrong LAN.
func (v *village) carryOver(lone *lab.Node, six *lab.Six, settings []string) {
	v.t.Helper()
	moved := v.gateway(lone, "a")
	configure := func() {
		line := fmt.Sprintf("  internal-ip: %s", moved.Prefix())
		v.configure(moved, append([]string{line}, settings...)...)
	}
	former := []netip.Addr{moved.Address(), moved.Public()}
	v.must(moved.Move(v.ctx, six.B, func() error {
		configure()
		v.must(moved.Reload())
		v.await(settleLimit, "aware of its new location", func(s control.Status) bool { return s.Node.Location == six.B.Name }, moved)
		return nil
	}))
	v.arrived(moved, former)

	former = []netip.Addr{moved.Address(), moved.Public()}
	v.must(moved.Stop())
	v.must(moved.Move(v.ctx, six.A, func() error {
		configure()
		return nil
	}))
	v.start(moved)
	v.arrived(moved, former)
}

// arrived waits until a moved node belongs to its new location, and no host has anything
// left of its former addresses.
func (v *village) arrived(moved *lab.Node, former []netip.Addr) {
	v.t.Helper()
	v.settle(settleLimit, v.nodes...)
	v.full(v.nodes...)
	v.eventually(settleLimit, func() error {
		if err := v.onlyGateways(v.node("c")); err != nil {
			return err
		}
		for _, n := range v.nodes {
			if err := v.neat(n, former); err != nil {
				return err
			}
		}
		return nil
	})
	for _, n := range v.without(moved) {
		// Use a new ping each time: conntrack would treat the pings of earlier steps as
		// the same connection, with its former addresses.
		v.run(n, "ping", "-n", "-q", "-c", "1", "-w", "60", moved.Address().String())
		v.run(moved, "ping", "-n", "-q", "-c", "1", "-w", "60", n.Address().String())
	}
}

// onlyGateways checks that only the gateways of a and b and the lone node have tunnels.
func (v *village) onlyGateways(lone *lab.Node) error {
	v.t.Helper()
	ends := []*lab.Node{v.gateway(lone, "a"), v.gateway(lone, "b"), lone}
	for _, n := range v.nodes {
		var want, got []*lab.Node
		if slices.Contains(ends, n) {
			want = slices.DeleteFunc(slices.Clone(ends), func(o *lab.Node) bool { return o == n })
		}
		for p := range v.peers(n) {
			got = append(got, p)
		}
		if diff := cmp.Diff(names(want), names(got)); diff != "" {
			return fmt.Errorf("tunnels of %s (-want +got):\n%s", n.Name, diff)
		}
	}
	return nil
}

// neat returns an error if a host has leftovers: addresses that no node has any more, vxlan entries of
// nodes that are not on its LAN, or anything that meshd would change. The table of a relay, which is of
// the family netdev, forgets addresses by itself.
func (v *village) neat(n *lab.Node, former []netip.Addr) error {
	v.t.Helper()
	var beside, entered []string
	for _, o := range v.members(n.Location()) {
		if o != n && n.Location() != "" {
			beside = append(beside, o.Address().String())
		}
	}
	for _, command := range []string{
		"ip route show table all", "nft -s list ruleset ip", "nft -s list ruleset ip6", "nft -s list ruleset inet",
		"wg show " + device + " endpoints", "wg show " + device + " allowed-ips", "bridge fdb show",
	} {
		words := strings.Fields(command)
		out := v.run(n, words[0], words[1:]...)
		for _, a := range former {
			if regexp.MustCompile(`\b` + regexp.QuoteMeta(a.String()) + `\b`).MatchString(out) {
				return fmt.Errorf("%s of %s: got %s, want nothing of %s", command, n.Name, out, a)
			}
		}
		if words[0] == "bridge" {
			for _, m := range regexp.MustCompile(` dst (\S+)`).FindAllStringSubmatch(out, -1) {
				entered = append(entered, m[1])
			}
		}
	}
	slices.Sort(beside)
	slices.Sort(entered)
	if diff := cmp.Diff(beside, entered); diff != "" {
		return fmt.Errorf("nodes in vxlan at %s (-want +got):\n%s", n.Name, diff)
	}
	var p control.Plan
	v.must(json.Unmarshal([]byte(v.run(n, binary, "plan", "-o", "json")), &p))
	if len(p.Changes) > 0 {
		return fmt.Errorf("plan of %s: got %q, want nothing to do", n.Name, p.Changes)
	}
	return nil
}
