// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/wait"
)

// Resolver looks up addresses; *net.Resolver is one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// joinLoop tries the join list, with growing pauses, as long as no other node is alive;
// after that only addresses that have never answered, and less often.
func (g *Gossip) joinLoop(ctx context.Context) {
	reached := make(map[netip.AddrPort]bool)
	pause := joinBackoffMin
	for {
		g.joinOnce(ctx, reached)
		wait := joinUnreached
		if g.members.alone() {
			wait, pause = pause, min(2*pause, joinBackoffMax)
		} else {
			pause = joinBackoffMin
		}
		if !g.sleepUntilAlone(ctx, jitter(wait)) {
			return
		}
	}
}

// sleepUntilAlone waits, but returns early if all other nodes are lost or the join list
// changes. It returns false at shutdown.
func (g *Gossip) sleepUntilAlone(ctx context.Context, d time.Duration) bool {
	was := g.members.alone()
	end := time.After(d)
	for {
		step := time.After(time.Second)
		select {
		case <-end:
			return ctx.Err() == nil
		case <-ctx.Done():
			return false
		case <-g.rejoin:
			return true
		case <-step:
			if !was && g.members.alone() {
				return true
			}
		}
	}
}

// joinOnce tries all addresses of the list that are due, in parallel, and if no other
// node is alive, a few remembered nodes as well.
func (g *Gossip) joinOnce(ctx context.Context, reached map[netip.AddrPort]bool) {
	addrs, unresolved := g.resolve(ctx)
	alone := g.members.alone()
	var wg sync.WaitGroup
	errs := make([]error, len(addrs))
	for i, addr := range addrs {
		if alone || !reached[addr] {
			wg.Go(func() { errs[i] = g.joinAddr(ctx, addr) })
		}
	}
	if alone {
		for _, id := range firstN(g.absent(), 3) {
			wg.Go(func() { g.joinNode(ctx, id) })
		}
	}
	wg.Wait()
	for i, addr := range addrs {
		if errs[i] == nil || errors.Is(errs[i], errSelf) {
			reached[addr] = true
		}
	}
	if alone && ctx.Err() == nil {
		g.noteJoin(append(errs, unresolved...))
	}
}

// noteJoin records the result of trying the whole join list: whether it names only this
// node, and why no node answered, if that is so.
func (g *Gossip) noteJoin(errs []error) {
	others := slices.DeleteFunc(errs, func(err error) bool { return errors.Is(err, errSelf) })
	failure := ""
	if !slices.Contains(others, nil) && len(others) > 0 {
		// An error may quote what the other side sent.
		failure = mesh.Printable(strings.ReplaceAll(errors.Join(others...).Error(), "\n", "; "), mesh.MaxText)
	}
	g.mu.Lock()
	changed := g.joinEmpty != (len(others) == 0) || g.joinFailure != failure
	g.joinEmpty, g.joinFailure = len(others) == 0, failure
	g.mu.Unlock()
	if changed {
		g.signal()
	}
}

// resolve returns the addresses of the join list, and an error for each entry that can't
// be resolved.
func (g *Gossip) resolve(ctx context.Context) (addrs []netip.AddrPort, unresolved []error) {
	g.mu.Lock()
	targets := g.joinList
	g.mu.Unlock()
	var wg sync.WaitGroup
	found := make([][]netip.AddrPort, len(targets))
	errs := make([]error, len(targets))
	for i, target := range targets {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, dialTimeout)
			defer cancel()
			found[i], errs[i] = lookup(ctx, g.resolver, target)
		})
	}
	wg.Wait()
	seen := make(map[netip.AddrPort]bool)
	for _, list := range found {
		for _, a := range list {
			if !seen[a] {
				seen[a] = true
				addrs = append(addrs, a)
			}
		}
	}
	errs = slices.DeleteFunc(errs, func(err error) bool { return err == nil })
	if len(errs) > 0 && ctx.Err() == nil {
		g.log.at(slog.LevelWarn, "join list not resolved", "err", errors.Join(errs...))
	}
	return addrs, errs
}

// lookup resolves one entry of the join list.
func lookup(ctx context.Context, r Resolver, target string) ([]netip.AddrPort, error) {
	host, port, err := net.SplitHostPort(target)
	if err != nil {
		return nil, fmt.Errorf("resolve join address: %w", err)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("resolve join address %s: %w", target, err)
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		return []netip.AddrPort{netip.AddrPortFrom(ip.Unmap(), uint16(n))}, nil
	}
	ips, err := r.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, fmt.Errorf("resolve join address %s: %w", target, err)
	}
	var addrs []netip.AddrPort
	for _, ip := range ips {
		addrs = append(addrs, netip.AddrPortFrom(ip.Unmap(), uint16(n)))
	}
	return addrs, nil
}

// joinAddr joins the node at an address.
func (g *Gossip) joinAddr(ctx context.Context, addr netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	s, err := g.transport.dial(ctx, addr)
	if errors.Is(err, errSelf) {
		g.transport.recognise(addr)
	}
	if err != nil {
		g.log.at(slog.LevelDebug, "join address not reached", "addr", addr, "err", err)
		return err
	}
	return g.join(s)
}

// joinNode joins a node over any of its paths that works.
func (g *Gossip) joinNode(ctx context.Context, id mesh.ID) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	s, err := g.transport.dialNode(ctx, id)
	if err == nil {
		err = g.join(s)
	}
	if err != nil {
		g.log.at(slog.LevelDebug, "remembered node not reached", "node", id, "err", err)
	}
}

// join exchanges the whole state over an open stream.
func (g *Gossip) join(s *stream) error {
	target, withdraw := g.transport.offerStream(s)
	defer withdraw()
	list, _ := g.membership()
	if _, err := list.Join([]string{target}); err != nil {
		return fmt.Errorf("join %v: %w", s.peer.id, err)
	}
	return nil
}

// rejoinLoop tries one remembered node that is not alive, from time to time. This heals a
// split network.
func (g *Gossip) rejoinLoop(ctx context.Context) {
	for wait.Sleep(ctx, jitter(rejoinInterval)) == nil {
		for _, id := range firstN(g.absent(), 1) {
			g.joinNode(ctx, id)
		}
	}
}

// followUpLoop joins a random member a few times after the start.
func (g *Gossip) followUpLoop(ctx context.Context) {
	var before time.Duration
	for _, at := range followUps {
		if wait.Sleep(ctx, at-before) != nil {
			return
		}
		before = at
		for _, id := range firstN(g.members.others(), 1) {
			g.joinNode(ctx, id)
		}
	}
}

// RefreshObservations opens new streams to some members, so that they report at which address they see
// us. It does not wait for them.
func (g *Gossip) RefreshObservations() {
	select {
	case g.refresh <- struct{}{}:
	default:
	}
}

// refreshLoop does what RefreshObservations asks for.
func (g *Gossip) refreshLoop(ctx context.Context) {
	for {
		select {
		case <-g.refresh:
		case <-ctx.Done():
			return
		}
		for _, id := range firstN(g.members.others(), 3) {
			g.joinNode(ctx, id)
		}
	}
}

// compareLoop compares our store with that of a random member. If packets don't reach
// that member, the whole state is exchanged over a stream.
func (g *Gossip) compareLoop(ctx context.Context) {
	for wait.Sleep(ctx, jitter(antiEntropy)) == nil {
		g.updateSettings()
		g.mu.Lock()
		root := g.store.rootMessage()
		g.mu.Unlock()
		for _, id := range firstN(g.members.others(), 1) {
			if g.transport.isSilent(id) {
				g.joinNode(ctx, id)
			}
			g.transport.send(id, kindSync, root)
		}
	}
}

// absent returns, in random order, the remembered nodes that are not alive and of which
// an address is known.
func (g *Gossip) absent() []mesh.ID {
	alive, _ := g.members.snapshot()
	var ids []mesh.ID
	for _, id := range g.remembered() {
		if !alive[id] && g.transport.reachable(id) {
			ids = append(ids, id)
		}
	}
	rand.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
	return ids
}

// remembered returns the nodes whose records we hold.
func (g *Gossip) remembered() []mesh.ID {
	g.mu.Lock()
	defer g.mu.Unlock()
	var ids []mesh.ID
	for _, r := range g.store.records() {
		if id := r.ID(); id != g.self {
			ids = append(ids, id)
		}
	}
	return ids
}

func firstN[T any](s []T, n int) []T { return s[:min(n, len(s))] }

// jitter returns a random duration between half and one and a half of d, so that nodes
// don't act at the same moment.
func jitter(d time.Duration) time.Duration {
	return d/2 + rand.N(d)
}
