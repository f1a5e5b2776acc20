// SPDX-License-Identifier: Apache-2.0

package mesh

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// Limits of a path record's lists. Every other node refuses a record that exceeds one.
const (
	MaxPathCandidates = 12
	MaxPathRelays     = 2
)

// PathRecord is what a node says about how its WireGuard socket may be reached. It changes
// more often than the node's Record, and Derive does not read it: which tunnels there are
// does not depend on where packets travel. So it is signed and distributed on its own, and
// is not kept on disk.
type PathRecord struct {
	Author     ID
	Sequence   uint64          // the highest one counts
	Key        [32]byte        // X25519 public key, with which probes to the node are sealed
	Candidates []PathCandidate // best first; at most MaxPathCandidates
	Relays     []ID            // nodes that forward to it whatever happens; at most MaxPathRelays
	// Relay is RelayAuto or RelayPrefer if the node forwards others' packets, at its gossip
	// port; "" if it does not.
	Relay RelayPreference
}

// RelayPreference says whether a node wants to forward sealed packets between nodes that do not
// reach each other.
type RelayPreference string

// The values, as they are written in the configuration.
const (
	RelayAuto   RelayPreference = "auto"
	RelayPrefer RelayPreference = "prefer"
	RelayNever  RelayPreference = "never"
)

// IsRelay reports whether the node forwards others' packets, as it says.
func (p PathRecord) IsRelay() bool { return p.Relay == RelayAuto || p.Relay == RelayPrefer }

// IsOpen reports whether strangers reach the node somewhere on the internet, as it says.
func (p PathRecord) IsOpen() bool {
	return slices.ContainsFunc(p.Candidates, func(c PathCandidate) bool { return c.Open && c.Kind != CandidateLAN })
}

// Weight is the weight of a node in a rendezvous between others, in any order: they choose the
// nodes with the highest weights, and so come to the same ones without asking.
func Weight(node ID, others ...ID) uint64 {
	var sum uint64
	for _, o := range others {
		sum ^= low64(o)
	}
	return mix(sum + low64(node))
}

// PathCandidate is an address at which a node's WireGuard socket may be reached.
type PathCandidate struct {
	Addr netip.AddrPort
	Kind CandidateKind
	Open bool // nodes reach it that it has never spoken to, as far as it has found out
}

// CandidateKind says where a candidate comes from. A kind that this version does not know
// is allowed: its address is tried like any other one.
type CandidateKind string

// Kinds of candidates.
const (
	CandidateConfigured CandidateKind = "configured" // written in the configuration
	CandidatePublic     CandidateKind = "public"     // a public address of one of the node's own links
	CandidateLAN        CandidateKind = "lan"        // an address on its private network
	CandidateMapped     CandidateKind = "mapped"     // where its router has mapped a port to it
	CandidateSeen       CandidateKind = "seen"       // where other nodes see its packets come from
	CandidateStream     CandidateKind = "stream"     // where it accepts TCP streams that carry datagrams, besides gossip's port
)

// IsTLSPort reports whether nodes speak TLS to a TCP port, and nothing else: HTTPS's, and the
// one that stands for it where that is taken. A host that joins knows nothing but the port.
func IsTLSPort(port uint16) bool { return port == 443 || port == 8443 }

// maxCandidateKind is longer than any kind.
const maxCandidateKind = 16

// specialNetworks are in use where no other host can reach them: between a router and its
// carrier (RFC 6333), in test networks and for addresses that proxies invent (RFC 2544),
// reserved for the future (RFC 1112), and in overlays such as Yggdrasil.
func specialNetworks() [4]netip.Prefix {
	return [...]netip.Prefix{prefix4(192, 0, 0, 0, 29), prefix4(198, 18, 0, 0, 15), prefix4(240, 0, 0, 0, 4), prefix6(0x0200, 0, 7)}
}

// IsSpecial reports whether an address is in a network that no other host can reach,
// although it is not a private one.
func IsSpecial(a netip.Addr) bool {
	special := specialNetworks()
	return contains(special[:], a.Unmap())
}

// Check returns why other nodes would refuse a candidate. It does not know the cluster's
// ranges, see [Cluster.Outside].
func (c PathCandidate) Check() error {
	a := c.Addr.Addr()
	if err := CheckHost(a); err != nil {
		return fmt.Errorf("address %q: %w", a, err) // quoted, for its zone is any text
	}
	switch {
	case a.Is4In6():
		return fmt.Errorf("address %v: it is IPv4 written as IPv6", a)
	case c.Addr.Port() == 0:
		return errors.New("port 0")
	case !ValidText(string(c.Kind), maxCandidateKind):
		return fmt.Errorf("kind %q", c.Kind)
	case IsSpecial(a) && c.Kind != CandidateLAN && c.Kind != CandidateConfigured:
		return fmt.Errorf("address %v: it can be reached only on its own network", a)
	}
	return nil
}
