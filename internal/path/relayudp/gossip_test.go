// SPDX-License-Identifier: Apache-2.0

package relayudp

import (
	"context"
	"crypto/ed25519"
	"net/netip"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/gossip"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/path"
)

// startGossip starts a node of gossip on loopback.
func startGossip(t *testing.T, num byte, join ...string) *gossip.Gossip {
	t.Helper()
	identity := ed25519.NewKeyFromSeed(append(make([]byte, 31), num))
	cluster := mesh.Cluster{
		Name: cluster, Generation: 1, Trust: mesh.TrustOpen, Mode: mesh.ModeFull, Encapsulation: "always", Gateways: 1,
		Overlay: []netip.Prefix{netip.MustParsePrefix("10.4.0.0/16")}, Pods: []netip.Prefix{netip.MustParsePrefix("10.42.0.0/16")},
		PodPrefix: []int{24}, Services: []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16")},
	}
	g, err := gossip.Start(context.Background(), gossip.Options{
		Identity: identity, Cluster: cluster, Secrets: [][32]byte{secret}, Boot: 1, Instance: uint64(num), Bind: "127.0.0.1:0", Join: join,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Stop(); err != nil {
			t.Error(err)
		}
	})
	err = g.Publish(mesh.Record{
		Identity: identity.Public().(ed25519.PublicKey), Sequence: 1, Instance: uint64(num), Name: string('a' + rune(num)), Key: wgtypes.Key{num},
		Claim: mesh.Claim{Slot: int(num), Time: 1}, Settings: cluster.Hash(), Gateway: mesh.GatewayAuto, MTU: 1420, GossipPort: g.Addr().Port(),
	})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// TestBesideGossip has nodes of gossip meet through a port that a relay shares, while the
// relay forwards as much as it can.
func TestBesideGossip(t *testing.T) {
	first := startGossip(t, 1)
	r := serve(t, first.Socket(), nil)
	a, b := newNode(t, 1, first.Addr()), newNode(t, 2, first.Addr())
	if err := r.SetNodes([]Node{a.Node, b.Node}); err != nil {
		t.Fatal(err)
	}
	a.bind(t)
	b.bind(t)
	a.write(t, a.seal(a.keys, path.Message{Op: path.Row, Number: 22, Node: path.ShortOf(b.ID)}))
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
				_, _ = a.Write(data(22, 1452))
			}
		}
	}()
	defer func() { close(stop); <-done }()
	before := r.Status().Datagrams
	second := startGossip(t, 2, first.Addr().String())
	for _, g := range []*gossip.Gossip{first, second} {
		eventually(t, "both nodes are alive", func() bool { return len(g.View().Alive) == 2 })
	}
	time.Sleep(time.Second)
	if r.Status().Datagrams == before {
		t.Error("nothing was forwarded meanwhile")
	}
}
