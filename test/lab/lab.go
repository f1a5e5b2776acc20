// SPDX-License-Identifier: Apache-2.0

// Package lab makes hosts out of Linux namespaces, wires them to a small
// internet of its own, and lets programs run on them: real daemons, real nft,
// real CNI plugins, without containers and without touching the machine.
//
// A [Host] is one process, the holder, which is PID 1 of a PID namespace and
// owns a network, a mount and a UTS namespace. Everything else hangs on it:
// links live in its network namespace, files in tmpfs mounts of its mount
// namespace (/etc, /opt and /var are overlays, /run is fresh), and every process
// on the host is in its PID namespace. The holder ends when its standard input
// does, which is a pipe from the program that made the lab. So whatever becomes
// of that program, a kill -9 included, the kernel takes all of it away, and two
// labs at once can't meet.
//
// Programs that use the package call [Main] first of all, because the holder is
// the same executable, started again:
//
//	func TestMain(m *testing.M) {
//		lab.Main()
//		os.Exit(m.Run())
//	}
//
// The internet is a router, with a link to each host and nothing shared between
// links: all namespaces of a machine share one neighbour table, and a flat
// bridge would fill it. How a host is seen from the others is its [Underlay].
// A [Site] is a place where hosts share a LAN, behind a router of its own.
package lab

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
)

// Lab is a set of hosts around one router.
type Lab struct {
	router *Host

	mu     sync.Mutex
	hosts  []*Host
	sites  []*Site
	number int // the last one that a host was given
}

// New makes a lab that has nothing but its router. It needs root. The context
// bounds only the making; the lab lives until Close or until the program ends.
func New(ctx context.Context) (*Lab, error) {
	router, err := startHost("router")
	if err != nil {
		return nil, fmt.Errorf("make router: %w", err)
	}
	l := &Lab{router: router}
	if err := l.setUpRouter(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("set up router: %w", err), l.Close())
	}
	return l, nil
}

// Host adds a host. The first one is number 1, which its addresses follow; see
// [Underlay].
func (l *Lab) Host(ctx context.Context, name string, u Underlay) (*Host, error) {
	h, err := startHost(name)
	if err != nil {
		return nil, fmt.Errorf("make host %s: %w", name, err)
	}
	h.link = newLink(l.router, h, u, l.add(h))
	if err := h.link.create(ctx); err != nil {
		return nil, fmt.Errorf("wire host %s: %w", name, err)
	}
	return h, nil
}

// add returns the host's number, another one for a host that is there already.
func (l *Lab) add(h *Host) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !slices.Contains(l.hosts, h) {
		l.hosts = append(l.hosts, h)
	}
	l.number++
	return l.number
}

// Outside is a host of the internet that takes no part in any mesh: the router,
// at OutsideAddr.
func (l *Lab) Outside() *Host { return l.router }

// Partition cuts every path between a host of a and a host of b, both ways.
// Each call adds to what is cut already. Hosts of one site are cut from each
// other on their LAN. To other places a site has one link, so that one host of
// it is cut off there with all the others.
func (l *Lab) Partition(ctx context.Context, a, b []*Host) error {
	pairs := map[*Host][]string{} // by the router that has the links
	for _, x := range a {
		for _, y := range b {
			router, from, to := l.router, x.link.internetEnd(), y.link.internetEnd()
			if x.link.site != nil && x.link.site == y.link.site {
				router, from, to = x.link.router, x.link.routerEnd, y.link.routerEnd
			}
			pairs[router] = append(pairs[router], from+" . "+to, to+" . "+from)
		}
	}
	for router, cut := range pairs {
		family := "inet"
		if router != l.router {
			family = "bridge"
		}
		if err := nft(ctx, router, fmt.Sprintf("add element %s lab cut { %s }\n", family, strings.Join(cut, ", "))); err != nil {
			return err
		}
	}
	return nil
}

// Heal undoes every Partition.
func (l *Lab) Heal(ctx context.Context) error {
	err := l.nft(ctx, "flush set inet lab cut\n")
	for _, s := range l.sites {
		err = errors.Join(err, nft(ctx, s.router, "flush set bridge lab cut\n"))
	}
	return err
}

// BlockPathMTU makes the internet one where path MTU discovery does not work and
// fragments are lost: packets that are too big vanish and nobody is told.
func (l *Lab) BlockPathMTU(ctx context.Context) error {
	return l.nft(ctx, `
table inet lab-mtu {
	chain enter {
		type filter hook prerouting priority -450 # before anything could put fragments together
		ip frag-off & 0x3fff != 0 counter drop
		exthdr frag exists counter drop
	}
	chain own {
		type filter hook output priority filter
		icmp type destination-unreachable counter drop
		icmpv6 type packet-too-big counter drop
	}
}
`)
}

// Close removes all hosts with everything that runs on them.
func (l *Lab) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var g errgroup.Group
	for _, h := range append(l.hosts, l.router) {
		g.Go(h.Close)
	}
	for _, s := range l.sites {
		g.Go(s.router.Close)
	}
	return g.Wait()
}
