// SPDX-License-Identifier: Apache-2.0

// Package control is the API between meshd's commands and a running daemon: HTTP with
// JSON bodies over a unix socket that only its owner can open. The daemon implements
// [Daemon]. It answers from the status that its loop last published, so that the socket
// also answers while a reconcile hangs or fails.
package control

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
)

// ErrNotRunning is wrapped by a client's errors when no process listens at the socket.
var ErrNotRunning = errors.New("meshd is not running")

// ErrRefused is wrapped by errors that explain to a person why a request can't be done.
var ErrRefused = errors.New("refused")

// errForbidden answers requests at the read socket that are not for it. It is an os.ErrPermission, so the
// commands say that they need root.
var errForbidden = fmt.Errorf("%w: the group meshd may only read", os.ErrPermission)

// SocketPath returns the path of the control socket in the run directory.
func SocketPath(runDir string) string { return filepath.Join(runDir, "meshd.sock") }

// ReadSocketPath returns the path of the socket that belongs to a run directory, for those who may read but
// not change anything: the group of the directory that it is in. The daemon can't make that directory, because
// it may not give files to others.
func ReadSocketPath(runDir string) string { return filepath.Join(runDir+"-read", "meshd.sock") }

// Daemon is the part of the daemon that answers requests. Nodes and clients are given by
// name or by fingerprint. Errors wrap ErrRefused where a person asks for something that
// can't be done, for example with a node that is not known.
type Daemon interface {
	// Status returns the last published status; it never waits for the loop.
	Status() Status
	// Plan reads the host's state and returns what the daemon would change there.
	Plan(ctx context.Context) (Plan, error)
	// Forget drops the records of a node that is gone for good.
	Forget(ctx context.Context, node string) error
	// Revoke drops the records of a node and refuses new ones for ever. A fingerprint need
	// not be known.
	Revoke(ctx context.Context, node string) (Revoked, error)
	// RotateSecret does the next round in which all nodes exchange their secret, and waits for all of them. It
	// refuses if a node is missing.
	RotateSecret(ctx context.Context) (Rotated, error)
	// Renumber exchanges this node's slot for another one. It refuses if no slot is free,
	// or if the slot has no conflict and force is not set.
	Renumber(ctx context.Context, force bool) (Renumbered, error)
	// Drain has this node replaced as a gateway, or undoes that, and waits for the result
	// until ctx ends.
	Drain(ctx context.Context, undo bool) (Drained, error)
	// Graph returns the network as this node sees it. It refuses until that is known.
	Graph() (mesh.Graph, error)
	// Network returns what is known of the networks between this node and the others. It takes up to a
	// second.
	Network(ctx context.Context) (Network, error)
	// Probe sends one echo request to every node and returns the status after that.
	Probe(ctx context.Context) (Status, error)
	// Ping sends echo requests to a node and to those on the way, and asks it how it sees this one.
	Ping(ctx context.Context, node string, count int) (Ping, error)
	// PlanWithout returns what the loss of a node, or of all nodes of a location, would change on
	// the host.
	PlanWithout(ctx context.Context, name string) (Plan, error)
	// AddClient adds a client on all nodes.
	AddClient(ctx context.Context, r ClientRequest) (ClientConfig, error)
	// ClientConfig returns a client's current configuration.
	ClientConfig(client string) (ClientConfig, error)
	// RemoveClient removes a client from all nodes.
	RemoveClient(ctx context.Context, client string) (RemovedClient, error)
}

// Revoked is an identity that was revoked.
type Revoked struct {
	ID   mesh.ID `json:"id"`
	Name string  `json:"name"` // "" if no record of it was known
}

// Rotated is a round in which all nodes exchanged their secret.
type Rotated struct {
	Round    string          `json:"round"` // accept, use or drop
	Finished bool            `json:"finished"`
	Old      mesh.SecretHash `json:"old"`
	New      mesh.SecretHash `json:"new"`
	Nodes    int             `json:"nodes"` // all, this one among them
	Trust    mesh.Trust      `json:"trust"`
}

// Renumbered is the change of a node's slot.
type Renumbered struct {
	Former Slot `json:"former"`
	Now    Slot `json:"now"`
}

// Slot is a slot and the addresses that follow from it.
type Slot struct {
	Slot     int            `json:"slot"`
	Overlay  []netip.Addr   `json:"overlay"`
	PodCIDRs []netip.Prefix `json:"podCIDRs"`
}

// Plan is the difference between the host's observed and its desired state.
type Plan struct {
	Changes []string `json:"changes"` // one line each; empty when there is nothing to do
	// Routes that would change, one line each; only for PlanWithout.
	Routes []string `json:"routes"`
	// Quorum says that etcd would lose its quorum; only for PlanWithout.
	Quorum string `json:"quorum,omitempty"`
}

// SchemaVersion is that of Status in JSON. It is raised when a field is removed or gets another
// meaning, and not when one is added.
const SchemaVersion = 1

// Status is a node's view of the mesh and of itself. docs/status.md describes its form in JSON.
type Status struct {
	Schema    int             `json:"schemaVersion"`
	Version   string          `json:"version"` // of meshd
	Started   time.Time       `json:"started"` // the daemon, UTC
	Node      Node            `json:"node"`
	Cluster   Cluster         `json:"cluster"`
	Device    Device          `json:"device"`
	Peers     []Peer          `json:"peers"`    // sorted by name
	Clients   []ClientStatus  `json:"clients"`  // sorted by name
	Clusters  []LinkedCluster `json:"clusters"` // that are joined to this one; sorted by name
	Problems  []Problem       `json:"problems"` // sorted
	Notes     []Problem       `json:"notes"`    // what breaks nothing; sorted
	Reconcile Reconcile       `json:"reconcile"`
	Counters  []Counter       `json:"counters"`        // sorted by reason
	Relay     *Relay          `json:"relay,omitempty"` // nil if this node is not a relay
}

// Dropped returns how many packets or objects gossip has dropped for a reason.
func (s Status) Dropped(reason string) uint64 {
	for _, c := range s.Counters {
		if c.Reason == reason {
			return c.Count
		}
	}
	return 0
}

// Problem is what is wrong, and what to do.
type Problem = mesh.Problem

// Counter is how many packets or objects gossip has dropped for one reason.
type Counter struct {
	Reason  string `json:"reason"`
	Count   uint64 `json:"count"`
	Meaning string `json:"meaning"`
}

// Relay is what this node has forwarded between others since it became a relay.
type Relay struct {
	Nodes     int               `json:"nodes"` // that can be reached through it, now
	Datagrams uint64            `json:"datagrams"`
	Bytes     uint64            `json:"bytes"`
	InKernel  uint64            `json:"datagramsInKernel"` // of the datagrams, those that the kernel has forwarded itself
	Dropped   map[string]uint64 `json:"droppedDatagrams"`  // by reason
}

// Node is this node.
type Node struct {
	ID        mesh.ID        `json:"id"`
	Name      string         `json:"name"`
	Location  string         `json:"location"`
	Role      Role           `json:"role"` // in its location; "" where there are no gateways
	Slot      int            `json:"slot"` // -1 for none yet
	Overlay   []netip.Addr   `json:"overlay"`
	PodCIDRs  []netip.Prefix `json:"podCIDRs"`
	Endpoints []string       `json:"endpoints"` // host:port, as announced to the other nodes
	NAT       bool           `json:"nat"`
	Open      bool           `json:"open"` // strangers reach one of the endpoints, as they say
	Ready     bool           `json:"ready"`
	// Etcd are the timings of the member of etcd on this host, as configured.
	Etcd mesh.EtcdTimings `json:"etcd,omitempty"`
	// Secrets are the hashes of the secrets that it accepts, first of the one that it uses.
	Secrets []mesh.SecretHash `json:"secrets"`
	// Alone means that this is the first node: it knows of no other one, and its join list
	// names nobody else. JoinAt is what others write into theirs to find it, host:port.
	Alone  bool     `json:"alone"`
	JoinAt []string `json:"joinAt"`
	// Relays are the names of those through which others reach this node, if strangers don't
	// reach it otherwise.
	Relays []string `json:"relays"`
	// PortMappings are those that this host's router has made for it.
	PortMappings []PortMapping `json:"portMappings"`
	// InternalIPs are those that this node found out or was given, and OtherPrivate the
	// host's other private addresses, each with the reason.
	InternalIPs  []netcfg.InternalIP `json:"internalIPs"`
	OtherPrivate []netcfg.InternalIP `json:"otherPrivate"`
	// Networks are those behind this node that other nodes of its location name, too.
	Networks []SharedNetwork `json:"networks"`
}

// SharedNetwork is a network behind several nodes of one location, and the name of the one through which it
// is reached.
type SharedNetwork struct {
	Network netip.Prefix `json:"network"`
	Through string       `json:"through"`
}

// PortMapping is a UDP port of this host that its router maps.
type PortMapping struct {
	Protocol  string         `json:"protocol"` // PCP, NAT-PMP or UPnP
	Router    netip.Addr     `json:"router"`
	Port      uint16         `json:"port"`     // of this host
	External  netip.AddrPort `json:"external"` // of the router
	Public    bool           `json:"public"`   // External is on the internet: the router is not behind NAT itself
	Permanent bool           `json:"permanent,omitempty"`
}

// Cluster is the cluster's settings in effect on this node: its own, or those of a node
// with a higher generation.
type Cluster struct {
	Name          string             `json:"name"`
	Generation    uint64             `json:"generation"`
	Trust         mesh.Trust         `json:"trust"`
	Mode          mesh.Mode          `json:"mode"`
	Encapsulation mesh.Encapsulation `json:"encapsulation"`
	Gateways      int                `json:"gateways"`
	// The ranges of addresses, for the whole cluster.
	Overlay  []netip.Prefix `json:"overlay"`
	Pods     []netip.Prefix `json:"pods"`
	Services []netip.Prefix `json:"services"`
}

// Device is the WireGuard device.
type Device struct {
	Name           string                `json:"name"`
	Implementation netcfg.Implementation `json:"implementation"`
	ListenPort     int                   `json:"listenPort"`
	MTU            int                   `json:"mtuBytes"`
}

// Peer is another node.
type Peer struct {
	ID       mesh.ID `json:"id"`
	Name     string  `json:"name"`
	Location string  `json:"location"`
	Role     Role    `json:"role"`  // in its location; "" where there are no gateways
	Alive    bool    `json:"alive"` // according to gossip
	// LastSeen is when a node that is not alive was alive last, UTC, give or take ten minutes if the daemon
	// here has restarted since; absent for a living node.
	LastSeen time.Time `json:"lastSeen,omitzero"`
	Open     bool      `json:"open"` // strangers reach it, as they say
	Route    Route     `json:"route"`
	// Etcd are the timings of the member of etcd on it, as configured there.
	Etcd        mesh.EtcdTimings `json:"etcd,omitempty"`
	Overlay     []netip.Addr     `json:"overlay"`
	PodCIDRs    []netip.Prefix   `json:"podCIDRs"`
	InternalIPs []netip.Addr     `json:"internalIPs"` // those reached through the tunnel
	Networks    []netip.Prefix   `json:"networks"`    // behind it, as it says
	// Secrets are the hashes of the secrets that it accepts, first of the one that it uses; none from an older version.
	Secrets  []mesh.SecretHash `json:"secrets"`
	Endpoint netip.AddrPort    `json:"endpoint"` // in use; "" for none
	// Path is how packets of the tunnel to it travel; its Kind is "" for a node without a
	// tunnel to this one.
	Path Path `json:"path"`
	// Candidates are the endpoints that this node would try, best first. LANAddress is where a
	// node is that is reached over the private network.
	Candidates    []netip.AddrPort `json:"candidates"`
	LANAddress    netip.Addr       `json:"lanAddress,omitzero"`
	LastHandshake time.Time        `json:"lastHandshake,omitzero"` // UTC; absent for never
	Received      int64            `json:"receivedBytes"`
	Sent          int64            `json:"sentBytes"`
	RTT           Milliseconds     `json:"rttMilliseconds,omitzero"` // of gossip; absent if not known
}

// Path is how WireGuard's packets travel to a peer.
type Path struct {
	Kind   PathKind       `json:"kind"`
	Addr   netip.AddrPort `json:"address"`                  // "" for none
	Relay  string         `json:"relay,omitempty"`          // the name of the node that forwards
	Proxy  string         `json:"proxy,omitempty"`          // the HTTP proxy through which TCP goes
	Proved bool           `json:"proved"`                   // the peer answers on it
	Since  time.Time      `json:"since,omitzero"`           // UTC; absent for no path
	RTT    Milliseconds   `json:"rttMilliseconds,omitzero"` // absent if not known
	Loss   float64        `json:"lossRatio"`                // of the last 32 probes, 0 to 1
	MTU    int            `json:"mtuBytes,omitempty"`       // the longest packet inside the tunnel that passes; absent if not known
	Tried  []TriedPath    `json:"tried"`                    // all paths that are tried, that one among them
	// NotProbed is why no path is looked for, "" if one is.
	NotProbed string `json:"notProbed,omitempty"`
}

// Works returns the kind of the path if the peer answers on it, else PathNone; "" for a node
// without a tunnel to this one.
func (p Path) Works() PathKind {
	if p.Kind == "" || p.Proved {
		return p.Kind
	}
	return PathNone
}

// TriedPath is a path that was or will be tried.
type TriedPath struct {
	Kind PathKind       `json:"kind"`
	Addr netip.AddrPort `json:"address"`
	// Relay is the name of the node that forwards, "" for none.
	Relay string       `json:"relay,omitempty"`
	RTT   Milliseconds `json:"rttMilliseconds,omitzero"` // absent if not known
	Loss  float64      `json:"lossRatio"`                // of the last 32 probes, 0 to 1
}

// PathKind is the kind of a path.
type PathKind string

// The kinds of paths.
const (
	PathNone    PathKind = "none"
	PathLAN     PathKind = "lan"     // straight to an address of a private network that both ends are on
	PathDirect  PathKind = "direct"  // straight to any other address
	PathRelayed PathKind = "relayed" // through a node that forwards packets unopened
	PathTCP     PathKind = "tcp"     // over TCP, to such a node or to the peer itself
)

// Reconcile is the state of the daemon's loop.
type Reconcile struct {
	Runs        uint64    `json:"runs"`
	Writes      uint64    `json:"writes"`               // calls that changed something on the host
	LastSuccess time.Time `json:"lastSuccess,omitzero"` // UTC; absent for never
	Error       string    `json:"error"`                // of the last run; "" if it succeeded
}
