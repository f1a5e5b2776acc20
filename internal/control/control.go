// SPDX-License-Identifier: Apache-2.0

// Package control is how a person, through the commands, talks to a running
// daemon: HTTP with JSON bodies over a unix socket that only its owner can
// open. The daemon implements [Daemon] and answers from what its loop left
// behind, so that the socket answers also while a reconcile hangs or fails.
package control

import (
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
)

// ErrNotRunning is wrapped by a client's errors when nobody listens at the
// socket.
var ErrNotRunning = errors.New("meshd is not running")

// ErrRefused is wrapped by errors that tell a person that what was asked for
// can't be done, and why.
var ErrRefused = errors.New("refused")

// SocketPath returns the path of the control socket in the run directory.
func SocketPath(runDir string) string { return filepath.Join(runDir, "meshd.sock") }

// Daemon is what the server needs of the daemon.
type Daemon interface {
	// Status says how things stand; it never waits for the loop.
	Status() Status
	// Plan looks at the host and says what the daemon would change there.
	Plan(ctx context.Context) (Plan, error)
	// Forget drops the records of a node that is gone for good, named by its
	// name or its fingerprint. It wraps ErrRefused for one that can't be.
	Forget(node string) error
	// Revoke drops the records of a node for ever, named by its name or its
	// fingerprint, which need not be known. It wraps ErrRefused for one that can't be.
	Revoke(node string) (Revoked, error)
	// Renumber gives up this node's slot for another one. It wraps ErrRefused if
	// there is none, or if nothing is wrong with the slot and force is not set.
	Renumber(ctx context.Context, force bool) (Renumbered, error)
	// Drain has this node relieved as a gateway, or takes that back, and waits
	// for what comes of it, at most as long as ctx lives.
	Drain(ctx context.Context, undo bool) (Drained, error)
	// Graph returns the network as this node sees it. It wraps ErrRefused as long
	// as it sees nothing.
	Graph() (mesh.Graph, error)
	// Probe is Status after one echo request to every node.
	Probe(ctx context.Context) (Status, error)
	// PlanWithout says what the loss of a node would change on the host. It wraps
	// ErrRefused for one that is not known.
	PlanWithout(ctx context.Context, node string) (Plan, error)
	// AddClient adds a client for all nodes. It wraps ErrRefused for one that can't be.
	AddClient(ctx context.Context, r ClientRequest) (ClientConfig, error)
	// ClientConfig says how a client, given by its name or its ID, is to be configured
	// now. It wraps ErrRefused for one that is not known, as does RemoveClient.
	ClientConfig(client string) (ClientConfig, error)
	// RemoveClient removes a client from all nodes.
	RemoveClient(ctx context.Context, client string) (RemovedClient, error)
}

// Revoked is an identity that counts no more.
type Revoked struct {
	ID   mesh.ID `json:"id"`
	Name string  `json:"name"` // "" if no record of it was known
}

// Renumbered is what became of a node's addresses.
type Renumbered struct {
	Former Slot `json:"former"`
	Now    Slot `json:"now"`
}

// Slot is a slot with what follows from it.
type Slot struct {
	Slot     int            `json:"slot"`
	Overlay  []netip.Addr   `json:"overlay"`
	PodCIDRs []netip.Prefix `json:"podCIDRs"`
}

// Plan is the difference between the host and what it should be.
type Plan struct {
	Changes []string `json:"changes"` // one line each; empty when there is nothing to do
	// Paths that would be others, one line each; only for a plan without a node.
	Paths []string `json:"paths,omitempty"`
}

// Status is a node's view of the mesh and of itself.
type Status struct {
	Version   string            `json:"version"`
	Node      Node              `json:"node"`
	Cluster   Cluster           `json:"cluster"`
	Device    Device            `json:"device"`
	Peers     []Peer            `json:"peers"`    // sorted by name
	Clients   []ClientStatus    `json:"clients"`  // sorted by name
	Problems  []mesh.Problem    `json:"problems"` // sorted; empty when all is well
	Reconcile Reconcile         `json:"reconcile"`
	Counters  map[string]uint64 `json:"counters"` // packets and objects that were dropped, by reason
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
	Endpoints []string       `json:"endpoints"` // host:port, as told to the others
	NAT       bool           `json:"nat"`
	Ready     bool           `json:"ready"`
}

// Cluster is those settings of the cluster that are in force here. They are this
// node's own, or those of a node with a higher generation.
type Cluster struct {
	Name          string    `json:"name"`
	Generation    uint64    `json:"generation"`
	Trust         string    `json:"trust"`
	Mode          mesh.Mode `json:"mode"`
	Encapsulation string    `json:"encapsulation"`
	Gateways      int       `json:"gateways"`
}

// Device is the WireGuard device.
type Device struct {
	Name           string                `json:"name"`
	Implementation netcfg.Implementation `json:"implementation"`
	ListenPort     int                   `json:"listenPort"`
	MTU            int                   `json:"mtu"`
}

// Peer is another node.
type Peer struct {
	ID            mesh.ID        `json:"id"`
	Name          string         `json:"name"`
	Location      string         `json:"location"`
	Role          Role           `json:"role"`  // in its location; "" where there are no gateways
	Alive         bool           `json:"alive"` // as gossip sees it
	Path          Path           `json:"path"`
	Overlay       []netip.Addr   `json:"overlay"`
	PodCIDRs      []netip.Prefix `json:"podCIDRs"`
	InternalIPs   []netip.Addr   `json:"internalIPs"`   // those reached through the tunnel
	Endpoint      string         `json:"endpoint"`      // in use; "" for none
	LastHandshake string         `json:"lastHandshake"` // RFC 3339; "" for never
	Received      int64          `json:"received"`      // bytes
	Sent          int64          `json:"sent"`          // bytes
	RTT           string         `json:"rtt"`           // of gossip, as time.Duration prints it; "" if not known
}

// Reconcile is how the daemon's loop fares.
type Reconcile struct {
	Runs        uint64 `json:"runs"`
	Writes      uint64 `json:"writes"`      // calls that changed something on the host
	LastSuccess string `json:"lastSuccess"` // RFC 3339; "" for never
	Error       string `json:"error"`       // of the last run; "" if it succeeded
}

// Handshake returns the time of the last handshake, zero for never.
func (p Peer) Handshake() time.Time {
	t, _ := time.Parse(time.RFC3339, p.LastHandshake)
	return t
}
