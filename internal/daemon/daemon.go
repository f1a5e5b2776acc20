// SPDX-License-Identifier: Apache-2.0

// Package daemon is the one loop that turns what nodes tell each other into
// what this host needs. Each turn of it looks at everything anew:
//
//	gossip.View ─► node.Announce ─► gossip.Publish, gossip.PublishVerdict
//	host.Facts  ─► node.Configure ─► netcfg.Diff ─► host.Apply
//	host.Observe ─► node.Conclude ─► handshakes, probes, cni.Apply, status
//
// Whatever happens (gossip, netlink, a timer, a signal) only makes the loop
// take another turn; nothing acts on the payload of an event. A turn that
// finds all as it should be writes nothing.
//
// The files tell one story each:
//
//	daemon.go    the start
//	tasks.go     runs all parts and stops them; servers.go has those that are HTTP servers
//	loop.go      the loop; turn.go is what a turn saw and did
//	edges.go     the interfaces through which the loop reaches the world
//	record.go    what this node says of itself
//	carry.go     verdicts, and whom to probe for them
//	apply.go     changes the host
//	addrs.go     where the other nodes' gossip ports are
//	names.go     resolves host names
//	cni.go, k3s.go, ready.go     what pods need before they start
//	memory.go    what is known of the others, and who is forgotten
//	generation.go, reload.go     other settings, from other nodes or the file
//	renumber.go, drain.go, trust.go, clients.go, sweep.go, graph.go     commands
//	status.go    what a person sees; journal.go is what the log says
//	down.go      clears a host
package daemon

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"time"

	"golang.org/x/time/rate"

	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/gossip"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/metrics"
	"github.com/meshd/meshd/internal/netcfg/host"
	"github.com/meshd/meshd/internal/node"
	"github.com/meshd/meshd/internal/state"
)

// ErrDuplicate means that another daemon runs with this node's identity, and was started
// before this one.
var ErrDuplicate = errors.New("this node's identity runs on another host, too: " +
	"if this host is a copy of that one, stop meshd here, remove identity.json and node.json from its state directory, and start it: it makes an identity of its own; " +
	"if the other one is the copy, do so there")

// Options says where a daemon finds its things.
type Options struct {
	Config   string // path of the configuration file
	StateDir string
	RunDir   string
	Version  string
	Logger   *slog.Logger
	Reload   <-chan os.Signal // "look again"
}

// daemon is what the turns of the loop share.
type daemon struct {
	opt      Options
	cfg      config.Config // changed by the loop alone; others take the turn's
	log      *slog.Logger
	started  time.Time
	instance uint64

	dir      disk
	identity state.Identity
	node     state.Node   // as on disk
	used     mesh.Cluster // settings in force, the file's or those of a higher generation

	host     kernel
	gossip   network
	prober   prober
	names    *names
	services services
	server   controlServer

	metrics *metrics.Metrics
	monitor httpServer
	answers httpServer
	advice  advice

	storyLimit *rate.Limiter

	readiness readiness
	objects   objectsFile
	memory    node.Memory
	complaint complaint
	refused   []mesh.Problem // what stands against the last reload

	asked chan func() // by commands, for the loop to do

	shown     control.Status // as published last
	published snapshot
}

// Run runs a daemon until ctx ends. It returns nil then, and an error when it
// could not start. Stopping changes nothing on the host.
func Run(ctx context.Context, opt Options) (err error) {
	cfg, err := config.Load(opt.Config)
	if err != nil {
		return err
	}
	d := &daemon{opt: opt, cfg: cfg, log: opt.Logger, started: time.Now(), services: hostServices{}, asked: make(chan func()), storyLimit: newStoryLimit()}
	dir, err := state.Open(opt.StateDir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Close()) }()
	d.dir = dir
	machineID, err := state.MachineID()
	if err != nil {
		return err
	}
	remembered, err := d.recall(machineID)
	if err != nil {
		return err
	}
	k, err := host.Open(host.Options{Logger: d.log, Interface: cfg.WireGuard.Interface, Bridge: cfg.CNI.Bridge})
	if err != nil {
		return fmt.Errorf("open host: %w", err)
	}
	defer func() { err = errors.Join(err, k.Close()) }()
	d.host = k
	d.metrics = metrics.New(opt.Version)
	d.show(d.status(turn{}), turn{})
	return runTasks(ctx, d.tasks(remembered))
}

// recall reads the state directory: who this node is, what it has promised, and
// what it knew of the others.
func (d *daemon) recall(machineID string) (gossip.Remembered, error) {
	identity, origin, err := d.dir.Identity(machineID, rand.Reader)
	if err != nil {
		return gossip.Remembered{}, err
	}
	d.identity = identity
	d.log = d.log.With("node", d.cfg.Node.Name)
	d.log.Info("identity", "id", identity.ID(), "origin", origin)
	if d.node, err = d.dir.Node(); err != nil {
		return gossip.Remembered{}, err
	}
	d.used = inForce(d.cfg.Cluster, d.node.Adopted)
	// A start that is not on disk would let old packets of ours pass for new
	// ones; so a disk that takes nothing is an error here, and only here.
	d.node.Boot = nextBoot(d.node.Boot, time.Now())
	if err := d.dir.SaveNode(d.node); err != nil {
		return gossip.Remembered{}, err
	}
	if d.instance, err = newInstance(d.node.Boot, rand.Reader); err != nil {
		return gossip.Remembered{}, err
	}
	return d.recallObjects()
}

// nextBoot numbers a start. The others take no packet of a start that has a lower
// number than one that they have seen; so a node whose count was lost, or put
// back from a backup, must not begin anew. The clock is ahead of any count.
func nextBoot(last uint64, now time.Time) uint64 {
	return max(last+1, uint64(max(now.Unix(), 0)))
}

// newInstance names a start of the daemon: by its number, which rises with the clock,
// and at random. So of two daemons with one identity both know which started later.
func newInstance(boot uint64, random io.Reader) (uint64, error) {
	var b [4]byte
	if _, err := io.ReadFull(random, b[:]); err != nil {
		return 0, fmt.Errorf("draw instance: %w", err)
	}
	return boot<<32 | uint64(binary.BigEndian.Uint32(b[:])), nil
}

// bindAddress is what net.Listen takes: an address that is not set means all.
func bindAddress(a netip.AddrPort) string {
	if !a.Addr().IsValid() {
		return fmt.Sprintf(":%d", a.Port())
	}
	return a.String()
}
