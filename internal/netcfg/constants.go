// SPDX-License-Identifier: Apache-2.0

package netcfg

import (
	"crypto/sha256"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// RouteProtocol marks our routes, so that they can be found again and no other route is
// changed. The kernel gives no meaning to numbers from 4 on. These are in use (iproute2's
// rt_protos, and the sources of the programs): 4 static, also used by systemd-networkd; 8
// to 18 older routing daemons, BIRD (12), DHCP (16) and keepalived (18); 42 babeld; 80
// Calico; 84 OVN; 99 Open/R; 186 to 198 FRR. Cilium, flannel, Kilo and Tailscale use 2 to
// 4. 77 is in none of these lists.
const RouteProtocol = 77

// TunnelRouteProtocol is RouteProtocol for the tunnels of a client: beside them a daemon may run on the
// same host. It is in none of these lists, either.
const TunnelRouteProtocol = 78

// BackstopMetric is the metric of our blackhole routes, see State.Backstops. It is the
// highest number that fits in an int on every platform, so that the kernel prefers any
// other route to the same range.
const BackstopMetric = 1<<31 - 1

// What sends all of a client's packets into the tunnel. The table's number has no other use
// than to be rarely used by others (wg-quick takes 51820 and upwards, Tailscale 52); the mark
// has none of the bits of kube-proxy (0xc000) and Tailscale (0xff0000). The policies come
// after those of other programs and before the main table's (32766).
const (
	InternetTable            = 7948
	TunnelMark               = 7948
	priorityOfOtherRoutes    = 32750
	priorityOfInternetRoutes = 32751
)

// FirewallTable is the name of our nft table, of family inet.
const FirewallTable = "meshd"

// TunnelTable is FirewallTable for a client whose tunnels take all packets of its host.
const TunnelTable = "meshd-connect"

// VXLAN inside a location. The port is neither IANA's 4789, which docker swarm and Calico
// use, nor 8472, which flannel and Cilium use: devices can share a port only if their
// flags agree (vxlan_find_sock), and our firewall closes the whole port to all but
// members. 7947 is next to gossip's port, and below 32768, where Linux starts to allocate
// ports for outgoing connections. No other device uses the port, so any network
// identifier is possible; it is the number of our route protocol.
const (
	VXLANPort = 7947
	VXLANID   = RouteProtocol
)

// The names of the base chains in our table.
const (
	chainAccess      = "access"
	chainExit        = "exit"
	chainForward     = "forward"
	chainGuard       = "guard"
	chainInput       = "input"
	chainMark        = "marked"
	chainMarkOut     = "markedout"
	chainOwnPorts    = "ownports"
	chainOwnPortsOut = "ownportsout"
	chainPostrouting = "postrouting"
)

// Priorities of our chains:
//
//   - 200 (exit) is after all NAT (100): the source address is then the one that the
//     network will see.
//   - 90 (NAT of sources) is before srcnat (100), where kube-proxy's MASQUERADE and most
//     others are. nf_nat runs the NAT chains of a hook in order of priority until one
//     decides for the flow.
//   - 0 is the standard priority of filter chains.
//   - -110 (our own ports) is before dstnat (-100), where other programs' DNAT is.
//   - -150 is the standard priority of mangle, between connection tracking (-200) and
//     DNAT (-100).
//   - -290 (guard) is after raw (-300), so that rules there see all packets, and before
//     connection tracking (-200), so that a forged packet creates no entry.
const (
	priorityExit     = 200
	prioritySNAT     = 90
	priorityFilter   = 0
	priorityOwnPorts = -110
	priorityMangle   = -150
	priorityGuard    = -290
)

// masqueradeMark is the bit that kube-proxy sets on packets whose source it wants to
// replace (--iptables-masquerade-bit, 14 by default).
const masqueradeMark = 0x4000

// maxLinkName is the maximum length of a link name (IFNAMSIZ, without the terminating
// zero).
const maxLinkName = 15

// Sizes in bytes.
const (
	// vxlanOverhead4 and vxlanOverhead6 are what VXLAN adds to a packet: 20 or 40 of IP,
	// 8 of UDP, 8 of its own, 14 of the inner Ethernet header (RFC 7348, section 5).
	vxlanOverhead4 = 50
	vxlanOverhead6 = 70
	// ethernetMTU is the upper limit of the MTU: a path that starts with jumbo frames
	// rarely supports them to its end.
	ethernetMTU = 1500
)

// HandshakeFresh is how long a WireGuard session may be valid after its last handshake:
// REJECT_AFTER_TIME of the WireGuard paper, section 6.1.
const HandshakeFresh = 180 * time.Second

// throwaway returns the public key of a peer that exists only during one change of
// peers. It takes allowed IPs away from other peers: WireGuard can move an allowed IP to
// another peer in one step, and can remove a peer with all its allowed IPs, but it can't
// remove one allowed IP from a peer without replacing the whole list. The key is a hash,
// so nobody has the private key.
func throwaway() wgtypes.Key { return sha256.Sum256([]byte("meshd: throwaway peer")) }
