// SPDX-License-Identifier: Apache-2.0

package path

import (
	"container/heap"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// natKind is how a router treats the UDP of the hosts behind it. The words are those of
// RFC 4787.
type natKind int

const (
	public     natKind = iota // no router
	firewall                  // no translation; in comes what answers
	preserving                // the port of the newest flow, else the own one, as Linux does; in comes what answers
	restricted                // one port of its own for each of the host's; in comes what answers
	fullCone                  // the same; in comes all
	symmetric                 // another port for each destination; in comes what answers
	natKinds
)

func (k natKind) String() string {
	return []string{"public", "firewall", "preserving", "restricted", "full cone", "symmetric"}[k]
}

const natTimeout = 30 * time.Second

// flow is what a router knows a datagram by: the port that the internet sees, and the
// address at the other end.
type flow struct {
	port   uint16
	remote netip.AddrPort
}

// router stands between a host and the internet.
type router struct {
	kind    natKind
	accept  bool // what comes in unasked is taken for its own, and holds the flow
	addr    netip.Addr
	out     map[netip.AddrPort]uint16 // the port in use towards a remote
	flows   map[flow]time.Time        // in use, for the host
	made    []flow                    // those of flows that the router made, the newest last
	own     map[flow]time.Time        // in use, by the router itself
	collect time.Duration             // for how long a flow that it has forgotten counts as the newest one
	cone    uint16                    // the port of restricted and fullCone
	rand    *rand.Rand
}

// send returns the address from which the internet sees a datagram of the host.
func (r *router) send(now time.Time, from, to netip.AddrPort) netip.AddrPort {
	port, ok := r.out[to]
	if ok && now.Sub(r.flows[flow{port, to}]) >= natTimeout {
		ok = false
	}
	if !ok {
		switch r.kind {
		case firewall:
			port = from.Port()
		case preserving:
			port = r.newest(now, from.Port())
		case restricted, fullCone:
			port = r.cone
		case symmetric:
			port = uint16(10000 + r.rand.IntN(20000))
		}
		if t, taken := r.own[flow{port, to}]; taken && now.Sub(t) < natTimeout && r.kind != firewall {
			port = uint16(30000 + r.rand.IntN(20000))
		}
		r.out[to] = port
		r.made = append(r.made, flow{port, to})
	}
	r.flows[flow{port, to}] = now
	if r.kind == firewall {
		return from
	}
	return netip.AddrPortFrom(r.addr, port)
}

// newest returns the port of the newest flow that is not collected, as find_appropriate_src in Linux
// does; port if there is none.
func (r *router) newest(now time.Time, port uint16) uint16 {
	r.made = slices.DeleteFunc(r.made, func(f flow) bool { return now.Sub(r.flows[f]) >= natTimeout+r.collect })
	if len(r.made) > 0 {
		return r.made[len(r.made)-1].port
	}
	return port
}

// receive reports whether a datagram from the internet reaches the host.
func (r *router) receive(now time.Time, from netip.AddrPort, port uint16) bool {
	if r.kind == fullCone && port == r.cone {
		return true
	}
	if t, ok := r.flows[flow{port, from}]; ok && now.Sub(t) < natTimeout {
		r.flows[flow{port, from}] = now
		return true
	}
	if r.accept {
		r.own[flow{port, from}] = now
	}
	return false
}

func (r *router) forget() {
	r.out, r.flows, r.made, r.own = map[netip.AddrPort]uint16{}, map[flow]time.Time{}, nil, map[flow]time.Time{}
}

// datagram is what the simulated internet carries.
type datagram struct {
	author, to int
	probe      *Message // nil for WireGuard's data
	control    *Message // between a node and a relay
	look       bool     // a probe that shows a relay's WireGuard port from where it comes
	echo       *Message // an Echo or an Echoed
}

// bytes is what a relay looks at: a probe without its content, or data with an index.
func (d datagram) bytes() []byte {
	b := make([]byte, 128)
	if d.probe == nil {
		b[0] = transport
		binary.LittleEndian.PutUint32(b[4:], d.index())
		return b
	}
	binary.BigEndian.PutUint32(b, magic)
	from, to := shortOf(d.author), shortOf(d.to)
	copy(b[4:], from[:])
	copy(b[12:], to[:])
	return b[:sealedLen]
}

// size is how long a probe is. WireGuard's data is short.
func (d datagram) size() int {
	if d.probe == nil {
		return sealedLen
	}
	return max(sealedLen, d.probe.Size)
}

// index is the index of a session, the same all the time.
func (d datagram) index() uint32 { return uint32(d.author<<8 | d.to) }

func shortOf(num int) Short { return Short{byte(num)} }

// box is one host of the simulation.
type box struct {
	num     int
	addr    netip.AddrPort // of WireGuard, as the host knows it
	router  *router        // nil for none
	site    int            // hosts of one site share a LAN; 0 for none
	relay   bool
	table   *Relay // of a relay
	binder  *Binder
	up      bool // the daemon; WireGuard goes on without it
	rests   bool // it holds no punched path open without traffic
	machine map[int]*Machine
	wg      map[int]*Traffic
	got     map[int]int // data received by peer
	meeting map[int]*Meeting
	reached map[uint16]bool   // by the ports of sockets for trials
	last    time.Time         // when data was received last
	gap     time.Duration     // the longest time without
	seen    [4]netip.AddrPort // where two relays see it: at the relay's port, and at WireGuard's
	met     []netip.AddrPort  // where two of the peers see it
}

const relayPort = 7946

// sharesLAN reports whether two hosts reach each other by private addresses.
func (b *box) sharesLAN(o *box) bool {
	return b.site == o.site && b.addr.Addr().IsPrivate() && o.addr.Addr().IsPrivate()
}

// outside is where the internet finds a host.
func (b *box) outside() netip.Addr {
	if b.router != nil && b.router.kind != firewall {
		return b.router.addr
	}
	return b.addr.Addr()
}

func (b *box) relayAddr() netip.AddrPort { return netip.AddrPortFrom(b.addr.Addr(), relayPort) }

// event is something that happens later.
type event struct {
	at  time.Time
	seq int
	do  func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at.Before(e[j].at) || e[i].at.Equal(e[j].at) && e[i].seq < e[j].seq
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	old := *e
	last := old[len(old)-1]
	*e = old[:len(old)-1]
	return last
}

// internet is the simulation: hosts, routers, links that can be cut, on virtual time.
type internet struct {
	now    time.Time
	rand   *rand.Rand
	boxes  []*box
	cut    map[[2]int]bool // datagrams from one host to another, by any address but a LAN's
	lanCut map[[2]int]bool
	narrow map[[2]int]int // how long datagrams may be from one host to another, in bytes; 0 for any length
	long   map[[2]int]int // bytes of datagrams that did not fit, or might not
	loss   float64
	jitter time.Duration         // by how much longer a datagram travels at most, at random
	near   bool                  // all routers are less than higherTTL away from each other
	far    map[int]time.Duration // how much farther from all others a host is
	prefer []Short
	full   map[int]float64 // the share of what a relay is to forward that it drops
	queue  events
	seq    int
	log    []string
}

func newInternet(seed uint64) *internet {
	return &internet{
		now: time.Unix(1e9, 0), rand: rand.New(rand.NewPCG(seed, 1)),
		cut: map[[2]int]bool{}, lanCut: map[[2]int]bool{}, narrow: map[[2]int]int{}, long: map[[2]int]int{},
		far: map[int]time.Duration{}, full: map[int]float64{}, jitter: 2 * time.Millisecond,
	}
}

func (n *internet) note(format string, args ...any) {
	n.log = append(n.log, fmt.Sprintf("%8.3f ", n.now.Sub(time.Unix(1e9, 0)).Seconds())+fmt.Sprintf(format, args...))
}

func (n *internet) after(d time.Duration, do func()) {
	n.seq++
	heap.Push(&n.queue, event{n.now.Add(d), n.seq, do})
}

// run lets time pass.
func (n *internet) run(d time.Duration) {
	end := n.now.Add(d)
	for len(n.queue) > 0 && !n.queue[0].at.After(end) {
		e := heap.Pop(&n.queue).(event)
		n.now = e.at
		e.do()
	}
	n.now = end
}

// host adds a host.
func (n *internet) host(kind natKind, accept bool, site int) *box {
	num := len(n.boxes) + 1
	b := &box{
		num: num, site: site, up: true, machine: map[int]*Machine{}, wg: map[int]*Traffic{}, got: map[int]int{},
		meeting: map[int]*Meeting{}, reached: map[uint16]bool{},
		addr:  netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(num)}), 51820),
		table: NewRelay([32]byte{byte(num)}), binder: &Binder{},
	}
	if kind != public {
		b.router = &router{kind: kind, accept: accept, addr: netip.AddrFrom4([4]byte{203, 0, 113, byte(num)}), cone: uint16(40000 + num), rand: n.rand}
		b.router.forget()
		if kind != firewall {
			b.addr = netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 168, byte(site), byte(num)}), 51820)
		}
	}
	n.boxes = append(n.boxes, b)
	return b
}

func (n *internet) box(num int) *box { return n.boxes[num-1] }

// delay is how long a datagram travels between two hosts, with some jitter.
func (n *internet) delay(a, b int) time.Duration {
	return n.distance(a, b) + time.Duration(n.rand.Int64N(int64(n.jitter)))
}

// distance is 5 to 45 ms, the same each time, and what is added to it.
func (n *internet) distance(a, b int) time.Duration {
	return n.far[a] + n.far[b] + time.Duration(5+(a*7+b*13+a*b)%40)*time.Millisecond
}

// send sends a datagram from a host's port.
func (n *internet) send(from *box, port uint16, to netip.AddrPort, ttl int, d datagram) {
	source := netip.AddrPortFrom(from.addr.Addr(), port)
	if n.rand.Float64() < n.loss {
		return
	}
	for _, b := range n.boxes { // on the LAN
		if b.addr.Addr() == to.Addr() && b.addr.Addr().IsPrivate() {
			if b.site == from.site && !n.lanCut[[2]int{from.num, b.num}] {
				n.after(time.Millisecond, func() { n.deliver(b, source, to.Port(), d) })
			}
			return
		}
	}
	if from.router != nil {
		source = from.router.send(n.now, source, to)
	}
	if ttl != 0 && !(n.near && ttl >= higherTTL) {
		return // it dies on the way
	}
	for _, b := range n.boxes {
		if b.outside() != to.Addr() {
			continue
		}
		way := [2]int{from.num, b.num}
		if d.size() > sealedLen {
			n.long[way] += d.size()
		}
		if most := n.narrow[way]; !n.cut[way] && (most == 0 || d.size() <= most) {
			n.after(n.delay(from.num, b.num), func() {
				if b.router == nil || b.router.receive(n.now, source, to.Port()) {
					port := to.Port()
					if b.router != nil {
						port = b.addr.Port()
					}
					n.deliver(b, source, port, d)
				}
			})
		}
		return
	}
}

// deliver gives a datagram to a host.
func (n *internet) deliver(b *box, source netip.AddrPort, port uint16, d datagram) {
	if port == relayPort {
		if b.relay && b.up {
			n.relayed(b, source, d)
		}
		return
	}
	if d.control != nil {
		if b.up {
			n.controlled(b, d)
		}
		return
	}
	if d.echo != nil && d.to == b.num {
		n.echoed(b, source, port, d)
		return
	}
	if port != b.addr.Port() || d.to != b.num {
		return
	}
	if d.look {
		if b.relay && b.up {
			n.after(300*time.Millisecond, func() { n.box(d.author).seen[2+b.num%2] = source })
		}
		return
	}
	if d.probe == nil {
		t := b.wg[d.author]
		t.Received += 128
		t.Endpoint = source
		b.got[d.author]++
		b.gap, b.last = max(b.gap, n.now.Sub(b.last)), n.now
		return
	}
	if !b.up {
		return
	}
	over := n.over(b, d.author, source)
	if seen := d.probe.Seen; d.probe.Op == Pong && over.Kind == Direct && !slices.Contains(b.met, seen) {
		b.met = append(b.met[max(0, len(b.met)-1):], seen)
	}
	if over.Kind == Relayed {
		b.binder.Want(n.now, over.Relay)
		n.stepBinder(b)
	}
	n.act(b, d.author, b.machine[d.author].Receive(n.now, *d.probe, over))
}

// relayed has a relay do with a datagram what it does.
func (n *internet) relayed(b *box, source netip.AddrPort, d datagram) {
	answer := func(m Message) {
		n.send(b, relayPort, source, 0, datagram{author: b.num, to: d.author, control: &m})
	}
	if d.control != nil {
		answer(b.table.Bind(n.now, shortOf(d.author), wgtypes.Key{byte(d.author)}, *d.control, source))
		return
	}
	if d.probe == nil { // nodes tell their sessions
		b.table.Learn(n.now, shortOf(d.author), d.index(), shortOf(d.to))
	}
	proved := map[Short]netip.AddrPort{}
	for _, o := range n.boxes {
		if o.router == nil {
			proved[shortOf(o.num)] = o.addr
		}
	}
	b.table.SetProved(proved)
	switch to, verdict := b.table.Forward(n.now, d.bytes(), source); verdict {
	case Pass:
		if n.rand.Float64() < n.full[b.num] {
			return
		}
		n.send(b, relayPort, to, 0, d)
	case AskWho:
		if m, ok := b.table.Who(n.now, len(d.bytes()), source); ok {
			answer(m)
		}
	}
}

// controlled takes what a relay says to a node.
func (n *internet) controlled(b *box, d datagram) {
	b.binder.Receive(n.now, shortOf(d.author), *d.control)
	for _, r := range b.binder.Bound(n.now) {
		n.after(300*time.Millisecond, func() { b.seen[r.Relay[0]%2] = r.Seen }) // told by gossip
	}
	n.stepBinder(b)
}

func (n *internet) stepBinder(b *box) {
	for _, r := range b.binder.Step(n.now) {
		relay := n.box(int(r.Relay[0]))
		n.send(b, b.addr.Port(), r.Addr, 0, datagram{author: b.num, to: relay.num, control: &r.Message})
		n.send(b, b.addr.Port(), relay.addr, 0, datagram{author: b.num, to: relay.num, look: true})
	}
}

// over is the path over which a datagram came.
func (n *internet) over(b *box, author int, source netip.AddrPort) Path {
	for _, r := range n.boxes {
		if r.relay && r.relayAddr() == source {
			return Path{Kind: Relayed, Relay: shortOf(r.num), Addr: source}
		}
	}
	if source.Addr().IsPrivate() && n.box(author).site == b.site {
		return Path{Kind: LAN, Addr: source}
	}
	return Path{Kind: Direct, Addr: source}
}

// act does what a machine wants.
func (n *internet) act(b *box, peer int, actions []Action) {
	for _, a := range actions {
		if a.Message.Op == 0 {
			if t := b.wg[peer]; t.Endpoint != a.Path.Addr {
				n.note("%d writes for %d: %v", b.num, peer, a.Path)
				t.Endpoint = a.Path.Addr
			}
			continue
		}
		if a.Message.Op >= Call || a.TTL > 0 {
			n.note("%d to %d: op %d over %v, TTL %d", b.num, peer, a.Message.Op, a.Path, a.TTL)
		}
		if a.Path.Kind == None {
			n.gossip(b, n.box(peer), a.Message)
			continue
		}
		if a.Path.Kind == Relayed {
			b.binder.Want(n.now, a.Path.Relay)
		}
		n.send(b, b.addr.Port(), a.Path.Addr, a.TTL, datagram{author: b.num, to: peer, probe: &a.Message})
	}
	n.stepBinder(b)
}

// hears reports whether gossip reaches a host, by a node that all reach.
func (n *internet) hears(b *box) bool {
	return slices.ContainsFunc(n.boxes, func(o *box) bool {
		return o.router == nil && o != b && o.up && !n.cut[[2]int{b.num, o.num}] && !n.cut[[2]int{o.num, b.num}]
	})
}

// gossip carries a call.
func (n *internet) gossip(from, to *box, m Message) {
	if !n.hears(from) || !n.hears(to) {
		return
	}
	n.after(time.Duration(100+n.rand.IntN(500))*time.Millisecond, func() {
		if to.up {
			n.act(to, from.num, to.machine[from.num].Receive(n.now, m, Path{}))
		}
	})
}

// candidates is what gossip tells a host of a peer.
func (n *internet) candidates(b, peer *box) []Candidate {
	var all []Candidate
	if b.sharesLAN(peer) {
		all = append(all, Candidate{Path{Kind: LAN, Addr: peer.addr}, true})
	}
	switch {
	case peer.router == nil:
		all = append(all, Candidate{Path{Kind: Direct, Addr: peer.addr}, true})
	case peer.router.kind == firewall:
		all = append(all, Candidate{Path{Kind: Direct, Addr: peer.addr}, false})
	default:
		open := peer.router.kind == fullCone // as others have found out
		for _, seen := range slices.Concat(peer.seen[:], peer.met) {
			// Many routers keep the port, although others may have seen another one.
			for _, port := range []uint16{seen.Port(), peer.addr.Port()} {
				c := Candidate{Path{Kind: Direct, Addr: netip.AddrPortFrom(seen.Addr(), port)}, open && port == seen.Port()}
				if seen.IsValid() && !slices.ContainsFunc(all, func(o Candidate) bool { return o.Path == c.Path }) {
					all = append(all, c)
				}
			}
		}
	}
	for _, r := range n.boxes {
		if r.relay && r != b && r != peer {
			all = append(all, Candidate{Path{Kind: Relayed, Relay: shortOf(r.num), Addr: r.relayAddr()}, true})
		}
	}
	return all
}

// connect has two hosts talk, some packets a second each way while busy holds.
func (n *internet) connect(a, b *box, busy func() bool) {
	for _, e := range [][2]*box{{a, b}, {b, a}} {
		self, peer := e[0], e[1]
		self.wg[peer.num] = &Traffic{}
		self.machine[peer.num] = NewMachine(self.num < peer.num, Traffic{}, n.now)
		var tick, talk func()
		var told time.Time
		tick = func() {
			m := self.machine[peer.num]
			if !self.up {
				n.after(time.Second, tick)
				return
			}
			if n.now.Sub(told) > time.Second {
				m.SetCandidates(n.now, n.candidates(self, peer))
				told = n.now
			}
			before, _ := m.InUse()
			m.SetRest(self.rests)
			m.Observe(n.now, *self.wg[peer.num])
			n.act(self, peer.num, m.Step(n.now))
			if after, _ := m.InUse(); after != before {
				n.note("%d to %d: %v, was %v", self.num, peer.num, after, before)
			}
			wait := m.Next(n.now).Sub(n.now)
			if !m.isBusy(n.now) {
				wait = min(wait, time.Second)
			} else {
				wait = min(wait, 100*time.Millisecond) // to look at WireGuard
			}
			n.after(max(wait, 5*time.Millisecond)+time.Duration(n.rand.IntN(5))*time.Millisecond, tick)
		}
		talk = func() {
			n.after(time.Duration(20+n.rand.IntN(60))*time.Millisecond, talk)
			if t := self.wg[peer.num]; busy() && t.Endpoint.IsValid() {
				t.Sent += 128
				n.send(self, self.addr.Port(), t.Endpoint, 0, datagram{author: self.num, to: peer.num})
			}
		}
		n.after(time.Duration(n.rand.IntN(int(time.Second))), tick)
		n.after(time.Second, talk)
	}
}

// bind has a host stay bound to all relays if strangers don't reach it, and bind to them when it
// wants to otherwise.
func (n *internet) bind(b *box) {
	var step func()
	step = func() {
		n.after(max(b.binder.Next(n.now).Sub(n.now), 5*time.Millisecond), step)
		if !b.up {
			return
		}
		n.setRelays(b)
		n.stepBinder(b)
	}
	n.after(0, step)
}

// setRelays tells a host of all relays, as a daemon does at its start, too.
func (n *internet) setRelays(b *box) {
	keep := 2
	if b.router == nil {
		keep = 0
	}
	var relays []RelayAddr
	for _, r := range n.boxes {
		if r.relay && r != b {
			relays = append(relays, RelayAddr{shortOf(r.num), r.relayAddr()})
		}
	}
	b.binder.SetRelays(relays, keep, n.prefer...)
}
