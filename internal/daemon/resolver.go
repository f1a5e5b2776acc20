// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/meshd/meshd/internal/mesh"
)

const (
	// resolveEvery is after how long a name is looked up again. Names of endpoints are often
	// dynamic, with a time to live of a minute.
	resolveEvery = time.Minute
	// resolveAgain is the same if the last lookup failed: with the next turn, so that the problem
	// is gone when the name has come back.
	resolveAgain = resync
	// resolveTimeout bounds one lookup. A resolver that hangs delays no other name.
	resolveTimeout = 5 * time.Second
	// maxLookups is how many names are looked up at a time.
	maxLookups = 8
	// namesPerNode is how many names of one node are looked up: one endpoint has a name where
	// node.endpoint says so, and gossip.advertise may have another one.
	namesPerNode = 2
	// maxNames bounds all names together. The largest mesh in our tests has 500 nodes, and few
	// have a name.
	maxNames = 1024
	// maxAddresses bounds the addresses of one name.
	maxAddresses = 8
)

// resolver looks up the host names of endpoints in the background. A name that can't be
// resolved keeps the addresses that it had.
//
// An attacker can announce many names and have them answered slowly. So the names and the
// lookups at a time are bounded, and names that were resolved before come first.
type resolver struct {
	lookup  func(ctx context.Context, network, host string) ([]netip.Addr, error)
	changed chan struct{} // size one
	ctx     context.Context
	lookups sync.WaitGroup

	mu         sync.Mutex
	known      map[string][]netip.Addr
	lookedUp   map[string]time.Time // when the last lookup began, of all hosts that are wanted
	failed     map[string]error     // of the last lookup, where it failed
	queue      []string             // to be looked up, in this order
	inProgress map[string]bool      // being looked up
}

func newResolver(ctx context.Context) *resolver {
	return &resolver{
		lookup:     net.DefaultResolver.LookupNetIP,
		changed:    make(chan struct{}, 1),
		ctx:        ctx,
		known:      make(map[string][]netip.Addr),
		lookedUp:   make(map[string]time.Time),
		failed:     make(map[string]error),
		inProgress: make(map[string]bool),
	}
}

// resolve returns the addresses known now, and starts lookups of names that are new or old. It
// forgets hosts that are no longer given.
func (n *resolver) resolve(hosts []string, now time.Time) map[string][]netip.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	wanted := make(map[string]bool, len(hosts))
	n.queue = n.queue[:0]
	for _, host := range hosts {
		asked, ok := n.lookedUp[host]
		every := resolveEvery
		if n.failed[host] != nil {
			every = resolveAgain
		}
		if !wanted[host] && !n.inProgress[host] && (!ok || now.Sub(asked) >= every) {
			n.queue = append(n.queue, host)
		}
		wanted[host] = true
		n.lookedUp[host] = asked
	}
	maps.DeleteFunc(n.known, func(host string, _ []netip.Addr) bool { return !wanted[host] })
	maps.DeleteFunc(n.lookedUp, func(host string, _ time.Time) bool { return !wanted[host] })
	maps.DeleteFunc(n.failed, func(host string, _ error) bool { return !wanted[host] })
	answered := func(host string) int {
		if n.known[host] != nil && n.failed[host] == nil {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(n.queue, func(a, b string) int {
		return cmp.Or(cmp.Compare(answered(a), answered(b)), n.lookedUp[a].Compare(n.lookedUp[b]))
	})
	n.startLookups(now)
	return maps.Clone(n.known)
}

// startLookups starts as many lookups as are allowed. The caller holds the lock.
func (n *resolver) startLookups(now time.Time) {
	for len(n.inProgress) < maxLookups && len(n.queue) > 0 && n.ctx.Err() == nil {
		host := n.queue[0]
		n.queue = n.queue[1:]
		n.lookedUp[host], n.inProgress[host] = now, true
		began := time.Now()
		n.lookups.Go(func() { n.lookUp(host, now, began) })
	}
}

// lookUp resolves one host, and wakes the loop if the result has changed. The lookup
// started at now by the loop's clock, and at began by ours.
func (n *resolver) lookUp(host string, now, began time.Time) {
	ctx, cancel := context.WithTimeout(n.ctx, resolveTimeout)
	defer cancel()
	addrs, err := n.lookup(ctx, "ip", host)
	addrs = slices.Clone(addrs)
	for i, a := range addrs {
		addrs[i] = a.Unmap()
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	addrs = slices.Clip(addrs[:min(len(addrs), maxAddresses)])
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.inProgress, host)
	n.startLookups(now.Add(time.Since(began)))
	_, wanted := n.lookedUp[host]
	news := (err == nil) == (n.failed[host] != nil) || err == nil && !slices.Equal(n.known[host], addrs)
	if !wanted || !news {
		return
	}
	if err != nil {
		n.failed[host] = err // tried again after resolveAgain
	} else {
		delete(n.failed, host)
		n.known[host] = addrs
	}
	select {
	case n.changed <- struct{}{}:
	default:
	}
}

// problems reports the endpoints of nodes that can't be resolved.
func (n *resolver) problems(records []mesh.Record) []mesh.Problem {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []mesh.Problem
	for _, r := range records {
		for _, e := range r.Endpoints {
			if err := n.failed[e.Host]; err != nil {
				out = append(out, mesh.Problem{
					Kind: mesh.ProblemEndpoint, Node: r.Name,
					Text:   fmt.Sprintf("the endpoint of node %s does not resolve here: %v", r.Name, err),
					Advice: fmt.Sprintf("check node.endpoint on %s, and this host's resolver", r.Name),
				})
			}
		}
	}
	return out
}

// wait returns when all lookups have ended. The resolver's context must have ended before.
func (n *resolver) wait() { n.lookups.Wait() }

// hostNames returns the names in the records that have to be looked up, namesPerNode of each
// node, and those of clients' endpoints. Nodes that own their slots come first, by the time of their
// claims, so that later ones can't displace their names; clients come last, the oldest first.
func hostNames(records []mesh.Record, clients []mesh.Client) []string {
	owners := mesh.SlotOwners(records)
	named := make([]mesh.Record, 0, len(records))
	for _, r := range records {
		if len(hostNamesOf(r)) > 0 {
			named = append(named, r)
		}
	}
	rank := func(r mesh.Record) int {
		if owner, ok := owners[r.Claim.Slot]; ok && owner == r.ID() {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(named, func(a, b mesh.Record) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), a.Claim.Compare(b.Claim), a.ID().Compare(b.ID()))
	})
	var hosts []string
	seen := make(map[string]bool)
	add := func(host string) {
		if !seen[host] && len(hosts) < maxNames {
			seen[host] = true
			hosts = append(hosts, host)
		}
	}
	for _, r := range named {
		for _, host := range hostNamesOf(r) {
			add(host)
		}
	}
	clients = slices.Clone(clients)
	slices.SortStableFunc(clients, func(a, b mesh.Client) int { return cmp.Compare(a.Added, b.Added) })
	for _, c := range clients {
		if isName(c.Endpoint.Host) {
			add(c.Endpoint.Host)
		}
	}
	return hosts
}

// hostNamesOf returns the names among the hosts of one node.
func hostNamesOf(r mesh.Record) []string {
	var hosts []string
	add := func(host string) {
		if isName(host) && len(hosts) < namesPerNode && !slices.Contains(hosts, host) {
			hosts = append(hosts, host)
		}
	}
	add(r.GossipEndpoint().Host)
	for _, e := range r.Endpoints {
		add(e.Host)
	}
	return hosts
}

// isName reports whether a host has to be looked up.
func isName(host string) bool {
	_, err := netip.ParseAddr(host)
	return err != nil && host != ""
}
