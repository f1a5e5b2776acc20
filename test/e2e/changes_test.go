// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"slices"
	"testing"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/test/lab"
)

// ends are two nodes whose pods exchange packets, and the relays that they may use.
type ends struct {
	*testbed
	a, b           *lab.Node
	relays         []*lab.Node
	near, far      *lab.Pod
	stream         *lab.Stream // goes on over all changes of path
	implementation netcfg.Implementation
}

func (e *ends) in(t *testing.T) *ends {
	sub := *e
	sub.testbed = e.testbed.in(t)
	return &sub
}

// on waits until both ends are on a path of this kind.
func (e *ends) on(kind control.PathKind) {
	e.t.Helper()
	e.await(settleLimit, "on a path that is "+string(kind), lab.OnPath(e.b, kind), e.a)
	e.await(settleLimit, "on a path that is "+string(kind), lab.OnPath(e.a, kind), e.b)
}

// changes has the ends exchange packets while do changes their path to one of the kind. If they
// are without loss, no packet may be lost with the kernel's WireGuard: there is a path that works
// all the time.
func (e *ends) changes(kind control.PathKind, lossless bool, do func()) {
	e.t.Helper()
	talk := e.converse(e.near, e.far)
	talk.goesOn(e.t)
	talk.CountGaps()
	do()
	e.on(kind)
	talk.goesOn(e.t)
	e.flows([]*lab.Stream{e.stream})
	e.t.Logf("longest gap: %v", talk.LongestGap())
	if lossless {
		talk.end(e.implementation)
		return
	}
	sent, lost := talk.Stop()
	e.t.Logf("%d of %d packets were lost", lost, sent)
}

// relay returns the node that forwards what one end sends to the other one.
func (e *ends) relay() *lab.Node {
	e.t.Helper()
	name := lab.PeerOf(e.status(e.a), e.b.Name).Path.Relay
	for _, n := range e.relays {
		if n.Name == name {
			return n
		}
	}
	e.t.Fatalf("the relay is %q", name)
	return nil
}

// absent kills a daemon and starts it again. Meanwhile the kernel goes on, or another relay does.
func (e *ends) absent(n *lab.Node) {
	e.t.Helper()
	e.must(n.Kill())
	if e.implementation == netcfg.Kernel {
		e.flows([]*lab.Stream{e.stream})
	}
	e.start(n)
	e.settle(settleLimit, e.nodes...)
}

func (e *ends) block(from, to *lab.Node) {
	e.t.Helper()
	e.must(e.lab.Block(e.ctx, []*lab.Host{from.Host}, []*lab.Host{to.Host}, lab.Packets{Protocol: "udp", Port: 51820}))
}

// TestTrafficOverChangesOfPath has the pods of two public nodes exchange packets and bytes while
// their path changes, which was direct when their session began. Two more nodes are relays, which
// see nothing in plain text.
func TestTrafficOverChangesOfPath(t *testing.T) {
	t.Parallel()
	m := settledMesh(t, lab.Routed, 4)
	e := &ends{testbed: m, relays: m.nodes[:2], a: m.nodes[2], b: m.nodes[3]}
	e.connected(settleLimit, m.nodes...)
	e.near, e.far = m.pod(e.a, "near"), m.pod(e.b, "far")
	e.on(control.PathDirect)
	e.implementation = e.status(e.a).Device.Implementation
	e.reaches(e.near, e.far)
	e.stream = m.stream(e.near, e.far)

	watched := e.watch(e.relays[0], e.relays[1], e.a)
	for _, step := range []struct {
		name     string
		kind     control.PathKind
		lossless bool
		do       func(e *ends)
	}{
		{"link blocked", control.PathRelayed, false, func(e *ends) {
			e.block(e.a, e.b)
			e.block(e.b, e.a)
		}},
		{"daemon of the relay killed", control.PathRelayed, false, func(e *ends) { e.absent(e.relay()) }},
		{"relay gone", control.PathRelayed, false, func(e *ends) {
			gone := e.relay()
			e.must(gone.Cut(e.ctx))
			e.eventually(settleLimit, func() error {
				for _, n := range []*lab.Node{e.a, e.b} {
					if p := lab.PeerOf(e.status(n), e.other(n).Name).Path; p.Relay == gone.Name || p.Works() != control.PathRelayed {
						return fmt.Errorf("the path from %s: got %+v, want one through another relay than %s", n.Name, p, gone.Name)
					}
				}
				return nil
			})
			e.must(gone.Restore(e.ctx))
			e.settle(settleLimit, e.nodes...)
		}},
		{"daemon of one end killed", control.PathRelayed, true, func(e *ends) { e.absent(e.a) }},
		{"daemon of the other end killed", control.PathRelayed, true, func(e *ends) { e.absent(e.b) }},
		{"link healed", control.PathDirect, true, func(e *ends) { e.must(e.lab.Heal(e.ctx)) }},
		{"link blocked one way", control.PathRelayed, false, func(e *ends) { e.block(e.a, e.b) }},
		{"link healed again", control.PathDirect, true, func(e *ends) { e.must(e.lab.Heal(e.ctx)) }},
		{"daemon of one end killed on the direct path", control.PathDirect, true, func(e *ends) { e.absent(e.b) }},
		{"no UDP", control.PathTCP, false, func(e *ends) {
			udp, end := lab.Packets{Protocol: "udp"}, []*lab.Host{e.a.Host}
			e.must(e.lab.Block(e.ctx, end, hosts([]*lab.Node{e.relays[0], e.relays[1], e.b}), udp))
			e.must(e.lab.Block(e.ctx, nil, end, udp))
		}},
		// What waits for TCP is bounded, and dropped on a machine that stalls.
		{"UDP passes again", control.PathDirect, false, func(e *ends) { e.must(e.lab.Heal(e.ctx)) }},
	} {
		if !t.Run(step.name, func(t *testing.T) {
			e := e.in(t)
			e.changes(step.kind, step.lossless, func() { step.do(e) })
		}) {
			t.FailNow() // the next step begins where this one ends
		}
	}
	e.must(e.stream.Stop())
	e.sealed(watched)
	e.encrypted()
}

// other returns the other end.
func (e *ends) other(n *lab.Node) *lab.Node {
	if n == e.a {
		return e.b
	}
	return e.a
}

// watch begins to look on some hosts for what the pods send each other.
func (e *ends) watch(nodes ...*lab.Node) map[*lab.Node]*lab.Capture {
	e.t.Helper()
	near, far := e.near.Addresses[0].AsSlice(), e.far.Addresses[0].AsSlice()
	all := map[*lab.Node]*lab.Capture{}
	for _, n := range nodes {
		// An IP header has the source and then the destination.
		c, err := lab.StartCapture(n.Host, slices.Concat(near, far), slices.Concat(far, near), lab.StreamText())
		e.must(err)
		all[n] = c
	}
	return all
}

// sealed checks that the relays have had packets, but nothing in plain text. The end has it
// before it is encrypted: otherwise nothing would be found anywhere.
func (e *ends) sealed(watched map[*lab.Node]*lab.Capture) {
	e.t.Helper()
	for n, c := range watched {
		packets, found := c.Stop()
		e.t.Logf("%s: %d packets, %d of them in plain text", n.Name, packets, found)
		if packets == 0 || (found > 0) != (n == e.a) {
			e.t.Errorf("%s: got %d packets, %d of them in plain text", n.Name, packets, found)
		}
	}
}
