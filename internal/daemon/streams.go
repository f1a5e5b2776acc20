// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/node"
	"github.com/meshd/meshd/internal/path/stream"
)

// runStreams carries datagrams over TCP, to and from nodes whose UDP is blocked.
func (d *daemon) runStreams(ctx context.Context, ready func()) error {
	c := stream.New(stream.Options{
		WireGuard: uint16(d.cfg.WireGuard.ListenPort),
		Dial:      d.dialStream,
		Gossip:    d.gossip.Carried,
		Relay:     d.forward,
		Logger:    d.log.Logger,
	})
	d.gossip.SetCarrier(c)
	d.streams = c
	d.relayOptions.Stream = c.SendRelayed
	ready()
	<-ctx.Done()
	c.Close()
	return nil
}

// streamAddresses returns where streams are accepted, besides gossip's port.
func streamAddresses(c config.Config) []string {
	if c.Relay.Listen.Port() == 0 {
		return nil
	}
	return []string{bindAddress(c.Relay.Listen)}
}

// dialStream opens a stream to a node, also at the addresses besides those of gossip at which
// it accepts some.
func (d *daemon) dialStream(ctx context.Context, to mesh.ID) (net.Conn, error) {
	var at []netip.AddrPort
	for _, p := range d.gossip.View().Paths {
		if p.Author != to {
			continue
		}
		for _, c := range p.Candidates {
			if c.Kind == mesh.CandidateStream {
				at = append(at, c.Addr)
			}
		}
	}
	return d.gossip.DialCarrier(ctx, to, at...)
}

// keepStreams opens the streams that this node needs, and closes those that it doesn't. What
// there is afterwards is in t.in.
func (d *daemon) keepStreams(t *turn) error {
	t.in.Paths.Streams = d.readStreams()
	relays, _ := d.memory.Relays(t.in, t.wanted)
	wanted, recheckAfter := d.memory.WantedStreams(t.in, relays)
	t.recheckIn(recheckAfter)
	err := d.streams.Keep(wanted)
	t.in.Paths.Streams = d.readStreams()
	if err != nil {
		return fmt.Errorf("keep streams: %w", err)
	}
	return nil
}

func (d *daemon) readStreams() []node.Stream {
	var all []node.Stream
	for _, s := range d.streams.Status() {
		all = append(all, node.Stream{Node: s.Node, Dialled: s.Dialled, Own: s.Own, Relay: s.Relay, Since: s.Since, Proxy: s.Proxy})
	}
	return all
}
