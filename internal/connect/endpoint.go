// SPDX-License-Identifier: Apache-2.0

package connect

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/meshd/meshd/internal/control"
)

// resolved is the result of a lookup. The address is invalid if none was ever found.
type resolved struct {
	addr netip.Addr
	at   time.Time
}

// resolve looks up the host names of endpoints whose last lookup is older than
// resolveEvery. If a lookup fails, the last known address stays in use.
func (c *client) resolve(ctx context.Context, peers []control.ClientPeer) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var due []string
	for _, p := range peers {
		host, _, _ := net.SplitHostPort(p.Endpoint)
		if _, err := netip.ParseAddr(host); err != nil && c.Now().Sub(c.resolved[host].at) >= resolveEvery && !slices.Contains(due, host) {
			due = append(due, host)
		}
	}
	found := make([]netip.Addr, len(due))
	var lookups errgroup.Group
	lookups.SetLimit(maxParallel)
	for i, host := range due {
		lookups.Go(func() error {
			addrs, err := c.Resolver.LookupNetIP(ctx, "ip", host)
			if err != nil || len(addrs) == 0 {
				c.Logger.Debug("resolve endpoint", "host", host, "err", err)
				return nil
			}
			found[i] = addrs[0].Unmap()
			return nil
		})
	}
	_ = lookups.Wait()
	for i, host := range due {
		if !found[i].IsValid() {
			found[i] = c.resolved[host].addr
		}
		c.resolved[host] = resolved{found[i], c.Now()}
	}
}

// endpoint returns a node's endpoint. It is invalid if the name has not been resolved,
// or if the address is routed into a tunnel, because a tunnel can't run through itself.
func (c *client) endpoint(p control.ClientPeer, peers []control.ClientPeer) netip.AddrPort {
	host, portText, _ := net.SplitHostPort(p.Endpoint)
	port, _ := strconv.ParseUint(portText, 10, 16)
	addr, err := netip.ParseAddr(host)
	if err != nil {
		addr = c.resolved[host].addr
	}
	if !isUnicast(addr) || routedTo(peers, addr) {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(addr, uint16(port))
}
