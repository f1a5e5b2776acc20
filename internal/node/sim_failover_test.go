// SPDX-License-Identifier: Apache-2.0

package node_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/meshd/meshd/internal/mesh"
)

// TestFailoverSimulation measures for how long packets are lost while a location's gateway
// changes. Verdicts and records reach each node at another time, packets need time too, and
// meet on each host the tables of that moment.
//
//	gateway          verdict issued   first node knows   last node knows
//	   | fails             |                |                  |
//	---+-------------------+----------------+------------------+-----> time
//	   |<--- detection --->|<-------- the window measured ---->|
func TestFailoverSimulation(t *testing.T) {
	seeds := uint64(6)
	if testing.Short() {
		seeds = 1
	}
	for _, tt := range failovers {
		for gateways := 1; gateways <= 2; gateways++ {
			t.Run(fmt.Sprintf("%s, gateways %d", tt.name, gateways), func(t *testing.T) {
				t.Parallel()
				var out, in []time.Duration
				for seed := range seeds {
					f := newFailover(t, seed, gateways)
					tt.happens(f)
					f.measure()
					for _, c := range f.flows {
						switch {
						case !c.affected && c.lost > 0:
							t.Errorf("%d packets lost that don't go through the gateway", c.lost)
						case c.leaves:
							out = append(out, c.window(f.issued))
						default:
							in = append(in, c.window(f.issued))
						}
						if tt.planned && !c.leaves {
							c.checkPlanned(t)
						}
					}
				}
				t.Logf("lost out of the location %s, into it %s", spread(out), spread(in))
				if worst := max(slices.Max(out), slices.Max(in)); worst > tt.most {
					t.Errorf("packets were lost for %v, want %v at the most", worst, tt.most)
				}
			})
		}
	}
}

const (
	gossipMost = 200 * time.Millisecond // the longest way of an object
	// switchMost is how long it takes from the first node that knows of a verdict until the
	// new gateway carries all: gossip, the handshake, and packets that were under way.
	switchMost = gossipMost + 250*time.Millisecond
	// detectMost is how long a gateway may be silent: n requests and the grace time, the
	// last answers under way, and the time of a request to one of the nodes beyond.
	detectMost = 4*250*time.Millisecond + 100*time.Millisecond + 500*time.Millisecond
	// forwardMost is how long longer one may be silent that answers, but does not forward: its
	// own paths get time to move.
	forwardMost = 1500 * time.Millisecond
	// firstMessageMost is how long a new tunnel carries nothing once both ends have it, if the one
	// that leads has it last: until its first message is there. If it has the tunnel first, that
	// message is in vain, and the next one is sent speakAgain later at the most.
	firstMessageMost = simTunnel + 2*flowEvery
	speakAgain       = 300 * time.Millisecond
	flowEvery        = 10 * time.Millisecond
)

var failovers = []struct {
	name    string
	happens func(*failover)
	most    time.Duration // for which packets are lost, from the verdict
	planned bool          // the former gateway goes on until its term ends
}{
	{"dies", func(f *failover) {
		f.subject.crash()
		f.failed = f.now
		f.await(mesh.HealthDown)
	}, switchMost, false},
	{"forwards nothing", func(f *failover) {
		f.subject.stuck = true
		f.failed = f.now
		f.await(mesh.HealthDown)
	}, switchMost, false},
	{"is called down, yet forwards", func(f *failover) {
		f.callDown()
		f.await(mesh.HealthDown)
	}, switchMost, false},
	{"drains", func(f *failover) {
		f.subject.memory.Drain(false)
		f.subject.tellUrgently()
		f.await(mesh.HealthDraining)
	}, switchMost, true},
	{"is up again, not preferred", func(f *failover) {
		f.callDown()
		f.pass(8 * time.Second)
		f.startFlows()
		f.await(mesh.HealthUp)
	}, 0, true},
	{"is up again, preferred", func(f *failover) {
		f.subject.config.Gateway = mesh.GatewayPrefer
		f.callDown()
		f.pass(8 * time.Second)
		f.startFlows()
		f.await(mesh.HealthUp)
	}, switchMost, true},
}

// failover is a simulation of eight nodes: location a has as many gateways as may be and one
// more node that could be one, and two members beside. Nodes b1, b2 and c1 are elsewhere.
type failover struct {
	*simulation
	subject *host // a gateway of a
	members []*host
	far     []*host
	flows   []*flow
	failed  time.Time // when the gateway did, if it does
	issued  time.Time // the verdict
}

// flow is packets from one host's pod to another's.
type flow struct {
	from, to *host
	leaves   bool // location a
	affected bool // the gateway that changes is on the way, before or after
	lost     int
	first    time.Time // when a packet was sent that was lost
	last     time.Time

	alone time.Time // when the far end of a tunnel lost a packet before the near end had the tunnel
	both  time.Time // when it lost the first one after that
	stray error     // a packet lost anywhere else
}

// window returns for how long packets were lost, from the verdict on.
func (c *flow) window(issued time.Time) time.Duration {
	if c.last.Before(issued) || c.lost == 0 {
		return 0
	}
	first := c.first
	if first.Before(issued) {
		first = issued
	}
	return c.last.Sub(first) + flowEvery
}

// noteLoss notes whether a packet into the location was lost at the beginning of a tunnel, by
// its far end, and whether the other end had the tunnel then.
func (c *flow) noteLoss(p *packet, err error) {
	far := p.at
	peer, ok := far.peerFor(p.dst)
	i := slices.IndexFunc(far.hosts, func(o *host) bool { return ok && o.deviceKey() == peer.Key })
	switch {
	case i < 0 || far.config.Location == c.to.config.Location || far.tunnels[peer.Key].usable(far.now) != nil:
		c.stray = err
	case far.hosts[i].peer(far.deviceKey()) < 0:
		c.alone = far.now
	case c.both.IsZero():
		c.both = far.now
	}
}

// checkPlanned checks what a flow into the location loses when a gateway hands over that goes
// on until its term ends. What others still send by that one arrives. They lose only what they
// send by the new one before there is a session: the two ends of that tunnel hear of the change
// one after the other.
func (c *flow) checkPlanned(t *testing.T) {
	if c.stray != nil {
		t.Errorf("a packet was lost that did not wait for the new gateway: %v", c.stray)
	}
	most := firstMessageMost
	if c.alone.IsZero() {
		most += speakAgain
	}
	if c.lost > 0 && !c.both.IsZero() && c.last.Sub(c.both) > most {
		t.Errorf("packets from %s to %s were lost for %v after both ends had the new tunnel, want %v at the most", c.from.name, c.to.name, c.last.Sub(c.both), most)
	}
}

func newFailover(t *testing.T, seed uint64, gateways int) *failover {
	f := &failover{simulation: newSimulation(t, seed)}
	f.cluster.Mode, f.cluster.Gateways = mesh.ModeLocation, gateways
	delays := rand.New(rand.NewPCG(seed, 1))
	delay := make(map[[2]*host]time.Duration)
	f.gossipDelay = func(from, to *host) time.Duration {
		if _, ok := delay[[2]*host{from, to}]; !ok {
			delay[[2]*host{from, to}] = time.Duration(delays.Int64N(int64(gossipMost)))
		}
		return delay[[2]*host{from, to}]
	}
	for i := range gateways + 3 {
		h := f.add(fmt.Sprintf("a%d", i+1), "a", place{1, cloud})
		if i > gateways {
			h.config.Gateway = mesh.GatewayNever
			f.members = append(f.members, h)
		}
	}
	f.add("b1", "b", place{2, routed}) // a gateway, being the first
	f.far = []*host{f.add("b2", "b", place{2, routed}), f.add("c1", "", place{0, routed})}
	f.watchMembers()
	for _, h := range f.hosts {
		h.boot()
	}
	if !f.passUntil(time.Minute, func() bool { return f.whole() == nil && f.alike() == nil }) {
		f.fail("not whole: %v, %v", f.whole(), f.alike())
	}
	f.pass(15 * time.Second) // who watches a gateway knows by now that it works
	f.subject = f.hosts[slices.IndexFunc(f.hosts, func(h *host) bool { return h.memory.Own.Term.Since != 0 && h.config.Location == "a" })]
	for _, m := range f.members {
		for _, far := range f.far {
			f.flows = append(f.flows, &flow{from: m, to: far, leaves: true}, &flow{from: far, to: m})
		}
	}
	f.startFlows()
	return f
}

// startFlows has all send, and forgets what was lost before.
func (f *failover) startFlows() {
	for i, c := range f.flows {
		c.lost, c.alone, c.both, c.stray = 0, time.Time{}, time.Time{}, nil
		c.note(f)
		f.after(time.Duration(i)*flowEvery/time.Duration(len(f.flows)), func() { f.keepSending(c, f.now) })
	}
}

// note notes whether the gateway is on the flow's way now.
func (c *flow) note(f *failover) {
	p := packet{src: c.from.pod(), dst: c.to.pod(), at: c.from}
	for range 16 {
		if done, err := p.arrive(); done || err != nil {
			break
		}
		if _, err := p.forward(); err != nil {
			break
		}
	}
	c.affected = c.affected || slices.Contains(p.hops, f.subject.name)
}

// keepSending sends a packet at each interval for nine seconds.
func (f *failover) keepSending(c *flow, since time.Time) {
	if f.now.Sub(since) > 9*time.Second {
		return
	}
	at := f.now
	c.from.post(c.from.pod(), c.to.pod(), func(p *packet, err error) {
		if err == nil || at.Before(since) {
			return
		}
		if !c.leaves {
			c.noteLoss(p, err)
		}
		if c.lost == 0 {
			c.first = at
		}
		c.lost++
		c.last = at
	})
	f.after(flowEvery, func() { f.keepSending(c, since) })
}

// callDown has a member say that the gateway is down.
func (f *failover) callDown() {
	m := f.members[0]
	m.say(mesh.Verdict{Author: m.self.Public, Subject: f.subject.id, State: mesh.HealthDown, Epoch: 1})
}

// await lets time pass until somebody says so of the gateway.
func (f *failover) await(state mesh.Health) {
	said := func() bool { // asked after each event, for which a whole view takes too long
		return slices.ContainsFunc(f.hosts, func(h *host) bool {
			for _, v := range h.peers.store.verdicts {
				if v.Subject == f.subject.id && v.State == state {
					return true
				}
			}
			return false
		})
	}
	if !f.passUntil(20*time.Second, said) {
		f.fail("nobody says that %s is %s", f.subject.name, state)
	}
	f.issued = f.now
	most := detectMost
	if f.subject.stuck {
		most += forwardMost
	}
	if !f.failed.IsZero() && f.issued.Sub(f.failed) > most {
		f.fail("it took %v until a gateway was found to have failed, want %v at the most", f.issued.Sub(f.failed), most)
	}
}

// measure waits until the change is over, the end of the former gateway's term included.
func (f *failover) measure() {
	f.pass(2 * time.Second)
	for _, c := range f.flows {
		c.note(f)
	}
	f.pass(6 * time.Second)
	for _, c := range f.flows {
		if err := c.from.send(c.from.pod(), c.to.pod()); err != nil {
			f.fail("afterwards: %v", err)
		}
	}
}

// spread prints the median and the maximum.
func spread(ds []time.Duration) string {
	slices.Sort(ds)
	return fmt.Sprintf("%3d ms (worst %3d)", ds[len(ds)/2].Milliseconds(), ds[len(ds)-1].Milliseconds())
}
