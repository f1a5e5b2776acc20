// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/internal/node"
	"github.com/meshd/meshd/internal/path"
	"github.com/meshd/meshd/internal/path/agent"
	"github.com/meshd/meshd/internal/portmap"
	"github.com/meshd/meshd/internal/probe"
)

// scenario is a story of node a1. Its trace is in testdata/trace.
type scenario struct {
	name, about string
	config      string
	run         func(*world)
}

const (
	standsAlone = "node: {name: a1}"
	inLocation  = "cluster: {mode: location}\nnode: {name: a1, location: a, endpoint: 203.0.113.1:51820}"
	withK3s     = "\nk3s: {write-config: true, role: server}"
	withoutCNI  = "\ncni: {enabled: false}"
)

var scenarios = []scenario{
	{"first", "The first node of a mesh takes slot 0. Pods may run once nobody can contest it any more.", standsAlone + withK3s, func(w *world) {
		w.start()
		w.pass(time.Minute)
		w.end()
	}},
	{"first-without-cni", "The first node of a mesh, on a host where others do the CNI.", standsAlone + withK3s + withoutCNI, func(w *world) {
		w.start()
		w.pass(10 * time.Second)
		w.end()
	}},
	{"first-bare", "The first node of a mesh, on a host where others see to the CNI and to k3s.", standsAlone + withoutCNI, func(w *world) {
		w.start()
		w.pass(10 * time.Second)
		w.end()
	}},
	{"join", "A node with a join list claims nothing before it has taken in somebody's state. k3s waits for the first peer.", standsAlone + "\njoin: [203.0.113.11]", func(w *world) {
		w.network.view.JoinEmpty = false
		w.start()
		w.pass(2 * time.Second)
		w.mark("b1 is heard")
		w.meet(w.b1())
		w.pass(20 * time.Second)
		w.end()
	}},
	{"other-half", "Another half of the mesh is heard of, whose first node has the same slot. Nothing runs here yet, so this node takes another one by itself.", standsAlone, func(w *world) {
		settled(w)
		w.mark("b1 is heard")
		w.meet(w.otherFirst())
		w.pass(10 * time.Second)
		w.end()
	}},
	{"other-half-in-use", "The same, and a pod runs here: this node keeps its slot until a person has it take another one.", standsAlone, func(w *world) {
		settled(w)
		w.kernel.change(func(k *fakeKernel) { k.users = []string{"link veth1 on kube-bridge"} })
		w.mark("b1 is heard")
		w.meet(w.otherFirst())
		w.pass(time.Second)
		w.command("meshd renumber", func(ctx context.Context) error {
			_, err := w.d.Renumber(ctx, false)
			return err
		})
		w.pass(10 * time.Second)
		w.end()
	}},
	{"late-address", "A node of a location starts before the host has an address there, and tells it when it comes.", inLocation, func(w *world) {
		w.start()
		w.pass(10 * time.Second)
		w.mark("DHCP answers")
		w.kernel.change(func(k *fakeKernel) { k.facts = lanFacts("192.168.1.1/24") })
		fire(w.kernel.events)
		w.pass(10 * time.Second)
		w.end()
	}},
	{"peer", "A node appears, moves to another address, dies, and is forgotten.", standsAlone, func(w *world) {
		settled(w)
		w.mark("b1 appears")
		w.meet(w.b1())
		w.pass(10 * time.Second)
		w.mark("b1 moves")
		moved := w.b1()
		moved.Sequence, moved.Endpoints[0].Host = 2, "203.0.113.12"
		w.meet(moved)
		w.pass(10 * time.Second)
		w.mark("b1 dies")
		w.hear(func(v *mesh.View) { delete(v.Alive, moved.ID()) })
		w.pass(10 * time.Second)
		w.command("meshd forget b1", func(ctx context.Context) error { return w.d.Forget(ctx, "b1") })
		w.pass(11 * time.Second)
		w.end()
	}},
	{"no-answer", "A node appears, and the first three handshakes with it are lost.", standsAlone, func(w *world) {
		settled(w)
		w.mark("b1 appears")
		w.kernel.change(func(k *fakeKernel) { k.lost = 3 })
		w.meet(w.b1())
		w.pass(10 * time.Second)
		w.end()
	}},
	{"restart", "A daemon starts again, on a host that has all of it already. Somebody tells soon who is there: c1 is not.", standsAlone, func(w *world) {
		b1, c1 := w.b1(), w.c1()
		settled(w, b1, c1)
		w.end()
		w.reset()
		w.hear(func(v *mesh.View) { v.Records = withRecord(withRecord(nil, w.d.memory.Own), b1) })
		w.start()
		w.pass(20 * time.Second)
		w.mark("b1 is heard")
		w.meet(b1)
		w.pass(10 * time.Second)
		w.end()
	}},
	{"restart-alone", "A daemon starts again, and hears nobody.", standsAlone, func(w *world) {
		b1, c1 := w.b1(), w.c1()
		settled(w, b1, c1)
		w.end()
		w.reset()
		w.hear(func(v *mesh.View) { v.JoinEmpty, v.Records = false, withRecord(withRecord(nil, w.d.memory.Own), b1) })
		w.start()
		w.pass(2 * node.PruneAfter)
		w.end()
	}},
	{"reboot", "A host has come up again, and somebody has deleted the CNI configuration. All that there is to do is done in one turn.", inLocation + withK3s, func(w *world) {
		settled(w, memberOfA(w)...)
		w.addClient()
		w.end()
		w.reset()
		w.kernel.kernel.State = netcfg.State{}
		clear(w.kernel.met)
		if err := errors.Join(os.RemoveAll(filepath.Join(w.dir, "net.d")), os.RemoveAll(filepath.Join(w.dir, "etc"))); err != nil {
			w.t.Fatal(err)
		}
		w.start()
		w.pass(10 * time.Second)
		w.end()
	}},
	{"reload", "The file has changed. Then it has a mistake in it.", standsAlone, func(w *world) {
		settled(w)
		w.configure("node: {name: a1}\njoin: [203.0.113.11]\nmetrics: {listen: 127.0.0.1:9999}")
		w.signal()
		w.pass(10 * time.Second)
		w.configure("nodes: {name: a1}")
		w.signal()
		w.pass(10 * time.Second)
		w.end()
	}},
	{"stop", "The daemon stops just after it has heard of two nodes. The host stays as it is.", standsAlone, func(w *world) {
		settled(w)
		w.mark("b1 appears")
		w.meet(w.b1())
		w.pass(time.Second)
		w.mark("c1 appears")
		w.meet(w.c1())
		w.pass(time.Second)
		w.end()
	}},
	{"drain", "The gateway of a location is drained, and another node takes over; then it is taken back.", inLocation, func(w *world) {
		settled(w, gatewayOfA(w)...)
		drain(w, false)
		w.pass(10 * time.Second)
		drain(w, true)
		w.pass(10 * time.Second)
		w.end()
	}},
	{"replaced", "Another node says that this gateway is down. It is up again when it has been replaced for a while.", inLocation, func(w *world) {
		settled(w, gatewayOfA(w)...)
		w.mark("a2 says that a1 is down")
		w.foundDown()
		w.pass(time.Minute)
		w.end()
	}},
	{"replaced-undo", "Another node says that this gateway is down. A person sees to it that it is up again at once.", inLocation, func(w *world) {
		settled(w, gatewayOfA(w)...)
		w.mark("a2 says that a1 is down")
		w.foundDown()
		w.command("meshd drain --undo", func(ctx context.Context) error {
			_, err := w.d.Drain(ctx, true)
			return err
		})
		w.pass(11 * time.Second)
		w.end()
	}},
	{"failover", "The gateway of this node's location is silent, and another node of the LAN answers.", inLocation, func(w *world) {
		settled(w, memberOfA(w)...)
		w.mark("a2 is silent")
		now, a2 := time.Now(), w.d.cfg.Cluster.Overlays(1)[0]
		w.prober.answer(w.d.published.Load().turn.watch, func(t probe.Target) probe.Result {
			if t.Addr == a2 || t.Via != (mesh.ID{}) {
				return probe.Result{Answered: now.Add(-10 * time.Second), Misses: w.d.cfg.Probe.Misses, FirstMiss: now.Add(-2 * time.Second), LastMiss: now.Add(-time.Second), Known: true}
			}
			return probe.Result{Answered: now, Known: true}
		})
		fire(w.prober.changed)
		w.pass(10 * time.Second)
		w.end()
	}},
	{"client", "A person adds a client, and removes it.", standsAlone, func(w *world) {
		settled(w)
		w.addClient()
		w.pass(12 * time.Second)
		w.command("meshd client remove laptop", func(ctx context.Context) error {
			_, err := w.d.RemoveClient(ctx, "laptop")
			return err
		})
		w.pass(10 * time.Second)
		w.end()
	}},
	{"renumber", "A person has the node take another slot.", standsAlone, func(w *world) {
		settled(w)
		w.command("meshd renumber --force", func(ctx context.Context) error {
			_, err := w.d.Renumber(ctx, true)
			return err
		})
		w.pass(10 * time.Second)
		w.end()
	}},
	{"paths", "A node tells where it is reached, and a path to it is found. This node learns that it is behind NAT, which it says in its record. None of the rest needs a turn.", standsAlone, func(w *world) {
		b1 := w.b1()
		settled(w, b1)
		w.kernel.change(func(k *fakeKernel) { k.facts = lanFacts("192.168.1.1/24") })
		w.move(lanFacts("192.168.1.1/24"))
		w.pass(time.Second)
		w.mark("b1 tells where it is reached")
		w.network.changePaths(mesh.PathRecord{Author: b1.ID(), Key: [32]byte{2}, Candidates: []mesh.PathCandidate{
			{Addr: netip.MustParseAddrPort("198.51.100.11:40001"), Kind: mesh.CandidateSeen},
		}})
		w.pass(time.Second)
		w.mark("b1 answers")
		w.paths.find(agent.PeerStatus{
			ID: b1.ID(), Seen: []netip.AddrPort{netip.MustParseAddrPort("198.51.100.1:40000")},
			Report: path.Report{Path: path.Path{Kind: path.Direct, Addr: netip.MustParseAddrPort("198.51.100.11:40001")}, Proved: true, Since: time.Now(), RTT: 10 * time.Millisecond},
		})
		w.pass(time.Second)
		w.mark("the NAT gives this node another port")
		w.paths.find(agent.PeerStatus{
			ID: b1.ID(), Seen: []netip.AddrPort{netip.MustParseAddrPort("198.51.100.1:40002")},
			Report: path.Report{Path: path.Path{Kind: path.Direct, Addr: netip.MustParseAddrPort("198.51.100.11:40001")}, Proved: true, Since: time.Now(), RTT: 10 * time.Millisecond},
		})
		w.pass(time.Second)
		w.end()
	}},
	{"port-mapping", "The router of a host without a public address maps WireGuard's port, and then is turned off by the file. None of it needs a turn but the file.", standsAlone, func(w *world) {
		settled(w, w.b1())
		w.move(lanFacts("192.168.1.7/24"))
		w.pass(time.Second)
		w.mark("the router maps the port")
		w.ports.grant(portmap.Mapping{
			Protocol: portmap.PCP, Gateway: netip.MustParseAddr("192.168.1.254"),
			Internal: netip.MustParseAddrPort("192.168.1.7:51820"), External: netip.MustParseAddrPort("198.51.100.1:40001"),
		})
		w.pass(time.Second)
		w.mark("it turns out to be behind NAT itself")
		w.ports.grant(portmap.Mapping{
			Protocol: portmap.PCP, Gateway: netip.MustParseAddr("192.168.1.254"),
			Internal: netip.MustParseAddrPort("192.168.1.7:51820"), External: netip.MustParseAddrPort("100.64.1.1:40001"),
		})
		w.pass(time.Second)
		w.configure("node: {name: a1, port-mapping: off}")
		w.signal()
		w.end()
	}},
	{"relays", "A host that gets behind NAT is no relay any more. It hears of one, binds to it, and tells so. Then the relay is gone.", standsAlone, func(w *world) {
		b1, c1 := w.b1(), w.c1()
		settled(w, b1, c1)
		w.kernel.change(func(k *fakeKernel) { k.facts = lanFacts("192.168.1.1/24") })
		w.pass(time.Second)
		w.mark("b1 is a relay")
		w.network.changePaths(mesh.PathRecord{Author: b1.ID(), Key: [32]byte{2}, Relay: mesh.RelayAuto, Candidates: []mesh.PathCandidate{
			{Addr: netip.MustParseAddrPort("203.0.113.11:51820"), Kind: mesh.CandidatePublic, Open: true},
		}})
		w.pass(time.Second)
		w.mark("the host is bound to it")
		w.paths.bind(path.BoundRelay{
			RelayAddr: path.RelayAddr{Relay: path.ShortOf(b1.ID()), Addr: netip.MustParseAddrPort("203.0.113.11:7946")},
			Seen:      netip.MustParseAddrPort("198.51.100.1:40000"), Kept: true,
		})
		w.pass(time.Second)
		w.mark("the relay is gone")
		w.paths.bind()
		w.network.changePaths()
		w.pass(time.Second)
		w.end()
	}},
	{"session-unknown", "A relay does not know the session with a peer, which answers probes through it: the session is begun anew, once each time that is asked for.", standsAlone, func(w *world) {
		b1 := w.b1()
		settled(w, b1)
		status := agent.PeerStatus{ID: b1.ID(), Report: path.Report{
			Path: path.Path{Kind: path.Relayed, Addr: netip.MustParseAddrPort("203.0.113.9:7946")}, Proved: true, Since: time.Now(), RTT: 10 * time.Millisecond,
		}}
		w.paths.find(status)
		w.pass(time.Second)
		for range 2 {
			w.mark("the relay does not know the session")
			status.Renew = time.Now().Add(time.Second) // the fake kernel has always just had a handshake
			w.paths.find(status)
			w.pass(10 * time.Second)
			w.paths.find(status)
			w.pass(10 * time.Second)
		}
		w.end()
	}},
	{"udp-blocked", "No node answers over UDP, so a stream takes its place, until one answers again.", standsAlone, func(w *world) {
		b1 := w.b1()
		settled(w, b1)
		status := agent.PeerStatus{ID: b1.ID()}
		answers := func(kind path.Kind, addr netip.AddrPort) {
			status.Path, status.Proved = path.Path{Kind: kind, Addr: addr}, addr.IsValid()
			w.paths.find(status)
			w.pass(time.Second)
		}
		w.mark("b1 does not answer")
		answers(path.None, netip.AddrPort{})
		w.pass(30 * time.Second)
		w.mark("b1 answers over the stream")
		answers(path.Stream, w.streams.Status()[0].Own)
		w.pass(time.Minute)
		w.mark("b1 answers directly")
		answers(path.Direct, netip.MustParseAddrPort("203.0.113.11:51820"))
		w.pass(10 * time.Second)
		w.end()
	}},
	{"no-path", "Gossip reaches b1, and WireGuard does not. That is a problem after 15 s, and none as soon as b1 answers.", standsAlone, func(w *world) {
		b1, c1 := w.b1(), w.c1()
		settled(w, b1, c1)
		answers := func(ids ...mesh.ID) {
			status := map[mesh.ID]agent.PeerStatus{b1.ID(): {ID: b1.ID()}, c1.ID(): {ID: c1.ID()}}
			for _, id := range ids {
				status[id] = agent.PeerStatus{ID: id, Report: path.Report{
					Path: path.Path{Kind: path.Direct, Addr: netip.MustParseAddrPort("203.0.113.9:51820")}, Proved: true, Since: time.Now(),
				}}
			}
			w.paths.find(status[b1.ID()], status[c1.ID()])
		}
		w.mark("c1 answers, and b1 does not")
		answers(c1.ID())
		w.pass(30 * time.Second)
		w.mark("b1 answers")
		answers(b1.ID(), c1.ID())
		w.pass(10 * time.Second)
		w.end()
	}},
	{"path-mtu", "The path to b1 carries less than the tunnel's MTU. The routes to it follow at once, and it is a problem until all passes.", standsAlone, func(w *world) {
		b1 := w.b1()
		settled(w, b1, w.c1())
		carries := func(mtu int) {
			w.paths.find(agent.PeerStatus{ID: b1.ID(), Report: path.Report{
				Path: path.Path{Kind: path.Direct, Addr: netip.MustParseAddrPort("203.0.113.11:51820")}, Proved: true, Since: time.Now(), MTU: mtu,
			}})
		}
		carries(0)
		w.pass(10 * time.Second)
		w.mark("it is found out that 1312 bytes pass")
		carries(1312)
		w.pass(7 * time.Second)
		w.mark("all pass")
		carries(1420)
		w.pass(7 * time.Second)
		w.end()
	}},
	{"generation", "Another node has newer settings: the mode is full.", inLocation, func(w *world) {
		settled(w, gatewayOfA(w)...)
		w.mark("generation 2 is heard")
		w.hear(func(v *mesh.View) { v.Cluster.Generation, v.Cluster.Mode = 2, mesh.ModeFull })
		w.pass(10 * time.Second)
		w.end()
	}},
	{"absent", "A node has been away for as long as it takes to be forgotten.", "cluster: {forget-after: 1h}\n" + standsAlone, func(w *world) {
		b1 := w.b1()
		settled(w, b1, w.c1())
		w.mark("b1 dies")
		w.hear(func(v *mesh.View) { delete(v.Alive, b1.ID()) })
		w.pass(90 * time.Minute)
		w.end()
	}},
	{"moved", "The host gets another address.", standsAlone, func(w *world) {
		settled(w, w.b1())
		w.move(hostFacts("198.51.100.1"))
		w.pass(10 * time.Second)
		w.end()
	}},
	{"moved-in-location", "The host gets another address on its LAN.", inLocation, func(w *world) {
		settled(w, gatewayOfA(w)...)
		w.move(lanFacts("192.168.1.9/24"))
		w.pass(10 * time.Second)
		w.end()
	}},
	{"duplicate", "Another daemon runs with this identity, and was there before. This one gives way.", standsAlone, func(w *world) {
		settled(w)
		w.givesWay()
	}},
	{"duplicate-again", "A daemon starts again that has given way. The other one still runs, and this one does not touch the host.", standsAlone, func(w *world) {
		settled(w, w.b1())
		w.givesWay()
		w.reset()
		w.start()
		w.givesWay()
	}},
	{"duplicate-gone", "A daemon starts again that has given way. Nobody else has its identity any more.", standsAlone, func(w *world) {
		settled(w, w.b1())
		w.givesWay()
		w.reset()
		w.start()
		w.pass(2 * time.Minute)
		w.end()
	}},
	{"revoked", "This node is revoked. It says no more of itself.", standsAlone, func(w *world) {
		b1 := w.b1()
		settled(w, b1)
		w.mark("a1 is revoked")
		w.hear(func(v *mesh.View) {
			v.Forgotten, v.OwnSequence, v.Records = mesh.Forever, mesh.Forever, withRecord(nil, b1)
		})
		w.pass(10 * time.Second)
		w.end()
	}},
	{"full-disk", "The disk takes nothing, when the host moves and a node appears. Then there is room again.", standsAlone, func(w *world) {
		settled(w, w.b1())
		w.mark("the disk is full")
		w.disk.fill(errors.New("no space left on device"))
		w.move(hostFacts("198.51.100.1"))
		w.mark("c1 appears")
		w.meet(w.c1())
		w.pass(4 * time.Second)
		w.mark("there is room again")
		w.disk.fill(nil)
		w.pass(20 * time.Second)
		w.end()
	}},
	{"blind", "The kernel does not say what host this is, when a node appears.", standsAlone, func(w *world) {
		settled(w)
		w.mark("b1 appears, and the kernel does not answer")
		w.kernel.change(func(k *fakeKernel) { k.err = errors.New("no buffer space available") })
		w.meet(w.b1())
		w.pass(time.Second)
		w.mark("the kernel answers again")
		w.kernel.change(func(k *fakeKernel) { k.err = nil })
		w.pass(20 * time.Second)
		w.end()
	}},
	{"apply-fails", "The kernel can't do what a node that appears asks for. The rest of the turn is taken all the same.", standsAlone, func(w *world) {
		settled(w)
		w.mark("b1 appears, and the kernel takes nothing")
		w.kernel.change(func(k *fakeKernel) { k.refuse = errors.New("no buffer space available") })
		w.meet(w.b1())
		w.pass(time.Second)
		w.mark("the kernel takes all")
		w.kernel.change(func(k *fakeKernel) { k.refuse = nil })
		w.pass(20 * time.Second)
		w.end()
	}},
}

// settled starts a node and makes others known. When it is ready and may prune, the trace
// is reset.
func settled(w *world, others ...mesh.Record) {
	w.start()
	w.pass(10 * time.Second)
	if len(others) > 0 {
		w.meet(others...)
	}
	w.pass(2 * node.PruneAfter)
	w.reset()
}

// gatewayOfA makes the host the gateway of location a, and returns the other nodes: a2 in
// the same location, and b1 elsewhere.
func gatewayOfA(w *world) []mesh.Record {
	w.kernel.facts = lanFacts("192.168.1.1/24")
	return []mesh.Record{w.beside("a2", 1, mesh.GatewayTerm{}), w.b1()}
}

// memberOfA makes the host a member of location a, whose gateway is a2.
func memberOfA(w *world) []mesh.Record {
	w.kernel.facts = lanFacts("192.168.1.1/24")
	return []mesh.Record{w.beside("a2", 1, mesh.GatewayTerm{Since: 1}), w.beside("a3", 2, mesh.GatewayTerm{}), w.b1()}
}

// drain drains this node while a2 takes over, or undoes that.
func drain(w *world, undo bool) {
	line, term := "meshd drain", mesh.GatewayTerm{Since: time.Now().UnixMilli()}
	if undo {
		line, term = "meshd drain --undo", mesh.GatewayTerm{}
	}
	w.mark(line)
	done := make(chan control.Drained, 1)
	go func() {
		out, err := w.d.Drain(w.t.Context(), undo)
		if err != nil {
			w.t.Error(err)
		}
		done <- out
	}()
	w.pass(time.Second)
	w.mark("a2 says whether it is the gateway")
	w.meet(w.beside("a2", 1, term))
	w.pass(time.Second)
	if out := <-done; out.Draining == undo {
		w.t.Errorf("%s: %+v", line, out)
	}
}

// givesWay has this daemon stop for a duplicate, once and for all.
func (w *world) givesWay() {
	w.t.Helper()
	if err := w.meetDuplicate(); !errors.Is(err, ErrDuplicate) {
		w.t.Errorf("the loop ended: got %v, want %v", err, ErrDuplicate)
	}
}

// meetDuplicate has another daemon of this identity, which was there before, tell its record
// until this one stops, and returns the error of its end.
func (w *world) meetDuplicate() error {
	for len(w.ended) == 0 {
		w.mark("the other daemon tells its record")
		other := w.d.memory.Own
		other.Instance, other.Sequence = 1, w.d.memory.Own.Sequence+1
		w.hear(func(v *mesh.View) { v.Records, v.OwnSequence = withRecord(v.Records, other), other.Sequence })
		w.pass(4 * time.Second)
	}
	w.stop()
	return <-w.ended
}

// b1 and c1 are nodes with public addresses.
func (w *world) b1() mesh.Record { return w.node("b1", 3, "203.0.113.11") }
func (w *world) c1() mesh.Record { return w.node("c1", 4, "203.0.113.12") }

// otherFirst is b1 as the first node of another half of the mesh, which began earlier.
func (w *world) otherFirst() mesh.Record {
	r := w.b1()
	r.Claim.Slot, r.Claim.Confirmed = 0, true
	return r
}

// beside returns a node of the same location, with a later claim.
func (w *world) beside(name string, number int, term mesh.GatewayTerm) mesh.Record {
	r := w.node(name, number, "203.0.113.2")
	r.Location, r.Gateway, r.Term = "a", mesh.GatewayAuto, term
	r.Claim.Time += 2 * time.Hour.Milliseconds()
	r.InternalIPs = []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, 1, byte(number + 1)}), 24)}
	return r
}

// foundDown has a2 publish a verdict that this gateway is down.
func (w *world) foundDown() {
	a2 := w.beside("a2", 1, mesh.GatewayTerm{})
	w.network.change(func(v *mesh.View) {
		v.Verdicts = []mesh.Verdict{{Author: a2.Identity, Subject: w.network.self, State: mesh.HealthDown, Epoch: 1}}
	})
	synctest.Wait()
}

// addClient adds a client.
func (w *world) addClient() {
	w.t.Helper()
	w.command("meshd client add laptop", func(ctx context.Context) error {
		_, err := w.d.AddClient(ctx, control.ClientRequest{Name: "laptop", PublicKey: wgtypes.Key{5}.String(), Access: []string{"pods"}})
		return err
	})
}

// move gives the host another address, at which b1 then sees it.
func (w *world) move(to netcfg.Facts) {
	w.mark("the host has another address")
	w.kernel.change(func(k *fakeKernel) { k.facts = to })
	fire(w.kernel.events)
	w.pass(time.Second)
}
