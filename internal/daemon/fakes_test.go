// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/cni"
	"github.com/meshd/meshd/internal/gossip"
	"github.com/meshd/meshd/internal/k3s"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/netcfg/fakekernel"
	"github.com/meshd/meshd/internal/node"
	"github.com/meshd/meshd/internal/path"
	"github.com/meshd/meshd/internal/path/agent"
	"github.com/meshd/meshd/internal/path/forward"
	"github.com/meshd/meshd/internal/path/rawudp"
	"github.com/meshd/meshd/internal/path/relayudp"
	"github.com/meshd/meshd/internal/path/stream"
	"github.com/meshd/meshd/internal/portmap"
	"github.com/meshd/meshd/internal/probe"
	"github.com/meshd/meshd/internal/state"
)

// fakeKernel is a host in memory. It has what plans gave it.
type fakeKernel struct {
	*trace
	events chan struct{}

	mu         sync.Mutex
	facts      netcfg.Facts
	err        error // of Facts
	refuse     error // of Apply, which then does nothing
	keepBridge error // of RemoveBridge
	stayUp     error // of TakeDown
	kernel     fakekernel.Kernel
	met        map[wgtypes.Key]bool // peers with a handshake
	lost       int                  // how many handshakes are lost before one comes about
	users      []string             // of the claimed addresses
	applied    uint64
}

// change changes the host without the daemon.
func (k *fakeKernel) change(f func(*fakeKernel)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f(k)
}

func (k *fakeKernel) Facts(context.Context) (netcfg.Facts, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.look("kernel.Facts", k.err)
	return k.facts, k.err
}

func (k *fakeKernel) Watch(context.Context) (<-chan struct{}, error) { return k.events, nil }

func (k *fakeKernel) Observe(context.Context, netcfg.State) (netcfg.State, error) {
	k.look("kernel.Observe", nil)
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.kernel.State
	s.Peers = slices.Clone(s.Peers)
	for i := range s.Peers {
		if k.met[s.Peers[i].Key] {
			s.Peers[i].LastHandshake = time.Now()
		}
	}
	return s, nil
}

// Apply applies a plan.
func (k *fakeKernel) Apply(_ context.Context, p netcfg.Plan) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.add("kernel.Apply", planText(p), k.refuse)
	if k.refuse != nil {
		return k.refuse
	}
	k.applied++
	return k.kernel.Apply(p)
}

// InitiateHandshake completes a handshake, unless lost says otherwise.
func (k *fakeKernel) InitiateHandshake(_ context.Context, to netip.Addr) error {
	k.add("kernel.InitiateHandshake", to.String(), nil)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.lost > 0 {
		k.lost--
		return nil
	}
	for _, p := range k.kernel.Peers {
		if slices.ContainsFunc(p.AllowedIPs, func(ip netip.Prefix) bool { return ip.Contains(to) }) {
			k.met[p.Key] = true
		}
	}
	return nil
}

func (k *fakeKernel) Users(context.Context, []netip.Addr) ([]string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.look("kernel.Users", nil)
	return k.users, nil
}

func (k *fakeKernel) RemoveBridge(context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.add("kernel.RemoveBridge", "", k.keepBridge)
	return k.keepBridge
}

func (k *fakeKernel) TakeDown() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.add("kernel.TakeDown", "", k.stayUp)
	if k.stayUp != nil {
		return k.stayUp
	}
	if k.kernel.Device != nil {
		k.kernel.Device.Up = false
	}
	return nil
}

func (k *fakeKernel) Writes() uint64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.applied
}

// planText lists the parts of a plan in the order in which they are applied.
func planText(p netcfg.Plan) string {
	var parts []string
	part := func(sign, what string, names []string) {
		if len(names) > 0 {
			parts = append(parts, strings.TrimSpace(sign+what+" "+strings.Join(names, " ")))
		}
	}
	some := func(sign, what string, any bool) {
		if any {
			parts = append(parts, sign+what)
		}
	}
	some("+", "firewall", p.Firewall != nil && len(p.Sets) == 0)
	some("~", "sets", len(p.Sets) > 0)
	some("+", "backstops", len(p.Backstops) > 0)
	some("+", "device", p.Device != nil && p.Device.Create)
	some("~", "device", p.Device != nil && !p.Device.Create)
	some("+", "vxlan", p.VXLAN != nil)
	some("+", "sysctls", len(p.Sysctls) > 0)
	part("+", "address", words(p.Addresses))
	some("+", "neighbors", len(p.Neighbors)+len(p.Forwarding) > 0)
	var routes, moved []string
	for _, r := range p.Routes {
		routes = append(routes, r.Route.Destination.String())
	}
	for _, r := range p.MovedRoutes {
		moved = append(moved, r.Route.Destination.String())
	}
	part("+", "route", routes)
	for _, c := range p.Peers {
		sign := "~"
		switch {
		case c.Add:
			sign = "+"
		case c.Remove:
			sign = "-"
		}
		part(sign, "peer", []string{c.Name})
	}
	part("~", "route", moved)
	var stale []string
	for _, r := range p.StaleRoutes {
		stale = append(stale, r.Destination.String())
	}
	part("-", "route", stale)
	some("-", "neighbors", len(p.StaleNeighbors)+len(p.StaleForwarding) > 0)
	some("-", "vxlan", p.StaleVXLAN != "")
	part("-", "address", words(p.StaleAddresses))
	some("-", "backstops", len(p.StaleBackstops) > 0)
	return strings.Join(parts, ", ")
}

func words[T fmt.Stringer](list []T) []string {
	var out []string
	for _, e := range list {
		out = append(out, e.String())
	}
	return out
}

// fakeNetwork is gossip without other nodes: a test sets what they say.
type fakeNetwork struct {
	*trace
	changed chan struct{}
	paths   chan struct{} // PathsChanged
	path    string        // as published last
	orders  chan gossip.Call
	ordered func(to mesh.ID, sealed []byte) // nil: orders get lost

	mu        sync.Mutex
	view      mesh.View
	self      mesh.ID
	addresses map[mesh.ID][]netip.AddrPort
	said      uint64 // the highest epoch of our verdicts, which no view shows any more
}

// start keeps what the network was, but no node has been heard yet.
func (n *fakeNetwork) start(d *daemon) {
	n.self = d.self.ID()
	n.view.Alive, n.view.Merged, n.view.Alone, n.view.Cluster = map[mesh.ID]bool{n.self: true}, false, true, d.settings
	n.addresses = nil
}

// change changes the view and signals it.
func (n *fakeNetwork) change(f func(*mesh.View)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f(&n.view)
	fire(n.changed)
}

func (n *fakeNetwork) View() mesh.View {
	n.mu.Lock()
	defer n.mu.Unlock()
	v := n.view
	v.Records, v.Verdicts, v.Clients, v.Alive = slices.Clone(v.Records), slices.Clone(v.Verdicts), slices.Clone(v.Clients), maps.Clone(v.Alive)
	v.Memberships = allMet(v.Records)
	mesh.Locate(v.Records, v.Memberships)
	return v
}

// allMet has all nodes of each location meet on its private network.
func allMet(records []mesh.Record) []mesh.Membership {
	var said []mesh.Membership
	for i := range records {
		m := mesh.Membership{Author: records[i].ID(), Location: records[i].Location}
		for j := range records {
			if i != j && records[i].SameLocation(&records[j]) {
				m.Met = append(m.Met, records[j].ID().Short())
			}
		}
		slices.SortFunc(m.Met, mesh.ShortID.Compare)
		said = append(said, m)
	}
	return said
}

// LastHeard is the first call of a turn. Nodes that are alive were heard just now.
func (n *fakeNetwork) LastHeard() map[mesh.ID]time.Time {
	n.mark(inTurn)
	n.mu.Lock()
	defer n.mu.Unlock()
	heard := make(map[mesh.ID]time.Time)
	for id := range n.view.Alive {
		heard[id] = time.Now()
	}
	return heard
}

func (n *fakeNetwork) Changed() <-chan struct{} { return n.changed }

func (n *fakeNetwork) Remember() gossip.Remembered {
	v := n.View()
	var r gossip.Remembered
	for _, record := range v.Records {
		r.Objects = append(r.Objects, fmt.Appendf(nil, "%s, sequence %d", record.Name, record.Sequence))
	}
	for _, c := range v.Clients {
		r.Objects = append(r.Objects, []byte("client "+c.Name))
	}
	return r
}

func (n *fakeNetwork) Publish(r mesh.Record) error {
	n.add("network.Publish", recordText(r), nil)
	n.change(func(v *mesh.View) { v.Records = withRecord(v.Records, r) })
	return nil
}

// PublishPath publishes what has changed, as gossip does.
func (n *fakeNetwork) PublishPath(p mesh.PathRecord) error {
	var text []string
	for _, c := range p.Candidates {
		word := fmt.Sprintf("%s %v", c.Kind, c.Addr)
		if c.Open {
			word += " (open)"
		}
		text = append(text, word)
	}
	for _, id := range p.Relays {
		text = append(text, "through "+n.names[id])
	}
	if p.Relay != "" {
		text = append(text, "a relay")
	}
	if s := cmp.Or(strings.Join(text, ", "), "nowhere"); s != n.path {
		n.path = s
		n.add("network.PublishPath", s, nil)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	p.Author = n.self
	others := slices.DeleteFunc(slices.Clone(n.view.Paths), func(o mesh.PathRecord) bool { return o.Author == n.self })
	n.view.Paths = append(others, p)
	return nil
}

// changePaths changes what other nodes say of their paths.
func (n *fakeNetwork) changePaths(paths ...mesh.PathRecord) {
	n.mu.Lock()
	defer n.mu.Unlock()
	own := slices.DeleteFunc(slices.Clone(n.view.Paths), func(p mesh.PathRecord) bool { return p.Author != n.self })
	n.view.Paths = append(own, paths...)
	fire(n.paths)
}

func (n *fakeNetwork) PublishMembership(mesh.Membership) error { return nil }
func (n *fakeNetwork) PublishReach(mesh.Reach) error           { return nil }

func (n *fakeNetwork) SendCall(mesh.ID, []byte) error { return nil }

func (n *fakeNetwork) SendOrder(to mesh.ID, sealed []byte) error {
	if n.ordered != nil {
		n.ordered(to, sealed)
	}
	return nil
}
func (n *fakeNetwork) Orders() <-chan gossip.Call { return n.orders }

func (n *fakeNetwork) Tunnelled(mesh.ID) (sent, received uint64) { return 0, 0 }
func (n *fakeNetwork) Calls() <-chan gossip.Call                 { return nil }
func (n *fakeNetwork) Questions() <-chan gossip.Question         { return nil }

func (n *fakeNetwork) Answer(gossip.Question, mesh.PeerView) error { return nil }

func (n *fakeNetwork) Ask(context.Context, mesh.ID) (mesh.PeerView, error) {
	return mesh.PeerView{}, gossip.ErrNoAnswer
}

func (n *fakeNetwork) SetCarrier(gossip.Carrier) {}
func (n *fakeNetwork) Carried(mesh.ID, []byte)   {}

func (n *fakeNetwork) DialCarrier(context.Context, mesh.ID, ...netip.AddrPort) (net.Conn, error) {
	return nil, errors.New("nobody is there")
}

func (n *fakeNetwork) PathsChanged() <-chan struct{} { return n.paths }

func recordText(r mesh.Record) string {
	text := fmt.Sprintf("sequence %d, slot %s", r.Sequence, wordClaim(r.Claim))
	if r.Term.Since != 0 {
		text += fmt.Sprintf(", gateway in seat %d", r.Term.Seat)
	}
	for _, e := range r.Endpoints {
		text += ", endpoint " + e.Host
	}
	return text
}

func wordClaim(c mesh.Claim) string {
	switch {
	case c.Slot == mesh.None:
		return "none"
	case c.Confirmed:
		return fmt.Sprintf("%d confirmed", c.Slot)
	}
	return fmt.Sprint(c.Slot)
}

func (n *fakeNetwork) PublishVerdict(v mesh.Verdict) error {
	n.mu.Lock()
	said := n.said
	n.mu.Unlock()
	if v.Epoch <= said {
		return &gossip.EpochError{Exceed: said}
	}
	n.add("network.PublishVerdict", fmt.Sprintf("%s is %s, epoch %d", n.names[v.Subject], v.State, v.Epoch), nil)
	n.change(func(view *mesh.View) {
		view.Verdicts = slices.DeleteFunc(slices.Clone(view.Verdicts), func(o mesh.Verdict) bool { return o.Author.Equal(v.Author) && o.Subject == v.Subject })
		view.Verdicts = append(view.Verdicts, v)
	})
	return nil
}

func (n *fakeNetwork) Forget(target mesh.ID, upTo uint64) error {
	n.add("network.Forget", fmt.Sprintf("%s up to %d", n.names[target], upTo), nil)
	n.change(func(v *mesh.View) {
		v.Records = slices.DeleteFunc(slices.Clone(v.Records), func(r mesh.Record) bool { return r.ID() == target && r.Sequence <= upTo })
	})
	return nil
}

func (n *fakeNetwork) AddClient(c mesh.Client) (mesh.Client, error) {
	c.ID, c.Author = mesh.ID{1}, identityKey(0).Public().(ed25519.PublicKey)
	n.add("network.AddClient", c.Name, nil)
	n.change(func(v *mesh.View) { v.Clients = append(slices.Clone(v.Clients), c) })
	return c, nil
}

func (n *fakeNetwork) RemoveClient(id mesh.ID) error {
	n.change(func(v *mesh.View) {
		v.Clients = slices.DeleteFunc(slices.Clone(v.Clients), func(c mesh.Client) bool {
			if c.ID == id {
				n.add("network.RemoveClient", c.Name, nil)
			}
			return c.ID == id
		})
	})
	return nil
}

func (n *fakeNetwork) RequestSigns(ids []mesh.ID) {
	var names []string
	for _, id := range ids {
		names = append(names, n.names[id])
	}
	if len(names) > 0 {
		n.add("network.RequestSigns", strings.Join(names, " "), nil)
	}
}

func (n *fakeNetwork) SetAddresses(addresses map[mesh.ID][]netip.AddrPort, _ map[mesh.ID][]mesh.Endpoint) {
	if maps.EqualFunc(n.addresses, addresses, slices.Equal) {
		return
	}
	n.addresses = addresses
	var list []string
	for id, addrs := range addresses {
		list = append(list, n.names[id]+" at "+strings.Join(words(addrs), " "))
	}
	slices.Sort(list)
	n.add("network.SetAddresses", strings.Join(list, ", "), nil)
}

func (n *fakeNetwork) Reconfigure(c mesh.Cluster, join []string, _ [][32]byte, _ []mesh.ID) error {
	n.add("network.Reconfigure", fmt.Sprintf("mode %s, join %q", c.Mode, join), nil)
	n.change(func(v *mesh.View) { v.Cluster, v.JoinEmpty = c, len(join) == 0 })
	return nil
}

// fakeDisk is a state directory in memory.
type fakeDisk struct {
	*trace
	identity state.Identity
	node     state.Node
	objects  state.Remembered
	damaged  error // of Objects

	mu   sync.Mutex
	full error // of all writes
}

// fill makes all writes fail with an error; nil makes them succeed again.
func (d *fakeDisk) fill(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.full = err
}

func (d *fakeDisk) Identity(string, io.Reader) (state.Identity, state.Origin, error) {
	return d.identity, state.Loaded, nil
}

func (d *fakeDisk) Node() (state.Node, error) { return d.node, nil }

func (d *fakeDisk) SaveNode(n state.Node) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	text := fmt.Sprintf("sequence %d, slot %s", n.Sequence, wordClaim(n.Claim))
	if n.Ready {
		text += ", pods may run"
	}
	if n.Adopted.Generation != 0 {
		text += fmt.Sprintf(", adopted generation %d", n.Adopted.Generation)
	}
	if n.Duplicate {
		text += ", a duplicate"
	}
	if n.Boot != d.node.Boot {
		text += ", a new start"
	}
	d.add("disk.SaveNode", text, d.full)
	if d.full == nil {
		d.node = n
	}
	return d.full
}

func (d *fakeDisk) Objects() (state.Remembered, error) { return d.objects, d.damaged }

func (d *fakeDisk) SaveObjects(r state.Remembered) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var names []string
	for _, o := range r.Objects {
		name, _, _ := strings.Cut(string(o), ",")
		names = append(names, name)
	}
	slices.Sort(names)
	for _, a := range r.Absent {
		names = append(names, fmt.Sprintf("%s absent for %v", d.names[a.ID], a.Time))
	}
	d.add("disk.SaveObjects", strings.Join(names, ", "), d.full)
	if d.full == nil {
		d.objects = r
	}
	return d.full
}

func (d *fakeDisk) SetAside(name string) (string, error) {
	d.add("disk.SetAside", name, nil)
	return name + ".aside", nil
}

// fakeUnderlay is a WireGuard device without peers, on which nothing arrives.
type fakeUnderlay struct{ closed chan struct{} }

func (fakeUnderlay) Send(rawudp.Packet) error { return nil }

func (u fakeUnderlay) Serve(func(rawudp.Datagram)) error {
	<-u.closed
	return nil
}

func (fakeUnderlay) Traffic() (map[wgtypes.Key]path.Traffic, error) { return nil, nil }
func (fakeUnderlay) SetEndpoint(wgtypes.Key, netip.AddrPort) error  { return nil }

func (u fakeUnderlay) Close() error {
	close(u.closed)
	return nil
}

// fakePaths finds no paths. A test sets what it has found.
type fakePaths struct {
	*trace
	changed chan struct{}
	tried   string
	relays  string

	mu     sync.Mutex
	status []agent.PeerStatus
	bound  []path.BoundRelay
}

func (p *fakePaths) SetRelays(all []node.Relay, keep int, secrets [][32]byte) {
	text := fmt.Sprintf("%d of", keep)
	for _, r := range all {
		text += fmt.Sprint(" ", p.names[r.ID], " at ", r.Addrs)
	}
	if len(secrets) == 0 {
		text += ", without a secret"
	}
	if len(all) == 0 {
		text = ""
	}
	if text != p.relays {
		p.relays = text
		p.add("paths.SetRelays", cmp.Or(text, "none"), nil)
	}
}

// Hairpin has a router that passes back nothing.
func (p *fakePaths) Hairpin(context.Context, netip.AddrPort) bool { return false }

// bind changes to which relays this node is bound, and signals it.
func (p *fakePaths) bind(bound ...path.BoundRelay) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.bound = bound
	fire(p.changed)
}

func (p *fakePaths) Bound() []path.BoundRelay {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.bound)
}

// find changes what is known of the paths, and signals it.
func (p *fakePaths) find(status ...agent.PeerStatus) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.status = status
	fire(p.changed)
}

func (p *fakePaths) SetPeers(peers []node.PathPeer) {
	var tried []string
	for _, peer := range peers {
		if peer.NoTunnel {
			continue
		}
		text := p.names[peer.ID] + " at"
		for _, c := range peer.Candidates {
			text += " " + c.Path.String()
		}
		for _, id := range peer.Relays {
			text += " through " + p.names[id]
		}
		if peer.PathKey == [32]byte{} {
			text += ", key not known"
		}
		if peer.Follows {
			text += ", speaks first"
		}
		tried = append(tried, text)
	}
	slices.Sort(tried)
	if text := strings.Join(tried, "; "); text != p.tried {
		p.tried = text
		p.add("paths.SetPeers", cmp.Or(text, "nobody"), nil)
	}
}

func (p *fakePaths) Status() []agent.PeerStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.status)
}

func (p *fakePaths) Changed() <-chan struct{} { return p.changed }

func (p *fakePaths) SetLAN([]string)         {}
func (p *fakePaths) SetStrange([]netip.Addr) {}
func (p *fakePaths) Proofs() agent.Proofs    { return agent.Proofs{} }

func (p *fakePaths) Key() [32]byte { return [32]byte{1} }

// fakePorts is a router that maps no port before a test says so.
type fakePorts struct {
	*trace
	changed chan struct{}
	wanted  string

	mu  sync.Mutex
	all []portmap.Mapping
}

func (p *fakePorts) Want(t portmap.Target) {
	text := "nothing"
	if len(t.Ports) > 0 {
		text = fmt.Sprintf("%v of %v at %v", t.Ports, t.Source, t.Gateway)
	}
	if text != cmp.Or(p.wanted, "nothing") {
		p.wanted = text
		p.add("ports.Want", text, nil)
	}
}

func (p *fakePorts) Mappings() []portmap.Mapping {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.all
}

func (p *fakePorts) Changed() <-chan struct{} { return p.changed }

// grant has the router map ports.
func (p *fakePorts) grant(all ...portmap.Mapping) {
	p.mu.Lock()
	p.all = all
	p.mu.Unlock()
	p.changed <- struct{}{}
}

// fakeRelay forwards nothing.
type fakeRelay struct {
	*trace
	serves bool

	mu     sync.Mutex
	broken error // of Serve
}

// damage has the relay fail when it is to serve.
func (r *fakeRelay) damage(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.broken = err
}

func (r *fakeRelay) Serve(s node.RelayService, _ [32]byte, _ int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.broken != nil && s.Serves {
		return r.broken
	}
	if s.Serves != r.serves {
		r.serves = s.Serves
		r.add("relay.Serve", map[bool]string{true: "yes", false: "no"}[s.Serves], nil)
	}
	return nil
}

func (r *fakeRelay) Status() (relayudp.Status, forward.Counts, bool) {
	return relayudp.Status{}, forward.Counts{}, r.serves
}

// fakeStreams opens streams at once, to the nodes that it is asked for. A test says who has
// opened some to this node.
type fakeStreams struct {
	*trace
	changed chan struct{}
	kept    string

	mu       sync.Mutex
	dialled  []stream.Status
	accepted []stream.Status
}

func (s *fakeStreams) Keep(nodes []mesh.ID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	var next []stream.Status
	for _, id := range nodes {
		names = append(names, s.names[id])
		i := slices.IndexFunc(s.dialled, func(old stream.Status) bool { return old.Node == id })
		if i >= 0 {
			next = append(next, s.dialled[i])
			continue
		}
		local := netip.AddrFrom4([4]byte{127, 0, 0, 1})
		next = append(next, stream.Status{
			Node: id, Dialled: true, Since: time.Now(),
			Own: netip.AddrPortFrom(local, 1000+uint16(id[0])), Relay: netip.AddrPortFrom(local, 2000+uint16(id[0])),
		})
	}
	s.dialled = next
	if text := strings.Join(names, " "); text != s.kept {
		s.kept = text
		s.add("streams.Keep", cmp.Or(text, "none"), nil)
	}
	return nil
}

func (s *fakeStreams) Status() []stream.Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append(slices.Clone(s.dialled), s.accepted...)
}

func (s *fakeStreams) Changed() <-chan struct{} { return s.changed }

// fakeProber sends nothing. A test sets its results.
type fakeProber struct {
	*trace
	changed chan struct{}
	targets string

	mu      sync.Mutex
	results map[probe.Target]probe.Result
}

func (p *fakeProber) SetTargets(wanted []probe.ScheduledTarget, _ probe.Pace) {
	var targets []string
	for _, a := range wanted {
		targets = append(targets, a.Addr.String())
	}
	slices.Sort(targets)
	if text := strings.Join(slices.Compact(targets), " "); text != p.targets {
		p.targets = text
		p.add("prober.SetTargets", cmp.Or(text, "at nobody"), nil)
	}
}

// answer sets the results of all targets.
func (p *fakeProber) answer(w probe.Watch, r func(probe.Target) probe.Result) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range w.Targets() {
		p.results[a.Target] = r(a.Target)
	}
}

func (p *fakeProber) Results() map[probe.Target]probe.Result {
	p.mu.Lock()
	defer p.mu.Unlock()
	return maps.Clone(p.results)
}

func (p *fakeProber) Changed() <-chan struct{} { return p.changed }
func (p *fakeProber) Err() error               { return nil }

func (p *fakeProber) PingOnce(_ context.Context, targets []probe.Target) (map[netip.Addr]time.Duration, error) {
	rtt := make(map[netip.Addr]time.Duration)
	for _, t := range targets {
		rtt[t.Addr] = time.Millisecond
	}
	return rtt, nil
}

// The servers don't listen. Each is recorded under its own name; HTTP servers are recorded
// only when their addresses change.
type (
	fakeControl struct{ *trace }
	fakeHTTP    struct {
		*trace
		name  string
		addrs []netip.AddrPort
		err   error
	}
)

func (s fakeControl) EnsureListening() error {
	s.look("controlServer.EnsureListening", nil)
	return nil
}

func (s *fakeHTTP) EnsureListening(addrs ...netip.AddrPort) error {
	if !slices.Equal(addrs, s.addrs) {
		s.addrs = addrs
		s.add(s.name+".EnsureListening", strings.Join(words(addrs), " "), s.err)
	}
	return s.err
}

// fakeServices writes the real files below a directory of the test.
type fakeServices struct {
	*trace
	root string
}

func (s *fakeServices) ApplyCNI(changes []cni.Change) error {
	switch {
	case len(changes) == 1 && changes[0].Kind == cni.Delete && filepath.Base(changes[0].Path) == cni.FileName:
		s.add("services.ApplyCNI", "no pod may start", nil)
	case len(changes) > 0:
		s.add("services.ApplyCNI", fmt.Sprintf("%d changes", len(changes)), nil)
	}
	return cni.Apply(changes)
}

func (s *fakeServices) PodAddresses(podCIDRs []netip.Prefix) ([]netip.Addr, error) {
	return cni.Reserved(filepath.Join(s.root, "reserved"), podCIDRs)
}

func (s *fakeServices) WriteK3s(w k3s.Wanted) (bool, error) {
	changed, err := k3s.Write(s.root, w)
	if changed {
		s.add("services.WriteK3s", "", nil)
	}
	return changed, err
}

func (s *fakeServices) K3sSettings() k3s.Settings {
	settings, _ := k3s.ReadSettings(s.root)
	return settings
}

func (s *fakeServices) Notify(state string) { s.notify(state) }
