// SPDX-License-Identifier: Apache-2.0

package host

import (
	"net"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/meshd/meshd/internal/netcfg"
)

// rawLink is a link of this host, as far as its role follows from it.
type rawLink struct {
	index  int
	name   string
	mtu    int
	kind   string // of rtnetlink (IFLA_INFO_KIND); "" for what a driver made: cards, and the loopback device
	lower  int    // index of the link below, or of a veth's other end; 0 for none or if it is elsewhere
	master int    // index of the bridge, bond or VRF of which it is a port; 0 for none
	flags  net.Flags
}

func toRawLink(l netlink.Link) rawLink {
	a := l.Attrs()
	out := rawLink{index: a.Index, name: a.Name, mtu: a.MTU, kind: l.Type(), lower: a.ParentIndex, master: a.MasterIndex, flags: a.Flags}
	if out.kind == "device" { // what the library says of a link without a kind
		out.kind = ""
	}
	if a.NetNsID >= 0 { // the index is one of another namespace
		out.lower = 0
	}
	return out
}

// linkRole is what a link is to this host.
type linkRole int

const (
	roleOther      linkRole = iota // a tunnel, the loopback device, a link for addresses alone
	roleOwn                        // of meshd
	roleLAN                        // a card, or what a card is part of
	roleContainers                 // leads to containers or virtual machines of this host
)

// links are a host's links with their roles.
type links struct {
	all    []rawLink
	device string // the WireGuard device
	bridge string // of the pods
	cards  bool   // there is a link with hardware of its own
}

func newLinks(all []rawLink, device, bridge string) links {
	l := links{all: all, device: device, bridge: bridge}
	l.cards = slices.ContainsFunc(all, isCard)
	return l
}

// find returns the link with an index.
func (ls links) find(index int) (rawLink, bool) {
	i := slices.IndexFunc(ls.all, func(l rawLink) bool { return l.index == index })
	if i < 0 {
		return rawLink{}, false
	}
	return ls.all[i], true
}

// isCard reports whether a driver made the link. A modem is a point-to-point link: it leads
// to a provider and to no network of this host.
func isCard(l rawLink) bool {
	return l.kind == "" && l.flags&(net.FlagLoopback|net.FlagPointToPoint) == 0 && !leadsToMachines(l)
}

// leadsToMachines reports whether a link is one that VirtualBox or VMware makes for virtual
// machines of this host. These have no kind, as cards have none.
func leadsToMachines(l rawLink) bool {
	return strings.HasPrefix(l.name, "vboxnet") || strings.HasPrefix(l.name, "vmnet")
}

// overLower are the kinds of links that are a part of the link below. Tunnels are not among
// them: they name the link by which their outer packets leave.
var overLower = []string{"dsa", "ipoib", "ipvlan", "ipvtap", "macsec", "macvlan", "macvtap", "vlan"}

// overPorts are the kinds of links that are a LAN if one of their ports is one. A VRF is not
// among them: it has ports, but they keep their addresses.
var overPorts = []string{"batadv", "bond", "bridge", "openvswitch", "team"}

// containerPrefixes begin the names that container runtimes and pod networks give to links.
// Bridges need no name: without a card among their ports they lead to nothing else.
var containerPrefixes = []string{"cali", "cilium", "eni", "flannel", "kube-", "lxc", "vb-", "ve-", "veth"}

// holdsServices reports whether a link has addresses of Services: kube-proxy, kube-router and
// the local DNS cache of Kubernetes keep them on links of their own.
func holdsServices(l rawLink) bool {
	return strings.HasPrefix(l.name, "kube-") || l.name == "nodelocaldns"
}

// role returns what a link is to this host.
func (ls links) role(l rawLink) linkRole {
	switch {
	case l.name == ls.device, l.name == netcfg.VXLANName(ls.device), l.name == ls.bridge:
		return roleOwn
	case ls.isLAN(l, nil):
		return roleLAN
	case l.kind == "bridge", l.kind == "openvswitch", l.kind == "veth", l.kind == "netkit", namedForContainers(l), leadsToMachines(l):
		return roleContainers
	}
	return roleOther
}

func namedForContainers(l rawLink) bool {
	return holdsServices(l) || slices.ContainsFunc(containerPrefixes, func(prefix string) bool { return strings.HasPrefix(l.name, prefix) })
}

// isLAN reports whether a link is a card, or part of what a card is part of: a VLAN on it, a
// bridge or bond above it, a veth that is plugged into such a bridge. It ignores the links in
// seen, on which it was asked already.
//
// A container, and a network namespace for tests, has no card. There the ends of veths that
// lead elsewhere take that place, but not those that lead to containers inside the container:
// runtimes give these names of their own.
func (ls links) isLAN(l rawLink, seen []int) bool {
	if slices.Contains(seen, l.index) || l.flags&net.FlagPointToPoint != 0 || l.name == ls.bridge {
		return false
	}
	seen = append(seen, l.index)
	lower, here := ls.find(l.lower)
	switch {
	case isCard(l):
		return true
	case slices.Contains(overLower, l.kind):
		return !here || ls.isLAN(lower, seen)
	case slices.Contains(overPorts, l.kind):
		return slices.ContainsFunc(ls.all, func(port rawLink) bool { return ls.isPort(port, l) && ls.isLAN(port, seen) })
	case l.kind == "veth" && here:
		master, plugged := ls.find(lower.master)
		return plugged && ls.isLAN(master, append(seen, lower.index))
	case l.kind == "veth" || l.kind == "netkit":
		return !ls.cards && !namedForContainers(l)
	}
	return false
}

// isPort reports whether a link is a port of another one. Those of Open vSwitch have its
// datapath as their master, which has no addresses; its links for addresses have none.
func (ls links) isPort(port, l rawLink) bool {
	if l.kind == "openvswitch" && port.index != l.index {
		master, ok := ls.find(port.master)
		return ok && master.kind == "openvswitch"
	}
	return port.master == l.index
}

// describe returns what a link is, for a person who asks why its address is not the internal
// IP.
func (ls links) describe(l rawLink) string {
	switch {
	case l.flags&net.FlagLoopback != 0:
		return "the loopback device"
	case l.kind == "bridge" || l.kind == "openvswitch":
		return "a bridge without a network card"
	case leadsToMachines(l):
		return "a link to virtual machines"
	case ls.role(l) == roleContainers:
		return "a link to containers"
	case l.flags&net.FlagPointToPoint != 0 || slices.Contains(tunnels, l.kind):
		return "a tunnel"
	case l.kind == "":
		return "no network card"
	}
	return "a link of kind " + l.kind
}

// tunnels are kinds of links that are tunnels without being point-to-point links.
var tunnels = []string{"geneve", "gretap", "ip6gretap", "tuntap", "vxlan", "wireguard"}
