// SPDX-License-Identifier: Apache-2.0

// Package daemon is the loop that makes this host follow what the nodes tell each other.
// Each turn of the loop reads everything anew:
//
//	gossip.View ─► node.Announce ─► gossip.Publish, gossip.PublishVerdict
//	host.Facts  ─► node.Configure ─► netcfg.Diff ─► host.Apply
//	host.Observe ─► node.Conclude ─► handshakes, probes, cni.Apply, status
//
// An event (gossip, netlink, a timer, a signal) only leads to the next turn; nothing acts on
// the event itself. A turn that finds nothing to change writes nothing.
//
// The files:
//
//	daemon.go       what a daemon has, and its start
//	tasks.go        the parts of a daemon, and in which order they start and stop
//	loop.go         the loop
//	turn.go         one turn of it
//	edges.go        the interfaces through which the loop reaches everything else
//	record.go       publishes this node's record
//	verdicts.go     publishes its verdicts, and sets whom to probe for them
//	duplicate.go    stops a second daemon with the same identity
//	paths.go        finds paths to the peers beneath the tunnels
//	portmap.go      asks the router for port mappings
//	relay.go        forwards sealed packets between other nodes
//	links.go        runs the links to other clusters
//	streams.go      carries datagrams over TCP where UDP is blocked
//	apply.go        observes and changes the host
//	addrs.go        the addresses of other nodes' gossip ports
//	resolver.go     looks up host names
//	cni.go, k3s.go, ready.go     what pods need before they start
//	disk.go         the state directory
//	generation.go   settings that other nodes have in newer files
//	reload.go       changes of the configuration file
//	rotation.go     exchanges the secret
//	commands.go     how commands read and write; the commands themselves are in renumber.go,
//	                drain.go, trust.go, rotation.go, clients.go, probe.go, ping.go and
//	graph.go
//	status.go       what meshd status shows
//	journal.go      what the log says
//	servers.go      the HTTP servers
//	down.go         clears a host
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/connect"
	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/metrics"
	"github.com/meshd/meshd/internal/netcfg/host"
	"github.com/meshd/meshd/internal/node"
	"github.com/meshd/meshd/internal/path/relayudp"
	"github.com/meshd/meshd/internal/state"
)

// ErrDuplicate means that another daemon runs with this node's identity, and was started
// before this one.
var ErrDuplicate = errors.New("this node's identity runs on another host, too: " +
	"if this host is a copy of that one, stop meshd here, remove identity.json and node.json from its state directory, and start it: it makes an identity of its own; " +
	"if the other one is the copy, do so there")

// Options configure a daemon.
type Options struct {
	Config   string // path of the configuration file
	StateDir string
	RunDir   string
	Version  string
	Logger   *slog.Logger
	Reload   <-chan os.Signal // has the configuration file read again
	Force    bool             // Down also removes what running pods need
}

// daemon is what the turns of the loop share. Only the loop changes it.
type daemon struct {
	opt Options
	cfg config.Config // the file's
	// What the files of its links say, and whether these links run.
	linkFiles     []connect.LinkFile
	linksFollowed bool
	settings      mesh.Cluster // in force: the file's, or those of another node with a higher generation
	self          self
	disk          disk
	memory        node.Memory

	// The edges, see edges.go.
	kernel   kernel
	underlay underlay // paths use it, not the loop
	gossip   network
	streams  streams
	paths    paths
	ports    portMapper
	relay    relay
	prober   prober
	resolver *resolver
	services services
	servers  servers
	links    *links

	relayOptions relayudp.Options            // what the relay takes of gossip, streams and paths, set by their tasks
	forwards     atomic.Pointer[relayServer] // what comes by streams; nil before the relay's task has started

	log            journal
	names          *nodeNames // for the log
	metrics        *metrics.Metrics
	online         bool           // pods may start on the claimed addresses, as meshd status --wait waits for it
	bridgeIsStale  bool           // the pods' bridge has an address of a former slot
	reloadProblems []mesh.Problem // of the last reload, until one succeeds

	// For requests, see commands.go.
	commands  chan command
	published atomic.Pointer[snapshot]
}

// self is who this daemon is.
type self struct {
	state.Identity           // of the node
	instance       uint64    // higher than those of all daemons with this identity that started before
	started        time.Time // when this daemon was
}

func newDaemon(opt Options, cfg config.Config) *daemon {
	names := new(nodeNames)
	opt.Logger = slog.New(nameHandler{opt.Logger.Handler(), names})
	d := &daemon{
		opt: opt, cfg: cfg, settings: cfg.Cluster, log: newJournal(opt.Logger), names: names, metrics: metrics.New(opt.Version, time.Now),
		self: self{started: time.Now()}, services: hostServices{}, commands: make(chan command),
		links: newLinks(opt.Logger),
	}
	d.publish(control.Status{}, turn{})
	return d
}

// Run runs a daemon until ctx ends. It returns nil then, and an error when it
// could not start. Stopping changes nothing on the host.
func Run(ctx context.Context, opt Options) (err error) {
	cfg, err := config.Load(opt.Config)
	if err != nil {
		return err
	}
	opt.Logger = opt.Logger.With("node", cfg.Node.Name)
	d := newDaemon(opt, cfg)
	var broken []error
	if d.linkFiles, broken = connect.ReadLinks(opt.Config, cfg); broken != nil {
		return errors.Join(broken...)
	}
	k, err := host.Open(host.Options{Logger: opt.Logger, Interface: cfg.WireGuard.Interface, Bridge: cfg.CNI.Bridge})
	if err != nil {
		return fmt.Errorf("open host: %w", err)
	}
	defer func() { err = errors.Join(err, k.Close()) }()
	d.kernel, d.underlay = k, k.Underlay()
	dir, err := state.Open(opt.StateDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	d.disk.dir = dir
	if err := d.checkFirstStart(ctx); err != nil {
		return err
	}
	machineID, err := state.MachineID()
	if err != nil {
		return err
	}
	remembered, err := d.loadState(machineID)
	if err != nil {
		return err
	}
	d.publish(d.status(turn{}), turn{})
	return runTasks(ctx, d.tasks(remembered))
}

// bindAddress is what net.Listen takes: an address that is not set means all.
func bindAddress(a netip.AddrPort) string {
	if !a.Addr().IsValid() {
		return fmt.Sprintf(":%d", a.Port())
	}
	return a.String()
}
