// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/wait"
	"github.com/meshd/meshd/test/lab"
)

// inLab calls f with a lab of its own.
func inLab(ctx context.Context, f func(l *lab.Lab) error) (err error) {
	l, err := lab.New(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	return f(l)
}

// meet starts nodes and waits until they see each other. It returns them as parties, by their
// overlay addresses.
func meet(ctx context.Context, nodes []*lab.Node) ([]lab.Party, error) {
	for _, n := range nodes {
		if err := n.Start(); err != nil {
			return nil, err
		}
	}
	if err := settle(ctx, nodes); err != nil {
		return nil, err
	}
	addrs, err := overlays(ctx, nodes)
	if err != nil {
		return nil, err
	}
	var all []lab.Party
	for i, n := range nodes {
		all = append(all, lab.Party{At: n.Do, Addr: addrs[i]})
	}
	return all, nil
}

// neverRelay keeps nodes that have not been started from forwarding for others.
func neverRelay(ctx context.Context, nodes ...*lab.Node) error {
	for _, n := range nodes {
		// The section of the node is the last one of the file.
		if _, err := n.Run(ctx, "sh", "-c", "echo '  relay: never' >>"+lab.ConfigPath); err != nil {
			return err
		}
	}
	return nil
}

// awaitPath waits until both ends are on a path of a kind.
func awaitPath(ctx context.Context, a, b *lab.Node, kind control.PathKind) error {
	return awaitBoth(ctx, a, b, "on a path that is "+string(kind), func(p control.Peer) bool { return p.Path.Works() == kind })
}

// awaitBoth waits until what both ends say of each other is as it should be. It may take minutes, so it
// asks ever more seldom.
func awaitBoth(ctx context.Context, a, b *lab.Node, what string, ok func(control.Peer) bool) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for _, ends := range [][2]*lab.Node{{a, b}, {b, a}} {
		if _, err := ends[0].Await(ctx, what, func(s control.Status) bool { return ok(lab.PeerOf(s, ends[1].Name)) }); err != nil {
			return err
		}
	}
	return nil
}

// firstPing is how two nodes behind NAT meet.
type firstPing struct {
	name   string     // of the figure
	router lab.Router // of each of them
	relay  bool       // the public node forwards for them
	kind   control.PathKind
}

var firstPings = []firstPing{
	{"punch_first_ping_ms", lab.Router{}, false, control.PathDirect},
	{"relay_first_ping_ms", lab.Router{Mapping: lab.PortDependent}, true, control.PathRelayed},
}

func measureFirstPings(ctx context.Context, binary string, s samples) error {
	for _, p := range firstPings {
		if err := p.measure(ctx, binary, s); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

// measure has a node in a home join a public node and one in another home, and takes the time from when
// the nodes of both homes know each other until a ping between them is answered.
func (p firstPing) measure(ctx context.Context, binary string, s samples) error {
	return inLab(ctx, func(l *lab.Lab) error {
		public, err := l.Host(ctx, "public", lab.Routed)
		if err != nil {
			return err
		}
		hosts := []*lab.Host{public}
		for _, name := range []string{"home", "shed"} {
			h, err := l.HomeHost(ctx, name, p.router)
			if err != nil {
				return err
			}
			hosts = append(hosts, h)
		}
		nodes, err := lab.NodesOn(ctx, binary, hosts...)
		if err != nil {
			return err
		}
		if !p.relay {
			if err := neverRelay(ctx, nodes[0]); err != nil {
				return err
			}
		}
		if _, err := meet(ctx, nodes[:2]); err != nil {
			return err
		}
		if err := wait.Sleep(ctx, calmTime); err != nil {
			return err
		}
		home, shed := nodes[1], nodes[2]
		if err := shed.Start(); err != nil {
			return err
		}
		if err := awaitKnown(ctx, home, shed); err != nil {
			return err
		}
		known := time.Now()
		if err := awaitPairs(ctx, nodes[1:]); err != nil {
			return err
		}
		s.add(p.name, milliseconds(time.Since(known)))
		return awaitPath(ctx, home, shed, p.kind)
	})
}

// awaitKnown waits until both nodes have heard of each other.
func awaitKnown(ctx context.Context, a, b *lab.Node) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, ends := range [][2]*lab.Node{{a, b}, {b, a}} {
		g.Go(func() error {
			return poll(ctx, ends[0], func(s control.Status) bool { return len(lab.PeerOf(s, ends[1].Name).Overlay) > 0 })
		})
	}
	return g.Wait()
}
