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
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
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
}

// Resolver looks up addresses; *net.Resolver implements it.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// kernel is the host's network configuration: netcfg/host, or a fake in tests.
type kernel interface {
	Facts(ctx context.Context) (netcfg.Facts, error)
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

	config          control.ClientConfig // in effect: the file's, then the last accepted answer
	missed          map[string]int       // unanswered requests in a row, by public key
	silentAskedAt   time.Time            // when silent nodes were last asked
	handshakesAt    time.Time            // when handshakes were last started
	resolved        map[string]resolved  // by host name
	resolverText    string               // what resolvconf was last given
	loggedState     string               // the last state logged by logState
	loggedConflicts string               // the last prefixes logged by logConflicts
}

// resolved is the result of a lookup. The address is invalid if none was ever found.
type resolved struct {
	addr netip.Addr
	at   time.Time
}

// Run sets up the tunnels and keeps them up to date until ctx ends. Then it removes
// everything that it has set up.
func Run(ctx context.Context, o Options) (err error) {
	port, err := freePort()
	if err != nil {
		return err
	}
	k, err := host.Open(host.Options{Logger: o.Logger, Interface: o.Interface})
	if err != nil {
		return fmt.Errorf("open host: %w", err)
	}
	c := newClient(o, k, port)
	defer func() {
		_, removeErr := k.Remove(context.WithoutCancel(ctx))
		err = errors.Join(err, c.setResolver(context.WithoutCancel(ctx), control.ClientConfig{}), removeErr, k.Close())
	}()
	if err := c.apply(ctx); err != nil {
		return err
	}
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

// newClient returns a client that starts with the configuration of its file.
func newClient(o Options, k kernel, port int) *client {
	return &client{
		Options: o, kernel: k, http: newHTTP(), config: o.File.Config,
		resolvconf: func(ctx context.Context, text string) error { return resolvconf(ctx, o.Interface, text) },
		tunnel:     netcfg.Tunnel{Interface: o.Interface, PrivateKey: o.File.PrivateKey, ListenPort: port},
		missed:     make(map[string]int), resolved: make(map[string]resolved),
	}
}

// newHTTP returns an HTTP client that follows no redirects and decompresses nothing, so
// that a hostile answer can neither send it elsewhere nor grow in memory.
func newHTTP() http.Client {
	return http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: 8 << 10},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
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
	if err == nil {
		if from, to := serviceGateway(c.config), serviceGateway(answer); from.ServiceGateway && from.PublicKey != to.PublicKey {
			c.Logger.Info("services go through another node now", "from", from.Name, "to", to.Name)
		}
		c.setConfig(answer)
	}
	c.logState(err)
	if err := c.apply(ctx); err != nil && ctx.Err() == nil {
		c.Logger.Error("set up tunnels", "err", err)
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
func (c *client) logState(err error) {
	state := "nodes answer"
	switch {
	case errors.Is(err, errRefused):
		state = "the nodes don't know this client any more: it was removed, or another client has its name or address"
	case c.allSilent():
		state = "no node answers; the system's own resolver is used until one does; check on a node that meshd client list still shows this client"
	case err != nil:
		c.Logger.Debug("ask for the configuration", "err", err)
		return
	}
	if state != c.loggedState {
		c.loggedState = state
		c.Logger.Info(state)
	}
}

// fetchConfig asks the service gateway for the configuration, and other nodes when the
// gateway is silent.
func (c *client) fetchConfig(ctx context.Context) (config control.ClientConfig, err error) {
	gateway := serviceGateway(c.config)
	others := func(silent bool) (ps []control.ClientPeer) {
		for _, p := range c.config.Peers {
			if c.silent(p) == silent && p.PublicKey != gateway.PublicKey {
				ps = append(ps, p)
			}
		}
		rand.Shuffle(len(ps), func(i, j int) { ps[i], ps[j] = ps[j], ps[i] })
		return ps[:min(len(ps), maxParallel)]
	}
	if c.Now().Sub(c.silentAskedAt) >= retryEvery {
		c.silentAskedAt = c.Now()
		_, _ = c.ask(ctx, others(true)) // only to update c.missed
	}
	if config, err = c.ask(ctx, []control.ClientPeer{gateway}); err == nil || !c.silent(gateway) {
		return config, err
	}
	if c.allSilent() {
		return c.ask(ctx, c.config.Standbys[:min(len(c.config.Standbys), maxParallel)])
	}
	return c.ask(ctx, others(false))
}

// allSilent reports whether every peer is silent.
func (c *client) allSilent() bool {
	return !slices.ContainsFunc(c.config.Peers, func(p control.ClientPeer) bool { return !c.silent(p) })
}

// serviceGateway returns the node that Services go through, or the first node if there
// is none.
func serviceGateway(c control.ClientConfig) control.ClientPeer {
	for _, p := range c.Peers {
		if p.ServiceGateway {
			return p
		}
	}
	return c.Peers[0]
}

// silent reports whether a node has left too many requests in a row unanswered.
func (c *client) silent(p control.ClientPeer) bool { return c.missed[p.PublicKey] >= missesToSilent }

// errRefused is a node's signed answer that this host is not one of its clients.
var errRefused = errors.New("refused")

// ask sends a request to all the nodes in parallel and updates c.missed. It returns the
// configuration of the first node, in the order of peers, that has answered.
func (c *client) ask(ctx context.Context, peers []control.ClientPeer) (config control.ClientConfig, err error) {
	type answer struct {
		config control.ClientConfig
		err    error
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	silent := c.silentKeys()
	answers := make([]answer, len(peers))
	var asking sync.WaitGroup
	for i, p := range peers {
		asking.Go(func() { answers[i].config, answers[i].err = c.request(ctx, p, silent) })
	}
	asking.Wait()
	err = errors.New("no node answers")
	for i, a := range slices.Backward(answers) {
		if key := peers[i].PublicKey; a.err == nil || errors.Is(a.err, errRefused) {
			delete(c.missed, key)
		} else {
			c.missed[key]++
		}
		if a.err == nil {
			config, err = a.config, nil
		} else if err != nil {
			err = fmt.Errorf("ask %s: %w", peers[i].Name, a.err)
		}
	}
	return config, err
}

// silentKeys returns the public keys of up to maxSilent silent nodes, the service
// gateway's first.
func (c *client) silentKeys() []string {
	keys := make([]string, 0, maxSilent)
	for _, p := range slices.Concat([]control.ClientPeer{serviceGateway(c.config)}, c.config.Peers, c.config.Standbys) {
		if c.silent(p) && len(keys) < maxSilent && !slices.Contains(keys, p.PublicKey) {
			keys = append(keys, p.PublicKey)
		}
	}
	return keys
}

// request asks one node for the configuration and checks its answer.
func (c *client) request(ctx context.Context, p control.ClientPeer, silent []string) (config control.ClientConfig, err error) {
	q := newQuestion(c.File.Config.Cluster, c.File.PrivateKey.PublicKey())
	query := q.query()
	query["silent"] = silent
	at := url.URL{Scheme: "http", Host: netip.AddrPortFrom(p.Overlay, mesh.ClientPort).String(), Path: configPath, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), nil)
	if err != nil {
		return config, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return config, err
	}
	defer resp.Body.Close()
	return c.readAnswer(q, p.ID, resp)
}

// readAnswer verifies the signature of a node's answer and returns the part of the
// configuration that this client accepts.
func (c *client) readAnswer(q question, node mesh.ID, resp *http.Response) (config control.ClientConfig, err error) {
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return config, err
	}
	if len(body) > maxAnswer {
		return config, fmt.Errorf("the answer has more than %d bytes", maxAnswer)
	}
	if err := q.verify(node, resp.Header, resp.StatusCode, body); err != nil {
		return config, err
	}
	switch {
	case resp.StatusCode == http.StatusForbidden:
		return config, errRefused
	case resp.StatusCode != http.StatusOK:
		return config, fmt.Errorf("status %d", resp.StatusCode)
	}
	if err := json.Unmarshal(body, &config); err != nil {
		return config, err
	}
	config, rejected, err := c.File.accept(config)
	if len(rejected) > 0 {
		c.Logger.Debug("parts of an answer were rejected", "node", node, "count", len(rejected), "first", rejected[0])
	}
	return config, err
}

// checkConfig returns an error if a configuration is incomplete or invalid.
func checkConfig(c control.ClientConfig) error {
	if len(c.Peers) == 0 || len(c.Overlay) == 0 {
		return errors.New("a configuration without peers or addresses")
	}
	if c.Cluster == "" || len(c.Ranges) == 0 {
		return errUnverifiable
	}
	for _, p := range c.Peers {
		if p.ID == (mesh.ID{}) {
			return fmt.Errorf("%s: %w", p.Name, errUnverifiable)
		}
		if err := checkPeer(p); err != nil {
			return fmt.Errorf("%s: %w", p.Name, err)
		}
	}
	return nil
}

// apply changes the host to match the configuration.
func (c *client) apply(ctx context.Context) error {
	t := c.tunnel
	t.MTU, t.Addresses = c.config.MTU, c.config.Overlay
	facts, err := c.kernel.Facts(ctx)
	if err != nil {
		return err
	}
	peers, conflicts := withoutAttached(c.tunnelPeers(), facts)
	c.logConflicts(conflicts)
	c.resolve(ctx, peers)
	for _, p := range peers {
		key, err := wgtypes.ParseKey(p.PublicKey)
		if err != nil {
			return fmt.Errorf("public key of %s: %w", p.Name, err)
		}
		t.Peers = append(t.Peers, netcfg.Peer{
			Key: key, Name: p.Name, Endpoint: c.endpoint(p, peers), AllowedIPs: p.AllowedIPs,
			PresharedKey: c.File.PresharedKey, Keepalive: time.Duration(c.config.Keepalive) * time.Second,
		})
	}
	desired := t.State()
	observed, err := c.kernel.Observe(ctx, desired)
	if err != nil {
		return fmt.Errorf("observe host: %w", err)
	}
	if plan := netcfg.Diff(observed, desired, netcfg.Options{Now: c.Now(), Prune: true}); !plan.Empty() {
		if err := c.kernel.Apply(ctx, plan); err != nil {
			return fmt.Errorf("apply plan: %w", err)
		}
	}
	c.startHandshakes(ctx, observed)
	resolver, _ := netip.ParseAddr(c.config.Resolver)
	if c.allSilent() || !routedTo(peers, resolver) {
		// The cluster's resolver can't be reached, and names of endpoints must still resolve.
		return c.setResolver(ctx, control.ClientConfig{})
	}
	return c.setResolver(ctx, c.config)
}

// routedTo reports whether an address is in the allowed IPs of one of the peers.
func routedTo(peers []control.ClientPeer, a netip.Addr) bool {
	return slices.ContainsFunc(peers, func(p control.ClientPeer) bool {
		return slices.ContainsFunc(p.AllowedIPs, func(n netip.Prefix) bool { return n.Contains(a) })
	})
}

// logConflicts logs the prefixes that overlap this host's own networks, each time that
// they change.
func (c *client) logConflicts(conflicts []string) {
	slices.Sort(conflicts)
	text := strings.Join(slices.Compact(conflicts), ", ")
	if text != c.loggedConflicts && text != "" {
		c.Logger.Warn("prefixes left out because they overlap this host's own networks", "prefixes", text)
	}
	c.loggedConflicts = text
}

// tunnelPeers returns the nodes to set up tunnels to: the peers of the configuration and,
// while all of them are silent, also the standbys.
func (c *client) tunnelPeers() []control.ClientPeer {
	if !c.allSilent() || len(c.config.Standbys) == 0 {
		return c.config.Peers
	}
	peers := slices.Clone(c.config.Standbys)
	for _, p := range c.config.Peers {
		p.AllowedIPs = slices.DeleteFunc(slices.Clone(p.AllowedIPs), func(a netip.Prefix) bool {
			return slices.ContainsFunc(c.config.Standbys, func(s control.ClientPeer) bool { return slices.Contains(s.AllowedIPs, a) })
		})
		peers = append(peers, p)
	}
	return peers
}

// startHandshakes makes WireGuard shake hands with nodes that have no session. Only the
// client can start: nodes don't know its endpoint, so pods could not reach it before.
func (c *client) startHandshakes(ctx context.Context, observed netcfg.State) {
	if c.Now().Sub(c.handshakesAt) < retryEvery {
		return
	}
	c.handshakesAt = c.Now()
	for _, p := range c.config.Peers {
		i := slices.IndexFunc(observed.Peers, func(o netcfg.Peer) bool { return o.Key.String() == p.PublicKey })
		if i >= 0 && c.Now().Sub(observed.Peers[i].LastHandshake) < netcfg.HandshakeFresh {
			continue
		}
		if err := c.kernel.InitiateHandshake(ctx, p.Overlay); err != nil {
			c.Logger.Debug("start handshake", "peer", p.Name, "err", err)
		}
	}
}

// resolve looks up the host names of endpoints whose last lookup is older than
// resolveEvery. If a lookup fails, the last known address stays in use.
func (c *client) resolve(ctx context.Context, peers []control.ClientPeer) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var due []string
	for _, p := range peers {
		host, _, _ := net.SplitHostPort(p.Endpoint)
		if _, err := netip.ParseAddr(host); err != nil && c.Now().Sub(c.resolved[host].at) >= resolveEvery && !slices.Contains(due, host) {
			due = append(due, host)
		}
	}
	found := make([]netip.Addr, len(due))
	var lookups errgroup.Group
	lookups.SetLimit(maxParallel)
	for i, host := range due {
		lookups.Go(func() error {
			addrs, err := c.Resolver.LookupNetIP(ctx, "ip", host)
			if err != nil || len(addrs) == 0 {
				c.Logger.Debug("resolve endpoint", "host", host, "err", err)
				return nil
			}
			found[i] = addrs[0].Unmap()
			return nil
		})
	}
	_ = lookups.Wait()
	for i, host := range due {
		if !found[i].IsValid() {
			found[i] = c.resolved[host].addr
		}
		c.resolved[host] = resolved{found[i], c.Now()}
	}
}

// endpoint returns a node's endpoint. It is invalid if the name has not been resolved,
// or if the address is routed into a tunnel, because a tunnel can't run through itself.
func (c *client) endpoint(p control.ClientPeer, peers []control.ClientPeer) netip.AddrPort {
	host, portText, _ := net.SplitHostPort(p.Endpoint)
	port, _ := strconv.ParseUint(portText, 10, 16)
	addr, err := netip.ParseAddr(host)
	if err != nil {
		addr = c.resolved[host].addr
	}
	if !isUnicast(addr) || routedTo(peers, addr) {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(addr, uint16(port))
}
