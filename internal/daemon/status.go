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
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/cni"
	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/gossip"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
)

// Status implements control.Daemon.
func (d *daemon) Status() control.Status {
	return d.published.Load().status
}

// Plan implements control.Daemon: what the next turn would change.
func (d *daemon) Plan(ctx context.Context) (control.Plan, error) {
	return d.plan(ctx, d.published.Load().turn)
}

// plan compares the host with what the turn found to be wanted.
func (d *daemon) plan(ctx context.Context, t turn) (control.Plan, error) {
	var out control.Plan
	if t.wanted.Desired.Device == nil {
		return out, errors.Join(errors.New("it is not known yet what this host should have"), t.err)
	}
	observed, err := d.kernel.Observe(ctx, t.wanted.Desired)
	if err != nil {
		return out, fmt.Errorf("observe host: %w", err)
	}
	_, observed = t.sessions.Correct(observed, time.Now())
	if plan := netcfg.Diff(observed, t.wanted.Desired, t.options()); !plan.Empty() {
		out.Changes = append(out.Changes, strings.Split(strings.TrimSpace(plan.String()), "\n")...)
	}
	if t.cfg.CNI.Enabled && len(t.wanted.Topology.PodCIDRs) > 0 {
		lines, err := planCNI(d.cniConfig(t))
		if err != nil {
			return out, fmt.Errorf("plan CNI: %w", err)
		}
		out.Changes = append(out.Changes, lines...)
	}
	lines, err := planK3s(t)
	out.Changes = append(out.Changes, lines...)
	return out, err
}

// planCNI lists what would change of the CNI configuration.
func planCNI(cfg cni.Config) ([]string, error) {
	observed, err := cni.Observe(cfg)
	if err != nil {
		return nil, err
	}
	changes, err := cni.Plan(cfg, observed)
	lines := make([]string, 0, len(changes))
	for _, c := range changes {
		lines = append(lines, c.String())
	}
	return lines, err
}

// status makes what a person sees of a turn.
func (d *daemon) status(seen turn) control.Status {
	t := indexOf(seen)
	isNote := func(p mesh.Problem) bool { return p.Kind == mesh.ProblemNote }
	problems := shownProblems(t.problems)
	s := control.Status{
		Schema: control.SchemaVersion, Version: d.opt.Version, Started: d.self.started.UTC().Round(time.Second),
		Node:     d.nodeStatus(t),
		Cluster:  clusterStatus(d.settings),
		Peers:    d.peerStatus(t),
		Clients:  clientStatus(t),
		Clusters: linkedClusterStatus(t),
		Problems: slices.DeleteFunc(slices.Clone(problems), isNote),
		Notes:    slices.DeleteFunc(problems, func(p mesh.Problem) bool { return !isNote(p) }),
		Counters: droppedByGossip(t.view.Counters),
	}
	if dev := t.observed.Device; dev != nil {
		s.Device = control.Device{Name: dev.Name, Implementation: dev.Implementation, ListenPort: dev.ListenPort, MTU: dev.MTU}
	}
	s.Reconcile = d.published.Load().status.Reconcile
	s.Reconcile.Error = ""
	s.Reconcile.Writes = d.kernel.Writes()
	switch {
	case t.now.IsZero():
		return s // no turn was taken yet
	case t.err != nil:
		s.Reconcile.Error = shownError(t.err)
	default:
		s.Reconcile.LastSuccess = t.now.UTC()
	}
	s.Relay = d.relayStatus()
	s.Reconcile.Runs++
	return s
}

func droppedByGossip(counts map[string]uint64) (out []control.Counter) {
	for _, reason := range slices.Sorted(maps.Keys(counts)) {
		out = append(out, control.Counter{Reason: reason, Count: counts[reason], Meaning: gossip.Meaning(reason)})
	}
	return out
}

// shownPerKind is how many problems of one kind a person is shown: there may be as
// many as others make up.
const shownPerKind = 100

// shownProblems returns the problems that a person is shown, sorted, with texts that
// do a terminal no harm. Of more than shownPerKind of one kind the rest is counted.
func shownProblems(all []mesh.Problem) []mesh.Problem {
	sorted := make([]mesh.Problem, 0, len(all))
	for _, p := range all {
		sorted = append(sorted, p.Printable())
	}
	slices.SortFunc(sorted, mesh.Problem.Compare)
	sorted = slices.Compact(sorted)
	counts := make(map[mesh.ProblemKind]int)
	for _, p := range sorted {
		counts[p.Kind]++
	}
	shown, seen := make([]mesh.Problem, 0, len(sorted)), make(map[mesh.ProblemKind]int)
	for _, p := range sorted {
		switch seen[p.Kind]++; {
		case seen[p.Kind] <= shownPerKind:
			shown = append(shown, p)
		case seen[p.Kind] == counts[p.Kind]:
			shown = append(shown, mesh.Problem{
				Kind: p.Kind, Text: fmt.Sprintf("there are %d more of this kind", counts[p.Kind]-shownPerKind),
				Advice: "mend those that are named; if many of the nodes are unknown to you, change the secret and revoke them",
			})
		}
	}
	slices.SortFunc(shown, mesh.Problem.Compare)
	return shown
}

// shownError returns an error's lines, each of which may quote others.
func shownError(err error) string {
	lines := strings.Split(err.Error(), "\n")
	if more := len(lines) - shownPerKind; more > 0 {
		lines = append(lines[:shownPerKind], fmt.Sprintf("and %d more", more))
	}
	for i, l := range lines {
		lines[i] = mesh.Printable(l, mesh.MaxText)
	}
	return strings.Join(lines, "\n")
}

func clusterStatus(c mesh.Cluster) control.Cluster {
	return control.Cluster{
		Name: c.Name, Generation: c.Generation, Trust: c.Trust,
		Mode: c.Mode, Encapsulation: c.Encapsulation, Gateways: c.Gateways,
		Overlay: c.Overlay, Pods: c.Pods, Services: c.Services,
	}
}

func (d *daemon) nodeStatus(t index) control.Node {
	n := control.Node{
		ID: d.self.ID(), Name: d.cfg.Node.Name, Location: d.cfg.Node.Location, Role: t.locationRole(d.memory.Own),
		Slot: d.disk.node.Claim.Slot, NAT: d.memory.Own.NAT, Ready: d.online,
		Overlay:  slices.Clone(t.wanted.Topology.Addresses),
		PodCIDRs: slices.Clone(t.wanted.Topology.PodCIDRs),
		Alone:    t.view.JoinEmpty && len(t.view.Records) == 1,
		JoinAt:   joinAt(d.memory.Own),
		Open:     slices.ContainsFunc(t.view.Records, func(r mesh.Record) bool { return r.ID() == d.self.ID() && r.IsOpen() }),
		Relays:   d.relaysInUse(t.turn),

		Etcd: d.memory.Own.Etcd, Secrets: d.memory.Own.Secrets,

		PortMappings: d.mappingStatus(),

		InternalIPs:  slices.Clone(t.wanted.InternalIPs),
		OtherPrivate: slices.Clone(t.wanted.OtherPrivate),
	}
	for _, s := range t.wanted.Topology.Shared {
		n.Networks = append(n.Networks, control.SharedNetwork{Network: s.Network, Through: t.nameOf(s.Server)})
	}
	for _, e := range d.memory.Own.Endpoints {
		n.Endpoints = append(n.Endpoints, net.JoinHostPort(e.Host, strconv.Itoa(int(e.Port))))
	}
	return n
}

// joinAt returns what other nodes write into their join list to find this one: the
// configured address, else those at which it is seen, else those on its private network.
func joinAt(own mesh.Record) []string {
	at := []string{}
	if own.GossipAddr != "" {
		return append(at, own.GossipAddr)
	}
	port := strconv.Itoa(int(own.GossipPort))
	for _, e := range own.Endpoints {
		if a := net.JoinHostPort(e.Host, port); !slices.Contains(at, a) {
			at = append(at, a)
		}
	}
	if len(at) > 0 {
		return at
	}
	for _, ip := range own.InternalIPs {
		at = append(at, net.JoinHostPort(ip.Addr().String(), port))
	}
	return at
}

// peerStatus joins what gossip says of the others with what WireGuard does.
func (d *daemon) peerStatus(t index) []control.Peer {
	onDevice := make(map[wgtypes.Key]netcfg.Peer, len(t.observed.Peers))
	for _, p := range t.observed.Peers {
		onDevice[p.Key] = p
	}
	owners, inside := mesh.SlotOwners(t.view.Records), tunnelled(t.wanted.Topology)
	paths := pathStatus(t.paths, t.view.Records, t.in.Paths.Streams)
	candidates, lan := make(map[mesh.ID][]netip.AddrPort), make(map[mesh.ID]netip.Addr)
	for _, p := range t.wanted.Topology.Peers {
		candidates[p.ID] = p.Endpoints
	}
	for _, n := range t.wanted.Topology.Neighbors {
		lan[n.ID] = n.InternalIP
	}
	peers := []control.Peer{}
	for _, r := range t.view.Records {
		id := r.ID()
		if id == d.self.ID() {
			continue
		}
		p := control.Peer{ID: id, Name: r.Name, Location: r.Location, Role: t.locationRole(r), Alive: t.view.Alive[id], Open: r.IsOpen(), Etcd: r.Etcd, Route: t.routeTo(id)}
		p.Overlay, p.PodCIDRs, p.InternalIPs = []netip.Addr{}, []netip.Prefix{}, []netip.Addr{}
		if slot := r.Claim.Slot; p.Route.Kind != mesh.RouteNone && owners[slot] == id && slot < t.wanted.Input.Cluster.Slots() {
			p.Overlay, p.PodCIDRs = t.wanted.Input.Cluster.Overlays(slot), t.wanted.Input.Cluster.PodCIDRs(slot)
		}
		for _, ip := range r.InternalIPs {
			if inside[ip.Addr()] {
				p.InternalIPs = append(p.InternalIPs, ip.Addr())
			}
		}
		p.Networks, p.Secrets = r.AllowedLocationIPs, r.Secrets
		p.Candidates, p.LANAddress = slices.Clone(candidates[id]), lan[id]
		p.RTT, p.Path = control.Milliseconds(t.view.RTT[id]), paths[id]
		if !p.Alive && !t.now.IsZero() {
			p.LastSeen = t.now.Add(-d.memory.Absences.Of(id)).UTC().Round(time.Second)
		}
		w := onDevice[r.Key] // zero for a node without a tunnel to this one
		p.Endpoint, p.LastHandshake, p.Received, p.Sent = w.Endpoint, w.LastHandshake.UTC(), w.Received, w.Sent
		peers = append(peers, p)
	}
	slices.SortFunc(peers, func(a, b control.Peer) int { return cmp.Or(cmp.Compare(a.Name, b.Name), a.ID.Compare(b.ID)) })
	return peers
}

// tunnelled returns the single addresses that go to other nodes, through whatever
// peer or neighbor.
func tunnelled(t mesh.Topology) map[netip.Addr]bool {
	out := make(map[netip.Addr]bool)
	add := func(ps []netip.Prefix) {
		for _, p := range ps {
			if p.IsSingleIP() {
				out[p.Addr()] = true
			}
		}
	}
	for _, p := range t.Peers {
		add(p.AllowedIPs)
	}
	for _, n := range t.Neighbors {
		add(n.Prefixes)
	}
	return out
}

// sentence is the daemon's state in the words of systemctl status.
func sentence(s control.Status) string {
	alive := 0
	for _, p := range s.Peers {
		if p.Alive {
			alive++
		}
	}
	switch {
	case s.Reconcile.Error != "":
		return "reconcile fails: " + strings.ReplaceAll(s.Reconcile.Error, "\n", "; ")
	case s.Node.Slot == mesh.None && alive == 0:
		return "looking for the mesh: no member of the join list has answered yet"
	}
	state := "pods may not start yet"
	if s.Node.Ready {
		state = "online"
	}
	if len(s.Problems) > 0 {
		return fmt.Sprintf("%s, %d of %d other nodes alive, %d problems: see meshd status", state, alive, len(s.Peers), len(s.Problems))
	}
	return fmt.Sprintf("%s, %d of %d other nodes alive", state, alive, len(s.Peers))
}
