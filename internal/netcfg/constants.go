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

// FirewallTable is the name of our nft table, of family inet.
const FirewallTable = "meshd"

// The names of the base chains in our table.
const (
	chainForward     = "forward"
	chainGuard       = "guard"
	chainPostrouting = "postrouting"
)

// Priorities of our chains. nf_nat runs the nat chains of a hook in order of
// priority until one has decided about the flow, so 90 is before kube-proxy's
// MASQUERADE and everybody else's at 100 (srcnat). -150 is where mangle sits.
// -290 is after raw (-300), whose rules thus see all packets, and before
// connection tracking (-200): a forged packet leaves no entry behind.
const (
	prioritySNAT   = 90
	priorityMangle = -150
	priorityGuard  = -290
)

// masqueradeMark is the bit that kube-proxy sets on packets whose source it
// wants replaced (--iptables-masquerade-bit, 14 by default).
const masqueradeMark = 0x4000

// Sizes in bytes.
const (
	// overhead is what WireGuard adds to a packet at most: 40 of IPv6, 8 of
	// UDP, 32 of its own.
	overhead = 80
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

// Throwaway is the public key of a peer that exists for one message only. It
// takes away what another peer is to lose: WireGuard can move an allowed IP in
// one step, and can remove a peer with all it has, but can only replace a peer's
// allowed IPs by emptying them first. The key is a hash, so nobody has the
// private key to it.
var Throwaway = wgtypes.Key(sha256.Sum256([]byte("meshd: throwaway peer")))
