// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
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
}

func newNames(ctx context.Context) *names {
	return &names{
		lookup:  net.DefaultResolver.LookupNetIP,
		changed: make(chan struct{}, 1),
		ctx:     ctx,
		known:   make(map[string][]netip.Addr),
		asked:   make(map[string]time.Time),
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
	if err != nil {
		return // asked again in a minute; the peers' handshakes show what it costs
	}
	for i, a := range addrs {
		addrs[i] = a.Unmap()
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, wanted := n.asked[host]; !wanted || slices.Equal(n.known[host], addrs) {
		return
	}
	n.known[host] = addrs
	select {
	case n.changed <- struct{}{}:
	default:
	}
}

// wait returns when no question is under way any more. The context must have
// ended.
func (n *names) wait() { n.running.Wait() }
