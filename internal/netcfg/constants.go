// SPDX-License-Identifier: Apache-2.0

package netcfg

import (
	"crypto/sha256"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// RouteProtocol marks our routes, so that they are found again and nobody
// else's is touched. The kernel gives numbers from 4 on no meaning. Taken are
// (iproute2's rt_protos, and the programs' sources): 4 static, also used by
// systemd-networkd; 8 to 18 routing daemons of old, BIRD (12), DHCP (16) and
// keepalived (18); 42 babeld; 80 Calico; 84 OVN; 99 Open/R; 186 to 198 FRR.
// Cilium, flannel, Kilo and Tailscale use 2 to 4. 77 is in none of these lists.
const RouteProtocol = 77

// BackstopMetric is the metric of our blackhole routes, see State.Backstops. It is
// the highest that fits an int everywhere, so that any other route to the same
// range comes before it.
const BackstopMetric = 1<<31 - 1

// FirewallTable is the name of our nft table, of family inet.
const FirewallTable = "meshd"

// VXLAN inside a location. The port is neither IANA's 4789, which docker swarm
// and Calico use, nor 8472 of flannel and Cilium: devices share a port only if
// their flags agree (vxlan_find_sock), and our firewall closes the whole port to
// all but members. 7947 is next to gossip's port, and below 32768, where Linux
// begins to take ports for connections. Alone on its port, the device may have
// any network identifier; this one is that of our routes.
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
	chainOwnPorts    = "ownports"
	chainOwnPortsOut = "ownportsout"
	chainPostrouting = "postrouting"
)

// Priorities of our chains. nf_nat runs the nat chains of a hook in order of
// priority until one has decided about the flow, so 90 is before kube-proxy's
// MASQUERADE and everybody else's at 100 (srcnat), and -110 before everybody's DNAT
// at -100 (dstnat). -150 is where mangle sits, between
// connection tracking and DNAT (-100).
// -290 is after raw (-300), whose rules thus see all packets, and before
// connection tracking (-200): a forged packet leaves no entry behind. 0 is where
// filters sit. 200 is after all NAT (100): a source address there is the one that
// the network will see.
const (
	priorityExit     = 200
	prioritySNAT     = 90
	priorityFilter   = 0
	priorityOwnPorts = -110
	priorityMangle   = -150
	priorityGuard    = -290
)

// masqueradeMark is the bit that kube-proxy sets on packets whose source it
// wants replaced (--iptables-masquerade-bit, 14 by default).
const masqueradeMark = 0x4000

// maxLinkName is how long the name of a link may be (IFNAMSIZ, less the zero).
const maxLinkName = 15

// Sizes in bytes.
const (
	// overhead is what WireGuard adds to a packet at most: 40 of IPv6, 8 of
	// UDP, 32 of its own.
	overhead = 80
	// vxlanOverhead4 and 6 are what VXLAN adds to a packet: 20 or 40 of IP, 8 of
	// UDP, 8 of its own, 14 of the inner Ethernet header (RFC 7348, section 5).
	vxlanOverhead4 = 50
	vxlanOverhead6 = 70
	// ethernetMTU bounds the MTU, because a path that begins with jumbo
	// frames rarely ends so.
	ethernetMTU = 1500
	// minIPv6MTU is the smallest MTU on which Linux runs IPv6 (RFC 8200,
	// section 5).
	minIPv6MTU = 1280
)

// HandshakeFresh is how long after its last handshake a WireGuard session may
// be alive: REJECT_AFTER_TIME of the WireGuard paper, section 6.1.
const HandshakeFresh = 180 * time.Second

// throwaway returns the public key of a peer that exists for one message only. It
// takes away what another peer is to lose: WireGuard can move an allowed IP in
// one step, and can remove a peer with all it has, but can only replace a peer's
// allowed IPs by emptying them first. The key is a hash, so nobody has the
// private key to it.
func throwaway() wgtypes.Key { return sha256.Sum256([]byte("meshd: throwaway peer")) }
