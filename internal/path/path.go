// SPDX-License-Identifier: Apache-2.0

// Package path finds and keeps, for each WireGuard peer, a path beneath the tunnel.
//
// A path is how WireGuard's packets travel to a peer: straight to one of its addresses,
// through a relay (a node that forwards them unopened), or over a stream. All that
// WireGuard itself is told is an address, its endpoint for that peer. The package follows
// one law: a claim is a candidate, a packet is a proof. What records say are addresses to
// try; a path is used because a probe over it was answered by the peer itself.
//
//	candidates ─► Machine ─► probes ─► peer
//	answers    ─► Machine ─► the endpoint of WireGuard's peer
//
// Nothing here does I/O or reads a clock. A Machine, one for each peer, is told what
// happened and when, and returns what to send. Keys seals and opens the datagrams of
// probes, Message is what is in them, Window recognises the ones that came before. Package
// agent runs the machines on real packets.
package path

import (
	"cmp"
	"fmt"
	"net/netip"

	"github.com/meshd/meshd/internal/mesh"
)

// Kind is how packets travel. Lower is better.
type Kind uint8

// The kinds of paths.
const (
	None    Kind = iota
	LAN          // straight to an address of a private network that both ends are on
	Direct       // straight to any other address
	Relayed      // through a node that forwards datagrams unopened
	Stream       // framed over TCP, to a relay or to the peer itself
)

// String returns the word for people.
func (k Kind) String() string {
	switch k {
	case LAN:
		return "LAN"
	case Direct:
		return "direct"
	case Relayed:
		return "relayed"
	case Stream:
		return "TCP"
	default:
		return "none"
	}
}

// worse returns the kind of a path that is of two kinds at its ends. Straight ones differ only
// in what an end takes its network for.
func worse(here, there Kind) Kind {
	if here < Relayed {
		return here
	}
	return max(here, there)
}

// Short is the part of a node's fingerprint that stands in datagrams: its first 8 bytes.
type Short [8]byte

// ShortOf shortens a fingerprint.
func ShortOf(id mesh.ID) Short { return Short(id[:8]) }

// Path is one way to a peer. The zero value is no path.
type Path struct {
	Kind  Kind
	Relay Short          // the node that forwards; zero on a straight path
	Addr  netip.AddrPort // the endpoint: an address of the peer, of the relay, or of the stream's local socket
}

// At returns the path of which no more is known than its address: that of the peer, or of a
// stream's socket on this host.
func At(a netip.AddrPort) Path {
	if a.Addr().IsLoopback() {
		return Path{Kind: Stream, Addr: a}
	}
	return Path{Kind: Direct, Addr: a}
}

// Straight reports whether packets go to the peer's own address.
func (p Path) Straight() bool { return p.Kind == LAN || p.Kind == Direct }

// Compare orders paths: by kind, then by what makes the order total.
func (p Path) Compare(o Path) int {
	return cmp.Or(
		cmp.Compare(p.Kind, o.Kind),
		cmp.Compare(string(p.Relay[:]), string(o.Relay[:])),
		p.Addr.Compare(o.Addr),
	)
}

// String returns the path for logs, such as "relayed 203.0.113.7:7946".
func (p Path) String() string {
	if p.Kind == None {
		return p.Kind.String()
	}
	return fmt.Sprintf("%s %s", p.Kind, p.Addr)
}
