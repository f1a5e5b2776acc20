// SPDX-License-Identifier: Apache-2.0

// Package connect keeps a client's tunnels up to date. A configuration for wg-quick is
// a snapshot that gets old. With this package a Linux client polls the nodes, through
// its tunnels, for its current configuration, and applies the changes: new nodes, other
// endpoints, another gateway of a location, and another node for Services when the one
// that carries them stops answering.
//
// [NewServer] is the nodes' side. It answers on a node's overlay addresses and
// identifies the client by its source address, which WireGuard has checked. [Run] is
// the client's side. It accepts only answers that are signed by a node whose
// fingerprint it knows, from its file or from an earlier answer, and never uses
// prefixes outside the ranges in its file.
package connect

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/netcfg/host"
)

const (
	// askEvery is how often the service gateway is asked for the configuration, and
	// askTimeout how long a node has to answer.
	askEvery   = time.Second
	askTimeout = 900 * time.Millisecond
	// missesToSilent is how many requests in a row a node leaves unanswered before it
	// counts as silent and Services move to another node.
	missesToSilent = 2
	// retryEvery is how often silent nodes are asked again, and how often a handshake is
	// started with nodes that have no session.
	retryEvery = 5 * time.Second
	// resolveEvery is how long a resolved address of an endpoint's name is used before
	// the name is looked up again.
	resolveEvery = time.Minute
	// maxParallel is how many nodes or names are asked in parallel.
	maxParallel = 32
	// linkSilence is after how long without a packet a link to a cluster whose nodes don't answer is dead.
	linkSilence = 5 * time.Second
	// maxSilent is how many silent nodes a request lists at most.
	maxSilent = 64
)

// Options configure Run.
type Options struct {
	Interface string
	File      File
	Logger    *slog.Logger
	Now       func() time.Time
	Resolver  Resolver // looks up the host names of endpoints
	// Link is not nil for a link of a node to another cluster. It is told each time that this becomes
	// true or false: some node of that cluster answers. The host forwards what comes by a link, and
	// the link stays as it is when ctx ends.
	Link func(heard bool)
	// Status is told in one line how the tunnels are, for a person: once they are set up, and each time
	// that it changes. It may be nil.
	Status func(text string)
}

// Resolver looks up addresses; *net.Resolver implements it.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// kernel is the host's network configuration: netcfg/host, or a fake in tests.
type kernel interface {
	Networks(ctx context.Context) (netcfg.Facts, error)
	Observe(ctx context.Context, desired netcfg.State) (netcfg.State, error)
	Apply(ctx context.Context, plan netcfg.Plan) error
	InitiateHandshake(ctx context.Context, to netip.Addr) error
}

// client is the state of one Run.
type client struct {
	Options
	kernel     kernel
	resolvconf func(ctx context.Context, text string) error // see setResolver
	http       http.Client
	tunnel     netcfg.Tunnel // everything but the peers, the addresses and the MTU

	heard           bool                 // what Link was last told
	received        int64                // bytes, from all nodes
	receivedAt      time.Time            // when that was last seen to have grown
	sessions        map[string]bool      // public keys of the nodes with which there is a session
	config          control.ClientConfig // in effect: the file's, then the last accepted answer
	missed          map[string]int       // unanswered requests in a row, by public key
	silentAskedAt   time.Time            // when silent nodes were last asked
	handshakesAt    time.Time            // when handshakes were last started
	resolved        map[string]resolved  // by host name
	resolverText    string               // what resolvconf was last given
	loggedState     string               // the last state logged by logState
	toldStatus      string               // what Status was last told
	loggedConflicts string               // the last prefixes logged by logConflicts
}

// Run sets up the tunnels and keeps them up to date until ctx ends. Then it removes
// everything that it has set up.
func Run(ctx context.Context, o Options) (err error) {
	k, err := open(o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, k.Close()) }()
	port, err := choosePort(ctx, o, k)
	if err != nil {
		return err
	}
	c := newClient(o, k, port)
	if o.Link == nil {
		defer func() {
			_, removeErr := k.Remove(context.WithoutCancel(ctx))
			err = errors.Join(err, c.setResolver(context.WithoutCancel(ctx), control.ClientConfig{}), removeErr)
		}()
	}
	if err := c.apply(ctx); err != nil {
		return err
	}
	c.tellStatus(starting)
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		c.turn(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func open(o Options) (*host.Kernel, error) {
	k, err := host.Open(host.Options{Logger: o.Logger, Interface: o.Interface, Tunnel: true, Capture: o.File.grantsInternet(), Link: o.Link != nil})
	if err != nil {
		return nil, fmt.Errorf("open host: %w", err)
	}
	return k, nil
}

// newClient returns a client that starts with the configuration of its file.
func newClient(o Options, k kernel, port int) *client {
	return &client{
		Options: o, kernel: k, http: newHTTP(), config: o.File.Config,
		resolvconf: func(ctx context.Context, text string) error { return resolvconf(ctx, o.Interface, text) },
		tunnel:     netcfg.Tunnel{Interface: o.Interface, PrivateKey: o.File.PrivateKey, ListenPort: port, Internet: o.File.grantsInternet(), Forwards: o.Link != nil},
		missed:     make(map[string]int), resolved: make(map[string]resolved),
	}
}

// choosePort returns the port that the file names, else that of the device if there is one already, else
// an unused one.
func choosePort(ctx context.Context, o Options, k kernel) (int, error) {
	if port := o.File.Config.ListenPort; port != 0 {
		return port, nil
	}
	observed, err := k.Observe(ctx, netcfg.State{})
	if err != nil {
		return 0, fmt.Errorf("observe host: %w", err)
	}
	if d := observed.Device; d != nil && d.ListenPort != 0 {
		return d.ListenPort, nil
	}
	return freePort()
}

// freePort returns an unused UDP port for the device, which keeps it until the end of Run.
func freePort() (int, error) {
	l, err := net.ListenUDP("udp", nil)
	if err != nil {
		return 0, fmt.Errorf("find a free UDP port: %w", err)
	}
	return l.LocalAddr().(*net.UDPAddr).Port, l.Close()
}

// turn asks for the configuration and applies it.
func (c *client) turn(ctx context.Context) {
	answer, err := c.fetchConfig(ctx)
	if ctx.Err() != nil {
		return
	}
	c.tellLink(err == nil)
	if err == nil {
		if from, to := serviceGateway(c.config), serviceGateway(answer); from.ServiceGateway && from.PublicKey != to.PublicKey {
			c.Logger.Info("services go through another node now", "from", from.Name, "to", to.Name)
		}
		c.setConfig(answer)
	}
	trouble := c.trouble(err)
	c.logState(trouble, err)
	applyErr := c.apply(ctx)
	switch {
	case ctx.Err() != nil:
	case applyErr != nil:
		c.Logger.Error("set up tunnels", "err", applyErr)
		c.tellStatus(fmt.Sprintf("set up tunnels: %v", applyErr))
	case trouble != "":
		c.tellStatus(trouble)
	case err == nil || c.toldStatus != starting: // until an answer, the names of the nodes are not known
		c.tellStatus(statusText(c.config, c.answers))
	}
}

// tellLink tells a link's owner when a node has answered, and when nothing comes from any node any more.
func (c *client) tellLink(answered bool) {
	alive := !c.allSilent() || c.Now().Sub(c.receivedAt) < linkSilence
	if heard := answered || c.heard && alive; c.Link != nil && heard != c.heard {
		c.heard = heard
		c.Link(heard)
	}
}

// setConfig replaces the configuration. State of peers and host names that are no longer
// in it is dropped, so that ever new peers don't fill the memory.
func (c *client) setConfig(config control.ClientConfig) {
	c.config = config
	keys, hosts := make(map[string]bool), make(map[string]bool)
	for _, p := range slices.Concat(config.Peers, config.Standbys) {
		host, _, _ := net.SplitHostPort(p.Endpoint)
		keys[p.PublicKey], hosts[host] = true, true
	}
	maps.DeleteFunc(c.missed, func(key string, _ int) bool { return !keys[key] })
	maps.DeleteFunc(c.resolved, func(host string, _ resolved) bool { return !hosts[host] })
}

// logState logs whether the nodes answer, each time that it changes.
func (c *client) logState(trouble string, err error) {
	state := cmp.Or(trouble, "nodes answer")
	if trouble == "" && err != nil {
		c.Logger.Debug("ask for the configuration", "err", err)
		return
	}
	if state != c.loggedState {
		c.loggedState = state
		c.Logger.Info(state)
	}
}
