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
	// resolveEvery is how old an answer may get. Names of endpoints are often
	// dynamic, with times to live of a minute.
	resolveEvery = time.Minute
	// resolveTimeout bounds one question; a resolver that hangs delays nothing
	// but its own name.
	resolveTimeout = 5 * time.Second
	// lookups is how many questions are under way at a time.
	lookups = 8
	// namesPerNode is how many names of one node are asked for: one endpoint has a
	// name where node.endpoint says so, and gossip.advertise may have another one.
	namesPerNode = 2
	// maxNames bounds all names together. It is far above the nodes of a mesh that
	// have one: the largest that is tried has 500 nodes.
	maxNames = 1024
	// maxAddresses of one name are kept. More are no help, only more to try.
	maxAddresses = 8
)

// names resolves the host names of endpoints in the background. A name that
// can't be resolved keeps the addresses that it had.
//
// The names are others' word, and whoever makes some up can see to it that they are
// answered slowly. So there is a bound on names and on questions at a time, and
// those that were answered before go first.
type names struct {
	lookup  func(ctx context.Context, network, host string) ([]netip.Addr, error)
	changed chan struct{} // size one
	ctx     context.Context
	running sync.WaitGroup

	mu     sync.Mutex
	known  map[string][]netip.Addr
	asked  map[string]time.Time // when the last question began, of all that are wanted
	lost   map[string]error     // whose last question was not answered
	queue  []string             // to be asked, the first one first
	asking map[string]bool      // are being asked
}

func newNames(ctx context.Context) *names {
	return &names{
		lookup:  net.DefaultResolver.LookupNetIP,
		changed: make(chan struct{}, 1),
		ctx:     ctx,
		known:   make(map[string][]netip.Addr),
		asked:   make(map[string]time.Time),
		lost:    make(map[string]error),
		asking:  make(map[string]bool),
	}
}

// resolve returns what is known of the hosts now and asks for what is missing
// or old. Hosts that nobody asks for any more are forgotten.
func (n *names) resolve(hosts []string, now time.Time) map[string][]netip.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	wanted := make(map[string]bool, len(hosts))
	n.queue = n.queue[:0]
	for _, host := range hosts {
		asked, ok := n.asked[host]
		if !wanted[host] && !n.asking[host] && (!ok || now.Sub(asked) >= resolveEvery) {
			n.queue = append(n.queue, host)
		}
		wanted[host] = true
		n.asked[host] = asked
	}
	maps.DeleteFunc(n.known, func(host string, _ []netip.Addr) bool { return !wanted[host] })
	maps.DeleteFunc(n.asked, func(host string, _ time.Time) bool { return !wanted[host] })
	maps.DeleteFunc(n.lost, func(host string, _ error) bool { return !wanted[host] })
	answered := func(host string) int {
		if n.known[host] != nil && n.lost[host] == nil {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(n.queue, func(a, b string) int {
		return cmp.Or(cmp.Compare(answered(a), answered(b)), n.asked[a].Compare(n.asked[b]))
	})
	n.askNext(now)
	return maps.Clone(n.known)
}

// askNext begins questions as far as there may be more. It is called with the lock.
func (n *names) askNext(now time.Time) {
	for len(n.asking) < lookups && len(n.queue) > 0 && n.ctx.Err() == nil {
		host := n.queue[0]
		n.queue = n.queue[1:]
		n.asked[host], n.asking[host] = now, true
		began := time.Now()
		n.running.Go(func() { n.ask(host, now, began) })
	}
}

// ask resolves one host, tells the loop if the answer is news, and sees to the next
// question. It began at the time now of the loop, which was began of the clock.
func (n *names) ask(host string, now, began time.Time) {
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
	delete(n.asking, host)
	n.askNext(now.Add(time.Since(began)))
	_, wanted := n.asked[host]
	news := (err == nil) == (n.lost[host] != nil) || err == nil && !slices.Equal(n.known[host], addrs)
	if !wanted || !news {
		return
	}
	if err != nil {
		n.lost[host] = err // asked again in a minute
	} else {
		delete(n.lost, host)
		n.known[host] = addrs
	}
	select {
	case n.changed <- struct{}{}:
	default:
	}
}

// problems reports the endpoints of nodes that can't be resolved.
func (n *names) problems(records []mesh.Record) []mesh.Problem {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []mesh.Problem
	for _, r := range records {
		for _, e := range r.Endpoints {
			if err := n.lost[e.Host]; err != nil {
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

// wait returns when no question is under way any more. The context must have
// ended.
func (n *names) wait() { n.running.Wait() }

// hostNames are those hosts in the records that have to be resolved: of each node
// as many as an honest one has, and first those of nodes whose slots are theirs, in
// the order of their claims, so that nobody who comes later crowds them out.
func hostNames(records []mesh.Record) []string {
	owners := mesh.SlotOwners(records)
	named := make([]mesh.Record, 0, len(records))
	for _, r := range records {
		if len(namesOf(r)) > 0 {
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
	for _, r := range named {
		for _, host := range namesOf(r) {
			if !seen[host] && len(hosts) < maxNames {
				seen[host] = true
				hosts = append(hosts, host)
			}
		}
	}
	return hosts
}

// namesOf are the names among the hosts of one node.
func namesOf(r mesh.Record) []string {
	var hosts []string
	add := func(host string) {
		if _, err := netip.ParseAddr(host); err != nil && host != "" && len(hosts) < namesPerNode && !slices.Contains(hosts, host) {
			hosts = append(hosts, host)
		}
	}
	if host, _, err := net.SplitHostPort(r.GossipAddr); err == nil {
		add(host)
	}
	for _, e := range r.Endpoints {
		add(e.Host)
	}
	return hosts
}
