// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"net"
	"net/netip"
	"slices"
	"syscall"
)

// places limits how many streams are open at the same time. If all places are taken, a
// new stream replaces another one: the oldest stream of the source with the most streams,
// within the prefix with the most, within the wider prefix with the most. So a host that
// opens many streams replaces its own, whether it uses one address, a /24, a /48, or half
// of the internet: an honest source has one or two streams, and a stream that answers
// needs its place only for a round trip or two. If new streams were refused instead, an
// attacker that opens silent streams could keep all others out.
type places struct {
	most      int // in all
	perSource int // from one source
	sources   map[net.Conn]netip.Addr
	all       prefixStreams
	taken     uint64 // counts the streams that were ever added
}

// prefixStreams are the streams of one prefix.
type prefixStreams struct {
	count int
	since uint64                          // number of the prefix's first stream
	parts map[netip.Prefix]*prefixStreams // by narrower prefix; nil for a single source
	conns []net.Conn                      // of a single source, the oldest first
}

func newPlaces(most, perSource int) *places {
	return &places{most: most, perSource: perSource, sources: make(map[net.Conn]netip.Addr)}
}

// prefixesOf returns the prefixes to which an address belongs, the widest first:
// typically those of a provider, a site and a host. An IPv6 host has a whole /64.
func prefixesOf(a netip.Addr) [3]netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := [3]int{16, 24, 32}
	if !a.Is4() {
		bits = [3]int{32, 48, 64}
	}
	var all [3]netip.Prefix
	for i, n := range bits {
		all[i] = must(a.Prefix(n))
	}
	return all
}

// add gives a stream a place, and returns the stream that loses its place, or nil.
func (p *places) add(conn net.Conn, source netip.Addr) (replaced net.Conn) {
	p.taken++
	at := &p.all
	at.count++
	for _, prefix := range prefixesOf(source) {
		if at.parts == nil {
			at.parts = make(map[netip.Prefix]*prefixStreams)
		}
		if at.parts[prefix] == nil {
			at.parts[prefix] = &prefixStreams{since: p.taken}
		}
		at = at.parts[prefix]
		at.count++
	}
	at.conns = append(at.conns, conn)
	p.sources[conn] = source
	switch {
	case at.count > p.perSource:
		replaced = at.conns[0]
	case p.all.count > p.most:
		replaced = p.all.toReplace()
	}
	if replaced != nil {
		p.remove(replaced)
	}
	return replaced
}

// remove frees the place of a stream. It has no effect on a stream without a place.
func (p *places) remove(conn net.Conn) {
	source, ok := p.sources[conn]
	if !ok {
		return
	}
	delete(p.sources, conn)
	at := &p.all
	at.count--
	for _, prefix := range prefixesOf(source) {
		part := at.parts[prefix]
		if part.count--; part.count == 0 {
			delete(at.parts, prefix)
			return
		}
		at = part
	}
	at.conns = slices.DeleteFunc(at.conns, func(c net.Conn) bool { return c == conn })
}

// toReplace returns the stream that is to be replaced. Of prefixes with equally many
// streams it chooses the one that came first.
func (c *prefixStreams) toReplace() net.Conn {
	for c.parts != nil {
		var most *prefixStreams
		for _, part := range c.parts {
			if most == nil || part.count > most.count || part.count == most.count && part.since < most.since {
				most = part
			}
		}
		c = most
	}
	return c.conns[0]
}

// streamPlaces are the places of inbound streams: of unknown peers that have not proved
// their identity yet, of such peers at addresses of known nodes, so that no flood can
// keep these out, of peers that have proved it, and of those whose streams carry datagrams.
type streamPlaces struct{ strangers, known, proved, carriers *places }

// newStreamPlaces divides the number of files that the process may open. The rest is left
// for everything else that the process does.
func newStreamPlaces(files uint64) streamPlaces {
	share := func(most int, part uint64) int { return max(1, int(min(uint64(most), files/part))) }
	return streamPlaces{
		strangers: newPlaces(share(maxPendingStreams, 4), maxPendingPerSource),
		known:     newPlaces(share(maxPendingKnown, 16), maxPendingPerSource),
		proved:    newPlaces(share(maxStreams, 16), maxStreams),
		carriers:  newPlaces(share(maxCarriers, 16), maxCarriersPerSource),
	}
}

// fileLimit returns how many files this process may open.
func fileLimit() uint64 {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 1024 // the default of nearly every system
	}
	return limit.Cur
}

// admitStream gives a stream a place among those that have not proved their identity yet.
func (t *transport) admitStream(conn net.Conn, source netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	waiting := t.places.strangers
	if t.addresses.isKnown(source) {
		waiting = t.places.known
	}
	t.closeReplaced(waiting.add(conn, source))
}

// moveToProved moves a stream to those that have proved their identity. It returns false
// if the node already has as many as it may have, or if the stream was replaced
// meanwhile.
func (t *transport) moveToProved(conn net.Conn, s *stream) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.removePending(conn) {
		return false
	}
	if t.streamsOf[s.peer.id] >= maxStreamsPerNode {
		t.counters.add("stream-limit")
		return false
	}
	t.streamsOf[s.peer.id]++
	t.closeReplaced(t.places.proved.add(conn, remote(conn).Addr()))
	return true
}

// removePending frees the place of a stream that has not proved its identity, and reports
// whether it had one.
func (t *transport) removePending(conn net.Conn) bool {
	before := len(t.places.strangers.sources) + len(t.places.known.sources)
	t.places.strangers.remove(conn)
	t.places.known.remove(conn)
	return len(t.places.strangers.sources)+len(t.places.known.sources) < before
}

// removeProved frees the place of a stream that has proved its identity.
func (t *transport) removeProved(conn net.Conn, s *stream) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.places.proved.remove(conn)
	if t.streamsOf[s.peer.id]--; t.streamsOf[s.peer.id] == 0 {
		delete(t.streamsOf, s.peer.id)
	}
}

// closeReplaced ends a replaced stream, and with it what its goroutine does. Resetting
// does not block.
func (t *transport) closeReplaced(conn net.Conn) {
	if conn != nil {
		t.counters.add("stream-limit")
		reset(conn)
	}
}
