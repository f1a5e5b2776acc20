// SPDX-License-Identifier: Apache-2.0

// Package connect keeps a client's tunnels current. A configuration for wg-quick is
// of its moment; with this package a Linux client asks the nodes, through its
// tunnels, how it would be configured now, and follows: to new nodes, other endpoints,
// another gateway of a location, and with Services to another node when the one that
// carries them falls silent.
//
// [Server] is the nodes' side. It answers on a node's overlay addresses, and knows
// who asks by the source address, which WireGuard has checked. [Run] is the client's.
package connect

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
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
	// maxAnswer bounds what a node answers.
	maxAnswer = 4 << 20
)

// Options say what to run.
type Options struct {
	Interface string
	File      File
	Logger    *slog.Logger
}

// client is a running one.
type client struct {
	Options
	host   *netcfg.Host
	http   http.Client
	tunnel netcfg.Tunnel // but for the peers

	config   control.ClientConfig // as it was told last
	missed   map[string]int       // by public key, in a row
	tried    time.Time            // when silent nodes were asked last
	spoken   time.Time
	resolved map[string]resolved // by host
	resolver string              // as resolvconf was told
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
	c := &client{
		Options: o, config: o.File.Config, missed: make(map[string]int), resolved: make(map[string]resolved),
		tunnel: netcfg.Tunnel{Interface: o.Interface, PrivateKey: o.File.PrivateKey, ListenPort: port},
		http:   http.Client{Transport: &http.Transport{DisableKeepAlives: true}},
	}
	if c.host, err = netcfg.NewHost(netcfg.HostOptions{Logger: o.Logger, Interface: o.Interface}); err != nil {
		return fmt.Errorf("open host: %w", err)
	}
	defer func() {
		_, removeErr := c.host.Remove(context.WithoutCancel(ctx))
		err = errors.Join(err, c.setResolver(context.WithoutCancel(ctx), control.ClientConfig{}), removeErr, c.host.Close())
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
	switch {
	case ctx.Err() != nil:
		return
	case errors.Is(err, errRefused):
		c.Logger.Error("the nodes don't know this client any more; it was removed, or another one has its name or address")
	case err != nil:
		c.Logger.Debug("ask for the configuration", "err", err)
	default:
		if before, after := gatewayOf(c.config), gatewayOf(told); before.PublicKey != after.PublicKey && before.Name != "" {
			c.Logger.Info("services move", "from", before.Name, "to", after.Name)
		}
		c.config = told
	}
	if err := c.apply(ctx); err != nil && ctx.Err() == nil {
		c.Logger.Error("set up tunnels", "err", err)
	}
}

// learn asks the node that Services go through, and any other one when that stays
// silent.
func (c *client) learn(ctx context.Context) (control.ClientConfig, error) {
	if time.Since(c.tried) >= tryAgain {
		c.tried = time.Now()
		for _, p := range c.config.Peers {
			if c.silent(p) {
				_, _ = c.ask(ctx, p) // it counts whether it answers
			}
		}
	}
	gateway := gatewayOf(c.config)
	told, err := c.ask(ctx, gateway)
	if err == nil || !c.silent(gateway) {
		return told, err
	}
	for _, p := range c.config.Peers {
		if p.PublicKey == gateway.PublicKey || c.silent(p) {
			continue
		}
		if told, err = c.ask(ctx, p); err == nil {
			return told, nil
		}
	}
	return told, err
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

// ask asks one node, and counts its silence.
func (c *client) ask(ctx context.Context, p control.ClientPeer) (told control.ClientConfig, err error) {
	addr, ok := nodeAddr(p)
	if !ok {
		return told, fmt.Errorf("ask %s: it has no address", p.Name)
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	told, err = c.request(ctx, addr)
	if err != nil && !errors.Is(err, errRefused) {
		c.missed[p.PublicKey]++
		return told, fmt.Errorf("ask %s: %w", p.Name, err)
	}
	delete(c.missed, p.PublicKey)
	return told, err
}

func (c *client) request(ctx context.Context, addr netip.Addr) (told control.ClientConfig, err error) {
	query := url.Values{}
	for key, n := range c.missed {
		if n >= misses {
			query.Add("silent", key)
		}
	}
	at := url.URL{Scheme: "http", Host: netip.AddrPortFrom(addr, mesh.ClientPort).String(), Path: configPath, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), nil)
	if err != nil {
		return told, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return told, err
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusForbidden:
		return told, errRefused
	case resp.StatusCode != http.StatusOK:
		return told, errors.New(resp.Status)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(&told); err != nil {
		return told, err
	}
	return told, check(told)
}

// nodeAddr is a node's own overlay address: the first of its allowed IPs that is one.
func nodeAddr(p control.ClientPeer) (netip.Addr, bool) {
	i := slices.IndexFunc(p.AllowedIPs, netip.Prefix.IsSingleIP)
	if p.Overlay.IsValid() {
		return p.Overlay, true
	}
	if i < 0 {
		return netip.Addr{}, false
	}
	return p.AllowedIPs[i].Addr(), true
}

// check says whether a configuration can be put into effect.
func check(c control.ClientConfig) error {
	if len(c.Peers) == 0 || len(c.Overlay) == 0 {
		return errors.New("a configuration without peers or addresses")
	}
	for _, p := range c.Peers {
		if _, err := wgtypes.ParseKey(p.PublicKey); err != nil {
			return fmt.Errorf("public key of %s: %w", p.Name, err)
		}
		if _, _, err := net.SplitHostPort(p.Endpoint); err != nil {
			return fmt.Errorf("endpoint of %s: %w", p.Name, err)
		}
	}
	return nil
}

// apply brings the host to where it should be.
func (c *client) apply(ctx context.Context) error {
	t := c.tunnel
	t.MTU, t.Addresses = c.config.MTU, c.config.Overlay
	for _, p := range c.config.Peers {
		key, err := wgtypes.ParseKey(p.PublicKey)
		if err != nil {
			return fmt.Errorf("public key of %s: %w", p.Name, err)
		}
		t.Peers = append(t.Peers, netcfg.Peer{
			Key: key, Name: p.Name, Endpoint: c.resolve(ctx, p.Endpoint), AllowedIPs: p.AllowedIPs,
			PresharedKey: c.File.PresharedKey, Keepalive: time.Duration(c.config.Keepalive) * time.Second,
		})
	}
	desired := t.State()
	observed, err := c.host.Observe(ctx, desired)
	if err != nil {
		return fmt.Errorf("observe host: %w", err)
	}
	if plan := netcfg.Diff(observed, desired, netcfg.Options{Now: time.Now(), Prune: true}); !plan.Empty() {
		if err := c.host.Apply(ctx, plan); err != nil {
			return fmt.Errorf("apply plan: %w", err)
		}
	}
	c.speak(ctx, observed)
	return c.setResolver(ctx, c.config)
}

// speak has WireGuard shake hands where there is no session: pods and nodes can't
// begin, because they don't know where the client is.
func (c *client) speak(ctx context.Context, observed netcfg.State) {
	if time.Since(c.spoken) < tryAgain {
		return
	}
	c.spoken = time.Now()
	for _, p := range c.config.Peers {
		i := slices.IndexFunc(observed.Peers, func(o netcfg.Peer) bool { return o.Key.String() == p.PublicKey })
		if i >= 0 && time.Since(observed.Peers[i].LastHandshake) < netcfg.HandshakeFresh {
			continue
		}
		if addr, ok := nodeAddr(p); ok {
			if err := c.host.Speak(ctx, addr); err != nil {
				c.Logger.Debug("speak to peer", "peer", p.Name, "err", err)
			}
		}
	}
}

// resolve returns the address of an endpoint, the last one that was known if its name
// does not resolve.
func (c *client) resolve(ctx context.Context, endpoint string) netip.AddrPort {
	host, portText, _ := net.SplitHostPort(endpoint)
	port, _ := strconv.ParseUint(portText, 10, 16)
	if a, err := netip.ParseAddr(host); err == nil {
		return netip.AddrPortFrom(a, uint16(port))
	}
	last := c.resolved[host]
	if time.Since(last.at) >= resolveEvery {
		ctx, cancel := context.WithTimeout(ctx, askTimeout)
		defer cancel()
		last.at = time.Now()
		if found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host); err == nil && len(found) > 0 {
			last.addr = found[0].Unmap()
		} else {
			c.Logger.Debug("resolve endpoint", "host", host, "err", err)
		}
		c.resolved[host] = last
	}
	if !last.addr.IsValid() {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(last.addr, uint16(port))
}
