// SPDX-License-Identifier: Apache-2.0

package daemon

import (
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
)

// names resolves the host names of endpoints in the background. A name that
// can't be resolved keeps the addresses that it had.
type names struct {
	lookup  func(ctx context.Context, network, host string) ([]netip.Addr, error)
	changed chan struct{} // size one
	ctx     context.Context
	running sync.WaitGroup

	mu    sync.Mutex
	known map[string][]netip.Addr
	asked map[string]time.Time
	lost  map[string]error // whose last question was not answered
}

func newNames(ctx context.Context) *names {
	return &names{
		lookup:  net.DefaultResolver.LookupNetIP,
		changed: make(chan struct{}, 1),
		ctx:     ctx,
		known:   make(map[string][]netip.Addr),
		asked:   make(map[string]time.Time),
		lost:    make(map[string]error),
	}
}

// resolve returns what is known of the hosts now and asks for what is missing
// or old. Hosts that nobody asks for any more are forgotten.
func (n *names) resolve(hosts []string, now time.Time) map[string][]netip.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	unwanted := func(host string) bool { return !slices.Contains(hosts, host) }
	maps.DeleteFunc(n.known, func(host string, _ []netip.Addr) bool { return unwanted(host) })
	maps.DeleteFunc(n.asked, func(host string, _ time.Time) bool { return unwanted(host) })
	maps.DeleteFunc(n.lost, func(host string, _ error) bool { return unwanted(host) })
	for _, host := range hosts {
		if asked, ok := n.asked[host]; !ok || now.Sub(asked) >= resolveEvery {
			n.asked[host] = now
			n.running.Go(func() { n.ask(host) })
		}
	}
	return maps.Clone(n.known)
}

// ask resolves one host and tells the loop if the answer is news.
func (n *names) ask(host string) {
	ctx, cancel := context.WithTimeout(n.ctx, resolveTimeout)
	defer cancel()
	addrs, err := n.lookup(ctx, "ip", host)
	for i, a := range addrs {
		addrs[i] = a.Unmap()
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	n.mu.Lock()
	defer n.mu.Unlock()
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
