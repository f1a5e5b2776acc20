// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/connect"
	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
)

// AddClient implements control.Daemon.
func (d *daemon) AddClient(ctx context.Context, r control.ClientRequest) (config control.ClientConfig, err error) {
	wait := d.inLoop(ctx, func() { config, err = d.addClient(r, time.Now()) })
	return config, errors.Join(wait, err)
}

func (d *daemon) addClient(r control.ClientRequest, now time.Time) (control.ClientConfig, error) {
	t := d.published.Load().turn
	in, err := clientInput(t)
	if err != nil {
		return control.ClientConfig{}, err
	}
	in.Clients = d.gossip.View().Clients // others may have added some since
	c, err := newClient(in, r, now)
	if err != nil {
		return control.ClientConfig{}, fmt.Errorf("%w: %w", control.ErrRefused, err)
	}
	if c, err = d.gossip.AddClient(c); err != nil {
		return control.ClientConfig{}, fmt.Errorf("%w: %w", control.ErrRefused, err)
	}
	d.log.Info("client added", "client", c.Name, "id", c.ID, "overlay", in.Cluster.ClientAddresses(c.Index))
	in.Clients = append(in.Clients, c)
	d.saveClients(now)
	return clientConfig(mesh.WithoutReplaced(in), c, withServiceGateway(t.view.Alive, c)), nil
}

// saveClients writes the objects to disk at once, so that a client whose configuration was
// given out, or that was removed, stays so after a crash. If that fails, the loop tries
// again and reports it.
func (d *daemon) saveClients(now time.Time) {
	if err := d.saveObjects(now, true); err != nil {
		d.log.Warn("clients are not on disk yet", "err", err)
	}
}

// clientInput returns what a client's configuration follows from, as a turn saw it.
func clientInput(t turn) (mesh.Input, error) {
	if len(t.wanted.Topology.Addresses) == 0 {
		return mesh.Input{}, fmt.Errorf("%w: this node has no place in the mesh yet; see meshd status", control.ErrRefused)
	}
	return t.wanted.Input, nil
}

// newClient returns the requested client, without author and ID.
func newClient(in mesh.Input, r control.ClientRequest, now time.Time) (mesh.Client, error) {
	c := mesh.Client{Name: r.Name, Added: now.UnixMilli(), NoInternalIPs: r.NoInternalIPs}
	var err error
	if c.Key, err = wgtypes.ParseKey(r.PublicKey); err != nil || c.Key == (wgtypes.Key{}) {
		return c, fmt.Errorf("%q is not a WireGuard public key", r.PublicKey)
	}
	if r.PresharedKey != "" {
		key, err := wgtypes.ParseKey(r.PresharedKey)
		if err != nil {
			return c, errors.New("the preshared key is not a WireGuard key")
		}
		c.PresharedKey = mesh.PresharedKey(key)
	}
	if c.Access, err = mesh.ParseAccessList(r.Access); err != nil {
		return c, err
	}
	if err := errors.Join(mesh.CheckAccess(c.Access), checkUnique(in, c), addNetworks(in, &c, r)); err != nil {
		return c, err
	}
	toInternet := func(a mesh.Access) bool { return a.Target == mesh.AccessInternet }
	if slices.ContainsFunc(c.Access, toInternet) && len(mesh.Exits(in)) == 0 {
		return c, errors.New("no node that clients have tunnels to offers the internet; set node.exit: true on a node with an endpoint, and run: systemctl reload meshd")
	}
	return c, assign(in, &c, r.ServiceGateway)
}

// addNetworks gives a client the networks behind it.
func addNetworks(in mesh.Input, c *mesh.Client, r control.ClientRequest) (err error) {
	for _, s := range r.Networks {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return fmt.Errorf("network %q: want an address and a length, as in 192.168.50.0/24", s)
		}
		if p != p.Masked() {
			return fmt.Errorf("network %v has host bits set, write %v", p, p.Masked())
		}
		c.Networks = append(c.Networks, p)
	}
	slices.SortFunc(c.Networks, mesh.ComparePrefix)
	if c.Offers, err = mesh.ParseAccessList(r.Offers); err != nil {
		return err
	}
	if r.Endpoint != "" {
		host, port, err := net.SplitHostPort(r.Endpoint)
		n, portErr := strconv.ParseUint(port, 10, 16)
		if err != nil || portErr != nil || n == 0 || !mesh.ValidHost(host) {
			return fmt.Errorf("endpoint %q: want a host and a port, as in vpn.example.com:51820", r.Endpoint)
		}
		c.Endpoint = mesh.Endpoint{Host: host, Port: uint16(n), Source: mesh.EndpointConfigured}
	}
	c.Cluster = r.Cluster
	return mesh.CheckClientNetworks(in, *c)
}

// checkUnique refuses a client with the name or key of another client or a node.
func checkUnique(in mesh.Input, c mesh.Client) error {
	if _, err := mesh.ParseID(c.Name); err == nil {
		return fmt.Errorf("%s looks like a fingerprint, and other commands would take it for one; choose another name", c.Name)
	}
	for _, o := range in.Clients {
		switch {
		case strings.EqualFold(o.Name, c.Name):
			return fmt.Errorf("there is a client %s; choose another name, or run: meshd client remove %s", o.Name, o.Name)
		case o.Key == c.Key:
			return fmt.Errorf("client %s has this public key; run: meshd client remove %s", o.Name, o.Name)
		}
	}
	for _, n := range in.Records {
		switch {
		case strings.EqualFold(n.Name, c.Name):
			return fmt.Errorf("there is a node %s; choose another name", n.Name)
		case n.Key == c.Key:
			return fmt.Errorf("node %s has this public key", n.Name)
		}
	}
	return nil
}

// assign gives a client an address, and the service gateway that it asks for.
func assign(in mesh.Input, c *mesh.Client, gateway string) error {
	var ok bool
	if c.Index, ok = mesh.FreeClientIndex(in.Cluster, in.Clients, c.Key); !ok {
		return fmt.Errorf("all %d addresses for clients are taken: run meshd client remove for clients that are not needed; for more, cluster.overlay must be wider", in.Cluster.ClientSlots())
	}
	for _, n := range in.Records {
		if gateway != "" && (n.Name == gateway || n.ID().String() == gateway) {
			c.ServiceGateway = n.ID()
		}
	}
	homes := mesh.Homes(in)
	switch {
	case len(homes) == 0:
		return errors.New("no node has an endpoint, so no client could reach one; set node.endpoint on a node, and forward that port to it")
	case gateway != "" && c.ServiceGateway == mesh.ID{}:
		return fmt.Errorf("no node is named %s; meshd status lists them", gateway)
	case gateway != "" && !slices.Contains(homes, c.ServiceGateway):
		return fmt.Errorf("clients have no tunnels to node %s: it has no endpoint, or is not a gateway of its location", gateway)
	}
	return nil
}

// ClientConfig implements control.Daemon.
func (d *daemon) ClientConfig(client string) (control.ClientConfig, error) {
	t := d.published.Load().turn
	in, err := clientInput(t)
	if err != nil {
		return control.ClientConfig{}, err
	}
	c, err := findClient(in.Clients, client)
	if err != nil {
		return control.ClientConfig{}, err
	}
	return clientConfig(mesh.WithoutReplaced(in), c, withServiceGateway(t.view.Alive, c)), nil
}

// RemoveClient implements control.Daemon.
func (d *daemon) RemoveClient(ctx context.Context, client string) (removed control.RemovedClient, err error) {
	wait := d.inLoop(ctx, func() {
		var c mesh.Client
		if c, err = findClient(d.gossip.View().Clients, client); err != nil {
			return
		}
		if err = d.gossip.RemoveClient(c.ID); err != nil {
			return
		}
		d.log.Info("client removed", "client", c.Name, "id", c.ID)
		removed = control.RemovedClient{ID: c.ID, Name: c.Name}
		d.saveClients(time.Now())
	})
	return removed, errors.Join(wait, err)
}

// withServiceGateway takes the service gateway that a client names for alive: a printed
// configuration is used for longer than this moment.
func withServiceGateway(alive map[mesh.ID]bool, c mesh.Client) map[mesh.ID]bool {
	alive = maps.Clone(alive)
	alive[c.ServiceGateway] = true
	return alive
}

// configOf returns the current configuration of the client that sends a request. It
// implements connect.Source.
func (d *daemon) configOf(r connect.Requester) (config control.ClientConfig, ok bool) {
	last := d.published.Load()
	t := &last.turn
	i := slices.IndexFunc(t.wanted.Topology.AllClients, func(c mesh.Client) bool {
		return c.Key == r.Key && slices.Contains(t.wanted.Input.Cluster.ClientAddresses(c.Index), r.Addr)
	})
	if i < 0 {
		return control.ClientConfig{}, false
	}
	c := t.wanted.Topology.AllClients[i]
	return last.configs.get(c.ID, nodesWithKeys(t.wanted.Input.Records, r.Silent), func(silent []mesh.ID) control.ClientConfig {
		alive := maps.Clone(t.view.Alive)
		for _, id := range silent {
			delete(alive, id)
		}
		return clientConfig(t.wanted.Input, c, alive)
	}), true
}

// nodesWithKeys returns the nodes that have one of the public keys, sorted.
func nodesWithKeys(records []mesh.Record, keys []string) []mesh.ID {
	if len(keys) == 0 {
		return nil
	}
	wanted := make(map[string]bool, len(keys))
	for _, k := range keys {
		wanted[k] = true
	}
	var ids []mesh.ID
	for _, r := range records {
		if wanted[r.Key.String()] {
			ids = append(ids, r.ID())
		}
	}
	slices.SortFunc(ids, mesh.ID.Compare)
	return ids
}

// isClientAddress reports whether an address is of a range that only clients have.
// WireGuard has checked that it is the client's own.
func (d *daemon) isClientAddress(a netip.Addr) bool {
	t := &d.published.Load().turn
	return slices.ContainsFunc(t.wanted.Topology.ClientRanges, func(p netip.Prefix) bool { return p.Contains(a) })
}

// maxConfigs is how many configurations of one client are kept, of those that differ by
// which nodes it calls silent.
const maxConfigs = 8

// configCache keeps the configurations that clients got since the last turn: each client
// asks every second, and working one out takes as long as a turn. The zero value is empty.
type configCache struct {
	mu      sync.Mutex
	configs map[mesh.ID]map[string]control.ClientConfig // by client, and by the silent nodes
}

// get returns the configuration of a client to which some nodes are silent, and works it
// out if it is not kept. A client that names ever other nodes gets, after maxConfigs, what
// holds if none is silent.
func (cache *configCache) get(client mesh.ID, silent []mesh.ID, work func(silent []mesh.ID) control.ClientConfig) control.ClientConfig {
	cache.mu.Lock()
	if cache.configs == nil {
		cache.configs = make(map[mesh.ID]map[string]control.ClientConfig)
	}
	configs := cache.configs[client]
	if configs == nil {
		configs = make(map[string]control.ClientConfig)
		cache.configs[client] = configs
	}
	key := fmt.Sprint(silent)
	if _, ok := configs[key]; !ok && len(configs) >= maxConfigs {
		silent, key = nil, fmt.Sprint([]mesh.ID(nil))
	}
	c, ok := configs[key]
	cache.mu.Unlock()
	if ok {
		return c
	}
	c = work(silent) // unlocked: others may ask meanwhile
	cache.mu.Lock()
	defer cache.mu.Unlock()
	configs[key] = c
	return c
}

// findClient returns the client with a name or ID. Errors wrap control.ErrRefused.
func findClient(clients []mesh.Client, name string) (mesh.Client, error) {
	var found []mesh.Client
	for _, c := range clients {
		if c.ID.String() == name {
			return c, nil // even if another client has this name
		}
		if c.Name == name {
			found = append(found, c)
		}
	}
	switch {
	case len(found) == 0:
		return mesh.Client{}, fmt.Errorf("%w: no client is named %s; meshd client list shows them", control.ErrRefused, name)
	case len(found) > 1:
		return mesh.Client{}, fmt.Errorf("%w: %d clients are named %s; give the ID of one, from meshd status", control.ErrRefused, len(found), name)
	}
	return found[0], nil
}

// clientConfig returns the configuration of a client.
func clientConfig(in mesh.Input, c mesh.Client, alive map[mesh.ID]bool) control.ClientConfig {
	m := mesh.ClientConfigOf(in, c, alive)
	out := control.ClientConfig{
		Cluster: in.Cluster.Name, ID: c.ID, Name: c.Name, PublicKey: c.Key.String(), PresharedKey: c.PresharedKey != mesh.PresharedKey{},
		Overlay: m.Addresses, Access: mesh.AccessStrings(c.Access), Unserved: mesh.AccessStrings(m.Unserved), Ranges: m.Ranges, Search: slices.Clone(m.Search),
		MTU: m.MTU, Keepalive: int(m.Keepalive.Seconds()), Peers: clientPeers(m.Peers), Standbys: clientPeers(m.Standbys),
		Networks: slices.Clone(c.Networks), ListenPort: int(c.Endpoint.Port),
	}
	if m.Resolver.IsValid() {
		out.Resolver = m.Resolver.String()
	}
	return out
}

func clientPeers(peers []mesh.ClientPeer) []control.ClientPeer {
	out := []control.ClientPeer{}
	for _, p := range peers {
		out = append(out, control.ClientPeer{
			ID: p.ID, Name: p.Name, PublicKey: p.Key.String(), Overlay: p.Overlay[0], Endpoint: clientEndpoint(p.Endpoints),
			AllowedIPs: p.AllowedIPs, ServiceGateway: p.ServiceGateway,
		})
	}
	return out
}

// clientEndpoint returns the best endpoint, because a client's configuration has room for
// one: what a person has configured, else an IPv4 address, because most networks have IPv4.
func clientEndpoint(endpoints []mesh.Endpoint) string {
	best := slices.MinFunc(endpoints, func(a, b mesh.Endpoint) int { return cmp.Compare(rankEndpoint(a), rankEndpoint(b)) })
	return net.JoinHostPort(best.Host, strconv.Itoa(int(best.Port)))
}

func rankEndpoint(e mesh.Endpoint) int {
	a, err := netip.ParseAddr(e.Host)
	switch {
	case e.Source == mesh.EndpointConfigured:
		return 0
	case err == nil && a.Is4():
		return 1
	}
	return 2
}

// clientStatus returns the clients that are in force, with what WireGuard knows of their
// tunnels to this node.
func clientStatus(t index) []control.ClientStatus {
	out := []control.ClientStatus{}
	onDevice := make(map[wgtypes.Key]netcfg.Peer, len(t.observed.Peers))
	for _, p := range t.observed.Peers {
		onDevice[p.Key] = p
	}
	for _, c := range t.wanted.Topology.AllClients {
		s := control.ClientStatus{
			ID: c.ID, Name: c.Name, Overlay: t.wanted.Input.Cluster.ClientAddresses(c.Index), Access: mesh.AccessStrings(c.Access),
			AddedBy: t.nameOf(mesh.IDOf(c.Author)), Added: time.UnixMilli(c.Added).UTC(),
			PresharedKey: c.PresharedKey != mesh.PresharedKey{},
			Networks:     slices.Clone(c.Networks), Offers: mesh.AccessStrings(c.Offers), Cluster: c.Cluster, NoInternalIPs: c.NoInternalIPs,
		}
		if c.ServiceGateway != (mesh.ID{}) {
			s.ServiceGateway = t.nameOf(c.ServiceGateway)
		}
		w := onDevice[c.Key] // zero for a client without a tunnel to this node
		s.Endpoint, s.LastHandshake, s.Received, s.Sent = w.Endpoint, w.LastHandshake.UTC(), w.Received, w.Sent
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b control.ClientStatus) int { return cmp.Compare(a.Name, b.Name) })
	return out
}
