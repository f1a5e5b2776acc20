// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/meshd/meshd/internal/control"
)

// Nodes makes nodes with the given names and one secret. All are configured to join the
// first one at its public address.
func (l *Lab) Nodes(ctx context.Context, binary string, u Underlay, names ...string) ([]*Node, error) {
	var hosts []*Host
	for _, name := range names {
		h, err := l.Host(ctx, name, u)
		if err != nil {
			return nil, err
		}
		hosts = append(hosts, h)
	}
	return NodesOn(ctx, binary, hosts...)
}

// NodesOn makes nodes on hosts, as Nodes does.
func NodesOn(ctx context.Context, binary string, hosts ...*Host) ([]*Node, error) {
	binary, err := filepath.Abs(binary) // commands on hosts run in /
	if err != nil {
		return nil, fmt.Errorf("find meshd: %w", err)
	}
	var (
		nodes  []*Node
		secret string
	)
	for _, h := range hosts {
		n := NewNode(h, binary)
		var seed []string
		if len(nodes) > 0 {
			seed = append(seed, nodes[0].Public().String())
		} else if secret, err = n.NewSecret(ctx); err != nil {
			return nil, err
		}
		if err := n.Configure(Config(h.Name, seed), secret); err != nil {
			return nil, err
		}
		nodes = append(nodes, n)
	}
	return nodes, nil
}

// pollPeriod is the first pause between two reads of a status.
const pollPeriod = 100 * time.Millisecond

// Pause returns how long to wait before the next poll of a condition that has been waited
// for since began: first, and later a twentieth of the time that has passed. This bounds
// the error of a measurement, and polling does not overload a slow machine.
func Pause(first time.Duration, began time.Time) time.Duration {
	return max(first, time.Since(began)/20)
}

// Await reads the daemon's status until ok returns true, and returns that status. If the
// daemon or ctx ends first, the error contains the last status.
func (n *Node) Await(ctx context.Context, what string, ok func(control.Status) bool) (control.Status, error) {
	exited, began := n.Exited(), time.Now()
	for {
		s, err := n.Status(ctx)
		if err == nil && ok(s) {
			return s, nil
		}
		select {
		case <-exited:
			return s, fmt.Errorf("wait until %s is %s: the daemon has ended: %w", n.Name, what, n.exit)
		case <-ctx.Done():
			if err == nil {
				err = fmt.Errorf("status is %+v", s)
			}
			return s, fmt.Errorf("wait until %s is %s: %w: %w", n.Name, what, ctx.Err(), err)
		case <-time.After(Pause(pollPeriod, began)):
		}
	}
}

// Ready is a condition for Await: the node is ready.
func Ready(s control.Status) bool { return s.Node.Ready && len(s.Node.Overlay) > 0 }

// TunnelsUp counts the live peers to which the node has a tunnel.
func TunnelsUp(s control.Status) int {
	up := 0
	for _, p := range s.Peers {
		if p.Alive && !p.LastHandshake.IsZero() {
			up++
		}
	}
	return up
}

// Sees returns a condition for Await: this number of peers is alive.
func Sees(peers int) func(control.Status) bool {
	return func(s control.Status) bool {
		alive := 0
		for _, p := range s.Peers {
			if p.Alive {
				alive++
			}
		}
		return Ready(s) && alive == peers
	}
}

// PeerOf returns what a status says of a peer; the zero value if it does not know it.
func PeerOf(s control.Status, name string) control.Peer {
	i := slices.IndexFunc(s.Peers, func(p control.Peer) bool { return p.Name == name })
	if i < 0 {
		return control.Peer{}
	}
	return s.Peers[i]
}

// OnPath returns a condition for Await: the peer answers on a path of this kind.
func OnPath(to *Node, kind control.PathKind) func(control.Status) bool {
	return func(s control.Status) bool { return PeerOf(s, to.Name).Path.Works() == kind }
}
