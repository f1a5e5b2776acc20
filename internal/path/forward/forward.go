// SPDX-License-Identifier: Apache-2.0

// Package forward works out which packets of a relay the kernel forwards by itself, and how: a table
// of nftables, as a value. Package relaynft reads and writes it.
//
// The kernel forwards WireGuard's data packets of sessions that the relay knows, where both ends
// are reached by links with neighbours. It finds them as they come in, at the ingress hook of a
// link, by the address to which they are sent, the address and port from which they come, and the
// receiver's index in them:
//
//	link ─► chain of the link ─► map of sessions ─► chain of the receiver ─► link of the next hop
//
// The chain of a receiver writes the new addresses and ports, and has the kernel send the packet to
// the next hop. Everything else goes on to the relay in user space, which forwards whatever is not
// in the table: handshakes, probes, fragments, what is longer than the link of the next hop takes.
// So the table may be late or incomplete, but it may not have a session that the relay does not
// have: see Wanted.
//
// Each session ends at the time at which the relay would forget it, also if the daemon is gone.
package forward

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/meshd/meshd/internal/path"
)

// TableName is the name of the table, of the family netdev. All in it is meshd's.
const TableName = "meshd"

// The names of what is in the table beside the chains of links and receivers. Each family has a map and a
// counter of its own, since keys and headers differ in length.
const (
	Sessions4  = "sessions"
	Sessions6  = "sessions6"
	Forwarded4 = "forwarded"
	Forwarded6 = "forwarded6"
	Limited    = "limited" // what was dropped because of the limit
	limitChain = "max_rate"
)

// Prefixes of the names of chains. A chain that has neither is not used any more.
const (
	linkPrefix     = "from_" // and the link's index
	receiverPrefix = "to_"   // and the receiver
)

// Priority is that of the chains at the hook: whoever wants to drop packets before they are forwarded
// uses a lower one, such as nft's own "filter".
const Priority = 10

// MaxSessions bounds the table: the kernel takes 200 bytes for each session.
const MaxSessions = 1 << 17

// Lengths of headers, which counters have and a relay does not count.
const (
	header4 = 20 + 8
	header6 = 40 + 8
)

// Way is from an address of this host to a node.
type Way struct {
	From netip.Addr
	To   netip.AddrPort
}

// Hop is where packets on a way leave this host.
type Hop struct {
	Link int        // its index
	Via  netip.Addr // the neighbour: a router, or the node itself
	MTU  int        // of the route
}

// Link is one of this host's.
type Link struct {
	Index int
	Name  string
	MTU   int
	Up    bool
	// Neighbors is whether packets are sent to link-layer addresses that the kernel resolves, as on
	// Ethernet.
	Neighbors bool
	// Merges is whether the kernel may pass on received datagrams merged, see ethtool's features
	// rx-gro-list and rx-udp-gro-forwarding. Those of several sessions may be in one, whose address
	// can't be written.
	Merges bool
	// Beneath are the links by which its packets come: that of a VLAN, those of a bond or a bridge.
	Beneath []int
}

// Input is what the table follows from.
type Input struct {
	Port  uint16      // the relay's
	Rate  uint64      // bytes a second that the kernel forwards; 0 for no limit
	Bound []path.Kept // the nodes that are bound, and for whom their packets are
	Hops  map[Way]Hop // those to the nodes, from where they reach the relay
	Links []Link
	// Addresses are this host's, with the index of the link that has each.
	Addresses map[netip.Addr]int
}

// Table is what the kernel has, or is to have.
type Table struct {
	Chains   []Chain   // by name
	Sessions []Session // by Compare
}

// Chain is a chain of rules.
type Chain struct {
	Name  string
	Link  string // the name of the link at whose ingress hook it is, "" for none
	Rules []Rule
}

// Rule is in nft's language, see nft(8). The kernel does not keep the text, so the hash is compared.
type Rule struct{ Text, Hash string }

// Session says for whom packets are.
type Session struct {
	Local netip.Addr     // the address of this host to which they are sent
	From  netip.AddrPort // who sends them
	Index uint32         // the receiver's, as the packets have it
	Chain string         // of the receiver
	Until time.Time
}

// Compare orders sessions by their keys.
func (s Session) Compare(o Session) int {
	return cmp.Or(s.Local.Compare(o.Local), s.From.Compare(o.From), cmp.Compare(s.Index, o.Index))
}

// Is4 reports whether the session is in the map of IPv4.
func (s Session) Is4() bool { return s.Local.Is4() }

// receiver is a node to which the kernel forwards.
type receiver struct {
	path.Kept
	chain string
}

// Wanted returns the table that follows from what the relay knows: a packet that it forwards is one
// that the relay would forward, to the same address, for as long as the session is in it.
func Wanted(in Input) Table {
	usable := usableLinks(in.Links)
	receivers := make(map[path.Short]receiver, len(in.Bound))
	var t Table
	for _, b := range in.Bound {
		hop, reached := in.Hops[WayTo(b)]
		link, ok := usable[hop.Link]
		if !CanForward(b) || !reached || !ok || hop.Via.Is4() != b.Local.Is4() {
			continue
		}
		r := receiver{b, receiverChain(b.Node)}
		receivers[b.Node] = r
		t.Chains = append(t.Chains, Chain{Name: r.chain, Rules: receiverRules(in, b, hop, link)})
	}
	hooked := make(map[int]bool)
	for _, b := range in.Bound {
		if !CanForward(b) {
			continue
		}
		if count := len(t.Sessions); count < MaxSessions {
			t.Sessions = appendSessions(t.Sessions, b, receivers)
		}
		hooked[in.Addresses[b.Local]] = true
		hooked[in.Hops[WayTo(b)].Link] = true
	}
	for index := range hooked {
		if l, ok := usable[index]; ok {
			t.Chains = append(t.Chains, Chain{Name: fmt.Sprint(linkPrefix, index), Link: l.Name, Rules: linkRules(in.Port)})
		}
	}
	if in.Rate > 0 {
		t.Chains = append(t.Chains, Chain{Name: limitChain, Rules: rules(fmt.Sprintf(
			"limit rate over %d bytes/second burst %d bytes counter name %s drop", in.Rate, Burst(in.Rate), Limited))})
	}
	slices.SortFunc(t.Chains, func(a, b Chain) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(t.Sessions, Session.Compare)
	t.Sessions = t.Sessions[:min(len(t.Sessions), MaxSessions)]
	return t
}

// appendSessions appends those with which a node sends to nodes of the same family.
func appendSessions(all []Session, from path.Kept, receivers map[path.Short]receiver) []Session {
	for _, row := range from.Rows {
		to, ok := receivers[row.To]
		if !ok || to.Local.Is4() != from.Local.Is4() {
			continue
		}
		until := row.Until
		for _, t := range []time.Time{from.Until, to.Until} {
			if t.Before(until) {
				until = t
			}
		}
		all = append(all, Session{Local: from.Local, From: from.Addr, Index: row.Index, Chain: to.chain, Until: until})
	}
	return all
}

// WayTo returns the way to a node from where it reaches this host, which is the one that NATs in
// between let in.
func WayTo(b path.Kept) Way { return Way{b.Local, b.Addr} }

// CanForward reports whether the kernel may forward from and to a node, by its address: not if it
// has come by a stream, and not before it is known at which address of this host it arrives.
func CanForward(b path.Kept) bool {
	_, isStream := path.StreamNode(b.Addr)
	local, addr := b.Local, b.Addr.Addr()
	return !isStream && local.IsValid() && !local.IsUnspecified() && !local.IsLoopback() && local.Is4() == addr.Is4() &&
		!local.Is4In6() && local.Zone() == "" && addr.IsGlobalUnicast() && !addr.Is4In6() && addr.Zone() == ""
}

// usableLinks returns by index those at which packets are taken in, and by which they leave.
func usableLinks(links []Link) map[int]Link {
	byIndex := make(map[int]Link, len(links))
	for _, l := range links {
		byIndex[l.Index] = l
	}
	usable := make(map[int]Link)
	for _, l := range links {
		if l.Up && l.Neighbors && !merges(l, byIndex, len(links)) {
			usable[l.Index] = l
		}
	}
	return usable
}

// merges reports whether packets may come merged by a link. Links are stacked not deeper than there
// are links.
func merges(l Link, byIndex map[int]Link, depth int) bool {
	if l.Merges || depth == 0 {
		return l.Merges
	}
	return slices.ContainsFunc(l.Beneath, func(index int) bool {
		below, ok := byIndex[index]
		return ok && merges(below, byIndex, depth-1)
	})
}

// receiverChain returns the name of a receiver's chain.
func receiverChain(node path.Short) string { return receiverPrefix + hex.EncodeToString(node[:]) }

// ReceiverOf returns whose chain has a name.
func ReceiverOf(chain string) (node path.Short, ok bool) {
	name, ok := strings.CutPrefix(chain, receiverPrefix)
	b, err := hex.DecodeString(name)
	if !ok || err != nil || len(b) != len(node) {
		return path.Short{}, false
	}
	return path.Short(b), true
}

// linkRules find WireGuard's data packets to a relay's port in whole datagrams, and their session. They are
// addressed to this host by link layer, untagged ("ether type" is that of a VLAN otherwise), and have
// a hop left. A datagram of IPv4 without a checksum stays as it is only in user space: nftables would
// write one that is wrong.
func linkRules(port uint16) []Rule {
	const data = "@th,64,32 0x04000000" // type 4 and three zero bytes
	return rules(
		fmt.Sprintf("meta pkttype host ether type ip ip protocol udp udp dport %d %s ip frag-off & 0x3fff == 0 ip ttl > 1 udp checksum != 0 ip daddr . ip saddr . udp sport . @th,96,32 vmap @%s", port, data, Sessions4),
		fmt.Sprintf("meta pkttype host ether type ip6 ip6 nexthdr udp udp dport %d %s ip6 hoplimit > 1 ip6 daddr . ip6 saddr . udp sport . @th,96,32 vmap @%s", port, data, Sessions6),
	)
}

// receiverRules have the kernel send packets to a node.
func receiverRules(in Input, to path.Kept, hop Hop, link Link) []Rule {
	mtu := link.MTU
	if hop.MTU > 0 {
		mtu = min(mtu, hop.MTU)
	}
	ip, fwd, counter, length := "ip", "ip", Forwarded4, fmt.Sprintf("ip length > %d", mtu)
	if !to.Local.Is4() {
		ip, fwd, counter, length = "ip6", "ip6", Forwarded6, fmt.Sprintf("ip6 length > %d", max(mtu-40, 0))
	}
	texts := []string{length + " accept"} // and on to user space
	if in.Rate > 0 {
		texts = append(texts, "jump "+limitChain)
	}
	texts = append(texts, fmt.Sprintf("%s daddr set %s udp dport set %d %s saddr set %s udp sport set %d counter name %s fwd %s to %s device %q",
		ip, to.Addr.Addr(), to.Addr.Port(), ip, to.Local, in.Port, counter, fwd, hop.Via, link.Name))
	return rules(texts...)
}

// rules returns rules with these texts.
func rules(texts ...string) []Rule {
	out := make([]Rule, len(texts))
	for i, text := range texts {
		sum := sha256.Sum256([]byte(text))
		out[i] = Rule{text, hex.EncodeToString(sum[:6])}
	}
	return out
}
