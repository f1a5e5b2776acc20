// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/meshd/meshd/test/lab"
)

// TestHostileAnswersStayInTunnels has pods of two nodes send both ways, over connections
// that either of them has opened. The devices and routes that carry their packets are
// deleted again and again, with and without a daemon that restores them. No packet leaves
// in plain text.
func TestHostileAnswersStayInTunnels(t *testing.T) {
	t.Parallel()
	m := settledMesh(t, lab.NAT, 2)
	n := m.nodes[0]
	near, far := m.pod(n, "near"), m.pod(m.nodes[1], "far")
	talk := m.converseEach(slowPeriod, near, far)
	streams := []*lab.Stream{m.stream(near, far), m.stream(far, near)}
	m.flows(streams)
	for range 3 {
		m.run(n, "ip", "link", "delete", device)
		talk.goesOn(t)
		m.flows(streams)
	}
	m.encrypted()
	t.Run("table deleted", func(t *testing.T) {
		m := m.in(t)
		m.run(n, "nft", "delete", "table", "inet", "meshd")
		m.eventually(settleLimit, func() error {
			_, err := n.Run(m.ctx, "nft", "list", "table", "inet", "meshd")
			return err
		})
		m.flows(streams)
		m.encrypted()
	})
	t.Run("without a daemon", func(t *testing.T) {
		m := m.in(t)
		m.must(n.Stop())
		for _, damage := range []string{
			"ip link set " + device + " down", "ip link delete " + device, "nft delete table inet meshd",
		} {
			m.commands(n, []string{damage})
			time.Sleep(time.Second) // what must not happen takes so long
			m.encrypted()
		}
		m.start(n)
		talk.goesOn(t)
		m.flows(streams)
		m.encrypted()
	})
	t.Run("without routes and a daemon", func(t *testing.T) {
		m := m.in(t)
		m.must(n.Stop())
		m.commands(n, []string{"ip route flush proto 77", "ip link delete " + device})
		time.Sleep(time.Second) // what must not happen takes so long
		m.encrypted()
		m.start(n)
		talk.goesOn(t)
		m.flows(streams)
		m.encrypted()
	})
	talk.Stop()
	for _, s := range streams {
		m.must(s.Stop())
	}
}

// stream has one pod open a connection to another, over which both send.
func (m *testbed) stream(from, to *lab.Pod) *lab.Stream {
	m.t.Helper()
	s, err := lab.StartTwoWayStream(m.ctx, from.Do, party(to), 100*time.Millisecond)
	m.must(err)
	return s
}

// flows waits until bytes have arrived both ways over each stream.
func (m *testbed) flows(streams []*lab.Stream) {
	m.t.Helper()
	for i, s := range streams {
		there, back := s.Received(), s.ReceivedBack()
		m.eventually(settleLimit, func() error {
			m.must(s.Err())
			if s.Received() == there || s.ReceivedBack() == back {
				return fmt.Errorf("stream %d: nothing arrives one way: got %d and %d bytes, had %d and %d", i, s.Received(), s.ReceivedBack(), there, back)
			}
			return nil
		})
	}
}
