// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
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

// joinEntry is what has become of an entry of the join list.
type joinEntry struct {
	answered bool  // by another node, at any time
	self     bool  // it leads to this node alone
	err      error // of the last attempt; nil if another node answered
}

// joinLoop asks each entry of the join list on its own: one that does not answer holds up
// no other. It begins anew when the list changes.
func (g *Gossip) joinLoop(ctx context.Context) {
	for ctx.Err() == nil {
		asking, end := context.WithCancel(ctx)
		g.mu.Lock()
		entries := g.joinList
		g.mu.Unlock()
		var wg sync.WaitGroup
		for _, entry := range entries {
			wg.Go(func() { g.askLoop(asking, entry) })
		}
		wg.Go(func() { g.rememberedLoop(asking) })
		select {
		case <-ctx.Done():
		case <-g.rejoin:
		}
		end()
		wg.Wait()
	}
}

// askLoop asks an entry of the join list, first all the time, then with growing pauses, as
// long as no other node is alive; after that only those of its addresses that have never
// answered, and less often.
func (g *Gossip) askLoop(ctx context.Context, entry string) {
	began, pause := time.Now(), joinBackoffMin
	reached := make(map[target]error) // nil, or errSelf
	for {
		answered := g.ask(ctx, entry, reached)
		eager := !answered && time.Since(began) < joinEagerFor
		var wait time.Duration
		wait, pause = nextAttempt(pause, eager, g.members.alone())
		if !g.sleepUntilAlone(ctx, jitter(wait)) {
			return
		}
	}
}

// nextAttempt returns how long to wait until an entry is asked again, and the pause to go
// on with.
func nextAttempt(pause time.Duration, eager, alone bool) (wait, next time.Duration) {
	switch {
	case eager:
		return min(pause, joinEager), min(2*pause, joinBackoffMax)
	case alone:
		return pause, min(2*pause, joinBackoffMax)
	}
	return joinUnreached, joinBackoffMin
}

// rememberedLoop asks remembered nodes as long as no other node is alive.
func (g *Gossip) rememberedLoop(ctx context.Context) {
	pause := joinBackoffMin
	for {
		wait := joinUnreached
		if g.members.alone() {
			var wg sync.WaitGroup
			for _, id := range firstN(g.absent(), 3) {
				wg.Go(func() { g.joinNode(ctx, id) })
			}
			wg.Wait()
			wait, pause = pause, min(2*pause, joinBackoffMax)
		} else {
			pause = joinBackoffMin
		}
		if !g.sleepUntilAlone(ctx, jitter(wait)) {
			return
		}
	}
}

// sleepUntilAlone waits, but returns early if all other nodes are lost. It returns false
// when ctx ends.
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
		case <-step:
			if !was && g.members.alone() {
				return true
			}
		}
	}
}

// ask tries those addresses of an entry that are due, in parallel, and reports whether
// the entry has ever answered, or leads to this node.
func (g *Gossip) ask(ctx context.Context, entry string, reached map[target]error) bool {
	targets, err := g.resolve(ctx, entry)
	if err == nil {
		// An address that the name has no more may be another node's when it comes back.
		maps.DeleteFunc(reached, func(to target, _ error) bool { return !slices.Contains(targets, to) })
	}
	alone := g.members.alone()
	var wg sync.WaitGroup
	errs := make([]error, len(targets))
	for i, to := range targets {
		if was, ok := reached[to]; ok && !alone {
			errs[i] = was
			continue
		}
		wg.Go(func() { errs[i] = g.joinAt(ctx, to) })
	}
	wg.Wait()
	var others []error // of addresses that are not our own
	for i, to := range targets {
		self := errors.Is(errs[i], errSelf)
		if errs[i] == nil || self {
			reached[to] = errs[i]
		}
		if !self {
			others = append(others, errs[i])
		}
	}
	e := joinEntry{self: len(targets) > 0 && len(others) == 0, answered: slices.Contains(others, nil)}
	if !e.answered && !e.self {
		e.err = errors.Join(append(others, err)...)
	}
	if ctx.Err() != nil {
		return false
	}
	return g.noteJoin(entry, e)
}

// noteJoin records what has become of an entry of the join list, and reports whether it
// has ever answered, or leads to this node.
func (g *Gossip) noteJoin(entry string, e joinEntry) bool {
	g.mu.Lock()
	was := g.joinEntries[entry]
	e.answered = e.answered || was.answered
	g.joinEntries[entry] = e
	g.mu.Unlock()
	if e.self != was.self || e.answered != was.answered || e.failure() != was.failure() {
		g.signal()
	}
	return e.answered || e.self
}

// failure returns why an entry did not answer the last time; "" if it did.
func (e joinEntry) failure() string {
	if e.err == nil {
		return ""
	}
	// An error may quote what the other side sent.
	return mesh.Printable(strings.ReplaceAll(e.err.Error(), "\n", "; "), mesh.MaxText)
}

// joinEmpty reports whether the join list names nobody, or only this node. Call it with
// g.mu held.
func (g *Gossip) joinEmpty() bool {
	return !slices.ContainsFunc(g.joinList, func(entry string) bool { return !g.joinEntries[entry].self })
}

// joinProblems names the entries of the join list that have never answered, and says why
// this node is alone if none of them answers. Call it with g.mu held.
func (g *Gossip) joinProblems(alone bool) []mesh.Problem {
	var problems []mesh.Problem
	for _, entry := range g.joinList {
		e := g.joinEntries[entry]
		text := "does not answer any more"
		switch {
		case e.err == nil || e.answered && !alone:
			continue
		case !e.answered:
			text = "has not answered since meshd started here"
		}
		problems = append(problems, mesh.Problem{
			Kind: ProblemJoin, Node: g.self.String(), Text: fmt.Sprintf("%s of the join list %s: %s", entry, text, e.failure()),
			Advice: "see that `join` names nodes of the mesh, that meshd runs there, and that its gossip port is open for UDP and TCP; the first node does not need join",
		})
	}
	return problems
}

// resolve returns where an entry of the join list leads. A name that a proxy looks up is left
// to it: behind a proxy there is often no other way to.
func (g *Gossip) resolve(ctx context.Context, entry string) ([]target, error) {
	host, port, err := splitEntry(entry)
	if err != nil {
		return nil, err
	}
	addr, err := netip.ParseAddr(host)
	isName := err != nil
	to := target{port: port}
	if isName {
		to.name = host
	}
	if isName && g.transport.isProxied(to) {
		return []target{to}, nil
	}
	if !isName {
		return []target{targetAt(netip.AddrPortFrom(addr.Unmap(), port))}, nil
	}
	resolving, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	found, err := g.resolver.LookupNetIP(resolving, "ip", host)
	if err != nil {
		err = fmt.Errorf("resolve join address %s: %w", entry, err)
	}
	var all []target
	for _, a := range found {
		to.addr = netip.AddrPortFrom(a.Unmap(), port)
		all = append(all, to)
	}
	slices.SortFunc(all, func(a, b target) int { return a.addr.Compare(b.addr) })
	return slices.Compact(all), err
}

// splitEntry splits an entry of the join list into host and port.
func splitEntry(entry string) (host string, port uint16, err error) {
	host, text, err := net.SplitHostPort(entry)
	if err != nil {
		return "", 0, fmt.Errorf("resolve join address: %w", err)
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return "", 0, fmt.Errorf("resolve join address %s: %w", entry, err)
	}
	return host, uint16(n), nil
}

// joinAt joins whatever node is there.
func (g *Gossip) joinAt(ctx context.Context, to target) error {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	s, err := g.transport.dialWith(ctx, to, g.transport.ourHello())
	if err != nil {
		g.log.at(slog.LevelDebug, "join address not reached", "addr", to.String(), "err", err)
		return err
	}
	return g.join(s)
}

// joinNode joins a node at any of its addresses that works.
func (g *Gossip) joinNode(ctx context.Context, id mesh.ID) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	s, err := g.transport.dialNode(ctx, id)
	if err == nil {
		err = g.join(s)
	}
	if err != nil {
		g.log.at(slog.LevelDebug, "known node not reached", "peer", id, "err", err)
	}
}

// join exchanges the whole state over an open stream.
func (g *Gossip) join(s *stream) error {
	g.mu.Lock()
	g.joined = s.peer.id // before what it tells is known, which leads to a claim
	g.mu.Unlock()
	name, withdraw := g.transport.offerStream(s)
	defer withdraw()
	list, _ := g.membership()
	if _, err := list.Join([]string{name}); err != nil {
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

// claimLoop joins the node that was joined last as soon as this one has made a claim: where UDP
// is blocked, the others would hear of it when one of them may have made the same claim.
func (g *Gossip) claimLoop(ctx context.Context) {
	for {
		select {
		case <-g.claimed:
		case <-ctx.Done():
			return
		}
		g.mu.Lock()
		id := g.joined
		g.mu.Unlock()
		if id != (mesh.ID{}) {
			g.joinNode(ctx, id)
		}
	}
}

// compareLoop compares our store with that of a random member. If packets don't reach
// that member, the whole state is exchanged over a stream.
func (g *Gossip) compareLoop(ctx context.Context) {
	for wait.Sleep(ctx, jitter(antiEntropy)) == nil {
		g.updateSettings()
		g.updateOwn()
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
