// SPDX-License-Identifier: Apache-2.0

//go:build kernel

package relaynft

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/meshd/meshd/internal/path"
)

// The kinds of uplinks of which a kernel may have no modules.
const (
	vlan uplink = `
		ip link add card%[1]d type veth peer name card netns next%[1]d
		ip link add link card%[1]d name up%[1]d type vlan id 5
		ip -n next%[1]d link add link card name eth0 type vlan id 5
		ip link set card%[1]d up
		ip -n next%[1]d link set card up`
	bond uplink = `
		ip link add card%[1]d type veth peer name eth0 netns next%[1]d
		ip link add up%[1]d type bond mode active-backup miimon 100
		ip link set card%[1]d master up%[1]d`
	vlanOfBond uplink = `
		ip link add card%[1]d type veth peer name card netns next%[1]d
		ip link add bond%[1]d type bond mode active-backup miimon 100
		ip link set card%[1]d master bond%[1]d
		ip link set bond%[1]d up
		ip link add link bond%[1]d name up%[1]d type vlan id 5
		ip -n next%[1]d link add link card name eth0 type vlan id 5
		ip -n next%[1]d link set card up`
	bridgeOfVLANs uplink = `
		ip link add port%[1]d type veth peer name card netns next%[1]d
		ip link add bridge%[1]d type bridge vlan_filtering 1
		ip link set port%[1]d master bridge%[1]d up
		ip link set bridge%[1]d up
		bridge vlan add dev port%[1]d vid 5
		bridge vlan add dev bridge%[1]d vid 5 self
		ip link add link bridge%[1]d name up%[1]d type vlan id 5
		ip -n next%[1]d link add link card name eth0 type vlan id 5
		ip -n next%[1]d link set card up`
)

// TestKinds has the kernel forward between uplinks of all kinds.
func TestKinds(t *testing.T) {
	if !namespaced(t) {
		return
	}
	forwardsBetween(t, vlan, bond)
}

func TestKindsStacked(t *testing.T) {
	if !namespaced(t) {
		return
	}
	forwardsBetween(t, vlanOfBond, bridgeOfVLANs)
}

func forwardsBetween(t *testing.T, first, second uplink) {
	t.Helper()
	b := newBed(t, first, second)
	b.relay.set(b.bound(long())...)
	b.forward(t, 0)
	b.forwards(t, atPeer)
}

// TestTaggedFrames has an uplink with a VLAN, on both of which packets come in to be forwarded. A tagged
// frame is seen at both, and is the VLAN's.
func TestTaggedFrames(t *testing.T) {
	if !namespaced(t) {
		return
	}
	b := newBed(t, vlan, plain)
	run(t, "ip address add 10.9.9.1/24 dev card1")
	untagged := path.Kept{Node: path.Short{9}, Addr: netip.MustParseAddrPort("10.9.9.2:51820"), Local: netip.MustParseAddr("10.9.9.1"), Until: long()}
	b.relay.set(append(b.bound(long()), untagged)...)
	b.forward(t, 0)
	eventually(t, "both links are used", func() bool { return strings.Count(ownTable(t), "hook ingress") == 3 })
	b.forwards(t, atPeer)
}
