// SPDX-License-Identifier: Apache-2.0

// Package connect keeps a client's tunnels current. A configuration for wg-quick is
// of its moment; with this package a Linux client asks the nodes, through its
// tunnels, how it would be configured now, and follows: to new nodes, other endpoints,
// another gateway of a location, and with Services to another node when the one that
// carries them falls silent.
//
// [NewServer] is the nodes' side. It answers on a node's overlay addresses, and knows
// who asks by the source address, which WireGuard has checked. [Run] is the client's. It
// believes what a node has signed whose fingerprint it was told before, in its
// configuration or in such an answer, and nothing beyond what it was granted.
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
	// askEvery is how often the node is asked that Services go through, and
	// askTimeout how long it has to answer.
	askEvery   = time.Second
	askTimeout = 900 * time.Millisecond
	// misses is how often in a row a node may stay silent before Services move.
	misses = 2
	// tryAgain is how often silent nodes are asked whether they are back, and how often
	// a node without a session is spoken to.
	tryAgain = 5 * time.Second
	// resolveEvery is how long the address of an endpoint's name counts.
	resolveEvery = time.Minute
	// askAtOnce is how many nodes or names are asked at once, maxSilent how many of the silent
	// ones a question names.
	askAtOnce, maxSilent = 32, 64
)

// Options say what to run.
type Options struct {
	Interface string
	File      File
	Logger    *slog.Logger
	Now       func() time.Time
	Resolver  Resolver // of the names of endpoints
}

// Resolver looks up addresses; *net.Resolver is one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// kernel is where the tunnels are.
type kernel interface {
	Observe(ctx context.Context, desired netcfg.State) (netcfg.State, error)
	Apply(ctx context.Context, plan netcfg.Plan) error
	Speak(ctx context.Context, to netip.Addr) error
}

// client is a running one.
type client struct {
	Options
	kernel     kernel
	attached   func() ([]netip.Prefix, error)               // this host's own networks
	resolvconf func(ctx context.Context, text string) error // see setResolver
	http       http.Client
	tunnel     netcfg.Tunnel // but for the peers

	config   control.ClientConfig // as it was told last
	missed   map[string]int       // by public key, in a row
	tried    time.Time            // when silent nodes were asked last
	spoken   time.Time
	resolved map[string]resolved // by host
	resolver string              // as resolvconf was told
	said     string              // to the user
	left     string              // out, as it was said last
}

type resolved struct {
	addr netip.Addr
	at   time.Time
}

// Run sets the tunnels up and keeps them current until ctx ends. Then it takes
// everything away again.
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

// newClient returns a client that goes by what its file says.
func newClient(o Options, k kernel, port int) *client {
	return &client{
		Options: o, kernel: k, http: newHTTP(), config: o.File.Config,
		attached:   func() ([]netip.Prefix, error) { return attached(o.Interface) },
		resolvconf: func(ctx context.Context, text string) error { return resolvconf(ctx, o.Interface, text) },
		tunnel:     netcfg.Tunnel{Interface: o.Interface, PrivateKey: o.File.PrivateKey, ListenPort: port},
		missed:     make(map[string]int), resolved: make(map[string]resolved),
	}
}

// newHTTP returns a client that takes an answer as it comes, and follows nobody
// elsewhere.
func newHTTP() http.Client {
	return http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: 8 << 10},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// freePort returns a UDP port that nobody uses: the device is to keep its own.
func freePort() (int, error) {
	l, err := net.ListenUDP("udp", nil)
	if err != nil {
		return 0, fmt.Errorf("find a free UDP port: %w", err)
	}
	return l.LocalAddr().(*net.UDPAddr).Port, l.Close()
}

// turn asks for the configuration, and puts it into effect.
func (c *client) turn(ctx context.Context) {
	told, err := c.learn(ctx)
	if ctx.Err() != nil {
		return
	}
	if err == nil {
		if from, to := gatewayOf(c.config), gatewayOf(told); from.ServiceGateway && from.PublicKey != to.PublicKey {
			c.Logger.Info("services move", "from", from.Name, "to", to.Name)
		}
		c.adopt(told)
	}
	c.say(err)
	if err := c.apply(ctx); err != nil && ctx.Err() == nil {
		c.Logger.Error("set up tunnels", "err", err)
	}
}

// adopt goes by another configuration from now on. What was known of those who are not
// in it is forgotten.
func (c *client) adopt(told control.ClientConfig) {
	c.config = told
	keys, hosts := make(map[string]bool), make(map[string]bool)
	for _, p := range slices.Concat(told.Peers, told.Standbys) {
		host, _, _ := net.SplitHostPort(p.Endpoint)
		keys[p.PublicKey], hosts[host] = true, true
	}
	maps.DeleteFunc(c.missed, func(key string, _ int) bool { return !keys[key] })
	maps.DeleteFunc(c.resolved, func(host string, _ resolved) bool { return !hosts[host] })
}

// say tells the user, once, what came of asking.
func (c *client) say(err error) {
	state := "nodes answer"
	switch {
	case errors.Is(err, errRefused):
		state = "the nodes don't know this client any more; it was removed, or another one has its name or address"
	case c.lost():
		state = "no node answers; until one does, the system's own resolver is in use; is this client in meshd client list still?"
	case err != nil:
		c.Logger.Debug("ask for the configuration", "err", err)
		return
	}
	if state != c.said {
		c.said = state
		c.Logger.Info(state)
	}
}

// learn asks the node that Services go through, and the others when that stays silent.
func (c *client) learn(ctx context.Context) (told control.ClientConfig, err error) {
	others := func(silent bool) (ps []control.ClientPeer) {
		for _, p := range c.config.Peers {
			if c.silent(p) == silent && p.PublicKey != gatewayOf(c.config).PublicKey {
				ps = append(ps, p)
			}
		}
		rand.Shuffle(len(ps), func(i, j int) { ps[i], ps[j] = ps[j], ps[i] })
		return ps[:min(len(ps), askAtOnce)]
	}
	if c.Now().Sub(c.tried) >= tryAgain {
		c.tried = c.Now()
		_, _ = c.ask(ctx, others(true)) // it counts who answers
	}
	gateway := gatewayOf(c.config)
	if told, err = c.ask(ctx, []control.ClientPeer{gateway}); err == nil || !c.silent(gateway) {
		return told, err
	}
	if c.lost() {
		return c.ask(ctx, c.config.Standbys[:min(len(c.config.Standbys), askAtOnce)])
	}
	return c.ask(ctx, others(false))
}

// lost says whether no peer answers any more.
func (c *client) lost() bool {
	return !slices.ContainsFunc(c.config.Peers, func(p control.ClientPeer) bool { return !c.silent(p) })
}

// gatewayOf is the node that Services go through, else the first one.
func gatewayOf(c control.ClientConfig) control.ClientPeer {
	for _, p := range c.Peers {
		if p.ServiceGateway {
			return p
		}
	}
	return c.Peers[0]
}

func (c *client) silent(p control.ClientPeer) bool { return c.missed[p.PublicKey] >= misses }

// errRefused says that a node answers, and has nothing to tell this client.
var errRefused = errors.New("refused")

// ask asks nodes at once, and counts their silence. It returns what the first of them
// says that answers, in their order.
func (c *client) ask(ctx context.Context, peers []control.ClientPeer) (told control.ClientConfig, err error) {
	type answer struct {
		told control.ClientConfig
		err  error
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	silent := c.silentKeys()
	answers := make([]answer, len(peers))
	var asking sync.WaitGroup
	for i, p := range peers {
		asking.Go(func() { answers[i].told, answers[i].err = c.request(ctx, p, silent) })
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
			told, err = a.told, nil
		} else if err != nil {
			err = fmt.Errorf("ask %s: %w", peers[i].Name, a.err)
		}
	}
	return told, err
}

// silentKeys are the public keys of nodes that don't answer: that of the node that
// Services go through, and some others.
func (c *client) silentKeys() []string {
	keys := make([]string, 0, maxSilent)
	for _, p := range slices.Concat([]control.ClientPeer{gatewayOf(c.config)}, c.config.Peers, c.config.Standbys) {
		if c.silent(p) && len(keys) < maxSilent && !slices.Contains(keys, p.PublicKey) {
			keys = append(keys, p.PublicKey)
		}
	}
	return keys
}

// request asks one node, and checks what it says.
func (c *client) request(ctx context.Context, p control.ClientPeer, silent []string) (told control.ClientConfig, err error) {
	q := newQuestion(c.File.Config.Cluster, c.File.PrivateKey.PublicKey())
	query := q.query()
	query["silent"] = silent
	at := url.URL{Scheme: "http", Host: netip.AddrPortFrom(p.Overlay, mesh.ClientPort).String(), Path: configPath, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), nil)
	if err != nil {
		return told, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return told, err
	}
	defer resp.Body.Close()
	return c.read(q, p.ID, resp)
}

// read takes a node's answer to a question.
func (c *client) read(q question, node mesh.ID, resp *http.Response) (told control.ClientConfig, err error) {
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return told, err
	}
	if len(body) > maxAnswer {
		return told, fmt.Errorf("the answer has more than %d bytes", maxAnswer)
	}
	if err := q.verify(node, resp.Header, resp.StatusCode, body); err != nil {
		return told, err
	}
	switch {
	case resp.StatusCode == http.StatusForbidden:
		return told, errRefused
	case resp.StatusCode != http.StatusOK:
		return told, fmt.Errorf("status %d", resp.StatusCode)
	}
	if err := json.Unmarshal(body, &told); err != nil {
		return told, err
	}
	told, left, err := c.File.believe(told)
	if len(left) > 0 {
		c.Logger.Debug("left out of an answer", "node", node, "count", len(left), "first", left[0])
	}
	return told, err
}

// check says whether a configuration can be put into effect.
func check(c control.ClientConfig) error {
	if len(c.Peers) == 0 || len(c.Overlay) == 0 {
		return errors.New("a configuration without peers or addresses")
	}
	if c.Cluster == "" || len(c.Ranges) == 0 {
		return errUnsigned
	}
	for _, p := range c.Peers {
		if p.ID == (mesh.ID{}) {
			return fmt.Errorf("%s: %w", p.Name, errUnsigned)
		}
		if err := checkPeer(p); err != nil {
			return fmt.Errorf("%s: %w", p.Name, err)
		}
	}
	return nil
}

// apply brings the host to where it should be.
func (c *client) apply(ctx context.Context) error {
	t := c.tunnel
	t.MTU, t.Addresses = c.config.MTU, c.config.Overlay
	others, err := c.attached()
	if err != nil {
		return err
	}
	peers, left := withoutAttached(c.peers(), others)
	c.sayLeft(left)
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
	c.speak(ctx, observed)
	resolver, _ := netip.ParseAddr(c.config.Resolver)
	if c.lost() || !leadTo(peers, resolver) {
		return c.setResolver(ctx, control.ClientConfig{}) // names of endpoints have to resolve
	}
	return c.setResolver(ctx, c.config)
}

// leadTo reports whether an address is behind one of the peers.
func leadTo(peers []control.ClientPeer, a netip.Addr) bool {
	return slices.ContainsFunc(peers, func(p control.ClientPeer) bool {
		return slices.ContainsFunc(p.AllowedIPs, func(n netip.Prefix) bool { return n.Contains(a) })
	})
}

// sayLeft tells the user, once, what this host's own networks keep out.
func (c *client) sayLeft(left []string) {
	slices.Sort(left)
	said := strings.Join(slices.Compact(left), ", ")
	if said != c.left && said != "" {
		c.Logger.Warn("left out: it would take the place of this host's own networks", "prefixes", said)
	}
	c.left = said
}

// peers are the nodes to which there are tunnels: those of the configuration and, when
// none of them answers, those that would take over.
func (c *client) peers() []control.ClientPeer {
	if !c.lost() || len(c.config.Standbys) == 0 {
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

// speak has WireGuard shake hands where there is no session: pods and nodes can't
// begin, because they don't know where the client is.
func (c *client) speak(ctx context.Context, observed netcfg.State) {
	if c.Now().Sub(c.spoken) < tryAgain {
		return
	}
	c.spoken = c.Now()
	for _, p := range c.config.Peers {
		i := slices.IndexFunc(observed.Peers, func(o netcfg.Peer) bool { return o.Key.String() == p.PublicKey })
		if i >= 0 && c.Now().Sub(observed.Peers[i].LastHandshake) < netcfg.HandshakeFresh {
			continue
		}
		if err := c.kernel.Speak(ctx, p.Overlay); err != nil {
			c.Logger.Debug("speak to peer", "peer", p.Name, "err", err)
		}
	}
}

// resolve looks up the names of endpoints that are due. The last address that was known
// stays when a name does not resolve.
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
	var asking errgroup.Group
	asking.SetLimit(askAtOnce)
	for i, host := range due {
		asking.Go(func() error {
			addrs, err := c.Resolver.LookupNetIP(ctx, "ip", host)
			if err != nil || len(addrs) == 0 {
				c.Logger.Debug("resolve endpoint", "host", host, "err", err)
				return nil
			}
			found[i] = addrs[0].Unmap()
			return nil
		})
	}
	_ = asking.Wait()
	for i, host := range due {
		if !found[i].IsValid() {
			found[i] = c.resolved[host].addr
		}
		c.resolved[host] = resolved{found[i], c.Now()}
	}
}

// endpoint is where a node is, as far as that is known, and if it is not behind a
// tunnel: that can't run through itself.
func (c *client) endpoint(p control.ClientPeer, peers []control.ClientPeer) netip.AddrPort {
	host, portText, _ := net.SplitHostPort(p.Endpoint)
	port, _ := strconv.ParseUint(portText, 10, 16)
	addr, err := netip.ParseAddr(host)
	if err != nil {
		addr = c.resolved[host].addr
	}
	if !isUnicast(addr) || leadTo(peers, addr) {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(addr, uint16(port))
}
