// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/path"
	"github.com/meshd/meshd/internal/path/rawudp"
)

// crowd returns a host whose agent has that many peers, each with several candidates.
func crowd(t testing.TB, count int, up bool) *host {
	t.Helper()
	w := newWire()
	a := w.host(t, 1, addrA)
	a.start(t)
	var peers []Peer
	for i := range byte(count) {
		addr := func(net int) string { return fmt.Sprintf("192.0.%d.%d:51820", net, i) }
		b := w.host(t, i+2, addr(2))
		a.add(b, "")
		b.add(a, "")
		peers = append(peers, b.peer(direct(addr(2)), direct(addr(3)), direct(addr(4)), behindFirewall(addr(5))))
		if up {
			b.start(t)
			b.SetPeers([]Peer{a.peer(direct(addrA))})
		}
	}
	a.SetPeers(peers)
	return a
}

// TestQuiet asserts how little is done for peers without traffic: a probe every
// 25 s, or a few a second in all where nobody answers.
func TestQuiet(t *testing.T) {
	const peers, minutes = 20, 10
	tests := map[string]struct {
		up      bool
		maxSent int
	}{
		"idle": {true, peers * minutes * 60 / 25},
		"down": {false, peers * minutes * 60},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := crowd(t, peers, tt.up)
				time.Sleep(minutes * time.Minute)
				a.mu.Lock()
				a.sent, a.reads = 0, 0
				a.mu.Unlock()
				time.Sleep(minutes * time.Minute)
				a.mu.Lock()
				defer a.mu.Unlock()
				if a.sent > tt.maxSent {
					t.Errorf("got %d datagrams, want no more than %d", a.sent, tt.maxSent)
				}
				if limit := minutes*60 + 1; a.reads > limit {
					t.Errorf("the device was read %d times, want no more than %d", a.reads, limit)
				}
			})
		})
	}
}

// mirror is a port to peers that answer at once, and a device that counts.
type mirror struct {
	keys    map[path.Short]*path.Keys
	pongs   []rawudp.Datagram
	counter uint64
	traffic map[wgtypes.Key]path.Traffic
}

func (m *mirror) Serve(func(rawudp.Datagram)) error { return nil }

func (m *mirror) Send(p rawudp.Packet) error {
	h, err := path.ParseHeader(p.Payload)
	if err != nil {
		return err
	}
	ping, err := m.keys[h.To].Open(p.Payload)
	if err != nil || ping.Op != path.Ping {
		return err
	}
	m.counter++
	pong := m.keys[h.To].Seal(path.Message{Op: path.Pong, Number: ping.Number}, m.counter)
	m.pongs = append(m.pongs, rawudp.Datagram{Payload: pong, From: p.To})
	return nil
}

func (m *mirror) Traffic() (map[wgtypes.Key]path.Traffic, error) { return m.traffic, nil }

func (m *mirror) SetEndpoint(peer wgtypes.Key, to netip.AddrPort) error {
	t := m.traffic[peer]
	t.Endpoint = to
	m.traffic[peer] = t
	return nil
}

// BenchmarkSecond measures what a second costs an agent with a hundred peers that answer,
// without the system calls.
func BenchmarkSecond(b *testing.B) {
	for name, bytes := range map[string]uint64{"idle": 0, "busy": 1 << 20} {
		b.Run(name, func(b *testing.B) {
			m := &mirror{keys: map[path.Short]*path.Keys{}, traffic: map[wgtypes.Key]path.Traffic{}}
			own, counter := privateKey(b, 200), uint64(0)
			a := newAgent(Options{
				PathKey: own, Port: m, Device: m, Logger: slog.New(slog.DiscardHandler),
				Counter: func() uint64 { counter++; return counter },
			})
			var peers []Peer
			for i := range byte(100) {
				p := Peer{ID: mesh.ID{i + 1}, Key: wgtypes.Key{i + 1}, PathKey: privateKey(b, i+1).PublicKey()}
				for port := range uint16(12) {
					p.Candidates = append(p.Candidates, path.Candidate{
						Path: path.Path{Kind: path.Direct, Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, i}), port+1)}, Open: true,
					})
				}
				keys, err := path.NewKeys("", path.ShortOf(p.ID), path.Short{}, privateKey(b, i+1), own.PublicKey())
				if err != nil {
					b.Fatal(err)
				}
				m.keys[path.ShortOf(p.ID)], m.traffic[p.Key] = keys, path.Traffic{}
				peers = append(peers, p)
			}
			a.wanted = peers
			a.setNodes()
			now := time.Now()
			a.readDevice(now)
			second := func() {
				for end := now.Add(time.Second); ; {
					for _, d := range m.pongs {
						a.takeDatagram(now, d)
					}
					m.pongs = m.pongs[:0]
					if now = a.next(); now.After(end) {
						return
					}
					for k, t := range m.traffic {
						t.Sent, t.Received = t.Sent+bytes, t.Received+bytes
						m.traffic[k] = t
					}
					a.wake(b.Context(), now)
				}
			}
			for range 100 {
				second()
			}
			b.ReportAllocs()
			sent := counter
			for b.Loop() {
				second()
			}
			b.ReportMetric(float64(counter-sent)/float64(b.N), "datagrams/op")
		})
	}
}
