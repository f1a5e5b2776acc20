// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/meshd/meshd/internal/cni"
	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/state"
	"github.com/meshd/meshd/test/lab"
)

// TestHostile attacks a mesh of three nodes from inside and then from outside, while
// pods of two nodes exchange packets.
func TestHostile(t *testing.T) {
	t.Parallel()
	m := newMesh(t, lab.NAT, 4)
	rest, insider := m.nodes[:3], m.nodes[3]
	m.start(rest...)
	implementation := m.settle(settleLimit, rest...)[0].Device.Implementation
	b, c := rest[1], rest[2]
	near, far := m.pod(b, "near"), m.pod(c, "far")
	talk := m.converse(near, far)
	t.Run("another's slot", func(t *testing.T) {
		m := m.in(t)
		m.usurp(insider, m.status(b).Node.Slot)
		m.await(settleLimit, "loud about its slot", shows(mesh.ProblemSlot, "belongs to node "+b.Name), insider)
		m.await(settleLimit, "aware of the conflict", shows(mesh.ProblemSlot, b.Name+" has the stronger claim"), rest...)
		talk.goesOn(t)
	})
	talk.end(implementation)
	t.Run("garbage", func(t *testing.T) {
		m := m.in(t)
		// A slow machine's own queues overflow, so that some may be lost.
		talk := m.converseEach(slowPeriod, near, far)
		m.bombard(b)
		talk.goesOn(t)
		sent, lost := talk.Stop()
		t.Logf("%d of %d packets were lost", lost, sent)
	})
	m.connected(pingLimit, rest...)
}

// usurp starts a node whose state file claims another node's slot, as of now, and whose
// host has a pod there.
func (m *testbed) usurp(n *lab.Node, slot int) {
	m.t.Helper()
	m.must(n.Configure(lab.Config(n.Name, nil), m.secret))
	m.start(n)
	m.await(settleLimit, "ready alone", lab.Ready, n)
	m.must(n.Stop())
	path := lab.StateDir + "/" + state.NodeFile
	data, err := os.ReadFile(n.Path(path))
	m.must(err)
	var file struct {
		Version  int             `json:"version"`
		Boot     uint64          `json:"boot"`
		Sequence uint64          `json:"sequence"`
		Claim    map[string]any  `json:"claim"`
		Adopted  json.RawMessage `json:"adopted"`
	}
	m.must(json.Unmarshal(data, &file))
	file.Claim = map[string]any{"slot": slot, "time": time.Now().UnixMilli(), "confirmed": false, "since": file.Sequence, "ready": true}
	m.must(n.WriteFile(fmt.Sprintf("%s/10.42.%d.9", cni.StoreDir, slot), "pod", 0o644))
	data, err = json.Marshal(file)
	m.must(err)
	m.must(n.WriteFile(path, string(data), 0o600))
	m.must(n.Configure(lab.Config(n.Name, []string{m.nodes[0].Public().String()}), m.secret))
	m.start(n)
}

// How many packets and streams a host without the secret sends.
const (
	garbagePackets = 5000
	garbageStreams = 500
)

// bombard sends garbage to a node's gossip port from outside. Afterwards the daemon must
// be the same process, with little more memory and few more log lines, and must have
// counted what it refused.
func (m *testbed) bombard(n *lab.Node) {
	m.t.Helper()
	pid, memory, lines, began := n.PID(), m.peakMemory(n), strings.Count(n.Log(), "\n"), time.Now()
	at := netip.AddrPortFrom(n.Public(), 7946).String()
	chance := rand.New(rand.NewPCG(1, 2))
	m.must(m.lab.Outside().Do(func() error { return errors.Join(sendPackets(chance, at), openStreams(chance, at)) }))
	m.await(settleLimit, "aware of what it refused", func(s control.Status) bool {
		return s.Dropped("packet-sealed") >= garbagePackets/2 && s.Dropped("stream-sealed") > 0 && s.Dropped("stream-broken") > 0 && s.Dropped("stream-limit") > 0
	}, n)
	if now := n.PID(); now != pid || now == 0 {
		m.t.Errorf("process of %s: got %d, want %d as before", n.Name, now, pid)
	}
	if grown := m.peakMemory(n) - memory; grown > 32<<10 {
		m.t.Errorf("peak memory of %s: it has grown by %d KiB, want 32 MiB at most", n.Name, grown)
	}
	// The log takes ten lines at once of each of a few kinds, then one a second.
	most := 5 * (10 + int(time.Since(began)/time.Second) + 1)
	if grown := strings.Count(n.Log(), "\n") - lines; grown > most {
		m.t.Errorf("log of %s: it has grown by %d lines, want %d at most", n.Name, grown, most)
	}
}

// garbage is content of packets and streams: random bytes, bytes that begin like meshd's,
// and bytes that crash memberlist 0.7: encryption version 0 with a padding longer than
// the text, and a frame that is shorter than its header.
func garbage(chance *rand.Rand) []byte {
	random := make([]byte, chance.IntN(1400))
	for i := range random {
		random[i] = byte(chance.Uint32())
	}
	size := chance.IntN(30)
	return [][]byte{
		random,
		append([]byte{2}, random...),
		append([]byte{0}, []byte(strings.Repeat("\xff", 44))...),
		append([]byte{10, 0, 0, 0, byte(size)}, make([]byte, size)...),
		{2, 0xff, 0xff}, // meshd's hello, with a length that none has
	}[chance.IntN(5)]
}

func sendPackets(chance *rand.Rand, at string) error {
	dialer := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(lab.OutsideAddr, 0))}
	conn, err := dialer.Dial("udp", at)
	if err != nil {
		return err
	}
	defer conn.Close()
	for i := range garbagePackets {
		if i%50 == 0 {
			time.Sleep(time.Millisecond) // the receive buffer is not to overflow
		}
		if _, err := conn.Write(garbage(chance)); err != nil {
			return fmt.Errorf("send packet %d: %w", i, err)
		}
	}
	return nil
}

// idleStreams are more than one source may have.
const idleStreams = 80

// openStreams sends nothing over the last streams and leaves them open until the node
// ends the first of them, as it does when there are too many.
func openStreams(chance *rand.Rand, at string) error {
	dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(lab.OutsideAddr, 0))}
	var idle []net.Conn
	for i := range garbageStreams {
		conn, err := dialer.Dial("tcp", at)
		if errors.Is(err, unix.ECONNRESET) {
			continue // over the limit
		}
		if err != nil {
			return fmt.Errorf("open stream %d: %w", i, err)
		}
		if i >= garbageStreams-idleStreams {
			defer conn.Close()
			idle = append(idle, conn)
			continue
		}
		_, _ = conn.Write(garbage(chance)) // fails where the stream is over the limit
		_ = conn.Close()
	}
	_, _ = idle[0].Read(make([]byte, 1))
	return nil
}

// peakMemory returns the peak resident memory of a node's daemon, in KiB.
func (m *testbed) peakMemory(n *lab.Node) int {
	m.t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.PID()))
	m.must(err)
	for line := range strings.Lines(string(data)) {
		var kib int
		if _, err := fmt.Sscanf(line, "VmHWM: %d kB", &kib); err == nil {
			return kib
		}
	}
	m.t.Fatalf("status of %s's process: got %s, want VmHWM", n.Name, data)
	return 0
}
