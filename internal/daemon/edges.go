// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"io"
	"net"
	"net/netip"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"

	"github.com/meshd/meshd/internal/cni"
	"github.com/meshd/meshd/internal/gossip"
	"github.com/meshd/meshd/internal/k3s"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/node"
	"github.com/meshd/meshd/internal/path"
	"github.com/meshd/meshd/internal/path/agent"
	"github.com/meshd/meshd/internal/path/forward"
	"github.com/meshd/meshd/internal/path/relayudp"
	"github.com/meshd/meshd/internal/path/stream"
	"github.com/meshd/meshd/internal/portmap"
	"github.com/meshd/meshd/internal/probe"
	"github.com/meshd/meshd/internal/state"
)

// The loop reads and changes everything outside the daemon through these interfaces. In
// tests they are fakes that record each call, see trace_test.go: so a turn runs without
// root, and the order of what it does is tested.

// kernel is this host's network: host.Kernel.
type kernel interface {
	Facts(context.Context) (netcfg.Facts, error)
	Watch(context.Context) (<-chan struct{}, error)
	Observe(ctx context.Context, want netcfg.State) (netcfg.State, error)
	Apply(context.Context, netcfg.Plan) error
	InitiateHandshake(context.Context, netip.Addr) error
	Users(ctx context.Context, overlay []netip.Addr) ([]string, error)
	RemoveBridge(context.Context) error
	TakeDown() error
	Writes() uint64
}

// underlay is the outer side of the WireGuard device: host.Underlay.
type underlay interface {
	agent.Port
	agent.Device
	Close() error // Serve returns
}

// network is the exchange with other nodes: gossip.Gossip.
type network interface {
	View() mesh.View
	LastHeard() map[mesh.ID]time.Time
	Changed() <-chan struct{}
	Remember() gossip.Remembered

	PathsChanged() <-chan struct{}

	Publish(mesh.Record) error
	PublishPath(mesh.PathRecord) error
	PublishMembership(mesh.Membership) error
	PublishReach(mesh.Reach) error
	SendCall(to mesh.ID, sealed []byte) error
	Calls() <-chan gossip.Call
	SendOrder(to mesh.ID, sealed []byte) error
	Orders() <-chan gossip.Call
	Ask(ctx context.Context, id mesh.ID) (mesh.PeerView, error)
	Questions() <-chan gossip.Question
	Answer(q gossip.Question, v mesh.PeerView) error
	SetCarrier(gossip.Carrier)
	DialCarrier(ctx context.Context, to mesh.ID, at ...netip.AddrPort) (net.Conn, error)
	Carried(from mesh.ID, packet []byte)
	Tunnelled(id mesh.ID) (sent, received uint64)
	PublishVerdict(mesh.Verdict) error
	Forget(target mesh.ID, upTo uint64) error
	AddClient(mesh.Client) (mesh.Client, error)
	RemoveClient(mesh.ID) error

	RequestSigns([]mesh.ID)
	SetAddresses(candidates map[mesh.ID][]netip.AddrPort, streams map[mesh.ID][]mesh.Endpoint)
	Reconfigure(c mesh.Cluster, join []string, secrets [][32]byte, trusted []mesh.ID) error
}

// streams carries datagrams over TCP: stream.Carrier.
type streams interface {
	Keep([]mesh.ID) error
	Status() []stream.Status
	Changed() <-chan struct{}
}

// paths finds and keeps the paths beneath the tunnels: pathAgent.
type paths interface {
	SetRelays(all []node.Relay, keep int, secrets [][32]byte)
	SetPeers([]node.PathPeer)
	Bound() []path.BoundRelay
	SetLAN(links []string)
	SetStrange(addrs []netip.Addr)
	Status() []agent.PeerStatus
	Proofs() agent.Proofs
	Hairpin(ctx context.Context, at netip.AddrPort) bool
	Changed() <-chan struct{}
	Key() [32]byte
}

// portMapper asks this host's router for port mappings: portmap.Mapper.
type portMapper interface {
	Want(portmap.Target)
	Mappings() []portmap.Mapping
	Changed() <-chan struct{}
}

// relay forwards sealed packets between other nodes: relayServer.
type relay interface {
	// Serve forwards between nodes from now on, or not any more.
	Serve(s node.RelayService, secret [32]byte, maxRate int) error
	// Status returns what was forwarded and dropped, what of that the kernel has done, and false if
	// nothing is forwarded.
	Status() (all relayudp.Status, inKernel forward.Counts, serves bool)
}

// stateDir is the state directory: state.Dir.
type stateDir interface {
	Identity(machineID string, random io.Reader) (state.Identity, state.Origin, error)
	Node() (state.Node, error)
	SaveNode(state.Node) error
	Objects() (state.Remembered, error)
	SaveObjects(state.Remembered) error
	SetAside(name string) (string, error)
}

// prober probes the nodes that carry this node's traffic: ping.Prober.
type prober interface {
	SetTargets([]probe.ScheduledTarget, probe.Pace)
	Results() map[probe.Target]probe.Result
	Changed() <-chan struct{}
	Err() error
	PingOnce(context.Context, []probe.Target) (map[netip.Addr]time.Duration, error)
}

// The servers listen, or listen again: control.Server at its socket, and httplimit.Server at
// exactly these addresses.
type (
	controlServer interface{ EnsureListening() error }
	httpServer    interface{ EnsureListening(...netip.AddrPort) error }
)

// services are the programs on this host that wait for meshd: the container runtime, k3s
// and systemd.
type services interface {
	ApplyCNI([]cni.Change) error
	PodAddresses(podCIDRs []netip.Prefix) ([]netip.Addr, error)
	WriteK3s(k3s.Wanted) (changed bool, err error)
	// K3sSettings returns the settings of k3s, as far as they can be read.
	K3sSettings() k3s.Settings
	Notify(state string) // for systemd, see sd_notify(3)
}

// hostServices is the real implementation.
type hostServices struct{}

func (hostServices) ApplyCNI(changes []cni.Change) error { return cni.Apply(changes) }

func (hostServices) PodAddresses(podCIDRs []netip.Prefix) ([]netip.Addr, error) {
	return cni.Reserved(cni.StoreDir, podCIDRs)
}

func (hostServices) WriteK3s(w k3s.Wanted) (bool, error) { return k3s.Write("/", w) }

// K3sSettings leaves out what can't be read: meshd check says so, and so does k3s.
func (hostServices) K3sSettings() k3s.Settings {
	s, _ := k3s.ReadSettings("/")
	return s
}

// Notify does nothing without systemd.
func (hostServices) Notify(state string) {
	// An error means that systemd's socket is gone, and then nobody listens.
	_, _ = sd.SdNotify(false, state)
}
