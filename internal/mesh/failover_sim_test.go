// SPDX-License-Identifier: Apache-2.0

package mesh_test

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/mesh"
)

// This simulation measures how many packets are lost while a gateway changes. Verdicts
// and records reach each node at a different time, packets need time too, and meet on
// each host the tables of that moment. No real clock runs here: all times are simulated.
//
//	gateway          verdict issued   first node knows   last node knows
//	   | dies              |                |                  |
//	---+-------------------+----------------+------------------+-----> time
//	   |<--- detection --->|<-------- the window measured ---->|
const (
	simLAN     = 300 * time.Microsecond // one hop on a LAN
	simTunnel  = 20 * time.Millisecond  // one hop through a tunnel
	simRTT     = 2 * simTunnel          // a WireGuard handshake
	simGossip  = 200 * time.Millisecond // longest delay of a gossip link
	simTenure  = 5 * time.Second        // how long a replaced gateway's term goes on
	simEvery   = 2 * time.Millisecond   // between packets
	simIssue   = time.Second            // when the verdict is issued
	simWatched = 400 * time.Millisecond // until the verdict has reached all nodes
	simSettled = simIssue + simTenure + simWatched
)

// failoverSim is a cluster on simulated time.
type failoverSim struct {
	w        *walker
	cluster  mesh.Cluster
	ids      []mesh.ID
	arrive   map[[2]mesh.ID]time.Duration // how long gossip takes from one to the other
	views    map[mesh.ID]*simView
	queue    []simEvent
	timeline map[mesh.ID][]moment
	issuer   int // of the verdict
}

// simView is what one node knows.
type simView struct {
	records  map[mesh.ID]mesh.Record
	verdicts map[string]mesh.Verdict
}

// moment is the time from which a node has these tables.
type moment struct {
	since  time.Duration
	top    mesh.Topology
	tables *tables
}

// simEvent is the arrival of an object at a node, or, without an object, the time to
// check one's own term again.
type simEvent struct {
	at      time.Duration
	node    mesh.ID
	record  *mesh.Record
	verdict *mesh.Verdict
}

func newFailoverSim(c mesh.Cluster, records []mesh.Record, verdicts []mesh.Verdict, rng *rand.Rand) *failoverSim {
	s := &failoverSim{
		w: newWalker(c, records, verdicts...), cluster: c, arrive: gossipDelays(records, rng),
		views: map[mesh.ID]*simView{}, timeline: map[mesh.ID][]moment{},
	}
	for _, r := range records {
		s.ids = append(s.ids, r.ID())
	}
	for _, id := range s.ids {
		v := &simView{records: map[mesh.ID]mesh.Record{}, verdicts: map[string]mesh.Verdict{}}
		for _, r := range records {
			v.records[r.ID()] = r
		}
		for _, verdict := range verdicts {
			v.verdicts[verdictKey(verdict)] = verdict
		}
		s.views[id] = v
		s.derive(id, math.MinInt64)
	}
	return s
}

// gossipDelays chooses a random delay for the link between any two nodes; an object takes
// the fastest way through all of them (Floyd and Warshall).
func gossipDelays(records []mesh.Record, rng *rand.Rand) map[[2]mesh.ID]time.Duration {
	d := map[[2]mesh.ID]time.Duration{}
	for i, a := range records {
		for _, b := range records[:i] {
			delay := time.Duration(rng.Int64N(int64(simGossip)))
			d[[2]mesh.ID{a.ID(), b.ID()}], d[[2]mesh.ID{b.ID(), a.ID()}] = delay, delay
		}
		d[[2]mesh.ID{a.ID(), a.ID()}] = 0
	}
	for _, k := range records {
		for _, a := range records {
			for _, b := range records {
				ab := [2]mesh.ID{a.ID(), b.ID()}
				d[ab] = min(d[ab], d[[2]mesh.ID{a.ID(), k.ID()}]+d[[2]mesh.ID{k.ID(), b.ID()}])
			}
		}
	}
	return d
}

// publish sends an object from its author to all live nodes.
func (s *failoverSim) publish(at time.Duration, author mesh.ID, r *mesh.Record, v *mesh.Verdict) {
	for _, id := range s.ids {
		if !s.w.hosts[id].dead {
			s.queue = append(s.queue, simEvent{at + s.arrive[[2]mesh.ID{author, id}], id, r, v})
		}
	}
}

// run processes events until all objects have arrived.
func (s *failoverSim) run() {
	for len(s.queue) > 0 {
		slices.SortStableFunc(s.queue, func(a, b simEvent) int { return cmp.Compare(a.at, b.at) })
		e := s.queue[0]
		s.queue = s.queue[1:]
		v := s.views[e.node]
		if e.record != nil && e.record.Sequence > v.records[e.record.ID()].Sequence {
			v.records[e.record.ID()] = *e.record
		}
		if e.verdict != nil {
			v.verdicts[verdictKey(*e.verdict)] = *e.verdict
		}
		s.derive(e.node, e.at)
		s.updateTerm(e.node, e.at)
	}
}

// verdictKey identifies the author's only verdict on a subject.
func verdictKey(v mesh.Verdict) string { return fmt.Sprint(v.Subject, v.Role, mesh.IDOf(v.Author)) }

// derive computes a node's tables from what it knows.
func (s *failoverSim) derive(id mesh.ID, now time.Duration) {
	in := mesh.Input{Cluster: s.cluster, Self: id}
	for _, r := range s.views[id].records {
		in.Records = append(in.Records, r)
	}
	for _, v := range s.views[id].verdicts {
		in.Verdicts = append(in.Verdicts, v)
	}
	top := mesh.Derive(in)
	tb, err := s.w.newTables(top)
	if err != nil {
		panic(err)
	}
	s.timeline[id] = append(s.timeline[id], moment{now, top, tb})
}

// updateTerm does what a daemon does: a node with a seat announces its term in its
// record, and one that has lost its seat ends its term after a while.
func (s *failoverSim) updateTerm(id mesh.ID, now time.Duration) {
	line := s.timeline[id]
	seat, r := line[len(line)-1].top.Seat, s.views[id].records[id]
	if seat == mesh.None && r.Term.Since != 0 {
		relieved := line[len(line)-1].since
		for i := len(line) - 1; i >= 0 && line[i].top.Seat == mesh.None; i-- {
			relieved = line[i].since
		}
		if relieved == math.MinInt64 {
			return // is a standby from the start
		}
		if now < relieved+simTenure {
			s.queue = append(s.queue, simEvent{at: relieved + simTenure, node: id})
			return
		}
		r.Term = mesh.GatewayTerm{}
	} else if seat != mesh.None && (r.Term.Seat != seat || r.Term.Since == 0) {
		r.Term = mesh.GatewayTerm{Seat: seat, Since: int64(now/time.Millisecond) + 1}
	} else {
		return
	}
	r.Sequence++
	s.publish(now, id, &r, nil)
}

// at returns a node's tables at a moment.
func (s *failoverSim) at(id mesh.ID, t time.Duration) moment {
	line := s.timeline[id]
	i, _ := slices.BinarySearchFunc(line, t, func(m moment, t time.Duration) int {
		if m.since <= t {
			return -1
		}
		return 1
	})
	return line[i-1]
}

// send follows a packet through simulated time.
func (s *failoverSim) send(t time.Duration, from, to mesh.ID) error {
	a, b := s.w.hosts[from], s.w.hosts[to]
	p := packet{src: a.top.PodCIDRs[0].Addr().Next(), dst: b.top.PodCIDRs[0].Addr().Next(), at: a, by: fromInside}
	for range 16 {
		if p.at.dead && t >= 0 {
			return p.lost("the host is dead")
		}
		m := s.at(p.at.id, t)
		if err := p.enter(m.tables); err != nil {
			return err
		}
		if p.at == b {
			return nil
		}
		e, ok := m.tables.lookup(p.dst)
		if !ok {
			return p.lost("no route")
		}
		next := s.w.hosts[e.to]
		if e.link == byTunnel {
			up, ok := s.session(p.at.id, next.id, t)
			if !ok {
				return p.lost("no tunnel to %s", next.Name)
			}
			t = max(t, up) + simTunnel
		} else {
			t += simLAN
		}
		p.hops = append(p.hops, next.id)
		p.from, p.at, p.by = p.at, next, e.link
	}
	return p.lost("it goes round and round")
}

// session returns when two nodes have a WireGuard session for a packet that one of them
// has now. A packet waits for the handshake as long as its sender has the peer. The node
// that adds the peer last sends the first message.
func (s *failoverSim) session(a, b mesh.ID, t time.Duration) (time.Duration, bool) {
	sa, ok := s.peeredSince(a, b, t)
	if !ok || s.w.hosts[b].dead {
		return 0, false
	}
	if sb, ok := s.peeredSince(b, a, t); ok {
		if max(sa, sb) < 0 {
			return 0, true
		}
		return max(sa, sb) + simRTT, true
	}
	for _, m := range s.timeline[b] {
		if _, ok := m.tables.peers[a]; ok && m.since > t {
			up := m.since + simRTT
			_, kept := s.at(a, up).tables.peers[b]
			return up, kept
		}
	}
	return 0, false
}

// peeredSince returns since when a has had b as a peer.
func (s *failoverSim) peeredSince(a, b mesh.ID, t time.Duration) (since time.Duration, ok bool) {
	line := s.timeline[a]
	for i := len(line) - 1; i >= 0; i-- {
		if line[i].since > t {
			continue
		}
		if _, has := line[i].tables.peers[b]; !has {
			break
		}
		since, ok = line[i].since, true
	}
	return since, ok
}

// window returns for how long after the verdict packets were lost, by the time of their
// sending, and how many.
func (s *failoverSim) window(from, to mesh.ID) (window time.Duration, lost int) {
	var first, last time.Duration
	for t := simIssue; t < simSettled; t += simEvery {
		if t > simIssue+simWatched && t < simIssue+simTenure {
			continue // nothing happens
		}
		if s.send(t, from, to) == nil {
			continue
		}
		if lost == 0 {
			first = t
		}
		last = t + simEvery
		lost++
	}
	return last - first, lost
}

// simCase is one way in which the first node of location a becomes, or ceases to be, a
// gateway.
type simCase struct {
	state   mesh.Health // the verdict
	dead    bool        // the node
	returns bool        // it was not a gateway before
	prefer  bool        // it wants to be gateway
	k       int         // gateways of a location
	standby bool        // the next gateway has tunnels of its own already
}

const subject, members, firstOfB, nodesOfSim = 0, 8, 8, 14

// records returns records of the locations a (where the change is) and b and of two nodes
// without a location. Of a, k+1 nodes can be gateways.
func (c simCase) records() []mesh.Record {
	var rs []mesh.Record
	for i := range nodesOfSim {
		r := record(i)
		switch {
		case i < firstOfB:
			r.Location, r.InternalIPs = "a", prefixes(fmt.Sprintf("192.168.1.%d/24", i+1))
		case i < firstOfB+4:
			r.Location, r.InternalIPs = "b", prefixes(fmt.Sprintf("192.168.2.%d/24", i+1))
		}
		if seat := i % firstOfB; seat > c.k {
			r.Gateway = mesh.GatewayNever
		} else if seat < c.k && r.Location != "" {
			r.Term = mesh.GatewayTerm{Seat: seat, Since: int64(1 + seat)}
		}
		rs = append(rs, r)
	}
	next := &rs[c.k]
	if c.returns {
		next.Term, rs[subject].Term = rs[subject].Term, mesh.GatewayTerm{}
		next = &rs[subject]
	}
	if c.standby {
		next.Term = mesh.GatewayTerm{Seat: mesh.None, Since: 100}
	}
	if c.prefer {
		rs[subject].Gateway = mesh.GatewayPrefer
	}
	return rs
}

// verdict returns a verdict on the subject.
func (c simCase) verdict(rs []mesh.Record, author int, state mesh.Health, epoch uint64) mesh.Verdict {
	return mesh.Verdict{Author: rs[author].Identity, Subject: rs[subject].ID(), Role: mesh.RoleGateway, State: state, Epoch: epoch}
}

// simulate runs until the verdict has reached all nodes.
func (c simCase) simulate(seed uint64) *failoverSim {
	rng := rand.New(rand.NewPCG(seed, 0))
	settings := cluster(false)
	settings.Mode, settings.Gateways, settings.Encapsulation = mesh.ModeLocation, c.k, mesh.EncapsulationAlways
	rs := c.records()
	var before []mesh.Verdict
	if c.returns {
		before = append(before, c.verdict(rs, subject+1, mesh.HealthDown, 1))
	}
	s := newFailoverSim(settings, rs, before, rng)
	s.w.hosts[rs[subject].ID()].dead = c.dead
	s.issuer = subject
	if c.state == mesh.HealthDown {
		s.issuer = members - 1
	}
	v := c.verdict(rs, s.issuer, c.state, 2)
	s.publish(simIssue, rs[s.issuer].ID(), nil, &v)
	s.run()
	return s
}

// windows are the durations for which packets were lost after the verdict.
type windows struct {
	out, in    []time.Duration // out of location a, and into it
	unaffected int
}

// measure measures the windows between a few members of a and all nodes outside, and
// checks each against its bound: packets on their way, a handshake, and the time between
// the first and the last arrival of the verdict among the nodes on the path.
func (s *failoverSim) measure(t *testing.T, c simCase, ws *windows) {
	next := s.ids[c.k]
	for _, m := range s.ids[c.k+1 : members] {
		for _, far := range []mesh.ID{s.ids[firstOfB], s.ids[firstOfB+3], s.ids[nodesOfSim-1]} {
			on := s.onPath(m, far)
			first, last := time.Duration(math.MaxInt64), time.Duration(0)
			for id := range on {
				if !s.w.hosts[id].dead {
					at := s.arrive[[2]mesh.ID{s.ids[s.issuer], id}]
					first, last = min(first, at), max(last, at)
				}
			}
			if c.dead {
				first = 0 // lost from the start
			}
			bound := last - first + simTunnel + simRTT + 2*simLAN + simEvery
			if !on[s.ids[subject]] {
				bound = 0
			}
			out, lostOut := s.window(m, far)
			in, lostIn := s.window(far, m)
			if out > bound || in > bound {
				t.Errorf("window out of %s %v, into it %v, want %v at most; next %v", s.w.hosts[m].Name, out, in, bound, next)
			}
			if !on[s.ids[subject]] {
				ws.unaffected += lostOut + lostIn
				continue
			}
			if c.state != mesh.HealthDown && lostIn > 0 {
				t.Errorf("%d packets lost into %s, though the old gateway keeps its tunnels", lostIn, s.w.hosts[m].Name)
			}
			ws.out, ws.in = append(ws.out, out), append(ws.in, in)
		}
	}
}

// onPath returns the nodes on the path between two others, before and after the change.
func (s *failoverSim) onPath(a, b mesh.ID) map[mesh.ID]bool {
	on := map[mesh.ID]bool{a: true, b: true}
	for _, when := range []time.Duration{0, simSettled} {
		for _, p := range s.at(a, when).top.Routes {
			if p.ID == b {
				for _, h := range p.Hops {
					on[h] = true
				}
			}
		}
	}
	return on
}

func TestFailoverSimulation(t *testing.T) {
	tests := []struct {
		name string
		c    simCase
	}{
		{"down and dead", simCase{state: mesh.HealthDown, dead: true}},
		{"down, yet it forwards", simCase{state: mesh.HealthDown}},
		{"draining", simCase{state: mesh.HealthDraining}},
		{"up again, not preferred", simCase{state: mesh.HealthUp, returns: true}},
		{"up again, preferred", simCase{state: mesh.HealthUp, returns: true, prefer: true}},
	}
	seeds := uint64(6)
	if testing.Short() {
		seeds = 2
	}
	for _, tt := range tests {
		for _, k := range []int{1, 2} {
			for _, standby := range []bool{false, true} {
				c := tt.c
				c.k, c.standby = k, standby
				var ws windows
				for seed := range seeds {
					c.simulate(seed).measure(t, c, &ws)
				}
				t.Logf("%-24s gateways %d, standby %-5v lost out of the location %s, into it %s", tt.name, k, standby, spread(ws.out), spread(ws.in))
				if ws.unaffected > 0 {
					t.Errorf("%s: %d packets lost on paths that don't touch the gateway", tt.name, ws.unaffected)
				}
			}
		}
	}
}

// spread prints the median and the maximum.
func spread(ds []time.Duration) string {
	if len(ds) == 0 {
		return "-"
	}
	slices.Sort(ds)
	return fmt.Sprintf("%3d ms (worst %3d)", ds[len(ds)/2].Milliseconds(), ds[len(ds)-1].Milliseconds())
}
