// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"net"
	"net/netip"
	"slices"
	"syscall"
)

// places bound how many streams are open at the same time. Once all are taken, a
// newcomer gets the place of another stream: of the prefix that has most, within it
// of the narrower prefix that has most, down to the single source, and there the
// oldest. Whoever takes many places takes them from himself, be it from one
// address, a /24, a /48, or half of the internet: an honest source has one or two,
// and a stream that answers needs its place for a round trip or two. Refusing the
// newcomer instead would let those who sit there in silence keep everybody out.
type places struct {
	most      int // in all
	perSource int // of one source
	sources   map[net.Conn]netip.Addr
	all       crowd
	taken     uint64 // how many places were ever taken
}

// crowd is the streams of one prefix.
type crowd struct {
	count int
	since uint64                  // number of the stream with which it began
	parts map[netip.Prefix]*crowd // by narrower prefix; nil for a single source
	conns []net.Conn              // of a single source, the oldest first
}

func newPlaces(most, perSource int) *places {
	return &places{most: most, perSource: perSource, sources: make(map[net.Conn]netip.Addr)}
}

// prefixesOf returns the prefixes to which an address belongs, the widest first:
// what a provider, a site and a host usually has. An IPv6 host has a whole /64.
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

// take gives a stream a place, and returns the one that loses its own, or nil.
func (p *places) take(conn net.Conn, source netip.Addr) (loses net.Conn) {
	p.taken++
	at := &p.all
	at.count++
	for _, prefix := range prefixesOf(source) {
		if at.parts == nil {
			at.parts = make(map[netip.Prefix]*crowd)
		}
		if at.parts[prefix] == nil {
			at.parts[prefix] = &crowd{since: p.taken}
		}
		at = at.parts[prefix]
		at.count++
	}
	at.conns = append(at.conns, conn)
	p.sources[conn] = source
	switch {
	case at.count > p.perSource:
		loses = at.conns[0]
	case p.all.count > p.most:
		loses = p.all.heaviest()
	}
	if loses != nil {
		p.leave(loses)
	}
	return loses
}

// leave gives a place back. A stream that has none is no error.
func (p *places) leave(conn net.Conn) {
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

// heaviest returns the stream to give way. Of crowds that are equal it is the one
// that came first.
func (c *crowd) heaviest() net.Conn {
	for c.parts != nil {
		var most *crowd
		for _, part := range c.parts {
			if most == nil || part.count > most.count || part.count == most.count && part.since < most.since {
				most = part
			}
		}
		c = most
	}
	return c.conns[0]
}

// streamPlaces are the places of inbound streams: of strangers that have yet to
// prove themselves, the same of addresses at which nodes are known to live, so that
// no flood keeps these out, and of those that have.
type streamPlaces struct{ strangers, known, proved *places }

// newStreamPlaces divides what the process may open. The rest is left for
// everything else that it does.
func newStreamPlaces(files uint64) streamPlaces {
	share := func(most int, part uint64) int { return max(1, int(min(uint64(most), files/part))) }
	return streamPlaces{
		strangers: newPlaces(share(maxPendingStreams, 4), maxPendingPerSource),
		known:     newPlaces(share(maxPendingKnown, 16), maxPendingPerSource),
		proved:    newPlaces(share(maxStreams, 16), maxStreams),
	}
}

// fileLimit is how many files this process may open.
func fileLimit() uint64 {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 1024 // what nearly every system grants
	}
	return limit.Cur
}

// admitStream gives a stream a place among those that have yet to prove themselves.
func (t *transport) admitStream(conn net.Conn, source netip.Addr) {
	t.mu.Lock()
	defer t.mu.Unlock()
	waiting := t.places.strangers
	if t.paths.isKnown(source) {
		waiting = t.places.known
	}
	t.turnOut(waiting.take(conn, source))
}

// prove moves a stream to those that have proved themselves. It reports false if
// the node has as many as one may have, or if the stream was turned out meanwhile.
func (t *transport) prove(conn net.Conn, s *stream) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.leavePending(conn) {
		return false
	}
	if t.streamsOf[s.peer.id] >= maxStreamsPerNode {
		t.counters.add("stream-limit")
		return false
	}
	t.streamsOf[s.peer.id]++
	t.turnOut(t.places.proved.take(conn, remote(conn).Addr()))
	return true
}

// leavePending gives back the place of a stream that had yet to prove itself, and
// reports whether it had one.
func (t *transport) leavePending(conn net.Conn) bool {
	before := len(t.places.strangers.sources) + len(t.places.known.sources)
	t.places.strangers.leave(conn)
	t.places.known.leave(conn)
	return len(t.places.strangers.sources)+len(t.places.known.sources) < before
}

// leave gives back the place of a stream that had proved itself.
func (t *transport) leave(conn net.Conn, s *stream) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.places.proved.leave(conn)
	if t.streamsOf[s.peer.id]--; t.streamsOf[s.peer.id] == 0 {
		delete(t.streamsOf, s.peer.id)
	}
}

// turnOut ends a stream, and with it what its goroutine does. Resetting does not
// wait.
func (t *transport) turnOut(conn net.Conn) {
	if conn != nil {
		t.counters.add("stream-limit")
		reset(conn)
	}
}
