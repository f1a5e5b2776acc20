// SPDX-License-Identifier: Apache-2.0

// Package mesh decides. It holds the values that nodes tell each other and the
// pure functions that turn them into one node's view of the network: which
// addresses are whose (slots), which WireGuard peers a node needs, what each of
// them may send, and which claims contradict each other.
//
// Nothing here does I/O, reads a clock or keeps a memory: the same input, in
// any order, gives the same output, on every node. That is what lets nodes that
// only gossip arrive at one network without a coordinator.
//
// The way through it: [Record]s come in from gossip, [Owners] says which of the
// contradicting claims count, and [Derive] makes the [Topology] from which
// package netcfg makes devices, peers and routes.
package mesh

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// ClientPort is where nodes answer clients, on their overlay addresses, over TCP. It
// follows vxlan's, and lies below 32768, where Linux begins to take ports for
// connections.
const ClientPort = 7948

// Limits of a record's lists. What exceeds them is a configuration error on
// the node that writes the record, and a refused record everywhere else.
const (
	MaxEndpoints   = 6
	MaxCIDRs       = 8
	MaxInternalIPs = 4
	MaxName        = 63 // a DNS label, as Kubernetes wants of a node's name
)

// Sizes of packets, in bytes.
const (
	// Overhead is what WireGuard adds to a packet at most: 40 of IPv6, 8 of UDP, 32
	// of its own.
	Overhead = 80
	// MinMTU is the lowest of a node's device: what is left inside WireGuard of the
	// 576 bytes that every IPv4 host takes (RFC 791). A lower one in a record would
	// slow down everybody who talks to that node, and all clients.
	MinMTU = 576 - Overhead
	// MinMTU6 is the lowest of a link with IPv6 (RFC 8200, section 5).
	MinMTU6 = 1280
)

// MaxGeneration is the highest that Cluster.Generation may be, in a file as well as
// in what others say: an int holds it on all hosts.
const MaxGeneration = 1<<31 - 1

// ID is a node's fingerprint: the first 128 bits of the SHA-256 of its ed25519
// identity key. It names the node in gossip, and nobody can make another key
// with it.
type ID [16]byte

// IDOf returns the fingerprint of an identity key.
func IDOf(key ed25519.PublicKey) ID {
	sum := sha256.Sum256(key)
	return ID(sum[:len(ID{})])
}

// ParseID reads the hexadecimal form that String prints.
func ParseID(s string) (ID, error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(ID{}) {
		return ID{}, fmt.Errorf("parse fingerprint %q: want %d hexadecimal digits", s, 2*len(ID{}))
	}
	return ID(b), nil
}

// String returns 32 hexadecimal digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// MarshalText makes an ID readable in JSON.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText is the reverse of MarshalText.
func (id *ID) UnmarshalText(b []byte) error {
	v, err := ParseID(string(b))
	if err != nil {
		return err
	}
	*id = v
	return nil
}

// Compare orders fingerprints bytewise.
func (id ID) Compare(o ID) int { return bytes.Compare(id[:], o[:]) }

// Record is what a node says of itself. The node signs it; package gossip
// carries it. A node's overlay addresses and pod CIDRs are not in it: they
// follow from its slot and the cluster's ranges, so that they can't disagree.
type Record struct {
	Identity ed25519.PublicKey // 32 bytes; the fingerprint of it is the node's ID
	Sequence uint64            // rises with every change; the highest one counts
	Instance uint64            // random, drawn at each start of the daemon

	Name       string      // the host name; only a claim
	Key        wgtypes.Key // WireGuard public key
	Claim      Claim       // the slot; None while the node has not claimed one
	Settings   uint64      // hash of the address settings, see Cluster.Hash
	Location   string      // "" for a node that stands alone
	Gateway    GatewayWish // what the node wants to be in its location
	Encrypted  bool        // never in plain text on a LAN, whatever the mode: it is no neighbor and no gateway of others
	Office     Office      // as one of its location's gateways; zero for none
	Replaced   uint64      // how often verdicts have ended its office, by its own count
	MTU        int         // of its WireGuard device, bytes
	NAT        bool        // others see it under an address that it does not have
	ListenPort uint16      // where its WireGuard socket listens; an endpoint's port may be another
	GossipPort uint16      // where its gossip socket listens

	// GossipAddr is where its gossip socket is reached, host:port, if that is
	// not any of its endpoints' hosts with GossipPort.
	GossipAddr string

	Endpoints          []Endpoint     // best first, at most MaxEndpoints
	InternalIPs        []netip.Prefix // addresses on its private network, with that network's length
	AllowedLocationIPs []netip.Prefix // further networks behind its location

	id ID // of Identity; zero if it has not been worked out
}

// ID returns the fingerprint of the record's identity key.
func (r Record) ID() ID {
	if r.id == (ID{}) {
		return IDOf(r.Identity)
	}
	return r.id
}

// Identify works out the record's ID once and for all: it costs a hash. The identity
// must not change afterwards.
func (r *Record) Identify() { r.id = IDOf(r.Identity) }

// Claim is a node's claim of a slot. Contradicting claims are decided by
// (Time, ID), lowest first; see Owners.
type Claim struct {
	Slot int   // None while nothing is claimed
	Time int64 // of the claim, milliseconds since 1970, by the claiming node's clock
	// Since is the sequence of the record that made the claim. A node that is
	// forgotten up to there has lost it, even if it comes back with newer records.
	Since uint64
}

// None is the Slot of a claim that has not been made.
const None = -1

// GatewayWish is what a node wants to be in its location.
type GatewayWish string

// The wishes, as they are written in the configuration.
const (
	GatewayAuto   GatewayWish = "auto"
	GatewayPrefer GatewayWish = "prefer"
	GatewayNever  GatewayWish = "never"
)

// Office is a node's word that it is one of its location's gateways. It keeps a
// newcomer from taking the place of a gateway that is well. One that was
// relieved keeps its tunnels as long as it is in office: what is still on its
// way through it arrives, and its own traffic stays where it is.
type Office struct {
	Seat  int   // 0 to Cluster.Gateways-1, or None; who hangs on which gateway goes by seats
	Since int64 // milliseconds since 1970, by the node's own clock; 0 for not in office
}

// Verdict is what a node says of how well another one, or itself, carries
// traffic for others. Each author has one for each subject and role.
type Verdict struct {
	Author  ed25519.PublicKey // 32 bytes
	Subject ID
	Role    Role
	State   Health
	Epoch   uint64 // rises with every verdict on a subject in a role, whoever its author is
	// Record is the sequence of the subject's record that a verdict of its own
	// presupposes: without that record the verdict does not count yet. 0 for any.
	Record uint64
}

// Role is what somebody carries traffic as.
type Role string

// The roles.
const (
	// RoleGateway: for its location. All verdicts on a gateway are one history:
	// the highest epoch counts, then the lowest author. Only the gateway says
	// of itself that it is up or draining.
	RoleGateway Role = "gateway"
	// RoleRelay: between two nodes that are both behind NAT. Each verdict
	// counts for the pairs that its author belongs to.
	RoleRelay Role = "relay"
)

// Health is a verdict's content.
type Health string

// The states. Nobody has a verdict on it at first, which is as good as up.
const (
	HealthUp       Health = "up"
	HealthDraining Health = "draining" // works, and asks to be relieved
	HealthDown     Health = "down"
)

// Endpoint is where a node's WireGuard socket may be reached.
type Endpoint struct {
	Host   string // an IP address, or a name that every peer resolves for itself
	Port   uint16
	Source EndpointSource
}

// EndpointSource says how a node came to know its endpoint.
type EndpointSource string

// Sources of endpoints, the most trusted first.
const (
	EndpointConfigured EndpointSource = "configured" // written in the configuration
	EndpointObserved   EndpointSource = "observed"   // other nodes see us there
	EndpointOwn        EndpointSource = "own"        // a public address of one of our links
)

// Observation is an address that another node says we have. It has proved who it is.
type Observation struct {
	By   ID
	Addr netip.Addr
	From netip.Addr // the address of that node
	At   time.Time
	Open bool // a stream of that node got in there, at our gossip port
}

// Mode says between whom tunnels run.
type Mode string

// The modes, as they are written in the configuration.
const (
	ModeFull     Mode = "full"
	ModeLocation Mode = "location"
	ModeCross    Mode = "cross"
)

// DNS is the cluster's resolver, for clients.
type DNS struct {
	Address netip.Addr
	Domain  string
}

// Cluster holds the settings that are the same on every node.
type Cluster struct {
	Name          string
	Generation    uint64
	Trust         string // open | list
	Mode          Mode
	Encapsulation string // never | crosssubnet | always
	Gateways      int    // per location
	Overlay       []netip.Prefix
	Pods          []netip.Prefix
	PodPrefix     []int // bits of a node's pod CIDR, one for each of Pods
	Services      []netip.Prefix
	DNS           DNS
}

// Topology is one node's view: what Derive makes of everybody's records.
type Topology struct {
	Addresses []netip.Addr   // own overlay addresses, one a family; empty until a slot is held
	PodCIDRs  []netip.Prefix // own pod CIDRs, one a family
	Peers     []Peer         // sorted by ID
	Neighbors []Neighbor     // sorted by ID; none in mode full

	// Seat is this node's as one of its location's gateways, None if it is
	// none. A node that stands alone, or any node in the modes full and cross,
	// is not in office: there is nobody to relieve it.
	Seat int
	// Paths tell for every other node how packets get there. Sorted by ID.
	Paths []Path

	// Inside is what belongs to the mesh: the overlay and pod ranges, and the
	// internal IPs that are reached through tunnels. Traffic between these is
	// never masqueraded. Sorted, without overlaps.
	Inside []netip.Prefix
	// Guarded are the ranges whose addresses only the mesh may use as sources:
	// overlay (nodes and clients) and pods.
	Guarded []netip.Prefix
	// Serves are the networks that this node reaches for the others, its own
	// allowed-location-ips. Hosts there have no route back to the mesh.
	Serves []netip.Prefix

	// Guests are where those have their addresses who are not nodes: pods and
	// clients. PodRanges say the same of pods alone, with the length of each node's
	// pod CIDR. Hosts are where nodes have theirs, as far as others know: overlay
	// addresses, internal IPs, endpoints. Each is sorted, without overlaps.
	Guests    []netip.Prefix
	PodRanges []PodRange
	Hosts     []netip.Prefix

	// Clients are those whose tunnels end here, by address. ClientRanges are where
	// the addresses of all clients lie, Nodes where nodes have theirs, and
	// GossipPorts what is closed to clients there; none without clients.
	Clients      []ClientTunnel
	ClientRanges []netip.Prefix
	Nodes        []netip.Prefix
	GossipPorts  []uint16
	// ClientHome is the peer through which clients reach this node, zero for none.
	ClientHome ID
	// AllClients are those that count, on whatever node their tunnels end, by address.
	AllClients []Client

	Problems []Problem // sorted
}

// PodRange is a range from which nodes have their pod CIDRs.
type PodRange struct {
	Range netip.Prefix
	Bits  int // length of a pod CIDR
}

// ClientTunnel is a client's tunnel that ends on this node.
type ClientTunnel struct {
	ID           ID
	Name         string
	Key          wgtypes.Key
	PresharedKey PresharedKey
	Addresses    []netip.Addr // the client's own, one a family: its allowed IPs
	Allowed      []Allowance  // what it may reach; sorted
}

// Peer is a WireGuard peer that this node needs.
type Peer struct {
	ID         ID
	Name       string
	Key        wgtypes.Key
	Endpoints  []netip.AddrPort // best first; empty when the peer has to speak first
	AllowedIPs []netip.Prefix   // sorted, masked
	Keepalive  time.Duration    // 0 for none
	MTU        int              // of the path: the lower of both ends
}

// Neighbor is a node of this node's location that is reached over the LAN.
type Neighbor struct {
	ID         ID
	Name       string
	InternalIP netip.Addr   // where it is on the LAN: vxlan's outer address, or the first of NextHops
	NextHops   []netip.Addr // not encapsulated: its internal IPs, one a family
	Overlay    []netip.Addr // its overlay addresses; inside vxlan the next hops, one a family
	// Encapsulated says that packets to it travel in vxlan.
	Encapsulated bool
	// Prefixes go to it: its own, and, if it is this node's gateway, those of
	// everything beyond. Sorted, masked; in one neighbor or peer only.
	Prefixes []netip.Prefix
	MTU      int // the lower of both ends
}

// MAC is the address of a node's vxlan device. It follows from the fingerprint,
// so that nobody has to ask for it.
func MAC(id ID) [6]byte {
	// Locally administered, unicast (IEEE 802, section 8.2.2).
	return [6]byte{0x02, id[0], id[1], id[2], id[3], id[4]}
}

// Path is how packets get from this node to another one.
type Path struct {
	ID   ID
	Kind PathKind
	Hops []ID // the nodes between, in order: own gateway, relay, the other one's gateway; shared, not to be changed
}

// PathKind names the first hop's kind.
type PathKind string

// Kinds of paths.
const (
	PathTunnel PathKind = "tunnel" // the first hop is a WireGuard peer
	PathLAN    PathKind = "lan"    // the first hop is a neighbor
	PathNone   PathKind = "none"   // there is no way, and a problem says why
)

// Problem is a contradiction or a defect that a person has to know of. It is a
// value: Derive never hides one and never logs one.
type Problem struct {
	Kind   ProblemKind `json:"kind"`
	Node   string      `json:"node"`   // the name of the node that has to act
	Text   string      `json:"text"`   // what is wrong
	Advice string      `json:"advice"` // what to do about it
}

// ProblemKind names a class of problems, for machines that read status.
type ProblemKind string

// Kinds of problems that Derive and Claims report.
const (
	ProblemSlot      ProblemKind = "slot-conflict"
	ProblemName      ProblemKind = "name-conflict"
	ProblemKey       ProblemKind = "key-conflict"
	ProblemAddress   ProblemKind = "address-conflict"
	ProblemEndpoint  ProblemKind = "no-endpoint"
	ProblemExhausted ProblemKind = "no-free-slot"
	ProblemGateway   ProblemKind = "no-gateway"
	ProblemNeighbor  ProblemKind = "no-neighbor" // not reachable on the LAN
	ProblemRelay     ProblemKind = "no-relay"
	ProblemClient    ProblemKind = "client-conflict"
)

// Encapsulations inside a location, as they are written in the configuration.
const (
	EncapsulationNever       = "never"
	EncapsulationCrossSubnet = "crosssubnet"
	EncapsulationAlways      = "always"
)

// Compare orders problems by kind, node and text.
func (p Problem) Compare(o Problem) int {
	return cmp.Or(cmp.Compare(p.Kind, o.Kind), cmp.Compare(p.Node, o.Node), cmp.Compare(p.Text, o.Text))
}
