// SPDX-License-Identifier: Apache-2.0

package node_test

import (
	"bytes"
	"cmp"
	"container/heap"
	"crypto/ed25519"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/netcfg/fakekernel"
	"github.com/meshd/meshd/internal/node"
	"github.com/meshd/meshd/internal/path"
	"github.com/meshd/meshd/internal/probe"
)

// The simulation is a number of whole nodes on virtual time, in one goroutine. Each takes
// the turns that the daemon takes, with the very functions that the daemon calls, and has a
// kernel that does what plans say. Simulated is what is between and below them: the
// underlay and WireGuard (sim_wireguard_test.go), what probes find (sim_paths_test.go), gossip
// (sim_gossip_test.go), and the packets that go from host to host through the kernels' tables (sim_packet_test.go).
//
// Everything follows from the seed. Time passes from event to event.
type simulation struct {
	t      testing.TB
	rng    *rand.Rand
	now    time.Time
	events eventQueue
	count  int // of events, to order those of one moment
	hosts  []*host

	cluster      mesh.Cluster
	antiSpoofing bool                               // LANs carry no addresses but internal IPs
	noVXLAN      bool                               // LANs carry no VXLAN
	cut          map[[2]int]bool                    // packets from one host to another are lost
	gossipDelay  func(from, to *host) time.Duration // of an object
	packetDelay  func(from, to *host) time.Duration // through the internet
	news         int                                // how often somebody published something
	history      []string                           // what happened, for a failure's report
}

const (
	simLAN     = 300 * time.Microsecond // one hop on a LAN
	simTunnel  = 20 * time.Millisecond  // one hop through the internet
	simResync  = 10 * time.Second       // the longest time between two turns
	simGather  = 5 * time.Millisecond   // from an event to the turn
	simSpacing = 50 * time.Millisecond  // the least time between two turns
	simSave    = 5 * time.Second        // between two writes of what is known of the others
	simProbes  = time.Second            // between two probes of all peers
)

// simBegin is when all simulations begin.
var simBegin = time.UnixMilli(1_800_000_000_000)

func newSimulation(t testing.TB, seed uint64) *simulation {
	return &simulation{
		t: t, rng: rand.New(rand.NewPCG(seed, 0)), now: simBegin, cut: make(map[[2]int]bool),
		gossipDelay: func(_, _ *host) time.Duration { return simTunnel },
		packetDelay: func(_, _ *host) time.Duration { return simTunnel },
		cluster: mesh.Cluster{
			Name: "default", Mode: mesh.ModeFull, Encapsulation: mesh.EncapsulationAlways, Gateways: 1,
			Overlay: []netip.Prefix{netip.MustParsePrefix("10.4.0.0/16")}, Pods: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")}, PodPrefix: []int{24},
		},
	}
}

// event is something that happens at a moment.
type event struct {
	at    time.Time
	order int
	do    func()
}

type eventQueue []event

func (q eventQueue) Len() int { return len(q) }
func (q eventQueue) Less(i, j int) bool {
	return cmp.Or(q[i].at.Compare(q[j].at), cmp.Compare(q[i].order, q[j].order)) < 0
}
func (q eventQueue) Swap(i, j int) { q[i], q[j] = q[j], q[i] }
func (q *eventQueue) Push(e any)   { *q = append(*q, e.(event)) }
func (q *eventQueue) Pop() any {
	last := (*q)[len(*q)-1]
	*q = (*q)[:len(*q)-1]
	return last
}

// after has something happen in a while.
func (s *simulation) after(d time.Duration, do func()) {
	s.count++
	heap.Push(&s.events, event{s.now.Add(max(d, 0)), s.count, do})
}

// pass lets time pass.
func (s *simulation) pass(d time.Duration) { s.passUntil(d, func() bool { return false }) }

// passUntil lets time pass, for most at the most, until something is so. It looks after
// each event.
func (s *simulation) passUntil(most time.Duration, so func() bool) bool {
	end := s.now.Add(most)
	for len(s.events) > 0 && !s.events[0].at.After(end) {
		e := heap.Pop(&s.events).(event)
		s.now = e.at
		e.do()
		if so() {
			return true
		}
	}
	s.now = end
	return so()
}

// note adds to the history.
func (s *simulation) note(format string, args ...any) {
	s.history = append(s.history, fmt.Sprintf("%12v %s", s.now.Sub(simBegin), fmt.Sprintf(format, args...)))
}

// fail ends the test with the history.
func (s *simulation) fail(format string, args ...any) {
	s.t.Helper()
	s.t.Fatalf("%s\nat %v; before:\n%s", fmt.Sprintf(format, args...), s.now.Sub(simBegin), strings.Join(s.history[max(len(s.history)-80, 0):], "\n"))
}

// underlay is how the internet sees a host.
type underlay int

const (
	routed underlay = iota // it has a public address
	cloud                  // it is behind a 1:1 NAT
	home                   // it shares a public address, and only answers get in
)

// place is where a host is.
type place struct {
	site     int // hosts of one site share a private network; 0 for none
	underlay underlay
}

// disk is what outlasts a host's power.
type disk struct {
	promise  node.Promise
	adopted  mesh.Cluster // Generation 0 for none
	store    store
	absences map[mesh.ID]time.Duration
	instance uint64
}

// host is a host with a node on it.
type host struct {
	*simulation
	number   int
	name     string
	place    place
	public   netip.Addr
	internal netip.Prefix // invalid for none
	config   node.Config
	self     node.Identity
	id       mesh.ID
	disk     disk

	powered bool
	stuck   bool          // it forwards nothing, and nothing says why
	blocked bool          // the kernel has none of the parameters that are wanted
	clock   time.Duration // how far the system's clock is ahead
	kernel  fakekernel.Kernel
	tunnels map[wgtypes.Key]*tunnel
	nearby  []mesh.AttachedNetwork // besides the private network
	writes  int                    // plans that changed the kernel
	plan    netcfg.Plan            // the last one, and when it was applied
	written time.Time

	running bool
	start   int // of the daemon; what an earlier one had scheduled does not happen
	started time.Time
	memory  node.Memory
	peers   gossip
	probes  map[mesh.ID]bool           // peers that are probed
	proved  map[mesh.ID]netip.AddrPort // where they answer
	met     map[mesh.ID]time.Time      // when each node was met last on the private network
	trials  map[mesh.Tried]*path.Trial // what this node has tried as a stranger
	table   *probe.Table
	levels  map[probe.Target]probe.Level
	turned  time.Time // when the last turn was taken
	next    time.Time // when the next one will be

	wanted    node.Configuration
	concluded node.Conclusion
	pods      []netip.Prefix // where pods may run
}

// add makes a host that has never run. Its keys follow from key, and so does the order of
// two hosts' keys.
func (s *simulation) add(name, location string, at place) *host {
	number := len(s.hosts) + 1
	h := &host{simulation: s, number: number, name: name, tunnels: make(map[wgtypes.Key]*tunnel)}
	h.self = node.Identity{
		Public:    ed25519.NewKeyFromSeed(bytes.Repeat([]byte{byte(number)}, ed25519.SeedSize)).Public().(ed25519.PublicKey),
		WireGuard: wgtypes.Key{0: byte(8 * number), 30: byte(number), 31: 64},
	}
	h.id = h.self.ID()
	h.config = node.Config{
		Name: name, Location: location, Cluster: s.cluster, Slot: mesh.None, Gateway: mesh.GatewayAuto,
		ListenPort: 51820, GossipPort: 7946, Joins: number > 1, Interface: "meshd0", Implementation: netcfg.Auto,
		Pace: probe.Pace{Interval: 250 * time.Millisecond, Misses: 4}, ForgetAfter: 30 * 24 * time.Hour,
	}
	h.config.Encrypted = s.cluster.Mode == mesh.ModeFull
	h.disk.promise.Claim.Slot = mesh.None
	h.disk.store = newStore()
	h.kernel.Removed = h.removed
	h.move(at, number)
	s.hosts = append(s.hosts, h)
	return h
}

// move takes a host to a place, where it has a number.
func (h *host) move(at place, number int) {
	h.place, h.internal = at, netip.Prefix{}
	switch {
	case at.site > 0:
		h.internal = netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(at.site), byte(number)}), 24)
	case at.underlay == cloud:
		h.internal = netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 31, byte(number), 5}), 24)
	}
	h.public = netip.AddrFrom4([4]byte{203, 0, 113, byte(number)})
	if at.underlay == home {
		h.public = netip.AddrFrom4([4]byte{198, 51, 100, byte(at.site)})
	}
	h.tell()
}

// facts are what a host says of itself.
func (h *host) facts() netcfg.Facts {
	f := netcfg.Facts{MTU: 1500, Nearby: mesh.Nearby{Attached: h.nearby}}
	source := h.internal
	if h.internal.IsValid() {
		f.Addresses = append(f.Addresses, h.internal.Addr())
		f.Private = []netcfg.PrivateAddress{{Link: "eth1", Address: h.internal, Default: h.place.underlay != routed}}
		f.Attached = append(f.Attached, netcfg.LAN{Link: "eth1", Address: h.internal, MTU: 1500})
	}
	if h.place.underlay == routed {
		source = netip.PrefixFrom(h.public, 24)
		f.Addresses = append(f.Addresses, h.public)
	}
	f.Uplinks = []netcfg.Uplink{{Link: "eth0", Source: source, MTU: 1500}}
	return f
}

// boot powers a host on, and starts its daemon.
func (h *host) boot() {
	h.powered = true
	h.startDaemon()
}

// startDaemon starts the daemon with what is on the disk.
func (h *host) startDaemon() {
	h.start++
	h.running, h.started = true, h.now
	h.disk.instance++
	h.self.Instance = h.disk.instance
	h.table, h.levels = probe.NewTable(h.config.Pace), nil
	h.probes, h.proved = make(map[mesh.ID]bool), make(map[mesh.ID]netip.AddrPort)
	h.met, h.trials = make(map[mesh.ID]time.Time), make(map[mesh.Tried]*path.Trial)
	h.peers = newGossip(h)
	h.memory = node.Memory{Handshakes: node.NewHandshakes(h.view().Records), Absences: node.NewAbsences(h.disk.absences)}
	h.turned = time.Time{}
	h.look(0)
	h.each(h.config.Pace.Interval, h.probe)
	h.each(simSave, h.save)
	h.each(simProbes, h.findPaths)
	h.each(simProbes, h.findProofs)
	h.greet()
	h.later(simSync/2, h.compare)
}

// each does something as long as this daemon runs.
func (h *host) each(d time.Duration, do func()) {
	h.later(d, func() {
		do()
		h.each(d, do)
	})
}

// later does something in a while, if this daemon still runs then.
func (h *host) later(d time.Duration, do func()) {
	start := h.start
	h.after(d, func() {
		if h.running && h.start == start {
			do()
		}
	})
}

// stop ends the daemon, as systemd does. The kernel stays as it is.
func (h *host) stop() {
	h.save()
	h.kill()
}

// kill ends the daemon.
func (h *host) kill() {
	h.running, h.next = false, time.Time{}
	h.probes, h.proved = nil, nil
}

// crash takes a host's power away. What is on the disk stays.
func (h *host) crash() {
	h.kill()
	h.powered, h.pods = false, nil
	h.kernel.State = netcfg.State{}
	clear(h.tunnels)
}

// save writes what is known of the others.
func (h *host) save() {
	h.disk.store = h.peers.store.clone()
	h.disk.absences = h.memory.Absences.Save()
}

// tell says that something has happened that leads to a turn.
func (h *host) tell() {
	if h.running {
		h.look(max(simGather, h.turned.Add(simSpacing).Sub(h.now)))
	}
}

// tellUrgently says that something has happened that leads to a turn at once.
func (h *host) tellUrgently() {
	if h.running {
		h.look(0)
	}
}

// look takes a turn in a while, if none is taken before.
func (h *host) look(d time.Duration) {
	at := h.now.Add(d)
	if !h.next.IsZero() && !at.Before(h.next) {
		return
	}
	h.next = at
	h.later(d, func() {
		if h.next.Equal(at) {
			h.turn()
		}
	})
}

// turn takes a turn as the daemon does.
func (h *host) turn() {
	h.turned, h.next = h.now, time.Time{}
	in := h.input()
	if h.memory.SawDuplicate(in) {
		h.fail("%s takes itself for a duplicate", h.name)
	}
	h.adopt(in.View.Cluster)
	h.announce(&in)
	h.wanted = h.memory.Configure(in)
	h.checkWanted()
	observed := h.observe()
	if h.change(in, netcfg.Options{Now: h.now, Prune: h.wanted.Prune}) {
		observed = h.observe()
	}
	h.concluded = h.memory.Conclude(in, h.wanted, &observed)
	h.reachOut(in)
	h.table.SetTargets(h.concluded.Watch.Targets())
	if h.concluded.HasAddresses && h.concluded.ParametersSet && h.concluded.ReadyWait == 0 {
		h.disk.promise.Ready = true
		h.pods = h.wanted.Topology.PodCIDRs
	}
	for _, r := range h.concluded.Forget {
		h.publish(object{forgotten: &tombstone{r.ID(), r.Sequence}})
	}
	wake := simResync
	for _, d := range []time.Duration{h.concluded.RecheckAfter, h.concluded.ClaimWait, h.concluded.ReadyWait} {
		if d > 0 {
			wake = min(wake, max(d, simGather))
		}
	}
	h.look(wake)
}

// input is what a turn reads.
func (h *host) input() node.Input {
	return node.Input{
		Now: h.now, Started: h.started, Self: h.self, Config: h.config, Promise: h.disk.promise,
		View: h.view(), Facts: h.facts(), LastHeard: h.peers.heard, Results: h.table.Results(h.now),
		Paths: h.paths(),
	}
}

// adopt takes over the settings on which the nodes agree, and keeps them on disk.
func (h *host) adopt(used mesh.Cluster) {
	h.disk.adopted = mesh.Cluster{}
	if used.Generation > h.config.Cluster.Generation {
		h.disk.adopted = used
	}
}

// announce tells the others what there is to tell.
func (h *host) announce(in *node.Input) {
	if h.disk.promise.Ready && h.memory.WouldMove(*in) {
		in.InUse = "pods"
	}
	a := h.memory.Announce(*in)
	if a.RecordChanged {
		h.disk.promise = a.Promise
		if a.NewClaim {
			h.memory.ClaimedAt = h.now
		}
		h.memory.Own = a.Record
		h.note("%s: record %d, slot %d, term %v, endpoints %v", h.name, a.Record.Sequence, a.Record.Claim.Slot, a.Record.Term, a.Record.Endpoints)
		a.Record.Identify() // here, not at each look of each node
		h.publish(object{record: &a.Record})
	}
	h.ask(a.RequestSigns)
	for _, v := range a.Verdicts {
		h.say(v)
	}
	if a.RecheckAfter > 0 {
		h.look(max(a.RecheckAfter, simGather))
	}
	in.View, in.Promise = h.view(), h.disk.promise
	h.adopt(in.View.Cluster)
}

// observe returns what the kernel has.
func (h *host) observe() netcfg.State {
	observed := h.kernel.State
	if h.blocked {
		observed.Sysctls = nil
	}
	observed.Peers = slices.Clone(observed.Peers)
	for i := range observed.Peers {
		observed.Peers[i].LastHandshake = h.tunnels[observed.Peers[i].Key].lastHandshake()
	}
	h.memory.Sessions, observed = h.memory.Sessions.Correct(observed, h.now)
	return observed
}

// change applies the difference between what the kernel has and what it should have, and
// reports whether there was one.
func (h *host) change(in node.Input, o netcfg.Options) bool {
	plan := netcfg.Diff(h.observe(), h.wanted.Desired, o)
	if plan.Empty() {
		return false
	}
	h.checkPlan(in, plan, o)
	err := h.kernel.Apply(plan)
	if h.kernel.Changed = nil; err != nil {
		h.fail("%s: %v\nplan:\n%s", h.name, err, plan)
	}
	for _, p := range h.kernel.Peers {
		if h.tunnels[p.Key] == nil {
			h.tunnels[p.Key] = &tunnel{}
		}
	}
	if len(plan.Peers) > 0 {
		h.later(0, h.findPaths)
	}
	h.plan = plan
	h.writes++
	h.written = h.now
	return true
}

// reachOut brings about handshakes with peers that have none.
func (h *host) reachOut(in node.Input) {
	out := h.concluded.Handshakes
	if len(out.Renew) > 0 {
		h.change(in, netcfg.Options{Now: h.now, Prune: h.wanted.Prune, Renew: out.Renew})
	}
	for _, a := range out.Initiate {
		if p, ok := h.peerFor(a); ok {
			h.transmit(p)
		}
	}
}

// probe sends echo requests, and has a turn taken when that shows something new.
func (h *host) probe() {
	h.weigh()
	due := h.table.TakeDue(h.now)
	for _, t := range slices.SortedFunc(maps.Keys(due), compareTargets) {
		request := due[t]
		if rtt, ok := h.echo(t); ok {
			h.later(rtt, func() {
				h.table.RecordAnswer(t.Addr, request.Sequence, h.now)
				h.weigh()
			})
		}
	}
}

func compareTargets(a, b probe.Target) int {
	return cmp.Or(a.Addr.Compare(b.Addr), a.Source.Compare(b.Source), a.Via.Compare(b.Via))
}

// weigh has a turn taken if a target has another level than before.
func (h *host) weigh() {
	if now := h.table.Levels(h.now); !maps.Equal(now, h.levels) {
		h.levels = now
		h.tellUrgently()
	}
}

// byID returns the host with a node, or nil.
func (s *simulation) byID(id mesh.ID) *host {
	i := slices.IndexFunc(s.hosts, func(h *host) bool { return h.id == id })
	if i < 0 {
		return nil
	}
	return s.hosts[i]
}
