// SPDX-License-Identifier: Apache-2.0

// Package lab makes hosts out of Linux namespaces, connects them to a small internet of
// its own, and runs programs on them: real daemons, real nft, real CNI plugins, without
// containers and without changes to the machine.
//
// A [Host] is one process, the holder, which is PID 1 of a PID namespace and
// owns a network, a mount and a UTS namespace. Everything else hangs on it:
// links live in its network namespace, files in tmpfs mounts of its mount
// namespace (/etc, /opt and /var are overlays, /run is fresh), and every process
// on the host is in its PID namespace. The holder ends when its standard input
// does, which is a pipe from the program that made the lab. So however that program
// ends, kill -9 included, the kernel removes all of it. Two labs don't affect each
// other.
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
// bridge would fill it. An [Underlay] is how a host is connected and addressed. At a
// [Site], hosts share a LAN behind a router of its own. A [Router] is how that treats
// packets. Two homes behind routers of different kinds, and a host that everybody reaches:
//
//	l, err := lab.New(ctx)
//	cone, err := l.Site(ctx, "cone", lab.SiteOptions{Underlay: lab.Home, Router: lab.Router{FullCone: true}})
//	symmetric, err := l.Site(ctx, "symmetric", lab.SiteOptions{Underlay: lab.Home, Router: lab.Router{Mapping: lab.PortDependent}})
//	a, err := cone.Host(ctx, "a")
//	b, err := symmetric.Host(ctx, "b")
//	public, err := l.Host(ctx, "public", lab.Routed)
package lab

import (
	"context"
	"errors"
	"fmt"
	"slices"
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

// New makes a lab with only a router. It needs root. The context bounds only New; the
// lab lives until Close or until the program ends.
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

// Host adds a host. Hosts are numbered from 1, and their addresses follow from their
// numbers, see [Underlay].
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

// add returns a new number for the host, and adds the host if it is new.
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

// BlockPathMTU breaks path MTU discovery and drops fragments on the internet: packets
// that are too big are dropped silently.
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
		if s.carrier != nil {
			g.Go(s.carrier.Close)
		}
	}
	return g.Wait()
}
