// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"testing"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/netcfg"
	"github.com/meshd/meshd/test/lab"
)

// TestFailover makes gateways fail in every way while pods of two locations exchange
// datagrams and bytes over TCP connections, which must survive all of it.
func TestFailover(t *testing.T) { // not parallel: six hosts are a load
	settings := cluster(1, mesh.ModeLocation)
	v, _ := newSix(t, settings...)
	preferred := v.node("a1")
	v.configure(preferred, append([]string{"  gateway: prefer"}, settings...)...)
	v.live()
	v.full(v.nodes...)
	lone := v.node("c")
	v.moves(lone, "a", func(n *lab.Node) bool { return n == preferred })
	// The conversation ends at a3, which stays: of a1 and a2, the gateway fails. In b, it
	// ends at the node that is not the gateway.
	near, far := v.pods[v.node("a3")], v.pods[v.without(append(v.members("a"), v.gateway(lone, "b"), lone)...)[0]]
	never := append([]string{"  gateway: never"}, settings...)
	v.configure(v.node("a3"), never...)
	v.must(v.node("a3").Reload())
	talk := v.converseEach(slowPeriod, near, far)
	var streams []*lab.Stream
	for _, ends := range [][2]*lab.Pod{{near, far}, {far, near}} {
		s, err := lab.StartStream(v.ctx, ends[0].Do, party(ends[1]))
		v.must(err)
		streams = append(streams, s)
	}

	for _, step := range []struct {
		name string
		do   func(v *village, gateway *lab.Node)
		undo func(v *village, gateway *lab.Node)
	}{
		{"host loses all links", func(v *village, gateway *lab.Node) {
			v.must(gateway.Cut(v.ctx))
		}, func(v *village, gateway *lab.Node) {
			v.must(gateway.Restore(v.ctx))
		}},
		{"host does not forward", func(v *village, gateway *lab.Node) {
			v.must(gateway.StopForwarding(v.ctx))
		}, func(v *village, gateway *lab.Node) {
			v.must(gateway.ResumeForwarding(v.ctx))
		}},
		{"host is drained", func(v *village, gateway *lab.Node) {
			v.eventually(settleLimit, func() error { // a slow machine takes longer than drain waits
				_, err := gateway.Meshd(v.ctx, "drain")
				return err
			})
		}, func(v *village, gateway *lab.Node) {
			v.run(gateway, binary, "drain", "--undo")
		}},
	} {
		t.Run(step.name, func(t *testing.T) {
			v := v.in(t)
			// On a machine that stalls, another node may have become the gateway meanwhile.
			v.moves(lone, "a", func(n *lab.Node) bool { return n == preferred })
			talk.CountGaps()
			step.do(v, preferred)
			v.moves(lone, "a", func(n *lab.Node) bool { return n != preferred })
			talk.goesOn(t)
			v.flow(streams)
			t.Logf("longest gap: %s", talk.LongestGap())

			talk.CountGaps()
			step.undo(v, preferred)
			v.moves(lone, "a", func(n *lab.Node) bool { return n == preferred })
			v.settle(settleLimit, v.nodes...)
			talk.goesOn(t)
			t.Logf("longest gap on return: %s", talk.LongestGap())
			v.full(v.nodes...)
			v.encrypted()
		})
	}
	for _, s := range streams {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	}
	sent, lost := talk.Stop()
	t.Logf("%d of %d packets were lost", lost, sent)

	t.Run("daemon is killed", func(t *testing.T) {
		v := v.in(t)
		implementation := v.settle(settleLimit, v.nodes...)[0].Device.Implementation
		during := v.converse(near, far)
		v.must(preferred.Kill())
		during.goesOn(t) // in userspace, over another gateway
		if implementation == netcfg.Kernel {
			v.await(settleLimit, "aware of a dead peer", lab.Sees(len(v.nodes)-2), v.without(preferred)...)
			if got := v.gateway(lone, "a"); got != preferred {
				t.Errorf("gateway of a without its daemon: got %s, want %s, which forwards as before", got.Name, preferred.Name)
			}
		}
		v.start(preferred)
		v.settle(settleLimit, v.nodes...)
		during.goesOn(t)
		during.end(implementation)
		v.encrypted()
	})
}

// moves waits until a location has the wanted gateway.
func (v *village) moves(observer *lab.Node, location string, wanted func(*lab.Node) bool) {
	v.t.Helper()
	v.eventually(settleLimit, func() error {
		if got := v.gateway(observer, location); !wanted(got) {
			return fmt.Errorf("the gateway of %s is %s", location, got.Name)
		}
		return nil
	})
}

// flow waits until new bytes have arrived over each stream.
func (v *village) flow(streams []*lab.Stream) {
	v.t.Helper()
	for i, s := range streams {
		before := s.Received()
		v.eventually(settleLimit, func() error {
			if s.Received() == before {
				return fmt.Errorf("nothing arrives over stream %d", i)
			}
			return nil
		})
	}
}
