// SPDX-License-Identifier: Apache-2.0

// Package mesh holds the rules on which all nodes must agree. It defines the values that
// nodes send each other, and pure functions that turn them into one node's view of the
// network: which node owns which addresses (slots), which WireGuard peers a node needs,
// which prefixes each peer may send, and which claims conflict.
//
// Nothing here does I/O, reads a clock or keeps state: the same input, in any order,
// gives the same output on every node. Nodes that only gossip therefore agree on one
// network without a coordinator.
//
// Start reading at [Record], which gossip delivers. [SlotOwners] decides which of several
// conflicting slot claims counts, and [Derive] computes the [Topology] from which package
// netcfg makes devices, peers and routes.
package mesh

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// ClientPort is the TCP port on which nodes answer clients, at their overlay addresses.
// It is the one after VXLAN's, and below 32768, where Linux's range of ephemeral ports
// begins.
const ClientPort = 7948

// Limits of a record's lists. Exceeding one is a configuration error on the node that
// writes the record; every other node refuses such a record.
const (
	MaxEndpoints   = 6
	MaxCIDRs       = 8
	MaxInternalIPs = 4
	MaxWithheld    = 8
	MaxName        = 63 // a DNS label, as Kubernetes requires for a node's name
)

// Sizes of packets, in bytes.
const (
	// Overhead is the most that WireGuard adds to a packet: 40 bytes of IPv6, 8 of UDP,
	// 32 of its own.
	Overhead = 80
	// MinMTU is the lowest MTU of a node's device: what is left inside WireGuard of the
	// 576 bytes that every IPv4 host accepts (RFC 791). A lower one in a record would
	// slow down all clients, and every node that talks to that node.
	MinMTU = 576 - Overhead
	// MinMTU6 is the lowest MTU of a link with IPv6 (RFC 8200, section 5).
	MinMTU6 = 1280
)

// MaxGeneration is the highest Cluster.Generation, in a configuration file and in what
// others send: an int can hold it on all hosts.
const MaxGeneration = 1<<31 - 1

// ID is a node's fingerprint: the first 128 bits of the SHA-256 of its ed25519 identity
// key. It names the node in gossip. Nobody can find another key with the same
// fingerprint.
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

// Record is what a node says about itself. The node signs it; package gossip distributes
// it. It contains no overlay addresses and no pod CIDRs: these follow from the slot and
// the cluster's ranges, so they can't contradict each other.
type Record struct {
	Identity ed25519.PublicKey // 32 bytes; its fingerprint is the node's ID
	Sequence uint64            // increases with every change; the highest one counts
	Instance uint64            // random, new at each start of the daemon

	Name       string            // the host name; only a claim
	Key        wgtypes.Key       // WireGuard public key
	Claim      Claim             // the slot; None while the node has not claimed one
	Settings   uint64            // hash of the address settings, see Cluster.Hash
	Location   string            // "" for a node without a location
	Gateway    GatewayPreference // whether the node wants to be its location's gateway
	Exit       ExitFamilies      // in which families clients may reach the internet through it
	Encrypted  bool              // never in plain text on a LAN, whatever the mode: it is not a neighbor, and not a gateway for others
	Term       GatewayTerm       // its term as one of its location's gateways; zero for none
	Replaced   uint64            // how often verdicts have ended its term as a gateway, by its own count
	Serving    []NetworkTerm     // of AllowedLocationIPs, those that it serves though other nodes of its location could
	MTU        int               // of its WireGuard device, in bytes
	NAT        bool              // others see it at an address that it does not have itself
	ListenPort uint16            // where its WireGuard socket listens; an endpoint's port may differ
	GossipPort uint16            // where its gossip socket listens
	StreamPort uint16            // where it accepts streams over TLS besides; 0 for nowhere
	Etcd       EtcdTimings       // of the member of etcd on it; "" for a node that is not a server of k3s with etcd

	// GossipAddr is the address of its gossip socket, host:port, if that is not the host
	// of any of its endpoints with GossipPort.
	GossipAddr string

	Endpoints          []Endpoint      // best first; at most MaxEndpoints
	InternalIPs        []netip.Prefix  // addresses on its private network, with that network's prefix length
	AllowedLocationIPs []netip.Prefix  // further networks behind its location
	Unserved           []netip.Prefix  // of AllowedLocationIPs, those to which its host has lost its way, and other nodes have not
	Linked             []LinkedNetwork // of AllowedLocationIPs, those that are ranges of other clusters
	Withheld           []netip.Prefix  // networks of other nodes that its host reaches otherwise; the first MaxWithheld in the order of ComparePrefix
	WithheldMore       int             // how many more of them there are
	Secrets            []SecretHash    // those that it accepts, the one that it uses first; at most MaxSecrets, none from older versions

	// The rest is not in what the node signs: it follows from what others say.
	Segment ID   // the part of its location that it is in, see Locate; zero for the whole location
	Closed  bool // others have not reached any of its endpoints unasked, see Prove

	id ID // of Identity; zero until it is computed
}

// ID returns the fingerprint of the record's identity key.
func (r Record) ID() ID {
	if r.id == (ID{}) {
		return IDOf(r.Identity)
	}
	return r.id
}

// Identify computes the record's ID once, because that costs a hash. The identity must
// not change afterwards.
func (r *Record) Identify() { r.id = IDOf(r.Identity) }

// Claim is a node's claim of a slot. Of several claims of a slot one wins; see SlotOwners.
type Claim struct {
	Slot int // None while no slot is claimed
	// Confirmed claims go before others. A claim is confirmed once its node has met others
	// and still owned the slot, and stays so.
	Confirmed bool
	Time      int64 // when it was made, or confirmed: milliseconds since 1970, by the claiming node's clock
	// Since is the sequence of the record that made the claim. If the node is forgotten
	// up to that sequence, it loses the claim, even if it returns with newer records.
	Since uint64
}

// None is the Slot of a node that has not claimed one.
const None = -1

// GatewayPreference says whether a node wants to be its location's gateway.
type GatewayPreference string

// The values, as they are written in the configuration.
const (
	GatewayAuto   GatewayPreference = "auto"
	GatewayPrefer GatewayPreference = "prefer"
	GatewayNever  GatewayPreference = "never"
)

// EtcdTimings are the timings of etcd on a server of k3s.
type EtcdTimings string

// The values, as they are written in the configuration.
const (
	EtcdLAN EtcdTimings = "lan" // k3s's own
	EtcdWAN EtcdTimings = "wan" // for servers in several places
)

// GatewayTerm is a node's term as one of its location's gateways. It keeps a newcomer from
// replacing a gateway that works. A gateway that was replaced keeps its tunnels until its
// term ends, so packets that are still on their way through it arrive, and its own
// traffic does not move.
type GatewayTerm struct {
	Seat  int   // 0 to Cluster.Gateways-1, or None; nodes are assigned to seats, not to gateways
	Since int64 // milliseconds since 1970, by the node's own clock; 0 if it is not a gateway
}

// NetworkTerm is a node's term as the server of a network that other nodes of its location name,
// too. It keeps these from replacing a server that works.
type NetworkTerm struct {
	Network netip.Prefix
	Since   int64 // milliseconds since 1970, by the node's own clock; above 0
}

// Verdict is what a node says about how well another node, or itself, carries traffic for
// others, as a gateway of its location, for clients, or to a network behind it. Each author has one for each
// subject. All verdicts on a node form one history: the highest epoch counts, then the
// lowest author. Only the node itself can say that it is up or draining.
type Verdict struct {
	Author  ed25519.PublicKey // 32 bytes
	Subject ID
	State   Health
	Epoch   uint64 // increases with every verdict on a subject, whoever its author is
	// Record is the sequence of the record of its subject that a node's verdict on itself
	// requires: without that record the verdict does not count yet. 0 for any record.
	Record uint64
}

// Health is a verdict's content.
type Health string

// The states. A node without a verdict counts as up.
const (
	HealthUp       Health = "up"
	HealthDraining Health = "draining" // works, and asks to be replaced
	HealthDown     Health = "down"
)

// Endpoint is an address at which a node's WireGuard socket may be reached.
type Endpoint struct {
	Host   string // an IP address, or a name that every peer resolves itself
	Port   uint16
	Source EndpointSource
}

// EndpointSource says how a node learned its endpoint.
type EndpointSource string

// Sources of endpoints, the most trusted first.
const (
	EndpointConfigured EndpointSource = "configured" // written in the configuration
	EndpointObserved   EndpointSource = "observed"   // peers see this node there
	EndpointOwn        EndpointSource = "own"        // a public address of one of its own links
)

// Mode decides which nodes have tunnels to each other.
type Mode string

// The modes, as they are written in the configuration.
const (
	ModeFull     Mode = "full"
	ModeLocation Mode = "location"
	ModeCross    Mode = "cross"
)

// Encapsulation decides which packets inside a location are sent in VXLAN.
type Encapsulation string

// The values of Encapsulation, as they are written in the configuration.
const (
	EncapsulationNever       Encapsulation = "never"
	EncapsulationCrossSubnet Encapsulation = "crosssubnet"
	EncapsulationAlways      Encapsulation = "always"
)

// Trust decides which nodes are trusted.
type Trust string

// The values of Trust, as they are written in the configuration.
const (
	TrustOpen Trust = "open" // all that have the secret
	TrustList Trust = "list" // those in cluster.trusted
)

// DNS is the cluster's resolver, for use by clients.
type DNS struct {
	Address netip.Addr
	Domain  string
}

// Cluster holds the settings that are the same on every node.
type Cluster struct {
	Name          string
	Generation    uint64
	Trust         Trust
	Mode          Mode
	Encapsulation Encapsulation
	Gateways      int // per location
	Overlay       []netip.Prefix
	Pods          []netip.Prefix
	PodPrefix     []int // length of a node's pod CIDR, in bits, one for each of Pods
	Services      []netip.Prefix
	DNS           DNS
}

// Topology is one node's view of the network: what Derive computes from all records.
type Topology struct {
	Addresses []netip.Addr   // own overlay addresses, one per family; empty until the node holds a slot
	PodCIDRs  []netip.Prefix // own pod CIDRs, one per family
	Peers     []Peer         // sorted by ID
	Neighbors []Neighbor     // sorted by ID; none in mode full

	// Seat is this node's seat as one of its location's gateways, None if it is not one.
	// A node without a location, or any node in the modes full and cross, has none: there
	// is no node that could replace it.
	Seat int
	// Routes say how packets reach each other node. Sorted by ID.
	Routes []Route

	// Inside is what belongs to the mesh: the overlay and pod ranges, and what is routed to other
	// nodes besides, but for the networks in it to which this host has ways of its own. Traffic
	// between these is never masqueraded. Sorted, without overlaps.
	Inside []netip.Prefix
	// Guarded are the ranges whose addresses only the mesh may use as sources: overlay
	// (nodes and clients) and pods.
	Guarded []netip.Prefix
	// ServedNetworks are the networks that this node reaches for other nodes, such as its own
	// allowed-location-ips. Hosts there have no route back to the mesh. What of them is routed to
	// another node goes there.
	ServedNetworks []netip.Prefix
	// Shared are the networks that both this node and other nodes name, see Record.Shares. Sorted.
	Shared []SharedNetwork
	// Linked is what comes by this host's links to other clusters.
	Linked Linked

	// PodsAndClients are the ranges of pods and clients, which are not nodes. PodRanges are the
	// ranges of pods alone, with the length of each node's pod CIDR. Hosts are all
	// addresses of nodes that are known: overlay addresses, internal IPs, endpoints. Each
	// is sorted, without overlaps.
	PodsAndClients []netip.Prefix
	PodRanges      []PodRange
	Hosts          []netip.Prefix

	// Clients are those whose tunnels end on this node, by address. ClientRanges are the
	// address ranges of all clients. Nodes are the addresses of nodes, and GossipPorts
	// the ports that are closed to clients there. All are empty in a cluster without
	// clients, the last two on hosts without links to other clusters.
	Clients      []ClientTunnel
	ClientRanges []netip.Prefix
	Nodes        []netip.Prefix
	GossipPorts  []uint16
	// ClientNetworks are the networks behind clients that this node reaches, sorted.
	ClientNetworks []netip.Prefix
	// Internet is what clients that may reach the internet get of it through this node, in both
	// families; empty on a node that is not an exit. Sorted, without overlaps.
	Internet []netip.Prefix
	// ClientHome is the peer through which clients reach this node; zero for none.
	ClientHome ID
	// AllClients are all clients that count, wherever their tunnels end, by address.
	AllClients []Client

	Problems []Problem // sorted
}

// Linked is what comes by a host's links to other clusters: from which networks, sorted, and what
// these may reach.
type Linked struct {
	Networks []netip.Prefix
	Allowed  []Allowance
}

// SharedNetwork is a network that several nodes share, and the one of them to which it is routed.
type SharedNetwork struct {
	Network netip.Prefix
	Server  ID
}

// PodRange is a range from which nodes get their pod CIDRs.
type PodRange struct {
	Range netip.Prefix
	Bits  int // length of a pod CIDR, in bits
}

// ClientTunnel is a client's tunnel that ends on this node.
type ClientTunnel struct {
	ID           ID
	Name         string
	Key          wgtypes.Key
	PresharedKey PresharedKey
	Addresses    []netip.Addr // the client's own, one per family: among its allowed IPs
	Allowed      []Allowance  // what it may reach; sorted
	// Networks are behind it. Several clients may have the same one; only one of them can
	// have it among its allowed IPs.
	Networks []netip.Prefix
	Offers   []Allowance    // what may be reached in them; sorted, none for everything
	Endpoint netip.AddrPort // invalid for a client that speaks first
	Added    int64          // milliseconds since 1970
}

// Peer is a WireGuard peer that this node needs.
type Peer struct {
	ID         ID
	Name       string
	Key        wgtypes.Key
	Endpoints  []netip.AddrPort // that it names itself, best first
	AllowedIPs []netip.Prefix   // sorted, masked
	MTU        int              // the lower of both ends
}

// Neighbor is a node of this node's location that is reached over the LAN.
type Neighbor struct {
	ID         ID
	Name       string
	InternalIP netip.Addr   // its address on the LAN: VXLAN's outer address, or the first of NextHops
	NextHops   []netip.Addr // not encapsulated: its internal IPs, one per family
	Overlay    []netip.Addr // its overlay addresses; inside VXLAN the next hops, one per family
	// Encapsulated means that packets to it travel in VXLAN.
	Encapsulated bool
	// Prefixes are routed to it: its own, and, if it is this node's gateway, those of all
	// nodes that are reached through the gateway. Sorted, masked; each belongs to only
	// one neighbor or peer.
	Prefixes []netip.Prefix
	MTU      int // the lower of both ends
}

// MAC is the address of a node's VXLAN device. It follows from the fingerprint, so no
// neighbor discovery is needed.
func MAC(id ID) [6]byte {
	// Locally administered, unicast (IEEE 802, section 8.2.2).
	return [6]byte{0x02, id[0], id[1], id[2], id[3], id[4]}
}

// Route is how packets travel from this node to another one.
type Route struct {
	ID   ID
	Kind RouteKind
	Hops []ID // the nodes between, in order: own gateway, the other node's gateway; shared, must not be changed
}

// RouteKind is the kind of the first hop.
type RouteKind string

// Kinds of routes.
const (
	RouteTunnel RouteKind = "tunnel" // the first hop is a WireGuard peer
	RouteLAN    RouteKind = "lan"    // the first hop is a neighbor
	RouteNone   RouteKind = "none"   // unreachable; a problem says why
)

// Problem is a conflict or a defect that needs a person's attention. It is a value:
// Derive never hides one and never logs one.
type Problem struct {
	Kind   ProblemKind `json:"kind"`
	Node   string      `json:"node"`   // the name of the node on which something has to be done
	Text   string      `json:"text"`   // what is wrong
	Advice string      `json:"advice"` // what to do about it
}

// ProblemKind names a class of problems, for machines that read status.
type ProblemKind string

// Kinds of problems that Derive and NextClaim report.
const (
	ProblemSlot      ProblemKind = "slot-conflict"
	ProblemName      ProblemKind = "name-conflict"
	ProblemKey       ProblemKind = "key-conflict"
	ProblemAddress   ProblemKind = "address-conflict"
	ProblemEndpoint  ProblemKind = "no-endpoint"
	ProblemExhausted ProblemKind = "no-free-slot"
	ProblemGateway   ProblemKind = "no-gateway"
	ProblemNeighbor  ProblemKind = "no-neighbor" // not reachable on the LAN
	ProblemClient    ProblemKind = "client-conflict"
	ProblemRange     ProblemKind = "range-overlap"      // a network of the host is in the cluster's ranges
	ProblemNote      ProblemKind = "note"               // breaks nothing: it is shown apart from the others
	ProblemDuplicate ProblemKind = "identity-elsewhere" // another daemon runs with this node's identity
)

// Compare orders problems by kind, node and text.
func (p Problem) Compare(o Problem) int {
	return cmp.Or(cmp.Compare(p.Kind, o.Kind), cmp.Compare(p.Node, o.Node), cmp.Compare(p.Text, o.Text))
}
