// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/gossip"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/state"
	"github.com/meshd/meshd/internal/wait"
	"github.com/meshd/meshd/test/lab"
)

// acquaintances is how many other nodes the measured daemon knows.
const acquaintances = 1000

// manyPods has room for them.
const manyPods = "cluster: {pods: [10.64.0.0/12]}"

// measureMany starts a daemon that remembers a thousand nodes, none of which runs, and
// measures it when idle.
func measureMany(ctx context.Context, binary string, s samples) (err error) {
	l, err := lab.New(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	h, err := l.Host(ctx, "host", lab.NAT)
	if err != nil {
		return err
	}
	n := lab.NewNode(h, binary)
	secret, err := n.NewSecret(ctx)
	if err != nil {
		return err
	}
	text := lab.Config(n.Name, nil, manyPods)
	cfg, err := config.Parse("meshd.yaml", []byte(text))
	if err != nil {
		return err
	}
	known, err := acquaintancesOf(ctx, cfg.Cluster)
	if err != nil {
		return err
	}
	dir, err := state.Open(n.Path(lab.StateDir))
	if err != nil {
		return err
	}
	if err := errors.Join(dir.SaveObjects(known), dir.Close(), n.Configure(text, secret), n.Start()); err != nil {
		return err
	}
	began := time.Now()
	err = poll(ctx, n, func(s control.Status) bool {
		return lab.Ready(s) && len(s.Peers) == acquaintances && s.Reconcile.Error == ""
	})
	if err != nil {
		return err
	}
	s.add("know_1000_ready_ms", milliseconds(time.Since(began)))
	if err := wait.Sleep(ctx, calmTime); err != nil {
		return err
	}
	before, err := readUsage(n.PID())
	if err != nil {
		return err
	}
	began = time.Now()
	if err := wait.Sleep(ctx, idleTime); err != nil {
		return err
	}
	after, err := readUsage(n.PID())
	if err != nil {
		return err
	}
	s.add("know_1000_idle_cpu_percent", 100*(after.cpu-before.cpu)/time.Since(began).Seconds())
	s.add("know_1000_rss_mb", after.rss/1e6)
	for _, command := range []string{"status", "graph"} {
		began := time.Now()
		if _, err := n.Meshd(ctx, command); err != nil {
			return err
		}
		s.add("know_1000_"+command+"_ms", milliseconds(time.Since(began)))
	}
	return n.Stop()
}

// acquaintancesOf makes nodes as others remember them.
func acquaintancesOf(ctx context.Context, c mesh.Cluster) (state.Remembered, error) {
	var out state.Remembered
	for i := range acquaintances {
		r, err := acquaintance(ctx, c, i)
		if err != nil {
			return out, fmt.Errorf("make node %d: %w", i, err)
		}
		out.Objects = append(out.Objects, r.Objects...)
		for _, h := range r.Highest {
			out.Highest = append(out.Highest, state.Highest(h))
		}
	}
	return out, nil
}

func acquaintance(ctx context.Context, c mesh.Cluster, slot int) (gossip.Remembered, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return gossip.Remembered{}, err
	}
	key, err := wgtypes.GenerateKey() // as good as a public one
	if err != nil {
		return gossip.Remembered{}, err
	}
	g, err := gossip.Start(ctx, gossip.Options{
		Identity: private, Cluster: c, Secrets: [][32]byte{{1}}, Boot: 1, Instance: 1, Bind: "127.0.0.1:0",
	})
	if err != nil {
		return gossip.Remembered{}, err
	}
	host := netip.AddrFrom4([4]byte{198, 18, byte(slot >> 8), byte(slot)})
	err = g.Publish(mesh.Record{
		Identity: public, Sequence: 1, Instance: 1, Name: fmt.Sprintf("node-%d", slot), Key: key,
		Claim: mesh.Claim{Slot: slot, Time: 1}, Settings: c.Hash(),
		Gateway: mesh.GatewayAuto, MTU: 1420, ListenPort: 51820, GossipPort: config.DefaultGossipPort,
		Endpoints: []mesh.Endpoint{{Host: host.String(), Port: 51820, Source: mesh.EndpointConfigured}},
	})
	return g.Remember(), errors.Join(err, g.Stop())
}
