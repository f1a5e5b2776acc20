// SPDX-License-Identifier: Apache-2.0

//go:build hostile

package hostile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/path"
	"github.com/meshd/meshd/test/lab"
)

// Homes is a mesh of two nodes behind routers that give each socket another port for each
// destination, so that they can't meet, and of two that are open and relay for them. What a relay
// sends can be treated as an insider would treat it who has taken the relay over.
type Homes struct {
	One, Other *lab.Node
	Relays     [2]*lab.Node

	lab        *lab.Lab
	distance   *distance
	one, other *lab.Pod
	talking    sync.WaitGroup

	mu      sync.Mutex
	rogue   netip.Addr // of the relay whose packets are treated
	treated treatment
	text    []byte        // that nobody may read on a relay
	read    atomic.Uint64 // packets of relays that contain it
	sealed  atomic.Uint64 // packets of relays with WireGuard's data
}

// NewHomes makes such a mesh that has settled, with a pod on each of the nodes behind routers.
func NewHomes(ctx context.Context, binary string) (*Homes, error) {
	binary, err := filepath.Abs(binary) // commands on hosts run in /
	if err != nil {
		return nil, fmt.Errorf("find meshd: %w", err)
	}
	l, err := lab.New(ctx)
	if err != nil {
		return nil, err
	}
	h := &Homes{lab: l, text: []byte("this is not for the relay")}
	if err := errors.Join(h.makeNodes(ctx, binary), h.settle(ctx)); err != nil {
		return nil, errors.Join(err, h.Close())
	}
	return h, nil
}

// Close removes the lab. The context of Talk must have ended.
func (h *Homes) Close() error {
	h.talking.Wait()
	var err error
	if h.distance != nil {
		err = h.distance.close()
	}
	return errors.Join(err, h.lab.Close())
}

// Nodes returns all nodes.
func (h *Homes) Nodes() []*lab.Node { return append(h.Relays[:], h.One, h.Other) }

func (h *Homes) makeNodes(ctx context.Context, binary string) error {
	var err error
	if h.distance, err = newDistance(ctx, h.lab.Outside(), h.treat); err != nil {
		return err
	}
	for i := range h.Relays {
		host, err := h.lab.Host(ctx, fmt.Sprintf("relay-%d", i+1), lab.NAT)
		if err != nil {
			return err
		}
		h.Relays[i] = lab.NewNode(host, binary)
		if err := h.distance.add(ctx, host); err != nil {
			return err
		}
	}
	for name, n := range map[string]**lab.Node{"one": &h.One, "other": &h.Other} {
		site, err := h.lab.Site(ctx, name, lab.SiteOptions{Underlay: lab.Home, Router: lab.Router{Mapping: lab.PortDependent}})
		if err != nil {
			return err
		}
		host, err := site.Host(ctx, name+"-1")
		if err != nil {
			return err
		}
		*n = lab.NewNode(host, binary)
	}
	secret, err := h.One.NewSecret(ctx)
	if err != nil {
		return err
	}
	var join []string
	for _, r := range h.Relays {
		join = append(join, r.Public().String())
	}
	for _, n := range h.Nodes() {
		if err := n.Configure(lab.Config(n.Name, join), secret); err != nil {
			return err
		}
	}
	return nil
}

// settle starts all nodes and makes the pods.
func (h *Homes) settle(ctx context.Context) error {
	for _, n := range h.Nodes() {
		if err := n.Start(); err != nil {
			return err
		}
	}
	g, waiting := errgroup.WithContext(ctx)
	for _, n := range h.Nodes() {
		g.Go(func() error { return await(waiting, n, "ready with the others", lab.Sees(3)) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	var err error
	if h.one, err = h.One.Pod(ctx, lab.Network, "one"); err != nil {
		return err
	}
	h.other, err = h.Other.Pod(ctx, lab.Network, "other")
	return err
}

// relayed waits until both ends use a relay other than the given one, which may be nil, and returns it.
func (h *Homes) relayed(ctx context.Context, but *lab.Node) (*lab.Node, error) {
	var use *lab.Node
	for _, end := range [][2]*lab.Node{{h.One, h.Other}, {h.Other, h.One}} {
		err := await(ctx, end[0], "on another relay", func(s control.Status) bool {
			for _, p := range s.Peers {
				if p.Name == end[1].Name && p.Path.Proved && p.Path.Kind == control.PathRelayed && (but == nil || p.Path.Relay != but.Name) {
					use = h.Relays[slices.IndexFunc(h.Relays[:], func(r *lab.Node) bool { return r.Name == p.Path.Relay })]
					return true
				}
			}
			return false
		})
		if err != nil {
			return nil, err
		}
	}
	return use, nil
}

// Talk has the two pods send each other packets, and a text that is to be searched for on relays,
// until the context ends.
func (h *Homes) Talk(ctx context.Context) (*lab.Exchange, error) {
	for _, way := range [][2]*lab.Pod{{h.one, h.other}, {h.other, h.one}} {
		var conn net.Conn
		if err := way[0].Do(func() (err error) {
			conn, err = net.Dial("udp", netip.AddrPortFrom(way[1].Addresses[0], config.DefaultGossipPort+100).String())
			return err
		}); err != nil {
			return nil, err
		}
		h.talking.Go(func() {
			defer conn.Close()
			for ctx.Err() == nil {
				_, _ = conn.Write(h.text) // nobody listens
				time.Sleep(packetPeriod)
			}
		})
	}
	return talk(ctx, h.one, h.other)
}

// turn has a relay's packets treated; those of the other one pass.
func (h *Homes) turn(rogue *lab.Node, as treatment) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.rogue, h.treated = rogue.Public(), as
}

// treat sees all packets that relays send.
func (h *Homes) treat(packet []byte) (copies int, later time.Duration) {
	if bytes.Contains(packet, h.text) {
		h.read.Add(1)
	}
	if b := datagramOf(packet); isPacket(b) {
		h.sealed.Add(1)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if source, _ := netip.AddrFromSlice(packet[12:16]); source != h.rogue || h.treated == nil {
		return 1, 0
	}
	return h.treated(packet)
}

// The treatments of a rogue relay's packets.
var treatments = []struct {
	name string
	treatment
	leave bool // the relay is left
}{
	{"sends three times", func(b []byte) (int, time.Duration) {
		if d := datagramOf(b); isPacket(d) || isProbe(d) {
			return 3, 0
		}
		return 1, 0
	}, false},
	{"drops packets and passes probes", func(b []byte) (int, time.Duration) {
		if isPacket(datagramOf(b)) {
			return 0, 0
		}
		return 1, 0
	}, true},
	{"delays by 2 s", func([]byte) (int, time.Duration) { return 1, 2 * time.Second }, true},
	{"drops all", func(b []byte) (int, time.Duration) {
		if d := datagramOf(b); isPacket(d) || isProbe(d) {
			return 0, 0
		}
		return 1, 0
	}, true},
}

// datagramOf returns the payload of a UDP packet from a relay's port, nil for any other packet.
func datagramOf(b []byte) []byte { return payloadFrom(b, config.DefaultGossipPort) }

// isPacket reports whether a datagram is one of WireGuard's, isProbe whether it is a sealed probe.
func isPacket(b []byte) bool { return len(b) >= 32 && b[0] >= 1 && b[0] <= 4 && b[1]|b[2]|b[3] == 0 }

func isProbe(b []byte) bool {
	_, err := path.ParseHeader(b)
	return err == nil
}
